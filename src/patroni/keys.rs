//! Key names below `/{namespace}/{scope}/`.

use std::fmt;

/// The prefix under which one cluster keeps its keys: `/{namespace}/{scope}/`.
///
/// Patroni trims slashes around the namespace and falls back to `service` where it is empty; so does
/// this type, so that `/db/`, `db` and `/db` name the same cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyPrefix {
    text: String,
}

impl KeyPrefix {
    /// The prefix of cluster `scope` in `namespace`.
    #[must_use]
    pub fn new(namespace: &str, scope: &str) -> Self {
        let namespace = namespace.trim_matches('/');
        let namespace = if namespace.is_empty() { "service" } else { namespace };
        Self { text: format!("/{namespace}/{}/", scope.trim_matches('/')) }
    }

    /// The prefix as etcd sees it, with its closing slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The full name of `key`.
    #[must_use]
    pub fn key(&self, key: &Key) -> String {
        format!("{}{key}", self.text)
    }

    /// What `full` names; `None` where it lies outside this prefix.
    #[must_use]
    pub fn parse(&self, full: &str) -> Option<Key> {
        full.strip_prefix(&self.text).map(Key::from_suffix)
    }
}

impl fmt::Display for KeyPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// One key of a cluster, by its name below the [`KeyPrefix`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// `initialize`: the system identifier, or empty while the cluster is being made.
    Initialize,
    /// `config`: the dynamic configuration.
    Config,
    /// `leader`: the name of the member that holds the lease.
    Leader,
    /// `members/NAME`: what a member says of itself.
    Member(String),
    /// `status`: the leader's WAL position and slots.
    Status,
    /// `optime/leader`: the same position, as Patroni before 2.1 wrote it.
    OptimeLeader,
    /// `failover`: a switchover or failover that was asked for.
    Failover,
    /// `sync`: who may take over in synchronous mode.
    Sync,
    /// `history`: the switch points between timelines.
    History,
    /// `failsafe`: the members to ask when etcd is gone.
    Failsafe,
    /// A key this version does not know.
    Other(String),
}

impl Key {
    /// The key that `suffix` names below the prefix.
    #[must_use]
    pub fn from_suffix(suffix: &str) -> Self {
        match suffix {
            "initialize" => Key::Initialize,
            "config" => Key::Config,
            "leader" => Key::Leader,
            "status" => Key::Status,
            "optime/leader" => Key::OptimeLeader,
            "failover" => Key::Failover,
            "sync" => Key::Sync,
            "history" => Key::History,
            "failsafe" => Key::Failsafe,
            _ => match suffix.strip_prefix("members/") {
                Some(name) if !name.is_empty() => Key::Member(name.to_owned()),
                _ => Key::Other(suffix.to_owned()),
            },
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Key::Initialize => "initialize",
            Key::Config => "config",
            Key::Leader => "leader",
            Key::Status => "status",
            Key::OptimeLeader => "optime/leader",
            Key::Failover => "failover",
            Key::Sync => "sync",
            Key::History => "history",
            Key::Failsafe => "failsafe",
            Key::Member(name) => return write!(f, "members/{name}"),
            Key::Other(suffix) => suffix,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_is_written_as_patroni_writes_it() {
        for namespace in ["/db/", "db", "/db", "db/"] {
            assert_eq!(
                KeyPrefix::new(namespace, "postgres-cluster").as_str(),
                "/db/postgres-cluster/"
            );
        }
        assert_eq!(KeyPrefix::new("", "batman").as_str(), "/service/batman/");
    }

    #[test]
    fn every_key_reads_back() {
        let prefix = KeyPrefix::new("db", "c");
        let keys = [
            Key::Initialize,
            Key::Config,
            Key::Leader,
            Key::Member("pg0".into()),
            Key::Status,
            Key::OptimeLeader,
            Key::Failover,
            Key::Sync,
            Key::History,
            Key::Failsafe,
            Key::Other("members/".into()),
            Key::Other("brand/new".into()),
        ];
        for key in keys {
            assert_eq!(prefix.parse(&prefix.key(&key)), Some(key));
        }
        assert_eq!(prefix.parse("/db/c2/leader"), None);
    }
}
