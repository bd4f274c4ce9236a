//! The manager behind each member's deadpool.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use deadpool::managed::{Manager, Metrics, Object, RecycleError, RecycleResult};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::conn::Conn;
use super::dial::{DialError, Dialer};
use super::guard::Guard;
use super::member::{Fence, FenceLine};
use super::wire::WireState;
use crate::patroni::{ServerAddress, SystemId};
use crate::topology::Suspicion;

/// What a finished caller may leave behind on the wire (the Close of a dropped statement, the ROLLBACK of a
/// dropped transaction) is answered within this, or something else is going on.
pub(crate) const AFTERMATH: Duration = Duration::from_millis(20);

tokio::task_local! {
    /// Within it no connection is made: only idle ones are wanted.
    static IDLE_ONLY: ();
}

/// Lets `take` have no connection that is not there already.
pub(super) async fn idle_only<F: Future>(take: F) -> F::Output {
    IDLE_ONLY.scope((), take).await
}

/// A connection on loan from a member's pool.
pub(crate) type ConnObject = Object<ConnManager>;

/// Told of what connections notice.
pub(crate) type SuspectFn = Arc<dyn Fn(Suspicion) + Send + Sync>;

/// The cluster's identifier, once it is known.
pub(crate) type ExpectedId = Arc<dyn Fn() -> Option<SystemId> + Send + Sync>;

pub(crate) struct ConnManager {
    pub(super) address: ServerAddress,
    pub(super) dialer: Arc<Dialer>,
    pub(super) fence: Arc<Fence>,
    pub(super) tasks: TaskTracker,
    pub(super) runtime: Handle,
    pub(super) suspect: SuspectFn,
    pub(super) expected_id: ExpectedId,
    pub(super) max_lifetime: Duration,
    pub(super) guard: Arc<Guard>,
}

impl ConnManager {
    /// A connection outside the pool, for probes.
    pub(super) async fn dial(&self, line: Arc<FenceLine>) -> Result<Conn, DialError> {
        let wire = Arc::new(WireState::new());
        let dialed = self.dialer.dial(&self.address, &wire).await?;
        // 0 to 2.5 % less than the limit, so that connections made together do not end together.
        let shorter = self.max_lifetime.mul_f64(rand::random_range(0.0..0.025));
        let lifetime = self.max_lifetime - shorter;
        Ok(Conn::start(dialed, wire, (&self.tasks, &self.runtime), line, lifetime))
    }

    /// A connection of the pool's.
    async fn make(&self) -> Result<Conn, DialError> {
        // Taken before dialling: a fence that falls meanwhile cuts this one too.
        let line = self.fence.line();
        let conn = match self.dial(line).await {
            Ok(conn) => conn,
            Err(error) => {
                (self.suspect)(Suspicion::ConnectionLost);
                return Err(error);
            }
        };
        // The server may freeze between the two: the limit is for the new connection as a whole.
        let limit = self.dialer.connect_timeout();
        timeout(limit, self.check_identity(&conn)).await.unwrap_or_else(|_| {
            Err(DialError::TimedOut { address: self.address.clone(), limit })
        })?;
        let suspect = Arc::clone(&self.suspect);
        conn.wire().report_to(Box::new(move |what| suspect(what)));
        Ok(conn)
    }

    async fn check_identity(&self, conn: &Conn) -> Result<(), DialError> {
        let Some(expected) = (self.expected_id)() else { return Ok(()) };
        let row = conn
            .query_one("SELECT system_identifier FROM pg_catalog.pg_control_system()", &[])
            .await
            .map_err(|error| DialError::refused(&self.address, &error))?;
        let found =
            row.try_get::<_, i64>(0).map_err(|error| DialError::refused(&self.address, &error))?;
        let found = SystemId(found.cast_unsigned());
        if found == expected {
            Ok(())
        } else {
            Err(DialError::Foreign { address: self.address.clone(), expected, found })
        }
    }
}

impl Manager for ConnManager {
    type Type = Conn;
    type Error = DialError;

    async fn create(&self) -> Result<Conn, DialError> {
        if IDLE_ONLY.try_with(|()| ()).is_ok() {
            let source = io::Error::other("no idle connection is left");
            return Err(DialError::Unreachable { address: self.address.clone(), source });
        }
        let made = self.make().await;
        match &made {
            Ok(_) => self.guard.connected(),
            Err(error) => self.guard.not_connected(error),
        }
        made
    }

    // No round trip and no clock here: deadpool recycles one connection after the other, so that a few
    // dead ones would add up. What must be asked is asked once per reign, at checkout; age is told by
    // the connection's own task, and idle ones are swept.
    async fn recycle(&self, conn: &mut Conn, _: &Metrics) -> RecycleResult<DialError> {
        if conn.is_dead() {
            return Err(RecycleError::message("the connection is closed or over age"));
        }
        if !conn.wire().is_at_rest() {
            let _ = timeout(AFTERMATH, conn.wire().all_answered()).await;
        }
        if !conn.wire().is_at_rest() {
            return Err(RecycleError::message("the connection is not at rest"));
        }
        Ok(())
    }
}
