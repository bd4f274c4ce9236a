//! The housekeeping of one member: what a checkout must not spend time on.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::member::Node;
use crate::config::PoolConfig;

/// How often the house is looked after, at most and at least.
const OFTEN: Duration = Duration::from_millis(50);
const SELDOM: Duration = Duration::from_secs(1);

/// Looks after the member until cancelled.
pub(super) async fn run(node: Arc<Node>, config: PoolConfig, cancel: CancellationToken) {
    let mut tick = interval((config.idle_timeout / 4).clamp(OFTEN, SELDOM));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while cancel.run_until_cancelled(tick.tick()).await.is_some() {
        node.guard.settle_up();
        node.sweep();
    }
}
