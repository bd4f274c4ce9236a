//! The members' REST API, polled: the main source for clusters on Consul, ZooKeeper or Kubernetes, and
//! the stand-in while etcd is away.

mod answers;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::StreamExt;
use futures_util::future::{Either, OptionFuture, select};
use futures_util::stream::FuturesUnordered;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{HttpClient, Observation, Source, join_failures};
use crate::config::{ConfigError, RestConfig};
use crate::patroni::{ClusterSnapshot, RestCluster, SystemId};
use crate::topology::SourceKind;
use answers::{Answers, Rank};

/// How long the first answer of a round waits for the others, and an answer for the name of its cluster. What
/// comes later is believed if it is better, but nobody waits for it.
const GRACE: Duration = Duration::from_millis(100);

/// Asks all members at once and believes the one whose leader is on the newest timeline: a member that is
/// cut off goes on telling what it last knew. A member that is slow, or hangs, delays nobody.
pub struct RestSource {
    client: HttpClient,
    interval: Duration,
    grace: Duration,
    /// Base URLs, `http://host:8008`; the caller may change them while this runs.
    endpoints: Arc<ArcSwap<Vec<String>>>,
}

#[derive(Deserialize)]
struct Status {
    database_system_identifier: Option<SystemId>,
}

/// What has been said so far.
#[derive(Default)]
struct Told {
    /// The last snapshot; none while nobody answers.
    snapshot: Option<(Rank, ClusterSnapshot)>,
    /// Whether something was said in this round.
    in_round: bool,
    /// When this round's first answer has waited long enough.
    settle_at: Option<Instant>,
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
        let client = HttpClient::new(config)?;
        Ok(Self { client, interval: config.interval, grace: GRACE, endpoints })
    }

    async fn ask(&self, endpoint: &str) -> Result<ClusterSnapshot, String> {
        let base = endpoint.trim_end_matches('/');
        let (cluster_url, status_url) = (format!("{base}/cluster"), format!("{base}/patroni"));
        // A second request, since `/cluster` does not tell whose cluster it is. It asks the member's server,
        // which may hang where the agent does not.
        let cluster = pin!(self.client.get(&cluster_url));
        let status = pin!(self.client.get(&status_url));
        let (cluster, status) = match select(cluster, status).await {
            Either::Left((cluster, status)) => (cluster, timeout(self.grace, status).await.ok()),
            Either::Right((status, cluster)) => (cluster.await, Some(status)),
        };
        let (code, body) = cluster?;
        if !code.is_success() {
            return Err(format!("GET /cluster answered {code}"));
        }
        let cluster = RestCluster::parse(&body)
            .map_err(|error| format!("GET /cluster is not what a member answers: {error}"))?;
        let system_id = status
            .and_then(Result::ok)
            .and_then(|(_, body)| serde_json::from_slice::<Status>(&body).ok())
            .and_then(|status| status.database_system_identifier);
        Ok(cluster.into_snapshot(system_id))
    }

    async fn poll_all(self: Box<Self>, out: mpsc::Sender<Observation>) {
        let source = &*self;
        let mut timer = interval(source.interval);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asked = FuturesUnordered::new();
        let mut answers = Answers::default();
        let mut told = Told::default();
        loop {
            let observation = tokio::select! {
                _ = timer.tick(), if told.settle_at.is_none() => {
                    let endpoints = source.endpoints.load_full();
                    told.in_round = false;
                    for (endpoint, round) in answers.begin_round(&endpoints) {
                        asked.push(async move {
                            let answer = source.ask(&endpoint).await;
                            (endpoint, round, answer)
                        });
                    }
                    endpoints.is_empty().then(|| told.nobody("no member's REST address is known"))
                }
                Some((endpoint, round, answer)) = asked.next() => {
                    let is_good = answer.is_ok();
                    if answers.take(&endpoint, round, answer) {
                        told.hear(&answers, is_good, source.grace)
                    } else {
                        None
                    }
                }
                Some(()) = OptionFuture::from(told.settle_at.map(sleep_until)) => {
                    told.settle(&answers)
                }
            };
            if let Some(observation) = observation
                && out.send(observation).await.is_err()
            {
                return;
            }
        }
    }
}

impl Told {
    /// What to say after an answer, where anything.
    fn hear(&mut self, answers: &Answers, is_good: bool, grace: Duration) -> Option<Observation> {
        if let Some(failures) = answers.all_failed() {
            let said_already = std::mem::replace(&mut self.in_round, true);
            return (!said_already).then(|| self.nobody(&join_failures(failures)));
        }
        let better = match (answers.best(), &self.snapshot) {
            (Some((rank, _)), Some((known, _))) => rank.outdoes(known),
            // The first answer of all may well be of one that is cut off.
            _ => false,
        };
        if better || (self.settle_at.is_some() && answers.round_is_over()) {
            return self.settle(answers);
        }
        if is_good && !self.in_round {
            if answers.round_is_over() {
                return self.settle(answers);
            }
            self.settle_at.get_or_insert_with(|| Instant::now() + grace);
        }
        None
    }

    /// Says the best of what is known.
    fn settle(&mut self, answers: &Answers) -> Option<Observation> {
        self.settle_at = None;
        let (rank, snapshot) = answers.best()?;
        self.in_round = true;
        let is_known = self.snapshot.as_ref().is_some_and(|(_, known)| known == snapshot);
        self.snapshot = Some((rank, snapshot.clone()));
        Some(if is_known {
            Observation::Contact
        } else {
            Observation::Snapshot(Arc::new(snapshot.clone()))
        })
    }

    fn nobody(&mut self, reason: &str) -> Observation {
        (self.snapshot, self.settle_at) = (None, None);
        Observation::Lost(reason.to_owned())
    }
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
