//! `postgresql.authentication`: the users that the agent logs in as, and how.

use std::collections::BTreeMap;

use super::Secret;
use super::diagnostics::{Code, Diagnostic, Origin, Severity};
use super::parameters::ServerVersion;
use super::section::{Reading, Section};

/// The users of the server that the agent works as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authentication {
    /// Made by `initdb`; everything local runs as this one. No name: the user the agent runs as.
    pub superuser: Credentials,
    /// Streams the WAL and copies data directories. Made at bootstrap.
    pub replication: Credentials,
    /// For `pg_rewind`, where it is not the superuser. Made at bootstrap, with the rights for it.
    pub rewind: Option<Credentials>,
}

impl Authentication {
    /// The user for `pg_rewind` and for reading slots elsewhere.
    #[must_use]
    pub fn rewind(&self) -> &Credentials {
        self.rewind.as_ref().unwrap_or(&self.superuser)
    }
}

/// One user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Its name.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    /// Options of the connection, by libpq's names: `sslmode`, `sslcert`, `sslkey`, `sslrootcert`, `sslcrl`,
    /// `sslcrldir`, `sslnegotiation`, `gssencmode`, `channel_binding`. `sslpassword` is
    /// [`Credentials::key_password`].
    pub options: BTreeMap<&'static str, String>,
    /// `sslpassword`: what decrypts `sslkey`.
    pub key_password: Option<Secret>,
}

impl Credentials {
    /// The connection options that the libpq of `version` knows, as keywords of a connection string.
    /// Neither user nor passwords are among them.
    pub fn options_for(
        &self,
        version: ServerVersion,
    ) -> impl Iterator<Item = (&'static str, &str)> {
        self.options
            .iter()
            .filter(move |(name, _)| version.major() >= since(name))
            .map(|(name, value)| (*name, value.as_str()))
    }
}

/// The major version whose libpq first knew `option`.
fn since(option: &str) -> u32 {
    match option {
        "gssencmode" => 12,
        "channel_binding" => 13,
        "sslcrldir" => 14,
        "sslnegotiation" => 17,
        _ => 10,
    }
}

const OPTIONS: [(&str, &[&str]); 9] = [
    ("sslmode", &["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]),
    ("sslcert", &[]),
    ("sslkey", &[]),
    ("sslrootcert", &[]),
    ("sslcrl", &[]),
    ("sslcrldir", &[]),
    ("gssencmode", &["disable", "prefer", "require"]),
    ("channel_binding", &["disable", "prefer", "require"]),
    ("sslnegotiation", &["postgres", "direct"]),
];

/// `authentication`, or what Patroni had in its place before 1.3.
pub(super) fn read(postgresql: &mut Section<'_>, reading: &mut Reading) -> Option<Authentication> {
    let written = postgresql.has("authentication");
    let mut section = postgresql.section("authentication", reading);
    let mut old = |name: &'static str, reading: &mut Reading| {
        if written || !postgresql.has(name) {
            return None;
        }
        let at = postgresql.place(name);
        let message = "an older place for what is under `authentication` now";
        reading.notice(Code::OldName, &at, message, "read from here");
        Some(user(postgresql.section(name, reading), reading))
    };
    let old_superuser = old("superuser", reading).or_else(|| old("pg_rewind", reading));
    let old_replication = old("replication", reading);
    let superuser = user(section.section("superuser", reading), reading);
    let superuser_at = section.place("superuser");
    let replication_at = section.place("replication");
    let replication = user(section.section("replication", reading), reading);
    let rewind = user(section.section("rewind", reading), reading);
    let rewind = Some(rewind).filter(|user| user.username.is_some());
    section.finish(reading);
    let superuser = old_superuser.unwrap_or(superuser);
    let replication = old_replication.unwrap_or(replication);
    if replication.username.is_none() {
        let help =
            "for example `authentication: {replication: {username: replicator, password: …}}`";
        let message = "replicas need a user to stream as: `username` must be given";
        reading.error(Code::Missing, &replication_at, message, help);
        return None;
    }
    no_password("superuser", &superuser, &superuser_at.origin, reading);
    no_password("replication", &replication, &replication_at.origin, reading);
    Some(Authentication { superuser, replication, rewind })
}

fn no_password(name: &str, user: &Credentials, origin: &Origin, reading: &mut Reading) {
    if user.username.is_some() && user.password.is_none() && !user.options.contains_key("sslcert") {
        let path = format!("postgresql.authentication.{name}.password");
        reading.push(
            Diagnostic::new(Severity::Notice, Code::Missing, origin, path, "no password is given")
                .done("the user logs in without one: pg_hba.conf must let it (`trust`, `peer`, `cert`)"),
        );
    }
}

fn user(mut section: Section<'_>, reading: &mut Reading) -> Credentials {
    let mut user = Credentials {
        username: section.text("username", reading),
        password: section.secret("password", reading),
        options: BTreeMap::new(),
        key_password: section.secret("sslpassword", reading),
    };
    for (name, words) in OPTIONS {
        let Some(value) = section.text(name, reading) else { continue };
        if words.is_empty() || words.contains(&value.as_str()) {
            user.options.insert(name, value);
        } else {
            let message = format!("`{value}` is not one of {}", words.join(", "));
            let help = "whether a connection is encrypted cannot be left open";
            reading.error(Code::InvalidValue, &section.place(name), message, help);
        }
    }
    section.finish(reading);
    user
}
