//! A running cluster: how it comes up, what it consists of, how it goes down.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use tokio::time::Instant;
use tokio_postgres::Client;

use crate::builder::{ClusterBuilder, PostgresTls};
use crate::etcd::{Etcd, EtcdClient};
use crate::haproxy::HaProxy;
use crate::manager::{Manager, NodeConfig};
use crate::node::{Node, Running};
use crate::poller::WritablePoller;
use crate::ports::{MAX_NODES, PortBlock, Ports, check_free};
use crate::postgres::{self, ADMIN, DATABASE, SUPERUSER, find_program};
use crate::process::RunAs;
use crate::rundir::{RunDir, write_private};
use crate::tls::{Authority, Identity};
use crate::{logs, wait};

const STOP_GRACE: Duration = Duration::from_secs(30);
const MINUTE: Duration = Duration::from_secs(60);
const EVERY: Duration = Duration::from_millis(20);

/// A running cluster. Dropping it kills what is left of it; [`Cluster::shutdown`] stops it in order.
#[derive(Debug)]
pub struct Cluster {
    // The order of fields is the order of their end: ports are given back after the processes are gone.
    pub(crate) dir: RunDir,
    pub(crate) spec: ClusterBuilder,
    pub(crate) run_as: RunAs,
    pub(crate) ports: PortBlock,
    pub(crate) bin_dir: PathBuf,
    pub(crate) authority: Option<Authority>,
    pub(crate) server_identity: Option<Identity>,
    pub(crate) etcd: Etcd,
    pub(crate) nodes: RwLock<Vec<Arc<Node>>>,
    pub(crate) haproxy: Option<HaProxy>,
    next_node: AtomicUsize,
}

impl Cluster {
    /// Collects what the cluster is to be like.
    #[must_use]
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder::new()
    }

    pub(crate) async fn start(spec: ClusterBuilder) -> Result<Self> {
        let began = Instant::now();
        let run_as = RunAs::detect()?;
        let bin_dir = match &spec.bin_dir {
            Some(dir) => dir.clone(),
            None => postgres::find_bin_dir()?,
        };
        check_programs(&spec)?;
        let ports = PortBlock::reserve(spec.ports)?;
        if spec.ports == Ports::Seed {
            check_ports(&spec, &ports)?;
        }
        for i in 0..spec.nodes {
            spec.manager_for(&node_name(i)).prepare().await?;
        }
        let dir = match &spec.dir {
            None => RunDir::fresh(&run_as).await?,
            Some(path) => RunDir::at(path, &run_as).await?,
        };
        let security = spec.etcd_security;
        let wants_tls =
            security.tls || security.client_certificates || spec.postgres_tls == PostgresTls::On;
        let authority = match wants_tls {
            true => Some(Authority::create(&dir.path().join("tls"), &run_as).await?),
            false => None,
        };
        let server_identity = match (&authority, spec.postgres_tls) {
            (Some(authority), PostgresTls::On) => Some(authority.server("postgres").await?),
            _ => None,
        };
        let prefix = spec.key_prefix();
        let started = Etcd::start(
            spec.etcd_members,
            security,
            &prefix,
            &ports,
            &dir,
            authority.as_ref(),
            &run_as,
        );
        let on = (0..spec.etcd_members).map(|i| ports.etcd_client(i).to_string());
        let what = format!("etcd on {}", on.collect::<Vec<_>>().join(", "));
        let etcd = spec.progress.step(&what, started).await;
        let etcd = etcd.map_err(|error| with_logs(error, &dir))?;
        let haproxy = match spec.haproxy {
            true => Some(HaProxy::new(&dir, &ports, &run_as)?),
            false => None,
        };
        let cluster = Self {
            dir,
            spec,
            run_as,
            ports,
            bin_dir,
            authority,
            server_identity,
            etcd,
            nodes: RwLock::default(),
            haproxy,
            next_node: AtomicUsize::new(0),
        };
        cluster.bring_up().await.map_err(|error| cluster.with_logs(error))?;
        tracing::info!("healthy after {:.1?}", began.elapsed());
        Ok(cluster)
    }

    async fn bring_up(&self) -> Result<()> {
        for _ in 0..self.spec.nodes {
            self.create_node().await?;
        }
        let nodes = self.nodes();
        let (first, others) = nodes.split_first().context("no nodes")?;
        let progress = &self.spec.progress;
        progress.step(&with_ports(&nodes[..1]), self.bring_up_primary(first, others)).await?;
        let rest = if others.is_empty() { "health".to_owned() } else { with_ports(others) };
        progress.step(&rest, self.bring_up_replicas()).await?;
        if let Some(haproxy) = &self.haproxy {
            // Last: its first check of each server then finds the role that lasts, and need not be repeated.
            haproxy.configure(&nodes)?;
            let ports = [self.ports.haproxy_writes(), self.ports.haproxy_reads()];
            let what = format!("HAProxy on {} for writes and {} for reads", ports[0], ports[1]);
            let started = async {
                haproxy.start().await?;
                self.wait_for_haproxy(MINUTE).await
            };
            progress.step(&what, started).await?;
        }
        Ok(())
    }

    async fn bring_up_primary(&self, first: &Node, others: &[Arc<Node>]) -> Result<()> {
        first.start()?;
        // The first to come bootstraps and leads; the others need not wait for more than its claim.
        wait::until("the first node begins to bootstrap", MINUTE, EVERY, async || {
            self.get_key("initialize").await?.context("no key initialize").map(|_| ())
        })
        .await?;
        for node in others {
            node.start()?;
        }
        wait::until("the first primary", MINUTE, EVERY, async || self.lead().await.map(|_| ()))
            .await?;
        self.create_database().await
    }

    async fn bring_up_replicas(&self) -> Result<()> {
        self.wait_for_health(2 * MINUTE).await?;
        wait::until("the database on every node", MINUTE, EVERY, async || {
            for node in self.nodes() {
                postgres::connect(node.postgres_port, DATABASE, Duration::from_secs(5)).await?;
            }
            Ok(())
        })
        .await
    }

    async fn create_database(&self) -> Result<()> {
        let primary = self.primary().await?;
        let client = self.connect_to(&primary, "postgres").await?;
        let (user, password) = ADMIN;
        let role = format!("create role {user} login password '{password}' createrole createdb");
        for statement in [role, format!("create database {DATABASE}")] {
            client
                .batch_execute(&statement)
                .await
                .map_err(|error| anyhow!("{statement}: {}", postgres::describe(&error)))?;
        }
        Ok(())
    }

    /// Lays out a node without starting it.
    pub(crate) async fn create_node(&self) -> Result<Arc<Node>> {
        let index = self.next_node.fetch_add(1, Ordering::Relaxed);
        ensure!(index < MAX_NODES, "a cluster can have had {MAX_NODES} nodes at most");
        let name = node_name(index);
        let manager = self.spec.manager_for(&name);
        let node = Arc::new(Node {
            dir: self.dir.subdir(&format!("nodes/{name}"), &self.run_as)?,
            log: self.dir.log(&name),
            postgres_port: self.ports.postgres(index),
            rest_port: self.ports.rest(index),
            run_as: self.run_as.clone(),
            run: std::sync::Mutex::new(Running {
                command: manager.prepare().await?,
                manager,
                process: None,
            }),
            name,
        });
        self.write_config(&node)?;
        self.nodes.write().expect("not poisoned").push(node.clone());
        Ok(node)
    }

    fn write_config(&self, node: &Node) -> Result<()> {
        let etcd_ports: Vec<u16> =
            (0..self.spec.etcd_members).map(|i| self.ports.etcd_client(i)).collect();
        let ca = self.authority.as_ref().map(Authority::ca);
        let config = NodeConfig {
            cluster: &self.spec,
            name: &node.name,
            dir: &node.dir,
            postgres_port: node.postgres_port,
            rest_port: node.rest_port,
            etcd_ports: &etcd_ports,
            etcd: &self.etcd.access,
            bin_dir: &self.bin_dir,
            log_dir: &self.dir.logs(),
            postgres_tls: self.server_identity.as_ref().zip(ca.as_deref()),
        };
        write_private(&node.dir.join("patroni.yml"), &config.to_yaml(), &self.run_as)
    }

    /// The nodes, in the order of their creation.
    #[must_use]
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        self.nodes.read().expect("not poisoned").clone()
    }

    /// One node.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn node(&self, name: &str) -> Result<Arc<Node>> {
        let nodes = self.nodes();
        let names: Vec<&str> = nodes.iter().map(|n| n.name()).collect();
        let found = nodes.iter().find(|node| node.name == name).cloned();
        found.with_context(|| format!("no node {name}; there are {}", names.join(", ")))
    }

    /// The run directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The cluster's ports.
    #[must_use]
    pub fn ports(&self) -> &PortBlock {
        &self.ports
    }

    /// etcd, with all rights.
    #[must_use]
    pub fn etcd(&self) -> &EtcdClient {
        &self.etcd.client
    }

    /// The certificate authority, where TLS is on anywhere.
    #[must_use]
    pub fn authority(&self) -> Option<&Authority> {
        self.authority.as_ref()
    }

    /// `/{namespace}/{scope}/`: what the cluster's keys begin with.
    #[must_use]
    pub fn key_prefix(&self) -> String {
        self.spec.key_prefix()
    }

    /// The connection string of a node's server, as the superuser.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn conninfo(&self, node: &str, dbname: &str) -> Result<String> {
        Ok(postgres::conninfo(self.node(node)?.postgres_port, dbname))
    }

    /// Connects to the application's database on a node, as the superuser.
    ///
    /// # Errors
    /// When there is no connection within five seconds.
    pub async fn connect(&self, node: &str) -> Result<Client> {
        self.connect_to(node, DATABASE).await
    }

    /// Connects to a database on a node, as the superuser.
    ///
    /// # Errors
    /// When there is no connection within five seconds.
    pub async fn connect_to(&self, node: &str, dbname: &str) -> Result<Client> {
        let port = self.node(node)?.postgres_port;
        postgres::connect(port, dbname, Duration::from_secs(5)).await
    }

    /// Watches, every `interval`, which nodes are writable.
    #[must_use]
    pub fn poll_writable(&self, interval: Duration) -> WritablePoller {
        let nodes = self.nodes().iter().map(|n| (n.name.clone(), n.postgres_port)).collect();
        WritablePoller::start(nodes, interval)
    }

    /// The client library's configuration for this cluster, as TOML.
    #[must_use]
    pub fn client_toml(&self) -> String {
        let access = &self.etcd.access;
        let scheme = access.scheme();
        let mut etcd = toml::Table::new();
        let endpoints: Vec<String> = (0..self.spec.etcd_members)
            .map(|i| format!("{scheme}://127.0.0.1:{}", self.ports.etcd_client(i)))
            .collect();
        etcd.insert("endpoints".to_owned(), endpoints.into());
        let mut set = |key: &str, value: String| etcd.insert(key.to_owned(), value.into());
        if let Some((user, password)) = access.reader() {
            set("username", user.to_owned());
            set("password", password.to_owned());
        }
        if let Some(ca) = access.ca() {
            set("ca_file", ca.display().to_string());
        }
        if let Some(identity) = access.identity() {
            set("cert_file", identity.cert.display().to_string());
            set("key_file", identity.key.display().to_string());
        }
        let rest: Vec<String> =
            self.nodes().iter().map(|n| format!("http://127.0.0.1:{}", n.rest_port)).collect();
        let mut postgres = toml::Table::new();
        let (user, password) = SUPERUSER;
        let sslmode = if self.server_identity.is_some() { "verify-full" } else { "prefer" };
        for (key, value) in
            [("user", user), ("password", password), ("dbname", DATABASE), ("sslmode", sslmode)]
        {
            postgres.insert(key.to_owned(), value.into());
        }
        if let (Some(_), Some(authority)) = (&self.server_identity, &self.authority) {
            postgres.insert("sslrootcert".to_owned(), authority.ca().display().to_string().into());
        }
        let mut document = toml::Table::new();
        let cluster = [("scope", &self.spec.scope), ("namespace", &self.spec.namespace)];
        let cluster = cluster.map(|(key, value)| (key.to_owned(), value.clone().into()));
        document.insert("cluster".to_owned(), toml::Table::from_iter(cluster).into());
        document.insert("etcd".to_owned(), etcd.into());
        document.insert(
            "rest".to_owned(),
            toml::Table::from_iter([("endpoints".to_owned(), rest.into())]).into(),
        );
        document.insert("postgres".to_owned(), postgres.into());
        document.to_string()
    }

    /// Writes [`Cluster::client_toml`] to `leaderpool.toml` in the run directory.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_client_toml(&self) -> Result<PathBuf> {
        let path = self.dir.path().join("leaderpool.toml");
        write_private(&path, &self.client_toml(), &RunAs::ourselves())?;
        Ok(path)
    }

    /// Stops everything in order: replicas, the primary, HAProxy, etcd; then sweeps.
    ///
    /// # Errors
    /// When a process cannot even be killed.
    pub async fn shutdown(&self) -> Result<()> {
        let primary = self.primary().await.ok();
        let nodes = self.nodes();
        // The primary last, and alone: nobody is then left to be promoted in its place.
        let (last, first): (Vec<_>, Vec<_>) =
            nodes.iter().partition(|node| Some(&node.name) == primary.as_ref());
        for group in [first, last] {
            let stops = group.iter().map(|node| node.stop(STOP_GRACE));
            futures_util::future::try_join_all(stops).await?;
        }
        if let Some(haproxy) = &self.haproxy {
            haproxy.stop().await?;
        }
        for member in &self.etcd.members {
            member.stop().await?;
        }
        crate::process::scan::kill_under(self.dir.path()).await
    }

    pub(crate) fn with_logs(&self, error: anyhow::Error) -> anyhow::Error {
        with_logs(error, &self.dir)
    }
}

fn with_logs(error: anyhow::Error, dir: &RunDir) -> anyhow::Error {
    anyhow!("{error:#}\n{}", logs::tails_in(&dir.logs()))
}

fn with_ports(nodes: &[Arc<Node>]) -> String {
    let named: Vec<_> =
        nodes.iter().map(|node| format!("{} on {}", node.name, node.postgres_port)).collect();
    named.join(", ")
}

fn node_name(index: usize) -> String {
    match index {
        0 => "patroni-master".to_owned(),
        n => format!("patroni-replica{n}"),
    }
}

fn check_programs(spec: &ClusterBuilder) -> Result<()> {
    let needs = [("etcd", "etcd-server"), ("setpriv", "util-linux"), ("setsid", "util-linux")];
    for (program, package) in needs {
        find_program(program).with_context(|| {
            format!("there is no program `{program}`: install the package {package}")
        })?;
    }
    if spec.haproxy {
        HaProxy::program()?;
    }
    Ok(())
}

fn check_ports(spec: &ClusterBuilder, ports: &PortBlock) -> Result<()> {
    for i in 0..spec.etcd_members {
        check_free(ports.etcd_client(i))?;
        check_free(ports.etcd_peer(i))?;
    }
    for i in 0..spec.nodes {
        check_free(ports.postgres(i))?;
        check_free(ports.rest(i))?;
    }
    if spec.haproxy {
        for port in [ports.haproxy_writes(), ports.haproxy_reads(), ports.haproxy_stats()] {
            check_free(port)?;
        }
    }
    Ok(())
}

/// Used by waits that tell of the whole cluster.
impl Cluster {
    pub(crate) async fn wait<T>(
        &self,
        what: &str,
        deadline: Duration,
        probe: impl AsyncFnMut() -> Result<T>,
    ) -> Result<T> {
        let every = Duration::from_millis(50);
        wait::until(what, deadline, every, probe).await.map_err(|error| self.with_logs(error))
    }

    /// The manager that a node is to be started with from now on.
    ///
    /// # Errors
    /// When there is no such node, or the manager is not installed.
    pub async fn set_manager(&self, node: &str, manager: Manager) -> Result<()> {
        let node = self.node(node)?;
        let command = manager.prepare().await?;
        let mut run = node.run.lock().expect("not poisoned");
        run.manager = manager;
        run.command = command;
        Ok(())
    }
}
