//! Tar-diffs for tests, made from the description of the format.

use std::collections::HashMap;
use std::io::Write as _;

/// One operation, as it is written.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Data(Vec<u8>),
    Open(&'static str),
    Copy(u64),
    Add(Vec<u8>),
    Seek(u64),
    Dict(Vec<u8>),
    Raw(Vec<u8>),
}

fn number(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn operations(ops: &[Op]) -> Vec<u8> {
    let mut out = Vec::new();
    for op in ops {
        let (code, size, data): (u8, u64, &[u8]) = match op {
            Op::Data(data) => (0, data.len() as u64, data),
            Op::Open(name) => (1, name.len() as u64, name.as_bytes()),
            Op::Copy(size) => (2, *size, b""),
            Op::Add(data) => (3, data.len() as u64, data),
            Op::Seek(position) => (4, *position, b""),
            Op::Dict(frame) => (5, frame.len() as u64, frame),
            Op::Raw(bytes) => {
                out.extend_from_slice(bytes);
                continue;
            }
        };
        out.push(code);
        number(size, &mut out);
        out.extend_from_slice(data);
    }
    out
}

/// A tar-diff of these operations.
pub(crate) fn tar_diff(version: u8, ops: &[Op]) -> Vec<u8> {
    let mut diff = format!("tardf{version}\n\0").into_bytes();
    diff.extend(zstd::encode_all(&operations(ops)[..], 3).unwrap());
    diff
}

/// A frame of `new` that needs `old`.
pub(crate) fn frame(old: &[u8], new: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::with_ref_prefix(Vec::new(), 3, old).unwrap();
    encoder.window_log(20).unwrap();
    encoder.write_all(new).unwrap();
    encoder.finish().unwrap()
}

/// The operations that lead from these files to the tar: equal files are copied, files of the same name and
/// length get differences, others of the same name a frame.
pub(crate) fn difference(old: &HashMap<&'static str, Vec<u8>>, tar: &[u8]) -> Vec<Op> {
    let (mut ops, mut at) = (Vec::new(), 0);
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let from = entry.raw_file_position() as usize;
        let new = &tar[from..from + entry.size() as usize];
        let path = entry.path().unwrap().to_string_lossy().into_owned();
        let path = path.trim_start_matches("./");
        let equal = old.iter().find(|(_, content)| content[..] == *new);
        let (name, op) = match (equal, old.get_key_value(path)) {
            _ if new.is_empty() => continue,
            (Some((name, _)), _) => (*name, Op::Copy(new.len() as u64)),
            (None, Some((name, old))) if old.len() == new.len() => {
                let pairs = new.iter().zip(old);
                (
                    *name,
                    Op::Add(pairs.map(|(new, old)| new.wrapping_sub(*old)).collect()),
                )
            }
            (None, Some((name, old))) => (*name, Op::Dict(frame(old, new))),
            (None, None) => continue,
        };
        ops.extend([Op::Data(tar[at..from].to_vec()), Op::Open(name), op]);
        at = from + new.len();
    }
    ops.push(Op::Data(tar[at..].to_vec()));
    ops
}
