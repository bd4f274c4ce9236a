//! What a caller holds.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::runtime::Handle;
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::{Instant, timeout};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::checkout::{Attempt, leader_at_hand};
use crate::client::{Client, Role};
use crate::config::{Config, ConfigError};
use crate::describe::{describe_leader, describe_unreachable};
use crate::error::{CheckoutError, CloseError, ConnectError};
use crate::failure::{OperationError, TransactionError};
use crate::history::Past;
use crate::hold::{Gate, Permit, STEP_LIMIT};
use crate::node::{Demand, Dialer, Node};
use crate::report::{self, Report};
use crate::retry::{BudgetConfig, RetryBudget};
use crate::routing::ReadPolicy;
use crate::supervisor;
use crate::telemetry::{Database, FirstWrite, FirstWrites, Meter, Operation, pool_name};
use crate::token::{CausalToken, Standing, TokenError};
use crate::topology::{ClusterView, Epoch, TopologyEvent};
use crate::tx::{Committed, Run, Tx, TxOptions};

/// Added to the cluster's `ttl` for the default of `pool.write_timeout`: election, promotion, and a
/// handshake.
const FAILOVER_SLACK: Duration = Duration::from_secs(15);
/// Events that a subscriber may be behind.
pub(crate) const EVENTS: usize = 256;

/// A pool over all members of one cluster: writes go to the leader, reads to replicas.
///
/// Cloning is cheap and gives another handle on the same pool. Its tasks end with
/// [`close`](Self::close), or when the last handle is dropped.
///
/// All methods are cancel-safe: a dropped future gives back whatever it had taken.
#[derive(Clone)]
pub struct LeaderPool {
    pub(crate) shared: Arc<Shared>,
    _guard: Arc<DropGuard>,
}

impl std::fmt::Debug for LeaderPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LeaderPool")
            .field("leader", &self.shared.view.load().leader)
            .finish_non_exhaustive()
    }
}

/// When a call began, and when it has to end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    pub(crate) started: Instant,
    pub(crate) at: Instant,
}

impl Deadline {
    pub(crate) fn within(limit: Duration) -> Self {
        let started = Instant::now();
        // Beyond a century nobody waits, and the sum would overflow.
        let limit = limit.min(Duration::from_secs(100 * 365 * 86_400));
        Self { started, at: started + limit }
    }

    pub(crate) fn left(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }
}

/// The member that may be written to, and the reign in which it was admitted.
pub(crate) struct WriteTarget {
    pub(crate) node: Arc<Node>,
    pub(crate) reign: u64,
    pub(crate) epoch: Epoch,
    pub(crate) first_write: FirstWrite,
}

/// What the handles, the clients and the tasks share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) runtime: Handle,
    pub(crate) tasks: TaskTracker,
    pub(crate) cancel: CancellationToken,
    pub(crate) view: ArcSwap<ClusterView>,
    pub(crate) nodes: ArcSwap<BTreeMap<String, Arc<Node>>>,
    pub(crate) target: ArcSwapOption<WriteTarget>,
    /// The admitted reign; 0 while there is none. A connection is handed out only if this still is the
    /// number that it was taken under.
    pub(crate) reign: AtomicU64,
    /// Sends the view's version with each change.
    pub(crate) changed: watch::Sender<u64>,
    pub(crate) events: broadcast::Sender<TopologyEvent>,
    pub(crate) demand: Arc<Demand>,
    /// Where writers wait for a leader.
    pub(crate) gate: Gate,
    pub(crate) budget: RetryBudget,
    pub(crate) past: Past,
    pub(crate) meter: Meter,
    /// What spans say of the database.
    pub(crate) database: Database,
    pub(crate) first_writes: FirstWrites,
    pub(crate) waiting: AtomicUsize,
    pub(crate) lent: Arc<Lent>,
    pub(crate) closed: AtomicBool,
}

impl Shared {
    /// Has the probes keep the policy's bound on staleness provable, where it has one.
    pub(crate) fn want_fresh(&self, policy: &ReadPolicy, now: Instant) {
        if let Some(bound) = policy.time_bound()
            && self.demand.ask(bound, now)
        {
            for node in self.nodes.load().values() {
                node.probe_now();
            }
        }
    }
}

/// The pool's gate, for one who outlives a borrow of the pool.
#[derive(Clone)]
pub(crate) struct PoolGate(pub(crate) Arc<Shared>);

impl std::ops::Deref for PoolGate {
    type Target = Gate;

    fn deref(&self) -> &Gate {
        &self.0.gate
    }
}

/// Counts connections that are out, for `close` to wait for.
#[derive(Default)]
pub(crate) struct Lent {
    count: AtomicUsize,
    awaited: AtomicBool,
    changed: Notify,
}

impl Lent {
    pub(crate) fn begin(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn end(&self) {
        // Telling nobody would take a lock; so it is asked first whether anybody waits.
        if self.count.fetch_sub(1, Ordering::SeqCst) == 1 && self.awaited.load(Ordering::SeqCst) {
            self.changed.notify_waiters();
        }
    }

    pub(crate) fn now(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    async fn none_out(&self) {
        self.awaited.store(true, Ordering::SeqCst);
        loop {
            let changed = self.changed.notified();
            if self.now() == 0 {
                return;
            }
            changed.await;
        }
    }
}

impl LeaderPool {
    /// Makes a pool and waits until it can write; or, where the cluster has no leader for all of
    /// `pool.start_timeout`, until it can at least read.
    ///
    /// # Errors
    /// [`ConnectError::Config`] where the configuration is impossible; [`ConnectError::Unreachable`]
    /// where nothing that could serve a query was found in time, with every endpoint and member named.
    pub async fn connect(config: Config) -> Result<Self, ConnectError> {
        let limit = config.pool.start_timeout;
        let started = Instant::now();
        let pool = Self::connect_lazy(config)?;
        let mut changed = pool.shared.changed.subscribe();
        let ready = async {
            while pool.shared.view.load().leader.admitted().is_none() {
                if changed.changed().await.is_err() {
                    break;
                }
            }
        };
        if timeout(limit, ready).await.is_ok() {
            return Ok(pool);
        }
        let view = pool.shared.view.load_full();
        if view.members.values().any(|member| member.report().is_some()) {
            tracing::warn!(state = describe_leader(&view), "connected without a leader");
            return Ok(pool);
        }
        let reasons = describe_unreachable(&view, &pool.shared.config);
        let _ = pool.close().await;
        Err(ConnectError::Unreachable { waited: started.elapsed(), reasons })
    }

    /// Makes a pool without waiting for anything: it starts degraded, and calls wait for what they need.
    ///
    /// Must be called within a tokio runtime, which then runs the pool's tasks.
    ///
    /// # Errors
    /// [`ConnectError::Config`] where the configuration is impossible, or names a file that cannot be
    /// used.
    pub fn connect_lazy(config: Config) -> Result<Self, ConnectError> {
        config.validate()?;
        let now = Instant::now();
        let dialer = Arc::new(Dialer::new(&config.postgres)?);
        let budget = RetryBudget::new(BudgetConfig {
            min_per_second: config.retry.min_per_second,
            share: f64::from(config.retry.budget_percent) / 100.0,
            ..BudgetConfig::default()
        })
        .map_err(|error| ConfigError::field("retry", error.to_string()))?;
        let (changed, _) = watch::channel(0);
        let (events, _) = broadcast::channel(EVENTS);
        let setup = supervisor::Setup::new(&config, now)?;
        let cancel = CancellationToken::new();
        let shared = Arc::new(Shared {
            dialer,
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
            cancel: cancel.clone(),
            view: ArcSwap::from_pointee(setup.view()),
            nodes: ArcSwap::default(),
            target: ArcSwapOption::empty(),
            reign: AtomicU64::new(0),
            changed,
            events,
            demand: Arc::new(Demand::new(now)),
            gate: Gate::new(config.pool.max_waiting, STEP_LIMIT),
            budget,
            past: Past::new(),
            meter: Meter::new(pool_name(&config)),
            database: Database::new(&config),
            first_writes: FirstWrites::default(),
            waiting: AtomicUsize::new(0),
            lent: Arc::default(),
            closed: AtomicBool::new(false),
            config,
        });
        setup.start(&shared);
        Ok(Self { shared, _guard: Arc::new(cancel.drop_guard()) })
    }

    /// A connection to the leader. Waits for one while there is none, within `pool.write_timeout`.
    ///
    /// # Errors
    /// [`CheckoutError`]; nothing was sent to any server.
    pub async fn write(&self) -> Result<Client, CheckoutError> {
        if let Some(client) = leader_at_hand(&self.shared, Role::Write) {
            return Ok(client);
        }
        self.write_until(&Deadline::within(self.write_timeout())).await
    }

    /// As [`write`](Self::write), within `limit` instead.
    ///
    /// # Errors
    /// [`CheckoutError`]; nothing was sent to any server.
    pub async fn write_within(&self, limit: Duration) -> Result<Client, CheckoutError> {
        if let Some(client) = leader_at_hand(&self.shared, Role::Write) {
            return Ok(client);
        }
        self.write_until(&Deadline::within(limit)).await
    }

    /// A connection for reading, where the `[read]` section says, within `pool.read_timeout`.
    ///
    /// # Errors
    /// [`CheckoutError`]; nothing was sent to any server.
    pub async fn read(&self) -> Result<Client, CheckoutError> {
        self.read_with(ReadPolicy::from_config(&self.shared.config.read)).await
    }

    /// A connection for reading under `policy`, within `pool.read_timeout`.
    ///
    /// # Errors
    /// [`CheckoutError`]; nothing was sent to any server.
    pub async fn read_with(&self, policy: ReadPolicy) -> Result<Client, CheckoutError> {
        self.read_within(policy, self.shared.config.pool.read_timeout).await
    }

    /// As [`read_with`](Self::read_with), within `limit` instead of `pool.read_timeout`. For reads that may go
    /// to the leader it should be as long as a failover takes.
    ///
    /// # Errors
    /// [`CheckoutError`]; nothing was sent to any server.
    pub async fn read_within(
        &self,
        policy: ReadPolicy,
        limit: Duration,
    ) -> Result<Client, CheckoutError> {
        self.read_until(&policy, &Deadline::within(limit)).await
    }

    /// How the pool and its cluster are now.
    #[must_use]
    pub fn report(&self) -> Report {
        report::make(&self.shared, Instant::now())
    }

    /// What happens to the cluster from now on. A subscriber that falls behind by more than 256 events
    /// loses the oldest.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<TopologyEvent> {
        self.shared.events.subscribe()
    }

    /// Hands out no more connections, waits for those that are out within `pool.close_timeout`, and ends
    /// the pool's tasks. Closing twice is no error.
    ///
    /// # Errors
    /// [`CloseError`] where connections were still out; they are closed when they come back.
    pub async fn close(&self) -> Result<(), CloseError> {
        let shared = &self.shared;
        let started = Instant::now();
        let limit = shared.config.pool.close_timeout;
        shared.closed.store(true, Ordering::SeqCst);
        shared.gate.shut();
        shared.nodes.load().values().for_each(|node| node.close());
        shared.changed.send_modify(|version| *version += 1);
        let drained = timeout(limit, shared.lent.none_out()).await.is_ok();
        shared.cancel.cancel();
        shared.target.store(None);
        shared.reign.store(0, Ordering::Release);
        for node in shared.nodes.swap(Arc::default()).values() {
            node.remove();
        }
        if drained {
            shared.tasks.close();
            // Each task ends by itself within its own bounds; this one is for a stuck runtime.
            let _ = timeout(limit.max(Duration::from_secs(2)), shared.tasks.wait()).await;
            return Ok(());
        }
        Err(CloseError { still_out: shared.lent.now(), waited: started.elapsed() })
    }

    /// How long [`write`](Self::write) waits now: `pool.write_timeout`, or the cluster's own `ttl` plus 15 s.
    #[must_use]
    pub fn write_timeout(&self) -> Duration {
        let configured = self.shared.config.pool.write_timeout;
        configured.unwrap_or_else(|| self.shared.view.load().lease + FAILOVER_SLACK)
    }

    /// Runs a transaction on the leader, and again from the start, on the then leader, where that is safe and
    /// may help: nothing was sent, or nothing applied (a lost connection before the commit, a demoted node,
    /// `40001`, `40P01`). After a commit whose answer never came, the leader is asked what became of it;
    /// only where that cannot be told, the outcome is unknown.
    ///
    /// `work` is called once per attempt, so that it must start from scratch each time; what it does outside
    /// the database may happen more than once.
    ///
    /// ```no_run
    /// # use leaderpool::{LeaderPool, OperationError, TransactionError};
    /// # async fn example(pool: LeaderPool) -> Result<(), TransactionError<OperationError>> {
    /// let total: i64 = pool
    ///     .transaction(|tx| async move {
    ///         tx.execute("UPDATE account SET balance = balance - $1 WHERE id = $2", &[&5_i64, &1_i64])
    ///             .await?;
    ///         let row = tx.query_one("SELECT sum(balance)::int8 FROM account", &[]).await?;
    ///         Ok::<_, OperationError>(row.get(0))
    ///     })
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`TransactionError::RolledBack`] with the closure's own error; [`TransactionError::Failed`] where the
    /// pool could not run or commit it. [`outcome`](TransactionError::outcome) says what became of the data.
    ///
    /// Cancel-safe: dropped, it is rolled back on the server.
    pub async fn transaction<T, E, F, Fut>(&self, work: F) -> Result<T, TransactionError<E>>
    where
        F: FnMut(Tx) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let committed = self.transaction_with(&TxOptions::new(), work).await?;
        Ok(committed.value)
    }

    /// As [`transaction`](Self::transaction), with options, and with what is known of the commit.
    ///
    /// # Errors
    /// As [`transaction`](Self::transaction).
    pub async fn transaction_with<T, E, F, Fut>(
        &self,
        options: &TxOptions,
        work: F,
    ) -> Result<Committed<T>, TransactionError<E>>
    where
        F: FnMut(Tx) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        Run::new(self, options).transaction(work).await
    }

    /// Runs one statement on the leader as a transaction of its own, with all that
    /// [`transaction`](Self::transaction) does; gives the number of rows that it changed.
    ///
    /// # Errors
    /// [`OperationError`].
    pub async fn execute_write(
        &self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, OperationError> {
        Ok(self.execute_write_with(&TxOptions::new(), sql, params).await?.value)
    }

    /// As [`execute_write`](Self::execute_write), with options, and with what is known of the commit.
    ///
    /// # Errors
    /// [`OperationError`].
    pub async fn execute_write_with(
        &self,
        options: &TxOptions,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Committed<u64>, OperationError> {
        Run::new(self, options)
            .of_statement(Operation::ExecuteWrite, sql, params)
            .transaction(|tx| async move { tx.execute(sql, params).await })
            .await
            .map_err(TransactionError::into_operation_error)
    }

    /// Runs one query where the `[read]` section says, and again elsewhere where that may help.
    ///
    /// # Errors
    /// [`OperationError`].
    pub async fn query_read(
        &self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, OperationError> {
        let policy = ReadPolicy::from_config(&self.shared.config.read);
        self.query_read_with(policy, sql, params).await
    }

    /// As [`query_read`](Self::query_read), under `policy`.
    ///
    /// # Errors
    /// [`OperationError`].
    pub async fn query_read_with(
        &self,
        policy: ReadPolicy,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, OperationError> {
        Run::new(self, &TxOptions::new().read_only(policy))
            .of_statement(Operation::QueryRead, sql, params)
            .query(sql, params)
            .await
    }

    /// What a token is worth now, by what the pool knows of the cluster's history: a read that is given one that is
    /// lost, or of another cluster, is refused with this in [`CheckoutError::Token`].
    #[must_use]
    pub fn token_standing(&self, token: CausalToken) -> Standing {
        let view = self.shared.view.load();
        let Some(epoch) = view.epoch else { return Standing::Unknown };
        token.standing(epoch.system_id, epoch.timeline, &self.shared.past.history(&view))
    }

    /// One token that asks for all of these, by what the pool knows of the cluster's history; `None` for none.
    ///
    /// # Errors
    /// As [`CausalToken::merge_with_history`]: where they are of several clusters, where a write of one of them
    /// was lost in the failover that another one comes after, or where that is not known yet.
    pub fn merge_tokens(
        &self,
        tokens: impl IntoIterator<Item = CausalToken>,
    ) -> Result<Option<CausalToken>, TokenError> {
        let history = self.shared.past.history(&self.shared.view.load());
        let mut tokens = tokens.into_iter();
        let Some(first) = tokens.next() else { return Ok(None) };
        tokens.try_fold(first, |all, next| all.merge_with_history(next, &history)).map(Some)
    }

    pub(crate) async fn write_until(&self, deadline: &Deadline) -> Result<Client, CheckoutError> {
        if let Some(client) = leader_at_hand(&self.shared, Role::Write) {
            return Ok(client);
        }
        let attempt = Attempt::begin(&self.shared, Role::Write, deadline);
        self.finish(Role::Write, Box::pin(attempt.leader(Role::Write))).await
    }

    /// Boxed: who waits for a connection is a large future, and most are there at once.
    async fn finish(
        &self,
        role: Role,
        attempt: Pin<Box<impl Future<Output = Result<Client, CheckoutError>>>>,
    ) -> Result<Client, CheckoutError> {
        attempt.await.inspect_err(|error| self.shared.meter.refused(role, error))
    }

    /// As [`write_until`](Self::write_until), for one that has queued at the gate already.
    pub(crate) async fn write_let_go(
        &self,
        deadline: &Deadline,
        permit: Option<Permit<PoolGate>>,
    ) -> Result<Client, CheckoutError> {
        let permit = permit.map(|permit| permit.lend(&self.shared.gate));
        let attempt = Attempt::begin(&self.shared, Role::Write, deadline).let_go(permit);
        self.finish(Role::Write, Box::pin(attempt.leader(Role::Write))).await
    }

    pub(crate) async fn read_until(
        &self,
        policy: &ReadPolicy,
        deadline: &Deadline,
    ) -> Result<Client, CheckoutError> {
        let attempt = Attempt::begin(&self.shared, Role::Read, deadline);
        self.finish(Role::Read, Box::pin(attempt.read(policy))).await
    }

    /// As [`read_until`](Self::read_until), for one that has queued at the gate already, in case that it is the
    /// leader's turn.
    pub(crate) async fn read_let_go(
        &self,
        policy: &ReadPolicy,
        deadline: &Deadline,
        permit: Option<Permit<PoolGate>>,
    ) -> Result<Client, CheckoutError> {
        let permit = permit.map(|permit| permit.lend(&self.shared.gate));
        let attempt = Attempt::begin(&self.shared, Role::Read, deadline).let_go(permit);
        self.finish(Role::Read, Box::pin(attempt.read(policy))).await
    }
}
