//! A TCP proxy before etcd that holds back what the client sends.

use std::sync::{Arc, Mutex};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::bed::MINUTE;

pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

struct Shared {
    /// Once the server's answer holds this, requests are held back.
    marker: Mutex<Option<String>>,
    held: watch::Sender<bool>,
}

impl Proxy {
    pub(crate) async fn start(server: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared { marker: Mutex::new(None), held: watch::Sender::new(false) });
        let mut tasks = JoinSet::new();
        let all = Arc::clone(&shared);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                connections.spawn(requests(Arc::clone(&all), from_client, to_server));
                connections.spawn(answers(Arc::clone(&all), from_server, to_client));
            }
        });
        Ok(Self { port, shared, _tasks: tasks })
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn hold_requests_after(&self, marker: &str) {
        *self.shared.marker.lock().expect("not poisoned") = Some(marker.to_owned());
    }

    pub(crate) fn hold(&self) {
        self.shared.held.send_replace(true);
    }

    pub(crate) async fn wait_held(&self) -> Result<()> {
        let mut held = self.shared.held.subscribe();
        tokio::time::timeout(MINUTE, held.wait_for(|held| *held)).await??;
        Ok(())
    }

    pub(crate) fn release(&self) {
        self.shared.held.send_replace(false);
    }
}

async fn requests(
    shared: Arc<Shared>,
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
) {
    let mut buffer = vec![0; 65536];
    let mut held = shared.held.subscribe();
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if held.wait_for(|held| !*held).await.is_err()
            || to.write_all(&buffer[..count]).await.is_err()
        {
            return;
        }
    }
}

async fn answers(
    shared: Arc<Shared>,
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
) {
    let mut buffer = vec![0; 65536];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        {
            let mut marker = shared.marker.lock().expect("not poisoned");
            let text = String::from_utf8_lossy(&buffer[..count]);
            if marker.as_ref().is_some_and(|marker| text.contains(marker.as_str())) {
                *marker = None;
                shared.held.send_replace(true);
            }
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
