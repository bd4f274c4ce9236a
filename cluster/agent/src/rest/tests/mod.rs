//! The contract's rows, as captured from clusters of Patroni 4.1.5.

mod bodies;
mod health;
mod requests;

use std::sync::Arc;
use std::time::Duration;

use hyper::{Method, Uri};
use leaderpool::patroni::{
    ClusterSnapshot, LeaderKey, Lsn, Member, MemberRole, MemberState, ServerAddress, Status,
    SystemId, Timeline,
};
use time::macros::datetime;

use super::*;
use crate::dcs::{BootTime, Leadership};

const NOW: BootTime = BootTime::from_nanos(1_000_000_000_000);

fn locked() -> Moment {
    let until = NOW.plus(Duration::from_secs(10));
    Moment { now: NOW, lock: Leadership { until, disputed_since: None } }
}

fn unlocked() -> Moment {
    Moment { now: NOW, lock: Leadership::default() }
}

fn identity(name: &str) -> Identity {
    Identity { version: "4.1.5".into(), scope: "batman".into(), name: name.into() }
}

fn sample(in_recovery: bool) -> ServerSample {
    let at = Some(Lsn(67_108_960));
    ServerSample {
        in_recovery,
        postmaster_start_time: datetime!(2026-11-23 13:08:48.479232 UTC),
        server_version: 150_018,
        timeline: Some(Timeline(1)),
        location: at.filter(|_| !in_recovery),
        received: at.filter(|_| in_recovery),
        replayed: at.filter(|_| in_recovery),
        replayed_at: None,
        replay_paused: false,
        latest_end: at.filter(|_| in_recovery),
        replication_state: in_recovery.then(|| "streaming".into()),
        replication: Vec::new(),
    }
}

fn member(port: u16, primary: bool) -> Member {
    let at = Some(Lsn(67_108_960));
    let mut member = Member::at(&ServerAddress { host: "127.0.0.1".into(), port });
    member.api_url = Some(format!("http://127.0.0.1:{}/patroni", port + 2576));
    member.state = MemberState("running".into());
    member.role = if primary { MemberRole::Primary } else { MemberRole::Replica };
    member.timeline = Some(Timeline(1));
    member.xlog_location = at;
    if !primary {
        (member.replay_lsn, member.receive_lsn) = (at, at);
        member.replication_state = Some("streaming".into());
    }
    member
}

fn cluster() -> ClusterSnapshot {
    ClusterSnapshot {
        leader: Some(LeaderKey { name: "pg0".into(), revision: 7 }),
        members: [
            ("pg0".to_owned(), member(5432, true)),
            ("pg1".to_owned(), member(5433, false)),
            ("pg2".to_owned(), member(5434, false)),
        ]
        .into(),
        status: Some(Status { optime: Lsn(67_108_960), ..Status::default() }),
        ..ClusterSnapshot::default()
    }
}

fn with_cluster(status: &mut NodeStatus, change: impl FnOnce(&mut ClusterSnapshot)) {
    let mut snapshot = cluster();
    change(&mut snapshot);
    let facts = ClusterFacts { snapshot: Arc::new(snapshot), ..ClusterFacts::default() };
    status.cluster = Some(Arc::new(facts));
}

fn node(name: &str, in_recovery: bool) -> NodeStatus {
    let mut status = NodeStatus::new(identity(name));
    status.state = MemberState("running".into());
    status.role = if in_recovery { MemberRole::Replica } else { MemberRole::Primary };
    status.server = Some(sample(in_recovery));
    status.sample_valid_until = NOW.plus(Duration::from_secs(5));
    status.system_id = Some(SystemId(7_711_353_190_614_709_005));
    status.dcs_last_seen = 1_795_439_348;
    status.next_run = NOW.plus(Duration::from_secs(1));
    with_cluster(&mut status, |_| {});
    status
}

fn primary() -> NodeStatus {
    node("pg0", false)
}

fn replica() -> NodeStatus {
    node("pg1", true)
}

fn code(status: &NodeStatus, moment: &Moment, uri: &str) -> u16 {
    code_by(status, PrimaryRule::Proven, moment, uri)
}

fn code_by(status: &NodeStatus, rule: PrimaryRule, moment: &Moment, uri: &str) -> u16 {
    let uri: Uri = uri.parse().expect("a URI");
    let route = Route::of(&Method::GET, uri.path());
    let query = Query::of(&uri);
    read_answer(route, status, rule, uri.path(), &query, moment).expect("it reads").code
}

/// Path, primary, replica: as captured.
fn change_sample(status: &mut NodeStatus, change: impl FnOnce(&mut ServerSample)) {
    change(status.server.as_mut().expect("a sample"));
}

fn body_of(status: &NodeStatus, moment: &Moment) -> String {
    String::from_utf8(status_body(status, moment.now)).expect("text")
}
