//! Making a connection: socket, TLS, handshake, all within one deadline.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_postgres::config::{SslMode as DriverSslMode, SslNegotiation};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{CancelToken, Client, Connection};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::wire::{Wire, WireState};
use crate::config::{ConfigError, PostgresConfig, SslMode};
use crate::patroni::{ServerAddress, SystemId};
use crate::tls::{self, Trust};

/// Asks a PostgreSQL server for TLS; answered by one byte.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x2F];

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// Nobody listens there, or the way is blocked.
    #[error("cannot reach {address}: {source}")]
    Unreachable {
        /// The server.
        address: ServerAddress,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It took longer than `postgres.connect_timeout`.
    #[error("no connection to {address} within {limit:?} (postgres.connect_timeout)")]
    TimedOut {
        /// The server.
        address: ServerAddress,
        /// The limit.
        limit: Duration,
    },
    /// TLS was asked for and the server has none, or the handshake failed.
    #[error("TLS to {address} failed: {reason}")]
    Tls {
        /// The server.
        address: ServerAddress,
        /// Why.
        reason: String,
    },
    /// The server turned the session down: password, database, `pg_hba.conf`, too many connections.
    #[error("{address} refused the session: {reason}")]
    Refused {
        /// The server.
        address: ServerAddress,
        /// What it said.
        reason: String,
        /// The SQLSTATE, where there was one.
        sqlstate: Option<String>,
    },
    /// The server belongs to another cluster.
    #[error(
        "{address} belongs to another cluster (system identifier {found}, this cluster has \
         {expected}): check the member's conn_url"
    )]
    Foreign {
        /// The server.
        address: ServerAddress,
        /// This pool's cluster.
        expected: SystemId,
        /// The server's.
        found: SystemId,
    },
}

impl DialError {
    pub(super) fn refused(address: &ServerAddress, error: &tokio_postgres::Error) -> Self {
        let reason = match error.as_db_error() {
            Some(db) => format!("{}: {} ({})", db.severity(), db.message(), db.code().code()),
            None => crate::error::with_causes(error),
        };
        Self::Refused {
            address: address.clone(),
            reason,
            sqlstate: error.code().map(|code| code.code().to_owned()),
        }
    }

    /// Whether the server itself said it, and so is alive.
    pub(super) fn is_an_answer(&self) -> bool {
        match self {
            DialError::Unreachable { .. } | DialError::TimedOut { .. } => false,
            DialError::Refused { sqlstate, .. } => sqlstate.is_some(),
            DialError::Tls { .. } | DialError::Foreign { .. } => true,
        }
    }

    /// Whether waiting may help: the server is away, starting, stopping or full, rather than
    /// misconfigured.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            DialError::Unreachable { .. } | DialError::TimedOut { .. } => true,
            DialError::Tls { .. } | DialError::Foreign { .. } => false,
            DialError::Refused { sqlstate, .. } => match sqlstate.as_deref() {
                // No code: the connection broke off during the handshake.
                None => true,
                // Operator intervention (starting, stopping), insufficient resources (too many
                // connections), connection exceptions.
                // By `get`: the server may send anything as a code.
                Some(code) => matches!(code.get(..2), Some("57" | "53" | "08")),
            },
        }
    }
}

type Tls = <MakeRustlsConnect as MakeTlsConnect<TcpStream>>::Stream;

/// The socket under a connection.
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<Tls>),
}

macro_rules! delegate {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Socket::Tcp($stream) => $call,
            Socket::Unix($stream) => $call,
            Socket::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        delegate!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

/// Hands the driver a stream whose encryption is already settled, so that the wire can be looked at
/// inside it, with the channel binding kept.
struct Settled;

impl TlsConnect<Wire> for Settled {
    type Stream = Wire;
    type Error = Infallible;
    type Future = Ready<Result<Wire, Infallible>>;

    fn connect(self, stream: Wire) -> Self::Future {
        ready(Ok(stream))
    }
}

/// A connection and its driver, which nobody drives yet.
pub(crate) struct Dialed {
    pub(crate) client: Client,
    pub(crate) connection: Connection<Wire, Wire>,
}

/// Makes connections with one set of credentials.
pub(crate) struct Dialer {
    session: tokio_postgres::Config,
    sslmode: SslMode,
    tls: Option<MakeRustlsConnect>,
    connect_timeout: Duration,
    user_timeout: Duration,
    keepalive: TcpKeepalive,
}

impl Dialer {
    /// # Errors
    /// Where a file that the configuration names cannot be read or used.
    pub(crate) fn new(config: &PostgresConfig) -> Result<Self, ConfigError> {
        let mut session = tokio_postgres::Config::new();
        session.user(&config.user).application_name(&config.application_name);
        session.dbname(config.dbname.as_deref().unwrap_or(&config.user));
        if let Some(options) = &config.options {
            session.options(options);
        }
        if let Some(password) = &config.password {
            session.password(password.expose());
        } else if let Some(path) = &config.password_file {
            let bytes = tls::read_file("postgres.password_file", path)?;
            let line: Vec<u8> =
                bytes.into_iter().take_while(|byte| !matches!(byte, b'\n' | b'\r')).collect();
            session.password(line);
        }
        let trust = match config.sslmode {
            SslMode::Disable => None,
            SslMode::Prefer => Some(Trust::None),
            SslMode::Require if config.sslrootcert.is_none() => Some(Trust::None),
            SslMode::Require | SslMode::VerifyCa => Some(Trust::Authority),
            SslMode::VerifyFull => Some(Trust::Full),
        };
        let tls = trust
            .map(|trust| {
                tls::client_config(&tls::Files {
                    section: "postgres",
                    ca: ("sslrootcert", config.sslrootcert.as_deref()),
                    cert: ("sslcert", config.sslcert.as_deref()),
                    key: ("sslkey", config.sslkey.as_deref()),
                    trust,
                })
            })
            .transpose()?
            .map(MakeRustlsConnect::new);
        let keepalive = TcpKeepalive::new()
            .with_time(config.keepalive_idle)
            .with_interval(config.keepalive_interval)
            .with_retries(3);
        Ok(Self {
            session,
            sslmode: config.sslmode,
            tls,
            connect_timeout: config.connect_timeout,
            user_timeout: config.tcp_user_timeout,
            keepalive,
        })
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// Connects and logs in. `wire` will show the connection's state.
    ///
    /// Cancel-safe: a dropped future closes the socket.
    pub(crate) async fn dial(
        &self,
        address: &ServerAddress,
        wire: &Arc<WireState>,
    ) -> Result<Dialed, DialError> {
        self.within(address, async {
            let (socket, session) = self.open(address).await?;
            let stream = Wire::new(socket, Arc::clone(wire));
            let (client, connection) = session
                .connect_raw(stream, Settled)
                .await
                .map_err(|error| DialError::refused(address, &error))?;
            Ok(Dialed { client, connection })
        })
        .await
    }

    /// Asks the server to cancel what the session of `token` is doing. Racy by nature: the session must
    /// not be used again.
    pub(crate) async fn cancel(
        &self,
        address: &ServerAddress,
        token: CancelToken,
    ) -> Result<(), DialError> {
        self.within(address, async {
            let (socket, _) = self.open(address).await?;
            let stream = Wire::new(socket, Arc::new(WireState::new()));
            token
                .cancel_query_raw(stream, Settled)
                .await
                .map_err(|error| DialError::refused(address, &error))
        })
        .await
    }

    async fn within<T>(
        &self,
        address: &ServerAddress,
        work: impl Future<Output = Result<T, DialError>>,
    ) -> Result<T, DialError> {
        timeout(self.connect_timeout, work).await.unwrap_or_else(|_| {
            Err(DialError::TimedOut { address: address.clone(), limit: self.connect_timeout })
        })
    }

    /// A socket with its encryption settled, and the session configuration that goes with it.
    async fn open(
        &self,
        address: &ServerAddress,
    ) -> Result<(Socket, tokio_postgres::Config), DialError> {
        let unreachable = |source| DialError::Unreachable { address: address.clone(), source };
        let mut session = self.session.clone();
        session.ssl_mode(DriverSslMode::Disable);
        if address.host.starts_with('/') {
            let path = format!("{}/.s.PGSQL.{}", address.host, address.port);
            let stream = UnixStream::connect(path).await.map_err(unreachable)?;
            return Ok((Socket::Unix(stream), session));
        }
        let mut stream =
            TcpStream::connect((address.host.as_str(), address.port)).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        let socket = SockRef::from(&stream);
        socket.set_tcp_keepalive(&self.keepalive).map_err(unreachable)?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(self.user_timeout)).map_err(unreachable)?;
        let Some(tls) = &self.tls else { return Ok((Socket::Tcp(stream), session)) };

        let failed = |reason: String| DialError::Tls { address: address.clone(), reason };
        stream.write_all(&SSL_REQUEST).await.map_err(unreachable)?;
        // Exactly one byte, unbuffered: what follows it must come through TLS.
        let mut answer = [0];
        stream.read_exact(&mut answer).await.map_err(unreachable)?;
        match answer[0] {
            b'S' => {}
            b'N' if self.sslmode == SslMode::Prefer => return Ok((Socket::Tcp(stream), session)),
            b'N' => {
                return Err(failed(
                    "the server does not offer it (set ssl = on there, or sslmode here)".into(),
                ));
            }
            other => return Err(failed(format!("unexpected answer {other:#x}"))),
        }
        let connect =
            MakeTlsConnect::<TcpStream>::make_tls_connect(&mut tls.clone(), &address.host)
                .map_err(|error| failed(crate::error::with_causes(&error)))?;
        let stream = connect
            .connect(stream)
            .await
            .map_err(|error: io::Error| failed(crate::error::with_causes(&error)))?;
        session.ssl_mode(DriverSslMode::Require).ssl_negotiation(SslNegotiation::Direct);
        Ok((Socket::Tls(Box::new(stream)), session))
    }
}
