//! Promotion, without `pg_ctl`'s polling: the same file and signal, and then the server is asked until it is out of
//! recovery.

use std::path::{Path, PathBuf};
use std::time::Duration;

use leaderpool::patroni::Timeline;
use tokio::time::{Instant, sleep};

use crate::postgres::error::FileError;
use crate::postgres::files::{PROMOTE, remove_if_there, write_atomically};
use crate::postgres::process::{Identity, Server};
use crate::postgres::session::{Session, SessionError};

/// How often the server is asked. A question takes a tenth of this.
const LOOK: Duration = Duration::from_millis(2);

/// A server that was promoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promoted {
    /// Its new timeline.
    pub timeline: Timeline,
    /// From the signal until it was out of recovery.
    pub took: Duration,
}

/// Why a server was not promoted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PromoteError {
    /// It is a primary already.
    #[error("PostgreSQL is not in recovery: there is nothing to promote")]
    NotAStandby,
    /// None runs.
    #[error("PostgreSQL does not run: there is nothing to promote")]
    NotRunning,
    /// The file that asks for it cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// It may not be signalled.
    #[error("cannot signal PostgreSQL (process {pid}): {source}")]
    Signal {
        /// Its process id.
        pid: u32,
        /// Why.
        source: std::io::Error,
    },
    /// It does not answer.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// It ended meanwhile.
    #[error("PostgreSQL ended while being promoted; the end of its log:\n{said}")]
    Exited {
        /// The end of its log.
        said: String,
    },
    /// It is still in recovery.
    #[error("PostgreSQL is still in recovery {after:?} after it was told to promote")]
    TimedOut {
        /// Since the signal.
        after: Duration,
    },
}

/// The request, taken back unless it was carried out: left behind, it would promote the server at some later time.
struct Request(PathBuf);

impl Drop for Request {
    fn drop(&mut self) {
        let _ = remove_if_there(&self.0);
    }
}

/// Promotes a standby and waits until it is out of recovery.
///
/// When the future is dropped before, the request is taken back; a promotion that has already begun goes on.
pub(crate) async fn promote(
    server: &Server,
    session: &Session,
    identity: &Identity,
    deadline: Instant,
) -> Result<Promoted, PromoteError> {
    // Also makes sure that there is a connection to watch it on.
    if !session.is_in_recovery().await? {
        return Err(PromoteError::NotAStandby);
    }
    let begin = Instant::now();
    let path: &Path = &server.data_dir().join(PROMOTE);
    write_atomically(path, "", 0o600, identity)?;
    let request = Request(path.to_owned());
    server.promote_signal().map_err(|source| PromoteError::Signal { pid: server.pid(), source })?;
    let out_of_recovery = async {
        loop {
            // A single failure says little: the server may just have thrown the connection out.
            match session.is_in_recovery().await {
                Ok(false) => return Ok(begin.elapsed()),
                Err(error) if Instant::now() >= deadline => return Err(error.into()),
                Ok(true) | Err(_) => {}
            }
            if Instant::now() >= deadline {
                return Err(PromoteError::TimedOut { after: begin.elapsed() });
            }
            sleep(LOOK).await;
        }
    };
    let took = tokio::select! {
        biased;
        _ = server.exited() => return Err(PromoteError::Exited { said: server.last_words() }),
        took = out_of_recovery => took?,
    };
    drop(request);
    let sql = "SELECT ('x' || pg_catalog.substr(pg_catalog.pg_walfile_name(\
               pg_catalog.pg_current_wal_lsn()), 1, 8))::bit(32)::int";
    let timeline: i32 = session.row("ask for the timeline", sql, &[]).await?.get(0);
    let promoted = Promoted { timeline: Timeline(timeline.cast_unsigned()), took };
    tracing::info!(timeline = %promoted.timeline, ?took, "PostgreSQL is promoted");
    Ok(promoted)
}
