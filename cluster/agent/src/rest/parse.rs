//! The bodies of requests, read; and what is refused before the run loop is asked. Pure.

use std::time::Duration;

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::{Iso8601, Rfc3339};

use super::answer::Answer;
use super::commands::{ChangeKind, Restart, Switchover};
use super::query::parse_seconds;
use super::status::{NodeStatus, Synchronous};

impl Switchover {
    /// Reads the body of `POST /switchover` or `/failover`, and refuses what the cluster as it is seen
    /// cannot do.
    ///
    /// # Errors
    /// The answer that says why.
    pub fn parse(
        kind: ChangeKind,
        body: &Map<String, Value>,
        status: &NodeStatus,
        now: OffsetDateTime,
    ) -> Result<Self, Answer> {
        let name = |field: &str| match body.get(field) {
            Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
            _ => None,
        };
        let (leader, candidate) = (name("leader"), name("candidate").or_else(|| name("member")));
        let refuse = |code, text: String| Err(Answer::text(code, text));
        match kind {
            ChangeKind::Failover if candidate.is_none() => {
                return refuse(
                    400,
                    "Failover could be performed only to a specific candidate".into(),
                );
            }
            ChangeKind::Switchover if leader.is_none() => {
                return refuse(
                    400,
                    "Switchover could be performed only from a specific leader".into(),
                );
            }
            _ => {}
        }
        let at = match body.get("scheduled_at") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) if text.is_empty() => None,
            Some(_) if kind == ChangeKind::Failover => {
                return refuse(400, "Failover can't be scheduled".into());
            }
            Some(_) if status.mode.paused => {
                return refuse(400, "Can't schedule switchover in the paused state".into());
            }
            Some(value) => Some(parse_schedule(value, kind.action(), now)?),
        };
        if status.mode.paused && candidate.is_none() {
            let text = "Switchover is possible only to a specific candidate in a paused state";
            return refuse(400, text.into());
        }
        // A failover from a leader that is named is a switchover.
        let kind = if leader.is_some() { ChangeKind::Switchover } else { kind };
        if leader == candidate {
            return refuse(400, format!("{} target and source are the same", kind.title()));
        }
        let request = Self { kind, leader, candidate, at };
        match request.at {
            None => request.obstacle(status).map_or(Ok(request), |why| refuse(412, why)),
            Some(_) => Ok(request),
        }
    }

    /// What stands against it, as far as the keys tell.
    fn obstacle(&self, status: &NodeStatus) -> Option<String> {
        let empty = leaderpool::patroni::ClusterSnapshot::default();
        let cluster = status.snapshot().unwrap_or(&empty);
        let leads = cluster.leader.as_ref().map(|leader| leader.name.as_str());
        if self.leader.is_some() && self.leader.as_deref() != leads {
            return Some("leader name does not match".into());
        }
        let is_sync = |name: &str| {
            let sync = cluster.sync.as_ref();
            sync.is_some_and(|sync| sync.standbys().any(|standby| standby == name))
        };
        let synchronous = status.mode.synchronous == Synchronous::Standbys;
        let action = self.kind.action();
        match &self.candidate {
            Some(candidate) => {
                if self.kind == ChangeKind::Switchover && synchronous && !is_sync(candidate) {
                    return Some("candidate name does not match with sync_standby".into());
                }
                // The spelling is the one that clients know.
                (!cluster.members.contains_key(candidate))
                    .then(|| "candidate does not exists".into())
            }
            None if synchronous => (!cluster.members.keys().any(|name| is_sync(name)))
                .then(|| format!("{action} is not possible: can not find sync_standby")),
            None => (!cluster
                .members
                .iter()
                .any(|(name, member)| Some(name.as_str()) != leads && member.api_url.is_some()))
            .then(|| {
                format!("{action} is not possible: cluster does not have members except leader")
            }),
        }
    }
}

impl Restart {
    /// Reads the body of `POST /restart`.
    ///
    /// # Errors
    /// The answer that says what is wrong with it.
    pub fn parse(body: &Map<String, Value>, now: OffsetDateTime) -> Result<Self, Answer> {
        let mut restart = Self::default();
        let refuse = |text: String| Err(Answer::text(400, text));
        for (field, value) in body {
            match field.as_str() {
                "schedule" => restart.at = Some(parse_schedule(value, "restart", now)?),
                "role" => {
                    match value.as_str() {
                        Some(role @ ("primary" | "standby_leader" | "replica")) => {
                            restart.role = Some(role.to_owned());
                        }
                        // What clients of Patroni 3 say.
                        Some("master") => restart.role = Some("primary".to_owned()),
                        _ => {
                            return refuse("PostgreSQL role should be either primary, standby_leader, or replica".into());
                        }
                    }
                }
                "postgres_version" => {
                    let text = plain(value);
                    match version_number(&text) {
                        Some(number) => restart.older_than = Some((number, text)),
                        None => return refuse(format!("Invalid PostgreSQL version: {text}")),
                    }
                }
                "timeout" => match parse_seconds(&plain(value)) {
                    Some(seconds @ 1..) => restart.timeout = Some(Duration::from_secs(seconds)),
                    _ => return refuse("Timeout should be a positive number of seconds".into()),
                },
                "restart_pending" => restart.restart_pending = is_true(value),
                other => {
                    return refuse(format!("Unknown filter for the scheduled restart: {other}"));
                }
            }
        }
        Ok(restart)
    }

    /// The scheduled restart as member keys and `/patroni` show it.
    #[must_use]
    pub fn to_scheduled(&self) -> Map<String, Value> {
        let mut shown = Map::new();
        if let Some(at) = self.at {
            shown.insert("schedule".into(), iso_time(at).into());
        }
        if let Some(role) = &self.role {
            shown.insert("role".into(), role.as_str().into());
        }
        if let Some((_, text)) = &self.older_than {
            shown.insert("postgres_version".into(), text.as_str().into());
        }
        if let Some(timeout) = self.timeout {
            shown.insert("timeout".into(), timeout.as_secs().into());
        }
        if self.restart_pending {
            shown.insert("restart_pending".into(), true.into());
        }
        shown
    }
}

/// Lays `patch` upon `config`: null removes a key, an object is laid upon an object, anything else
/// replaces. Tells whether anything changed.
pub fn merge_patch(config: &mut Map<String, Value>, patch: &Map<String, Value>) -> bool {
    let mut changed = false;
    for (key, value) in patch {
        changed |= match (config.get_mut(key), value) {
            (_, Value::Null) => config.remove(key).is_some(),
            (Some(Value::Object(old)), Value::Object(new)) => merge_patch(old, new),
            (_, Value::Object(new)) => {
                let mut fresh = Map::new();
                merge_patch(&mut fresh, new);
                config.insert(key.clone(), Value::Object(fresh));
                true
            }
            (Some(old), new) if *old == *new => false,
            _ => {
                config.insert(key.clone(), value.clone());
                true
            }
        };
    }
    changed
}

/// `2026-11-23T13:09:21.897612+00:00`, as Patroni writes times into keys.
#[must_use]
pub fn iso_time(at: OffsetDateTime) -> String {
    use time::macros::format_description;
    let whole = format_description!(
        "[year]-[month]-[day]T[hour]:[minute]:[second][offset_hour sign:mandatory]:[offset_minute]"
    );
    let fraction = format_description!(
        "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6][offset_hour sign:mandatory]:[offset_minute]"
    );
    match at.microsecond() {
        0 => at.format(&whole),
        _ => at.format(&fraction),
    }
    .expect("these fields are there")
}

fn parse_schedule(
    value: &Value,
    action: &str,
    now: OffsetDateTime,
) -> Result<OffsetDateTime, Answer> {
    let unreadable = || {
        Answer::text(
            422,
            "Unable to parse scheduled timestamp. It should be in an unambiguous format, e.g. ISO 8601",
        )
    };
    let text = value.as_str().ok_or_else(unreadable)?.trim();
    // PostgreSQL and people put a space where the standard has a T.
    let text = text.replacen(' ', "T", usize::from(text.find(' ') == Some(10)));
    let text = text.replace(' ', "");
    let at = OffsetDateTime::parse(&text, &Rfc3339)
        .or_else(|_| OffsetDateTime::parse(&text, &Iso8601::DEFAULT));
    match at {
        Ok(at) if at < now => {
            Err(Answer::text(422, format!("Cannot schedule {action} in the past")))
        }
        Ok(at) => Ok(at),
        Err(_) if time::PrimitiveDateTime::parse(&text, &Iso8601::DEFAULT).is_ok() => {
            Err(Answer::text(
                400,
                format!("Timezone information is mandatory for the scheduled {action}"),
            ))
        }
        Err(_) => Err(unreadable()),
    }
}

/// `9.6.3` as 90603, `15.4` as 150004; two or three parts.
fn version_number(text: &str) -> Option<u32> {
    let parts: Vec<u32> = text.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    match parts[..] {
        [major @ 10..1000, minor @ 0..10_000] => Some(major * 10_000 + minor),
        [major @ 1..10, minor @ 0..100] => Some(major * 10_000 + minor * 100),
        [major @ 1..10, minor @ 0..100, patch @ 0..100] => {
            Some(major * 10_000 + minor * 100 + patch)
        }
        _ => None,
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// As people write it.
pub(super) fn is_true(value: &Value) -> bool {
    match value {
        Value::Bool(value) => *value,
        Value::String(text) => {
            matches!(text.to_ascii_lowercase().as_str(), "true" | "yes" | "on" | "1")
        }
        Value::Number(number) => number.as_i64() == Some(1),
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}
