//! The writer of layers with a table of contents: what Debian's skopeo writes, what the formats say, and
//! nothing that is not so unless it was told to lie.

#[cfg(test)]
mod chunked_writer {
    use std::collections::BTreeMap;
    use std::io::{Cursor, Read};
    use std::path::Path;

    use anyhow::{Context, Result, ensure};
    use base64::prelude::{BASE64_STANDARD, Engine};
    use osteward_tests::image::chunked::{Annotations, Lie, Style, compress, compress_with};
    use osteward_tests::image::{Compression, Image, Layer, Layout, sha256_of_file};
    use osteward_tests::process::{command, run};
    use serde_json::Value;

    const LEVEL: i32 = 3;

    /// Everything that a member can be, and files that are cut in every way.
    fn layer() -> Layer {
        let mut random = fastrand::Rng::with_seed(7);
        let mut noise = |length: usize| {
            let mut bytes = vec![0; length];
            random.fill(&mut bytes);
            bytes
        };
        let zeros = |length: usize| vec![0; length];
        let holes = [
            zeros(5000),
            noise(100_000),
            zeros(1023),
            noise(1),
            zeros(1024),
            noise(70_000),
            zeros(100_000),
        ];
        let long = "n".repeat(90);
        Layer::new()
            .in_records()
            .dir("./")
            .dir("usr")
            .dir("usr/d")
            .file("usr/d/empty", "")
            .file("usr/d/small", "small")
            .mode(0o4755)
            .owner(7, 3_000_000)
            .file("usr/d/exact", noise(512))
            .file("usr/d/noise", noise(1 << 20))
            .file("usr/d/same", vec![b'x'; 2 << 20])
            .file("usr/d/holes", holes.concat())
            .file("usr/d/zeros", zeros(9000))
            .file("usr/d/few-zeros", zeros(700))
            .hardlink("usr/d/hard", "usr/d/small")
            .symlink("usr/d/link", "small")
            .symlink(&format!("usr/d/far-{long}"), &format!("{long}/{long}"))
            .file(&format!("usr/d/{long}/gnu"), "long")
            .file(&format!("usr/d/{long}/pax-ä<&>"), "long")
            .pax_name()
            .file("usr/d/capable", "c")
            .xattr("security.capability", &[1, 0, 0, 2, 0, 4, 0, 0])
            .xattr("user.note", b"a=b\n")
            .device("usr/d/null", 1, 3)
            .fifo("usr/d/pipe")
            .file("usr/d/last", "last")
    }

    fn tar() -> Result<Vec<u8>> {
        let mut tar = Vec::new();
        layer().write_tar(&mut tar)?;
        assert_eq!(tar.len() % 10_240, 0);
        Ok(tar)
    }

    /// A blob with a table of contents, taken apart.
    struct Blob {
        bytes: Vec<u8>,
        toc: Value,
        tar_split: Option<Vec<u8>>,
    }

    impl Blob {
        fn read(bytes: Vec<u8>, annotations: &Annotations, prefix: &str) -> Result<Self> {
            let get = |key: &str| annotations.get(&format!("{prefix}.{key}"));
            let position = get("manifest-position").context("no position")?;
            let (compressed, plain) = part(&bytes, position)?;
            let checksum = get("manifest-checksum").context("no checksum")?;
            assert_eq!(*checksum, sha256(compressed)?);
            let toc: Value = serde_json::from_slice(&plain)?;
            let tar_split = match get("tarsplit-position") {
                Some(position) => {
                    let (compressed, plain) = part(&bytes, position)?;
                    assert_eq!(toc["tarSplitDigest"], sha256(compressed)?);
                    Some(plain)
                }
                None => None,
            };
            Ok(Self {
                bytes,
                toc,
                tar_split,
            })
        }

        fn entries(&self) -> Result<&Vec<Value>> {
            self.toc["entries"].as_array().context("no entries")
        }

        fn unpacked(&self) -> Result<Vec<u8>> {
            Ok(zstd::decode_all(Cursor::new(&self.bytes))?)
        }

        /// The files by name, from the places that the table of contents gives; all is compared with the
        /// digests in it.
        fn files(&self) -> Result<BTreeMap<String, Vec<u8>>> {
            let mut files = BTreeMap::new();
            let entries = self.entries()?;
            for (at, entry) in entries.iter().enumerate() {
                if entry["type"] != "reg" || entry["size"].is_null() {
                    continue;
                }
                let name = entry["name"].as_str().context("no name")?;
                let (start, end) = (number(entry, "offset"), number(entry, "endOffset"));
                let content = zstd::decode_all(&self.bytes[start..end])?;
                assert_eq!(content.len(), number(entry, "size"), "{name}");
                assert_eq!(entry["digest"], sha256(&content)?, "{name}");
                let more = entries[at + 1..].iter();
                let chunks: Vec<&Value> = std::iter::once(entry)
                    .chain(more.take_while(|entry| entry["type"] == "chunk"))
                    .collect();
                if chunks.len() > 1 {
                    self.compare_chunks(&chunks, &content, end)?;
                }
                files.insert(name.to_owned(), content);
            }
            Ok(files)
        }

        fn compare_chunks(&self, chunks: &[&Value], content: &[u8], end: usize) -> Result<()> {
            let mut position = 0;
            for (at, chunk) in chunks.iter().enumerate() {
                let stop = chunks
                    .get(at + 1)
                    .map_or(end, |next| number(next, "offset"));
                let plain = zstd::decode_all(&self.bytes[number(chunk, "offset")..stop])?;
                assert_eq!(number(chunk, "chunkOffset"), position);
                assert_eq!(number(chunk, "chunkSize"), plain.len());
                assert_eq!(chunk["chunkDigest"], sha256(&plain)?);
                assert_eq!(plain, content[position..position + plain.len()]);
                if chunk["chunkType"] == "zeros" {
                    assert!(plain.len() >= 1024 && plain.iter().all(|byte| *byte == 0));
                }
                position += plain.len();
            }
            assert_eq!(position, content.len());
            Ok(())
        }
    }

    /// A number of an entry; one that is not written is 0.
    fn number(entry: &Value, key: &str) -> usize {
        entry[key].as_u64().unwrap_or(0) as usize
    }

    fn sha256(bytes: &[u8]) -> Result<String> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), bytes)?;
        Ok(format!("sha256:{}", sha256_of_file(file.path())?))
    }

    /// What stands at `OFFSET:LENGTH:UNPACKED…`, as it is and unpacked.
    fn part<'a>(bytes: &'a [u8], position: &str) -> Result<(&'a [u8], Vec<u8>)> {
        let numbers: Vec<usize> = position
            .split(':')
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let compressed = &bytes[numbers[0]..numbers[0] + numbers[1]];
        let plain = zstd::decode_all(compressed)?;
        assert_eq!(plain.len(), numbers[2]);
        Ok((compressed, plain))
    }

    fn write(tar: &[u8], style: Style, lie: Option<&Lie>) -> Result<(Vec<u8>, Annotations)> {
        let mut blob = Vec::new();
        let annotations = compress_with(tar, &mut blob, LEVEL, style, lie)?;
        Ok((blob, annotations))
    }

    const OLD: &str = "io.containers.zstd-chunked";
    const NEW: &str = "io.github.containers.zstd-chunked";

    /// The layer as Debian's skopeo compresses it.
    fn by_skopeo(dir: &Path) -> Result<Blob> {
        let from = Layout::create(dir.join("from"))?;
        Image::new("1")
            .layer(layer().compressed(Compression::Plain))
            .write_as(&from, "plain")?;
        let source = format!("oci:{}:plain", from.path.display());
        let target = format!("oci:{}:chunked", dir.join("to").display());
        let words = ["skopeo", "--insecure-policy", "copy", "--quiet"];
        run(command(words).args(["--dest-compress-format", "zstd:chunked", &source, &target]))?;
        let to = Layout::create(dir.join("to"))?;
        let image = to.find("chunked")?;
        let manifest = to.json(&image.digest)?;
        let annotations = serde_json::from_value(manifest["layers"][0]["annotations"].clone())?;
        Blob::read(std::fs::read(to.blob(&image.layers[0]))?, &annotations, OLD)
    }

    /// The entries without what depends on the compressor.
    fn without_places(blob: &Blob) -> Result<Vec<Value>> {
        let mut entries = blob.entries()?.clone();
        for entry in &mut entries {
            let entry = entry.as_object_mut().context("an odd entry")?;
            ensure!(
                entry.contains_key("offset")
                    == (entry.contains_key("digest") || entry["type"] == "chunk")
            );
            entry.remove("offset");
            entry.remove("endOffset");
        }
        Ok(entries)
    }

    #[test]
    fn the_old_style_is_what_debian_writes() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let theirs = by_skopeo(dir.path())?;
        let tar = tar()?;
        let (bytes, annotations) = write(&tar, Style::Old, None)?;
        assert_eq!(annotations.len(), 2);
        let footer = &bytes[bytes.len() - 48..];
        assert_eq!(footer[..8], *b"\x50\x2a\x4d\x18\x28\0\0\0");
        assert_eq!(footer[40..], *b"GnUlInUx");
        let ours = Blob::read(bytes, &annotations, OLD)?;
        assert_eq!(ours.toc["version"], theirs.toc["version"]);
        assert_eq!(without_places(&ours)?, without_places(&theirs)?);
        assert_eq!(ours.files()?, theirs.files()?);
        let unpacked = ours.unpacked()?;
        assert!(unpacked == theirs.unpacked()?);
        // Up to the second zero block, and nothing after it.
        let end = tar.iter().rposition(|byte| *byte != 0).context("zeros")?;
        assert_eq!(unpacked.len(), (end + 1).next_multiple_of(512) + 1024);
        assert!(tar.starts_with(&unpacked) && unpacked.len() < tar.len());
        Ok(())
    }

    /// The tar that tar-split and files describe.
    fn rebuild(tar_split: &[u8], files: &BTreeMap<String, Vec<u8>>) -> Result<Vec<u8>> {
        let mut tar = Vec::new();
        for (at, line) in tar_split.split_inclusive(|byte| *byte == b'\n').enumerate() {
            let line: Value = serde_json::from_slice(line)?;
            assert_eq!(line["position"], at);
            let payload = line["payload"]
                .as_str()
                .map(|text| BASE64_STANDARD.decode(text));
            let payload = payload.transpose()?;
            match line["type"].as_u64() {
                Some(2) => tar.extend(payload.context("no bytes")?),
                Some(1) if line["size"].is_null() => ensure!(payload.is_none()),
                Some(1) => {
                    assert_eq!(payload.context("no CRC")?.len(), 8);
                    let name = line["name"].as_str().context("no name")?;
                    let content = files.get(name).with_context(|| format!("no {name}"))?;
                    assert_eq!(number(&line, "size"), content.len());
                    tar.extend(content);
                }
                _ => anyhow::bail!("an odd line: {line}"),
            }
        }
        Ok(tar)
    }

    #[test]
    fn the_modern_style_has_all_that_a_partial_pull_needs() -> Result<()> {
        let tar = tar()?;
        let (bytes, annotations) = write(&tar, Style::Modern, None)?;
        assert_eq!(annotations.len(), 3);
        let (again, _) = write(&tar, Style::Modern, None)?;
        assert!(bytes == again, "not the same every time");
        let footer: Vec<u64> = bytes[bytes.len() - 64..]
            .chunks(8)
            .map(|number| Ok(u64::from_le_bytes(number.try_into()?)))
            .collect::<Result<_>>()?;
        let [toc @ .., magic] = &footer[..] else {
            anyhow::bail!("no footer");
        };
        assert_eq!(magic.to_le_bytes(), *b"GNUlInUx");
        let positions = ["manifest-position", "tarsplit-position"];
        let said = positions.map(|key| annotations[&format!("{NEW}.{key}")].clone());
        let numbers: Vec<String> = toc.iter().map(u64::to_string).collect();
        assert_eq!(said.join(":"), numbers.join(":"));
        let blob = Blob::read(bytes, &annotations, NEW)?;
        assert!(blob.unpacked()? == tar);
        let files = blob.files()?;
        let many = blob.entries()?.iter().filter(|e| e["type"] == "chunk");
        assert!(many.count() > 10);
        let tar_split = blob.tar_split.as_ref().context("no tar-split")?;
        assert!(rebuild(tar_split, &files)? == tar);
        // The rest is what the old style has, but for times that are not there.
        let (bytes, annotations) = write(&tar, Style::Old, None)?;
        let mut old = Blob::read(bytes, &annotations, OLD)?.entries()?.clone();
        for entry in &mut old {
            let entry = entry.as_object_mut().context("an odd entry")?;
            entry.remove("accesstime");
            entry.remove("changetime");
        }
        assert_eq!(*blob.entries()?, old);
        Ok(())
    }

    #[test]
    fn estargz_is_a_tar_with_its_index_behind_it() -> Result<()> {
        let (mut tar, index) = (Vec::new(), "stargz.index.json");
        let big: Vec<u8> = (0..9_000_000_u32).map(|n| (n % 251) as u8).collect();
        let layer = layer().file("usr/d/big", big.clone());
        layer.write_tar(&mut tar)?;
        let (bytes, annotations) = write(&tar, Style::Stargz, None)?;
        let (place, footer) = bytes.split_at(bytes.len() - 51);
        let place: u64 = place.len() as u64;
        let said = std::str::from_utf8(&footer[16..32])?;
        assert_eq!(footer[32..38], *b"STARGZ");
        let toc = usize::from_str_radix(said, 16)?;
        assert!((toc as u64) < place);
        let member = |from: usize| {
            let mut plain = Vec::new();
            flate2::bufread::GzDecoder::new(&bytes[from..]).read_to_end(&mut plain)?;
            anyhow::Ok(plain)
        };
        let plain = member(toc)?;
        assert!(plain.starts_with(index.as_bytes()));
        let json = &plain[512..plain.len() - 1024];
        let json = &json[..=json.iter().rposition(|byte| *byte != 0).context("zeros")?];
        let key = "containerd.io/snapshot/stargz/toc.digest";
        assert_eq!(annotations, [(key.to_owned(), sha256(json)?)].into());
        let toc: Value = serde_json::from_slice(json)?;
        let entries = toc["entries"].as_array().context("no entries")?;
        let (mut found, mut seen) = (Vec::new(), 0);
        for entry in entries.iter().filter(|entry| !entry["offset"].is_null()) {
            // The header of the next one is in the same member.
            let plain = member(number(entry, "offset"))?;
            let in_big = entry["name"] == "usr/d/big";
            let length = match number(entry, "chunkSize") {
                0 if in_big => big.len() - number(entry, "chunkOffset"),
                0 => number(entry, "size"),
                length => length,
            };
            assert_eq!(entry["chunkDigest"], sha256(&plain[..length])?, "{entry}");
            if in_big {
                found.extend_from_slice(&plain[..length]);
            }
            seen += 1;
        }
        assert!(seen > 10 && found == big, "{seen}");
        let mut unpacked = Vec::new();
        flate2::bufread::MultiGzDecoder::new(&bytes[..]).read_to_end(&mut unpacked)?;
        assert!(unpacked[..tar.len()] == tar && unpacked[tar.len()..] == plain);
        // A gzip layer for everybody else: the digest of what is unpacked is the diff_id.
        let dir = tempfile::tempdir()?;
        let layer = layer.compressed(Compression::Chunked(Style::Stargz));
        let blob = layer.write_blob(dir.path())?;
        assert_eq!(blob.diff_id, sha256(&unpacked)?);
        assert_eq!(blob.annotations, annotations);
        Ok(())
    }

    #[test]
    fn a_lie_is_told_where_it_was_asked_for_and_nowhere_else() -> Result<()> {
        let tar = tar()?;
        let (bytes, annotations) = write(&tar, Style::Modern, None)?;
        let truth = Blob::read(bytes, &annotations, NEW)?;
        let name = || "usr/d/noise".to_owned();
        let setuid = 0o4000;
        for lie in [
            Lie::Digest(name()),
            Lie::Outside(name()),
            Lie::Setuid(name()),
            Lie::SetuidInBoth(name()),
            Lie::Hidden(name()),
        ] {
            let (bytes, annotations) = write(&tar, Style::Modern, Some(&lie))?;
            let lying = Blob::read(bytes, &annotations, NEW)?;
            assert!(lying.unpacked()? == tar, "{lie:?}");
            let mut expected = truth.entries()?.clone();
            let at = expected.iter().position(|entry| entry["name"] == name());
            let at = at.context("no such file")?;
            match &lie {
                Lie::Hidden(_) => expected.retain(|entry| entry["name"] != name()),
                Lie::Digest(_) => {
                    expected[at]["digest"] = sha256(b"something else")?.into();
                }
                Lie::Outside(_) => {
                    let length =
                        number(&expected[at], "endOffset") - number(&expected[at], "offset");
                    expected[at]["offset"] = (1_u64 << 40).into();
                    expected[at]["endOffset"] = ((1 << 40) + length).into();
                }
                Lie::Setuid(_) | Lie::SetuidInBoth(_) => {
                    expected[at]["mode"] = (number(&expected[at], "mode") | setuid).into();
                }
            }
            assert_eq!(*lying.entries()?, expected, "{lie:?}");
            let rebuilt = rebuild(lying.tar_split.as_ref().context("none")?, &truth.files()?)?;
            let in_both = matches!(lie, Lie::SetuidInBoth(_));
            assert_eq!(rebuilt == tar, !in_both, "{lie:?}");
            assert_eq!(rebuilt.len(), tar.len());
            let differing = rebuilt.iter().zip(&tar).filter(|(a, b)| a != b).count();
            // A digit of the mode, and some of the checksum.
            assert!(differing <= 7, "{differing}");
        }
        Ok(())
    }

    #[test]
    fn tars_that_no_builder_writes_are_refused() -> Result<()> {
        let twice = Layer::new()
            .file("usr/a", vec![1; 1000])
            .file("./usr//a", "2");
        let mut tar = Vec::new();
        twice.write_tar(&mut tar)?;
        for (what, tar) in [
            ("twice", &tar[..]),
            ("reading a member", &tar[..700]),
            ("half a header", &tar[..300]),
        ] {
            let error = compress(tar, &mut Vec::new(), LEVEL, Style::Modern).map(drop);
            let text = format!("{:#}", error.err().context(what)?);
            ensure!(text.contains(what), "{text}");
        }
        Ok(())
    }
}
