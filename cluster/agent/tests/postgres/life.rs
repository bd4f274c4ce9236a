//! A new cluster, its accounts, starting, crashing, being found again.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use leaderpool::patroni::Timeline;
use leaderpool_agent::postgres::bootstrap::{BootstrapSettings, CustomBootstrap, NewAccount};
use leaderpool_agent::postgres::control::DataState;
use leaderpool_agent::postgres::files::Recovery;
use leaderpool_agent::postgres::process::{Identity, PostmasterStatus, StopMode};
use leaderpool_agent::postgres::rejoin::shutdown_checkpoint;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use crate::bed::{Bed, bootstrap, fast, print_time, soon, until};

fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

#[tokio::test]
async fn a_new_cluster_with_its_accounts() {
    let bed = Bed::new().await;
    let pg = bed.open(0).await;
    let seen = bed.home(0).join("post_bootstrap");
    let script = bed.home(0).join("script.sh");
    let text = format!(
        "#!/bin/sh\npsql -X -w -A -t -c 'select current_user' \"$2\" > {}\necho \"$1\" >> {0}\n",
        seen.display()
    );
    std::fs::write(&script, text).unwrap();
    let settings = BootstrapSettings {
        users: vec![NewAccount {
            name: "admin".into(),
            password: Some("admin' password".into()),
            options: vec!["createrole".into(), "createdb".into()],
        }],
        post_bootstrap: Some(format!("/bin/sh '{}' 'an argument'", script.display())),
        ..bootstrap()
    };
    let begin = Instant::now();
    let started = pg.bootstrap(&settings, soon()).await.unwrap();
    print_time("bootstrap: initdb, start, accounts", begin.elapsed());
    print_time("start of a new primary", started.took);
    assert_eq!(started.status, PostmasterStatus::Ready);

    let account = Identity::resolve(None).unwrap();
    let meta = std::fs::metadata(bed.home(0).join("data")).unwrap();
    assert_eq!((meta.mode() & 0o777, meta.uid()), (0o700, account.uid()));
    let owner = std::fs::metadata(format!("/proc/{}", started.server.pid())).unwrap().uid();
    assert_eq!(owner, account.uid(), "PostgreSQL runs as its account");
    assert_eq!(std::fs::read_to_string(&seen).unwrap(), "postgres\nan argument\n");

    assert!(bed.client(0, "postgres", "wrong").await.is_err(), "passwords are asked for");
    bed.superuser(0).await;
    let admin = bed.client(0, "admin", "admin' password").await.unwrap();
    admin.batch_execute("CREATE DATABASE mine").await.unwrap();
    let rewinder = bed.client(0, "rewinder", "rewind secret").await.unwrap();
    for call in [
        "pg_ls_dir('.', true, true)",
        "pg_stat_file('PG_VERSION', true)",
        "pg_read_binary_file('PG_VERSION')",
    ] {
        rewinder.query(&format!("SELECT {call}"), &[]).await.unwrap();
    }
    let log = bed.log(0);
    assert!(log.contains("CREATE DATABASE mine"), "statements are logged");
    for secret in ["super'", "super''secret", "rewind secret", "rep:secret", "admin''"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }

    let state = pg.session().state().await.unwrap();
    assert!(!state.in_recovery && state.checkpoint_after_promote());
    assert_eq!(state.timeline.unwrap().0, 1);
    assert_eq!(state.version, pg.version().number());
    assert_eq!(state.system_id, pg.control().await.unwrap().system_id);
    let begin = Instant::now();
    for _ in 0..100 {
        pg.session().state().await.unwrap();
    }
    print_time("one question for the whole state", begin.elapsed() / 100);

    let again = pg.bootstrap(&settings, soon()).await.unwrap_err().to_string();
    assert!(again.contains("holds data already"), "{again}");

    let stopped = pg.stop(&fast()).await.unwrap().unwrap();
    print_time("fast stop", stopped.took);
    assert!(stopped.exit.status.unwrap().success() && stopped.by == StopMode::Fast);
    assert!(pg.server().is_none() && pg.stop(&fast()).await.unwrap().is_none());
    let control = pg.control().await.unwrap();
    assert_eq!(control.state, DataState::ShutDown);
    let shutdown = shutdown_checkpoint(&pg.site(), &control).await.unwrap().unwrap();
    assert!(shutdown.begin == control.checkpoint && shutdown.end > shutdown.begin);

    let started = pg.start_and_wait(Recovery::None, soon()).await.unwrap();
    print_time("start after a clean stop", started.took);
    bed.superuser(0).await;
    pg.stop(&fast()).await.unwrap();
    pg.close(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn a_killed_server_is_noticed_at_once_and_restarted_in_place() {
    let bed = Bed::new().await;
    let (pg, mut started) = bed.primary(0).await;
    let client = bed.superuser(0).await;
    client.batch_execute("CREATE TABLE t (n int); INSERT INTO t VALUES (1)").await.unwrap();
    for round in 0..4 {
        if round == 2 {
            // By default a recovering server first synchronises every file by itself.
            let mut settings = bed.settings(0);
            if pg.version().major >= 14 {
                settings.parameters.insert("recovery_init_sync_method".into(), "syncfs".into());
            }
            pg.apply(settings).await.unwrap();
        }
        // A session that is busy, and would not notice by itself that its postmaster is gone.
        let busy = bed.superuser(0).await;
        let work = tokio::spawn(async move {
            busy.batch_execute("DO $$ BEGIN LOOP NULL; END LOOP; END $$").await
        });
        let watcher = bed.superuser(0).await;
        until("the session is busy", async || {
            let sql = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'DO %' AND state = 'active'";
            !watcher.query(sql, &[]).await.unwrap().is_empty()
        })
        .await;
        let begin = Instant::now();
        kill(started.server.pid(), Signal::KILL);
        let exit = started.server.exited().await;
        let noticed = begin.elapsed();
        assert!(!exit.status.unwrap().success());
        started = pg.start_and_wait(Recovery::None, soon()).await.unwrap();
        let count: i64 = loop {
            // What a client would see.
            if let Ok(client) = bed.client(0, "postgres", "super'secret").await {
                break client.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0);
            }
        };
        assert_eq!(count, 1);
        let how = if round < 2 { "fsync" } else { "syncfs" };
        print_time("SIGKILL of the postmaster: noticed", noticed);
        print_time(
            &format!("SIGKILL of the postmaster: restarted in place ({how})"),
            begin.elapsed(),
        );
        assert!(work.await.unwrap().is_err(), "the busy session was killed");
    }
    kill(started.server.pid(), Signal::KILL);
    started.server.exited().await;
    assert!(pg.has_crashed().await.unwrap());
}

#[tokio::test]
async fn a_later_agent_finds_the_server_and_watches_it() {
    let bed = Bed::new().await;
    let (pg, started) = bed.primary(0).await;
    let (pid, before) = (started.server.pid(), pg.session().state().await.unwrap());
    drop((pg, started));

    let pg = bed.open(0).await;
    assert!(pg.server().is_none());
    let server = pg.adopt().unwrap().expect("it still runs");
    assert_eq!(server.pid(), pid);
    assert_eq!(pg.session().state().await.unwrap().started, before.started);
    assert_eq!(server.status(), Some(PostmasterStatus::Ready));
    let error = pg.start(Recovery::None, soon()).await.unwrap_err().to_string();
    assert!(error.contains("already runs") && error.contains(&pid.to_string()), "{error}");

    // Settings that do not change anything leave it alone; those that do are read.
    assert!(!pg.apply(bed.settings(0)).await.unwrap().written.any());
    let mut settings = bed.settings(0);
    settings.parameters.insert("work_mem".into(), "7MB".into());
    assert!(pg.apply(settings).await.unwrap().reloaded);

    kill(pid, Signal::KILL);
    server.exited().await;
    assert!(pg.server().is_none() && pg.adopt().unwrap().is_none());
    pg.start_and_wait(Recovery::None, soon()).await.unwrap();
    // One that was found is stopped like any other.
    let other = bed.open(0).await;
    other.adopt().unwrap().unwrap();
    assert!(other.stop(&fast()).await.unwrap().is_some());
}

#[tokio::test]
async fn a_standby_that_is_found_goes_on_following() {
    let bed = Bed::new().await;
    let (pg0, _) = bed.primary(0).await;
    let (pg1, started) = bed.standby(1, (&pg0, 0)).await;
    drop((pg1, started));
    let pg1 = bed.open(1).await;
    let server = pg1.adopt().unwrap().unwrap();
    let receiver = pg1.session().state().await.unwrap().receiver.unwrap().pid;
    let mut settings = bed.settings(1);
    settings.parameters.insert("work_mem".into(), "7MB".into());
    assert!(pg1.apply(settings).await.unwrap().reloaded);
    let upstream = bed.upstream(0, 1);
    pg1.follow(Some(upstream.clone())).await.unwrap();
    pg1.wait_streaming(&upstream, soon()).await.unwrap();
    let now = pg1.session().state().await.unwrap().receiver.unwrap();
    assert_eq!(now.pid, receiver, "it was not interrupted");
    assert!(server.is_running());
}

#[tokio::test]
async fn a_new_cluster_from_a_backup() {
    let bed = Bed::new().await;
    let (pg0, _) = bed.primary(0).await;
    let client = bed.superuser(0).await;
    client
        .batch_execute("CREATE TABLE t (n int); ALTER ROLE postgres PASSWORD 'another'")
        .await
        .unwrap();
    let pg1 = bed.open(1).await;
    let bin = pg1.site().binaries.dir().display().to_string();
    let script = bed.home(1).join("restore.sh");
    let text = format!(
        "#!/bin/sh\nset -e\necho \"$@\" > {}/arguments\nPGPASSWORD='rep:secret\\' {bin}/pg_basebackup -w -D {} -h 127.0.0.1 -p {} -U replicator -c fast -X stream\n",
        bed.home(1).display(),
        bed.home(1).join("data").display(),
        bed.port(0)
    );
    std::fs::write(&script, text).unwrap();
    let custom = CustomBootstrap {
        name: "restore".into(),
        command: format!("/bin/sh {}", script.display()),
        recovery_conf: BTreeMap::from([
            ("restore_command".to_owned(), "false".to_owned()),
            ("recovery_target_timeline".to_owned(), "latest".to_owned()),
        ]),
        ..CustomBootstrap::default()
    };
    let settings = BootstrapSettings { custom: Some(custom), ..BootstrapSettings::default() };
    pg1.bootstrap(&settings, soon()).await.unwrap();
    let arguments = std::fs::read_to_string(bed.home(1).join("arguments")).unwrap();
    assert!(arguments.contains("--scope=batman --datadir="), "{arguments}");
    let state = pg1.session().state().await.unwrap();
    assert!(!state.in_recovery && state.timeline == Some(Timeline(2)), "{state:?}");
    // The passwords are those of the configuration, whatever the backup had.
    bed.superuser(1).await.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    let files = std::fs::read_to_string(bed.home(1).join("data/postgresql.conf")).unwrap();
    assert!(!files.contains("restore_command = 'false'"), "the target is forgotten");
    pg0.stop(&fast()).await.unwrap();
}

#[tokio::test]
async fn a_stale_pid_file_that_names_a_stranger_is_no_obstacle() {
    let bed = Bed::new().await;
    let (pg, _) = bed.primary(0).await;
    pg.stop(&fast()).await.unwrap();
    let account = Identity::resolve(None).unwrap();
    // Of the server's own account, which is what makes PostgreSQL refuse.
    let mut stranger = Command::new("setpriv")
        .args(["--reuid", &account.uid().to_string(), "--clear-groups", "--", "sleep", "300"])
        .current_dir(bed.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("it has become another", async || {
        std::fs::metadata(format!("/proc/{}", stranger.id())).unwrap().uid() == account.uid()
    })
    .await;
    let file = bed.home(0).join("data/postmaster.pid");
    let text = format!(
        "{}\n{}\n1700000000\n{}\n/tmp\n127.0.0.1\n",
        stranger.id(),
        bed.home(0).display(),
        bed.port(0)
    );
    std::fs::write(&file, text).unwrap();
    account.own(&file).unwrap();
    assert!(pg.adopt().unwrap().is_none(), "a stranger is not adopted");
    pg.start_and_wait(Recovery::None, soon()).await.unwrap();
    assert!(stranger.try_wait().unwrap().is_none(), "and not killed");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}
