//! The tokens given out last, to tell which of them a failover lost.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::CausalToken;
use crate::patroni::{Lsn, Timeline};

/// The last tokens that were given out, oldest first, up to a bound.
#[derive(Debug)]
pub struct TokenRing {
    tokens: VecDeque<(CausalToken, Instant)>,
    capacity: usize,
    /// Whether any was pushed out.
    overflowed: bool,
}

/// Tokens whose writes a failover lost: acknowledged commits that had not reached the new leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostTokens {
    /// How many are known.
    pub count: usize,
    /// Whether there may be more, which the ring no longer holds.
    pub at_least: bool,
    /// The lowest position among them, and when it was given out.
    pub first: (CausalToken, Instant),
    /// The highest position, and when it was given out.
    pub last: (CausalToken, Instant),
}

impl TokenRing {
    /// How many tokens a ring holds by default.
    pub const DEFAULT_CAPACITY: usize = 1024;

    /// A ring for `capacity` tokens, at least one.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { tokens: VecDeque::new(), capacity: capacity.max(1), overflowed: false }
    }

    /// Remembers a token that was given out.
    pub fn push(&mut self, token: CausalToken, now: Instant) {
        if self.tokens.len() >= self.capacity {
            self.tokens.pop_front();
            self.overflowed = true;
        }
        self.tokens.push_back((token, now));
    }

    /// How many tokens it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The tokens of `timeline` beyond `switch_lsn`, where it was left; `None` where there are none. Those of
    /// older timelines were counted when theirs was left.
    #[must_use]
    pub fn lost_beyond(&self, timeline: Timeline, switch_lsn: Lsn) -> Option<LostTokens> {
        let of_timeline = |entry: &&(CausalToken, Instant)| entry.0.timeline == timeline;
        let lost =
            || self.tokens.iter().filter(of_timeline).filter(|(token, _)| token.lsn > switch_lsn);
        let first = *lost().min_by_key(|(token, _)| token.lsn)?;
        let last = *lost().max_by_key(|(token, _)| token.lsn)?;
        // Tokens are given out nearly in order: one from before the loss means that all of the loss
        // is still here.
        let begins_before =
            self.tokens.front().is_some_and(|(t, _)| t.timeline < timeline || t.lsn <= switch_lsn);
        let at_least = self.overflowed && !begins_before;
        Some(LostTokens { count: lost().count(), at_least, first, last })
    }
}

impl Default for TokenRing {
    fn default() -> Self {
        Self::new(Self::DEFAULT_CAPACITY)
    }
}
