//! ostree-ext as a program: what bootc hosts do with images, for the tests to compare with.
//!
//! Every verb prints one JSON value. Transport security and signatures are off: the tests'
//! registries are on loopback and sign nothing.

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use ostree_ext::chunking::ObjectMetaSized;
use ostree_ext::container::store::{
    self, ImageImporter, LayeredImageState, PrepareResult, gc_image_layers, list_images,
};
use ostree_ext::container::{
    Config, ExportOpts, ImageReference, OstreeImageReference, SignatureSource, Transport, deploy,
    encapsulate,
};
use ostree_ext::containers_image_proxy::ImageProxyConfig;
use ostree_ext::objectsource::{ObjectMeta, ObjectSourceMeta};
use ostree_ext::ostree::{Repo, RepoFile, Sysroot, gio};
use ostree_ext::prelude::{Cast as _, FileExt as _};
use ostree_ext::sysroot::SysrootLock;
use serde_json::{Value, json};

/// Drives ostree-ext.
#[derive(Debug, Parser)]
enum Verb {
    /// Makes a commit the base image TAG of the layout LAYOUT.
    EncapsulateBase {
        repo: PathBuf,
        commit: String,
        layout: PathBuf,
        tag: String,
        /// With a layer for each directory's files, instead of one for all.
        #[arg(long)]
        chunked: bool,
    },
    /// Imports an image.
    Import {
        repo: PathBuf,
        image: String,
        /// The name to keep it under, usually the one it comes from.
        #[arg(long = "as")]
        name: String,
    },
    /// Shows an image that is in the repository, or null.
    Query { repo: PathBuf, image: String },
    /// Lists the images in the repository.
    List { repo: PathBuf },
    /// Drops layers that no image needs; prints how many.
    Gc { repo: PathBuf },
    /// Drops images that are not deployed; prints how many images and layers.
    Prune { sysroot: PathBuf },
}

#[tokio::main]
async fn main() -> Result<()> {
    let answer = match Verb::parse() {
        Verb::EncapsulateBase {
            repo,
            commit,
            layout,
            tag,
            chunked,
        } => {
            let transport = Transport::OciDir;
            let name = format!("{}:{tag}", layout.display());
            let destination = ImageReference { transport, name };
            let (repo, config) = (open(repo)?, Config::default());
            let owners = chunked.then(|| owners(&repo, &commit)).transpose()?;
            let mut options = ExportOpts::default();
            options.contentmeta = owners.as_ref();
            let digest = encapsulate(&repo, &commit, &config, Some(options), &destination);
            json!(digest.await?.to_string())
        }
        Verb::Import { repo, image, name } => import(&open(repo)?, &image, &name).await?,
        Verb::Query { repo, image } => {
            let repo = open(repo)?;
            let image = ImageReference::try_from(image.as_str())?;
            match store::query_image(&repo, &image)? {
                Some(state) => describe(&repo, &state)?,
                None => Value::Null,
            }
        }
        Verb::List { repo } => json!(list_images(&open(repo)?)?),
        Verb::Gc { repo } => json!(gc_image_layers(&open(repo)?)?),
        Verb::Prune { sysroot } => prune(sysroot).await?,
    };
    println!("{answer}");
    Ok(())
}

fn open(path: PathBuf) -> Result<Repo> {
    let repo = Repo::new(&gio::File::for_path(&path));
    repo.open(gio::Cancellable::NONE)
        .with_context(|| format!("opening the repository {}", path.display()))?;
    Ok(repo)
}

/// Says of every file that the directory it is in brought it, as if that were a package.
fn owners(repo: &Repo, commit: &str) -> Result<ObjectMetaSized> {
    let mut meta = ObjectMeta::default();
    let (root, _) = repo.read_commit(commit, gio::Cancellable::NONE)?;
    let mut directories = vec![(root, PathBuf::from("/"))];
    while let Some((directory, path)) = directories.pop() {
        let owner: Rc<str> = path.display().to_string().into();
        let children = directory.enumerate_children(
            "standard::name,standard::type",
            gio::FileQueryInfoFlags::NOFOLLOW_SYMLINKS,
            gio::Cancellable::NONE,
        )?;
        for child in children {
            let child = child?;
            let file = directory.child(child.name());
            if child.file_type() == gio::FileType::Directory {
                directories.push((file, path.join(child.name())));
                continue;
            }
            let Ok(file) = file.downcast::<RepoFile>() else {
                continue;
            };
            let object = file.checksum().to_string();
            meta.map.entry(object).or_insert_with(|| owner.clone());
            meta.set.insert(ObjectSourceMeta {
                identifier: owner.clone(),
                name: owner.clone(),
                srcid: owner.clone(),
                change_time_offset: u32::MAX,
                change_frequency: u32::MAX,
            });
        }
    }
    // A directory whose files are all somewhere else as well brings nothing.
    let used: HashSet<Rc<str>> = meta.map.values().cloned().collect();
    meta.set.retain(|source| used.contains(&source.identifier));
    ObjectMetaSized::compute_sizes(repo, meta)
}

async fn import(repo: &Repo, image: &str, name: &str) -> Result<Value> {
    let unverified = |image: &str| {
        let sigverify = SignatureSource::ContainerPolicyAllowInsecure;
        let imgref = ImageReference::try_from(image)?;
        anyhow::Ok(OstreeImageReference { sigverify, imgref })
    };
    let (image, name) = (unverified(image)?, unverified(name)?);
    let mut skopeo = Command::new("skopeo");
    skopeo.arg("--insecure-policy");
    let config = ImageProxyConfig {
        skopeo_cmd: Some(skopeo),
        insecure_skip_tls_verification: Some(true),
        ..Default::default()
    };
    let mut importer = ImageImporter::new(repo, &image, config).await?;
    importer.set_target(&name);
    let state = match importer.prepare().await? {
        PrepareResult::AlreadyPresent(state) => state,
        PrepareResult::Ready(prepared) => importer.import(prepared).await?,
    };
    describe(repo, &state)
}

fn describe(repo: &Repo, state: &LayeredImageState) -> Result<Value> {
    let (commit, _) = repo.load_commit(&state.merge_commit)?;
    // A commit's seventh and eighth members are its root's two checksums, as bytes.
    let hex = |member: usize| -> String {
        let checksum = commit.child_value(member);
        checksum
            .data_as_bytes()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    };
    ensure!(
        commit.n_children() == 8,
        "not a commit: {}",
        state.merge_commit
    );
    Ok(json!({
        "merge_commit": state.merge_commit,
        "base_commit": state.base_commit,
        "manifest_digest": state.manifest_digest.to_string(),
        "root_contents": hex(6),
        "root_metadata": hex(7),
        "version": state.version(),
        "cached_update": state.cached_update.as_ref().map(|u| u.manifest_digest.to_string()),
    }))
}

async fn prune(path: PathBuf) -> Result<Value> {
    let sysroot = Sysroot::new(Some(&gio::File::for_path(path)));
    sysroot.load(gio::Cancellable::NONE)?;
    let locked = SysrootLock::new_from_sysroot(&sysroot).await?;
    let pruned = deploy::prune(&locked)?;
    Ok(json!([pruned.n_images, pruned.n_layers]))
}
