//! leaderpool
pub mod patroni;
pub mod topology;
