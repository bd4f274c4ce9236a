//! PostgreSQL itself as the measure: it starts with what is rendered for it, and has the settings that the table has.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leaderpool_agent::config::{
    Code, Config, Dynamic, Effective, Instance, Parameter, Parameters, Role, Server, ServerSetting,
    ServerVersion, render, same_value,
};
use leaderpool_testbed::ports::PortBlock;
use leaderpool_testbed::process::{Launch, RunAs};
use leaderpool_testbed::{Ports, postgres, wait};
use serde_json::json;
use tokio_postgres::{Client, NoTls};

use super::{SEED, seed_environment};

const MINUTE: Duration = Duration::from_secs(60);

/// The seed's configuration, for a server in `data` on `port`.
fn config(data: &Path, port: u16) -> Config {
    let text = SEED
        .replace("data_dir: /var/lib/postgresql/data", &format!("data_dir: {}", data.display()))
        .replace("listen: 0.0.0.0:5432", &format!("listen: 127.0.0.1:{port}"));
    let (config, diagnostics) = Config::load(&text, &seed_environment());
    config.unwrap_or_else(|| panic!("{diagnostics}"))
}

fn quoted(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\'', "''")
}

async fn facts(client: &Client) -> Result<BTreeMap<String, ServerSetting>> {
    let query = "SELECT lower(name), context, vartype, unit FROM pg_settings";
    let rows = client.query(query, &[]).await?;
    let fact = |row: &tokio_postgres::Row| {
        (row.get(0), ServerSetting { context: row.get(1), vartype: row.get(2), unit: row.get(3) })
    };
    Ok(rows.iter().map(fact).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_server_takes_what_is_rendered_for_it() -> Result<()> {
    let run_as = RunAs::detect()?;
    let dir = tempfile::Builder::new().prefix("agent-config-").tempdir_in("/tmp")?;
    run_as.own(dir.path())?;
    let ports = PortBlock::reserve(Ports::Free)?;
    let (data, port) = (dir.path().join("data"), ports.postgres(0));
    let config = config(&data, port);
    let bin = postgres::find_bin_dir()?;
    let log = |name: &str| dir.path().join(name);

    let initdb = Launch::new("initdb", bin.join("initdb"), dir.path(), log("initdb.log"), &run_as)
        .args(["--auth=trust", "--username=postgres", "--pgdata"])
        .arg(&data)
        .args(config.bootstrap.initdb.iter().map(|option| option.argument()));
    initdb.spawn()?.wait_success(MINUTE).await?;
    let version = std::fs::read_to_string(data.join("PG_VERSION"))?;
    let version = ServerVersion::parse(&version).context("PG_VERSION holds a version")?;
    let effective = config.effective(&config.bootstrap.dynamic, version);

    // Everything in the file, as it would be for a server that is started by hand.
    let mut conf = std::fs::read_to_string(data.join("postgresql.conf"))?;
    for (name, value) in effective.files.pairs() {
        conf += &format!("{name} = '{}'\n", quoted(value));
    }
    for (name, value) in effective.files.recovery.iter() {
        conf += &format!("{name} = '{}'\n", quoted(value));
    }
    std::fs::write(data.join("postgresql.conf"), conf)?;
    let hba = std::fs::read_to_string(data.join("pg_hba.conf"))?;
    let hba = hba + &config.bootstrap.pg_hba.join("\n") + "\n";
    std::fs::write(data.join("pg_hba.conf"), &hba)?;

    let server =
        Launch::new("postgres", bin.join("postgres"), dir.path(), log("server.log"), &run_as)
            .arg("-D")
            .arg(&data)
            .spawn()?;
    // Through the socket that `unix_socket_directories: '.'` became.
    let address = format!("host={} port={port} user=postgres dbname=postgres", data.display());
    let mut connected = None;
    wait::until("the server takes connections", MINUTE, Duration::from_millis(50), async || {
        ensure!(server.is_running(), "{}", std::fs::read_to_string(log("server.log"))?);
        connected = Some(tokio_postgres::connect(&address, NoTls).await?);
        Ok(())
    })
    .await?;
    let (client, connection) = connected.context("it is connected")?;
    let driver = tokio::spawn(connection);
    let checked = check(&client, &config, &effective, version, &data, &hba).await;
    drop(client);
    server.stop(MINUTE).await;
    // Its end is the server's.
    let _ = driver.await;
    checked
}

async fn check(
    client: &Client,
    config: &Config,
    effective: &Effective,
    version: ServerVersion,
    data: &Path,
    hba: &str,
) -> Result<()> {
    let facts = facts(client).await?;
    // Nothing in its files is wrong to it, and each setting is what was wanted.
    let wrong = client
        .query("SELECT name, error FROM pg_file_settings WHERE error IS NOT NULL", &[])
        .await?;
    assert!(wrong.is_empty(), "{wrong:?}");
    for (name, value) in effective.files.pairs() {
        let query = "SELECT setting FROM pg_settings WHERE lower(name) = $1";
        let row = client.query_one(query, &[&name]).await.with_context(|| name.to_owned())?;
        let setting: String = row.get(0);
        let fact = &facts[name];
        let same = same_value(&fact.vartype, fact.unit.as_deref(), value, &setting);
        assert!(same, "{name}: wanted {value}, it has {setting}");
    }

    // The lines of pg_hba.conf are good, and would not be as they were written.
    let errors = "SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL";
    let bad: i64 = client.query_one(errors, &[]).await?.get(0);
    assert_eq!(bad, 0);
    let as_written = format!("{hba}host replication replicator patroni-master/32 md5\n");
    std::fs::write(data.join("pg_hba.conf"), as_written)?;
    let bad: i64 = client.query_one(errors, &[]).await?.get(0);
    assert_eq!(bad, 1, "a host name with a mask is what PostgreSQL refuses");

    table(client, version).await?;
    changes(config, effective, version, &facts);
    Ok(())
}

/// The table of settings is this server's own.
async fn table(client: &Client, version: ServerVersion) -> Result<()> {
    let query = "SELECT lower(name), context, vartype, unit, min_val, max_val, enumvals, name \
                 FROM pg_settings WHERE name NOT LIKE '%.%'";
    let instance = Instance {
        scope: "demo".to_owned(),
        listen_addresses: "*".to_owned(),
        port: 5432,
        data_dir: "/data".into(),
        config_dir: "/data".into(),
        synchronous: false,
    };
    // These are not as others are: names with rules of their own, and least values of a cluster's own.
    let special = [
        "port",
        "wal_keep_size",
        "max_connections",
        "max_wal_senders",
        "max_worker_processes",
        "max_locks_per_transaction",
        "max_replication_slots",
    ];
    let mut faults = Vec::new();
    for row in client.query(query, &[]).await? {
        let (name, context, vartype): (String, String, String) =
            (row.get(0), row.get(1), row.get(2));
        let unit: Option<String> = row.get(3);
        let bounds: [Option<String>; 2] = [row.get(4), row.get(5)];
        let values: Option<Vec<String>> = row.get(6);
        let Some(usual) = ServerSetting::usual(&name, version) else {
            faults.push(format!("{name} is missing"));
            continue;
        };
        let class = |context: &str| match context {
            "internal" | "postmaster" => context.to_owned(),
            _ => "sighup".to_owned(),
        };
        if usual.context != class(&context) {
            faults.push(format!("{name}: {context}, not {}", usual.context));
        }
        if context == "internal" {
            continue;
        }
        if (&usual.vartype, &usual.unit) != (&vartype, &unit) {
            faults.push(format!("{name}: {vartype} in {unit:?}, not {usual:?}"));
        }
        if special.contains(&name.as_str()) || name.starts_with("recovery_") {
            continue;
        }
        for value in bounds.into_iter().flatten().chain(values.into_iter().flatten()) {
            let mut wanted = Parameters::default();
            wanted.insert(name.clone(), Parameter::new(value.as_str()));
            let rendered =
                render(&wanted, &Parameters::default(), &instance, &Server::from(version));
            let refused = rendered.diagnostics.of(Code::InvalidParameter).count() > 0;
            // A cluster cannot do with less than this.
            let minimal = name == "wal_level" && value == "minimal";
            if refused && !minimal {
                faults.push(format!("{name} = {value}: {}", rendered.diagnostics));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// What needs a restart is what this server says needs one.
fn changes(
    config: &Config,
    before: &Effective,
    version: ServerVersion,
    facts: &BTreeMap<String, ServerSetting>,
) {
    let mut json = config.bootstrap.dcs.0.clone();
    json["postgresql"]["parameters"]["max_connections"] = json!(200);
    json["postgresql"]["parameters"]["work_mem"] = json!("8MB");
    json["postgresql"]["parameters"]["archive_timeout"] = json!("30min");
    json["postgresql"]["parameters"]["archive_mode"] = json!(true);
    let (dynamic, _) = Dynamic::from_json(&json);
    let after = config.effective(&dynamic, version);
    let changes = before.changes(&after, Role::Primary, facts);
    let names = |list: &[leaderpool_agent::config::ParameterChange]| -> Vec<String> {
        list.iter().map(|change| change.name.clone()).collect()
    };
    assert_eq!(names(&changes.restart), ["max_connections"]);
    assert_eq!(names(&changes.reload), ["work_mem"]);
    assert!(!changes.timers && !changes.tags && !changes.other && !changes.pg_hba);
    assert!(before.changes(before, Role::Replica, facts).is_empty());
}
