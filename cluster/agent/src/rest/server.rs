//! The server: connections, TLS, limits. What it answers is decided elsewhere.
//!
//! One request a connection, as with Patroni: every connection then ends within a time that is known, and
//! slow clients cannot keep the load balancer's checks out for long.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex as AsyncMutex, Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::access::{Access, Credentials, Network};
use super::commands::Command;
use super::handler::{Handler, Live};
use super::settings::{RestSettings, VerifyClient};
use super::status::NodeStatus;
use super::tls::server_config;
use crate::dcs::LeaseCell;

/// How long running requests may go on after the shutdown began.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// The pause after the system could not give a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the API cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestError {
    /// The settings cannot work.
    #[error("{0}")]
    Settings(String),
    /// The address cannot be listened on.
    #[error("cannot listen on {address} (restapi.listen): {reason}")]
    Listen {
        /// The address.
        address: String,
        /// Why not.
        reason: String,
    },
}

/// What the server answers from, and whom it asks.
#[derive(Debug, Clone)]
pub struct RestSources {
    /// This node, as the run loop writes it.
    pub status: watch::Receiver<Arc<NodeStatus>>,
    /// The lease, for the lock.
    pub lease: Arc<LeaseCell>,
    /// The run loop's queue. A full one is answered 503.
    pub commands: mpsc::Sender<Command>,
}

/// The REST API, served. Dropping it stops it at once; [`shutdown`](Self::shutdown) in order.
#[derive(Debug)]
pub struct RestServer {
    handler: Arc<Handler>,
    addresses: Vec<SocketAddr>,
    listen: String,
    cancel: CancellationToken,
    task: AsyncMutex<Option<JoinHandle<()>>>,
}

impl RestServer {
    /// Listens, and serves in a task of the current runtime.
    ///
    /// # Errors
    /// Where the settings cannot work, a certificate cannot be read, or the address is taken.
    pub async fn start(settings: RestSettings, sources: RestSources) -> Result<Self, RestError> {
        let listen = settings.listen.clone();
        let listeners = bind(&listen).await?;
        let addresses = listeners.iter().filter_map(|one| one.local_addr().ok()).collect();
        let limit = settings.max_connections.max(1);
        let live = live(settings)?;
        let handler = Arc::new(Handler::new(live, sources));
        let cancel = CancellationToken::new();
        let server = Server {
            handler: Arc::clone(&handler),
            slots: Arc::new(Semaphore::new(limit)),
            peers: Arc::new(Peers { limit: limit.div_ceil(4), counts: Mutex::default() }),
            cancel: cancel.clone(),
        };
        let task = tokio::spawn(server.run(listeners));
        Ok(Self { handler, addresses, listen, cancel, task: AsyncMutex::new(Some(task)) })
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Takes new settings for connections to come: certificates (read anew), users, allowlist, headers. The
    /// limit on connections stays as it is.
    ///
    /// # Errors
    /// Where they cannot work, or name another address: that takes another server. The old ones then hold.
    pub fn reload(&self, settings: RestSettings) -> Result<(), RestError> {
        if settings.listen != self.listen {
            return Err(RestError::Listen {
                address: settings.listen,
                reason: format!("it listens on {}, which changes with a restart only", self.listen),
            });
        }
        self.handler.set_live(live(settings)?);
        Ok(())
    }

    /// Takes no more connections, lets running answers finish for up to two seconds, and ends.
    pub async fn shutdown(&self) {
        self.cancel.cancel();
        if let Some(task) = self.task.lock().await.take() {
            // A task that panicked has said so already.
            let _ = task.await;
        }
    }
}

impl Drop for RestServer {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// The settings, made ready.
fn live(settings: RestSettings) -> Result<Live, RestError> {
    let tls = match &settings.tls {
        Some(tls) => Some(TlsAcceptor::from(Arc::new(server_config(tls)?))),
        None => None,
    };
    let (mut networks, mut names) = (Vec::new(), Vec::new());
    for entry in &settings.allowlist {
        match Network::parse(entry.trim()) {
            Some(network) => networks.push(network),
            None if entry.contains('/') || entry.trim().is_empty() => {
                return Err(RestError::Settings(format!(
                    "restapi.allowlist: {entry:?} is neither an address, a network nor a name"
                )));
            }
            None => names.push(entry.trim().to_owned()),
        }
    }
    let verify = settings.tls.as_ref().map(|tls| tls.verify_client).unwrap_or_default();
    let credentials = settings
        .authentication
        .as_ref()
        .map(|(user, password)| Credentials::new(user, password.expose()));
    let access = Access { credentials, networks: None, certificate: verify != VerifyClient::None };
    Live::new(settings, tls, access, networks, names)
}

async fn bind(listen: &str) -> Result<Vec<TcpListener>, RestError> {
    let fail = |reason: String| RestError::Listen { address: listen.to_owned(), reason };
    let (host, port) =
        listen.rsplit_once(':').ok_or_else(|| fail("it is not of the form host:port".into()))?;
    let port: u16 = port.parse().map_err(|_| fail("the port is not a number".into()))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if matches!(host, "" | "*") {
        // Where IPv6 is switched off, IPv4 alone.
        let all = match TcpListener::bind((IpAddr::from([0_u16; 8]), port)).await {
            Ok(listener) => Ok(listener),
            Err(_) => TcpListener::bind((IpAddr::from([0_u8; 4]), port)).await,
        };
        return Ok(vec![all.map_err(|error| fail(error.to_string()))?]);
    }
    let addresses = tokio::net::lookup_host((host, port)).await;
    let mut listeners = Vec::new();
    for address in addresses.map_err(|error| fail(error.to_string()))? {
        listeners.push(TcpListener::bind(address).await.map_err(|error| fail(error.to_string()))?);
    }
    if listeners.is_empty() {
        return Err(fail("the name has no address".into()));
    }
    Ok(listeners)
}

struct Server {
    handler: Arc<Handler>,
    slots: Arc<Semaphore>,
    peers: Arc<Peers>,
    cancel: CancellationToken,
}

/// Connections of each address.
struct Peers {
    limit: usize,
    counts: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection of an address, counted while this lives.
struct Counted {
    peers: Arc<Peers>,
    peer: IpAddr,
}

impl Peers {
    fn count(self: &Arc<Self>, peer: IpAddr) -> Option<Counted> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(peer).or_default();
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        Some(Counted { peers: Arc::clone(self), peer })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.peers.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.peer);
            }
        }
    }
}

impl Server {
    async fn run(self, listeners: Vec<TcpListener>) {
        let mut accepting = JoinSet::new();
        let (arrivals, mut arrived) = mpsc::channel::<(TcpStream, SocketAddr)>(1);
        for listener in listeners {
            let arrivals = arrivals.clone();
            accepting.spawn(accept(listener, arrivals));
        }
        let mut connections = JoinSet::new();
        loop {
            let slot = tokio::select! {
                () = self.cancel.cancelled() => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                slot = Arc::clone(&self.slots).acquire_owned() => slot,
            };
            let (stream, peer) = tokio::select! {
                () = self.cancel.cancelled() => break,
                Some(arrival) = arrived.recv() => arrival,
            };
            // The stream is dropped, and so closed, where the address has too many.
            if let Some(counted) = self.peers.count(peer.ip().to_canonical()) {
                let (handler, cancel) = (Arc::clone(&self.handler), self.cancel.clone());
                connections.spawn(async move {
                    let _held = (slot, counted);
                    serve(handler, stream, peer.ip(), cancel).await;
                });
            }
            while connections.try_join_next().is_some() {}
        }
        accepting.shutdown().await;
        drop(arrived);
        let last = async { while connections.join_next().await.is_some() {} };
        let _ = timeout(LAST_ANSWERS, last).await;
        connections.shutdown().await;
    }
}

async fn accept(listener: TcpListener, arrivals: mpsc::Sender<(TcpStream, SocketAddr)>) {
    loop {
        // A place first: what is not taken yet waits in the system's queue.
        let Ok(place) = arrivals.reserve().await else { return };
        match listener.accept().await {
            Ok(arrival) => place.send(arrival),
            Err(error) => {
                tracing::debug!(%error, "no connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(handler: Arc<Handler>, stream: TcpStream, peer: IpAddr, cancel: CancellationToken) {
    let live = handler.live();
    let limit = live.settings.client_timeout;
    // Answers are one small packet: there is nothing to wait for.
    let _ = stream.set_nodelay(true);
    match &live.tls {
        None => talk(handler, stream, peer, false, limit, cancel).await,
        Some(acceptor) => match timeout(limit, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => {
                let shown = stream.get_ref().1.peer_certificates();
                let has_certificate = shown.is_some_and(|chain| !chain.is_empty());
                talk(handler, stream, peer, has_certificate, limit, cancel).await;
            }
            Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
            Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
        },
    }
}

async fn talk(
    handler: Arc<Handler>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: IpAddr,
    has_certificate: bool,
    limit: Duration,
    cancel: CancellationToken,
) {
    // Moved on by the handler while a command runs.
    let (deadline, mut moved) = watch::channel(Instant::now() + 2 * limit);
    let service = service_fn(move |request| {
        let (handler, deadline) = (Arc::clone(&handler), deadline.clone());
        async move {
            let answer = handler.handle(request, peer, has_certificate, &deadline).await;
            // For the client to read it.
            deadline.send_replace(Instant::now() + limit);
            Ok::<_, std::convert::Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limit)
        .keep_alive(false)
        // A check that closes its side after asking still wants the answer.
        .half_close(true)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    loop {
        let until = *moved.borrow_and_update();
        tokio::select! {
            result = &mut connection => {
                if let Err(error) = result {
                    tracing::debug!(%peer, %error, "connection ended");
                }
                return;
            }
            () = sleep_until(until) => {
                if *moved.borrow() <= Instant::now() {
                    tracing::debug!(%peer, "a slow client was cut off");
                    return;
                }
            }
            _ = moved.changed() => {}
            () = cancel.cancelled(), if !cancel.is_cancelled() => connection.as_mut().graceful_shutdown(),
        }
    }
}
