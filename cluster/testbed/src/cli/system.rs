//! The whole system: a cluster with HAProxy, and three backends before it.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use futures_util::future::join_all;
use leaderpool_testbed::http::Http;
use leaderpool_testbed::ports::check_free;
use leaderpool_testbed::process::{Launch, Process, RunAs, scan};
use leaderpool_testbed::{Cluster, Node, Ports, Progress, logs, wait};
use rustix::process::Signal;
use tokio::time::{Instant, timeout};

use super::events::now_unix;
use super::place::{BackendState, HaProxyState, NodeState, Place, State, Taken};
use super::start::{Options, manager, tell};
use super::up::near;

const BACKENDS: usize = 3;
/// How long a backend may take to answer what it has in hand.
const BACKEND_GRACE: Duration = Duration::from_secs(3);

/// It runs until it is stopped or dropped.
#[derive(Debug)]
pub(super) struct System {
    // The order of fields is the order of their end.
    pub(super) backends: Vec<Backend>,
    pub(super) cluster: Cluster,
    pub(super) state: State,
    place: Place,
    _taken: Taken,
}

/// One instance of the sample service.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) name: String,
    pub(super) port: u16,
    launch: Launch,
    process: Mutex<Option<Process>>,
}

impl Backend {
    pub(super) fn start(&self) -> Result<()> {
        *self.process.lock().expect("not poisoned") = Some(self.launch.clone().spawn()?);
        Ok(())
    }

    pub(super) fn is_running(&self) -> bool {
        self.process.lock().expect("not poisoned").as_ref().is_some_and(Process::is_running)
    }

    async fn stop(&self) {
        let process = self.process.lock().expect("not poisoned").take();
        if let Some(process) = process {
            process.stop(BACKEND_GRACE).await;
        }
    }

    async fn ready(&self) -> Result<()> {
        ensure!(self.is_running(), "{} has ended", self.name);
        let answer =
            Http::plain(self.port).get("/ready?for=writes", Duration::from_secs(2)).await?;
        ensure!(answer.status == 200, "{} is not ready: {}", self.name, answer.body);
        Ok(())
    }
}

impl System {
    /// Starts everything and waits until it is healthy. Dropping the future ends what was begun.
    pub(super) async fn start(place: &Place, options: &Options, command: &str) -> Result<Self> {
        let binary = options.backend()?;
        let taken = place.take().await?;
        if Ports::from(options.ports) == Ports::Seed {
            // The cluster checks its own; these are found taken early too.
            for port in 9084..9084 + BACKENDS as u16 {
                check_free(port)?;
            }
        }
        install(options).await?;
        let dir = place.cluster_dir().await?;
        let cluster = options.builder()?.dir(dir).on_progress(tell).start().await?;
        place.write_config(&cluster.client_toml())?;
        let backends = start_backends(&cluster, place, binary).await?;
        let state = describe(&cluster, &backends, place, options, command);
        place.write_state(&state)?;
        Ok(Self { backends, cluster, state, place: place.clone(), _taken: taken })
    }

    /// Stops everything in order, and says so.
    pub(super) async fn stop(self) -> Result<String> {
        let began = Instant::now();
        join_all(self.backends.iter().map(Backend::stop)).await;
        self.stop_servers().await;
        self.cluster.shutdown().await?;
        let Self { backends, cluster, state, place, _taken } = self;
        drop(cluster);
        place.remove_state()?;
        place.discard_data(&state);
        Ok(format!(
            "stopped {} backends, HAProxy, {} nodes and etcd in {:.1} s; logs are in {}",
            backends.len(),
            state.nodes.len(),
            began.elapsed().as_secs_f64(),
            near(&state.logs)
        ))
    }
}

impl System {
    /// The managers go first, and without a word: told to stop, they would wait for each other. The servers are then
    /// shut down in order, the primary last. Whatever fails here is swept afterwards.
    async fn stop_servers(&self) {
        let primary = self.cluster.primary().await.ok();
        let nodes = self.cluster.nodes();
        for node in &nodes {
            let _ = self.cluster.kill_manager(node.name()).await;
        }
        let (last, first): (Vec<_>, Vec<_>) =
            nodes.iter().partition(|node| Some(node.name()) == primary.as_deref());
        for group in [first, last] {
            join_all(group.iter().map(|node| stop_server(node))).await;
        }
    }
}

/// A "fast" shutdown: sessions are ended, a checkpoint is written.
async fn stop_server(node: &Node) {
    let Ok(postmaster) = node.postmaster() else { return };
    let signals = [Signal::INT, Signal::CONT];
    for signal in signals {
        scan::signal(std::slice::from_ref(&postmaster), signal);
    }
    let every = Duration::from_millis(20);
    let gone = wait::until("its end", Duration::from_secs(5), every, async || {
        ensure!(postmaster.is_gone(), "it is still there");
        Ok(())
    });
    if gone.await.is_err() {
        tracing::warn!("PostgreSQL of {} did not stop within 5 s: killed", node.name());
    }
}

/// A step of its own where it takes time: the first time.
async fn install(options: &Options) -> Result<()> {
    let manager = manager(&options.manager)?;
    let began = Instant::now();
    let mut installed = std::pin::pin!(manager.install());
    if let Ok(done) = timeout(Duration::from_millis(300), installed.as_mut()).await {
        return done;
    }
    tell(Progress::Begins("installing Patroni"));
    installed.await?;
    tell(Progress::Done(began.elapsed()));
    Ok(())
}

async fn start_backends(cluster: &Cluster, place: &Place, binary: PathBuf) -> Result<Vec<Backend>> {
    let config = place.config();
    let mut backends = Vec::new();
    for i in 0..BACKENDS {
        let name = format!("app{}", i + 1);
        let port = cluster.ports().backend(i);
        // They work below the cluster's directory, which is swept, whatever becomes of us.
        let dir = cluster.dir().join("apps").join(&name);
        std::fs::create_dir_all(&dir)
            .with_context(|| format!("cannot create {}", dir.display()))?;
        let log = cluster.dir().join("logs").join(format!("{name}.log"));
        let launch = Launch::new(&name, &binary, dir, log, &RunAs::ourselves())
            .args(["--port", &port.to_string(), "--instance", &name, "--shutdown-timeout", "1s"])
            .arg("--config")
            .arg(&config)
            .env("LEADERPOOL_POSTGRES_APPLICATION_NAME", &name);
        backends.push(Backend { name, port, launch, process: Mutex::new(None) });
    }
    let named: Vec<_> = backends.iter().map(|b| format!("{} on {}", b.name, b.port)).collect();
    let began = Instant::now();
    tell(Progress::Begins(&named.join(", ")));
    for backend in &backends {
        backend.start()?;
    }
    let every = Duration::from_millis(50);
    let ready = wait::until("the backends", Duration::from_secs(30), every, async || {
        for backend in &backends {
            backend.ready().await?;
        }
        Ok(())
    });
    let logs = cluster.dir().join("logs");
    ready.await.map_err(|error| anyhow!("{error:#}\n{}", logs::tails_in(&logs)))?;
    tell(Progress::Done(began.elapsed()));
    Ok(backends)
}

fn describe(
    cluster: &Cluster,
    backends: &[Backend],
    place: &Place,
    options: &Options,
    command: &str,
) -> State {
    let (ports, dynamic) = (cluster.ports(), options.dynamic());
    let nodes = cluster.nodes().into_iter().map(|node| NodeState {
        name: node.name().to_owned(),
        postgres: node.postgres_port(),
        rest: node.rest_port(),
        dir: node.dir().to_owned(),
    });
    let backends =
        backends.iter().map(|b| BackendState { name: b.name.clone(), port: b.port }).collect();
    State {
        pid: std::process::id(),
        command: command.to_owned(),
        since_unix: now_unix(),
        manager: options.manager.clone(),
        prefix: cluster.key_prefix(),
        ttl: dynamic.ttl,
        loop_wait: dynamic.loop_wait,
        retry_timeout: dynamic.retry_timeout,
        etcd: ports.etcd_client(0),
        nodes: nodes.collect(),
        haproxy: HaProxyState {
            writes: ports.haproxy_writes(),
            reads: ports.haproxy_reads(),
            stats: ports.haproxy_stats(),
        },
        backends,
        config: place.config(),
        logs: cluster.dir().join("logs"),
    }
}
