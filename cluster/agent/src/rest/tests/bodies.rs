//! Bodies.

use leaderpool::patroni::{FailoverRequest, MemberState, SyncState};
use serde_json::json;

use super::*;

#[test]
fn the_status_body_as_captured() {
    let mut status = primary();
    change_sample(&mut status, |sample| {
        sample.replication = ["pg1", "pg2"]
            .map(|name| ReplicationRow {
                usename: "rep".into(),
                application_name: name.into(),
                client_addr: Some("127.0.0.1".into()),
                state: "streaming".into(),
                sync_state: "async".into(),
                sync_priority: 0,
            })
            .into();
    });
    assert_eq!(
        body_of(&status, &locked()),
        r#"{"state": "running", "postmaster_start_time": "2026-11-23 13:08:48.479232+00:00", "role": "primary", "server_version": 150018, "xlog": {"location": 67108960}, "timeline": 1, "replication": [{"usename": "rep", "application_name": "pg1", "client_addr": "127.0.0.1", "state": "streaming", "sync_state": "async", "sync_priority": 0}, {"usename": "rep", "application_name": "pg2", "client_addr": "127.0.0.1", "state": "streaming", "sync_state": "async", "sync_priority": 0}], "dcs_last_seen": 1795439348, "database_system_identifier": "7711353190614709005", "patroni": {"version": "4.1.5", "scope": "batman", "name": "pg0"}}"#
    );
    let status = replica();
    assert_eq!(
        body_of(&status, &unlocked()),
        r#"{"state": "running", "postmaster_start_time": "2026-11-23 13:08:48.479232+00:00", "role": "replica", "server_version": 150018, "xlog": {"received_location": 67108960, "replayed_location": 67108960, "replayed_timestamp": null, "paused": false}, "timeline": 1, "replication_state": "streaming", "dcs_last_seen": 1795439348, "database_system_identifier": "7711353190614709005", "patroni": {"version": "4.1.5", "scope": "batman", "name": "pg1"}}"#
    );
    let mut status = replica();
    status.state = MemberState("stopped".into());
    status.mode.paused = true;
    status.tags = [("nosync".into(), json!(true)), ("clonefrom".into(), json!(false))].into();
    status.watchdog_failed = true;
    status.pending_restart =
        Some([("max_connections".into(), json!({"old_value": "100", "new_value": "200"}))].into());
    status.scheduled_restart = Some(
        [("schedule".to_owned(), json!("x")), ("postmaster_start_time".to_owned(), json!("y"))]
            .into_iter()
            .collect(),
    );
    assert_eq!(
        body_of(&status, &unlocked()),
        r#"{"state": "stopped", "role": "replica", "pause": true, "dcs_last_seen": 1795439348, "tags": {"nosync": true}, "database_system_identifier": "7711353190614709005", "pending_restart": true, "pending_restart_reason": {"max_connections": {"new_value": "200", "old_value": "100"}}, "patroni": {"version": "4.1.5", "scope": "batman", "name": "pg1"}, "scheduled_restart": {"schedule": "x"}, "watchdog_failed": true}"#
    );
    let mut silent = replica();
    silent.sample_valid_until = NOW;
    silent.cluster = None;
    assert!(body_of(&silent, &unlocked()).starts_with(
        r#"{"state": "unknown", "role": "replica", "cluster_unlocked": true, "dcs_last_seen""#
    ));
}

#[test]
fn the_cluster_body_as_captured() {
    assert_eq!(
        String::from_utf8(cluster_body(&primary())).expect("text"),
        r#"{"members": [{"name": "pg0", "role": "leader", "state": "running", "api_url": "http://127.0.0.1:8008/patroni", "host": "127.0.0.1", "port": 5432, "timeline": 1}, {"name": "pg1", "role": "replica", "state": "streaming", "api_url": "http://127.0.0.1:8009/patroni", "host": "127.0.0.1", "port": 5433, "timeline": 1, "receive_lag": 0, "receive_lsn": "0/4000060", "replay_lag": 0, "replay_lsn": "0/4000060", "lag": 0, "lsn": "0/4000060"}, {"name": "pg2", "role": "replica", "state": "streaming", "api_url": "http://127.0.0.1:8010/patroni", "host": "127.0.0.1", "port": 5434, "timeline": 1, "receive_lag": 0, "receive_lsn": "0/4000060", "replay_lag": 0, "replay_lsn": "0/4000060", "lag": 0, "lsn": "0/4000060"}], "scope": "batman"}"#
    );
    let mut status = primary();
    status.mode.paused = true;
    status.mode.synchronous = Synchronous::Quorum;
    with_cluster(&mut status, |cluster| {
        let stopped = cluster.members.get_mut("pg2").expect("pg2");
        stopped.state = MemberState("stopped".into());
        stopped.replication_state = None;
        (stopped.xlog_location, stopped.replay_lsn, stopped.receive_lsn) = (None, None, None);
        stopped.timeline = None;
        stopped.tags.nofailover = true;
        stopped.other.insert("pending_restart".into(), json!(true));
        cluster.sync = Some(SyncState { sync_standby: Some("pg1".into()), ..SyncState::default() });
        cluster.failover = Some(FailoverRequest {
            leader: Some("pg0".into()),
            member: None,
            scheduled_at: Some("2099-01-01T00:00:00+02:00".into()),
        });
    });
    let body = String::from_utf8(cluster_body(&status)).expect("text");
    for part in [
        r#""name": "pg1", "role": "quorum_standby", "state": "streaming""#,
        r#""name": "pg2", "role": "replica", "state": "stopped", "api_url": "http://127.0.0.1:8010/patroni", "host": "127.0.0.1", "port": 5434, "pending_restart": true, "tags": {"nofailover": true}, "receive_lag": "unknown", "receive_lsn": "unknown""#,
        r#"], "pause": true, "scheduled_switchover": {"at": "2099-01-01T00:00:00+02:00", "from": "pg0"}, "scope": "batman"}"#,
    ] {
        assert!(body.contains(part), "{part} in {body}");
    }
}

#[test]
fn metrics_as_captured() {
    let text = metrics_text(&replica(), NOW);
    let values: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("patroni_"))
        .map(|line| line.split_once("{scope=\"batman\",name=\"pg1\"} ").expect("labels"))
        .flat_map(|(name, value)| [name, value])
        .collect();
    assert_eq!(
        values.join(" "),
        "version 040105 postgres_running 1 postmaster_start_time 1795439328.479232 primary 0 \
         xlog_location 0 standby_leader 0 replica 1 sync_standby 0 quorum_standby 0 \
         xlog_received_location 67108960 xlog_replayed_location 67108960 xlog_replayed_timestamp 0 \
         xlog_paused 0 postgres_streaming 1 postgres_in_archive_recovery 0 \
         postgres_server_version 150018 cluster_unlocked 0 failsafe_mode_is_active 0 \
         postgres_timeline 1 dcs_last_seen 1795439348 pending_restart 0 is_paused 0 postgres_state 5"
    );
}
