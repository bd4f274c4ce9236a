//! Random histories.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// One step of a random history.
#[derive(Debug, Clone)]
enum Step {
    Wait(u64),
    /// Time as another thread sees it.
    Back(u64),
    Success(Proof),
    Failure(Failure),
    Pass {
        last: bool,
    },
    /// One of the tickets that are out.
    Settle(usize, Outcome),
    Reset(Identity),
}

fn any_failure() -> impl Strategy<Value = Failure> {
    prop_oneof![1 => Just(Connect), 1 => Just(Timeout), 2 => Just(Error)]
}

fn any_step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![
        Just(Outcome::Success),
        any_failure().prop_map(Outcome::Failure),
        Just(Outcome::Abandoned)
    ];
    let identity =
        (0..3_u64, 0..2_i64).prop_map(|(reign, started_at)| Identity { reign, started_at });
    prop_oneof![
        6 => prop_oneof![0..50_u64, 0..3_000_u64].prop_map(Step::Wait),
        1 => (0..500_u64).prop_map(Step::Back),
        6 => prop_oneof![Just(Connected), Just(Answered)].prop_map(Step::Success),
        14 => any_failure().prop_map(Step::Failure),
        6 => any::<bool>().prop_map(|last| Step::Pass { last }),
        4 => (any::<usize>(), outcome).prop_map(|(which, outcome)| Step::Settle(which, outcome)),
        1 => identity.prop_map(Step::Reset),
    ]
}

/// What the closed breaker should know, kept the naive way.
#[derive(Debug, Default)]
struct Ledger {
    /// Slot, and whether it failed.
    samples: Vec<(u64, bool)>,
    connect_failures: u32,
    timeouts: u32,
}

impl Ledger {
    fn expects_trip(&self, slot: u64) -> Option<Trip> {
        let recent: Vec<bool> = self
            .samples
            .iter()
            .filter(|(at, _)| *at + 10 > slot)
            .map(|(_, failed)| *failed)
            .collect();
        let failed = recent.iter().filter(|failed| **failed).count();
        if self.connect_failures >= 3 {
            Some(Trip::ConnectFailures(self.connect_failures))
        } else if self.timeouts >= 3 {
            Some(Trip::Timeouts(self.timeouts))
        } else if recent.len() >= 20 && failed as f64 / recent.len() as f64 >= 0.5 {
            Some(Trip::ErrorRate { failed: failed as u64, of: recent.len() as u64 })
        } else {
            None
        }
    }
}

#[derive(Debug, Default)]
struct Seen {
    by_rate: usize,
    by_run: usize,
    probes: usize,
    closed_again: usize,
}

fn run(steps: &[(Step, u32)], seen: &mut Seen) -> Result<(), TestCaseError> {
    let config = BreakerConfig::default();
    let begin = start();
    let (mut now, mut latest) = (begin, begin);
    let mut breaker = Breaker::new(config, now);
    let mut ledger = Ledger::default();
    let mut identity = None;
    let mut tickets: Vec<(Ticket, Instant)> = Vec::new();
    for (step, jitter) in steps {
        if tickets.is_empty() && matches!(step, Step::Settle(..)) {
            continue;
        }
        let before = breaker.state();
        let mut transition = None;
        match step {
            Step::Wait(millis) => now += Duration::from_millis(*millis),
            Step::Back(millis) => now -= Duration::from_millis(*millis),
            _ => latest = latest.max(now),
        }
        let slot = ((latest - begin).as_millis() / 1_000) as u64;
        let was_closed = matches!(before, State::Closed { .. });
        match step {
            Step::Wait(_) | Step::Back(_) => continue,
            Step::Success(proof) => {
                breaker.success(*proof, now);
                ledger.timeouts = 0;
                if *proof == Connected {
                    ledger.connect_failures = 0;
                }
                ledger.samples.push((slot, false));
            }
            Step::Failure(kind) => {
                transition = breaker.failure(*kind, *jitter, now);
                if was_closed {
                    ledger.samples.push((slot, true));
                    match kind {
                        Connect => ledger.connect_failures += 1,
                        Timeout => ledger.timeouts += 1,
                        Error => {}
                    }
                    let expected = ledger.expects_trip(slot).map(Reason::Tripped);
                    prop_assert_eq!(transition.map(|changed| changed.reason), expected);
                    match expected {
                        Some(Reason::Tripped(Trip::ErrorRate { .. })) => seen.by_rate += 1,
                        Some(_) => seen.by_run += 1,
                        None => {}
                    }
                } else {
                    prop_assert_eq!(transition, None);
                }
            }
            Step::Pass { last } => {
                let would = breaker.would_pass(now);
                let (pass, changed) =
                    if *last { breaker.pass_as_last(now) } else { breaker.try_pass(now) };
                transition = changed;
                let passed = matches!(pass, Pass::Allowed | Pass::Probe(_));
                prop_assert_eq!(passed, would);
                match before {
                    State::Closed { .. } => prop_assert!(matches!(pass, Pass::Allowed)),
                    State::Open { until, .. } => prop_assert_eq!(passed, now >= until),
                    State::HalfOpen { .. } => prop_assert!(!matches!(pass, Pass::Allowed)),
                }
                match pass {
                    Pass::Allowed => {}
                    Pass::Probe(ticket) => {
                        seen.probes += 1;
                        let running = tickets.iter().any(|(other, lapses_at)| {
                            matches!(other, Ticket::Probe(_)) && now < *lapses_at
                        });
                        prop_assert!(!running || was_closed, "two probes at once");
                        tickets.push((ticket, latest + config.probe_limit));
                    }
                    Pass::LastResort(ticket) => {
                        prop_assert!(*last);
                        tickets.push((ticket, latest));
                    }
                    Pass::Refused { retry_at } => prop_assert!(!*last && retry_at > now),
                }
            }
            Step::Settle(which, outcome) => {
                let (ticket, _) = tickets.swap_remove(which % tickets.len());
                transition = breaker.settle(ticket, *outcome, *jitter, now);
                if *outcome == Outcome::Abandoned || was_closed {
                    prop_assert_eq!(transition, None);
                }
                seen.closed_again += usize::from(
                    transition.is_some_and(|changed| changed.reason == Reason::Answered),
                );
            }
            Step::Reset(new) => {
                transition = breaker.reset(*new, now);
                if identity.replace(*new).is_some_and(|known| known != *new) {
                    prop_assert_eq!(breaker.state().name(), "closed");
                    ledger = Ledger::default();
                }
            }
        }
        let state = breaker.state();
        prop_assert_eq!(transition.is_some(), state.name() != before.name());
        prop_assert!(state.since() >= before.since(), "time runs backwards");
        if let Some(changed) = transition {
            prop_assert_eq!((changed.from, changed.to), (before, state));
        }
        if let State::Open { since, until, .. } = state
            && transition.is_some()
        {
            prop_assert!((500 * MS..=30 * SECOND).contains(&(until - since)));
        }
        if !matches!(state, State::HalfOpen { .. }) {
            // Their outcomes are ignored from now on, which the next steps show.
            for (ticket, lapses_at) in &mut tickets {
                if matches!(ticket, Ticket::Probe(_)) {
                    *lapses_at = begin - SECOND;
                }
            }
        }
        if !matches!(state, State::Closed { .. }) {
            ledger = Ledger::default();
        }
    }
    Ok(())
}

#[test]
fn any_history() {
    let asked_for = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok());
    let cases: u32 = asked_for.unwrap_or(400);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let seen = std::cell::RefCell::new(Seen::default());
    let histories = vec((any_step(), any::<u32>()), 1..200);
    if let Err(error) = runner.run(&histories, |steps| run(&steps, &mut seen.borrow_mut())) {
        panic!("{error}");
    }
    let seen = seen.into_inner();
    assert!(
        [seen.by_rate, seen.by_run, seen.probes, seen.closed_again]
            .iter()
            .all(|times| *times > cases as usize / 20),
        "too little happened: {seen:?}"
    );
}
