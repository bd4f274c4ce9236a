//! Writing a file so that a reader, or a crash, sees the old text or the new one and nothing between.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::postgres::error::FileError;
use crate::postgres::process::Identity;

/// Writes `text`, unless the file has it already; says whether it was written. The file belongs to `identity`'s account.
///
/// # Errors
/// When that cannot be done; the old file is then still there.
pub fn write_atomically(
    path: &Path,
    text: &str,
    mode: u32,
    identity: &Identity,
) -> Result<bool, FileError> {
    if is_same(path, text, mode, identity) {
        return Ok(false);
    }
    let temporary = temporary_beside(path);
    let written = write_new(&temporary, text, mode, identity)
        .and_then(|()| fs::rename(&temporary, path).map_err(|e| FileError::new("replace", path, e)))
        .and_then(|()| sync_dir_of(path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.map(|()| true)
}

/// As [`write_atomically`], but where the file is a symbolic link, what it points to is replaced. For
/// directories only that nobody else can write to.
///
/// # Errors
/// The same.
pub(crate) fn write_through_links(
    path: &Path,
    text: &str,
    mode: u32,
    identity: &Identity,
) -> Result<bool, FileError> {
    let is_link = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink());
    let real = is_link.then(|| fs::canonicalize(path).ok()).flatten();
    write_atomically(real.as_deref().unwrap_or(path), text, mode, identity)
}

fn is_same(path: &Path, text: &str, mode: u32, identity: &Identity) -> bool {
    let Ok(meta) = fs::symlink_metadata(path) else { return false };
    meta.is_file()
        && meta.len() == text.len() as u64
        && meta.mode() & 0o7777 == mode
        && meta.uid() == identity.uid()
        && fs::read(path).is_ok_and(|old| old == text.as_bytes())
}

fn temporary_beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unique = rand::random::<u32>();
    path.with_file_name(format!(".{name}.{unique:08x}.tmp"))
}

fn write_new(path: &Path, text: &str, mode: u32, identity: &Identity) -> Result<(), FileError> {
    let write = || -> io::Result<()> {
        // It must not exist: in a shared directory somebody may have put a link there.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        // The mode asked for above is narrowed by the umask.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|error| FileError::new("write", path, error))?;
    identity.own(path)
}

fn sync_dir_of(path: &Path) -> Result<(), FileError> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    sync_dir(dir)
}

/// Makes what was done to a directory's entries last.
///
/// # Errors
/// When the directory cannot be opened or synchronised.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), FileError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| FileError::new("synchronise", dir, e))
}

/// Removes a file, if there is one; says whether there was.
///
/// # Errors
/// When it is there and cannot be removed.
pub(crate) fn remove_if_there(path: &Path) -> Result<bool, FileError> {
    match fs::remove_file(path) {
        Ok(()) => sync_dir_of(path).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(FileError::new("remove", path, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_once_private_and_without_leftovers() {
        let identity = Identity::resolve(None).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pgpass");
        assert!(write_atomically(&path, "secret", 0o600, &identity).unwrap());
        assert!(!write_atomically(&path, "secret", 0o600, &identity).unwrap());
        assert!(write_atomically(&path, "other", 0o600, &identity).unwrap());
        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.mode() & 0o777, meta.uid()), (0o600, identity.uid()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let error = write_atomically(&dir.path().join("no/file"), "x", 0o600, &identity);
        assert!(error.unwrap_err().to_string().contains("cannot write"));
    }

    #[test]
    fn a_link_in_a_shared_directory_is_replaced_not_followed() {
        let identity = Identity::resolve(None).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (victim, link) = (dir.path().join("victim"), dir.path().join("pgpass"));
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, &link).unwrap();
        write_atomically(&link, "secret", 0o600, &identity).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        write_through_links(&link, "new", 0o600, &identity).unwrap();
        assert_eq!(fs::read_to_string(&link).unwrap(), "new");
    }
}
