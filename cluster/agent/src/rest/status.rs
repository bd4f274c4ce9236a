//! What the answers are made of.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use leaderpool::patroni::{ClusterSnapshot, Key, Lsn, MemberRole, MemberState, SystemId, Timeline};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::dcs::{BootTime, DcsView, Leadership};

/// All that the REST API tells of this node. The run loop writes it whenever something changed; what
/// changes by the clock alone (the lock, the age of what was sampled) is judged when a request comes.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeStatus {
    /// Who this is.
    pub identity: Identity,
    /// The state of PostgreSQL in Patroni's words: `running`, `stopped`, `starting`, …
    pub state: MemberState,
    /// The role as the agent sees it. While the server answers, its own word comes first.
    pub role: MemberRole,
    /// What the server said of itself last; `None` where it does not run or was not asked yet.
    pub server: Option<ServerSample>,
    /// Until when that may be told. Afterwards the state is `unknown`: an agent that has come to a stop
    /// must not go on recommending its server.
    pub sample_valid_until: BootTime,
    /// The system identifier of the data directory.
    pub system_id: Option<SystemId>,
    /// The tags in effect; those that are false may be left out.
    pub tags: BTreeMap<String, Value>,
    /// Parameters that wait for a restart, each with Patroni's `{"old_value", "new_value"}`; `None` where
    /// none is needed.
    pub pending_restart: Option<BTreeMap<String, Value>>,
    /// A restart to come, as `/patroni` shows it: `schedule`, and its conditions.
    pub scheduled_restart: Option<Map<String, Value>>,
    /// Whether the watchdog is wanted and does not work.
    pub watchdog_failed: bool,
    /// The cluster's keys; `None` where they have not been seen for a ttl.
    pub cluster: Option<Arc<ClusterFacts>>,
    /// When etcd answered last, in seconds since 1970.
    pub dcs_last_seen: i64,
    /// What the dynamic configuration says of the cluster as a whole.
    pub mode: ClusterMode,
    /// Whether this primary goes on without etcd by the word of its peers.
    pub failsafe_active: bool,
    /// `maximum_lag_on_failover`, in bytes: the lag that `/readiness` allows where none is named.
    pub maximum_lag: u64,
    /// The lease's ttl.
    pub ttl: Duration,
    /// How often the decision loop goes round on its own.
    pub loop_wait: Duration,
    /// When it goes round next.
    pub next_run: BootTime,
}

/// Who a node is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Identity {
    /// The version that is told. Others in the cluster read a version of Patroni in it (`4.1.5`).
    pub version: String,
    /// The cluster.
    pub scope: String,
    /// The member.
    pub name: String,
}

/// What the dynamic configuration says of the cluster as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClusterMode {
    /// Automatic failover is switched off (`pause`).
    pub paused: bool,
    /// The cluster replays from another (`standby_cluster`).
    pub standby_cluster: bool,
    /// The synchronous mode.
    pub synchronous: Synchronous,
    /// `failsafe_mode` is on.
    pub failsafe: bool,
}

/// The synchronous mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Synchronous {
    /// Commits wait for nobody.
    #[default]
    Off,
    /// Commits wait for named standbys.
    Standbys,
    /// Commits wait for any so many of several.
    Quorum,
}

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerSample {
    /// `pg_is_in_recovery()`.
    pub in_recovery: bool,
    /// When the postmaster was started.
    pub postmaster_start_time: OffsetDateTime,
    /// As a number: 150018.
    pub server_version: u32,
    /// The timeline: written to, or replayed.
    pub timeline: Option<Timeline>,
    /// Where a primary writes.
    pub location: Option<Lsn>,
    /// How far a standby has received.
    pub received: Option<Lsn>,
    /// How far a standby has replayed.
    pub replayed: Option<Lsn>,
    /// When the last transaction it replayed was committed.
    pub replayed_at: Option<OffsetDateTime>,
    /// Whether replaying is paused.
    pub replay_paused: bool,
    /// How far the sender said to be (`latest_end_lsn` of the walreceiver).
    pub latest_end: Option<Lsn>,
    /// `streaming` or `in archive recovery`; `None` for neither.
    pub replication_state: Option<String>,
    /// Who replicates from here.
    pub replication: Vec<ReplicationRow>,
}

/// A line of `pg_stat_replication`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReplicationRow {
    /// The role it logged in with.
    pub usename: String,
    /// The member's name.
    pub application_name: String,
    /// Where it comes from; none over a Unix socket.
    pub client_addr: Option<String>,
    /// `streaming`, `catchup`, …
    pub state: String,
    /// `async`, `sync`, `quorum` or `potential`.
    pub sync_state: String,
    /// Its place among the synchronous ones.
    pub sync_priority: i32,
}

/// The cluster's keys as far as they are told.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ClusterFacts {
    /// The keys, parsed.
    pub snapshot: Arc<ClusterSnapshot>,
    /// `config` as it stands.
    pub config: Option<Value>,
    /// `history` as it stands.
    pub history: Option<Value>,
    /// `failsafe`.
    pub failsafe: Option<BTreeMap<String, String>>,
}

impl From<&DcsView> for ClusterFacts {
    fn from(view: &DcsView) -> Self {
        let json =
            |key: Key| view.key(&key).and_then(|raw| serde_json::from_slice(&raw.value).ok());
        Self {
            snapshot: Arc::clone(&view.cluster),
            config: json(Key::Config),
            history: json(Key::History),
            failsafe: view.failsafe(),
        }
    }
}

/// When a request came, and what the lock was then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The time on the clock that leases are counted on.
    pub now: BootTime,
    /// How long this node may lead.
    pub lock: Leadership,
}

impl Moment {
    /// Whether the leader key is ours and its lease unexpired.
    #[must_use]
    pub fn holds_lock(&self) -> bool {
        self.now < self.lock.ends(Duration::ZERO)
    }
}

impl NodeStatus {
    /// A node of which nothing is known yet.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            state: MemberState("stopped".into()),
            role: MemberRole::Uninitialized,
            server: None,
            sample_valid_until: BootTime::ZERO,
            system_id: None,
            tags: BTreeMap::new(),
            pending_restart: None,
            scheduled_restart: None,
            watchdog_failed: false,
            cluster: None,
            dcs_last_seen: 0,
            mode: ClusterMode::default(),
            failsafe_active: false,
            maximum_lag: 1_048_576,
            ttl: Duration::from_secs(30),
            loop_wait: Duration::from_secs(10),
            next_run: BootTime::MAX,
        }
    }

    /// What the server says, where it is known to run and the word is fresh.
    #[must_use]
    pub fn sample(&self, now: BootTime) -> Option<&ServerSample> {
        let asks = matches!(self.state.0.as_str(), "running" | "restarting" | "starting");
        self.server.as_ref().filter(|_| asks && now < self.sample_valid_until)
    }

    /// The state to tell: `unknown` for a server that should run and has not answered of late.
    #[must_use]
    pub fn told_state(&self, now: BootTime) -> &str {
        match self.state.0.as_str() {
            "running" if self.sample(now).is_none() => "unknown",
            state => state,
        }
    }

    /// The role to tell: the server's own word first.
    #[must_use]
    pub fn told_role(&self, now: BootTime) -> MemberRole {
        match self.sample(now) {
            Some(sample) if !sample.in_recovery => MemberRole::Primary,
            Some(_) if self.mode.standby_cluster && self.role == MemberRole::StandbyLeader => {
                MemberRole::StandbyLeader
            }
            Some(_) => MemberRole::Replica,
            None => self.role.clone(),
        }
    }

    /// The cluster as its keys tell it.
    #[must_use]
    pub fn snapshot(&self) -> Option<&ClusterSnapshot> {
        self.cluster.as_deref().map(|facts| &*facts.snapshot)
    }

    /// Whether nobody holds the leader key, as far as is known.
    #[must_use]
    pub fn is_unlocked(&self) -> bool {
        self.snapshot().is_none_or(|cluster| cluster.leader.is_none())
    }

    /// Whether `/sync` lists this replica, and how: as `sync_standby`, or as one of a quorum.
    #[must_use]
    pub fn synchronous_as(&self, now: BootTime) -> Synchronous {
        let listed = || {
            let sync = self.snapshot()?.sync.as_ref()?;
            Some(sync.standbys().any(|name| name == self.identity.name))
        };
        match self.told_role(now) {
            MemberRole::Replica if listed() == Some(true) && self.sample(now).is_some() => {
                self.mode.synchronous
            }
            _ => Synchronous::Off,
        }
    }

    /// Whether the tag is set and true.
    #[must_use]
    pub fn has_tag(&self, name: &str) -> bool {
        match self.tags.get(name) {
            Some(Value::Bool(value)) => *value,
            Some(Value::String(text)) => {
                matches!(text.to_ascii_lowercase().as_str(), "true" | "yes" | "on" | "1")
            }
            _ => false,
        }
    }
}

/// A moment as Patroni writes it: `2026-11-23 13:08:48.479232+00:00`.
pub(super) fn told_time(moment: OffsetDateTime) -> String {
    let format = format_description!(
        "[year]-[month]-[day] [hour]:[minute]:[second].[subsecond digits:6][offset_hour sign:mandatory]:[offset_minute]"
    );
    moment.format(&format).expect("these fields are there")
}

pub(super) fn serialize_time<S: Serializer>(
    moment: &Option<OffsetDateTime>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match moment {
        Some(moment) => serializer.serialize_str(&told_time(*moment)),
        None => serializer.serialize_none(),
    }
}
