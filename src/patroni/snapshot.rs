//! All keys of one cluster at one revision, parsed.

use std::collections::BTreeMap;

use serde::Serialize;

use super::failover::FailoverRequest;
use super::keys::{Key, KeyPrefix};
use super::lsn::SystemId;
use super::values::{
    DynamicConfig, HistoryLine, Member, Status, SyncState, ValueError, parse_history, text_of,
};

/// One key as etcd holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawKey {
    /// The full key.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
    /// The revision at which the key was made; changes when it is deleted and made again.
    pub create_revision: i64,
    /// The revision of its last write.
    pub mod_revision: i64,
    /// The lease it hangs on; 0 for none.
    pub lease: i64,
}

/// The leader key: who holds the lease, and since which revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeaderKey {
    /// The member's name.
    pub name: String,
    /// The create revision: the fencing token of this reign. Zero where the source does not know it.
    pub revision: i64,
}

/// A key whose value could not be read, and why. The others stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RejectedKey {
    /// The name of the key below the prefix.
    pub key: String,
    /// Why it was left out.
    pub reason: String,
}

/// One cluster's keys at one revision.
///
/// A value that makes no sense is left out and named in [`rejected`](Self::rejected).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ClusterSnapshot {
    /// The store's revision that this shows; zero where the source has none.
    pub revision: i64,
    /// The system identifier; `None` while the cluster is being made.
    pub system_id: Option<SystemId>,
    /// The leader key, where there is one.
    pub leader: Option<LeaderKey>,
    /// The members, by name.
    pub members: BTreeMap<String, Member>,
    /// The dynamic configuration.
    pub config: Option<DynamicConfig>,
    /// The leader's position.
    pub status: Option<Status>,
    /// A switchover or failover that was asked for; `None` for the empty request.
    pub failover: Option<FailoverRequest>,
    /// The synchronous state.
    pub sync: Option<SyncState>,
    /// The switch points, oldest first.
    pub history: Vec<HistoryLine>,
    /// What could not be read.
    pub rejected: Vec<RejectedKey>,
}

impl ClusterSnapshot {
    /// Parses `keys`, all of them below `prefix`; others are passed over.
    pub fn from_raw<'a>(
        prefix: &KeyPrefix,
        revision: i64,
        keys: impl IntoIterator<Item = &'a RawKey>,
    ) -> Self {
        let mut snapshot = Self { revision, ..Self::default() };
        for raw in keys {
            let Some(key) = prefix.parse(&raw.key) else { continue };
            if let Err(error) = snapshot.take(&key, raw) {
                snapshot
                    .rejected
                    .push(RejectedKey { key: key.to_string(), reason: error.to_string() });
            }
        }
        snapshot
    }

    fn take(&mut self, key: &Key, raw: &RawKey) -> Result<(), ValueError> {
        let value = raw.value.as_slice();
        match key {
            Key::Initialize => {
                let text = text_of(value)?.trim();
                if !text.is_empty() {
                    let id = text
                        .parse()
                        .map_err(|_| ValueError::BadSystemId(text.chars().take(40).collect()))?;
                    self.system_id = Some(SystemId(id));
                }
            }
            Key::Leader => {
                let name = text_of(value)?.trim();
                if name.is_empty() {
                    return Err(ValueError::EmptyLeader);
                }
                self.leader =
                    Some(LeaderKey { name: name.to_owned(), revision: raw.create_revision });
            }
            Key::Member(name) => {
                let member = Member::parse(value)?;
                member.address()?;
                self.members.insert(name.clone(), member);
            }
            Key::Config => self.config = Some(DynamicConfig::parse(value)?),
            Key::Status => self.status = Some(Status::parse(value)?),
            Key::OptimeLeader => {
                let status = Status::parse(value)?;
                self.status.get_or_insert(status);
            }
            Key::Failover => {
                let request = FailoverRequest::parse(value)?;
                self.failover = (!request.is_empty()).then_some(request);
            }
            Key::Sync => self.sync = Some(SyncState::parse(value)?),
            Key::History => self.history = parse_history(value)?,
            Key::Failsafe | Key::Other(_) => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::patroni::{Lsn, MemberRole};

    fn raw(key: &str, value: &[u8]) -> RawKey {
        RawKey {
            key: format!("/db/c/{key}"),
            value: value.to_vec(),
            create_revision: 7,
            mod_revision: 9,
            lease: 0,
        }
    }

    fn parse(keys: &[RawKey]) -> ClusterSnapshot {
        ClusterSnapshot::from_raw(&KeyPrefix::new("db", "c"), 9, keys)
    }

    #[test]
    fn a_whole_cluster() {
        let snapshot = parse(&[
            raw("initialize", b"7711353190614709005"),
            raw("leader", b"pg0"),
            raw(
                "members/pg0",
                br#"{"conn_url":"postgres://h:1/x","role":"primary","state":"running"}"#,
            ),
            raw("config", br#"{"ttl":20}"#),
            raw("optime/leader", b"67108960"),
            raw("failover", b"{}"),
            raw("sync", br#"{"leader":"pg0","quorum":0,"sync_standby":"pg1,pg2"}"#),
            raw("history", b"[]"),
            raw("brand_new", b"\xff"),
        ]);
        assert_eq!(snapshot.system_id, Some(SystemId(7_711_353_190_614_709_005)));
        assert_eq!(snapshot.leader, Some(LeaderKey { name: "pg0".into(), revision: 7 }));
        assert_eq!(snapshot.members["pg0"].role, MemberRole::Primary);
        assert_eq!(snapshot.status.map(|status| status.optime), Some(Lsn(67_108_960)));
        assert_eq!(snapshot.failover, None);
        assert_eq!(snapshot.sync.expect("sync").standbys().collect::<Vec<_>>(), ["pg1", "pg2"]);
        assert_eq!(snapshot.rejected, []);
    }

    #[test]
    fn one_bad_value_hides_no_other() {
        let snapshot = parse(&[
            raw("initialize", b"seven"),
            raw("leader", b"pg0"),
            raw("members/pg0", br#"{"conn_url":"postgres://h:1/x"}"#),
            raw("members/pg1", b"{{{{"),
            raw("members/pg2", br#"{"conn_url":"mysql://h:1/x"}"#),
        ]);
        assert_eq!(snapshot.members.keys().collect::<Vec<_>>(), ["pg0"]);
        let rejected: Vec<&str> = snapshot.rejected.iter().map(|r| r.key.as_str()).collect();
        assert_eq!(rejected, ["initialize", "members/pg1", "members/pg2"]);
    }

    fn any_suffix() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("initialize".to_owned()),
            Just("leader".to_owned()),
            Just("config".to_owned()),
            Just("status".to_owned()),
            Just("optime/leader".to_owned()),
            Just("failover".to_owned()),
            Just("sync".to_owned()),
            Just("history".to_owned()),
            Just("failsafe".to_owned()),
            Just("members/pg0".to_owned()),
            ".{0,20}",
        ]
    }

    /// Bytes that look like values, cut and mixed, beside purely random ones.
    fn any_value() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            r#"[\[\]{}",:0-9a-z_ \-\.]{0,120}"#.prop_map(String::into_bytes),
            r#"\{"conn_url":"postgres(ql)?://[\[\]:@/?%a-f0-9]{0,30}","role":"[a-z]{0,8}","timeline":-?[0-9]{0,12}\}"#
                .prop_map(String::into_bytes),
            r#"\{"(ttl|optime|leader|quorum)":("?-?[0-9e\.]{0,12}"?|null|\[\]|\{\})\}"#
                .prop_map(String::into_bytes),
        ]
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_in_any_key_never_panic(
            pairs in proptest::collection::vec((any_suffix(), any_value()), 0..12)
        ) {
            let keys: Vec<RawKey> = pairs.iter().map(|(key, value)| raw(key, value)).collect();
            let snapshot = parse(&keys);
            for member in snapshot.members.values() {
                prop_assert!(member.address().is_ok());
            }
        }
    }
}
