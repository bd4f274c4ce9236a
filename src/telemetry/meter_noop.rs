//! What stands in for the meter without the feature `metrics`: nothing.

use std::time::Duration;

use tokio::time::Instant;

use super::{Kind, Operation, Queue};
use crate::client::Role;
use crate::error::CheckoutError;
use crate::pool::Shared;
use crate::retry::Cause;
use crate::topology::BreakerState;

#[derive(Debug, Clone)]
pub(crate) struct Meter;

impl Meter {
    pub(crate) fn new(_: &str) -> Self {
        Self
    }

    pub(super) fn done(&self, _: Operation) {}

    pub(super) fn ended(&self, _: Operation, _: &'static str) {}

    pub(crate) fn retried(&self, _: Cause) {}

    pub(crate) fn budget_exhausted(&self) {}

    pub(super) fn settled(&self, _: &'static str) {}

    pub(crate) fn refused(&self, _: Role, _: &CheckoutError) {}

    pub(super) fn failed_over(&self, _: Kind, _: Duration) {}

    pub(super) fn first_write(&self, _: Duration) {}

    pub(super) fn lost_writes(&self, _: usize) {}

    pub(crate) fn cut(&self, _: &str, _: usize) {}

    pub(crate) fn dropped(&self, _: Queue) {}

    pub(crate) fn breaker_changed(&self, _: &str, _: BreakerState, _: BreakerState) {}
}

#[derive(Debug, Default)]
pub(crate) struct Wait(());

impl Wait {
    pub(crate) fn begin(&self) {}

    pub(crate) fn end(&self, _: &Meter, _: Role) {}
}

#[derive(Debug, Default)]
pub(super) struct Export(());

impl Export {
    pub(super) fn refresh(&mut self, _: &Shared, _: Duration, _: Instant) {}
}
