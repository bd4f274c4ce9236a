//! The session with etcd: lease, compare-and-swap, watch.
