//! The circuit breaker of one member: whether it is worth asking.
//!
//! It spares callers the wait for a member that fails, and the member a crowd while it recovers. It never
//! decides who leads, and it never takes the last candidate away: see `keep_passable` in `routing`.
//!
//! - **Closed**: everything passes. It opens after so many connect failures or timeouts in a row, or when too
//!   many of the last window's samples failed.
//! - **Open**: nothing passes before `until`; each opening in a row doubles the time.
//! - **Half-open**: one probe at a time passes. Its success closes the breaker, its failure opens it again.
//!
//! Outcomes of calls that passed while it was closed and arrive later are old news, and only count while
//! it is closed: what opens or closes it then is a [`Ticket`]'s outcome. Everything is forgotten when the
//! member is another one than before: a new reign, or a new postmaster.
//!
//! [`Breaker`] is pure; [`SharedBreaker`] is the one to share.

mod shared;
#[cfg(test)]
mod tests;
mod window;

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use shared::Standing;
pub(super) use shared::{SharedBreaker, Trial};
use window::{Slots, Window};

use crate::config;

/// Far longer than any time that makes sense, and short enough to be added to any moment.
const DAY: Duration = Duration::from_secs(86_400);

/// When a breaker opens, for how long, and when it closes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BreakerConfig {
    /// Connect failures in a row that open it; 0: none do.
    pub(crate) connect_failures: u32,
    /// Timeouts in a row that open it; 0: none do.
    pub(crate) timeouts: u32,
    /// Failures in percent of the window's samples that open it; 0: none do.
    pub(crate) error_percent: u32,
    /// Samples in the window below which the percentage means nothing.
    pub(crate) min_samples: u64,
    /// What counts as recent.
    pub(crate) window: Duration,
    /// How long it is open the first time.
    pub(crate) open_for: Duration,
    /// How long it is open at most.
    pub(crate) open_at_most: Duration,
    /// Successful probes that close it.
    pub(crate) probe_successes: u32,
    /// After this long without an outcome another probe may pass.
    pub(crate) probe_limit: Duration,
}

impl BreakerConfig {
    /// As the section says, with probes that end within `probe_limit` by themselves.
    pub(crate) fn new(section: &config::BreakerConfig, probe_limit: Duration) -> Self {
        Self {
            connect_failures: section.connect_failures,
            timeouts: section.timeouts,
            error_percent: section.error_percent,
            min_samples: section.min_samples.into(),
            window: section.window,
            open_for: section.open_for,
            open_at_most: section.open_at_most,
            probe_successes: section.trials,
            probe_limit,
        }
    }
}

#[cfg(test)]
impl Default for BreakerConfig {
    fn default() -> Self {
        Self::new(&config::BreakerConfig::default(), Duration::from_secs(10))
    }
}

/// How a call succeeded, as far as it speaks for the member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Proof {
    /// A connection was made: it takes new ones, and answers.
    Connected,
    /// It answered on a connection that was there. Whether it would take a new one is not known.
    Answered,
}

/// How a call failed, as far as it speaks against the member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Failure {
    /// No connection could be made.
    Connect,
    /// No answer in time.
    Timeout,
    /// It answered with an error that is the member's and not the statement's, or hung up.
    Error,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Failure::Connect => "no connection",
            Failure::Timeout => "no answer in time",
            Failure::Error => "an error",
        })
    }
}

/// Who a member is: what is known of it holds for one reign and one postmaster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The reign under which it serves.
    pub(crate) reign: u64,
    /// When its postmaster started, in microseconds since 1970.
    pub(crate) started_at: i64,
}

/// Why it opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trip {
    /// So many connect failures in a row.
    ConnectFailures(u32),
    /// So many timeouts in a row.
    Timeouts(u32),
    /// Too many failures in the window.
    ErrorRate {
        /// Failures.
        failed: u64,
        /// All samples.
        of: u64,
    },
    /// The half-open breaker's probe failed.
    ProbeFailed(Failure),
}

impl fmt::Display for Trip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trip::ConnectFailures(times) => write!(f, "{times} connect failures in a row"),
            Trip::Timeouts(times) => write!(f, "{times} timeouts in a row"),
            Trip::ErrorRate { failed, of } => write!(f, "{failed} of {of} calls failed"),
            Trip::ProbeFailed(kind) => write!(f, "the probe failed: {kind}"),
        }
    }
}

/// The state, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Everything passes.
    Closed { since: Instant },
    /// Nothing passes before `until`.
    Open { since: Instant, until: Instant, reason: Trip },
    /// One probe at a time passes.
    HalfOpen { since: Instant, probing: bool },
}

impl State {
    pub(crate) fn since(&self) -> Instant {
        match self {
            State::Closed { since } | State::Open { since, .. } | State::HalfOpen { since, .. } => {
                *since
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn name(&self) -> &'static str {
        match self {
            State::Closed { .. } => "closed",
            State::Open { .. } => "open",
            State::HalfOpen { .. } => "half_open",
        }
    }
}

/// A change of state, to be traced and counted once by whoever is given it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "each transition is traced and counted once"]
pub(crate) struct Transition {
    pub(crate) from: State,
    pub(crate) to: State,
    pub(crate) reason: Reason,
}

/// Why the state changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// It opened.
    Tripped(Trip),
    /// It was open long enough.
    CooledDown,
    /// Enough probes were answered.
    Answered,
    /// The member is another one than before.
    NewIdentity,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Tripped(trip) => trip.fmt(f),
            Reason::CooledDown => f.write_str("it was open long enough"),
            Reason::Answered => f.write_str("it answers again"),
            Reason::NewIdentity => f.write_str("a new reign or a new postmaster"),
        }
    }
}

/// Whether a call may be made; `T` is what its outcome is told with.
#[derive(Debug)]
pub(crate) enum Pass<T> {
    /// As any other.
    Allowed,
    /// As the one probe: its outcome decides.
    Probe(T),
    /// Refused by rights, and let through for want of another candidate. A success counts as a probe's.
    LastResort(T),
    /// Not now.
    Refused {
        /// When it is worth asking again.
        retry_at: Instant,
    },
}

/// Names a call that passed while the breaker was not closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ticket {
    /// The probe of that number.
    Probe(u64),
    /// Let through during the opening of that number.
    LastResort(u64),
}

/// What came of a [`Ticket`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Success,
    Failure(Failure),
    /// It ended without telling anything of the member.
    Abandoned,
}

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one for each member, and nearly always the large one"
)]
enum Mode {
    Closed { since: Instant, connect_failures: u32, timeouts: u32, window: Window },
    Open { since: Instant, until: Instant, reason: Trip },
    HalfOpen { since: Instant, proven: u32, probe: Option<Running> },
}

#[derive(Debug, Clone, Copy)]
struct Running {
    number: u64,
    lapses_at: Instant,
}

/// The circuit breaker, without a clock or a lock.
///
/// Time may stand still or go back a little between calls, as it does between threads: the state never
/// does.
#[derive(Debug)]
pub(crate) struct Breaker {
    config: BreakerConfig,
    mode: Mode,
    identity: Option<Identity>,
    slots: Slots,
    latest: Instant,
    probes: u64,
    /// Counts openings and resets; tickets of an earlier one mean nothing.
    era: u64,
    openings_in_row: u32,
    /// The last opening's length, without jitter.
    cooldown: Duration,
}

impl Breaker {
    pub(crate) fn new(config: BreakerConfig, now: Instant) -> Self {
        Self {
            mode: Mode::closed(now),
            identity: None,
            slots: Slots::new(config.window.min(DAY), now),
            latest: now,
            probes: 0,
            era: 0,
            openings_in_row: 0,
            cooldown: Duration::ZERO,
            config: BreakerConfig {
                open_at_most: config.open_at_most.min(DAY),
                probe_limit: config.probe_limit.min(DAY),
                ..config
            },
        }
    }

    pub(crate) fn state(&self) -> State {
        match &self.mode {
            Mode::Closed { since, .. } => State::Closed { since: *since },
            Mode::Open { since, until, reason } => {
                State::Open { since: *since, until: *until, reason: *reason }
            }
            Mode::HalfOpen { since, probe, .. } => {
                State::HalfOpen { since: *since, probing: probe.is_some() }
            }
        }
    }

    /// A call without a ticket was answered.
    pub(crate) fn success(&mut self, proof: Proof, now: Instant) {
        let now = self.advance(now);
        if let Mode::Closed { connect_failures, timeouts, window, .. } = &mut self.mode {
            match proof {
                Proof::Connected => (*connect_failures, *timeouts) = (0, 0),
                // A server that hangs on to its sessions may take no new ones.
                Proof::Answered => *timeouts = 0,
            }
            window.add(self.slots.number(now), 1, 0);
        }
    }

    /// A call without a ticket failed. `jitter`, uniform over all of `u32`, shortens the opening by up
    /// to a half, so that many pools do not probe a member at the same moment.
    pub(crate) fn failure(
        &mut self,
        kind: Failure,
        jitter: u32,
        now: Instant,
    ) -> Option<Transition> {
        let now = self.advance(now);
        let Mode::Closed { connect_failures, timeouts, window, .. } = &mut self.mode else {
            return None;
        };
        let slot = self.slots.number(now);
        window.add(slot, 0, 1);
        // No failure ends another's run: only a success shows that the member is well in that respect.
        match kind {
            Failure::Connect => *connect_failures = connect_failures.saturating_add(1),
            Failure::Timeout => *timeouts = timeouts.saturating_add(1),
            Failure::Error => {}
        }
        let config = &self.config;
        let (failed, of) = window.totals(slot);
        let trip = if reached(*connect_failures, config.connect_failures) {
            Trip::ConnectFailures(*connect_failures)
        } else if reached(*timeouts, config.timeouts) {
            Trip::Timeouts(*timeouts)
        } else if config.error_percent > 0
            && of >= config.min_samples
            && failed.saturating_mul(100) >= of.saturating_mul(config.error_percent.into())
        {
            Trip::ErrorRate { failed, of }
        } else {
            return None;
        };
        Some(self.open(self.state(), trip, jitter, now))
    }

    /// Whether a call may be made now. Only takes the probe's place if it says so.
    pub(crate) fn try_pass(&mut self, now: Instant) -> (Pass<Ticket>, Option<Transition>) {
        let latest = self.advance(now);
        // By the caller's own clock: not before `until`, whatever others have seen.
        if let Some(retry_at) = self.refused_until(now) {
            return (Pass::Refused { retry_at }, None);
        }
        let (from, now) = (self.state(), latest);
        let lapses_at = now + self.config.probe_limit;
        let (since, proven) = match &self.mode {
            Mode::Closed { .. } => return (Pass::Allowed, None),
            Mode::Open { .. } => (now, 0),
            Mode::HalfOpen { since, proven, .. } => (*since, *proven),
        };
        self.probes += 1;
        let probe = Some(Running { number: self.probes, lapses_at });
        self.mode = Mode::HalfOpen { since, proven, probe };
        let changed = matches!(from, State::Open { .. });
        let transition =
            changed.then(|| Transition { from, to: self.state(), reason: Reason::CooledDown });
        (Pass::Probe(Ticket::Probe(self.probes)), transition)
    }

    /// As [`try_pass`](Self::try_pass) for the last candidate: never refuses.
    pub(crate) fn pass_as_last(&mut self, now: Instant) -> (Pass<Ticket>, Option<Transition>) {
        match self.try_pass(now) {
            (Pass::Refused { .. }, transition) => {
                (Pass::LastResort(Ticket::LastResort(self.era)), transition)
            }
            passed => passed,
        }
    }

    /// A ticket of the last resort for a call that passes in any case, where it is not closed. It takes no
    /// probe's place, however long the call lasts.
    pub(crate) fn last_resort(&self) -> Option<Ticket> {
        match self.mode {
            Mode::Closed { .. } => None,
            Mode::Open { .. } | Mode::HalfOpen { .. } => Some(Ticket::LastResort(self.era)),
        }
    }

    /// Whether [`try_pass`](Self::try_pass) would let a call pass.
    pub(crate) fn would_pass(&self, now: Instant) -> bool {
        self.refused_until(now).is_none()
    }

    /// Takes in what came of a ticket; those of an earlier time are ignored. `jitter` as for
    /// [`failure`](Self::failure).
    pub(crate) fn settle(
        &mut self,
        ticket: Ticket,
        outcome: Outcome,
        jitter: u32,
        now: Instant,
    ) -> Option<Transition> {
        let now = self.advance(now);
        let from = self.state();
        match ticket {
            Ticket::Probe(number) => {
                let Mode::HalfOpen { probe, .. } = &mut self.mode else { return None };
                probe.take_if(|running| running.number == number)?;
                match outcome {
                    Outcome::Success => self.proven(from, now),
                    Outcome::Failure(kind) => {
                        Some(self.open(from, Trip::ProbeFailed(kind), jitter, now))
                    }
                    Outcome::Abandoned => None,
                }
            }
            // A failure is what was expected of it.
            Ticket::LastResort(era) if era == self.era && outcome == Outcome::Success => {
                self.proven(from, now)
            }
            Ticket::LastResort(_) => None,
        }
    }

    /// Takes in who the member is. Another one than before starts anew, with its breaker closed; whoever is
    /// known for the first time is no other.
    pub(crate) fn reset(&mut self, identity: Identity, now: Instant) -> Option<Transition> {
        let now = self.advance(now);
        if self.identity.replace(identity).is_none_or(|known| known == identity) {
            return None;
        }
        self.openings_in_row = 0;
        self.cooldown = Duration::ZERO;
        self.era += 1;
        let from = self.state();
        match from {
            State::Closed { since } => {
                self.mode = Mode::closed(since);
                None
            }
            State::Open { .. } | State::HalfOpen { .. } => {
                self.mode = Mode::closed(now);
                Some(Transition { from, to: self.state(), reason: Reason::NewIdentity })
            }
        }
    }

    fn refused_until(&self, now: Instant) -> Option<Instant> {
        let until = match &self.mode {
            Mode::Closed { .. } => return None,
            Mode::Open { until, .. } => *until,
            Mode::HalfOpen { probe, .. } => probe.as_ref()?.lapses_at,
        };
        (now < until).then_some(until)
    }

    fn open(&mut self, from: State, trip: Trip, jitter: u32, now: Instant) -> Transition {
        // A member that fails again soon after it was taken back has not recovered.
        let again = match from {
            State::Closed { since } => now.duration_since(since) < self.cooldown,
            State::Open { .. } | State::HalfOpen { .. } => true,
        };
        self.openings_in_row = if again { self.openings_in_row.saturating_add(1) } else { 1 };
        self.era += 1;
        let doublings = (self.openings_in_row - 1).min(31);
        self.cooldown =
            self.config.open_for.saturating_mul(1 << doublings).min(self.config.open_at_most);
        let spared = (self.cooldown / 2).as_nanos() * u128::from(jitter) / u128::from(u32::MAX);
        let spared = Duration::from_nanos(u64::try_from(spared).unwrap_or(u64::MAX));
        let until = now + self.cooldown.saturating_sub(spared);
        self.mode = Mode::Open { since: now, until, reason: trip };
        Transition { from, to: self.state(), reason: Reason::Tripped(trip) }
    }

    /// Counts an answer to a ticket.
    fn proven(&mut self, from: State, now: Instant) -> Option<Transition> {
        let (since, before, probe) = match &self.mode {
            Mode::Closed { .. } => return None,
            Mode::Open { .. } => (now, 0, None),
            Mode::HalfOpen { since, proven, probe } => (*since, *proven, *probe),
        };
        let proven = before.saturating_add(1);
        if proven >= self.config.probe_successes {
            self.mode = Mode::closed(now);
            self.era += 1;
        } else {
            self.mode = Mode::HalfOpen { since, proven, probe };
            if matches!(from, State::HalfOpen { .. }) {
                return None;
            }
        }
        Some(Transition { from, to: self.state(), reason: Reason::Answered })
    }

    fn advance(&mut self, now: Instant) -> Instant {
        self.latest = self.latest.max(now);
        self.latest
    }

    /// Takes in successes that were counted elsewhere, while nothing failed.
    fn count_successes(&mut self, slot: u64, successes: u64) {
        if let Mode::Closed { window, .. } = &mut self.mode {
            window.add(slot, successes, 0);
        }
    }

    /// What a call has to know before it takes any lock.
    fn standing(&self) -> Standing {
        let Mode::Closed { connect_failures, timeouts, window, .. } = &self.mode else {
            return Standing::GUARDED;
        };
        let (failed, _) = window.totals(self.slots.number(self.latest));
        let mut standing = Standing::CALM;
        for (holds, mark) in [
            (failed > 0, Standing::COUNTING),
            (*connect_failures > 0, Standing::CONNECTS_FAIL),
            (*timeouts > 0, Standing::TIMES_OUT),
        ] {
            if holds {
                standing = standing.with(mark);
            }
        }
        standing
    }
}

impl Mode {
    fn closed(since: Instant) -> Self {
        Mode::Closed { since, connect_failures: 0, timeouts: 0, window: Window::default() }
    }
}

fn reached(count: u32, threshold: u32) -> bool {
    threshold > 0 && count >= threshold
}
