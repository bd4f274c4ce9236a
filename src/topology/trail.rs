//! How fresh a replica is, without comparing clocks.
//!
//! Each probe of the leader leaves a mark: at this moment, everything up to this position had been
//! written. A replica that has replayed a mark's position holds everything committed before that
//! moment, so its staleness is at most the mark's age. `pg_last_xact_replay_timestamp()` alone cannot
//! tell: on an idle cluster it grows without bound, and received minus replayed is zero on a replica
//! that receives nothing.

use std::collections::VecDeque;

use tokio::time::Instant;

use crate::patroni::Lsn;

/// Marks kept: at the default cadence several minutes, and a bound whatever the cadence.
const CAPACITY: usize = 512;

/// The leader's positions over time, within one reign.
#[derive(Debug, Clone, Default)]
pub(super) struct LeaderTrail {
    marks: VecDeque<(Instant, Lsn)>,
}

impl LeaderTrail {
    /// Forgets everything: positions of another reign prove nothing.
    pub(super) fn clear(&mut self) {
        self.marks.clear();
    }

    /// Notes that the leader, asked at `sent_at`, had written up to `written`.
    pub(super) fn mark(&mut self, sent_at: Instant, written: Lsn) {
        if let Some(last) = self.marks.back_mut() {
            if last.0 >= sent_at || written < last.1 {
                return;
            }
            if last.1 == written {
                // Nothing was written in between, so the later moment holds for the same position.
                last.0 = sent_at;
                return;
            }
        }
        if self.marks.len() == CAPACITY {
            self.marks.pop_front();
        }
        self.marks.push_back((sent_at, written));
    }

    /// The last moment of which a replica that has replayed up to `replayed` is known to hold all
    /// commits.
    pub(super) fn caught_up_at(&self, replayed: Lsn) -> Option<Instant> {
        self.marks.iter().rev().find(|(_, written)| *written <= replayed).map(|(at, _)| *at)
    }

    /// The last position the leader is known to have written.
    pub(super) fn last_position(&self) -> Option<Lsn> {
        self.marks.back().map(|(_, written)| *written)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_replica_is_as_fresh_as_the_last_mark_it_has_replayed() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut trail = LeaderTrail::default();
        trail.mark(at(1), Lsn(100));
        trail.mark(at(2), Lsn(200));
        trail.mark(at(3), Lsn(200));
        trail.mark(at(4), Lsn(300));
        assert_eq!(trail.caught_up_at(Lsn(99)), None);
        assert_eq!(trail.caught_up_at(Lsn(150)), Some(at(1)));
        assert_eq!(trail.caught_up_at(Lsn(200)), Some(at(3)), "an idle leader adds no lag");
        assert_eq!(trail.caught_up_at(Lsn(900)), Some(at(4)));
        trail.mark(at(3), Lsn(400));
        assert_eq!(trail.last_position(), Some(Lsn(300)), "a late answer changes nothing");
    }

    #[test]
    fn the_trail_is_bounded() {
        let start = Instant::now();
        let mut trail = LeaderTrail::default();
        for step in 0..10_000_u64 {
            trail.mark(start + Duration::from_millis(step), Lsn(step));
        }
        assert_eq!(trail.marks.len(), CAPACITY);
    }
}
