//! Whoever writes the failover key holds writes within bounds.

use super::*;

/// A healthy cluster whose failover key somebody writes as often as they like: how long writes are held in
/// all, and how often that begins.
fn hold_under(writes: &[(u64, Option<Request>)]) -> Result<(Duration, usize, Duration), String> {
    let mut pair = Pair::new(TopologyConfig::default());
    let (mut held, mut holds) = (Duration::ZERO, 0);
    let mut count = |actions: &[Action], now: Instant, since: &mut Option<Instant>| {
        for action in actions {
            match action {
                Action::Withdraw { .. } => {
                    holds += 1;
                    *since = Some(now);
                }
                Action::Admit { .. } => held += since.take().map_or(Duration::ZERO, |at| now - at),
                _ => {}
            }
        }
    };
    let mut since = None;
    let write = |pair: &mut Pair, request: Option<Request>| {
        let step = Step::Snapshot {
            source: SourceKind::Etcd,
            leader: Some(4),
            bad_leader: false,
            members: [Listed::At { port: 1, timeline: None, state: "running" }; 4],
            system_id: Some(OURS),
            request,
        };
        pair.apply(&event_of(&step, pair.now).expect("an event"))
    };
    write(&mut pair, None)?;
    let probe = Step::Report {
        member: 0,
        port: 1,
        sent_ago: 0,
        system_id: OURS,
        in_recovery: false,
        timeline: 1,
        position: 1,
    };
    let answer = event_of(&probe, pair.now).expect("an event");
    pair.apply(&answer)?;
    for (pause, request) in writes {
        for _ in 0..*pause / 100 {
            let actions = pair.wait(Duration::from_millis(100))?;
            count(&actions, pair.now, &mut since);
        }
        let actions = write(&mut pair, *request)?;
        count(&actions, pair.now, &mut since);
    }
    let actions = write(&mut pair, None)?;
    count(&actions, pair.now, &mut since);
    for _ in 0..50 {
        let actions = pair.wait(Duration::from_millis(100))?;
        count(&actions, pair.now, &mut since);
    }
    if since.is_some() {
        return Err("held for ever".into());
    }
    Ok((held, holds, pair.now - pair.start))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// However often the failover key is written, with whatever: writes go on nine tenths of the time.
    #[test]
    fn no_writer_of_the_failover_key_holds_writes_for_ever(
        writes in vec((0..5_000_u64, proptest::option::of(any_request())), 1..400)
    ) {
        let (held, holds, span) = hold_under(&writes).map_err(TestCaseError::fail)?;
        // One at the start, and then at most three seconds after each thirty; a tenth of a second is how
        // closely time is looked at here.
        let most = span.as_secs_f64() / 30.0 + 1.0;
        prop_assert!(holds as f64 <= most, "{holds} holds in {span:?}");
        prop_assert!(held.as_secs_f64() <= most * 3.1, "held for {held:?} of {span:?}");
    }
}

#[test]
fn a_failover_key_that_is_set_and_cleared_without_end_holds_little() {
    let asked = Request { leader: Some(0), member: Some(1), scheduled: None };
    let writes: Vec<_> = (0..6_000).map(|n| (100, (n % 2 == 0).then_some(asked))).collect();
    let (held, holds, span) = hold_under(&writes).unwrap();
    assert!(span > Duration::from_secs(600) && holds > 15, "{holds} holds in {span:?}");
    assert!(held < Duration::from_secs(3), "each ended when it was cleared, not {held:?}");
    // Left standing for as long as it may hold writes, and then taken back.
    let writes: Vec<_> = (0..400).map(|n| (3_000, (n % 2 == 0).then_some(asked))).collect();
    let (held, _, span) = hold_under(&writes).unwrap();
    assert!(held > span / 15 && held < span / 10, "held for {held:?} of {span:?}");
}
