//! What the rest of the agent tells this room: plain values, already read, checked and translated.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leaderpool::config::Secret;

/// Everything there is to know about one server. Made from `patroni.yml` and the dynamic configuration; a new
/// value replaces the old as a whole.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// The member's name: what a standby calls itself to its primary, and what its slot is named after.
    pub name: String,
    /// The cluster's name: `cluster_name`, and the last argument of callbacks.
    pub scope: String,
    /// Where PostgreSQL's programs are; the PATH and `/usr/lib/postgresql/*/bin` are searched where it is not set.
    pub bin_dir: Option<PathBuf>,
    /// The data directory, absolute.
    pub data_dir: PathBuf,
    /// Where `postgresql.conf` lies; the data directory where it is not set.
    pub config_dir: Option<PathBuf>,
    /// A configuration file to include in place of `postgresql.base.conf`.
    pub custom_conf: Option<PathBuf>,
    /// `listen_addresses`.
    pub listen_addresses: String,
    /// `port`.
    pub port: u16,
    /// How the agent connects to its own server: tried in this order.
    pub local: Vec<LocalAccess>,
    /// The database the agent connects to.
    pub database: String,
    /// The superuser the agent works as.
    pub superuser: Account,
    /// The account standbys replicate as.
    pub replication: Account,
    /// The account of `pg_rewind`; the superuser where it is not set.
    pub rewind: Option<Account>,
    /// The password file that standbys use; written by the agent, mode 0600.
    pub pgpass: PathBuf,
    /// The server's parameters, translated to its version. Recovery parameters belong into `recovery`.
    pub parameters: BTreeMap<String, String>,
    /// The lines of `pg_hba.conf`; where not set, the file is left alone.
    pub pg_hba: Option<Vec<String>>,
    /// The lines of `pg_ident.conf`; where not set, the file is left alone.
    pub pg_ident: Option<Vec<String>>,
    /// Parameters of recovery, such as `restore_command`, `archive_cleanup_command` and
    /// `recovery_min_apply_delay`. Those that name an upstream or a target are refused here.
    pub recovery: BTreeMap<String, String>,
    /// The account that PostgreSQL runs as where the agent is root; `postgres` where it is not set.
    pub os_user: Option<String>,
    /// Where the server's own output goes.
    pub log: ServerLog,
    /// The longest that a start, a stop or a reload is waited for where the caller names no deadline.
    pub pg_ctl_timeout: Duration,
    /// The longest that the agent's own statements may take.
    pub statement_timeout: Duration,
    /// Options for `pg_basebackup`.
    pub basebackup: Vec<ToolOption>,
    /// What is run on the server's events.
    pub callbacks: CallbackCommands,
}

impl ServerSettings {
    /// The directory with `postgresql.conf`.
    #[must_use]
    pub fn config_dir(&self) -> &Path {
        self.config_dir.as_deref().unwrap_or(&self.data_dir)
    }

    /// The account that `pg_rewind` connects as.
    #[must_use]
    pub fn rewind_account(&self) -> &Account {
        self.rewind.as_ref().unwrap_or(&self.superuser)
    }

    /// A parameter's value.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }
}

/// An account of the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub username: String,
    /// Its password, where it has one.
    pub password: Option<Secret>,
    /// Further libpq keywords for connections as this account: `sslmode`, `sslrootcert` and the like.
    pub options: BTreeMap<String, String>,
}

impl Account {
    /// An account with a password.
    #[must_use]
    pub fn new(username: impl Into<String>, password: impl Into<Secret>) -> Self {
        Self {
            username: username.into(),
            password: Some(password.into()),
            options: BTreeMap::new(),
        }
    }
}

/// One way to the agent's own server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalAccess {
    /// By the Unix socket in this directory.
    Socket(PathBuf),
    /// By TCP, to this host, unencrypted.
    Tcp(String),
}

/// Where the server's standard output and error go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerLog {
    /// To wherever the agent's go. Errors at start can then only be read there.
    Inherit,
    /// To the end of this file. The agent quotes its last lines when a start fails.
    File(PathBuf),
}

/// A server to replicate from, copy from or rewind to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// The member's name, for messages.
    pub name: String,
    /// Its host; a comma-separated list where any of several will do.
    pub host: String,
    /// Its port, or ports as a list in step with the hosts.
    pub port: String,
    /// The slot to use there, where one is to be used.
    pub slot: Option<String>,
    /// Further libpq keywords that override those of the account (a standby cluster's remote leader has some).
    pub options: BTreeMap<String, String>,
}

impl Upstream {
    /// A member at an address.
    #[must_use]
    pub fn new(name: impl Into<String>, host: impl Into<String>, port: u16) -> Self {
        Self {
            name: name.into(),
            host: host.into(),
            port: port.to_string(),
            slot: None,
            options: BTreeMap::new(),
        }
    }

    /// The same with a slot.
    #[must_use]
    pub fn with_slot(mut self, slot: impl Into<String>) -> Self {
        self.slot = Some(slot.into());
        self
    }
}

/// An option of one of PostgreSQL's programs, in its long form and without the dashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolOption {
    /// Its name, such as `data-checksums`.
    pub name: String,
    /// Its value, where it takes one.
    pub value: Option<String>,
}

impl ToolOption {
    /// An option without a value.
    #[must_use]
    pub fn flag(name: impl Into<String>) -> Self {
        Self { name: name.into(), value: None }
    }

    /// An option with a value.
    #[must_use]
    pub fn value(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self { name: name.into(), value: Some(value.into()) }
    }

    /// As an argument.
    #[must_use]
    pub fn argument(&self) -> String {
        match &self.value {
            Some(value) => format!("--{}={value}", self.name),
            None => format!("--{}", self.name),
        }
    }
}

/// The commands of callbacks: each is split into words as a shell would, and gets the action, the role and the
/// cluster's name as further arguments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallbackCommands {
    /// After the server was started.
    pub on_start: Option<String>,
    /// After it was stopped.
    pub on_stop: Option<String>,
    /// After it was restarted.
    pub on_restart: Option<String>,
    /// After its configuration was reloaded.
    pub on_reload: Option<String>,
    /// After it was promoted or demoted.
    pub on_role_change: Option<String>,
    /// The longest a callback may run before it is killed; Patroni knows no such limit, so choose it long.
    pub timeout: Option<Duration>,
}
