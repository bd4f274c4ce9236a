//! Runs a transaction: again from the start where that is safe, and to a settled end where it can be had.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join3;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::options::{Committed, TxOptions};
use super::settle::{Note, Settled, settle};
use super::statement::failed;
use super::{Seen, Tx, TxInner};
use crate::failure::{OperationError, Place, TransactionError};
use crate::hold::Permit;
use crate::patroni::{Lsn, SystemId};
use crate::pool::{Deadline, LeaderPool, PoolGate};
use crate::retry::{
    Attempt, Backoff, Cause, Decision, GiveUp, Limits, Outcome, Pause, Phase, Progress, Work,
    decide,
};
use crate::telemetry::{Call, Failed, Operation};
use crate::token::CausalToken;
use crate::topology::Epoch;

/// Sent in one go with COMMIT, before it. Where the transaction has written nothing the first is null.
const NOTE: &str = "SELECT pg_catalog.txid_current_if_assigned(), \
                    (pg_catalog.pg_current_wal_insert_lsn() - '0/0'::pg_catalog.pg_lsn)::int8, \
                    (extract(epoch FROM pg_catalog.pg_postmaster_start_time()) * 1000000)::int8, \
                    (extract(epoch FROM pg_catalog.pg_stat_get_bgwriter_stat_reset_time()) * 1000000)::int8";
/// Sent in one go with COMMIT, after it: whoever has replayed up to here has the transaction.
const AFTER: &str =
    "SELECT (pg_catalog.pg_current_wal_insert_lsn() - '0/0'::pg_catalog.pg_lsn)::int8";

/// How one attempt ended.
enum Ended<T, E> {
    Committed {
        value: T,
        token: Option<CausalToken>,
        settled: bool,
    },
    /// The closure's error, and the failed statement behind it, if there is one.
    RolledBack {
        error: E,
        seen: Option<Seen>,
    },
    Failed(OperationError),
}

/// One call, over all its attempts.
pub(crate) struct Run<'a> {
    pool: &'a LeaderPool,
    options: &'a TxOptions,
    deadline: Deadline,
    attempts: u32,
    backoff: Backoff,
    /// The first failure, for an error that comes of a later one.
    first: Option<String>,
    operation: Operation,
    /// What spans may show of the work.
    sql: Option<&'a str>,
    /// The first attempt's, where it has queued at the gate already.
    let_go: Option<Permit<PoolGate>>,
}

impl<'a> Run<'a> {
    pub(crate) fn new(pool: &'a LeaderPool, options: &'a TxOptions) -> Self {
        Self::until(pool, options, Self::deadline(pool, options))
    }

    /// The deadline of a call that begins now.
    pub(crate) fn deadline(pool: &LeaderPool, options: &TxOptions) -> Deadline {
        match (&options.read, options.within) {
            (_, Some(limit)) => Deadline::within(limit),
            (Some(_), None) => Deadline::within(pool.shared.config.pool.read_timeout),
            (None, None) => Deadline::within(pool.write_timeout()),
        }
    }

    pub(crate) fn until(pool: &'a LeaderPool, options: &'a TxOptions, deadline: Deadline) -> Self {
        let (operation, sql) = (Operation::Transaction, None);
        let backoff = Backoff::new();
        let (attempts, first, let_go) = (0, None, None);
        Self { pool, options, deadline, attempts, backoff, first, operation, sql, let_go }
    }

    pub(crate) fn let_go(mut self, permit: Option<Permit<PoolGate>>) -> Self {
        self.let_go = permit;
        self
    }

    /// Its work is one statement.
    pub(crate) fn of_statement(
        self,
        operation: Operation,
        sql: &'a str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Self {
        // Without parameters, its values are in the text, and not for others to see.
        Self { operation, sql: (!params.is_empty()).then_some(sql), ..self }
    }

    pub(crate) async fn transaction<T, E, F, Fut>(
        self,
        work: F,
    ) -> Result<Committed<T>, TransactionError<E>>
    where
        F: FnMut(Tx) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let shared = &self.pool.shared;
        let call = Call::begin(self.operation, self.sql, &shared.database, &shared.meter);
        let (result, seen) = call.within(self.run_transaction(&call, work)).await;
        call.ended(match &result {
            Ok(_) => None,
            Err(TransactionError::Failed(error)) => Some(Failed::of(error)),
            // The closure's own error is not looked into; a failed statement behind it was seen.
            Err(TransactionError::RolledBack(_)) => {
                Some(seen.map_or(Failed::RolledBack, |seen| Failed::By(seen.cause, seen.outcome)))
            }
        });
        result
    }

    async fn run_transaction<T, E, F, Fut>(
        mut self,
        call: &Call<'_>,
        mut work: F,
    ) -> (Result<Committed<T>, TransactionError<E>>, Option<Seen>)
    where
        F: FnMut(Tx) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        self.pool.shared.budget.record_call();
        loop {
            self.attempts += 1;
            let (epoch, ended) = self.attempt(call, &mut work).await;
            let (seen, error) = match ended {
                Ended::Committed { value, token, settled } => {
                    let attempts = self.attempts;
                    return (Ok(Committed { value, token, attempts, settled }), None);
                }
                Ended::RolledBack { error, seen } => (seen, TransactionError::RolledBack(error)),
                Ended::Failed(error) => (Seen::of(&error), TransactionError::Failed(error)),
            };
            // Without a failed statement it is the closure's own error; without a connection the checkout
            // has waited to the deadline already.
            let Some(seen) = seen else { return (Err(error), None) };
            if let Err(why) = self.again(&seen, epoch).await {
                let error =
                    match error {
                        TransactionError::Failed(error) => TransactionError::Failed(
                            error.given_up(why, self.attempts, self.first.take()),
                        ),
                        error @ TransactionError::RolledBack(_) => error,
                    };
                return (Err(error), Some(seen));
            }
        }
    }

    /// One query that changes nothing, without a transaction around it.
    pub(crate) async fn query(
        self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, OperationError> {
        let shared = &self.pool.shared;
        let call = Call::begin(self.operation, self.sql, &shared.database, &shared.meter);
        let result = call.within(self.run_query(&call, sql, params)).await;
        call.ended(result.as_ref().err().map(Failed::of));
        result
    }

    async fn run_query(
        mut self,
        call: &Call<'_>,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, OperationError> {
        self.pool.shared.budget.record_call();
        let policy = self.options.read.clone().unwrap_or_default();
        loop {
            self.attempts += 1;
            let client = self
                .pool
                .read_until(&policy, &self.deadline)
                .await
                .map_err(OperationError::checkout)?;
            call.attempt(self.attempts, &client);
            let place = Place { node: client.node().to_owned(), epoch: client.epoch() };
            let written = client.written();
            let work = async {
                let statement = client.prepare_cached(sql).await?;
                client.query(&statement, params).await
            };
            let given = timeout_at(self.deadline.at, work).await;
            let attempt = Attempt {
                phase: Phase::Statement,
                sent: client.written() != written,
                in_transaction: false,
                synchronous: false,
            };
            let error = match given {
                Ok(Ok(rows)) => return Ok(rows),
                Ok(Err(error)) => failed(error, attempt, &client, &place),
                Err(_) => {
                    let text = "the call's deadline has passed";
                    OperationError::other(Cause::TimedOut, attempt, text, &place)
                }
            };
            let epoch = client.epoch();
            drop(client);
            let Some(seen) = Seen::of(&error) else { return Err(error) };
            if let Err(why) = self.again(&seen, epoch).await {
                return Err(error.given_up(why, self.attempts, self.first.take()));
            }
        }
    }

    /// Waits until another attempt is due, or says why there is none.
    async fn again(&mut self, seen: &Seen, epoch: Option<Epoch>) -> Result<(), GiveUp> {
        self.first.get_or_insert_with(|| seen.text.clone());
        let shared = &self.pool.shared;
        let leader_changed =
            || shared.target.load().as_ref().is_some_and(|target| Some(target.epoch) != epoch);
        let decision = decide(
            seen.outcome,
            seen.cause,
            Work { idempotent: self.options.idempotent, read_only: self.options.read.is_some() },
            Progress {
                attempts_made: self.attempts,
                time_left: self.deadline.left(),
                leader_changed: leader_changed(),
            },
            Limits {
                max_attempts: self.options.attempts.unwrap_or(shared.config.retry.max_attempts),
            },
        );
        let pause = match decision {
            Decision::GiveUp(why) => return Err(why),
            Decision::Retry { .. } if !shared.budget.try_retry() => {
                shared.meter.budget_exhausted();
                return Err(GiveUp::Budget);
            }
            Decision::Retry { after: Pause::Immediately } => Duration::ZERO,
            Decision::Retry { after: Pause::WithBackoff } => self.backoff.next_pause(),
        };
        shared.meter.retried(seen.cause);
        let attempt = self.attempts;
        tracing::debug!(attempt, cause = %seen.cause, outcome = %seen.outcome, ?pause, "trying again");
        let wake = Instant::now() + pause;
        let mut changed = shared.changed.subscribe();
        while !leader_changed() {
            tokio::select! {
                () = tokio::time::sleep_until(wake.min(self.deadline.at)) => break,
                _ = changed.changed() => {}
            }
        }
        Ok(())
    }

    async fn attempt<T, E, F, Fut>(
        &mut self,
        call: &Call<'_>,
        work: &mut F,
    ) -> (Option<Epoch>, Ended<T, E>)
    where
        F: FnMut(Tx) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let shared = &self.pool.shared;
        let client = match &self.options.read {
            None => match self.let_go.take() {
                None => self.pool.write_until(&self.deadline).await,
                permit => self.pool.write_let_go(&self.deadline, permit).await,
            },
            Some(policy) => self.pool.read_until(policy, &self.deadline).await,
        };
        let client = match client {
            Ok(client) => client.only_commits_count(),
            Err(error) => return (None, Ended::Failed(OperationError::checkout(error))),
        };
        call.attempt(self.attempts, &client);
        let epoch = client.epoch();
        let inner = TxInner::new(client, shared.view.load().synchronous);
        (epoch, self.run_on(&inner, work).await)
    }

    async fn run_on<T, E, F, Fut>(&self, inner: &Arc<TxInner>, work: &mut F) -> Ended<T, E>
    where
        F: FnMut(Tx) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        if let Err(error) = self.command(inner, Phase::Begin, self.options.begin()).await {
            return Ended::Failed(error);
        }
        let given = timeout_at(self.deadline.at, work(Tx::new(inner))).await;
        let outlived = Arc::strong_count(inner) > 1;
        match given {
            Err(_) => Ended::Failed(self.timed_out(inner, Phase::Statement)),
            Ok(Err(error)) => {
                // In order, so that the connection can be used again; if it fails, the session ends,
                // and with it the transaction.
                let _ = self.command(inner, Phase::Rollback, "ROLLBACK").await;
                Ended::RolledBack { error, seen: inner.failure() }
            }
            Ok(Ok(_)) if outlived => {
                let _ = self.command(inner, Phase::Rollback, "ROLLBACK").await;
                let attempt = self.attempt_in(inner, Phase::Rollback, true);
                let text = "the closure returned while its Tx is still held elsewhere";
                Ended::Failed(OperationError::other(Cause::Client, attempt, text, &inner.place))
            }
            Ok(Ok(value)) => self.commit(inner, value).await,
        }
    }

    async fn commit<T, E>(&self, inner: &Arc<TxInner>, value: T) -> Ended<T, E> {
        // A COMMIT would be answered by a rollback, and with no error.
        if inner.client.is_in_failed_transaction() {
            let _ = self.command(inner, Phase::Rollback, "ROLLBACK").await;
            let seen = inner.failure();
            let cause = seen.as_ref().map_or(Cause::Answer, |seen| seen.cause);
            let text = format!(
                "the closure returned Ok, but a statement had failed: {}",
                seen.map_or_else(|| "by way of the raw client".to_owned(), |seen| seen.text)
            );
            let attempt = self.attempt_in(inner, Phase::Rollback, true);
            return Ended::Failed(OperationError::other(cause, attempt, text, &inner.place));
        }
        if self.options.read.is_some() || self.options.unsettled {
            return match self.command(inner, Phase::Commit, "COMMIT").await {
                Ok(()) => {
                    inner.client.committed();
                    Ended::Committed { value, token: None, settled: false }
                }
                Err(error) => Ended::Failed(error),
            };
        }
        let (written, answers) = (inner.client.written(), inner.client.answers());
        // In this order, in one go: the server answers the note before it commits.
        let all = join3(
            inner.client.query_typed(NOTE, &[]),
            inner.client.batch_execute("COMMIT"),
            inner.client.query_typed(AFTER, &[]),
        );
        let Ok((note, commit, after)) = timeout_at(self.deadline.at, all).await else {
            return Ended::Failed(
                self.timed_out(inner, Phase::Commit).unsettled("the deadline has passed"),
            );
        };
        // The server works through what it gets in order. Where it ended the session before it had answered
        // the note, COMMIT was still to come, and is as good as not sent.
        let unread = inner.client.was_dismissed() && inner.client.answers() == answers;
        let sent = inner.client.written() != written && !unread;
        let attempt = self.attempt_in(inner, Phase::Commit, sent);
        let note = match note {
            Ok(rows) => rows.first().and_then(|row| Note::read(row, inner)),
            // The question failed, and so did the transaction: COMMIT was a rollback.
            Err(error) if error.as_db_error().is_some() && commit.is_ok() => {
                let attempt = self.attempt_in(inner, Phase::Rollback, true);
                return Ended::Failed(failed(error, attempt, &inner.client, &inner.place));
            }
            Err(_) => None,
        };
        let error = match commit {
            Ok(()) => {
                inner.client.committed();
                let wrote = note.as_ref().is_some_and(Note::wrote);
                let token = after.ok().filter(|_| wrote).and_then(|rows| {
                    let written = rows.first()?.try_get::<_, i64>(0).ok()?;
                    self.token(inner, Lsn(written.cast_unsigned()))
                });
                if let Some(token) = token {
                    self.pool.shared.past.given_out(token);
                }
                return Ended::Committed { value, token, settled: false };
            }
            Err(error) => failed(error, attempt, &inner.client, &inner.place),
        };
        if error.outcome() != Outcome::Unknown {
            return Ended::Failed(error);
        }
        match settle(self.pool, note, &self.deadline).await {
            Settled::Committed { token } => Ended::Committed { value, token, settled: true },
            Settled::NotApplied { why } => {
                let attempt = self.attempt_in(inner, Phase::Rollback, true);
                let cause = error.cause().unwrap_or(Cause::ConnectionLost);
                let text = format!("{} (settled: {why})", error.text());
                Ended::Failed(OperationError::other(cause, attempt, text, &inner.place))
            }
            Settled::Unknown { why } => Ended::Failed(error.unsettled(why)),
        }
    }

    fn token(&self, inner: &TxInner, lsn: Lsn) -> Option<CausalToken> {
        let epoch = inner.place.epoch?;
        let system_id: SystemId = epoch.system_id;
        Some(CausalToken { system_id, timeline: epoch.timeline, lsn })
    }

    /// BEGIN, COMMIT or ROLLBACK.
    async fn command(
        &self,
        inner: &TxInner,
        phase: Phase,
        sql: &'static str,
    ) -> Result<(), OperationError> {
        let written = inner.client.written();
        match timeout_at(self.deadline.at, inner.client.batch_execute(sql)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                let attempt = self.attempt_in(inner, phase, inner.client.written() != written);
                Err(failed(error, attempt, &inner.client, &inner.place))
            }
            Err(_) => Err(self.timed_out(inner, phase)),
        }
    }

    fn timed_out(&self, inner: &TxInner, phase: Phase) -> OperationError {
        let attempt = self.attempt_in(inner, phase, true);
        let text = "the call's deadline has passed";
        OperationError::other(Cause::TimedOut, attempt, text, &inner.place)
    }

    fn attempt_in(&self, inner: &TxInner, phase: Phase, sent: bool) -> Attempt {
        Attempt { phase, sent, in_transaction: true, synchronous: inner.synchronous }
    }
}

/// A pause that ends when the deadline has passed.
pub(super) async fn pause(limit: Duration, deadline: &Deadline) {
    sleep(limit.min(deadline.left())).await;
}
