//! The sample service of `examples/backend`, as a process, on a real cluster.

#[path = "backend/app.rs"]
mod app;
#[path = "backend/failover.rs"]
mod failover;
#[path = "backend/tokens.rs"]
mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use leaderpool::telemetry::MetricKind;
use leaderpool_testbed::{Cluster, ClusterBuilder, wait};
use serde_json::json;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use app::{Answer, Api, App, EVERY, JSON, LIMIT, TOKEN, binary};

#[tokio::test(flavor = "multi_thread")]
async fn the_sample_service_on_a_real_cluster() {
    let run = async {
        let cluster = step("a cluster", ClusterBuilder::fast().start()).await?;
        // Once: it is read by processes that start while others are started.
        cluster.write_client_toml()?;
        let apps = step("three instances at once", three_at_once(&cluster)).await?;
        step("routes", routes(&apps)).await?;
        step("bad input", bad_input(&apps[0])).await?;
        step("replicas behind", replicas_behind(&cluster, &apps)).await?;
        step("tokens that are none", tokens::bad_tokens(&apps[0])).await?;
        step("failing statements", failing_statements(&cluster)).await?;
        step("no cluster", no_cluster(&cluster)).await?;
        step("SIGTERM with a request in flight", request_in_flight(&cluster)).await?;
        step("switchover", switchover(&cluster, &apps)).await?;
        step("failover", failover::failover(&cluster, &apps)).await?;
        step("the end", end_of(apps)).await?;
        cluster.shutdown().await
    };
    if let Err(error) = run.await {
        panic!("{error:#}");
    }
}

async fn step<T>(what: &str, step: impl Future<Output = Result<T>>) -> Result<T> {
    let began = Instant::now();
    let result = step.await.with_context(|| what.to_owned())?;
    println!("{what}: {:.2?}", began.elapsed());
    Ok(result)
}

// The steps.

async fn three_at_once(cluster: &Cluster) -> Result<Vec<App>> {
    let mut apps = Vec::new();
    for i in 1..=3 {
        let variable = ("LEADERPOOL_POSTGRES_APPLICATION_NAME", format!("app{i}"));
        apps.push(App::start(cluster, i, &[], &[variable]).await?);
    }
    for app in &apps {
        app.wait_ready().await?;
        let log = app.log()?;
        ensure!(log.contains(&format!("listening on http://127.0.0.1:{}", app.port)), "{log}");
        ensure!(!log.contains("cannot set the table up"), "the race for the schema: {log}");
    }
    Ok(apps)
}

async fn routes(apps: &[App]) -> Result<()> {
    let app = &apps[0];
    let exact = r#"{"kind":"signup","payload":{"n":12345678901234567890.12345678901234567890}}"#;
    let posted = app.send("POST", "/events", &[JSON, ("x-request-id", "abc")], exact).await?;
    ensure!(posted.status == 201, "{posted:?}");
    ensure!(posted.body.contains("12345678901234567890.12345678901234567890"), "{posted:?}");
    let event = posted.json()?;
    let id = event["id"].as_i64().context("no id")?;
    ensure!(posted.header("location") == format!("/events/{id}"), "{posted:?}");
    ensure!(posted.header("x-request-id") == "abc", "{posted:?}");
    ensure!(posted.header("x-instance") == format!("app-{}", app.port), "{posted:?}");
    ensure!(posted.header("x-served-by") == event["served_by"], "{posted:?}");
    ensure!(posted.header("x-epoch") == event["epoch"], "{posted:?}");
    ensure!(posted.token()?.starts_with("lp1_"), "{posted:?}");
    let created = event["created_at"].as_str().context("no created_at")?;
    ensure!(created.len() == 27 && created.ends_with('Z') && &created[10..11] == "T", "{created}");

    // What one instance has stored, another one finds, at once.
    for n in 0..20 {
        let posted = app.post(&json!({"kind": "page", "payload": n})).await?;
        ensure!(posted.status == 201, "{posted:?}");
        let found = apps[n % 3].get(&posted.header("location")).await?;
        ensure!(found.status == 200, "{found:?}");
        ensure!(found.json()?["payload"] == n && found.has("x-served-by"), "{found:?}");
        ensure!(found.header("x-request-id").len() == 16, "{found:?}");
    }
    let minimal = app.post(&json!({"kind": "k".repeat(200)})).await?;
    ensure!(minimal.status == 201 && minimal.json()?["payload"].is_null(), "{minimal:?}");

    let (mut after, mut seen) = (id, 0);
    loop {
        let page = app.get(&format!("/events?limit=8&after={after}&fresh=leader")).await?.json()?;
        let events = page["events"].as_array().context("no events")?.clone();
        let ids: Vec<i64> = events.iter().filter_map(|event| event["id"].as_i64()).collect();
        ensure!(ids.iter().all(|id| *id > after) && ids.is_sorted(), "{page}");
        seen += events.len();
        match page["next"].as_i64() {
            Some(next) => {
                ensure!(events.len() == 8 && ids.last() == Some(&next), "{page}");
                after = next;
            }
            None => break,
        }
    }
    ensure!(seen == 21, "{seen} events on the pages");
    let all = app.send("GET", "/events", &[("x-read", "leader")], "").await?.json()?;
    ensure!(all["events"].as_array().is_some_and(|events| events.len() == 22), "{all}");

    let health = app.get("/health").await?;
    ensure!(health.status == 200 && health.json()? == json!({"status": "ok"}), "{health:?}");
    let report = app.get("/cluster").await?.json()?;
    ensure!(report["leader"] == event["served_by"], "{report}");
    ensure!(report["nodes"].as_array().is_some_and(|nodes| nodes.len() == 3), "{report}");
    for path in ["/ready", "/ready?for=writes", "/ready?for=reads"] {
        let ready = app.get(path).await?;
        let body = ready.json()?;
        ensure!(ready.status == 200 && body["leader"] == report["leader"], "{ready:?}");
        ensure!(body["status"] == "ready" && body["writes"] == true && body["reads"] == true);
    }

    let metrics = app.get("/metrics").await?;
    ensure!(metrics.header("content-type").starts_with("text/plain; version=0.0.4"));
    for line in [
        "http_requests_total{route=\"/events\",method=\"POST\",status=\"201\"} 22",
        "http_request_duration_seconds_count{route=\"/events\",method=\"POST\"} 22",
        "events_written_total 22",
        "leaderpool_leader_admitted{pool=\"postgres-cluster\"} 1",
        "leaderpool_epoch_timeline{pool=\"postgres-cluster\"} 1",
        "leaderpool_degraded{pool=\"postgres-cluster\"} 0",
        "leaderpool_failovers_total{pool=\"postgres-cluster\",kind=\"failover\"} 0",
    ] {
        ensure!(metrics.body.lines().any(|have| have == line), "no {line} in {}", metrics.body);
    }
    let replica = "{pool=\"postgres-cluster\",node=\"patroni-replica1\"} ";
    for gauge in ["lag_bytes", "staleness_seconds", "connections_in_use", "connections_idle"] {
        let line = format!("leaderpool_node_{gauge}{replica}");
        ensure!(metrics.body.contains(&line), "{line}: {}", metrics.body);
    }
    for metric in leaderpool::telemetry::METRICS.iter().filter(|metric| metric.labels.len() == 1) {
        // Of each kind of event, only those that happened.
        if metric.kind != MetricKind::Histogram {
            ensure!(metrics.body.contains(metric.name), "{}: {}", metric.name, metrics.body);
        }
    }
    Ok(())
}

async fn bad_input(app: &App) -> Result<()> {
    let long = json!({"kind": "k".repeat(201)}).to_string();
    let big = json!({"kind": "big", "payload": "p".repeat(1024 * 1024)}).to_string();
    let deep =
        format!(r#"{{"kind":"deep","payload":{}{}}}"#, "[".repeat(200_000), "]".repeat(200_000));
    let posts = [
        ("{", 400, "malformed_json"),
        ("", 400, "malformed_json"),
        (r#"{"kind":"a"} b"#, 400, "malformed_json"),
        ("{}", 422, "invalid_event"),
        ("[]", 422, "invalid_event"),
        (r#"{"payload":1}"#, 422, "invalid_event"),
        (r#"{"kind":""}"#, 422, "invalid_event"),
        (r#"{"kind":"  "}"#, 422, "invalid_event"),
        (r#"{"kind":7}"#, 422, "invalid_event"),
        (r#"{"kind":null}"#, 422, "invalid_event"),
        (r#"{"kind":"a\u0000b"}"#, 422, "invalid_event"),
        (r#"{"kind":"a","more":1}"#, 422, "invalid_event"),
        (r#"{"kind":"a","payload":"\u0000"}"#, 422, "invalid_event"),
        (r#"{"kind":"a","payload":1e999999}"#, 422, "invalid_event"),
        (&long, 422, "invalid_event"),
        (&deep, 422, "invalid_event"),
        (&big, 413, "payload_too_large"),
    ];
    for (body, status, code) in posts {
        let answer = app.send("POST", "/events", &[JSON], body).await?;
        answer.is_error(status, code).with_context(|| body.chars().take(80).collect::<String>())?;
    }
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let answer = app.send("POST", "/events", &form, r#"{"kind":"a"}"#).await?;
    answer.is_error(415, "unsupported_media_type")?;
    app.send("POST", "/events?x=1", &[JSON], r#"{"kind":"a"}"#)
        .await?
        .is_error(400, "invalid_query")?;
    let gets = [
        ("/events?limit=0", 400, "invalid_query"),
        ("/events?limit=501", 400, "invalid_query"),
        ("/events?limit=-1", 400, "invalid_query"),
        ("/events?limit=many", 400, "invalid_query"),
        ("/events?limit=1&limit=2", 400, "invalid_query"),
        ("/events?after=", 400, "invalid_query"),
        ("/events?after=-1", 400, "invalid_query"),
        ("/events?after=99999999999999999999", 400, "invalid_query"),
        ("/events?fresh=maybe", 400, "invalid_query"),
        ("/events?unknown=1", 400, "invalid_query"),
        ("/events/1?unknown=1", 400, "invalid_query"),
        ("/events/0", 400, "invalid_id"),
        ("/events/-1", 400, "invalid_id"),
        ("/events/one", 400, "invalid_id"),
        ("/events/99999999999999999999", 400, "invalid_id"),
        ("/events/%ff", 400, "invalid_id"),
        ("/ready?for=fun", 400, "invalid_query"),
        ("/events/9223372036854775807", 404, "not_found"),
        ("/events/", 404, "unknown_route"),
        ("/", 404, "unknown_route"),
        ("/events/1/more", 404, "unknown_route"),
    ];
    for (path, status, code) in gets {
        app.get(path).await?.is_error(status, code).context(path)?;
    }
    app.send("GET", "/events", &[("x-read", "x")], "").await?.is_error(400, "invalid_header")?;
    for (method, path) in [("DELETE", "/events"), ("PUT", "/events/1"), ("POST", "/health")] {
        let answer = app.send(method, path, &[], "").await?;
        answer.is_error(405, "method_not_allowed")?;
        ensure!(answer.header("allow").contains("GET"), "{answer:?}");
    }
    let log = app.log()?;
    ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}

async fn replicas_behind(cluster: &Cluster, apps: &[App]) -> Result<()> {
    let leader = cluster.primary().await?;
    let nodes = cluster.nodes();
    let replicas = || nodes.iter().map(|node| node.name()).filter(|name| *name != leader);
    for replica in replicas() {
        // Its manager would resume the replay within a second.
        cluster.freeze_manager(replica).await?;
        cluster.connect(replica).await?.batch_execute("select pg_wal_replay_pause()").await?;
    }
    let checks = async {
        let posted = apps[0].post(&json!({"kind": "not replayed"})).await?;
        let id = posted.json()?["id"].as_i64().context("no id")?;
        let found = apps[1].get(&format!("/events/{id}")).await?;
        ensure!(found.status == 200 && found.header("x-served-by") == leader, "{found:?}");
        let page = apps[1].get(&format!("/events?after={}", id - 1)).await?;
        ensure!(page.json()?["events"] == json!([]), "{page:?}");
        ensure!(page.header("x-served-by") != leader, "{page:?}");
        // With its token it is there, from any instance, and the token comes back.
        let token = posted.token()?;
        let path = format!("/events?after={}", id - 1);
        let page = apps[2].send("GET", &path, &[(TOKEN, &token)], "").await?;
        ensure!(page.json()?["events"][0]["id"] == id && page.token()? == token, "{page:?}");
        let found = apps[2].send("GET", &format!("/events/{id}"), &[(TOKEN, &token)], "").await?;
        ensure!(found.status == 200 && found.token()? == token, "{found:?}");
        // So it is with several, in one header or in many, in any order.
        let later = apps[2].post(&json!({"kind": "not replayed"})).await?.token()?;
        let (ascending, descending) = (format!("{token},{later}"), format!("{later} , {token}"));
        for headers in [
            vec![(TOKEN, &*ascending)],
            vec![(TOKEN, &*descending)],
            vec![(TOKEN, &*token), (TOKEN, &*later)],
            vec![(TOKEN, &*later), (TOKEN, &*ascending)],
        ] {
            let page = apps[0].send("GET", &path, &headers, "").await?;
            ensure!(page.token()? == later, "{page:?}");
            ensure!(page.json()?["events"].as_array().map(Vec::len) == Some(2), "{page:?}");
        }
        for path in ["/events?limit=1&after=", "/events?fresh=leader&after="] {
            let path = format!("{path}{}", id - 1);
            let page = apps[1].send("GET", &path, &[("x-read", "leader")], "").await?;
            ensure!(page.json()?["events"][0]["id"] == id, "{page:?}");
            ensure!(page.header("x-served-by") == leader, "{page:?}");
        }
        Ok(())
    };
    let checked = checks.await;
    for replica in replicas() {
        cluster.connect(replica).await?.batch_execute("select pg_wal_replay_resume()").await?;
        cluster.thaw_manager(replica).await?;
    }
    checked
}

async fn failing_statements(cluster: &Cluster) -> Result<()> {
    let name = ("LEADERPOOL_POSTGRES_APPLICATION_NAME", "failing".to_owned());
    let app =
        App::start(cluster, 4, &["--request-timeout", "2s", "--instance", "f"], &[name]).await?;
    app.wait_ready().await?;
    let sql = cluster.connect(&cluster.primary().await?).await?;
    let count = async |kind: &str| -> Result<i64> {
        let count = "select count(*) from events where kind = $1";
        Ok(sql.query_one(count, &[&kind]).await?.get(0))
    };

    sql.batch_execute("alter table events add constraint c check (kind <> 'forbidden')").await?;
    let answer = app.post(&json!({"kind": "forbidden"})).await?;
    answer.is_error(500, "database_error")?;
    ensure!(answer.json()?["error"]["sqlstate"] == "23514", "{answer:?}");
    ensure!(answer.has("x-served-by") && answer.header("x-instance") == "f", "{answer:?}");
    sql.batch_execute("alter table events drop constraint c").await?;

    // Each waits for a lock: `slow` and `cut` in the statement, `late` in the commit.
    sql.batch_execute(
        "create function hold() returns trigger language plpgsql as
            'begin perform pg_advisory_xact_lock(1); return new; end';
         create trigger hold before insert on events
            for each row when (new.kind in ('slow', 'cut')) execute function hold();
         create constraint trigger hold_commit after insert on events deferrable initially deferred
            for each row when (new.kind = 'late') execute function hold();
         select pg_advisory_lock(1)",
    )
    .await?;
    // In time there is no answer: it was not committed.
    let kind = json!({"kind": "slow"});
    let (answer, _) = tokio::join!(app.post(&kind), waiting_for_lock(cluster, "failing"));
    answer?.is_error(504, "timeout")?;
    // The commit was sent, and never answered: nobody can tell.
    let kind = json!({"kind": "late"});
    let (answer, _) = tokio::join!(app.post(&kind), waiting_for_lock(cluster, "failing"));
    answer?.is_error(504, "outcome_unknown")?;
    // The connection is lost: it is run again, once.
    let kind = json!({"kind": "cut"});
    let cut = async {
        waiting_for_lock(cluster, "failing").await?;
        let terminate = "select pg_terminate_backend(pid) from pg_stat_activity \
                         where application_name = 'failing' and wait_event_type = 'Lock'";
        sql.execute(terminate, &[]).await?;
        Ok::<_, anyhow::Error>(sql.batch_execute("select pg_advisory_unlock(1)").await?)
    };
    let (answer, cut) = tokio::join!(app.post(&kind), cut);
    cut?;
    let answer = answer?;
    ensure!(answer.status == 201, "{answer:?}");
    sql.batch_execute(
        "drop trigger hold on events; drop trigger hold_commit on events; drop function hold",
    )
    .await?;
    ensure!(count("slow").await? == 0 && count("late").await? <= 1 && count("cut").await? == 1);
    app.wait_ready().await?;
    app.terminate().await
}

async fn no_cluster(cluster: &Cluster) -> Result<()> {
    let nowhere = || "http://127.0.0.1:1".to_owned();
    let variables =
        [("LEADERPOOL_ETCD_ENDPOINTS", nowhere()), ("LEADERPOOL_REST_ENDPOINTS", nowhere())];
    let app = App::start(cluster, 5, &[], &variables).await?;
    app.wait_serving().await?;
    ensure!(app.get("/health").await?.status == 200);
    app.get("/ready").await?.is_error(503, "starting")?;
    app.post(&json!({"kind": "early"})).await?.is_error(503, "starting")?;
    ensure!(app.get("/cluster").await?.json()?["leader"].is_null());
    ensure!(
        app.get("/metrics")
            .await?
            .body
            .contains("\nleaderpool_leader_admitted{pool=\"postgres-cluster\"} 0\n")
    );

    // Its port is taken, or there is no such file: an error that says so, at once.
    for (arguments, words) in [
        (["--port".to_owned(), app.port.to_string()], "cannot listen on 127.0.0.1"),
        (["--config".to_owned(), "no-such.toml".to_owned()], "no-such.toml"),
        (["--request-timeout".to_owned(), "0s".to_owned()], "100ms"),
    ] {
        let mut command = Command::new(binary().await?);
        let config = cluster.dir().join("leaderpool.toml");
        if arguments[0] != "--config" {
            command.arg("--config").arg(config);
        }
        let ended = timeout(LIMIT, command.args(arguments).output()).await??;
        let said = String::from_utf8_lossy(&ended.stderr);
        ensure!(!ended.status.success() && said.contains(words), "{said}");
    }
    app.terminate().await
}

async fn request_in_flight(cluster: &Cluster) -> Result<()> {
    let name = ("LEADERPOOL_POSTGRES_APPLICATION_NAME", "ending".to_owned());
    let app = App::start(cluster, 6, &[], &[name]).await?;
    app.wait_ready().await?;
    let sql = cluster.connect(&cluster.primary().await?).await?;
    sql.batch_execute("begin; lock table events").await?;
    let event = json!({"kind": "in flight"});
    let end = async {
        waiting_for_lock(cluster, "ending").await?;
        app.signal().await?;
        let refused = async || match app.get("/health").await {
            Err(_) => Ok(()),
            Ok(answer) => bail!("{answer:?}"),
        };
        wait::until("no new connections", LIMIT, EVERY, refused).await?;
        sleep(Duration::from_millis(200)).await;
        Ok::<_, anyhow::Error>(sql.batch_execute("commit").await?)
    };
    let (answer, ended) = tokio::join!(app.post(&event), end);
    ended?;
    let answer = answer?;
    ensure!(answer.status == 201, "{answer:?}");
    let id = answer.json()?["id"].as_i64();
    let row = sql.query_one("select id from events where kind = 'in flight'", &[]).await?;
    ensure!(id == Some(row.get(0)), "{answer:?}");
    app.ended().await
}

async fn switchover(cluster: &Cluster, apps: &[App]) -> Result<()> {
    let from = cluster.primary().await?;
    let to = cluster.nodes().iter().map(|node| node.name().to_owned()).find(|name| *name != from);
    let to = to.context("no replica")?;
    let epoch = apps[0].get("/cluster").await?.json()?["epoch"].clone();
    let leaving = App::start(cluster, 7, &["--shutdown-timeout", "300ms"], &[]).await?;
    leaving.wait_ready().await?;

    let stop = Arc::new(AtomicBool::new(false));
    let mut posters = tokio::task::JoinSet::new();
    for (i, app) in apps.iter().enumerate() {
        for worker in 0..2 {
            let (api, stop) = (app.api.clone(), Arc::clone(&stop));
            posters
                .spawn(async move { post_until(&api, &format!("sw-{i}-{worker}"), &stop).await });
        }
    }
    let watcher = tokio::spawn(watch_ready(apps[0].api.clone(), Arc::clone(&stop)));
    let leave = async {
        let held = async || leaving.get("/ready?for=writes").await?.is_error(503, "writes_held");
        wait::until("writes are held", LIMIT, EVERY, held).await?;
        let event = json!({"kind": "leaving"});
        let end = async {
            sleep(Duration::from_millis(100)).await;
            leaving.signal().await
        };
        // Held, then refused when the process has to end; or served, if the leader was faster.
        let (answer, end) = tokio::join!(leaving.post(&event), end);
        end?;
        let answer = answer?;
        ensure!(
            answer.status == 201 || answer.is_error(503, "shutting_down").is_ok(),
            "{answer:?}"
        );
        leaving.ended().await
    };
    sleep(Duration::from_millis(500)).await;
    let (switched, left) = tokio::join!(cluster.switchover(&from, &to), leave);
    switched?;
    left.context("an instance that ends while writes are held")?;
    for app in apps {
        app.wait_ready().await?;
    }
    sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);

    // Before the table is looked at: the last ones are still under way.
    let mut posts = Vec::new();
    while let Some(posted) = posters.join_next().await {
        posts.extend(posted??);
    }

    // Each event that was acknowledged is there once, under its id; each that was refused is not.
    let sql = cluster.connect(&to).await?;
    let mut stored: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for row in sql.query("select kind, id from events where kind like 'sw-%'", &[]).await? {
        stored.entry(row.get(0)).or_default().push(row.get(1));
    }
    let (mut acknowledged, mut errors, mut longest) = (0, Vec::new(), Duration::ZERO);
    let mut nodes = BTreeSet::new();
    for (kind, answer, took) in posts {
        let found = stored.remove(&kind).unwrap_or_default();
        longest = longest.max(took);
        if answer.status == 201 {
            let id = answer.json()?["id"].as_i64().context("no id")?;
            ensure!(found == [id], "{kind}: {found:?} for {answer:?}");
            nodes.insert(answer.header("x-served-by"));
            acknowledged += 1;
            continue;
        }
        let code = answer.code();
        answer.is_error(answer.status, &code)?;
        let most = usize::from(code == "outcome_unknown");
        ensure!(found.len() <= most, "{kind}: {found:?} for {answer:?}");
        errors.push(code);
    }
    ensure!(stored.is_empty(), "nobody posted {stored:?}");
    ensure!(nodes == BTreeSet::from([from.clone(), to.clone()]), "{nodes:?}");
    println!("{acknowledged} stored, the slowest in {longest:.2?}; errors: {errors:?}");
    ensure!(longest < Duration::from_secs(15), "a write was held for {longest:?}");
    ensure!(errors.is_empty(), "{errors:?}");

    let seen = watcher.await??;
    ensure!(seen.first().is_some_and(|code| code == "ready"), "{seen:?}");
    ensure!(seen.contains(&"reads_only".to_owned()), "{seen:?}");
    ensure!(seen.last().is_some_and(|code| code == "ready"), "{seen:?}");
    for app in apps {
        let report = app.get("/cluster").await?.json()?;
        ensure!(report["leader"] == to, "{report}");
        ensure!(report["failovers"][0]["from"] == from, "{report}");
        ensure!(report["failovers"][0]["to"] == to, "{report}");
        ensure!(report["epoch"]["timeline"].as_i64() > epoch["timeline"].as_i64(), "{report}");
        let metrics = app.get("/metrics").await?.body;
        let value = |metric: &str, labels: &str| {
            let line = format!("{metric}{{pool=\"postgres-cluster\"{labels}}} ");
            let value = metrics.lines().find_map(|have| have.strip_prefix(&line));
            value.with_context(|| format!("no {line} in {metrics}"))?.parse::<f64>().context(line)
        };
        ensure!(value("leaderpool_epoch_timeline", "")? == 2.0, "{metrics}");
        ensure!(value("leaderpool_failovers_total", ",kind=\"failover\"")? == 1.0, "{metrics}");
        let gap = report["failovers"][0]["gap_ms"].as_f64().context("no gap")? / 1000.0;
        let unavailable = value("leaderpool_write_unavailable_seconds", "")?;
        ensure!(unavailable >= gap, "{unavailable} s for a gap of {gap} s");
        ensure!(value("leaderpool_failover_gap_seconds_count", ",kind=\"failover\"")? == 1.0);
    }
    Ok(())
}

async fn end_of(apps: Vec<App>) -> Result<()> {
    for app in apps {
        let log = app.log()?;
        ensure!(!log.contains("panicked"), "{log}");
        app.terminate().await?;
    }
    Ok(())
}

// Their helpers.

type Posted = Vec<(String, Answer, Duration)>;

async fn post_until(api: &Api, name: &str, stop: &AtomicBool) -> Result<Posted> {
    let mut posted = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let kind = format!("{name}-{}", posted.len());
        let began = Instant::now();
        let answer = api.post(&json!({"kind": kind})).await?;
        posted.push((kind, answer, began.elapsed()));
    }
    Ok(posted)
}

/// What `/ready` says, each time that it changes. `/health` stays as it is.
async fn watch_ready(api: Api, stop: Arc<AtomicBool>) -> Result<Vec<String>> {
    let mut seen: Vec<String> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let answer = api.get("/ready").await?;
        let code = if answer.status == 200 {
            answer.json()?["status"].as_str().context("no status")?.to_owned()
        } else {
            answer.is_error(503, &answer.code())?;
            answer.code()
        };
        if seen.last() != Some(&code) {
            seen.push(code);
        }
        let health = api.get("/health").await?;
        ensure!(health.status == 200, "{health:?}");
        sleep(EVERY).await;
    }
    Ok(seen)
}

/// Until a statement of this application waits for a lock.
async fn waiting_for_lock(cluster: &Cluster, application: &str) -> Result<()> {
    let sql = cluster.connect(&cluster.primary().await?).await?;
    let count = "select count(*) from pg_stat_activity \
                 where application_name = $1 and wait_event_type = 'Lock'";
    wait::until("a statement waits", LIMIT, EVERY, async || {
        let waiting: i64 = sql.query_one(count, &[&application]).await?.get(0);
        ensure!(waiting > 0, "none does");
        Ok(())
    })
    .await
}
