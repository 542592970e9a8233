//! Deltas that are published beside an image of which something is missing.
//!
//! Invariant: an update never fails, nor waits for long, because of them: without one layers are fetched as
//! usual.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::Job;
use crate::delta::{ARTIFACT_TYPE, Artifact, names_source};
use crate::image::layout::Image;
use crate::image::reference::Digest;
use crate::image::{Error, Referrer, Source};
use crate::sysroot::Snapshot;

/// Longest time that is spent on finding them: it is a few short documents.
const LONGEST: Duration = Duration::from_secs(15);
/// Most of them that are looked at.
const LOOKED_AT: usize = 8;

/// Those that lead to `image` from what is deployed.
pub(super) async fn find(
    job: &Job,
    snapshot: &Snapshot,
    source: &Source,
    image: &Image,
) -> Arc<[Artifact]> {
    let deployed = snapshot.deployments.iter();
    let deployed = deployed.filter_map(|deployment| deployment.image.as_ref());
    let here: HashSet<&Digest> = deployed.map(|image| &image.config_digest).collect();
    let mut found = Vec::new();
    let search = tokio::time::timeout(LONGEST, search(source, image, &here, &mut found));
    let searched = tokio::select! {
        searched = search => searched,
        // Whoever comes next sees that, too.
        () = job.cancel.cancelled() => return Arc::default(),
    };
    match searched {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::info!(%error, "no deltas were looked for"),
        Err(_) => {
            let longest = humantime::format_duration(LONGEST);
            tracing::info!("deltas were looked for no longer than {longest}");
        }
    }
    found.into()
}

/// Adds to `found`, one by one: what is wrong with one, or takes long, is no reason to do without the others.
async fn search(
    source: &Source,
    image: &Image,
    here: &HashSet<&Digest>,
    found: &mut Vec<Artifact>,
) -> Result<(), Error> {
    let referrers = source.referrers(&image.digest, ARTIFACT_TYPE).await?;
    for referrer in promising(referrers, here) {
        let manifest = match source.artifact(&referrer).await {
            Ok(manifest) => manifest,
            // The list can be older than what was removed from the registry.
            Err(error) => {
                tracing::info!(%error, "a delta that is listed is not to be had");
                continue;
            }
        };
        match Artifact::parse(&manifest, image) {
            Ok(artifact) => found.push(artifact),
            Err(error) => {
                tracing::warn!(%error, artifact = %referrer.digest, "a delta is of no use");
            }
        }
    }
    Ok(())
}

/// The first ones that start from something that is here, or that may.
fn promising(referrers: Vec<Referrer>, here: &HashSet<&Digest>) -> Vec<Referrer> {
    let starts_here = |referrer: &Referrer| match names_source(&referrer.annotations) {
        Some(source) => here.contains(&source).then_some(0),
        None => Some(1),
    };
    let ranked = referrers.into_iter();
    let mut ranked: Vec<_> = ranked
        .filter_map(|referrer| Some((starts_here(&referrer)?, referrer)))
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    let referrers = ranked.into_iter().map(|(_, referrer)| referrer);
    referrers.take(LOOKED_AT).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::JoinSet;

    use super::*;
    use crate::image::RegistryConfig;
    use crate::image::reference::ImageReference;

    /// Answers one request with the document whose path ends so, and refuses all others.
    async fn serve(stream: TcpStream, documents: Arc<[(String, Value)]>) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut request = String::new();
        while !request.ends_with("\r\n\r\n") {
            if stream.read_line(&mut request).await? == 0 {
                return Ok(());
            }
        }
        let path = request.split(' ').nth(1).unwrap_or_default();
        let path = path.split('?').next().unwrap_or_default();
        let found = documents
            .iter()
            .find(|(end, _)| path.ends_with(end.as_str()));
        let (status, body) = match found {
            Some((_, document)) => ("200 OK", document.to_string()),
            None => ("403 Forbidden", String::new()),
        };
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}");
        let answer = format!("{head}\r\n\r\n{body}");
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await
    }

    #[tokio::test]
    async fn what_one_delta_lacks_does_not_matter_to_the_others() {
        let target = Digest::of(b"image");
        let manifest = json!({
            "schemaVersion": 2, "layers": [],
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                       "digest": target.as_str(), "size": 1},
        });
        let image = Image::from_commit_metadata(target.as_str(), &manifest.to_string(), "null");
        let image = image.unwrap();
        let delta = |from: &str| {
            let from = Digest::of(from.as_bytes()).to_string();
            json!({
                "schemaVersion": 2, "artifactType": ARTIFACT_TYPE, "layers": [],
                "subject": {"mediaType": "x", "digest": target.as_str(), "size": 1},
                "annotations": {"io.github.containers.delta.source-config": from},
            })
        };
        let digest = |document: &Value| Digest::of(document.to_string().as_bytes()).to_string();
        let deltas = ["refused", "one", "another"].map(delta);
        let [_, one, another] = deltas.clone();
        let listed = deltas.iter().map(|delta| {
            json!({"mediaType": "x", "digest": digest(delta), "size": 1, "artifactType": ARTIFACT_TYPE})
        });
        let list = json!({"schemaVersion": 2, "manifests": listed.collect::<Vec<_>>()});
        let documents: Arc<[(String, Value)]> = Arc::new([
            (format!("/referrers/{target}"), list),
            (format!("/manifests/{}", digest(&one)), one),
            (format!("/manifests/{}", digest(&another)), another),
        ]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, documents.clone()));
            }
        });
        let reference: ImageReference = format!("docker://{host}/ns/os:1").parse().unwrap();
        let source = Source::open(&reference, &RegistryConfig::default()).unwrap();
        let mut found = Vec::new();
        let searched = search(&source, &image, &HashSet::new(), &mut found).await;
        searched.unwrap();
        let from: Vec<_> = found
            .iter()
            .map(|delta| delta.source_config.clone())
            .collect();
        assert_eq!(from, [Digest::of(b"one"), Digest::of(b"another")]);
    }

    #[test]
    fn only_what_may_start_from_here_is_looked_at() {
        let [here, elsewhere] = ["here", "elsewhere"].map(|text| Digest::of(text.as_bytes()));
        let referrer = |name: &str, source: Option<&Digest>| Referrer {
            digest: Digest::of(name.as_bytes()),
            annotations: source.map_or_else(BTreeMap::new, |source| {
                let key = "io.github.containers.delta.source-config".to_owned();
                BTreeMap::from([(key, source.to_string())])
            }),
        };
        let unknown = referrer("unknown", None);
        let named = referrer("named", Some(&here));
        let others = vec![
            unknown.clone(),
            referrer("other", Some(&elsewhere)),
            named.clone(),
        ];
        let found = promising(others, &HashSet::from([&here]));
        assert_eq!(found, [named, unknown.clone()]);
        assert!(promising(Vec::new(), &HashSet::new()).is_empty());
        assert_eq!(
            promising(vec![unknown; 50], &HashSet::new()).len(),
            LOOKED_AT
        );
    }
}
