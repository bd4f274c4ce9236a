//! What a server that was killed leaves behind, and must be gone before the next one starts.
//!
//! The postmaster's children notice its death when they next wait for something; one that is busy or stopped does not.
//! As long as one is attached to the shared memory, a new server refuses to start, and rightly so: the orphan still
//! writes. So orphans are killed, and the kernel's own count of attached processes tells when the last is gone.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::fence::{Fence, Target};
use super::procfs::{attached_to, file_id};
use super::server::{AdoptError, Found, look, read_pid_file};

/// How often the count is read. There is no event for it; the wait is mostly over at the first look.
const LOOK: Duration = Duration::from_millis(2);

/// Why a server cannot be started over what is there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemainsError {
    /// A server runs there.
    #[error("PostgreSQL already runs in {} (process {pid})", data_dir.display())]
    Running {
        /// The data directory.
        data_dir: PathBuf,
        /// Its process id.
        pid: i32,
    },
    /// Processes of an earlier server do not go away.
    #[error(
        "{attached} process(es) of an earlier PostgreSQL in {} still hold its shared memory (id {shmem}) and could not be killed: they may hang in a disk; see `ps` and /proc/sysvipc/shm",
        data_dir.display()
    )]
    Orphans {
        /// The data directory.
        data_dir: PathBuf,
        /// The segment's id.
        shmem: u64,
        /// How many hold it.
        attached: u64,
    },
    /// It cannot be found out.
    #[error(transparent)]
    Look(#[from] AdoptError),
}

/// The process id of the server (or single-user server) that runs in a data directory.
///
/// # Errors
/// When that cannot be found out.
pub(crate) fn running_pid(data_dir: &Path) -> Result<Option<i32>, AdoptError> {
    let Some(file) = read_pid_file(data_dir)? else { return Ok(None) };
    Ok(match look(&file, data_dir)? {
        Found::Running(pid, _) => Some(pid.as_raw_nonzero().get()),
        Found::Nothing | Found::Stranger(_) => None,
    })
}

/// Kills orphans of an earlier server and waits until none is left. Returns the id of a living process that a stale
/// `postmaster.pid` names by chance.
///
/// # Errors
/// When a server runs, or something is left at the deadline.
pub(crate) async fn clear_remains(
    data_dir: &Path,
    fence: &Fence,
    deadline: Instant,
) -> Result<Option<i32>, RemainsError> {
    let Some(file) = read_pid_file(data_dir)? else { return Ok(None) };
    let stranger = match look(&file, data_dir)? {
        Found::Running(pid, _) => {
            let pid = pid.as_raw_nonzero().get();
            return Err(RemainsError::Running { data_dir: data_dir.to_owned(), pid });
        }
        Found::Stranger(pid) => Some(pid),
        Found::Nothing => None,
    };
    let Some(shmem) = file.shmem else { return Ok(stranger) };
    let first = attached_to(shmem).unwrap_or(0);
    if first == 0 {
        return Ok(stranger);
    }
    tracing::warn!(
        attached = first,
        "processes of an earlier PostgreSQL are left: they are killed"
    );
    fence.set(Target { server: None, data_dir: file_id(data_dir) });
    loop {
        let Some(attached @ 1..) = attached_to(shmem) else { return Ok(stranger) };
        if Instant::now() >= deadline {
            let data_dir = data_dir.to_owned();
            return Err(RemainsError::Orphans { data_dir, shmem, attached });
        }
        // Blocks for as long as killing takes, which is why it is not done on this thread.
        if let Ok(mut handle) = fence.handle() {
            let _ = tokio::task::spawn_blocking(move || handle.kill_everything()).await;
        }
        sleep(LOOK).await;
    }
}
