//! What other tools have written into the boot entry of a staged deployment: keys that begin
//! with `x-` (on-disk notes 1.9).
//!
//! libostree (since 2026.1) takes such keys over from the deployment that runs. Those of a
//! deployment that is still staged when another takes its place go from one record to the next
//! here. Invariant: a record is replaced as a whole or not at all.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use ostree::glib;

use super::finalization::RECORD;

/// libostree's name for them in the record.
const KEY: &str = "bootconfig-extra";
const TYPE: &str = "a{ss}";

/// The keys of what is staged below `root`.
pub(super) fn of_staged(root: &Path) -> Option<glib::Variant> {
    let record = read(root).ok()?;
    record.lookup_value(KEY, glib::VariantTy::new(TYPE).ok())
}

fn read(root: &Path) -> std::io::Result<glib::VariantDict> {
    let record = fs::read(root.join(RECORD))?;
    let record = glib::Variant::from_data_with_type(record, glib::VariantTy::VARDICT);
    Ok(glib::VariantDict::new(Some(&record.normal_form())))
}

/// Gives them to what is staged now. If that fails they are lost, and a line says so: the
/// staging itself is done.
pub(super) fn hand_over(root: &Path, keys: &glib::Variant) {
    let written = read(root).and_then(|record| {
        record.insert_value(KEY, keys);
        let path = root.join(RECORD);
        let directory = path.parent().unwrap_or(root);
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(record.end().data())?;
        let permissions = fs::metadata(&path)?.permissions();
        file.as_file().set_permissions(permissions)?;
        file.persist(&path)?;
        Ok(())
    });
    if let Err(error) = written {
        tracing::warn!(%error, "keys that another tool wrote into the boot entry are lost");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(root: &Path, extra: Option<&glib::Variant>) {
        let record = glib::VariantDict::new(None);
        record.insert("target", "x");
        record.insert("locked", true);
        if let Some(extra) = extra {
            record.insert_value(KEY, extra);
        }
        fs::create_dir_all(root.join("run/ostree")).unwrap();
        fs::write(root.join(RECORD), record.end().data()).unwrap();
    }

    #[test]
    fn keys_go_from_one_record_to_the_next() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(of_staged(root.path()), None);
        record(root.path(), None);
        assert_eq!(of_staged(root.path()), None);
        let keys = glib::VariantDict::new(None).end();
        assert_eq!(keys.type_().as_str(), "a{sv}");
        record(root.path(), Some(&keys));
        assert_eq!(of_staged(root.path()), None, "of another type");

        let keys = glib::Variant::parse(
            Some(glib::VariantTy::new(TYPE).unwrap()),
            "{'x-options-source-tuned': 'nohz=full'}",
        )
        .unwrap();
        record(root.path(), Some(&keys));
        assert_eq!(of_staged(root.path()), Some(keys.clone()));
        record(root.path(), None);
        hand_over(root.path(), &keys);
        assert_eq!(of_staged(root.path()), Some(keys));
        let all = read(root.path()).unwrap();
        assert_eq!(all.lookup::<String>("target").unwrap().unwrap(), "x");
        assert_eq!(all.lookup::<bool>("locked").unwrap(), Some(true));
        assert_eq!(
            fs::read_dir(root.path().join("run/ostree"))
                .unwrap()
                .count(),
            1
        );
    }

    #[test]
    fn without_a_record_nothing_is_written() {
        let root = tempfile::tempdir().unwrap();
        hand_over(root.path(), &glib::VariantDict::new(None).end());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
