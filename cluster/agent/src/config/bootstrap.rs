//! `bootstrap`: how a new cluster is made. Only read where there is none yet.

use std::fmt;

use serde_json::Value as Json;

use super::Secret;
use super::command::Command;
use super::diagnostics::{Code, Diagnostic, Severity};
use super::dynamic::{self, Dynamic};
use super::hba::{self, Lines};
use super::options::{self, ToolOption};
use super::parameters::Settings;
use super::section::{Found, Reading, Section, Verdict};
use super::yaml::{Data, Resolved};

/// How a new cluster is made.
#[derive(Debug, Clone, PartialEq)]
pub struct Bootstrap {
    /// What goes into `/config`, as it was written.
    pub dcs: Document,
    /// The same, understood.
    pub dynamic: Dynamic,
    /// How the data directory comes about.
    pub method: BootstrapMethod,
    /// Options for `initdb`. User name and password are not among them.
    pub initdb: Vec<ToolOption>,
    /// Lines to add to `pg_hba.conf` where the configuration has no other `pg_hba`.
    pub pg_hba: Lines,
    /// Users to make in the new cluster.
    pub users: Vec<BootstrapUser>,
    /// Run in the new cluster, with a connection string as its last argument; if it fails, so does the bootstrap.
    pub post_bootstrap: Option<Command>,
}

/// A JSON object that is only handed on. `Debug` does not show what is in it.
#[derive(Clone, PartialEq)]
pub struct Document(pub Json);

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{…}")
    }
}

/// How the first data directory comes about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootstrapMethod {
    /// By `initdb`.
    Initdb,
    /// By a program, for example one that restores a backup.
    Custom(CustomBootstrap),
    /// By a method of this name, which has no section. Making an empty cluster in place of what was asked for
    /// would be wrong; a cluster that exists is not concerned.
    Undefined(String),
}

/// A program that makes the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustomBootstrap {
    /// Its name in the configuration.
    pub name: String,
    /// The program.
    pub command: Command,
    /// Whether `--scope` and `--datadir` are left out.
    pub no_params: bool,
    /// Whether its recovery settings are kept as it made them.
    pub keep_existing_recovery_conf: bool,
    /// Recovery settings for the first start.
    pub recovery_conf: Settings,
    /// More arguments: `--name=value`.
    pub arguments: Vec<(String, Secret)>,
}

/// A user to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootstrapUser {
    /// Its name.
    pub name: String,
    /// Its password.
    pub password: Option<Secret>,
    /// `CREATEROLE`, …; `LOGIN` is implied unless `NOLOGIN` is given.
    pub options: Vec<String>,
}

const INITDB: [&str; 5] = ["pgdata", "nosync", "pwfile", "sync-only", "version"];

/// The options of `CREATE ROLE` that are one word.
const ROLE_OPTIONS: [&str; 14] = [
    "SUPERUSER",
    "NOSUPERUSER",
    "CREATEDB",
    "NOCREATEDB",
    "CREATEROLE",
    "NOCREATEROLE",
    "INHERIT",
    "NOINHERIT",
    "LOGIN",
    "NOLOGIN",
    "REPLICATION",
    "NOREPLICATION",
    "BYPASSRLS",
    "NOBYPASSRLS",
];

pub(super) fn read(mut section: Section<'_>, reading: &mut Reading) -> Bootstrap {
    let dcs = section.find("dcs", reading);
    let at = section.place("dcs");
    let dynamic = dynamic::read(Section::new(dcs.as_ref().map(|d| d.node), at, reading), reading);
    let dcs = dcs
        .map(|found| found.node.to_json())
        .filter(Json::is_object)
        .unwrap_or_else(|| Json::Object(serde_json::Map::new()));
    let initdb = section
        .find("initdb", reading)
        .map(|found| options::read(&found, "initdb", &INITDB, reading))
        .unwrap_or_default();
    let pg_hba = section
        .find("pg_hba", reading)
        .map(|found| hba::lines(&found, reading))
        .unwrap_or_default();
    let users = users(&mut section, reading);
    let post = section.find_renamed("post_bootstrap", &["post_init"], reading);
    let post_bootstrap = post.and_then(|found| found.command(reading));
    let named = section.text("method", reading).unwrap_or_else(|| "initdb".to_owned());
    let mut method = None;
    for (name, found) in section.rest() {
        if !matches!(found.node.data, Data::Map(_)) {
            continue;
        }
        if name == named {
            method = custom(name, &found, reading);
        } else if is_method(&found) {
            let message =
                format!("a method that `bootstrap.method` does not name: it says `{named}`");
            reading.notice(Code::UnusedMethod, &found.at, message, "not used");
        }
    }
    let method = match method {
        _ if named == "initdb" => BootstrapMethod::Initdb,
        Some(method) => BootstrapMethod::Custom(method),
        None => {
            let at = section.place("method");
            let message = format!("the method `{named}` has no section with a `command`");
            reading.push(
                Diagnostic::new(
                    Severity::Warning,
                    Code::UndefinedMethod,
                    &at.origin,
                    at.path,
                    message,
                )
                .done("a new cluster will not be made; Patroni would make an empty one with initdb")
                .help(format!("write `{named}: {{command: …}}` beside it, or `method: initdb`")),
            );
            BootstrapMethod::Undefined(named.clone())
        }
    };
    section.finish_with(reading, |key, found| {
        if key == named || is_method(found) {
            Verdict::Fine
        } else if dynamic::KEYS.contains(&key) {
            Verdict::Because {
                severity: Severity::Warning,
                code: Code::WrongPlace,
                message: "a key of the dynamic configuration".to_owned(),
                done: "it has no effect here".to_owned(),
                help: "move it into `bootstrap.dcs`".to_owned(),
            }
        } else {
            Verdict::Unknown
        }
    });
    Bootstrap { dcs: Document(dcs), dynamic, method, initdb, pg_hba, users, post_bootstrap }
}

fn is_method(found: &Found<'_>) -> bool {
    matches!(&found.node.data, Data::Map(map) if map.get("command").is_some())
}

fn custom(name: &str, found: &Found<'_>, reading: &mut Reading) -> Option<CustomBootstrap> {
    let mut section = Section::named(found, "bootstrap.*", reading);
    let command = section.find("command", reading).and_then(|found| found.command(reading));
    let recovery = section.section("recovery_conf", reading);
    let recovery_conf = texts(&recovery, reading);
    let no_params = section.flag("no_params", reading).unwrap_or(false);
    let keep = section.flag("keep_existing_recovery_conf", reading).unwrap_or(false);
    let arguments = arguments(&section, &["scope", "datadir"], reading);
    Some(CustomBootstrap {
        name: name.to_owned(),
        command: command?,
        no_params,
        keep_existing_recovery_conf: keep,
        recovery_conf,
        arguments,
    })
}

/// Every key as text: what is handed on to PostgreSQL. Booleans become `on` and `off`.
pub(super) fn texts(section: &Section<'_>, reading: &mut Reading) -> Settings {
    section
        .rest()
        .into_iter()
        .filter(|(_, found)| !found.node.is_null())
        .filter_map(|(name, found)| {
            let text = match &found.node.data {
                Data::Scalar(scalar) => match scalar.resolve() {
                    Resolved::Bool(true) => "on".to_owned(),
                    Resolved::Bool(false) => "off".to_owned(),
                    _ => scalar.as_str().to_owned(),
                },
                _ => found.text(reading)?,
            };
            Some((name.to_owned(), text))
        })
        .collect()
}

/// What is left of a method's section: `--name=value` for its program, but for the names in `reserved`.
pub(super) fn arguments(
    section: &Section<'_>,
    reserved: &[&str],
    reading: &mut Reading,
) -> Vec<(String, Secret)> {
    let mut arguments = Vec::new();
    for (name, found) in section.rest() {
        if reserved.contains(&name) {
            let message = format!("`--{name}` is the agent's to say");
            reading.warning(Code::ReservedOption, &found.at, message, "left out");
        } else if let Some(text) = found.text(reading) {
            arguments.push((name.to_owned(), Secret::from(text)));
        }
    }
    arguments
}

fn users(section: &mut Section<'_>, reading: &mut Reading) -> Vec<BootstrapUser> {
    let users = section.section("users", reading);
    if users.is_written() {
        let message = "Patroni 4 no longer makes these users";
        let done = "they are made, as by Patroni 3";
        reading.notice(Code::OldName, users.at(), message, done);
    }
    let mut list = Vec::new();
    for (name, found) in users.rest() {
        let mut user = Section::named(&found, "bootstrap.users.*", reading);
        let password = user.secret("password", reading);
        let written = user.texts("options", true, reading).unwrap_or_default();
        let options_at = user.place("options");
        user.finish(reading);
        let mut options = Vec::new();
        for option in written {
            let upper = option.trim().to_ascii_uppercase();
            let limit =
                upper.strip_prefix("CONNECTION LIMIT ").is_some_and(|n| n.parse::<i32>().is_ok());
            if limit || ROLE_OPTIONS.contains(&upper.as_str()) {
                options.push(upper);
            } else {
                let message = format!("`{option}` is not an option of CREATE ROLE");
                reading.warning(Code::InvalidValue, &options_at, message, "left out");
            }
        }
        list.push(BootstrapUser { name: name.to_owned(), password, options });
    }
    list
}
