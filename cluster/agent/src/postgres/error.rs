//! Errors that several parts of this room share.

use std::io;
use std::path::{Path, PathBuf};

/// Something could not be done to a file or directory.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}: {source}{}", path.display(), hint(source))]
pub struct FileError {
    /// What was to be done: "write", "create", …
    pub what: &'static str,
    /// To what.
    pub path: PathBuf,
    /// The system's reason.
    pub source: io::Error,
}

impl FileError {
    pub(crate) fn new(what: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self { what, path: path.to_owned(), source: source.into() }
    }

    /// Whether the disk (or the account's share of it) is full.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// What a person can do about an error of the system.
pub(crate) fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => " (free or add disk space)",
        io::ErrorKind::QuotaExceeded => " (the account's disk quota is used up)",
        io::ErrorKind::PermissionDenied => {
            " (the agent's user may not: check the owner and the mode, also of the directories above)"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            " (the file system is read-only: it may have been remounted after a disk error, see dmesg)"
        }
        _ => "",
    }
}

/// The server's words for an error of tokio-postgres, which itself says only "db error".
pub(crate) fn words(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => {
            let mut text = format!("{} ({})", db.message(), db.code().code());
            if let Some(detail) = db.detail() {
                text.push_str("; ");
                text.push_str(detail);
            }
            text
        }
        None => match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}
