//! Who is ahead of whom.

use leaderpool::patroni::{Lsn, Tags, Timeline};
use serde_json::Value;

use super::moment::Moment;
use super::seen::{Peer, Seen, Server};

/// A place in the history of the data. A later timeline is ahead of any place on an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) timeline: Timeline,
    pub(super) lsn: Lsn,
}

/// Where the own server is, while it runs.
pub(super) fn mine(seen: &Seen) -> Option<Position> {
    match seen.postgres.server {
        Server::Primary { timeline, written } => Some(Position { timeline, lsn: written }),
        Server::Standby { timeline, received, .. } => Some(Position { timeline, lsn: received }),
        Server::Down { .. } | Server::Starting { .. } | Server::Stopping { .. } => None,
    }
}

fn number(tags: &Tags, name: &str) -> Option<i64> {
    match tags.other.get(name)? {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.trim().parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The tag `failover_priority`: the greater goes first where positions are equal, and nobody at zero ever
/// does.
pub(super) fn failover_priority(tags: &Tags) -> i64 {
    if tags.nofailover { 0 } else { number(tags, "failover_priority").unwrap_or(1) }
}

/// The tag `sync_priority`: the greater is preferred as a synchronous standby, and zero never is one.
pub(super) fn sync_priority(tags: &Tags) -> i64 {
    if tags.nosync { 0 } else { number(tags, "sync_priority").unwrap_or(1) }
}

/// The member that this one replicates from by its tags.
pub(super) fn replicate_from(tags: &Tags) -> Option<&str> {
    tags.other.get("replicatefrom").and_then(Value::as_str)
}

impl Peer {
    /// Whether it was asked at `after` or later and has answered.
    pub(super) fn answered(&self, after: Moment) -> bool {
        self.answer.as_ref().is_some_and(|answer| answer.asked >= after)
    }

    /// Whether a question of `after` or later failed.
    pub(super) fn refused(&self, after: Moment) -> bool {
        self.failed.is_some_and(|failed| failed >= after)
    }
}
