//! PostgreSQL beside the agent: a real server, started, watched, stopped, promoted, rewound and copied.
//!
//! [`Postgres`] is one server with everything that is done to it; the rest of the agent needs little else. Below it, by concern:
//! [`binaries`] (PostgreSQL's programs, and running them to their end), [`process`] (the server as a process, and the
//! [fence](process::Fence)), [`files`] (its configuration), [`control`] (its control file), [`session`] (the agent's
//! connection to it), [`replication`] (promotion, following, slots, synchronous standbys), [`rejoin`] (coming back after a
//! failover), [`clone`](mod@clone) and [`bootstrap`] (new data), [`callbacks`].
//!
//! What holds throughout: every wait has a deadline; dropping a future leaves nothing half done that the next call cannot take
//! up; nothing is run by a shell but what PostgreSQL itself defines as a shell's line; and data are never thrown away without
//! being told to.

pub mod binaries;
pub mod bootstrap;
pub mod callbacks;
pub mod clone;
pub mod control;
mod error;
pub mod files;
mod node;
mod outcome;
pub mod process;
pub mod quote;
pub mod rejoin;
pub mod replication;
pub mod session;
pub mod settings;
mod site;

pub use error::FileError;
pub use node::Postgres;
pub use outcome::{Applied, ApplyError, CreateError, SetSyncNamesError, Started};
pub use site::{Site, SiteError};
