//! `log`: what is written where, and in which form.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value as Json;

use super::diagnostics::Code;
use super::section::{Found, Reading, Section};
use super::yaml::{Data, Scalar};

/// How the agent logs.
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    /// The form of a line.
    pub form: LogForm,
    /// The least important level that is written. Default: `INFO`.
    pub level: LogLevel,
    /// How times are written, as for `strftime`. Default: `%Y-%m-%d %H:%M:%S` and `,mmm`, as Patroni has it.
    pub date_format: Option<String>,
    /// How many lines may wait to be written before new ones are dropped. Default: 1000.
    pub max_queue_size: usize,
    /// Write into `patroni.log` in this directory; standard error where there is none.
    pub directory: Option<PathBuf>,
    /// The permissions of a log file. Default: as the umask says.
    pub mode: Option<u32>,
    /// How many old files are kept. Default: 4.
    pub file_num: u32,
    /// The size, in bytes, at which a new file is begun. Default: 25 000 000.
    pub file_size: u64,
    /// Whether a heartbeat line that says the same as the one before is left out. Default: false.
    pub deduplicate_heartbeats: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            form: LogForm::Plain(plain(DEFAULT_FORMAT).0),
            level: LogLevel::Info,
            date_format: None,
            max_queue_size: 1000,
            directory: None,
            mode: None,
            file_num: 4,
            file_size: 25_000_000,
            deduplicate_heartbeats: false,
        }
    }
}

/// The levels of Python's logging, which Patroni's configuration names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// What the agent does.
    Info,
    /// What may need a look.
    Warning,
    /// What went wrong.
    Error,
    /// What ends the agent.
    Critical,
}

/// The form of a line.
#[derive(Debug, Clone, PartialEq)]
pub enum LogForm {
    /// Text. Default: `%(asctime)s %(levelname)s: %(message)s`.
    Plain(Vec<LogPiece>),
    /// One JSON object a line.
    Json {
        /// The fields, each with the key it is written under.
        fields: Vec<(LogAttribute, String)>,
        /// Fields that are the same on every line.
        fixed: BTreeMap<String, Json>,
    },
}

/// A piece of a plain line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogPiece {
    /// Written as it is.
    Text(String),
    /// Written for each line.
    Attribute {
        /// What is written.
        attribute: LogAttribute,
        /// Filled up with blanks to this many characters; negative: the blanks come behind.
        width: i32,
    },
}

/// What is known of a line. The names are those of Python's log records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogAttribute {
    /// `asctime`: when, by [`Log::date_format`].
    Time,
    /// `levelname`: `INFO`, ….
    Level,
    /// `levelno`: 10, 20, 30, 40, 50.
    LevelNumber,
    /// `message`.
    Message,
    /// `name`, `module`: the part of the agent that speaks.
    Target,
    /// `process`: the process id.
    Process,
    /// `processName`.
    ProcessName,
    /// `thread`: a number.
    Thread,
    /// `threadName`.
    ThreadName,
    /// `created`: seconds since 1970, with a fraction.
    Created,
    /// `msecs`: the milliseconds of the time.
    Milliseconds,
}

const DEFAULT_FORMAT: &str = "%(asctime)s %(levelname)s: %(message)s";

impl LogAttribute {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "asctime" => Self::Time,
            "levelname" => Self::Level,
            "levelno" => Self::LevelNumber,
            "message" => Self::Message,
            "name" | "module" => Self::Target,
            "process" => Self::Process,
            "processName" => Self::ProcessName,
            "thread" => Self::Thread,
            "threadName" => Self::ThreadName,
            "created" => Self::Created,
            "msecs" => Self::Milliseconds,
            _ => return None,
        })
    }
}

const LEVELS: [(&str, LogLevel); 7] = [
    ("DEBUG", LogLevel::Debug),
    ("INFO", LogLevel::Info),
    ("WARNING", LogLevel::Warning),
    ("WARN", LogLevel::Warning),
    ("ERROR", LogLevel::Error),
    ("CRITICAL", LogLevel::Critical),
    ("FATAL", LogLevel::Critical),
];

pub(super) fn read(mut section: Section<'_>, reading: &mut Reading) -> Log {
    let default = Log::default();
    let json = section
        .find("type", reading)
        .and_then(|found| found.word(&[("plain", false), ("json", true)], reading))
        .unwrap_or(false);
    let format = section.find("format", reading);
    let fixed: BTreeMap<String, Json> = section
        .section("static_fields", reading)
        .rest()
        .into_iter()
        .map(|(name, found)| (name.to_owned(), found.node.to_json()))
        .collect();
    if !fixed.is_empty() && !json {
        let at = section.place("static_fields");
        reading.warning(Code::NoEffect, &at, "only lines of `type: json` have fields", "ignored");
    }
    let form = if json {
        LogForm::Json { fields: json_fields(format, reading), fixed }
    } else {
        LogForm::Plain(plain_pieces(format, reading))
    };
    if let Some(found) = section.find("traceback_level", reading) {
        let message = "the agent has no Python tracebacks";
        reading.notice(Code::NoEffect, &found.at, message, "an error is logged with its causes");
    }
    if let Some(found) = section.find("loggers", reading) {
        let message = "these are levels for Python modules, which the agent does not have";
        reading.warning(Code::NoEffect, &found.at, message, "`log.level` holds for all");
    }
    let log = Log {
        form,
        level: section
            .find("level", reading)
            .and_then(|found| found.word(&LEVELS, reading))
            .unwrap_or(default.level),
        date_format: section.text("dateformat", reading),
        max_queue_size: section
            .number("max_queue_size", 1..=1_000_000, reading)
            .and_then(|n| usize::try_from(n).ok())
            .unwrap_or(default.max_queue_size),
        directory: section.text("dir", reading).map(PathBuf::from),
        mode: section.find("mode", reading).and_then(|found| mode(&found, reading)),
        file_num: section
            .number("file_num", 0..=10_000, reading)
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(default.file_num),
        file_size: section
            .find("file_size", reading)
            .and_then(|found| found.bytes(1, reading))
            .unwrap_or(default.file_size),
        deduplicate_heartbeats: section
            .flag("deduplicate_heartbeat_logs", reading)
            .unwrap_or(default.deduplicate_heartbeats),
    };
    section.finish(reading);
    log
}

/// `0644`, which YAML reads as octal, and `"0644"`, which is meant so.
fn mode(found: &Found<'_>, reading: &mut Reading) -> Option<u32> {
    found.number(0..=0o777, reading).and_then(|mode| u32::try_from(mode).ok())
}

fn unknown_attribute(name: &str, found: &Found<'_>, reading: &mut Reading) {
    let message = format!("the agent has no `{name}` to write");
    reading.warning(Code::NoEffect, &found.at, message, "left out of the line");
}

fn plain_pieces(format: Option<Found<'_>>, reading: &mut Reading) -> Vec<LogPiece> {
    let Some(found) = format else {
        return plain(DEFAULT_FORMAT).0;
    };
    if !matches!(found.node.data, Data::Scalar(_)) {
        let message = "a list of fields is for `type: json`; a plain line has a text as its format";
        reading.warning(Code::WrongType, &found.at, message, "the default format is used");
        return plain(DEFAULT_FORMAT).0;
    }
    let text = found.text(reading).unwrap_or_default();
    let (pieces, unknown) = plain(&text);
    for name in unknown {
        unknown_attribute(&name, &found, reading);
    }
    pieces
}

/// Takes a Python format apart; also the names of what the agent cannot write.
fn plain(format: &str) -> (Vec<LogPiece>, Vec<String>) {
    let mut pieces = Vec::new();
    let mut unknown = Vec::new();
    let mut text = String::new();
    let mut rest = format;
    while let Some(start) = rest.find('%') {
        text.push_str(&rest[..start]);
        let after = &rest[start + 1..];
        if let Some(behind) = after.strip_prefix('%') {
            text.push('%');
            rest = behind;
            continue;
        }
        let parsed = after.strip_prefix('(').and_then(|inside| {
            let (name, tail) = inside.split_once(')')?;
            let end = tail.find(|c: char| c.is_ascii_alphabetic())?;
            Some((name, &tail[..end], &tail[end + 1..]))
        });
        let Some((name, width, behind)) = parsed else {
            text.push('%');
            rest = after;
            continue;
        };
        rest = behind;
        match LogAttribute::named(name) {
            Some(attribute) => {
                if !text.is_empty() {
                    pieces.push(LogPiece::Text(std::mem::take(&mut text)));
                }
                let whole = width.split('.').next().unwrap_or_default();
                let width = whole.parse::<i32>().unwrap_or(0).clamp(-200, 200);
                pieces.push(LogPiece::Attribute { attribute, width });
            }
            None => unknown.push(name.to_owned()),
        }
    }
    text.push_str(rest);
    if !text.is_empty() {
        pieces.push(LogPiece::Text(text));
    }
    (pieces, unknown)
}

fn json_fields(format: Option<Found<'_>>, reading: &mut Reading) -> Vec<(LogAttribute, String)> {
    let named = |name: &str, key: &str, found: &Found<'_>, reading: &mut Reading| {
        let attribute = LogAttribute::named(name);
        if attribute.is_none() {
            unknown_attribute(name, found, reading);
        }
        attribute.map(|attribute| (attribute, key.to_owned()))
    };
    let default = || {
        ["asctime", "levelname", "message"]
            .iter()
            .filter_map(|name| Some((LogAttribute::named(name)?, (*name).to_owned())))
            .collect()
    };
    let Some(format) = format else { return default() };
    let mut fields = Vec::new();
    for item in format.items() {
        match &item.node.data {
            Data::Scalar(scalar) if scalar.as_str().contains("%(") => {
                for name in names_in(scalar) {
                    fields.extend(named(&name, &name, &item, reading));
                }
            }
            Data::Scalar(scalar) => {
                fields.extend(named(scalar.as_str(), scalar.as_str(), &item, reading));
            }
            Data::Map(map) => {
                for entry in &map.entries {
                    if let Data::Scalar(key) = &entry.node.data {
                        fields.extend(named(&entry.key, key.as_str(), &item, reading));
                    }
                }
            }
            Data::List(_) => {
                let message = "a field's name is wanted here, or `name: key`";
                reading.warning(Code::WrongType, &item.at, message, "left out");
            }
        }
    }
    if fields.is_empty() { default() } else { fields }
}

fn names_in(scalar: &Scalar) -> Vec<String> {
    let (pieces, unknown) = plain(scalar.as_str());
    let attributes = scalar.as_str().split("%(").skip(1).filter_map(|part| part.split(')').next());
    if pieces.is_empty() && unknown.is_empty() {
        return Vec::new();
    }
    attributes.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_python_format_is_taken_apart() {
        let attribute = |attribute, width| LogPiece::Attribute { attribute, width };
        let text = |text: &str| LogPiece::Text(text.to_owned());
        for (format, pieces, unknown) in [
            (
                DEFAULT_FORMAT,
                vec![
                    attribute(LogAttribute::Time, 0),
                    text(" "),
                    attribute(LogAttribute::Level, 0),
                    text(": "),
                    attribute(LogAttribute::Message, 0),
                ],
                vec![],
            ),
            (
                "100%% %(levelname)-8s|%(lineno)d",
                vec![text("100% "), attribute(LogAttribute::Level, -8), text("|")],
                vec!["lineno"],
            ),
            ("50% off %(", vec![text("50% off %(")], vec![]),
        ] {
            let (found, left) = plain(format);
            assert_eq!((found, left), (pieces, unknown.iter().map(|s| (*s).to_owned()).collect()));
        }
    }
}
