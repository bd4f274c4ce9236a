//! Every metric: its name, kind, unit, labels and what it says.

/// How a metric moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// Is set.
    Gauge,
    /// Takes in single values.
    Histogram,
}

/// What a metric's numbers stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MetricUnit {
    /// So many of something, or a flag of 0 and 1.
    Count,
    /// Seconds, with their fraction.
    Seconds,
    /// Bytes.
    Bytes,
}

/// One metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// How it moves.
    pub kind: MetricKind,
    /// Its unit.
    pub unit: MetricUnit,
    /// The names of its labels, in this order.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($constant:ident = $kind:ident, $unit:ident, $name:literal $labels:tt: $help:literal;)+) => {
        $(
            #[doc = $help]
            pub const $constant: Metric = Metric {
                name: $name,
                kind: MetricKind::$kind,
                unit: MetricUnit::$unit,
                labels: &$labels,
                help: $help,
            };
        )+

        /// Every metric, in the order of the documentation.
        pub const METRICS: &[Metric] = &[$($constant,)+];
    };
}

metrics! {
    WRITE_UNAVAILABLE = Gauge, Seconds, "leaderpool_write_unavailable_seconds" ["pool"]:
        "Seconds without an admitted leader since the pool was made, the present gap included. Only grows.";
    LEADER_ADMITTED = Gauge, Count, "leaderpool_leader_admitted" ["pool"]:
        "1 where writes go to a leader, 0 while they are held.";
    EPOCH_TIMELINE = Gauge, Count, "leaderpool_epoch_timeline" ["pool"]:
        "Timeline of the last admitted leader; NaN before the first.";
    EPOCH_REVISION = Gauge, Count, "leaderpool_epoch_revision" ["pool"]:
        "Create revision of the last admitted leader's key; NaN before the first.";
    FAILOVERS = Counter, Count, "leaderpool_failovers_total" ["pool", "kind"]:
        "Leaders admitted after one was lost: `failover` to another member or timeline, `interruption` of the same reign.";
    FAILOVER_GAP = Histogram, Seconds, "leaderpool_failover_gap_seconds" ["pool", "kind"]:
        "How long writes had no leader, once for each of these.";
    FIRST_WRITE = Histogram, Seconds, "leaderpool_failover_first_write_seconds" ["pool"]:
        "From the loss of a leader to the first write that the next one acknowledged.";
    WATCH_AGE = Gauge, Seconds, "leaderpool_watch_age_seconds" ["pool"]:
        "Since the source of the topology last answered; NaN before its first answer.";
    DEGRADED = Gauge, Count, "leaderpool_degraded" ["pool"]:
        "1 while the source of the topology does not answer.";
    WRITERS_HELD = Gauge, Count, "leaderpool_writers_held" ["pool"]:
        "Writers that wait for a leader now.";
    CALLERS_WAITING = Gauge, Count, "leaderpool_waiting_callers" ["pool"]:
        "Callers that want a connection now, those writers among them.";
    CONNECTIONS_LENT = Gauge, Count, "leaderpool_lent_connections" ["pool"]:
        "Connections that are out with callers.";
    CHECKOUTS = Counter, Count, "leaderpool_checkouts_total" ["pool", "node", "role"]:
        "Connections handed out, by member and by what they were asked for: `write` or `read`.";
    CHECKOUT_FAILURES = Counter, Count, "leaderpool_checkout_failures_total" ["pool", "role", "reason"]:
        "Callers that got no connection: `no_leader`, `no_replica`, `exhausted`, `too_many_waiting`, `refused`, `token`, `closed`.";
    CHECKOUT_WAIT = Histogram, Seconds, "leaderpool_checkout_wait_seconds" ["pool", "role"]:
        "How long callers waited for a connection, of those who had to wait.";
    OPERATIONS = Counter, Count, "leaderpool_operations_total" ["pool", "operation", "outcome"]:
        "Ends of `transaction`, `execute_write` and `query_read`: `ok`, `rolled_back` by the closure, `not_sent`, `not_applied`, `unknown`.";
    RETRIES = Counter, Count, "leaderpool_retries_total" ["pool", "cause"]:
        "Attempts after the first: `connection_lost`, `timeout`, `cut`, `panic`, or `sqlstate_` and the class.";
    BUDGET_EXHAUSTED = Counter, Count, "leaderpool_retry_budget_exhausted_total" ["pool"]:
        "Retries that were not made since the budget was spent.";
    SETTLEMENTS = Counter, Count, "leaderpool_settlements_total" ["pool", "result"]:
        "Commits whose answer never came, and what became of them: `committed`, `not_applied`, `unknown`.";
    LOST_WRITES = Counter, Count, "leaderpool_lost_writes_total" ["pool"]:
        "Acknowledged commits that a failover dropped, of those that this pool gave tokens for.";
    CONNECTIONS_CUT = Counter, Count, "leaderpool_connections_cut_total" ["pool", "node"]:
        "Connections ended by the pool as their member was demoted, in use or not.";
    EVENTS_DROPPED = Counter, Count, "leaderpool_events_dropped_total" ["pool", "queue"]:
        "News lost to a full queue: events for a slow one of the `subscribers`, or what connections noticed, for the `supervisor`.";
    BREAKER_TRANSITIONS = Counter, Count, "leaderpool_breaker_transitions_total" ["pool", "node", "from", "to"]:
        "Changes of a member's circuit breaker between `closed`, `open` and `half_open`.";
    NODE_IN_USE = Gauge, Count, "leaderpool_node_connections_in_use" ["pool", "node"]:
        "Connections out with callers, by member.";
    NODE_IDLE = Gauge, Count, "leaderpool_node_connections_idle" ["pool", "node"]:
        "Connections idle, by member.";
    NODE_LAG = Gauge, Bytes, "leaderpool_node_lag_bytes" ["pool", "node"]:
        "WAL that a replica has not replayed, as of the last probes; NaN where unknown and on the leader.";
    NODE_STALENESS = Gauge, Seconds, "leaderpool_node_staleness_seconds" ["pool", "node"]:
        "How stale a replica's data are at most; NaN where unknown and on the leader.";
    NODE_LATENCY = Gauge, Seconds, "leaderpool_node_latency_seconds" ["pool", "node"]:
        "Smoothed round trip of a member's probes; a failed probe counts as a second.";
}
