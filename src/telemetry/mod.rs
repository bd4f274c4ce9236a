//! What an operator sees: metrics, and traces.
//!
//! **Metrics** go through the [`metrics`](https://docs.rs/metrics) facade, under the cargo feature `metrics`
//! (off by default; without it nothing of this is compiled). Install a recorder before the pool is made. [`METRICS`]
//! lists all of them; their first label is the pool's name, `pool.name` in the configuration. What is in the
//! way of every checkout is only counted there, and passed on once a second; the facade is called where
//! something waits, fails or changes.
//!
//! **Traces** are spans of [`tracing`], named by OpenTelemetry's conventions for database clients. At level
//! DEBUG: `leaderpool.transaction`, `leaderpool.execute_write`, `leaderpool.query_read`, each over all
//! attempts of a call, and `leaderpool.settlement` within them. At level INFO, one trace for each failover:
//! `leaderpool.failover`, from the loss of a leader to the first write that the next one acknowledged, with a span
//! for each stretch of it (`….election`, `….promotion`, `….first_write`) and the pool's own events in it.
//!
//! A write is seen to be acknowledged when a commit of [`transaction`](crate::LeaderPool::transaction) or
//! [`execute_write`](crate::LeaderPool::execute_write) is, or when a connection of
//! [`write`](crate::LeaderPool::write) comes back with an answer. Ten seconds after a leader was admitted the
//! trace ends without one.
//!
//! `docs/telemetry.md` holds the tables of all metrics, spans and fields; a test compares them with the code.

mod call;
mod database;
mod failover;
mod first_write;
#[cfg(feature = "metrics")]
mod meter;
#[cfg(not(feature = "metrics"))]
#[path = "meter_noop.rs"]
mod meter;
mod table;
#[cfg(test)]
mod tests;
mod trace;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub use table::*;

pub(crate) use call::{Call, Failed, Settling};
pub(crate) use database::{Database, pool_name};
pub(crate) use first_write::{FirstWrite, FirstWrites, Pending};
pub(crate) use meter::{Meter, Wait};

use crate::pool::{Shared, WriteTarget};
use crate::topology::{TopologyEvent, WithdrawReason};
use failover::{Failover, News, Step, Unavailable};
use meter::Export;
use trace::FailoverSpans;

/// How often gauges are brought up to date.
pub(crate) const TICK: Duration = Duration::from_secs(1);

/// What a caller has the pool do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// `transaction`.
    Transaction,
    /// `execute_write`.
    ExecuteWrite,
    /// `query_read`.
    QueryRead,
}

/// What an admission after a loss was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Another member leads, or another timeline.
    Failover,
    /// The same reign goes on.
    Interruption,
}

/// A queue that may be full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Queue {
    /// Events for those who subscribed to them.
    Subscribers,
    /// What connections noticed, for the state machine.
    Supervisor,
}

#[cfg_attr(not(feature = "metrics"), expect(dead_code, reason = "for labels"))]
impl Operation {
    pub(crate) const ALL: [Operation; 3] =
        [Operation::Transaction, Operation::ExecuteWrite, Operation::QueryRead];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Operation::Transaction => "transaction",
            Operation::ExecuteWrite => "execute_write",
            Operation::QueryRead => "query_read",
        }
    }
}

impl Kind {
    #[cfg(feature = "metrics")]
    const ALL: [Kind; 2] = [Kind::Failover, Kind::Interruption];

    fn as_str(self) -> &'static str {
        match self {
            Kind::Failover => "failover",
            Kind::Interruption => "interruption",
        }
    }
}

#[cfg(feature = "metrics")]
impl Queue {
    const ALL: [Queue; 2] = [Queue::Subscribers, Queue::Supervisor];

    fn as_str(self) -> &'static str {
        match self {
            Queue::Subscribers => "subscribers",
            Queue::Supervisor => "supervisor",
        }
    }
}

/// The supervisor's part: what it sees, it tells here.
pub(crate) struct Telemetry {
    failover: Failover,
    spans: FailoverSpans,
    unavailable: Unavailable,
    export: Export,
    /// The target whose first write is awaited, and since when there is a leader.
    awaited: Option<(Arc<WriteTarget>, Instant)>,
}

impl Telemetry {
    /// For a pool that begins. Its gauges are there from now on.
    pub(crate) fn start(shared: &Shared, now: Instant) -> Self {
        let mut this = Self {
            failover: Failover::default(),
            spans: FailoverSpans::new(shared.database.pool.clone()),
            unavailable: Unavailable::new(now),
            export: Export::default(),
            awaited: None,
        };
        this.refresh(shared, now);
        this
    }

    /// Something happened. `tell` is called within the failover's span, where one is going on.
    pub(crate) fn saw(
        &mut self,
        event: &TopologyEvent,
        shared: &Shared,
        now: Instant,
        tell: impl FnOnce(),
    ) {
        let news = match event {
            TopologyEvent::LeaderLost { member, reason } => {
                self.unavailable.begin(now);
                self.awaited = None;
                let moved_to = match reason {
                    WithdrawReason::KeyMoved { to } => Some(to.clone()),
                    _ => None,
                };
                let (leader, reason) = (member.clone(), reason.to_string());
                Some(News::Lost { leader, reason, moved_to })
            }
            TopologyEvent::Candidate { member } => Some(News::Candidate(member.clone())),
            TopologyEvent::Admitted { member, epoch } => {
                self.unavailable.end(now);
                // An epoch that grows without a loss is no other admission.
                let since = self.awaited.take().map_or(now, |(_, since)| since);
                self.awaited = shared.target.load_full().map(|target| (target, since));
                Some(News::Admitted { leader: member.clone(), epoch: *epoch })
            }
            TopologyEvent::WritesLost { count, .. } => {
                shared.meter.lost_writes(*count);
                None
            }
            _ => None,
        };
        if let Some(news) = news {
            self.follow(news, shared, now);
        }
        self.spans.root().in_scope(tell);
        if matches!(
            event,
            TopologyEvent::LeaderLost { .. }
                | TopologyEvent::Admitted { .. }
                | TopologyEvent::Degraded { .. }
                | TopologyEvent::Restored { .. }
        ) {
            self.refresh(shared, now);
        }
    }

    /// The admitted leader may have acknowledged its first write.
    pub(crate) fn look_for_first_write(&mut self, shared: &Shared, now: Instant) {
        let Some((target, admitted_at)) = &self.awaited else { return };
        let Some(at) = target.first_write.at() else { return };
        shared.first_writes.push(*admitted_at, at);
        self.awaited = None;
        self.follow(News::FirstWrite { at }, shared, now);
    }

    /// A second has passed.
    pub(crate) fn tick(&mut self, shared: &Shared, now: Instant) {
        self.follow(News::Tick, shared, now);
        self.refresh(shared, now);
    }

    /// The pool is closed: to be called once there is neither a target nor a node.
    pub(crate) fn close(&mut self, shared: &Shared, now: Instant) {
        self.follow(News::Closed, shared, now);
        self.refresh(shared, now);
    }

    fn refresh(&mut self, shared: &Shared, now: Instant) {
        self.export.refresh(shared, self.unavailable.so_far(now), now);
    }

    fn follow(&mut self, news: News, shared: &Shared, now: Instant) {
        for step in self.failover.apply(news, now) {
            self.spans.carry_out(&step, shared.gate.gap_peak());
            match step {
                Step::Admitted { kind, gap, .. } => shared.meter.failed_over(kind, gap),
                Step::End { first_write: Some(after), .. } => shared.meter.first_write(after),
                Step::Begin { .. } | Step::Enter(_) | Step::End { .. } => {}
            }
        }
    }
}
