//! The table of contents: what a tar's headers say, and where the content is.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Result, bail};
use base64::prelude::{BASE64_STANDARD, Engine};
use serde::Serialize;

use super::frames::{Frames, Packed};
use super::tar_split::is_zero;
use crate::image::members::{Member, Time};

/// An entry; a field that is empty or 0 is not written.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TocEntry {
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    pub(super) name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) link_name: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) mode: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) size: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) uid: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) gid: u64,
    #[serde(rename = "userName", skip_serializing_if = "String::is_empty")]
    pub(super) user: String,
    #[serde(rename = "groupName", skip_serializing_if = "String::is_empty")]
    pub(super) group: String,
    #[serde(rename = "modtime", skip_serializing_if = "Option::is_none")]
    pub(super) modified: Option<String>,
    #[serde(rename = "accesstime", skip_serializing_if = "Option::is_none")]
    pub(super) accessed: Option<String>,
    #[serde(rename = "changetime", skip_serializing_if = "Option::is_none")]
    pub(super) changed: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) dev_major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) dev_minor: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) xattrs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) digest: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) end_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) chunk_size: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) chunk_offset: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) chunk_digest: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) chunk_type: &'static str,
}

impl TocEntry {
    /// What the headers say.
    pub(super) fn of(member: &Member) -> Result<Self> {
        let xattrs = member.xattrs.iter();
        Ok(Self {
            kind: match member.type_flag {
                b'0' => "reg",
                b'1' => "hardlink",
                b'2' => "symlink",
                b'3' => "char",
                b'4' => "block",
                b'5' => "dir",
                b'6' => "fifo",
                other => bail!("{} is of type {:?}", member.name, char::from(other)),
            },
            name: member.name.clone(),
            link_name: member.link.clone(),
            mode: member.mode,
            size: member.size,
            uid: member.uid,
            gid: member.gid,
            user: member.user.clone(),
            group: member.group.clone(),
            modified: Some(rfc3339(member.modified)),
            accessed: member.accessed.map(rfc3339),
            changed: member.changed.map(rfc3339),
            dev_major: member.device.0,
            dev_minor: member.device.1,
            xattrs: xattrs
                .map(|(name, value)| (name.clone(), BASE64_STANDARD.encode(value)))
                .collect(),
            ..Self::default()
        })
    }

    /// One more chunk of a file.
    pub(super) fn chunk_of(member: &Member) -> Self {
        Self {
            kind: "chunk",
            name: member.name.clone(),
            ..Self::default()
        }
    }
}

/// The entries, compressed as they come.
pub(super) struct Toc {
    packed: Frames<Vec<u8>>,
    is_empty: bool,
}

impl Toc {
    pub(super) fn new(level: i32) -> Result<Self> {
        let mut packed = Frames::new(Vec::new(), level)?;
        packed.write(br#"{"version":1,"entries":["#)?;
        Ok(Self {
            packed,
            is_empty: true,
        })
    }

    pub(super) fn push(&mut self, entry: &TocEntry) -> Result<()> {
        if !std::mem::replace(&mut self.is_empty, false) {
            self.packed.write(b",")?;
        }
        self.packed.write(&serde_json::to_vec(entry)?)
    }

    pub(super) fn finish(mut self, tar_split: Option<&str>) -> Result<Packed> {
        let end = match tar_split {
            Some(digest) => format!(r#"],"tarSplitDigest":"{digest}"}}"#),
            None => "]}".to_owned(),
        };
        self.packed.write(end.as_bytes())?;
        self.packed.pack()
    }
}

/// The time that Go has when there is none.
pub(super) fn year_one() -> String {
    "0001-01-01T00:00:00Z".to_owned()
}

fn rfc3339(time: Time) -> String {
    let seconds = UNIX_EPOCH + Duration::from_secs(time.seconds);
    let text = humantime::format_rfc3339_seconds(seconds).to_string();
    if time.nanoseconds == 0 {
        return text;
    }
    let fraction = format!("{:09}", time.nanoseconds);
    let fraction = fraction.trim_end_matches('0');
    format!("{}.{fraction}Z", text.trim_end_matches('Z'))
}
