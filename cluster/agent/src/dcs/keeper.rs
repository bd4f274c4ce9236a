//! The task that keeps the lease: grants one, renews it by a stream, and grants another when it is gone.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{LeaseKeepAliveStream, LeaseKeeper};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::clock::BootTime;
use super::error::{DcsError, Failure, FailureKind};
use super::lease::{LeaseCell, LeaseState};
use super::links::Links;

/// The pause after each endpoint has failed once.
const ROUND_PAUSE: Duration = Duration::from_millis(150);

/// Asks for a renewal now; the answer comes when it succeeded.
pub(super) type Refresh = oneshot::Sender<LeaseState>;

pub(super) struct Keeper {
    pub(super) links: Arc<Links>,
    pub(super) cell: Arc<LeaseCell>,
    pub(super) refreshes: mpsc::Receiver<Refresh>,
    /// Somebody else changed the lease, or doubts it.
    pub(super) poke: Arc<Notify>,
}

/// Why renewing by one stream ended.
enum End {
    /// The stream or its endpoint failed: open another.
    Failed(Failure),
    /// The lease is not there any more.
    Gone,
    /// There is another lease to renew.
    Superseded,
}

impl From<etcd_client::Error> for End {
    fn from(error: etcd_client::Error) -> Self {
        let failure = Failure::of(&error);
        if failure.kind == FailureKind::Lease { End::Gone } else { End::Failed(failure) }
    }
}

/// Grants a lease of `ttl`, and tells since when it counts.
pub(super) async fn grant(
    links: &Links,
    ttl: Duration,
    deadline: Instant,
) -> Result<(i64, BootTime, Duration), DcsError> {
    let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX).max(1);
    let granted = links.call(deadline, async |mut client| {
        let sent = BootTime::now();
        let granted = client.lease_grant(seconds, None).await?;
        Ok((granted.id(), sent, granted.ttl()))
    });
    let (id, sent, granted) = granted.await?.value;
    // etcd has a shortest ttl of its own and grants that instead; what was asked for is what counts here.
    let ttl = Duration::from_secs(granted.min(seconds).max(0).unsigned_abs());
    tracing::info!(lease = format!("{id:x}"), ?ttl, "lease granted");
    Ok((id, sent, ttl))
}

impl Keeper {
    /// Never ends by itself. Cancel-safe: it holds nothing but a stream.
    pub(super) async fn run(mut self) {
        let mut failures_in_a_row = 0;
        loop {
            let id = self.cell.state().id;
            if id == 0 {
                self.obtain().await;
                continue;
            }
            match self.serve(id, &mut failures_in_a_row).await {
                End::Superseded => {}
                End::Gone => self.bury(id).await,
                End::Failed(failure) => {
                    failures_in_a_row += 1;
                    tracing::debug!(reason = failure.reason, "renewing the lease failed");
                    if failures_in_a_row % self.links.count() == 0 {
                        tracing::warn!(
                            reason = failure.reason,
                            "no endpoint of etcd renews the lease"
                        );
                        sleep(ROUND_PAUSE).await;
                    }
                }
            }
        }
    }

    async fn obtain(&mut self) {
        if !self.cell.may_renew(BootTime::now()) {
            // The gate has no event of its own; it is opened by the decision loop, and followed by a poke.
            let _ = timeout(self.links.timing().renew_every(), self.poke.notified()).await;
            return;
        }
        let timing = self.links.timing();
        let deadline = Instant::now() + timing.retry_timeout;
        match grant(&self.links, timing.ttl, deadline).await {
            Ok((id, sent, ttl)) => self.cell.granted(id, sent, ttl),
            Err(error) => {
                tracing::warn!(%error, "no lease");
                sleep(ROUND_PAUSE).await;
            }
        }
    }

    /// Renews lease `id` through one endpoint until that ends.
    async fn serve(&mut self, id: i64, failures: &mut usize) -> End {
        let index = self.links.preferred();
        let end = match self.try_serve(index, id, failures).await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        if let End::Failed(_) = end {
            self.links.forget(index);
            self.links.move_on_from(index);
        }
        end
    }

    async fn try_serve(
        &mut self,
        index: usize,
        id: i64,
        failures: &mut usize,
    ) -> Result<std::convert::Infallible, End> {
        let within = self.links.timing().renew_within();
        let client = self.links.client(index, within).await.map_err(End::Failed)?;
        let mut stream = None;
        let mut waiting: Vec<Refresh> = Vec::new();
        let mut every = interval(self.links.timing().renew_every());
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = every.tick() => {}
                () = self.poke.notified() => {}
                Some(refresh) = self.refreshes.recv() => waiting.push(refresh),
            }
            while let Ok(refresh) = self.refreshes.try_recv() {
                waiting.push(refresh);
            }
            if self.cell.state().id != id {
                return Err(End::Superseded);
            }
            if every.period() != self.links.timing().renew_every() {
                every = interval(self.links.timing().renew_every());
                every.set_missed_tick_behavior(MissedTickBehavior::Delay);
                every.reset();
            }
            if !self.cell.may_renew(BootTime::now()) {
                continue;
            }
            // Opening sends a first renewal by itself, whose answer tells too little to be counted.
            let (keeper, answers) = match &mut stream {
                Some(stream) => stream,
                None => {
                    let mut client = client.clone();
                    let opened = timeout(within, client.lease_keep_alive(id)).await;
                    let opened = opened.map_err(|_| End::Failed(Failure::silent(within)))??;
                    stream.insert(opened)
                }
            };
            self.renew(id, keeper, answers, within).await?;
            *failures = 0;
            let state = self.cell.state();
            for refresh in waiting.drain(..) {
                // Whoever asked may have stopped waiting.
                let _ = refresh.send(state);
            }
        }
    }

    async fn renew(
        &self,
        id: i64,
        keeper: &mut LeaseKeeper,
        answers: &mut LeaseKeepAliveStream,
        within: Duration,
    ) -> Result<(), End> {
        // Before the sending: however long this process then stands still, the lease is not counted longer.
        let sent = BootTime::now();
        let exchange = async {
            keeper.keep_alive().await?;
            answers.message().await
        };
        let answer = timeout(within, exchange).await;
        let answer = answer.map_err(|_| End::Failed(Failure::silent(within)))??;
        let answer =
            answer.ok_or_else(|| End::Failed(Failure::elsewhere("the stream was closed")))?;
        self.links.terms().check(answer.header()).map_err(End::Failed)?;
        if answer.id() != id {
            return Err(End::Failed(Failure::elsewhere("the answer is for another lease")));
        }
        match u64::try_from(answer.ttl()) {
            Ok(seconds) if seconds > 0 => {
                self.cell.renewed(id, sent, Duration::from_secs(seconds));
                Ok(())
            }
            _ => Err(End::Gone),
        }
    }

    /// A member says that the lease is gone. Another is asked the same before it is believed.
    async fn bury(&self, id: i64) {
        let deadline = Instant::now() + self.links.timing().renew_within() * 2;
        let asked = self
            .links
            .ask(deadline, async |mut client| Ok(client.lease_time_to_live(id, None).await?.ttl()));
        match asked.await {
            Ok(seconds) if seconds > 0 => {
                tracing::warn!(lease = format!("{id:x}"), "one member does not know the lease");
                sleep(ROUND_PAUSE).await;
            }
            Ok(_) | Err(DcsError::NoLease(_)) => {
                tracing::warn!(
                    lease = format!("{id:x}"),
                    "the lease is gone: it ran out, or was revoked"
                );
                self.cell.lost(id, BootTime::now());
            }
            // Nobody can tell now; its time runs on.
            Err(error) => tracing::warn!(%error, "cannot ask after the lease"),
        }
    }
}
