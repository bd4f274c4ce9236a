//! `postgresql`: the server of this member. What the whole cluster may share is in [`ServerOptions`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::address::{HostPort, Listen, is_wildcard};
use super::bootstrap::arguments;
use super::command::Command;
use super::credentials::{self, Authentication};
use super::diagnostics::{Code, Diagnostic, Severity};
use super::hba::{self, Lines};
use super::options::{self, ToolOption};
use super::parameters::{self, Parameters};
use super::section::{Found, Reading, Section, Verdict};
use super::yaml::Data;
use super::{Environment, Secret};

/// The server of this member.
#[derive(Debug, Clone, PartialEq)]
pub struct Postgresql {
    /// Where it listens.
    pub listen: Listen,
    /// Where others reach it. Default: the first address it listens on.
    pub connect_address: HostPort,
    /// Where a connection pool beside it is reached; published, not used.
    pub proxy_address: Option<HostPort>,
    /// The data directory.
    pub data_dir: PathBuf,
    /// Where `postgresql.conf` and its like are. Default: the data directory.
    pub config_dir: Option<PathBuf>,
    /// The password file that the agent writes. Default: `pgpass` in the home directory.
    pub pgpass: Option<PathBuf>,
    /// The users that the agent works as.
    pub authentication: Authentication,
    /// What may also come from the dynamic configuration, and here goes before it.
    pub options: ServerOptions,
}

/// What may be written for one member, in `patroni.yml`, and for all, in the dynamic configuration. Only what is
/// written is there: defaults are filled in once the two are laid over each other.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServerOptions {
    /// Settings of the server.
    pub parameters: Parameters,
    /// Settings of the server while it has a role; laid over [`ServerOptions::parameters`].
    pub parameters_by_role: ByRole<Parameters>,
    /// Settings for recovery (`restore_command`, …).
    pub recovery_conf: Option<Parameters>,
    /// The lines of `pg_hba.conf`.
    pub pg_hba: Option<Lines>,
    /// Other lines while it has a role.
    pub pg_hba_by_role: ByRole<Option<Lines>>,
    /// The lines of `pg_ident.conf`.
    pub pg_ident: Option<Lines>,
    /// Other lines while it has a role.
    pub pg_ident_by_role: ByRole<Option<Lines>>,
    /// Whether a former primary is rewound.
    pub use_pg_rewind: Option<bool>,
    /// Whether replication slots are used. From the dynamic configuration only.
    pub use_slots: Option<bool>,
    /// Whether the data directory may be thrown away when a rewind has failed.
    pub remove_data_directory_on_rewind_failure: Option<bool>,
    /// Whether the data directory may be thrown away when it cannot follow and cannot be rewound.
    pub remove_data_directory_on_diverged_timelines: Option<bool>,
    /// How long a start or a stop may take before it counts as failed.
    pub pg_ctl_timeout: Option<Duration>,
    /// Programs to run when something happened.
    pub callbacks: Option<Callbacks>,
    /// How a replica's data directory is made: the names to try, in order.
    pub create_replica_methods: Option<Vec<String>>,
    /// The sections of those methods, by name.
    pub replica_methods: BTreeMap<String, ReplicaProgram>,
    /// Options for `pg_basebackup`.
    pub basebackup: Option<Vec<ToolOption>>,
    /// Options for `pg_rewind`.
    pub rewind: Option<Vec<ToolOption>>,
    /// A file to include in place of `postgresql.base.conf`.
    pub custom_conf: Option<PathBuf>,
    /// Run before a promotion, once the leader key is held; if it fails, the key is given back.
    pub pre_promote: Option<Command>,
    /// Run before each stop, which waits for it.
    pub before_stop: Option<Command>,
    /// Whether the agent connects over the Unix socket.
    pub use_unix_socket: Option<bool>,
    /// The same for the replication user.
    pub use_unix_socket_repl: Option<bool>,
    /// Where PostgreSQL's programs are. Default: on the `PATH`.
    pub bin_dir: Option<PathBuf>,
    /// Other names for PostgreSQL's programs, by their usual ones.
    pub bin_name: BTreeMap<&'static str, String>,
    /// The database that the agent connects to.
    pub database: Option<String>,
    /// The name of `postgresql.conf` without its ending.
    pub config_base_name: Option<String>,
    /// The Kerberos service of the server.
    pub krbsrvname: Option<String>,
}

/// One for each role.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ByRole<T> {
    /// While it is the primary.
    pub primary: T,
    /// While it follows.
    pub replica: T,
    /// While it leads a standby cluster.
    pub standby_leader: T,
}

/// Programs to run when something happened. Each gets the action, the role and the scope as its arguments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Callbacks {
    /// The configuration was reloaded.
    pub on_reload: Option<Command>,
    /// The server was restarted in its role.
    pub on_restart: Option<Command>,
    /// The server was promoted or demoted.
    pub on_role_change: Option<Command>,
    /// The server was started.
    pub on_start: Option<Command>,
    /// The server was stopped.
    pub on_stop: Option<Command>,
}

/// A program that makes a replica's data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaProgram {
    /// The program; one of the method's own name where there is none.
    pub command: Option<Command>,
    /// Whether `--scope`, `--role`, `--datadir` and `--connstring` are left out.
    pub no_params: bool,
    /// Whether it works without a running member to copy from.
    pub no_leader: bool,
    /// Whether it is run on the data directory as it is, rather than on none.
    pub keep_data: bool,
    /// More arguments: `--name=value`.
    pub arguments: Vec<(String, Secret)>,
}

const PROGRAMS: [&str; 8] = [
    "pg_ctl",
    "initdb",
    "pg_controldata",
    "pg_basebackup",
    "postgres",
    "pg_isready",
    "pg_rewind",
    "pg_waldump",
];

const BASEBACKUP: [&str; 11] = [
    "pgdata",
    "format",
    "wal-method",
    "xlog-method",
    "gzip",
    "version",
    "dbname",
    "host",
    "port",
    "username",
    "password",
];

const REWIND: [&str; 10] = [
    "target-pgdata",
    "source-pgdata",
    "source-server",
    "write-recovery-conf",
    "dry-run",
    "restore-target-wal",
    "config-file",
    "no-ensure-shutdown",
    "version",
    "help",
];

/// Which of the two places is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// `patroni.yml`.
    Local,
    /// `/config`, or `bootstrap.dcs`.
    Dynamic,
}

/// Reads the section. `named`: the member has its name from the top of the file.
pub(super) fn read(
    mut section: Section<'_>,
    named: bool,
    environment: &Environment,
    reading: &mut Reading,
) -> Option<Postgresql> {
    let listen = match section.find("listen", reading) {
        Some(found) => found.listen(5432, reading),
        None => {
            let at = section.place("listen");
            let help = "for example `listen: 0.0.0.0:5432`";
            reading.error(Code::Missing, &at, "this must be given", help);
            None
        }
    };
    let connect_address = match section.find("connect_address", reading) {
        Some(found) => found.connect_address(listen.as_ref().map_or(5432, |l| l.port), reading),
        None => listen.as_ref().and_then(|listen| listened(listen, &section, reading)),
    };
    let proxy_address = section
        .find("proxy_address", reading)
        .and_then(|found| found.connect_address(5432, reading));
    let help = "the directory of the data, for example `data_dir: /var/lib/postgresql/data`";
    let data_dir = section.required("data_dir", help, reading).map(PathBuf::from);
    if data_dir.as_ref().is_some_and(|dir| dir.is_relative()) {
        let at = section.place("data_dir");
        reading.push(
            Diagnostic::new(
                Severity::Warning,
                Code::RelativeDataDirectory,
                &at.origin,
                at.path,
                "a relative path depends on where the agent is started",
            )
            .done("kept")
            .help("write it from the root: `/var/lib/…`"),
        );
    }
    let config_dir = section.text("config_dir", reading).map(PathBuf::from);
    let pgpass = section
        .text("pgpass", reading)
        .map(PathBuf::from)
        .or_else(|| environment.get("HOME").map(|home| PathBuf::from(home).join("pgpass")));
    let authentication = credentials::read(&mut section, reading);
    // Where there is none at the top, this one was read as the member's name already.
    if let (true, Some(found)) = (named, section.find("name", reading)) {
        let message = "there is a `name` at the top of the file too";
        reading.warning(Code::NoEffect, &found.at, message, "that one counts");
    }
    let options = options(section, Place::Local, reading);
    Some(Postgresql {
        listen: listen?,
        connect_address: connect_address?,
        proxy_address,
        data_dir: data_dir?,
        config_dir,
        pgpass,
        authentication: authentication?,
        options,
    })
}

fn listened(listen: &Listen, section: &Section<'_>, reading: &mut Reading) -> Option<HostPort> {
    let host = listen.hosts.first()?;
    let address = HostPort { host: host.clone(), port: listen.port };
    if is_wildcard(host) {
        let at = section.place("connect_address");
        let message = "not given, and the address it listens on is no address to connect to";
        reading.push(
            Diagnostic::new(Severity::Warning, Code::LocalAddress, &at.origin, at.path, message)
                .done(format!("`{address}` is published"))
                .help("give the address by which the other members reach this server"),
        );
    }
    Some(address)
}

/// Everything that may stand in both places.
pub(super) fn options(
    mut section: Section<'_>,
    place: Place,
    reading: &mut Reading,
) -> ServerOptions {
    let flag = |key: &'static str, section: &mut Section<'_>, reading: &mut Reading| {
        section.flag(key, reading)
    };
    let (parameters, nested) = parameters::read(section.section("parameters", reading), reading);
    let recovery = recovery_conf(&mut section, nested, reading);
    let use_slots = match section.find("use_slots", reading) {
        Some(found) if place == Place::Local => {
            let message = "slots are used by all members or by none";
            let done = "only the dynamic configuration counts";
            reading.warning(Code::WrongPlace, &found.at, message, done);
            None
        }
        Some(found) => found.flag(reading),
        None => None,
    };
    let methods =
        section.find_renamed("create_replica_methods", &["create_replica_method"], reading);
    let create_replica_methods =
        methods.and_then(|found| found.texts(true, reading)).filter(|list| !list.is_empty());
    let mut options = ServerOptions {
        parameters,
        parameters_by_role: ByRole {
            primary: role_parameters("parameters_primary", &mut section, reading),
            replica: role_parameters("parameters_replica", &mut section, reading),
            standby_leader: role_parameters("parameters_standby_leader", &mut section, reading),
        },
        recovery_conf: recovery,
        pg_hba: file_lines("pg_hba", hba::lines, &mut section, reading),
        pg_hba_by_role: ByRole {
            primary: file_lines("pg_hba_primary", hba::lines, &mut section, reading),
            replica: file_lines("pg_hba_replica", hba::lines, &mut section, reading),
            standby_leader: file_lines("pg_hba_standby_leader", hba::lines, &mut section, reading),
        },
        pg_ident: file_lines("pg_ident", hba::ident_lines, &mut section, reading),
        pg_ident_by_role: ByRole {
            primary: file_lines("pg_ident_primary", hba::ident_lines, &mut section, reading),
            replica: file_lines("pg_ident_replica", hba::ident_lines, &mut section, reading),
            standby_leader: file_lines(
                "pg_ident_standby_leader",
                hba::ident_lines,
                &mut section,
                reading,
            ),
        },
        use_pg_rewind: flag("use_pg_rewind", &mut section, reading),
        use_slots,
        remove_data_directory_on_rewind_failure: flag(
            "remove_data_directory_on_rewind_failure",
            &mut section,
            reading,
        ),
        remove_data_directory_on_diverged_timelines: flag(
            "remove_data_directory_on_diverged_timelines",
            &mut section,
            reading,
        ),
        pg_ctl_timeout: section.seconds("pg_ctl_timeout", 0, reading),
        callbacks: {
            let written = section.has("callbacks");
            let callbacks = callbacks(section.section("callbacks", reading), reading);
            written.then_some(callbacks)
        },
        create_replica_methods,
        replica_methods: BTreeMap::new(),
        basebackup: tool("basebackup", "pg_basebackup", &BASEBACKUP, &mut section, reading),
        rewind: tool("rewind", "pg_rewind", &REWIND, &mut section, reading),
        custom_conf: section.text("custom_conf", reading).map(PathBuf::from),
        pre_promote: command("pre_promote", &mut section, reading),
        before_stop: command("before_stop", &mut section, reading),
        use_unix_socket: flag("use_unix_socket", &mut section, reading),
        use_unix_socket_repl: flag("use_unix_socket_repl", &mut section, reading),
        bin_dir: section.text("bin_dir", reading).map(PathBuf::from),
        bin_name: bin_names(&mut section, reading),
        database: section.text("database", reading),
        config_base_name: section.text("config_base_name", reading),
        krbsrvname: section.text("krbsrvname", reading),
    };
    let listed = options.create_replica_methods.clone().unwrap_or_default();
    for (name, found) in section.rest() {
        if is_method(name, &found, &listed)
            && let Some(method) = replica_program(&found, reading)
        {
            options.replica_methods.insert(name.to_owned(), method);
        }
    }
    section.finish_with(reading, |key, found| {
        if is_method(key, found, &listed) {
            return Verdict::Fine;
        }
        let local = [
            "listen",
            "connect_address",
            "proxy_address",
            "data_dir",
            "config_dir",
            "pgpass",
            "authentication",
        ];
        if place == Place::Dynamic && local.contains(&key) {
            return Verdict::Because {
                severity: Severity::Warning,
                code: Code::WrongPlace,
                message: "each member has its own".to_owned(),
                done: "it has no effect here".to_owned(),
                help: "move it into `postgresql` of each member's patroni.yml".to_owned(),
            };
        }
        if place == Place::Local && key == "standby_cluster" || super::dynamic::KEYS.contains(&key)
        {
            return Verdict::Because {
                severity: Severity::Warning,
                code: Code::WrongPlace,
                message: "a key of the dynamic configuration".to_owned(),
                done: "it has no effect here".to_owned(),
                help:
                    "set it with `leaderpoolctl edit-config`; for a new cluster, in `bootstrap.dcs`"
                        .to_owned(),
            };
        }
        Verdict::Unknown
    });
    options
}

fn role_parameters(
    key: &'static str,
    section: &mut Section<'_>,
    reading: &mut Reading,
) -> Parameters {
    let (parameters, nested) = parameters::read(section.section(key, reading), reading);
    if nested.is_some() {
        let at = section.place(key);
        let message = "`recovery_conf` does not depend on the role";
        reading.warning(Code::NestedRecoveryConf, &at, message, "ignored here");
    }
    parameters
}

/// `recovery_conf` in its place, over one that stands inside of `parameters`.
fn recovery_conf(
    section: &mut Section<'_>,
    nested: Option<Parameters>,
    reading: &mut Reading,
) -> Option<Parameters> {
    let written = section.has("recovery_conf");
    let (own, _) = parameters::read(section.section("recovery_conf", reading), reading);
    if !written && nested.is_none() {
        return None;
    }
    let mut all = nested.unwrap_or_default();
    for (name, parameter) in own.iter() {
        all.insert(name.clone(), parameter.clone());
    }
    Some(all)
}

fn file_lines(
    key: &'static str,
    read: fn(&Found<'_>, &mut Reading) -> Lines,
    section: &mut Section<'_>,
    reading: &mut Reading,
) -> Option<Lines> {
    let found = section.find(key, reading)?;
    // As for Patroni, no line at all is the same as none given.
    Some(read(&found, reading)).filter(|lines| !lines.is_empty())
}

fn tool(
    key: &'static str,
    program: &str,
    reserved: &[&str],
    section: &mut Section<'_>,
    reading: &mut Reading,
) -> Option<Vec<ToolOption>> {
    section.find(key, reading).map(|found| options::read(&found, program, reserved, reading))
}

fn command(key: &'static str, section: &mut Section<'_>, reading: &mut Reading) -> Option<Command> {
    section.find(key, reading).and_then(|found| found.command(reading))
}

fn callbacks(mut section: Section<'_>, reading: &mut Reading) -> Callbacks {
    let callbacks = Callbacks {
        on_reload: command("on_reload", &mut section, reading),
        on_restart: command("on_restart", &mut section, reading),
        on_role_change: command("on_role_change", &mut section, reading),
        on_start: command("on_start", &mut section, reading),
        on_stop: command("on_stop", &mut section, reading),
    };
    section.finish(reading);
    callbacks
}

fn bin_names(section: &mut Section<'_>, reading: &mut Reading) -> BTreeMap<&'static str, String> {
    let mut section = section.section("bin_name", reading);
    let names = PROGRAMS
        .into_iter()
        .filter_map(|program| Some((program, section.text(program, reading)?)))
        .collect();
    section.finish(reading);
    names
}

fn is_method(name: &str, found: &Found<'_>, listed: &[String]) -> bool {
    let marks = ["command", "no_params", "no_leader", "keep_data"];
    match &found.node.data {
        Data::Map(map) => {
            listed.iter().any(|listed| listed == name)
                || marks.iter().any(|mark| map.get(mark).is_some())
        }
        _ => false,
    }
}

fn replica_program(found: &Found<'_>, reading: &mut Reading) -> Option<ReplicaProgram> {
    let mut section = Section::named(found, "postgresql.*", reading);
    Some(ReplicaProgram {
        command: command("command", &mut section, reading),
        no_params: section.flag("no_params", reading).unwrap_or(false),
        no_leader: section.flag("no_leader", reading).unwrap_or(false),
        keep_data: section.flag("keep_data", reading).unwrap_or(false),
        arguments: arguments(&section, &["scope", "role", "datadir", "connstring"], reading),
    })
}
