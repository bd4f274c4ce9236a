use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::config::diagnostics::Code;

fn seconds(timers: Timers) -> (f64, f64, f64) {
    let s = |time: Duration| time.as_secs_f64();
    (s(timers.ttl), s(timers.loop_wait), s(timers.retry_timeout))
}

fn read(json: &Json) -> (Dynamic, Vec<Code>) {
    let (dynamic, diagnostics) = Dynamic::from_json(json);
    (dynamic, diagnostics.iter().map(|d| d.code).collect())
}

#[test]
fn nothing_written_means_the_defaults() {
    let (dynamic, codes) = read(&json!({}));
    assert_eq!(dynamic, Dynamic::default());
    assert!(codes.is_empty());
    assert_eq!(seconds(dynamic.timers), (30.0, 10.0, 10.0));
    assert_eq!(dynamic.maximum_lag_on_failover, 1_048_576);
    assert_eq!(dynamic.primary_start_timeout, Duration::from_secs(300));
    assert_eq!(dynamic.member_slots_ttl, Duration::from_secs(1800));
}

#[test]
fn the_timers_are_brought_under_the_rule() {
    for (ttl, loop_wait, retry, expected) in [
        (30, 10, 10, (30.0, 10.0, 10.0)),
        (30, 10, 30, (30.0, 1.0, 14.0)),
        (30, 20, 10, (30.0, 10.0, 10.0)),
        (30, 0, 1, (30.0, 1.0, 3.0)),
        (20, 1, 3, (20.0, 1.0, 3.0)),
        (20, 10, 10, (20.0, 1.0, 9.0)),
        (100, 10, 10, (100.0, 10.0, 10.0)),
        // Below 20 the agent goes its own way.
        (10, 10, 10, (10.0, 1.0, 4.5)),
        (8, 1, 3, (8.0, 1.0, 3.0)),
        (5, 1, 2, (5.0, 1.0, 2.0)),
        (5, 10, 10, (5.0, 1.0, 2.0)),
        (2, 10, 10, (2.0, 0.4, 0.8)),
        (1, 10, 10, (2.0, 0.4, 0.8)),
        (0, 0, 0, (2.0, 0.4, 0.8)),
    ] {
        let s = Duration::from_secs;
        let timers = Timers::fitted(s(ttl), s(loop_wait), s(retry));
        assert_eq!(seconds(timers), expected, "{ttl} {loop_wait} {retry}");
        assert_eq!(timers.patroni_ttl.is_some(), ttl < 20);
    }
}

#[test]
fn an_adjustment_is_told_with_both_sums() {
    let (dynamic, diagnostics) =
        Dynamic::from_json(&json!({"ttl": 30, "loop_wait": 10, "retry_timeout": 30}));
    assert_eq!(seconds(dynamic.timers), (30.0, 1.0, 14.0));
    let found = diagnostics.of(Code::TimersAdjusted).next().unwrap();
    assert_eq!(found.path, "retry_timeout");
    assert_eq!(found.done.as_deref(), Some("loop_wait 1 s, retry_timeout 14 s"));
    let (dynamic, codes) = read(&json!({"ttl": "5", "loop_wait": 1, "retry_timeout": 2}));
    assert_eq!(codes, [Code::TtlBelowPatroni]);
    assert_eq!(dynamic.timers.patroni_ttl, Some(Duration::from_secs(20)));
}

#[test]
fn a_bad_value_is_named_and_hides_no_other() {
    let (dynamic, codes) = read(&json!({
        "ttl": "soon",
        "loop_wait": null,
        "maximum_lag_on_failover": -5,
        "synchronous_mode": "sometimes",
        "synchronous_node_count": 0,
        "failsafe_mode": "perhaps",
        "primary_start_timeout": [1],
        "slots": {"UPPER": null, "fine": null, "odd": 7, "half": {"type": "logical"}},
        "ignore_slots": [{}, {"name": "theirs"}, 5],
        "postgresql": {"parameters": {"shared_buffers": {"a": 1}}, "pg_hba": {"a": 1}},
        "unheard_of": 1,
        "restapi": {},
        "check_timeline": true,
    }));
    let expected = Dynamic {
        check_timeline: true,
        slots: [(
            "fine".to_owned(),
            PermanentSlot { kind: SlotKind::Physical, cluster_type: None },
        )]
        .into(),
        ignore_slots: vec![SlotFilter { name: Some("theirs".to_owned()), ..SlotFilter::default() }],
        ..Dynamic::default()
    };
    assert_eq!(dynamic, expected);
    for code in [
        Code::WrongType,
        Code::OutOfRange,
        Code::InvalidValue,
        Code::InvalidSlot,
        Code::UnknownKey,
        Code::WrongPlace,
    ] {
        assert!(codes.contains(&code), "{code}");
    }
}

#[test]
fn every_key_is_understood() {
    let (dynamic, codes) = read(&json!({
        "ttl": 60, "loop_wait": 5, "retry_timeout": 20,
        "maximum_lag_on_failover": 1000,
        "maximum_lag_on_syncnode": 2000,
        "max_timelines_history": 10,
        "primary_start_timeout": 0,
        "primary_stop_timeout": 30,
        "primary_race_backoff": 3,
        "synchronous_mode": "quorum",
        "synchronous_mode_strict": true,
        "synchronous_node_count": 2,
        "failsafe_mode": "on",
        "check_timeline": true,
        "member_slots_ttl": "1h",
        "pause": true,
        "slots": {"l": {"database": "d", "plugin": "p"}, "p": {"type": "physical", "cluster_type": "primary"}},
        "ignore_slots": [{"type": "logical", "plugin": "x"}],
        "postgresql": {
            "use_pg_rewind": true, "use_slots": false,
            "parameters": {"Max_Connections": 200},
            "recovery_conf": {"restore_command": "cp a b"},
            "pg_hba": ["local all all peer"], "pg_ident": ["m a b"],
        },
    }));
    assert_eq!(codes, []);
    assert_eq!(seconds(dynamic.timers), (60.0, 5.0, 20.0));
    assert_eq!(dynamic.maximum_lag_on_failover, 1000);
    assert_eq!(dynamic.maximum_lag_on_syncnode, Some(2000));
    assert_eq!(dynamic.max_timelines_history, Some(10));
    assert_eq!(dynamic.primary_start_timeout, Duration::ZERO);
    assert_eq!(dynamic.primary_stop_timeout, Some(Duration::from_secs(30)));
    assert_eq!(dynamic.primary_race_backoff, Duration::from_secs(3));
    assert_eq!(dynamic.synchronous_mode, SynchronousMode::Quorum);
    assert!(dynamic.synchronous_mode_strict && dynamic.failsafe_mode && dynamic.check_timeline);
    assert_eq!(dynamic.synchronous_node_count, 2);
    assert_eq!(dynamic.member_slots_ttl, Duration::from_secs(3600));
    assert!(dynamic.pause);
    let logical = SlotKind::Logical { database: "d".to_owned(), plugin: "p".to_owned() };
    assert_eq!(dynamic.slots["l"].kind, logical);
    assert_eq!(dynamic.slots["p"].cluster_type, Some(ClusterType::Primary));
    assert!(dynamic.ignore_slots[0].matches("any", "logical", Some("d"), Some("x")));
    assert!(!dynamic.ignore_slots[0].matches("any", "physical", None, None));
    let server = &dynamic.postgresql;
    assert_eq!((server.use_pg_rewind, server.use_slots), (Some(true), Some(false)));
    assert_eq!(server.parameters["max_connections"].text, "200");
    assert_eq!(server.recovery_conf.as_ref().unwrap()["restore_command"].text, "cp a b");
    assert_eq!(server.pg_hba.as_deref().unwrap(), ["local all all peer"]);
}

#[test]
fn older_names_and_words_are_understood() {
    for (json, check) in [
        (
            json!({"master_start_timeout": 5}),
            (|d: &Dynamic| d.primary_start_timeout == Duration::from_secs(5))
                as fn(&Dynamic) -> bool,
        ),
        (json!({"master_stop_timeout": 5}), |d| {
            d.primary_stop_timeout == Some(Duration::from_secs(5))
        }),
        (json!({"permanent_slots": {"a": {}}}), |d| d.slots.contains_key("a")),
        (json!({"synchronous_mode": "on"}), |d| d.synchronous_mode == SynchronousMode::On),
        (json!({"synchronous_mode": true}), |d| d.synchronous_mode == SynchronousMode::On),
        (json!({"synchronous_mode": "Quorum"}), |d| d.synchronous_mode == SynchronousMode::Quorum),
        (json!({"synchronous_mode": false}), |d| d.synchronous_mode == SynchronousMode::Off),
        (json!({"primary_stop_timeout": 0}), |d| d.primary_stop_timeout.is_none()),
        (json!({"maximum_lag_on_syncnode": -1}), |d| d.maximum_lag_on_syncnode.is_none()),
        (json!({"maximum_lag_on_failover": "10MB"}), |d| d.maximum_lag_on_failover == 10 << 20),
        (json!({"ttl": "45"}), |d| d.timers.ttl == Duration::from_secs(45)),
        (json!({"standby_cluster": {"host": "x"}}), |d| d.standby_cluster),
        (json!({"standby_cluster": {"host": "", "port": 5432}}), |d| d.standby_cluster),
        (json!({"standby_cluster": {"host": ""}}), |d| !d.standby_cluster),
        (json!({"standby_cluster": null}), |d| !d.standby_cluster),
    ] {
        let (dynamic, _) = read(&json);
        assert!(check(&dynamic), "{json}");
    }
    let (_, codes) = read(&json!({"master_start_timeout": 5, "primary_start_timeout": 6}));
    assert_eq!(codes, [Code::OldName]);
}

#[test]
fn bytes_that_are_no_json_leave_the_defaults() {
    for bytes in [&b""[..], b"{", b"[1]", b"7", b"\xff"] {
        let (dynamic, diagnostics) = Dynamic::from_slice(bytes);
        assert_eq!(dynamic, Dynamic::default());
        assert!(!diagnostics.is_empty());
    }
}

proptest! {
    #[test]
    fn the_rule_always_holds(ttl in 0_u64..200, loop_wait in 0_u64..200, retry in 0_u64..200) {
        let s = Duration::from_secs;
        let timers = Timers::fitted(s(ttl), s(loop_wait), s(retry));
        prop_assert!(timers.loop_wait + 2 * timers.retry_timeout <= timers.ttl);
        prop_assert!(timers.loop_wait > Duration::ZERO && timers.retry_timeout > Duration::ZERO);
        // What fits already, and is not too small, stays.
        if ttl >= 20 && loop_wait >= 1 && retry >= 3 && loop_wait + 2 * retry <= ttl {
            let kept = Timers {
                ttl: s(ttl), loop_wait: s(loop_wait), retry_timeout: s(retry), patroni_ttl: None,
            };
            prop_assert_eq!(timers, kept);
        }
        // Fitting what was fitted changes nothing.
        let again = Timers::fitted(timers.ttl, timers.loop_wait, timers.retry_timeout);
        prop_assert_eq!(again, timers);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Dynamic::from_slice(&bytes);
    }
}
