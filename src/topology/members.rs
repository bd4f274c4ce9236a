//! What members say of themselves, by probes and through the connections in use.

use tokio::time::Instant;

use super::event::{Action, ProbeFailure, ProbeReport, Suspicion, TopologyEvent, WithdrawReason};
use super::machine::Topology;
use super::refusal::Refusal;
use super::view::MemberHealth;
use crate::patroni::ServerAddress;

impl Topology {
    pub(super) fn probed(
        &mut self,
        name: &str,
        address: &ServerAddress,
        result: Result<ProbeReport, ProbeFailure>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let system_id = self.view.system_id;
        let Some(member) = self.view.members.get_mut(name) else { return };
        if member.address != *address {
            return;
        }
        match result {
            Ok(report) => {
                if member.report().is_some_and(|last| last.sent_at > report.sent_at) {
                    return;
                }
                self.timeouts.remove(name);
                if let Some(expected) = system_id
                    && expected != report.system_id
                {
                    let refusal = Refusal::ForeignServer { expected, found: report.system_id };
                    self.refuse(name, refusal, actions);
                    return;
                }
                self.take_report(name, report, actions);
            }
            Err(failure) => {
                let failures = self.timeouts.entry(name.to_owned()).or_default();
                *failures = failures.saturating_add(1);
                let failures = *failures;
                let sure = match &failure {
                    ProbeFailure::Refused(_) | ProbeFailure::Failed(_) => true,
                    ProbeFailure::TimedOut(_) => failures >= self.config.timeouts_before_down,
                };
                let since = match &member.health {
                    MemberHealth::Down { since, .. } => *since,
                    MemberHealth::Unknown | MemberHealth::Up(_) | MemberHealth::Refused(_) => now,
                };
                let already_down = matches!(member.health, MemberHealth::Down { .. });
                if sure || already_down {
                    member.health =
                        MemberHealth::Down { since, error: failure.to_string(), failures };
                }
            }
        }
    }

    pub(super) fn take_report(
        &mut self,
        name: &str,
        report: ProbeReport,
        actions: &mut Vec<Action>,
    ) {
        if let Some(epoch) = self.view.epoch
            && !report.in_recovery
            && report.timeline < epoch.timeline
        {
            let refusal = Refusal::OldTimeline { newest: epoch.timeline, found: report.timeline };
            self.refuse(name, refusal, actions);
            return;
        }
        if self.view.leader.admitted() == Some(name)
            && let Some(written) = report.written
            && self.view.epoch.is_some_and(|epoch| epoch.timeline == report.timeline)
        {
            self.trail.mark(report.sent_at, written);
        }
        let Some(member) = self.view.members.get_mut(name) else { return };
        member.health = MemberHealth::Up(report.clone());
        if !report.in_recovery {
            member.fresh_at = None;
            member.lag_bytes = None;
            return;
        }
        // Positions of another timeline cannot be compared with the leader's.
        if self.view.epoch.map(|epoch| epoch.timeline) != member.timeline() {
            member.lag_bytes = None;
            return;
        }
        if let Some(replayed) = report.replayed {
            let by_position = self.trail.caught_up_at(replayed);
            let by_clock = report.replay_age.and_then(|age| report.sent_at.checked_sub(age));
            member.fresh_at = member.fresh_at.max(by_position).max(by_clock);
            member.lag_bytes =
                self.trail.last_position().map(|written| written.bytes_since(replayed));
        }
    }

    pub(super) fn refuse(&mut self, name: &str, refusal: Refusal, actions: &mut Vec<Action>) {
        let Some(member) = self.view.members.get_mut(name) else { return };
        if member.health == MemberHealth::Refused(refusal.clone()) {
            return;
        }
        member.health = MemberHealth::Refused(refusal.clone());
        member.fresh_at = None;
        member.lag_bytes = None;
        actions.push(Action::Tell(TopologyEvent::MemberRefused {
            member: name.to_owned(),
            refusal: refusal.clone(),
        }));
        actions.push(Action::Fence {
            member: name.to_owned(),
            reason: WithdrawReason::Refused(refusal),
        });
    }

    pub(super) fn suspect(
        &mut self,
        name: &str,
        cause: Suspicion,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        if !self.view.members.contains_key(name) {
            return;
        }
        if cause == Suspicion::ShuttingDown
            && self.view.leader.admitted() == Some(name)
            && let Some(claim) = &mut self.claim
        {
            // It may be one session that was ended, not the server: the next probe tells, in one
            // round trip. Until then a write would meet a server that is going away.
            claim.proof_after = now;
            claim.doubt = Some(WithdrawReason::ShuttingDown);
        }
        actions.push(Action::ProbeNow(name.to_owned()));
    }
}
