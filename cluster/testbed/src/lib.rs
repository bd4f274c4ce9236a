//! Real PostgreSQL clusters on one machine, to be started, broken and watched.
//!
//! A [`Cluster`] is etcd (one or three members), PostgreSQL under a cluster [`Manager`], and HAProxy if wanted: all of
//! them real processes on loopback ports, living under one run directory. Two rules hold throughout:
//!
//! - **A process belongs to what its working directory lies under.** Every process is started inside the run
//!   directory, and PostgreSQL's backends work in their data directory, so a node is "whatever has its working
//!   directory below the node's": no process group or session can say that, as Patroni detaches its postmaster.
//! - **Nothing outlives its parent.** A guardian holds one end of a pipe; when the other end closes, however the
//!   parent died, it kills whatever is left below the run directory.

mod builder;
mod cluster;
pub mod etcd;
mod fault;
pub mod haproxy;
mod health;
pub mod http;
pub mod logs;
mod manager;
mod node;
mod poller;
pub mod ports;
pub mod postgres;
pub mod process;
mod progress;
mod rundir;
pub mod tls;
pub mod wait;

pub use builder::{ClusterBuilder, Dynamic, EtcdSecurity, PostgresTls};
pub use cluster::Cluster;
pub use manager::Manager;
pub use node::Node;
pub use poller::{Interval, Sighting, WritablePoller};
pub use ports::Ports;
pub use progress::Progress;
