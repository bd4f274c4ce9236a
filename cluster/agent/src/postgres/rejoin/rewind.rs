//! `pg_rewind`: making a server's data those of its leader by copying only what differs.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use super::{RejoinError, source};
use crate::postgres::error::FileError;
use crate::postgres::files::{Recovery, remove_if_there, write_atomically};
use crate::postgres::settings::Upstream;
use crate::postgres::site::Site;

/// A rewind that was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewound {
    /// How long pg_rewind took.
    pub took: Duration,
    /// Whether it changed anything; it finds by itself that nothing needs to be.
    pub changed: bool,
}

/// Says that a rewind was begun and not ended. Such data are of no use until they are rewound once more: pg_rewind writes the
/// control file last, so that they look whole.
fn mark(site: &Site) -> PathBuf {
    let data_dir = site.data_dir();
    let name = data_dir.file_name().unwrap_or_default().to_string_lossy();
    let beside = data_dir.with_file_name(format!(".{name}.rewinding"));
    let can_write = beside
        .parent()
        .is_some_and(|dir| rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_ok());
    // pg_rewind removes what the leader does not have, but it does so near its end.
    if can_write { beside } else { data_dir.join("rewinding.leaderpool") }
}

/// Whether a rewind of these data was interrupted.
#[must_use]
pub fn was_interrupted(site: &Site) -> bool {
    mark(site).exists()
}

/// Forgets that a rewind was interrupted: after the data were replaced.
///
/// # Errors
/// When the mark cannot be removed.
pub fn forget_interruption(site: &Site) -> Result<(), FileError> {
    remove_if_there(&mark(site)).map(|_| ())
}

/// Rewinds to the leader. The data must have been closed in order.
pub(super) async fn rewind(
    site: &Site,
    leader: &Upstream,
    deadline: Instant,
) -> Result<Rewound, RejoinError> {
    let readiness = source::readiness(site, leader).await?;
    let not_ready = |why| Err(RejoinError::LeaderNotReady { leader: leader.name.clone(), why });
    if readiness.in_recovery {
        return not_ready("it is still in recovery");
    }
    if !readiness.checkpointed {
        return not_ready("it has not written the checkpoint after its promotion");
    }
    if readiness.has_socket && site.version().major >= 14 {
        return Err(RejoinError::SocketInTheWay { leader: leader.name.clone() });
    }
    // pg_rewind reads restore_command from the configuration.
    site.files().write(&Recovery::Standby(Some(leader.clone())))?;
    site.files().remove_signals()?;
    let account = site.settings.rewind_account();
    let conninfo = site.conninfo(
        leader,
        account,
        &[("dbname", &site.settings.database), ("target_session_attrs", "read-write")],
    );
    let mut tool = site.connecting_tool("pg_rewind", account);
    tool = tool.arg("-D").arg(site.data_dir()).args(["--source-server", &conninfo]);
    let major = site.version().major;
    if major >= 13 {
        // Whatever has to be recovered was recovered before, with what protects the WAL.
        tool = tool.arg("--no-ensure-shutdown");
        let elsewhere = site.settings.config_dir() != site.data_dir();
        let restores = site.settings.recovery.get("restore_command").is_some_and(|c| !c.is_empty());
        if restores && (!elsewhere || major >= 15) {
            tool = tool.arg("--restore-target-wal");
            if elsewhere {
                tool = tool.arg(format!("--config-file={}", site.files().conf().display()));
            }
        }
    }
    let mark = mark(site);
    let begin = Instant::now();
    write_atomically(&mark, "", 0o600, &site.identity)?;
    let left = deadline.saturating_duration_since(begin).max(Duration::from_secs(1));
    let output = tool.deadline(left).run().await;
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            // What fails before it has changed anything says so by what it had not yet said.
            if !error.stderr().contains("rewinding from last common checkpoint") {
                remove_if_there(&mark)?;
            }
            // Where the leader has gone meanwhile, it is no wonder, and no reason to give the data up.
            let leader_is_there =
                source::readiness(site, leader).await.is_ok_and(|r| !r.in_recovery);
            let leader = leader.name.clone();
            return Err(if leader_is_there {
                RejoinError::Rewind { leader, source: error }
            } else {
                RejoinError::LeaderLost { leader, source: error }
            });
        }
    };
    let changed = !output.stderr.contains("no rewind required")
        && !output.stdout.contains("no rewind required");
    // A promotion that the leader had been asked for would be asked of its copy.
    let _ = fs::remove_file(site.data_dir().join(crate::postgres::files::PROMOTE));
    remove_if_there(&mark)?;
    let took = begin.elapsed();
    tracing::info!(leader = %leader.name, ?took, changed, "rewound");
    Ok(Rewound { took, changed })
}
