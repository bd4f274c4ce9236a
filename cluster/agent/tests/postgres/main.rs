//! The server beside the agent, on real PostgreSQL. Times are printed, not asserted: `cargo test -p leaderpool-agent --test
//! postgres -- --nocapture`.

#![allow(clippy::unwrap_used, reason = "a failed test says enough")]

mod bed;

mod configuration;
mod failures;
mod fencing;
mod life;
mod rejoining;
mod replicating;
