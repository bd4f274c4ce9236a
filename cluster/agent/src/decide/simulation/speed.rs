//! How long writers wait when one thing happens in a healthy cluster of three. The servers' own times (start,
//! promotion, checkpoint) are made up; what is measured is what the decisions add: no fixed waits.

use std::time::Duration;

use super::faults::Fault;
use super::rng::Rng;
use super::world::{Event, MS, SEC, Setup, Time, World, micros};
use crate::decide::{Rules, SyncMode};

/// The longest time without an acknowledged commit, of each of fifty seeds, sorted; in milliseconds.
fn gaps(fault: Fault, change: impl Fn(&mut Rules)) -> Vec<Time> {
    let mut gaps: Vec<Time> = (0..50)
        .map(|seed| {
            let mut rules = Rules { use_pg_rewind: true, ..Rules::default() };
            change(&mut rules);
            let setup = Setup {
                nodes: 3,
                rules,
                watchdog: false,
                empty: false,
                tags: vec![Default::default(); 3],
                rates: vec![1000; 3],
                quiet: 300 * SEC,
                faults_of: None,
                mutation: None,
            };
            let mut world = World::new(setup, Rng::new(seed), false);
            world.client_pace = 5 * MS;
            world.run(20 * SEC, |_| false);
            world.check.acks = Some(Vec::new());
            let at = world.now + world.rng.below(10 * SEC);
            world.at(at, Event::Fault(fault));
            world.run(80 * SEC, |_| false);
            assert_eq!(world.check.violation, None, "seed {seed}");
            let acks = world.check.acks.take().unwrap_or_default();
            acks.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(Time::MAX) / MS
        })
        .collect();
    gaps.sort_unstable();
    gaps
}

fn told(what: &str, gaps: &[Time]) -> Time {
    let median = gaps[gaps.len() / 2];
    println!("{what}: {median} ms, {} to {} ms", gaps[0], gaps[gaps.len() - 1]);
    gaps[gaps.len() - 1]
}

#[test]
fn writers_wait_for_servers_and_leases_only() {
    let ttl = micros(Rules::default().ttl) / MS;
    for mode in [SyncMode::Off, SyncMode::On, SyncMode::Quorum] {
        println!("{mode:?}");
        let sync = |rules: &mut Rules| rules.synchronous_mode = mode;
        let worst = told("switchover", &gaps(Fault::SwitchLeader, sync));
        assert!(worst < 2_000, "a switchover");
        let worst = told("postmaster killed, restarted in place", &gaps(Fault::KillLeader, sync));
        assert!(worst < 2_000, "a restart in place");
        let at_once = |rules: &mut Rules| {
            sync(rules);
            rules.primary_start_timeout = Duration::ZERO;
        };
        let worst =
            told("postmaster killed, another takes over", &gaps(Fault::KillLeader, at_once));
        assert!(worst < 2_000, "a failover without a lease to wait for");
        let worst = told("agent told to stop", &gaps(Fault::StopLeader, sync));
        assert!(worst < 2_000, "a leader that stops");
        let worst = told("machine lost", &gaps(Fault::LoseLeader, sync));
        assert!(worst < ttl + 2_000, "a lost machine");
    }
}
