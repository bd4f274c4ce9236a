//! Coming back into a cluster that has gone on without this server.
//!
//! First it is found out whether the server's own history is part of its leader's: then it just follows. If not, it is
//! rewound: what it alone had is given up, and what the leader has is taken. Only where that fails, or is not possible, is
//! there an error, and it is for the caller to decide whether the data may be replaced by a fresh copy. Nothing here
//! throws data away by itself.

mod archive;
mod aside;
mod crash;
mod rewind;
mod source;
mod verdict;
mod wal;

use leaderpool::patroni::{SystemId, Timeline};
use tokio::time::Instant;

pub use archive::{Archived, archive_ready};
pub(crate) use aside::empty;
pub use aside::{AsideError, move_aside, remove_data};
pub use crash::needs_crash_recovery;
pub use rewind::{Rewound, forget_interruption, was_interrupted};
pub use source::{Identified, SourceError, history, identify};
pub use verdict::{LocalEnd, Verdict, Was, compare};
pub use wal::{ShutdownCheckpoint, WalError, shutdown_checkpoint};

use super::binaries::ToolError;
use super::control::{ControlData, ControlError, DataState};
use super::error::FileError;
use super::process::{Fence, RemainsError};
use super::session::ServerState;
use super::settings::Upstream;
use super::site::Site;

/// Why a server cannot come back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RejoinError {
    /// A server runs, or its remains are in the way.
    #[error(transparent)]
    Remains(#[from] RemainsError),
    /// The control file cannot be read.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The WAL cannot be read.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The leader cannot be asked.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The data are of another cluster.
    #[error(
        "the data are of cluster {own}, but {leader} is of cluster {theirs}: they are of different clusters and were not touched"
    )]
    Foreign {
        /// The leader.
        leader: String,
        /// The system identifier of the data.
        own: SystemId,
        /// The leader's.
        theirs: SystemId,
    },
    /// It has not come so far: later it will have.
    #[error("cannot rewind to {leader} yet: {why}")]
    LeaderNotReady {
        /// The leader.
        leader: String,
        /// What is missing.
        why: &'static str,
    },
    /// pg_rewind would fail half way.
    #[error(
        "cannot rewind to {leader}: a Unix socket lies in its data directory, which pg_rewind cannot copy; set its unix_socket_directories to another directory (such as '..') and restart it. The data were not touched"
    )]
    SocketInTheWay {
        /// The leader.
        leader: String,
    },
    /// pg_rewind cannot work on these data.
    #[error(
        "cannot rewind: the data have neither checksums nor wal_log_hints, and without either pg_rewind cannot tell what has changed"
    )]
    NotPossible,
    /// Crash recovery failed.
    #[error("crash recovery in single-user mode failed: {0}")]
    CrashRecovery(#[source] ToolError),
    /// It left the data in a state that it should not.
    #[error("after crash recovery the data are {state:?}, not shut down")]
    NotClean {
        /// That state.
        state: DataState,
    },
    /// The leader went away while the data were rewound to it. They are to be rewound again, to it or its successor.
    #[error("{leader} was lost while rewinding to it: {source}")]
    LeaderLost {
        /// The leader.
        leader: String,
        /// What pg_rewind said.
        #[source]
        source: ToolError,
    },
    /// pg_rewind failed, and the leader is well.
    #[error("cannot rewind to {leader}: {source}")]
    Rewind {
        /// The leader.
        leader: String,
        /// What it said.
        #[source]
        source: ToolError,
    },
}

impl RejoinError {
    /// Whether trying again later may help, without anybody doing anything: the leader is not there, or not ready.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Source(_)
                | Self::LeaderNotReady { .. }
                | Self::LeaderLost { .. }
                | Self::Remains(_)
        )
    }

    /// Whether only a fresh copy helps.
    #[must_use]
    pub fn needs_fresh_copy(&self) -> bool {
        matches!(
            self,
            Self::NotPossible
                | Self::Rewind { .. }
                | Self::CrashRecovery(_)
                | Self::NotClean { .. }
                | Self::Wal(_)
        )
    }
}

/// What was found out about coming back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// The leader's timeline.
    pub leader_timeline: Timeline,
    /// Where the server's own WAL ends.
    pub local: LocalEnd,
    /// What is to be done.
    pub verdict: Verdict,
}

/// Compares a *stopped* server with its leader. A server that has crashed must have been recovered
/// ([`needs_crash_recovery`]); [`rejoin`] does both.
///
/// # Errors
/// When the leader cannot be asked, or the data are of another cluster.
pub async fn examine(
    site: &Site,
    control: &ControlData,
    leader: &Upstream,
) -> Result<Examined, RejoinError> {
    let local = local_end(site, control).await?;
    judge(site, control.system_id, local, leader).await
}

/// Compares a *running* standby with its leader.
///
/// # Errors
/// The same.
pub async fn examine_running(
    site: &Site,
    state: &ServerState,
    leader: &Upstream,
) -> Result<Examined, RejoinError> {
    let local = LocalEnd {
        timeline: state.timeline.unwrap_or_default(),
        // What was received and not replayed does not bind it: it is read from the leader's timeline.
        end: state.replayed.or(state.write).unwrap_or_default(),
        was: if state.in_recovery { Was::Standby } else { Was::Primary },
    };
    judge(site, state.system_id, local, leader).await
}

async fn judge(
    site: &Site,
    own: SystemId,
    local: LocalEnd,
    leader: &Upstream,
) -> Result<Examined, RejoinError> {
    let identified = source::identify(site, leader).await?;
    if identified.system_id != own {
        let (leader, theirs) = (leader.name.clone(), identified.system_id);
        return Err(RejoinError::Foreign { leader, own, theirs });
    }
    let history = source::history(site, leader, identified.timeline).await?;
    let verdict = compare(local, identified.timeline, &history);
    tracing::info!(leader = %leader.name, leader_timeline = %identified.timeline, ?local, ?verdict, "compared with the leader");
    Ok(Examined { leader_timeline: identified.timeline, local, verdict })
}

async fn local_end(site: &Site, control: &ControlData) -> Result<LocalEnd, RejoinError> {
    let recovered = control.min_recovery_end.0 != 0 && control.min_recovery_timeline.0 != 0;
    let was_standby =
        matches!(control.state, DataState::ShutDownInRecovery | DataState::InArchiveRecovery);
    if was_standby && recovered {
        let (timeline, end) = (control.min_recovery_timeline, control.min_recovery_end);
        return Ok(LocalEnd { timeline, end, was: Was::Standby });
    }
    if let Some(shutdown) = shutdown_checkpoint(site, control).await? {
        return Ok(LocalEnd { timeline: shutdown.timeline, end: shutdown.end, was: Was::Primary });
    }
    // A copy that has never been recovered: it has nothing of its own.
    Ok(LocalEnd { timeline: control.timeline, end: control.checkpoint, was: Was::Standby })
}

/// What was done to come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejoined {
    /// Whether it had crashed and was recovered.
    pub recovered: bool,
    /// What was archived before its WAL was changed.
    pub archived: Archived,
    /// How it compared with the leader; none where a rewind had been interrupted, and was done again unasked.
    pub examined: Option<Examined>,
    /// The rewind, where one was done.
    pub rewound: Option<Rewound>,
}

/// Makes a stopped server's data fit to follow the leader: recovers them if it had crashed, compares, and rewinds if it
/// must. Afterwards it is started as a standby. With `may_rewind` unset a need to rewind is an error.
///
/// Not cancel-safe in the middle of a rewind: what was interrupted is marked, is not started, and is rewound again the
/// next time.
///
/// # Errors
/// See [`RejoinError`]. Nothing is thrown away.
pub async fn rejoin(
    site: &Site,
    fence: &Fence,
    leader: &Upstream,
    may_rewind: bool,
    deadline: Instant,
) -> Result<Rejoined, RejoinError> {
    if let Some(pid) = super::process::running_pid(site.data_dir()).map_err(RemainsError::from)? {
        let data_dir = site.data_dir().to_owned();
        return Err(RemainsError::Running { data_dir, pid }.into());
    }
    let mut control = site.control().await?;
    let mut done =
        Rejoined { recovered: false, archived: Archived::default(), examined: None, rewound: None };
    let interrupted = was_interrupted(site);
    if !interrupted {
        if needs_crash_recovery(site, &control) {
            // Asked before, since recovery may take long and is for nothing if the leader is not there.
            source::identify(site, leader).await?;
            done.archived = archive_ready(site, deadline).await;
            control = crash::recover(site, fence, deadline).await?;
            done.recovered = true;
        }
        let examined = examine(site, &control, leader).await?;
        let follows = examined.verdict == Verdict::Follow;
        done.examined = Some(examined);
        if follows {
            return Ok(done);
        }
    }
    if !may_rewind || !control.allows_rewind() {
        return Err(RejoinError::NotPossible);
    }
    if !interrupted && !control.state.is_clean() {
        // A standby that has crashed and has diverged.
        control = crash::recover(site, fence, deadline).await?;
        done.recovered = true;
        tracing::debug!(?control, "a diverged standby was closed in order");
    }
    if !done.recovered {
        done.archived = archive_ready(site, deadline).await;
    }
    done.rewound = Some(rewind::rewind(site, leader, deadline).await?);
    Ok(done)
}
