//! The task that follows the cluster's keys: a linearizable read of all, a watch from its revision, and
//! further reads at intervals that prove both.
//!
//! Silence is no sign of health: renewals of a lease make no events, so a dead watch and a quiet cluster
//! look alike. Whatever ends (the stream, the connection, the history that was compacted), it starts over
//! with a read, on the next endpoint.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use etcd_client::{Client, GetOptions, WatchOptions, WatchResponse};
use futures_util::future::{Fuse, FutureExt};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::clock::BootTime;
use super::error::Failure;
use super::lease::LeaseCell;
use super::links::Links;
use super::request::raw_key;
use super::view::{DcsView, Store};
use super::writes::{Names, Reign};

/// The pause after a round in which no endpoint answered, and after one that failed at once.
const ROUND_PAUSE: std::time::Duration = std::time::Duration::from_millis(150);
const SHORT_LIVED: std::time::Duration = std::time::Duration::from_millis(500);

pub(super) struct Watcher {
    pub(super) links: Arc<Links>,
    pub(super) cell: Arc<LeaseCell>,
    pub(super) names: Arc<Names>,
    pub(super) view: watch::Sender<Arc<DcsView>>,
    pub(super) proven_at: Arc<AtomicU64>,
    /// The reign that this process believes in.
    pub(super) reign: watch::Receiver<Option<Reign>>,
    /// Wakes the keeper of the lease.
    pub(super) poke_keeper: Arc<Notify>,
    /// Asks for a proof now.
    pub(super) poke: Arc<Notify>,
}

/// Reads all keys, linearizably.
pub(super) async fn read_all(
    links: &Links,
    client: &mut Client,
) -> Result<(Store, BootTime), etcd_client::Error> {
    let sent = BootTime::now();
    let prefix = links.settings().prefix.as_str();
    let answer = client.get(prefix, Some(GetOptions::new().with_prefix())).await?;
    // A linearizable answer cannot come from a member that was cut off; its term is news, not suspicious.
    let _ = links.terms().check(answer.header());
    let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
    let keys: BTreeMap<_, _> =
        answer.kvs().iter().map(raw_key).map(|raw| (raw.key.clone(), raw)).collect();
    Ok((Store { revision, keys }, sent))
}

impl Watcher {
    /// Never ends by itself. Cancel-safe: it holds nothing but streams.
    pub(super) async fn run(self) {
        let mut failures: BTreeMap<usize, String> = BTreeMap::new();
        loop {
            let index = self.links.preferred();
            let (began, proven) = (Instant::now(), self.proven_at.load(Ordering::Relaxed));
            let failure = match self.follow(index).await {
                Ok(never) => match never {},
                Err(failure) => failure,
            };
            let endpoint = self.links.endpoint(index);
            tracing::debug!(endpoint, reason = failure.reason, "following etcd's keys ended");
            self.links.forget(index);
            self.links.move_on_from(index);
            let lived = self.proven_at.load(Ordering::Relaxed) != proven;
            if lived {
                failures.clear();
            }
            failures.insert(index, failure.reason);
            let round_over = failures.len() >= self.links.count();
            if round_over || (!lived && self.is_silent()) {
                self.say_stale(&failures);
            }
            if round_over {
                failures.clear();
            }
            if round_over || (lived && began.elapsed() < SHORT_LIVED) {
                sleep(ROUND_PAUSE).await;
            }
        }
    }

    fn is_silent(&self) -> bool {
        let proven = BootTime::from_nanos(self.proven_at.load(Ordering::Relaxed));
        let timing = self.links.timing();
        BootTime::now().since(proven) > timing.verify_every() + timing.renew_within()
    }

    fn say_stale(&self, failures: &BTreeMap<usize, String>) {
        let reasons: Vec<String> = failures
            .iter()
            .map(|(index, reason)| format!("{}: {reason}", self.links.endpoint(*index)))
            .collect();
        let reason: Arc<str> = reasons.join("; ").into();
        self.view.send_if_modified(|view| {
            if view.stale.as_ref() == Some(&reason) {
                return false;
            }
            if view.stale.is_none() {
                tracing::warn!(reason = &*reason, "etcd's keys cannot be followed");
            }
            Arc::make_mut(view).stale = Some(reason);
            true
        });
    }

    /// Follows one endpoint until it fails.
    async fn follow(&self, index: usize) -> Result<std::convert::Infallible, Failure> {
        let within = self.links.timing().attempt_within(self.links.count());
        let silent = |_| Failure::silent(within);
        let mut client = self.links.client(index, within).await?;
        let read = timeout(within, read_all(&self.links, &mut client)).await.map_err(silent)?;
        let (mut seen, sent) = read.map_err(|error| Failure::of(&error))?;
        self.proven(sent);
        self.publish(&seen, sent);
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(seen.revision.saturating_add(1))
            .with_progress_notify();
        let prefix = self.links.settings().prefix.as_str();
        let opened = timeout(within, client.watch(prefix, Some(options))).await.map_err(silent)?;
        let mut watch = opened.map_err(|error| Failure::of(&error))?;
        let mut verify = interval(self.links.timing().verify_every());
        verify.set_missed_tick_behavior(MissedTickBehavior::Delay);
        verify.reset();
        // Beside the watch, not before it: a slow proof must not delay events.
        let mut proof = std::pin::pin!(Fuse::terminated());
        let mut proof_begun_at = seen.revision;
        loop {
            tokio::select! {
                message = watch.message() => {
                    let message = message
                        .map_err(|error| Failure::of(&error))?
                        .ok_or_else(|| Failure::elsewhere("the watch ended"))?;
                    if seen.take(events(&message)?) {
                        self.publish(&seen, sent_or(&self.proven_at));
                    }
                }
                () = async { tokio::select! { _ = verify.tick() => {}, () = self.poke.notified() => {} } },
                    if is_done(&proof) =>
                {
                    if verify.period() != self.links.timing().verify_every() {
                        verify = interval(self.links.timing().verify_every());
                        verify.set_missed_tick_behavior(MissedTickBehavior::Delay);
                        verify.reset();
                    }
                    proof_begun_at = seen.revision;
                    let (links, mut client) = (Arc::clone(&self.links), client.clone());
                    proof.set(
                        async move { timeout(within, read_all(&links, &mut client)).await }.fuse(),
                    );
                }
                read = &mut proof => {
                    let read = read.map_err(silent)?;
                    let (fresh, sent) = read.map_err(|error| Failure::of(&error))?;
                    self.proven(sent);
                    if seen.adopt(fresh, proof_begun_at) {
                        self.publish(&seen, sent);
                    } else {
                        self.say_current();
                    }
                }
            }
        }
    }

    fn proven(&self, sent: BootTime) {
        self.proven_at.fetch_max(sent.as_nanos(), Ordering::AcqRel);
    }

    fn say_current(&self) {
        self.view.send_if_modified(|view| {
            let was_stale = view.stale.is_some();
            if was_stale {
                Arc::make_mut(view).stale = None;
            }
            was_stale
        });
    }

    fn publish(&self, seen: &Store, as_of: BootTime) {
        let view = DcsView::new(&self.links.settings().prefix, seen.revision, &seen.keys, as_of);
        self.look_after_the_reign(&view);
        self.view.send_replace(Arc::new(view));
    }

    /// The keeper and the fence learn from here when our own keys went away.
    fn look_after_the_reign(&self, view: &DcsView) {
        let lease = self.cell.state().id;
        if let Some(reign) = *self.reign.borrow()
            // A view from before the reign says nothing about it.
            && view.revision >= reign.create_revision
        {
            let ours = view.leader().is_some_and(|key| {
                key.value == self.names.me.as_bytes()
                    && key.create_revision == reign.create_revision
            });
            if !ours {
                tracing::warn!("the leader key is not ours any more");
                self.cell.dispute(BootTime::now());
                self.poke_keeper.notify_one();
            }
        }
        let before = self.view.borrow().clone();
        let mine = leaderpool::patroni::Key::Member(self.names.me.clone());
        let had = before.key(&mine).is_some_and(|key| key.lease == lease);
        if lease != 0 && had && view.key(&mine).is_none() {
            self.poke_keeper.notify_one();
        }
    }
}

fn sent_or(proven_at: &AtomicU64) -> BootTime {
    BootTime::from_nanos(proven_at.load(Ordering::Acquire))
}

fn is_done<F: Future>(future: &std::pin::Pin<&mut Fuse<F>>) -> bool {
    futures_util::future::FusedFuture::is_terminated(&**future)
}

fn events(message: &WatchResponse) -> Result<Vec<leaderpool::patroni::RawKey>, Failure> {
    if message.compact_revision() != 0 {
        return Err(Failure::elsewhere(format!(
            "the history before revision {} was compacted",
            message.compact_revision()
        )));
    }
    if message.canceled() {
        let reason = format!("the watch was cancelled: {}", message.cancel_reason());
        return Err(Failure::elsewhere(reason));
    }
    Ok(message.events().iter().filter_map(etcd_client::Event::kv).map(raw_key).collect())
}
