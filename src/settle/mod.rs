//! What became of a commit whose answer never came.
//!
//! Before `COMMIT` the transaction's id and the WAL position are noted ([`CommitNote`]). When the outcome is
//! unknown, [`plan`] says from the note and from what is known of the leader now whether `pg_xact_status`
//! can be believed, and [`conclude`] reads its answer.
//!
//! The difficulty is that **transaction ids are used again**. A server that crashes loses the WAL that it had
//! not flushed, and gives the ids in it to others; a promoted replica does so with the WAL that it had not
//! received. Then `pg_xact_status` speaks of somebody else's transaction. The noted position decides, as WAL
//! survives only up to one point, and the commit record lies at or beyond the note:
//!
//! - *survived up to the note*: the transaction's own writes lie before it, so the new history knows its id
//!   and never gives it away; the status is the truth, and says "aborted" where the commit record was lost;
//! - *ends before the note*: the commit record is gone, whatever the status says.
//!
//! Where it survives up to: the same server in the same run, everything; across promotions, the switch
//! points in the history, each of them; across a crash in place, the end of recovery. The last one
//! leaves no trace in the timeline, and where only a backend was killed none in the postmaster's start time
//! either: the postmaster lives on and its children start anew (checked on PostgreSQL 15: the killed
//! transaction's id was given away a second later). What does change then is the time at which the server's
//! statistics were reset; see [`ServerRun`].
//!
//! Limits:
//! - Take the note in a transaction that has written (`pg_current_xact_id_if_assigned()`): an id without a
//!   record in the WAL before the note is not known to survive with it.
//! - Ask for the status and for the server's epoch and run in one statement, and plan again where they
//!   are not the ones that were planned with.
//! - A crash in place that nobody saw before the promotion that followed it is not taken into account, nor is
//!   a second timeline of the same number (a promotion that failed before any other member saw it).
//! - `Committed` speaks of the current leader. Under asynchronous replication a later failover may still
//!   lose the commit.

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::lineage::{Lineage, lineage};
use crate::patroni::{HistoryLine, Lsn, Timeline};
use crate::topology::Epoch;

/// One run of one server between two losses of its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ServerRun {
    /// `pg_postmaster_start_time()`, in microseconds since 1970. A crash of a backend leaves it as it is.
    pub started_at: i64,
    /// `pg_stat_get_bgwriter_stat_reset_time()`, in microseconds since 1970: crash recovery resets the
    /// statistics, a clean restart does not. (`pg_stat_reset_shared` does too, which costs certainty
    /// and no more.)
    pub reset_at: i64,
}

/// What is noted before `COMMIT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CommitNote {
    /// `pg_current_xact_id_if_assigned()`. Where that is NULL nothing was written, and there is nothing to
    /// settle.
    pub xid: u64,
    /// `pg_current_wal_insert_lsn()`, read after the transaction's last write.
    pub lsn: Lsn,
    /// The epoch that the connection was handed out in.
    pub epoch: Epoch,
    /// The server's run.
    pub run: ServerRun,
}

/// The leader, when a plan is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaderNow {
    /// The epoch of its reign.
    pub epoch: Epoch,
    /// Its run.
    pub run: ServerRun,
}

/// What was seen of the noted server's **first** run after the note's, on the note's timeline: after a
/// crash or a restart in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restart {
    /// That run.
    pub run: ServerRun,
    /// The lowest `pg_snapshot_xmax(pg_current_snapshot())` seen in it, out of recovery.
    pub lowest_xmax: Option<u64>,
    /// Where its recovery ended, or the clean shutdown before it: `redo_lsn` of `pg_control_checkpoint()`,
    /// provided that it equals `checkpoint_lsn` (no other checkpoints do) and that `checkpoint_time` is
    /// not before `reset_at`, in whole seconds. The next checkpoint overwrites it, so it is to be read
    /// soon; `None` where it came too late, or where this may not be the first run.
    pub recovered_to: Option<Lsn>,
}

/// Whose transaction the noted id means now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Identity {
    /// The noted one.
    Ours,
    /// The noted one, or another that was given its id after a crash.
    PerhapsReused,
}

/// What to do to settle a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Ask the leader for `pg_xact_status`, and [`conclude`].
    AskStatus(Identity),
    /// The noted server was restarted in place: find out what its recovery left (see [`Restart`]), then
    /// plan again.
    AskRestart,
    /// There was a promotion whose switch point is not in the history yet. Plan again when it is.
    WaitForHistory,
    /// It is settled.
    Answer(Settlement),
}

/// What `pg_xact_status` said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum XactStatus {
    /// `committed`.
    Committed,
    /// `aborted`.
    Aborted,
    /// `in progress`.
    InProgress,
    /// NULL: the id is too old for its status to be kept.
    Unavailable,
    /// SQLSTATE `22023`, "transaction ID … is in the future": this history never gave the id away.
    NotAssigned,
}

/// What became of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "settlement")]
pub enum Settlement {
    /// It is part of the current leader's history.
    Committed,
    /// It is not, and never will be.
    NotApplied {
        /// Why.
        why: NotApplied,
    },
    /// It cannot be told.
    Unknown {
        /// Why.
        why: Unsettled,
    },
}

/// Why a commit is not part of the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "because")]
#[non_exhaustive]
pub enum NotApplied {
    /// It was rolled back, or its commit record was never written.
    RolledBack,
    /// The new leader had not received it: it lies beyond the point where its timeline was left.
    BeyondSwitch {
        /// The timeline.
        timeline: Timeline,
        /// Where it was left.
        switch_lsn: Lsn,
    },
    /// The server crashed before the commit was on disk.
    LostInCrash,
}

/// Why it cannot be told what became of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Unsettled {
    /// The leader belongs to another cluster.
    OtherCluster,
    /// The leader is on an older timeline than the note.
    OlderLeader,
    /// The server no longer keeps the status of so old a transaction.
    StatusGone,
    /// After a crash the id may have been given to another transaction, which committed.
    IdReused,
    /// The deadline passed first. For the pool to say.
    Deadline,
}

impl fmt::Display for Settlement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Settlement::Committed => f.write_str("it was committed"),
            Settlement::NotApplied { why } => write!(f, "it was not committed: {why}"),
            Settlement::Unknown { why } => write!(f, "it cannot be told: {why}"),
        }
    }
}

impl fmt::Display for NotApplied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotApplied::RolledBack => f.write_str("it was rolled back"),
            NotApplied::BeyondSwitch { timeline, switch_lsn } => write!(
                f,
                "the new leader had not received it when timeline {timeline} was left at {switch_lsn}"
            ),
            NotApplied::LostInCrash => f.write_str("the server crashed before it was on disk"),
        }
    }
}

impl fmt::Display for Unsettled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unsettled::OtherCluster => "the leader belongs to another cluster",
            Unsettled::OlderLeader => "the leader is on an older timeline than the transaction",
            Unsettled::StatusGone => {
                "the server no longer keeps the status of so old a transaction"
            }
            Unsettled::IdReused => {
                "the server crashed, and its transaction id may have been given to another one"
            }
            Unsettled::Deadline => "the deadline passed first",
        })
    }
}

/// How to settle a commit, given the leader now and its history.
///
/// `restart` is what was seen of a restart in place on the note's timeline, be it the current one or one that
/// was left since; `None` where none was seen.
#[must_use]
pub fn plan(
    note: &CommitNote,
    leader: LeaderNow,
    restart: Option<Restart>,
    history: &[HistoryLine],
) -> Plan {
    if note.epoch.system_id != leader.epoch.system_id {
        return Plan::Answer(Settlement::Unknown { why: Unsettled::OtherCluster });
    }
    let (noted, current) = (note.epoch.timeline, leader.epoch.timeline);
    match noted.cmp(&current) {
        Ordering::Greater => Plan::Answer(Settlement::Unknown { why: Unsettled::OlderLeader }),
        Ordering::Equal => match restart {
            None if note.run == leader.run => Plan::AskStatus(Identity::Ours),
            None => Plan::AskRestart,
            Some(restart) => after_restart(note, restart),
        },
        Ordering::Less => match lineage(noted, note.lsn, current, history) {
            Lineage::Lost { timeline, switch_lsn } => Plan::Answer(Settlement::NotApplied {
                why: NotApplied::BeyondSwitch { timeline, switch_lsn },
            }),
            Lineage::Unknown => Plan::WaitForHistory,
            Lineage::Kept => match restart {
                None => Plan::AskStatus(Identity::Ours),
                Some(restart) => after_restart(note, restart),
            },
        },
    }
}

fn after_restart(note: &CommitNote, restart: Restart) -> Plan {
    let lost = Plan::Answer(Settlement::NotApplied { why: NotApplied::LostInCrash });
    // A reset of the statistics alone may be an operator's; an end of recovery after it may not.
    let certain = restart.run.started_at != note.run.started_at || restart.recovered_to.is_some();
    // A transaction that survives recovery ends there at the latest, so that the snapshots after it begin
    // beyond its id.
    if certain && restart.lowest_xmax.is_some_and(|xmax| xmax <= note.xid) {
        return lost;
    }
    match restart.recovered_to {
        Some(end) if note.lsn > end => lost,
        Some(_) => Plan::AskStatus(Identity::Ours),
        None => Plan::AskStatus(Identity::PerhapsReused),
    }
}

/// What a status means; `None` is to ask again, until the deadline.
#[must_use]
pub fn conclude(status: XactStatus, identity: Identity) -> Option<Settlement> {
    match (status, identity) {
        (XactStatus::Committed, Identity::Ours) => Some(Settlement::Committed),
        (XactStatus::Committed, Identity::PerhapsReused) => {
            Some(Settlement::Unknown { why: Unsettled::IdReused })
        }
        // Had it been committed and kept, its id would be known and not given away.
        (XactStatus::Aborted | XactStatus::NotAssigned, _) => {
            Some(Settlement::NotApplied { why: NotApplied::RolledBack })
        }
        (XactStatus::InProgress, _) => None,
        (XactStatus::Unavailable, _) => Some(Settlement::Unknown { why: Unsettled::StatusGone }),
    }
}
