//! The agent's connection to its own server.
//!
//! One connection is kept open and shared: questions asked at the same time are pipelined on it. It is made again when
//! it is lost. Whatever outlives its deadline is given up with its connection, since the answer would come later and be taken
//! for another's.

mod settings;
mod state;

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Row};

pub use settings::{PendingRestart, RejectedLine};
pub use state::{Receiver, Sender, ServerState, SlotState};

use super::binaries::Version;
use super::error::words;
use super::settings::{LocalAccess, ServerSettings};

/// The longest that making a connection may take: on the same machine it takes milliseconds.
const CONNECT: Duration = Duration::from_secs(3);

/// The agent's connection to its own server.
#[derive(Debug)]
pub struct Session {
    version: Version,
    target: RwLock<Arc<Target>>,
    link: Mutex<Option<Arc<Link>>>,
}

/// Where and as whom to connect.
struct Target {
    ways: Vec<(LocalAccess, tokio_postgres::Config)>,
    statement_timeout: Duration,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ways.iter().map(|(way, _)| way)).finish()
    }
}

/// A connection with the task that drives it.
#[derive(Debug)]
pub(crate) struct Link {
    client: Client,
    driver: JoinHandle<()>,
    state_query: tokio::sync::OnceCell<tokio_postgres::Statement>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Why the server was not asked, or did not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// No connection.
    #[error("cannot connect to PostgreSQL as {user}: {}{}", tried.join("; "), connect_hint(code.as_ref()))]
    Connect {
        /// As whom.
        user: String,
        /// Each way that was tried, and what came of it.
        tried: Vec<String>,
        /// The server's error code, where it gave one.
        code: Option<SqlState>,
    },
    /// The server refused, or the connection was lost.
    #[error("cannot {what}: {}", words(source))]
    Query {
        /// What was asked for.
        what: &'static str,
        /// The server's answer.
        source: tokio_postgres::Error,
    },
    /// No answer in time.
    #[error("cannot {what}: PostgreSQL has not answered within {after:?}")]
    TimedOut {
        /// What was asked for.
        what: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// The answer makes no sense.
    #[error("cannot {what}: the answer is not understood: {why}")]
    Strange {
        /// What was asked for.
        what: &'static str,
        /// Why not.
        why: String,
    },
}

impl SessionError {
    /// The server's error code, where it gave one.
    #[must_use]
    pub fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Connect { code, .. } => code.as_ref(),
            Self::Query { source, .. } => source.code(),
            Self::TimedOut { .. } | Self::Strange { .. } => None,
        }
    }

    /// Whether the server says that it starts or stops, and takes no connections.
    #[must_use]
    pub fn is_not_up(&self) -> bool {
        self.code() == Some(&SqlState::CANNOT_CONNECT_NOW)
    }
}

fn connect_hint(code: Option<&SqlState>) -> &'static str {
    match code {
        Some(code) if *code == SqlState::INVALID_PASSWORD => {
            " (the superuser's password in the configuration is not the server's)"
        }
        Some(code) if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            " (pg_hba.conf lets the superuser in neither so nor otherwise: \"peer\" works only where the agent runs as the \
             account of the same name)"
        }
        _ => "",
    }
}

impl Session {
    /// A session that connects when it is first used.
    #[must_use]
    pub fn new(settings: &ServerSettings, version: Version) -> Self {
        let target = RwLock::new(Arc::new(target(settings, version)));
        Self { version, target, link: Mutex::new(None) }
    }

    /// Goes by new settings from the next connection on, which is made for the next question.
    pub async fn update(&self, settings: &ServerSettings) {
        let new = Arc::new(target(settings, self.version));
        *self.target.write().unwrap_or_else(PoisonError::into_inner) = new;
        self.disconnect().await;
    }

    /// Closes the connection. The next question makes a new one.
    pub async fn disconnect(&self) {
        *self.link.lock().await = None;
    }

    /// The server's version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    fn target(&self) -> Arc<Target> {
        Arc::clone(&self.target.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// How long the agent's own statements may take.
    #[must_use]
    pub fn statement_timeout(&self) -> Duration {
        self.target().statement_timeout
    }

    async fn link(&self) -> Result<Arc<Link>, SessionError> {
        let mut slot = self.link.lock().await;
        if let Some(link) = slot.as_ref().filter(|link| !link.client.is_closed()) {
            return Ok(Arc::clone(link));
        }
        let link = Arc::new(connect(&self.target()).await?);
        *slot = Some(Arc::clone(&link));
        Ok(link)
    }

    /// Gives a connection up, if it is still the current one.
    async fn give_up(&self, link: &Arc<Link>) {
        let mut slot = self.link.lock().await;
        if slot.as_ref().is_some_and(|current| Arc::ptr_eq(current, link)) {
            *slot = None;
        }
    }

    /// Asks something, within the statement timeout and a little more for the way. Cancel-safe: an abandoned
    /// question is answered to nobody.
    async fn ask<T>(
        &self,
        what: &'static str,
        within: Duration,
        question: impl AsyncFnOnce(&Link) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, SessionError> {
        let link = self.link().await?;
        match timeout(within, question(&link)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(source)) => {
                if link.client.is_closed() {
                    self.give_up(&link).await;
                }
                Err(SessionError::Query { what, source })
            }
            Err(_) => {
                self.give_up(&link).await;
                Err(SessionError::TimedOut { what, after: within })
            }
        }
    }

    fn patience(&self) -> Duration {
        self.statement_timeout() + Duration::from_millis(500)
    }

    pub(crate) async fn row(
        &self,
        what: &'static str,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Row, SessionError> {
        self.ask(what, self.patience(), async |link| link.client.query_one(sql, params).await).await
    }

    pub(crate) async fn rows(
        &self,
        what: &'static str,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, SessionError> {
        self.ask(what, self.patience(), async |link| link.client.query(sql, params).await).await
    }

    /// Whether the server is in recovery.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn is_in_recovery(&self) -> Result<bool, SessionError> {
        let row = self.row("ask whether it recovers", "SELECT pg_catalog.pg_is_in_recovery()", &[]);
        Ok(row.await?.get(0))
    }

    /// Runs statements, each by itself, on a connection of their own, without a statement timeout, so that they hold nothing
    /// else up.
    /// Cancel-safe: when the future is dropped, the connection is closed, and the server gives up at its next chance.
    ///
    /// # Errors
    /// When they fail, or have not ended after `within`.
    pub async fn run_apart(
        &self,
        what: &'static str,
        statements: &[&str],
        within: Duration,
    ) -> Result<(), SessionError> {
        let link = connect(&self.target()).await?;
        let run = async {
            link.client.batch_execute("SET statement_timeout = 0").await?;
            for sql in statements {
                link.client.batch_execute(sql).await?;
            }
            Ok(())
        };
        match timeout(within, run).await {
            Ok(done) => done.map_err(|source| SessionError::Query { what, source }),
            Err(_) => {
                let _ = timeout(CONNECT, link.client.cancel_token().cancel_query(NoTls)).await;
                Err(SessionError::TimedOut { what, after: within })
            }
        }
    }

    /// Writes all that is in memory to disk: before a planned stop, so that the stop is short. It may take long.
    ///
    /// # Errors
    /// When it fails, or has not ended after `within`.
    pub async fn checkpoint(&self, within: Duration) -> Result<(), SessionError> {
        self.run_apart("write a checkpoint", &["CHECKPOINT"], within).await
    }
}

fn target(settings: &ServerSettings, version: Version) -> Target {
    let mut options = format!(
        "-c statement_timeout={} -c search_path=pg_catalog -c lock_timeout=0 \
         -c idle_in_transaction_session_timeout=0",
        settings.statement_timeout.as_millis()
    );
    if version.major >= 14 {
        options.push_str(" -c idle_session_timeout=0");
    }
    let ways = settings.local.iter().map(|way| {
        let mut config = tokio_postgres::Config::new();
        config
            .user(&settings.superuser.username)
            .dbname(&settings.database)
            .port(settings.port)
            .application_name("leaderpool-agent")
            .options(&options)
            .ssl_mode(tokio_postgres::config::SslMode::Disable)
            .connect_timeout(CONNECT);
        if let Some(password) = &settings.superuser.password {
            config.password(password.expose());
        }
        match way {
            LocalAccess::Socket(dir) => config.host_path(dir),
            LocalAccess::Tcp(host) => config.host(host),
        };
        (way.clone(), config)
    });
    Target { ways: ways.collect(), statement_timeout: settings.statement_timeout }
}

async fn connect(target: &Target) -> Result<Link, SessionError> {
    let (mut tried, mut code) = (Vec::new(), None);
    for (way, config) in &target.ways {
        let name = match way {
            LocalAccess::Socket(dir) => format!("socket in {}", dir.display()),
            LocalAccess::Tcp(host) => host.clone(),
        };
        // Their own timeout covers the socket only, not the server's answer.
        let why = match timeout(CONNECT, config.connect(NoTls)).await {
            Ok(Ok((client, connection))) => {
                let driver = tokio::spawn(async move {
                    // Its end is seen by whoever asks something.
                    let _ = connection.await;
                });
                let state_query = tokio::sync::OnceCell::new();
                return Ok(Link { client, driver, state_query });
            }
            Ok(Err(error)) => {
                code = error.code().cloned().or(code);
                words(&error)
            }
            Err(_) => format!("no answer within {CONNECT:?}"),
        };
        tried.push(format!("{name}: {why}"));
    }
    if tried.is_empty() {
        tried.push("no way to it is configured".to_owned());
    }
    let user = target.ways.first().and_then(|(_, c)| c.get_user()).unwrap_or_default().to_owned();
    Err(SessionError::Connect { user, tried, code })
}
