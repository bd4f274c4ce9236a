//! The session: what the rest of the agent holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::clock::BootTime;
use super::error::DcsError;
use super::keeper::{Keeper, Refresh, grant};
use super::keys::OwnMember;
use super::lease::{LeaseCell, LeaseState};
use super::links::Links;
use super::settings::{DcsSettings, DcsTiming};
use super::view::{Changes, DcsView};
use super::watch::{Watcher, read_all};
use super::writes::{Names, Reign};
use leaderpool::patroni::Key;

/// Callers of [`Session::refresh_now`] that may wait at once.
const REFRESHES: usize = 16;

/// The agent's session with etcd: one lease, conditional writes, and a view of the cluster's keys.
///
/// Two tasks belong to it, one that keeps the lease and one that watches; both go on for ever, whatever
/// etcd does, until [`shutdown`](Self::shutdown). Every operation is tried at one endpoint after another
/// for at most `retry_timeout`, and is idempotent: after an attempt whose outcome is not known it is asked
/// again, and the answer judged by what stands in etcd. Dropping an operation's future leaves it in that
/// state of unknown outcome: repeat it, or look.
pub struct Session {
    pub(super) links: Arc<Links>,
    pub(super) cell: Arc<LeaseCell>,
    pub(super) names: Arc<Names>,
    pub(super) own: Mutex<OwnMember>,
    pub(super) reign: watch::Sender<Option<Reign>>,
    view: watch::Receiver<Arc<DcsView>>,
    proven_at: Arc<AtomicU64>,
    refreshes: mpsc::Sender<Refresh>,
    poke_keeper: Arc<Notify>,
    poke_watcher: Arc<Notify>,
    cancel: CancellationToken,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("name", &self.names.me)
            .field("prefix", &self.links.settings().prefix)
            .field("lease", &self.cell.state())
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Starts the two tasks, in the current runtime. It does not wait for etcd:
    /// [`wait_ready`](Self::wait_ready) does.
    ///
    /// # Errors
    /// [`DcsError::Settings`] for settings that cannot work and certificates that cannot be read.
    pub fn start(settings: DcsSettings) -> Result<Self, DcsError> {
        let names = Arc::new(Names {
            leader: settings.prefix.key(&Key::Leader),
            member: settings.prefix.key(&Key::Member(settings.name.clone())),
            me: settings.name.clone(),
        });
        let links = Arc::new(Links::new(settings)?);
        let cell = Arc::new(LeaseCell::default());
        let (refreshes, asked) = mpsc::channel(REFRESHES);
        let (poke_keeper, poke_watcher) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (reign, reign_seen) = watch::channel(None);
        let (view, view_seen) = watch::channel(Arc::default());
        let proven_at = Arc::new(AtomicU64::new(0));
        let keeper = Keeper {
            links: Arc::clone(&links),
            cell: Arc::clone(&cell),
            refreshes: asked,
            poke: Arc::clone(&poke_keeper),
        };
        let watcher = Watcher {
            links: Arc::clone(&links),
            cell: Arc::clone(&cell),
            names: Arc::clone(&names),
            view,
            proven_at: Arc::clone(&proven_at),
            reign: reign_seen,
            poke_keeper: Arc::clone(&poke_keeper),
            poke: Arc::clone(&poke_watcher),
        };
        let cancel = CancellationToken::new();
        let tasks = vec![
            tokio::spawn(until_cancelled(cancel.clone(), keeper.run())),
            tokio::spawn(until_cancelled(cancel.clone(), watcher.run())),
        ];
        Ok(Self {
            links,
            cell,
            names,
            own: Mutex::default(),
            reign,
            view: view_seen,
            proven_at,
            refreshes,
            poke_keeper,
            poke_watcher,
            cancel,
            tasks: Mutex::new(tasks),
        })
    }

    /// Waits until there is a lease and a current view.
    ///
    /// # Errors
    /// What keeps it from being so, after `within`.
    pub async fn wait_ready(&self, within: Duration) -> Result<(), DcsError> {
        let deadline = Instant::now() + within;
        let mut view = self.view.clone();
        let mut lease = self.cell.subscribe();
        let both = async {
            let seen = view.wait_for(|view| view.is_current()).await.is_ok();
            seen && lease.wait_for(|lease| lease.id != 0).await.is_ok()
        };
        match timeout_at(deadline, both).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(DcsError::Closed),
            // Asked once more, for the reason in words.
            Err(_) => {
                let deadline = Instant::now() + self.links.timing().attempt_within(1);
                self.links
                    .ask(deadline, async |mut client| read_all(&self.links, &mut client).await)
                    .await?;
                Err(DcsError::NoLease(format!("none was granted within {within:?}")))
            }
        }
    }

    /// The lease, for the fence's thread and for the decision loop's permission to renew it.
    #[must_use]
    pub fn lease(&self) -> Arc<LeaseCell> {
        Arc::clone(&self.cell)
    }

    /// The reign that this session has proven last, if the leader key is ours.
    #[must_use]
    pub fn reign(&self) -> Option<Reign> {
        *self.reign.borrow()
    }

    /// The cluster's keys as the watch shows them.
    #[must_use]
    pub fn view(&self) -> Arc<DcsView> {
        self.view.borrow().clone()
    }

    /// When the latest linearizable read of all keys was sent that was answered. What etcd held then, the
    /// view shows; it stands still while no endpoint answers.
    #[must_use]
    pub fn proven_at(&self) -> BootTime {
        BootTime::from_nanos(self.proven_at.load(Ordering::Acquire))
    }

    /// A reader of its own, that is told what changed since it last looked.
    #[must_use]
    pub fn changes(&self) -> ViewChanges {
        ViewChanges { view: self.view.clone(), last: Arc::default() }
    }

    /// Waits until the view shows `revision`: what this session itself wrote reaches it by the watch.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`DcsError::TimedOut`] after `within`.
    pub async fn wait_revision(
        &self,
        revision: i64,
        within: Duration,
    ) -> Result<Arc<DcsView>, DcsError> {
        let mut view = self.view.clone();
        let deadline = Instant::now() + within;
        match timeout_at(deadline, view.wait_for(|view| view.revision >= revision)).await {
            Ok(Ok(view)) => Ok(Arc::clone(&view)),
            Ok(Err(_)) => Err(DcsError::Closed),
            Err(_) => Err(timed_out(within, "the watch does not show the write yet")),
        }
    }

    /// Reads all keys, linearizably, beside the watch. Cancel-safe.
    ///
    /// # Errors
    /// Where no endpoint answers within `retry_timeout`.
    pub async fn read(&self) -> Result<DcsView, DcsError> {
        let read = self
            .links
            .ask(self.deadline(), async |mut client| read_all(&self.links, &mut client).await)
            .await?;
        let (store, sent) = read;
        Ok(DcsView::new(&self.links.settings().prefix, store.revision, &store.keys, sent))
    }

    /// Has the watch proven now rather than at its next interval: after a thaw, or where something else
    /// says that the view is old. Does not wait.
    pub fn prove_soon(&self) {
        self.poke_watcher.notify_one();
    }

    /// Renews the lease now, and waits for it: after the process stood still, before anything is promised.
    ///
    /// Cancel-safe: the renewal is made all the same.
    ///
    /// # Errors
    /// [`DcsError::NoLease`] where renewals are forbidden, [`DcsError::TimedOut`] where none succeeded
    /// within `within`.
    pub async fn refresh_now(&self, within: Duration) -> Result<LeaseState, DcsError> {
        let deadline = Instant::now() + within;
        loop {
            if !self.cell.may_renew(BootTime::now()) {
                return Err(DcsError::NoLease("its renewal is forbidden at present".into()));
            }
            let (send, answer) = oneshot::channel();
            let asked = async {
                self.refreshes.send(send).await.map_err(|_| DcsError::Closed)?;
                Ok(answer.await.ok())
            };
            match timeout_at(deadline, asked).await {
                Ok(Ok(Some(state))) => return Ok(state),
                Ok(Err(error)) => return Err(error),
                // The endpoint failed; the keeper is on its way to another.
                Ok(Ok(None)) if self.cancel.is_cancelled() => return Err(DcsError::Closed),
                Ok(Ok(None)) => {}
                Err(_) => return Err(timed_out(within, "the lease could not be renewed")),
            }
        }
    }

    /// Changes the timing. A new `ttl` means a new lease, as etcd cannot change one: it is granted, and the
    /// leader key, if it is ours, and the member key are hung on it. Until the leader key is, leadership
    /// counts by the old lease, which is not renewed any more.
    ///
    /// # Errors
    /// Where etcd does not answer within `retry_timeout` or the leader key is not ours any more. The new
    /// timing holds all the same, and what could not be done is made up for by the next
    /// [`keep`](Self::keep) and [`put_member`](Self::put_member).
    pub async fn set_timing(&self, timing: DcsTiming) -> Result<(), DcsError> {
        let before = self.links.timing();
        self.links.set_timing(timing);
        if before.ttl != timing.ttl && self.cell.state().id != 0 {
            let (id, sent, ttl) = grant(&self.links, timing.ttl, self.deadline()).await?;
            self.cell.granted(id, sent, ttl);
            self.poke_keeper.notify_one();
            if let Some(reign) = self.reign() {
                self.keep(reign).await?;
            }
            self.put_member_again().await?;
        } else {
            self.poke_keeper.notify_one();
        }
        self.poke_watcher.notify_one();
        Ok(())
    }

    /// Tells the keeper that the gate of renewals was opened.
    pub fn renew_soon(&self) {
        self.poke_keeper.notify_one();
    }

    /// Ends both tasks and waits for them. The lease is not revoked: as with Patroni, the member key lives
    /// on for at most the ttl, and the leader key is [released](Self::release) by whoever decides that.
    pub async fn shutdown(&self) {
        self.cancel.cancel();
        for task in self.tasks.lock().await.drain(..) {
            // A task that panicked has said so already.
            let _ = task.await;
        }
    }

    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.links.timing().retry_timeout
    }

    pub(super) fn lease_id(&self) -> Result<i64, DcsError> {
        match self.cell.state() {
            state if state.is_valid(BootTime::now()) => Ok(state.id),
            LeaseState { id: 0, .. } => Err(DcsError::NoLease("there is none at present".into())),
            _ => Err(DcsError::NoLease("its time has run out".into())),
        }
    }

    /// etcd refused a write for want of the lease: the keeper is to find out at once.
    pub(super) fn doubt_lease(&self) {
        self.poke_keeper.notify_one();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

async fn until_cancelled(cancel: CancellationToken, task: impl Future<Output = ()>) {
    let _ = cancel.run_until_cancelled_owned(task).await;
}

fn timed_out(waited: Duration, reason: &str) -> DcsError {
    let failures = vec![("this session".into(), reason.into())];
    DcsError::TimedOut { waited, failures, maybe_applied: false }
}

/// A reader of the view that knows what it has seen.
#[derive(Debug, Clone)]
pub struct ViewChanges {
    view: watch::Receiver<Arc<DcsView>>,
    last: Arc<DcsView>,
}

impl ViewChanges {
    /// Waits for a view that differs from the last one this reader was given; `None` after the session's
    /// shutdown. What changes while nobody waits is told together. Cancel-safe.
    pub async fn next(&mut self) -> Option<(Arc<DcsView>, Changes)> {
        loop {
            self.view.changed().await.ok()?;
            if let Some(news) = self.take() {
                return Some(news);
            }
        }
    }

    /// The same without waiting.
    pub fn take(&mut self) -> Option<(Arc<DcsView>, Changes)> {
        let view = self.view.borrow_and_update().clone();
        let changes = Changes::between(&self.last, &view);
        self.last = Arc::clone(&view);
        (!changes.is_empty()).then_some((view, changes))
    }
}
