//! The cluster's keys in etcd: a linearizable snapshot, a watch from its revision, and a periodic
//! linearizable read that proves both.
//!
//! Three things are not trusted. Silence: the renewals of a lease make no watch events, so a dead
//! connection and a quiet cluster look alike; HTTP/2 keepalive and the periodic read tell them apart. The
//! watch: it does not resume by itself, so any end of it, compaction included, starts over with a
//! snapshot. The balancer of the client: it goes on using endpoints that are down, so there is one
//! client per endpoint, and one endpoint at a time.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    Certificate, Client, ConnectOptions, GetOptions, Identity, KeyValue, TlsOptions, WatchOptions,
    WatchResponse,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Observation, Source, join_failures};
use crate::config::{ConfigError, EtcdConfig};
use crate::error::{and_causes, with_causes};
use crate::patroni::{ClusterSnapshot, KeyPrefix, RawKey};
use crate::tls::read_file;
use crate::topology::SourceKind;

/// HTTP/2 pings go out this often, and an unanswered one ends the connection after as long.
const KEEPALIVE: Duration = Duration::from_secs(1);
/// Without an answer for this long the source says so, even before every endpoint was tried.
const SILENCE: Duration = Duration::from_millis(2500);
/// Following an endpoint that ends sooner has not worked.
const SHORT_LIVED: Duration = Duration::from_secs(1);
/// The pause after a round in which no endpoint answered.
const ROUND_PAUSE: Duration = Duration::from_millis(250);

/// Follows the keys of one cluster in etcd v3.
pub struct EtcdSource {
    config: EtcdConfig,
    prefix: KeyPrefix,
    tls: Option<TlsOptions>,
}

/// Why following one endpoint ended.
enum End {
    Cancelled,
    Failed(String),
}

impl From<etcd_client::Error> for End {
    fn from(error: etcd_client::Error) -> Self {
        End::Failed(match &error {
            // Its own text is the status's debug form.
            etcd_client::Error::GRpcStatus(status) => {
                and_causes(status.message().to_owned(), std::error::Error::source(status))
            }
            other => with_causes(other),
        })
    }
}

impl EtcdSource {
    /// A source for the cluster under `prefix`.
    ///
    /// # Errors
    /// Where a file with a certificate or key cannot be read.
    pub fn new(config: &EtcdConfig, prefix: KeyPrefix) -> Result<Self, ConfigError> {
        let secure = config.endpoints.iter().any(|endpoint| endpoint.starts_with("https://"));
        let tls = if secure { Some(tls_options(config)?) } else { None };
        Ok(Self { config: config.clone(), prefix, tls })
    }

    async fn connect(&self, endpoint: &str) -> Result<Client, End> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(self.config.timeout)
            .with_keep_alive(KEEPALIVE, KEEPALIVE)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let Some(tls) = &self.tls {
            options = options.with_tls(tls.clone());
        }
        if let (Some(user), Some(password)) = (&self.config.username, &self.config.password) {
            options = options
                .with_user(user.clone(), password.expose().to_owned())
                .with_auto_token_refresh(true);
        }
        self.within("connecting", Client::connect([endpoint], Some(options))).await
    }

    /// One request, within the configured time.
    async fn within<T>(
        &self,
        what: &str,
        request: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, End> {
        match timeout(self.config.timeout, request).await {
            Ok(result) => Ok(result?),
            Err(_) => {
                Err(End::Failed(format!("{what}: no answer within {:?}", self.config.timeout)))
            }
        }
    }

    async fn read_all(&self, client: &mut Client) -> Result<Keys, End> {
        let options = GetOptions::new().with_prefix();
        let answer = self
            .within("reading the keys", client.get(self.prefix.as_str(), Some(options)))
            .await?;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        let keys = answer.kvs().iter().map(raw_key).map(|raw| (raw.key.clone(), raw)).collect();
        Ok(Keys { revision, keys })
    }

    /// Follows one endpoint until it fails. `contact` is set at each sign of life.
    async fn follow(
        &self,
        endpoint: &str,
        out: &mpsc::Sender<Observation>,
        contact: &mut Option<Instant>,
    ) -> End {
        match self.try_follow(endpoint, out, contact).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn try_follow(
        &self,
        endpoint: &str,
        out: &mpsc::Sender<Observation>,
        contact: &mut Option<Instant>,
    ) -> Result<std::convert::Infallible, End> {
        let mut client = self.connect(endpoint).await?;
        let mut seen = self.read_all(&mut client).await?;
        *contact = Some(Instant::now());
        self.send(out, self.observe(&seen)).await?;
        let options =
            WatchOptions::new().with_prefix().with_start_revision(seen.revision.saturating_add(1));
        let mut watch =
            self.within("watching", client.watch(self.prefix.as_str(), Some(options))).await?;
        let mut verify = interval(self.config.verify_interval);
        verify.set_missed_tick_behavior(MissedTickBehavior::Delay);
        verify.reset();
        let mut proof_client = client.clone();
        loop {
            tokio::select! {
                message = watch.message() => {
                    let message = message?
                        .ok_or_else(|| End::Failed("the watch ended".into()))?;
                    *contact = Some(Instant::now());
                    if seen.take(&message)? {
                        self.send(out, self.observe(&seen)).await?;
                    }
                }
                _ = verify.tick() => {
                    // Not beside the watch: while this waits, at most `timeout`, events only queue up.
                    let fresh = self.read_all(&mut proof_client).await?;
                    *contact = Some(Instant::now());
                    let observation = if seen.adopt(fresh) {
                        self.observe(&seen)
                    } else {
                        Observation::Contact
                    };
                    self.send(out, observation).await?;
                }
            }
        }
    }

    fn observe(&self, seen: &Keys) -> Observation {
        Observation::Snapshot(Arc::new(ClusterSnapshot::from_raw(
            &self.prefix,
            seen.revision,
            seen.keys.values(),
        )))
    }

    async fn send(
        &self,
        out: &mpsc::Sender<Observation>,
        observation: Observation,
    ) -> Result<(), End> {
        out.send(observation).await.map_err(|_| End::Cancelled)
    }

    async fn follow_all(self: Box<Self>, out: mpsc::Sender<Observation>) {
        let mut failures: BTreeMap<usize, String> = BTreeMap::new();
        let mut contact: Option<Instant> = None;
        let mut current = 0;
        loop {
            let (before, began) = (contact, Instant::now());
            let endpoint = self.config.endpoints[current].as_str();
            let End::Failed(reason) = self.follow(endpoint, &out, &mut contact).await else {
                return;
            };
            tracing::debug!(endpoint, reason, "etcd endpoint failed");
            if contact != before {
                failures.clear();
            }
            failures.insert(current, reason);
            current = (current + 1) % self.config.endpoints.len();
            let round_over = failures.len() == self.config.endpoints.len();
            let silent = contact.is_none_or(|at| at.elapsed() >= SILENCE);
            if round_over || (silent && contact.is_some()) {
                let reason = join_failures(failures.iter().map(|(index, reason)| {
                    (self.config.endpoints[*index].as_str(), reason.as_str())
                }));
                if out.send(Observation::Lost(reason)).await.is_err() {
                    return;
                }
            }
            if round_over {
                failures.clear();
            }
            // One that answers and then fails at once must not be asked without end either.
            if round_over || (contact != before && began.elapsed() < SHORT_LIVED) {
                sleep(ROUND_PAUSE).await;
            }
        }
    }
}

impl Source for EtcdSource {
    fn kind(&self) -> SourceKind {
        SourceKind::Etcd
    }

    fn run(
        self: Box<Self>,
        out: mpsc::Sender<Observation>,
        cancel: CancellationToken,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            let _ = cancel.run_until_cancelled(self.follow_all(out)).await;
        })
    }
}

/// The keys as this source holds them.
struct Keys {
    revision: i64,
    keys: BTreeMap<String, RawKey>,
}

impl Keys {
    /// Takes the events of one watch message in; tells whether anything changed.
    fn take(&mut self, message: &WatchResponse) -> Result<bool, End> {
        if message.canceled() || message.compact_revision() != 0 {
            return Err(End::Failed(format!(
                "the watch was cancelled ({})",
                match message.compact_revision() {
                    0 => message.cancel_reason().to_owned(),
                    revision => format!("history before revision {revision} was compacted"),
                }
            )));
        }
        let mut changed = false;
        let read_up_to = self.revision;
        for kv in message.events().iter().filter_map(etcd_client::Event::kv) {
            // A verifying read may have been ahead of the watch.
            if kv.mod_revision() <= read_up_to {
                continue;
            }
            changed = true;
            self.revision = self.revision.max(kv.mod_revision());
            let raw = raw_key(kv);
            // A deleted key has no create revision.
            if kv.create_revision() == 0 {
                self.keys.remove(&raw.key);
            } else {
                self.keys.insert(raw.key.clone(), raw);
            }
        }
        Ok(changed)
    }

    /// Takes a verifying read in; tells whether it differs.
    fn adopt(&mut self, fresh: Keys) -> bool {
        // Another store behind the same address may start again at low revisions, so a lower one counts
        // too: the read is linearizable and later than everything seen.
        let differs = self.keys != fresh.keys;
        *self = fresh;
        differs
    }
}

fn raw_key(kv: &KeyValue) -> RawKey {
    RawKey {
        key: String::from_utf8_lossy(kv.key()).into_owned(),
        value: kv.value().to_vec(),
        create_revision: kv.create_revision(),
        mod_revision: kv.mod_revision(),
        lease: kv.lease(),
    }
}

fn tls_options(config: &EtcdConfig) -> Result<TlsOptions, ConfigError> {
    let mut tls = match &config.ca_file {
        Some(path) => TlsOptions::new()
            .ca_certificate(Certificate::from_pem(read_file("etcd.ca_file", path)?)),
        None => TlsOptions::new().with_native_roots(),
    };
    if let Some(name) = &config.server_name {
        tls = tls.domain_name(name);
    }
    if let (Some(cert), Some(key)) = (&config.cert_file, &config.key_file) {
        tls = tls.identity(Identity::from_pem(
            read_file("etcd.cert_file", cert)?,
            read_file("etcd.key_file", key)?,
        ));
    }
    Ok(tls)
}
