//! Images in the container storage of this host, which podman and buildah fill.
//!
//! The storage belongs to those tools, so they are asked: skopeo for the manifest and the configuration as
//! they were pulled, which keeps the image's identity, and for its layers when they are wanted. The storage
//! keeps layers unpacked, so what comes is the tar that the diff_id proves, not the blob that the manifest
//! names. Where there is only podman, the image is what podman saves. Invariant: nothing of the storage is
//! read, or changed, without its tools.

use std::fs::File;
use std::path::PathBuf;

use tokio::sync::OnceCell;
use tokio_util::bytes::Bytes;

use super::archive::Archive;
use super::here::{Here, Invocation, PODMAN, SKOPEO, ToolError, is_installed};
use super::layer::{Compression, Layer, Transfer};
use super::layout::{Image, LayoutError};
use super::members::Members;
use super::oci_layout::OciLayout;
use super::reference::Digest;
use super::spool::{Abandon, nameless};
use super::{ByteStream, Error, RawDocument, blob};

/// What the tools say of a name that is not in the storage.
const NOT_THERE: [&str; 3] = [
    "does not resolve to an image ID",
    "identifier is not an image",
    "image not known",
];

/// One image in the storage.
#[derive(Debug)]
pub(super) struct Storage {
    /// The image as the tools know it, without transport.
    name: String,
    tools: Tools,
    max_manifest_bytes: u64,
    here: Here,
}

#[derive(Debug)]
enum Tools {
    /// The layers, once they were asked for.
    Skopeo(OnceCell<Members>),
    /// All of it, once anything was asked for.
    Podman(OnceCell<OciLayout>),
}

impl Storage {
    /// Asks nobody yet.
    ///
    /// # Errors
    /// [`Error::NotSupported`] where neither tool is installed.
    pub(super) fn new(name: &str, max_manifest_bytes: u64, here: &Here) -> Result<Storage, Error> {
        let tools = if is_installed(SKOPEO) {
            Tools::Skopeo(OnceCell::new())
        } else if is_installed(PODMAN) {
            Tools::Podman(OnceCell::new())
        } else {
            return Err(Error::NotSupported(
                "images in the container storage of this host are read with skopeo or podman, and \
                 neither is installed; add skopeo to the image of this host"
                    .to_owned(),
            ));
        };
        Ok(Storage {
            name: name.to_owned(),
            tools,
            max_manifest_bytes,
            here: here.clone(),
        })
    }

    /// Longest document that is read into memory, in bytes.
    pub(super) fn max_manifest_bytes(&self) -> u64 {
        self.max_manifest_bytes
    }

    /// The manifest, which must be that of the digest if one is given.
    pub(super) async fn document(&self, digest: Option<&Digest>) -> Result<RawDocument, Error> {
        if let Tools::Podman(saved) = &self.tools {
            return self.saved(saved).await?.document(digest).await;
        }
        let bytes = self.inspect(&["--raw"]).await?;
        let found = Digest::of(&bytes);
        match digest {
            Some(wanted) if *wanted != found => Err(Error::DigestGone {
                image: self.shown(),
                digest: wanted.clone(),
            }),
            _ => Ok(RawDocument {
                digest: found,
                bytes,
            }),
        }
    }

    /// The configuration.
    pub(super) async fn config(&self, digest: &Digest, size: u64) -> Result<Bytes, Error> {
        match &self.tools {
            Tools::Podman(saved) => {
                let saved = self.saved(saved).await?;
                blob::collect(saved.blob(digest, size, 0..size).await?).await
            }
            Tools::Skopeo(_) => self.inspect(&["--config", "--raw"]).await,
        }
    }

    /// Has the layers brought out, and says of each what comes.
    pub(super) async fn bring_out(&self, mut image: Image) -> Result<Image, Error> {
        let Tools::Skopeo(layers) = &self.tools else {
            return Ok(image);
        };
        let members = layers.get_or_try_init(|| self.export()).await?;
        for layer in &mut image.layers {
            let member = members.open(&member_name(layer)).await?;
            layer.transfer = Transfer::Tar;
            (layer.chunked, layer.not_chunked) = (None, None);
            layer.compression = Compression::Plain;
            layer.size = member.length;
        }
        Ok(image)
    }

    /// What [`Storage::bring_out`] said of the layer, from byte `from` on.
    pub(super) async fn blob(&self, layer: &Layer, from: u64) -> Result<ByteStream, Error> {
        let layers = match &self.tools {
            Tools::Podman(saved) => {
                let saved = self.saved(saved).await?;
                return saved
                    .blob(&layer.digest, layer.size, from..layer.size)
                    .await;
            }
            Tools::Skopeo(layers) => layers.get_or_try_init(|| self.export()).await?,
        };
        let member = layers.open(&member_name(layer)).await?;
        let (digest, size) = (layer.digest.clone(), layer.size);
        let wrong_size = move |actual| {
            Error::Invalid(LayoutError::BlobSize {
                digest: digest.clone(),
                expected: size,
                actual,
            })
        };
        if member.length != size {
            return Err(wrong_size(member.length));
        }
        let rest = from..size;
        let wrong_size = move |actual| wrong_size(from + actual);
        Ok(blob::sized(
            member.part(&rest).chunks(),
            size - from,
            wrong_size,
        ))
    }

    fn shown(&self) -> String {
        format!("containers-storage:{}", self.name)
    }

    async fn inspect(&self, what: &[&str]) -> Result<Bytes, Error> {
        let mut arguments = vec!["inspect".to_owned()];
        arguments.extend(what.iter().map(|&word| word.to_owned()));
        arguments.push(self.shown());
        let purpose = format!("reading the manifest of {}", self.shown());
        let bytes = self.run(SKOPEO, arguments, None, purpose).await?;
        let limit = self.max_manifest_bytes;
        if bytes.len() as u64 > limit {
            return Err(Error::Invalid(LayoutError::Unreadable {
                what: "manifest",
                reason: format!("it is longer than the {limit} bytes allowed"),
            }));
        }
        Ok(bytes.into())
    }

    /// All layers, each as `HEX.tar` named by its diff_id: docker's archive is the one format that is
    /// written in one go, without a copy of everything beside it.
    async fn export(&self) -> Result<Members, Error> {
        let arguments = [
            "copy",
            "--quiet",
            &self.shown(),
            "docker-archive:/dev/stdout",
        ];
        self.save(SKOPEO, &arguments).await
    }

    /// The image as podman saves it.
    async fn saved<'a>(&self, saved: &'a OnceCell<OciLayout>) -> Result<&'a OciLayout, Error> {
        saved
            .get_or_try_init(|| async {
                // Not --uncompressed: with that podman 4.3 says gzip of layers that are none.
                let options = ["image", "save", "--quiet", "--format=oci-archive"];
                let arguments = [&options[..], &["--", &self.name]].concat();
                let members = self.save(PODMAN, &arguments).await?;
                Ok(OciLayout::opened(
                    members,
                    &self.name,
                    self.max_manifest_bytes,
                ))
            })
            .await
    }

    /// Has a tool write an archive, and reads what is in it.
    async fn save(&self, program: &'static str, arguments: &[&str]) -> Result<Members, Error> {
        let output = nameless(&self.here.scratch)?;
        let archive = output.try_clone().map_err(|source| Error::Io {
            path: self.here.scratch.clone(),
            source,
        })?;
        let arguments = arguments.iter().map(|&word| word.to_owned()).collect();
        let purpose = format!("copying {} out of the container storage", self.shown());
        self.run(program, arguments, Some(output), purpose).await?;
        let (shown, scratch) = (PathBuf::from(self.shown()), self.here.scratch.clone());
        let abandon = Abandon::default();
        let stop = abandon.flag();
        let read = tokio::task::spawn_blocking(move || {
            let archive = Archive::read(archive, &shown, &scratch, &stop)?;
            Ok(Members::Archive { archive, shown })
        });
        read.await
            .unwrap_or_else(|error| Err(Error::NotSupported(error.to_string())))
    }

    async fn run(
        &self,
        program: &'static str,
        arguments: Vec<String>,
        output: Option<File>,
        purpose: String,
    ) -> Result<Vec<u8>, Error> {
        let Some(run) = &self.here.run else {
            return Err(Error::NotSupported(format!(
                "{} cannot be read: no tools of the host can be run here",
                self.shown()
            )));
        };
        let invocation = Invocation {
            purpose,
            program,
            arguments,
            output,
        };
        run(invocation).await.map_err(|error| match error {
            ToolError::Failed(words) if NOT_THERE.iter().any(|text| words.contains(text)) => {
                Error::NotFound { what: self.shown() }
            }
            error => Error::Tool {
                program,
                reason: error.to_string(),
            },
        })
    }
}

fn member_name(layer: &Layer) -> String {
    format!("{}.tar", layer.diff_id.hex())
}
