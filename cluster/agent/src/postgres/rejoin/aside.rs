//! Getting data out of the way of a fresh copy.

use std::fs;
use std::path::{Path, PathBuf};

use time::OffsetDateTime;
use time::macros::format_description;

use crate::postgres::error::FileError;
use crate::postgres::files::sync_dir;
use crate::postgres::process::{AdoptError, running_pid};
use crate::postgres::site::Site;

/// Why data were not put out of the way.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AsideError {
    /// A server still works on them.
    #[error("PostgreSQL runs in {} (process {pid}): its data are not touched", data_dir.display())]
    Running {
        /// The data directory.
        data_dir: PathBuf,
        /// Its process id.
        pid: i32,
    },
    /// It cannot be found out whether one does.
    #[error(transparent)]
    Look(#[from] AdoptError),
    /// It cannot be done.
    #[error(transparent)]
    File(#[from] FileError),
}

fn check_not_running(data_dir: &Path) -> Result<(), AsideError> {
    match running_pid(data_dir)? {
        Some(pid) => Err(AsideError::Running { data_dir: data_dir.to_owned(), pid }),
        None => Ok(()),
    }
}

/// Renames the data directory to `NAME.failed_TIMESTAMP` and says how it is called now. An empty one takes its place when
/// something is copied.
///
/// # Errors
/// When a server runs there, or it cannot be renamed (a mount point cannot).
pub fn move_aside(site: &Site, now: OffsetDateTime) -> Result<PathBuf, AsideError> {
    let data_dir = site.data_dir();
    check_not_running(data_dir)?;
    let format = format_description!("[year]-[month]-[day]-[hour]-[minute]-[second]");
    let stamp = now.format(format).unwrap_or_else(|_| now.unix_timestamp().to_string());
    let name = data_dir.file_name().unwrap_or_default().to_string_lossy();
    let mut aside = data_dir.with_file_name(format!("{name}.failed_{stamp}"));
    for again in 2.. {
        if !aside.exists() {
            break;
        }
        aside = data_dir.with_file_name(format!("{name}.failed_{stamp}_{again}"));
    }
    fs::rename(data_dir, &aside).map_err(|e| FileError::new("move aside", data_dir, e))?;
    sync_dir(data_dir.parent().unwrap_or(Path::new("/")))?;
    tracing::warn!(from = %data_dir.display(), to = %aside.display(), "moved the data aside");
    Ok(aside)
}

/// Removes the data: the content of the data directory, and what its links to tablespaces and to the WAL point to. The
/// directories themselves stay, since they may be mount points.
///
/// # Errors
/// When a server runs there, or something cannot be removed.
pub fn remove_data(site: &Site) -> Result<(), AsideError> {
    let data_dir = site.data_dir();
    check_not_running(data_dir)?;
    tracing::warn!(data_dir = %data_dir.display(), "removing the data");
    let mut linked = Vec::new();
    for name in ["pg_wal", "pg_xlog"] {
        let link = data_dir.join(name);
        if link.is_symlink() {
            linked.extend(fs::canonicalize(link).ok());
        }
    }
    let version = format!("PG_{}_", site.version().major);
    for entry in fs::read_dir(data_dir.join("pg_tblspc")).into_iter().flatten().flatten() {
        // A tablespace's directory may hold other versions' data, and other things.
        let inside = fs::read_dir(entry.path()).into_iter().flatten().flatten();
        for dir in inside.filter(|d| d.file_name().to_string_lossy().starts_with(&version)) {
            let path = dir.path();
            fs::remove_dir_all(&path).map_err(|e| FileError::new("remove", &path, e))?;
        }
    }
    for dir in linked {
        empty(&dir)?;
    }
    Ok(empty(data_dir)?)
}

/// Removes what is in a directory.
///
/// # Errors
/// When something cannot be removed.
pub(crate) fn empty(dir: &Path) -> Result<(), FileError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(FileError::new("read", dir, error)),
    };
    for entry in entries {
        let path = entry.map_err(|e| FileError::new("read", dir, e))?.path();
        let is_dir = path.is_dir() && !path.is_symlink();
        let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(|e| FileError::new("remove", &path, e))?;
    }
    sync_dir(dir)
}
