//! The REST API over real sockets, and beside a real Patroni.

mod bed;
mod commands;
mod conformance;
mod haproxy;
mod limits;
mod security;
