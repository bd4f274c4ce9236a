//! Starting a server.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::process::Command;
use tokio::time::Instant;

use super::fence::Fence;
use super::pidfile::PostmasterStatus;
use super::remains::{RemainsError, clear_remains};
use super::server::{Server, ServerExit};
use super::{DataDirError, Identity};
use crate::postgres::binaries::{Binaries, scrub_for_server};
use crate::postgres::error::FileError;
use crate::postgres::settings::ServerLog;

/// Of the log, this much is quoted when a start fails.
const QUOTED: u64 = 4000;

/// How a server is started.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) binaries: &'a Binaries,
    pub(crate) identity: &'a Identity,
    pub(crate) data_dir: &'a Path,
    pub(crate) config_file: &'a Path,
    /// Parameters on the command line, which nothing in a file can override.
    pub(crate) forced: &'a [(String, String)],
    pub(crate) log: &'a ServerLog,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The fence is up.
    #[error("the fence is up: no server is started before it is released")]
    Fenced,
    /// What an earlier server left is in the way, or a server runs.
    #[error(transparent)]
    Remains(#[from] RemainsError),
    /// The data directory is not fit.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A rewind was begun and not ended.
    #[error(
        "the data in {} are half rewound: they are of no use until they are rewound to a leader, or replaced by a copy",
        data_dir.display()
    )]
    HalfRewound {
        /// The data directory.
        data_dir: PathBuf,
    },
    /// The program cannot be run.
    #[error("cannot start {}: {source}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It ended instead of coming up.
    #[error("PostgreSQL ended while starting ({}){}", ended(*exit), quoted(said))]
    Exited {
        /// How it ended.
        exit: ServerExit,
        /// The end of its log.
        said: String,
    },
    /// It has not come up by the deadline. It still runs.
    #[error(
        "PostgreSQL (process {pid}) takes no connections yet (it is {}){}",
        status.map_or("just beginning", so_far), quoted(said)
    )]
    NotReady {
        /// Its process id.
        pid: u32,
        /// How far it has come.
        status: Option<PostmasterStatus>,
        /// The end of its log.
        said: String,
    },
}

impl StartError {
    /// Whether the server's log says that the disk is full.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Exited { said, .. } | Self::NotReady { said, .. } => {
                said.contains("No space left on device")
            }
            Self::File(error) | Self::DataDir(DataDirError::File(error)) => error.is_disk_full(),
            _ => false,
        }
    }
}

fn ended(exit: ServerExit) -> String {
    exit.status.map_or_else(|| "its status is not known".to_owned(), |status| status.to_string())
}

fn so_far(status: PostmasterStatus) -> &'static str {
    match status {
        PostmasterStatus::Starting => "recovering",
        PostmasterStatus::Standby | PostmasterStatus::Ready => "up",
        PostmasterStatus::Stopping => "shutting down",
    }
}

fn quoted(said: &str) -> String {
    let said = said.trim();
    if said.is_empty() { String::new() } else { format!("; the end of its log:\n{said}") }
}

impl Launch<'_> {
    /// Starts a server and sets it in the fence. What an earlier one left is first cleared away, for which
    /// `deadline` holds; the server is then on its way up when this returns. Cancel-safe: there is no await
    /// between the start and the return.
    pub(crate) async fn start(
        &self,
        fence: &Fence,
        deadline: Instant,
    ) -> Result<Server, StartError> {
        self.identity.prepare_data_dir(self.data_dir)?;
        let program = self.binaries.program("postgres");
        let stranger = clear_remains(self.data_dir, fence, deadline).await?;
        let (out, err, log) = self.output()?;
        // A session of its own, so that neither a terminal's Ctrl-C nor our end reaches it. `setsid` and
        // `setpriv` become the server: its process id is that of our child.
        let mut command = Command::new("setsid");
        command.args(self.identity.prefix(false)).arg(&program).arg("-D").arg(self.data_dir);
        command.arg(concat("--config-file=", self.config_file));
        for (name, value) in self.forced {
            command.arg(format!("--{name}={value}"));
        }
        scrub_for_server(&mut command);
        if let Some(home) = self.identity.home() {
            command.env("HOME", home).env("USER", self.identity.user());
        }
        if let Some(stranger) = stranger {
            // The server refuses to start while the process that `postmaster.pid` names is alive. This one is not a
            // server, and to remove the file could hit one that starts at this moment; what its grandparent left,
            // the server ignores.
            command.env("PG_GRANDPARENT_PID", stranger.to_string());
        }
        command.current_dir("/").stdin(Stdio::null()).stdout(out).stderr(err);
        if fence.is_engaged() {
            return Err(StartError::Fenced);
        }
        let spawn = |source: std::io::Error| StartError::Spawn { program: program.clone(), source };
        let child = command.spawn().map_err(spawn)?;
        let gone = || spawn(std::io::Error::other("it ended at once"));
        let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed())).ok_or_else(gone)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| spawn(e.into()))?;
        let server = Server::new(pid, pidfd, Some(child), self.data_dir, log, fence);
        let server = server.map_err(spawn)?;
        tracing::info!(pid = server.pid(), data_dir = %self.data_dir.display(), "PostgreSQL is starting");
        Ok(server)
    }

    fn output(&self) -> Result<(Stdio, Stdio, LogTail), StartError> {
        let ServerLog::File(path) = self.log else {
            return Ok((Stdio::inherit(), Stdio::inherit(), LogTail::Elsewhere));
        };
        let open = |source| FileError::new("open", path, source);
        let file =
            OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(open)?;
        self.identity.own(path)?;
        let from = file.metadata().map_err(open)?.len();
        let copy = file.try_clone().map_err(open)?;
        Ok((copy.into(), file.into(), LogTail::File { path: path.clone(), from }))
    }
}

fn concat(option: &str, path: &Path) -> std::ffi::OsString {
    let mut word = std::ffi::OsString::from(option);
    word.push(path);
    word
}

/// Where to read what a server has said since its start.
#[derive(Debug, Clone)]
pub(super) enum LogTail {
    Elsewhere,
    File { path: PathBuf, from: u64 },
}

impl LogTail {
    pub(super) fn read(&self) -> String {
        let Self::File { path, from } = self else { return String::new() };
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = File::open(path)?;
            let end = file.metadata()?.len();
            file.seek(SeekFrom::Start((*from).max(end.saturating_sub(QUOTED))))?;
            let mut text = Vec::new();
            file.take(QUOTED).read_to_end(&mut text)?;
            Ok(text)
        };
        String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
    }
}
