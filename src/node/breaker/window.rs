//! Outcomes of the last seconds, in slots.

use std::time::Duration;

use tokio::time::Instant;

const SLOTS: u64 = 10;

/// Numbers the slots of time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slots {
    start: Instant,
    /// Nanoseconds.
    length: u64,
}

impl Slots {
    pub(super) fn new(window: Duration, start: Instant) -> Self {
        let length = u64::try_from(window.as_nanos() / u128::from(SLOTS)).unwrap_or(u64::MAX);
        Self { start, length: length.max(1) }
    }

    pub(super) fn number(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.start).as_nanos();
        u64::try_from(elapsed).unwrap_or(u64::MAX) / self.length
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    number: u64,
    succeeded: u64,
    failed: u64,
}

/// The last ten slots.
#[derive(Debug, Default)]
pub(super) struct Window([Slot; SLOTS as usize]);

impl Window {
    pub(super) fn add(&mut self, number: u64, succeeded: u64, failed: u64) {
        let slot = &mut self.0[(number % SLOTS) as usize];
        if slot.number < number {
            *slot = Slot { number, ..Slot::default() };
        } else if slot.number > number {
            // Older than the window.
            return;
        }
        slot.succeeded = slot.succeeded.saturating_add(succeeded);
        slot.failed = slot.failed.saturating_add(failed);
    }

    /// Failures and all samples in the window that ends with this slot.
    pub(super) fn totals(&self, newest: u64) -> (u64, u64) {
        let recent = self.0.iter().filter(|slot| newest.saturating_sub(slot.number) < SLOTS);
        recent.fold((0, 0), |(failed, of), slot| {
            let failed = u64::saturating_add(failed, slot.failed);
            (failed, u64::saturating_add(of, slot.succeeded.saturating_add(slot.failed)))
        })
    }
}
