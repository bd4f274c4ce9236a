//! `tags`: what this member may be used for.

use serde_json::{Map as JsonMap, Value as Json};

use super::diagnostics::Code;
use super::section::{Found, Reading, Section};

/// What this member may be used for.
#[derive(Debug, Clone, PartialEq)]
pub struct Tags {
    /// Never becomes the leader. Also where `failover_priority` is 0 or less.
    pub nofailover: bool,
    /// Among members that are equally far, the higher one leads. 1 where nothing is written, 0 where it
    /// never leads.
    pub failover_priority: i64,
    /// `/replica` answers 503.
    pub noloadbalance: bool,
    /// Others preferably copy their data from this member.
    pub clonefrom: bool,
    /// Never a synchronous standby. Also where `sync_priority` is 0 or less.
    pub nosync: bool,
    /// The higher one is preferred as a synchronous standby. As [`Tags::failover_priority`].
    pub sync_priority: i64,
    /// Takes its WAL from the archive only.
    pub nostream: bool,
    /// The member to follow in place of the leader.
    pub replicatefrom: Option<String>,
    /// As they stand in this member's key in etcd: the above as far as they were written and say
    /// anything, and the operator's own.
    pub published: JsonMap<String, Json>,
}

impl Default for Tags {
    fn default() -> Self {
        Self {
            nofailover: false,
            failover_priority: 1,
            noloadbalance: false,
            clonefrom: false,
            nosync: false,
            sync_priority: 1,
            nostream: false,
            replicatefrom: None,
            published: JsonMap::new(),
        }
    }
}

pub(super) fn read(mut section: Section<'_>, reading: &mut Reading) -> Tags {
    let mut published = JsonMap::new();
    let (nofailover, failover_priority) =
        ranked("nofailover", "failover_priority", &mut section, &mut published, reading);
    let (nosync, sync_priority) =
        ranked("nosync", "sync_priority", &mut section, &mut published, reading);
    let mut plain = |key: &'static str, section: &mut Section<'_>, reading: &mut Reading| {
        let set = section.flag(key, reading).unwrap_or(false);
        if set {
            published.insert(key.to_owned(), Json::Bool(true));
        }
        set
    };
    let noloadbalance = plain("noloadbalance", &mut section, reading);
    let clonefrom = plain("clonefrom", &mut section, reading);
    let nostream = plain("nostream", &mut section, reading);
    let replicatefrom = section.text("replicatefrom", reading);
    if let Some(name) = &replicatefrom {
        published.insert("replicatefrom".to_owned(), Json::String(name.clone()));
    }
    for (name, found) in section.rest() {
        published.insert(name.to_owned(), found.node.to_json());
    }
    Tags {
        nofailover,
        failover_priority,
        noloadbalance,
        clonefrom,
        nosync,
        sync_priority,
        nostream,
        replicatefrom,
        published,
    }
}

/// A flag and the priority that says the same more finely. Where they disagree, the flag counts.
fn ranked(
    flag: &'static str,
    priority: &'static str,
    section: &mut Section<'_>,
    published: &mut JsonMap<String, Json>,
    reading: &mut Reading,
) -> (bool, i64) {
    let set = section.flag(flag, reading);
    let found: Option<Found<'_>> = section.find(priority, reading);
    let rank = found
        .as_ref()
        .and_then(|found| found.number(i64::from(i32::MIN)..=i64::from(i32::MAX), reading));
    if let (Some(set), Some(rank), Some(found)) = (set, rank, &found)
        && set == (rank > 0)
    {
        let message = format!("{rank}, and `{flag}: {set}`, which says the opposite");
        reading.warning(Code::ConflictingTags, &found.at, message, format!("`{flag}` counts"));
    }
    // Patroni publishes a false flag only next to a priority.
    if let Some(set) = set
        && (set || rank.is_some())
    {
        published.insert(flag.to_owned(), Json::Bool(set));
    }
    if let Some(rank) = rank {
        published.insert(priority.to_owned(), Json::from(rank));
    }
    let excluded = set.unwrap_or_else(|| rank.is_some_and(|rank| rank <= 0));
    (excluded, if set == Some(true) { 0 } else { rank.unwrap_or(1) })
}
