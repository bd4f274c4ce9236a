//! PostgreSQL: where its programs are, the accounts, and connections for looking at it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio_postgres::{Client, NoTls};

/// The superuser and its password.
pub const SUPERUSER: (&str, &str) = ("postgres", "postgres_password");
/// The replication account.
pub const REPLICATOR: (&str, &str) = ("replicator", "replicator_password");
/// An account that may create roles and databases.
pub const ADMIN: (&str, &str) = ("admin", "admin");
/// The application's database.
pub const DATABASE: &str = "eda_backend";

const OLDEST: u32 = 14;

/// Finds PostgreSQL's programs: `TESTBED_PG_BIN`, else the newest below `/usr/lib/postgresql`, else the PATH.
///
/// # Errors
/// When there is none of version 14 or later.
pub fn find_bin_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("TESTBED_PG_BIN") {
        let dir = PathBuf::from(dir);
        if !dir.join("postgres").is_file() {
            bail!("TESTBED_PG_BIN is {}, which has no program `postgres`", dir.display());
        }
        return Ok(dir);
    }
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = installed
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path())))
        .filter(|(version, path)| *version >= OLDEST && path.join("bin/postgres").is_file())
        .max();
    if let Some((_, path)) = newest {
        return Ok(path.join("bin"));
    }
    find_program("postgres")
        .and_then(|path| path.canonicalize().ok()?.parent().map(Path::to_owned))
        .with_context(|| {
            format!("no PostgreSQL {OLDEST} or later found: install postgresql, or set TESTBED_PG_BIN to its bin directory")
        })
}

/// Looks a program up in the PATH and where system programs are.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(name)).find(|p| p.is_file())
}

/// The libpq-style connection string of a server on this machine.
#[must_use]
pub fn conninfo(port: u16, dbname: &str) -> String {
    let (user, password) = SUPERUSER;
    format!("host=127.0.0.1 port={port} user={user} password={password} dbname={dbname}")
}

/// Connects as the superuser. The connection's task ends when the client is dropped.
///
/// # Errors
/// When there is no connection within `deadline`.
pub async fn connect(port: u16, dbname: &str, deadline: Duration) -> Result<Client> {
    let conninfo = format!("{} application_name=testbed", conninfo(port, dbname));
    let connecting = tokio_postgres::connect(&conninfo, NoTls);
    let (client, connection) = tokio::time::timeout(deadline, connecting)
        .await
        .map_err(|_| anyhow!("PostgreSQL on port {port} takes no connection within {deadline:?}"))?
        .map_err(|error| anyhow!("PostgreSQL on port {port}: {}", describe(&error)))?;
    tokio::spawn(async move {
        // Its end is seen by whoever uses the client.
        let _ = connection.await;
    });
    Ok(client)
}

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerState {
    /// Whether it is a standby (or still recovering).
    pub in_recovery: bool,
    /// The timeline it writes, or receives.
    pub timeline: Option<i32>,
    /// Whether it receives a stream from its primary.
    pub streaming: bool,
}

/// Asks a server for its state.
///
/// # Errors
/// When it does not answer within `deadline`.
pub async fn server_state(port: u16, deadline: Duration) -> Result<ServerState> {
    const QUERY: &str = "select r, case when r then \
        (select received_tli from pg_stat_wal_receiver) else \
        ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int end, \
        exists (select from pg_stat_wal_receiver where status = 'streaming') \
        from (select pg_is_in_recovery() r offset 0) s";
    let ask = async {
        let client = connect(port, "postgres", deadline).await?;
        let row = client.query_one(QUERY, &[]).await.map_err(|e| anyhow!(describe(&e)))?;
        Ok(ServerState { in_recovery: row.get(0), timeline: row.get(1), streaming: row.get(2) })
    };
    tokio::time::timeout(deadline, ask)
        .await
        .map_err(|_| anyhow!("PostgreSQL on port {port} does not answer within {deadline:?}"))?
}

/// tokio-postgres's own text says only "db error": the server's words are in the source.
pub(crate) fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}
