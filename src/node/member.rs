//! One member of the cluster, as the pool holds it.

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwap;
use deadpool::Runtime;
use deadpool::managed::{Object, Pool, PoolError, QueueMode, Status, Timeouts};
use futures_util::future::poll_fn;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::CancelToken;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::breaker::{BreakerConfig, Failure};
use super::conn::Conn;
use super::dial::{DialError, Dialer};
use super::guard::{Guard, TellFn, Test, failure_of};
use super::hot::Hot;
use super::keeper;
use super::leak::Leaks;
use super::load::Load;
use super::manager::{ConnManager, ConnObject, ExpectedId, idle_only};
use super::probe;
use super::run::RunSeen;
use super::tend;
use super::wire::WireState;
use crate::config::{self, PoolConfig, ProbeConfig};
use crate::patroni::{HistoryLine, ServerAddress, Timeline, parse_history_file};
use crate::pool::Lent;
use crate::telemetry::{Meter, Queue, Wait};
use crate::topology::{Cadence, Event, MemberSpec, Suspicion};

/// Waits for nobody to give a connection back.
const AT_ONCE: Timeouts = Timeouts { wait: Some(Duration::ZERO), create: None, recycle: None };

/// Cuts all connections of a member at once; those made later stand behind the next line.
#[derive(Debug, Default)]
pub(crate) struct Fence(ArcSwap<FenceLine>);

/// The connections that one fall of the fence cuts.
#[derive(Debug, Default)]
pub(crate) struct FenceLine {
    fallen: AtomicBool,
    /// Why it fell.
    why: OnceLock<String>,
    behind: Mutex<Vec<(Arc<WireState>, AbortHandle)>>,
}

impl FenceLine {
    pub(super) fn has_fallen(&self) -> bool {
        self.fallen.load(Ordering::Acquire)
    }

    /// Puts a connection behind the line, by its driver; where it has fallen already the connection ends.
    pub(super) fn stand_behind(&self, wire: &Arc<WireState>, driver: AbortHandle) {
        let mut behind = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        behind.retain(|(_, driver)| !driver.is_finished());
        behind.push((Arc::clone(wire), driver));
        drop(behind);
        // `fall` says so first and looks at the list then, so that no connection slips through.
        if self.has_fallen() {
            self.cut();
        }
    }

    fn fall(&self, why: String) -> usize {
        let _ = self.why.set(why);
        self.fallen.store(true, Ordering::SeqCst);
        self.cut()
    }

    /// How many were cut.
    fn cut(&self) -> usize {
        let mut behind = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        behind.retain(|(_, driver)| !driver.is_finished());
        let count = behind.len();
        for (wire, driver) in behind.drain(..) {
            wire.set_cause(|| format!("cut: {}", self.why.get().map_or("", String::as_str)));
            wire.close();
            driver.abort();
        }
        count
    }

    /// The live connections, in use or not.
    fn wires(&self) -> Vec<Arc<WireState>> {
        let behind = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        let live = behind.iter().filter(|(_, driver)| !driver.is_finished());
        live.map(|(wire, _)| Arc::clone(wire)).collect()
    }
}

impl Fence {
    pub(super) fn line(&self) -> Arc<FenceLine> {
        self.0.load_full()
    }

    fn fall(&self, why: String) -> usize {
        self.0.swap(Arc::default()).fall(why)
    }
}

/// What all nodes of a pool share.
#[derive(Clone)]
pub(crate) struct NodeContext {
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) pool: PoolConfig,
    pub(crate) probe: ProbeConfig,
    pub(crate) breaker: config::BreakerConfig,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) tasks: TaskTracker,
    /// The pool's own runtime: a client may be dropped outside of any.
    pub(crate) runtime: Handle,
    pub(crate) lent: Arc<Lent>,
    pub(crate) expected_id: ExpectedId,
    /// The number of the present reign.
    pub(crate) reign: Arc<dyn Fn() -> u64 + Send + Sync>,
    pub(crate) tell: TellFn,
    /// How fresh the reads that are going on want to be.
    pub(crate) demand: Arc<probe::Demand>,
    pub(crate) meter: Meter,
}

/// One member: its pool, its load, and the probe that runs beside them.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) address: ServerAddress,
    pub(crate) load: Load,
    pub(crate) guard: Arc<Guard>,
    pub(crate) lent: Arc<Lent>,
    pub(crate) tasks: TaskTracker,
    pub(crate) runtime: Handle,
    pool: Pool<ConnManager>,
    hot: Hot<ConnObject>,
    fence: Arc<Fence>,
    cadence: watch::Sender<Cadence>,
    wake: Arc<Notify>,
    cancel: CancellationToken,
    warming: AtomicBool,
    /// The current run of its server, as first seen out of recovery.
    run: Mutex<Option<RunSeen>>,
    /// Statements that have been running for longer than `pool.hung_after`, at the last look.
    hung: AtomicUsize,
    /// When the server last answered anything, be it an error.
    last_sign: Mutex<Instant>,
    /// Idle connections that are to be kept ready.
    min_idle: AtomicUsize,
    wants_more: Notify,
    /// Where checkouts are watched for being held too long.
    pub(crate) leaks: Option<Leaks>,
}

impl Node {
    /// Makes the node and starts its probe.
    pub(crate) fn start(spec: &MemberSpec, context: &NodeContext) -> Arc<Self> {
        let fence = Arc::new(Fence::default());
        let (events, name) = (context.events.clone(), spec.name.clone());
        // More than any test of the member takes: dialling, and one answer.
        let test_limit = 2 * (context.dialer.connect_timeout() + context.probe.timeout);
        let breaker = BreakerConfig::new(&context.breaker, test_limit);
        let guard = Guard::new(spec.name.clone(), breaker, Arc::clone(&context.tell));
        let meter = context.meter.clone();
        let manager = ConnManager {
            address: spec.address.clone(),
            dialer: Arc::clone(&context.dialer),
            fence: Arc::clone(&fence),
            tasks: context.tasks.clone(),
            runtime: context.runtime.clone(),
            // A full queue is no loss: the state machine is then busy with news of the same kind, and
            // the next probe tells the same.
            suspect: Arc::new(move |cause| {
                let event = Event::Suspect { member: name.clone(), cause };
                if let Err(mpsc::error::TrySendError::Full(_)) = events.try_send(event) {
                    meter.dropped(Queue::Supervisor);
                }
            }),
            expected_id: Arc::clone(&context.expected_id),
            max_lifetime: context.pool.max_lifetime,
            guard: Arc::clone(&guard),
        };
        // The builder fails only where timeouts are set without a runtime.
        let pool = Pool::builder(manager)
            .max_size(context.pool.max_size)
            // The one that was used last is used next: it is the warmest, and those that are not needed rest
            // until they are dropped.
            .queue_mode(QueueMode::Lifo)
            .runtime(Runtime::Tokio1)
            .build()
            .unwrap_or_else(|error| unreachable!("a pool without timeouts: {error}"));
        let node = Arc::new(Self {
            name: spec.name.clone(),
            address: spec.address.clone(),
            load: Load::default(),
            guard,
            lent: Arc::clone(&context.lent),
            tasks: context.tasks.clone(),
            runtime: context.runtime.clone(),
            pool,
            hot: Hot::new(),
            fence,
            cadence: watch::Sender::new(Cadence::Normal),
            wake: Arc::new(Notify::new()),
            cancel: CancellationToken::new(),
            warming: AtomicBool::new(false),
            run: Mutex::new(None),
            hung: AtomicUsize::new(0),
            last_sign: Mutex::new(Instant::now()),
            min_idle: AtomicUsize::new(0),
            wants_more: Notify::new(),
            leaks: Leaks::after(context.pool.leak_after),
        });
        context.tasks.spawn(keeper::run(
            Arc::clone(&node),
            context.pool.clone(),
            node.cancel.clone(),
        ));
        context.tasks.spawn(tend::run(
            Arc::clone(&node),
            context.pool.clone(),
            context.probe.timeout,
            node.cancel.clone(),
        ));
        context.tasks.spawn(probe::run(
            Arc::clone(&node),
            context.clone(),
            node.cadence.subscribe(),
            node.cancel.clone(),
        ));
        node
    }

    /// A connection that came back a moment ago, where there is one.
    #[inline]
    pub(crate) fn at_hand(&self) -> Option<ConnObject> {
        sound(self.hot.take()?)
    }

    /// Takes a connection back that is at rest.
    #[inline]
    pub(crate) fn give_back(&self, object: ConnObject) {
        // Where it is not kept, its drop puts it back into the pool.
        let _ = self.hot.keep(object);
    }

    /// A connection, by `deadline`, dialling included. `waited` is told where it is not there at once.
    pub(crate) async fn checkout(
        &self,
        deadline: Instant,
        waited: &Wait,
    ) -> Result<ConnObject, CheckoutFailure> {
        if let Some(object) = self.at_hand() {
            return Ok(object);
        }
        let timeouts = Timeouts::default();
        let mut get = pin!(self.pool.timeout_get(&timeouts));
        // An idle connection is there at once; only who has to wait needs a timer.
        let at_once = poll_fn(|cx| Poll::Ready(get.as_mut().poll(cx))).await;
        let got = match at_once {
            Poll::Ready(got) => Ok(got),
            Poll::Pending => {
                // From here on what comes back is not kept at hand; what was so far is ours.
                let (_waiter, kept) = self.hot.wait();
                if let Some(object) = kept.and_then(sound) {
                    return Ok(object);
                }
                waited.begin();
                let began = Instant::now();
                let got = timeout_at(deadline, get).await;
                let status = self.pool.status();
                // With room for more, it was a new connection that was waited for.
                if got.is_err() && status.size < status.max_size {
                    self.guard.not_waited_for(began);
                }
                got
            }
        };
        match got {
            Ok(Ok(object)) => Ok(object),
            Ok(Err(PoolError::Backend(error))) => {
                self.load.failure();
                Err(CheckoutFailure::Dial(error))
            }
            Ok(Err(PoolError::Closed)) => Err(CheckoutFailure::Closed),
            Ok(Err(
                PoolError::Timeout(_)
                | PoolError::NoRuntimeSpecified
                | PoolError::PostCreateHook(_),
            )) => Err(CheckoutFailure::TimedOut),
            Err(_) => Err(CheckoutFailure::TimedOut),
        }
    }

    /// Hands a connection out that is on trial, once the server has answered on it, by `limit`.
    pub(crate) async fn try_out(
        &self,
        object: ConnObject,
        test: Test,
        limit: Instant,
    ) -> Result<ConnObject, CheckoutFailure> {
        match sign_of_life(&object, limit).await {
            Ok(()) => {
                test.passed();
                Ok(object)
            }
            Err(failure) => {
                test.failed(failure);
                drop(Object::take(object));
                self.suspect(Suspicion::ConnectionLost);
                let source = io::Error::other(format!("asked for a sign of life: {failure}"));
                let address = self.address.clone();
                Err(CheckoutFailure::Dial(DialError::Unreachable { address, source }))
            }
        }
    }

    /// Makes a test that is due, over a connection of its own: an answer on an old one does not tell whether
    /// the server takes new ones.
    pub(super) async fn make_test(&self, test: Test, limit: Duration) {
        let result = match self.manager().dial(Arc::default()).await {
            Ok(conn) => sign_of_life(&conn, Instant::now() + limit).await,
            Err(error) => Err(failure_of(&error)),
        };
        match result {
            Ok(()) => test.passed(),
            Err(failure) => test.failed(failure),
        }
    }

    pub(crate) fn run_seen(&self) -> Option<RunSeen> {
        *self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn saw_run(&self, newer: RunSeen) {
        let mut run = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        *run = Some(RunSeen::then(*run, newer));
    }

    /// Asks the server to cancel what the session of `token` is doing.
    pub(crate) async fn cancel(&self, token: CancelToken) -> Result<(), DialError> {
        self.manager().dialer.cancel(&self.address, token).await
    }

    /// The switch points in the server's own history file; `None` where the user may not read it.
    pub(crate) async fn read_history(
        &self,
        timeline: Timeline,
        deadline: Instant,
    ) -> Option<Vec<HistoryLine>> {
        // Not one of the pool's: those are for the writers who wait for this leader.
        let conn = timeout_at(deadline, self.manager().dial(Arc::default())).await.ok()?.ok()?;
        let file = format!("pg_wal/{:08X}.history", timeline.0);
        let row = conn.query_one("SELECT pg_catalog.pg_read_file($1)", &[&file]).await.ok()?;
        parse_history_file(row.try_get(0).ok()?)
    }

    pub(super) fn manager(&self) -> &ConnManager {
        self.pool.manager()
    }

    pub(crate) fn status(&self) -> Status {
        let mut status = self.pool.status();
        status.available += usize::from(self.hot.is_occupied());
        status
    }

    pub(crate) fn set_cadence(&self, cadence: Cadence) {
        self.cadence.send_replace(cadence);
        self.wake.notify_one();
    }

    pub(crate) fn probe_now(&self) {
        self.wake.notify_one();
    }

    /// The server answered something at `at`, be it an error.
    pub(super) fn gave_a_sign(&self, at: Instant) {
        let mut last = self.last_sign.lock().unwrap_or_else(PoisonError::into_inner);
        *last = at.max(*last);
    }

    /// How long the server has not answered anything, neither its probe nor anybody else.
    pub(crate) fn silent_for(&self, now: Instant) -> Duration {
        let last = *self.last_sign.lock().unwrap_or_else(PoisonError::into_inner);
        now.saturating_duration_since(last)
    }

    /// Statements that have been running for longer than `pool.hung_after`, at the last look.
    pub(crate) fn hung(&self) -> usize {
        self.hung.load(Ordering::Relaxed)
    }

    pub(super) fn set_hung(&self, count: usize) {
        if self.hung.swap(count, Ordering::Relaxed) == 0 && count > 0 {
            tracing::debug!(node = self.name, count, "statements run for long, the node is asked");
            self.probe_now();
        }
    }

    pub(super) fn wake(&self) -> &Notify {
        &self.wake
    }

    /// Starts to make a connection where there is none, so that the first writer after an admission need
    /// not wait for a handshake.
    pub(crate) fn warm(self: &Arc<Self>, tasks: &TaskTracker, limit: Duration) {
        if self.status().available > 0 || self.warming.swap(true, Ordering::AcqRel) {
            return;
        }
        let node = Arc::clone(self);
        tasks.spawn(async move {
            // Given back at once: then it is idle, and warm.
            let made = node.checkout(Instant::now() + limit, &Wait::default()).await;
            drop(made);
            node.warming.store(false, Ordering::Release);
        });
    }

    /// Cuts all its connections, in use or not, with `why` as the cause of their end; how many there were.
    pub(crate) fn cut(&self, why: String) -> usize {
        let count = self.fence.fall(why);
        drop(self.hot.take().and_then(sound));
        self.pool.retain(|conn, _| !conn.is_dead());
        count
    }

    /// Its live connections, in use or not.
    pub(super) fn wires(&self) -> Vec<Arc<WireState>> {
        self.fence.line().wires()
    }

    /// Tells the member that something was noticed about it.
    pub(crate) fn suspect(&self, cause: Suspicion) {
        (self.manager().suspect)(cause);
    }

    /// Puts what was kept at hand back into the pool, where nobody has wanted it for a while.
    pub(super) fn cool_down(&self) {
        drop(self.hot.unwanted().and_then(sound));
    }

    pub(super) fn pool(&self) -> &Pool<ConnManager> {
        &self.pool
    }

    /// Idle connections that are to be kept ready.
    pub(super) fn min_idle(&self) -> usize {
        self.min_idle.load(Ordering::Relaxed)
    }

    /// Keeps so many idle connections ready from now on.
    pub(crate) fn keep_ready(&self, connections: usize) {
        if self.min_idle.swap(connections, Ordering::Relaxed) < connections {
            self.wants_more.notify_one();
        }
    }

    /// Returns when more connections are to be kept ready than before.
    pub(super) async fn wants_more(&self) {
        self.wants_more.notified().await;
    }

    /// All idle connections, the one last used first. To be given back at once, by [`give_back`].
    pub(super) async fn take_idle(&self) -> Vec<ConnObject> {
        let mut taken = Vec::new();
        for _ in 0..self.pool.status().available {
            match idle_only(self.pool.timeout_get(&AT_ONCE)).await {
                Ok(object) => taken.push(object),
                Err(_) => break,
            }
        }
        taken
    }

    /// Gives a connection back as the one to be used last. The other idle ones are taken out of the way for a
    /// moment; `taken` is told of each.
    pub(super) async fn put_below(&self, object: ConnObject, taken: impl FnMut(&ConnObject)) {
        let others = self.take_idle().await;
        others.iter().for_each(taken);
        drop(object);
        give_back(others);
    }

    /// Makes one idle connection more, where there is room for it, the way that
    /// [`put_below`](Self::put_below) does. False where none could be made.
    pub(super) async fn make_one_more(&self, mut taken: impl FnMut(&ConnObject)) -> bool {
        let others = self.take_idle().await;
        others.iter().for_each(&mut taken);
        let mut get = pin!(self.pool.timeout_get(&AT_ONCE));
        let at_once = poll_fn(|cx| Poll::Ready(get.as_mut().poll(cx))).await;
        // It is being dialled: whoever wants a connection meanwhile has the idle ones.
        give_back(others);
        let made = match at_once {
            Poll::Ready(made) => made,
            Poll::Pending => get.await,
        };
        match made {
            Ok(object) => self.put_below(object, taken).await,
            // There is no room any more.
            Err(PoolError::Timeout(_)) => {}
            Err(_) => return false,
        }
        true
    }

    /// Lends nothing more, and sends those away who wait for a connection.
    pub(crate) fn close(&self) {
        self.pool.close();
        drop(self.hot.close());
    }

    /// Stops its probe and lends nothing more; what is out is closed on return.
    pub(crate) fn remove(&self) {
        self.close();
        self.cancel.cancel();
    }
}

/// What is dead is not put back, and what is not at rest is the pool's to see to.
#[inline]
fn sound(object: ConnObject) -> Option<ConnObject> {
    if object.is_dead() {
        drop(Object::take(object));
        return None;
    }
    object.wire().is_at_rest().then_some(object)
}

/// Gives back what [`Node::take_idle`] took, so that it lies as before.
pub(super) fn give_back(mut taken: Vec<ConnObject>) {
    while taken.pop().is_some() {}
}

/// Asks for the cheapest answer there is.
pub(super) async fn sign_of_life(conn: &Conn, limit: Instant) -> Result<(), Failure> {
    match timeout_at(limit, conn.simple_query("")).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err(Failure::Error),
        Err(_) => Err(Failure::Timeout),
    }
}

/// Why a member's pool gave no connection.
pub(crate) enum CheckoutFailure {
    Dial(DialError),
    TimedOut,
    Closed,
}
