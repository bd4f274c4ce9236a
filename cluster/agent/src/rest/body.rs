//! The bodies: status, cluster, metrics. Pure.

use std::fmt::Write as _;
use std::io;

use leaderpool::patroni::{Lsn, Member, MemberRole, Timeline};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::status::{Identity, NodeStatus, ReplicationRow, Synchronous, serialize_time, told_time};
use crate::dcs::BootTime;

/// JSON with a space behind commas and colons, as Patroni's clients have always got it: a health check
/// that looks for `"role": "primary"` in the text finds it.
#[must_use]
pub(super) fn spaced_json(value: &impl Serialize) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    value
        .serialize(&mut Serializer::with_formatter(&mut out, Spaced))
        .expect("these types have text keys and no failing serializers");
    out
}

struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }
}

#[derive(Serialize)]
struct StatusBody<'a> {
    state: &'a str,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "serialize_time")]
    postmaster_start_time: Option<OffsetDateTime>,
    role: MemberRole,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_version: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    xlog: Option<Xlog>,
    #[serde(skip_serializing_if = "is_false")]
    sync_standby: bool,
    #[serde(skip_serializing_if = "is_false")]
    quorum_standby: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeline: Option<Timeline>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replication_state: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    replication: &'a [ReplicationRow],
    #[serde(skip_serializing_if = "is_false")]
    pause: bool,
    #[serde(skip_serializing_if = "is_false")]
    cluster_unlocked: bool,
    #[serde(skip_serializing_if = "is_false")]
    failsafe_mode_is_active: bool,
    dcs_last_seen: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    tags: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    database_system_identifier: Option<String>,
    #[serde(skip_serializing_if = "is_false")]
    pending_restart: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pending_restart_reason: Option<&'a std::collections::BTreeMap<String, Value>>,
    patroni: &'a Identity,
    #[serde(skip_serializing_if = "Option::is_none")]
    scheduled_restart: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "is_false")]
    watchdog_failed: bool,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Xlog {
    Primary {
        location: Lsn,
    },
    Replica {
        received_location: Lsn,
        replayed_location: Lsn,
        #[serde(serialize_with = "serialize_time")]
        replayed_timestamp: Option<OffsetDateTime>,
        paused: bool,
    },
}

fn is_false(value: &bool) -> bool {
    !*value
}

/// The body of `/patroni`, and of every health path.
#[must_use]
pub fn status_body(status: &NodeStatus, now: BootTime) -> Vec<u8> {
    let sample = status.sample(now);
    let synchronous = status.synchronous_as(now);
    let mut tags: Map<String, Value> =
        status.tags.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    tags.retain(|_, value| !matches!(value, Value::Null | Value::Bool(false)));
    let mut scheduled_restart = status.scheduled_restart.clone();
    if let Some(restart) = &mut scheduled_restart {
        restart.remove("postmaster_start_time");
    }
    spaced_json(&StatusBody {
        state: status.told_state(now),
        postmaster_start_time: sample.map(|sample| sample.postmaster_start_time),
        role: status.told_role(now),
        server_version: sample.map(|sample| sample.server_version),
        xlog: sample.map(|sample| match sample.in_recovery {
            false => Xlog::Primary { location: sample.location.unwrap_or_default() },
            true => Xlog::Replica {
                received_location: sample.received.or(sample.replayed).unwrap_or_default(),
                replayed_location: sample.replayed.unwrap_or_default(),
                replayed_timestamp: sample.replayed_at,
                paused: sample.replay_paused,
            },
        }),
        sync_standby: synchronous == Synchronous::Standbys,
        quorum_standby: synchronous == Synchronous::Quorum,
        timeline: sample.and_then(|sample| sample.timeline),
        replication_state: sample
            .filter(|sample| sample.in_recovery)
            .and_then(|sample| sample.replication_state.as_deref()),
        replication: sample.map(|sample| sample.replication.as_slice()).unwrap_or_default(),
        pause: status.mode.paused,
        cluster_unlocked: status.is_unlocked(),
        failsafe_mode_is_active: status.failsafe_active,
        dcs_last_seen: status.dcs_last_seen,
        tags: (!tags.is_empty()).then_some(tags),
        database_system_identifier: status.system_id.map(|id| id.to_string()),
        pending_restart: status.pending_restart.is_some(),
        pending_restart_reason: status.pending_restart.as_ref().filter(|why| !why.is_empty()),
        patroni: &status.identity,
        scheduled_restart,
        watchdog_failed: status.watchdog_failed,
    })
}

#[derive(Serialize)]
struct ClusterBody<'a> {
    members: Vec<MemberBody<'a>>,
    #[serde(skip_serializing_if = "is_false")]
    pause: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    scheduled_switchover: Option<ScheduledSwitchover<'a>>,
    scope: &'a str,
}

#[derive(Serialize)]
struct ScheduledSwitchover<'a> {
    at: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<&'a str>,
}

#[derive(Serialize)]
struct MemberBody<'a> {
    name: &'a str,
    role: &'static str,
    state: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeline: Option<Timeline>,
    #[serde(flatten)]
    more: Map<String, Value>,
    #[serde(flatten)]
    lags: Option<Lags>,
}

#[derive(Serialize)]
struct Lags {
    receive_lag: Value,
    receive_lsn: String,
    replay_lag: Value,
    replay_lsn: String,
    lag: Value,
    lsn: String,
}

/// The body of `/cluster`.
#[must_use]
pub fn cluster_body(status: &NodeStatus) -> Vec<u8> {
    let empty = leaderpool::patroni::ClusterSnapshot::default();
    let cluster = status.snapshot().unwrap_or(&empty);
    let leader = cluster.leader.as_ref().map(|leader| leader.name.as_str());
    let position = cluster.status.as_ref().map(|status| status.optime).unwrap_or_default();
    let members = cluster.members.iter().map(|(name, member)| {
        let role = if Some(name.as_str()) == leader {
            if status.mode.standby_cluster { "standby_leader" } else { "leader" }
        } else if cluster
            .sync
            .as_ref()
            .is_some_and(|sync| sync.standbys().any(|standby| standby == name))
        {
            match status.mode.synchronous {
                Synchronous::Off => "replica",
                Synchronous::Standbys => "sync_standby",
                Synchronous::Quorum => "quorum_standby",
            }
        } else {
            "replica"
        };
        let address = member.address().ok();
        MemberBody {
            name,
            role,
            state: member.replication_state.as_deref().unwrap_or(&member.state.0),
            api_url: member.api_url.as_deref(),
            port: address.as_ref().map(|address| address.port),
            host: address.map(|address| address.host),
            timeline: member.timeline,
            more: more_of(member),
            lags: (Some(name.as_str()) != leader).then(|| lags_of(member, position)),
        }
    });
    let request = cluster.failover.as_ref();
    spaced_json(&ClusterBody {
        members: members.collect(),
        pause: status.mode.paused,
        scheduled_switchover: request.and_then(|request| {
            Some(ScheduledSwitchover {
                at: request.scheduled_at.as_deref()?,
                from: request.leader.as_deref(),
                to: request.member.as_deref(),
            })
        }),
        scope: &status.identity.scope,
    })
}

fn more_of(member: &Member) -> Map<String, Value> {
    let mut more = Map::new();
    for field in ["pending_restart", "pending_restart_reason", "scheduled_restart"] {
        if let Some(value) = member.other.get(field) {
            more.insert(field.to_owned(), value.clone());
        }
    }
    match serde_json::to_value(&member.tags) {
        Ok(Value::Object(tags)) if !tags.is_empty() => {
            more.insert("tags".to_owned(), Value::Object(tags));
        }
        _ => {}
    }
    more
}

fn lags_of(member: &Member, leader_at: Lsn) -> Lags {
    let lag = |at: Option<Lsn>| at.map_or(json!("unknown"), |at| json!(leader_at.bytes_since(at)));
    let lsn = |at: Option<Lsn>| at.map_or("unknown".to_owned(), |at| at.to_string());
    // Before 4.1 a member told the greater of the two only.
    let at = member.xlog_location;
    let (received, replayed) = (member.receive_lsn.or(at), member.replay_lsn.or(at));
    Lags {
        receive_lag: lag(received),
        receive_lsn: lsn(received),
        replay_lag: lag(replayed),
        replay_lsn: lsn(replayed),
        lag: lag(at),
        lsn: lsn(at),
    }
}

/// The states of PostgreSQL in the order of their numbers in `patroni_postgres_state`.
const STATES: [&str; 15] = [
    "initializing new cluster",
    "initdb failed",
    "running custom bootstrap script",
    "custom bootstrap failed",
    "creating replica",
    "running",
    "starting",
    "starting after custom bootstrap",
    "start failed",
    "restarting",
    "restart failed",
    "stopping",
    "stopped",
    "stop failed",
    "crashed",
];

/// The text of `/metrics`, under Patroni's names.
#[must_use]
pub fn metrics_text(status: &NodeStatus, now: BootTime) -> String {
    let sample = status.sample(now);
    let (standby, primary) =
        (sample.filter(|sample| sample.in_recovery), sample.filter(|sample| !sample.in_recovery));
    let role = status.told_role(now);
    let synchronous = status.synchronous_as(now);
    let lsn = |at: Option<Lsn>| at.unwrap_or_default().0.to_string();
    let flag = |is: bool| u8::from(is).to_string();
    let epoch = |at: Option<OffsetDateTime>| match at.map(|at| at.unix_timestamp_nanos() / 1000) {
        None => "0".to_owned(),
        Some(micros) => format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000),
    };
    let state_is = |wanted: &str| {
        flag(standby.is_some_and(|standby| standby.replication_state.as_deref() == Some(wanted)))
    };
    let number = STATES.iter().position(|state| *state == status.state.0);
    let received = standby.and_then(|standby| standby.received.or(standby.replayed));

    let mut text = Metrics { status, text: String::with_capacity(8192) };
    text.gauge(
        "version",
        "Version as six digits, two for each of its parts.",
        &version(&status.identity.version),
    );
    text.gauge("postgres_running", "1 if PostgreSQL runs.", &flag(sample.is_some()));
    let started = epoch(sample.map(|sample| sample.postmaster_start_time));
    text.gauge(
        "postmaster_start_time",
        "Seconds since 1970 at which PostgreSQL was started.",
        &started,
    );
    text.gauge("primary", "1 if this node is the primary.", &flag(role == MemberRole::Primary));
    text.counter(
        "xlog_location",
        "Position written, 0 on a replica.",
        &lsn(primary.and_then(|p| p.location)),
    );
    text.gauge(
        "standby_leader",
        "1 if this node leads a standby cluster.",
        &flag(role == MemberRole::StandbyLeader),
    );
    text.gauge("replica", "1 if this node is a replica.", &flag(role == MemberRole::Replica));
    text.gauge(
        "sync_standby",
        "1 if this node is a synchronous standby.",
        &flag(synchronous == Synchronous::Standbys),
    );
    text.gauge(
        "quorum_standby",
        "1 if this node is a standby of the quorum.",
        &flag(synchronous == Synchronous::Quorum),
    );
    text.counter("xlog_received_location", "Position received, 0 on a primary.", &lsn(received));
    text.counter(
        "xlog_replayed_location",
        "Position replayed, 0 on a primary.",
        &lsn(standby.and_then(|s| s.replayed)),
    );
    text.gauge(
        "xlog_replayed_timestamp",
        "Seconds since 1970 at which the last replayed transaction was committed, 0 if none is known.",
        &epoch(standby.and_then(|standby| standby.replayed_at)),
    );
    text.gauge(
        "xlog_paused",
        "1 if replay is paused.",
        &flag(standby.is_some_and(|s| s.replay_paused)),
    );
    if sample.is_some() {
        text.gauge(
            "postgres_streaming",
            "1 if PostgreSQL streams from another server.",
            &state_is("streaming"),
        );
        text.gauge(
            "postgres_in_archive_recovery",
            "1 if PostgreSQL replays from an archive.",
            &state_is("in archive recovery"),
        );
    }
    let server_version = sample.map_or(0, |sample| sample.server_version);
    text.gauge(
        "postgres_server_version",
        "Version of PostgreSQL, 0 if it does not run.",
        &server_version.to_string(),
    );
    text.gauge(
        "cluster_unlocked",
        "1 if nobody holds the leader key.",
        &flag(status.is_unlocked()),
    );
    text.gauge(
        "failsafe_mode_is_active",
        "1 if the failsafe mode is in use.",
        &flag(status.failsafe_active),
    );
    let timeline = sample.and_then(|sample| sample.timeline).unwrap_or_default();
    text.gauge(
        "postgres_timeline",
        "Timeline, 0 if PostgreSQL does not run.",
        &timeline.to_string(),
    );
    text.gauge(
        "dcs_last_seen",
        "Seconds since 1970 at which etcd answered last.",
        &status.dcs_last_seen.to_string(),
    );
    text.gauge(
        "pending_restart",
        "1 if PostgreSQL needs a restart.",
        &flag(status.pending_restart.is_some()),
    );
    text.gauge("is_paused", "1 if automatic failover is switched off.", &flag(status.mode.paused));
    if let Some(number) = number {
        let names: Vec<String> =
            STATES.iter().enumerate().map(|(number, state)| format!("{number}={state}")).collect();
        text.gauge(
            "postgres_state",
            &format!("State of PostgreSQL: {}.", names.join(", ")),
            &number.to_string(),
        );
    }
    text.text
}

/// `4.1.5` as `040105`; what is no number counts as 0.
fn version(text: &str) -> String {
    let mut parts = text.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (0..3).map(|_| format!("{:02}", parts.next().unwrap_or(0))).collect()
}

struct Metrics<'a> {
    status: &'a NodeStatus,
    text: String,
}

impl Metrics<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: &str) {
        self.line("gauge", name, help, value);
    }

    fn counter(&mut self, name: &str, help: &str, value: &str) {
        self.line("counter", name, help, value);
    }

    fn line(&mut self, kind: &str, name: &str, help: &str, value: &str) {
        let label =
            |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let (scope, node) = (label(&self.status.identity.scope), label(&self.status.identity.name));
        write!(
            self.text,
            "# HELP patroni_{name} {help}\n# TYPE patroni_{name} {kind}\n\
             patroni_{name}{{scope=\"{scope}\",name=\"{node}\"}} {value}\n"
        )
        .expect("a string takes everything");
    }
}

/// The start of the postmaster as a scheduled restart names it.
#[must_use]
pub fn postmaster_start_time(at: OffsetDateTime) -> String {
    told_time(at)
}
