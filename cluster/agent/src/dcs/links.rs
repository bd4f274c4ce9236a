//! The connections: one client per endpoint, and one endpoint at a time.
//!
//! etcd_client's own balancer goes on using endpoints that are down or frozen, so each endpoint has a
//! client of its own here, every attempt has a deadline, and a failed one moves all users on to the next
//! endpoint.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, ResponseHeader, TlsOptions};
use tokio::time::{Instant, sleep, timeout};

use super::error::{DcsError, Failure, FailureKind};
use super::settings::{DcsSettings, DcsTiming};

/// HTTP/2 pings go out this often, and an unanswered one ends the connection after as long.
const KEEPALIVE: Duration = Duration::from_secs(1);
/// The pause after a round in which no endpoint answered.
const ROUND_PAUSE: Duration = Duration::from_millis(150);
/// No attempt is begun with less time left than this.
const TOO_LATE: Duration = Duration::from_millis(20);

/// An answer, and whether an earlier attempt at the same may have been applied before it.
pub(super) struct Answered<T> {
    pub(super) value: T,
    pub(super) after_unknown: bool,
}

pub(super) struct Links {
    settings: DcsSettings,
    tls: Option<TlsOptions>,
    timing: RwLock<DcsTiming>,
    links: Vec<Link>,
    preferred: AtomicUsize,
    terms: Terms,
}

struct Link {
    endpoint: String,
    client: Mutex<Option<Client>>,
    /// etcd said that it has no users: the next connection is made without ours.
    without_user: AtomicBool,
}

impl Links {
    pub(super) fn new(settings: DcsSettings) -> Result<Self, DcsError> {
        let tls = settings.tls_options()?;
        let links = settings.endpoints.iter().map(|endpoint| Link {
            endpoint: endpoint.clone(),
            client: Mutex::new(None),
            without_user: false.into(),
        });
        Ok(Self {
            links: links.collect(),
            tls,
            timing: RwLock::new(settings.timing),
            preferred: AtomicUsize::new(0),
            terms: Terms::default(),
            settings,
        })
    }

    pub(super) fn settings(&self) -> &DcsSettings {
        &self.settings
    }

    pub(super) fn timing(&self) -> DcsTiming {
        *self.timing.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_timing(&self, timing: DcsTiming) {
        *self.timing.write().unwrap_or_else(PoisonError::into_inner) = timing;
    }

    pub(super) fn terms(&self) -> &Terms {
        &self.terms
    }

    pub(super) fn count(&self) -> usize {
        self.links.len()
    }

    pub(super) fn preferred(&self) -> usize {
        self.preferred.load(Ordering::Relaxed)
    }

    pub(super) fn endpoint(&self, index: usize) -> &str {
        &self.links[index].endpoint
    }

    /// Everyone goes on to the endpoint after `index`, unless somebody has moved already.
    pub(super) fn move_on_from(&self, index: usize) {
        let next = (index + 1) % self.links.len();
        let _ = self.preferred.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The connection to an endpoint is not to be used again.
    pub(super) fn forget(&self, index: usize) {
        self.links[index].client.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// The client of an endpoint: the one at hand, or a new one, logged in where there is a user.
    pub(super) async fn client(&self, index: usize, within: Duration) -> Result<Client, Failure> {
        let link = &self.links[index];
        if let Some(client) = &*link.client.lock().unwrap_or_else(PoisonError::into_inner) {
            return Ok(client.clone());
        }
        let mut options = ConnectOptions::new()
            .with_connect_timeout(within)
            .with_keep_alive(KEEPALIVE, KEEPALIVE)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let Some(tls) = &self.tls {
            options = options.with_tls(tls.clone());
        }
        if let (Some(user), Some(password)) = (&self.settings.username, &self.settings.password)
            && !link.without_user.swap(false, Ordering::Relaxed)
        {
            options = options
                .with_user(user.clone(), password.expose().to_owned())
                .with_auto_token_refresh(true);
        }
        let connecting = Client::connect([link.endpoint.as_str()], Some(options));
        let client = match timeout(within, connecting).await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => {
                let failure = Failure::of(&error);
                if failure.kind == FailureKind::AuthIsOff {
                    tracing::debug!(endpoint = link.endpoint, "etcd has no users");
                    link.without_user.store(true, Ordering::Relaxed);
                }
                // Logging in changes nothing: there is no unknown outcome.
                return Err(match failure.kind.maybe_applied() {
                    true => Failure { kind: FailureKind::Elsewhere, ..failure },
                    false => failure,
                });
            }
            Err(_) => {
                return Err(Failure::elsewhere(format!("cannot connect within {within:?}")));
            }
        };
        *link.client.lock().unwrap_or_else(PoisonError::into_inner) = Some(client.clone());
        Ok(client)
    }

    /// Carries `operation` out at one endpoint after another, until one answers or `deadline` passes.
    ///
    /// An operation that writes must be one that may be applied twice: after an attempt of unknown
    /// outcome it is asked again.
    pub(super) async fn call<T, F, Fut>(
        &self,
        deadline: Instant,
        operation: F,
    ) -> Result<Answered<T>, DcsError>
    where
        F: Fn(Client) -> Fut,
        Fut: Future<Output = Result<T, etcd_client::Error>>,
    {
        let began = Instant::now();
        let mut round = Round::new(self.links.len());
        loop {
            for _ in 0..self.links.len() {
                let index = self.preferred();
                let left = deadline.saturating_duration_since(Instant::now());
                if left < TOO_LATE {
                    return Err(self.give_up(round, began.elapsed()));
                }
                let within = self.timing().attempt_within(self.links.len()).min(left);
                match self.attempt(index, within, &operation).await {
                    Ok(value) => {
                        return Ok(Answered { value, after_unknown: round.maybe_applied });
                    }
                    Err(failure) => {
                        let endpoint = self.endpoint(index);
                        tracing::debug!(endpoint, reason = failure.reason, "etcd attempt failed");
                        if !matches!(failure.kind, FailureKind::Lease | FailureKind::Refused) {
                            self.forget(index);
                        }
                        if !failure.kind.try_elsewhere() {
                            return Err(fatal(endpoint, failure));
                        }
                        round.note(index, failure);
                        self.move_on_from(index);
                    }
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            sleep(ROUND_PAUSE.min(left)).await;
        }
    }

    /// [`call`](Self::call) for what only reads.
    pub(super) async fn ask<T, F, Fut>(&self, deadline: Instant, question: F) -> Result<T, DcsError>
    where
        F: Fn(Client) -> Fut,
        Fut: Future<Output = Result<T, etcd_client::Error>>,
    {
        let answered = self.call(deadline, question).await;
        answered.map(|answered| answered.value).map_err(DcsError::of_a_read)
    }

    async fn attempt<T, F, Fut>(
        &self,
        index: usize,
        within: Duration,
        operation: &F,
    ) -> Result<T, Failure>
    where
        F: Fn(Client) -> Fut,
        Fut: Future<Output = Result<T, etcd_client::Error>>,
    {
        let began = Instant::now();
        let client = self.client(index, within).await?;
        let left = within.saturating_sub(began.elapsed()).max(TOO_LATE);
        match timeout(left, operation(client)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.perhaps_bare(Failure::of(&error))),
            Err(_) => Err(Failure::silent(within)),
        }
    }

    /// A connection from before etcd had users names none: the next one will.
    fn perhaps_bare(&self, failure: Failure) -> Failure {
        let bare =
            failure.kind == FailureKind::Auth && failure.reason.contains("user name is empty");
        match bare && self.settings.username.is_some() {
            true => Failure { kind: FailureKind::Reconnect, ..failure },
            false => failure,
        }
    }

    fn give_up(&self, round: Round, waited: Duration) -> DcsError {
        let maybe_applied = round.maybe_applied;
        let all = |kind| round.failures.iter().flatten().all(|failure| failure.kind == kind);
        let (no_leader, silent) = (all(FailureKind::NoLeader), all(FailureKind::Silent));
        let any = round.failures.iter().any(Option::is_some);
        let failures = round.failures.into_iter().enumerate().filter_map(|(index, failure)| {
            Some((self.endpoint(index).to_owned(), failure?.reason))
        });
        let failures = failures.collect();
        match any {
            true if no_leader => DcsError::NoLeader { failures, maybe_applied },
            true if !silent => DcsError::Unreachable { waited, failures, maybe_applied },
            _ => DcsError::TimedOut { waited, failures, maybe_applied },
        }
    }
}

fn fatal(endpoint: &str, failure: Failure) -> DcsError {
    let (endpoint, reason) = (endpoint.to_owned(), failure.reason);
    match failure.kind {
        FailureKind::Auth => DcsError::AuthFailed { endpoint, reason },
        FailureKind::Permission => DcsError::PermissionDenied { endpoint, reason },
        FailureKind::Lease => DcsError::NoLease(reason),
        _ => DcsError::Refused { endpoint, reason },
    }
}

/// The last failure of each endpoint.
struct Round {
    failures: Vec<Option<Failure>>,
    maybe_applied: bool,
}

impl Round {
    fn new(count: usize) -> Self {
        Self { failures: vec![None; count], maybe_applied: false }
    }

    fn note(&mut self, index: usize, failure: Failure) {
        self.maybe_applied |= failure.kind.maybe_applied();
        self.failures[index] = Some(failure);
    }
}

/// The newest raft term seen. What a member says in an older one is not believed: it has been cut off,
/// or frozen, and does not know that another leads.
#[derive(Default)]
pub(super) struct Terms {
    newest: Mutex<(u64, u64)>,
}

impl Terms {
    /// Takes a header in.
    ///
    /// # Errors
    /// Where its term is older than one that was seen.
    pub(super) fn check(&self, header: Option<&ResponseHeader>) -> Result<(), Failure> {
        match header {
            Some(header) => self.check_numbers(header.cluster_id(), header.raft_term()),
            None => Ok(()),
        }
    }

    fn check_numbers(&self, cluster: u64, term: u64) -> Result<(), Failure> {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        // Another cluster behind the same address, or one restored from a copy, counts anew.
        if newest.0 == cluster && term < newest.1 {
            return Err(Failure::elsewhere(format!(
                "it is in raft term {term}, others are in {}: it has been cut off",
                newest.1
            )));
        }
        *newest = (cluster, term);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_term_is_not_believed_and_a_new_cluster_is() {
        let terms = Terms::default();
        assert!(terms.check_numbers(1, 5).is_ok());
        assert!(terms.check_numbers(1, 5).is_ok());
        assert!(terms.check_numbers(1, 7).is_ok());
        assert!(terms.check_numbers(1, 6).is_err());
        assert!(terms.check_numbers(2, 1).is_ok());
    }
}
