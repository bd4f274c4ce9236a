//! What happened, told once: a trace for the operator, and an event for subscribers.

use crate::pool::{EVENTS, Shared};
use crate::telemetry::Queue;
use crate::topology::{BreakerState, ClusterView, TopologyEvent, WithdrawReason};

impl Shared {
    /// Traces the event and passes it on.
    pub(crate) fn tell(&self, event: TopologyEvent) {
        if let TopologyEvent::BreakerChanged { member, from, to, .. } = &event {
            self.meter.breaker_changed(member, *from, *to);
        }
        trace(&event, &self.view.load());
        self.send(event);
    }

    /// Passes the event on to subscribers.
    pub(crate) fn send(&self, event: TopologyEvent) {
        // A subscriber has not taken the oldest, and loses it now.
        if self.events.len() >= EVENTS {
            self.meter.dropped(Queue::Subscribers);
        }
        // Nobody may be listening.
        let _ = self.events.send(event);
    }
}

/// Tells the operator.
pub(crate) fn trace(event: &TopologyEvent, view: &ClusterView) {
    match event {
        TopologyEvent::LeaderLost {
            member,
            reason: reason @ WithdrawReason::Switchover { .. },
        } => {
            tracing::info!(member, %reason, "the leader is asked to go, writes are held");
        }
        TopologyEvent::LeaderLost { member, reason } => {
            tracing::warn!(member, %reason, "leader lost, writes are held");
        }
        TopologyEvent::Candidate { member } => tracing::info!(member, "leader key taken"),
        TopologyEvent::Admitted { member, epoch } => {
            let gap = view.failovers.last().map(|last| last.admitted_at - last.lost_at);
            tracing::info!(member, %epoch, ?gap, "leader admitted");
        }
        TopologyEvent::Degraded { source, reason } => {
            tracing::warn!(%source, reason, "no answer, the last view is kept");
        }
        TopologyEvent::Restored { source } => tracing::info!(%source, "answers again"),
        TopologyEvent::MemberRefused { member, refusal } => {
            tracing::error!(member, %refusal, "member refused");
        }
        TopologyEvent::ClusterRefused { refusal } => tracing::error!(%refusal, "cluster refused"),
        TopologyEvent::MemberAdded { member, address } => {
            tracing::info!(member, %address, "member added");
        }
        TopologyEvent::MemberRemoved { member } => tracing::info!(member, "member removed"),
        TopologyEvent::WritesLost { timeline, switch_lsn, count } => {
            tracing::error!(%timeline, %switch_lsn, count, "acknowledged commits were lost");
        }
        TopologyEvent::KeyRejected { key, reason } => {
            tracing::warn!(key, reason, "key left out");
        }
        TopologyEvent::BreakerChanged { member, from, to, reason } => match (from, to) {
            (BreakerState::Closed, _) => {
                tracing::warn!(member, %from, %to, reason, "reads are kept off the member");
            }
            (_, BreakerState::Closed) => {
                tracing::info!(member, %from, %to, reason, "the member is read from again");
            }
            (_, BreakerState::Open | BreakerState::HalfOpen) => {
                tracing::debug!(member, %from, %to, reason, "circuit breaker");
            }
        },
    }
}
