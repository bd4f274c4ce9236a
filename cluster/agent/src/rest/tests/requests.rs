//! What is asked of the run loop, and its outcomes.

use leaderpool::patroni::{Lsn, SyncState};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::macros::datetime;

use super::*;

fn object(value: Value) -> Map<String, Value> {
    value.as_object().expect("an object").clone()
}

const TODAY: OffsetDateTime = datetime!(2026-11-24 12:00 UTC);

#[test]
fn switchovers_are_refused_in_words() {
    use ChangeKind::{Failover, Switchover as Switch};
    let plain = primary();
    let mut paused = primary();
    paused.mode.paused = true;
    let mut synchronous = primary();
    synchronous.mode.synchronous = Synchronous::Standbys;
    with_cluster(&mut synchronous, |cluster| {
        cluster.sync = Some(SyncState { sync_standby: Some("pg1".into()), ..SyncState::default() });
    });
    let mut alone = primary();
    with_cluster(&mut alone, |cluster| cluster.members.retain(|name, _| name == "pg0"));
    let table = [
        (&plain, Switch, json!({"leader": "x"}), 412, "leader name does not match"),
        (
            &plain,
            Switch,
            json!({"candidate": "x"}),
            400,
            "Switchover could be performed only from a specific leader",
        ),
        (
            &plain,
            Switch,
            json!({"leader": "pg0", "candidate": "pg0"}),
            400,
            "Switchover target and source are the same",
        ),
        (
            &plain,
            Switch,
            json!({"leader": "pg0", "candidate": "zz"}),
            412,
            "candidate does not exists",
        ),
        (
            &plain,
            Switch,
            json!({"leader": "pg0", "scheduled_at": "xx"}),
            422,
            "Unable to parse scheduled timestamp. It should be in an unambiguous format, e.g. ISO 8601",
        ),
        (
            &plain,
            Switch,
            json!({"leader": "pg0", "scheduled_at": 5}),
            422,
            "Unable to parse scheduled timestamp. It should be in an unambiguous format, e.g. ISO 8601",
        ),
        (
            &plain,
            Switch,
            json!({"leader": "pg0", "scheduled_at": "2020-01-01T00:00:00"}),
            400,
            "Timezone information is mandatory for the scheduled switchover",
        ),
        (
            &plain,
            Switch,
            json!({"leader": "pg0", "scheduled_at": "2020-01-01T00:00:00+00:00"}),
            422,
            "Cannot schedule switchover in the past",
        ),
        (
            &plain,
            Failover,
            json!({"leader": "pg0"}),
            400,
            "Failover could be performed only to a specific candidate",
        ),
        (
            &plain,
            Failover,
            json!({"candidate": "pg1", "scheduled_at": "2099-01-01T00:00:00+02"}),
            400,
            "Failover can't be scheduled",
        ),
        (&plain, Failover, json!({"candidate": "zz"}), 412, "candidate does not exists"),
        (
            &paused,
            Switch,
            json!({"leader": "pg0"}),
            400,
            "Switchover is possible only to a specific candidate in a paused state",
        ),
        (
            &paused,
            Switch,
            json!({"leader": "pg0", "scheduled_at": "2099-01-01T00:00:00+02"}),
            400,
            "Can't schedule switchover in the paused state",
        ),
        (
            &synchronous,
            Switch,
            json!({"leader": "pg0", "candidate": "pg2"}),
            412,
            "candidate name does not match with sync_standby",
        ),
        (
            &alone,
            Switch,
            json!({"leader": "pg0"}),
            412,
            "switchover is not possible: cluster does not have members except leader",
        ),
    ];
    for (status, kind, body, code, text) in table {
        let refused = Switchover::parse(kind, &object(body.clone()), status, TODAY);
        assert_eq!(refused, Err(Answer::text(code, text)), "{body}");
    }
    let good = [
        (&plain, Switch, json!({"leader": "pg0"})),
        (&plain, Switch, json!({"leader": "pg0", "member": "pg1"})),
        (&plain, Failover, json!({"candidate": "pg1"})),
        (&synchronous, Switch, json!({"leader": "pg0", "candidate": "pg1"})),
        (&synchronous, Failover, json!({"candidate": "pg2"})),
        (&paused, Switch, json!({"leader": "pg0", "candidate": "pg1"})),
        (&plain, Switch, json!({"leader": "pg0", "scheduled_at": "2099-01-01T00:00:00+02"})),
        (&plain, Switch, json!({"leader": "pg0", "scheduled_at": "2099-01-01 00:00:00.5Z"})),
        (&plain, Switch, json!({"leader": "pg0", "scheduled_at": "2099-01-01T00:00+00:00"})),
    ];
    for (status, kind, body) in good {
        let read = Switchover::parse(kind, &object(body.clone()), status, TODAY);
        assert!(read.is_ok(), "{body}: {read:?}");
    }
    // A failover from a leader that is named is a switchover.
    let body = object(json!({"leader": "pg0", "candidate": "pg1"}));
    let read = Switchover::parse(Failover, &body, &plain, TODAY).expect("reads");
    assert_eq!(read.kind, Switch);
    let body = object(json!({"leader": "pg0", "scheduled_at": "2099-01-01T00:00:00+02"}));
    let at = Switchover::parse(Switch, &body, &plain, TODAY).expect("reads").at.expect("a time");
    assert_eq!(iso_time(at), "2099-01-01T00:00:00+02:00");
}

#[test]
fn outcomes_in_patronis_words() {
    let switchover = |candidate: Option<&str>, kind| Switchover {
        kind,
        leader: Some("pg0".into()),
        candidate: candidate.map(str::to_owned),
        at: None,
    };
    let done = |leader: &str| SwitchoverOutcome::Done { leader: leader.into() };
    let (plain, forced) = (
        switchover(Some("pg1"), ChangeKind::Switchover),
        switchover(Some("pg1"), ChangeKind::Failover),
    );
    let table = [
        (plain.answer(done("pg1")), 200, "Successfully switched over to \"pg1\""),
        (plain.answer(done("pg2")), 200, "Switched over to \"pg2\" instead of \"pg1\""),
        (forced.answer(done("pg1")), 200, "Successfully failed over to \"pg1\""),
        (plain.answer(SwitchoverOutcome::Scheduled), 202, "Switchover scheduled"),
        (plain.answer(SwitchoverOutcome::Failed), 503, "Switchover failed"),
        (plain.answer(SwitchoverOutcome::Unknown), 503, "Switchover status unknown"),
        (
            plain.answer(SwitchoverOutcome::NotPossible(
                "no good candidates have been found".into(),
            )),
            412,
            "switchover is not possible: no good candidates have been found",
        ),
        (RestartOutcome::Done.into(), 200, "restarted successfully"),
        (RestartOutcome::NotSatisfied.into(), 503, "restart conditions are not satisfied"),
        (RestartOutcome::AlreadyScheduled.into(), 409, "Another restart is already scheduled"),
        (CancelOutcome::Nothing.of_restart(), 404, "no restarts are scheduled"),
        (CancelOutcome::Done.of_switchover(), 200, "scheduled switchover deleted"),
        (ReinitializeOutcome::Started.into(), 200, "reinitialize started"),
        (FailsafeOutcome::Refused("Running as a leader".into()).into(), 500, "Running as a leader"),
    ];
    for (answer, code, text) in table {
        assert_eq!(answer, Answer::text(code, text));
    }
    let accepted: Answer = FailsafeOutcome::Accepted { lsn: Some(Lsn(84_171_664)) }.into();
    assert_eq!(accepted.headers, [("lsn", "84171664".to_owned())]);
}

#[test]
fn restarts() {
    let refused = [
        (json!({"foo": 1}), "Unknown filter for the scheduled restart: foo"),
        (
            json!({"role": "x"}),
            "PostgreSQL role should be either primary, standby_leader, or replica",
        ),
        (json!({"postgres_version": "x"}), "Invalid PostgreSQL version: x"),
        (json!({"timeout": "x"}), "Timeout should be a positive number of seconds"),
        (json!({"timeout": 0}), "Timeout should be a positive number of seconds"),
    ];
    for (body, text) in refused {
        assert_eq!(Restart::parse(&object(body), TODAY), Err(Answer::text(400, text)));
    }
    let body = json!({"schedule": "2099-01-01T00:00:00+02", "role": "primary", "timeout": "1min",
        "postgres_version": "15.4", "restart_pending": true});
    let read = Restart::parse(&object(body), TODAY).expect("reads");
    assert_eq!(read.older_than, Some((150_004, "15.4".into())));
    assert_eq!(
        Value::Object(read.to_scheduled()),
        json!({"schedule": "2099-01-01T00:00:00+02:00", "role": "primary", "timeout": 60,
            "postgres_version": "15.4", "restart_pending": true})
    );
    assert_eq!(Restart::parse(&Map::new(), TODAY), Ok(Restart::default()));
    let versions =
        [("9.6.3", Some(90_603)), ("14.0", Some(140_000)), ("9.6", Some(90_600)), ("15", None)];
    for (text, number) in versions {
        let read = Restart::parse(&object(json!({ "postgres_version": text })), TODAY);
        assert_eq!(read.ok().and_then(|read| read.older_than).map(|(n, _)| n), number, "{text}");
    }
}

#[test]
fn patches() {
    let mut config = object(json!({"ttl": 30, "postgresql": {"parameters": {"a": 1, "b": 2}}}));
    assert!(!merge_patch(&mut config, &object(json!({"ttl": 30, "absent": null}))));
    let patch =
        json!({"ttl": 20, "postgresql": {"parameters": {"a": null}}, "new": {"x": 1, "y": null}});
    assert!(merge_patch(&mut config, &object(patch)));
    assert_eq!(
        Value::Object(config),
        json!({"ttl": 20, "postgresql": {"parameters": {"b": 2}}, "new": {"x": 1}})
    );
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        Just(Value::from("2099-01-01T00:00:00+02")),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            any_object(inner).prop_map(Value::Object),
        ]
    })
}

fn any_object(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Map<String, Value>> {
    let key = prop_oneof![
        Just("leader"),
        Just("candidate"),
        Just("scheduled_at"),
        Just("schedule"),
        Just("role"),
        Just("timeout"),
        Just("postgres_version"),
        Just("x"),
    ];
    proptest::collection::vec((key.prop_map(str::to_owned), value), 0..5)
        .prop_map(|pairs| pairs.into_iter().collect())
}

proptest! {
    #[test]
    fn no_body_panics(body in any_object(any_json())) {
        let _ = Switchover::parse(ChangeKind::Switchover, &body, &primary(), TODAY);
        let _ = Switchover::parse(ChangeKind::Failover, &body, &primary(), TODAY);
        let _ = Restart::parse(&body, TODAY);
    }

    /// A patch that is laid on twice changes nothing the second time, and leaves no null it brought.
    #[test]
    fn patches_are_idempotent(config in any_object(any_json()), patch in any_object(any_json())) {
        let mut once = config;
        merge_patch(&mut once, &patch);
        let mut twice = once.clone();
        prop_assert!(!merge_patch(&mut twice, &patch));
        prop_assert_eq!(once, twice);
    }
}
