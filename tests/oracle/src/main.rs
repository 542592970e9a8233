//! ostree-ext as a program: what bootc hosts do with images, for the tests to compare with.
//!
//! Every verb prints one JSON value. Transport security and signatures are off: the tests'
//! registries are on loopback and sign nothing.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use ostree_ext::container::store::{
    self, ImageImporter, LayeredImageState, PrepareResult, gc_image_layers, list_images,
};
use ostree_ext::container::{
    Config, ImageReference, OstreeImageReference, SignatureSource, Transport, deploy, encapsulate,
};
use ostree_ext::containers_image_proxy::ImageProxyConfig;
use ostree_ext::ostree::{Repo, Sysroot, gio};
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
        } => {
            let transport = Transport::OciDir;
            let name = format!("{}:{tag}", layout.display());
            let destination = ImageReference { transport, name };
            let config = Config::default();
            let digest = encapsulate(&open(repo)?, &commit, &config, None, &destination).await?;
            json!(digest.to_string())
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
