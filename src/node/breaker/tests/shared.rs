//! The breaker among threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// As a caller with a ticket would.
fn pass(breaker: &Arc<SharedBreaker>, now: Instant) -> Pass<Trial> {
    breaker.try_pass(now).0
}

fn answered(breaker: &SharedBreaker, now: Instant) {
    breaker.success(Answered, || now);
}

fn open(breaker: &SharedBreaker, now: Instant) {
    assert!((0..3).any(|_| breaker.failure(Connect, now).is_some()));
}

fn probe(breaker: &Arc<SharedBreaker>, now: Instant) -> Trial {
    match pass(breaker, now) {
        Pass::Probe(trial) => trial,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_dropped_probe_makes_room_for_the_next() {
    let now = start();
    let breaker = Arc::new(SharedBreaker::new(BreakerConfig::default(), now));
    open(&breaker, now);
    assert!(!breaker.would_pass(now));
    assert!(matches!(breaker.pass_as_last(now).0, Pass::LastResort(_)));
    let later = now + SECOND;
    assert!(breaker.would_pass(later));
    let (first, _) = breaker.try_pass(later);
    assert!(matches!(first, Pass::Probe(_)));
    assert!(!breaker.would_pass(later));
    drop(first);
    assert!(probe(&breaker, later).settle(Outcome::Success, later).is_some());
    assert!(matches!(breaker.try_pass(later), (Pass::Allowed, None)));
    assert_eq!(breaker.state(), State::Closed { since: later });
}

#[test]
fn a_failed_probe_opens_it_and_a_new_identity_closes_it() {
    let now = start();
    let breaker = Arc::new(SharedBreaker::new(BreakerConfig::default(), now));
    open(&breaker, now);
    let later = now + SECOND;
    assert!(probe(&breaker, later).settle(Outcome::Failure(Timeout), later).is_some());
    assert!(!breaker.would_pass(later));
    let first = breaker.reset(Identity { reign: 1, started_at: 1 }, later);
    assert!(first.is_none(), "it is known for the first time, and no other than before");
    let _ = breaker.reset(Identity { reign: 2, started_at: 1 }, later).expect("closes");
    assert!(breaker.would_pass(later));
}

#[test]
fn successes_that_took_no_lock_count_in_the_slot_that_they_belong_to() {
    let now = start();
    let breaker = Arc::new(SharedBreaker::new(BreakerConfig::default(), now));
    assert_eq!(breaker.failure(Error, now), None);
    for _ in 0..1_000 {
        answered(&breaker, now);
    }
    // Still in the window: a thousand good ones.
    assert!((0..100).all(|_| breaker.failure(Error, now + 9 * SECOND).is_none()));
    // Not any more: all that is left has failed.
    let opened = breaker.failure(Error, now + 10 * SECOND).expect("opens");
    let all = Trip::ErrorRate { failed: 101, of: 101 };
    assert_eq!(opened.reason, Reason::Tripped(all));
}

#[test]
fn success_looks_at_the_clock_only_to_end_a_run() {
    let now = start();
    let breaker = Arc::new(SharedBreaker::new(BreakerConfig::default(), now));
    let no_clock = || -> Instant { panic!("the clock was looked at") };
    let both = |breaker: &SharedBreaker| {
        breaker.success(Connected, no_clock);
        breaker.success(Answered, no_clock);
    };
    assert!(breaker.is_calm());
    both(&breaker);
    let _ = breaker.failure(Error, now);
    assert!(!breaker.is_calm() && breaker.is_closed());
    both(&breaker);
    let _ = breaker.failure(Connect, now);
    breaker.success(Answered, no_clock);
    breaker.success(Connected, || now);
    both(&breaker);
    // The failures leave the window.
    breaker.settle_up(now + 9 * SECOND);
    assert!(!breaker.is_calm());
    breaker.settle_up(now + 10 * SECOND);
    assert!(breaker.is_calm());
    let later = now + 20 * SECOND;
    open(&breaker, later);
    assert!(!breaker.is_closed());
    both(&breaker);
}

#[test]
fn a_success_ends_a_run_of_failures() {
    let now = start();
    let breaker = Arc::new(SharedBreaker::new(BreakerConfig::default(), now));
    for kind in [Connect, Timeout].repeat(3) {
        assert_eq!(breaker.failure(kind, now), None);
        assert_eq!(breaker.failure(kind, now), None);
        breaker.success(Connected, || now);
    }
}

#[test]
fn one_probe_at_a_time_among_threads() {
    let now = start();
    let breaker = Arc::new(SharedBreaker::new(BreakerConfig::default(), now));
    open(&breaker, now);
    let later = now + SECOND;
    let (running, probes) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5_000 {
                    if let Pass::Probe(probe) = pass(&breaker, later) {
                        assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0);
                        std::hint::spin_loop();
                        running.fetch_sub(1, Ordering::SeqCst);
                        probes.fetch_add(1, Ordering::Relaxed);
                        drop(probe);
                    }
                }
            });
        }
    });
    assert!(probes.into_inner() > 0);
}

/// Printed, not asserted: `cargo test --release --lib breaker -- --nocapture what_it_costs`.
#[test]
fn what_it_costs() {
    const ROUNDS: u32 = 1_000_000;
    let now = start();
    let breaker = Arc::new(SharedBreaker::new(BreakerConfig::default(), now));
    let started = Instant::now();
    for _ in 0..ROUNDS {
        assert!(std::hint::black_box(&breaker).is_closed());
    }
    let passing = started.elapsed();
    let started = Instant::now();
    for _ in 0..ROUNDS {
        answered(std::hint::black_box(&breaker), now);
    }
    let each =
        |took: Duration| f64::from(u32::try_from(took.as_nanos()).unwrap()) / f64::from(ROUNDS);
    println!("closed: pass {:.1} ns, success {:.1} ns", each(passing), each(started.elapsed()));
}
