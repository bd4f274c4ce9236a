//! Patroni's HTTP API.
//!
//! The run loop writes a [`NodeStatus`]; everything that only reads is answered from it by pure functions
//! (`routes`, `health`, `body`), with the lock judged at the moment of the request. What changes something
//! goes to the run loop as a [`Command`] (`parse`), and its outcome comes back in Patroni's words (`outcome`).
//! `access` says who may ask for that; `server` and `handler` are the thin shell of HTTP around it.

mod access;
mod answer;
mod body;
mod commands;
mod handler;
mod health;
mod outcome;
mod parse;
mod query;
mod routes;
mod server;
mod settings;
mod status;
#[cfg(test)]
mod tests;
mod tls;

pub use answer::Answer;
pub use body::{cluster_body, metrics_text, postmaster_start_time, status_body};
pub use commands::{
    CancelOutcome, ChangeKind, Command, ConfigOutcome, FailsafeOutcome, FailsafeRequest,
    ReinitializeOutcome, Reply, Restart, RestartOutcome, Switchover, SwitchoverOutcome,
};
pub use health::{PrimaryRule, health_code, liveness_code, readiness_code};
pub use parse::{iso_time, merge_patch};
pub use query::{Query, parse_bytes, parse_seconds};
pub use routes::{Action, Route, read_answer};
pub use server::{RestError, RestServer, RestSources};
pub use settings::{RestSettings, RestTls, VerifyClient};
pub use status::{
    ClusterFacts, ClusterMode, Identity, Moment, NodeStatus, ReplicationRow, ServerSample,
    Synchronous,
};
