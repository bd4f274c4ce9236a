//! Servers below one temporary directory, and nothing left of them afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leaderpool_agent::postgres::bootstrap::BootstrapSettings;
use leaderpool_agent::postgres::clone::ReplicaMethod;
use leaderpool_agent::postgres::files::Recovery;
use leaderpool_agent::postgres::process::{StopMode, StopPlan};
use leaderpool_agent::postgres::replication::slot_name_of;
use leaderpool_agent::postgres::settings::{
    Account, CallbackCommands, LocalAccess, ServerLog, ServerSettings, ToolOption, Upstream,
};
use leaderpool_agent::postgres::{Postgres, Started};
use leaderpool_testbed::Ports;
use leaderpool_testbed::ports::PortBlock;
use leaderpool_testbed::process::{Guardian, scan};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, NoTls};

/// One test at a time: the machine is small, and the times are printed.
static TURN: Mutex<()> = Mutex::const_new(());

/// Far more than anything here takes on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(120);

pub(crate) fn soon() -> Instant {
    Instant::now() + LONG
}

pub(crate) fn fast() -> StopPlan {
    StopPlan::new(StopMode::Fast, LONG)
}

pub(crate) struct Bed {
    dir: tempfile::TempDir,
    ports: PortBlock,
    _guardian: Guardian,
    _turn: MutexGuard<'static, ()>,
}

impl Bed {
    pub(crate) async fn new() -> Self {
        let turn = TURN.lock().await;
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let dir = tempfile::Builder::new().prefix("agent-pg-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let lock = fs::File::create(dir.path().join("lock")).unwrap();
        let guardian = Guardian::set_on(dir.path(), false, &lock).unwrap();
        let ports = PortBlock::reserve(Ports::Free).unwrap();
        Self { dir, ports, _guardian: guardian, _turn: turn }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn port(&self, i: usize) -> u16 {
        self.ports.postgres(i)
    }

    pub(crate) fn home(&self, i: usize) -> PathBuf {
        self.path().join(format!("pg{i}"))
    }

    /// Settings for member `pg{i}`.
    pub(crate) fn settings(&self, i: usize) -> ServerSettings {
        let home = self.home(i);
        if !home.exists() {
            fs::create_dir(&home).unwrap();
            fs::set_permissions(&home, fs::Permissions::from_mode(0o777)).unwrap();
        }
        let parameters = [
            ("shared_buffers", "16MB"),
            ("max_connections", "30"),
            ("max_wal_senders", "10"),
            ("max_replication_slots", "10"),
            ("max_worker_processes", "8"),
            ("wal_level", "replica"),
            ("hot_standby", "on"),
            ("wal_log_hints", "on"),
            ("wal_keep_size", "128MB"),
            ("log_statement", "all"),
            ("log_replication_commands", "on"),
        ];
        let mut parameters: BTreeMap<String, String> =
            parameters.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        parameters.insert("unix_socket_directories".into(), home.to_string_lossy().into_owned());
        ServerSettings {
            name: format!("pg{i}"),
            scope: "batman".into(),
            bin_dir: None,
            data_dir: home.join("data"),
            config_dir: None,
            custom_conf: None,
            listen_addresses: "127.0.0.1".into(),
            port: self.port(i),
            local: vec![LocalAccess::Socket(home.clone())],
            database: "postgres".into(),
            superuser: Account::new("postgres", "super'secret"),
            replication: Account::new("replicator", "rep:secret\\"),
            rewind: Some(Account::new("rewinder", "rewind secret")),
            pgpass: home.join("pgpass"),
            parameters,
            pg_hba: Some(
                [
                    "local all postgres trust",
                    "host all all 127.0.0.1/32 scram-sha-256",
                    "host replication replicator 127.0.0.1/32 scram-sha-256",
                ]
                .map(str::to_owned)
                .to_vec(),
            ),
            pg_ident: None,
            recovery: BTreeMap::new(),
            os_user: None,
            log: ServerLog::File(home.join("postgres.log")),
            pg_ctl_timeout: LONG,
            // Far from what is normal, but a busy machine must not make a test fail.
            statement_timeout: Duration::from_secs(20),
            basebackup: Vec::new(),
            callbacks: CallbackCommands::default(),
        }
    }

    pub(crate) async fn open(&self, i: usize) -> Postgres {
        Postgres::open(self.settings(i)).await.unwrap()
    }

    /// A new cluster's primary, member `pg{i}`.
    pub(crate) async fn primary(&self, i: usize) -> (Postgres, Started) {
        let pg = self.open(i).await;
        let started = pg.bootstrap(&bootstrap(), soon()).await.unwrap();
        (pg, started)
    }

    /// Member `pg{i}` as an upstream, with the slot of `pg{of}`.
    pub(crate) fn upstream(&self, i: usize, of: usize) -> Upstream {
        Upstream::new(format!("pg{i}"), "127.0.0.1", self.port(i))
            .with_slot(slot_name_of(&format!("pg{of}")))
    }

    /// A standby of `of`, member `pg{i}`, that streams.
    pub(crate) async fn standby(&self, i: usize, of: (&Postgres, usize)) -> (Postgres, Started) {
        let (primary, number) = of;
        let pg = self.open(i).await;
        let upstream = self.upstream(number, i);
        primary.session().create_slot(&format!("pg{i}")).await.unwrap();
        let cloned = pg.clone_from(Some(&upstream), &[ReplicaMethod::Basebackup], soon());
        print_time("clone (pg_basebackup of an empty cluster)", cloned.await.unwrap().took);
        let started =
            pg.start_and_wait(Recovery::Standby(Some(upstream.clone())), soon()).await.unwrap();
        print_time("start of a standby", started.took);
        pg.wait_streaming(&upstream, soon()).await.unwrap();
        (pg, started)
    }

    /// A client's connection, as a user and by TCP.
    pub(crate) async fn client(
        &self,
        i: usize,
        user: &str,
        password: &str,
    ) -> Result<Client, String> {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port(i)).dbname("postgres");
        config.user(user).password(password);
        let (client, connection) = config.connect(NoTls).await.map_err(|e| format!("{e:?}"))?;
        tokio::spawn(connection);
        Ok(client)
    }

    pub(crate) async fn superuser(&self, i: usize) -> Client {
        self.client(i, "postgres", "super'secret").await.unwrap()
    }

    pub(crate) fn log(&self, i: usize) -> String {
        fs::read_to_string(self.home(i).join("postgres.log")).unwrap_or_default()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        scan::kill_under_now(self.dir.path());
        if std::env::var_os("TESTBED_KEEP").is_some() {
            println!("kept: {}", self.dir.path().display());
            self.dir.disable_cleanup(true);
        }
    }
}

pub(crate) fn bootstrap() -> BootstrapSettings {
    BootstrapSettings {
        initdb: vec![ToolOption::value("encoding", "UTF8"), ToolOption::flag("data-checksums")],
        ..BootstrapSettings::default()
    }
}

pub(crate) fn print_time(what: &str, took: Duration) {
    println!("TIME {what}: {:.1} ms", took.as_secs_f64() * 1000.0);
}

/// Waits for something that the test has no event for.
pub(crate) async fn until(what: &str, mut probe: impl AsyncFnMut() -> bool) {
    let deadline = soon();
    while !probe().await {
        assert!(Instant::now() < deadline, "{what}: not within {LONG:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until a standby has replayed what its primary has written.
pub(crate) async fn caught_up(primary: &Postgres, standby: &Postgres) {
    let position = primary.session().state().await.unwrap().flush.unwrap();
    until("the standby catches up", async || {
        standby.session().state().await.unwrap().replayed >= Some(position)
    })
    .await;
}
