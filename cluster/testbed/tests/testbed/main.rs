//! The testbed's own tests: one program, so that the clusters, which mostly wait, run side by side.

mod guardian;
mod options;
mod patroni;
