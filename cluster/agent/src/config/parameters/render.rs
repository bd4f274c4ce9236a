//! From what is wanted to what a server takes.

use std::path::{Path, PathBuf};

use super::catalog::{self, Kind, Lookup, lookup};
use super::rules::{self, CLUSTER_WIDE, Forbidden, KEEP_SEGMENTS, SEGMENT_MB};
use super::value::{Accepted, accept};
use super::{Parameter, Parameters, Server, Settings, units};
use crate::config::diagnostics::{Code, Diagnostic, Diagnostics, Severity};
use crate::config::suggest::nearest;

/// What settings depend on besides the server's version.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// `cluster_name`.
    pub scope: String,
    /// `listen_addresses`.
    pub listen_addresses: String,
    /// `port`.
    pub port: u16,
    /// The data directory.
    pub data_dir: PathBuf,
    /// Where `pg_hba.conf` and its like are.
    pub config_dir: PathBuf,
    /// Whether the agent sets `synchronous_standby_names`.
    pub synchronous: bool,
}

/// What a server is to be started with.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rendered {
    /// Settings, by name and in its order.
    pub parameters: Settings,
    /// Settings for a server that follows or recovers: for `recovery.conf` before 12, beside the others from
    /// then on. `primary_conninfo` and its like are not among them; they depend on whom it follows.
    pub recovery: Settings,
    /// What could not be taken as written.
    pub diagnostics: Diagnostics,
}

/// Renders `wanted` and `recovery_conf` for `server`.
#[must_use]
pub fn render(
    wanted: &Parameters,
    recovery_conf: &Parameters,
    instance: &Instance,
    server: &Server,
) -> Rendered {
    let mut work = Work { instance, server, out: Rendered::default() };
    for (name, parameter) in recovery_conf.iter() {
        work.recovery(name, parameter);
    }
    let keep = work.wal_keep(wanted);
    for (name, parameter) in wanted.iter() {
        if name == "wal_keep_segments" || name == "wal_keep_size" {
            continue;
        }
        work.parameter(name, parameter);
    }
    let parameters = &mut work.out.parameters;
    parameters.insert(keep.0.to_owned(), keep.1);
    for (name, default) in CLUSTER_WIDE {
        if let Some(default) = default {
            parameters.entry(name.to_owned()).or_insert_with(|| default.to_owned());
        }
    }
    parameters.insert("cluster_name".to_owned(), instance.scope.clone());
    parameters.insert("listen_addresses".to_owned(), instance.listen_addresses.clone());
    parameters.insert("port".to_owned(), instance.port.to_string());
    work.out.diagnostics.sort();
    work.out
}

const RECOVERY: [&str; 16] = [
    "archive_cleanup_command",
    "pause_at_recovery_target",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
    "restore_command",
    "trigger_file",
];

fn is_recovery(name: &str) -> bool {
    name == "standby_mode" || name == "recovery_target_timeline" || RECOVERY.contains(&name)
}

struct Work<'a> {
    instance: &'a Instance,
    server: &'a Server,
    out: Rendered,
}

impl Work<'_> {
    fn major(&self) -> u32 {
        self.server.version.major()
    }

    fn say(&mut self, severity: Severity, code: Code, parameter: &Parameter, what: Say) {
        let mut diagnostic =
            Diagnostic::new(severity, code, &parameter.origin, &parameter.path, what.message);
        diagnostic.done = Some(what.done);
        diagnostic.help = what.help;
        self.out.diagnostics.push(diagnostic);
    }

    fn warn(&mut self, code: Code, parameter: &Parameter, message: String, done: &str) {
        let what = Say { message, done: done.to_owned(), help: None };
        self.say(Severity::Warning, code, parameter, what);
    }

    /// One setting that is not for recovery, under whatever name this version has for it.
    fn parameter(&mut self, name: &str, parameter: &Parameter) {
        if is_recovery(name) {
            let message = format!("`{name}` is for recovery: its place is `recovery_conf`");
            let what = Say { message, done: "read as if it were there".to_owned(), help: None };
            self.say(Severity::Notice, Code::RecoveryParameter, parameter, what);
            self.recovery(name, parameter);
            return;
        }
        match rules::forbidden(name) {
            Some(Forbidden::Managed(from)) => {
                let message = format!("the agent sets `{name}`: {from}");
                self.warn(Code::ManagedParameter, parameter, message, "left out");
                return;
            }
            Some(Forbidden::Refused(why)) => {
                let message = format!("`{name}` is refused: {why}");
                self.warn(Code::RefusedParameter, parameter, message, "left out");
                return;
            }
            None => {}
        }
        if name == "synchronous_standby_names" && self.instance.synchronous {
            let message = "in synchronous mode the agent sets it".to_owned();
            self.warn(Code::ManagedParameter, parameter, message, "left out");
            return;
        }
        let current = match rules::renamed(name, self.major()) {
            Some(current) => {
                let message =
                    format!("in PostgreSQL {} `{name}` is called `{current}`", self.major());
                let what = Say { message, done: "written by that name".to_owned(), help: None };
                self.say(Severity::Notice, Code::RenamedParameter, parameter, what);
                current
            }
            None => name,
        };
        let Some(text) = self.value(current, parameter) else { return };
        if let Some((default, why)) = rules::cluster_wide_fault(current, &text) {
            let done = format!("`{default}`, as Patroni has it");
            self.warn(Code::InvalidParameter, parameter, why, &done);
            self.out.parameters.insert(current.to_owned(), default.to_owned());
            return;
        }
        if let Some(risk) = rules::risk(current, &text) {
            self.warn(Code::RiskyParameter, parameter, format!("`{text}`: {risk}"), "kept");
        }
        let text = self.translated(current, text, parameter);
        self.out.parameters.insert(current.to_owned(), text);
    }

    /// The value as this version takes it; `None` where it takes neither name nor value.
    fn value(&mut self, name: &str, parameter: &Parameter) -> Option<String> {
        // Extensions have names with a point, which any server takes.
        if name.contains('.') {
            let word = |part: &str| {
                part.starts_with(|c: char| c.is_alphabetic() || c == '_')
                    && part.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '$')
            };
            if name.split('.').all(word) {
                return Some(parameter.text.clone());
            }
            let message = format!("`{}` is not a name for a setting", name.escape_debug());
            self.warn(Code::UnknownParameter, parameter, message, "left out");
            return None;
        }
        let setting = match lookup(name, self.server.version) {
            Lookup::Found(setting) => setting,
            Lookup::Elsewhere { since, until } => {
                let major = self.major();
                let message = if until < major {
                    format!("PostgreSQL {major} has no `{name}`: {until} was the last with it")
                } else {
                    format!("PostgreSQL {major} has no `{name}`: {since} is the first with it")
                };
                let help = rules::fate(name).map(str::to_owned);
                let what = Say { message, done: "left out".to_owned(), help };
                self.say(Severity::Warning, Code::ParameterNotInVersion, parameter, what);
                return None;
            }
            Lookup::Unknown if self.server.other_settings.contains(name) => {
                return Some(parameter.text.clone());
            }
            Lookup::Unknown => {
                let gone = rules::fate(name).map(str::to_owned);
                let code = if gone.is_some() {
                    Code::ParameterNotInVersion
                } else {
                    Code::UnknownParameter
                };
                let known = catalog::names(self.server.version);
                let near = || nearest(name, known).map(|near| format!("did you mean `{near}`?"));
                let message = format!("PostgreSQL has no setting `{}`", name.escape_debug());
                let help = gone.or_else(near);
                let what = Say { message, done: "left out".to_owned(), help };
                self.say(Severity::Warning, code, parameter, what);
                return None;
            }
        };
        // `on` was a method of encryption once.
        if name == "password_encryption" && super::value::boolean(&parameter.text).is_some() {
            let message = format!("`{}` is not a method of encryption", parameter.text);
            self.warn(Code::InvalidParameter, parameter, message, "`md5`, which it stood for");
            return Some("md5".to_owned());
        }
        match accept(setting, &parameter.text, &parameter.raw) {
            Ok(Accepted { text, changed }) => {
                if let Some(changed) = changed {
                    let message = format!("`{}` cannot be taken as it is", parameter.text);
                    self.warn(Code::InvalidParameter, parameter, message, &changed);
                }
                Some(text)
            }
            Err(why) if matches!(setting.kind, Kind::Preset) => {
                let message = format!("`{name}` cannot be set: {why}");
                self.warn(Code::RefusedParameter, parameter, message, "left out");
                None
            }
            Err(why) => {
                self.warn(Code::InvalidParameter, parameter, why, "left out");
                None
            }
        }
    }

    /// Values that mean something else here, or are written otherwise in this version.
    fn translated(&mut self, name: &str, text: String, parameter: &Parameter) -> String {
        match name {
            // Its older spellings mean the same.
            "wal_level" if text == "hot_standby" || text == "archive" => "replica".to_owned(),
            "hba_file" | "ident_file" if Path::new(&text).is_relative() => {
                self.instance.config_dir.join(text).to_string_lossy().into_owned()
            }
            "unix_socket_directories" => self.socket_directories(&text, parameter),
            _ => text,
        }
    }

    /// Relative directories are the server's, which runs in its data directory. `pg_rewind` and the agent run
    /// elsewhere and would look for the socket in the wrong place.
    fn socket_directories(&mut self, text: &str, parameter: &Parameter) -> String {
        let mut moved = false;
        let mut long = false;
        let data_dir = self.instance.data_dir.clone();
        let port = self.instance.port;
        let parts: Vec<String> = text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(|part| {
                if part.starts_with(['/', '@']) || data_dir.is_relative() {
                    return part.to_owned();
                }
                let inner = part.strip_prefix("./").unwrap_or(part);
                let directory = if inner == "." || inner.is_empty() {
                    data_dir.clone()
                } else {
                    data_dir.join(inner)
                };
                let absolute = directory.to_string_lossy().into_owned();
                // `sun_path` has 108 bytes, with a closing zero.
                if absolute.len() + format!("/.s.PGSQL.{port}").len() > 107 {
                    long = true;
                    return part.to_owned();
                }
                moved = true;
                absolute
            })
            .collect();
        let joined = parts.join(", ");
        if moved {
            let message = format!(
                "`{text}` is relative to the data directory, where only the server runs: pg_rewind, started \
                 elsewhere, would not find the socket"
            );
            let what = Say { message, done: format!("written as `{joined}`"), help: None };
            self.say(Severity::Notice, Code::RelativeSocketDirectory, parameter, what);
        }
        if long {
            let message = format!(
                "`{text}` is relative to the data directory, whose path is too long for a socket's name"
            );
            let help =
                Some("name a directory with a short path, such as /run/postgresql".to_owned());
            let what = Say { message, done: "kept; the agent connects over TCP".to_owned(), help };
            self.say(Severity::Warning, Code::RelativeSocketDirectory, parameter, what);
        }
        joined
    }

    /// How much WAL is kept, by the name that this version has for it.
    fn wal_keep(&mut self, wanted: &Parameters) -> (&'static str, String) {
        let by_size = self.major() >= 13;
        let (name, other) = if by_size {
            ("wal_keep_size", "wal_keep_segments")
        } else {
            ("wal_keep_segments", "wal_keep_size")
        };
        let megabytes = |name: &str, parameter: &Parameter| {
            if name == "wal_keep_size" {
                units::to_base(&parameter.text, Some("MB")).map(|mb| mb.round() as i64)
            } else {
                parameter.text.trim().parse::<i64>().ok()?.checked_mul(SEGMENT_MB)
            }
        };
        let default = if by_size {
            format!("{}MB", KEEP_SEGMENTS * SEGMENT_MB)
        } else {
            KEEP_SEGMENTS.to_string()
        };
        let most = i64::from(i32::MAX);
        let (given, parameter) = match (wanted.get(name), wanted.get(other)) {
            (Some(parameter), both) => {
                if let Some(other) = both {
                    let message = format!("`{name}` is given too");
                    self.warn(Code::NoEffect, other, message, "that one counts");
                }
                (name, parameter)
            }
            (None, Some(parameter)) => (other, parameter),
            (None, None) => return (name, default),
        };
        let Some(size) = megabytes(given, parameter).filter(|mb| (SEGMENT_MB..=most).contains(mb))
        else {
            let message = format!("`{}` is not an amount of WAL to keep", parameter.text);
            self.warn(Code::InvalidParameter, parameter, message, &format!("`{default}`"));
            return (name, default);
        };
        if given == name {
            let text = if by_size {
                parameter.text.trim().to_owned()
            } else {
                (size / SEGMENT_MB).to_string()
            };
            return (name, text);
        }
        let text = if by_size {
            format!("{size}MB")
        } else {
            // To the nearest segment.
            ((size + SEGMENT_MB / 2) / SEGMENT_MB).to_string()
        };
        let message = format!("PostgreSQL {} has `{name}` in place of `{given}`", self.major());
        let done = format!("`{name} = {text}`, for segments of {SEGMENT_MB} MB");
        let what = Say { message, done, help: None };
        self.say(Severity::Notice, Code::RenamedParameter, parameter, what);
        (name, text)
    }

    /// One setting for recovery.
    fn recovery(&mut self, name: &str, parameter: &Parameter) {
        let managed = match name {
            "standby_mode" => Some("whether the server follows is the agent's to say"),
            "primary_conninfo" | "primary_slot_name" => {
                Some("whom the server follows is the agent's to say")
            }
            "recovery_target_timeline" => Some("a replica follows the latest timeline"),
            _ => None,
        };
        if let Some(why) = managed {
            self.warn(Code::ManagedParameter, parameter, format!("`{name}`: {why}"), "left out");
            return;
        }
        if name.starts_with("recovery_target") || name == "pause_at_recovery_target" {
            let message = format!("`{name}` would stop a replica where it should follow");
            let help = "for a restore, write it into the `recovery_conf` of a bootstrap method";
            let what = Say { message, done: "left out".to_owned(), help: Some(help.to_owned()) };
            self.say(Severity::Warning, Code::RefusedParameter, parameter, what);
            return;
        }
        if name == "trigger_file" || name == "promote_trigger_file" {
            let current = match self.major() {
                10..=11 => "trigger_file",
                12..=15 => "promote_trigger_file",
                _ => {
                    let message = format!("PostgreSQL {} has no `{name}`", self.major());
                    let help = rules::fate(name).map(str::to_owned);
                    let what = Say { message, done: "left out".to_owned(), help };
                    self.say(Severity::Warning, Code::ParameterNotInVersion, parameter, what);
                    return;
                }
            };
            self.out.recovery.insert(current.to_owned(), parameter.raw.clone());
            return;
        }
        if !RECOVERY.contains(&name) {
            let message = format!("`{}` is not a setting for recovery", name.escape_debug());
            let help = match lookup(name, self.server.version) {
                Lookup::Found(_) => Some("write it under `parameters`".to_owned()),
                _ => nearest(name, RECOVERY).map(|near| format!("did you mean `{near}`?")),
            };
            let what = Say { message, done: "left out".to_owned(), help };
            self.say(Severity::Warning, Code::UnknownParameter, parameter, what);
            return;
        }
        if let Some(text) = self.value(name, parameter) {
            self.out.recovery.insert(name.to_owned(), text);
        }
    }
}

struct Say {
    message: String,
    done: String,
    help: Option<String>,
}
