//! Coming back after a failover.

use std::time::Duration;

use leaderpool_agent::postgres::Postgres;
use leaderpool_agent::postgres::clone::ReplicaMethod;
use leaderpool_agent::postgres::control::DataState;
use leaderpool_agent::postgres::files::Recovery;
use leaderpool_agent::postgres::process::{StopMode, StopPlan};
use leaderpool_agent::postgres::rejoin::{
    RejoinError, Verdict, examine_running, move_aside, needs_crash_recovery, remove_data,
};
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::bed::{Bed, LONG, caught_up, fast, print_time, soon};

/// `pg0` led, `pg1` was promoted while `pg0` still ran: `pg0` has commits that nobody else has.
async fn diverged(bed: &Bed) -> (Postgres, Postgres) {
    let (pg0, _) = bed.primary(0).await;
    let (pg1, _) = bed.standby(1, (&pg0, 0)).await;
    bed.superuser(0).await.batch_execute("CREATE TABLE t (who text)").await.unwrap();
    caught_up(&pg0, &pg1).await;
    pg1.promote(soon()).await.unwrap();
    pg1.session().create_slot("pg0").await.unwrap();
    let insert = |who| format!("INSERT INTO t SELECT '{who}' FROM generate_series(1, 1000)");
    bed.superuser(0).await.batch_execute(&insert("lost")).await.unwrap();
    bed.superuser(1).await.batch_execute(&insert("kept")).await.unwrap();
    (pg0, pg1)
}

async fn follows(bed: &Bed, pg0: &Postgres, pg1: &Postgres) {
    let upstream = bed.upstream(1, 0);
    let standby = Recovery::Standby(Some(upstream.clone()));
    pg0.start_and_wait(standby, soon()).await.unwrap();
    pg0.wait_streaming(&upstream, soon()).await.unwrap();
    caught_up(pg1, pg0).await;
    let rows = bed.superuser(0).await.query("SELECT DISTINCT who FROM t", &[]).await.unwrap();
    let who: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(who, ["kept"], "what only the old primary had is given up");
}

#[tokio::test]
async fn a_primary_that_was_stopped_in_order_is_rewound() {
    let bed = Bed::new().await;
    let (pg0, pg1) = diverged(&bed).await;
    let error = pg0.rejoin(&bed.upstream(1, 0), true, soon()).await.unwrap_err().to_string();
    assert!(error.contains("already runs"), "{error}");
    pg0.stop(&fast()).await.unwrap();
    let begin = Instant::now();
    // Right after a promotion the leader has not written its checkpoint: then there is nothing to rewind to yet.
    let done = loop {
        match pg0.rejoin(&bed.upstream(1, 0), true, soon()).await {
            Ok(done) => break done,
            Err(error) => {
                assert!(error.is_passing(), "{error}");
                pg1.checkpoint_after_promote(Duration::from_secs(60)).await.unwrap();
            }
        }
    };
    let rewound = done.rewound.unwrap();
    assert!(rewound.changed && !done.recovered);
    print_time("pg_rewind alone", rewound.took);
    let verdict = done.examined.unwrap().verdict;
    assert!(matches!(verdict, Verdict::Diverged { fork: Some(_), .. }), "{verdict:?}");
    follows(&bed, &pg0, &pg1).await;
    print_time("rewind of a stopped primary: to streaming and caught up", begin.elapsed());
}

#[tokio::test]
async fn a_primary_that_was_killed_is_recovered_and_rewound() {
    let bed = Bed::new().await;
    let (pg0, pg1) = diverged(&bed).await;
    pg1.checkpoint_after_promote(Duration::from_secs(60)).await.unwrap();
    pg0.stop(&StopPlan::new(StopMode::Kill, LONG)).await.unwrap();
    let control = pg0.control().await.unwrap();
    assert_eq!(control.state, DataState::InProduction);
    assert!(needs_crash_recovery(&pg0.site(), &control));
    let begin = Instant::now();
    let done = pg0.rejoin(&bed.upstream(1, 0), true, soon()).await.unwrap();
    print_time("recovery and rewind of a killed primary", begin.elapsed());
    assert!(done.recovered && done.rewound.unwrap().changed);
    follows(&bed, &pg0, &pg1).await;
    print_time("rewind of a killed primary: to streaming and caught up", begin.elapsed());
}

#[tokio::test]
async fn a_primary_whose_standby_had_everything_just_follows() {
    let bed = Bed::new().await;
    let (pg0, _) = bed.primary(0).await;
    let (pg1, _) = bed.standby(1, (&pg0, 0)).await;
    bed.superuser(0).await.batch_execute("CREATE TABLE t (who text)").await.unwrap();
    // A switchover: the shutdown's record is sent before the senders end.
    pg0.stop(&fast()).await.unwrap();
    pg1.promote(soon()).await.unwrap();
    pg1.session().create_slot("pg0").await.unwrap();
    bed.superuser(1).await.batch_execute("INSERT INTO t VALUES ('kept')").await.unwrap();
    let done = pg0.rejoin(&bed.upstream(1, 0), true, soon()).await.unwrap();
    assert_eq!(done.examined.as_ref().unwrap().verdict, Verdict::Follow, "{done:?}");
    assert!(done.rewound.is_none() && !done.recovered);
    follows(&bed, &pg0, &pg1).await;
    // And one that runs is compared as well.
    let state = pg0.session().state().await.unwrap();
    let examined = examine_running(&pg0.site(), &state, &bed.upstream(1, 0)).await.unwrap();
    assert_eq!(examined.verdict, Verdict::Follow);
}

#[tokio::test]
async fn where_a_rewind_is_not_wanted_nothing_is_touched() {
    let bed = Bed::new().await;
    let (pg0, pg1) = diverged(&bed).await;
    pg1.checkpoint_after_promote(Duration::from_secs(60)).await.unwrap();
    pg0.stop(&fast()).await.unwrap();
    let before = pg0.control().await.unwrap();
    let error = pg0.rejoin(&bed.upstream(1, 0), false, soon()).await.unwrap_err();
    assert!(error.needs_fresh_copy() && !error.is_passing(), "{error}");
    assert_eq!(pg0.control().await.unwrap(), before);

    // A leader that is not there is no reason to do anything.
    let nobody = bed.upstream(7, 0);
    let error = pg0.rejoin(&nobody, true, soon()).await.unwrap_err();
    assert!(error.is_passing(), "{error}");

    // Another cluster's leader even less so.
    let (_pg2, _) = bed.primary(2).await;
    let error = pg0.rejoin(&bed.upstream(2, 0), true, soon()).await.unwrap_err();
    assert!(matches!(error, RejoinError::Foreign { .. }), "{error}");
    assert_eq!(pg0.control().await.unwrap(), before);

    // The last resort is the caller's: the data are kept beside, and a copy takes their place.
    let aside = move_aside(&pg0.site(), OffsetDateTime::now_utc()).unwrap();
    assert!(aside.join("PG_VERSION").exists() && aside.to_string_lossy().contains("data.failed_"));
    pg0.clone_from(Some(&bed.upstream(1, 0)), &[ReplicaMethod::Basebackup], soon()).await.unwrap();
    follows(&bed, &pg0, &pg1).await;
    assert!(remove_data(&pg0.site()).unwrap_err().to_string().contains("not touched"));
    pg0.stop(&fast()).await.unwrap();
    remove_data(&pg0.site()).unwrap();
    assert!(!pg0.has_data());
}

#[tokio::test]
async fn an_interrupted_rewind_is_not_started_but_rewound_again() {
    let bed = Bed::new().await;
    let (pg0, pg1) = diverged(&bed).await;
    pg1.checkpoint_after_promote(Duration::from_secs(60)).await.unwrap();
    pg0.stop(&fast()).await.unwrap();
    // As it is left when the agent dies in the middle.
    std::fs::write(bed.home(0).join(".data.rewinding"), "").unwrap();
    let error = pg0.start(Recovery::None, soon()).await.unwrap_err().to_string();
    assert!(error.contains("half rewound"), "{error}");
    let done = pg0.rejoin(&bed.upstream(1, 0), true, soon()).await.unwrap();
    assert!(done.rewound.is_some());
    follows(&bed, &pg0, &pg1).await;
}

#[tokio::test]
async fn a_socket_in_the_leaders_data_directory_is_seen_before_anything_is_touched() {
    let bed = Bed::new().await;
    let (pg0, pg1) = diverged(&bed).await;
    pg1.checkpoint_after_promote(Duration::from_secs(60)).await.unwrap();
    // As a leader has it that another manager has started with `unix_socket_directories: '.'`.
    let socket = bed.home(1).join("data/.s.PGSQL.1234");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    pg0.stop(&fast()).await.unwrap();
    let before = pg0.control().await.unwrap();
    let result = pg0.rejoin(&bed.upstream(1, 0), true, soon()).await;
    if pg0.version().major >= 14 {
        let error = result.unwrap_err();
        assert!(matches!(error, RejoinError::SocketInTheWay { .. }), "{error}");
        assert_eq!(pg0.control().await.unwrap(), before);
        drop(listener);
        std::fs::remove_file(socket).unwrap();
        pg0.rejoin(&bed.upstream(1, 0), true, soon()).await.unwrap();
    }
    follows(&bed, &pg0, &pg1).await;
}

#[tokio::test]
async fn a_standby_that_went_ahead_of_its_new_leader_is_rewound() {
    let bed = Bed::new().await;
    let (pg0, _) = bed.primary(0).await;
    let (pg1, _) = bed.standby(1, (&pg0, 0)).await;
    let (pg2, _) = bed.standby(2, (&pg0, 0)).await;
    bed.superuser(0).await.batch_execute("CREATE TABLE t (who text)").await.unwrap();
    caught_up(&pg0, &pg1).await;
    // pg1 is cut off, while pg2 goes on receiving; then pg1 is promoted.
    pg1.follow(None).await.unwrap();
    crate::bed::until("pg1 receives nothing", async || {
        pg1.session().state().await.unwrap().receiver.is_none()
    })
    .await;
    let lost = "INSERT INTO t SELECT 'lost' FROM generate_series(1, 1000)";
    bed.superuser(0).await.batch_execute(lost).await.unwrap();
    caught_up(&pg0, &pg2).await;
    pg0.stop(&fast()).await.unwrap();
    pg1.promote(soon()).await.unwrap();
    pg1.checkpoint_after_promote(Duration::from_secs(60)).await.unwrap();
    pg1.session().create_slot("pg2").await.unwrap();
    bed.superuser(1).await.batch_execute("INSERT INTO t VALUES ('kept')").await.unwrap();

    let leader = bed.upstream(1, 2);
    let state = pg2.session().state().await.unwrap();
    let examined = examine_running(&pg2.site(), &state, &leader).await.unwrap();
    assert!(matches!(examined.verdict, Verdict::Diverged { .. }), "{examined:?}");
    pg2.stop(&fast()).await.unwrap();
    let done = pg2.rejoin(&leader, true, soon()).await.unwrap();
    assert!(done.rewound.unwrap().changed);
    pg2.start_and_wait(Recovery::Standby(Some(leader.clone())), soon()).await.unwrap();
    pg2.wait_streaming(&leader, soon()).await.unwrap();
    caught_up(&pg1, &pg2).await;
    let rows = bed.superuser(2).await.query("SELECT who FROM t", &[]).await.unwrap();
    assert_eq!(rows.len(), 1);
}

#[tokio::test]
async fn what_a_dead_primary_had_not_archived_is_archived() {
    let bed = Bed::new().await;
    let mut settings = bed.settings(0);
    let archive = bed.home(0).join("archive");
    std::fs::create_dir(&archive).unwrap();
    let parameter = |settings: &mut leaderpool_agent::postgres::settings::ServerSettings,
                     name: &str,
                     value: &str| {
        settings.parameters.insert(name.into(), value.into());
    };
    parameter(&mut settings, "archive_mode", "on");
    parameter(&mut settings, "archive_command", "false");
    let pg0 = Postgres::open(settings.clone()).await.unwrap();
    pg0.bootstrap(&crate::bed::bootstrap(), soon()).await.unwrap();
    let (pg1, _) = bed.standby(1, (&pg0, 0)).await;
    bed.superuser(0)
        .await
        .batch_execute("CREATE TABLE t (who text); SELECT pg_switch_wal()")
        .await
        .unwrap();
    caught_up(&pg0, &pg1).await;
    pg1.promote(soon()).await.unwrap();
    pg1.checkpoint_after_promote(Duration::from_secs(60)).await.unwrap();
    pg1.session().create_slot("pg0").await.unwrap();
    bed.superuser(0).await.batch_execute("INSERT INTO t VALUES ('lost')").await.unwrap();
    bed.superuser(1).await.batch_execute("INSERT INTO t VALUES ('kept')").await.unwrap();
    pg0.stop(&StopPlan::new(StopMode::Kill, LONG)).await.unwrap();
    // A path from the data directory, as a relative one in the command would be.
    std::fs::set_permissions(&archive, std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .unwrap();
    parameter(&mut settings, "archive_command", "test ! -f ../archive/%f && cp %p ../archive/%f");
    pg0.apply(settings).await.unwrap();
    let done = pg0.rejoin(&bed.upstream(1, 0), true, soon()).await.unwrap();
    assert!(!done.archived.done.is_empty() && done.archived.left.is_empty(), "{done:?}");
    for segment in &done.archived.done {
        assert!(archive.join(segment).exists(), "{segment}");
    }
    follows(&bed, &pg0, &pg1).await;
}
