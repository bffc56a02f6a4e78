//! Small files beside the tables, readable before the store is open. Made once, never changed.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use super::Error;

/// Reads the file `name` of the data directory, if there is one. Blocking.
///
/// # Errors
/// [`Error::Path`]: the file system failed.
pub fn read_note(data_dir: &Path, name: &str) -> Result<Option<String>, Error> {
    let path = data_dir.join(name);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::path("read", &path, source)),
    }
}

/// Reads the file `name` of the data directory; if there is none, writes what `make` gives, durably, and returns it. Of
/// several processes that do so at once one wins, and all get its content. Blocking.
///
/// # Errors
/// [`Error::Path`]: the file system failed.
pub fn read_or_write_note(
    data_dir: &Path,
    name: &str,
    make: impl FnOnce() -> String,
) -> Result<String, Error> {
    let path = data_dir.join(name);
    let fail = |source: io::Error| Error::path("keep the broker's identity in", &path, source);
    match fs::read_to_string(&path) {
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => {}
        other => return other.map_err(fail),
    }
    fs::create_dir_all(data_dir).map_err(fail)?;
    let draft = data_dir.join(format!("{name}.{}", std::process::id()));
    let written = write_durably(&draft, &make());
    // Linking, unlike renaming, does not replace what another process has put there meanwhile.
    let linked = written.and_then(|()| match fs::hard_link(&draft, &path) {
        Err(exists) if exists.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    });
    let removed = fs::remove_file(&draft);
    linked.and(removed).and_then(|()| File::open(data_dir)?.sync_all()).map_err(fail)?;
    fs::read_to_string(&path).map_err(fail)
}

fn write_durably(path: &Path, content: &str) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_content_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let nested = dir.path().join("new");
        assert_eq!(read_or_write_note(&nested, "note", || "one".into()).expect("written"), "one");
        assert_eq!(read_or_write_note(&nested, "note", || "two".into()).expect("read"), "one");
        assert_eq!(fs::read_dir(&nested).expect("listed").count(), 1);
    }
}
