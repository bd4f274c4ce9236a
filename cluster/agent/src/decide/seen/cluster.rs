//! What is seen of the cluster: its keys, and what the other members say.

use std::collections::BTreeMap;

use leaderpool::patroni::{FailoverRequest, Lsn, Member, MemberRole, SystemId, Tags, Timeline};

use crate::decide::moment::Moment;
use crate::decide::sync::SyncKey;

/// Whether etcd answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Etcd {
    /// It has never answered this process: nothing is known of the cluster.
    Unknown,
    /// It does: the keys are proven to be fresh, by a linearizable read or a watch that is.
    Answers,
    /// It does not, since then.
    Silent(Moment),
}

/// The key `initialize`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initialize {
    /// There is none: no cluster was ever made.
    Absent,
    /// A member is making the cluster.
    InProgress {
        /// Whether it is this one, in this process.
        mine: bool,
        /// Since when this agent has seen it.
        since: Moment,
        /// The revision of its last write.
        revision: i64,
    },
    /// The cluster's system identifier.
    Done(SystemId),
}

/// The key `leader`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leader {
    /// It is there.
    Held {
        /// The member it names.
        by: String,
        /// Whether it hangs on the lease of this process's session.
        attached: bool,
    },
    /// It is not.
    Absent {
        /// When that was first seen. Anew after each gap in the watch, even where it was absent before and
        /// after: somebody may have led meanwhile.
        since: Moment,
        /// Who held it last, where that is known, and no gap lies between.
        last: Option<String>,
        /// Whether a linearizable read, sent after that was seen, has confirmed it.
        verified: bool,
        /// Whether another member has held it since this one did.
        taken: bool,
        /// When the last leader's lease was first seen to be over: its member key is gone too, or says that it
        /// has stopped. `None` while it may be alive. When nobody is known to have led, when the key was first
        /// seen to be absent.
        over: Option<Moment>,
    },
}

/// The key `sync`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncSeen {
    /// Its value.
    pub key: SyncKey,
    /// The revision of its last write.
    pub revision: i64,
    /// Whether no write that was sent before can still arrive: the one that gave the key this revision was this
    /// process's, it was answered, and none was sent since. A process that has just begun does not know
    /// what the one before it sent.
    pub settled: bool,
}

/// When a request is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Now.
    Now,
    /// At a moment, past or to come.
    At(Moment),
    /// It gives a time that cannot be read.
    Unreadable,
}

/// The key `failover`, where it asks for something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailoverSeen {
    /// What it asks for.
    pub request: FailoverRequest,
    /// When.
    pub due: Due,
    /// When it was first seen here.
    pub since: Moment,
    /// The revision of its last write.
    pub revision: i64,
}

/// A member key.
#[derive(Debug, Clone, PartialEq)]
pub struct MemberSeen {
    /// Whether its server takes connections, as it says.
    pub running: bool,
    /// Whether it is making the cluster, as it says.
    pub initializing: bool,
    /// Its role.
    pub role: MemberRole,
    /// Its timeline.
    pub timeline: Option<Timeline>,
    /// Its position.
    pub lsn: Option<Lsn>,
    /// Its tags.
    pub tags: Tags,
    /// Whether it has made a checkpoint since it was promoted: before that nobody can be rewound from it.
    pub checkpointed: bool,
    /// Where its REST API is.
    pub api_url: Option<String>,
}

impl MemberSeen {
    /// The member that `member`, a key's value, describes.
    #[must_use]
    pub fn new(member: &Member) -> Self {
        let flag = |key: &str| member.other.get(key).and_then(serde_json::Value::as_bool);
        Self {
            running: member.state.is_running(),
            initializing: matches!(
                member.state.0.as_str(),
                "initializing new cluster" | "running custom bootstrap script"
            ),
            role: member.role.clone(),
            timeline: member.timeline,
            lsn: member.xlog_location.max(member.receive_lsn).max(member.replay_lsn),
            tags: member.tags.clone(),
            checkpointed: flag("checkpoint_after_promote") != Some(false),
            api_url: member.api_url.clone(),
        }
    }
}

/// The keys, as last seen.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// Whether there is a cluster.
    pub initialize: Initialize,
    /// Who leads.
    pub leader: Leader,
    /// The members, this one among them.
    pub members: BTreeMap<String, MemberSeen>,
    /// The leader's position when it last wrote it.
    pub optime: Option<Lsn>,
    /// Who may take over in synchronous mode.
    pub sync: Option<SyncSeen>,
    /// What was asked for.
    pub failover: Option<FailoverSeen>,
    /// The timeline that follows the last switch point of `history`; `None` where it has none.
    pub history: Option<Timeline>,
    /// The key `timeline`: the newest that anyone has claimed, made or not. Patroni has no such key.
    pub claimed: Option<Timeline>,
    /// The members that failsafe mode asks, with their REST APIs.
    pub failsafe: Option<BTreeMap<String, String>>,
}

/// What another member said when it was asked directly (`GET /patroni`).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Peer {
    /// When it was last asked.
    pub asked: Option<Moment>,
    /// When the last question that failed was asked. A member that refuses connections fails at once.
    pub failed: Option<Moment>,
    /// Its last answer.
    pub answer: Option<Answer>,
    /// When the first of an unbroken series of answers came that said that its server runs.
    pub running_since: Option<Moment>,
    /// When the first of an unbroken series of answers was asked for that said that it does not lead.
    pub denies_since: Option<Moment>,
}

/// One answer of `GET /patroni`.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// When the question was asked: what it says was true at that moment or later.
    pub asked: Moment,
    /// Whether its server takes connections.
    pub running: bool,
    /// Whether that is out of recovery.
    pub primary: bool,
    /// Whether it counts itself as the leader: see [`Seen::leads`](crate::decide::Seen::leads). Patroni does not say; there it is a running
    /// server out of recovery.
    pub leads: bool,
    /// Its timeline.
    pub timeline: Timeline,
    /// Its position: written, or the greater of received and replayed.
    pub lsn: Lsn,
    /// Why it would not become leader, as far as it says; a tag, or a watchdog that is required and failed.
    pub limitation: Option<String>,
}

impl MemberSeen {
    /// Whether it says that it has stopped for good. A leader of ours says so in the transaction that releases
    /// the key, Patroni soon after.
    #[must_use]
    pub fn has_stopped(&self) -> bool {
        !self.running && self.role != MemberRole::Primary
    }
}
