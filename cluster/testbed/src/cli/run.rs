//! `run`: a cluster in the foreground.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use leaderpool_testbed::{Cluster, Dynamic, Manager};

use super::start::{PortChoice, manager};
use super::{Signals, say};

#[derive(Debug, Args)]
pub(super) struct Run {
    /// What manages PostgreSQL: patroni-4, patroni-3, or the path of a program that takes a patroni.yml.
    #[arg(long, default_value = "patroni-4", value_parser = manager)]
    manager: Manager,
    /// The run directory, kept at the end; a temporary one if not given.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The documented ports, or free ones.
    #[arg(long, value_enum, default_value_t = PortChoice::Free)]
    ports: PortChoice,
    /// With HAProxy.
    #[arg(long)]
    haproxy: bool,
    /// How many nodes.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// How many members of etcd, 1 or 3.
    #[arg(long, default_value_t = 1)]
    etcd: usize,
    /// The fastest timing that Patroni allows (20/1/3), not the documented one (30/10/10).
    #[arg(long)]
    fast: bool,
}

impl Run {
    pub(super) async fn run(self) -> Result<()> {
        let mut signals = Signals::install()?;
        let mut builder = Cluster::builder()
            .manager(self.manager)
            .nodes(self.nodes)
            .etcd_members(self.etcd)
            .haproxy(self.haproxy)
            .dynamic(if self.fast { Dynamic::fast() } else { Dynamic::default() })
            .ports(self.ports.into());
        if let Some(dir) = self.dir {
            builder = builder.dir(dir);
        }
        // A start that is interrupted is dropped, and its processes with it.
        let cluster = tokio::select! {
            cluster = builder.start() => cluster?,
            () = signals.next() => return Ok(()),
        };
        report(&cluster).await?;
        signals.next().await;
        say("stopping");
        cluster.shutdown().await
    }
}

async fn report(cluster: &Cluster) -> Result<()> {
    let leader = cluster.leader_key().await?.unwrap_or_default();
    say(format_args!("cluster in {}", cluster.dir().display()));
    for node in cluster.nodes() {
        let role = if node.name() == leader { "primary" } else { "replica" };
        say(format_args!(
            "  {:<18} {role}  PostgreSQL 127.0.0.1:{}  REST http://127.0.0.1:{}  {}",
            node.name(),
            node.postgres_port(),
            node.rest_port(),
            node.manager().name()
        ));
    }
    say(format_args!("client configuration: {}", cluster.write_client_toml()?.display()));
    say("ready: Ctrl-C takes everything down");
    Ok(())
}
