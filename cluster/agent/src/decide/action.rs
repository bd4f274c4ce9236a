//! What a decision says.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use leaderpool::patroni::{Lsn, SystemId, Timeline};

use super::fence::FencePlan;
use super::moment::Moment;
use super::rows::Row;
use super::seen::{HandoverWhy, StopMode, Upstream};
use super::sync::{SyncKey, SyncNames, SyncStep};

/// What to do now, why, and when to look again.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The row of the table that this comes from.
    pub row: Row,
    /// What to do.
    pub action: Action,
    /// Why, in words for the log.
    pub reason: Cow<'static, str>,
    /// When to decide again at the latest, if nothing happens before.
    pub look_again: Moment,
    /// Until when the session's lease may be renewed without a further decision; `None` where it must
    /// not be renewed now. A loop that hangs thereby lets the lease run out.
    pub renew_until: Option<Moment>,
    /// When the server is stopped unless the lease is renewed; `None` where it cannot write.
    pub fence: Option<FencePlan>,
}

/// Where a copy of the data is taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloneSource {
    /// From a member: the leader, or a replica that offers itself.
    Member(String),
    /// From a backup, with no leader.
    Backup,
    /// From the cluster that this one is a standby of.
    Remote,
}

/// How a primary is made to stop being one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DemoteKind {
    /// In order, while the lease is renewed. The key is released later, by
    /// [`Action::ReleaseLeader`].
    Graceful,
    /// At once; the key is ours still, and is released later.
    Immediate,
    /// At once; the key is another's already, or nobody's.
    ImmediateNoLock,
    /// Before the lease could be another's, and without a word to etcd.
    Offline,
    /// In order, and the key is kept: the cluster becomes a standby of another.
    ToStandbyCluster,
}

/// To whom the key is handed, and why, once the server has stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandOver {
    /// To whom; `None` where nobody is fit.
    pub to: Option<String>,
    /// Why.
    pub why: HandoverWhy,
}

/// A short write of the leader's, each of them conditional on what was seen.
#[derive(Debug, Clone, PartialEq)]
pub enum Chore {
    /// Write the system identifier: a cluster without one was met.
    WriteInitialize(SystemId),
    /// Write the position to `status`, with the slots' positions.
    WriteStatus(Lsn),
    /// Write `history` from the server's own history file. Lines of timelines that the file lacks stay.
    WriteHistory,
    /// Write the members and their REST APIs to `failsafe`.
    WriteFailsafe(BTreeMap<String, String>),
    /// Make a checkpoint, then say so in the member key, so that others can be rewound.
    Checkpoint,
    /// Go on to the synchronous standbys that are wanted.
    Sync(SyncStep),
    /// Clear the request, which has this revision.
    ClearFailover {
        /// The revision of its last write.
        revision: i64,
        /// Why, in words.
        reason: Cow<'static, str>,
    },
    /// Put the candidate that was found into the request, so that all others stand back.
    NameCandidate {
        /// The revision of its last write.
        revision: i64,
        /// The candidate.
        to: String,
    },
}

/// What to do. Each is safe to be asked for again while it is under way.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Nothing.
    Wait,
    /// Ask these members for their state, in parallel, without retries.
    AskPeers(Vec<String>),
    /// Read the leader key linearizably.
    VerifyLeaderKey,
    /// Put `initialize` if it is absent, or if it still has this revision; then make the cluster: initdb or
    /// the custom method, a first start, users. [`Work::Bootstrap`] until done.
    ///
    /// [`Work::Bootstrap`]: super::Work::Bootstrap
    Bootstrap {
        /// The revision of an abandoned `initialize`.
        replacing: Option<i64>,
    },
    /// Write `config` and the system identifier, if `initialize` is as this member put it, and take the
    /// leader key.
    FinishBootstrap,
    /// Move what there is of the data aside and delete `initialize`.
    AbandonBootstrap,
    /// Copy the data.
    CloneFrom(CloneSource),
    /// Move the data aside, as the configuration allows, and copy them anew.
    Reclone,
    /// Start the server as a primary, on the timeline it has.
    StartAsPrimary,
    /// Start the server as a standby of this upstream.
    StartAsStandby(Upstream),
    /// Point the running standby at this upstream: a reload, no restart.
    Follow(Upstream),
    /// Find out whether the data can follow the leader's timeline.
    CheckRewind {
        /// The leader.
        from: String,
    },
    /// Let the server recover alone, in single-user mode, so that it can be rewound.
    CrashRecover,
    /// Rewind the data to where they can follow the leader.
    Rewind {
        /// The leader.
        from: String,
    },
    /// Put the leader key with the session's lease, if it is absent, and if `sync` still has the revision
    /// that was seen: whoever led in between has changed it.
    AcquireLeader {
        /// The revision of `sync`; zero where it is absent.
        sync_revision: i64,
    },
    /// Put the leader key with the session's lease, if its value still is this member's name.
    ReattachLeader,
    /// Write `sync`, if it still has this revision.
    WriteSync {
        /// Its new value.
        key: SyncKey,
        /// The revision of its last write; zero where it is absent.
        revision: i64,
    },
    /// Set `synchronous_standby_names` before the promotion.
    SetSyncNames(SyncNames),
    /// Write the timeline that the promotion is going to make to the key `timeline`, if this member leads and
    /// the key has an older one. Nobody else will make it then, whatever becomes of this one.
    ClaimTimeline(Timeline),
    /// Open the watchdog where there is one, then promote, to a timeline above this one (as the server
    /// does where it finds that timeline's history file).
    Promote {
        /// The newest timeline that is known.
        above: Timeline,
    },
    /// Lead on, and do these, in order.
    KeepLeading(Vec<Chore>),
    /// Stop the server, which is a primary.
    Demote {
        /// Which demotion it is.
        kind: DemoteKind,
        /// How to stop it now; harder than before where the same is asked for again.
        stop: StopMode,
        /// To be remembered until the key is released.
        hand_over: Option<HandOver>,
    },
    /// Stop the server, which is no primary.
    Stop(StopMode),
    /// Delete the leader key, if its value still is this member's name, and in the same transaction put
    /// the member key, which then says that no primary runs here; `status` with this position first.
    ReleaseLeader {
        /// Whom it is meant for.
        to: Option<String>,
        /// The position at which the server was shut down.
        optime: Option<Lsn>,
    },
    /// Ask every member of `failsafe` to accept that this one leads on.
    PingFailsafe,
    /// End the process; the exit code says whether it is an error.
    Exit {
        /// Zero, or not.
        code: u8,
    },
}

/// A row's choice, before [`decide`](super::decide) adds what every decision has.
pub(super) struct Choice {
    pub(super) row: Row,
    pub(super) action: Action,
    pub(super) reason: Cow<'static, str>,
    pub(super) look_again: Option<Moment>,
}

impl Row {
    /// This row, with its action and the reason for it.
    pub(super) fn says(self, action: Action, reason: impl Into<Cow<'static, str>>) -> Choice {
        Choice { row: self, action, reason: reason.into(), look_again: None }
    }

    /// This row, whose action is to wait.
    pub(super) fn waits(self, reason: impl Into<Cow<'static, str>>) -> Choice {
        self.says(Action::Wait, reason)
    }
}

impl Choice {
    /// The same, but look again at `at`, if that is earlier than otherwise.
    pub(super) fn until(mut self, at: Moment) -> Self {
        self.look_again = Some(self.look_again.map_or(at, |other| other.min(at)));
        self
    }

    /// The same, but look again `time` after `now`.
    pub(super) fn in_(self, time: Duration, now: Moment) -> Self {
        self.until(now + time)
    }
}
