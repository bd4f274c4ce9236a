//! Configuration: a TOML file, any other serde format, the builder, or `LEADERPOOL_…` variables.
//!
//! ```toml
//! [cluster]
//! scope = "postgres-cluster"      # Patroni's `scope`
//! namespace = "/db/"              # Patroni's `namespace`
//!
//! [etcd]
//! endpoints = ["http://127.0.0.1:2379"]
//!
//! [postgres]
//! user = "app"
//! password = "…"
//! dbname = "eda_backend"
//! ```
//!
//! Durations are text with a unit (`"250ms"`, `"5s"`, `"30m"`). Unknown fields and impossible values are
//! refused by name; nothing is guessed.

mod builder;
mod duration;
mod env;
mod parse;
mod secret;
mod sections;
#[cfg(test)]
mod tests;
mod validate;

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

pub use builder::ConfigBuilder;
pub use secret::Secret;
pub use sections::{
    BreakerConfig, ClusterConfig, EtcdConfig, FixedConfig, PoolConfig, PostgresConfig, ProbeConfig,
    ReadConfig, RestConfig, RetryConfig, SslMode, WhenNone,
};

/// Everything a [`LeaderPool`](crate::LeaderPool) needs to know.
///
/// At least one source of the topology is needed: `etcd`, `rest`, both (REST stands in while etcd is
/// away), or `fixed` alone.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// Which cluster.
    #[serde(default)]
    pub cluster: ClusterConfig,
    /// The store that holds the cluster's keys. The main source wherever it is given.
    #[serde(default)]
    pub etcd: Option<EtcdConfig>,
    /// The members' REST API: the main source without `etcd` (clusters on Consul, ZooKeeper or
    /// Kubernetes), its stand-in otherwise. Where `etcd` is given and this is not, the stand-in asks the
    /// addresses that the members published.
    #[serde(default)]
    pub rest: Option<RestConfig>,
    /// A list of hosts, for clusters without Patroni; used alone.
    #[serde(default)]
    pub fixed: Option<FixedConfig>,
    /// How to connect to PostgreSQL.
    #[serde(default)]
    pub postgres: PostgresConfig,
    /// Sizes and deadlines of the pool.
    #[serde(default)]
    pub pool: PoolConfig,
    /// How often members are asked how they are.
    #[serde(default)]
    pub probe: ProbeConfig,
    /// When reads are kept off a member that fails.
    #[serde(default)]
    pub breaker: BreakerConfig,
    /// Where reads go unless the call says otherwise.
    #[serde(default)]
    pub read: ReadConfig,
    /// How often work is tried again.
    #[serde(default)]
    pub retry: RetryConfig,
}

/// Why a configuration was refused. The message names the field, or the variable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The text is not TOML, or not this configuration.
    #[error("{path}: {message}")]
    Parse {
        /// The file, or what stands in its place.
        path: String,
        /// What is wrong, with line and field.
        message: String,
    },
    /// A value is impossible, or impossible beside another one.
    #[error("configuration field `{field}`: {problem}")]
    Field {
        /// The field, as `section.name`.
        field: String,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// An environment variable means nothing, or has an impossible value.
    #[error("environment variable {name}: {problem}")]
    Env {
        /// The variable.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl ConfigError {
    pub(crate) fn field(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Field { field: field.into(), problem: problem.into() }
    }
}

impl Config {
    /// Starts a configuration in code.
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder::default()
    }

    /// Reads a TOML file.
    ///
    /// # Errors
    /// Where the file cannot be read, is not TOML, or says something impossible.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Self::load(path.as_ref(), Vec::new())
    }

    /// Reads a TOML file, then lets `LEADERPOOL_…` variables override it: `LEADERPOOL_POOL_MAX_SIZE=32`
    /// sets `pool.max_size`, `LEADERPOOL_ETCD_ENDPOINTS` takes a list with commas.
    ///
    /// # Errors
    /// As [`from_file`](Self::from_file); and where a variable of that prefix names no field or is not
    /// UTF-8.
    pub fn from_file_and_env(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Self::load(path.as_ref(), env::variables()?)
    }

    /// Reads `LEADERPOOL_…` variables alone.
    ///
    /// # Errors
    /// Where a variable of that prefix names no field or is not UTF-8, or the whole says something
    /// impossible.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_table(toml::Table::new(), "the environment", env::variables()?)
    }

    /// Reads TOML text.
    ///
    /// # Errors
    /// Where the text is not TOML, or says something impossible.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        Self::from_toml_and(text, "the TOML text", Vec::new())
    }

    /// `pool.cut_dead_after`, or its default; zero for never.
    pub(crate) fn cut_dead_after(&self) -> Duration {
        self.pool.cut_dead_after.unwrap_or_else(|| self.probe.dead_after())
    }

    fn load(path: &Path, overrides: Vec<(String, String)>) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: name.clone(), source })?;
        Self::from_toml_and(&text, &name, overrides)
    }
}
