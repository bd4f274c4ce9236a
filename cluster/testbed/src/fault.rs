//! Breaking things, and mending them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyper::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::etcd::Member;
use crate::haproxy::HaProxy;
use crate::process::scan;

const STOP_GRACE: Duration = Duration::from_secs(30);

/// Nodes.
impl Cluster {
    /// SIGKILL to the postmaster, as the kernel out of memory would; its manager lives.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn kill_postmaster(&self, node: &str) -> Result<()> {
        let postmaster = self.node(node)?.postmaster()?;
        scan::signal(&[postmaster], Signal::KILL);
        Ok(())
    }

    /// SIGKILL to the manager; PostgreSQL lives.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn kill_manager(&self, node: &str) -> Result<()> {
        let node = self.node(node)?;
        node.manager_process()?;
        let process = node.run.lock().expect("not poisoned").process.take();
        if let Some(process) = process {
            process.kill().await;
        }
        Ok(())
    }

    /// The power goes: everything of the node is stopped at one moment, then killed.
    ///
    /// # Errors
    /// When something survives.
    pub async fn kill_node(&self, node: &str) -> Result<()> {
        let node = self.node(node)?;
        scan::kill_under(&node.dir).await?;
        // Taken only now: the sweep kills the manager at the same moment as all else.
        let process = node.run.lock().expect("not poisoned").process.take();
        if let Some(process) = process {
            process.kill().await;
        }
        Ok(())
    }

    /// Starts a node's manager, after a kill or a stop; whether PostgreSQL still runs is its business.
    ///
    /// # Errors
    /// When it runs already.
    pub async fn start_node(&self, node: &str) -> Result<()> {
        self.node(node)?.start()
    }

    /// SIGTERM to the manager, which stops PostgreSQL in order; waits for both.
    ///
    /// # Errors
    /// When something survives.
    pub async fn stop_node(&self, node: &str) -> Result<()> {
        self.node(node)?.stop(STOP_GRACE).await
    }

    /// SIGSTOP to the postmaster and all its children.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn freeze_postmaster(&self, node: &str) -> Result<()> {
        let node = self.node(node)?;
        // First itself, so that no child comes after the look.
        scan::signal(&[node.postmaster()?], Signal::STOP);
        scan::freeze_under(&node.data_dir()).await;
        Ok(())
    }

    /// SIGCONT to the postmaster and all its children.
    ///
    /// # Errors
    /// When there is no such node.
    pub async fn thaw_postmaster(&self, node: &str) -> Result<()> {
        scan::signal(&self.node(node)?.server_processes(), Signal::CONT);
        Ok(())
    }

    /// SIGSTOP to the manager.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn freeze_manager(&self, node: &str) -> Result<()> {
        scan::signal(&[self.node(node)?.manager_process()?], Signal::STOP);
        Ok(())
    }

    /// SIGCONT to the manager.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn thaw_manager(&self, node: &str) -> Result<()> {
        scan::signal(&[self.node(node)?.manager_process()?], Signal::CONT);
        Ok(())
    }

    /// SIGSTOP to everything of the node.
    ///
    /// # Errors
    /// When there is no such node.
    pub async fn freeze_node(&self, node: &str) -> Result<()> {
        scan::freeze_under(&self.node(node)?.dir).await;
        Ok(())
    }

    /// SIGCONT to everything of the node.
    ///
    /// # Errors
    /// When there is no such node.
    pub async fn thaw_node(&self, node: &str) -> Result<()> {
        scan::signal(&self.node(node)?.processes(), Signal::CONT);
        Ok(())
    }

    /// Starts one more replica and waits until it streams; its name.
    ///
    /// # Errors
    /// When it does not within two minutes.
    pub async fn add_node(&self) -> Result<String> {
        let node = self.create_node().await?;
        node.start()?;
        self.reconfigure_haproxy()?;
        self.wait_streaming(node.name(), Duration::from_secs(120)).await?;
        Ok(node.name.clone())
    }

    /// Stops a node in order and forgets it; its directory goes too.
    ///
    /// # Errors
    /// When there is no such node, or something of it survives.
    pub async fn remove_node(&self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        node.stop(STOP_GRACE).await?;
        self.nodes.write().expect("not poisoned").retain(|other| other.name != name);
        self.reconfigure_haproxy()?;
        std::fs::remove_dir_all(&node.dir)
            .with_context(|| format!("cannot remove {}", node.dir.display()))
    }

    fn reconfigure_haproxy(&self) -> Result<()> {
        if let Some(haproxy) = &self.haproxy {
            haproxy.configure(&self.nodes())?;
            haproxy.reload();
        }
        Ok(())
    }
}

/// Requests to the managers.
impl Cluster {
    /// A planned change of the leader; returns when the manager says that it is done.
    ///
    /// # Errors
    /// When it is refused or fails, with the manager's words.
    pub async fn switchover(&self, from: &str, to: &str) -> Result<()> {
        let body = json!({"leader": from, "candidate": to});
        self.ask(from, Method::POST, "/switchover", &body).await.map(|_| ())
    }

    /// Restarts PostgreSQL on a node, by its manager.
    ///
    /// # Errors
    /// When it is refused or fails.
    pub async fn restart(&self, node: &str) -> Result<()> {
        self.ask(node, Method::POST, "/restart", &json!({})).await.map(|_| ())
    }

    /// Changes the dynamic configuration (null removes a key).
    ///
    /// # Errors
    /// When it is refused.
    pub async fn patch_config(&self, patch: &Value) -> Result<()> {
        let leader = self.lead().await?;
        self.ask(&leader, Method::PATCH, "/config", patch).await.map(|_| ())
    }

    async fn ask(&self, node: &str, method: Method, path: &str, body: &Value) -> Result<String> {
        let rest = self.node(node)?.rest();
        let minute = Duration::from_secs(60);
        let answer = rest.request(method, path, Some(body), None, minute).await;
        let answer = answer.map_err(|error| self.with_logs(error))?;
        if answer.status != 200 {
            let words = answer.body.trim();
            let error = anyhow::anyhow!("{node} answered {path} with {}: {words}", answer.status);
            return Err(self.with_logs(error));
        }
        Ok(answer.body)
    }

    /// Deletes the leader key, as if its lease had ended.
    ///
    /// # Errors
    /// When there is none, or etcd does not answer.
    pub async fn delete_leader_key(&self) -> Result<()> {
        ensure!(self.delete_key("leader").await?, "there is no leader key");
        Ok(())
    }
}

/// etcd.
impl Cluster {
    /// Starts a stopped or killed member.
    ///
    /// # Errors
    /// When it runs already.
    pub async fn start_etcd(&self, member: usize) -> Result<()> {
        self.member(member)?.start()
    }

    /// SIGTERM to a member; waits until it has ended.
    ///
    /// # Errors
    /// When it survives.
    pub async fn stop_etcd(&self, member: usize) -> Result<()> {
        self.member(member)?.stop().await
    }

    /// SIGKILL to a member.
    ///
    /// # Errors
    /// When it survives.
    pub async fn kill_etcd(&self, member: usize) -> Result<()> {
        let member = self.member(member)?;
        scan::kill_under(&member.dir).await?;
        member.stop().await
    }

    /// SIGSTOP to a member.
    ///
    /// # Errors
    /// When there is no such member.
    pub async fn freeze_etcd(&self, member: usize) -> Result<()> {
        scan::freeze_under(&self.member(member)?.dir).await;
        Ok(())
    }

    /// SIGCONT to a member.
    ///
    /// # Errors
    /// When there is no such member.
    pub async fn thaw_etcd(&self, member: usize) -> Result<()> {
        scan::signal(&scan::under(&self.member(member)?.dir), Signal::CONT);
        Ok(())
    }

    /// Waits until etcd has a quorum again.
    ///
    /// # Errors
    /// When the deadline passes.
    pub async fn wait_etcd(&self, deadline: Duration) -> Result<()> {
        self.etcd.wait_ready(deadline).await.map_err(|error| self.with_logs(error))
    }

    fn member(&self, index: usize) -> Result<&Member> {
        self.etcd.members.get(index).with_context(|| format!("etcd has no member {index}"))
    }
}

/// HAProxy.
impl Cluster {
    /// SIGKILL to HAProxy.
    ///
    /// # Errors
    /// When there is none, or it survives.
    pub async fn kill_haproxy(&self) -> Result<()> {
        let haproxy = self.haproxy()?;
        scan::kill_under(&haproxy.dir).await?;
        haproxy.stop().await
    }

    /// Starts a killed HAProxy.
    ///
    /// # Errors
    /// When there is none, or it runs already.
    pub async fn start_haproxy(&self) -> Result<()> {
        self.haproxy()?.start().await.map_err(|error| self.with_logs(error))
    }

    /// SIGSTOP to HAProxy.
    ///
    /// # Errors
    /// When there is none.
    pub async fn freeze_haproxy(&self) -> Result<()> {
        scan::freeze_under(&self.haproxy()?.dir).await;
        Ok(())
    }

    /// SIGCONT to HAProxy.
    ///
    /// # Errors
    /// When there is none.
    pub async fn thaw_haproxy(&self) -> Result<()> {
        scan::signal(&scan::under(&self.haproxy()?.dir), Signal::CONT);
        Ok(())
    }

    fn haproxy(&self) -> Result<&HaProxy> {
        self.haproxy.as_ref().context("this cluster has no HAProxy")
    }
}
