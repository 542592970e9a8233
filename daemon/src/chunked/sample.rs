//! Blobs for the tests here: one that a real writer made, and small ones made as the format is described.

use std::collections::HashMap;
use std::io::Read;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::tar_split::Piece;
use super::{Chunked, Toc, TocError, parse_toc};
use crate::image::layer::Compression;
use crate::image::reference::Digest;

/// The old format, with chunks and zero chunks, as skopeo 1.9.3 of Debian 12 wrote it of [`tar`]:
/// `skopeo copy --dest-compress --dest-compress-format zstd:chunked oci:IN dir:OUT`.
pub(crate) const OLD_BLOB: &[u8] = include_bytes!("testdata/old-writer.zst");
/// Its annotations.
const OLD_CHECKSUM: &str =
    "sha256:6d3bf9114ba139fd6e8adef1bee9289860e206ff0469937faf9b01cabc54a944";
const OLD_POSITION: &str = "13088:1149:4448:1";
/// The diff_id of its image.
pub(crate) const DIFF_ID: &str =
    "sha256:7b1dc1f57e328b5b29ec43fe57c99f6a8abc3e545611b5c72871c6f3a74a97e6";
/// The zeros at the end of the tar that its writer dropped.
const DROPPED: usize = 9728;

pub(crate) fn old_chunked() -> Chunked {
    let annotations = HashMap::from([
        (
            "io.containers.zstd-chunked.manifest-checksum".to_owned(),
            OLD_CHECKSUM.to_owned(),
        ),
        (
            "io.containers.zstd-chunked.manifest-position".to_owned(),
            OLD_POSITION.to_owned(),
        ),
    ]);
    let size = OLD_BLOB.len() as u64;
    let chunked = Chunked::of(Some(&annotations), size, Compression::Zstd);
    chunked.unwrap().unwrap()
}

/// The tar that the old blob was made of: by Python, with PAX records.
pub(crate) fn tar() -> Vec<u8> {
    let mut tar = zstd::decode_all(OLD_BLOB).unwrap();
    tar.extend([0; DROPPED]);
    assert_eq!(Digest::of(&tar).as_str(), DIFF_ID);
    tar
}

/// A tar of one file, with what comes before its header.
pub(crate) fn small_tar(change: impl FnOnce(&mut tar::Header), before: &[(u8, &[u8])]) -> Vec<u8> {
    let mut tar = Vec::new();
    let mut add =
        |kind: u8, name: &str, content: &[u8], change: Box<dyn FnOnce(&mut tar::Header) + '_>| {
            let mut header = tar::Header::new_ustar();
            header.set_path(name).unwrap();
            header.set_entry_type(tar::EntryType::new(kind));
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(7);
            change(&mut header);
            header.set_cksum();
            tar.extend(header.as_bytes());
            tar.extend(content);
            tar.resize(tar.len().next_multiple_of(512), 0);
        };
    for (kind, data) in before {
        add(*kind, "extension", data, Box::new(|_| ()));
    }
    add(b'0', "a", b"content of a", Box::new(change));
    tar.extend([0; 1024]);
    tar
}

/// A PAX record.
pub(crate) fn pax(key: &str, value: &str) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (1..5)
        .map(|digits| rest + digits)
        .find(|length| length.to_string().len() + rest == *length);
    format!("{} {key}={value}\n", length.unwrap()).into_bytes()
}

/// The pieces of a tar, as its tar-split has them.
pub(crate) fn pieces(tar: &[u8]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut at = 0;
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let start = entry.raw_file_position() as usize;
        pieces.push(Piece::Bytes(tar[at..start].to_vec()));
        let size = entry.size();
        let name = std::str::from_utf8(&entry.path_bytes()).unwrap().into();
        pieces.push(Piece::File { name, size });
        at = start + size as usize;
    }
    pieces.push(Piece::Bytes(tar[at..].to_vec()));
    pieces
}

/// As lines of JSON.
pub(crate) fn lines(pieces: &[Piece]) -> String {
    let line = |(position, piece): (usize, &Piece)| match piece {
        Piece::Bytes(bytes) => {
            json!({"type": 2, "payload": STANDARD.encode(bytes), "position": position})
        }
        Piece::File { name, size: 0 } => {
            json!({"type": 1, "name": name, "payload": null, "position": position})
        }
        Piece::File { name, size } => {
            json!({"type": 1, "name": name, "size": size, "payload": "AAAAAAAAAAA=", "position": position})
        }
    };
    let lines = pieces
        .iter()
        .enumerate()
        .map(|piece| line(piece).to_string() + "\n");
    lines.collect()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

/// A layer whose table of contents a test may change before it is packed.
pub(crate) struct Sample {
    /// Frames up to the table.
    pub(crate) data: Vec<u8>,
    pub(crate) toc: Value,
    /// Decompressed.
    pub(crate) tar_split: String,
}

/// The content of files that are longer is divided.
const CHUNK: usize = 40_000;

impl Sample {
    /// Packs each content of the tar by itself, in chunks if it is long.
    pub(crate) fn new(tar: &[u8]) -> Sample {
        let pieces = pieces(tar);
        let mut sample = Sample {
            data: Vec::new(),
            toc: json!({"version": 1, "entries": []}),
            tar_split: lines(&pieces),
        };
        let mut archive = tar::Archive::new(tar);
        let mut entries = Vec::new();
        let mut at = 0;
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let start = entry.raw_file_position() as usize;
            sample.pack(&tar[at..start]);
            let first = entries.len();
            entries.push(toc_entry(&mut entry));
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            sample.add_content(&content, &mut entries, first);
            at = start + content.len();
        }
        sample.pack(&tar[at..]);
        sample.toc["entries"] = entries.into();
        sample.toc["tarSplitDigest"] = sha256(&zstd(sample.tar_split.as_bytes())).into();
        sample
    }

    fn add_content(&mut self, content: &[u8], entries: &mut Vec<Value>, first: usize) {
        let name = entries[first]["name"].clone();
        for (number, chunk) in content.chunks(CHUNK).enumerate() {
            if number > 0 {
                entries.push(json!({"type": "chunk", "name": name, "chunkOffset": number * CHUNK}));
            }
            let is_divided = content.len() > CHUNK;
            let entry = entries.last_mut().unwrap();
            entry["offset"] = self.data.len().into();
            if is_divided {
                entry["chunkSize"] = chunk.len().into();
                entry["chunkDigest"] = sha256(chunk).into();
            }
            self.pack(chunk);
        }
        let file = &mut entries[first];
        if !content.is_empty() {
            file["digest"] = sha256(content).into();
            file["endOffset"] = self.data.len().into();
        }
    }

    fn pack(&mut self, bytes: &[u8]) {
        self.data.extend(zstd(bytes));
    }

    /// The blob, and what its descriptor says of it.
    pub(crate) fn blob(&self) -> (Vec<u8>, Chunked) {
        let json = self.toc.to_string();
        self.blob_with(json.as_bytes(), self.tar_split.as_bytes())
    }

    pub(crate) fn blob_with(&self, json: &[u8], tar_split: &[u8]) -> (Vec<u8>, Chunked) {
        let mut blob = self.data.clone();
        let (toc, split) = (zstd(json), zstd(tar_split));
        let mut add = |part: &[u8]| {
            blob.extend(0x184d_2a50u32.to_le_bytes());
            blob.extend((part.len() as u32).to_le_bytes());
            let at = blob.len();
            blob.extend(part);
            at
        };
        let toc_at = format!("{}:{}:{}:1", add(&toc), toc.len(), json.len());
        let split_at = format!("{}:{}:{}", add(&split), split.len(), tar_split.len());
        // The footer, which nobody reads.
        add(&[0; 64]);
        let annotations = [
            ("manifest-checksum", sha256(&toc)),
            ("manifest-position", toc_at),
            ("tarsplit-position", split_at),
        ];
        let named = |(key, value): (&str, String)| {
            (format!("io.github.containers.zstd-chunked.{key}"), value)
        };
        let annotations: HashMap<String, String> = annotations.map(named).into();
        let size = blob.len() as u64;
        let chunked = Chunked::of(Some(&annotations), size, Compression::Zstd);
        (blob, chunked.unwrap().unwrap())
    }

    /// The table as it is read from the blob.
    pub(crate) fn parse(&self) -> Result<Toc, TocError> {
        let (blob, chunked) = self.blob();
        parse_toc(part(&blob, &chunked.toc), &chunked)
    }
}

/// The bytes of a part.
pub(crate) fn part<'b>(blob: &'b [u8], part: &super::Part) -> &'b [u8] {
    &blob[part.offset as usize..part.end() as usize]
}

fn toc_entry<R: Read>(entry: &mut tar::Entry<'_, R>) -> Value {
    let header = entry.header().clone();
    let kind = match header.entry_type().as_byte() {
        b'0' => "reg",
        b'1' => "hardlink",
        b'2' => "symlink",
        b'3' => "char",
        b'4' => "block",
        b'5' => "dir",
        _ => "fifo",
    };
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let seconds = header.mtime().unwrap();
    let mut value = json!({
        "type": kind,
        "name": text(&entry.path_bytes()),
        "mode": header.mode().unwrap(),
        "uid": header.uid().unwrap(),
        "gid": header.gid().unwrap(),
        "modtime": match seconds {
            0 => "1970-01-01T00:00:00Z",
            7 => "1970-01-01T00:00:07Z",
            _ => "2023-11-14T22:13:20Z",
        },
    });
    if entry.size() > 0 {
        value["size"] = entry.size().into();
    }
    if let Some(target) = entry.link_name_bytes() {
        value["linkName"] = text(&target).into();
    }
    if matches!(kind, "char" | "block") {
        value["devMajor"] = header.device_major().unwrap().into();
        value["devMinor"] = header.device_minor().unwrap().into();
    }
    for record in entry.pax_extensions().unwrap().into_iter().flatten() {
        let record = record.unwrap();
        if let Some(name) = record.key().unwrap().strip_prefix("SCHILY.xattr.") {
            value["xattrs"][name] = STANDARD.encode(record.value_bytes()).into();
        }
    }
    value
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Digest::from_sha256(&Sha256::digest(bytes).into()).to_string()
}
