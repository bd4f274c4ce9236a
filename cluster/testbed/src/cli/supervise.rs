//! Starting again what ends by itself, as systemd would; a node that is held down stays down.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use leaderpool_testbed::Node;
use leaderpool_testbed::process::scan;
use tokio::time::{Instant, interval};

use super::events::{Events, Tone};
use super::place::Hold;
use super::system::System;

const LOOK: Duration = Duration::from_millis(250);
/// From the end to the next start; doubled while it goes on ending early.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(16);
/// What has run for so long did not end early.
const SETTLED: Duration = Duration::from_secs(20);

/// Does so until dropped.
pub(super) async fn supervise(system: &System, events: &Events) {
    let mut watched: Vec<Watched> = things(system).into_iter().map(Watched::new).collect();
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for thing in &mut watched {
            thing.look(system, events).await;
        }
    }
}

enum Thing {
    Node(Arc<Node>),
    Etcd,
    HaProxy,
    Backend(usize),
}

fn things(system: &System) -> Vec<Thing> {
    let nodes = system.cluster.nodes().into_iter().map(Thing::Node);
    let backends = (0..system.backends.len()).map(Thing::Backend);
    nodes.chain([Thing::Etcd, Thing::HaProxy]).chain(backends).collect()
}

impl Thing {
    fn name(&self, system: &System) -> String {
        match self {
            Self::Node(node) => format!("the manager of {}", node.name()),
            Self::Etcd => "etcd".to_owned(),
            Self::HaProxy => "HAProxy".to_owned(),
            Self::Backend(i) => system.backends[*i].name.clone(),
        }
    }

    fn is_up(&self, system: &System) -> bool {
        let any_in = |name: &str| !scan::under(&system.cluster.dir().join(name)).is_empty();
        match self {
            Self::Node(node) => node.is_started(),
            Self::Etcd => any_in("etcd-0"),
            Self::HaProxy => any_in("haproxy"),
            Self::Backend(i) => system.backends[*i].is_running(),
        }
    }

    fn is_held(&self) -> bool {
        matches!(self, Self::Node(node) if Hold::is_on(node.dir()))
    }

    async fn start(&self, system: &System) -> Result<()> {
        match self {
            Self::Node(node) => system.cluster.start_node(node.name()).await,
            Self::Etcd => system.cluster.start_etcd(0).await,
            Self::HaProxy => system.cluster.start_haproxy().await,
            Self::Backend(i) => system.backends[*i].start(),
        }
    }
}

struct Watched {
    thing: Thing,
    down: Option<Down>,
    started: Instant,
    pause: Duration,
}

#[derive(Clone, Copy)]
struct Down {
    since: Instant,
    was_held: bool,
}

impl Watched {
    fn new(thing: Thing) -> Self {
        Self { thing, down: None, started: Instant::now(), pause: PAUSE }
    }

    async fn look(&mut self, system: &System, events: &Events) {
        let name = self.thing.name(system);
        if self.thing.is_up(system) {
            self.down = None;
            return;
        }
        let held = self.thing.is_held();
        let Some(down) = &mut self.down else {
            if self.started.elapsed() > SETTLED {
                self.pause = PAUSE;
            }
            self.down = Some(Down { since: Instant::now(), was_held: held });
            let text = match held {
                true => format!("{name} was killed, and is held down by `make failover`"),
                false => format!("{name} ended; it is started again in {:?}", self.pause),
            };
            events.add(Tone::Bad, text);
            return;
        };
        if held {
            down.was_held = true;
            return;
        }
        // A hold that is lifted asks for a start now.
        if !down.was_held && down.since.elapsed() < self.pause {
            return;
        }
        match self.thing.start(system).await {
            Ok(()) => events.add(Tone::Good, format!("{name} is started again")),
            Err(error) => events.add(Tone::Bad, format!("{name} cannot be started: {error:#}")),
        }
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.started = Instant::now();
        self.down = None;
    }
}
