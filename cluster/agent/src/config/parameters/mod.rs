//! Settings of PostgreSQL: read as they are written for any version, rendered for the one at hand.
//!
//! [`render`] is the whole of it: wanted settings and a server's version in, an ordered map of what that server
//! accepts out, with a finding for each line that could not be taken as written. One line that a server does not
//! know keeps it from starting, which is why none is handed on blindly.

mod catalog;
mod render;
mod rules;
pub(crate) mod units;
mod value;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::{Deref, DerefMut};

pub use render::{Instance, Rendered, render};
pub use rules::{CLUSTER_WIDE, COMMAND_LINE};
pub use value::same_value;

pub(super) use catalog::{Context, Lookup, lookup};
pub(super) use rules::is_cluster_wide;

use super::diagnostics::{Code, Origin};
use super::section::{Reading, Section};
use super::yaml::{Data, Resolved};

/// The version of a PostgreSQL server, as `server_version_num` has it: 150018 is 15.18.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerVersion(u32);

impl ServerVersion {
    /// The oldest major version that the agent works with.
    pub const OLDEST: u32 = 10;
    /// The newest major version whose settings are known; a newer server is taken for this one.
    pub const NEWEST: u32 = 18;

    /// From `server_version_num`; `None` below 10.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        (number / 10_000 >= Self::OLDEST).then_some(Self(number))
    }

    /// From the text of `postgres --version`, of `PG_VERSION`, or `15`, `15.18`, `18beta1`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        // `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`
        let text = text.split_once("(PostgreSQL)").map_or(text, |(_, rest)| rest).trim();
        let digits = |s: &str| s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
        let end = digits(text);
        let major: u32 = text[..end].parse().ok()?;
        let minor = text[end..].strip_prefix('.').unwrap_or_default();
        let minor: u32 = minor[..digits(minor)].parse().unwrap_or(0);
        Self::new(major.checked_mul(10_000)?.checked_add(minor.min(9_999))?)
    }

    /// The major version: 15.
    #[must_use]
    pub fn major(self) -> u32 {
        self.0 / 10_000
    }

    /// `server_version_num`.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major(), self.0 % 10_000)
    }
}

/// What is known of the server that settings are rendered for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Its version.
    pub version: ServerVersion,
    /// Names of settings that it has besides those of PostgreSQL itself, as `postgres --describe-config` of a
    /// modified server lists them; in lower case.
    pub other_settings: BTreeSet<String>,
}

impl From<ServerVersion> for Server {
    fn from(version: ServerVersion) -> Self {
        Self { version, other_settings: BTreeSet::new() }
    }
}

/// Wanted settings by their names, which are in lower case.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Parameters(BTreeMap<String, Parameter>);

/// Settings as a server gets them: names and values, in the order of their names.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Settings(BTreeMap<String, String>);

impl Deref for Parameters {
    type Target = BTreeMap<String, Parameter>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Parameters {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl FromIterator<(String, Parameter)> for Parameters {
    fn from_iter<I: IntoIterator<Item = (String, Parameter)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect())
    }
}

impl Deref for Settings {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Settings {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl FromIterator<(String, String)> for Settings {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect())
    }
}

impl fmt::Debug for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|(name, p)| (name, shown(name, &p.text)))).finish()
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|(name, value)| (name, shown(name, value)))).finish()
    }
}

/// Connection strings and commands may hold a password, and so are not printed.
fn shown<'a>(name: &str, value: &'a str) -> &'a str {
    let command = name.ends_with("_command") || name.ends_with("conninfo");
    let named = |text: &str| {
        let text = text.to_ascii_lowercase();
        ["pass", "secret", "token"].iter().any(|word| text.contains(word))
    };
    if command || named(name) || named(value) { "***" } else { value }
}

/// One setting as it is wanted. Two are equal where their values are, wherever they were written.
#[derive(Clone)]
pub struct Parameter {
    /// The value as PostgreSQL would be given it: `on`, `128MB`, `100`.
    pub text: String,
    /// The value's very characters, where they differ: `yes`, `0644`.
    pub(super) raw: String,
    pub(super) origin: Origin,
    pub(super) path: String,
}

impl Parameter {
    /// A value that was written nowhere.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        let text = text.into();
        Self { raw: text.clone(), text, origin: Origin::Default, path: String::new() }
    }
}

impl PartialEq for Parameter {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Parameter {}

/// Reads a section of settings. The second part is a `recovery_conf` that stands among them.
pub(super) fn read(
    section: Section<'_>,
    reading: &mut Reading,
) -> (Parameters, Option<Parameters>) {
    let mut parameters = Parameters::default();
    let mut nested = None;
    for (name, found) in section.rest() {
        // No value: the server's own default.
        if found.node.is_null() {
            continue;
        }
        let lower = name.to_ascii_lowercase();
        let (text, raw) = match &found.node.data {
            Data::Scalar(scalar) => {
                let raw = scalar.as_str().to_owned();
                let text = match scalar.resolve() {
                    Resolved::Bool(true) => "on".to_owned(),
                    Resolved::Bool(false) => "off".to_owned(),
                    Resolved::Int(value) => value.to_string(),
                    _ => raw.clone(),
                };
                (text, raw)
            }
            Data::List(_) => {
                let Some(items) = found.texts(false, reading) else { continue };
                let message = "a list, where PostgreSQL takes one text";
                reading.notice(Code::WrongType, &found.at, message, "joined with commas");
                let joined = items.join(", ");
                (joined.clone(), joined)
            }
            Data::Map(_) if lower == "recovery_conf" => {
                let message = "`recovery_conf` stands beside `parameters`, not among them: Patroni drops it \
                               here";
                reading.notice(Code::NestedRecoveryConf, &found.at, message, "read as if it did");
                let inner = Section::new(Some(found.node), found.at.clone(), reading);
                nested = Some(read(inner, reading).0);
                continue;
            }
            Data::Map(_) => {
                let message = "a setting has a value, and this is a section";
                reading.warning(Code::WrongType, &found.at, message, "left out");
                continue;
            }
        };
        let parameter = Parameter { text, raw, origin: found.at.origin, path: found.at.path };
        parameters.insert(lower, parameter);
    }
    (parameters, nested)
}
