//! Read-your-writes across processes: a position that a read must not be behind.

mod codec;
mod ring;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use ring::{LostTokens, TokenRing};

use crate::lineage::{Lineage, lineage};
use crate::patroni::{HistoryLine, Lsn, SystemId, Timeline};

/// A position in one cluster's history. A read that is given a token sees at least what the token's
/// writer saw.
///
/// As text, and by `serde`, it is one opaque word of letters, digits, `-` and `_`, fit for URLs, cookies and
/// headers: `lp1_…`. The checksum in it finds damage, not forgery: whoever can send a token of their own
/// making can make reads wait for as long as the read's policy allows, and no more.
///
/// Tokens are not ordered: of two on different timelines, neither need contain the other. See
/// [`merge`](Self::merge).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CausalToken {
    /// The cluster.
    pub system_id: SystemId,
    /// The timeline that the position is on.
    pub timeline: Timeline,
    /// The position.
    pub lsn: Lsn,
}

/// What is wrong with a token, or with two of them together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The text is no token.
    #[error("not a token: {0}")]
    Malformed(&'static str),
    /// The tokens come from different clusters.
    #[error("the tokens are of different clusters ({ours} and {theirs})")]
    OtherCluster {
        /// The one's.
        ours: SystemId,
        /// The other's.
        theirs: SystemId,
    },
    /// The tokens are of different timelines, and the history that relates them is not known.
    #[error("the tokens are of timelines {older} and {newer}, and what lies between is not known")]
    NoHistory {
        /// The lower timeline.
        older: Timeline,
        /// The higher one.
        newer: Timeline,
    },
    /// The older token's write was lost in a failover: no read can satisfy both.
    #[error(
        "a write at {} on timeline {} was lost: timeline {timeline} was left at {switch_lsn}",
        .lost.lsn, .lost.timeline
    )]
    Lost {
        /// The older token.
        lost: CausalToken,
        /// The timeline that was left.
        timeline: Timeline,
        /// Where.
        switch_lsn: Lsn,
    },
}

/// What a token is worth now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "standing")]
pub enum Standing {
    /// Its position is part of the current history.
    Valid,
    /// Its write was lost in a failover.
    Lost {
        /// The timeline that was left before the token's position.
        timeline: Timeline,
        /// Where it was left.
        switch_lsn: Lsn,
    },
    /// It is of another cluster.
    OtherCluster,
    /// The history does not reach that timeline: not yet, just after a promotion, or no more.
    Unknown,
    /// It is of a newer timeline than any that is known here.
    Future,
}

/// Whether a replica has what a token asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Satisfaction {
    /// It has.
    Yes,
    /// Not yet: waiting may help.
    NotYet,
    /// It never will: the token's write was lost.
    Lost,
    /// Nobody knows, for want of history: only the leader can be asked, if anyone.
    Unknown,
}

impl CausalToken {
    /// The token that asks for both of these. Needs both to be on one timeline; see
    /// [`merge_with_history`](Self::merge_with_history).
    ///
    /// # Errors
    /// [`TokenError::OtherCluster`] for different clusters, [`TokenError::NoHistory`] for different
    /// timelines.
    pub fn merge(self, other: Self) -> Result<Self, TokenError> {
        self.merge_with_history(other, &[])
    }

    /// The token that asks for both of these: the higher position on the higher timeline, provided that the
    /// latter's history holds the other token.
    ///
    /// # Errors
    /// [`TokenError::OtherCluster`] for different clusters; [`TokenError::Lost`] where the older token's
    /// write is not part of the newer one's history; [`TokenError::NoHistory`] where that is not known.
    pub fn merge_with_history(
        self,
        other: Self,
        history: &[HistoryLine],
    ) -> Result<Self, TokenError> {
        if self.system_id != other.system_id {
            let (ours, theirs) = (self.system_id, other.system_id);
            return Err(TokenError::OtherCluster { ours, theirs });
        }
        let (older, newer) = if (self.timeline, self.lsn) <= (other.timeline, other.lsn) {
            (self, other)
        } else {
            (other, self)
        };
        match lineage(older.timeline, older.lsn, newer.timeline, history) {
            // A token may name a position below the point where its timeline began.
            Lineage::Kept => Ok(Self { lsn: older.lsn.max(newer.lsn), ..newer }),
            Lineage::Lost { timeline, switch_lsn } => {
                Err(TokenError::Lost { lost: older, timeline, switch_lsn })
            }
            Lineage::Unknown => {
                Err(TokenError::NoHistory { older: older.timeline, newer: newer.timeline })
            }
        }
    }

    /// What the token is worth in cluster `system_id`, whose leader is on `current` with this history.
    #[must_use]
    pub fn standing(
        &self,
        system_id: SystemId,
        current: Timeline,
        history: &[HistoryLine],
    ) -> Standing {
        if self.system_id != system_id {
            return Standing::OtherCluster;
        }
        if self.timeline > current {
            return Standing::Future;
        }
        match lineage(self.timeline, self.lsn, current, history) {
            Lineage::Kept => Standing::Valid,
            Lineage::Lost { timeline, switch_lsn } => Standing::Lost { timeline, switch_lsn },
            Lineage::Unknown => Standing::Unknown,
        }
    }

    /// Whether a server of this cluster has the token's position: one on `timeline` that has replayed (or,
    /// the leader, written) up to `reached`.
    ///
    /// One on an older timeline does not, even with a higher position: it follows a history that was left,
    /// or has not heard of the new one.
    #[must_use]
    pub fn satisfied_by(
        &self,
        timeline: Timeline,
        reached: Lsn,
        history: &[HistoryLine],
    ) -> Satisfaction {
        if timeline < self.timeline {
            return Satisfaction::NotYet;
        }
        match lineage(self.timeline, self.lsn, timeline, history) {
            Lineage::Kept if reached >= self.lsn => Satisfaction::Yes,
            Lineage::Kept => Satisfaction::NotYet,
            Lineage::Lost { .. } => Satisfaction::Lost,
            Lineage::Unknown => Satisfaction::Unknown,
        }
    }
}

impl fmt::Display for CausalToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&codec::encode(self))
    }
}

impl FromStr for CausalToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        codec::decode(text)
    }
}

impl Serialize for CausalToken {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CausalToken {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
