//! What a decision is made from.
//!
//! Everything here is an observation, or the memory of an action that was begun. `run/` keeps one [`Seen`]
//! and changes it as news comes in; nothing in it is ever guessed.

use std::collections::BTreeMap;
use std::time::Duration;

use leaderpool::patroni::{FailoverRequest, Lsn, Member, MemberRole, SystemId, Tags, Timeline};

use super::moment::{LeaseClock, Moment};
use super::sync::{SyncKey, SyncNames};

/// The cluster, the peers and the own PostgreSQL, as this agent sees them.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// Who this agent is.
    pub me: Me,
    /// The configuration, as far as decisions need it.
    pub rules: Rules,
    /// Whether etcd answers.
    pub etcd: Etcd,
    /// The keys, as last seen.
    pub cluster: Cluster,
    /// What the other members said when they were asked directly.
    pub peers: BTreeMap<String, Peer>,
    /// The own server.
    pub postgres: Postgres,
    /// The lease of this agent's session; `None` while there is none.
    pub session: Option<LeaseClock>,
    /// The clock of the lease that the leader key hangs on, while that is ours. When the key or this lease is
    /// seen to be gone it stays as it is, and renewals do not count for it any more; it is cleared once the
    /// server cannot write.
    pub reign: Option<LeaseClock>,
    /// What is remembered of failsafe mode.
    pub failsafe: Failsafe,
    /// The watchdog device.
    pub watchdog: Watchdog,
    /// A piece of work on the own server that was begun and has not ended.
    pub doing: Option<Doing>,
    /// A handing over of the leader key that was begun. Cleared when the key was released or lost, and
    /// when the server is started as a primary again.
    pub handover: Option<Handover>,
    /// The timeline that this agent has claimed since it took the leader key.
    pub claimed: Option<Timeline>,
    /// When the position was last written to `status`.
    pub status_written: Option<Moment>,
    /// Since when the agent has been asked to stop.
    pub stopping: Option<Moment>,
}

/// Who this agent is.
#[derive(Debug, Clone, PartialEq)]
pub struct Me {
    /// The member's name.
    pub name: String,
    /// Its tags.
    pub tags: Tags,
    /// When this process was started.
    pub started: Moment,
    /// Whether the member may make a cluster: it has a `bootstrap` section.
    pub may_bootstrap: bool,
    /// Whether it can make a replica without a leader, from a backup.
    pub replica_without_leader: bool,
}

/// Whether commits wait for standbys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SyncMode {
    /// They do not.
    #[default]
    Off,
    /// They wait for every standby in `sync`; any of those may take over.
    On,
    /// They wait for some of the standbys in `sync`; who takes over needs votes.
    Quorum,
}

/// The dynamic configuration, as far as decisions need it. Defaults are Patroni's.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// For how long leases are asked for. Default 30 s.
    pub ttl: Duration,
    /// How often an idle agent looks again at the latest. Default 10 s.
    pub loop_wait: Duration,
    /// By how many bytes a candidate may lag behind the position in `status`. Default 1 MiB.
    pub maximum_lag_on_failover: u64,
    /// By how many bytes a synchronous standby may lag; `None` for any. Default any.
    pub maximum_lag_on_syncnode: Option<u64>,
    /// Whether commits wait for standbys. Default off.
    pub synchronous_mode: SyncMode,
    /// Whether commits wait even where there is no standby. Default no.
    pub synchronous_mode_strict: bool,
    /// For how many standbys they wait. Default 1.
    pub synchronous_node_count: usize,
    /// Whether a primary goes on without etcd while all members agree. Default no.
    pub failsafe_mode: bool,
    /// Whether a replica must be on the history's timeline to become leader. Default no.
    pub check_timeline: bool,
    /// Whether the agents are paused. Default no.
    pub pause: bool,
    /// How long a primary may take to start before another takes over. Default 300 s.
    pub primary_start_timeout: Duration,
    /// How long a primary may take to stop before it is stopped hard; `None` for twice the `ttl`.
    pub primary_stop_timeout: Option<Duration>,
    /// Whether the cluster is a standby of another one. Default no.
    pub standby_cluster: bool,
    /// Whether diverged data are rewound. Default no.
    pub use_pg_rewind: bool,
    /// Whether the data are thrown away where rewinding them failed. Default no.
    pub remove_data_on_rewind_failure: bool,
    /// Whether diverged data are thrown away where they cannot be rewound. Default no.
    pub remove_data_on_divergence: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(30),
            loop_wait: Duration::from_secs(10),
            maximum_lag_on_failover: 1 << 20,
            maximum_lag_on_syncnode: None,
            synchronous_mode: SyncMode::Off,
            synchronous_mode_strict: false,
            synchronous_node_count: 1,
            failsafe_mode: false,
            check_timeline: false,
            pause: false,
            primary_start_timeout: Duration::from_secs(300),
            primary_stop_timeout: None,
            standby_cluster: false,
            use_pg_rewind: false,
            remove_data_on_rewind_failure: false,
            remove_data_on_divergence: false,
        }
    }
}

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
    /// Whether it counts itself as the leader: see [`Seen::leads`]. Patroni does not say; there it is a running
    /// server out of recovery.
    pub leads: bool,
    /// Its timeline.
    pub timeline: Timeline,
    /// Its position: written, or the greater of received and replayed.
    pub lsn: Lsn,
    /// Why it would not become leader, as far as it says; a tag, or a watchdog that is required and failed.
    pub limitation: Option<String>,
}

/// What is in the data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// Nothing, or nothing that can be used.
    Empty,
    /// A cluster with this system identifier.
    Present(SystemId),
}

/// How a server is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StopMode {
    /// Sessions are ended, a checkpoint is made, the standbys get everything.
    Fast,
    /// It is dropped as it stands, and recovers from its WAL at the next start.
    Immediate,
    /// SIGKILL, to the postmaster and to every process of it.
    Kill,
}

/// Where a standby gets its WAL from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// From nowhere.
    Nobody,
    /// From a member.
    Member(String),
    /// From the cluster that this one is a standby of.
    Remote,
}

/// The state of the own server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// No process.
    Down {
        /// Since when.
        since: Moment,
        /// Whether the last attempt to start it failed.
        start_failed: bool,
    },
    /// It does not take connections yet.
    Starting {
        /// Since when.
        since: Moment,
        /// Whether it will take writes when it does.
        as_primary: bool,
    },
    /// It takes writes.
    Primary {
        /// Its timeline.
        timeline: Timeline,
        /// What it has written.
        written: Lsn,
    },
    /// It replays.
    Standby {
        /// The timeline that it receives, or replays.
        timeline: Timeline,
        /// The greater of what it has received and replayed.
        received: Lsn,
        /// Where it is told to get its WAL from.
        upstream: Upstream,
        /// When its WAL receiver was last seen not to stream, where it does not.
        stream_lost: Option<Moment>,
    },
    /// It was told to stop and has not ended yet.
    Stopping {
        /// Since when.
        since: Moment,
        /// How, at the last.
        mode: StopMode,
        /// Whether it took writes before.
        was_primary: bool,
    },
}

/// The state in the control file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlState {
    /// A primary that runs, or has crashed.
    InProduction,
    /// A primary that was shut down in order: nothing is written any more, whatever still runs.
    ShutDown,
    /// A standby that runs, or has crashed.
    InRecovery,
    /// A standby that was shut down in order.
    ShutDownInRecovery,
}

/// The control file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Control {
    /// The state.
    pub state: ControlState,
    /// The timeline of the last checkpoint.
    pub timeline: Timeline,
    /// The position of the last checkpoint: of the one at shutdown, after a shutdown.
    pub checkpoint: Lsn,
    /// Whether the data are a base backup that was never started.
    pub backup_label: bool,
}

/// Whether the data can follow the present leader on its present timeline. Back to
/// [`Unknown`](Rewind::Unknown) when either changes, and when the own server has taken writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rewind {
    /// Nobody has looked.
    Unknown,
    /// They can.
    NotNeeded,
    /// They go beyond the point where the leader's timeline began.
    Needed,
    /// They do, and rewinding them failed, for this reason.
    Failed(String),
}

/// The own server and its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Postgres {
    /// The data directory.
    pub data: Data,
    /// The server.
    pub server: Server,
    /// The control file, where it was read since the server ended or began to stop.
    pub control: Option<Control>,
    /// Whether the data can follow the leader.
    pub rewind: Rewind,
    /// When that was last looked at, or rewinding was last tried.
    pub rewind_tried: Option<Moment>,
    /// How often the server ended without having been told to, since it last ran for
    /// `primary_start_timeout`.
    pub crashes: u32,
    /// When a promotion last failed.
    pub promote_failed: Option<Moment>,
    /// The standbys that are connected, where it is a primary; the last ones, where it just ended.
    pub standbys: Vec<StandbyRow>,
    /// What it is told to wait for at commit.
    pub names: NamesInEffect,
}

/// A row of `pg_stat_replication`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandbyRow {
    /// The member (`application_name`).
    pub name: String,
    /// Whether its state is `streaming`.
    pub streaming: bool,
    /// Whether PostgreSQL counts it among those that commits wait for (`sync_state` is `sync` or `quorum`).
    pub counted: bool,
    /// What it has flushed.
    pub flushed: Lsn,
}

/// `synchronous_standby_names`, as it is in effect.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NamesInEffect {
    /// The value.
    pub names: SyncNames,
    /// The value in the configuration file, where it is another: it was set, and is not in effect yet.
    pub set: Option<SyncNames>,
    /// What the primary had flushed when the value was first seen to be in effect; `None` before that, and
    /// again after each start.
    pub since: Option<Lsn>,
}

/// The watchdog device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Watchdog {
    /// None is configured.
    #[default]
    Off,
    /// It works, or it is not required to.
    Ready,
    /// It is required and does not work.
    Missing,
}

/// What is remembered of failsafe mode.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Failsafe {
    /// As the primary: when the last round of questions was sent that every member accepted.
    pub accepted: Option<Moment>,
    /// As the primary: when the last round was sent.
    pub asked: Option<Moment>,
    /// As a member: the primary that asked, and when this member last accepted.
    pub promised: Option<(String, Moment)>,
}

/// A kind of work on the own server that takes its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A cluster is being made.
    Bootstrap,
    /// The data are being copied from elsewhere.
    Clone,
    /// The server is being promoted. A process that begins anew must know of it: it is noted beside the data
    /// before it is ordered, for an order that was given is carried out, whoever has died meanwhile.
    Promote,
    /// The server is being restarted, as an operator asked.
    Restart,
    /// It is being found out whether the data can follow the leader.
    CheckRewind,
    /// The data are being rewound.
    Rewind,
    /// The server recovers alone, so that its data can be rewound.
    CrashRecover,
}

/// A piece of work that was begun and has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doing {
    /// Which.
    pub work: Work,
    /// Since when.
    pub since: Moment,
}

/// Why the leader key is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandoverWhy {
    /// An operator asked for another leader: nothing may be lost, else it is called off.
    Switchover,
    /// The agent stops.
    Shutdown,
    /// The server does not come up, or does not run well.
    GiveUp,
}

/// A handing over of the leader key that was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handover {
    /// To whom; `None` where nobody is fit.
    pub to: Option<String>,
    /// Why.
    pub why: HandoverWhy,
    /// Since when.
    pub since: Moment,
}

impl MemberSeen {
    /// Whether it says that it has stopped for good. A leader of ours says so in the transaction that releases
    /// the key, Patroni soon after.
    #[must_use]
    pub fn has_stopped(&self) -> bool {
        !self.running && self.role != MemberRole::Primary
    }
}

impl Seen {
    /// Whether this member may take writes, now or without a further word from etcd: its server could, or it
    /// counts on a lease that carries the leader key.
    ///
    /// The answer to a peer that sees no leader key. Who says no here will not write before it has won
    /// the key anew.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.could_write() || self.reign.is_some()
    }

    /// The role that the member key and the REST API give. A leader whose server is being restarted stays a
    /// primary; one that has stopped for good is demoted.
    #[must_use]
    pub fn role(&self) -> MemberRole {
        if self.postgres.data == Data::Empty {
            return MemberRole::Uninitialized;
        }
        match self.postgres.server {
            Server::Primary { .. } => MemberRole::Primary,
            Server::Standby { .. } if self.rules.standby_cluster && self.holds_key() => {
                MemberRole::StandbyLeader
            }
            Server::Standby { .. } => MemberRole::Replica,
            Server::Starting { as_primary: false, .. } => MemberRole::Replica,
            Server::Starting { .. } | Server::Stopping { .. } | Server::Down { .. } => {
                if self.leads() { MemberRole::Primary } else { MemberRole::Demoted }
            }
        }
    }

    /// Whether the leader key names this member.
    pub(super) fn holds_key(&self) -> bool {
        matches!(&self.cluster.leader, Leader::Held { by, .. } if *by == self.me.name)
    }

    /// The other member that the leader key names.
    pub(super) fn other_leader(&self) -> Option<&str> {
        match &self.cluster.leader {
            Leader::Held { by, .. } if *by != self.me.name => Some(by),
            Leader::Held { .. } | Leader::Absent { .. } => None,
        }
    }

    /// Whether the server takes writes, or may do so without being told anything further.
    pub(super) fn could_write(&self) -> bool {
        let shut_down =
            self.postgres.control.is_some_and(|control| control.state == ControlState::ShutDown);
        match self.postgres.server {
            Server::Primary { .. } => true,
            Server::Starting { as_primary, .. } => as_primary,
            Server::Stopping { was_primary, .. } => was_primary && !shut_down,
            Server::Standby { .. } => self.is_doing(Work::Promote),
            Server::Down { .. } => false,
        }
    }

    pub(super) fn is_doing(&self, work: Work) -> bool {
        self.doing.is_some_and(|doing| doing.work == work)
    }

    /// Whether the data are those of a server that was last a primary.
    pub(super) fn was_primary(&self) -> bool {
        self.postgres.control.is_some_and(|control| {
            matches!(control.state, ControlState::InProduction | ControlState::ShutDown)
                && !control.backup_label
        })
    }

    /// The newest timeline that anyone is known to be on, or to have claimed. Whether a claimed one was made,
    /// and had commits, nobody may know.
    pub(super) fn newest_timeline(&self) -> Timeline {
        let members = self.cluster.members.iter().filter(|(name, _)| **name != self.me.name);
        let members = members.filter_map(|(_, member)| member.timeline);
        let answers = self.peers.values().filter_map(|peer| peer.answer.as_ref());
        let answers = answers.filter(|answer| answer.running).map(|answer| answer.timeline);
        let keys = self.cluster.history.into_iter().chain(self.cluster.claimed);
        keys.chain(members).chain(answers).max().unwrap_or_default()
    }

    /// The members other than this one.
    pub(super) fn others(&self) -> impl Iterator<Item = (&str, &MemberSeen)> {
        let members = self.cluster.members.iter().map(|(name, member)| (name.as_str(), member));
        members.filter(|(name, _)| *name != self.me.name)
    }
}
