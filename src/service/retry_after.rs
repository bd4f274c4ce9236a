//! When it is worth asking again.

use std::time::Duration;

use tokio::time::Instant;

use crate::pool::LeaderPool;
use crate::topology::{ClusterView, LeaderState, MemberHealth};

/// Nobody need be told to ask more often.
const LEAST: Duration = Duration::from_secs(1);

impl LeaderPool {
    /// When a caller who was turned away for want of a leader should ask again, for a `Retry-After`; `None` while one
    /// is admitted.
    ///
    /// An estimate, from 1 s to the cluster's lease: what is left of the lease where its holder does not answer,
    /// since no other member can lead before it has run out; a second where the next leader is chosen already,
    /// or about to be; and half of the time that it has lasted, where it lasts longer than that.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        retry_after(&self.shared.view.load(), Instant::now())
    }
}

fn retry_after(view: &ClusterView, now: Instant) -> Option<Duration> {
    let (since, holder) = match &view.leader {
        LeaderState::Admitted { .. } => return None,
        LeaderState::Claimed { member, since } => (*since, Some(member)),
        LeaderState::Unknown { since } => (*since, None),
    };
    let lasted = now.saturating_duration_since(since);
    let is_silent = |name| {
        let health = view.members.get(name).map(|member| &member.health);
        !matches!(health, Some(MemberHealth::Up(_)))
    };
    // In a planned change the key is handed over, whether its holder still answers or not.
    let left = match holder {
        Some(name) if is_silent(name) && view.switchover.is_none() => {
            view.lease.saturating_sub(lasted)
        }
        Some(_) | None => Duration::ZERO,
    };
    Some(left.max(lasted / 2).min(view.lease).max(LEAST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patroni::FailoverRequest;
    use crate::topology::{Topology, TopologyConfig};

    const SECOND: Duration = Duration::from_secs(1);

    fn asked(leader: LeaderState, planned: bool, now: Instant) -> Option<Duration> {
        let mut view = Topology::new(TopologyConfig::default(), now).view().clone();
        view.lease = 30 * SECOND;
        view.leader = leader;
        view.switchover = planned.then(FailoverRequest::default);
        retry_after(&view, now)
    }

    #[test]
    fn it_follows_from_the_lease_and_what_has_passed_of_it() {
        let now = Instant::now() + 1_000 * SECOND;
        let member = || "a".to_owned();
        for (lasted, planned, claimed, unknown) in [
            (0, false, 30, 1),
            (10, false, 20, 5),
            (20, false, 10, 10),
            (40, false, 20, 20),
            (600, false, 30, 30),
            (0, true, 1, 1),
            (10, true, 5, 5),
        ] {
            let since = now - lasted * SECOND;
            let by_claim = asked(LeaderState::Claimed { member: member(), since }, planned, now);
            assert_eq!(by_claim, Some(claimed * SECOND), "claimed for {lasted} s, {planned}");
            let by_none = asked(LeaderState::Unknown { since }, planned, now);
            assert_eq!(by_none, Some(unknown * SECOND), "unknown for {lasted} s, {planned}");
        }
        let since = now;
        assert_eq!(asked(LeaderState::Admitted { member: member(), since }, false, now), None);
    }
}
