//! Asks one member for its role, timeline and position, over a connection of its own: a pool that is
//! used up must not blind the pool's own eyes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_postgres::Statement;
use tokio_util::sync::CancellationToken;

use super::breaker::Identity;
use super::conn::Conn;
use super::dial::DialError;
use super::member::{Node, NodeContext};
use super::run::{COLUMNS, RunSeen};
use crate::error::with_causes;
use crate::patroni::{Lsn, SystemId, Timeline};
use crate::topology::{Cadence, Event, ProbeFailure, ProbeReport};

/// One question for every role and version from 12 on. `pg_is_in_recovery()` is asked once, since it may
/// change between two calls; it changes only from true to false, so that the branch stays valid.
const QUESTION: &str = "
WITH role AS MATERIALIZED (SELECT pg_catalog.pg_is_in_recovery() AS standby)
SELECT standby,
       (SELECT system_identifier FROM pg_catalog.pg_control_system()),
       CASE WHEN standby THEN greatest(
           (SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver),
           (SELECT min_recovery_end_timeline FROM pg_catalog.pg_control_recovery()),
           c.timeline_id)
       ELSE ('x' || substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8))::bit(32)::int
       END,
       CASE WHEN NOT standby THEN (pg_catalog.pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint END,
       CASE WHEN standby THEN (pg_catalog.pg_last_wal_receive_lsn() - '0/0'::pg_lsn)::bigint END,
       CASE WHEN standby THEN (pg_catalog.pg_last_wal_replay_lsn() - '0/0'::pg_lsn)::bigint END,
       CASE WHEN standby THEN extract(epoch FROM pg_catalog.clock_timestamp()
           - pg_catalog.pg_last_xact_replay_timestamp())::float8 END,
       pg_catalog.current_setting('server_version_num')::int,";

/// The whole question.
fn question() -> String {
    format!("{QUESTION}{COLUMNS}\nFROM role, pg_catalog.pg_control_checkpoint() AS c")
}

/// For how long a read that asked for a bound keeps the probes going faster.
const DEMAND_LASTS: Duration = Duration::from_secs(30);
/// No bound makes probes more frequent than this.
const FASTEST: Duration = Duration::from_millis(25);

/// The tightest bound on staleness that reads have asked for lately.
pub(crate) struct Demand {
    started: Instant,
    /// Milliseconds; 0 for none.
    bound: AtomicU64,
    /// Milliseconds since `started`.
    until: AtomicU64,
}

impl Demand {
    pub(crate) fn new(now: Instant) -> Self {
        Self { started: now, bound: AtomicU64::new(0), until: AtomicU64::new(0) }
    }

    /// Notes that a read wants data at most this old; tells whether the probes have to speed up.
    pub(crate) fn ask(&self, bound: Duration, now: Instant) -> bool {
        let bound = u64::try_from(bound.as_millis()).unwrap_or(u64::MAX).max(1);
        let known = self.current(now).map_or(u64::MAX, |bound| bound.as_millis() as u64);
        let tighter = bound < known;
        if tighter || bound == known {
            self.bound.store(bound, Ordering::Relaxed);
            let until = (now.saturating_duration_since(self.started) + DEMAND_LASTS).as_millis();
            self.until.store(u64::try_from(until).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        tighter
    }

    fn current(&self, now: Instant) -> Option<Duration> {
        let since_start = now.saturating_duration_since(self.started).as_millis();
        let bound = self.bound.load(Ordering::Relaxed);
        (bound > 0 && since_start < u128::from(self.until.load(Ordering::Relaxed)))
            .then(|| Duration::from_millis(bound))
    }

    /// The interval that keeps the bound provable: the leader's mark and the replica's answer are each up
    /// to one interval old, and half of the bound is left for the work itself.
    fn interval(&self, now: Instant) -> Option<Duration> {
        self.current(now).map(|bound| (bound / 4).max(FASTEST))
    }
}

/// Probes until cancelled.
pub(super) async fn run(
    node: Arc<Node>,
    context: NodeContext,
    cadence: watch::Receiver<Cadence>,
    cancel: CancellationToken,
) {
    let mut earliest = Instant::now();
    let mut prober = Prober { node, limit: context.probe.timeout, session: None };
    loop {
        if *cadence.borrow() == Cadence::Urgent {
            // The key is taken before the promotion, and a crashed server comes back where it was: by
            // the time the probe finds the new primary, a connection for the first writer is ready.
            prober.node.warm(&context.tasks, context.probe.timeout);
        }
        // However many suspicions come in: no faster than while writers wait.
        let result = tokio::select! {
            () = cancel.cancelled() => return,
            result = async {
                sleep_until(earliest).await;
                earliest = Instant::now() + context.probe.urgent_interval;
                prober.ask().await
            } => result,
        };
        let guard = &prober.node.guard;
        match &result {
            Ok(report) => {
                prober.node.load.sample(report.round_trip);
                let (reign, started_at) = ((context.reign)(), report.started_at);
                guard.probe_answered(Identity { reign, started_at });
                // Of no use while not even this is answered.
                if let Some(test) = guard.due() {
                    let (node, limit) = (Arc::clone(&prober.node), context.probe.timeout);
                    let cancel = cancel.clone();
                    context.tasks.spawn(async move {
                        cancel.run_until_cancelled(node.make_test(test, limit)).await;
                    });
                }
            }
            Err(failure) => {
                prober.node.load.failure();
                guard.probe_failed(failure);
            }
        }
        let event = Event::Probed {
            member: prober.node.name.clone(),
            address: prober.node.address.clone(),
            result,
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            sent = context.events.send(event) => if sent.is_err() { return },
        }
        let now = Instant::now();
        let configured = match *cadence.borrow() {
            Cadence::Normal => context.probe.interval,
            Cadence::Watchful => context.probe.watchful_interval,
            Cadence::Urgent => context.probe.urgent_interval,
        };
        // Somebody waits for an answer that may never come: if the node is dead, that is to be known soon.
        let configured = match prober.node.hung() {
            0 => configured,
            _ => configured.min(context.probe.watchful_interval),
        };
        let pause = context.demand.interval(now).map_or(configured, |wish| wish.min(configured));
        tokio::select! {
            () = cancel.cancelled() => return,
            () = prober.node.wake().notified() => {}
            () = sleep(pause) => {}
        }
    }
}

struct Prober {
    node: Arc<Node>,
    limit: Duration,
    session: Option<(Conn, Statement)>,
}

impl Prober {
    async fn ask(&mut self) -> Result<ProbeReport, ProbeFailure> {
        let answer = match timeout(self.limit, self.ask_unbounded()).await {
            Ok(answer) => answer,
            Err(_) => Err(ProbeFailure::TimedOut(self.limit)),
        };
        if answer.is_err() {
            // An answer that comes too late must not be taken for the next one's.
            self.session = None;
        }
        answer
    }

    async fn ask_unbounded(&mut self) -> Result<ProbeReport, ProbeFailure> {
        if self.session.as_ref().is_some_and(|(conn, _)| conn.is_dead()) {
            self.session = None;
        }
        if self.session.is_none() {
            let dialed = self.node.manager().dial(Arc::default()).await;
            let conn = dialed.map_err(|error| {
                // A refusal is a sign of life too: of a server that is full, say, and works.
                if error.is_an_answer() {
                    self.node.gave_a_sign(Instant::now());
                }
                dial_failure(&error)
            })?;
            let statement =
                conn.prepare(&question()).await.map_err(|error| self.failure(&conn, &error))?;
            self.session = Some((conn, statement));
        }
        let Some((conn, statement)) = &self.session else {
            return Err(ProbeFailure::Failed("no session".into()));
        };
        let sent_at = Instant::now();
        let row =
            conn.query_one(statement, &[]).await.map_err(|error| self.failure(conn, &error))?;
        self.node.gave_a_sign(Instant::now());
        let lsn = |index: usize| {
            row.try_get::<_, Option<i64>>(index).ok().flatten().map(|at| Lsn(at.cast_unsigned()))
        };
        let wrong = |error: tokio_postgres::Error| ProbeFailure::Failed(with_causes(&error));
        let run = RunSeen::read(&row).map_err(wrong)?;
        let in_recovery: bool = row.try_get(0).map_err(wrong)?;
        if !in_recovery {
            self.node.saw_run(run);
        }
        Ok(ProbeReport {
            sent_at,
            round_trip: sent_at.elapsed(),
            in_recovery,
            system_id: SystemId(row.try_get::<_, i64>(1).map_err(wrong)?.cast_unsigned()),
            timeline: Timeline(row.try_get::<_, i32>(2).map_err(wrong)?.cast_unsigned()),
            written: lsn(3),
            received: lsn(4),
            replayed: lsn(5),
            replay_age: row
                .try_get::<_, Option<f64>>(6)
                .map_err(wrong)?
                .and_then(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).ok()),
            started_at: run.run.started_at,
            server_version: row.try_get::<_, i32>(7).map_err(wrong)?.cast_unsigned(),
        })
    }

    fn failure(&self, conn: &Conn, error: &tokio_postgres::Error) -> ProbeFailure {
        if error.as_db_error().is_some() {
            self.node.gave_a_sign(Instant::now());
        }
        failure(conn, error)
    }
}

fn dial_failure(error: &DialError) -> ProbeFailure {
    match error {
        DialError::TimedOut { limit, .. } => ProbeFailure::TimedOut(*limit),
        DialError::Unreachable { .. } => ProbeFailure::Refused(error.to_string()),
        DialError::Refused { .. } if error.is_transient() => {
            ProbeFailure::Refused(error.to_string())
        }
        DialError::Refused { .. } | DialError::Tls { .. } | DialError::Foreign { .. } => {
            ProbeFailure::Failed(error.to_string())
        }
    }
}

fn failure(conn: &Conn, error: &tokio_postgres::Error) -> ProbeFailure {
    if error.is_closed() || error.as_db_error().is_none() {
        ProbeFailure::Refused(conn.end_cause().unwrap_or_else(|| with_causes(error)))
    } else {
        let code = error.code().map(|code| code.code().to_owned()).unwrap_or_default();
        let text = with_causes(error);
        // Class 57: the server is going down or coming up.
        if code.starts_with("57") {
            ProbeFailure::Refused(text)
        } else {
            ProbeFailure::Failed(text)
        }
    }
}
