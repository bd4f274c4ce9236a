//! What a decision is made from.
//!
//! Everything here is an observation, or the memory of an action that was begun. `run/` keeps one [`Seen`]
//! and changes it as news comes in; nothing in it is ever guessed.

mod cluster;
mod server;

use std::collections::BTreeMap;
use std::time::Duration;

use leaderpool::patroni::{MemberRole, Tags, Timeline};

pub use cluster::{
    Answer, Cluster, Due, Etcd, FailoverSeen, Initialize, Leader, MemberSeen, Peer, SyncSeen,
};
pub use server::{
    Control, ControlState, Data, Doing, Handover, HandoverWhy, NamesInEffect, Postgres, Rewind,
    Server, StandbyRow, StopMode, Upstream, Watchdog, Work,
};

use super::moment::{LeaseClock, Moment};

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
