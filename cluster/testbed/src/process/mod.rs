//! Starting processes that cannot outlive us, and signalling them.

mod guardian;
mod identity;
mod launch;
pub mod scan;

pub use guardian::Guardian;
pub use identity::RunAs;
pub use launch::{Launch, Process};
