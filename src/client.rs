//! A connection on loan.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use deadpool::managed::Object;
use deadpool_postgres::ClientWrapper;
use serde::Serialize;
use tokio::time::timeout;

use crate::node::{AFTERMATH, ConnObject, LeaseId, Node, RunSeen, Watch};
use crate::patroni::ServerAddress;
use crate::pool::WriteTarget;
use crate::telemetry::Pending;
use crate::topology::Epoch;

/// How long the rollback of an abandoned transaction may take before the connection is given up.
const ROLLBACK_LIMIT: Duration = Duration::from_millis(100);

/// What a connection was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Writes: it leads to the admitted leader.
    Write,
    /// Reads: it leads to a replica, or to the leader where the policy says so.
    Read,
}

/// A connection on loan from a [`LeaderPool`](crate::LeaderPool); it goes back when it is dropped.
///
/// Derefs to the client of `deadpool-postgres` (with `prepare_cached` and transactions), and through it
/// to [`tokio_postgres::Client`]. When the node is demoted (`pool.cut_on_demotion`), or has been dead for
/// long (`pool.cut_dead_after`), work in flight on it fails rather than hangs;
/// [`end_cause`](Self::end_cause) then says why.
///
/// It may be dropped at any moment. Work still in flight is cancelled on the server and the connection
/// discarded; an open transaction is rolled back first, and nobody is lent a connection with either.
pub struct Client {
    object: Option<ConnObject>,
    node: Arc<Node>,
    role: Role,
    leads: bool,
    epoch: Option<Epoch>,
    /// Where it may carry the leader's first write.
    first: Option<Pending>,
    /// Mostly there are none: each checkout moves this, and looks at it when it ends.
    notes: Option<Box<Notes>>,
}

/// What has to be told when a connection comes back.
struct Notes {
    watch: Option<Watch>,
    lease: Option<LeaseId>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("node", &self.node.name)
            .field("role", &self.role)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Takes over one count of what is lent.
    pub(crate) fn new(
        object: ConnObject,
        node: Arc<Node>,
        role: Role,
        leads: bool,
        epoch: Option<Epoch>,
    ) -> Self {
        node.load.begin(role);
        let notes = if node.guard.is_calm() && node.leaks.is_none() {
            None
        } else {
            let watch = node.guard.watch(object.wire());
            let lease = node.leaks.as_ref().map(|leaks| leaks.handed_out(role));
            Some(Box::new(Notes { watch, lease }))
        };
        Self { object: Some(object), node, role, leads, epoch, first: None, notes }
    }

    /// Has the first write under `target` noticed, where this one carries it.
    #[inline]
    pub(crate) fn watched_for(mut self, target: &Arc<WriteTarget>) -> Self {
        if self.role == Role::Write {
            self.first = Pending::of(target, || self.answers());
        }
        self
    }

    /// That its statements are answered is no write: [`committed`](Self::committed) will say so.
    pub(crate) fn only_commits_count(mut self) -> Self {
        if let Some(first) = &mut self.first {
            first.only_commits_count();
        }
        self
    }

    /// Its commit was acknowledged.
    pub(crate) fn committed(&self) {
        if let Some(first) = &self.first {
            first.committed();
        }
    }

    /// Where the member listens.
    pub(crate) fn address(&self) -> &ServerAddress {
        &self.node.address
    }

    /// The member that serves this connection.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node.name
    }

    /// Whether that member was the admitted leader when the connection was handed out: reads go there too
    /// where the policy says so.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.leads
    }

    /// What it was asked for.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// The epoch in which it was handed out: of the leader's reign for writes, of the view for reads.
    /// `None` for reads before any leader was admitted.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// Why the connection ended, where it has and that is known: the driver says only "closed".
    #[must_use]
    pub fn end_cause(&self) -> Option<String> {
        self.conn().end_cause()
    }

    /// Bytes sent to the server so far.
    pub(crate) fn written(&self) -> u64 {
        self.conn().wire().written()
    }

    /// Requests answered to the end so far.
    pub(crate) fn answers(&self) -> u64 {
        self.conn().wire().answers()
    }

    /// Whether the server itself said that it ends the session.
    pub(crate) fn was_dismissed(&self) -> bool {
        self.conn().wire().was_dismissed()
    }

    /// Whether the pool itself ended the connection, since its node was demoted or dead.
    pub(crate) fn was_cut(&self) -> bool {
        self.conn().was_cut()
    }

    pub(crate) fn is_in_failed_transaction(&self) -> bool {
        self.conn().wire().in_failed_transaction()
    }

    pub(crate) fn run_seen(&self) -> Option<RunSeen> {
        self.node.run_seen()
    }

    fn conn(&self) -> &ConnObject {
        // Taken only in `drop`.
        self.object.as_ref().unwrap_or_else(|| unreachable!("the connection is held until drop"))
    }
}

impl Deref for Client {
    type Target = ClientWrapper;

    fn deref(&self) -> &ClientWrapper {
        self.conn()
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut ClientWrapper {
        match &mut self.object {
            Some(object) => object,
            None => unreachable!("the connection is held until drop"),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.node.load.end();
        let mut watch = None;
        if let Some(notes) = self.notes.take() {
            watch = notes.watch;
            if let (Some(leaks), Some(lease)) = (&self.node.leaks, notes.lease) {
                leaks.came_back(lease);
            }
        }
        let Some(object) = self.object.take() else { return };
        if let Some(first) = self.first.take() {
            first.returned(object.wire().answers());
        }
        if object.is_dead() {
            if !object.was_cut() && !object.wire().has_expired() {
                self.node.guard.lost_in_use();
            }
            // Its successor is dialled when it is needed.
            drop(Object::take(object));
            self.node.lent.end();
        } else if object.wire().is_at_rest() {
            if let Some(watch) = watch {
                self.node.guard.came_back(watch, object.wire());
            }
            self.node.give_back(object);
            self.node.lent.end();
        } else {
            let node = Arc::clone(&self.node);
            let settled = async move {
                settle(object, &node).await;
                node.lent.end();
            };
            self.node.tasks.spawn_on(settled, &self.node.runtime);
        }
    }
}

/// Brings an abandoned connection to rest, or gives it up.
async fn settle(object: ConnObject, node: &Node) {
    let wire = object.wire();
    if timeout(AFTERMATH, wire.all_answered()).await.is_ok() {
        // A transaction that was begun by hand; the driver rolls its own ones back.
        if wire.in_transaction() {
            let _ = timeout(ROLLBACK_LIMIT, object.batch_execute("ROLLBACK")).await;
        }
        if wire.is_at_rest() {
            return;
        }
    }
    let token = object.cancel_token();
    if let Err(error) = node.cancel(token).await {
        node.guard.not_connected(&error);
        tracing::debug!(node = node.name, %error, "an abandoned statement could not be cancelled");
    }
    // A cancel request is racy, so the connection is not used again.
    drop(Object::take(object));
}
