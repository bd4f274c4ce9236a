//! Crash recovery of a server that must not take connections: `pg_rewind` accepts only data that were closed in order.

use std::time::Duration;

use tokio::time::Instant;

use super::RejoinError;
use crate::postgres::control::{ControlData, DataState};
use crate::postgres::files::forced_parameters;
use crate::postgres::process::{Fence, clear_remains};
use crate::postgres::site::Site;

/// Whether data were left in a state that has to be recovered before they can be compared or rewound. Those of a base backup
/// that was not yet recovered to its end are not: they have nothing of their own, and to recover them alone would break them.
#[must_use]
pub fn needs_crash_recovery(site: &Site, control: &ControlData) -> bool {
    let backup = control.backup_start.0 != 0 || site.data_dir().join("backup_label").exists();
    let was_primary = !matches!(
        control.state,
        DataState::ShutDown | DataState::ShutDownInRecovery | DataState::InArchiveRecovery
    );
    was_primary && !backup
}

/// Recovers in single-user mode and shuts down at once.
///
/// Archiving is said to be on with a command that always fails, so that no WAL is removed: the last checkpoint before the
/// fork must still be there to rewind to.
pub(super) async fn recover(
    site: &Site,
    fence: &Fence,
    deadline: Instant,
) -> Result<ControlData, RejoinError> {
    let begin = Instant::now();
    clear_remains(site.data_dir(), fence, deadline).await?;
    site.files().remove_signals()?;
    let mut tool = site.tool("postgres").arg("--single").arg("-D").arg(site.data_dir());
    tool = tool.arg(format!("--config-file={}", site.files().conf().display()));
    let (forced, _) = forced_parameters(&site.settings, None);
    // At this level WAL cannot be archived, and then the server refuses what follows.
    let forced = forced.into_iter().filter(|(n, v)| n != "wal_level" || v != "minimal");
    for (name, value) in forced {
        tool = tool.args(["-c".to_owned(), format!("{name}={value}")]);
    }
    // A single-user server reads statements from its input: of which there are none.
    tool.args(["-c", "archive_mode=on", "-c", "archive_command=false", "template1"])
        .deadline(deadline.saturating_duration_since(Instant::now()).max(Duration::from_secs(1)))
        .run()
        .await
        .map_err(RejoinError::CrashRecovery)?;
    let control = site.control().await?;
    if !control.state.is_clean() {
        return Err(RejoinError::NotClean { state: control.state });
    }
    tracing::info!(took = ?begin.elapsed(), "crash recovery in single-user mode is done");
    Ok(control)
}
