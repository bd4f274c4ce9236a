//! What the server makes of its settings.

use std::fs;

use leaderpool_agent::postgres::Postgres;
use leaderpool_agent::postgres::files::Recovery;
use leaderpool_agent::postgres::settings::ServerSettings;

use crate::bed::{Bed, bootstrap, fast, soon};

fn set(settings: &mut ServerSettings, name: &str, value: &str) {
    settings.parameters.insert(name.into(), value.into());
}

async fn shows(bed: &Bed, name: &str) -> String {
    bed.superuser(0).await.query_one(&format!("SHOW {name}"), &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn changes_are_reloaded_or_wait_for_a_restart_or_are_rejected() {
    let bed = Bed::new().await;
    let (pg, _) = bed.primary(0).await;
    let mut settings = bed.settings(0);
    set(&mut settings, "work_mem", "9MB");
    set(&mut settings, "application_name", "it's a \\ test");
    let applied = pg.apply(settings.clone()).await.unwrap();
    assert!(applied.reloaded && applied.pending_restart.is_empty(), "{applied:?}");
    assert_eq!(shows(&bed, "work_mem").await, "9MB");

    // One that a restart is needed for, in the file; one on the command line.
    set(&mut settings, "shared_buffers", "24MB");
    set(&mut settings, "max_connections", "40");
    let applied = pg.apply(settings.clone()).await.unwrap();
    let pending: Vec<_> = applied
        .pending_restart
        .iter()
        .map(|p| (p.name.as_str(), p.running.as_str(), p.configured.as_str()))
        .collect();
    assert_eq!(pending, [("max_connections", "30", "40"), ("shared_buffers", "16MB", "24MB")]);
    pg.restart(&fast(), soon()).await.unwrap();
    assert_eq!(shows(&bed, "max_connections").await, "40");
    assert_eq!(shows(&bed, "shared_buffers").await, "24MB");
    assert!(pg.apply(settings.clone()).await.unwrap().pending_restart.is_empty());

    let mut wrong = settings.clone();
    set(&mut wrong, "no_such_parameter", "1");
    set(&mut wrong, "work_mem", "11MB");
    let applied = pg.apply(wrong).await.unwrap();
    assert!(!applied.reloaded);
    let rejected = &applied.rejected[0];
    assert_eq!(rejected.name.as_deref(), Some("no_such_parameter"));
    assert!(rejected.reason.contains("unrecognized") && rejected.line > 0, "{rejected:?}");
    assert_eq!(shows(&bed, "work_mem").await, "9MB", "nothing of it is taken on");
    assert!(pg.apply(settings.clone()).await.unwrap().reloaded);

    // Who may connect is a reload, too.
    settings.pg_hba = Some(vec!["local all postgres trust".into()]);
    assert!(pg.apply(settings).await.unwrap().written.hba);
    assert!(bed.client(0, "postgres", "super'secret").await.is_err());
}

#[tokio::test]
async fn the_files_are_those_that_another_manager_keeps() {
    let bed = Bed::new().await;
    let (pg, _) = bed.primary(0).await;
    let data = bed.home(0).join("data");
    let base = fs::read_to_string(data.join("postgresql.base.conf")).unwrap();
    assert!(base.contains("# - Connection Settings -"), "what initdb wrote is kept");
    let conf = fs::read_to_string(data.join("postgresql.conf")).unwrap();
    assert!(conf.contains("include 'postgresql.base.conf'"));
    assert!(data.join("postgresql.conf.backup").exists());

    // ALTER SYSTEM reaches neither the command line nor recovery.
    let client = bed.superuser(0).await;
    for sql in [
        "ALTER SYSTEM SET max_connections = 77",
        "ALTER SYSTEM SET primary_conninfo = 'host=elsewhere'",
        "ALTER SYSTEM SET work_mem = '5MB'",
    ] {
        client.batch_execute(sql).await.unwrap();
    }
    drop(client);
    pg.restart(&fast(), soon()).await.unwrap();
    assert_eq!(shows(&bed, "max_connections").await, "30");
    assert_eq!(shows(&bed, "primary_conninfo").await, "");
    assert_eq!(shows(&bed, "work_mem").await, "5MB");
    let auto = fs::read_to_string(data.join("postgresql.auto.conf")).unwrap();
    assert!(!auto.contains("primary_conninfo") && auto.contains("work_mem"));
}

#[tokio::test]
async fn a_socket_in_the_data_directory_is_moved_out_of_it() {
    let bed = Bed::new().await;
    let mut settings = bed.settings(0);
    set(&mut settings, "unix_socket_directories", ".");
    let pg = Postgres::open(settings).await.unwrap();
    pg.bootstrap(&bootstrap(), soon()).await.unwrap();
    let name = format!(".s.PGSQL.{}", bed.port(0));
    assert!(bed.home(0).join(&name).exists() && !bed.home(0).join("data").join(&name).exists());
}

#[tokio::test]
async fn a_standby_is_started_with_no_less_than_its_primary() {
    let bed = Bed::new().await;
    let (pg0, _) = bed.primary(0).await;
    let (pg1, started) = bed.standby(1, (&pg0, 0)).await;
    assert!(started.raised.is_empty());
    pg1.stop(&fast()).await.unwrap();
    let mut settings = bed.settings(1);
    set(&mut settings, "max_connections", "25");
    pg1.apply(settings).await.unwrap();
    let upstream = bed.upstream(0, 1);
    let started = pg1.start_and_wait(Recovery::Standby(Some(upstream)), soon()).await.unwrap();
    assert_eq!(started.raised.len(), 1, "{:?}", started.raised);
    let running = bed.superuser(1).await.query_one("SHOW max_connections", &[]).await.unwrap();
    assert_eq!(running.get::<_, String>(0), "30");
}

#[tokio::test]
async fn files_elsewhere_than_the_data() {
    let bed = Bed::new().await;
    let mut settings = bed.settings(0);
    let dir = bed.home(0).join("etc");
    fs::create_dir(&dir).unwrap();
    settings.config_dir = Some(dir.clone());
    let pg = Postgres::open(settings).await.unwrap();
    pg.site().identity.own(&dir).unwrap();
    pg.bootstrap(&bootstrap(), soon()).await.unwrap();
    assert_eq!(shows(&bed, "config_file").await, dir.join("postgresql.conf").to_string_lossy());
    assert_eq!(shows(&bed, "hba_file").await, dir.join("pg_hba.conf").to_string_lossy());
    assert!(dir.join("postgresql.base.conf").exists());
    assert!(bed.home(0).join("data/postgresql.conf.backup").exists());
    pg.restart(&fast(), soon()).await.unwrap();
}
