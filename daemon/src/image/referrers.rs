//! What is published beside an image: artifacts that name its manifest as their subject.
//!
//! Registries list them at an address of their own (OCI distribution specification 1.1, "Listing Referrers").
//! Where there is none, publishers keep the list under a tag made from the digest. Invariants: what is found
//! here proves nothing; nobody waits for it, so each question is put once; how many are listed is bounded.

use std::collections::BTreeMap;

use reqwest::header::{HeaderMap, LINK};
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;
use tokio_util::bytes::Bytes;

use super::reference::Digest;
use super::registry::Registry;
use super::{Backend, Error, Source};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Says which filters the registry applied itself.
const FILTERS: &str = "oci-filters-applied";
/// Most pages of a list that are read.
const PAGES: usize = 4;
/// Most artifacts that are looked at. An image has one delta for each of its last versions, or a few more.
const REFERRERS: usize = 100;

/// An artifact beside an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referrer {
    /// Of its manifest.
    pub digest: Digest,
    /// What its manifest is annotated with, where the list repeats that.
    pub annotations: BTreeMap<String, String>,
}

/// Any list of manifests.
#[derive(Deserialize)]
struct List {
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    digest: String,
    artifact_type: Option<String>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl Source {
    /// The artifacts of a type whose subject is the manifest of this digest; none where the source has no
    /// place for them.
    ///
    /// # Errors
    /// When a registry cannot be asked, or gives no sensible answer.
    pub async fn referrers(
        &self,
        subject: &Digest,
        artifact_type: &str,
    ) -> Result<Vec<Referrer>, Error> {
        match &self.backend {
            Backend::Registry(registry) => registry.referrers(subject, artifact_type).await,
            Backend::Layout(_) | Backend::Storage(_) => Ok(Vec::new()),
        }
    }

    /// The manifest of an artifact, as it is served and of its digest.
    ///
    /// # Errors
    /// As [`Source::resolve`].
    pub async fn artifact(&self, referrer: &Referrer) -> Result<Bytes, Error> {
        let digest = Some(&referrer.digest);
        let document = match &self.backend {
            Backend::Registry(registry) => registry.ask_for_document(digest).await?,
            Backend::Layout(_) | Backend::Storage(_) => self.document(digest).await?,
        };
        Ok(document.bytes)
    }
}

impl Registry {
    async fn referrers(&self, subject: &Digest, kind: &str) -> Result<Vec<Referrer>, Error> {
        if self.remembered().knows_referrers() {
            if let Some(found) = self.listed(subject, kind).await? {
                return Ok(found);
            }
            self.remembered().has_no_referrers();
        }
        let tag = format!("{}/manifests/sha256-{}", self.base(), subject.hex());
        let response = self.get_list(&tag).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(Vec::new());
        }
        let list = self.read_list(response).await?;
        Ok(list.map_or_else(Vec::new, |list| list.of_type(kind, false)))
    }

    /// By the registry's own list; `None` where it has no such thing.
    async fn listed(&self, subject: &Digest, kind: &str) -> Result<Option<Vec<Referrer>>, Error> {
        let base = format!("{}/referrers/", self.base());
        let first = Url::parse_with_params(&format!("{base}{subject}"), [("artifactType", kind)]);
        let Ok(mut url) = first else {
            return Ok(None);
        };
        let mut found = Vec::new();
        for page in 0..PAGES {
            let response = self.get_list(url.as_str()).await?;
            let missing = matches!(
                response.status(),
                StatusCode::NOT_FOUND
                    | StatusCode::BAD_REQUEST
                    | StatusCode::METHOD_NOT_ALLOWED
                    | StatusCode::NOT_IMPLEMENTED
            );
            if missing {
                return Ok((page > 0).then_some(found));
            }
            let next = next_page(response.headers(), &url);
            let filtered = is_filtered(response.headers());
            // Not an index: whatever answers there, it is not the list.
            let Some(list) = self.read_list(response).await? else {
                return Ok((page > 0).then_some(found));
            };
            found.extend(list.of_type(kind, filtered));
            match next {
                Some(next) if found.len() < REFERRERS && next.as_str().starts_with(&base) => {
                    url = next;
                }
                _ => break,
            }
        }
        found.truncate(REFERRERS);
        Ok(Some(found))
    }

    async fn get_list(&self, url: &str) -> Result<Response, Error> {
        self.get_document(url, OCI_INDEX).await
    }

    /// `None` for something else than a list.
    async fn read_list(&self, response: Response) -> Result<Option<List>, Error> {
        let bytes = self.read_document(response).await?;
        Ok(serde_json::from_slice(&bytes).ok())
    }
}

impl List {
    /// Those of the type; where the registry filtered them, they need not say so once more.
    fn of_type(self, kind: &str, filtered: bool) -> Vec<Referrer> {
        let is_of_type = |entry: &Entry| match &entry.artifact_type {
            Some(found) => found == kind,
            None => filtered,
        };
        let entries = self.manifests.into_iter().filter(is_of_type);
        let known = entries.filter_map(|entry| {
            Some(Referrer {
                // Other algorithms are others' business.
                digest: entry.digest.parse().ok()?,
                annotations: entry.annotations.unwrap_or_default(),
            })
        });
        known.take(REFERRERS).collect()
    }
}

fn is_filtered(headers: &HeaderMap) -> bool {
    let applied = headers.get(FILTERS).and_then(|text| text.to_str().ok());
    applied.is_some_and(|text| text.split(',').any(|name| name.trim() == "artifactType"))
}

/// Where the list goes on (RFC 8288).
fn next_page(headers: &HeaderMap, page: &Url) -> Option<Url> {
    let links = headers.get(LINK)?.to_str().ok()?;
    let next = links.split(',').find(|link| {
        let mut parameters = link.split(';').skip(1).map(str::trim);
        parameters.any(|parameter| matches!(parameter, r#"rel="next""# | "rel=next"))
    })?;
    let (target, _) = next.trim().strip_prefix('<')?.split_once('>')?;
    page.join(target).ok()
}
