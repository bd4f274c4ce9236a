//! The dynamic configuration: what `/config` in etcd holds for all members.
//!
//! Reading it never fails: a cluster that runs must not stop over a slip in a shared value. What cannot be used is
//! reported, and its default holds.

mod slots;
mod timers;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value as Json;

pub use slots::{ClusterType, PermanentSlot, SlotFilter, SlotKind};
pub use timers::Timers;

use super::diagnostics::{Code, Diagnostic, Diagnostics, Origin, Severity};
use super::postgresql::{self, Place, ServerOptions};
use super::section::{At, Found, Reading, Section, Verdict};
use super::yaml::Node;

/// What `/config` says, with every default filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Dynamic {
    /// `ttl`, `loop_wait`, `retry_timeout`.
    pub timers: Timers,
    /// How far a member may lag, in bytes, and still become the leader. Default: 1 MiB.
    pub maximum_lag_on_failover: u64,
    /// How far a synchronous standby may lag, in bytes, before another takes its place. Default: any.
    pub maximum_lag_on_syncnode: Option<u64>,
    /// How many lines of the history are kept. Default: all.
    pub max_timelines_history: Option<u32>,
    /// How long a crashed primary may try to come back before another leads. Zero: not at all. Default: 300 s.
    pub primary_start_timeout: Duration,
    /// How long a stop may take before the postmaster is killed; in synchronous mode only. Default: any time.
    pub primary_stop_timeout: Option<Duration>,
    /// How long replicas wait with a race for the key while WAL still arrives. Default: not at all.
    pub primary_race_backoff: Duration,
    /// Whether commits wait for standbys.
    pub synchronous_mode: SynchronousMode,
    /// Whether commits wait even when there is no standby.
    pub synchronous_mode_strict: bool,
    /// How many standbys commits wait for. Default: 1.
    pub synchronous_node_count: u32,
    /// Whether a primary stays one while etcd is away and all members agree.
    pub failsafe_mode: bool,
    /// Whether a member on an older timeline than the history's may not lead.
    pub check_timeline: bool,
    /// How long the slot of a member that is gone is kept. Default: 1800 s.
    pub member_slots_ttl: Duration,
    /// Slots that are kept for good, by name.
    pub slots: BTreeMap<String, PermanentSlot>,
    /// Slots that are somebody else's.
    pub ignore_slots: Vec<SlotFilter>,
    /// Whether the agent leaves the server alone.
    pub pause: bool,
    /// Whether a standby cluster is asked for: one that follows another cluster. The agent does not lead such a
    /// cluster; a member of one must not be promoted.
    pub standby_cluster: bool,
    /// Settings of the server, for all members.
    pub postgresql: ServerOptions,
}

impl Default for Dynamic {
    fn default() -> Self {
        Self {
            timers: Timers::default(),
            maximum_lag_on_failover: 1 << 20,
            maximum_lag_on_syncnode: None,
            max_timelines_history: None,
            primary_start_timeout: Duration::from_secs(300),
            primary_stop_timeout: None,
            primary_race_backoff: Duration::ZERO,
            synchronous_mode: SynchronousMode::Off,
            synchronous_mode_strict: false,
            synchronous_node_count: 1,
            failsafe_mode: false,
            check_timeline: false,
            member_slots_ttl: Duration::from_secs(1800),
            slots: BTreeMap::new(),
            ignore_slots: Vec::new(),
            pause: false,
            standby_cluster: false,
            postgresql: ServerOptions::default(),
        }
    }
}

/// Whether commits wait for standbys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SynchronousMode {
    /// No.
    Off,
    /// For named ones, any of which may take over.
    On,
    /// For any so many of all.
    Quorum,
}

/// The keys of the dynamic configuration, but for `postgresql`.
pub(super) const KEYS: [&str; 23] = [
    "ttl",
    "loop_wait",
    "retry_timeout",
    "maximum_lag_on_failover",
    "maximum_lag_on_syncnode",
    "max_timelines_history",
    "primary_start_timeout",
    "master_start_timeout",
    "primary_stop_timeout",
    "master_stop_timeout",
    "primary_race_backoff",
    "synchronous_mode",
    "synchronous_mode_strict",
    "synchronous_node_count",
    "failsafe_mode",
    "check_timeline",
    "member_slots_ttl",
    "slots",
    "permanent_slots",
    "permanent_replication_slots",
    "ignore_slots",
    "pause",
    "standby_cluster",
];

impl Dynamic {
    /// What a parsed `/config` says.
    #[must_use]
    pub fn from_json(json: &Json) -> (Self, Diagnostics) {
        let origin = Origin::Dynamic;
        let node = Node::from_json(json, &origin);
        let mut reading = Reading::default();
        let at = At { path: String::new(), origin };
        let section = Section::new(Some(&node), at, &mut reading);
        let dynamic = read(section, &mut reading);
        reading.diagnostics.sort();
        (dynamic, reading.diagnostics)
    }

    /// What the bytes of `/config` say. Bytes that are no JSON are a finding, and every default holds.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> (Self, Diagnostics) {
        match serde_json::from_slice::<Json>(bytes) {
            Ok(json) => Self::from_json(&json),
            Err(error) => {
                let mut diagnostics = Diagnostics::default();
                let message = format!("not JSON: {error}");
                diagnostics.push(
                    Diagnostic::new(
                        Severity::Warning,
                        Code::WrongType,
                        &Origin::Dynamic,
                        "",
                        message,
                    )
                    .done("every default holds")
                    .help("write it anew with `leaderpoolctl edit-config`"),
                );
                (Self::default(), diagnostics)
            }
        }
    }
}

/// Reads `/config`, or `bootstrap.dcs`.
pub(super) fn read(section: Section<'_>, reading: &mut Reading) -> Dynamic {
    let mut section = section.with_pattern("dynamic");
    let default = Dynamic::default();
    let modes = [
        ("off", SynchronousMode::Off),
        ("on", SynchronousMode::On),
        ("quorum", SynchronousMode::Quorum),
    ];
    let synchronous_mode = section
        .find("synchronous_mode", reading)
        .and_then(|found| found.word(&modes, reading))
        .unwrap_or(default.synchronous_mode);
    let start = section.find_renamed("primary_start_timeout", &["master_start_timeout"], reading);
    let stop = section.find_renamed("primary_stop_timeout", &["master_stop_timeout"], reading);
    let seconds = |found: Option<Found<'_>>, reading: &mut Reading| {
        found.and_then(|found| found.seconds(0, reading))
    };
    let slots =
        section.find_renamed("slots", &["permanent_slots", "permanent_replication_slots"], reading);
    let dynamic = Dynamic {
        timers: timers::read(&mut section, reading),
        maximum_lag_on_failover: section
            .find("maximum_lag_on_failover", reading)
            .and_then(|found| found.bytes(0, reading))
            .unwrap_or(default.maximum_lag_on_failover),
        maximum_lag_on_syncnode: maximum_lag_on_syncnode(&mut section, reading),
        max_timelines_history: section
            .number("max_timelines_history", 0..=i64::from(u32::MAX), reading)
            .and_then(|count| u32::try_from(count).ok())
            .filter(|count| *count > 0),
        primary_start_timeout: seconds(start, reading).unwrap_or(default.primary_start_timeout),
        primary_stop_timeout: stop_timeout(stop, reading),
        primary_race_backoff: section
            .seconds("primary_race_backoff", 0, reading)
            .unwrap_or(default.primary_race_backoff),
        synchronous_mode,
        synchronous_mode_strict: flag("synchronous_mode_strict", &mut section, reading),
        synchronous_node_count: section
            .number("synchronous_node_count", 1..=i64::from(u32::MAX), reading)
            .and_then(|count| u32::try_from(count).ok())
            .unwrap_or(default.synchronous_node_count),
        failsafe_mode: flag("failsafe_mode", &mut section, reading),
        check_timeline: flag("check_timeline", &mut section, reading),
        member_slots_ttl: section
            .find("member_slots_ttl", reading)
            .and_then(|found| slots::ttl(&found, reading))
            .unwrap_or(default.member_slots_ttl),
        slots: slots.map(|found| slots::permanent(&found, reading)).unwrap_or_default(),
        ignore_slots: section
            .find("ignore_slots", reading)
            .map(|found| slots::filters(&found, reading))
            .unwrap_or_default(),
        pause: flag("pause", &mut section, reading),
        standby_cluster: standby_cluster(&mut section, reading),
        postgresql: {
            let inner = section.section("postgresql", reading);
            postgresql::options(inner, Place::Dynamic, reading)
        },
    };
    if dynamic.synchronous_mode_strict && dynamic.synchronous_mode == SynchronousMode::Off {
        let message = "`synchronous_mode` is off";
        reading.warning(
            Code::NoEffect,
            &section.place("synchronous_mode_strict"),
            message,
            "ignored",
        );
    }
    section.finish_with(reading, |key, _| {
        let local =
            ["name", "scope", "namespace", "log", "restapi", "ctl", "etcd", "etcd3", "tags"];
        if local.contains(&key) || key == "watchdog" || key == "bootstrap" {
            Verdict::Because {
                severity: Severity::Warning,
                code: Code::WrongPlace,
                message: "each member has its own".to_owned(),
                done: "it has no effect here".to_owned(),
                help: "move it to the top of each member's patroni.yml".to_owned(),
            }
        } else {
            Verdict::Unknown
        }
    });
    dynamic
}

fn flag(key: &'static str, section: &mut Section<'_>, reading: &mut Reading) -> bool {
    section.flag(key, reading).unwrap_or(false)
}

/// -1 and 0 are "any".
fn maximum_lag_on_syncnode(section: &mut Section<'_>, reading: &mut Reading) -> Option<u64> {
    let found = section.find("maximum_lag_on_syncnode", reading)?;
    if found.number_quietly().is_some_and(|number| number <= 0) {
        return None;
    }
    found.bytes(1, reading)
}

/// 0 and less are "any".
fn stop_timeout(found: Option<Found<'_>>, reading: &mut Reading) -> Option<Duration> {
    let found = found?;
    if found.number_quietly().is_some_and(|number| number <= 0) {
        return None;
    }
    found.seconds(1, reading)
}

fn standby_cluster(section: &mut Section<'_>, reading: &mut Reading) -> bool {
    let mut inner = section.section("standby_cluster", reading);
    let asked = ["host", "port", "restore_command"]
        .into_iter()
        .filter(|key| inner.text(key, reading).is_some())
        .count()
        > 0;
    if asked {
        let at = inner.at().clone();
        // In `bootstrap.dcs` it may be left from a cluster that has long been one of its own.
        let severity = match at.origin {
            Origin::Dynamic => Severity::Error,
            _ => Severity::Warning,
        };
        reading.push(
            Diagnostic::new(
                severity,
                Code::NotSupported,
                &at.origin,
                at.path,
                "a standby cluster follows another cluster; the agent does not lead one",
            )
            .done("a member with this configuration is not promoted")
            .help("keep Patroni for this cluster until it is promoted to one of its own"),
        );
    }
    asked
}
