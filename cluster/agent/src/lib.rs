//! The cluster agent: what stands beside each PostgreSQL server and decides, together with its peers and
//! etcd, which of them leads.
//!
//! The rooms: [`config`] reads `patroni.yml`; [`dcs`] is the session with etcd; [`decide`] is the whole of
//! failover as one pure function; [`postgres`] is the server as a child process; [`rest`] answers Patroni's
//! HTTP API. Wire formats are those of `leaderpool::patroni`. The loop that joins them is still to come.

pub mod config;
pub mod dcs;
pub mod decide;
pub mod postgres;
pub mod rest;
