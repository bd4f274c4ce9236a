//! A member's circuit breaker at work: what counts as an outcome, and each transition told once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::breaker::{
    BreakerConfig, Failure, Identity, Outcome, Pass, Proof, SharedBreaker, State, Transition, Trial,
};
use super::dial::DialError;
use super::wire::WireState;
use crate::topology::{BreakerState, ProbeFailure, TopologyEvent};

/// Passes on what happened, to traces and to subscribers.
pub(crate) type TellFn = Arc<dyn Fn(TopologyEvent) + Send + Sync>;

/// A connection that took longer than this, and was given up by whoever wanted it, speaks against the
/// member: a handshake takes some milliseconds.
const SLOW_DIAL: Duration = Duration::from_millis(250);

/// The breaker of one member.
pub(crate) struct Guard {
    member: String,
    breaker: Arc<SharedBreaker>,
    tell: TellFn,
    transitions: AtomicU64,
}

/// The breaker, for the report.
#[derive(Debug, Clone)]
pub(crate) struct GuardView {
    pub(crate) state: BreakerState,
    pub(crate) since: Instant,
    /// Why it is open.
    pub(crate) reason: Option<String>,
    pub(crate) transitions: u64,
}

/// Whether a read may go to the member.
pub(crate) enum Passage {
    /// As any other.
    Free,
    /// The member has to answer first; what comes of it decides about others.
    OnTrial(Test),
    /// Another call is on trial.
    Refused,
}

/// A call on trial. Dropped, it tells nothing.
pub(crate) struct Test {
    trial: Trial,
    guard: Arc<Guard>,
}

impl Test {
    /// The member answered.
    pub(crate) fn passed(self) {
        self.guard.note(self.trial.settle(Outcome::Success, Instant::now()));
    }

    /// No connection could be made.
    pub(crate) fn failed_to_connect(self, error: &DialError) {
        self.failed(failure_of(error));
    }

    pub(super) fn failed(self, failure: Failure) {
        self.guard.note(self.trial.settle(Outcome::Failure(failure), Instant::now()));
    }
}

/// What is noted of a connection when it is handed out while all is not well: whether it was of any use is
/// told when it comes back. In the steady state there is none.
pub(crate) struct Watch {
    answers: u64,
    last_resort: Option<Test>,
}

impl Guard {
    pub(crate) fn new(member: String, config: BreakerConfig, tell: TellFn) -> Arc<Self> {
        Arc::new(Self {
            member,
            breaker: Arc::new(SharedBreaker::new(config, Instant::now())),
            tell,
            transitions: AtomicU64::new(0),
        })
    }

    pub(crate) fn view(&self) -> GuardView {
        let state = self.breaker.state();
        GuardView {
            state: name(&state),
            since: state.since(),
            reason: match state {
                State::Open { reason, .. } => Some(reason.to_string()),
                State::Closed { .. } | State::HalfOpen { .. } => None,
            },
            transitions: self.transitions.load(Ordering::Relaxed),
        }
    }

    /// Whether a read may go to the member now: one atomic load while it is well.
    #[inline]
    pub(crate) fn would_pass(&self) -> bool {
        self.breaker.is_closed() || self.breaker.would_pass(Instant::now())
    }

    /// Asks for a read; `last` where it has nowhere else to go, which is never refused.
    #[inline]
    pub(crate) fn pass(self: &Arc<Self>, last: bool) -> Passage {
        if self.breaker.is_closed() {
            return Passage::Free;
        }
        self.pass_guarded(last)
    }

    fn pass_guarded(self: &Arc<Self>, last: bool) -> Passage {
        let now = Instant::now();
        let (pass, transition) =
            if last { self.breaker.pass_as_last(now) } else { self.breaker.try_pass(now) };
        self.note(transition);
        match pass {
            Pass::Allowed => Passage::Free,
            Pass::Probe(trial) | Pass::LastResort(trial) => {
                Passage::OnTrial(Test { trial, guard: Arc::clone(self) })
            }
            Pass::Refused { .. } => Passage::Refused,
        }
    }

    /// Whether nothing has failed lately, so that nothing need be noted: one atomic load.
    #[inline]
    pub(crate) fn is_calm(&self) -> bool {
        self.breaker.is_calm()
    }

    /// What to note of a connection that is handed out. It refuses nobody: a writer to the leader passes as
    /// if it were the last resort.
    pub(crate) fn watch(self: &Arc<Self>, wire: &WireState) -> Option<Watch> {
        if self.is_calm() {
            return None;
        }
        let trial = self.breaker.last_resort(Instant::now());
        let last_resort = trial.map(|trial| Test { trial, guard: Arc::clone(self) });
        Some(Watch { answers: wire.answers(), last_resort })
    }

    /// A connection comes back in good order.
    pub(crate) fn came_back(&self, watch: Watch, wire: &WireState) {
        // Whoever did not use it cannot tell.
        if wire.answers() == watch.answers {
            return;
        }
        match watch.last_resort {
            Some(test) => test.passed(),
            None => self.breaker.success(Proof::Answered, Instant::now),
        }
    }

    /// The server ended a connection that was in use.
    pub(crate) fn lost_in_use(&self) {
        self.fail(Failure::Error);
    }

    /// A connection was made, and the server answered on it.
    pub(crate) fn connected(&self) {
        self.breaker.success(Proof::Connected, Instant::now);
    }

    /// No connection could be made.
    pub(crate) fn not_connected(&self, error: &DialError) {
        self.fail(failure_of(error));
    }

    /// Who wanted a connection went away before it was made.
    pub(crate) fn not_waited_for(&self, began: Instant) {
        if began.elapsed() >= SLOW_DIAL {
            self.fail(Failure::Connect);
        }
    }

    /// Its probe was answered, by the member of this identity.
    pub(crate) fn probe_answered(&self, identity: Identity) {
        // Before the first reign nothing is known that a reign could end.
        if identity.reign > 0 {
            self.note(self.breaker.reset(identity, Instant::now()));
        }
        self.breaker.success(Proof::Answered, Instant::now);
    }

    pub(crate) fn probe_failed(&self, failure: &ProbeFailure) {
        self.fail(match failure {
            ProbeFailure::Refused(_) => Failure::Connect,
            ProbeFailure::TimedOut(_) => Failure::Timeout,
            ProbeFailure::Failed(_) => Failure::Error,
        });
    }

    /// A test that is due, for the member's own probe to make.
    pub(crate) fn due(self: &Arc<Self>) -> Option<Test> {
        match self.pass(false) {
            Passage::OnTrial(test) => Some(test),
            Passage::Free | Passage::Refused => None,
        }
    }

    /// Lets time pass.
    pub(crate) fn settle_up(&self) {
        self.breaker.settle_up(Instant::now());
    }

    fn fail(&self, failure: Failure) {
        self.note(self.breaker.failure(failure, Instant::now()));
    }

    fn note(&self, transition: Option<Transition>) {
        let Some(Transition { from, to, reason }) = transition else { return };
        self.transitions.fetch_add(1, Ordering::Relaxed);
        (self.tell)(TopologyEvent::BreakerChanged {
            member: self.member.clone(),
            from: name(&from),
            to: name(&to),
            reason: reason.to_string(),
        });
    }
}

/// How a failed dial speaks against the member.
pub(crate) fn failure_of(error: &DialError) -> Failure {
    match error {
        DialError::Unreachable { .. } | DialError::TimedOut { .. } | DialError::Tls { .. } => {
            Failure::Connect
        }
        // It broke off during the handshake.
        DialError::Refused { sqlstate: None, .. } => Failure::Connect,
        DialError::Refused { sqlstate: Some(_), .. } | DialError::Foreign { .. } => Failure::Error,
    }
}

fn name(state: &State) -> BreakerState {
    match state {
        State::Closed { .. } => BreakerState::Closed,
        State::Open { .. } => BreakerState::Open,
        State::HalfOpen { .. } => BreakerState::HalfOpen,
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;

    use tokio::time::advance;

    use super::*;
    use crate::config;
    use crate::patroni::ServerAddress;

    const SECOND: Duration = Duration::from_secs(1);

    fn guard() -> (Arc<Guard>, Arc<Mutex<Vec<String>>>) {
        let told: Arc<Mutex<Vec<String>>> = Arc::default();
        let sink = Arc::clone(&told);
        let tell = move |event| {
            let TopologyEvent::BreakerChanged { member, from, to, reason } = event else {
                panic!("{event:?}");
            };
            sink.lock().expect("lock").push(format!("{member}: {from} -> {to}, {reason}"));
        };
        let config = BreakerConfig::new(&config::BreakerConfig::default(), 10 * SECOND);
        (Guard::new("a".into(), config, Arc::new(tell)), told)
    }

    fn refused() -> DialError {
        let source = io::Error::from(io::ErrorKind::ConnectionRefused);
        let address = ServerAddress { host: "a".into(), port: 5432 };
        DialError::Unreachable { address, source }
    }

    #[tokio::test(start_paused = true)]
    async fn each_transition_is_told_and_counted_once() {
        let (guard, told) = guard();
        assert!(matches!(guard.pass(false), Passage::Free));
        (0..5).for_each(|_| guard.not_connected(&refused()));
        assert!(matches!(guard.pass(false), Passage::Refused));
        assert!(!guard.would_pass() && guard.due().is_none());
        assert_eq!(guard.view().reason.as_deref(), Some("3 connect failures in a row"));
        advance(SECOND).await;
        let test = guard.due().expect("due");
        assert!(guard.due().is_none(), "one at a time");
        test.failed(Failure::Timeout);
        advance(2 * SECOND).await;
        guard.due().expect("due").passed();
        let view = guard.view();
        assert_eq!((view.state, view.transitions), (BreakerState::Closed, 5));
        assert_eq!(
            *told.lock().expect("lock"),
            [
                "a: closed -> open, 3 connect failures in a row",
                "a: open -> half-open, it was open long enough",
                "a: half-open -> open, the probe failed: no answer in time",
                "a: open -> half-open, it was open long enough",
                "a: half-open -> closed, it answers again",
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_watched_connection_that_nobody_used_tells_nothing() {
        let (guard, told) = guard();
        let wire = WireState::new();
        assert!(guard.watch(&wire).is_none(), "all is well");
        (0..3).for_each(|_| guard.not_connected(&refused()));
        let watch = guard.watch(&wire).expect("all is not well");
        guard.came_back(watch, &wire);
        assert_eq!(guard.view().state, BreakerState::Open);
        // Nor does it take the place of the next test.
        let _writer = guard.watch(&wire);
        advance(SECOND).await;
        guard.due().expect("due").passed();
        assert_eq!(told.lock().expect("lock").len(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_away_soon_tells_nothing_of_the_member() {
        let (guard, _) = guard();
        let began = Instant::now();
        (0..9).for_each(|_| guard.not_waited_for(began));
        assert!(guard.would_pass());
        advance(SLOW_DIAL).await;
        (0..3).for_each(|_| guard.not_waited_for(began));
        assert!(!guard.would_pass());
    }
}
