//! HAProxy before the nodes, asking their REST API where writes and reads go.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tokio::net::TcpStream;

use crate::http::Http;
use crate::node::Node;
use crate::ports::PortBlock;
use crate::postgres::find_program;
use crate::process::{Launch, Process, RunAs, scan};
use crate::rundir::{RunDir, write_private};
use crate::wait;

/// The section for writes.
pub const WRITES: &str = "postgres_master";
/// The section for reads.
pub const READS: &str = "postgres_replicas";

/// What HAProxy says of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// The section it stands in: [`WRITES`] or [`READS`].
    pub section: String,
    /// The node.
    pub node: String,
    /// Its state: "UP", "DOWN", with "1/3" for checks that are not yet enough to change it.
    pub status: String,
}

impl Server {
    /// Whether connections are sent to it.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.status.starts_with("UP")
    }
}

/// Asks the page of statistics on a port for every server.
///
/// # Errors
/// When it does not answer.
pub async fn servers(stats_port: u16) -> Result<Vec<Server>> {
    let stats = Http::plain(stats_port);
    let table = stats.get("/stats;csv", Duration::from_secs(2)).await?.body;
    let mut rows = table.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let header = rows.next().context("no statistics")?;
    let status = header.iter().position(|column| *column == "status");
    let status = status.context("no column `status` in the statistics")?;
    Ok(rows
        .filter(|row| row.len() > status && !["FRONTEND", "BACKEND"].contains(&row[1]))
        .map(|row| Server {
            section: row[0].to_owned(),
            node: row[1].to_owned(),
            status: row[status].to_owned(),
        })
        .collect())
}

#[derive(Debug)]
pub(crate) struct HaProxy {
    pub(crate) dir: PathBuf,
    log: PathBuf,
    program: PathBuf,
    ports: [u16; 3],
    run_as: RunAs,
    process: Mutex<Option<Process>>,
}

impl HaProxy {
    pub(crate) fn program() -> Result<PathBuf> {
        find_program("haproxy").context("there is no haproxy: install the package haproxy")
    }

    pub(crate) fn new(dir: &RunDir, ports: &PortBlock, run_as: &RunAs) -> Result<Self> {
        Ok(Self {
            dir: dir.subdir("haproxy", run_as)?,
            log: dir.log("haproxy"),
            program: Self::program()?,
            ports: [ports.haproxy_writes(), ports.haproxy_reads(), ports.haproxy_stats()],
            run_as: run_as.clone(),
            process: Mutex::new(None),
        })
    }

    pub(crate) fn configure(&self, nodes: &[Arc<Node>]) -> Result<()> {
        let text = config(self.ports, nodes);
        write_private(&self.dir.join("haproxy.cfg"), &text, &self.run_as)
    }

    pub(crate) async fn start(&self) -> Result<()> {
        {
            let mut slot = self.process.lock().expect("not poisoned");
            if slot.as_ref().is_some_and(Process::is_running) {
                bail!("haproxy is running already");
            }
            let launch = Launch::new("haproxy", &self.program, &self.dir, &self.log, &self.run_as);
            *slot = Some(launch.args(["-W", "-db", "-f", "haproxy.cfg"]).spawn()?);
        }
        let every = Duration::from_millis(20);
        wait::until("HAProxy listens", Duration::from_secs(10), every, async || {
            for port in self.ports {
                TcpStream::connect(("127.0.0.1", port)).await?;
            }
            Ok(())
        })
        .await
    }

    /// Takes up a changed configuration; established connections go on.
    pub(crate) fn reload(&self) {
        if let Some(process) = &*self.process.lock().expect("not poisoned") {
            process.signal(Signal::USR2);
        }
    }

    /// Which servers it takes to be up, by the section they stand in.
    pub(crate) async fn servers_up(&self) -> Result<Vec<(String, String)>> {
        let servers = servers(self.ports[2]).await?;
        Ok(servers.into_iter().filter(Server::is_up).map(|s| (s.section, s.node)).collect())
    }

    pub(crate) async fn stop(&self) -> Result<()> {
        scan::signal(&scan::under(&self.dir), Signal::CONT);
        let process = self.process.lock().expect("not poisoned").take();
        if let Some(process) = process {
            process.stop(Duration::from_secs(5)).await;
        }
        scan::kill_under(&self.dir).await
    }
}

/// The check is set by `option httpchk`: a server's own `check-path` does not exist in HAProxy.
fn config(ports: [u16; 3], nodes: &[Arc<Node>]) -> String {
    let [writes, reads, stats] = ports;
    let mut text = format!(
        "global
    maxconn 100

defaults
    log global
    mode tcp
    retries 2
    timeout client 30m
    timeout connect 4s
    timeout server 30m
    timeout check 5s

listen stats
    mode http
    bind 127.0.0.1:{stats}
    stats enable
    stats uri /stats
    stats refresh 1s
"
    );
    for (name, port, path) in [(WRITES, writes, "/master"), (READS, reads, "/replica")] {
        let _ = write!(
            text,
            "
listen {name}
    bind 127.0.0.1:{port}
    option httpchk OPTIONS {path}
    http-check expect status 200
    default-server inter 3s fall 3 rise 2 on-marked-down shutdown-sessions
"
        );
        for node in nodes {
            let _ = writeln!(
                text,
                "    server {} 127.0.0.1:{} maxconn 100 check port {}",
                node.name, node.postgres_port, node.rest_port
            );
        }
    }
    text
}
