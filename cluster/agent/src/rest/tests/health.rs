//! Codes.

use std::time::Duration;

use hyper::{Method, Uri};
use leaderpool::patroni::{Lsn, MemberRole, MemberState, SyncState};
use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Path, primary, replica: as captured.
const CAPTURED: &[(&str, u16, u16)] = &[
    ("/", 200, 503),
    ("/primary", 200, 503),
    ("/master", 200, 503),
    ("/read-write", 200, 503),
    ("/leader", 200, 503),
    ("/standby-leader", 503, 503),
    ("/standby_leader", 503, 503),
    ("/replica", 503, 200),
    ("/replica?lag=0", 503, 200),
    ("/replica?lag=10MB", 503, 200),
    ("/replica?lag=abc", 503, 200),
    ("/replica?tag_x=1", 503, 503),
    ("/replica?tag_noloadbalance=false", 503, 503),
    ("/primary?tag_x=1", 200, 503),
    ("/read-only", 200, 200),
    ("/sync", 503, 503),
    ("/synchronous", 503, 503),
    ("/async", 503, 200),
    ("/asynchronous", 503, 200),
    ("/quorum", 503, 503),
    ("/read-only-sync", 200, 503),
    ("/read-only-quorum", 200, 503),
    ("/read-only?lag=0", 200, 200),
    ("/health", 200, 200),
    ("/healthz", 200, 200),
    ("/liveness", 200, 200),
    ("/liveness/x", 200, 200),
    ("/readiness", 200, 200),
    ("/readiness?lag=0", 200, 200),
    ("/readiness?mode=write", 200, 200),
    ("/readiness?mode=zzz", 200, 200),
    ("/readiness?lag=abc", 200, 200),
    ("/cluster/x", 200, 200),
    ("/clusterx", 503, 503),
    ("/history", 200, 200),
    ("/failsafe", 502, 502),
    ("/patroni", 200, 200),
    ("/patroni/x", 200, 200),
    ("/foo", 503, 503),
    ("/foo/replica", 503, 200),
    ("//replica", 503, 200),
    ("/xprimaryx", 200, 503),
    ("/%72eplica", 503, 503),
    ("/metrics", 200, 200),
    ("/Cluster", 503, 503),
    ("/switchover", 503, 503),
];

#[test]
fn codes_as_captured() {
    for (path, of_primary, of_replica) in CAPTURED {
        assert_eq!(code(&primary(), &locked(), path), *of_primary, "primary {path}");
        assert_eq!(code(&replica(), &unlocked(), path), *of_replica, "replica {path}");
    }
}

#[test]
fn head_and_options_tell_the_code_alone() {
    for method in [Method::HEAD, Method::OPTIONS] {
        for (path, want) in
            [("/master", 200), ("/replica", 503), ("/liveness", 503), ("/cluster", 503), ("/", 200)]
        {
            let route = Route::of(&method, path);
            let query = Query::default();
            let answer =
                read_answer(route, &primary(), PrimaryRule::Proven, path, &query, &locked());
            assert_eq!(answer, Some(Answer::code(want)), "{method} {path}");
        }
    }
}

#[test]
fn methods_and_paths() {
    use Action::*;
    let table = [
        ("POST", "/switchover", Route::Unsafe(Switchover)),
        ("POST", "/failover/", Route::Unsafe(Failover)),
        ("DELETE", "/switchover", Route::Unsafe(CancelSwitchover)),
        ("POST", "/restart/x", Route::Unsafe(Restart)),
        ("DELETE", "/restart", Route::Unsafe(CancelRestart)),
        ("POST", "/reload", Route::Unsafe(Reload)),
        ("POST", "/reinitialize", Route::Unsafe(Reinitialize)),
        ("PATCH", "/config", Route::Unsafe(PatchConfig)),
        ("PUT", "/config", Route::Unsafe(PutConfig)),
        ("POST", "/failsafe", Route::Unsafe(Failsafe)),
        ("POST", "/config", Route::Unsupported),
        ("POST", "/foo", Route::Unsupported),
        ("DELETE", "/config", Route::Unsupported),
        ("PUT", "/primary", Route::Unsupported),
        ("FOO", "/", Route::Unsupported),
    ];
    for (method, path, route) in table {
        assert_eq!(Route::of(&method.parse().expect("a method"), path), route, "{method} {path}");
    }
}

#[test]
fn primary_needs_the_lock_and_a_server_out_of_recovery() {
    type Change = fn(&mut NodeStatus);
    let table: [(&str, Change, Moment, u16, u16); 8] = [
        ("both", |_| {}, locked(), 200, 200),
        ("no lock", |_| {}, unlocked(), 503, 503),
        (
            "expired",
            |_| {},
            Moment { now: NOW.plus(Duration::from_secs(10)), ..locked() },
            503,
            503,
        ),
        (
            "the key was deleted",
            |_| {},
            Moment { lock: Leadership { disputed_since: Some(NOW), ..locked().lock }, ..locked() },
            503,
            503,
        ),
        ("still in recovery", |s| s.server = Some(sample(true)), locked(), 503, 200),
        ("dead", |s| s.server = None, locked(), 503, 200),
        ("stopping", |s| s.state = MemberState("stopping".into()), locked(), 503, 200),
        ("not asked of late", |s| s.sample_valid_until = NOW, locked(), 503, 200),
    ];
    for (what, change, moment, proven, by_lock) in table {
        let mut status = primary();
        change(&mut status);
        for path in ["/", "/primary", "/leader", "/read-write"] {
            assert_eq!(code(&status, &moment, path), proven, "{what} {path}");
            assert_eq!(code_by(&status, PrimaryRule::LockOnly, &moment, path), by_lock, "{what}");
        }
    }
}

#[test]
fn replicas() {
    type Change = fn(&mut NodeStatus);
    let table: [(&str, Change, &str, u16); 20] = [
        (
            "noloadbalance",
            |s| drop(s.tags.insert("noloadbalance".into(), json!(true))),
            "/replica",
            503,
        ),
        (
            "noloadbalance",
            |s| drop(s.tags.insert("noloadbalance".into(), json!(true))),
            "/health",
            200,
        ),
        ("tag", |s| drop(s.tags.insert("zone".into(), json!("b"))), "/replica?tag_zone=b", 200),
        ("tag", |s| drop(s.tags.insert("zone".into(), json!("b"))), "/replica?tag_zone=c", 503),
        ("tag", |s| drop(s.tags.insert("n".into(), json!(3))), "/health?tag_n=3", 200),
        ("tag", |s| drop(s.tags.insert("f".into(), json!(true))), "/async?tag_f=true", 200),
        ("behind", |s| behind(s, 100), "/replica?lag=99", 503),
        ("behind", |s| behind(s, 100), "/replica?lag=100", 200),
        ("behind", |s| behind(s, 100), "/replica", 200),
        ("behind", |s| behind(s, 100), "/read-only?lag=99", 503),
        ("behind", |s| behind(s, 2 << 20), "/readiness", 503),
        ("behind", |s| behind(s, 2 << 20), "/readiness?mode=write", 200),
        ("behind", |s| behind(s, 2 << 20), "/readiness?lag=3MB", 200),
        ("not streaming", |s| change_sample(s, |x| x.replication_state = None), "/readiness", 503),
        ("not streaming", |s| change_sample(s, |x| x.replication_state = None), "/replica", 200),
        (
            "not streaming",
            |s| change_sample(s, |x| x.replication_state = None),
            "/replica?replication_state=streaming",
            503,
        ),
        ("stopped", |s| s.state = MemberState("stopped".into()), "/replica", 503),
        ("stopped", |s| s.state = MemberState("stopped".into()), "/health", 503),
        ("not asked of late", |s| s.sample_valid_until = NOW, "/replica", 503),
        ("etcd is away", |s| s.cluster = None, "/replica", 200),
    ];
    for (what, change, path, want) in table {
        let mut status = replica();
        change(&mut status);
        assert_eq!(code(&status, &unlocked(), path), want, "{what} {path}");
    }
    let mut without = replica();
    without.cluster = None;
    assert_eq!(code(&without, &unlocked(), "/async"), 503, "it needs etcd");
}

/// The walreceiver knows more than `/status` does.
fn behind(status: &mut NodeStatus, bytes: u64) {
    change_sample(status, |sample| {
        let end = Lsn(67_108_960 + bytes);
        (sample.latest_end, sample.received) = (Some(end), Some(end));
    });
}

#[test]
fn synchronous_standbys() {
    let paths = ["/sync", "/async", "/quorum", "/read-only-sync", "/read-only-quorum", "/replica"];
    let table = [
        (Synchronous::Standbys, "pg1", [200, 503, 503, 200, 503, 200]),
        (Synchronous::Standbys, "pg2", [503, 200, 503, 503, 503, 200]),
        (Synchronous::Quorum, "pg1,pg2", [503, 503, 200, 503, 200, 200]),
        (Synchronous::Off, "pg1", [503, 200, 503, 503, 503, 200]),
    ];
    for (mode, standbys, codes) in table {
        let mut status = replica();
        status.mode.synchronous = mode;
        with_cluster(&mut status, |cluster| {
            cluster.sync = Some(SyncState {
                leader: Some("pg0".into()),
                quorum: 1,
                sync_standby: Some(standbys.into()),
            });
        });
        for (path, want) in paths.iter().zip(codes) {
            assert_eq!(code(&status, &unlocked(), path), want, "{mode:?} {standbys} {path}");
        }
        let body = body_of(&status, &unlocked());
        assert_eq!(body.contains(r#""sync_standby": true"#), codes[0] == 200, "{body}");
        assert_eq!(body.contains(r#""quorum_standby": true"#), codes[2] == 200, "{body}");
    }
}

#[test]
fn standby_clusters_and_pauses_without_etcd() {
    let mut leader = node("pg0", true);
    leader.mode.standby_cluster = true;
    leader.role = MemberRole::StandbyLeader;
    for (path, want) in [
        ("/primary", 503),
        ("/replica", 503),
        ("/leader", 200),
        ("/standby-leader", 200),
        ("/read-only", 200),
        ("/read-only-sync", 200),
        ("/readiness", 200),
    ] {
        assert_eq!(code(&leader, &locked(), path), want, "{path}");
    }
    assert!(body_of(&leader, &locked()).contains(r#""role": "standby_leader""#));
    let mut paused = primary();
    paused.cluster = None;
    paused.mode.paused = true;
    for (path, want) in
        [("/primary", 200), ("/leader", 200), ("/standby-leader", 503), ("/replica", 503)]
    {
        assert_eq!(code(&paused, &unlocked(), path), want, "{path}");
    }
    paused.mode.paused = false;
    assert_eq!(code(&paused, &unlocked(), "/primary"), 503);
}

#[test]
fn liveness_gives_a_replica_twice_the_time() {
    let late = |seconds| Moment { now: NOW.plus(Duration::from_secs(seconds)), ..unlocked() };
    let fresh = |mut status: NodeStatus| {
        status.sample_valid_until = BootTime::MAX;
        status
    };
    for (status, last) in [(fresh(primary()), 30), (fresh(replica()), 60)] {
        assert_eq!(code(&status, &late(last), "/liveness"), 200);
        assert_eq!(code(&status, &late(last + 1), "/liveness"), 503);
        let mut paused = status;
        paused.mode.paused = true;
        assert_eq!(code(&paused, &late(1000), "/liveness"), 200);
    }
}

proptest! {
    /// Whatever is asked, `/primary` says 200 only with the lock and out of recovery.
    #[test]
    fn no_path_makes_a_primary(
        path in "/[a-z_/-]{0,20}(primary|master|leader|read-write)?[a-z?=&_]{0,12}",
        in_recovery in any::<bool>(),
        lock in any::<bool>(),
        running in any::<bool>(),
    ) {
        let mut status = node("pg0", in_recovery);
        if !running {
            status.state = MemberState("stopped".into());
        }
        let moment = if lock { locked() } else { unlocked() };
        let uri: Uri = path.parse().expect("a URI");
        let query = Query::of(&uri);
        let code = health_code(&status, PrimaryRule::Proven, uri.path(), &query, &moment);
        let asks_primary = ["primary", "master", "read-write"].iter().any(|word| uri.path().contains(word));
        if asks_primary && code == 200 && !uri.path().contains("standby") {
            prop_assert!(lock && !in_recovery && running, "{}", path);
        }
    }
}
