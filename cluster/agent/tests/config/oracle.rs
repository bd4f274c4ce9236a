//! Patroni itself as the measure: it reads the same input, and says the same.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use leaderpool_agent::config::{Config, Dynamic, Environment, Timers, variables};
use leaderpool_testbed::Manager;
use serde_json::{Value as Json, json};

use super::{SEED, seed_environment};

/// The Python that has Patroni 4 among its modules.
async fn patroni_4() -> PathBuf {
    Manager::Patroni4.install().await.expect("Patroni 4 is there, or can be installed");
    let cache = match std::env::var_os("TESTBED_CACHE") {
        Some(dir) => PathBuf::from(dir),
        None => {
            let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
            let places = [PathBuf::from("/var/cache/leaderpool"), home.join(".cache/leaderpool")];
            places.into_iter().find(|dir| dir.is_dir()).expect("the testbed's cache is there")
        }
    };
    let venvs = cache.read_dir().expect("it can be read");
    venvs
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_string_lossy().contains("/patroni-4"))
        .map(|path| path.join("bin/python"))
        .find(|path| path.is_file())
        .expect("it was installed there")
}

/// Runs a Python script that reads `input` as JSON and prints JSON.
fn python(program: &Path, script: &str, input: &Json) -> Json {
    let prelude = "import sys, json, os, logging\nlogging.disable(logging.CRITICAL)\ninput = json.load(sys.stdin)\n";
    let mut child = Command::new(program)
        .args(["-c", &format!("{prelude}{script}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("Python is there: Patroni needs it");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(input.to_string().as_bytes()).expect("it reads its input");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {errors}"))
}

#[test]
fn yaml_is_read_as_by_pyyaml() {
    let scalars = [
        "on",
        "On",
        "ON",
        "oN",
        "off",
        "yes",
        "no",
        "y",
        "n",
        "true",
        "TRUE",
        "tRUE",
        "~",
        "null",
        "Null",
        "nULL",
        "",
        "1",
        "-1",
        "+1",
        "01",
        "010",
        "08",
        "0o10",
        "0x1f",
        "0xZ",
        "0b11",
        "0b12",
        "1_000",
        "_1",
        "1__0",
        "1:30",
        "1:60",
        "01:30",
        "1:2:3",
        "1.5",
        "-1.5",
        "1.",
        ".5",
        ".",
        "-.5",
        "1e3",
        "1.0e3",
        "1.0e+3",
        "1.0E-3",
        "1_0.5",
        "1.5_0",
        "--",
        "1-2",
        "10MB",
        "1800s",
        "127.0.0.1",
        "5432:5433",
        "22:22",
        "0.0.0.0:8008",
        "'on'",
        "\"1\"",
        "'it''s'",
        "\"a\\tb\"",
        "a#b",
        "a #b",
        "a:b",
        "cp %p ../x/%f",
        "$HOME",
        "!!str 1",
        "!!int '1'",
        "[a, b]",
        "{a: 1}",
        "[on, 1, ~]",
        "0777",
        "-0777",
        "0_7",
        "9223372036854775807",
    ];
    let mut text = "v:\n".to_owned();
    for (index, scalar) in scalars.iter().enumerate() {
        text += &format!("  k{index:03}: {scalar}\n");
    }
    text += "  block: |\n    two\n    lines\n  folded: >-\n    one\n    line\n";
    text += "  base: &b {x: 1, y: 2}\n  merged: {<<: *b, y: 3}\n  twice: {a: 1, a: 2}\n";
    let theirs = python(
        Path::new("/usr/bin/python3"),
        "import yaml\nprint(json.dumps(yaml.safe_load(input)['v']))",
        &json!(text),
    );
    // The tree is not public; what goes into `/config` is it, as JSON.
    let file = format!(
        "scope: a\nname: b\nrestapi: {{listen: 'a:1'}}\netcd3: {{host: a}}\npostgresql: {{listen: 'a:1', data_dir: /d, \
         authentication: {{replication: {{username: r}}}}}}\nbootstrap:\n  dcs:\n    {}\n",
        text.trim_end().replace('\n', "\n    ")
    );
    let (config, diagnostics) = Config::load(&file, &Environment::new());
    let config = config.unwrap_or_else(|| panic!("{diagnostics}"));
    let ours = &config.bootstrap.dcs.0["v"];
    let (ours, theirs) = (ours.as_object().expect("a map"), theirs.as_object().expect("a map"));
    assert_eq!(ours.len(), theirs.len());
    for (key, value) in theirs {
        let index = key.trim_start_matches('k').parse::<usize>().ok();
        let written = index.map_or(key.as_str(), |index| scalars[index]);
        assert_eq!(&ours[key], value, "{written}");
    }
}

#[tokio::test]
async fn timers_are_adjusted_as_by_patroni() {
    let script = "
from patroni.config import Config
c = Config.__new__(Config)
out = []
for ttl, loop_wait, retry in input:
    d = {'ttl': ttl, 'loop_wait': loop_wait, 'retry_timeout': retry}
    c._validate_and_adjust_timeouts(d)
    out.append([d['ttl'], d['loop_wait'], d['retry_timeout']])
print(json.dumps(out))
";
    let mut grid = Vec::new();
    for ttl in [20, 21, 25, 30, 31, 60, 100] {
        for loop_wait in [0, 1, 2, 5, 10, 30, 99] {
            for retry in [1, 3, 4, 9, 10, 14, 15, 30, 60] {
                grid.push([ttl, loop_wait, retry]);
            }
        }
    }
    let theirs = python(&patroni_4().await, script, &json!(grid));
    let theirs = theirs.as_array().expect("a list");
    assert_eq!(theirs.len(), grid.len());
    for (input, theirs) in grid.iter().zip(theirs) {
        let s = Duration::from_secs;
        let timers = Timers::fitted(s(input[0]), s(input[1]), s(input[2]));
        let ours = [timers.ttl, timers.loop_wait, timers.retry_timeout].map(|time| time.as_secs());
        assert_eq!(&json!(ours), theirs, "{input:?}");
    }
}

/// A value for a variable, such as its key takes.
fn sample(name: &str) -> &'static str {
    match name.trim_start_matches("PATRONI_") {
        "LOG_LEVEL" | "LOG_TRACEBACK_LEVEL" => "DEBUG",
        "LOG_FORMAT" => "%(message)s",
        "LOG_LOGGERS" | "RESTAPI_HTTP_EXTRA_HEADERS" | "RESTAPI_HTTPS_EXTRA_HEADERS" => {
            "{A: b, C: d}"
        }
        "LOG_TYPE" => "plain",
        "LOG_STATIC_FIELDS" => "{app: demo}",
        "LOG_MODE" => "420",
        "RESTAPI_REQUEST_QUEUE_SIZE" => "64",
        "RESTAPI_SERVER_TOKENS" => "Minimal",
        "SUPERUSER_SSLNEGOTIATION" | "REPLICATION_SSLNEGOTIATION" | "REWIND_SSLNEGOTIATION" => {
            "direct"
        }
        "LOG_DEDUPLICATE_HEARTBEAT_LOGS" => "on",
        "LOG_MAX_QUEUE_SIZE" | "LOG_FILE_SIZE" | "LOG_FILE_NUM" => "77",
        "RESTAPI_ALLOWLIST" => "10.0.0.0/8,node9",
        "RESTAPI_ALLOWLIST_INCLUDE_MEMBERS" | "CTL_INSECURE" => "on",
        "RESTAPI_VERIFY_CLIENT" => "required",
        "RESTAPI_LISTEN"
        | "RESTAPI_CONNECT_ADDRESS"
        | "POSTGRESQL_LISTEN"
        | "POSTGRESQL_CONNECT_ADDRESS"
        | "POSTGRESQL_PROXY_ADDRESS" => "10.9.9.9:7777",
        "SUPERUSER_SSLMODE" | "REPLICATION_SSLMODE" | "REWIND_SSLMODE" => "require",
        "SUPERUSER_GSSENCMODE" | "REPLICATION_GSSENCMODE" | "REWIND_GSSENCMODE" => "disable",
        "SUPERUSER_CHANNEL_BINDING" | "REPLICATION_CHANNEL_BINDING" | "REWIND_CHANNEL_BINDING" => {
            "disable"
        }
        "ETCD_HOSTS" | "ETCD3_HOSTS" => "'e1:2379','e2:2379'",
        "ETCD_PORT" | "ETCD3_PORT" => "4001",
        "ETCD_URL" | "ETCD3_URL" | "ETCD_PROXY" | "ETCD3_PROXY" => "https://u:p@e9:2379",
        "ETCD_PROTOCOL" | "ETCD3_PROTOCOL" => "https",
        "ETCD_USE_PROXIES" | "ETCD3_USE_PROXIES" => "true",
        _ => "something",
    }
}

/// Each variable, read by us, is what the file would be that Patroni makes of it.
#[tokio::test]
async fn variables_set_what_they_set_for_patroni() {
    let names: Vec<String> =
        variables().into_iter().filter(|name| name != "PATRONI_CONFIGURATION").collect();
    let pairs: BTreeMap<&str, &str> = names.iter().map(|n| (n.as_str(), sample(n))).collect();
    let script = "
from patroni.config import Config
for name in list(os.environ):
    if name.startswith('PATRONI_'): del os.environ[name]
out = {}
for name, value in input.items():
    os.environ[name] = value
    out[name] = dict(Config._build_environment_configuration())
    os.environ.pop(name, None)
print(json.dumps(out))
";
    let theirs = python(&patroni_4().await, script, &json!(pairs));
    let base = "
scope: demo
name: node1
log: {type: json}
restapi: {listen: '10.0.0.1:8008', authentication: {username: u, password: p}, certfile: /c, cafile: /d}
ctl: {authentication: {username: u, password: p}}
etcd: {host: etcd, cert: /e}
postgresql:
  listen: 10.0.0.1:5432
  data_dir: /data
  authentication:
    superuser: {username: a, password: b}
    replication: {username: c, password: d}
    rewind: {username: e, password: f}
";
    let mut strange = Vec::new();
    for (name, value) in pairs {
        let theirs = theirs[name].as_object().expect("an answer for each");
        let nothing = |value: &Json| value.as_object().is_some_and(serde_json::Map::is_empty);
        if theirs.values().all(nothing) {
            strange.push(name);
            continue;
        }
        let (ours, found) = Config::load(base, &super::environment(&[(name, value)]));
        let theirs = Json::Object(theirs.clone()).to_string();
        let files = [("base.yml", base.as_bytes()), ("patroni.json", theirs.as_bytes())];
        let (same, other) = Config::load_files(&files, &Environment::new());
        assert_eq!(ours, same, "{name}: {theirs}\n{found}\n\n{other}");
        let without_effect = Config::load(base, &Environment::new()).0 == ours;
        let fine = !found.is_empty() || !without_effect;
        assert!(fine, "{name} has neither an effect nor a finding");
    }
    // What is our own, what Patroni documents and does not read, and what it reads in pairs only.
    let expected = [
        "PATRONI_ETCD3_PASSWORD",
        "PATRONI_ETCD3_USERNAME",
        "PATRONI_ETCD_PASSWORD",
        "PATRONI_ETCD_USERNAME",
        "PATRONI_RESTAPI_THREAD_POOL_SIZE",
        "PATRONI_WATCHDOG_DEVICE",
        "PATRONI_WATCHDOG_MODE",
        "PATRONI_WATCHDOG_SAFETY_MARGIN",
    ];
    assert_eq!(strange, expected);
}

#[tokio::test]
async fn the_seed_means_to_us_what_it_means_to_patroni() {
    let text = SEED.replace("${PATRONI_NAME}", "patroni-master");
    let script = "
from patroni.config import Config
import tempfile
with tempfile.NamedTemporaryFile('w', suffix='.yml') as f:
    f.write(input); f.flush()
    c = Config(f.name)
    c.set_dynamic_configuration(c['bootstrap']['dcs'])
    print(json.dumps({
        'scope': c['scope'], 'name': c['name'], 'namespace': c['namespace'],
        'parameters': {k: str(v) for k, v in c['postgresql']['parameters'].items()},
        'ttl': c['ttl'], 'loop_wait': c['loop_wait'], 'retry_timeout': c['retry_timeout'],
        'use_slots': c['postgresql']['use_slots'], 'use_pg_rewind': c['postgresql']['use_pg_rewind'],
        'dcs': c['bootstrap']['dcs'], 
    }))
";
    let theirs = python(&patroni_4().await, script, &json!(text));
    let (config, _) = Config::load(SEED, &seed_environment());
    let config = config.expect("the seed's file is fine");
    let (dynamic, _) = Dynamic::from_json(&config.bootstrap.dcs.0);
    let version = leaderpool_agent::config::ServerVersion::new(120_000).expect("a version");
    let effective = config.effective(&dynamic, version);
    assert_eq!(theirs["scope"], config.scope);
    assert_eq!(theirs["name"], config.name);
    assert_eq!(theirs["namespace"], format!("/{}/", config.namespace));
    assert_eq!(theirs["dcs"]["ttl"], config.bootstrap.dcs.0["ttl"]);
    assert_eq!(theirs["ttl"], dynamic.timers.ttl.as_secs());
    assert_eq!(theirs["loop_wait"], dynamic.timers.loop_wait.as_secs());
    assert_eq!(theirs["retry_timeout"], dynamic.timers.retry_timeout.as_secs());
    assert_eq!(theirs["use_slots"], effective.use_slots);
    assert_eq!(theirs["use_pg_rewind"], effective.use_pg_rewind);
    // On 12 nothing has another name, so that the settings can be laid side by side.
    for (name, value) in theirs["parameters"].as_object().expect("a map") {
        let ours = effective.files.parameters.get(name).map(String::as_str);
        match name.as_str() {
            // These come from elsewhere.
            "listen_addresses" | "port" | "cluster_name" => {}
            // Patroni drops it; to us it is what it says.
            "recovery_conf" => assert_eq!(ours, None),
            // Relative for Patroni.
            "unix_socket_directories" => assert_eq!(ours, Some("/var/lib/postgresql/data")),
            // Its older word.
            "wal_level" => assert_eq!(ours, Some("replica")),
            _ => assert_eq!(ours, value.as_str(), "{name}"),
        }
    }
}
