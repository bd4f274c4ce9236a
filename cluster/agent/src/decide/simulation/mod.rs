//! A simulated cluster that [`decide`](super::decide) drives.
//!
//! etcd (leases with their scan for the expired, compare-and-swap, watches that lag, leaders that change, a
//! hand that deletes keys), PostgreSQL (branches of history, streams, the rule for acknowledging commits, slow
//! and failing starts, stops that hang), the network (delay, loss, cuts one way or both), machines
//! (crashes, clocks that differ by a tenth, watchdogs), agents (killed, frozen, with a loop that hangs), and
//! clients that write to every server that lets them. All of it is made from a seed.
//!
//! What is checked ([`check`]):
//!
//! - **Never do two servers take writes at one moment.** Excused, and counted: a primary whose agent was
//!   killed or frozen (with or without its server) where there is no watchdog, until a second after it
//!   goes on; one whose machine stood still with its clock, watchdog or not; one whose lease etcd took
//!   while it was alive, until it stops or has the key again. A key that was deleted by hand is no excuse.
//! - **In synchronous mode no acknowledged commit is lost**, by any of these, excuses included. In quorum mode the
//!   commits do not count that an excused primary acknowledged after its key was gone.
//! - **A switchover loses nothing**, in any mode.
//! - **No two promotions make the same timeline.**
//! - **No data are thrown away** unless the configuration says so.
//! - **Once faults stop, one leads, its commits are acknowledged and the others follow**, within a bound.
//!
//! `SIM_SEED=123 cargo test -p leaderpool-agent simulation` runs one seed and prints its trace;
//! `SIM_SEEDS=100000` runs more of them.

mod check;
mod etcd;
mod faults;
mod machine;
mod node;
mod peers;
mod perform;
mod postgres;
pub(super) mod rng;
mod session;
mod speed;
mod teeth;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rng::Rng;
use teeth::Mutation;
use world::{SEC, World, micros};

use super::Row;

/// How many seeds the test runs.
const SEEDS: u64 = 10_000;

/// What a run was like.
#[derive(Debug, Default)]
struct Outcome {
    violation: Option<String>,
    rows: BTreeSet<Row>,
    counts: BTreeMap<&'static str, u64>,
    trace: Vec<String>,
}

/// What is run: a seed, and a rule that is broken on purpose, or whose setup is taken though it is not.
#[derive(Debug, Clone, Copy, Default)]
struct Case {
    seed: u64,
    mutation: Option<Mutation>,
    control: bool,
}

fn run(case: Case, traced: bool) -> Outcome {
    let mut rng = Rng::new(case.seed);
    let mut setup = faults::setup(&mut rng);
    if let Some(mutation) = case.mutation {
        mutation.setup(&mut setup);
        setup.mutation = (!case.control).then_some(mutation);
    }
    let mut world = World::new(setup, rng, traced);
    faults::schedule(&mut world);
    if traced {
        println!("{:#?}", world.setup);
    }
    let quiet = world.setup.quiet;
    world.run(quiet, |_| false);
    // A lease that a new etcd leader has prolonged, what failsafe mode adds, starts, a rewind.
    let bound = micros(world.setup.rules.ttl) * 4 + 60 * SEC;
    if world.check.violation.is_none() {
        let mut looked = quiet;
        let well = world.run(quiet + bound, |world| {
            if world.now < looked + SEC / 10 {
                return false;
            }
            looked = world.now;
            world.is_well().is_ok()
        });
        if !well {
            let why = world.is_well().err().unwrap_or_default();
            world.check.violation =
                Some(format!("not well {} s after the last fault: {why}", bound / SEC));
        }
    }
    let counts = BTreeMap::from([
        ("events", world.events),
        ("writes", world.check.writes),
        ("promotions", world.check.promotions),
        ("switchovers", world.check.switchovers),
        ("rewinds", world.check.rewinds),
        ("watchdog resets", world.check.watchdog_resets),
        ("excused", world.check.excused),
        ("seconds until well", (world.now.saturating_sub(quiet)) / SEC),
    ]);
    Outcome {
        violation: world.check.violation.take(),
        rows: std::mem::take(&mut world.check.rows),
        counts,
        trace: world.trace.take().unwrap_or_default(),
    }
}

/// Runs seeds until one fails or there are no more, on all processors. Returns the first to fail.
fn search(seeds: u64, mutation: Option<Mutation>) -> (Option<(u64, String)>, Outcome) {
    let next = AtomicU64::new(number("SIM_FROM").unwrap_or(0));
    let failed: Mutex<Option<(u64, String)>> = Mutex::new(None);
    let total = Mutex::new(Outcome::default());
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                let mut mine = Outcome::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let end = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    if seed >= seeds || end.as_ref().is_some_and(|(other, _)| *other < seed) {
                        break;
                    }
                    drop(end);
                    let case = Case { seed, mutation, control: false };
                    let outcome = std::panic::catch_unwind(|| run(case, false));
                    let violation = match outcome {
                        Ok(outcome) => {
                            mine.rows.extend(outcome.rows);
                            for (name, count) in outcome.counts {
                                *mine.counts.entry(name).or_default() += count;
                            }
                            outcome.violation
                        }
                        Err(_) => Some("it panicked".to_owned()),
                    };
                    if let Some(violation) = violation {
                        let mut first = failed.lock().unwrap_or_else(PoisonError::into_inner);
                        if first.as_ref().is_none_or(|(other, _)| seed < *other) {
                            *first = Some((seed, violation));
                        }
                    }
                }
                let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
                total.rows.extend(mine.rows);
                for (name, count) in mine.counts {
                    *total.counts.entry(name).or_default() += count;
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    (failed, total.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn replay(seed: u64) -> Option<String> {
    // Of a broken rule, only the setup and its faults: SIM_FAULTS=NoFence.
    let named = std::env::var("SIM_FAULTS").unwrap_or_default();
    let mutation = Mutation::ALL.into_iter().find(|mutation| format!("{mutation:?}") == named);
    let outcome = run(Case { seed, mutation, control: true }, true);
    let lines = number("SIM_LINES").unwrap_or(400) as usize;
    let from = outcome.trace.len().saturating_sub(lines);
    for line in &outcome.trace[from..] {
        println!("{line}");
    }
    println!("{:?}", outcome.counts);
    outcome.violation
}

#[test]
fn no_seed_breaks_a_rule() {
    if let Some(seed) = number("SIM_SEED") {
        let violation = replay(seed);
        assert_eq!(violation, None, "seed {seed}");
        return;
    }
    let seeds = number("SIM_SEEDS").unwrap_or(SEEDS);
    let (failed, total) = search(seeds, None);
    println!("{seeds} seeds: {:?}", total.counts);
    let missed: Vec<&str> =
        Row::ALL.iter().filter(|row| !total.rows.contains(row)).map(|row| row.name()).collect();
    println!("rows not reached: {missed:?}");
    if let Some((seed, violation)) = failed {
        replay(seed);
        panic!("{violation}\nreplay: SIM_SEED={seed} cargo test -p leaderpool-agent simulation");
    }
}

#[test]
fn broken_rules_are_caught() {
    for mutation in Mutation::ALL {
        let (failed, _) = search(6_000, Some(mutation));
        match failed {
            Some((seed, violation)) => {
                println!("{mutation:?}: seed {seed}: {violation}");
                let control = Case { seed, mutation: Some(mutation), control: true };
                assert_eq!(
                    run(control, false).violation,
                    None,
                    "without {mutation:?}, seed {seed}"
                );
            }
            None => panic!("{mutation:?} was not caught"),
        }
    }
}
