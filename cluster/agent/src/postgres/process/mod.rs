//! The server as a process: whom it runs as, starting it, finding it again, watching it, stopping it.
//!
//! The server does not die with the agent. It has a session of its own, and a later agent finds it by its
//! `postmaster.pid` and adopts it. Either way it is watched through a pidfd: its death is an event, not the result of
//! a look, and a signal to it can never reach a stranger that got the same process id.

mod fence;
mod identity;
mod launch;
mod pidfile;
mod procfs;
mod remains;
mod server;
mod stop;
mod watch;

pub use fence::{Fence, FenceHandle, FenceSignal, Fenced, Killed};
pub use identity::{DataDirError, Identity, IdentityError};
pub(crate) use launch::Launch;
pub use launch::StartError;
pub use pidfile::{NAME as PID_FILE, PidFile, PostmasterStatus};
pub use remains::RemainsError;
pub(crate) use remains::{clear_remains, running_pid};
pub use server::{AdoptError, Server, ServerExit};
pub use stop::{StopError, StopMode, StopPlan, StopStep, Stopped};
pub(crate) use watch::DirWatch;
