//! How a call gets its connection: which member, and that it still is what it was chosen for.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use deadpool::managed::Object;
use futures_util::future::poll_fn;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::client::{Client, Role};
use crate::config::WhenNone;
use crate::describe::describe_leader;
use crate::error::CheckoutError;
use crate::hold::{Gate, HoldError, Permit};
use crate::node::{CheckoutFailure, ConnObject, DialError, Node, Passage};
use crate::patroni::Lsn;
use crate::pool::{Deadline, Shared, WriteTarget};
use crate::routing::{Freshness, Ineligible, ReadChoice, ReadPolicy, choose_read, pick_two};
use crate::telemetry::Wait;
use crate::token::{CausalToken, Satisfaction, Standing};
use crate::topology::{ClusterView, Epoch, Suspicion};

/// The pause before another attempt on a member that just failed, if nothing is heard meanwhile.
const RETRY_PAUSE: Duration = Duration::from_millis(25);

/// Where a replica's replay has come to; null on a server that is none.
const REPLAYED: &str = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN \
     (pg_catalog.pg_last_wal_replay_lsn() - '0/0'::pg_catalog.pg_lsn)::int8 END";

/// Whether a replica has what a token asks for.
enum Replayed {
    Yes,
    No,
    /// It did not answer.
    Lost,
}

/// One call that wants a connection. Counted as lent from the start, so that `close` waits for checkouts that
/// are under way; and as waiting from the moment when it has to wait.
pub(crate) struct Attempt<'a> {
    shared: &'a Shared,
    role: Role,
    waited: Wait,
    started: Instant,
    deadline: Instant,
    first_error: Option<(String, Box<DialError>)>,
    waits: bool,
    /// Whether the client that came of it took the count over.
    served: bool,
    /// Of one that has queued at the gate already.
    let_go: Option<Permit<&'a Gate>>,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if self.waits {
            self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
        }
        self.waited.end(&self.shared.meter, self.role);
        if !self.served {
            self.shared.lent.end();
        }
    }
}

/// The leader's connection that came back a moment ago, where all is as it mostly is. No queue, no clock.
#[inline]
pub(crate) fn leader_at_hand(shared: &Shared, role: Role) -> Option<Client> {
    if !shared.gate.is_open() {
        return None;
    }
    // Before the look at `closed`, so that `close` waits for it or it sees the close.
    shared.lent.begin();
    let client = take_at_hand(shared, role);
    if client.is_none() {
        shared.lent.end();
    }
    client
}

#[inline]
fn take_at_hand(shared: &Shared, role: Role) -> Option<Client> {
    if shared.closed.load(Ordering::SeqCst) {
        return None;
    }
    let target = shared.target.load();
    let target = target.as_ref()?;
    let object = target.node.at_hand()?;
    let verified = object.verified_reign() == target.reign;
    if !verified || shared.reign.load(Ordering::Acquire) != target.reign {
        // Back to the pool, to be looked at.
        return None;
    }
    let node = Arc::clone(&target.node);
    Some(Client::new(object, node, role, true, Some(target.epoch)).watched_for(target))
}

impl<'a> Attempt<'a> {
    pub(crate) fn begin(shared: &'a Shared, role: Role, deadline: &Deadline) -> Self {
        shared.lent.begin();
        let Deadline { started, at } = *deadline;
        Self {
            shared,
            role,
            waited: Wait::default(),
            started,
            deadline: at,
            first_error: None,
            waits: false,
            served: false,
            let_go: None,
        }
    }

    /// From here on it may have to wait, as not more than so many may.
    fn may_wait(&mut self) -> Result<(), CheckoutError> {
        if self.waits {
            return Ok(());
        }
        self.waits = true;
        let limit = self.shared.config.pool.max_waiting;
        if self.shared.waiting.fetch_add(1, Ordering::AcqRel) >= limit {
            return Err(CheckoutError::TooManyWaiting { limit });
        }
        Ok(())
    }

    fn serve(
        &mut self,
        object: ConnObject,
        node: &Arc<Node>,
        role: Role,
        leads: bool,
        epoch: Option<Epoch>,
    ) -> Client {
        self.served = true;
        Client::new(object, Arc::clone(node), role, leads, epoch)
    }

    /// It need not queue at the gate again, but for another leader.
    pub(crate) fn let_go(mut self, permit: Option<Permit<&'a Gate>>) -> Self {
        self.let_go = permit;
        self
    }

    /// A connection to the leader.
    pub(crate) async fn leader(mut self, role: Role) -> Result<Client, CheckoutError> {
        loop {
            if self.is_closed() {
                return Err(CheckoutError::Closed);
            }
            // Held here while there is no leader. Kept until the connection is there, or is not to be had.
            let held = match self.let_go.take().or_else(|| self.shared.gate.pass_at_once()) {
                Some(permit) => Ok(permit),
                None => {
                    self.may_wait()?;
                    self.waited.begin();
                    self.shared.gate.pass(self.deadline).await
                }
            };
            let permit = match held {
                Ok(permit) => permit,
                Err(HoldError::TooMany { limit }) => {
                    return Err(CheckoutError::TooManyWaiting { limit });
                }
                Err(HoldError::DeadlinePassed | HoldError::Closed) => return Err(self.no_leader()),
            };
            // Borrowed, not counted: everybody's counter would be the busiest place of the pool.
            let target = self.shared.target.load();
            let Some(target) = &*target else {
                // It was lost again since.
                drop(permit);
                self.pause().await?;
                continue;
            };
            let waited = Wait::default();
            let mut checkout = pin!(target.node.checkout(self.deadline, &waited));
            let got = match poll_fn(|cx| Poll::Ready(checkout.as_mut().poll(cx))).await {
                Poll::Ready(got) => got,
                Poll::Pending => {
                    self.may_wait()?;
                    self.waited.begin();
                    // Not longer than the reign: a frozen node's pool must not keep those who wait for it.
                    tokio::select! {
                        biased;
                        got = checkout => got,
                        () = self.reign_ended(target.reign) => continue,
                    }
                }
            };
            match got {
                Ok(mut object) => {
                    if object.verified_reign() != target.reign
                        && !self.verify(target, &mut object).await
                    {
                        drop(Object::take(object));
                        drop(permit);
                        self.pause().await?;
                        continue;
                    }
                    if self.is_closed() {
                        return Err(CheckoutError::Closed);
                    }
                    // The reign may have ended while the connection was made ready.
                    if self.shared.reign.load(Ordering::Acquire) == target.reign {
                        if permit.was_held() {
                            let waited = self.started.elapsed();
                            tracing::debug!(
                                member = target.node.name,
                                ?waited,
                                "held writer let go"
                            );
                        }
                        let epoch = Some(target.epoch);
                        let client = self.serve(object, &target.node, role, true, epoch);
                        return Ok(client.watched_for(target));
                    }
                }
                Err(failure) => {
                    drop(permit);
                    self.failed(&target.node, failure).await?;
                }
            }
        }
    }

    fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::SeqCst)
    }

    /// Returns when another reign is admitted, or none.
    async fn reign_ended(&self, reign: u64) {
        let mut changed = self.shared.changed.subscribe();
        while self.shared.reign.load(Ordering::Acquire) == reign {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Asks the server itself, once per connection and reign.
    async fn verify(&self, target: &WriteTarget, object: &mut ConnObject) -> bool {
        self.waited.begin();
        let limit = self.deadline.min(Instant::now() + self.shared.config.probe.timeout);
        let question = object.query_one("SELECT pg_catalog.pg_is_in_recovery()", &[]);
        let suspicion = match timeout_at(limit, question).await {
            Ok(Ok(row)) if row.try_get(0).ok() == Some(false) => {
                object.verified_in(target.reign);
                return true;
            }
            Ok(Ok(_)) => Suspicion::ReadOnly,
            Ok(Err(_)) | Err(_) => Suspicion::ConnectionLost,
        };
        target.node.suspect(suspicion);
        false
    }

    /// A connection under `policy`.
    pub(crate) async fn read(mut self, policy: &ReadPolicy) -> Result<Client, CheckoutError> {
        self.may_wait()?;
        let mut avoid: Vec<String> = Vec::new();
        self.shared.want_fresh(policy, self.started);
        loop {
            if self.is_closed() {
                return Err(CheckoutError::Closed);
            }
            let view = self.shared.view.load_full();
            let nodes = self.shared.nodes.load_full();
            if let Some(token) = policy.token()
                && !self.has_standing(&view, token)?
            {
                let version = view.version;
                if !self.changed_unless(|shared| shared.view.load().version != version).await {
                    return Err(self.token_unknown(token));
                }
                continue;
            }
            let passes = |name: &str| nodes.get(name).is_none_or(|node| node.guard.would_pass());
            let choice = choose_read(&view, policy, &avoid, passes, Instant::now());
            let (replicas, last_resort) = match choice {
                // Where only a replica was missing, one may come before a leader does.
                ReadChoice::Leader
                    if policy.freshness != Freshness::Leader
                        && self.shared.target.load().is_none() =>
                {
                    let version = view.version;
                    // The view is published before the target.
                    let moved = |shared: &Shared| {
                        shared.view.load().version != version || shared.target.load().is_some()
                    };
                    if !self.changed_unless(moved).await {
                        return Err(self.no_leader());
                    }
                    continue;
                }
                ReadChoice::Leader => return self.leader(Role::Read).await,
                ReadChoice::Replicas { members, last_resort } => (members, last_resort),
                ReadChoice::Wait(reasons) => {
                    let version = view.version;
                    if !self.changed_unless(|shared| shared.view.load().version != version).await {
                        return Err(self.no_replica(reasons));
                    }
                    continue;
                }
                ReadChoice::Refuse(reasons) => return Err(self.no_replica(reasons)),
            };
            let candidates: Vec<&Arc<Node>> =
                replicas.iter().filter_map(|member| nodes.get(&member.name)).collect();
            let cost = |index: usize| {
                let load = &candidates[index].load;
                (load.in_flight(), load.latency())
            };
            let Some(chosen) = pick_two(candidates.len(), cost, &mut rand::rng()) else {
                self.pause().await?;
                continue;
            };
            let node = candidates[chosen];
            let test = match node.guard.pass(last_resort) {
                Passage::Free => None,
                Passage::OnTrial(test) => Some(test),
                // Another call was a moment faster: now it is passed over.
                Passage::Refused => continue,
            };
            let got = match (test, node.checkout(self.deadline, &self.waited).await) {
                (None, got) => got,
                (Some(test), Ok(object)) => {
                    let limit =
                        self.deadline.min(Instant::now() + self.shared.config.probe.timeout);
                    node.try_out(object, test, limit).await
                }
                (Some(test), Err(failure)) => {
                    if let CheckoutFailure::Dial(error) = &failure {
                        test.failed_to_connect(error);
                    }
                    Err(failure)
                }
            };
            match got {
                Ok(object) => {
                    if let Some(token) = policy.token() {
                        let patience = policy.replica_patience();
                        match self.has_replayed(node, &object, token, patience).await {
                            Replayed::Yes => {}
                            Replayed::No if policy.when_none == WhenNone::Leader => {
                                drop(object);
                                return self.leader(Role::Read).await;
                            }
                            Replayed::No if policy.when_none == WhenNone::Wait => {
                                return Err(self.behind_token(node));
                            }
                            Replayed::No => {
                                avoid.push(node.name.clone());
                                if candidates.iter().all(|node| avoid.contains(&node.name)) {
                                    return Err(self.behind_token(node));
                                }
                                continue;
                            }
                            Replayed::Lost => {
                                drop(Object::take(object));
                                avoid.push(node.name.clone());
                                self.pause().await?;
                                continue;
                            }
                        }
                    }
                    if self.is_closed() {
                        return Err(CheckoutError::Closed);
                    }
                    // Waiting for the connection may have made it too old for this read.
                    if !self.still_chosen(&view, policy, &node.name) {
                        continue;
                    }
                    return Ok(self.serve(object, node, Role::Read, false, view.epoch));
                }
                Err(failure) => {
                    avoid.push(node.name.clone());
                    let refused = self.note(failure, node);
                    // Another one is tried at once; only when all have failed is there a pause, or an
                    // error where waiting would not help.
                    if candidates.iter().all(|node| avoid.contains(&node.name)) {
                        refused?;
                        avoid.clear();
                        self.pause().await?;
                    }
                }
            }
        }
    }

    /// Whether `name` is still a choice, where the view has changed since `view`.
    fn still_chosen(&self, view: &ClusterView, policy: &ReadPolicy, name: &str) -> bool {
        let now = self.shared.view.load();
        if now.version == view.version && policy.time_bound().is_none() {
            return true;
        }
        // A preference for a tag is no condition.
        let any = ReadPolicy { prefer_tag: None, ..policy.clone() };
        match choose_read(&now, &any, &[], |_| true, Instant::now()) {
            ReadChoice::Replicas { members, .. } => {
                members.iter().any(|member| member.name == name)
            }
            ReadChoice::Leader | ReadChoice::Wait(_) | ReadChoice::Refuse(_) => false,
        }
    }

    /// Whether the token's write is known to be part of the current history; an error where it is known not
    /// to be.
    fn has_standing(&self, view: &ClusterView, token: CausalToken) -> Result<bool, CheckoutError> {
        let Some(epoch) = view.epoch else { return Ok(false) };
        let history = self.shared.past.history(view);
        let standing = token.standing(epoch.system_id, epoch.timeline, &history);
        let why = match standing {
            Standing::Valid => return Ok(true),
            // The view is older than the token, or the switch points are not known yet.
            Standing::Future | Standing::Unknown => return Ok(false),
            Standing::OtherCluster => "it comes from another cluster".to_owned(),
            Standing::Lost { timeline, switch_lsn } => format!(
                "its write was lost in a failover, when timeline {timeline} was left at {switch_lsn}"
            ),
        };
        Err(CheckoutError::Token { token, standing, why })
    }

    fn token_unknown(&self, token: CausalToken) -> CheckoutError {
        let why = "its place in the cluster's history is not known yet".to_owned();
        CheckoutError::Token { token, standing: Standing::Unknown, why }
    }

    fn behind_token(&self, node: &Node) -> CheckoutError {
        self.no_replica(vec![(node.name.clone(), Ineligible::BehindToken)])
    }

    /// Asks a replica whether it has replayed up to the token, again and again while patience lasts.
    async fn has_replayed(
        &self,
        node: &Node,
        object: &ConnObject,
        token: CausalToken,
        patience: Duration,
    ) -> Replayed {
        let until =
            Instant::now().checked_add(patience).unwrap_or(self.deadline).min(self.deadline);
        let mut pause = Duration::from_millis(1);
        loop {
            let question = object.query_typed(REPLAYED, &[]);
            let Ok(Ok(rows)) = timeout_at(self.deadline, question).await else {
                node.suspect(Suspicion::ConnectionLost);
                return Replayed::Lost;
            };
            let view = self.shared.view.load();
            let answer = rows.first().and_then(|row| {
                let replayed = Lsn(row.try_get::<_, Option<i64>>(0).ok()??.cast_unsigned());
                // Its own word, or an older one of it: then the answer is no, for now. What its agent
                // wrote down may be ahead of what it replays.
                let timeline = view.members.get(&node.name)?.report()?.timeline;
                let history = self.shared.past.history(&view);
                Some(token.satisfied_by(timeline, replayed, &history))
            });
            if answer == Some(Satisfaction::Yes) {
                return Replayed::Yes;
            }
            drop(view);
            self.waited.begin();
            if Instant::now() + pause >= until {
                return Replayed::No;
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Waits for the view to change, unless `already` holds; false when the deadline has passed.
    async fn changed_unless(&self, already: impl Fn(&Shared) -> bool) -> bool {
        let mut changed = self.shared.changed.subscribe();
        if already(self.shared) {
            return true;
        }
        self.waited.begin();
        timeout_at(self.deadline, changed.changed()).await.is_ok()
    }

    /// Keeps the first error that may pass by itself; gives back the ones that will not.
    fn note(&mut self, failure: CheckoutFailure, node: &Node) -> Result<(), CheckoutError> {
        match failure {
            CheckoutFailure::Dial(error) if error.is_transient() => {
                self.first_error.get_or_insert_with(|| (node.name.clone(), Box::new(error)));
                Ok(())
            }
            CheckoutFailure::Dial(source) => {
                Err(CheckoutError::Refused { node: node.name.clone(), source: Box::new(source) })
            }
            CheckoutFailure::TimedOut => Err(self.exhausted(node)),
            CheckoutFailure::Closed => Ok(()),
        }
    }

    async fn failed(&mut self, node: &Node, failure: CheckoutFailure) -> Result<(), CheckoutError> {
        self.note(failure, node)?;
        self.pause().await
    }

    /// Waits a moment, or until another leader is admitted.
    async fn pause(&mut self) -> Result<(), CheckoutError> {
        self.waited.begin();
        let until = Instant::now() + RETRY_PAUSE;
        if until >= self.deadline {
            return Err(self.out_of_time());
        }
        // Only another reign ends it early: each failed attempt is news too, and would end it at once.
        let reign = self.shared.reign.load(Ordering::Acquire);
        tokio::select! {
            () = self.reign_ended(reign) => {}
            () = sleep_until(until) => {}
        }
        Ok(())
    }

    /// Where a leader is admitted it is not the leader that is missing.
    fn out_of_time(&mut self) -> CheckoutError {
        match self.first_error.take() {
            Some((node, source)) if self.shared.target.load().is_some() => {
                CheckoutError::Refused { node, source }
            }
            first_error => {
                self.first_error = first_error;
                self.no_leader()
            }
        }
    }

    fn no_leader(&mut self) -> CheckoutError {
        if self.is_closed() {
            return CheckoutError::Closed;
        }
        CheckoutError::NoLeader {
            waited: self.started.elapsed(),
            state: describe_leader(&self.shared.view.load()),
            first_error: self.first_error.take().map(|(_, error)| error),
        }
    }

    fn no_replica(&self, reasons: Vec<(String, Ineligible)>) -> CheckoutError {
        if self.is_closed() {
            return CheckoutError::Closed;
        }
        CheckoutError::NoReplica { waited: self.started.elapsed(), reasons }
    }

    fn exhausted(&mut self, node: &Node) -> CheckoutError {
        CheckoutError::Exhausted {
            node: node.name.clone(),
            waited: self.started.elapsed(),
            max_size: self.shared.config.pool.max_size,
            first_error: self.first_error.take().map(|(_, error)| error),
        }
    }
}
