//! The members' REST API, polled: the main source for clusters on Consul, ZooKeeper or Kubernetes, and
//! the stand-in while etcd is away.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{HttpClient, Observation, Source, join_failures};
use crate::config::{ConfigError, RestConfig};
use crate::patroni::{ClusterSnapshot, RestCluster, SystemId, Timeline};
use crate::topology::SourceKind;

/// Asks all members at once and believes the one whose leader is on the newest timeline: a member that is
/// cut off goes on telling what it last knew.
pub struct RestSource {
    client: HttpClient,
    interval: std::time::Duration,
    /// Base URLs, `http://host:8008`; the caller may change them while this runs.
    endpoints: Arc<ArcSwap<Vec<String>>>,
}

#[derive(Deserialize)]
struct Status {
    database_system_identifier: Option<SystemId>,
}

impl RestSource {
    /// A source over these endpoints.
    ///
    /// # Errors
    /// Where a file with a certificate or key cannot be read or used.
    pub fn new(
        config: &RestConfig,
        endpoints: Arc<ArcSwap<Vec<String>>>,
    ) -> Result<Self, ConfigError> {
        Ok(Self { client: HttpClient::new(config)?, interval: config.interval, endpoints })
    }

    async fn ask(&self, endpoint: &str) -> Result<ClusterSnapshot, String> {
        let base = endpoint.trim_end_matches('/');
        let (cluster_url, status_url) = (format!("{base}/cluster"), format!("{base}/patroni"));
        // A second request, since `/cluster` does not tell whose cluster it is.
        let (cluster, status) =
            tokio::join!(self.client.get(&cluster_url), self.client.get(&status_url));
        let (code, body) = cluster?;
        if !code.is_success() {
            return Err(format!("GET /cluster answered {code}"));
        }
        let cluster = RestCluster::parse(&body)
            .map_err(|error| format!("GET /cluster is not what a member answers: {error}"))?;
        let system_id = status
            .ok()
            .and_then(|(_, body)| serde_json::from_slice::<Status>(&body).ok())
            .and_then(|status| status.database_system_identifier);
        Ok(cluster.into_snapshot(system_id))
    }

    async fn poll(&self) -> Result<ClusterSnapshot, String> {
        let endpoints = self.endpoints.load_full();
        if endpoints.is_empty() {
            return Err("no member's REST address is known".into());
        }
        let answers = join_all(endpoints.iter().map(|endpoint| self.ask(endpoint))).await;
        let mut best: Option<(Option<Timeline>, ClusterSnapshot)> = None;
        let mut failures = Vec::new();
        for (endpoint, answer) in endpoints.iter().zip(answers) {
            match answer {
                Ok(snapshot) => {
                    let timeline = leader_timeline(&snapshot);
                    if best.as_ref().is_none_or(|(known, _)| timeline > *known) {
                        best = Some((timeline, snapshot));
                    }
                }
                Err(reason) => failures.push((endpoint.as_str(), reason)),
            }
        }
        best.map(|(_, snapshot)| snapshot).ok_or_else(|| {
            join_failures(failures.iter().map(|(endpoint, reason)| (*endpoint, reason.as_str())))
        })
    }

    async fn poll_all(self: Box<Self>, out: mpsc::Sender<Observation>) {
        let mut timer = interval(self.interval);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last: Option<ClusterSnapshot> = None;
        loop {
            timer.tick().await;
            let observation = match self.poll().await {
                Ok(snapshot) if last.as_ref() == Some(&snapshot) => Observation::Contact,
                Ok(snapshot) => {
                    last = Some(snapshot.clone());
                    Observation::Snapshot(Arc::new(snapshot))
                }
                Err(reason) => {
                    last = None;
                    Observation::Lost(reason)
                }
            };
            if out.send(observation).await.is_err() {
                return;
            }
        }
    }
}

/// The timeline of the leader; none where there is no leader, which counts as the oldest.
fn leader_timeline(snapshot: &ClusterSnapshot) -> Option<Timeline> {
    let leader = snapshot.leader.as_ref()?;
    Some(snapshot.members.get(&leader.name).and_then(|member| member.timeline).unwrap_or_default())
}

impl Source for RestSource {
    fn kind(&self) -> SourceKind {
        SourceKind::Rest
    }

    fn run(
        self: Box<Self>,
        out: mpsc::Sender<Observation>,
        cancel: CancellationToken,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            let _ = cancel.run_until_cancelled(self.poll_all(out)).await;
        })
    }
}
