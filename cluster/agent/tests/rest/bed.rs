//! A server on a free port, and a client that sends what it likes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use leaderpool::patroni::{MemberRole, MemberState};
use leaderpool_agent::dcs::{BootTime, LeaseCell};
use leaderpool_agent::rest::{
    Command, Identity, NodeStatus, RestServer, RestSettings, RestSources, ServerSample,
};
use time::macros::datetime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

pub(crate) const MINUTE: Duration = Duration::from_secs(60);

pub(crate) struct Bed {
    pub(crate) server: RestServer,
    pub(crate) status: watch::Sender<Arc<NodeStatus>>,
    pub(crate) commands: mpsc::Receiver<Command>,
}

pub(crate) struct Reply {
    pub(crate) code: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

/// A running replica.
pub(crate) fn replica() -> NodeStatus {
    let identity = Identity { version: "4.1.5".into(), scope: "batman".into(), name: "pg1".into() };
    let mut status = NodeStatus::new(identity);
    status.state = MemberState("running".into());
    status.role = MemberRole::Replica;
    status.sample_valid_until = BootTime::MAX;
    status.server = Some(ServerSample {
        in_recovery: true,
        postmaster_start_time: datetime!(2026-11-23 13:08:48.479232 UTC),
        server_version: 150_018,
        timeline: None,
        location: None,
        received: None,
        replayed: None,
        replayed_at: None,
        replay_paused: false,
        latest_end: None,
        replication_state: Some("streaming".into()),
        replication: Vec::new(),
    });
    status
}

pub(crate) fn settings() -> RestSettings {
    RestSettings {
        listen: "127.0.0.1:0".into(),
        client_timeout: Duration::from_secs(1),
        ..RestSettings::default()
    }
}

impl Bed {
    pub(crate) async fn start(settings: RestSettings) -> Result<Self> {
        let (status, seen) = watch::channel(Arc::new(replica()));
        let (send, commands) = mpsc::channel(2);
        let lease = Arc::new(LeaseCell::default());
        let sources = RestSources { status: seen, lease, commands: send };
        Ok(Self { server: RestServer::start(settings, sources).await?, status, commands })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.addresses()[0]
    }

    pub(crate) async fn connect(&self) -> Result<TcpStream> {
        Ok(TcpStream::connect(self.address()).await?)
    }

    /// From another address of this machine.
    pub(crate) async fn connect_from(&self, from: [u8; 4]) -> Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((IpAddr::from(from), 0).into())?;
        Ok(socket.connect(self.address()).await?)
    }

    pub(crate) async fn send(&self, text: &str) -> Result<Reply> {
        talk(self.connect().await?, text).await
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, body: &str) -> Result<Reply> {
        let length = body.len();
        self.send(&format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
        .await
    }
}

pub(crate) async fn talk(mut stream: TcpStream, text: &str) -> Result<Reply> {
    stream.write_all(text.as_bytes()).await?;
    read(stream).await
}

/// Everything until the server closes.
pub(crate) async fn read(mut stream: TcpStream) -> Result<Reply> {
    let mut bytes = Vec::new();
    // A reset after the answer is no loss of it.
    let read = timeout(MINUTE, stream.read_to_end(&mut bytes)).await.context("it stays open")?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) =
        text.split_once("\r\n\r\n").with_context(|| format!("no answer: {read:?} {text:?}"))?;
    let code = head.split(' ').nth(1).context("no code")?.parse()?;
    Ok(Reply { code, head: head.to_ascii_lowercase(), body: body.to_owned() })
}
