//! `GET /cluster` of a member's REST API: the view of clusters whose keys are not in etcd, and the
//! fallback while etcd is away.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::address::ServerAddress;
use super::failover::FailoverRequest;
use super::lsn::{Lsn, SystemId, Timeline};
use super::snapshot::{ClusterSnapshot, LeaderKey, RejectedKey};
use super::values::{Member, MemberState, Tags, ValueError};

/// The body of `GET /cluster`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct RestCluster {
    /// The members, as the member that was asked sees them.
    pub members: Vec<RestMember>,
    /// The cluster's name; absent before Patroni 3.
    #[serde(default)]
    pub scope: Option<String>,
    /// A switchover that waits for its time.
    #[serde(default)]
    pub scheduled_switchover: Option<Value>,
}

/// One member in the body of `GET /cluster`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct RestMember {
    /// Its name.
    pub name: String,
    /// `leader`, `standby_leader`, `sync_standby`, `quorum_standby` or `replica`.
    pub role: String,
    /// `running`, `streaming`, …
    pub state: String,
    /// The member's REST API.
    #[serde(default)]
    pub api_url: Option<String>,
    /// Where its PostgreSQL listens; absent while the member has none.
    #[serde(default)]
    pub host: Option<String>,
    /// The port to that host.
    #[serde(default)]
    pub port: Option<u16>,
    /// Its timeline.
    #[serde(default)]
    pub timeline: Option<Timeline>,
    /// Its position, as `hex/hex` text.
    #[serde(default)]
    pub lsn: Option<String>,
    /// Its tags.
    #[serde(default)]
    pub tags: Tags,
}

impl RestCluster {
    /// Reads the body of `GET /cluster`.
    ///
    /// # Errors
    /// Where the bytes are not that JSON.
    pub fn parse(body: &[u8]) -> Result<Self, ValueError> {
        Ok(serde_json::from_slice(body)?)
    }

    /// The same as a snapshot of keys. REST tells neither revisions nor, in `/cluster`, the system
    /// identifier, which `GET /patroni` has.
    #[must_use]
    pub fn into_snapshot(self, system_id: Option<SystemId>) -> ClusterSnapshot {
        let mut snapshot = ClusterSnapshot { system_id, ..ClusterSnapshot::default() };
        for member in self.members {
            if member.role == "leader" {
                snapshot.leader = Some(LeaderKey { name: member.name.clone(), revision: 0 });
            }
            match member.to_member() {
                Ok((name, value)) => {
                    snapshot.members.insert(name, value);
                }
                Err(rejected) => snapshot.rejected.push(rejected),
            }
        }
        if let Some(request) = &self.scheduled_switchover {
            let text = |key| request.get(key).and_then(Value::as_str).map(str::to_owned);
            snapshot.failover = Some(FailoverRequest {
                leader: text("from"),
                member: text("to"),
                scheduled_at: text("at"),
            });
        }
        snapshot
    }
}

impl RestMember {
    fn to_member(&self) -> Result<(String, Member), RejectedKey> {
        let reject = |reason: String| RejectedKey { key: format!("members/{}", self.name), reason };
        let (Some(host), Some(port)) = (&self.host, self.port) else {
            return Err(reject(format!("no address yet (state {:?})", self.state)));
        };
        let address = ServerAddress { host: host.clone(), port };
        let conn_url = address.to_conn_url();
        ServerAddress::from_conn_url(&conn_url).map_err(|error| reject(error.to_string()))?;
        let role = serde_json::from_value(Value::String(self.role.clone()))
            .map_err(|error| reject(error.to_string()))?;
        Ok((
            self.name.clone(),
            Member {
                conn_url,
                api_url: self.api_url.clone(),
                proxy_url: None,
                state: MemberState(self.state.clone()),
                role,
                version: None,
                xlog_location: self.lsn.as_deref().and_then(|text| text.parse::<Lsn>().ok()),
                replay_lsn: None,
                receive_lsn: None,
                replication_state: None,
                timeline: self.timeline,
                tags: self.tags.clone(),
                other: BTreeMap::new(),
            },
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patroni::MemberRole;

    // Captured from a cluster of Patroni 4.1.5, one member added that has no address yet.
    const BODY: &[u8] = br#"{"members": [{"name": "pg0", "role": "leader", "state": "running", "api_url": "http://127.0.0.1:8008/patroni", "host": "127.0.0.1", "port": 5432, "timeline": 1}, {"name": "pg1", "role": "sync_standby", "state": "streaming", "api_url": "http://127.0.0.1:8009/patroni", "host": "127.0.0.1", "port": 5433, "timeline": 1, "receive_lag": 0, "receive_lsn": "0/4000060", "replay_lag": 0, "replay_lsn": "0/4000060", "lag": "unknown", "lsn": "0/4000060", "tags": {"noloadbalance": true}}, {"name": "pg2", "role": "replica", "state": "stopped"}], "scope": "batman"}"#;

    #[test]
    fn the_cluster_endpoint_gives_the_same_view_as_the_keys() {
        let snapshot = RestCluster::parse(BODY).expect("reads").into_snapshot(Some(SystemId(5)));
        assert_eq!(snapshot.leader, Some(LeaderKey { name: "pg0".into(), revision: 0 }));
        let replica = &snapshot.members["pg1"];
        assert_eq!(replica.role, MemberRole::Replica);
        assert!(replica.state.is_running() && replica.tags.noloadbalance);
        assert_eq!(replica.xlog_location, Some(Lsn(0x400_0060)));
        assert_eq!(snapshot.rejected[0].key, "members/pg2");
    }

    #[test]
    fn garbage_is_an_error() {
        assert!(RestCluster::parse(b"<html>").is_err());
        assert!(RestCluster::parse(br#"{"members":{}}"#).is_err());
    }
}
