//! Stopping a server that does not want to, and the fence.

use std::time::Duration;

use leaderpool_agent::postgres::Postgres;
use leaderpool_agent::postgres::control::DataState;
use leaderpool_agent::postgres::files::Recovery;
use leaderpool_agent::postgres::process::{FenceSignal, Fenced, StopMode, StopPlan};
use leaderpool_agent::postgres::rejoin::shutdown_checkpoint;
use leaderpool_testbed::process::scan;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use crate::bed::{Bed, LONG, bootstrap, fast, print_time, soon, until};

/// A session that is stopped by a signal: it hears nothing, not even that it is to end.
async fn stuck_session(bed: &Bed) -> i32 {
    let client = bed.superuser(0).await;
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    kill_process(Pid::from_raw(pid).unwrap(), Signal::STOP).unwrap();
    std::mem::forget(client);
    pid
}

#[tokio::test]
async fn a_stop_goes_on_to_the_next_step() {
    let bed = Bed::new().await;
    let (pg, _) = bed.primary(0).await;
    let pid = stuck_session(&bed).await;
    let some = Duration::from_millis(300);
    let gentle = StopPlan::new(StopMode::Smart, some).then(StopMode::Fast, some);
    let error = pg.stop(&gentle).await.unwrap_err().to_string();
    assert!(error.contains("still runs"), "{error}");
    assert!(pg.server().is_some(), "and is still known");
    // The postmaster itself kills after five seconds what does not end.
    let plan = StopPlan::new(StopMode::Fast, some)
        .then(StopMode::Immediate, some)
        .then(StopMode::Kill, LONG);
    let stopped = pg.stop(&plan).await.unwrap().unwrap();
    assert_eq!(stopped.by, StopMode::Kill);
    print_time(
        "stop of a server with a stuck session: fast 300, immediate 300, kill",
        stopped.took,
    );
    assert!(
        !std::path::Path::new(&format!("/proc/{pid}/cwd")).exists(),
        "the stuck one is gone too"
    );
    let started = pg.start_and_wait(Recovery::None, soon()).await.unwrap();
    print_time("start after that", started.took);
}

#[tokio::test]
async fn orphans_of_a_killed_server_are_killed_before_the_next_one_starts() {
    let bed = Bed::new().await;
    let (pg, started) = bed.primary(0).await;
    let orphan = stuck_session(&bed).await;
    kill_process(Pid::from_raw(started.server.pid().cast_signed()).unwrap(), Signal::KILL).unwrap();
    started.server.exited().await;
    assert!(
        std::path::Path::new(&format!("/proc/{orphan}/cwd")).exists(),
        "it is stopped, and stays"
    );
    let started = pg.start_and_wait(Recovery::None, soon()).await.unwrap();
    print_time("start over an orphan", started.took);
    assert!(!std::path::Path::new(&format!("/proc/{orphan}/cwd")).exists());
}

#[tokio::test]
async fn the_fence_kills_everything_from_a_plain_thread() {
    let bed = Bed::new().await;
    let (pg, _) = bed.primary(0).await;
    for _ in 0..5 {
        let busy = bed.superuser(0).await;
        tokio::spawn(
            async move { busy.batch_execute("DO $$ BEGIN LOOP NULL; END LOOP; END $$").await },
        );
    }
    stuck_session(&bed).await;
    let data = bed.home(0).join("data");
    let watcher = bed.superuser(0).await;
    until("the sessions are busy", async || {
        let sql =
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'DO %' AND state = 'active'";
        watcher.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 5
    })
    .await;
    // An administrator's shell in the data directory is not PostgreSQL's.
    let mut shell =
        std::process::Command::new("sleep").arg("300").current_dir(&data).spawn().unwrap();
    let mut handle = pg.fence().handle().unwrap();
    let fence = pg.fence().clone();
    let (killed, took) = std::thread::spawn(move || {
        assert!(handle.is_running());
        let begin = Instant::now();
        handle.fence().engage();
        let killed = handle.kill_everything();
        (killed, begin.elapsed())
    })
    .join()
    .unwrap();
    print_time("fence: all processes of a busy server killed", took);
    assert!(killed.any && killed.none_left, "{killed:?}");
    let left: Vec<_> = scan::under(&data).into_iter().filter(|p| p.command == "postgres").collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(shell.try_wait().unwrap().is_none(), "the shell lives");
    shell.kill().unwrap();
    shell.wait().unwrap();

    let error = pg.start(Recovery::None, soon()).await.unwrap_err().to_string();
    assert!(error.contains("fence"), "{error}");
    fence.release();
    pg.start_and_wait(Recovery::None, soon()).await.unwrap();
}

#[tokio::test]
async fn the_last_checkpoint_is_seen_before_the_server_has_ended() {
    let bed = Bed::new().await;
    let mut settings = bed.settings(0);
    settings.parameters.insert("archive_mode".into(), "on".into());
    // An archiver that takes its time holds the server up, but not what it has to hand over.
    settings.parameters.insert("archive_command".into(), "sleep 3".into());
    let pg = Postgres::open(settings).await.unwrap();
    pg.bootstrap(&bootstrap(), soon()).await.unwrap();
    bed.superuser(0)
        .await
        .batch_execute("CREATE TABLE t (n int); SELECT pg_switch_wal()")
        .await
        .unwrap();
    let begin = Instant::now();
    let plan = fast();
    let stop = pg.stop(&plan);
    tokio::pin!(stop);
    let control = tokio::select! {
        _ = &mut stop => panic!("the archiver should have held it up"),
        control = pg.wait_shut_down_state() => control.unwrap(),
    };
    print_time("fast stop: the last checkpoint is seen", begin.elapsed());
    assert_eq!(control.state, DataState::ShutDown);
    let shutdown = shutdown_checkpoint(&pg.site(), &control).await.unwrap().unwrap();
    // The segment is closed before the shutdown's record, which a standby need not have.
    assert!(
        shutdown.last_content < shutdown.begin && shutdown.begin < shutdown.end,
        "{shutdown:?}"
    );
    stop.await.unwrap();
    print_time("fast stop: ended, after the archiver", begin.elapsed());
}

#[tokio::test]
async fn the_fence_asks_first_and_knows_when_it_worked() {
    let bed = Bed::new().await;
    let pg = bed.open(0).await;
    let mut handle = pg.fence().handle().unwrap();
    assert_eq!(handle.signal(FenceSignal::Fast), Fenced::Nothing, "there is no server yet");
    assert!(handle.wait_gone(Duration::ZERO));
    pg.bootstrap(&bootstrap(), soon()).await.unwrap();
    for signal in [FenceSignal::Fast, FenceSignal::Immediate] {
        let mut handle = pg.fence().handle().unwrap();
        let gone = std::thread::spawn(move || {
            assert!(!handle.wait_gone(Duration::from_millis(1)));
            let begin = Instant::now();
            assert_eq!(handle.signal(signal), Fenced::Sent);
            assert!(handle.wait_gone(LONG));
            begin.elapsed()
        });
        print_time(&format!("fence: {signal:?}"), gone.join().unwrap());
        assert!(pg.server().is_none());
        pg.start_and_wait(Recovery::None, soon()).await.unwrap();
    }
    pg.stop(&fast()).await.unwrap();
}
