//! What each member last answered, and which of the answers to believe.

use crate::patroni::{ClusterSnapshot, SystemId, Timeline};

/// How much an answer counts: a member that is cut off goes on telling what it last knew, so the newest
/// timeline comes first; then who was asked later; then one that names a leader. Between equals, the first
/// in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    timeline: Timeline,
    round: u64,
    names_leader: bool,
}

impl Rank {
    fn of(round: u64, snapshot: &ClusterSnapshot) -> Self {
        let leader = snapshot.leader.as_ref().and_then(|leader| snapshot.members.get(&leader.name));
        // No leader where a newer timeline is known is news, compared with a leader on an older one.
        let newest = || snapshot.members.values().filter_map(|member| member.timeline).max();
        let timeline =
            leader.and_then(|leader| leader.timeline).or_else(newest).unwrap_or_default();
        Self { timeline, round, names_leader: snapshot.leader.is_some() }
    }

    /// Whether this is more than another answer to the same question, rather than to a later one.
    pub(super) fn outdoes(&self, other: &Rank) -> bool {
        (self.timeline, self.names_leader) > (other.timeline, other.names_leader)
    }
}

/// The last answers. An answer counts until the same member's next answer or failure, so at most for as
/// long as a round and a request take.
#[derive(Debug, Default)]
pub(super) struct Answers {
    round: u64,
    /// In the order of the configuration.
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    endpoint: String,
    /// The round of the request that is under way.
    asked: Option<u64>,
    last: Option<Result<(Rank, ClusterSnapshot), String>>,
    /// Whose cluster it is, for an answer that came without it.
    system_id: Option<SystemId>,
}

impl Answers {
    /// Begins a round; gives the endpoints to ask. Who still owes an answer is not asked twice.
    pub(super) fn begin_round(&mut self, endpoints: &[String]) -> Vec<(String, u64)> {
        self.round += 1;
        let mut known = std::mem::take(&mut self.members);
        for endpoint in endpoints {
            if self.members.iter().any(|member| member.endpoint == *endpoint) {
                continue;
            }
            let member = match known.iter().position(|member| member.endpoint == *endpoint) {
                Some(index) => known.swap_remove(index),
                None => {
                    Member { endpoint: endpoint.clone(), asked: None, last: None, system_id: None }
                }
            };
            self.members.push(member);
        }
        let idle = self.members.iter_mut().filter(|member| member.asked.is_none());
        idle.map(|member| {
            member.asked = Some(self.round);
            (member.endpoint.clone(), self.round)
        })
        .collect()
    }

    /// Takes an answer in; tells whether it counts.
    pub(super) fn take(
        &mut self,
        endpoint: &str,
        round: u64,
        answer: Result<ClusterSnapshot, String>,
    ) -> bool {
        // Its endpoint may have left the list meanwhile, and come back.
        let Some(member) = self
            .members
            .iter_mut()
            .find(|member| member.endpoint == endpoint && member.asked == Some(round))
        else {
            return false;
        };
        member.asked = None;
        member.last = Some(answer.map(|mut snapshot| {
            member.system_id = snapshot.system_id.or(member.system_id);
            snapshot.system_id = member.system_id;
            (Rank::of(round, &snapshot), snapshot)
        }));
        true
    }

    /// Whether everybody who was asked in this round has answered or failed.
    pub(super) fn round_is_over(&self) -> bool {
        self.members.iter().all(|member| member.asked != Some(self.round))
    }

    /// The answer to believe.
    pub(super) fn best(&self) -> Option<(Rank, &ClusterSnapshot)> {
        let good = self.members.iter().filter_map(|member| match &member.last {
            Some(Ok((rank, snapshot))) => Some((*rank, snapshot)),
            Some(Err(_)) | None => None,
        });
        // Of equals `max_by_key` gives the last.
        good.rev().max_by_key(|(rank, _)| *rank)
    }

    /// Why there is no answer, where everybody failed when last asked.
    pub(super) fn all_failed(&self) -> Option<Vec<(&str, &str)>> {
        self.members
            .iter()
            .map(|member| match &member.last {
                Some(Err(reason)) => Some((member.endpoint.as_str(), reason.as_str())),
                Some(Ok(_)) | None => None,
            })
            .collect()
    }
}
