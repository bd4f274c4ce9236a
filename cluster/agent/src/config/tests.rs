//! How the pieces fit: places, layers, roles, changes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::*;

const BASE: &str = "
scope: demo
name: node1
restapi: {listen: '10.0.0.1:8008', connect_address: 'node1:8008'}
etcd3: {host: etcd}
postgresql:
  listen: 10.0.0.1:5432
  connect_address: node1:5432
  data_dir: /data
  authentication:
    superuser: {username: postgres, password: a}
    replication: {username: replicator, password: b}
";

fn environment(pairs: &[(&str, &str)]) -> Environment {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// The base with `more` over it.
fn load(more: &str) -> (Option<Config>, Diagnostics) {
    let mut files = vec![("base.yml", BASE.as_bytes())];
    if !more.is_empty() {
        files.push(("more.yml", more.as_bytes()));
    }
    Config::load_files(&files, &Environment::new())
}

fn config(more: &str) -> Config {
    let (config, diagnostics) = load(more);
    config.unwrap_or_else(|| panic!("{more}: {diagnostics}"))
}

fn dynamic(json: serde_json::Value) -> Dynamic {
    Dynamic::from_json(&json).0
}

fn version(major: u32) -> ServerVersion {
    ServerVersion::new(major * 10_000).unwrap()
}

#[test]
fn what_must_be_there_is_named() {
    let (config, diagnostics) = Config::load("log: {level: INFO}\n", &Environment::new());
    assert_eq!(config, None);
    let missing: Vec<_> = diagnostics.of(Code::Missing).map(|d| d.path.as_str()).collect();
    for path in [
        "scope",
        "name",
        "restapi.listen",
        "etcd3",
        "postgresql.listen",
        "postgresql.data_dir",
        "postgresql.authentication.replication",
    ] {
        assert!(missing.contains(&path), "{path}: {missing:?}");
    }
    assert!(diagnostics.iter().all(|d| d.severity != Severity::Error || d.help.is_some()));
}

#[test]
fn faults_of_values_have_the_place_of_the_value() {
    for (text, code, severity, place) in [
        ("ttl: 5\n", Code::WrongPlace, Severity::Warning, "more.yml:1:1"),
        ("lgo: {}\n", Code::UnknownKey, Severity::Warning, "more.yml:1:1"),
        ("log: debug\n", Code::WrongType, Severity::Error, "more.yml:1:6"),
        ("log: {file_num: many}\n", Code::WrongType, Severity::Warning, "more.yml:1:17"),
        ("log: {level: LOUD}\n", Code::InvalidValue, Severity::Warning, "more.yml:1:14"),
        ("restapi: {listen: 'a:b'}\n", Code::InvalidAddress, Severity::Error, "more.yml:1:19"),
        (
            "restapi: {connect_address: 'localhost:1'}\n",
            Code::LocalAddress,
            Severity::Warning,
            "1:28",
        ),
        (
            "restapi: {authentication: {username: u}}\n",
            Code::Missing,
            Severity::Error,
            "more.yml:1:",
        ),
        ("restapi: {verify_client: required}\n", Code::Missing, Severity::Error, "more.yml:1:26"),
        ("restapi: {verify_client: maybe}\n", Code::InvalidValue, Severity::Error, "more.yml:1:26"),
        (
            "name: __patroni_strict_sync_replica_placeholder__\n",
            Code::InvalidValue,
            Severity::Error,
            "1:7",
        ),
        ("name: a/b\n", Code::InvalidValue, Severity::Error, "more.yml:1:7"),
        ("postgresql: {data_dir: data}\n", Code::RelativeDataDirectory, Severity::Warning, "1:24"),
        ("postgresql: {pre_promote: \"a 'b\"}\n", Code::InvalidValue, Severity::Error, "1:27"),
        (
            "postgresql: {authentication: {superuser: {sslmode: on}}}\n",
            Code::InvalidValue,
            Severity::Error,
            "1:52",
        ),
        ("bootstrap: {initdb: [{pgdata: /x}]}\n", Code::ReservedOption, Severity::Warning, "1:21"),
        ("bootstrap: {initdb: encoding}\n", Code::WrongType, Severity::Warning, "1:21"),
        ("bootstrap: {method: wal_e}\n", Code::UndefinedMethod, Severity::Warning, "1:21"),
        ("bootstrap: {wal_e: {command: a}}\n", Code::UnusedMethod, Severity::Notice, "1:20"),
        ("bootstrap: {ttl: 30}\n", Code::WrongPlace, Severity::Warning, "1:13"),
        (
            "tags: {nofailover: true, failover_priority: 1}\n",
            Code::ConflictingTags,
            Severity::Warning,
            "1:45",
        ),
        ("watchdog: {mode: sometimes}\n", Code::InvalidValue, Severity::Warning, "1:18"),
    ] {
        let (_, diagnostics) = load(text);
        let found = diagnostics.iter().find(|d| d.code == code);
        let found = found.unwrap_or_else(|| panic!("{code} in {text}: {diagnostics}"));
        assert_eq!(found.severity, severity, "{text}");
        assert!(found.origin.to_string().contains(place), "{text}: {}", found.origin);
    }
}

#[test]
fn bytes_that_are_not_text_have_their_line() {
    let (_, diagnostics) =
        Config::load_files(&[("f.yml", b"scope: a\nname: caf\xe9\n")], &Environment::new());
    let found = diagnostics.of(Code::NotText).next().unwrap();
    assert_eq!(found.origin.to_string(), "f.yml:2:10");
    assert_eq!(Config::load_files(&[], &Environment::new()).0, None);
    // A mark at the beginning is no part of the text.
    let (config, _) = Config::load(&format!("\u{feff}{BASE}"), &Environment::new());
    assert!(config.is_some());
}

#[test]
fn other_stores_are_refused_with_a_way_out() {
    for store in ["consul", "zookeeper", "exhibitor", "kubernetes", "raft"] {
        let text = BASE.replace("etcd3: {host: etcd}", &format!("{store}: {{host: x}}"));
        let (config, diagnostics) = Config::load(&text, &Environment::new());
        assert_eq!(config, None, "{store}");
        let errors: Vec<_> = diagnostics.iter().filter(|d| d.severity == Severity::Error).collect();
        assert_eq!(errors.len(), 1, "{diagnostics}");
        assert_eq!((errors[0].code, errors[0].path.as_str()), (Code::NotSupported, store));
        assert!(errors[0].help.is_some());
    }
}

#[test]
fn keys_of_nobody_are_left_alone() {
    let (_, diagnostics) = load(".defaults: &d {a: 1}\nx-more: *d\n");
    assert!(diagnostics.is_empty(), "{diagnostics}");
}

#[test]
fn the_environment_goes_before_the_file() {
    let variables = environment(&[
        ("PATRONI_NAME", "node9"),
        ("PATRONI_SCOPE", "other"),
        ("PATRONI_RESTAPI_LISTEN", "0.0.0.0:9999"),
        ("PATRONI_ETCD3_HOSTS", "e1:2379,e2:2379"),
        ("PATRONI_SUPERUSER_PASSWORD", "0123"),
        ("PATRONI_POSTGRESQL_DATA_DIR", "/elsewhere"),
        ("PATRONI_POSTGRESQL_BIN_PG_CTL", "my_ctl"),
        ("PATRONI_LOG_LEVEL", "DEBUG"),
        ("PATRONI_WATCHDOG_MODE", "off"),
        ("PATRONI_CTL_INSECURE", "on"),
        ("PATRONI_admin_PASSWORD", "secret"),
        ("PATRONI_admin_OPTIONS", "createrole,createdb"),
        ("PATRONI_LOGFORMAT", "%(message)s"),
        ("PATRONI_NAMESPACE", ""),
        ("PATRONI_RESTAPI_LISEN", "x"),
        ("PATRONI_KUBERNETES_LABELS", "{a: b}"),
        ("SOMETHING_ELSE", "x"),
    ]);
    let (config, diagnostics) = Config::load(BASE, &variables);
    let config = config.unwrap_or_else(|| panic!("{diagnostics}"));
    assert_eq!((config.name.as_str(), config.scope.as_str()), ("node9", "other"));
    assert_eq!(config.namespace, "service");
    assert_eq!(config.restapi.listen.to_string(), "0.0.0.0:9999");
    assert_eq!(config.etcd.endpoints.len(), 2);
    let superuser = &config.postgresql.authentication.superuser;
    assert_eq!(superuser.username.as_deref(), Some("postgres"));
    assert_eq!(superuser.password, Some(Secret::from("0123")));
    assert_eq!(config.postgresql.data_dir, PathBuf::from("/elsewhere"));
    assert_eq!(config.postgresql.options.bin_name["pg_ctl"], "my_ctl");
    assert_eq!(config.log.level, LogLevel::Debug);
    assert_eq!(config.watchdog.mode, WatchdogMode::Off);
    assert!(config.ctl.insecure);
    let user = &config.bootstrap.users[0];
    assert_eq!((user.name.as_str(), user.options.len()), ("admin", 2));
    for (code, place) in [
        (Code::UnknownVariable, "$PATRONI_RESTAPI_LISEN"),
        (Code::OldName, "$PATRONI_LOGFORMAT"),
        (Code::NotSupported, "$PATRONI_KUBERNETES_LABELS"),
    ] {
        assert!(diagnostics.of(code).any(|d| d.origin.to_string() == place), "{diagnostics}");
    }
    let near = diagnostics.of(Code::UnknownVariable).next().unwrap();
    assert_eq!(near.help.as_deref(), Some("did you mean PATRONI_RESTAPI_LISTEN?"));
}

#[test]
fn the_environment_alone_will_do() {
    let alone = environment(&[
        ("PATRONI_SCOPE", "demo"),
        ("PATRONI_NAME", "node1"),
        ("PATRONI_RESTAPI_LISTEN", "10.0.0.1:8008"),
        ("PATRONI_ETCD3_HOST", "etcd"),
        ("PATRONI_POSTGRESQL_LISTEN", "10.0.0.1:5432"),
        ("PATRONI_POSTGRESQL_DATA_DIR", "/data"),
        ("PATRONI_REPLICATION_USERNAME", "replicator"),
        ("PATRONI_REPLICATION_PASSWORD", "b"),
    ]);
    let (config, diagnostics) = Config::from_environment(&alone);
    assert!(config.is_some(), "{diagnostics}");

    // A whole configuration leaves no room for others.
    let whole = environment(&[
        ("PATRONI_CONFIGURATION", &BASE.replace("node1:8008", "${HOST}:8008")),
        ("PATRONI_NAME", "ignored"),
        ("HOST", "here"),
    ]);
    let (config, diagnostics) = Config::from_environment(&whole);
    let config = config.unwrap_or_else(|| panic!("{diagnostics}"));
    assert_eq!(config.name, "node1");
    assert_eq!(config.restapi.connect_address.host, "here");
    let wrong = environment(&[("PATRONI_CONFIGURATION", "a: [")]);
    let (config, diagnostics) = Config::from_environment(&wrong);
    assert_eq!(config, None);
    assert!(diagnostics.to_string().starts_with("$PATRONI_CONFIGURATION:"), "{diagnostics}");
}

#[test]
fn older_places_are_read() {
    let text = "
scope: demo
restapi: {listen: '10.0.0.1:8008'}
etcd: {host: etcd}
postgresql:
  name: old
  listen: 10.0.0.1:5432
  data_dir: /data
  superuser: {username: root, password: a}
  replication: {username: streamer, password: b}
  create_replica_method: [basebackup]
";
    let (config, diagnostics) = Config::load(text, &Environment::new());
    let config = config.unwrap_or_else(|| panic!("{diagnostics}"));
    assert_eq!(config.name, "old");
    let users = &config.postgresql.authentication;
    assert_eq!(users.superuser.username.as_deref(), Some("root"));
    assert_eq!(users.replication.username.as_deref(), Some("streamer"));
    assert_eq!(diagnostics.of(Code::OldName).count(), 4, "{diagnostics}");
    assert_eq!(diagnostics.of(Code::UnknownKey).count(), 0, "{diagnostics}");
}

#[test]
fn tags_are_published_as_by_patroni() {
    for (text, nofailover, priority, published) in [
        ("{}", false, 1, json!({})),
        ("{nofailover: false}", false, 1, json!({})),
        ("{nofailover: true}", true, 0, json!({"nofailover": true})),
        ("{nofailover: 'on'}", true, 0, json!({"nofailover": true})),
        ("{failover_priority: 0}", true, 0, json!({"failover_priority": 0})),
        ("{failover_priority: 5}", false, 5, json!({"failover_priority": 5})),
        (
            "{nofailover: false, failover_priority: 0}",
            false,
            0,
            json!({"nofailover": false, "failover_priority": 0}),
        ),
        ("{zone: a, rack: 4, gold: true}", false, 1, json!({"zone": "a", "rack": 4, "gold": true})),
        (
            "{replicatefrom: x, clonefrom: true}",
            false,
            1,
            json!({"replicatefrom": "x", "clonefrom": true}),
        ),
    ] {
        let tags = config(&format!("tags: {text}\n")).tags;
        assert_eq!((tags.nofailover, tags.failover_priority), (nofailover, priority), "{text}");
        assert_eq!(json!(tags.published), published, "{text}");
    }
}

#[test]
fn the_file_goes_before_the_cluster_but_for_what_all_share() {
    let config = config(
        "
postgresql:
  parameters: {work_mem: 8MB, max_connections: 500, wal_keep_size: 1GB, Log_Line_Prefix: x}
  use_pg_rewind: false
  use_slots: false
  pg_ctl_timeout: 5
",
    );
    let dynamic = dynamic(json!({"postgresql": {
        "parameters": {"work_mem": "4MB", "max_connections": 200, "shared_buffers": "1GB"},
        "use_pg_rewind": true, "pg_ctl_timeout": 50, "pg_hba": ["local all all peer"],
        "remove_data_directory_on_rewind_failure": true,
    }}));
    let effective = config.effective(&dynamic, version(15));
    for (name, value) in [
        ("work_mem", "8MB"),
        ("max_connections", "200"),
        ("shared_buffers", "1GB"),
        ("wal_keep_size", "128MB"),
        ("log_line_prefix", "x"),
    ] {
        assert_eq!(effective.files.parameters[name], value, "{name}");
    }
    let wide: Vec<_> =
        effective.diagnostics.of(Code::ClusterWideParameter).map(|d| d.path.as_str()).collect();
    assert_eq!(
        wide,
        ["postgresql.parameters.max_connections", "postgresql.parameters.wal_keep_size"]
    );
    assert!(!effective.use_pg_rewind && effective.use_slots);
    assert_eq!(effective.pg_ctl_timeout, Duration::from_secs(5));
    assert!(effective.remove_data_directory_on_rewind_failure);
    assert_eq!(effective.files.pg_hba.as_deref().unwrap(), ["local all all peer"]);
}

#[test]
fn a_role_may_have_settings_and_lines_of_its_own() {
    let config = config(
        "
postgresql:
  parameters: {work_mem: 8MB}
  parameters_replica: {work_mem: 16MB, max_connections: 7}
  pg_hba: [local all all peer]
  pg_hba_primary: [local all all md5]
",
    );
    let dynamic =
        dynamic(json!({"postgresql": {"parameters_replica": {"jit": "off", "work_mem": "1MB"}}}));
    let effective = config.effective(&dynamic, version(15));
    let value = |role: Role, name: &str| effective.files_for(role).parameters.get(name).cloned();
    assert_eq!(value(Role::Primary, "work_mem").as_deref(), Some("8MB"));
    assert_eq!(value(Role::Replica, "work_mem").as_deref(), Some("16MB"));
    assert_eq!(value(Role::Replica, "jit").as_deref(), Some("off"));
    assert_eq!(value(Role::Primary, "jit"), None);
    assert_eq!(value(Role::StandbyLeader, "work_mem").as_deref(), Some("8MB"));
    let hba = |role: Role| effective.files_for(role).pg_hba.clone().unwrap().0;
    assert_eq!(hba(Role::Primary), ["local all all md5"]);
    assert_eq!(hba(Role::Replica), ["local all all peer"]);
    // A cluster-wide one is not a role's to say either.
    assert_eq!(value(Role::Replica, "max_connections").as_deref(), Some("100"));
    assert_eq!(effective.diagnostics.of(Code::ClusterWideParameter).count(), 1);
}

#[test]
fn the_command_line_has_what_nobody_may_change() {
    let effective = config("").effective(&Dynamic::default(), version(15));
    let names: Vec<_> = effective.files.command_line().map(|(name, _)| name).collect();
    let mut expected = COMMAND_LINE.to_vec();
    expected.sort_unstable();
    assert_eq!(names, expected);
    assert!(effective.files.pairs().count() > names.len());
}

#[test]
fn files_of_their_own_go_before_lines() {
    let config = config(
        "postgresql: {pg_hba: [local all all peer], parameters: {hba_file: /etc/hba, ident_file: id}}\n",
    );
    let effective = config.effective(&Dynamic::default(), version(15));
    assert_eq!(effective.files.pg_hba, None);
    assert_eq!(effective.files.parameters["hba_file"], "/etc/hba");
    assert_eq!(effective.files.parameters["ident_file"], "/data/id");
    assert_eq!(effective.diagnostics.of(Code::NoEffect).count(), 1);
}

#[test]
fn logical_slots_ask_for_feedback() {
    let slots = json!({"slots": {"l": {"type": "logical", "database": "d", "plugin": "p"}}});
    let mut without = slots.clone();
    without["postgresql"] = json!({"use_slots": false});
    for (json, feedback) in
        [(slots, Some("on")), (without, None), (json!({"slots": {"p": {}}}), None)]
    {
        let effective = config("").effective(&dynamic(json), version(15));
        let written = effective.files.parameters.get("hot_standby_feedback").map(String::as_str);
        assert_eq!(written, feedback);
    }
}

#[test]
fn the_watchdog_fires_before_the_key_runs_out() {
    for (margin, ttl, timeout, warned) in [
        ("5", 30, 25_000, false),
        ("-1", 30, 15_000, false),
        ("-1", 5, 2_500, false),
        ("5", 5, 2_500, true),
        ("40", 30, 15_000, true),
    ] {
        let config = config(&format!("watchdog: {{mode: required, safety_margin: {margin}}}\n"));
        let dynamic = dynamic(json!({"ttl": ttl, "loop_wait": 1, "retry_timeout": 1}));
        let effective = config.effective(&dynamic, version(15));
        assert_eq!(effective.watchdog_timeout, Duration::from_millis(timeout), "{margin} {ttl}");
        let found = effective.diagnostics.of(Code::WatchdogTimeout).count() > 0;
        assert_eq!(found, warned, "{margin} {ttl}");
    }
}

#[test]
fn methods_of_making_replicas_are_found_in_either_place() {
    let config = config(
        "
postgresql:
  create_replica_methods: [wal_g, plain, basebackup]
  wal_g: {command: 'fetch --all', no_leader: true, bucket: b}
  basebackup: {max-rate: 100M}
",
    );
    let dynamic = dynamic(json!({"postgresql": {
        "plain": {"command": "copy", "keep_data": 1}, "basebackup": ["verbose"],
    }}));
    let effective = config.effective(&dynamic, version(15));
    let methods: Vec<_> = effective
        .replica_methods
        .iter()
        .map(|method| match method {
            ReplicaMethod::Basebackup => ("basebackup", 0, false),
            ReplicaMethod::Program { name, command, program } => {
                (name.as_str(), command.words.len(), program.no_leader)
            }
        })
        .collect();
    assert_eq!(methods, [("wal_g", 2, true), ("plain", 1, false), ("basebackup", 0, false)]);
    let options: Vec<_> = effective.basebackup.iter().map(ToolOption::argument).collect();
    assert_eq!(options, ["--max-rate=100M"]);
}

#[test]
fn a_method_without_its_section_makes_no_cluster() {
    let named = |text: &str| config(text).bootstrap.method;
    assert_eq!(named("bootstrap: {}\n"), BootstrapMethod::Initdb);
    let undefined = BootstrapMethod::Undefined("restore".to_owned());
    assert_eq!(named("bootstrap: {method: restore}\n"), undefined);
    assert_eq!(named("bootstrap: {method: restore, restore: {a: b}}\n"), undefined);
    let method = named(
        "bootstrap: {method: restore, restore: {command: a b, keep_existing_recovery_conf: true, \
         recovery_conf: {recovery_target_inclusive: false}, datadir: x, level: 3}}\n",
    );
    let BootstrapMethod::Custom(method) = method else { panic!("{method:?}") };
    assert_eq!(method.command.words, ["a", "b"]);
    assert!(method.keep_existing_recovery_conf && !method.no_params);
    assert_eq!(method.recovery_conf["recovery_target_inclusive"], "off");
    assert_eq!(method.arguments, [("level".to_owned(), Secret::from("3"))]);
}

#[test]
fn options_come_in_many_forms() {
    for (text, expected) in [
        ("[data-checksums, {encoding: UTF8}]", &["--data-checksums", "--encoding=UTF8"][..]),
        ("{encoding: UTF8, locale: C}", &["--encoding=UTF8", "--locale=C"]),
        ("[{wal-segsize: 64}]", &["--wal-segsize=64"]),
        ("[{data-checksums: true}, {no-sync: false}]", &["--data-checksums"]),
        ("['--encoding=UTF8', -k]", &["--encoding=UTF8", "--k"]),
        ("[{lc-messages: \"'C'\"}]", &["--lc-messages=C"]),
        ("[[a], 'b c', {pwfile: x}]", &[]),
    ] {
        let options = config(&format!("bootstrap: {{initdb: {text}}}\n")).bootstrap.initdb;
        let arguments: Vec<_> = options.iter().map(ToolOption::argument).collect();
        assert_eq!(arguments, expected, "{text}");
    }
}

#[test]
fn options_of_a_connection_depend_on_the_version() {
    let config = config(
        "postgresql: {authentication: {replication: {sslmode: verify-full, gssencmode: disable, \
         channel_binding: require, sslcrldir: /d, sslnegotiation: direct}}}\n",
    );
    let replication = &config.postgresql.authentication.replication;
    for (major, names) in [
        (11, &["sslmode"][..]),
        (12, &["gssencmode", "sslmode"]),
        (13, &["channel_binding", "gssencmode", "sslmode"]),
        (14, &["channel_binding", "gssencmode", "sslcrldir", "sslmode"]),
        (17, &["channel_binding", "gssencmode", "sslcrldir", "sslmode", "sslnegotiation"]),
    ] {
        let options: Vec<_> =
            replication.options_for(version(major)).map(|(name, _)| name).collect();
        assert_eq!(options, names, "{major}");
    }
}

#[test]
fn changes_say_what_a_reload_does_and_what_it_does_not() {
    let config = config("");
    let effective = |json| config.effective(&dynamic(json), version(15));
    let before = effective(json!({"postgresql": {"parameters": {
        "shared_buffers": "128MB", "work_mem": "4MB", "log_connections": true, "my.setting": "1",
    }, "recovery_conf": {"restore_command": "a"}}}));
    let after = effective(json!({"ttl": 60, "pause": true, "postgresql": {"parameters": {
        "shared_buffers": "131072kB", "log_connections": "on", "my.setting": "2", "max_connections": 200,
    }, "recovery_conf": {"restore_command": "b"}, "pg_hba": ["local all all peer"]}}));
    let changes = before.changes(&after, Role::Primary, &BTreeMap::new());
    let change = |name: &str, old: Option<&str>, new: Option<&str>| ParameterChange {
        name: name.to_owned(),
        old: old.map(str::to_owned),
        new: new.map(str::to_owned),
    };
    assert_eq!(changes.restart, [change("max_connections", Some("100"), Some("200"))]);
    assert_eq!(
        changes.reload,
        [change("my.setting", Some("1"), Some("2")), change("work_mem", Some("4MB"), None)]
    );
    assert!(changes.timers && changes.pg_hba && changes.other);
    assert!(!changes.pg_ident && !changes.tags);
    // The watchdog waits longer with a longer ttl.
    assert!(changes.watchdog);
    assert!(changes.needs_reload() && changes.needs_restart() && !changes.is_empty());
    let followed = before.changes(&after, Role::Replica, &BTreeMap::new());
    assert!(followed.reload.contains(&change("restore_command", Some("a"), Some("b"))));

    // What the server itself says goes before what is usual.
    let facts = |context: &str| ServerSetting {
        context: context.to_owned(),
        vartype: "integer".to_owned(),
        unit: Some("kB".to_owned()),
    };
    let settings = [("work_mem".to_owned(), facts("postmaster"))].into();
    let changes = before.changes(&after, Role::Primary, &settings);
    assert!(changes.restart.iter().any(|change| change.name == "work_mem"));
    assert!(before.changes(&before, Role::Replica, &BTreeMap::new()).is_empty());
}
