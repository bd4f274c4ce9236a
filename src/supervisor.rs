//! The task that feeds the state machine and carries its actions out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use futures_util::future::OptionFuture;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, RestConfig};
use crate::discovery::{EtcdSource, FixedSource, Observation, RestSource, Source};
use crate::error::ConnectError;
use crate::node::{Node, NodeContext};
use crate::patroni::{KeyPrefix, MemberRole, Timeline};
use crate::pool::{Shared, WriteTarget};
use crate::routing::successor;
use crate::telemetry::{FirstWrite, TICK, Telemetry};
use crate::tell::trace;
use crate::topology::{
    Action, ClusterView, Epoch, Event, MemberHealth, SourceKind, Topology, TopologyConfig,
    TopologyEvent,
};

/// Events that may wait to be taken in: a burst of every connection of a dead member fits.
const QUEUE: usize = 1024;
/// How often it is looked whether a member is dead for good, at least.
const LOOK: Duration = Duration::from_millis(500);

/// Everything that can fail, done before the pool exists.
pub(crate) struct Setup {
    topology: Topology,
    source: Box<dyn Source>,
    rest: RestConfig,
    rest_endpoints: Arc<ArcSwap<Vec<String>>>,
}

impl Setup {
    pub(crate) fn new(config: &Config, now: Instant) -> Result<Self, ConnectError> {
        let rest = config.rest.clone().unwrap_or_default();
        let rest_endpoints = Arc::new(ArcSwap::from_pointee(rest.endpoints.clone()));
        let source: Box<dyn Source> = if let Some(etcd) = &config.etcd {
            let prefix = KeyPrefix::new(&config.cluster.namespace, &config.cluster.scope);
            // Made once here so that a bad certificate is refused now, not when etcd is away.
            RestSource::new(&rest, Arc::clone(&rest_endpoints))?;
            Box::new(EtcdSource::new(etcd, prefix)?)
        } else if let Some(fixed) = &config.fixed {
            Box::new(FixedSource::new(fixed)?)
        } else {
            Box::new(RestSource::new(&rest, Arc::clone(&rest_endpoints))?)
        };
        let settings = TopologyConfig { main_source: source.kind(), ..TopologyConfig::default() };
        Ok(Self { topology: Topology::new(settings, now), source, rest, rest_endpoints })
    }

    pub(crate) fn view(&self) -> ClusterView {
        self.topology.view().clone()
    }

    /// Starts the pool's tasks.
    pub(crate) fn start(self, shared: &Arc<Shared>) {
        let (events, inbox) = mpsc::channel(QUEUE);
        let (view, reign, told) = (Arc::clone(shared), Arc::clone(shared), Arc::clone(shared));
        let context = NodeContext {
            dialer: Arc::clone(&shared.dialer),
            pool: shared.config.pool.clone(),
            probe: shared.config.probe.clone(),
            breaker: shared.config.breaker.clone(),
            events: events.clone(),
            tasks: shared.tasks.clone(),
            runtime: shared.runtime.clone(),
            lent: Arc::clone(&shared.lent),
            expected_id: Arc::new(move || view.view.load().system_id),
            reign: Arc::new(move || reign.view.load().reign),
            tell: Arc::new(move |event| told.tell(event)),
            demand: Arc::clone(&shared.demand),
            meter: shared.meter.clone(),
        };
        let telemetry = Telemetry::start(shared, Instant::now());
        let supervisor = Supervisor {
            shared: Arc::clone(shared),
            topology: self.topology,
            context,
            rest: self.rest,
            rest_endpoints: self.rest_endpoints,
            fallback: None,
            telemetry,
            first_write: Arc::default(),
            cut: BTreeMap::new(),
            successor: None,
        };
        follow(self.source, shared, events, shared.cancel.clone());
        shared.tasks.spawn(supervisor.run(inbox));
        let (gate, cancel) = (Arc::clone(shared), shared.cancel.clone());
        shared.tasks.spawn(async move {
            let _ = cancel.run_until_cancelled(gate.gate.drive()).await;
        });
    }
}

/// Runs a source and passes on what it sees.
fn follow(
    source: Box<dyn Source>,
    shared: &Arc<Shared>,
    events: mpsc::Sender<Event>,
    cancel: CancellationToken,
) {
    let kind = source.kind();
    let (out, mut seen) = mpsc::channel(16);
    shared.tasks.spawn(source.run(out, cancel));
    shared.tasks.spawn(async move {
        while let Some(observation) = seen.recv().await {
            let event = match observation {
                Observation::Snapshot(snapshot) => Event::Snapshot { source: kind, snapshot },
                Observation::Contact => Event::Contact { source: kind },
                Observation::Lost(reason) => Event::SourceLost { source: kind, reason },
            };
            if events.send(event).await.is_err() {
                return;
            }
        }
    });
}

struct Supervisor {
    shared: Arc<Shared>,
    topology: Topology,
    context: NodeContext,
    rest: RestConfig,
    rest_endpoints: Arc<ArcSwap<Vec<String>>>,
    fallback: Option<CancellationToken>,
    telemetry: Telemetry,
    /// Told when an admitted leader acknowledged its first write.
    first_write: Arc<Notify>,
    /// When the work on a member was last cut since it is dead.
    cut: BTreeMap<String, Instant>,
    /// Who will most likely lead next.
    successor: Option<String>,
}

impl Supervisor {
    async fn run(mut self, mut inbox: mpsc::Receiver<Event>) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let bound = self.shared.config.cut_dead_after();
        let mut look = interval((bound / 8).clamp(Duration::from_millis(50), LOOK));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (cancel, first_write) = (self.shared.cancel.clone(), Arc::clone(&self.first_write));
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                // Before the events, of which there may always be one more.
                _ = look.tick(), if !bound.is_zero() => self.cut_the_dead(bound),
                event = inbox.recv() => match event {
                    Some(event) => self.take(event),
                    None => break,
                },
                () = first_write.notified() => {
                    self.telemetry.look_for_first_write(&self.shared, Instant::now());
                }
                _ = tick.tick() => self.telemetry.tick(&self.shared, Instant::now()),
                Some(()) = OptionFuture::from(self.topology.wake_at().map(sleep_until)) => {
                    self.take(Event::Tick);
                }
            }
        }
        self.shared.target.store(None);
        self.shared.reign.store(0, Ordering::Release);
        for node in self.shared.nodes.swap(Arc::default()).values() {
            node.remove();
        }
        self.telemetry.close(&self.shared, Instant::now());
    }

    fn take(&mut self, event: Event) {
        let now = Instant::now();
        let actions = self.topology.apply(event, now, SystemTime::now());
        let view = Arc::new(self.topology.view().clone());
        let version = view.version;
        self.publish_rest_endpoints(&view);
        self.shared.view.store(Arc::clone(&view));
        for action in actions {
            self.carry_out(action, &view, now);
        }
        for lost in self.shared.past.look_for_losses(&view) {
            let (timeline, switch_lsn) = (lost.timeline, lost.switch_lsn);
            let event = TopologyEvent::WritesLost { timeline, switch_lsn, count: lost.count };
            self.carry_out(Action::Tell(event), &view, now);
        }
        self.keep_ready(&view);
        self.shared.changed.send_replace(version);
    }

    /// Has connections kept ready where the next writers will want them.
    fn keep_ready(&mut self, view: &ClusterView) {
        let next = successor(view, self.successor.as_deref());
        if next != self.successor.as_deref() {
            self.successor = next.map(str::to_owned);
        }
        let wanted = self.shared.config.pool.min_idle;
        for (name, node) in self.shared.nodes.load().iter() {
            let soon = view.leader.named() == Some(name) || self.successor.as_ref() == Some(name);
            node.keep_ready(if soon { wanted } else { 0 });
        }
    }

    fn carry_out(&mut self, action: Action, view: &ClusterView, now: Instant) {
        match action {
            Action::AddMember(spec) => {
                let node = Node::start(&spec, &self.context);
                self.with_nodes(|nodes| nodes.insert(spec.name, node));
            }
            Action::RemoveMember(name) => {
                if let Some(node) = self.with_nodes(|nodes| nodes.remove(&name)) {
                    node.remove();
                }
            }
            Action::SetCadence(name, cadence) => {
                if let Some(node) = self.node(&name) {
                    node.set_cadence(cadence);
                }
            }
            Action::ProbeNow(name) => {
                if let Some(node) = self.node(&name) {
                    node.probe_now();
                }
            }
            Action::Admit { member, epoch, reign } => {
                if let Some(node) = self.node(&member) {
                    let leader = Arc::clone(&node);
                    let first_write = FirstWrite::new(Arc::clone(&self.first_write));
                    let target = WriteTarget { node, reign, epoch, first_write };
                    self.shared.target.store(Some(Arc::new(target)));
                    self.shared.reign.store(reign, Ordering::Release);
                    self.shared.gate.open();
                    self.read_history(&leader, epoch);
                }
            }
            Action::Withdraw { .. } => {
                self.shared.gate.close();
                self.shared.reign.store(0, Ordering::Release);
                self.shared.target.store(None);
            }
            Action::Fence { member, reason } => {
                if self.shared.config.pool.cut_on_demotion
                    && let Some(node) = self.node(&member)
                {
                    let why = format!("the node may not be used any more: {reason}");
                    let connections = node.cut(why);
                    self.shared.meter.cut(&member, connections);
                    tracing::info!(member, %reason, connections, "cut the work in flight");
                }
            }
            Action::StartFallback => self.start_fallback(),
            Action::StopFallback => {
                if let Some(cancel) = self.fallback.take() {
                    cancel.cancel();
                }
            }
            Action::Tell(event) => {
                self.telemetry.saw(&event, &self.shared, now, || trace(&event, view));
                self.shared.send(event);
            }
        }
    }

    /// Cuts what hangs on members that have been down for `bound`, and again after as long.
    fn cut_the_dead(&mut self, bound: Duration) {
        let now = Instant::now();
        let dead = long_dead(self.topology.view(), &self.cut, bound, now);
        self.cut.retain(|name, _| {
            let member = self.topology.view().members.get(name);
            member.is_some_and(|member| matches!(member.health, MemberHealth::Down { .. }))
        });
        for (member, why) in dead {
            // What answers anybody is not dead: it may be full, and turn only the probe away.
            let Some(node) = self.node(&member).filter(|node| node.silent_for(now) >= bound) else {
                continue;
            };
            let connections = node.cut(why.clone());
            if connections > 0 {
                self.shared.meter.cut(&member, connections);
                tracing::warn!(member, connections, why, "cut the work in flight");
            }
            self.cut.insert(member, now);
        }
    }

    /// Asks a new leader for the switch points of its timeline.
    fn read_history(&self, node: &Arc<Node>, epoch: Epoch) {
        if epoch.timeline <= Timeline(1) {
            return;
        }
        let (node, shared) = (Arc::clone(node), Arc::clone(&self.shared));
        let limit = self.shared.config.postgres.connect_timeout;
        self.shared.tasks.spawn(async move {
            let reading = node.read_history(epoch.timeline, Instant::now() + limit);
            let Ok(Some(history)) = timeout(limit, reading).await else { return };
            shared.past.learn(epoch.timeline, history);
            node.probe_now();
        });
    }

    fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.shared.nodes.load().get(name).cloned()
    }

    fn with_nodes<T>(&self, change: impl FnOnce(&mut BTreeMap<String, Arc<Node>>) -> T) -> T {
        let mut nodes = self.shared.nodes.load().as_ref().clone();
        let result = change(&mut nodes);
        self.shared.nodes.store(Arc::new(nodes));
        result
    }

    /// The stand-in asks the configured addresses, or those that the members published.
    fn publish_rest_endpoints(&self, view: &ClusterView) {
        if !self.rest.endpoints.is_empty() || view.members.is_empty() {
            return;
        }
        let published: Vec<String> = view
            .members
            .values()
            .filter(|member| member.role != MemberRole::Uninitialized)
            .filter_map(|member| base_url(member.api_url.as_deref()?))
            .collect();
        if **self.rest_endpoints.load() != published {
            self.rest_endpoints.store(Arc::new(published));
        }
    }

    fn start_fallback(&mut self) {
        if self.topology.view().source == SourceKind::Fixed || self.fallback.is_some() {
            return;
        }
        if self.shared.config.etcd.is_none() {
            return;
        }
        // It was made once already, so that it can be made again; files may have changed since.
        match RestSource::new(&self.rest, Arc::clone(&self.rest_endpoints)) {
            Ok(source) => {
                let cancel = self.shared.cancel.child_token();
                let events = self.context.events.clone();
                follow(Box::new(source), &self.shared, events, cancel.clone());
                self.fallback = Some(cancel);
            }
            Err(error) => tracing::warn!(%error, "cannot ask the members' REST API"),
        }
    }
}

/// Members that have been down for `bound`, and were not `cut` since; with the reason in words.
fn long_dead(
    view: &ClusterView,
    cut: &BTreeMap<String, Instant>,
    bound: Duration,
    now: Instant,
) -> Vec<(String, String)> {
    let dead = view.members.values().filter_map(|member| {
        let MemberHealth::Down { since, error, .. } = &member.health else { return None };
        let since_cut = cut.get(&member.name).copied().unwrap_or(*since).max(*since);
        let down = now.saturating_duration_since(*since);
        let why = format!("the node has been down for {:.1} s: {error}", down.as_secs_f64());
        (now.saturating_duration_since(since_cut) >= bound).then(|| (member.name.clone(), why))
    });
    dead.collect()
}

/// `http://host:8008` of `http://host:8008/patroni`.
fn base_url(api_url: &str) -> Option<String> {
    let (scheme, rest) = api_url.split_once("://")?;
    let authority = rest.split('/').next().filter(|authority| !authority.is_empty())?;
    Some(format!("{scheme}://{authority}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::tests::{cluster, primary, replica};

    #[test]
    fn the_long_dead_are_found_once_for_each_bound() {
        let bound = Duration::from_secs(6);
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut view = cluster([primary("a"), replica("b", 1), replica("c", 1)]);
        let down = |seconds| MemberHealth::Down {
            since: at(seconds),
            error: "no answer within 1s".into(),
            failures: 2,
        };
        let mut set = |name: &str, health| {
            view.members.get_mut(name).expect("a member").health = health;
            view.clone()
        };
        set("a", MemberHealth::Unknown);
        let view = set("b", down(10));
        let found = |seconds: u64, cut: Option<u64>| {
            let cut = cut.map(|cut| ("b".to_owned(), at(cut))).into_iter().collect();
            let names = long_dead(&view, &cut, bound, at(seconds)).into_iter();
            names.map(|(name, why)| format!("{name}: {why}")).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(found(10, None), "", "it has just gone down");
        assert_eq!(found(15, None), "");
        let why = "b: the node has been down for 6.0 s: no answer within 1s";
        assert_eq!(found(16, None), why);
        // What was cut in an earlier time of being down does not count.
        assert_eq!(found(16, Some(3)), why);
        assert_eq!(found(17, Some(16)), "");
        assert!(!found(22, Some(16)).is_empty());
    }
}
