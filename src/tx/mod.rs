//! Transactions that are run again when that is safe, and whose commit is settled when it is in doubt.

mod options;
mod run;
mod settle;
mod statement;

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};

use crate::client::Client;
use crate::failure::{OperationError, Place};
use crate::retry::{Attempt, Cause, Phase};
use crate::topology::Epoch;

pub use options::{Committed, Isolation, TxOptions};
pub(crate) use run::Run;

/// An open transaction, in the hands of the closure that was given to
/// [`LeaderPool::transaction`](crate::LeaderPool::transaction).
///
/// Statements given as text are prepared once per connection. The pool commits when the closure returns Ok
/// and rolls back when it returns an error; a statement that failed leaves nothing else to do than return
/// its error. The handle must not outlive the closure.
///
/// All methods are cancel-safe in the pool's sense: what was begun is cancelled on the server, and the whole
/// transaction rolled back.
#[derive(Debug)]
pub struct Tx {
    inner: Arc<TxInner>,
}

#[derive(Debug)]
pub(crate) struct TxInner {
    pub(crate) client: Client,
    pub(crate) place: Place,
    pub(crate) synchronous: bool,
    /// The first failure of a statement, for the pool to judge by: the closure's own error type is not
    /// looked into.
    failure: Mutex<Option<Seen>>,
    savepoints: AtomicU32,
}

/// What the runner needs to know of a failed statement.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) cause: Cause,
    pub(crate) outcome: crate::retry::Outcome,
    pub(crate) text: String,
}

impl Seen {
    fn of(error: &OperationError) -> Option<Self> {
        let (cause, outcome) = (error.cause()?, error.outcome());
        Some(Self { cause, outcome, text: error.text().to_owned() })
    }
}

type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

impl Tx {
    pub(crate) fn new(inner: &Arc<TxInner>) -> Self {
        Self { inner: Arc::clone(inner) }
    }

    /// The member that it runs on.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.inner.place.node
    }

    /// The epoch of the leader's reign that it runs in; of the view, for reads.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        self.inner.place.epoch
    }

    /// The driver's client, for what is not here. Its failures are not seen by the pool, so that the
    /// transaction is not run again for them unless the closure gives back an error of this type too.
    #[must_use]
    pub fn client(&self) -> &tokio_postgres::Client {
        &self.inner.client
    }

    /// Runs a statement; gives the number of rows it changed.
    ///
    /// # Errors
    /// [`OperationError`], of which the outcome is that of the whole transaction.
    pub async fn execute(&self, sql: &str, params: Params<'_>) -> Result<u64, OperationError> {
        let statement = self.prepare(sql).await?;
        self.watch(async |client| client.execute(&statement, params).await).await
    }

    /// Runs a query; gives its rows.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub async fn query(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>, OperationError> {
        let statement = self.prepare(sql).await?;
        self.watch(async |client| client.query(&statement, params).await).await
    }

    /// Runs a query that gives exactly one row.
    ///
    /// # Errors
    /// As [`execute`](Self::execute); and where there are none or several.
    pub async fn query_one(&self, sql: &str, params: Params<'_>) -> Result<Row, OperationError> {
        let statement = self.prepare(sql).await?;
        self.watch(async |client| client.query_one(&statement, params).await).await
    }

    /// Runs a query that gives at most one row.
    ///
    /// # Errors
    /// As [`execute`](Self::execute); and where there are several.
    pub async fn query_opt(
        &self,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Option<Row>, OperationError> {
        let statement = self.prepare(sql).await?;
        self.watch(async |client| client.query_opt(&statement, params).await).await
    }

    /// Runs several statements without parameters. `COMMIT` and `ROLLBACK` do not belong in them.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub async fn batch_execute(&self, sql: &str) -> Result<(), OperationError> {
        self.watch(async |client| client.batch_execute(sql).await).await
    }

    /// Runs `work` within a savepoint: what it did is undone when it gives an error, and the transaction
    /// goes on.
    ///
    /// # Errors
    /// The error of `work`, and of setting or leaving the savepoint.
    pub async fn savepoint<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: AsyncFnOnce(&Tx) -> Result<T, E>,
        E: From<OperationError>,
    {
        let name = format!("leaderpool_{}", self.inner.savepoints.fetch_add(1, Ordering::Relaxed));
        self.batch_execute(&format!("SAVEPOINT {name}")).await?;
        match work(self).await {
            Ok(value) => {
                self.batch_execute(&format!("RELEASE {name}")).await?;
                Ok(value)
            }
            Err(error) => {
                let undo = format!("ROLLBACK TO {name}; RELEASE {name}");
                if self.inner.client.batch_execute(&undo).await.is_ok() {
                    // Undone: the transaction has not failed.
                    self.inner.forgive();
                }
                Err(error)
            }
        }
    }

    async fn prepare(&self, sql: &str) -> Result<Statement, OperationError> {
        self.watch(async |client| client.prepare_cached(sql).await).await
    }

    async fn watch<T>(
        &self,
        work: impl AsyncFnOnce(&Client) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, OperationError> {
        let inner = &*self.inner;
        let written = inner.client.written();
        work(&inner.client).await.map_err(|error| {
            let attempt = Attempt {
                phase: Phase::Statement,
                sent: inner.client.written() != written,
                in_transaction: true,
                synchronous: inner.synchronous,
            };
            let error = statement::failed(error, attempt, &inner.client, &inner.place);
            inner.note(&error);
            error
        })
    }
}

impl TxInner {
    pub(crate) fn new(client: Client, synchronous: bool) -> Arc<Self> {
        let place = Place { node: client.node().to_owned(), epoch: client.epoch() };
        Arc::new(Self {
            client,
            place,
            synchronous,
            failure: Mutex::new(None),
            savepoints: AtomicU32::new(0),
        })
    }

    fn note(&self, error: &OperationError) {
        if let Some(seen) = Seen::of(error) {
            self.lock().get_or_insert(seen);
        }
    }

    fn forgive(&self) {
        *self.lock() = None;
    }

    pub(crate) fn failure(&self) -> Option<Seen> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Seen>> {
        self.failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
