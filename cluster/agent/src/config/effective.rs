//! What holds for one member: the file over the dynamic configuration, for the server's version.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::command::Command;
use super::diagnostics::{Code, Diagnostic, Diagnostics, Severity};
use super::dynamic::{Dynamic, SlotKind, SynchronousMode};
use super::hba::Lines;
use super::load::Config;
use super::options::ToolOption;
use super::parameters::{
    COMMAND_LINE, Instance, Parameter, Parameters, Server, Settings, is_cluster_wide, render,
};
use super::postgresql::{ByRole, Callbacks, ReplicaProgram, ServerOptions};
use super::tags::Tags;
use super::watchdog::{Watchdog, WatchdogMode};

/// What holds for one member at a time.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Effective {
    /// The dynamic configuration. What it says of the server is merged into the other fields.
    pub cluster: Dynamic,
    /// The watchdog device.
    pub watchdog: Watchdog,
    /// How long the device waits for a sign of life.
    pub watchdog_timeout: Duration,
    /// What this member may be used for.
    pub tags: Tags,
    /// The server that all this is for.
    pub server: Server,
    /// Its settings and files, where the role makes no difference.
    pub files: ServerFiles,
    /// Its settings and files in roles that have some of their own.
    pub files_by_role: ByRole<Option<ServerFiles>>,
    /// Whether a former primary is rewound. Default: no.
    pub use_pg_rewind: bool,
    /// Whether replication slots are used. Default: yes.
    pub use_slots: bool,
    /// Whether the data directory may be thrown away when a rewind has failed. Default: no.
    pub remove_data_directory_on_rewind_failure: bool,
    /// Whether the data directory may be thrown away when it cannot follow and cannot be rewound. Default: no.
    pub remove_data_directory_on_diverged_timelines: bool,
    /// How long a start or a stop may take before it counts as failed. Default: 60 s.
    pub pg_ctl_timeout: Duration,
    /// Programs to run when something happened.
    pub callbacks: Callbacks,
    /// How a replica's data directory is made, in the order to try. Default: `pg_basebackup`.
    pub replica_methods: Vec<ReplicaMethod>,
    /// Options for `pg_basebackup`.
    pub basebackup: Vec<ToolOption>,
    /// Options for `pg_rewind`.
    pub rewind: Vec<ToolOption>,
    /// A file to include in place of `postgresql.base.conf`.
    pub custom_conf: Option<PathBuf>,
    /// Run before a promotion.
    pub pre_promote: Option<Command>,
    /// Run before each stop.
    pub before_stop: Option<Command>,
    /// Whether the agent connects over the Unix socket. Default: no.
    pub use_unix_socket: bool,
    /// The same for the replication user. Default: no.
    pub use_unix_socket_repl: bool,
    /// Where PostgreSQL's programs are. Default: on the `PATH`.
    pub bin_dir: Option<PathBuf>,
    /// Other names for PostgreSQL's programs, by their usual ones.
    pub bin_name: BTreeMap<&'static str, String>,
    /// The database that the agent connects to. Default: `postgres`.
    pub database: String,
    /// The name of `postgresql.conf` without its ending. Default: `postgresql`.
    pub config_base_name: String,
    /// The Kerberos service of the server.
    pub krbsrvname: Option<String>,
    /// What could not be taken as written for this version, or in this combination.
    pub diagnostics: Diagnostics,
}

/// A role that may have settings of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Leads.
    Primary,
    /// Follows.
    Replica,
    /// Leads a standby cluster.
    StandbyLeader,
}

/// What is written for the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerFiles {
    /// All settings, by name.
    pub parameters: Settings,
    /// Settings for a server that follows.
    pub recovery: Settings,
    /// The lines of `pg_hba.conf`; `None`: it is left as it is.
    pub pg_hba: Option<Lines>,
    /// The lines of `pg_ident.conf`; `None`: it is left as it is.
    pub pg_ident: Option<Lines>,
}

impl ServerFiles {
    /// The settings that go onto the command line, where `ALTER SYSTEM` cannot change them.
    pub fn command_line(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs().filter(|(name, _)| COMMAND_LINE.contains(name))
    }

    /// The settings that go into `postgresql.conf`: all of them, so that a server started by hand is the same.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// How a replica's data directory is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaMethod {
    /// By `pg_basebackup`.
    Basebackup,
    /// By a program of the operator's.
    Program {
        /// The method's name.
        name: String,
        /// What to run.
        command: Command,
        /// The rest of its section.
        program: ReplicaProgram,
    },
}

impl Effective {
    /// The settings and files of the server in `role`.
    #[must_use]
    pub fn files_for(&self, role: Role) -> &ServerFiles {
        let own = match role {
            Role::Primary => &self.files_by_role.primary,
            Role::Replica => &self.files_by_role.replica,
            Role::StandbyLeader => &self.files_by_role.standby_leader,
        };
        own.as_ref().unwrap_or(&self.files)
    }
}

/// What one of the two places says, the file before the dynamic configuration.
struct Layers<'a> {
    dynamic: &'a ServerOptions,
    local: &'a ServerOptions,
}

impl Layers<'_> {
    fn pick<T: Clone>(&self, of: impl Fn(&ServerOptions) -> &Option<T>) -> Option<T> {
        of(self.local).clone().or_else(|| of(self.dynamic).clone())
    }

    /// Settings, those of the file over those of the cluster but for the ones that all members share.
    fn parameters(
        &self,
        of: impl Fn(&ServerOptions) -> &Parameters,
        diagnostics: &mut Diagnostics,
    ) -> Parameters {
        let mut all = of(self.dynamic).clone();
        for (name, parameter) in of(self.local).iter() {
            if is_cluster_wide(name) {
                let managed = matches!(name.as_str(), "listen_addresses" | "port" | "cluster_name");
                if !managed {
                    diagnostics.push(cluster_wide(name, parameter));
                    continue;
                }
            }
            all.insert(name.clone(), parameter.clone());
        }
        all
    }

    /// Settings of one role, those of the file over those of the cluster. What all members share no role changes.
    fn of_role(
        &self,
        of: impl Fn(&ByRole<Parameters>) -> &Parameters,
        diagnostics: &mut Diagnostics,
    ) -> Parameters {
        let mut all = Parameters::default();
        for layer in [self.dynamic, self.local] {
            for (name, parameter) in of(&layer.parameters_by_role).iter() {
                if is_cluster_wide(name) {
                    diagnostics.push(cluster_wide(name, parameter));
                } else {
                    all.insert(name.clone(), parameter.clone());
                }
            }
        }
        all
    }
}

fn cluster_wide(name: &str, parameter: &Parameter) -> Diagnostic {
    Diagnostic::new(
        Severity::Warning,
        Code::ClusterWideParameter,
        &parameter.origin,
        &parameter.path,
        format!(
            "`{name}` is the same on all members: one with less could not follow one with more"
        ),
    )
    .done("only `parameters` of the dynamic configuration counts")
    .help("set it with `leaderpoolctl edit-config`")
}

impl Config {
    /// Lays this member's configuration over the cluster's, for a server of some version.
    #[must_use]
    pub fn effective(&self, dynamic: &Dynamic, server: impl Into<Server>) -> Effective {
        let server = server.into();
        let mut diagnostics = Diagnostics::default();
        let local = &self.postgresql.options;
        let layers = Layers { dynamic: &dynamic.postgresql, local };

        let config_dir =
            self.postgresql.config_dir.clone().unwrap_or_else(|| self.postgresql.data_dir.clone());
        let instance = Instance {
            scope: self.scope.clone(),
            listen_addresses: self.postgresql.listen.addresses(),
            port: self.postgresql.listen.port,
            data_dir: self.postgresql.data_dir.clone(),
            config_dir,
            synchronous: dynamic.synchronous_mode != SynchronousMode::Off,
        };
        let use_slots = dynamic.postgresql.use_slots.unwrap_or(true);
        let logical = dynamic.slots.values().any(|slot| slot.kind != SlotKind::Physical);
        let base = layers.parameters(|o| &o.parameters, &mut diagnostics);
        let of_role = ByRole {
            primary: layers.of_role(|r| &r.primary, &mut diagnostics),
            replica: layers.of_role(|r| &r.replica, &mut diagnostics),
            standby_leader: layers.of_role(|r| &r.standby_leader, &mut diagnostics),
        };
        let recovery = layers.pick(|o| &o.recovery_conf).unwrap_or_default();
        let mut files =
            |parameters: &Parameters, pg_hba: Option<Lines>, pg_ident: Option<Lines>| {
                let rendered = render(parameters, &recovery, &instance, &server);
                diagnostics.extend(rendered.diagnostics);
                let mut files = ServerFiles {
                    parameters: rendered.parameters,
                    recovery: rendered.recovery,
                    pg_hba,
                    pg_ident,
                };
                // A replica must not remove what a logical slot still reads.
                if logical && use_slots {
                    files.parameters.insert("hot_standby_feedback".to_owned(), "on".to_owned());
                }
                let pairs = [("hba_file", &mut files.pg_hba), ("ident_file", &mut files.pg_ident)];
                for (name, lines) in pairs {
                    let Some(parameter) = parameters.get(name) else { continue };
                    if lines.take().is_some() {
                        let message =
                            format!("`{name}` names a file of its own, so lines are given twice");
                        diagnostics.push(
                            Diagnostic::new(
                                Severity::Warning,
                                Code::NoEffect,
                                &parameter.origin,
                                &parameter.path,
                                message,
                            )
                            .done("the file counts; the configuration's lines are not written"),
                        );
                    }
                }
                files
            };
        let hba = layers.pick(|o| &o.pg_hba);
        let ident = layers.pick(|o| &o.pg_ident);
        let plain = files(&base, hba.clone(), ident.clone());
        let by_role = {
            let mut one =
                |own: &Parameters, hba_lines: Option<Lines>, ident_lines: Option<Lines>| {
                    if own.is_empty() && hba_lines.is_none() && ident_lines.is_none() {
                        return None;
                    }
                    let mut all = base.clone();
                    for (name, parameter) in own.iter() {
                        all.insert(name.clone(), parameter.clone());
                    }
                    let hba_lines = hba_lines.or_else(|| hba.clone());
                    Some(files(&all, hba_lines, ident_lines.or_else(|| ident.clone())))
                };
            ByRole {
                primary: one(
                    &of_role.primary,
                    layers.pick(|o| &o.pg_hba_by_role.primary),
                    layers.pick(|o| &o.pg_ident_by_role.primary),
                ),
                replica: one(
                    &of_role.replica,
                    layers.pick(|o| &o.pg_hba_by_role.replica),
                    layers.pick(|o| &o.pg_ident_by_role.replica),
                ),
                standby_leader: one(
                    &of_role.standby_leader,
                    layers.pick(|o| &o.pg_hba_by_role.standby_leader),
                    layers.pick(|o| &o.pg_ident_by_role.standby_leader),
                ),
            }
        };
        let use_pg_rewind = layers.pick(|o| &o.use_pg_rewind).unwrap_or(false);
        if use_pg_rewind {
            diagnostics.extend(rewindable(&base, &plain));
        }
        let watchdog_timeout = watchdog_timeout(&self.watchdog, dynamic, &mut diagnostics);
        diagnostics.sort();
        Effective {
            cluster: dynamic.clone(),
            watchdog: self.watchdog.clone(),
            watchdog_timeout,
            tags: self.tags.clone(),
            server,
            files: plain,
            files_by_role: by_role,
            use_pg_rewind,
            use_slots,
            remove_data_directory_on_rewind_failure: layers
                .pick(|o| &o.remove_data_directory_on_rewind_failure)
                .unwrap_or(false),
            remove_data_directory_on_diverged_timelines: layers
                .pick(|o| &o.remove_data_directory_on_diverged_timelines)
                .unwrap_or(false),
            pg_ctl_timeout: layers.pick(|o| &o.pg_ctl_timeout).unwrap_or(Duration::from_secs(60)),
            callbacks: layers.pick(|o| &o.callbacks).unwrap_or_default(),
            replica_methods: replica_methods(&layers),
            basebackup: layers.pick(|o| &o.basebackup).unwrap_or_default(),
            rewind: layers.pick(|o| &o.rewind).unwrap_or_default(),
            custom_conf: layers.pick(|o| &o.custom_conf),
            pre_promote: layers.pick(|o| &o.pre_promote),
            before_stop: layers.pick(|o| &o.before_stop),
            use_unix_socket: layers.pick(|o| &o.use_unix_socket).unwrap_or(false),
            use_unix_socket_repl: layers.pick(|o| &o.use_unix_socket_repl).unwrap_or(false),
            bin_dir: layers.pick(|o| &o.bin_dir),
            bin_name: if local.bin_name.is_empty() {
                dynamic.postgresql.bin_name.clone()
            } else {
                local.bin_name.clone()
            },
            database: layers.pick(|o| &o.database).unwrap_or_else(|| "postgres".to_owned()),
            config_base_name: layers
                .pick(|o| &o.config_base_name)
                .unwrap_or_else(|| "postgresql".to_owned()),
            krbsrvname: layers.pick(|o| &o.krbsrvname),
            diagnostics,
        }
    }
}

/// pg_rewind has to know which blocks were changed.
fn rewindable(wanted: &Parameters, files: &ServerFiles) -> Diagnostics {
    let mut diagnostics = Diagnostics::default();
    let hints = files.parameters.get("wal_log_hints").map(String::as_str);
    if let (Some("off"), Some(parameter)) = (hints, wanted.get("wal_log_hints")) {
        let message = "pg_rewind is wanted, and without this it needs data checksums";
        diagnostics.push(
            Diagnostic::new(
                Severity::Notice,
                Code::RiskyParameter,
                &parameter.origin,
                &parameter.path,
                message,
            )
            .done("kept")
            .help("set it to `on` if the data directory has no checksums"),
        );
    }
    diagnostics
}

fn watchdog_timeout(
    watchdog: &Watchdog,
    dynamic: &Dynamic,
    diagnostics: &mut Diagnostics,
) -> Duration {
    let ttl = dynamic.timers.ttl;
    watchdog.timeout(ttl).unwrap_or_else(|| {
        let half = ttl / 2;
        if watchdog.mode != WatchdogMode::Off {
            diagnostics.push(
                Diagnostic::new(
                    Severity::Warning,
                    Code::WatchdogTimeout,
                    &super::diagnostics::Origin::Default,
                    "watchdog.safety_margin",
                    format!("it leaves no time of a ttl of {} s", ttl.as_secs_f64()),
                )
                .done(format!("the watchdog waits {} s: half of the ttl", half.as_secs_f64()))
                .help("`safety_margin: -1` asks for half of the ttl"),
            );
        }
        half
    })
}

fn replica_methods(layers: &Layers<'_>) -> Vec<ReplicaMethod> {
    let names =
        layers.pick(|o| &o.create_replica_methods).unwrap_or_else(|| vec!["basebackup".to_owned()]);
    names
        .into_iter()
        .map(|name| {
            if name == "basebackup" {
                return ReplicaMethod::Basebackup;
            }
            let section = layers
                .local
                .replica_methods
                .get(&name)
                .or_else(|| layers.dynamic.replica_methods.get(&name));
            let program = section.cloned().unwrap_or(ReplicaProgram {
                command: None,
                no_params: false,
                no_leader: false,
                keep_data: false,
                arguments: Vec::new(),
            });
            // Without a command the method's name is one.
            let command =
                program.command.clone().unwrap_or_else(|| Command { words: vec![name.clone()] });
            ReplicaMethod::Program { name, command, program }
        })
        .collect()
}
