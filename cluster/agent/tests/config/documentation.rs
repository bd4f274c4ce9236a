//! `docs/agent/configuration.md` against the code: each row, with its example.

use std::collections::{BTreeMap, BTreeSet};

use leaderpool_agent::config::{
    CLUSTER_WIDE, Code, Config, Diagnostics, Environment, Severity, known_keys, variables,
};

const TEXT: &str = include_str!("../../../../docs/agent/configuration.md");

/// What the examples are laid over. It has what some keys need beside them to matter.
const BASE: &str = "
scope: demo
name: node1
log: {type: json}
restapi:
  listen: 10.0.0.1:8008
  connect_address: node1:8008
  authentication: {username: u, password: p}
  certfile: /tls/api.crt
  cafile: /tls/ca.crt
ctl:
  authentication: {username: a, password: b}
etcd3: {host: etcd, cert: /tls/etcd.crt}
bootstrap:
  method: m
  m: {command: make}
  users: {m: {password: x}}
  dcs:
    slots: {m: {type: logical, database: a, plugin: b}}
postgresql:
  listen: 10.0.0.1:5432
  connect_address: node1:5432
  data_dir: /data
  m: {command: copy}
  authentication:
    superuser: {username: postgres, password: a}
    replication: {username: replicator, password: b}
    rewind: {username: rewind, password: c}
";

struct Row {
    section: String,
    key: String,
    cells: Vec<String>,
}

/// The rows of all tables, each under its heading.
fn rows() -> Vec<Row> {
    let mut section = String::new();
    let mut rows = Vec::new();
    for line in TEXT.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading.to_owned();
        }
        let Some(inner) = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) else {
            continue;
        };
        let cells: Vec<String> = inner.split('|').map(|cell| cell.trim().to_owned()).collect();
        let Some(key) = cells[0].strip_prefix('`').and_then(|key| key.strip_suffix('`')) else {
            continue;
        };
        rows.push(Row { section: section.clone(), key: key.to_owned(), cells: cells.clone() });
    }
    rows
}

/// Rows about keys, by the whole path of the key.
fn keys() -> BTreeMap<String, Row> {
    rows()
        .into_iter()
        .filter_map(|row| match row.section.as_str() {
            "patroni.yml" => Some((row.key.clone(), row)),
            "The dynamic configuration" => Some((format!("dynamic.{}", row.key), row)),
            _ => None,
        })
        .collect()
}

fn load(example: Option<&str>) -> (Option<Config>, Diagnostics) {
    let mut files = vec![("base.yml", BASE.as_bytes())];
    files.extend(example.map(|example| ("example.yml", example.as_bytes())));
    Config::load_files(&files, &Environment::new())
}

/// `a.b.c` and a value as one line of YAML.
fn nested(path: &str, value: &str) -> String {
    let parts: Vec<&str> = path.split('.').collect();
    let mut text = value.to_owned();
    for (index, part) in parts.iter().enumerate().rev() {
        text = if index == 0 { format!("{part}: {text}") } else { format!("{{{part}: {text}}}") };
    }
    text
}

#[test]
fn each_row_has_the_effect_it_says() {
    let (base, found) = load(None);
    let base = base.unwrap_or_else(|| panic!("{found}"));
    let mut faults = Vec::new();
    let keys = keys();
    assert!(keys.len() > 200, "the tables were not found");
    for (key, row) in &keys {
        let (example, effect) = (row.cells[1].trim_matches('`'), row.cells[2].as_str());
        let mut path = key.replace("dynamic.", "bootstrap.dcs.").replace('*', "m");
        let mut example = example.to_owned();
        // The items of a list have no names.
        if let Some(property) = key.strip_prefix("dynamic.ignore_slots.*.") {
            path = "bootstrap.dcs.ignore_slots".to_owned();
            example = format!("[{{{property}: {example}}}]");
        }
        let mut text = nested(&path, &example);
        // An older name counts where the newer one is not written.
        if key.starts_with("dynamic.permanent_") {
            text = text.replace("{dcs: {", "{dcs: {slots: null, ");
        }
        let (config, diagnostics) = load(Some(&text));
        let at: Vec<_> = diagnostics.iter().filter(|d| d.path == path).collect();
        let (word, code) = match effect.split_once(": ") {
            Some((word, code)) => (word, Some(code)),
            None => (effect, None),
        };
        let codes: BTreeSet<&str> = at.iter().map(|d| d.code.as_str()).collect();
        let mut fault =
            |what: String| faults.push(format!("{key} ({effect}): {what}\n{diagnostics}"));
        match code {
            Some(code) if !codes.contains(code) => fault(format!("says {codes:?}")),
            None if !codes.is_empty() => fault(format!("says {codes:?}")),
            _ => {}
        }
        // `bootstrap.dcs` is also kept as it was written.
        let same = |config: &Config| match key.starts_with("dynamic.") {
            true => config.bootstrap.dynamic == base.bootstrap.dynamic,
            false => *config == base,
        };
        match (word, &config) {
            ("used", Some(config)) if !same(config) => {}
            ("ignored", Some(config)) if same(config) => {}
            ("refused", None) if at.iter().any(|d| d.severity == Severity::Error) => {}
            (_, None) => fault("there is no configuration".to_owned()),
            (_, Some(_)) => fault("the result is not that".to_owned()),
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
}

#[test]
fn every_key_that_is_read_has_its_row() {
    let rows = keys();
    let mut missing = Vec::new();
    for key in known_keys() {
        // Sections have rows for what is in them.
        let inside = format!("{key}.");
        if rows.contains_key(&key) || rows.keys().any(|row| row.starts_with(&inside)) {
            continue;
        }
        // The three users have the same keys.
        let same = key.replace(".replication.", ".superuser.").replace(".rewind.", ".superuser.");
        // What may stand in both places is marked in the file's table.
        let local = key.strip_prefix("dynamic.").unwrap_or(&key);
        let shared = rows.get(local).is_some_and(|row| row.cells[3].contains('★'));
        let section = rows.keys().any(|row| row.starts_with(&format!("{local}.")));
        if !(rows.contains_key(&same) || shared || (local != key && section)) {
            missing.push(key);
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn what_is_marked_as_shared_is_read_in_both_places() {
    let known = known_keys();
    for (key, row) in keys() {
        if row.cells[3].contains('★') && !key.contains('*') {
            let key = format!("dynamic.{key}");
            let parent = key.rsplit_once('.').map_or("", |(parent, _)| parent);
            assert!(known.contains(&key) || known.contains(parent), "{key}");
        }
    }
}

#[test]
fn every_variable_has_its_row() {
    let mut written = BTreeSet::new();
    for row in rows().into_iter().filter(|row| row.section == "Variables") {
        match row.key.split_once('{') {
            Some((start, rest)) => {
                for end in rest.trim_end_matches('}').split(',') {
                    assert!(written.insert(format!("{start}{end}")), "{start}{end} twice");
                }
            }
            None => assert!(written.insert(row.key)),
        }
    }
    assert_eq!(written, variables().into_iter().collect::<BTreeSet<_>>());
}

#[test]
fn every_code_has_its_row_and_is_named_nowhere_else() {
    let written: Vec<String> =
        rows().into_iter().filter(|row| row.section == "Findings").map(|row| row.key).collect();
    let known: Vec<String> = Code::ALL.iter().map(|code| code.as_str().to_owned()).collect();
    assert_eq!(written, known);
}

#[test]
fn the_defaults_of_cluster_wide_settings_are_right() {
    let written: BTreeMap<String, String> = rows()
        .into_iter()
        .filter(|row| row.section == "Settings of PostgreSQL")
        .map(|row| (row.key, row.cells[1].clone()))
        .collect();
    let known: BTreeMap<String, String> = CLUSTER_WIDE
        .iter()
        .filter_map(|(name, default)| Some(((*name).to_owned(), (*default)?.to_owned())))
        .collect();
    assert_eq!(written, known);
}
