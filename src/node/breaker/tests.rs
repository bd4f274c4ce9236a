mod properties;
mod shared;

use super::*;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn start() -> Instant {
    // Far enough from the clock's zero to go back from.
    Instant::now() + Duration::from_secs(3_600)
}

#[derive(Debug, Clone, Copy)]
enum Do {
    Good(Proof),
    Bad(Failure),
    Wait(u64),
}

use Do::{Bad, Good, Wait};
use Failure::{Connect, Error, Timeout};
use Proof::{Answered, Connected};

/// Where a sequence of plain calls leads.
fn after(steps: &[Do]) -> &'static str {
    let mut now = start();
    let mut breaker = Breaker::new(BreakerConfig::default(), now);
    for step in steps {
        match step {
            Good(proof) => breaker.success(*proof, now),
            Bad(kind) => drop(breaker.failure(*kind, 0, now)),
            Wait(millis) => now += Duration::from_millis(*millis),
        }
    }
    breaker.state().name()
}

#[test]
fn what_opens_it_and_what_does_not() {
    let mixed = |good: usize, bad: usize| {
        let mut steps = vec![Good(Answered); good];
        // The server's own errors are no run of anything.
        steps.extend(vec![Bad(Error); bad]);
        steps
    };
    let table: &[(&str, Vec<Do>, &str)] = &[
        ("nothing", vec![], "closed"),
        ("two connect failures", vec![Bad(Connect); 2], "closed"),
        ("three connect failures", vec![Bad(Connect); 3], "open"),
        ("three timeouts", vec![Bad(Timeout); 3], "open"),
        (
            "a connection between",
            vec![Bad(Connect), Bad(Connect), Good(Connected), Bad(Connect), Bad(Connect)],
            "closed",
        ),
        (
            "an answer on an old one",
            vec![Bad(Connect), Bad(Connect), Good(Answered), Bad(Connect)],
            "open",
        ),
        (
            "an answer between timeouts",
            vec![Bad(Timeout), Bad(Timeout), Good(Answered), Bad(Timeout), Bad(Timeout)],
            "closed",
        ),
        (
            "a connection between timeouts",
            vec![Bad(Timeout), Bad(Timeout), Good(Connected), Bad(Timeout), Bad(Timeout)],
            "closed",
        ),
        ("an error is none", vec![Bad(Connect), Bad(Connect), Bad(Error), Bad(Connect)], "open"),
        ("a timeout is none", vec![Bad(Connect), Bad(Connect), Bad(Timeout), Bad(Connect)], "open"),
        (
            "a connect failure is none",
            vec![Bad(Timeout), Bad(Connect), Bad(Timeout), Bad(Connect), Bad(Timeout)],
            "open",
        ),
        ("a run has no age", vec![Bad(Connect), Bad(Connect), Wait(60_000), Bad(Connect)], "open"),
        ("too few samples", mixed(0, 19), "closed"),
        ("enough of them", mixed(0, 20), "open"),
        ("half", mixed(10, 10), "open"),
        ("less than half", mixed(20, 19), "closed"),
        (
            "the good ones are long ago",
            [mixed(100, 1), vec![Wait(10_000)], mixed(10, 10)].concat(),
            "open",
        ),
        (
            "the bad ones are long ago",
            [mixed(0, 19), vec![Wait(10_000)], mixed(0, 19)].concat(),
            "closed",
        ),
        ("within the window", [mixed(0, 19), vec![Wait(9_900)], mixed(0, 1)].concat(), "open"),
    ];
    for (name, steps, expected) in table {
        assert_eq!(after(steps), *expected, "{name}");
    }
}

#[test]
fn zero_turns_a_cause_off() {
    let config = BreakerConfig {
        connect_failures: 0,
        timeouts: 0,
        error_percent: 0,
        ..BreakerConfig::default()
    };
    let now = start();
    let mut breaker = Breaker::new(config, now);
    for kind in [Connect, Timeout, Error].repeat(100) {
        assert_eq!(breaker.failure(kind, 0, now), None);
    }
}

/// Opens a closed breaker; how long it is open.
fn trip(breaker: &mut Breaker, jitter: u32, now: Instant) -> Duration {
    let transition = (0..3).find_map(|_| breaker.failure(Connect, jitter, now)).expect("opens");
    assert_eq!(transition.reason, Reason::Tripped(Trip::ConnectFailures(3)));
    open_for(&transition)
}

fn open_for(transition: &Transition) -> Duration {
    match transition.to {
        State::Open { since, until, .. } => until - since,
        other => panic!("{other:?}"),
    }
}

fn probe(breaker: &mut Breaker, now: Instant) -> (Ticket, Option<Transition>) {
    match breaker.try_pass(now) {
        (Pass::Probe(ticket), transition) => (ticket, transition),
        (other, _) => panic!("{other:?}"),
    }
}

#[test]
fn it_opens_for_twice_as_long_each_time_and_starts_again_once_the_member_has_recovered() {
    let mut now = start();
    let mut breaker = Breaker::new(BreakerConfig::default(), now);
    let mut times = vec![trip(&mut breaker, 0, now)];
    for _ in 0..6 {
        now += *times.last().unwrap();
        let (ticket, _) = probe(&mut breaker, now);
        let opened = breaker.settle(ticket, Outcome::Failure(Timeout), 0, now).expect("opens");
        assert_eq!(opened.reason, Reason::Tripped(Trip::ProbeFailed(Timeout)));
        times.push(open_for(&opened));
    }
    assert_eq!(times, [1, 2, 4, 8, 16, 30, 30].map(Duration::from_secs));

    // Taken back, and failing again at once: not recovered.
    now += 30 * SECOND;
    let (ticket, _) = probe(&mut breaker, now);
    let _ = breaker.settle(ticket, Outcome::Success, 0, now).expect("closes");
    now += 29 * SECOND;
    assert_eq!(trip(&mut breaker, 0, now), 30 * SECOND);

    now += 30 * SECOND;
    let (ticket, _) = probe(&mut breaker, now);
    let _ = breaker.settle(ticket, Outcome::Success, 0, now).expect("closes");
    now += 30 * SECOND;
    assert_eq!(trip(&mut breaker, 0, now), SECOND);
}

#[test]
fn jitter_shortens_it_by_up_to_a_half() {
    let cases = [(0, 1000), (u32::MAX / 2, 750), (u32::MAX, 500)];
    for (jitter, millis) in cases {
        let now = start();
        let mut breaker = Breaker::new(BreakerConfig::default(), now);
        let open = trip(&mut breaker, jitter, now);
        assert_eq!(open.as_millis(), millis, "jitter {jitter}");
    }
}

#[test]
fn each_transition_is_told_once() {
    let mut now = start();
    let mut breaker = Breaker::new(BreakerConfig::default(), now);
    trip(&mut breaker, 0, now);
    assert_eq!(breaker.failure(Connect, 0, now), None, "it is open already");
    now += SECOND;
    let (ticket, cooled) = probe(&mut breaker, now);
    let cooled = cooled.expect("half-open");
    assert_eq!((cooled.from.name(), cooled.to.name()), ("open", "half_open"));
    assert_eq!(cooled.reason, Reason::CooledDown);
    assert_eq!(breaker.state(), State::HalfOpen { since: now, probing: true });

    let (pass, nothing) = breaker.try_pass(now);
    let free_at = now + BreakerConfig::default().probe_limit;
    assert!(matches!(pass, Pass::Refused { retry_at } if retry_at == free_at), "{pass:?}");
    assert_eq!(nothing, None);

    let closed = breaker.settle(ticket, Outcome::Success, 0, now).expect("closes");
    assert_eq!(closed.to, State::Closed { since: now });
    assert_eq!(closed.reason, Reason::Answered);
    assert_eq!(breaker.settle(ticket, Outcome::Failure(Connect), 0, now), None, "settled already");
}

#[test]
fn a_probe_that_tells_nothing_makes_room_for_the_next() {
    let mut now = start();
    let mut breaker = Breaker::new(BreakerConfig::default(), now);
    trip(&mut breaker, 0, now);
    now += SECOND;
    let (first, _) = probe(&mut breaker, now);
    assert_eq!(breaker.settle(first, Outcome::Abandoned, 0, now), None);
    let (second, _) = probe(&mut breaker, now);
    // And one that is never heard of again, after a while.
    now += BreakerConfig::default().probe_limit;
    let (third, _) = probe(&mut breaker, now);
    assert_eq!(breaker.settle(second, Outcome::Failure(Timeout), 0, now), None, "lapsed");
    assert!(breaker.settle(third, Outcome::Success, 0, now).is_some());
}

#[test]
fn late_outcomes_of_calls_from_before_change_nothing() {
    let mut now = start();
    let mut breaker = Breaker::new(BreakerConfig::default(), now);
    trip(&mut breaker, 0, now);
    breaker.success(Connected, now);
    assert_eq!(breaker.state().name(), "open");
    now += SECOND;
    let _probe = probe(&mut breaker, now);
    breaker.success(Connected, now);
    assert_eq!(breaker.failure(Timeout, 0, now), None);
    assert_eq!(breaker.state().name(), "half_open");
}

#[test]
fn as_many_probes_as_configured_close_it() {
    let mut now = start();
    let config = BreakerConfig { probe_successes: 3, ..BreakerConfig::default() };
    let mut breaker = Breaker::new(config, now);
    trip(&mut breaker, 0, now);
    now += SECOND;
    for _ in 0..2 {
        let (ticket, _) = probe(&mut breaker, now);
        assert_eq!(breaker.settle(ticket, Outcome::Success, 0, now), None);
    }
    let (ticket, _) = probe(&mut breaker, now);
    assert!(breaker.settle(ticket, Outcome::Success, 0, now).is_some());
}

#[test]
fn the_last_resort_may_close_it_but_opens_nothing() {
    let now = start();
    let mut breaker = Breaker::new(BreakerConfig::default(), now);
    assert!(matches!(breaker.pass_as_last(now), (Pass::Allowed, None)));
    trip(&mut breaker, 0, now);
    let mut last = || match breaker.pass_as_last(now) {
        (Pass::LastResort(ticket), None) => ticket,
        other => panic!("{other:?}"),
    };
    let (failing, answered, late) = (last(), last(), last());
    let before = breaker.state();
    assert_eq!(breaker.settle(failing, Outcome::Failure(Timeout), 0, now), None);
    assert_eq!(breaker.state(), before, "its time is not prolonged");
    let closed = breaker.settle(answered, Outcome::Success, 0, now).expect("closes");
    assert_eq!((closed.from, closed.reason), (before, Reason::Answered));

    trip(&mut breaker, 0, now);
    assert_eq!(breaker.settle(late, Outcome::Success, 0, now), None, "of the opening before");
}

#[test]
fn a_call_that_passes_in_any_case_takes_no_probes_place() {
    let mut now = start();
    let mut breaker = Breaker::new(BreakerConfig::default(), now);
    assert_eq!(breaker.last_resort(), None);
    trip(&mut breaker, 0, now);
    now += SECOND;
    let write = breaker.last_resort().expect("not closed");
    let (_, cooled) = probe(&mut breaker, now);
    assert!(cooled.is_some(), "the probe's place was free");
    let closed = breaker.settle(write, Outcome::Success, 0, now).expect("closes");
    assert_eq!((closed.from.name(), closed.reason), ("half_open", Reason::Answered));
}

#[test]
fn a_new_reign_or_postmaster_starts_anew() {
    let now = start();
    let mut breaker = Breaker::new(BreakerConfig::default(), now);
    let mut identity = Identity { reign: 1, started_at: 7 };
    assert_eq!(breaker.reset(identity, now), None, "closed already");
    trip(&mut breaker, 0, now);
    assert_eq!(breaker.reset(identity, now), None, "the same as before");
    assert_eq!(breaker.state().name(), "open");

    identity.started_at = 8;
    let restarted = breaker.reset(identity, now).expect("closes");
    assert_eq!((restarted.to.name(), restarted.reason), ("closed", Reason::NewIdentity));

    assert_eq!(trip(&mut breaker, 0, now), SECOND, "what was before is forgotten");
    identity.reign = 2;
    assert!(breaker.reset(identity, now).is_some());
    let _ = (breaker.failure(Connect, 0, now), breaker.failure(Connect, 0, now));
    identity.reign = 3;
    assert_eq!(breaker.reset(identity, now), None);
    assert_eq!(breaker.failure(Connect, 0, now), None, "the run is forgotten too");
}

#[test]
fn it_says_why_in_words() {
    let words = [
        Reason::Tripped(Trip::ConnectFailures(3)).to_string(),
        Reason::Tripped(Trip::Timeouts(3)).to_string(),
        Reason::Tripped(Trip::ErrorRate { failed: 11, of: 20 }).to_string(),
        Reason::Tripped(Trip::ProbeFailed(Error)).to_string(),
        Reason::CooledDown.to_string(),
        Reason::Answered.to_string(),
        Reason::NewIdentity.to_string(),
    ];
    assert_eq!(
        words,
        [
            "3 connect failures in a row",
            "3 timeouts in a row",
            "11 of 20 calls failed",
            "the probe failed: an error",
            "it was open long enough",
            "it answers again",
            "a new reign or a new postmaster",
        ]
    );
}
