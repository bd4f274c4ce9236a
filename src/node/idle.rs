//! How long each idle connection has been idle, and when it last gave a sign of life: seen from outside, at
//! intervals, so that a checkout notes nothing.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// An idle connection: its own as long as it lives.
type Id = usize;

/// The idle connections of one member, as they were at the last look.
#[derive(Debug, Default)]
pub(super) struct Idle(HashMap<Id, Known>);

#[derive(Debug, Clone, Copy)]
struct Known {
    /// How often it had been taken out: one more, and it was used since.
    taken: usize,
    since: Instant,
    sign_at: Instant,
}

/// A look at all idle connections, oldest first.
#[derive(Debug)]
pub(super) struct Look<'a> {
    idle: &'a mut Idle,
    seen: HashMap<Id, Known>,
    now: Instant,
}

impl Idle {
    pub(super) fn look(&mut self, now: Instant) -> Look<'_> {
        Look { seen: HashMap::new(), idle: self, now }
    }

    /// It was taken out by the house itself, for nobody's use.
    pub(super) fn taken_for_care(&mut self, id: Id) {
        if let Some(known) = self.0.get_mut(&id) {
            known.taken += 1;
        }
    }

    /// It gave a sign of life.
    pub(super) fn gave_a_sign(&mut self, id: Id, at: Instant) {
        if let Some(known) = self.0.get_mut(&id) {
            known.sign_at = at;
        }
    }

    /// Whether it has given no sign of life for `interval`.
    pub(super) fn is_due(&self, id: Id, interval: Duration, now: Instant) -> bool {
        self.0.get(&id).is_some_and(|known| now.duration_since(known.sign_at) >= interval)
    }

    /// Whether there is one that has given no sign of life for `interval`.
    pub(super) fn any_due(&self, interval: Duration, now: Instant) -> bool {
        self.0.keys().any(|id| self.is_due(*id, interval, now))
    }
}

impl Look<'_> {
    /// One that is idle, having been taken out so often; for how long it has been so.
    pub(super) fn see(&mut self, id: Id, taken: usize) -> Duration {
        let fresh = Known { taken, since: self.now, sign_at: self.now };
        let known = self.idle.0.get(&id).filter(|known| known.taken == taken);
        let known = known.copied().unwrap_or(fresh);
        self.seen.insert(id, known);
        self.now.duration_since(known.since)
    }

    /// Forgets those that were not seen.
    pub(super) fn done(self) {
        self.idle.0 = self.seen;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn look(idle: &mut Idle, seen: &[(Id, usize)], now: Instant) -> Vec<u64> {
        let mut look = idle.look(now);
        let times = seen.iter().map(|&(id, taken)| look.see(id, taken).as_secs()).collect();
        look.done();
        times
    }

    #[test]
    fn use_ends_idleness_and_care_does_not() {
        let start = Instant::now();
        let at = |seconds: u32| start + seconds * SECOND;
        let mut idle = Idle::default();
        assert_eq!(look(&mut idle, &[(1, 0), (2, 4)], at(0)), [0, 0]);
        assert_eq!(look(&mut idle, &[(1, 0), (2, 4)], at(3)), [3, 3]);
        // The second was used, the first cared for.
        idle.taken_for_care(1);
        assert_eq!(look(&mut idle, &[(2, 5), (1, 1)], at(5)), [0, 5]);
        // Cared for, and used afterwards.
        idle.taken_for_care(1);
        assert_eq!(look(&mut idle, &[(2, 5), (1, 3)], at(6)), [1, 0]);
        // Away for one look: it was used.
        assert_eq!(look(&mut idle, &[(2, 5)], at(8)), [3]);
        assert_eq!(look(&mut idle, &[(2, 5), (1, 3)], at(9)), [4, 0]);
    }

    #[test]
    fn a_sign_of_life_is_due_after_the_interval_and_again_after_as_long() {
        let start = Instant::now();
        let at = |seconds: u32| start + seconds * SECOND;
        let mut idle = Idle::default();
        look(&mut idle, &[(1, 0)], at(0));
        assert!(!idle.any_due(5 * SECOND, at(4)) && idle.any_due(5 * SECOND, at(5)));
        idle.taken_for_care(1);
        idle.gave_a_sign(1, at(5));
        assert_eq!(look(&mut idle, &[(1, 1)], at(6)), [6], "it is as idle as before");
        assert!(!idle.is_due(1, 5 * SECOND, at(9)) && idle.is_due(1, 5 * SECOND, at(10)));
        assert!(!idle.is_due(2, 5 * SECOND, at(10)), "nobody knows it");
    }
}
