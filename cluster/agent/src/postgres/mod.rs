//! PostgreSQL as a child process.

pub mod binaries;
pub mod control;
mod error;
pub mod files;
pub mod process;
pub mod quote;
pub mod settings;
