//! A sample service on a `leaderpool`: events are written to the leader and read from the replicas, and
//! a failover makes a request slower instead of making it fail.
//!
//! ```sh
//! cargo run --example backend -- --port 9084 --config examples/backend/leaderpool.toml
//! ```
//!
//! The answer to a write carries a token, and a read that sends it back sees that write: see `token.rs`.
//! `README.md` beside this file has a curl line for each route, and says what a failover looks like.

mod deadline;
mod error;
mod events;
mod extract;
mod metrics;
mod observe;
mod routes;
mod schema;
mod shutdown;
mod statement;
mod token;

use std::future::IntoFuture;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use axum::http::HeaderValue;
use clap::{Parser, ValueEnum};
use leaderpool::{Config, LeaderPool, ReadPolicy, ReadService, TransactionService, TxOptions};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::deadline::Limits;
use crate::metrics::Metrics;
use crate::schema::Schema;

/// A sample service: stores events in PostgreSQL, wherever its leader is.
///
/// The answer to POST /events carries the header `x-causal-token`. A read that sends it back, to any instance, sees that
/// event; several are sent with commas between. GET /ready says whether writes and reads would be served now.
#[derive(Parser)]
struct Options {
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// The port to listen on.
    #[arg(long, default_value_t = 9084)]
    port: u16,
    /// The pool's configuration; LEADERPOOL_<SECTION>_<FIELD> variables win over it.
    #[arg(long, default_value = "examples/backend/leaderpool.toml")]
    config: PathBuf,
    /// The name in the header `x-instance` [default: app-PORT].
    #[arg(long)]
    instance: Option<HeaderValue>,
    /// How long a request may take in all; a write may be held for most of it during a failover.
    #[arg(long, default_value = "40s", value_parser = duration)]
    request_timeout: Duration,
    /// Writes that may be under way, or wait for a leader, at once; one more is refused with 503.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..))]
    max_writes: u16,
    /// How long the requests in flight may take after SIGTERM or Ctrl-C, before those that still wait
    /// for a connection are refused; `pool.close_timeout` comes on top for the others.
    #[arg(long, default_value = "15s", value_parser = duration)]
    shutdown_timeout: Duration,
    /// How the log on stderr is written.
    #[arg(long, default_value = "text")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// An object a line. The end of a span has one too: that of a failover tells all of it.
    Json,
}

impl LogFormat {
    fn init(self) {
        let log = tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()));
        match self {
            LogFormat::Text => log.init(),
            LogFormat::Json => log.json().with_span_events(FmtSpan::CLOSE).init(),
        }
    }
}

/// From 100 ms to an hour, as `250ms`, `40s`, `2m`.
fn duration(text: &str) -> Result<Duration, String> {
    let value = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&value) {
        Ok(value)
    } else {
        Err("must be from 100ms to 1h".into())
    }
}

/// What the handlers share. Cloning is cheap.
#[derive(Clone)]
struct App {
    pool: LeaderPool,
    /// Ready where there is a leader.
    writes: TransactionService,
    /// Ready where the section `[read]` finds a member to read from.
    reads: ReadService,
    limits: Limits,
    schema: Schema,
    metrics: Metrics,
    instance: HeaderValue,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    options.log_format.init();
    let config = Config::from_file_and_env(&options.config)?;
    let limits = Limits::new(options.request_timeout, config.pool.write_timeout);
    let policy = ReadPolicy::from_config(&config.read);
    let metrics = Metrics::install()?;

    // From here on a signal is an orderly end.
    let mut signals = shutdown::Signals::install()?;
    let listener = TcpListener::bind((options.host.as_str(), options.port))
        .await
        .with_context(|| format!("cannot listen on {}:{}", options.host, options.port))?;
    let address = listener.local_addr()?;
    let instance = match options.instance {
        Some(name) => name,
        None => HeaderValue::from_str(&format!("app-{}", address.port()))?,
    };

    // Lazy: this process starts, and says that it is not ready, while the cluster is away.
    let pool = LeaderPool::connect_lazy(config)?;
    let schema = Schema::set_up(pool.clone());
    let writes = pool.transaction_service(TxOptions::new());
    let reads = pool.read_service(policy);
    let app = App {
        pool: pool.clone(),
        writes,
        reads,
        limits,
        schema,
        metrics,
        instance: instance.clone(),
    };

    let stop = CancellationToken::new();
    let server = axum::serve(listener, routes::router(app, options.max_writes.into()))
        .with_graceful_shutdown(stop.clone().cancelled_owned())
        .into_future();
    tracing::info!(
        ?instance,
        "listening on http://{address}; try: curl -i http://{address}/events -H 'content-type: \
         application/json' -d '{{\"kind\": \"signup\", \"payload\": {{\"user\": 7}}}}'"
    );
    shutdown::serve_until(server, &mut signals, &stop, &pool, options.shutdown_timeout).await
}
