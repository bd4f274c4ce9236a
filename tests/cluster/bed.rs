//! The clusters that scenarios share.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use anyhow::{Context, ensure};
use leaderpool::{Config, LeaderPool};
use leaderpool_testbed::{Cluster, ClusterBuilder};
use tokio::runtime::Runtime;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::Scenario;

/// No scenario takes this long; one that does hangs.
const LIMIT: Duration = Duration::from_secs(400);

/// What manages the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    Patroni3,
    Patroni4,
}

impl Manager {
    pub const ALL: [Manager; 2] = [Manager::Patroni3, Manager::Patroni4];

    fn testbed(self) -> leaderpool_testbed::Manager {
        match self {
            Manager::Patroni3 => leaderpool_testbed::Manager::Patroni3,
            Manager::Patroni4 => leaderpool_testbed::Manager::Patroni4,
        }
    }
}

impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Manager::Patroni3 => "patroni3",
            Manager::Patroni4 => "patroni4",
        })
    }
}

/// A healthy cluster, for the length of one scenario.
pub struct Bed {
    pub manager: Manager,
    pub cluster: Cluster,
    /// Whether the cluster is of no use to the next scenario.
    spoiled: AtomicBool,
}

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Runtime::new().expect("a runtime for the clusters"));
static BEDS: [OnceLock<Mutex<Option<Bed>>>; 2] = [OnceLock::new(), OnceLock::new()];

fn slot(manager: Manager) -> &'static Mutex<Option<Bed>> {
    BEDS[manager as usize].get_or_init(Mutex::default)
}

/// Runs one scenario on the cluster of `manager`, which is healthy before, and after it again or gone.
pub fn run(manager: Manager, name: &str, scenario: Scenario) -> anyhow::Result<()> {
    RUNTIME.block_on(async {
        let mut slot = slot(manager).lock().await;
        let mut bed = match slot.take() {
            Some(bed) if bed.cluster.wait_healthy(Duration::from_secs(60)).await.is_ok() => bed,
            _ => Bed::start(manager).await?,
        };
        bed.prepare().await?;
        let started = Instant::now();
        let result = match timeout(LIMIT, scenario(&bed)).await {
            Ok(result) => result,
            Err(_) => Err(anyhow::anyhow!("not done within {LIMIT:?}")),
        };
        eprintln!("[{manager}] {name}: {:.1} s", started.elapsed().as_secs_f64());
        match result {
            Ok(()) => bed.no_write_met_a_standby(),
            Err(error) => Err(error),
        }
        .with_context(|| format!("logs are below {}", bed.cluster.dir().display()))?;
        if bed.spoiled.load(Ordering::Relaxed) {
            bed.cluster.shutdown().await?;
        } else {
            *slot = Some(bed);
        }
        Ok(())
    })
}

/// Stops the clusters that are left.
pub fn shut_down() {
    RUNTIME.block_on(async {
        for manager in Manager::ALL {
            if let Some(bed) = slot(manager).lock().await.take()
                && let Err(error) = bed.cluster.shutdown().await
            {
                eprintln!("[{manager}] while shutting down: {error:#}");
            }
        }
    });
}

impl Bed {
    async fn start(manager: Manager) -> anyhow::Result<Self> {
        let cluster = ClusterBuilder::fast()
            .manager(manager.testbed())
            .etcd_members(3)
            .start()
            .await
            .with_context(|| format!("starting a cluster of {manager}"))?;
        Ok(Self { manager, cluster, spoiled: AtomicBool::new(false) })
    }

    /// An empty table for the account, and no setting left over from the last scenario.
    async fn prepare(&mut self) -> anyhow::Result<()> {
        let primary = self.cluster.wait_healthy(Duration::from_secs(60)).await?;
        self.cluster
            .connect(&primary)
            .await?
            .batch_execute(
                "DROP TABLE IF EXISTS account; CREATE TABLE account (id bigint, writer int)",
            )
            .await?;
        Ok(())
    }

    /// The configuration that a client of this cluster has.
    pub fn config(&self) -> anyhow::Result<Config> {
        Ok(Config::from_toml(&self.cluster.client_toml())?)
    }

    /// A pool on this cluster.
    pub async fn pool(&self) -> anyhow::Result<LeaderPool> {
        Ok(LeaderPool::connect(self.config()?).await?)
    }

    /// Whom the leader key names; empty where there is none.
    pub async fn leader_key(&self) -> anyhow::Result<String> {
        Ok(self.cluster.get_key("leader").await?.map(|key| key.value).unwrap_or_default())
    }

    /// Leaves the cluster to nobody: its manager broke it.
    pub fn spoil(&self) {
        self.spoiled.store(true, Ordering::Relaxed);
    }

    /// A replica's name.
    pub async fn replica(&self) -> anyhow::Result<String> {
        let primary = self.cluster.primary().await?;
        self.cluster
            .nodes()
            .iter()
            .map(|node| node.name().to_owned())
            .find(|name| *name != primary)
            .context("no replica")
    }

    /// The servers' own logs tell whether any statement reached a node in recovery as a write.
    fn no_write_met_a_standby(&self) -> anyhow::Result<()> {
        for entry in std::fs::read_dir(self.cluster.dir().join("logs"))? {
            let path = entry?.path();
            let log = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
            let met = log.lines().find(|line| line.contains("in a read-only transaction"));
            ensure!(met.is_none(), "{}: {}", path.display(), met.unwrap_or_default());
        }
        Ok(())
    }
}

/// Waits until `probe` gives a value, or says what was awaited and what was seen.
pub async fn eventually<T>(
    what: &str,
    limit: Duration,
    mut probe: impl AsyncFnMut() -> Result<T, String>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match probe().await {
            Ok(value) => return Ok(value),
            Err(seen) if Instant::now() >= deadline => {
                anyhow::bail!("{what}: not within {limit:?}; last seen: {seen}")
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
