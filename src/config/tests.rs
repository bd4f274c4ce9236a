use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::env::FIELDS;
use super::*;

const EXAMPLE: &str = include_str!("../../examples/backend/leaderpool.toml");

fn valid() -> Config {
    Config::builder()
        .etcd(["http://a:2379", "http://b:2379"])
        .scope("main")
        .user("app")
        .build()
        .expect("valid")
}

fn secure() -> Config {
    let mut config = valid();
    config.etcd.as_mut().expect("etcd").endpoints = vec!["https://a:2379".into()];
    config.rest =
        Some(RestConfig { endpoints: vec!["https://a:8008".into()], ..Default::default() });
    config
}

fn fixed(hosts: &[&str]) -> Config {
    let hosts = hosts.iter().map(|&host| host.to_owned()).collect();
    Config { etcd: None, fixed: Some(FixedConfig { hosts }), ..valid() }
}

#[track_caller]
fn refused(config: &Config, field: &str, problem: &str) {
    let error = config.validate().expect_err(field);
    assert!(matches!(&error, ConfigError::Field { field: of, .. } if of == field), "{error}");
    let message = error.to_string();
    assert!(message.contains(field) && message.contains(problem), "{message}");
}

#[test]
fn sources_are_refused() {
    let without = Config { etcd: None, ..valid() };
    refused(&without, "etcd", "`rest.endpoints`");
    let beside_etcd = Config { etcd: valid().etcd, ..fixed(&["a"]) };
    refused(&beside_etcd, "fixed", "used alone");
    let beside_rest = Config { rest: secure().rest, ..fixed(&["a"]) };
    refused(&beside_rest, "fixed", "used alone");

    for good in [valid(), secure(), Config { etcd: None, ..secure() }, fixed(&["a"])] {
        good.validate().expect("valid");
    }
    let mut without_scope = Config { etcd: None, ..secure() };
    without_scope.cluster.scope.clear();
    without_scope.validate().expect("REST needs no scope");
}

type Change = fn(&mut Config);

/// Each refused in itself, on a configuration that is valid and encrypted throughout.
const REFUSED: &[(&str, &str, Change)] = &[
    ("cluster.scope", "required with `etcd`", |c| c.cluster.scope.clear()),
    ("cluster.scope", "must not contain `/`", |c| c.cluster.scope = "db/main".into()),
    ("cluster.scope", "control character", |c| c.cluster.scope = "ma\nin".into()),
    ("cluster.scope", "space at an end", |c| c.cluster.scope = "main ".into()),
    ("cluster.namespace", "control character", |c| c.cluster.namespace = "/d\0b/".into()),
    ("cluster.namespace", "space at an end", |c| c.cluster.namespace = " ".into()),
    ("etcd.username", "needs `etcd.password`", |c| etcd(c).username = Some("u".into())),
    ("etcd.password", "needs `etcd.username`", |c| etcd(c).password = Some("p".into())),
    ("etcd.username", "is empty", |c| etcd(c).username = Some(String::new())),
    ("etcd.password", "is empty", |c| etcd(c).password = Some("".into())),
    ("etcd.ca_file", "is empty", |c| etcd(c).ca_file = Some("".into())),
    ("etcd.cert_file", "needs `etcd.key_file`", |c| etcd(c).cert_file = Some("c".into())),
    ("etcd.key_file", "needs `etcd.cert_file`", |c| etcd(c).key_file = Some("k".into())),
    ("etcd.server_name", "is empty", |c| etcd(c).server_name = Some(String::new())),
    ("etcd.ca_file", "has no effect", |c| {
        plain(c);
        etcd(c).ca_file = Some("ca".into());
    }),
    ("etcd.cert_file", "has no effect", |c| {
        plain(c);
        etcd(c).cert_file = Some("c".into());
        etcd(c).key_file = Some("k".into());
    }),
    ("etcd.server_name", "has no effect", |c| {
        plain(c);
        etcd(c).server_name = Some("etcd".into());
    }),
    ("rest.ca_file", "is empty", |c| rest(c).ca_file = Some("".into())),
    ("rest.cert_file", "needs `rest.key_file`", |c| rest(c).cert_file = Some("c".into())),
    ("rest.key_file", "needs `rest.cert_file`", |c| rest(c).key_file = Some("k".into())),
    ("rest.ca_file", "has no effect", |c| {
        plain(c);
        rest(c).ca_file = Some("ca".into());
    }),
    ("rest.cert_file", "has no effect", |c| {
        plain(c);
        rest(c).cert_file = Some("c".into());
        rest(c).key_file = Some("k".into());
    }),
    ("postgres.user", "required", |c| c.postgres.user.clear()),
    ("postgres.user", "NUL", |c| c.postgres.user = "a\0b".into()),
    ("postgres.password", "NUL", |c| c.postgres.password = Some("a\0b".into())),
    ("postgres.dbname", "NUL", |c| c.postgres.dbname = Some("a\0b".into())),
    ("postgres.application_name", "NUL", |c| c.postgres.application_name = "a\0b".into()),
    ("postgres.options", "NUL", |c| c.postgres.options = Some("a\0b".into())),
    ("postgres.password", "is empty", |c| c.postgres.password = Some("".into())),
    ("postgres.dbname", "is empty", |c| c.postgres.dbname = Some(String::new())),
    ("postgres.password_file", "is empty", |c| c.postgres.password_file = Some("".into())),
    ("postgres.password_file", "does not go with `postgres.password`", |c| {
        c.postgres.password = Some("p".into());
        c.postgres.password_file = Some("/run/pw".into());
    }),
    ("postgres.sslcert", "needs `postgres.sslkey`", |c| c.postgres.sslcert = Some("c".into())),
    ("postgres.sslkey", "needs `postgres.sslcert`", |c| c.postgres.sslkey = Some("k".into())),
    ("postgres.sslrootcert", "`postgres.sslmode = \"disable\"`", |c| {
        c.postgres.sslmode = SslMode::Disable;
        c.postgres.sslrootcert = Some("ca".into());
    }),
    ("postgres.sslcert", "`postgres.sslmode = \"disable\"`", |c| {
        c.postgres.sslmode = SslMode::Disable;
        c.postgres.sslcert = Some("c".into());
        c.postgres.sslkey = Some("k".into());
    }),
    ("postgres.connect_timeout", "longer than `pool.write_timeout`", |c| {
        c.pool.write_timeout = Some(Duration::from_millis(1_999));
    }),
    ("postgres.connect_timeout", "longer than `pool.read_timeout`", |c| {
        c.pool.read_timeout = Duration::from_millis(1_999);
    }),
    ("postgres.keepalive_idle", "at least 1s", |c| {
        c.postgres.keepalive_idle = Duration::from_millis(999);
    }),
    ("postgres.keepalive_interval", "at least 1s", |c| {
        c.postgres.keepalive_interval = Duration::from_millis(999);
    }),
    ("pool.name", "is empty", |c| c.pool.name = Some(String::new())),
    ("pool.name", "holds a control character", |c| c.pool.name = Some("a\nb".into())),
    ("pool.max_size", "must not be 0", |c| c.pool.max_size = 0),
    ("pool.max_size", "at most 10000", |c| c.pool.max_size = 10_001),
    ("pool.max_waiting", "must not be 0", |c| c.pool.max_waiting = 0),
    ("pool.max_waiting", "at most 1000000", |c| c.pool.max_waiting = usize::MAX),
    ("pool.max_lifetime", "at most 30days", |c| {
        c.pool.max_lifetime = Duration::from_secs(30 * 86_400 + 1);
    }),
    ("pool.max_lifetime", "too short", |c| c.pool.max_lifetime = Duration::ZERO),
    ("pool.idle_timeout", "longer than `pool.max_lifetime`", |c| {
        c.pool.max_lifetime = Duration::from_secs(599);
    }),
    ("pool.cut_dead_after", "at least 1s", |c| {
        c.pool.cut_dead_after = Some(Duration::from_millis(999));
    }),
    ("pool.hung_after", "too short", |c| c.pool.hung_after = Duration::from_micros(999)),
    ("pool.keepalive_interval", "too long", |c| c.pool.keepalive_interval = Duration::MAX),
    ("pool.leak_after", "too short", |c| c.pool.leak_after = Duration::from_micros(999)),
    ("pool.min_idle", "more than `pool.max_size`, 16", |c| c.pool.min_idle = 17),
    ("breaker.error_percent", "101 is more than 100", |c| c.breaker.error_percent = 101),
    ("breaker.min_samples", "must not be 0", |c| c.breaker.min_samples = 0),
    ("breaker.trials", "must not be 0", |c| c.breaker.trials = 0),
    ("breaker.open_for", "longer than `breaker.open_at_most`", |c| {
        c.breaker.open_for = Duration::from_secs(31);
    }),
    ("probe.watchful_interval", "longer than `probe.interval`", |c| {
        c.probe.interval = Duration::from_millis(249);
    }),
    ("probe.urgent_interval", "longer than `probe.watchful_interval`", |c| {
        c.probe.urgent_interval = Duration::from_millis(251);
    }),
    ("read.prefer_tag", "not `name=value`", |c| c.read.prefer_tag = Some("zone".into())),
    ("retry.max_attempts", "0", |c| c.retry.max_attempts = 0),
    ("retry.min_per_second", "100001", |c| c.retry.min_per_second = 100_001),
    ("retry.budget_percent", "101", |c| c.retry.budget_percent = 101),
    ("read.prefer_tag", "not `name=value`", |c| c.read.prefer_tag = Some("=b".into())),
    ("read.prefer_tag", "not `name=value`", |c| c.read.prefer_tag = Some("zone=".into())),
    ("read.prefer_tag", "not `name=value`", |c| c.read.prefer_tag = Some("zone = ".into())),
];

fn etcd(config: &mut Config) -> &mut EtcdConfig {
    config.etcd.as_mut().expect("etcd")
}

fn rest(config: &mut Config) -> &mut RestConfig {
    config.rest.as_mut().expect("rest")
}

fn plain(config: &mut Config) {
    etcd(config).endpoints = vec!["http://a:2379".into()];
    rest(config).endpoints = vec!["http://a:8008".into()];
}

#[test]
fn impossible_values_are_refused_by_name() {
    for (field, problem, change) in REFUSED {
        let mut config = secure();
        change(&mut config);
        refused(&config, field, problem);
    }
}

type SetDuration = fn(&mut Config, Duration);

/// Every duration that reaches from 1 ms to a day.
const DURATIONS: &[(&str, SetDuration)] = &[
    ("etcd.timeout", |c, d| etcd(c).timeout = d),
    ("etcd.verify_interval", |c, d| etcd(c).verify_interval = d),
    ("rest.interval", |c, d| rest(c).interval = d),
    ("rest.timeout", |c, d| rest(c).timeout = d),
    ("postgres.connect_timeout", |c, d| c.postgres.connect_timeout = d),
    ("postgres.tcp_user_timeout", |c, d| c.postgres.tcp_user_timeout = d),
    ("postgres.keepalive_idle", |c, d| c.postgres.keepalive_idle = d),
    ("postgres.keepalive_interval", |c, d| c.postgres.keepalive_interval = d),
    ("pool.write_timeout", |c, d| c.pool.write_timeout = Some(d)),
    ("pool.read_timeout", |c, d| c.pool.read_timeout = d),
    ("pool.start_timeout", |c, d| c.pool.start_timeout = d),
    ("pool.close_timeout", |c, d| c.pool.close_timeout = d),
    ("pool.idle_timeout", |c, d| c.pool.idle_timeout = d),
    ("breaker.window", |c, d| c.breaker.window = d),
    ("breaker.open_for", |c, d| c.breaker.open_for = d),
    ("breaker.open_at_most", |c, d| c.breaker.open_at_most = d),
    ("probe.interval", |c, d| c.probe.interval = d),
    ("probe.watchful_interval", |c, d| c.probe.watchful_interval = d),
    ("probe.urgent_interval", |c, d| c.probe.urgent_interval = d),
    ("probe.timeout", |c, d| c.probe.timeout = d),
    ("read.max_behind", |c, d| c.read.max_behind = Some(d)),
];

#[test]
fn zero_and_absurd_durations_are_refused() {
    let bad = [
        (Duration::ZERO, "0s is too short"),
        (Duration::from_micros(999), "too short"),
        (Duration::from_secs(86_401), "1day 1s is too long: at most 1day"),
        (Duration::MAX, "too long"),
    ];
    for (field, set) in DURATIONS {
        for (value, problem) in bad {
            let mut config = secure();
            set(&mut config, value);
            refused(&config, field, problem);
        }
    }
}

#[test]
fn urls() {
    let bad: &[(&[&str], &str)] = &[
        (&[], "is empty"),
        (&[""], "does not start with http"),
        (&["a:2379"], "does not start with http"),
        (&["HTTP://a:2379"], "does not start with http"),
        (&["postgres://a:2379"], "does not start with http"),
        (&["http://"], "host"),
        (&["http://:2379"], "host"),
        (&["http:///db"], "host"),
        (&["http://[]:2379"], "host"),
        (&["http://[::1:2379"], "is not a URL"),
        (&["http://a b:2379"], "is not a URL"),
        (&["http://a,http://b"], "http://a,http://b"),
        (&["http://a:0"], "port 0"),
        (&["http://a:"], "no valid port"),
        (&["http://a:99999"], "port"),
        (&["http://a:2379/v3"], "goes on after host and port"),
        (&["http://a:2379?x=s3cret"], "\"http://a:2379?…\" goes on after host and port"),
        (&["http://a:2379#x"], "goes on after host and port"),
        (&["http://app:s3cret@a:2379"], "must not hold a user or password"),
        (&["http://app:s3cr/et@a:2379"], "must not hold a user or password"),
        (&["http://app:s3cr@et@a:2379"], "must not hold a user or password"),
        (&["s3cret@"], "must not hold a user or password"),
        (&["http://a:2379", "https://b:2379"], "mixes http and https"),
        (&["http://a:2379", "http://b:2379", "http://a:2379"], "\"http://a:2379\" is there twice"),
        (&["http://a:2379", "http://A:2379/"], "is there twice"),
        (&["https://a", "https://a:443"], "is there twice"),
    ];
    for (list, problem) in bad {
        let endpoints: Vec<String> = list.iter().map(|&url| url.to_owned()).collect();
        let mut config = valid();
        etcd(&mut config).endpoints.clone_from(&endpoints);
        refused(&config, "etcd.endpoints", problem);
        assert!(!config.validate().expect_err("refused").to_string().contains("s3cr"), "{list:?}");
        let mut config = Config { etcd: None, ..secure() };
        rest(&mut config).endpoints = endpoints;
        refused(&config, "rest.endpoints", problem);
    }
    let good: &[&[&str]] = &[
        &["http://a:2379/"],
        &["http://a"],
        &["https://etcd.internal"],
        &["http://[::1]:2379", "http://127.0.0.1:2379"],
        &["http://a:2379", "http://a:2380"],
    ];
    for list in good {
        let mut config = valid();
        etcd(&mut config).endpoints = list.iter().map(|&url| url.to_owned()).collect();
        config.validate().unwrap_or_else(|error| panic!("{list:?}: {error}"));
    }
}

#[test]
fn hosts() {
    let bad: &[(&[&str], &str)] = &[
        (&[], "is empty"),
        (&[""], "host is missing"),
        (&["a:b"], "port"),
        (&["a:0"], "port"),
        (&["::1"], "brackets"),
        (&["postgres://a:5432"], "postgres://a:5432"),
        (&["a/db"], "the host holds a `/`"),
        (&["a,b"], "comma"),
        (&["app:s3cret@a:5432"], "the user goes to `postgres.user`"),
        (&["a", "b", "a:5432"], "\"a:5432\" is there twice"),
    ];
    for (list, problem) in bad {
        let config = fixed(list);
        refused(&config, "fixed.hosts", problem);
        assert!(!config.validate().expect_err("refused").to_string().contains("s3cret"));
    }
    fixed(&["a", "a:5433", "[::1]:5432", "10.0.0.1", "/run/postgresql"]).validate().expect("valid");
}

#[test]
fn limits_are_inclusive() {
    let mut config = secure();
    config.pool.max_size = 10_000;
    config.pool.max_waiting = 1_000_000;
    config.pool.write_timeout = Some(Duration::from_secs(2));
    config.pool.read_timeout = Duration::from_secs(2);
    config.pool.max_lifetime = Duration::from_secs(30 * 86_400);
    config.pool.idle_timeout = Duration::from_secs(86_400);
    config.pool.min_idle = 10_000;
    config.pool.cut_dead_after = Some(Duration::ZERO);
    config.pool.hung_after = Duration::ZERO;
    config.pool.keepalive_interval = Duration::ZERO;
    config.breaker.connect_failures = 0;
    config.breaker.timeouts = 0;
    config.breaker.error_percent = 0;
    config.breaker.open_for = config.breaker.open_at_most;
    config.probe.interval = Duration::from_millis(1);
    config.probe.watchful_interval = Duration::from_millis(1);
    config.probe.urgent_interval = Duration::from_millis(1);
    config.postgres.keepalive_idle = Duration::from_secs(1);
    config.read.max_bytes_behind = Some(0);
    config.read.prefer_tag = Some("zone = a=b".into());
    config.cluster.namespace = String::new();
    config.validate().expect("valid");
}

#[test]
fn errors_in_text_name_file_line_and_field() {
    let bad = [
        ("[pool]\n\nmax_sise = 3", "line 3, column 1: `pool.max_sise`: unknown field"),
        ("[poool]\nmax_size = 3", "line 1, column 2: `poool`: unknown field"),
        ("[pool]\nmax_size = \"3\"", "line 2, column 12: `pool.max_size`: expected "),
        ("[pool]\nmax_size = -3", "line 2, column 12: `pool.max_size`: invalid value"),
        (
            "pool = 3",
            "line 1, column 8: `pool`: invalid type: integer `3`, expected a section, [pool]",
        ),
        (
            "[pool]\nread_timeout = 5",
            "`pool.read_timeout`: invalid type: integer `5`, expected a duration as text with a unit",
        ),
        (
            "[pool]\nwrite_timeout = 5",
            "`pool.write_timeout`: invalid type: integer `5`, expected a duration",
        ),
        (
            "[pool]\nread_timeout = \"5\"",
            "line 2, column 16: `pool.read_timeout`: \"5\" is not a duration",
        ),
        ("[pool]\nwrite_timeout = \"soon\"", "`pool.write_timeout`: \"soon\" is not a duration"),
        ("[etcd]\nendpoints = \"http://a:1\"", "line 2, column 13: `etcd.endpoints`: expected "),
        ("[etcd]\nendpoints = [\"http://a:1\", 2]", "line 2, column 28: `etcd.endpoints[1]`"),
        (
            "[postgres]\nsslmode = \"allow\"",
            "line 2, column 11: `postgres.sslmode`: unknown variant `allow`, expected one of `disable`",
        ),
        ("[read]\nwhen_none = \"Leader\"", "`read.when_none`: unknown variant"),
        ("[pool]\nmax_size 3", "line 2, column 10: "),
        ("[pool]\nmax_size = 3\nmax_size = 4", "line 3, column 1: duplicate key"),
        ("# ü\n[pöol]", "line 2, column 3: "),
    ];
    for (text, problem) in bad {
        let error = Config::from_toml_and(text, "app.toml", Vec::new()).expect_err(text);
        assert!(matches!(error, ConfigError::Parse { .. }), "{error:?}");
        let message = error.to_string();
        assert!(message.starts_with("app.toml: ") && message.contains(problem), "{message}");
    }
}

#[test]
fn errors_never_repeat_a_password() {
    let lines = [
        "password = s3cret",
        "password = \"s3cret",
        "password = 's3cret",
        "password = \"s3cret\" trailing",
        "password = \"s3cret\\q\"",
        "password = \"\"\"s3cret",
        "password = [\"s3cret\"]",
        "password = { value = \"s3cret\" }",
        "password = \"x\"\npassword = \"s3cret\"",
        "passwort = \"s3cret\"",
        "pass word = \"s3cret\"",
        "password: \"s3cret\"",
        "password \"s3cret\"",
        "password = \"s3cret\", user = 3",
        "user = 3\npassword = \"s3cret\"",
        "user = \"a\u{0}\"\npassword = \"s3cret\"",
        "password = 5352837",
        "password = -5352837",
        "password = 0.5352837",
        "password = 5352837s",
        "password = 53528375352837535283753528375352837",
        "password = 5352-83-70",
    ];
    for section in ["postgres", "etcd"] {
        for line in lines {
            let text = format!("[{section}]\n{line}\n");
            let error = Config::from_toml(&text).expect_err(line);
            for shown in [error.to_string(), format!("{error:?}")] {
                assert!(shown.contains("line "), "{line}: {shown}");
                assert!(!shown.contains("s3cret") && !shown.contains("53528"), "{line}: {shown}");
            }
        }
        for line in ["= 'postgres://u:s3cret@h/db'", ".endpoints = 'http://u:s3cret@h'"] {
            let error = Config::from_toml(&format!("{section}{line}")).expect_err(line);
            let message = error.to_string();
            assert!(message.contains(section) && !message.contains("s3cret"), "{message}");
        }
        let json = serde_json::json!({ section: { "password": 5_352_837 } });
        let errors = [
            Config::deserialize(&json).expect_err("a number").to_string(),
            serde_json::from_str::<Config>(&json.to_string()).expect_err("a number").to_string(),
        ];
        for error in errors {
            assert!(error.contains("must be text, in quotes"), "{error}");
            assert!(!error.contains("53528"), "{error}");
        }
    }
}

#[test]
fn variables_are_named_where_their_value_is_refused() {
    let text = "[etcd]\nendpoints = ['http://a:2379']\n[cluster]\nscope = 'main'\n[postgres]\nuser = 'app'";
    let with = |name: &str, value: &str| {
        Config::from_toml_and(text, "app.toml", vec![(name.to_owned(), value.to_owned())])
    };
    let config = with("LEADERPOOL_POOL_MAX_SIZE", "32").expect("valid");
    assert_eq!(config.pool.max_size, 32);

    let bad = [
        ("LEADERPOOL_POOL_READ_TIMEOUT", "5", "`pool.read_timeout`: \"5\" is not a duration"),
        ("LEADERPOOL_POSTGRES_SSLMODE", "allow", "`postgres.sslmode`: unknown variant `allow`"),
        ("LEADERPOOL_POOL_MAX_SIZE", "0", "`pool.max_size`: must not be 0"),
        ("LEADERPOOL_POOL_MAX_SIZE", "-1", "`pool.max_size`: invalid value"),
        ("LEADERPOOL_ETCD_ENDPOINTS", "http://a:1,", "`etcd.endpoints`: \"\" does not start with"),
        ("LEADERPOOL_ETCD_ENDPOINTS", "", "`etcd.endpoints`: is empty"),
        ("LEADERPOOL_POSTGRES_PASSWORD", "s3cr\0et", "`postgres.password`: holds a NUL"),
    ];
    for (name, value, problem) in bad {
        let error = with(name, value).expect_err(name);
        assert!(matches!(error, ConfigError::Env { .. }), "{error:?}");
        let message = error.to_string();
        assert!(message.contains(name) && message.contains(problem), "{message}");
        assert!(!message.contains("s3cr"), "{message}");
    }
    // What the file says wrong stays the file's, with its line.
    let variables = || vec![("LEADERPOOL_POOL_MAX_SIZE".to_owned(), "3".to_owned())];
    let error = Config::from_toml_and("[pool]\nmax_sise = 3", "app.toml", variables());
    let message = error.expect_err("unknown field").to_string();
    assert!(message.contains("line 2") && message.contains("`pool.max_sise`"), "{message}");
    let error = Config::from_toml_and("", "app.toml", variables()).expect_err("no source");
    assert!(matches!(&error, ConfigError::Field { field, .. } if field == "etcd"), "{error}");
}

#[test]
fn variables_alone_suffice() {
    let variables = [
        ("LEADERPOOL_ETCD_ENDPOINTS", "http://a:2379,http://b:2379"),
        ("LEADERPOOL_CLUSTER_SCOPE", "main"),
        ("LEADERPOOL_POSTGRES_USER", "app"),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let config =
        Config::from_table(toml::Table::new(), "the environment", variables).expect("valid");
    assert_eq!(config, valid());
}

#[test]
fn other_formats_deserialise_too() {
    let json = serde_json::json!({
        "cluster": { "scope": "main" },
        "etcd": { "endpoints": ["http://a:2379", "http://b:2379"], "ca_file": null },
        "rest": null,
        "postgres": { "user": "app", "password": null },
        "pool": { "write_timeout": null, "read_timeout": "5s" },
        "read": { "max_behind": null },
    });
    let config: Config = serde_json::from_str(&json.to_string()).expect("deserialises");
    config.validate().expect("valid");
    assert_eq!(config, valid());

    let unchecked: Config = serde_json::from_str("{}").expect("every section has defaults");
    unchecked.validate().expect_err("no source");
    serde_json::from_str::<Config>(r#"{"pool":{"size":3}}"#).expect_err("an unknown field");
}

#[test]
fn debug_shows_no_secret() {
    let mut config = valid();
    config.postgres.password = Some("s3cret".into());
    etcd(&mut config).username = Some("u".into());
    etcd(&mut config).password = Some("s3cret".into());
    for shown in [format!("{config:?}"), format!("{config:#?}")] {
        assert!(shown.contains("***") && !shown.contains("s3cret"), "{shown}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::from_file("no/such/leaderpool.toml").expect_err("missing");
    assert!(matches!(error, ConfigError::Read { .. }), "{error:?}");
    assert!(error.to_string().contains("no/such/leaderpool.toml"), "{error}");
}

#[test]
fn the_example_fits_the_demo() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/backend/leaderpool.toml");
    let config = Config::from_file(path).expect("valid");
    let demo = Config::builder()
        .scope("postgres-cluster")
        .namespace("/db/")
        .etcd(["http://127.0.0.1:2379"])
        .rest(["http://127.0.0.1:8008", "http://127.0.0.1:8009", "http://127.0.0.1:8010"])
        .dbname("eda_backend")
        .user("postgres")
        .password("postgres_password")
        .build()
        .expect("valid");
    assert_eq!(config, demo);
}

#[test]
fn the_example_shows_every_field_and_its_default() {
    // A line that starts with `#` and a name or a section is a setting that is switched off.
    let is_setting = |line: &str| {
        line.starts_with('[')
            || line.split_once(" = ").is_some_and(|(name, _)| {
                !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
            })
    };
    let switched_on: String = EXAMPLE
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| is_setting(rest)).unwrap_or(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    let table: toml::Table = switched_on.parse().expect("TOML");
    for (section, field, _) in FIELDS {
        let given = table.get(*section).and_then(|fields| fields.get(*field));
        assert!(given.is_some(), "{section}.{field} is not mentioned");
    }
    let shown = Config::deserialize(table).expect("each line fits its field");
    // What has no other default than another field's value.
    assert_eq!(shown.pool.cut_dead_after, Some(ProbeConfig::default().dead_after()));
    let PoolConfig { name, write_timeout, cut_dead_after, .. } = shown.pool.clone();
    let pool = PoolConfig { name, write_timeout, cut_dead_after, ..Default::default() };
    assert_eq!(shown.pool, pool);
    assert_eq!(shown.breaker, BreakerConfig::default());
    assert_eq!(shown.probe, ProbeConfig::default());
    assert_eq!(shown.read.when_none, WhenNone::default());
    let (etcd, rest) = (shown.etcd.expect("etcd"), shown.rest.expect("rest"));
    assert_eq!(etcd.timeout, EtcdConfig::default().timeout);
    assert_eq!(etcd.verify_interval, EtcdConfig::default().verify_interval);
    assert_eq!(rest.timeout, RestConfig::default().timeout);
    assert_eq!(rest.interval, RestConfig::default().interval);
    let (postgres, default) = (shown.postgres, PostgresConfig::default());
    assert_eq!(postgres.sslmode, default.sslmode);
    assert_eq!(postgres.application_name, default.application_name);
    assert_eq!(postgres.connect_timeout, default.connect_timeout);
    assert_eq!(postgres.tcp_user_timeout, default.tcp_user_timeout);
    assert_eq!(postgres.keepalive_idle, default.keepalive_idle);
    assert_eq!(postgres.keepalive_interval, default.keepalive_interval);
}
