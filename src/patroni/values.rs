//! The JSON values of the keys.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::address::ServerAddress;
use super::lsn::{Lsn, Timeline};

/// Why a key's value could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ValueError {
    /// The bytes are not UTF-8.
    #[error("the value is not UTF-8 text")]
    NotText,
    /// The text is not the JSON that this key holds.
    #[error("the value is not the expected JSON: {0}")]
    NotJson(String),
    /// A member's `conn_url` names no server.
    #[error("conn_url {url:?} names no PostgreSQL server: {why}")]
    BadConnUrl {
        /// The URL with its password, if it had one, left out.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// `initialize` holds something other than a number.
    #[error("the system identifier is not a number: {0:?}")]
    BadSystemId(String),
    /// The leader key names nobody.
    #[error("the leader key is empty")]
    EmptyLeader,
}

impl From<serde_json::Error> for ValueError {
    fn from(error: serde_json::Error) -> Self {
        ValueError::NotJson(error.to_string())
    }
}

/// What a member does, as it says itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MemberRole {
    /// Accepts writes. Patroni 3 says `master`.
    #[serde(alias = "master", alias = "promoted", alias = "leader")]
    Primary,
    /// Leads a standby cluster: holds the key, but replays from elsewhere.
    StandbyLeader,
    /// Replays from the primary. `/cluster` also says `sync_standby` and `quorum_standby`.
    #[serde(alias = "sync_standby", alias = "quorum_standby")]
    Replica,
    /// Was the primary and is being stopped.
    Demoted,
    /// Has no data directory yet.
    Uninitialized,
    /// A role this version does not know.
    #[serde(untagged)]
    Other(String),
}

impl fmt::Display for MemberRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MemberRole::Primary => "primary",
            MemberRole::StandbyLeader => "standby_leader",
            MemberRole::Replica => "replica",
            MemberRole::Demoted => "demoted",
            MemberRole::Uninitialized => "uninitialized",
            MemberRole::Other(text) => text,
        })
    }
}

/// The state of a member's PostgreSQL, in Patroni's own words (`running`, `stopped`, `crashed`, …).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberState(pub String);

impl MemberState {
    /// Whether the server takes connections. `/cluster` says `streaming` or `in archive recovery` for a
    /// running replica, where the member key says `running`.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.0.as_str(), "running" | "streaming" | "in archive recovery")
    }

    /// Whether its agent has begun to stop the server.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.0 == "stopping"
    }
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A member's tags. Patroni leaves a tag out where it is false.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Tags {
    /// Whether reads must not be sent here.
    #[serde(default, deserialize_with = "lenient_bool", skip_serializing_if = "is_false")]
    pub noloadbalance: bool,
    /// Whether the member never becomes leader.
    #[serde(default, deserialize_with = "lenient_bool", skip_serializing_if = "is_false")]
    pub nofailover: bool,
    /// Whether the member is never a synchronous standby.
    #[serde(default, deserialize_with = "lenient_bool", skip_serializing_if = "is_false")]
    pub nosync: bool,
    /// Whether new replicas prefer to copy from here.
    #[serde(default, deserialize_with = "lenient_bool", skip_serializing_if = "is_false")]
    pub clonefrom: bool,
    /// Every other tag, the user's own among them.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

fn is_false(value: &bool) -> bool {
    !*value
}

/// YAML users write `yes`, `"true"` and `1`; all of them mean true.
fn lenient_bool<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Bool(value) => value,
        Value::String(text) => {
            matches!(text.to_ascii_lowercase().as_str(), "true" | "yes" | "on" | "1")
        }
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    })
}

/// The value of `members/NAME`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// Where to reach PostgreSQL: `postgres://host:port/postgres`.
    pub conn_url: String,
    /// Where to reach the member's REST API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_url: Option<String>,
    /// Where to reach PostgreSQL through a proxy of the member's own, a pooler for example.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_url: Option<String>,
    /// The state of its PostgreSQL.
    #[serde(default = "unknown_state")]
    pub state: MemberState,
    /// Its role, as old as its last write of this key.
    #[serde(default = "unknown_role")]
    pub role: MemberRole,
    /// The version of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The position written (primary) or the greater of received and replayed (replica).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xlog_location: Option<Lsn>,
    /// The position replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_lsn: Option<Lsn>,
    /// The position received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive_lsn: Option<Lsn>,
    /// `streaming` or `in archive recovery`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication_state: Option<String>,
    /// The member's timeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<Timeline>,
    /// Its tags.
    #[serde(default, skip_serializing_if = "tags_are_empty")]
    pub tags: Tags,
    /// Every field this version does not know.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

fn tags_are_empty(tags: &Tags) -> bool {
    *tags == Tags::default()
}

fn unknown_state() -> MemberState {
    MemberState("unknown".into())
}

fn unknown_role() -> MemberRole {
    MemberRole::Other("unknown".into())
}

impl Member {
    /// Reads the value of a member key.
    ///
    /// # Errors
    /// Where the bytes are not text, not JSON, or without a `conn_url`.
    pub fn parse(value: &[u8]) -> Result<Self, ValueError> {
        let text = text_of(value)?;
        if text.starts_with("postgres") {
            // The plain form of Patroni before 1.0: URLs only, nothing else known.
            let mut urls = text.split_ascii_whitespace();
            let conn_url = urls.next().unwrap_or_default().to_owned();
            return Ok(Self::with_conn_url(conn_url));
        }
        Ok(serde_json::from_str(text)?)
    }

    /// Where its PostgreSQL listens.
    ///
    /// # Errors
    /// Where `conn_url` is not a `postgres://` URL with a host.
    pub fn address(&self) -> Result<ServerAddress, ValueError> {
        ServerAddress::from_conn_url(&self.conn_url)
    }

    /// A member of which only the address is known.
    #[must_use]
    pub fn at(address: &ServerAddress) -> Self {
        Self::with_conn_url(address.to_conn_url())
    }

    fn with_conn_url(conn_url: String) -> Self {
        Self {
            conn_url,
            api_url: None,
            proxy_url: None,
            state: unknown_state(),
            role: unknown_role(),
            version: None,
            xlog_location: None,
            replay_lsn: None,
            receive_lsn: None,
            replication_state: None,
            timeline: None,
            tags: Tags::default(),
            other: BTreeMap::new(),
        }
    }
}

/// The dynamic configuration in `config`, as far as a client needs it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DynamicConfig {
    /// How long the leader's lease lasts without renewal, in seconds. Default 30.
    #[serde(deserialize_with = "lenient_seconds")]
    pub ttl: u64,
    /// How often an idle agent wakes up, in seconds. Default 10.
    #[serde(deserialize_with = "lenient_seconds")]
    pub loop_wait: u64,
    /// How long an agent retries etcd and PostgreSQL, in seconds. Default 10.
    #[serde(deserialize_with = "lenient_seconds")]
    pub retry_timeout: u64,
    /// Every other field.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl Default for DynamicConfig {
    fn default() -> Self {
        Self { ttl: 30, loop_wait: 10, retry_timeout: 10, other: BTreeMap::new() }
    }
}

impl DynamicConfig {
    /// Reads the value of `config`.
    ///
    /// # Errors
    /// Where the bytes are not a JSON object.
    pub fn parse(value: &[u8]) -> Result<Self, ValueError> {
        Ok(serde_json::from_str(text_of(value)?)?)
    }

    /// The lease's length.
    #[must_use]
    pub fn lease(&self) -> Duration {
        Duration::from_secs(self.ttl)
    }

    /// Whether commits wait for a standby: `synchronous_mode` is `true`, `on` or `quorum`.
    #[must_use]
    pub fn is_synchronous(&self) -> bool {
        match self.other.get("synchronous_mode") {
            Some(Value::Bool(value)) => *value,
            Some(Value::String(text)) => {
                matches!(text.to_ascii_lowercase().as_str(), "true" | "on" | "yes" | "quorum")
            }
            _ => false,
        }
    }
}

/// Seconds as Patroni takes them: a number, or a number in quotes.
fn lenient_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let seconds = match &value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().trim_end_matches('s').parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    match seconds {
        // Beyond a day it is a typing error, and as a duration it would only overflow sums.
        Some(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(seconds as u64),
        _ => Err(serde::de::Error::custom(format!("not a number of seconds: {value}"))),
    }
}

/// The value of `status`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Status {
    /// The leader's WAL position when it last wrote this key: as old as `loop_wait`.
    #[serde(default)]
    pub optime: Lsn,
    /// Confirmed positions of the permanent and member slots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<BTreeMap<String, Lsn>>,
    /// Members whose slots are kept while they are away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain_slots: Option<Vec<String>>,
}

impl Status {
    /// Reads the value of `status`, or of `optime/leader`, which is the bare number.
    ///
    /// # Errors
    /// Where the bytes are neither.
    pub fn parse(value: &[u8]) -> Result<Self, ValueError> {
        let text = text_of(value)?.trim();
        match text.parse::<u64>() {
            Ok(number) => Ok(Self { optime: Lsn(number), ..Self::default() }),
            Err(_) => Ok(serde_json::from_str(text)?),
        }
    }
}

/// The value of `sync`: who may take over without losing an acknowledged commit.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SyncState {
    /// The leader that wrote it.
    #[serde(default)]
    pub leader: Option<String>,
    /// How many standbys must answer in quorum mode.
    #[serde(default)]
    pub quorum: u32,
    /// The standbys, separated by commas.
    #[serde(default)]
    pub sync_standby: Option<String>,
}

impl SyncState {
    /// Reads the value of `sync`.
    ///
    /// # Errors
    /// Where the bytes are not a JSON object.
    pub fn parse(value: &[u8]) -> Result<Self, ValueError> {
        Ok(serde_json::from_str(text_of(value)?)?)
    }

    /// The standbys, one by one.
    pub fn standbys(&self) -> impl Iterator<Item = &str> {
        self.sync_standby
            .as_deref()
            .unwrap_or_default()
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
    }
}

/// One line of `history`: timeline `timeline` ended at `switch_lsn`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HistoryLine {
    /// The timeline that ended.
    pub timeline: Timeline,
    /// Where it ended.
    pub switch_lsn: Lsn,
    /// PostgreSQL's words for why.
    pub reason: String,
    /// When, in ISO 8601, where it was written down.
    pub at: Option<String>,
    /// Who led the next timeline, where it was written down.
    pub new_leader: Option<String>,
}

/// Reads the value of `history`. Lines that make no sense are left out.
///
/// # Errors
/// Where the bytes are not a JSON array.
pub fn parse_history(value: &[u8]) -> Result<Vec<HistoryLine>, ValueError> {
    let lines: Vec<Value> = serde_json::from_str(text_of(value)?)?;
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    Ok(lines
        .iter()
        .filter_map(|line| {
            let line = line.as_array()?;
            Some(HistoryLine {
                timeline: Timeline(u32::try_from(line.first()?.as_u64()?).ok()?),
                switch_lsn: Lsn(line.get(1)?.as_u64()?),
                reason: text(line.get(2)).unwrap_or_default(),
                at: text(line.get(3)),
                new_leader: text(line.get(4)),
            })
        })
        .collect())
}

/// Writes the value of `history`, as Patroni does: arrays of three to five elements.
#[must_use]
pub fn write_history(lines: &[HistoryLine]) -> String {
    let lines = lines.iter().map(|line| {
        let mut fields =
            vec![line.timeline.0.into(), line.switch_lsn.0.into(), line.reason.as_str().into()];
        // The leader's place is behind the time's.
        if line.at.is_some() || line.new_leader.is_some() {
            fields.push(line.at.clone().unwrap_or_default().into());
        }
        fields.extend(line.new_leader.clone().map(Value::String));
        Value::Array(fields)
    });
    Value::Array(lines.collect()).to_string()
}

/// Reads a timeline history file of PostgreSQL: lines of timeline, switch point and reason, separated by
/// tabs; `#` begins a comment. `None` where a line makes no sense.
#[must_use]
pub fn parse_history_file(text: &str) -> Option<Vec<HistoryLine>> {
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
        .map(|line| {
            let mut fields = line.splitn(3, '\t');
            Some(HistoryLine {
                timeline: Timeline(fields.next()?.trim().parse().ok()?),
                switch_lsn: fields.next()?.trim().parse().ok()?,
                reason: fields.next().unwrap_or_default().trim().to_owned(),
                at: None,
                new_leader: None,
            })
        })
        .collect()
}

pub(super) fn text_of(value: &[u8]) -> Result<&str, ValueError> {
    std::str::from_utf8(value).map_err(|_| ValueError::NotText)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Captured from a cluster of Patroni 4.1.5.
    const REPLICA: &str = r#"{"conn_url":"postgres://127.0.0.1:5433/postgres","api_url":"http://127.0.0.1:8009/patroni","state":"running","role":"replica","version":"4.1.5","xlog_location":67108960,"replay_lsn":67108960,"receive_lsn":67108960,"replication_state":"streaming","timeline":1}"#;

    #[test]
    fn a_member_key_reads_and_writes_back_unchanged() {
        let member = Member::parse(REPLICA.as_bytes()).expect("reads");
        assert_eq!(member.role, MemberRole::Replica);
        assert_eq!(member.replay_lsn, Some(Lsn(67_108_960)));
        assert_eq!(member.address().expect("address").to_string(), "127.0.0.1:5433");
        let back: Value = serde_json::to_value(&member).expect("writes");
        assert_eq!(back, serde_json::from_str::<Value>(REPLICA).expect("json"));
    }

    #[test]
    fn unknown_fields_and_tags_are_kept() {
        let text = r#"{"conn_url":"postgres://a/b","role":"master","state":"running","tags":{"noloadbalance":"yes","zone":"b"},"pending_restart":true}"#;
        let member = Member::parse(text.as_bytes()).expect("reads");
        assert_eq!(member.role, MemberRole::Primary, "Patroni 3 says master");
        assert!(member.tags.noloadbalance);
        assert_eq!(member.tags.other["zone"], "b");
        assert_eq!(member.other["pending_restart"], true);
        let future = r#"{"conn_url":"postgres://a/b","role":"witness","state":"dreaming"}"#;
        let member = Member::parse(future.as_bytes()).expect("reads");
        assert_eq!(member.role, MemberRole::Other("witness".into()));
        assert!(!member.state.is_running());
    }

    #[test]
    fn the_dynamic_configuration_takes_what_people_write() {
        let config =
            DynamicConfig::parse(br#"{"ttl":"20","loop_wait":5.0,"synchronous_mode":"on"}"#)
                .expect("reads");
        assert_eq!((config.ttl, config.loop_wait, config.retry_timeout), (20, 5, 10));
        assert!(config.is_synchronous());
        assert!(DynamicConfig::parse(br#"{"ttl":-1}"#).is_err());
        assert!(DynamicConfig::parse(br#"{"ttl":1e300}"#).is_err());
    }

    #[test]
    fn history_keeps_its_good_lines() {
        let lines = parse_history(
            br#"[[1,67109256,"no recovery target specified","2026-11-23T13:09:21+00:00","pg1"],[2,99],["x"],7]"#,
        )
        .expect("reads");
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].new_leader.as_deref(), Some("pg1"));
        assert_eq!(lines[1].switch_lsn, Lsn(99));
    }

    #[test]
    fn history_is_written_as_patroni_writes_it() {
        let text = r#"[[1,67109256,"no recovery target specified","2026-11-23T13:09:21+00:00","pg1"],[2,99,"x"]]"#;
        let lines = parse_history(text.as_bytes()).expect("reads");
        assert_eq!(write_history(&lines), text);
        assert_eq!(write_history(&[]), "[]");
    }

    #[test]
    fn a_history_file_of_the_server() {
        let text = "1\t0/4000228\tno recovery target specified\n\n2\t0/50000A0\tno recovery target specified\n";
        let lines = parse_history_file(text).expect("reads");
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[1].timeline, lines[1].switch_lsn), (Timeline(2), Lsn(0x500_00A0)));
        assert_eq!(parse_history_file("1\tx\ty\n"), None);
        assert_eq!(parse_history_file("# nothing\n"), Some(vec![]));
    }
}
