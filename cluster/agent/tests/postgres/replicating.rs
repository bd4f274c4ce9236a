//! Standbys: copying, streaming, promotion, following another, slots, synchronous commits.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use leaderpool::patroni::Timeline;
use leaderpool_agent::postgres::clone::{CustomMethod, ReplicaMethod};
use leaderpool_agent::postgres::files::Recovery;
use leaderpool_agent::postgres::replication::{PromoteError, SlotPlan, SyncNames};
use tokio::time::Instant;

use crate::bed::{Bed, caught_up, fast, print_time, soon, until};

#[tokio::test]
async fn a_promotion_and_a_third_that_follows_by_reload() {
    let bed = Bed::new().await;
    let (pg0, _) = bed.primary(0).await;
    let (pg1, _) = bed.standby(1, (&pg0, 0)).await;
    let (pg2, _) = bed.standby(2, (&pg0, 0)).await;
    bed.superuser(0).await.batch_execute("CREATE TABLE t (n int)").await.unwrap();
    caught_up(&pg0, &pg1).await;
    caught_up(&pg0, &pg2).await;
    let state = pg1.session().state().await.unwrap();
    assert_eq!(state.replication_state(), Some("streaming"));
    assert_eq!(state.receiver.as_ref().unwrap().slot.as_deref(), Some("pg1"));
    assert_eq!(state.timeline, Some(Timeline(1)));
    let senders = pg0.session().state().await.unwrap().senders;
    let names: BTreeSet<_> = senders.iter().map(|s| s.application_name.as_str()).collect();
    assert_eq!(names, BTreeSet::from(["pg1", "pg2"]));
    assert!(matches!(pg0.promote(soon()).await, Err(PromoteError::NotAStandby)));

    pg0.stop(&fast()).await.unwrap();
    let begin = Instant::now();
    let promoted = pg1.promote(soon()).await.unwrap();
    print_time("promote: signal to out of recovery", promoted.took);
    assert_eq!(promoted.timeline, Timeline(2));
    let client = bed.superuser(1).await;
    client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    print_time("promote: request to first commit on a new connection", begin.elapsed());
    pg1.session().create_slot("pg2").await.unwrap();

    let begin = Instant::now();
    let server = pg2.server().unwrap();
    let upstream = bed.upstream(1, 2);
    assert!(pg2.follow(Some(upstream.clone())).await.unwrap().reloaded);
    let streaming = pg2.wait_streaming(&upstream, soon()).await.unwrap();
    print_time("follow by reload: request to streaming", begin.elapsed());
    assert_eq!(streaming.receiver.slot.as_deref(), Some("pg2"));
    assert!(server.is_running(), "it was not restarted");
    caught_up(&pg1, &pg2).await;
    let count: i64 =
        bed.superuser(2).await.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0);
    assert_eq!(count, 1);
    assert_eq!(pg2.session().state().await.unwrap().timeline, Some(Timeline(2)));
    assert!(!pg2.follow(Some(upstream)).await.unwrap().reloaded, "the same again is nothing to do");

    let begin = Instant::now();
    pg1.checkpoint_after_promote(Duration::from_secs(60)).await.unwrap();
    print_time("checkpoint after promote", begin.elapsed());
    assert!(pg1.session().state().await.unwrap().checkpoint_after_promote());
    // What was promoted is a primary also after a restart.
    pg1.restart(&fast(), soon()).await.unwrap();
    assert!(!pg1.session().is_in_recovery().await.unwrap());
}

#[tokio::test]
async fn an_upstream_that_is_not_up_yet_is_tried_again_and_again() {
    let bed = Bed::new().await;
    let (pg0, _) = bed.primary(0).await;
    let (pg1, _) = bed.standby(1, (&pg0, 0)).await;
    let upstream = bed.upstream(0, 1);
    for _ in 0..2 {
        pg0.stop(&fast()).await.unwrap();
        let short = Instant::now() + Duration::from_millis(700);
        let error = pg1.wait_streaming(&upstream, short).await.unwrap_err().to_string();
        assert!(error.contains("does not stream from pg0"), "{error}");
        pg0.start_and_wait(Recovery::None, soon()).await.unwrap();
        let streaming = pg1.wait_streaming(&upstream, soon()).await.unwrap();
        // By itself it would try every five seconds.
        print_time("upstream back: to streaming", streaming.took);
    }
}

#[tokio::test]
async fn promoting_twice_and_taking_a_request_back() {
    let bed = Bed::new().await;
    let (pg0, _) = bed.primary(0).await;
    let (pg1, _) = bed.standby(1, (&pg0, 0)).await;
    for round in 0..3 {
        let promoted = pg1.promote(soon()).await.unwrap();
        print_time("promote: signal to out of recovery", promoted.took);
        assert!(!bed.home(1).join("data/promote").exists());
        pg1.stop(&fast()).await.unwrap();
        // A standby of nobody, which can be promoted again.
        pg1.start_and_wait(Recovery::Standby(None), soon()).await.unwrap();
        assert!(pg1.session().is_in_recovery().await.unwrap());
        assert_eq!(promoted.timeline.0, round + 2);
    }
    drop(tokio::time::timeout(Duration::ZERO, pg1.promote(soon())).await);
    assert!(!bed.home(1).join("data/promote").exists(), "no request is left behind");
}

#[tokio::test]
async fn slots_are_made_moved_and_dropped() {
    let bed = Bed::new().await;
    let (pg0, _) = bed.primary(0).await;
    let client = bed.superuser(0).await;
    client.batch_execute("SELECT pg_create_physical_replication_slot('mine')").await.unwrap();
    let wanted = BTreeMap::from([("pg1".to_owned(), None), ("pg2".to_owned(), None)]);
    let make = async |wanted: &BTreeMap<_, _>| {
        let state = pg0.session().state().await.unwrap();
        let plan = SlotPlan::make(&state, wanted, |slot| slot.name == "mine");
        let failed = pg0.session().apply_slots(&plan).await;
        assert!(failed.is_empty(), "{failed:?}");
        plan
    };
    assert_eq!(make(&wanted).await.create, ["pg1", "pg2"]);
    assert!(make(&wanted).await.is_empty());
    let slots = pg0.session().state().await.unwrap().slots;
    let at = slots.iter().find(|s| s.name == "pg1").unwrap().restart.expect("WAL is reserved");
    client.batch_execute("CREATE TABLE t AS SELECT generate_series(1, 1000)").await.unwrap();
    let to = pg0.session().state().await.unwrap().flush.unwrap();
    assert!(to > at);
    make(&BTreeMap::from([("pg1".to_owned(), Some(to)), ("pg2".to_owned(), None)])).await;
    let slots = pg0.session().state().await.unwrap().slots;
    assert_eq!(slots.iter().find(|s| s.name == "pg1").unwrap().restart, Some(to));
    assert_eq!(make(&BTreeMap::new()).await.drop, ["pg1", "pg2"]);
    let names: Vec<_> =
        pg0.session().state().await.unwrap().slots.into_iter().map(|s| s.name).collect();
    assert_eq!(names, ["mine"]);
}

#[tokio::test]
async fn synchronous_names_are_confirmed() {
    let bed = Bed::new().await;
    let (pg0, _) = bed.primary(0).await;
    let (pg1, _) = bed.standby(1, (&pg0, 0)).await;
    let names = |value: &str, members: &[&str]| SyncNames {
        value: value.to_owned(),
        members: members.iter().map(|m| (*m).to_owned()).collect(),
    };
    let begin = Instant::now();
    let one = names("pg1", &["pg1"]);
    let senders = pg0.set_synchronous_standby_names(Some(&one), soon()).await.unwrap();
    print_time("synchronous_standby_names: set to in effect", begin.elapsed());
    assert_eq!(senders[0].sync_state.as_deref(), Some("sync"));

    // From here on, a commit waits.
    pg1.stop(&fast()).await.unwrap();
    let client = bed.superuser(0).await;
    let commit = client.batch_execute("CREATE TABLE t (n int)");
    assert!(tokio::time::timeout(Duration::from_millis(500), commit).await.is_err());
    let begin = Instant::now();
    pg0.set_synchronous_standby_names(Some(&names("", &[])), soon()).await.unwrap();
    print_time("synchronous_standby_names: cleared to in effect", begin.elapsed());
    bed.superuser(0).await.batch_execute("SELECT * FROM t").await.unwrap();
    // New settings do not undo what was set at run time.
    let mut settings = bed.settings(0);
    settings.parameters.insert("synchronous_standby_names".into(), "nobody".into());
    pg0.apply(settings).await.unwrap();
    assert_eq!(pg0.session().state().await.unwrap().synchronous_standby_names, "");
}

#[tokio::test]
async fn a_copy_by_the_users_own_method() {
    let bed = Bed::new().await;
    let (pg0, _) = bed.primary(0).await;
    pg0.session().create_slot("pg1").await.unwrap();
    let pg1 = bed.open(1).await;
    let script = bed.home(1).join("copy.sh");
    let bin = pg1.site().binaries.dir().display().to_string();
    let text = format!(
        "#!/bin/sh\nset -e\necho \"$@\" > {home}/arguments\nfor a in \"$@\"; do case $a in --connstring=*) c=${{a#*=}};; \
         --datadir=*) d=${{a#*=}};; esac; done\n{bin}/pg_basebackup -w -D \"$d\" -d \"$c\" -c fast -X stream\n",
        home = bed.home(1).display()
    );
    std::fs::write(&script, text).unwrap();
    let broken = CustomMethod {
        name: "broken".into(),
        command: "/bin/sh -c 'echo no backup today >&2; exit 1'".into(),
        ..CustomMethod::default()
    };
    let working = CustomMethod {
        name: "mine".into(),
        command: format!("/bin/sh '{}'", script.display()),
        arguments: vec![("speed".into(), "high".into())],
        ..CustomMethod::default()
    };
    let upstream = bed.upstream(0, 1);
    let only_broken = [ReplicaMethod::Custom(broken.clone())];
    let error =
        pg1.clone_from(Some(&upstream), &only_broken, soon()).await.unwrap_err().to_string();
    assert!(error.contains("broken") && error.contains("no backup today"), "{error}");
    let error = pg1.clone_from(None, &only_broken, soon()).await.unwrap_err().to_string();
    assert!(error.contains("no_leader"), "{error}");
    let both = [ReplicaMethod::Custom(broken), ReplicaMethod::Custom(working)];
    let cloned = pg1.clone_from(Some(&upstream), &both, soon()).await.unwrap();
    assert_eq!(cloned.method, "mine");
    let arguments = std::fs::read_to_string(bed.home(1).join("arguments")).unwrap();
    assert!(arguments.contains("--speed=high --scope=batman --role=replica"), "{arguments}");
    assert!(!arguments.contains("secret"), "no password on the command line");
    pg1.start_and_wait(Recovery::Standby(Some(upstream.clone())), soon()).await.unwrap();
    pg1.wait_streaming(&upstream, soon()).await.unwrap();
}

#[tokio::test]
async fn an_interrupted_copy_leaves_no_data() {
    let bed = Bed::new().await;
    let (pg0, _) = bed.primary(0).await;
    let fill = "CREATE TABLE t AS SELECT repeat('x', 1000) FROM generate_series(1, 60000)";
    bed.superuser(0).await.batch_execute(fill).await.unwrap();
    pg0.session().create_slot("pg1").await.unwrap();
    let mut settings = bed.settings(1);
    let slow = leaderpool_agent::postgres::settings::ToolOption::value("max-rate", "4M");
    settings.basebackup = vec![slow];
    let pg1 = leaderpool_agent::postgres::Postgres::open(settings).await.unwrap();
    let upstream = bed.upstream(0, 1);
    let methods = [ReplicaMethod::Basebackup];
    let beside = bed.home(1).join(".data.new");
    {
        let copy = pg1.clone_from(Some(&upstream), &methods, soon());
        tokio::pin!(copy);
        let begun = until("the copy has begun", async || beside.join("base").exists());
        tokio::select! { _ = &mut copy => panic!("too fast"), () = begun => {} }
    }
    assert!(!pg1.has_data());
    assert_eq!(std::fs::read_dir(bed.home(1).join("data")).unwrap().count(), 0);
    pg1.apply(bed.settings(1)).await.unwrap();
    // The killed one may hold the slot for another moment; the attempts outlast that.
    pg1.clone_from(Some(&upstream), &methods, soon()).await.unwrap();
    assert!(pg1.has_data() && !beside.exists());
}
