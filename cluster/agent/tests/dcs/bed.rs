//! etcd alone: one or three members, to be frozen, killed and spoken to directly.

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Result, bail};
use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use leaderpool::patroni::{Key, KeyPrefix, Member, RawKey, ServerAddress};
use leaderpool_agent::dcs::{DcsSettings, DcsTiming, DcsTls, Session};
use leaderpool_testbed::Ports;
use leaderpool_testbed::ports::PortBlock;
use leaderpool_testbed::process::{Launch, Process, RunAs, scan};
use leaderpool_testbed::tls::Authority;
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

pub(crate) const SHORT: DcsTiming =
    DcsTiming { ttl: Duration::from_secs(3), retry_timeout: Duration::from_secs(3) };
pub(crate) const MINUTE: Duration = Duration::from_secs(60);

pub(crate) struct Etcd {
    members: Vec<Mutex<Option<Process>>>,
    ports: PortBlock,
    tls: Option<Tls>,
    dir: tempfile::TempDir,
}

pub(crate) struct Tls {
    pub(crate) authority: Authority,
    server: leaderpool_testbed::tls::Identity,
    pub(crate) client: leaderpool_testbed::tls::Identity,
}

impl Etcd {
    pub(crate) async fn start(count: usize) -> Result<Self> {
        Self::start_with(count, false).await
    }

    pub(crate) async fn start_with(count: usize, tls: bool) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let tls = match tls {
            false => None,
            true => {
                let authority =
                    Authority::create(&dir.path().join("tls"), &RunAs::ourselves()).await?;
                Some(Tls {
                    server: authority.server("etcd").await?,
                    client: authority.nameless_client("client").await?,
                    authority,
                })
            }
        };
        let members = (0..count).map(|_| Mutex::new(None)).collect();
        let etcd = Self { members, ports: PortBlock::reserve(Ports::Free)?, tls, dir };
        for index in 0..count {
            etcd.spawn(index)?;
        }
        etcd.wait().await?;
        Ok(etcd)
    }

    pub(crate) fn tls(&self) -> &Tls {
        self.tls.as_ref().expect("started with TLS")
    }

    fn member_dir(&self, index: usize) -> std::path::PathBuf {
        self.dir.path().join(format!("etcd{index}"))
    }

    pub(crate) fn spawn(&self, index: usize) -> Result<()> {
        let dir = self.member_dir(index);
        std::fs::create_dir_all(&dir)?;
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let peers: Vec<String> = (0..self.members.len())
            .map(|i| format!("etcd{i}=http://127.0.0.1:{}", self.ports.etcd_peer(i)))
            .collect();
        let (client, peer) = (self.ports.etcd_client(index), self.ports.etcd_peer(index));
        let mut launch = Launch::new(
            format!("etcd{index}"),
            "etcd",
            &dir,
            self.dir.path().join(format!("etcd{index}.log")),
            &RunAs::ourselves(),
        )
        .args(["--name", &format!("etcd{index}"), "--data-dir", "data"])
        .args(["--listen-client-urls", &format!("{scheme}://127.0.0.1:{client}")])
        .args(["--advertise-client-urls", &format!("{scheme}://127.0.0.1:{client}")])
        .args(["--listen-peer-urls", &format!("http://127.0.0.1:{peer}")])
        .args(["--initial-advertise-peer-urls", &format!("http://127.0.0.1:{peer}")])
        .args(["--initial-cluster", &peers.join(",")])
        .args(["--logger", "zap", "--log-outputs", "stderr", "--bcrypt-cost", "4"]);
        if let Some(tls) = &self.tls {
            launch = launch
                .args(["--client-cert-auth", "--trusted-ca-file"])
                .arg(tls.authority.ca())
                .arg("--cert-file")
                .arg(&tls.server.cert)
                .arg("--key-file")
                .arg(&tls.server.key);
        }
        *self.members[index].lock().expect("not poisoned") = Some(launch.spawn()?);
        Ok(())
    }

    pub(crate) async fn kill(&self, index: usize) {
        let process = self.members[index].lock().expect("not poisoned").take();
        if let Some(process) = process {
            process.kill().await;
        }
    }

    pub(crate) async fn freeze(&self, index: usize) {
        scan::freeze_under(&self.member_dir(index)).await;
    }

    pub(crate) fn thaw(&self, index: usize) {
        scan::signal(&scan::under(&self.member_dir(index)), Signal::CONT);
    }

    pub(crate) fn endpoint(&self, index: usize) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.ports.etcd_client(index))
    }

    pub(crate) fn port(&self, index: usize) -> u16 {
        self.ports.etcd_client(index)
    }

    /// A client of one member, for what a person would do by hand.
    pub(crate) async fn client_of(
        &self,
        index: usize,
        user: Option<(&str, &str)>,
    ) -> Result<Client, etcd_client::Error> {
        let mut options = ConnectOptions::new().with_timeout(Duration::from_secs(5));
        if let Some((name, password)) = user {
            options = options.with_user(name, password);
        }
        if let Some(tls) = &self.tls {
            let read = |path: &Path| std::fs::read(path).expect("readable");
            options = options.with_tls(
                TlsOptions::new()
                    .ca_certificate(Certificate::from_pem(read(&tls.authority.ca())))
                    .identity(Identity::from_pem(read(&tls.client.cert), read(&tls.client.key))),
            );
        }
        Client::connect([self.endpoint(index)], Some(options)).await
    }

    pub(crate) async fn client(&self) -> Client {
        self.client_of(0, None).await.expect("a client")
    }

    /// Waits until every running member knows the same leader.
    pub(crate) async fn wait(&self) -> Result<()> {
        eventually("etcd serves", MINUTE, async || {
            for index in 0..self.members.len() {
                if self.members[index].lock().expect("not poisoned").is_none() {
                    continue;
                }
                let mut client = self.client_of(index, None).await?;
                match client.get("x", None).await {
                    Ok(_) => {}
                    Err(error) if error.to_string().contains("user name is empty") => {}
                    Err(error) => bail!("member {index}: {error}"),
                }
            }
            Ok(())
        })
        .await
    }

    /// Which member leads.
    pub(crate) async fn leader(&self) -> Result<usize> {
        for index in 0..self.members.len() {
            let status = self.client_of(index, None).await?.status().await?;
            let me = status.header().map(etcd_client::ResponseHeader::member_id);
            if me == Some(status.leader()) {
                return Ok(index);
            }
        }
        bail!("no member leads")
    }

    pub(crate) fn settings(&self, name: &str) -> DcsSettings {
        let endpoints = (0..self.members.len()).map(|index| self.endpoint(index)).collect();
        let mut settings = DcsSettings::new(endpoints, prefix(), name);
        settings.timing = SHORT;
        if let Some(tls) = &self.tls {
            settings.tls = DcsTls {
                ca_file: Some(tls.authority.ca()),
                cert_file: Some(tls.client.cert.clone()),
                key_file: Some(tls.client.key.clone()),
                server_name: None,
            };
        }
        settings
    }

    /// A session that is ready and has put its member key.
    pub(crate) async fn session(&self, name: &str) -> Result<Session> {
        ready(self.settings(name)).await
    }

    pub(crate) async fn raw(&self, key: &Key) -> Result<Option<RawKey>> {
        let answer = self.client().await.get(prefix().key(key), None).await?;
        Ok(answer.kvs().first().map(|kv| RawKey {
            key: kv.key_str().unwrap_or_default().to_owned(),
            value: kv.value().to_vec(),
            create_revision: kv.create_revision(),
            mod_revision: kv.mod_revision(),
            lease: kv.lease(),
        }))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        scan::kill_under_now(self.dir.path());
    }
}

pub(crate) async fn ready(settings: DcsSettings) -> Result<Session> {
    let session = Session::start(settings.clone())?;
    session.wait_ready(MINUTE).await?;
    session.put_member(&member(&settings.name, "running")).await?;
    Ok(session)
}

pub(crate) fn prefix() -> KeyPrefix {
    KeyPrefix::new("db", "c")
}

pub(crate) fn member(name: &str, state: &str) -> Member {
    let mut member = Member::at(&ServerAddress { host: name.to_owned(), port: 5432 });
    member.state.0 = state.to_owned();
    member
}

/// Repeats `probe` until it is content.
pub(crate) async fn eventually<T>(
    what: &str,
    limit: Duration,
    mut probe: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match probe().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("{what}: not within {limit:?}")));
            }
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
}
