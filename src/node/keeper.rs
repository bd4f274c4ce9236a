//! The housekeeping of one member: what neither a checkout nor a statement must spend time on.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::hung::Statements;
use super::member::Node;
use crate::config::PoolConfig;

/// How often the house is looked after, at most and at least.
const OFTEN: Duration = Duration::from_millis(50);
const SELDOM: Duration = Duration::from_secs(1);

/// Looks after the member until cancelled.
pub(super) async fn run(node: Arc<Node>, config: PoolConfig, cancel: CancellationToken) {
    let mut tick = interval(period(&config));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut statements = Statements::default();
    while cancel.run_until_cancelled(tick.tick()).await.is_some() {
        node.guard.settle_up();
        let now = Instant::now();
        let look = statements.look(&node.wires(), config.hung_after, now);
        if look.answered {
            node.gave_a_sign(now);
        }
        node.set_hung(if config.hung_after.is_zero() { 0 } else { look.hung });
        if let Some(leaks) = &node.leaks {
            leaks.look(&node.name, now);
        }
    }
}

/// A quarter of the shortest time that is looked after.
fn period(config: &PoolConfig) -> Duration {
    let bounds = [config.hung_after, config.leak_after];
    let shortest = bounds.into_iter().filter(|bound| !bound.is_zero()).min();
    shortest.map_or(SELDOM, |bound| (bound / 4).clamp(OFTEN, SELDOM))
}
