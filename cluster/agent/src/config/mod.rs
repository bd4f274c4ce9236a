//! `patroni.yml`, the environment and the dynamic configuration.
//!
//! [`Config::load`] reads the file of one member as Patroni's users write it, with `PATRONI_…` variables over it and
//! `${NAME}` in its values; [`Dynamic`] is what the whole cluster shares; [`Config::effective`] lays the one over the
//! other for the server's version. All of it is pure: text and environment come in, plain data and
//! [`Diagnostics`] go out.
//!
//! Every key has an effect, or a finding that says what was done in its place. Reading goes on after a fault, so
//! that all of them are seen at once; an [`Error`](Severity::Error) means that there is no [`Config`].
//! `docs/agent/configuration.md` has the table of keys, and a test compares it with this code.
//!
//! ```
//! use leaderpool_agent::config::{Config, Environment, Severity};
//!
//! let text = "\
//! scope: demo
//! name: node1
//! restapi: {listen: '127.0.0.1:8008', connect_address: 'node1:8008'}
//! etcd3: {hosts: 'etcd:2379'}
//! postgresql:
//!   listen: 127.0.0.1:5432
//!   connect_address: node1:5432
//!   data_dir: /var/lib/postgresql/data
//!   authentication:
//!     replication: {username: replicator, password: secret}
//! ";
//! let (config, diagnostics) = Config::load(text, &Environment::new());
//! assert_eq!(diagnostics.count(Severity::Error), 0, "{diagnostics}");
//! let config = config.expect("no error, so a configuration");
//! assert_eq!(config.namespace, "service");
//! ```

mod address;
mod bootstrap;
mod changes;
mod command;
mod credentials;
mod diagnostics;
mod dynamic;
mod effective;
mod environment;
mod etcd;
mod expand;
mod hba;
mod load;
mod log;
mod options;
mod parameters;
mod postgresql;
mod restapi;
mod section;
mod suggest;
mod tags;
mod watchdog;
mod yaml;

#[cfg(test)]
mod tests;

pub use leaderpool::config::Secret;

pub use address::{HostPort, Listen};
pub use bootstrap::{Bootstrap, BootstrapMethod, BootstrapUser, CustomBootstrap, Document};
pub use changes::{Changes, ParameterChange, ServerSetting};
pub use command::Command;
pub use credentials::{Authentication, Credentials};
pub use diagnostics::{Code, Diagnostic, Diagnostics, Origin, Severity};
pub use dynamic::{
    ClusterType, Dynamic, PermanentSlot, SlotFilter, SlotKind, SynchronousMode, Timers,
};
pub use effective::{Effective, ReplicaMethod, Role, ServerFiles};
pub use environment::{Environment, variables};
pub use etcd::{Etcd, EtcdEndpoint};
pub use hba::Lines;
pub use load::{Config, known_keys};
pub use log::{Log, LogAttribute, LogForm, LogLevel, LogPiece};
pub use options::ToolOption;
pub use parameters::{
    CLUSTER_WIDE, COMMAND_LINE, Instance, Parameter, Parameters, Rendered, Server, ServerVersion,
    Settings, render, same_value,
};
pub use postgresql::{ByRole, Callbacks, Postgresql, ReplicaProgram, ServerOptions};
pub use restapi::{Allowed, BasicAuth, Ctl, RestApi, RestTls, ServerTokens, VerifyClient};
pub use tags::Tags;
pub use watchdog::{SafetyMargin, Watchdog, WatchdogMode};
