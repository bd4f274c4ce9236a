mod capture;
mod documentation;
#[cfg(feature = "metrics")]
mod metrics;
mod spans;

use std::time::Duration;

use crate::{Config, LeaderPool};

/// A pool whose only server is not there.
fn pool(name: &str) -> LeaderPool {
    let config = Config::builder()
        .fixed(["127.0.0.1:1"])
        .user("app")
        .dbname("shop")
        .name(name)
        .connect_timeout(Duration::from_millis(20))
        .write_timeout(Duration::from_millis(50))
        .read_timeout(Duration::from_millis(50))
        .build()
        .expect("a configuration");
    LeaderPool::connect_lazy(config).expect("a pool")
}
