//! Beside a real Patroni 4.1: the same state must give the same codes and the same keys.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hyper::{Method, Uri};
use leaderpool::patroni::{Key, KeyPrefix, Lsn, MemberRole, MemberState, SystemId, Timeline};
use leaderpool_agent::dcs::{BootTime, DcsSettings, DcsView, Leadership, Session};
use leaderpool_agent::rest::{
    Answer, ClusterFacts, ClusterMode, Identity, Moment, NodeStatus, PrimaryRule, Query,
    ReplicationRow, Route, ServerSample, Synchronous, read_answer,
};
use leaderpool_testbed::{Cluster, ClusterBuilder};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::sleep;

const MINUTE: Duration = Duration::from_secs(60);

const PATHS: &[&str] = &[
    "/",
    "/primary",
    "/master",
    "/read-write",
    "/leader",
    "/standby-leader",
    "/replica",
    "/replica?lag=0",
    "/replica?lag=10MB",
    "/replica?lag=abc",
    "/replica?tag_x=1",
    "/primary?tag_x=1",
    "/read-only",
    "/sync",
    "/synchronous",
    "/async",
    "/asynchronous",
    "/quorum",
    "/read-only-sync",
    "/read-only-quorum",
    "/health",
    "/liveness",
    "/readiness",
    "/readiness?lag=0&mode=write",
    "/cluster",
    "/cluster/x",
    "/history",
    "/config",
    "/failsafe",
    "/patroni",
    "/metrics",
    "/foo",
    "/foo/replica",
    "/xprimaryx",
    "/switchover",
];

/// What Patroni says of itself, as a status of ours. Only what it does not tell is asked elsewhere.
async fn status_of(cluster: &Cluster, view: &DcsView, name: &str) -> Result<NodeStatus> {
    let told = cluster.node(name)?.rest().get("/patroni", MINUTE).await?.json()?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let lsn = |value: &Value| value.as_u64().map(Lsn);
    let at = |value: &Value| -> Result<Option<OffsetDateTime>> {
        let Some(text) = value.as_str() else { return Ok(None) };
        let text = text.replacen(' ', "T", 1);
        let format = &time::format_description::well_known::Rfc3339;
        Ok(Some(OffsetDateTime::parse(&text, format).context(text)?))
    };
    let identity = Identity {
        version: text(&told["patroni"]["version"]).context("a version")?,
        scope: text(&told["patroni"]["scope"]).context("a scope")?,
        name: name.to_owned(),
    };
    let mut status = NodeStatus::new(identity);
    let state = text(&told["state"]).context("a state")?;
    status.role = match told["role"].as_str() {
        Some("primary") => MemberRole::Primary,
        _ => MemberRole::Replica,
    };
    if state == "running" {
        let xlog = &told["xlog"];
        let rows = told["replication"].as_array().cloned().unwrap_or_default();
        let received = lsn(&xlog["received_location"]);
        status.server = Some(ServerSample {
            in_recovery: status.role == MemberRole::Replica,
            postmaster_start_time: at(&told["postmaster_start_time"])?.context("a start")?,
            server_version: u32::try_from(told["server_version"].as_u64().context("a version")?)?,
            timeline: told["timeline"].as_u64().and_then(|t| u32::try_from(t).ok()).map(Timeline),
            location: lsn(&xlog["location"]),
            received,
            replayed: lsn(&xlog["replayed_location"]),
            replayed_at: at(&xlog["replayed_timestamp"])?,
            replay_paused: xlog["paused"] == true,
            latest_end: received,
            replication_state: text(&told["replication_state"]),
            replication: rows
                .iter()
                .map(|row| ReplicationRow {
                    usename: text(&row["usename"]).unwrap_or_default(),
                    application_name: text(&row["application_name"]).unwrap_or_default(),
                    client_addr: text(&row["client_addr"]),
                    state: text(&row["state"]).unwrap_or_default(),
                    sync_state: text(&row["sync_state"]).unwrap_or_default(),
                    sync_priority: 0,
                })
                .collect(),
        });
    }
    status.state = MemberState(state);
    status.sample_valid_until = BootTime::MAX;
    status.system_id =
        text(&told["database_system_identifier"]).and_then(|id| id.parse().ok()).map(SystemId);
    status.tags = told["tags"]
        .as_object()
        .map(|tags| tags.iter().map(|(name, value)| (name.clone(), value.clone())).collect())
        .unwrap_or_default();
    if told["pending_restart"] == true {
        let reasons = told["pending_restart_reason"].as_object().cloned().unwrap_or_default();
        status.pending_restart = Some(reasons.into_iter().collect());
    }
    status.scheduled_restart = told["scheduled_restart"].as_object().cloned();
    status.dcs_last_seen = told["dcs_last_seen"].as_i64().context("a time")?;
    let facts = ClusterFacts::from(view);
    let config = facts.config.clone().unwrap_or_default();
    status.mode = ClusterMode {
        paused: config["pause"] == true,
        standby_cluster: false,
        synchronous: match &config["synchronous_mode"] {
            Value::Bool(true) => Synchronous::Standbys,
            Value::String(mode) if mode == "quorum" => Synchronous::Quorum,
            _ => Synchronous::Off,
        },
        failsafe: config["failsafe_mode"] == true,
    };
    status.cluster = Some(Arc::new(facts));
    Ok(status)
}

/// The keys of a JSON value, at every depth; the elements of a list are taken together.
fn shape(value: &Value, at: &str, out: &mut BTreeMap<String, &'static str>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                shape(value, &format!("{at}.{name}"), out);
            }
        }
        Value::Array(items) => {
            for item in items {
                shape(item, &format!("{at}[]"), out);
            }
        }
        Value::Null => drop(out.entry(at.to_owned()).or_insert("null")),
        Value::Bool(_) => drop(out.insert(at.to_owned(), "bool")),
        Value::Number(_) => drop(out.insert(at.to_owned(), "number")),
        Value::String(_) => drop(out.insert(at.to_owned(), "string")),
    }
}

fn compare_bodies(path: &str, theirs: &str, ours: &Answer) -> Result<()> {
    let ours = String::from_utf8(ours.body.clone())?;
    if path == "/metrics" {
        let names = |text: &str| -> Vec<String> {
            let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
            let labels = lines.map(|line| line.split('}').next().unwrap_or_default().to_owned());
            labels
                .chain(text.lines().filter(|line| line.starts_with("# TYPE")).map(str::to_owned))
                .collect()
        };
        ensure!(names(theirs) == names(&ours), "{theirs}\n{ours}");
        return Ok(());
    }
    let of = |text: &str| -> Result<BTreeMap<String, &'static str>> {
        let mut out = BTreeMap::new();
        shape(&serde_json::from_str(text).with_context(|| text.to_owned())?, "", &mut out);
        Ok(out)
    };
    ensure!(of(theirs)? == of(&ours)?, "{path}\n{theirs}\n{ours}");
    Ok(())
}

/// Compares every path on every node, once nothing moves any more.
async fn compare(cluster: &Cluster, session: &Session, what: &str) -> Result<()> {
    let mut last = None;
    for _ in 0..5 {
        match compare_once(cluster, session).await {
            Ok(count) => {
                eprintln!("  {what}: {count} answers agree");
                return Ok(());
            }
            // A state that changed between the two looks.
            Err(error) => last = Some(error),
        }
        sleep(Duration::from_secs(2)).await;
    }
    Err(last.expect("five tries").context(what.to_owned()))
}

async fn compare_once(cluster: &Cluster, session: &Session) -> Result<usize> {
    let mut count = 0;
    for node in cluster.nodes() {
        let view = session.read().await?;
        let status = status_of(cluster, &view, node.name()).await?;
        let leads = view.leader().is_some_and(|key| key.value == node.name().as_bytes());
        let until = if leads { BootTime::MAX } else { BootTime::ZERO };
        let moment =
            Moment { now: BootTime::now(), lock: Leadership { until, disputed_since: None } };
        for path in PATHS {
            for method in [Method::GET, Method::OPTIONS] {
                let theirs = node.rest().request(method.clone(), path, None, None, MINUTE).await?;
                let uri: Uri = path.parse()?;
                let route = Route::of(&method, uri.path());
                let query = Query::of(&uri);
                let Some(ours) =
                    read_answer(route, &status, PrimaryRule::Proven, uri.path(), &query, &moment)
                else {
                    bail!("{method} {path} changes something")
                };
                ensure!(
                    theirs.status == ours.code,
                    "{} {method} {path}: Patroni {}, we {}",
                    node.name(),
                    theirs.status,
                    ours.code
                );
                // Patroni explains its errors in HTML.
                if method == Method::GET && theirs.status != 502 && !theirs.body.is_empty() {
                    compare_bodies(path, &theirs.body, &ours)
                        .with_context(|| format!("{} {path}", node.name()))?;
                }
                count += 1;
            }
        }
    }
    Ok(count)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_state_gives_the_same_answers() -> Result<()> {
    let cluster = ClusterBuilder::fast().start().await?;
    let prefix = KeyPrefix::new("db", "postgres-cluster");
    let endpoint = format!("http://127.0.0.1:{}", cluster.ports().etcd_client(0));
    let session = Session::start(DcsSettings::new(vec![endpoint], prefix, "onlooker"))?;
    session.wait_ready(MINUTE).await?;
    compare(&cluster, &session, "as started").await?;

    let primary = cluster.primary().await?;
    let patch = async |patch: Value| cluster.patch_config(&patch).await;
    patch(json!({"synchronous_mode": true})).await?;
    sleep(Duration::from_secs(5)).await;
    compare(&cluster, &session, "synchronous").await?;
    patch(json!({"synchronous_mode": "quorum"})).await?;
    sleep(Duration::from_secs(5)).await;
    compare(&cluster, &session, "quorum").await?;
    patch(json!({"synchronous_mode": null, "failsafe_mode": true})).await?;
    sleep(Duration::from_secs(4)).await;
    compare(&cluster, &session, "failsafe").await?;

    // A restart to come, and one that parameters wait for.
    let rest = cluster.node(&primary)?.rest();
    let schedule =
        json!({"schedule": "2099-01-01T00:00:00+02", "role": "primary", "timeout": "1min"});
    ensure!(rest.post("/restart", &schedule, MINUTE).await?.status == 202);
    let switchover = json!({"leader": primary, "scheduled_at": "2099-01-01T00:00:00+02"});
    ensure!(rest.post("/switchover", &switchover, MINUTE).await?.status == 202);
    patch(json!({"postgresql": {"parameters": {"max_connections": 210}}})).await?;
    sleep(Duration::from_secs(4)).await;
    compare(&cluster, &session, "scheduled and pending").await?;

    // Paused, with a replica that is down and stays so.
    patch(json!({"pause": true})).await?;
    let nodes = cluster.nodes();
    let replica = nodes.iter().find(|node| node.name() != primary).context("a replica")?;
    sleep(Duration::from_secs(3)).await;
    cluster.kill_postmaster(replica.name()).await?;
    sleep(Duration::from_secs(4)).await;
    compare(&cluster, &session, "paused, one down").await?;

    // The keys themselves read as this crate writes them.
    let view = session.read().await?;
    ensure!(view.cluster.rejected.is_empty(), "{:?}", view.cluster.rejected);
    ensure!(view.failsafe().context("a list")?.len() == 3);
    ensure!(view.key(&Key::Leader).context("a leader")?.value == primary.as_bytes());
    session.shutdown().await;
    cluster.shutdown().await
}
