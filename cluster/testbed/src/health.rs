//! Looking at the cluster: by its keys in etcd, by SQL and by the REST API.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::etcd::KeyValue;
use crate::haproxy::{READS, WRITES};
use crate::node::Node;
use crate::postgres::{ServerState, server_state};

/// How long one look at one server may take.
const LOOK: Duration = Duration::from_secs(2);

impl Cluster {
    /// A key of the cluster, by its name below [`Cluster::key_prefix`] ("leader", "members/NAME").
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn get_key(&self, name: &str) -> Result<Option<KeyValue>> {
        self.etcd.client.get(&format!("{}{name}", self.key_prefix())).await
    }

    /// Sets such a key (without a lease).
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn put_key(&self, name: &str, value: &str) -> Result<()> {
        self.etcd.client.put(&format!("{}{name}", self.key_prefix()), value).await
    }

    /// Deletes such a key; whether there was one.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn delete_key(&self, name: &str) -> Result<bool> {
        self.etcd.client.delete(&format!("{}{name}", self.key_prefix())).await
    }

    /// Who holds the leader key.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn leader_key(&self) -> Result<Option<String>> {
        Ok(self.get_key("leader").await?.map(|kv| kv.value))
    }

    /// The one node that is not in recovery, by asking each.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub async fn primary(&self) -> Result<String> {
        let states = self.states().await;
        let mut primaries = Vec::new();
        let mut seen = Vec::new();
        for (name, state) in states {
            match state {
                Ok(state) if !state.in_recovery => primaries.push(name),
                Ok(_) => seen.push(format!("{name} is in recovery")),
                Err(error) => seen.push(format!("{name}: {error:#}")),
            }
        }
        match &primaries[..] {
            [one] => Ok(one.clone()),
            [] => bail!("no primary: {}", seen.join("; ")),
            more => bail!("more than one primary: {}", more.join(", ")),
        }
    }

    /// Each node's own word on its role.
    pub async fn states(&self) -> Vec<(String, Result<ServerState>)> {
        let nodes = self.nodes();
        let looks = nodes
            .iter()
            .map(async |node| (node.name.clone(), server_state(node.postgres_port, LOOK).await));
        futures_util::future::join_all(looks).await
    }

    /// Waits until the cluster is healthy, and names its primary: the leader key names a node that is writable and that
    /// `/primary` agrees with; every other started node streams from it on its timeline and is a `/replica`.
    ///
    /// # Errors
    /// When the deadline passes: with what was seen last and the logs' last lines.
    pub async fn wait_healthy(&self, deadline: Duration) -> Result<String> {
        self.wait_for_health(deadline).await.map_err(|error| self.with_logs(error))
    }

    pub(crate) async fn wait_for_health(&self, deadline: Duration) -> Result<String> {
        let every = Duration::from_millis(50);
        crate::wait::until("a healthy cluster", deadline, every, async || self.check_health().await)
            .await
    }

    /// Waits until another node than `old` holds the leader key and is writable; its name.
    ///
    /// # Errors
    /// As for [`Cluster::wait_healthy`].
    pub async fn wait_new_primary(&self, old: &str, deadline: Duration) -> Result<String> {
        self.wait(&format!("a primary other than {old}"), deadline, async || {
            let leader = self.lead().await?;
            ensure!(leader != old, "{old} still leads");
            Ok(leader)
        })
        .await
    }

    /// Waits until a node streams from the present primary.
    ///
    /// # Errors
    /// As for [`Cluster::wait_healthy`].
    pub async fn wait_streaming(&self, name: &str, deadline: Duration) -> Result<()> {
        let node = self.node(name)?;
        self.wait(&format!("{name} streams"), deadline, async || {
            let leader = self.lead().await?;
            let primary = server_state(self.node(&leader)?.postgres_port, LOOK).await?;
            check_replica(&node, &primary).await
        })
        .await
    }

    /// Waits until HAProxy, by its own account, sends writes to the primary alone and reads to every replica that runs.
    ///
    /// # Errors
    /// When there is no HAProxy, or the deadline passes.
    pub async fn wait_haproxy(&self, deadline: Duration) -> Result<()> {
        self.wait_for_haproxy(deadline).await.map_err(|error| self.with_logs(error))
    }

    pub(crate) async fn wait_for_haproxy(&self, deadline: Duration) -> Result<()> {
        let haproxy = self.haproxy.as_ref().context("this cluster has no HAProxy")?;
        let every = Duration::from_millis(50);
        crate::wait::until("HAProxy knows the roles", deadline, every, async || {
            let leader = self.lead().await?;
            let mut wanted = vec![(WRITES.to_owned(), leader.clone())];
            let replicas = self.nodes().into_iter().filter(|n| n.name != leader && n.is_started());
            wanted.extend(replicas.map(|node| (READS.to_owned(), node.name.clone())));
            let up = haproxy.servers_up().await?;
            ensure!(up == wanted, "up are {up:?}");
            Ok(())
        })
        .await
    }

    /// The leader by the key, if it says itself that it is writable.
    pub(crate) async fn lead(&self) -> Result<String> {
        let leader = self.leader_key().await?.context("no leader key")?;
        let node = self.node(&leader)?;
        let state = server_state(node.postgres_port, LOOK).await?;
        ensure!(!state.in_recovery, "{leader} holds the leader key but is in recovery");
        Ok(leader)
    }

    async fn check_health(&self) -> Result<String> {
        let leader = self.lead().await?;
        let node = self.node(&leader)?;
        check_rest(&node, "/primary").await?;
        self.check_member(&leader).await?;
        let primary = server_state(node.postgres_port, LOOK).await?;
        for node in self.nodes() {
            if node.name == leader || !node.is_started() {
                continue;
            }
            check_replica(&node, &primary).await?;
            check_rest(&node, "/replica").await?;
            self.check_member(&node.name).await?;
        }
        Ok(leader)
    }

    /// A switchover is refused while the member's key does not say that it runs.
    async fn check_member(&self, name: &str) -> Result<()> {
        let key = self.get_key(&format!("members/{name}")).await?;
        let key = key.with_context(|| format!("no key members/{name}"))?;
        let member: Value = serde_json::from_str(&key.value)?;
        let state = member["state"].as_str().unwrap_or_default();
        ensure!(["running", "streaming"].contains(&state), "members/{name} says {}", key.value);
        Ok(())
    }
}

async fn check_replica(node: &Node, primary: &ServerState) -> Result<()> {
    let state = server_state(node.postgres_port, LOOK).await;
    let state = state.with_context(|| node.name.clone())?;
    ensure!(state.in_recovery, "{} is writable too", node.name);
    ensure!(state.streaming, "{} does not stream", node.name);
    ensure!(
        state.timeline == primary.timeline,
        "{} is on timeline {:?}, the primary on {:?}",
        node.name,
        state.timeline,
        primary.timeline
    );
    Ok(())
}

async fn check_rest(node: &Node, path: &str) -> Result<()> {
    let answer = node.rest().get(path, LOOK).await?;
    ensure!(answer.status == 200, "{} answers {path} with {}", node.name, answer.status);
    Ok(())
}
