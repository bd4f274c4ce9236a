//! The spans of a failover.

use tracing::field::Empty;
use tracing::{Span, info_span};

use super::failover::{Phase, Step};

/// Those that are open now.
#[derive(Debug)]
pub(super) struct FailoverSpans {
    pool: String,
    root: Span,
    phase: Span,
    /// The most writers that waited at once.
    held: usize,
}

impl FailoverSpans {
    pub(super) fn new(pool: String) -> Self {
        Self { pool, root: Span::none(), phase: Span::none(), held: 0 }
    }

    /// The span of the whole; none where no failover is going on.
    pub(super) fn root(&self) -> &Span {
        &self.root
    }

    /// Carries one step out. `held` is how many writers have waited at once since the gate was closed.
    pub(super) fn carry_out(&mut self, step: &Step, held: usize) {
        self.held = self.held.max(held);
        match step {
            Step::Begin { old, epoch, reason } => {
                self.held = held;
                self.root = info_span!(
                    parent: None,
                    "leaderpool.failover",
                    otel.kind = "internal",
                    leaderpool.pool = self.pool,
                    leaderpool.leader.old = old,
                    leaderpool.leader.new = Empty,
                    leaderpool.epoch.old = epoch.map(tracing::field::display),
                    leaderpool.epoch.new = Empty,
                    leaderpool.failover.reason = reason,
                    leaderpool.failover.kind = Empty,
                    leaderpool.failover.gap_seconds = Empty,
                    leaderpool.failover.first_write_seconds = Empty,
                    leaderpool.failover.writers_held = Empty,
                    leaderpool.failover.end = Empty,
                );
            }
            Step::Enter(phase) => {
                // Ends the one before at the moment at which this one begins.
                self.phase = match phase {
                    Phase::Election => {
                        info_span!(parent: &self.root, "leaderpool.failover.election")
                    }
                    Phase::Promotion(member) => info_span!(
                        parent: &self.root,
                        "leaderpool.failover.promotion",
                        leaderpool.node = member,
                    ),
                    Phase::FirstWrite => {
                        info_span!(parent: &self.root, "leaderpool.failover.first_write")
                    }
                };
            }
            Step::Admitted { new, epoch, kind, total, .. } => {
                self.root.record("leaderpool.leader.new", new);
                self.root.record("leaderpool.epoch.new", tracing::field::display(epoch));
                self.root.record("leaderpool.failover.kind", kind.as_str());
                self.root.record("leaderpool.failover.gap_seconds", total.as_secs_f64());
                self.root.record("leaderpool.failover.writers_held", self.held as u64);
            }
            Step::End { how, first_write } => {
                if let Some(first_write) = first_write {
                    let seconds = first_write.as_secs_f64();
                    self.root.record("leaderpool.failover.first_write_seconds", seconds);
                }
                self.root.record("leaderpool.failover.writers_held", self.held as u64);
                self.root.record("leaderpool.failover.end", how.as_str());
                self.phase = Span::none();
                self.root = Span::none();
            }
        }
    }
}
