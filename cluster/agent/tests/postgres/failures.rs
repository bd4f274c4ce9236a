//! What goes wrong says so, and what to do.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use leaderpool_agent::postgres::Postgres;
use leaderpool_agent::postgres::files::Recovery;
use leaderpool_agent::postgres::process::StartError;
use leaderpool_agent::postgres::settings::{LocalAccess, ToolOption};
use tokio::time::Instant;

use crate::bed::{Bed, bootstrap, fast, soon};

#[tokio::test]
async fn a_port_that_is_taken() {
    let bed = Bed::new().await;
    let (pg, _) = bed.primary(0).await;
    pg.stop(&fast()).await.unwrap();
    let _taken = std::net::TcpListener::bind(("127.0.0.1", bed.port(0))).unwrap();
    let error = pg.start_and_wait(Recovery::None, soon()).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, StartError::Exited { .. }), "{text}");
    assert!(text.contains("Address already in use"), "{text}");
    assert!(pg.server().is_none());
}

#[tokio::test]
async fn a_parameter_that_the_server_refuses() {
    let bed = Bed::new().await;
    let (pg, _) = bed.primary(0).await;
    pg.stop(&fast()).await.unwrap();
    let mut settings = bed.settings(0);
    settings.parameters.insert("shared_preload_libraries".into(), "no_such_library".into());
    pg.apply(settings).await.unwrap();
    let error = pg.start_and_wait(Recovery::None, soon()).await.unwrap_err().to_string();
    assert!(error.contains("no_such_library"), "{error}");
}

#[tokio::test]
async fn a_data_directory_that_is_a_strangers() {
    let bed = Bed::new().await;
    let (pg, _) = bed.primary(0).await;
    pg.stop(&fast()).await.unwrap();
    if !rustix::process::geteuid().is_root() {
        return; // Only root can give it away.
    }
    let data = bed.home(0).join("data");
    std::os::unix::fs::chown(&data, Some(0), Some(0)).unwrap();
    let error = pg.start_and_wait(Recovery::None, soon()).await.unwrap_err().to_string();
    assert!(error.contains("belongs to uid 0") && error.contains("chown"), "{error}");
    pg.site().identity.own(&data).unwrap();
    // Too open a mode is put right.
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
    pg.start_and_wait(Recovery::None, soon()).await.unwrap();
}

#[tokio::test]
async fn a_wrong_password_and_no_server() {
    let bed = Bed::new().await;
    let (pg, _) = bed.primary(0).await;
    let mut settings = bed.settings(0);
    settings.local = vec![LocalAccess::Tcp("127.0.0.1".into())];
    settings.superuser.password = Some("wrong".into());
    let other = Postgres::open(settings).await.unwrap();
    let error = other.session().state().await.unwrap_err().to_string();
    assert!(
        error.contains("password authentication failed") && error.contains("configuration"),
        "{error}"
    );
    pg.stop(&fast()).await.unwrap();
    let error = pg.session().state().await.unwrap_err().to_string();
    assert!(error.contains("socket in"), "{error}");
}

#[tokio::test]
async fn a_server_that_hangs_is_not_waited_for() {
    let bed = Bed::new().await;
    let (pg, started) = bed.primary(0).await;
    let mut settings = bed.settings(0);
    settings.statement_timeout = Duration::from_millis(300);
    pg.apply(settings).await.unwrap();
    let client = bed.superuser(0).await;
    let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'leaderpool-agent'";
    let pid: i32 = client.query_one(sql, &[]).await.unwrap().get(0);
    let signal = |signal| {
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal)
    };
    signal(rustix::process::Signal::STOP).unwrap();
    let begin = Instant::now();
    let error = pg.session().state().await.unwrap_err().to_string();
    assert!(error.contains("not answered within"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(10));
    // The hung connection was given up; the next question uses another.
    pg.session().state().await.unwrap();
    signal(rustix::process::Signal::CONT).unwrap();
    assert!(started.server.is_running());
}

#[tokio::test]
async fn initdb_that_fails_leaves_nothing() {
    let bed = Bed::new().await;
    let pg = bed.open(0).await;
    let mut settings = bootstrap();
    settings.initdb.push(ToolOption::value("locale", "xx_NOWHERE"));
    let error = pg.bootstrap(&settings, soon()).await.unwrap_err().to_string();
    assert!(error.contains("cannot make a new cluster") && error.contains("locale"), "{error}");
    assert!(!pg.has_data());
    let home =
        fs::read_dir(bed.home(0)).unwrap().flatten().map(|e| e.file_name()).collect::<Vec<_>>();
    assert_eq!(home, ["data"], "nothing is left beside");
    settings.initdb = vec![ToolOption::value("pgdata", "/elsewhere")];
    let error = pg.bootstrap(&settings, soon()).await.unwrap_err().to_string();
    assert!(error.contains("pgdata"), "{error}");
    pg.bootstrap(&bootstrap(), soon()).await.unwrap();
}

/// A small file system of its own, gone when this is.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, megabytes: u32) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let size = format!("size={megabytes}m,mode=0777");
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(at).status();
        status.is_ok_and(|s| s.success()).then(|| Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        leaderpool_testbed::process::scan::kill_under_now(&self.0);
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk() {
    let bed = Bed::new().await;
    let mut settings = bed.settings(0);
    let disk = bed.home(0).join("disk");
    let Some(_disk) = SmallDisk::mount(&disk, 120) else {
        println!("no disk can be mounted here: not tested");
        return;
    };
    // The data directory is the mount point itself: nothing can be renamed over it.
    settings.data_dir = disk.clone();
    let pg = Postgres::open(settings.clone()).await.unwrap();
    pg.bootstrap(&bootstrap(), soon()).await.unwrap();
    pg.stop(&fast()).await.unwrap();
    let filler = disk.join("pg_filler");
    let full = Command::new("sh")
        .args(["-c", "cat /dev/zero > \"$0\" 2>/dev/null; true"])
        .arg(&filler)
        .status();
    assert!(full.unwrap().success());
    settings.parameters.insert("work_mem".into(), "8MB".into());
    let error = pg.apply(settings).await.unwrap_err().to_string();
    assert!(error.contains("No space left on device") && error.contains("free or add"), "{error}");
    let error = pg.start_and_wait(Recovery::None, soon()).await.unwrap_err();
    assert!(error.is_disk_full(), "{error}");
    fs::remove_file(filler).unwrap();
    pg.start_and_wait(Recovery::None, soon()).await.unwrap();
    pg.stop(&fast()).await.unwrap();
}
