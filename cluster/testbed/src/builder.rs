//! What a cluster is to be like.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::manager::Manager;
use crate::ports::{MAX_NODES, Ports};
use crate::progress::{Listener, Progress};

/// The dynamic configuration that the cluster is bootstrapped with.
#[derive(Debug, Clone, PartialEq)]
pub struct Dynamic {
    /// Seconds that the leader key lives unrenewed.
    pub ttl: u32,
    /// Seconds between two looks of the manager.
    pub loop_wait: u32,
    /// Seconds that etcd and PostgreSQL are tried for before giving up.
    pub retry_timeout: u32,
    /// Bytes that a candidate may be behind.
    pub maximum_lag_on_failover: u64,
    /// Seconds that a crashed primary may take to recover before another takes over.
    pub primary_start_timeout: u32,
    /// Whether commits wait for a standby.
    pub synchronous_mode: bool,
    /// Whether the primary goes on without etcd while all members answer it.
    pub failsafe_mode: bool,
    /// Anything else, laid upon the rest (null removes a key).
    pub extra: Value,
}

impl Default for Dynamic {
    /// 30/10/10: what a documented `retry_timeout: 30` comes to, as `loop_wait + 2 * retry_timeout` may not exceed `ttl`.
    fn default() -> Self {
        Self {
            ttl: 30,
            loop_wait: 10,
            retry_timeout: 10,
            maximum_lag_on_failover: 1_048_576,
            primary_start_timeout: 300,
            synchronous_mode: false,
            failsafe_mode: false,
            extra: Value::Null,
        }
    }
}

impl Dynamic {
    /// The fastest that Patroni allows: 20/1/3.
    #[must_use]
    pub fn fast() -> Self {
        Self { ttl: 20, loop_wait: 1, retry_timeout: 3, ..Self::default() }
    }
}

/// How etcd is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EtcdSecurity {
    /// HTTPS, with a certificate of the cluster's own authority.
    pub tls: bool,
    /// Clients must show a certificate of that authority (implies `tls`).
    pub client_certificates: bool,
    /// Users with passwords: one with all rights for the managers, one that may read the cluster's keys for clients.
    pub users: bool,
}

/// Whether PostgreSQL offers TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PostgresTls {
    /// It does not.
    #[default]
    Off,
    /// It does, and knows the cluster's authority (so that a `hostssl … cert` line can be used).
    On,
}

/// Collects what a cluster is to be like, then starts it.
#[derive(Debug, Clone)]
pub struct ClusterBuilder {
    pub(crate) manager: Manager,
    pub(crate) managers: BTreeMap<String, Manager>,
    pub(crate) nodes: usize,
    pub(crate) etcd_members: usize,
    pub(crate) haproxy: bool,
    pub(crate) ports: Ports,
    pub(crate) dynamic: Dynamic,
    pub(crate) bin_dir: Option<PathBuf>,
    pub(crate) dir: Option<PathBuf>,
    pub(crate) scope: String,
    pub(crate) namespace: String,
    pub(crate) parameters: BTreeMap<String, String>,
    pub(crate) tags: BTreeMap<String, Value>,
    pub(crate) recovery: BTreeMap<String, Value>,
    pub(crate) fsync: bool,
    pub(crate) archive: bool,
    pub(crate) pg_hba_first: Vec<String>,
    pub(crate) etcd_security: EtcdSecurity,
    pub(crate) postgres_tls: PostgresTls,
    pub(crate) progress: Listener,
}

impl Default for ClusterBuilder {
    fn default() -> Self {
        Self {
            manager: Manager::default(),
            managers: BTreeMap::new(),
            nodes: 3,
            etcd_members: 1,
            haproxy: false,
            ports: Ports::Free,
            dynamic: Dynamic::default(),
            bin_dir: None,
            dir: None,
            scope: "postgres-cluster".to_owned(),
            namespace: "/db/".to_owned(),
            parameters: BTreeMap::new(),
            tags: BTreeMap::new(),
            recovery: BTreeMap::new(),
            fsync: false,
            archive: false,
            pg_hba_first: Vec::new(),
            etcd_security: EtcdSecurity::default(),
            postgres_tls: PostgresTls::Off,
            progress: Listener::default(),
        }
    }
}

impl ClusterBuilder {
    /// Three nodes of Patroni 4 on one etcd member and free ports, without HAProxy, at the documented timing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same at the fastest timing that Patroni allows, which tests want.
    #[must_use]
    pub fn fast() -> Self {
        Self::new().dynamic(Dynamic::fast())
    }

    /// The manager of all nodes.
    #[must_use]
    pub fn manager(mut self, manager: Manager) -> Self {
        self.manager = manager;
        self
    }

    /// The manager of one node, where it differs.
    #[must_use]
    pub fn manager_of(mut self, node: &str, manager: Manager) -> Self {
        self.managers.insert(node.to_owned(), manager);
        self
    }

    /// How many nodes to start with.
    #[must_use]
    pub fn nodes(mut self, count: usize) -> Self {
        self.nodes = count;
        self
    }

    /// One or three members of etcd.
    #[must_use]
    pub fn etcd_members(mut self, count: usize) -> Self {
        self.etcd_members = count;
        self
    }

    /// With HAProxy before the nodes.
    #[must_use]
    pub fn haproxy(mut self, on: bool) -> Self {
        self.haproxy = on;
        self
    }

    /// Which ports.
    #[must_use]
    pub fn ports(mut self, ports: Ports) -> Self {
        self.ports = ports;
        self
    }

    /// The dynamic configuration.
    #[must_use]
    pub fn dynamic(mut self, dynamic: Dynamic) -> Self {
        self.dynamic = dynamic;
        self
    }

    /// PostgreSQL's programs; found by itself otherwise.
    #[must_use]
    pub fn bin_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.bin_dir = Some(dir.into());
        self
    }

    /// The run directory, kept at the end; a temporary one otherwise.
    #[must_use]
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// The cluster's scope.
    #[must_use]
    pub fn scope(mut self, scope: &str) -> Self {
        self.scope = scope.to_owned();
        self
    }

    /// The namespace of its keys, as it stands in the configuration ("/db/").
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = namespace.to_owned();
        self
    }

    /// One more PostgreSQL parameter, for all nodes.
    #[must_use]
    pub fn parameter(mut self, name: &str, value: &str) -> Self {
        self.parameters.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Tags of one node, as a JSON object.
    #[must_use]
    pub fn tags(mut self, node: &str, tags: Value) -> Self {
        self.tags.insert(node.to_owned(), tags);
        self
    }

    /// Recovery settings of one node while it is a replica, as a JSON object (`recovery_min_apply_delay`, say).
    #[must_use]
    pub fn recovery(mut self, node: &str, settings: Value) -> Self {
        self.recovery.insert(node.to_owned(), settings);
        self
    }

    /// Whether PostgreSQL flushes to the disk. Off it survives the kills here (the machine's memory does), only faster.
    #[must_use]
    pub fn fsync(mut self, on: bool) -> Self {
        self.fsync = on;
        self
    }

    /// Whether WAL is archived beside the data directory.
    #[must_use]
    pub fn archive(mut self, on: bool) -> Self {
        self.archive = on;
        self
    }

    /// A line to stand before the others in `pg_hba.conf`.
    #[must_use]
    pub fn pg_hba(mut self, line: &str) -> Self {
        self.pg_hba_first.push(line.to_owned());
        self
    }

    /// How etcd is protected.
    #[must_use]
    pub fn etcd_security(mut self, security: EtcdSecurity) -> Self {
        self.etcd_security = security;
        self
    }

    /// Whether PostgreSQL offers TLS.
    #[must_use]
    pub fn postgres_tls(mut self, tls: PostgresTls) -> Self {
        self.postgres_tls = tls;
        self
    }

    /// Is told of each step of the start.
    #[must_use]
    pub fn on_progress(mut self, tell: impl Fn(Progress<'_>) + Send + Sync + 'static) -> Self {
        self.progress = Listener::new(tell);
        self
    }

    /// Starts it and waits until it is healthy.
    ///
    /// # Errors
    /// When something is missing, a port is taken, or the cluster does not become healthy; with the logs' last lines.
    pub async fn start(self) -> Result<Cluster> {
        ensure!(
            (1..=MAX_NODES).contains(&self.nodes),
            "1 to {MAX_NODES} nodes, not {}",
            self.nodes
        );
        ensure!(
            [1, 3].contains(&self.etcd_members),
            "1 or 3 members of etcd, not {}",
            self.etcd_members
        );
        Cluster::start(self).await
    }

    /// `/{namespace}/{scope}/`, as Patroni normalises it.
    pub(crate) fn key_prefix(&self) -> String {
        format!("/{}/{}/", self.namespace.trim_matches('/'), self.scope)
    }

    pub(crate) fn manager_for(&self, node: &str) -> Manager {
        self.managers.get(node).unwrap_or(&self.manager).clone()
    }
}
