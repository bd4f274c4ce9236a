//! One connection kept at hand.
//!
//! In the steady state a connection comes back a moment before it is wanted again. It then waits here, beside
//! the pool that it still belongs to, and is taken again without the pool's queue, clock and bookkeeping.
//! Whoever has to wait for a connection comes first: while anybody does, nothing is kept here.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A place for one thing, and the count of those who wait for any.
#[derive(Debug)]
pub(super) struct Hot<T>(Mutex<Slot<T>>);

#[derive(Debug)]
struct Slot<T> {
    kept: Option<T>,
    /// Whether it was taken since the last look.
    taken: bool,
    waiters: usize,
    closed: bool,
}

impl<T> Hot<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Slot { kept: None, taken: false, waiters: 0, closed: false }))
    }

    /// Each hold is a few instructions long.
    fn lock(&self) -> MutexGuard<'_, Slot<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is kept here, if anything is.
    #[inline]
    pub(super) fn take(&self) -> Option<T> {
        let mut slot = self.lock();
        let kept = slot.kept.take();
        slot.taken |= kept.is_some();
        kept
    }

    /// Keeps it; or gives it back where somebody waits, the place is taken, or closed.
    #[inline]
    pub(super) fn keep(&self, thing: T) -> Result<(), T> {
        let mut slot = self.lock();
        if slot.waiters > 0 || slot.closed || slot.kept.is_some() {
            return Err(thing);
        }
        slot.kept = Some(thing);
        Ok(())
    }

    /// Waits in line from here on, until it is dropped; what was kept is for who comes so.
    pub(super) fn wait(&self) -> (Waiter<'_, T>, Option<T>) {
        let mut slot = self.lock();
        slot.waiters += 1;
        let kept = slot.kept.take();
        drop(slot);
        (Waiter(self), kept)
    }

    /// What was kept here since the last look without being wanted.
    pub(super) fn unwanted(&self) -> Option<T> {
        let mut slot = self.lock();
        if std::mem::take(&mut slot.taken) { None } else { slot.kept.take() }
    }

    /// Whether anything is kept here.
    pub(super) fn is_occupied(&self) -> bool {
        self.lock().kept.is_some()
    }

    /// Keeps nothing more.
    pub(super) fn close(&self) -> Option<T> {
        let mut slot = self.lock();
        slot.closed = true;
        slot.kept.take()
    }
}

/// Somebody who waits for a connection of the pool.
#[derive(Debug)]
pub(super) struct Waiter<'a, T>(&'a Hot<T>);

impl<T> Drop for Waiter<'_, T> {
    fn drop(&mut self) {
        self.0.lock().waiters -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_taken_once() {
        let hot = Hot::new();
        assert_eq!(hot.take(), None);
        assert_eq!(hot.keep(1), Ok(()));
        assert_eq!(hot.keep(2), Err(2), "there is one place");
        assert!(hot.is_occupied());
        assert_eq!(hot.take(), Some(1));
        assert_eq!(hot.take(), None);
    }

    #[test]
    fn who_waits_comes_first() {
        let hot = Hot::new();
        assert_eq!(hot.keep(1), Ok(()));
        let (first, kept) = hot.wait();
        assert_eq!(kept, Some(1));
        let (second, kept) = hot.wait();
        assert_eq!(kept, None);
        assert_eq!(hot.keep(2), Err(2));
        drop(first);
        assert_eq!(hot.keep(2), Err(2), "the second still waits");
        drop(second);
        assert_eq!(hot.keep(2), Ok(()));
    }

    #[test]
    fn what_nobody_wants_is_found() {
        let hot = Hot::new();
        assert_eq!(hot.keep(1), Ok(()));
        assert_eq!(hot.take(), Some(1));
        assert_eq!(hot.keep(1), Ok(()));
        assert_eq!(hot.unwanted(), None, "it was taken since the last look");
        assert_eq!(hot.unwanted(), Some(1));
        assert_eq!(hot.unwanted(), None);
    }

    #[test]
    fn a_closed_place_keeps_nothing() {
        let hot = Hot::new();
        assert_eq!(hot.keep(1), Ok(()));
        assert_eq!(hot.close(), Some(1));
        assert_eq!(hot.keep(2), Err(2));
        assert_eq!(hot.take(), None);
    }
}
