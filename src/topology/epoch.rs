//! The fencing token of one reign.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::patroni::{SystemId, Timeline};

/// One reign of one leader: system identifier, timeline, and the revision at which its key was made.
///
/// Within one cluster epochs are ordered by timeline, then by revision. The timeline comes first because
/// PostgreSQL itself writes it, while revisions start again where etcd was rebuilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Epoch {
    /// The cluster.
    pub system_id: SystemId,
    /// The leader's timeline.
    pub timeline: Timeline,
    /// The create revision of the leader key; the last one known where the source has none.
    pub revision: i64,
}

impl Epoch {
    /// Whether `self` is a later reign than `other`, or the same one, in the same cluster.
    #[must_use]
    pub fn is_at_least(&self, other: &Epoch) -> bool {
        self.system_id == other.system_id
            && (self.timeline, self.revision) >= (other.timeline, other.revision)
    }
}

impl fmt::Display for Epoch {
    /// `timeline.revision`; the system identifier is the same for the whole cluster.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.timeline, self.revision)
    }
}
