//! A running server, started by this agent or found.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::process::Child;
use tokio::time::{Instant, sleep, timeout_at};

use super::fence::{Fence, Target, wait_for_end};
use super::launch::{LogTail, StartError};
use super::pidfile::{PidFile, PostmasterStatus};
use super::procfs::{Proc, file_id};
use super::watch::{DirWatch, wait_readable};

/// How far the clock may have been set between a server's start and now for it still to be recognised by its start
/// time, where nothing better can be seen.
const CLOCK_TOLERANCE: u64 = 3;

/// A server's main process (the postmaster). Dropping this leaves the server alone.
#[derive(Debug)]
pub struct Server {
    pid: Pid,
    pidfd: AsyncFd<Arc<OwnedFd>>,
    child: Option<Mutex<Child>>,
    data_dir: PathBuf,
    log: LogTail,
    fence: Fence,
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerExit {
    /// Its exit status; `None` where it was not this agent's child, which alone is told.
    pub status: Option<ExitStatus>,
}

/// Why a running server cannot be taken on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// `postmaster.pid` cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    PidFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Somebody works on the data in single-user mode.
    #[error("a single-user server works on {} (process {pid}): end it first", data_dir.display())]
    SingleUser {
        /// The data directory.
        data_dir: PathBuf,
        /// Its process id.
        pid: i32,
    },
    /// The process cannot be watched.
    #[error("cannot watch process {pid}: {source}")]
    Watch {
        /// Its process id.
        pid: i32,
        /// Why.
        source: std::io::Error,
    },
}

/// What `postmaster.pid` turns out to name.
pub(super) enum Found {
    /// Nothing, and no process has that id.
    Nothing,
    /// A process that is no server of this directory: the id was reused.
    Stranger(i32),
    /// The server, watched.
    Running(Pid, OwnedFd),
}

impl Server {
    pub(super) fn new(
        pid: Pid,
        pidfd: OwnedFd,
        child: Option<Child>,
        data_dir: &Path,
        log: LogTail,
        fence: &Fence,
    ) -> std::io::Result<Self> {
        let pidfd = Arc::new(pidfd);
        fence.set(Target { server: Some((pid, Arc::clone(&pidfd))), data_dir: file_id(data_dir) });
        let pidfd = wait_readable(pidfd)?;
        let (child, data_dir, fence) = (child.map(Mutex::new), data_dir.to_owned(), fence.clone());
        Ok(Self { pid, pidfd, child, data_dir, log, fence })
    }

    /// Finds the server that runs in a data directory, and sets it in the fence. `None` where none runs.
    ///
    /// # Errors
    /// When one seems to run and cannot be taken on.
    pub fn adopt(data_dir: &Path, fence: &Fence) -> Result<Option<Self>, AdoptError> {
        let Some(file) = read_pid_file(data_dir)? else { return Ok(None) };
        match look(&file, data_dir)? {
            Found::Nothing | Found::Stranger(_) => Ok(None),
            Found::Running(pid, _) if file.is_single_user() => Err(AdoptError::SingleUser {
                data_dir: data_dir.to_owned(),
                pid: pid.as_raw_nonzero().get(),
            }),
            Found::Running(pid, pidfd) => {
                let number = pid.as_raw_nonzero().get();
                let log = LogTail::Elsewhere;
                Self::new(pid, pidfd, None, data_dir, log, fence)
                    .map(Some)
                    .map_err(|source| AdoptError::Watch { pid: number, source })
            }
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Whether it was found, not started by this agent.
    #[must_use]
    pub fn is_adopted(&self) -> bool {
        self.child.is_none()
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !wait_for_end(self.pidfd.get_ref().as_fd(), Duration::ZERO)
    }

    /// How far it has come, by its own account.
    #[must_use]
    pub fn status(&self) -> Option<PostmasterStatus> {
        let file = PidFile::read(&self.data_dir).ok()??;
        (file.pid == self.pid.as_raw_nonzero().get()).then_some(file.status)?
    }

    /// Waits for its end, however it comes. Cancel-safe; any number may wait.
    pub async fn exited(&self) -> ServerExit {
        // The readiness is never cleared: a dead process stays dead.
        while self.pidfd.readable().await.is_err() && self.is_running() {
            sleep(Duration::from_millis(20)).await;
        }
        self.fence.clear(self.pid);
        ServerExit { status: self.reap() }
    }

    fn reap(&self) -> Option<ExitStatus> {
        let child = self.child.as_ref()?;
        child.lock().unwrap_or_else(PoisonError::into_inner).try_wait().ok().flatten()
    }

    pub(super) fn signal(&self, signal: Signal) -> rustix::io::Result<()> {
        pidfd_send_signal(self.pidfd.get_ref(), signal)
    }

    /// Tells it to read its configuration again.
    ///
    /// # Errors
    /// When the signal cannot be sent: it is gone, or not ours.
    pub fn reload(&self) -> std::io::Result<()> {
        Ok(self.signal(Signal::HUP)?)
    }

    pub(crate) fn promote_signal(&self) -> std::io::Result<()> {
        Ok(self.signal(Signal::USR1)?)
    }

    /// Whether a process is one of its children.
    pub(crate) fn is_parent_of(&self, pid: i32) -> bool {
        let own = self.pid.as_raw_nonzero().get();
        Proc::open().ok().and_then(|proc| proc.stat(pid)).is_some_and(|stat| stat.parent == own)
    }

    pub(crate) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    pub(super) fn fence(&self) -> &Fence {
        &self.fence
    }

    /// The last lines of its log since it was started, where they can be read.
    #[must_use]
    pub fn last_words(&self) -> String {
        self.log.read()
    }

    /// Waits until it takes connections: the server writes so into `postmaster.pid`, and the write is an event.
    /// Cancel-safe: the server goes on starting.
    ///
    /// # Errors
    /// When it ends first, or does not come so far by the deadline.
    pub async fn wait_ready(&self, deadline: Instant) -> Result<PostmasterStatus, StartError> {
        let mut watch = DirWatch::on(&[&self.data_dir]);
        let ready = async {
            loop {
                if let Some(status) = self.status().filter(|s| s.is_up()) {
                    return status;
                }
                watch.changed().await;
            }
        };
        tokio::select! {
            biased;
            exit = self.exited() => Err(StartError::Exited { exit, said: self.last_words() }),
            ready = timeout_at(deadline, ready) => ready.map_err(|_| StartError::NotReady {
                pid: self.pid(),
                status: self.status(),
                said: self.last_words(),
            }),
        }
    }
}

pub(super) fn read_pid_file(data_dir: &Path) -> Result<Option<PidFile>, AdoptError> {
    let path = data_dir.join(super::pidfile::NAME);
    PidFile::read(data_dir).map_err(|source| AdoptError::PidFile { path, source })
}

/// Finds out whether the process that a `postmaster.pid` names is the server of its directory.
pub(super) fn look(file: &PidFile, data_dir: &Path) -> Result<Found, AdoptError> {
    let number = file.pid.checked_abs().unwrap_or(0);
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let Some(pid) = Pid::from_raw(number).filter(|_| number > 1 || own != 1) else {
        return Ok(Found::Nothing);
    };
    let watch =
        |source: rustix::io::Errno| AdoptError::Watch { pid: number, source: source.into() };
    // The pidfd first: whatever is looked up after it is of this process, as long as that lives.
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Ok(Found::Nothing),
        Err(error) => return Err(watch(error)),
    };
    let proc = Proc::open().map_err(watch)?;
    let Some(stat) = proc.stat(number).filter(|stat| !stat.is_zombie()) else {
        return Ok(Found::Nothing);
    };
    let is_server = match (proc.cwd(number), file_id(data_dir)) {
        (Some(cwd), Some(dir)) => cwd == dir && number != own,
        // A container's root may not look at other users' processes: then their age must do.
        _ => match (file.started, proc.started_at(number)) {
            (Some(noted), Some(seen)) => number != own && noted.abs_diff(seen) <= CLOCK_TOLERANCE,
            _ => false,
        },
    };
    if wait_for_end(pidfd.as_fd(), Duration::ZERO) {
        return Ok(Found::Nothing);
    }
    Ok(if is_server { Found::Running(pid, pidfd) } else { Found::Stranger(stat.pid) })
}
