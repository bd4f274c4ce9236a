//! The control file, as `pg_controldata` tells of it: what a server that is down last wrote about itself.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use leaderpool::patroni::{Lsn, SystemId, Timeline};

use super::binaries::{Binaries, Tool, ToolError};
use super::process::Identity;

/// The state of the data.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DataState {
    /// It was never started.
    StartingUp,
    /// A primary was shut down in order.
    ShutDown,
    /// A standby was shut down in order.
    ShutDownInRecovery,
    /// It is being shut down, or ended while it was.
    ShuttingDown,
    /// It recovers from a crash, or ended while it did.
    InCrashRecovery,
    /// A standby runs, or ended without order.
    InArchiveRecovery,
    /// A primary runs, or ended without order.
    InProduction,
    /// Words of a version that is not known here.
    Other(String),
}

impl DataState {
    fn parse(text: &str) -> Self {
        match text {
            "starting up" => Self::StartingUp,
            "shut down" => Self::ShutDown,
            "shut down in recovery" => Self::ShutDownInRecovery,
            "shutting down" => Self::ShuttingDown,
            "in crash recovery" => Self::InCrashRecovery,
            "in archive recovery" => Self::InArchiveRecovery,
            "in production" => Self::InProduction,
            other => Self::Other(other.to_owned()),
        }
    }

    /// Whether the server ended in order, so that `pg_rewind` accepts its data.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        matches!(self, Self::ShutDown | Self::ShutDownInRecovery)
    }
}

/// The control file's content, as far as it is used here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlData {
    /// The state of the data.
    pub state: DataState,
    /// The system identifier.
    pub system_id: SystemId,
    /// Where the latest checkpoint's record begins.
    pub checkpoint: Lsn,
    /// Where recovery would begin.
    pub redo: Lsn,
    /// The latest checkpoint's timeline.
    pub timeline: Timeline,
    /// The timeline before it, where the checkpoint ended a recovery; else the same.
    pub previous_timeline: Timeline,
    /// How far recovery must go before the data are consistent; zero for a primary.
    pub min_recovery_end: Lsn,
    /// That position's timeline; zero for a primary.
    pub min_recovery_timeline: Timeline,
    /// Where a base backup began that has not been recovered to its end; zero where there is none.
    pub backup_start: Lsn,
    /// The size of a WAL segment, in bytes.
    pub wal_segment_size: u64,
    /// Whether the pages have checksums.
    pub checksums: bool,
    /// Whether hint bits are written to the WAL.
    pub wal_log_hints: bool,
    /// What a standby must at least have been started with, by parameter.
    pub limits: BTreeMap<String, u64>,
}

/// Why the control file cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// `pg_controldata` failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// Its answer lacks a line.
    #[error(
        "pg_controldata's answer has no usable line {0:?}: is it of the same version as the data?"
    )]
    Missing(&'static str),
}

/// Where a standby's parameter must not be lower than what the primary ran with, and the words for it.
const LIMITS: [(&str, &str); 5] = [
    ("max_connections setting", "max_connections"),
    ("max_worker_processes setting", "max_worker_processes"),
    ("max_wal_senders setting", "max_wal_senders"),
    ("max_prepared_xacts setting", "max_prepared_transactions"),
    ("max_locks_per_xact setting", "max_locks_per_transaction"),
];

impl ControlData {
    /// Reads the control file of a data directory. Works whether the server runs or not.
    ///
    /// # Errors
    /// When there is none, or it makes no sense.
    pub async fn read(
        binaries: &Binaries,
        identity: &Identity,
        data_dir: &Path,
    ) -> Result<Self, ControlError> {
        let output = Tool::new(binaries.program("pg_controldata"), identity)
            .arg(data_dir)
            .deadline(Duration::from_secs(30))
            .run()
            .await?;
        Self::parse(&output.stdout)
    }

    /// Reads the answer of `pg_controldata` in the C locale.
    ///
    /// # Errors
    /// When a line is missing that every version has.
    pub fn parse(answer: &str) -> Result<Self, ControlError> {
        let lines: BTreeMap<&str, &str> = answer
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.trim(), value.trim()))
            .collect();
        fn field<T: std::str::FromStr>(
            lines: &BTreeMap<&str, &str>,
            name: &'static str,
        ) -> Result<T, ControlError> {
            lines.get(name).and_then(|v| v.parse().ok()).ok_or(ControlError::Missing(name))
        }
        let lsn = |name| field::<Lsn>(&lines, name);
        let timeline = |name| field(&lines, name).map(Timeline);
        let state = lines.get("Database cluster state");
        let limits = LIMITS
            .iter()
            .filter_map(|(line, parameter)| {
                Some(((*parameter).to_owned(), lines.get(line)?.parse().ok()?))
            })
            .collect();
        Ok(Self {
            state: DataState::parse(state.ok_or(ControlError::Missing("Database cluster state"))?),
            system_id: SystemId(field(&lines, "Database system identifier")?),
            checkpoint: lsn("Latest checkpoint location")?,
            redo: lsn("Latest checkpoint's REDO location")?,
            timeline: timeline("Latest checkpoint's TimeLineID")?,
            previous_timeline: timeline("Latest checkpoint's PrevTimeLineID")?,
            min_recovery_end: lsn("Minimum recovery ending location")?,
            min_recovery_timeline: timeline("Min recovery ending loc's timeline")?,
            backup_start: lsn("Backup start location")?,
            wal_segment_size: field(&lines, "Bytes per WAL segment")?,
            checksums: lines.get("Data page checksum version").is_some_and(|v| *v != "0"),
            wal_log_hints: lines.get("wal_log_hints setting").is_some_and(|v| *v == "on"),
            limits,
        })
    }

    /// Whether `pg_rewind` can work on these data: it needs checksums or `wal_log_hints`.
    #[must_use]
    pub fn allows_rewind(&self) -> bool {
        self.checksums || self.wal_log_hints
    }
}

/// Whether a data directory holds data.
#[must_use]
pub fn has_data(data_dir: &Path) -> bool {
    data_dir.join("global/pg_control").is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Of a PostgreSQL 15.
    const ANSWER: &str = "\
pg_control version number:            1300
Catalog version number:               202209061
Database system identifier:           7711881814340512804
Database cluster state:               shut down in recovery
pg_control last modified:             Tue Nov 24 23:20:11 2026
Latest checkpoint location:           0/3018080
Latest checkpoint's REDO location:    0/3018048
Latest checkpoint's REDO WAL file:    000000010000000000000003
Latest checkpoint's TimeLineID:       2
Latest checkpoint's PrevTimeLineID:   1
Fake LSN counter for unlogged rels:   0/3E8
Minimum recovery ending location:     0/3018100
Min recovery ending loc's timeline:   2
Backup start location:                0/0
Backup end location:                  0/0
End-of-backup record required:        no
wal_level setting:                    replica
wal_log_hints setting:                on
max_connections setting:              100
max_worker_processes setting:         8
max_wal_senders setting:              10
max_prepared_xacts setting:           0
max_locks_per_xact setting:           64
track_commit_timestamp setting:       off
Bytes per WAL segment:                16777216
Data page checksum version:           0
";

    #[test]
    fn a_real_answer() {
        let control = ControlData::parse(ANSWER).unwrap();
        assert_eq!(control.state, DataState::ShutDownInRecovery);
        assert!(control.state.is_clean() && control.allows_rewind() && !control.checksums);
        assert_eq!((control.checkpoint, control.redo), (Lsn(0x301_8080), Lsn(0x301_8048)));
        assert_eq!((control.timeline, control.previous_timeline), (Timeline(2), Timeline(1)));
        assert_eq!(control.min_recovery_end, Lsn(0x301_8100));
        assert_eq!(control.limits["max_prepared_transactions"], 0);
        assert_eq!(control.limits["max_connections"], 100);
        assert_eq!(control.wal_segment_size, 16 << 20);
    }

    #[test]
    fn a_missing_line_is_named() {
        let cut = ANSWER.replace("Latest checkpoint location", "Something");
        let error = ControlData::parse(&cut).unwrap_err().to_string();
        assert!(error.contains("Latest checkpoint location"), "{error}");
        let odd = ANSWER.replace("shut down in recovery", "dreaming");
        assert_eq!(ControlData::parse(&odd).unwrap().state, DataState::Other("dreaming".into()));
    }
}
