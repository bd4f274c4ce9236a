//! A meter: one insert at a time through the pool, and every gap between acknowledged commits.
//!
//! ```sh
//! cargo run --example downtime -- --config .demo/leaderpool.toml --seconds 60
//! ```
//!
//! Each gap over `--floor-ms` is printed when it ends. The last line is one JSON object:
//! `{"acked":…,"errors":…,"gaps_s":[…],"total_gap_s":…,"nodes":[…]}`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use leaderpool::{Config, LeaderPool};
use serde_json::json;
use tokio::time::{Instant, timeout};

/// Measures how long writes stop.
#[derive(Parser)]
struct Options {
    /// The pool's configuration.
    #[arg(long, default_value = "leaderpool.toml")]
    config: PathBuf,
    /// How long to measure. Without it, until Ctrl-C.
    #[arg(long)]
    seconds: Option<u64>,
    /// Gaps shorter than this are not counted, in milliseconds.
    #[arg(long, default_value_t = 100)]
    floor_ms: u64,
}

/// What the meter has seen.
struct Meter {
    floor: Duration,
    last_ack: Instant,
    acked: u64,
    errors: u64,
    gaps: Vec<Duration>,
    nodes: Vec<String>,
}

impl Meter {
    fn acknowledged(&mut self, node: &str) {
        let gap = self.last_ack.elapsed();
        self.last_ack = Instant::now();
        self.acked += 1;
        if gap >= self.floor {
            println!("gap of {:.3} s, then a commit on {node}", gap.as_secs_f64());
            self.gaps.push(gap);
        }
        if self.nodes.last().is_none_or(|last| last != node) {
            println!("commits go to {node}");
            self.nodes.push(node.to_owned());
        }
    }

    fn summary(&self) -> serde_json::Value {
        let seconds = |gap: &Duration| (gap.as_secs_f64() * 1000.0).round() / 1000.0;
        json!({
            "acked": self.acked,
            "errors": self.errors,
            "gaps_s": self.gaps.iter().map(seconds).collect::<Vec<_>>(),
            "total_gap_s": seconds(&self.gaps.iter().sum()),
            "nodes": self.nodes,
        })
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()),
        )
        .init();
    let options = Options::parse();
    let pool = LeaderPool::connect(Config::from_file_and_env(&options.config)?).await?;
    pool.write()
        .await?
        .batch_execute(
            "CREATE TABLE IF NOT EXISTS downtime (id bigserial PRIMARY KEY, at timestamptz DEFAULT now())",
        )
        .await?;

    let mut meter = Meter {
        floor: Duration::from_millis(options.floor_ms),
        last_ack: Instant::now(),
        acked: 0,
        errors: 0,
        gaps: Vec::new(),
        nodes: Vec::new(),
    };
    let limit = Duration::from_secs(options.seconds.unwrap_or(u64::from(u32::MAX)));
    tokio::select! {
        _ = timeout(limit, measure(&pool, &mut meter)) => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    println!("{}", meter.summary());
    pool.close().await?;
    Ok(())
}

async fn measure(pool: &LeaderPool, meter: &mut Meter) {
    loop {
        match insert(pool).await {
            Ok(node) => meter.acknowledged(&node),
            Err(error) => {
                meter.errors += 1;
                eprintln!("{error:#}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

/// One insert; tells which node took it.
async fn insert(pool: &LeaderPool) -> anyhow::Result<String> {
    let client = pool.write().await?;
    let statement = client.prepare_cached("INSERT INTO downtime DEFAULT VALUES").await?;
    match timeout(Duration::from_secs(5), client.execute(&statement, &[])).await {
        Ok(Ok(_)) => Ok(client.node().to_owned()),
        Ok(Err(error)) => Err(anyhow::Error::from(error).context(match client.end_cause() {
            Some(cause) => format!("on {}: {cause}", client.node()),
            None => format!("on {}", client.node()),
        })),
        Err(_) => anyhow::bail!("on {}: no answer within 5 s", client.node()),
    }
}
