//! Every key of the seed's file, by name: the effect it has, or the finding that says what was done instead.

use std::time::Duration;

use leaderpool_agent::config::{
    BootstrapMethod, Code, Config, Dynamic, Effective, HostPort, Listen, LogLevel, ReplicaMethod,
    Secret, ServerVersion, Severity, SynchronousMode, WatchdogMode,
};

use super::{codes_at, environment, seed};

fn effective(major: u32) -> Effective {
    let (config, _) = seed();
    let version = ServerVersion::new(major * 10_000).expect("a version from 10 on");
    config.effective(&config.bootstrap.dynamic, version)
}

fn address(host: &str, port: u16) -> HostPort {
    HostPort { host: host.to_owned(), port }
}

#[test]
fn it_is_read_without_an_error() {
    let (_, diagnostics) = seed();
    assert_eq!(diagnostics.count(Severity::Error), 0, "{diagnostics}");
}

#[test]
fn scope_namespace_and_name() {
    let (config, _) = seed();
    assert_eq!(config.scope, "postgres-cluster");
    assert_eq!(config.namespace, "db");
    // `name: ${PATRONI_NAME}`
    assert_eq!(config.name, "patroni-master");
}

#[test]
fn restapi() {
    let (config, _) = seed();
    let listen = Listen { hosts: vec!["0.0.0.0".to_owned()], port: 8008 };
    assert_eq!(config.restapi.listen, listen);
    // `connect_address: ${PATRONI_NAME}:8008`
    assert_eq!(config.restapi.connect_address, address("patroni-master", 8008));
    assert_eq!(config.restapi.url(), "http://patroni-master:8008");
    assert_eq!(config.restapi.authentication, None);
    assert!(config.restapi.allowlist.is_empty());
}

#[test]
fn etcd_is_taken_as_version_3() {
    let (config, diagnostics) = seed();
    let endpoints: Vec<_> = config.etcd.endpoints.iter().map(ToString::to_string).collect();
    assert_eq!(endpoints, ["http://etcd:2379"]);
    assert_eq!(codes_at(&diagnostics, "etcd"), [Code::EtcdAsV3]);
}

#[test]
fn bootstrap_dcs_timers_are_adjusted_as_by_patroni() {
    let (config, diagnostics) = seed();
    let timers = config.bootstrap.dynamic.timers;
    // ttl 30, loop_wait 10, retry_timeout 30: 10 + 2·30 is more than 30.
    assert_eq!(timers.ttl, Duration::from_secs(30));
    assert_eq!(timers.loop_wait, Duration::from_secs(1));
    assert_eq!(timers.retry_timeout, Duration::from_secs(14));
    assert_eq!(timers.patroni_ttl, None);
    assert_eq!(codes_at(&diagnostics, "bootstrap.dcs.retry_timeout"), [Code::TimersAdjusted]);
    // What goes into etcd is what was written.
    assert_eq!(config.bootstrap.dcs.0["retry_timeout"], 30);
    assert_eq!(config.bootstrap.dcs.0["loop_wait"], 10);
    assert_eq!(config.bootstrap.dcs.0["postgresql"]["parameters"]["hot_standby"], "on");
}

#[test]
fn bootstrap_dcs_lags_and_modes() {
    let (config, diagnostics) = seed();
    let dynamic = &config.bootstrap.dynamic;
    assert_eq!(dynamic.maximum_lag_on_failover, 1_048_576);
    assert_eq!(dynamic.synchronous_mode, SynchronousMode::Off);
    // `master_start_timeout: 300`
    assert_eq!(dynamic.primary_start_timeout, Duration::from_secs(300));
    assert_eq!(codes_at(&diagnostics, "bootstrap.dcs.master_start_timeout"), [Code::OldName]);
    assert_eq!(dynamic.postgresql.use_pg_rewind, Some(true));
    assert_eq!(dynamic.postgresql.use_slots, Some(true));
    let effective = effective(15);
    assert!(effective.use_pg_rewind && effective.use_slots);
}

#[test]
fn bootstrap_dcs_parameters() {
    let effective = effective(15);
    for (name, value) in [
        ("wal_level", "replica"),
        ("hot_standby", "on"),
        // `wal_keep_segments: 8`
        ("wal_keep_size", "128MB"),
        ("max_wal_senders", "10"),
        ("max_replication_slots", "10"),
        ("wal_log_hints", "on"),
        ("archive_mode", "on"),
        ("archive_timeout", "1800s"),
        (
            "archive_command",
            "mkdir -p ../wal_archive && test ! -f ../wal_archive/%f && cp %p ../wal_archive/%f",
        ),
        // `unix_socket_directories: '.'`
        ("unix_socket_directories", "/var/lib/postgresql/data"),
        ("cluster_name", "postgres-cluster"),
        ("listen_addresses", "0.0.0.0"),
        ("port", "5432"),
    ] {
        let written = effective.files.parameters.get(name).map(String::as_str);
        assert_eq!(written, Some(value), "{name}");
    }
    let parameters = "bootstrap.dcs.postgresql.parameters";
    let keep = codes_at(&effective.diagnostics, &format!("{parameters}.wal_keep_segments"));
    assert_eq!(keep, [Code::RenamedParameter]);
    let sockets = codes_at(&effective.diagnostics, "postgresql.parameters.unix_socket_directories");
    assert_eq!(sockets, [Code::RelativeSocketDirectory]);
    assert_eq!(effective.diagnostics.len(), 2, "{}", effective.diagnostics);
    // Before 13 it is the older one that exists.
    let older = self::effective(12);
    assert_eq!(older.files.parameters["wal_keep_segments"], "8");
    assert_eq!(older.diagnostics.len(), 1, "{}", older.diagnostics);
}

#[test]
fn recovery_conf_inside_of_parameters_is_found() {
    let (_, diagnostics) = seed();
    let path = "bootstrap.dcs.postgresql.parameters.recovery_conf";
    assert_eq!(codes_at(&diagnostics, path), [Code::NestedRecoveryConf]);
    for major in [10, 12, 15, 18] {
        let recovery = effective(major).files.recovery;
        assert_eq!(recovery.len(), 1, "{major}");
        assert_eq!(recovery["restore_command"], "cp ../wal_archive/%f %p", "{major}");
    }
}

#[test]
fn initdb() {
    let (config, _) = seed();
    let arguments: Vec<_> = config.bootstrap.initdb.iter().map(|o| o.argument()).collect();
    assert_eq!(arguments, ["--encoding=UTF8", "--data-checksums"]);
    assert_eq!(config.bootstrap.method, BootstrapMethod::Initdb);
}

#[test]
fn bootstrap_pg_hba_loses_masks_behind_names() {
    let (config, diagnostics) = seed();
    assert_eq!(
        &config.bootstrap.pg_hba[..],
        [
            "host replication replicator 127.0.0.1/32 md5",
            "host replication replicator patroni-master md5",
            "host replication replicator patroni-replica1 md5",
            "host replication replicator patroni-replica2 md5",
            "host all all 0.0.0.0/0 md5",
        ]
    );
    for line in 1..=3 {
        let path = format!("bootstrap.pg_hba[{line}]");
        assert_eq!(codes_at(&diagnostics, &path), [Code::HbaHostMask]);
    }
    let hba = diagnostics.of(Code::HbaHostMask).next().expect("three of them");
    assert_eq!(hba.origin.to_string(), "patroni.yml:42:5");
}

#[test]
fn bootstrap_users() {
    let (config, diagnostics) = seed();
    let user = &config.bootstrap.users[0];
    assert_eq!(user.name, "admin");
    assert_eq!(user.password, Some(Secret::from("admin")));
    assert_eq!(user.options, ["CREATEROLE", "CREATEDB"]);
    assert_eq!(codes_at(&diagnostics, "bootstrap.users"), [Code::OldName]);
}

#[test]
fn postgresql() {
    let (config, _) = seed();
    let server = &config.postgresql;
    assert_eq!(server.listen, Listen { hosts: vec!["0.0.0.0".to_owned()], port: 5432 });
    assert_eq!(server.listen.local_host(), "localhost");
    assert_eq!(server.connect_address, address("patroni-master", 5432));
    assert_eq!(server.data_dir.to_str(), Some("/var/lib/postgresql/data"));
    let bin_dir = server.options.bin_dir.as_deref().and_then(|dir| dir.to_str());
    assert_eq!(bin_dir, Some("/usr/lib/postgresql/15/bin"));
    assert_eq!(server.pgpass.as_deref().and_then(|p| p.to_str()), Some("/tmp/pgpass"));
    let replication = &server.authentication.replication;
    assert_eq!(replication.username.as_deref(), Some("replicator"));
    assert_eq!(replication.password, Some(Secret::from("replicator_password")));
    let superuser = &server.authentication.superuser;
    assert_eq!(superuser.username.as_deref(), Some("postgres"));
    assert_eq!(superuser.password, Some(Secret::from("postgres_password")));
    assert_eq!(server.authentication.rewind(), superuser);
    assert_eq!(server.options.parameters["unix_socket_directories"].text, ".");
}

#[test]
fn tags() {
    let (config, _) = seed();
    let tags = &config.tags;
    assert!(!tags.nofailover && !tags.noloadbalance && !tags.clonefrom && !tags.nosync);
    // As Patroni: what is false is not published.
    assert!(tags.published.is_empty());
}

#[test]
fn what_is_not_in_it_has_its_default() {
    let (config, _) = seed();
    assert_eq!(config.log.level, LogLevel::Info);
    assert_eq!(config.watchdog.mode, WatchdogMode::Automatic);
    let effective = effective(15);
    assert_eq!(effective.watchdog_timeout, Duration::from_secs(25));
    assert_eq!(effective.pg_ctl_timeout, Duration::from_secs(60));
    assert_eq!(effective.replica_methods, [ReplicaMethod::Basebackup]);
    assert_eq!(effective.files.pg_hba, None);
    assert!(!effective.remove_data_directory_on_rewind_failure);
    assert!(!effective.remove_data_directory_on_diverged_timelines);
    let defaults = Dynamic::default();
    assert_eq!(config.bootstrap.dynamic.member_slots_ttl, defaults.member_slots_ttl);
    assert!(!config.bootstrap.dynamic.failsafe_mode && !config.bootstrap.dynamic.pause);
}

/// Ten findings, and no more: nothing in the file goes unanswered, nothing is remarked without need.
#[test]
fn nothing_else_is_said_of_it() {
    let (config, mut diagnostics) = seed();
    let version = ServerVersion::new(150_000).expect("a version");
    diagnostics.extend(config.effective(&config.bootstrap.dynamic, version).diagnostics);
    let mut codes: Vec<_> = diagnostics.iter().map(|d| d.code).collect();
    codes.sort();
    let mut expected = vec![
        Code::EtcdAsV3,
        Code::TimersAdjusted,
        Code::OldName,
        Code::OldName,
        Code::NestedRecoveryConf,
        Code::HbaHostMask,
        Code::HbaHostMask,
        Code::HbaHostMask,
        Code::RenamedParameter,
        Code::RelativeSocketDirectory,
    ];
    expected.sort();
    assert_eq!(codes, expected);
}

#[test]
fn without_its_variable_it_is_refused_with_the_lines() {
    let (config, diagnostics) = Config::load(super::SEED, &environment(&[]));
    assert_eq!(config, None);
    let places: Vec<_> = diagnostics
        .of(Code::UnsetVariable)
        .map(|d| (d.origin.to_string(), d.path.as_str()))
        .collect();
    assert_eq!(
        places,
        [
            ("patroni.yml:3:7".to_owned(), "name"),
            ("patroni.yml:7:20".to_owned(), "restapi.connect_address"),
            ("patroni.yml:56:20".to_owned(), "postgresql.connect_address"),
        ]
    );
}
