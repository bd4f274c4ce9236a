//! The gate before the leader: while there is none, writers wait here.
//!
//! At most so many, first come first served, each to its own deadline. When a leader is admitted they are
//! let go in a ramp of 1, 2, 4, …: the next batch when the last one has its connections (or failed to get
//! them), or when a step takes too long. A server that was promoted a moment ago has cold caches and few
//! backends; all writers at once would be its worst load at its worst moment. Who arrives meanwhile
//! queues behind. With the queue empty the gate is open, and passing it is one atomic load.
//!
//! Being let go is permission to try, not proof of a leader: the reign is compared as always.
//!
//! [`HoldQueue`] is pure; [`Gate`] puts tasks to sleep and wakes them; a [`Line`] is a place before it for one
//! who has no call in hand yet.

mod line;
mod queue;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};

pub(crate) use line::Line;
use queue::{Arrival, HoldQueue, Id};

/// How long one step of the ramp may take: several times a warm connection's check, and short against any
/// failover.
pub(crate) const STEP_LIMIT: Duration = Duration::from_millis(50);

/// Why a writer was not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HoldError {
    /// As many wait as may.
    #[error("{limit} writers are waiting already")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// The gate did not open in time.
    #[error("no leader before the deadline")]
    DeadlinePassed,
    /// The gate was shut for good.
    #[error("the gate is shut")]
    Closed,
}

/// The gate, with tasks before it. It starts closed.
#[derive(Debug)]
pub(crate) struct Gate {
    /// Whether the queue lets arrivals pass; written under the lock.
    open: AtomicBool,
    /// Told when a ramp begins.
    ramp: Notify,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    queue: HoldQueue,
    /// How to wake those who are queued. Who is not in here any more was let go.
    sleepers: HashMap<Id, Arc<Notify>>,
    shut: bool,
}

impl Gate {
    pub(crate) fn new(max_waiting: usize, step_limit: Duration) -> Self {
        let queue = HoldQueue::new(max_waiting, step_limit);
        let inner = Inner { queue, sleepers: HashMap::new(), shut: false };
        Self { open: AtomicBool::new(false), ramp: Notify::new(), inner: Mutex::new(inner) }
    }

    /// Passes an open gate: one atomic load, and no look at the clock.
    #[inline]
    pub(crate) fn pass_at_once(&self) -> Option<Permit<&Self>> {
        self.is_open().then_some(Permit { gate: self, id: None })
    }

    /// Passes the gate, by `deadline` where it has to wait. An open gate does not look at the clock.
    ///
    /// Keep the permit until the connection is there or has failed: the ramp waits for it. Cancel-safe: a
    /// dropped call leaves the queue.
    ///
    /// # Errors
    /// [`HoldError`]; at once where as many wait as may.
    #[inline]
    pub(crate) async fn pass(&self, deadline: Instant) -> Result<Permit<&Self>, HoldError> {
        if let Some(permit) = self.pass_at_once() {
            return Ok(permit);
        }
        self.queue_up(deadline).await
    }

    /// Whether who comes now need not wait.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    async fn queue_up(&self, deadline: Instant) -> Result<Permit<&Self>, HoldError> {
        let Some((id, wake)) = self.enter(HoldQueue::arrive)? else {
            return Ok(Permit { gate: self, id: None });
        };
        // From here on its drop leaves the queue, or reports as done where it was let go meanwhile.
        let permit = Permit { gate: self, id: Some(id) };
        // Woken only when it is let go, or when the gate is shut.
        let woken = timeout_at(deadline, wake.notified()).await.is_ok();
        // It may have been let go at the very moment of its deadline.
        if self.was_let_go(id) {
            return Ok(permit);
        }
        Err(if woken { HoldError::Closed } else { HoldError::DeadlinePassed })
    }

    fn enter(
        &self,
        arrive: impl FnOnce(&mut HoldQueue) -> Arrival,
    ) -> Result<Option<(Id, Arc<Notify>)>, HoldError> {
        self.with(|inner| {
            if inner.shut {
                return (Err(HoldError::Closed), Vec::new());
            }
            let result = match arrive(&mut inner.queue) {
                Arrival::Passed => Ok(None),
                Arrival::Full => Err(HoldError::TooMany { limit: inner.queue.limit() }),
                Arrival::Queued(id) => {
                    let wake = Arc::new(Notify::new());
                    inner.sleepers.insert(id, Arc::clone(&wake));
                    Ok(Some((id, wake)))
                }
            };
            (result, Vec::new())
        })
    }

    fn was_let_go(&self, id: Id) -> bool {
        self.with(|inner| (!inner.sleepers.contains_key(&id), Vec::new()))
    }

    /// A leader is admitted: to be called once the write target is there for all to see.
    pub(crate) fn open(&self) {
        self.with(|inner| {
            let released = if inner.shut { Vec::new() } else { inner.queue.open(Instant::now()) };
            ((), released)
        });
        self.ramp.notify_one();
    }

    /// The leader is lost: to be called before the write target is taken away, so that nobody runs in
    /// circles between an open gate and no target.
    pub(crate) fn close(&self) {
        self.with(|inner| (inner.queue.close(), Vec::new()));
    }

    /// Sends everybody away, now and from now on.
    pub(crate) fn shut(&self) {
        self.with(|inner| {
            inner.shut = true;
            inner.queue.close();
            // They find that they were not let go, and leave.
            inner.sleepers.values().for_each(|wake| wake.notify_one());
            ((), Vec::new())
        });
        self.ramp.notify_one();
    }

    /// Keeps the ramp going where a batch takes too long; ends when the gate is shut. To be run once, by
    /// the pool: those who wait cannot be relied upon, as a future that nobody polls would then hold up all
    /// behind it. May be dropped and called again at any time.
    pub(crate) async fn drive(&self) {
        loop {
            let (step_ends, shut) =
                self.with(|inner| ((inner.queue.step_ends(), inner.shut), Vec::new()));
            match step_ends {
                _ if shut => return,
                // Steps only move away, so that waking too early is all that can happen.
                Some(at) => {
                    sleep_until(at).await;
                    self.with(|inner| ((), inner.queue.tick(Instant::now())));
                }
                None => self.ramp.notified().await,
            }
        }
    }

    /// Whether a leader is there, be it that some still queue for it.
    fn is_letting_go(&self) -> bool {
        self.with(|inner| (!inner.queue.is_closed(), Vec::new()))
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.with(|inner| (inner.queue.len(), Vec::new()))
    }

    /// The most that ever waited at once.
    pub(crate) fn peak(&self) -> usize {
        self.with(|inner| (inner.queue.peak(), Vec::new()))
    }

    /// The most that waited at once since the gate was last closed.
    pub(crate) fn gap_peak(&self) -> usize {
        self.with(|inner| (inner.queue.gap_peak(), Vec::new()))
    }

    fn depart(&self, id: Id) {
        self.with(|inner| {
            inner.sleepers.remove(&id);
            let released = if inner.queue.leave(id) {
                Vec::new()
            } else {
                inner.queue.done(id, Instant::now())
            };
            ((), released)
        });
    }

    /// Does something under the lock, and wakes whom it lets go.
    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> (T, Vec<Id>)) -> T {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (result, released) = work(&mut inner);
        let woken: Vec<Arc<Notify>> =
            released.iter().filter_map(|id| inner.sleepers.remove(id)).collect();
        self.open.store(inner.queue.is_open(), Ordering::Release);
        drop(inner);
        woken.iter().for_each(|wake| wake.notify_one());
        result
    }
}

/// Permission to ask the leader for a connection. Dropped, it reports that this is done.
#[derive(Debug)]
#[must_use = "the ramp goes on as soon as it is dropped"]
pub(crate) struct Permit<G: Deref<Target = Gate>> {
    gate: G,
    /// `None` where the gate stood open.
    id: Option<Id>,
}

impl<G: Deref<Target = Gate>> Permit<G> {
    /// The same permission, as a borrower of the same gate has it.
    pub(crate) fn lend(mut self, gate: &Gate) -> Permit<&Gate> {
        debug_assert!(std::ptr::eq(&raw const *self.gate, gate), "of another gate");
        Permit { gate, id: self.id.take() }
    }

    /// Whether the caller had to wait.
    pub(crate) fn was_held(&self) -> bool {
        self.id.is_some()
    }
}

impl<G: Deref<Target = Gate>> Drop for Permit<G> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.gate.depart(id);
        }
    }
}
