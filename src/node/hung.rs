//! Which connections have been waiting for an answer for long, and whether any got one: seen from outside,
//! at intervals, so that a statement itself starts no timer and looks at no clock.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::wire::WireState;

/// A member's connections, as they were at the last look.
#[derive(Debug, Default)]
pub(super) struct Statements(HashMap<usize, Known>);

#[derive(Debug, Clone, Copy)]
struct Known {
    /// Answers so far.
    answers: u64,
    /// Since when it has waited for the next one.
    waiting_since: Option<Instant>,
}

/// One connection, as it is now.
#[derive(Debug, Clone, Copy)]
struct Now {
    /// Its own as long as it lives.
    id: usize,
    answers: u64,
    waits: bool,
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    /// How many have waited for one answer for the whole bound.
    pub(super) hung: usize,
    /// Whether any has got an answer since the last look.
    pub(super) answered: bool,
}

impl Statements {
    /// Looks at all live connections of a member.
    pub(super) fn look(&mut self, wires: &[Arc<WireState>], bound: Duration, now: Instant) -> Look {
        let seen = wires.iter().map(|wire| Now {
            id: Arc::as_ptr(wire) as usize,
            answers: wire.answers(),
            waits: !wire.is_quiet(),
        });
        self.look_at(seen, bound, now)
    }

    fn look_at(&mut self, seen: impl Iterator<Item = Now>, bound: Duration, now: Instant) -> Look {
        let mut look = Look { hung: 0, answered: false };
        let before = std::mem::take(&mut self.0);
        for Now { id, answers, waits } in seen {
            let known = before.get(&id);
            let same = known.filter(|known| known.answers == answers);
            // What is new may have been answered before this member fell silent.
            look.answered |= known.is_some() && same.is_none();
            let since = same.and_then(|known| known.waiting_since).unwrap_or(now);
            if waits && now.duration_since(since) >= bound {
                look.hung += 1;
            }
            self.0.insert(id, Known { answers, waiting_since: waits.then_some(since) });
        }
        look
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds; connections as `(id, answers, waits)`; how many hang, and whether any was answered.
    type Row = (u64, &'static [(usize, u64, bool)], usize, bool);

    const TABLE: &[Row] = &[
        (0, &[(1, 7, true), (2, 0, true), (3, 5, false)], 0, false),
        (4, &[(1, 7, true), (2, 1, true), (3, 5, false)], 0, true),
        (5, &[(1, 7, true), (2, 1, true), (3, 5, true)], 1, false),
        // An answer in between: it is another statement.
        (6, &[(1, 8, true), (2, 1, true), (3, 5, true)], 0, true),
        (9, &[(1, 8, true), (2, 1, true), (3, 5, true)], 1, false),
        (11, &[(1, 8, true), (2, 1, true), (3, 5, true)], 3, false),
        // One done, another gone.
        (12, &[(1, 9, false), (2, 1, true)], 1, true),
        (13, &[(1, 9, true), (2, 1, true)], 1, false),
        // What is new is no news.
        (14, &[(4, 3, true)], 0, false),
        (15, &[], 0, false),
    ];

    #[test]
    fn the_same_statement_counts_once_it_has_lasted() {
        let bound = Duration::from_secs(5);
        let start = Instant::now();
        let mut statements = Statements::default();
        for (seconds, connections, hung, answered) in TABLE {
            let now = start + Duration::from_secs(*seconds);
            let seen = connections.iter().map(|&(id, answers, waits)| Now { id, answers, waits });
            let found = statements.look_at(seen, bound, now);
            assert_eq!(found, Look { hung: *hung, answered: *answered }, "after {seconds} s");
        }
    }
}
