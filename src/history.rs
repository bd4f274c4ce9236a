//! The switch points of the current timeline, and which tokens lie beyond them.
//!
//! Patroni writes `/history` up to a loop after a promotion. The new leader has the same list in a file of its
//! own at once; it is read there where the user may (`pg_read_server_files`), and awaited otherwise.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use serde::Serialize;
use tokio::time::Instant;

use crate::patroni::{HistoryLine, Lsn, Timeline};
use crate::token::{CausalToken, LostTokens, TokenRing};
use crate::topology::ClusterView;

/// Losses kept for the report.
const KEPT: usize = 16;

/// Acknowledged commits that a failover dropped, of those that this pool gave tokens for.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LostWrites {
    /// The timeline that was left.
    pub timeline: Timeline,
    /// Where it was left: what lies beyond is gone.
    pub switch_lsn: Lsn,
    /// How many tokens lie beyond.
    pub count: usize,
    /// Whether there may be more than the pool remembers.
    pub at_least: bool,
    /// The earliest of them, in the order in which they were given out.
    pub first: CausalToken,
    /// The last of them.
    pub last: CausalToken,
    /// When the first one was given out, in milliseconds since 1970.
    pub first_at_unix_ms: u64,
}

/// What is known of the current timeline's past, and the tokens that were given out.
#[derive(Debug)]
pub(crate) struct Past {
    own: ArcSwapOption<(Timeline, Vec<HistoryLine>)>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    tokens: TokenRing,
    lost: VecDeque<LostWrites>,
    /// The timeline up to which losses were looked for.
    checked: Option<Timeline>,
}

impl Past {
    pub(crate) fn new() -> Self {
        let tokens = TokenRing::new(TokenRing::DEFAULT_CAPACITY);
        let state = State { tokens, lost: VecDeque::new(), checked: None };
        Self { own: ArcSwapOption::empty(), state: Mutex::new(state) }
    }

    /// The leader's own list, which goes up to `timeline`.
    pub(crate) fn learn(&self, timeline: Timeline, history: Vec<HistoryLine>) {
        self.own.store(Some(std::sync::Arc::new((timeline, history))));
    }

    /// The best list for the current timeline.
    pub(crate) fn history(&self, view: &ClusterView) -> Vec<HistoryLine> {
        match self.own.load().as_deref() {
            Some((timeline, lines))
                if view.epoch.is_some_and(|epoch| epoch.timeline == *timeline) =>
            {
                lines.clone()
            }
            _ => view.history.clone(),
        }
    }

    pub(crate) fn given_out(&self, token: CausalToken) {
        self.lock().tokens.push(token, Instant::now());
    }

    pub(crate) fn lost(&self) -> Vec<LostWrites> {
        self.lock().lost.iter().cloned().collect()
    }

    /// Looks for tokens that the last changes of timeline dropped; gives those that were not told yet.
    pub(crate) fn look_for_losses(&self, view: &ClusterView) -> Vec<LostWrites> {
        let Some(current) = view.epoch.map(|epoch| epoch.timeline) else { return Vec::new() };
        let mut state = self.lock();
        let Some(checked) = state.checked else {
            state.checked = Some(current);
            return Vec::new();
        };
        if checked >= current {
            return Vec::new();
        }
        let history = self.history(view);
        // Only a list that reaches the current timeline says where the last one was left.
        let reaches = history.iter().any(|line| line.timeline.0.checked_add(1) == Some(current.0));
        if !reaches {
            return Vec::new();
        }
        state.checked = Some(current);
        let found: Vec<LostWrites> = history
            .iter()
            .filter(|line| line.timeline >= checked && line.timeline < current)
            .filter_map(|line| {
                let lost = state.tokens.lost_beyond(line.timeline, line.switch_lsn)?;
                Some(LostWrites::new(line, &lost))
            })
            .collect();
        for lost in &found {
            if state.lost.len() == KEPT {
                state.lost.pop_front();
            }
            state.lost.push_back(lost.clone());
        }
        found
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LostWrites {
    fn new(line: &HistoryLine, lost: &LostTokens) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at = now.saturating_sub(lost.first.1.elapsed());
        Self {
            timeline: line.timeline,
            switch_lsn: line.switch_lsn,
            count: lost.count,
            at_least: lost.at_least,
            first: lost.first.0,
            last: lost.last.0,
            first_at_unix_ms: millis(at),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
