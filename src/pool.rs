//! What a caller holds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use deadpool::managed::Object;
use tokio::runtime::Handle;
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::client::{Client, Role};
use crate::config::Config;
use crate::error::{CheckoutError, CloseError, ConnectError};
use crate::node::{CheckoutFailure, ConnObject, Demand, DialError, Dialer, Node};
use crate::report::{self, Report};
use crate::routing::{Ineligible, ReadChoice, ReadPolicy, choose_read, pick_two};
use crate::supervisor;
use crate::topology::{ClusterView, Epoch, LeaderState, MemberHealth, Suspicion, TopologyEvent};

/// Added to the cluster's `ttl` for the default of `pool.write_timeout`: election, promotion, and a
/// handshake.
const FAILOVER_SLACK: Duration = Duration::from_secs(15);
/// The pause before another attempt on a member that just failed, if nothing is heard meanwhile.
const RETRY_PAUSE: Duration = Duration::from_millis(25);

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

/// The member that may be written to, and the reign in which it was admitted.
pub(crate) struct WriteTarget {
    pub(crate) node: Arc<Node>,
    pub(crate) reign: u64,
    pub(crate) epoch: Epoch,
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
    pub(crate) waiting: AtomicUsize,
    pub(crate) lent: Arc<Lent>,
    pub(crate) closed: AtomicBool,
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
        let (changed, _) = watch::channel(0);
        let (events, _) = broadcast::channel(256);
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
        let now = Instant::now();
        self.write_by(now, now + self.write_timeout()).await
    }

    /// As [`write`](Self::write), within `limit` instead.
    ///
    /// # Errors
    /// [`CheckoutError`]; nothing was sent to any server.
    pub async fn write_within(&self, limit: Duration) -> Result<Client, CheckoutError> {
        let now = Instant::now();
        self.write_by(now, now + limit).await
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
        let now = Instant::now();
        self.read_by(&policy, now, now + limit).await
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
        shared.closed.store(true, Ordering::Release);
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

    async fn write_by(&self, now: Instant, deadline: Instant) -> Result<Client, CheckoutError> {
        let attempt = Attempt::begin(&self.shared, now, deadline)?;
        attempt.leader(Role::Write).await
    }

    async fn read_by(
        &self,
        policy: &ReadPolicy,
        now: Instant,
        deadline: Instant,
    ) -> Result<Client, CheckoutError> {
        let attempt = Attempt::begin(&self.shared, now, deadline)?;
        attempt.read(policy).await
    }
}

/// One call that wants a connection, counted while it lasts.
struct Attempt<'a> {
    shared: &'a Shared,
    started: Instant,
    deadline: Instant,
    first_error: Option<Box<DialError>>,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<'a> Attempt<'a> {
    fn begin(shared: &'a Shared, now: Instant, deadline: Instant) -> Result<Self, CheckoutError> {
        let limit = shared.config.pool.max_waiting;
        let waiting = shared.waiting.fetch_add(1, Ordering::AcqRel);
        let attempt = Self { shared, started: now, deadline, first_error: None };
        if waiting >= limit {
            return Err(CheckoutError::TooManyWaiting { limit });
        }
        Ok(attempt)
    }

    /// A connection to the leader.
    async fn leader(mut self, role: Role) -> Result<Client, CheckoutError> {
        loop {
            if self.shared.closed.load(Ordering::Acquire) {
                return Err(CheckoutError::Closed);
            }
            let Some(target) = self.shared.target.load_full() else {
                if !self.changed_unless(|shared| shared.target.load().is_some()).await {
                    return Err(self.no_leader());
                }
                continue;
            };
            match target.node.checkout(self.deadline).await {
                Ok(mut object) => {
                    if object.verified_reign != target.reign
                        && !self.verify(&target, &mut object).await
                    {
                        drop(Object::take(object));
                        self.pause().await?;
                        continue;
                    }
                    // The reign may have ended while the connection was made ready.
                    if self.shared.reign.load(Ordering::Acquire) == target.reign {
                        let node = Arc::clone(&target.node);
                        return Ok(Client::new(object, node, role, true, Some(target.epoch)));
                    }
                }
                Err(failure) => self.failed(&target.node, failure).await?,
            }
        }
    }

    /// Asks the server itself, once per connection and reign.
    async fn verify(&self, target: &WriteTarget, object: &mut ConnObject) -> bool {
        let limit = self.deadline.min(Instant::now() + self.shared.config.probe.timeout);
        let question = object.query_one("SELECT pg_catalog.pg_is_in_recovery()", &[]);
        let suspicion = match timeout_at(limit, question).await {
            Ok(Ok(row)) if row.try_get(0).ok() == Some(false) => {
                object.verified_reign = target.reign;
                return true;
            }
            Ok(Ok(_)) => Suspicion::ReadOnly,
            Ok(Err(_)) | Err(_) => Suspicion::ConnectionLost,
        };
        target.node.suspect(suspicion);
        false
    }

    /// A connection under `policy`.
    async fn read(mut self, policy: &ReadPolicy) -> Result<Client, CheckoutError> {
        let mut avoid: Vec<String> = Vec::new();
        if let Some(bound) = policy.time_bound()
            && self.shared.demand.ask(bound, self.started)
        {
            for node in self.shared.nodes.load().values() {
                node.probe_now();
            }
        }
        loop {
            if self.shared.closed.load(Ordering::Acquire) {
                return Err(CheckoutError::Closed);
            }
            let view = self.shared.view.load_full();
            let nodes = self.shared.nodes.load_full();
            let replicas = match choose_read(&view, policy, &avoid, Instant::now()) {
                ReadChoice::Leader => return self.leader(Role::Read).await,
                ReadChoice::Replicas(replicas) => replicas,
                ReadChoice::Wait(reasons) => {
                    let version = view.version;
                    if !self.changed_unless(|shared| shared.view.load().version != version).await {
                        return Err(self.no_replica(reasons));
                    }
                    continue;
                }
                ReadChoice::Refuse(reasons) => return Err(self.no_replica(reasons)),
            };
            let candidates: Vec<&Arc<Node>> =
                replicas.iter().filter_map(|member| nodes.get(&member.name)).collect();
            let cost = |index: usize| {
                let load = &candidates[index].load;
                (load.in_flight(), load.latency())
            };
            let Some(chosen) = pick_two(candidates.len(), cost, &mut rand::rng()) else {
                self.pause().await?;
                continue;
            };
            let node = candidates[chosen];
            match node.checkout(self.deadline).await {
                Ok(object) => {
                    let node = Arc::clone(node);
                    return Ok(Client::new(object, node, Role::Read, false, view.epoch));
                }
                Err(failure) => {
                    avoid.push(node.name.clone());
                    // Another one is tried at once; only when all have failed is there a pause.
                    if avoid.len() < candidates.len() {
                        self.note(failure, node)?;
                    } else {
                        avoid.clear();
                        self.failed(node, failure).await?;
                    }
                }
            }
        }
    }

    /// Waits for the view to change, unless `already` holds; false when the deadline has passed.
    async fn changed_unless(&self, already: impl Fn(&Shared) -> bool) -> bool {
        let mut changed = self.shared.changed.subscribe();
        if already(self.shared) {
            return true;
        }
        timeout_at(self.deadline, changed.changed()).await.is_ok()
    }

    /// Keeps the first error that may pass by itself; gives back the ones that will not.
    fn note(&mut self, failure: CheckoutFailure, node: &Node) -> Result<(), CheckoutError> {
        match failure {
            CheckoutFailure::Dial(error) if error.is_transient() => {
                self.first_error.get_or_insert(Box::new(error));
                Ok(())
            }
            CheckoutFailure::Dial(source) => {
                Err(CheckoutError::Refused { node: node.name.clone(), source: Box::new(source) })
            }
            CheckoutFailure::TimedOut => Err(self.exhausted(node)),
            CheckoutFailure::Closed => Ok(()),
        }
    }

    async fn failed(&mut self, node: &Node, failure: CheckoutFailure) -> Result<(), CheckoutError> {
        self.note(failure, node)?;
        self.pause().await
    }

    /// Waits a moment, or until the view changes.
    async fn pause(&mut self) -> Result<(), CheckoutError> {
        if Instant::now() + RETRY_PAUSE >= self.deadline {
            return Err(self.no_leader());
        }
        let mut changed = self.shared.changed.subscribe();
        tokio::select! {
            _ = changed.changed() => {}
            () = sleep(RETRY_PAUSE) => {}
        }
        Ok(())
    }

    fn no_leader(&mut self) -> CheckoutError {
        if self.shared.closed.load(Ordering::Acquire) {
            return CheckoutError::Closed;
        }
        CheckoutError::NoLeader {
            waited: self.started.elapsed(),
            state: describe_leader(&self.shared.view.load()),
            first_error: self.first_error.take(),
        }
    }

    fn no_replica(&self, reasons: Vec<(String, Ineligible)>) -> CheckoutError {
        if self.shared.closed.load(Ordering::Acquire) {
            return CheckoutError::Closed;
        }
        CheckoutError::NoReplica { waited: self.started.elapsed(), reasons }
    }

    fn exhausted(&mut self, node: &Node) -> CheckoutError {
        CheckoutError::Exhausted {
            node: node.name.clone(),
            waited: self.started.elapsed(),
            max_size: self.shared.config.pool.max_size,
            first_error: self.first_error.take(),
        }
    }
}

/// What is known of the leader, in a sentence.
pub(crate) fn describe_leader(view: &ClusterView) -> String {
    let mut text = match &view.leader {
        LeaderState::Admitted { member, .. } => format!("{member} leads"),
        LeaderState::Unknown { .. } => "no member holds the leader key".to_owned(),
        LeaderState::Claimed { member, .. } => {
            let why = match view.members.get(member).map(|member| &member.health) {
                None => "no such member is known".to_owned(),
                Some(MemberHealth::Unknown) => "it was not asked yet".to_owned(),
                Some(MemberHealth::Up(report)) if report.in_recovery => {
                    "it is still in recovery".to_owned()
                }
                Some(MemberHealth::Up(_)) => "it has not proved itself since".to_owned(),
                Some(MemberHealth::Down { error, .. }) => error.clone(),
                Some(MemberHealth::Refused(refusal)) => refusal.to_string(),
            };
            format!("{member} holds the leader key, but {why}")
        }
    };
    if let Some(refusal) = &view.refused {
        text = refusal.to_string();
    }
    if let Some((_, reason)) = &view.degraded {
        text.push_str(&format!("; {} does not answer ({reason})", view.source));
    }
    text
}

/// Everything that was tried, and what came of it.
fn describe_unreachable(view: &ClusterView, config: &Config) -> String {
    let mut reasons = Vec::new();
    match &view.degraded {
        Some((_, reason)) => reasons.push(reason.clone()),
        None if view.contact_at.is_none() => {
            let endpoints = [
                config.etcd.as_ref().map(|etcd| &etcd.endpoints),
                config.rest.as_ref().map(|rest| &rest.endpoints),
            ];
            for endpoint in endpoints.into_iter().flatten().flatten() {
                reasons.push(format!("{endpoint}: no answer yet"));
            }
        }
        None => {}
    }
    for member in view.members.values() {
        let why = match &member.health {
            MemberHealth::Down { error, .. } => error.clone(),
            MemberHealth::Refused(refusal) => refusal.to_string(),
            MemberHealth::Unknown => "no answer yet".to_owned(),
            MemberHealth::Up(_) => continue,
        };
        let address = member.address.to_string();
        reasons.push(if why.contains(&address) {
            format!("member {}: {why}", member.name)
        } else {
            format!("member {} at {address}: {why}", member.name)
        });
    }
    if view.members.is_empty() && view.degraded.is_none() && view.contact_at.is_some() {
        reasons.push(format!(
            "{} answers, but holds no members of cluster {:?} in namespace {:?} \
             (cluster.scope, cluster.namespace)",
            view.source, config.cluster.scope, config.cluster.namespace
        ));
    }
    reasons.extend(view.rejected.iter().map(|(key, reason)| format!("key {key}: {reason}")));
    reasons.join("; ")
}
