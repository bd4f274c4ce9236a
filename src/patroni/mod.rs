//! Patroni's contract: key names, JSON values and REST answers, in both directions.
//!
//! Reading is lenient (unknown fields are kept, old names are accepted, one bad value never hides the
//! others); writing is strict (the field names of Patroni 4). Nothing here does IO or knows the time.
//!
//! The format was taken from running clusters of Patroni 3.0.2 and 4.1.5 on etcd v3.

mod address;
mod failover;
mod keys;
mod lsn;
mod rest;
mod snapshot;
mod values;

pub use address::ServerAddress;
pub use failover::{FailoverRequest, Schedule};
pub use keys::{Key, KeyPrefix};
pub use lsn::{Lsn, LsnParseError, SystemId, Timeline};
pub use rest::{RestCluster, RestMember};
pub use snapshot::{ClusterSnapshot, LeaderKey, RawKey, RejectedKey};
pub use values::{
    DynamicConfig, HistoryLine, Member, MemberRole, MemberState, Status, SyncState, Tags,
    ValueError, parse_history, parse_history_file, write_history,
};
