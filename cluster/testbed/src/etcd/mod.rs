//! etcd: one or three members on this machine.

mod client;
mod security;

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail};

pub use client::{EtcdClient, KeyValue};
pub(crate) use security::Access;

use crate::builder::EtcdSecurity;
use crate::ports::PortBlock;
use crate::process::{Launch, Process, RunAs, scan};
use crate::rundir::RunDir;
use crate::tls::Authority;
use crate::wait;

/// The members, and a client with full rights.
#[derive(Debug)]
pub(crate) struct Etcd {
    pub(crate) members: Vec<Member>,
    pub(crate) client: EtcdClient,
    pub(crate) access: Access,
}

#[derive(Debug)]
pub(crate) struct Member {
    name: String,
    pub(crate) dir: PathBuf,
    log: PathBuf,
    args: Vec<String>,
    run_as: RunAs,
    process: Mutex<Option<Process>>,
}

impl Member {
    pub(crate) fn start(&self) -> Result<()> {
        let mut slot = self.process.lock().expect("not poisoned");
        if slot.as_ref().is_some_and(Process::is_running) {
            bail!("{} is running already", self.name);
        }
        let launch = Launch::new(&self.name, "etcd", &self.dir, &self.log, &self.run_as);
        *slot =
            Some(launch.args(&self.args).spawn().context("is the package etcd-server installed?")?);
        Ok(())
    }

    /// SIGTERM; a frozen member is thawed for it.
    pub(crate) async fn stop(&self) -> Result<()> {
        let process = self.process.lock().expect("not poisoned").take();
        if let Some(process) = process {
            process.stop(Duration::from_secs(10)).await;
        }
        scan::kill_under(&self.dir).await
    }
}

impl Etcd {
    /// Describes and starts the members, waits for their quorum, and turns authentication on where asked.
    pub(crate) async fn start(
        count: usize,
        security: EtcdSecurity,
        prefix: &str,
        ports: &PortBlock,
        dir: &RunDir,
        authority: Option<&Authority>,
        run_as: &RunAs,
    ) -> Result<Self> {
        let access = Access::create(security, authority).await?;
        let scheme = access.scheme();
        let peers: Vec<String> = (0..count)
            .map(|i| format!("etcd-{i}=http://127.0.0.1:{}", ports.etcd_peer(i)))
            .collect();
        let mut members = Vec::new();
        for i in 0..count {
            let name = format!("etcd-{i}");
            let (client, peer) = (ports.etcd_client(i), ports.etcd_peer(i));
            let mut args: Vec<String> = [
                ("--name", name.clone()),
                ("--data-dir", "data".to_owned()),
                ("--listen-client-urls", format!("{scheme}://127.0.0.1:{client}")),
                ("--advertise-client-urls", format!("{scheme}://127.0.0.1:{client}")),
                ("--listen-peer-urls", format!("http://127.0.0.1:{peer}")),
                ("--initial-advertise-peer-urls", format!("http://127.0.0.1:{peer}")),
                ("--initial-cluster", peers.join(",")),
                ("--logger", "zap".to_owned()),
                ("--log-outputs", "stderr".to_owned()),
                ("--bcrypt-cost", "4".to_owned()),
            ]
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .collect();
            args.extend(access.server_args());
            members.push(Member {
                dir: dir.subdir(&name, run_as)?,
                log: dir.log(&name),
                name,
                args,
                run_as: run_as.clone(),
                process: Mutex::new(None),
            });
        }
        let https =
            (0..count).map(|i| access.http(ports.etcd_client(i))).collect::<Result<Vec<_>>>()?;
        let etcd = Self { members, client: EtcdClient::new(https), access };
        for member in &etcd.members {
            member.start()?;
        }
        etcd.wait_ready(Duration::from_secs(30)).await?;
        let Self { members, client, access } = etcd;
        let client = access.enable_users(client, prefix).await?;
        Ok(Self { members, client, access })
    }

    /// Waits until a quorum answers.
    pub(crate) async fn wait_ready(&self, deadline: Duration) -> Result<()> {
        let every = Duration::from_millis(20);
        wait::until("etcd has a quorum", deadline, every, async || {
            self.client.get("leaderpool-testbed/none").await.map(|_| ())
        })
        .await
    }
}
