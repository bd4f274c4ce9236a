//! A new cluster: `initdb` or the user's own method, then the accounts.

mod accounts;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

pub use accounts::{AccountError, NewAccount};

use super::binaries::{Tool, ToolError};
use super::clone::{Place, PlaceError};
use super::error::FileError;
use super::files::{pgpass, remove_if_there, write_atomically};
use super::quote::{WordsError, conninfo, split_words};
use super::rejoin::forget_interruption;
use super::session::Session;
use super::settings::{LocalAccess, ServerSettings, ToolOption};
use super::site::Site;

/// Options of `initdb` that are the agent's to set.
const NOT_ALLOWED: [&str; 8] =
    ["pgdata", "username", "pwfile", "pwprompt", "sync-only", "nosync", "no-sync", "version"];

/// How a new cluster is made.
#[derive(Debug, Clone, Default)]
pub struct BootstrapSettings {
    /// Options for `initdb`.
    pub initdb: Vec<ToolOption>,
    /// A method of the user's own, in place of `initdb`.
    pub custom: Option<CustomBootstrap>,
    /// Lines to add to `pg_hba.conf`, where it is not written as a whole.
    pub pg_hba: Vec<String>,
    /// Accounts to make.
    pub users: Vec<NewAccount>,
    /// A command to run when all is set up; it gets a connection string as its last argument.
    pub post_bootstrap: Option<String>,
}

/// A user's own way to make a cluster's data: mostly to restore a backup.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CustomBootstrap {
    /// Its name, for messages.
    pub name: String,
    /// The command, split into words as a shell would.
    pub command: String,
    /// Arguments for it, each given as `--NAME=VALUE`.
    pub arguments: Vec<(String, String)>,
    /// Whether it gets those alone, and neither `--scope` nor `--datadir`.
    pub no_params: bool,
    /// Whether what it wrote about recovery is left as it is.
    pub keep_existing_recovery_conf: bool,
    /// Parameters of recovery, with which the data are first started.
    pub recovery_conf: BTreeMap<String, String>,
}

/// Why there is no new cluster.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootstrapError {
    /// There is no place for it.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// An option is the agent's.
    #[error("the option {0:?} of initdb is set by the agent: take it out of bootstrap.initdb")]
    NotAllowed(String),
    /// A command is not a command.
    #[error("{what}: {source}")]
    Words {
        /// Which setting.
        what: String,
        /// Why not.
        source: WordsError,
    },
    /// A program failed.
    #[error("{what}: {source}")]
    Tool {
        /// What it was to do.
        what: String,
        /// What it said.
        #[source]
        source: ToolError,
    },
    /// An account was not made.
    #[error(transparent)]
    Account(#[from] AccountError),
}

/// Makes a new cluster's data. They are built beside the data directory and put there when they are whole. Cancel-safe.
///
/// # Errors
/// When there are data already, or it fails.
pub async fn create_data(
    site: &Site,
    settings: &BootstrapSettings,
    deadline: Instant,
) -> Result<(), BootstrapError> {
    let begin = Instant::now();
    match &settings.custom {
        Some(method) => custom(site, method, deadline).await?,
        None => initdb(site, &settings.initdb, deadline).await?,
    }
    site.files().restore_copies()?;
    site.files().append_hba(&settings.pg_hba)?;
    forget_interruption(site)?;
    tracing::info!(took = ?begin.elapsed(), "the new cluster's data are made");
    Ok(())
}

async fn initdb(
    site: &Site,
    options: &[ToolOption],
    deadline: Instant,
) -> Result<(), BootstrapError> {
    if let Some(option) = options.iter().find(|o| NOT_ALLOWED.contains(&o.name.as_str())) {
        return Err(BootstrapError::NotAllowed(option.name.clone()));
    }
    let place = Place::make(site.data_dir(), &site.identity)?;
    let superuser = &site.settings.superuser;
    let mut tool = site
        .tool("initdb")
        .arg("--pgdata")
        .arg(place.dir())
        .arg(format!("--username={}", superuser.username))
        .args(options.iter().map(ToolOption::argument));
    let mut password = None;
    if let Some(secret) = &superuser.password {
        let path = std::env::temp_dir().join(format!("leaderpool-{:016x}", rand::random::<u64>()));
        let file = password.insert(Temporary(path));
        write_atomically(&file.0, secret.expose(), 0o600, &site.identity)?;
        tool = tool.arg(format!("--pwfile={}", file.0.display()));
    }
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
    let outcome = tool.keep_locale().deadline(left).run().await;
    drop(password);
    match outcome {
        Ok(_) => Ok(place.finish()?),
        Err(source) => {
            place.give_up().await;
            Err(BootstrapError::Tool { what: "cannot make a new cluster".to_owned(), source })
        }
    }
}

/// A file that goes when this does.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = remove_if_there(&self.0);
    }
}

async fn custom(
    site: &Site,
    method: &CustomBootstrap,
    deadline: Instant,
) -> Result<(), BootstrapError> {
    // Only the check and the clearing are wanted: the command is told the data directory itself.
    Place::make(site.data_dir(), &site.identity)?.give_up().await;
    let what = format!("bootstrap.{}", method.name);
    let mut words = split_words(&method.command)
        .map_err(|source| BootstrapError::Words { what: what.clone(), source })?
        .into_iter();
    let mut tool = Tool::new(words.next().unwrap_or_default(), &site.identity).args(words);
    if !method.no_params {
        tool = tool
            .arg(format!("--scope={}", site.settings.scope))
            .arg(format!("--datadir={}", site.data_dir().display()));
    }
    for (name, value) in &method.arguments {
        tool = tool.arg(format!("--{name}={value}"));
    }
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
    let outcome = tool.keep_environment().deadline(left).run().await;
    outcome.map(|_| ()).map_err(|source| BootstrapError::Tool { what, source })
}

/// Makes the accounts and runs the user's command, on the running new primary.
///
/// # Errors
/// When one cannot be made, or the command fails.
pub async fn set_up(
    site: &Site,
    session: &Session,
    settings: &BootstrapSettings,
    deadline: Instant,
) -> Result<(), BootstrapError> {
    accounts::superuser(session, &site.settings).await?;
    if let Some(command) = &settings.post_bootstrap {
        post_bootstrap(site, command, deadline).await?;
    }
    accounts::others(session, &site.settings, &settings.users).await?;
    Ok(())
}

async fn post_bootstrap(
    site: &Site,
    command: &str,
    deadline: Instant,
) -> Result<(), BootstrapError> {
    let what = || "bootstrap.post_bootstrap".to_owned();
    let mut words = split_words(command)
        .map_err(|source| BootstrapError::Words { what: what(), source })?
        .into_iter();
    let settings = &site.settings;
    let port = settings.port.to_string();
    // A socket in the default directory is looked up as localhost.
    let hosts = format!("{},localhost", local_host(settings));
    if let Some(text) = pgpass(&hosts, &port, &settings.superuser) {
        write_atomically(&settings.pgpass, &text, 0o600, &site.identity)?;
    }
    let host = local_host(settings);
    let mut pairs = vec![("dbname", settings.database.as_str())];
    pairs.extend([("user", settings.superuser.username.as_str()), ("host", host.as_str())]);
    pairs.push(("port", port.as_str()));
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
    Tool::new(words.next().unwrap_or_default(), &site.identity)
        .args(words)
        .arg(conninfo(pairs))
        .env("PGPASSFILE", &settings.pgpass)
        .env("PGOPTIONS", "-c synchronous_commit=local -c statement_timeout=0")
        .keep_environment()
        .deadline(left)
        .run()
        .await
        .map(|_| ())
        .map_err(|source| BootstrapError::Tool { what: what(), source })
}

fn local_host(settings: &ServerSettings) -> String {
    match settings.local.first() {
        Some(LocalAccess::Socket(dir)) => dir.to_string_lossy().into_owned(),
        Some(LocalAccess::Tcp(host)) => host.clone(),
        None => "localhost".to_owned(),
    }
}
