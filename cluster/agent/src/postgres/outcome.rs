//! What comes of the work on a server.

use std::sync::Arc;
use std::time::Duration;

use super::bootstrap::BootstrapError;
use super::error::FileError;
use super::files::{Raised, Written};
use super::process::{PostmasterStatus, Server, StartError, StopError};
use super::replication::SyncNamesError;
use super::session::{PendingRestart, RejectedLine, SessionError};

/// A server that takes connections.
#[derive(Debug, Clone)]
pub struct Started {
    /// It.
    pub server: Arc<Server>,
    /// How far it has come, by its own account.
    pub status: PostmasterStatus,
    /// From the request until it took connections.
    pub took: Duration,
    /// Parameters it was started with more of than is configured, since its primary has more.
    pub raised: Vec<Raised>,
}

/// What came of new settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// The files that were written.
    pub written: Written,
    /// Whether the server has read them.
    pub reloaded: bool,
    /// What takes effect only with a restart.
    pub pending_restart: Vec<PendingRestart>,
    /// Lines that the server does not accept. Where there are any, it has taken on nothing.
    pub rejected: Vec<RejectedLine>,
}

/// Why new settings were not applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The server does not answer.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// It may not be signalled.
    #[error("cannot tell PostgreSQL to reload: {0}")]
    Signal(#[source] std::io::Error),
    /// It had to be restarted, and was not.
    #[error(transparent)]
    Start(#[from] StartError),
    /// It had to be restarted, and could not be stopped.
    #[error(transparent)]
    Stop(#[from] StopError),
}

/// Why a new cluster was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// Its data or accounts were not made.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// It does not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// It could not be told its settings.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

/// Why `synchronous_standby_names` is not known to be in effect.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetSyncNamesError {
    /// It could not be set.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// It is not known to be in effect.
    #[error(transparent)]
    NotInEffect(#[from] SyncNamesError),
}
