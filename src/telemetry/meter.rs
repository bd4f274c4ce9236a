//! What is counted, through the `metrics` facade.
//!
//! Handles are not kept: a recorder that is installed after the pool, or one that forgets what was idle,
//! would never see them again. Every call here is on a path that waits, fails, or comes once a second.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::{
    Label, SharedString, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};
use tokio::time::Instant;

use super::table::{self, METRICS, Metric, MetricKind, MetricUnit};
use super::{Kind, Operation, Queue};
use crate::client::Role;
use crate::error::CheckoutError;
use crate::node::{Node, Tally};
use crate::pool::Shared;
use crate::retry::Cause;
use crate::topology::BreakerState;

/// Counts what happens in one pool.
#[derive(Debug, Clone)]
pub(crate) struct Meter {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pool: SharedString,
    /// Operations that ended well, to be exported once a second: they are the common case.
    done: [AtomicU64; Operation::ALL.len()],
}

impl Meter {
    pub(crate) fn new(pool: &str) -> Self {
        describe();
        let inner = Inner { pool: Arc::<str>::from(pool).into(), done: Default::default() };
        Self { inner: Arc::new(inner) }
    }

    /// An operation ended well.
    pub(super) fn done(&self, operation: Operation) {
        self.inner.done[operation as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// An operation ended otherwise.
    pub(super) fn ended(&self, operation: Operation, outcome: &'static str) {
        self.add(&table::OPERATIONS, [operation.as_str().into(), outcome.into()], 1);
    }

    /// Another attempt is made.
    pub(crate) fn retried(&self, cause: Cause) {
        let cause = match cause {
            Cause::Sqlstate(code) => {
                format!("sqlstate_{}", code.class().prefix().unwrap_or("other")).into()
            }
            Cause::Panic(_) => "panic".into(),
            Cause::ConnectionLost
            | Cause::TimedOut
            | Cause::Cut
            | Cause::Cancelled
            | Cause::Client
            | Cause::Answer => super::call::error_type(cause).into(),
        };
        self.add(&table::RETRIES, [cause], 1);
    }

    /// Another attempt would have been made, had the budget allowed it.
    pub(crate) fn budget_exhausted(&self) {
        self.add(&table::BUDGET_EXHAUSTED, [], 1);
    }

    /// A commit in doubt was settled, or not.
    pub(super) fn settled(&self, result: &'static str) {
        self.add(&table::SETTLEMENTS, [result.into()], 1);
    }

    /// A caller got no connection.
    pub(crate) fn refused(&self, role: Role, error: &CheckoutError) {
        let reason = super::call::refusal(error);
        self.add(&table::CHECKOUT_FAILURES, [name(role).into(), reason.into()], 1);
    }

    /// A leader was admitted after one was lost.
    pub(super) fn failed_over(&self, kind: Kind, gap: Duration) {
        self.add(&table::FAILOVERS, [kind.as_str().into()], 1);
        self.record(&table::FAILOVER_GAP, [kind.as_str().into()], gap);
    }

    /// The new leader acknowledged its first write.
    pub(super) fn first_write(&self, since_loss: Duration) {
        self.record(&table::FIRST_WRITE, [], since_loss);
    }

    /// A failover dropped commits.
    pub(super) fn lost_writes(&self, count: usize) {
        self.add(&table::LOST_WRITES, [], count as u64);
    }

    /// A member's connections were cut.
    pub(crate) fn cut(&self, node: &str, connections: usize) {
        self.add(&table::CONNECTIONS_CUT, [shared(node)], connections as u64);
    }

    /// A full queue took no more.
    pub(crate) fn dropped(&self, queue: Queue) {
        self.add(&table::EVENTS_DROPPED, [queue.as_str().into()], 1);
    }

    /// A member's circuit breaker went from one state to another: `closed`, `open` or `half_open`.
    pub(crate) fn breaker_changed(&self, node: &str, from: BreakerState, to: BreakerState) {
        let name = |state| match state {
            BreakerState::Closed => "closed",
            BreakerState::Open => "open",
            BreakerState::HalfOpen => "half_open",
        };
        let values = [shared(node), name(from).into(), name(to).into()];
        self.add(&table::BREAKER_TRANSITIONS, values, 1);
    }

    fn waited(&self, role: Role, waited: Duration) {
        self.record(&table::CHECKOUT_WAIT, [name(role).into()], waited);
    }

    fn add<const N: usize>(&self, metric: &Metric, values: [SharedString; N], count: u64) {
        counter!(metric.name, self.labels(metric, values)).increment(count);
    }

    fn set<const N: usize>(&self, metric: &Metric, values: [SharedString; N], value: f64) {
        gauge!(metric.name, self.labels(metric, values)).set(value);
    }

    fn record<const N: usize>(&self, metric: &Metric, values: [SharedString; N], value: Duration) {
        histogram!(metric.name, self.labels(metric, values)).record(value);
    }

    /// The pool, and then what else the table says.
    fn labels<const N: usize>(&self, metric: &Metric, values: [SharedString; N]) -> Vec<Label> {
        debug_assert_eq!(metric.labels.len(), N + 1, "{}", metric.name);
        let values = std::iter::once(self.inner.pool.clone()).chain(values);
        metric.labels.iter().zip(values).map(|(key, value)| Label::new(*key, value)).collect()
    }
}

fn name(role: Role) -> &'static str {
    match role {
        Role::Write => "write",
        Role::Read => "read",
    }
}

fn shared(text: &str) -> SharedString {
    text.to_owned().into()
}

fn describe() {
    for Metric { name, kind, unit, help, .. } in METRICS {
        let unit = match unit {
            MetricUnit::Count => Unit::Count,
            MetricUnit::Seconds => Unit::Seconds,
            MetricUnit::Bytes => Unit::Bytes,
        };
        match kind {
            MetricKind::Counter => describe_counter!(*name, unit, *help),
            MetricKind::Gauge => describe_gauge!(*name, unit, *help),
            MetricKind::Histogram => describe_histogram!(*name, unit, *help),
        }
    }
}

/// Since when a caller has been waiting: told where it does, so that who need not wait does not look at the
/// clock.
#[derive(Debug, Default)]
pub(crate) struct Wait(OnceLock<Instant>);

impl Wait {
    /// From here on it waits.
    pub(crate) fn begin(&self) {
        self.0.get_or_init(Instant::now);
    }

    /// It has what it wanted, or gives up.
    pub(crate) fn end(&self, meter: &Meter, role: Role) {
        if let Some(since) = self.0.get() {
            meter.waited(role, since.elapsed());
        }
    }
}

/// What was exported already.
#[derive(Default)]
pub(super) struct Export {
    /// The members that have gauges, and what is known of their checkouts.
    nodes: BTreeMap<String, (Arc<Node>, Tally)>,
    done: [u64; Operation::ALL.len()],
}

impl Export {
    /// Brings gauges up to date, and passes on what was counted since the last time.
    pub(super) fn refresh(&mut self, shared: &Shared, unavailable: Duration, now: Instant) {
        let meter = &shared.meter;
        self.operations(meter);
        meter.set(&table::WRITE_UNAVAILABLE, [], unavailable.as_secs_f64());
        let view = shared.view.load_full();
        let admitted = shared.target.load().is_some();
        meter.set(&table::LEADER_ADMITTED, [], flag(admitted));
        let timeline = view.epoch.map(|epoch| f64::from(epoch.timeline.0));
        let revision = view.epoch.map(|epoch| number(epoch.revision.unsigned_abs()));
        meter.set(&table::EPOCH_TIMELINE, [], or_nan(timeline));
        meter.set(&table::EPOCH_REVISION, [], or_nan(revision));
        let age = view.contact_at.map(|at| now.saturating_duration_since(at).as_secs_f64());
        meter.set(&table::WATCH_AGE, [], or_nan(age));
        meter.set(&table::DEGRADED, [], flag(view.degraded.is_some()));
        let waiting = shared.waiting.load(Ordering::Relaxed);
        meter.set(&table::WRITERS_HELD, [], number(shared.gate.waiting() as u64));
        meter.set(&table::CALLERS_WAITING, [], number(waiting as u64));
        let lent = shared.lent.now().saturating_sub(waiting);
        meter.set(&table::CONNECTIONS_LENT, [], number(lent as u64));
        let nodes = shared.nodes.load();
        let is_there = |node: &Arc<Node>| {
            nodes.get(&node.name).is_some_and(|present| Arc::ptr_eq(present, node))
        };
        self.nodes.retain(|_, (node, known)| {
            let stays = is_there(node);
            if !stays {
                gone(meter, node, *known);
            }
            stays
        });
        for node in nodes.values() {
            let known = self.nodes.get(&node.name).map_or(Tally::default(), |(_, known)| *known);
            let tally = checkouts(meter, node, known);
            self.nodes.insert(node.name.clone(), (Arc::clone(node), tally));
            meter.cut(&node.name, 0);
            let label = || [self::shared(&node.name)];
            meter.set(&table::NODE_IN_USE, label(), number(node.load.in_flight() as u64));
            meter.set(&table::NODE_IDLE, label(), number(node.status().available as u64));
            meter.set(&table::NODE_LATENCY, label(), node.load.latency().as_secs_f64());
            let member = view.members.get(&node.name);
            let lag = member.and_then(|member| member.lag_bytes).map(number);
            let staleness = member.and_then(|member| member.staleness(now));
            meter.set(&table::NODE_LAG, label(), or_nan(lag));
            let staleness = staleness.map(|staleness| staleness.as_secs_f64());
            meter.set(&table::NODE_STALENESS, label(), or_nan(staleness));
        }
    }

    fn operations(&mut self, meter: &Meter) {
        for operation in Operation::ALL {
            let total = meter.inner.done[operation as usize].load(Ordering::Relaxed);
            let known = std::mem::replace(&mut self.done[operation as usize], total);
            // Zero too: a counter that appears only with its first event has no first increase.
            let labels = [operation.as_str().into(), "ok".into()];
            meter.add(&table::OPERATIONS, labels, total.wrapping_sub(known));
        }
        for kind in Kind::ALL {
            meter.add(&table::FAILOVERS, [kind.as_str().into()], 0);
        }
        for queue in Queue::ALL {
            meter.add(&table::EVENTS_DROPPED, [queue.as_str().into()], 0);
        }
        for metric in [&table::BUDGET_EXHAUSTED, &table::LOST_WRITES] {
            meter.add(metric, [], 0);
        }
    }
}

/// Passes on what was counted since `known`.
fn checkouts(meter: &Meter, node: &Node, known: Tally) -> Tally {
    let tally = node.load.tally();
    let (writes, reads) = tally.since(known);
    for (role, count) in [(Role::Write, writes), (Role::Read, reads)] {
        let labels = [shared(&node.name), name(role).into()];
        meter.add(&table::CHECKOUTS, labels, count);
    }
    tally
}

/// The last word of a member that left: its gauges do not stay at what they were.
fn gone(meter: &Meter, node: &Node, known: Tally) {
    checkouts(meter, node, known);
    for (metric, value) in [
        (&table::NODE_IN_USE, 0.0),
        (&table::NODE_IDLE, 0.0),
        (&table::NODE_LAG, f64::NAN),
        (&table::NODE_STALENESS, f64::NAN),
        (&table::NODE_LATENCY, f64::NAN),
    ] {
        meter.set(metric, [shared(&node.name)], value);
    }
}

fn flag(on: bool) -> f64 {
    if on { 1.0 } else { 0.0 }
}

/// Exact up to 2^53.
#[allow(clippy::cast_precision_loss)]
fn number(value: u64) -> f64 {
    value as f64
}

fn or_nan(value: Option<f64>) -> f64 {
    value.unwrap_or(f64::NAN)
}
