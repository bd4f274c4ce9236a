//! The session with etcd, on real ones.

mod bed;
mod faults;
mod lease;
mod proxy;
mod security;
mod writes;
