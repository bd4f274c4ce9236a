//! Making a standby's data: by `pg_basebackup`, or by the user's own methods.

mod place;

use std::time::Duration;

pub(crate) use place::Place;
pub use place::PlaceError;
use tokio::time::{Instant, sleep};

use super::binaries::{Tool, ToolError};
use super::error::FileError;
use super::quote::{WordsError, split_words};
use super::rejoin::{empty, forget_interruption};
use super::settings::{ToolOption, Upstream};
use super::site::Site;

/// How often `pg_basebackup` is tried.
const ATTEMPTS: u32 = 3;
/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(5);

/// Options of `pg_basebackup` that are the agent's to set, or that would make something else than a data directory.
const NOT_ALLOWED: [&str; 12] = [
    "pgdata",
    "format",
    "wal-method",
    "xlog-method",
    "gzip",
    "version",
    "dbname",
    "host",
    "port",
    "username",
    "password",
    "target",
];

/// A way to make a standby's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaMethod {
    /// `pg_basebackup`.
    Basebackup,
    /// A command of the user's.
    Custom(CustomMethod),
}

/// A user's own method, as `create_replica_methods` names it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CustomMethod {
    /// Its name, for messages.
    pub name: String,
    /// The command, split into words as a shell would.
    pub command: String,
    /// Arguments for it, each given as `--NAME=VALUE`.
    pub arguments: Vec<(String, String)>,
    /// Whether it gets those alone, and neither `--scope`, `--role`, `--datadir` nor `--connstring`.
    pub no_params: bool,
    /// Whether it works without another server.
    pub no_leader: bool,
    /// Whether what is in the data directory is left there for it.
    pub keep_data: bool,
}

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloneError {
    /// There is no place for it.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A command is not a command.
    #[error("create_replica_methods: {name}: {source}")]
    Words {
        /// The method.
        name: String,
        /// Why not.
        source: WordsError,
    },
    /// There is no method left that could be tried.
    #[error(
        "no method of create_replica_methods works without another server (none has no_leader), and there is none"
    )]
    NoMethod,
    /// All methods have failed.
    #[error("cannot make a copy{}: {}", from.as_ref().map_or(String::new(), |f| format!(" of {f}")), failures.join("; "))]
    Failed {
        /// Whom to copy.
        from: Option<String>,
        /// Each method, and why it failed.
        failures: Vec<String>,
    },
}

/// A copy that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cloned {
    /// By which method.
    pub method: String,
    /// How long it took.
    pub took: Duration,
}

/// Makes a standby's data, by the first of the methods that works. The data directory must hold none. Cancel-safe: the
/// program is killed, and what it left is removed by the next attempt.
///
/// # Errors
/// When none works.
pub async fn clone(
    site: &Site,
    from: Option<&Upstream>,
    methods: &[ReplicaMethod],
    deadline: Instant,
) -> Result<Cloned, CloneError> {
    let begin = Instant::now();
    let mut failures = Vec::new();
    for method in methods {
        let (name, outcome) = match (method, from) {
            (ReplicaMethod::Basebackup, None) => continue,
            (ReplicaMethod::Custom(custom), None) if !custom.no_leader => continue,
            (ReplicaMethod::Basebackup, Some(upstream)) => {
                ("pg_basebackup", basebackup(site, upstream, deadline).await)
            }
            (ReplicaMethod::Custom(method), _) => {
                (method.name.as_str(), custom(site, from, method, deadline).await)
            }
        };
        match outcome {
            Ok(Ok(())) => {
                site.files().restore_copies()?;
                forget_interruption(site)?;
                let took = begin.elapsed();
                tracing::info!(method = name, ?took, "the copy is made");
                return Ok(Cloned { method: name.to_owned(), took });
            }
            Ok(Err(error)) => {
                tracing::error!(method = name, %error, "the copy failed");
                failures.push(format!("{name}: {error}"));
            }
            // These stand in the way of every method.
            Err(error) => return Err(error),
        }
    }
    if failures.is_empty() {
        return Err(CloneError::NoMethod);
    }
    Err(CloneError::Failed { from: from.map(|upstream| upstream.name.clone()), failures })
}

type Attempt = Result<Result<(), ToolError>, CloneError>;

async fn basebackup(site: &Site, upstream: &Upstream, deadline: Instant) -> Attempt {
    let place = Place::make(site.data_dir(), &site.identity)?;
    let arguments = basebackup_arguments(&site.settings.basebackup, upstream.slot.as_deref());
    let account = &site.settings.replication;
    let conninfo = site.conninfo(upstream, account, &[("application_name", &site.settings.name)]);
    let mut last = Ok(());
    for attempt in 1..=ATTEMPTS {
        let left = deadline.saturating_duration_since(Instant::now());
        let tool = site
            .connecting_tool("pg_basebackup", account)
            // A replication connection takes no statement_timeout.
            .env("PGOPTIONS", "")
            .arg("--pgdata")
            .arg(place.dir())
            .args(["--wal-method=stream", "--no-password", "--dbname", &conninfo])
            .args(&arguments)
            .deadline(left.max(Duration::from_secs(1)));
        last = tool.run().await.map(|_| ());
        match &last {
            Ok(()) => {
                place.finish()?;
                return Ok(Ok(()));
            }
            Err(error) => tracing::warn!(attempt, of = ATTEMPTS, %error, "pg_basebackup failed"),
        }
        place.clear().await?;
        if attempt == ATTEMPTS || Instant::now() + PAUSE >= deadline {
            break;
        }
        sleep(PAUSE).await;
    }
    place.give_up().await;
    Ok(last)
}

fn basebackup_arguments(options: &[ToolOption], slot: Option<&str>) -> Vec<String> {
    let mut arguments = Vec::new();
    for option in options {
        let name = option.name.as_str();
        let on_the_client = name == "compress"
            && !option.value.as_deref().is_some_and(|value| value.starts_with("server"));
        if NOT_ALLOWED.contains(&name) || on_the_client {
            tracing::warn!(option = name, "this option of basebackup is not allowed, and left out");
        } else {
            arguments.push(option.argument());
        }
    }
    let has = |name: &str| options.iter().any(|option| option.name == name);
    if !has("checkpoint") {
        // Otherwise the copy begins only with the upstream's next checkpoint, minutes later.
        arguments.push("--checkpoint=fast".to_owned());
    }
    if let Some(slot) = slot.filter(|_| !has("slot") && !has("no-slot")) {
        // It is the standby's own, which keeps the WAL until the standby comes for it.
        arguments.push(format!("--slot={slot}"));
    }
    arguments
}

async fn custom(
    site: &Site,
    from: Option<&Upstream>,
    method: &CustomMethod,
    deadline: Instant,
) -> Attempt {
    let data_dir = site.data_dir();
    if method.keep_data {
        site.identity.prepare_data_dir(data_dir).map_err(PlaceError::from)?;
    } else {
        // Only the check and the clearing are wanted: the command is told the data directory itself.
        Place::make(data_dir, &site.identity)?.give_up().await;
    }
    let mut words = split_words(&method.command)
        .map_err(|source| CloneError::Words { name: method.name.clone(), source })?
        .into_iter();
    let mut tool = Tool::new(words.next().unwrap_or_default(), &site.identity).args(words);
    for (name, value) in &method.arguments {
        tool = tool.arg(format!("--{name}={value}"));
    }
    let mut conninfo = String::new();
    if let Some(upstream) = from {
        site.files().write_pgpass(upstream)?;
        conninfo = site.conninfo(upstream, &site.settings.replication, &[]);
        tool = tool.env("PGPASSFILE", &site.settings.pgpass);
    }
    if !method.no_params {
        tool = tool
            .arg(format!("--scope={}", site.settings.scope))
            .arg("--role=replica")
            .arg(format!("--datadir={}", data_dir.display()))
            .arg(format!("--connstring={conninfo}"));
    }
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
    let outcome = tool.keep_environment().deadline(left).run().await.map(|_| ());
    if outcome.is_err() && !method.keep_data {
        let dir = data_dir.to_owned();
        let _ = tokio::task::spawn_blocking(move || empty(&dir)).await;
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_basebackup() {
        let options = [
            ToolOption::value("max-rate", "100M"),
            ToolOption::flag("verbose"),
            ToolOption::value("pgdata", "/elsewhere"),
            ToolOption::value("compress", "client-gzip"),
            ToolOption::value("compress", "server-gzip"),
        ];
        let arguments = basebackup_arguments(&options, Some("pg_1"));
        assert_eq!(
            arguments,
            [
                "--max-rate=100M",
                "--verbose",
                "--compress=server-gzip",
                "--checkpoint=fast",
                "--slot=pg_1"
            ]
        );
        let own = [ToolOption::value("checkpoint", "spread"), ToolOption::flag("no-slot")];
        assert_eq!(basebackup_arguments(&own, Some("x")), ["--checkpoint=spread", "--no-slot"]);
    }
}
