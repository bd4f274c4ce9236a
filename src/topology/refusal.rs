//! Why a member may not be used, or a claim is not believed.

use std::fmt;

use serde::Serialize;

use crate::patroni::{SystemId, Timeline};

/// Why a member may not be used, or a claim is not believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "refusal")]
#[non_exhaustive]
pub enum Refusal {
    /// The server at this address belongs to another cluster.
    ForeignServer {
        /// What `/initialize` says.
        expected: SystemId,
        /// What the server says.
        found: SystemId,
    },
    /// It claims to be primary on a timeline older than one already seen: a former primary.
    OldTimeline {
        /// The newest timeline seen.
        newest: Timeline,
        /// What the server says.
        found: Timeline,
    },
    /// The leader key was made before one already seen, on the same timeline, by another member.
    OldClaim {
        /// The greatest revision seen.
        newest: i64,
        /// The revision of this claim.
        found: i64,
    },
    /// `/initialize` holds another system identifier than before: a new cluster under the same name.
    ClusterReplaced {
        /// The cluster this pool was made for.
        expected: SystemId,
        /// The cluster that is there now.
        found: SystemId,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::ForeignServer { expected, found } => write!(
                f,
                "it belongs to another cluster (system identifier {found}, this cluster has \
                 {expected}): check the member's conn_url"
            ),
            Refusal::OldTimeline { newest, found } => write!(
                f,
                "it says that it is primary on timeline {found}, but timeline {newest} was seen \
                 already: a former primary that must not be written to"
            ),
            Refusal::OldClaim { newest, found } => write!(
                f,
                "its leader key has revision {found}, but revision {newest} was seen already on \
                 the same timeline: the store went back in time"
            ),
            Refusal::ClusterReplaced { expected, found } => write!(
                f,
                "the cluster was replaced by another one of the same name (system identifier \
                 {found}, was {expected}): make a new pool to use it"
            ),
        }
    }
}
