//! Where a new set of data is built: beside its final place, so that what is cut short is never taken for a whole; or
//! right there, where the data directory is a mount point or nothing may be made beside it.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::postgres::control::has_data;
use crate::postgres::error::FileError;
use crate::postgres::files::sync_dir;
use crate::postgres::process::{DataDirError, Identity};
use crate::postgres::rejoin::empty;

/// Why there is no place for new data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// There are data.
    #[error("{} holds data already: move them aside or remove them first", .0.display())]
    Occupied(PathBuf),
    /// There is something else.
    #[error(
        "{} is not empty, and {found:?} in it is nothing of PostgreSQL's: it was not touched; empty it, or set data_dir to another directory (or one below)",
        path.display()
    )]
    Strange {
        /// The directory.
        path: PathBuf,
        /// What is in it.
        found: String,
    },
    /// The directory is not fit.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// Something cannot be done to a file.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A directory in which data are built.
#[derive(Debug)]
pub(crate) struct Place {
    target: PathBuf,
    beside: Option<PathBuf>,
}

impl Place {
    /// Makes room for new data. What an earlier attempt left is removed, but only what is PostgreSQL's.
    pub(crate) fn make(data_dir: &Path, identity: &Identity) -> Result<Self, PlaceError> {
        if has_data(data_dir) {
            return Err(PlaceError::Occupied(data_dir.to_owned()));
        }
        identity.prepare_data_dir(data_dir)?;
        for entry in fs::read_dir(data_dir).map_err(|e| FileError::new("read", data_dir, e))? {
            let entry = entry.map_err(|e| FileError::new("read", data_dir, e))?;
            let found = entry.file_name().to_string_lossy().into_owned();
            if !is_postgresqls(&found) {
                return Err(PlaceError::Strange { path: data_dir.to_owned(), found });
            }
        }
        empty(data_dir)?;
        let target = data_dir.to_owned();
        let beside = if is_mount_point(data_dir) { None } else { make_beside(data_dir, identity)? };
        Ok(Self { target, beside })
    }

    /// Where to build.
    pub(crate) fn dir(&self) -> &Path {
        self.beside.as_deref().unwrap_or(&self.target)
    }

    /// The data are whole: they take their place.
    pub(crate) fn finish(self) -> Result<(), PlaceError> {
        if let Some(beside) = &self.beside {
            sync_dir(beside)?;
            // Over an empty directory, this is one step.
            fs::rename(beside, &self.target)
                .map_err(|e| FileError::new("put the new data in", &self.target, e))?;
        }
        Ok(sync_dir(self.target.parent().unwrap_or(Path::new("/")))?)
    }

    /// The attempt has failed: what it left is removed. The place can be built in again.
    pub(crate) async fn clear(&self) -> Result<(), FileError> {
        let dir = self.dir().to_owned();
        // It may be much.
        let removing = tokio::task::spawn_blocking(move || empty(&dir));
        removing
            .await
            .unwrap_or_else(|e| Err(FileError::new("empty", self.dir(), std::io::Error::other(e))))
    }

    /// Nothing will be built: the directory beside goes.
    pub(crate) async fn give_up(self) {
        if let Err(error) = self.clear().await {
            tracing::warn!(%error, "leftovers of a failed copy stay until the next one");
        }
        if let Some(beside) = &self.beside {
            let _ = fs::remove_dir(beside);
        }
    }
}

fn make_beside(data_dir: &Path, identity: &Identity) -> Result<Option<PathBuf>, FileError> {
    let name = data_dir.file_name().unwrap_or_default().to_string_lossy();
    let beside = data_dir.with_file_name(format!(".{name}.new"));
    match DirBuilder::new().mode(0o700).create(&beside) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => empty(&beside)?,
        Err(error) => {
            tracing::debug!(%error, dir = %beside.display(), "the new data are built in place");
            return Ok(None);
        }
    }
    identity.own(&beside)?;
    Ok(Some(beside))
}

/// Whether a directory is where something is mounted: it can then not be renamed over.
fn is_mount_point(dir: &Path) -> bool {
    let Ok(real) = fs::canonicalize(dir) else { return false };
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .any(|at| Path::new(&unescaped(at)) == real)
}

/// The kernel writes blanks and the like as `\040`.
fn unescaped(text: &str) -> String {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        let octal = bytes.get(i + 1..i + 4).and_then(|d| std::str::from_utf8(d).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if bytes[i] == b'\\' => {
                out.push(byte);
                i += 4;
            }
            _ => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Whether a name in a data directory is one that PostgreSQL, its tools or its managers give.
fn is_postgresqls(name: &str) -> bool {
    const NAMES: [&str; 9] = [
        "PG_VERSION",
        "base",
        "global",
        "log",
        "current_logfiles",
        "standby.signal",
        "recovery.signal",
        "patroni.dynamic.json",
        "promote",
    ];
    const BEGINNINGS: [&str; 7] = [
        "pg_",
        "postgresql.",
        "postmaster.",
        "backup_label",
        "backup_manifest",
        "tablespace_map",
        ".s.PGSQL.",
    ];
    NAMES.contains(&name) || BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    fn room() -> (tempfile::TempDir, PathBuf, Identity) {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let data = dir.path().join("data");
        (dir, data, Identity::resolve(None).unwrap())
    }

    #[test]
    fn built_beside_and_put_in_place() {
        let (_dir, data, identity) = room();
        let place = Place::make(&data, &identity).unwrap();
        assert_ne!(place.dir(), data);
        let meta = fs::metadata(place.dir()).unwrap();
        assert_eq!((meta.mode() & 0o777, meta.uid()), (0o700, identity.uid()));
        fs::write(place.dir().join("PG_VERSION"), "15").unwrap();
        assert!(!data.join("PG_VERSION").exists());
        let beside = place.dir().to_owned();
        place.finish().unwrap();
        assert!(data.join("PG_VERSION").exists() && !beside.exists());
    }

    #[test]
    fn an_unfinished_attempt_is_cleared_and_a_strangers_file_is_not() {
        let (_dir, data, identity) = room();
        let place = Place::make(&data, &identity).unwrap();
        fs::write(place.dir().join("half"), "").unwrap();
        fs::create_dir_all(data.join("base/1")).unwrap();
        let again = Place::make(&data, &identity).unwrap();
        assert!(!again.dir().join("half").exists() && !data.join("base").exists());
        fs::write(data.join("thesis.odt"), "").unwrap();
        let error = Place::make(&data, &identity).unwrap_err().to_string();
        assert!(error.contains("thesis.odt"), "{error}");
        assert!(data.join("thesis.odt").exists());
    }

    #[test]
    fn data_are_never_overwritten() {
        let (_dir, data, identity) = room();
        fs::create_dir_all(data.join("global")).unwrap();
        fs::write(data.join("global/pg_control"), "x").unwrap();
        assert!(matches!(Place::make(&data, &identity), Err(PlaceError::Occupied(_))));
    }

    #[test]
    fn mount_points_are_known() {
        assert!(is_mount_point(Path::new("/proc")));
        assert!(!is_mount_point(Path::new("/usr/bin")));
        assert_eq!(unescaped("/a\\040b"), "/a b");
    }
}
