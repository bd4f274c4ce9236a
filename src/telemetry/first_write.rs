//! Whether the admitted leader has acknowledged a write.
//!
//! Asked at each checkout for writing, of memory that is at hand there; once the answer is yes, nothing
//! else is done.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::pool::WriteTarget;

/// First writes kept for the report: more than there are failovers in it, as interruptions have theirs too.
const KEPT: usize = 64;

/// The first write of one admission.
#[derive(Debug)]
pub(crate) struct FirstWrite {
    at: OnceLock<Instant>,
    told: Arc<Notify>,
}

impl FirstWrite {
    /// None yet. `told` is notified of it.
    pub(crate) fn new(told: Arc<Notify>) -> Self {
        Self { at: OnceLock::new(), told }
    }

    /// When it was acknowledged.
    pub(crate) fn at(&self) -> Option<Instant> {
        self.at.get().copied()
    }

    fn acknowledged(&self) {
        if self.at.set(Instant::now()).is_ok() {
            self.told.notify_one();
        }
    }
}

/// A connection that may carry the first write.
pub(crate) struct Pending {
    target: Arc<WriteTarget>,
    /// The requests answered when it was handed out; `None` where only a commit counts.
    answers: Option<u64>,
}

impl Pending {
    /// What to watch for, unless the first write was there already. `answers` is how many requests of the
    /// connection are answered now.
    #[inline]
    pub(crate) fn of(target: &Arc<WriteTarget>, answers: impl FnOnce() -> u64) -> Option<Self> {
        if target.first_write.at.get().is_some() {
            return None;
        }
        Some(Self { target: Arc::clone(target), answers: Some(answers()) })
    }

    /// An answer proves nothing: its user says when a commit was acknowledged.
    pub(crate) fn only_commits_count(&mut self) {
        self.answers = None;
    }

    /// A commit was acknowledged.
    pub(crate) fn committed(&self) {
        self.target.first_write.acknowledged();
    }

    /// The connection comes back, with so many requests answered.
    pub(crate) fn returned(&self, answers: u64) {
        if self.answers.is_some_and(|before| answers > before) {
            self.target.first_write.acknowledged();
        }
    }
}

/// The first writes after the last admissions, by the moment of these.
#[derive(Debug, Default)]
pub(crate) struct FirstWrites(Mutex<VecDeque<(Instant, Instant)>>);

impl FirstWrites {
    pub(crate) fn push(&self, admitted_at: Instant, at: Instant) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() == KEPT {
            known.pop_front();
        }
        known.push_back((admitted_at, at));
    }

    /// When the leader that was admitted then acknowledged its first write.
    pub(crate) fn after(&self, admitted_at: Instant) -> Option<Instant> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|(admitted, _)| *admitted == admitted_at).map(|(_, at)| *at)
    }
}
