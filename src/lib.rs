//! Client-side high availability for PostgreSQL.
//!
//! A [`LeaderPool`] follows the leader key that Patroni (or `leaderpool-agent`) keeps in etcd, and hands out
//! pooled connections: [`write`](LeaderPool::write) to the leader, [`read`](LeaderPool::read) to a replica.
//! A member is written to only when the leader key names it *and* the member itself says that it is the
//! primary; when either stops being true, writers wait for the next one instead of failing.
//!
//! ```no_run
//! use std::time::Duration;
//! use leaderpool::{Config, LeaderPool, ReadPolicy};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let pool = LeaderPool::connect(Config::from_file("leaderpool.toml")?).await?;
//!
//! let client = pool.write().await?;
//! client.execute("INSERT INTO events (kind) VALUES ($1)", &[&"signup"]).await?;
//!
//! let rows = pool.read().await?.query("SELECT kind FROM events", &[]).await?;
//! let fresh = ReadPolicy::at_most_behind(Duration::from_secs(1));
//! let rows = pool.read_with(fresh).await?.query("SELECT kind FROM events", &[]).await?;
//!
//! pool.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! The rooms of the crate, from the outside in: `pool` and `client` are what a caller holds; [`routing`]
//! chooses; [`topology`] knows who leads; [`node`] is one member with its connections; [`discovery`]
//! watches; [`patroni`] is the contract on the wire. The pure ones (`patroni`, `topology`, `routing`) do no
//! IO and take the time as a parameter.

mod checkout;
mod client;
pub mod config;
mod describe;
pub mod discovery;
mod error;
mod failure;
mod history;
mod hold;
mod lineage;
pub mod node;
pub mod patroni;
mod pool;
pub mod report;
pub mod retry;
pub mod routing;
pub mod service;
pub mod settle;
mod supervisor;
pub mod telemetry;
mod tell;
mod tls;
pub mod token;
pub mod topology;
mod tx;

pub use client::{Client, Role};
pub use config::{Config, ConfigBuilder, ConfigError};
pub use error::{CheckoutError, CloseError, ConnectError};
pub use failure::{OperationError, TransactionError};
pub use history::LostWrites;
pub use node::DialError;
pub use pool::LeaderPool;
pub use report::Report;
pub use retry::Outcome;
pub use routing::{Ineligible, ReadPolicy};
pub use service::{ReadService, TransactionService, WriteService};
pub use token::CausalToken;
pub use topology::{Epoch, TopologyEvent};
pub use tx::{Committed, Isolation, Tx, TxOptions};

// The drivers' types are part of this API: their versions are the ones to use beside it.
pub use deadpool_postgres;
pub use tokio_postgres;

/// The README's code is compiled as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
