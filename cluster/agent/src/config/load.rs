//! From files and variables to a [`Config`].

use std::collections::BTreeSet;
use std::sync::Arc;

use super::bootstrap::{self, Bootstrap};
use super::diagnostics::{Code, Diagnostic, Diagnostics, Origin, Severity};
use super::dynamic;
use super::environment::{self, Environment};
use super::etcd::{self, Etcd};
use super::expand::expand;
use super::log::{self, Log};
use super::postgresql::{self, Postgresql};
use super::restapi::{self, Ctl, RestApi};
use super::section::{At, Reading, Section, Verdict};
use super::tags::{self, Tags};
use super::watchdog::{self, Watchdog};
use super::yaml::{self, Data, Map, Node};

/// What one member is configured with: its `patroni.yml` and its environment.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The name of the cluster.
    pub scope: String,
    /// The path above it in etcd, without slashes at its ends. Default: `service`.
    pub namespace: String,
    /// The name of this member, different from those of all others.
    pub name: String,
    /// `log`.
    pub log: Log,
    /// `restapi`.
    pub restapi: RestApi,
    /// `ctl`.
    pub ctl: Ctl,
    /// `etcd3`, or `etcd`.
    pub etcd: Etcd,
    /// `bootstrap`.
    pub bootstrap: Bootstrap,
    /// `postgresql`.
    pub postgresql: Postgresql,
    /// `watchdog`.
    pub watchdog: Watchdog,
    /// `tags`.
    pub tags: Tags,
}

/// The name that Patroni writes into `synchronous_standby_names` where it has nobody to name.
const PLACEHOLDER: &str = "__patroni_strict_sync_replica_placeholder__";

impl Config {
    /// Reads the text of one file, with the variables of `environment` over it.
    ///
    /// There is a configuration exactly where no finding is an error.
    #[must_use]
    pub fn load(text: &str, environment: &Environment) -> (Option<Self>, Diagnostics) {
        Self::load_files(&[("patroni.yml", text.as_bytes())], environment)
    }

    /// Reads files by their names and bytes, each over the ones before it: Patroni takes a directory of `*.yml` in
    /// the order of their names.
    #[must_use]
    pub fn load_files(
        files: &[(&str, &[u8])],
        environment: &Environment,
    ) -> (Option<Self>, Diagnostics) {
        let mut reading = Reading::default();
        let config = load_files(files, environment, &mut reading);
        finish(config, reading)
    }

    /// Reads the environment alone: the YAML in `PATRONI_CONFIGURATION`, or else all the other variables.
    #[must_use]
    pub fn from_environment(environment: &Environment) -> (Option<Self>, Diagnostics) {
        let whole = environment.get(environment::WHOLE).filter(|text| !text.is_empty());
        if let Some(text) = whole {
            // No other variable is considered then, but for `${NAME}`.
            let others = environment
                .iter()
                .filter(|(name, _)| !name.starts_with("PATRONI_"))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            let name = format!("${}", environment::WHOLE);
            let mut reading = Reading::default();
            let config = load_text(&name, text, &others, environment, &mut reading);
            return finish(config, reading);
        }
        let mut reading = Reading::default();
        let map = environment::overlay(environment, &mut reading.diagnostics);
        let root = Node::map(map, &Origin::Default);
        let config = read(&root, environment, &mut reading);
        finish(config, reading)
    }
}

fn finish(config: Option<Config>, reading: Reading) -> (Option<Config>, Diagnostics) {
    let mut diagnostics = reading.diagnostics;
    diagnostics.sort();
    let config = config.filter(|_| !diagnostics.has_errors());
    (config, diagnostics)
}

fn load_files(
    files: &[(&str, &[u8])],
    environment: &Environment,
    reading: &mut Reading,
) -> Option<Config> {
    let mut root: Option<Map> = None;
    let mut first = Origin::Default;
    for (name, bytes) in files {
        let text = text(name, bytes, &mut reading.diagnostics)?;
        let map = document(name, text, environment, &mut reading.diagnostics)?;
        match &mut root {
            Some(root) => root.overlay(map),
            None => {
                first = Origin::File { file: Arc::from(*name), line: 1, column: 1 };
                root = Some(map);
            }
        }
    }
    let Some(mut root) = root else {
        let at = At { path: String::new(), origin: Origin::Default };
        let help = "name a file, or a directory with files that end in .yml or .yaml";
        reading.error(Code::EmptyFile, &at, "there is no file to read", help);
        return None;
    };
    root.overlay(environment::overlay(environment, &mut reading.diagnostics));
    read(&Node::map(root, &first), environment, reading)
}

/// As one file, with the variables of `over` laid over it and those of `environment` for `${NAME}`.
fn load_text(
    name: &str,
    text: &str,
    over: &Environment,
    environment: &Environment,
    reading: &mut Reading,
) -> Option<Config> {
    let mut map = document(name, text, environment, &mut reading.diagnostics)?;
    map.overlay(environment::overlay(over, &mut reading.diagnostics));
    let origin = Origin::File { file: Arc::from(name), line: 1, column: 1 };
    read(&Node::map(map, &origin), environment, reading)
}

fn text<'a>(name: &str, bytes: &'a [u8], diagnostics: &mut Diagnostics) -> Option<&'a str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Some(text.strip_prefix('\u{feff}').unwrap_or(text)),
        Err(error) => {
            let good = &bytes[..error.valid_up_to()];
            let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
            let start = good.iter().rposition(|byte| *byte == b'\n').map_or(0, |place| place + 1);
            let column = String::from_utf8_lossy(&good[start..]).chars().count() + 1;
            let origin = Origin::File { file: Arc::from(name), line, column };
            let message = "from here on it is not UTF-8";
            diagnostics.push(
                Diagnostic::new(Severity::Error, Code::NotText, &origin, "", message)
                    .help("save the file as UTF-8: `iconv -f latin1 -t utf-8`"),
            );
            None
        }
    }
}

fn document(
    name: &str,
    text: &str,
    environment: &Environment,
    diagnostics: &mut Diagnostics,
) -> Option<Map> {
    let mut root = yaml::parse(&Arc::from(name), text, diagnostics)?;
    expand(&mut root, "", environment, diagnostics);
    let kind = root.kind();
    match root.data {
        Data::Map(map) => Some(map),
        _ => {
            let message = format!("a configuration is made of `key: value`, and this is {kind}");
            diagnostics.push(
                Diagnostic::new(Severity::Error, Code::WrongType, &root.origin, "", message)
                    .help("begin with `scope:` and `name:`"),
            );
            None
        }
    }
}

fn read(root: &Node, environment: &Environment, reading: &mut Reading) -> Option<Config> {
    let at = At { path: String::new(), origin: root.origin.clone() };
    let mut section = Section::new(Some(root), at, reading);
    let scope = section
        .required("scope", "the name of the cluster, the same on all members", reading)
        .filter(|scope| plain_name(scope, "scope", &section, reading));
    let namespace = section
        .text("namespace", reading)
        .map(|text| text.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/"))
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| "service".to_owned());
    let name = name(&mut section, reading);
    for key in ["thread_pool_size", "thread_stack_size"] {
        if let Some(found) = section.find(key, reading) {
            restapi::thread_pool(&found, reading);
        }
    }
    let log = log::read(section.section("log", reading), reading);
    let restapi = restapi::read(section.section("restapi", reading), reading);
    let ctl = restapi::read_ctl(section.section("ctl", reading), reading);
    let etcd = store(&mut section, reading);
    let bootstrap = bootstrap::read(section.section("bootstrap", reading), reading);
    let server = section.section("postgresql", reading);
    let named = section.has("name");
    let postgresql = postgresql::read(server, named, environment, reading);
    let watchdog = watchdog::read(section.section("watchdog", reading), reading);
    let tags = tags::read(section.section("tags", reading), reading);
    section.finish_with(reading, |key, _| {
        if dynamic::KEYS.contains(&key) {
            Verdict::Because {
                severity: Severity::Warning,
                code: Code::WrongPlace,
                message: "a key of the dynamic configuration".to_owned(),
                done: "it has no effect here".to_owned(),
                help:
                    "set it with `leaderpoolctl edit-config`; for a new cluster, in `bootstrap.dcs`"
                        .to_owned(),
            }
        } else {
            Verdict::Unknown
        }
    });
    Some(Config {
        scope: scope?,
        namespace,
        name: name?,
        log,
        restapi: restapi?,
        ctl,
        etcd: etcd?,
        bootstrap,
        postgresql: postgresql?,
        watchdog,
        tags,
    })
}

/// A name that can be part of a key in etcd.
fn plain_name(name: &str, key: &str, section: &Section<'_>, reading: &mut Reading) -> bool {
    let fine = !name.contains('/') && !name.chars().any(char::is_control);
    if !fine {
        let message = "it is part of a key in etcd, where `/` parts names";
        reading.error(Code::InvalidValue, &section.place(key), message, "leave the `/` out");
    }
    fine
}

fn name(section: &mut Section<'_>, reading: &mut Reading) -> Option<String> {
    // Very old files have it under `postgresql`.
    let old = !section.has("name") && {
        let server = section.find("postgresql", reading);
        server.is_some_and(
            |found| matches!(&found.node.data, Data::Map(map) if map.get("name").is_some()),
        )
    };
    let name = if old {
        let mut server = section.section("postgresql", reading);
        let name = server.text("name", reading);
        let message = "an older place for `name`, which is at the top now";
        reading.notice(Code::OldName, &server.place("name"), message, "read from here");
        name
    } else {
        section.required("name", "the name of this member, different from all others", reading)
    }?;
    if name == PLACEHOLDER {
        let message = "this name stands for nobody in synchronous mode";
        reading.error(Code::InvalidValue, &section.place("name"), message, "choose another");
        return None;
    }
    plain_name(&name, "name", section, reading).then_some(name)
}

/// etcd; everything else that Patroni can keep its keys in is answered here.
fn store(section: &mut Section<'_>, reading: &mut Reading) -> Option<Etcd> {
    let v3 = section.find("etcd3", reading);
    let v2 = section.find("etcd", reading);
    let found = v3.is_some() || v2.is_some();
    for other in ["consul", "zookeeper", "exhibitor", "kubernetes", "raft"] {
        let Some(store) = section.find(other, reading) else { continue };
        if found {
            let message = "the agent keeps its keys in etcd only";
            reading.warning(Code::NotSupported, &store.at, message, "ignored: etcd is used");
        } else {
            let help = "give the cluster an etcd and an `etcd3` section; Patroni and its keys move there by \
                        a restart of all members under `pause`";
            let message = "the agent keeps its keys in etcd only";
            reading.error(Code::NotSupported, &store.at, message, help);
        }
    }
    for extension in ["citus", "mpp"] {
        if let Some(found) = section.find(extension, reading) {
            let message = "the agent does not manage Citus, whose keys lie elsewhere in etcd";
            reading.error(Code::NotSupported, &found.at, message, "keep Patroni for this cluster");
        }
    }
    match (v3, v2) {
        (Some(v3), v2) => {
            if let Some(v2) = v2 {
                let message = "`etcd3` is given too";
                reading.warning(Code::EtcdAsV3, &v2.at, message, "`etcd3` counts");
            }
            etcd::read(Section::named(&v3, "etcd3", reading), reading)
        }
        (None, Some(v2)) => {
            let message =
                "for Patroni this section means etcd's API v2, which etcd 3.6 no longer has";
            let done = "taken as `etcd3`: keys that Patroni wrote by v2 are not seen";
            reading.notice(Code::EtcdAsV3, &v2.at, message, done);
            etcd::read(Section::named(&v2, "etcd3", reading), reading)
        }
        (None, None) => {
            let help = "for example `etcd3: {hosts: [etcd1:2379, etcd2:2379, etcd3:2379]}`";
            let others = ["consul", "zookeeper", "exhibitor", "kubernetes", "raft"];
            if !others.iter().any(|other| section.has(other)) {
                reading.error(Code::Missing, &section.place("etcd3"), "this must be given", help);
            }
            None
        }
    }
}

/// Every key that is read, `*` standing for a name of the operator's choice and `dynamic` for the dynamic
/// configuration: what the documentation's table has to have.
#[must_use]
pub fn known_keys() -> BTreeSet<String> {
    // Sections with names of the operator's choice are only read where they are written.
    let text = "
etcd3: {host: a}
bootstrap:
  method: m
  m: {command: c}
  users: {u: {password: p}}
  dcs: {slots: {s: {type: physical}}, ignore_slots: [{name: s}]}
postgresql:
  create_replica_methods: [m]
  m: {command: c}
";
    let mut reading = Reading::default();
    let _ = load_text("", text, &Environment::new(), &Environment::new(), &mut reading);
    reading.asked
}
