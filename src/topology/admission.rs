//! The two keys together: who is admitted, and when that ends.

use tokio::time::Instant;

use super::epoch::Epoch;
use super::event::{Action, SourceKind, TopologyEvent, WithdrawReason};
use super::machine::{Claim, FAILOVERS_KEPT, Loss, NOTICEABLE, Topology};
use super::refusal::Refusal;
use super::view::{FailoverRecord, LeaderState, MemberHealth};
use crate::patroni::Timeline;

/// What the two keys say together.
enum Verdict {
    Admit(Timeline),
    Refuse(WithdrawReason),
    /// No probe since the claim was made.
    Pending,
}

impl Topology {
    fn verdict(&self, claim: &Claim) -> Verdict {
        let Some(member) = self.view.members.get(&claim.member) else { return Verdict::Pending };
        let report = match &member.health {
            MemberHealth::Unknown => return Verdict::Pending,
            MemberHealth::Down { error, .. } => {
                return Verdict::Refuse(WithdrawReason::Unreachable { error: error.clone() });
            }
            MemberHealth::Refused(refusal) => {
                return Verdict::Refuse(WithdrawReason::Refused(refusal.clone()));
            }
            MemberHealth::Up(report) => report,
        };
        if report.in_recovery {
            return Verdict::Refuse(WithdrawReason::InRecovery);
        }
        let Some(asked) = self.asked.get(&claim.member) else { return Verdict::Pending };
        if asked.doubted_at.is_some() {
            return Verdict::Refuse(WithdrawReason::ShuttingDown);
        }
        if report.sent_at < claim.proof_after || asked.answered_in <= claim.proof_event {
            return Verdict::Pending;
        }
        if let Some(newest) = self.view.epoch
            && report.timeline == newest.timeline
            && claim.revision < newest.revision
            && self.last_leader.as_ref() != Some(&claim.member)
        {
            return Verdict::Refuse(WithdrawReason::Refused(Refusal::OldClaim {
                newest: newest.revision,
                found: claim.revision,
            }));
        }
        if let Some(hold) = self.view.hold.as_ref().filter(|hold| hold.leader == claim.member) {
            return Verdict::Refuse(WithdrawReason::Switchover { to: hold.to.clone() });
        }
        Verdict::Admit(report.timeline)
    }

    /// Brings the leader in line with what the two keys say now.
    pub(super) fn judge(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.config.main_source == SourceKind::Fixed {
            self.claim_from_probes(now, actions);
        }
        self.fence_the_spared(actions);
        let admitted = self.view.leader.admitted().map(str::to_owned);
        let Some(claim) = self.claim.clone() else {
            if let Some(name) = admitted {
                let reason = match &self.view.refused {
                    Some(refusal) => WithdrawReason::Refused(refusal.clone()),
                    None => WithdrawReason::KeyGone,
                };
                self.withdraw(&name, reason, now, actions);
            }
            self.set_leader(None, now);
            return;
        };
        if let Some(name) = &admitted
            && *name != claim.member
        {
            let reason = WithdrawReason::KeyMoved { to: claim.member.clone() };
            self.withdraw(name, reason, now, actions);
        }
        match self.verdict(&claim) {
            Verdict::Admit(timeline) => self.admit(&claim, timeline, now, actions),
            Verdict::Refuse(reason) => {
                if self.view.leader.admitted().is_some() {
                    self.withdraw(&claim.member, reason, now, actions);
                } else if let WithdrawReason::Refused(refusal @ Refusal::OldClaim { .. }) = reason
                    && self.told_refusal.as_ref() != Some(&refusal)
                {
                    self.told_refusal = Some(refusal.clone());
                    actions.push(Action::Tell(TopologyEvent::MemberRefused {
                        member: claim.member.clone(),
                        refusal,
                    }));
                }
                self.set_leader(Some(&claim), now);
            }
            Verdict::Pending => {
                // The key was deleted and made anew: what the member said before proves nothing now.
                if self.view.leader.admitted().is_some() {
                    self.withdraw(&claim.member, WithdrawReason::KeyGone, now, actions);
                }
                self.set_leader(Some(&claim), now);
            }
        }
    }

    /// Cuts the last leader's work in flight, spared so far, once it is known to be demoted.
    fn fence_the_spared(&mut self, actions: &mut Vec<Action>) {
        let Some(name) = self.unfenced.clone() else { return };
        let report = self.view.members.get(&name).and_then(|member| member.report());
        match &self.claim {
            Some(claim) if claim.member != name => {
                let reason = WithdrawReason::KeyMoved { to: claim.member.clone() };
                self.fence(&name, reason, actions);
            }
            _ if report.is_some_and(|report| report.in_recovery) => {
                self.fence(&name, WithdrawReason::InRecovery, actions);
            }
            _ => {}
        }
    }

    /// Without a key, the servers alone say who leads: once each of them was asked, the only one out of
    /// recovery on the newest timeline that any of them follows. Two of them on one timeline are one too
    /// many, and neither is believed.
    fn claim_from_probes(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let admitted = self.view.leader.admitted().is_some();
        let all_asked =
            self.asked.values().all(|asked| asked.answered_in > 0 || asked.failures > 0);
        let primaries = self.view.members.values().filter_map(|member| {
            let report = member.report()?;
            (!report.in_recovery).then_some((report, &member.name))
        });
        // Timelines of two clusters cannot be compared.
        let cluster = primaries.clone().next().map(|(report, _)| report.system_id);
        let comparable = (all_asked || admitted)
            && primaries.clone().all(|(report, _)| Some(report.system_id) == cluster);
        let newest = cluster.and_then(|cluster| self.newest_timeline(cluster));
        let mut named = primaries.filter(|(report, _)| Some(report.timeline) == newest);
        let only = match (named.next(), named.next()) {
            (Some((report, name)), None) if comparable => Some((report.sent_at, name.clone())),
            _ => None,
        };
        if only.is_none() {
            // A newer primary that cannot be reached still makes an older one a former one.
            self.reconsider(now, actions);
        }
        match only {
            Some((_, name)) if self.claim.as_ref().is_some_and(|c| c.member == name) => {}
            Some((sent_at, name)) => {
                self.claim_by(name, 0, now, actions);
                // The probe is the claim here: there is no key that it would have to follow.
                if let Some(claim) = &mut self.claim {
                    claim.proof_after = sent_at;
                    claim.proof_event = 0;
                }
            }
            None if self.view.leader.admitted().is_none() => self.claim = None,
            // The admitted one stays claimed until a probe of it fails.
            None => {}
        }
    }

    fn admit(
        &mut self,
        claim: &Claim,
        timeline: Timeline,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Some(system_id) = self.view.system_id.or_else(|| {
            self.view.members.get(&claim.member)?.report().map(|report| report.system_id)
        }) else {
            return;
        };
        self.view.system_id = Some(system_id);
        let known = self.view.epoch;
        let same_reign = known.is_some_and(|known| known.timeline == timeline)
            && self.last_leader.as_ref() == Some(&claim.member);
        let revision = match known {
            // The same member on the same timeline: the epoch never goes back with the store.
            Some(known) if known.timeline == timeline => claim.revision.max(known.revision),
            _ => claim.revision,
        };
        let epoch = Epoch { system_id, timeline, revision };
        if self.view.leader.admitted() == Some(&claim.member) && known == Some(epoch) {
            return;
        }
        if !same_reign {
            self.view.reign += 1;
            self.trail.clear();
            for member in self.view.members.values_mut() {
                member.lag_bytes = None;
            }
        }
        self.view.epoch = Some(epoch);
        self.last_leader = Some(claim.member.clone());
        self.told_refusal = None;
        self.unfenced = None;
        self.reconsider(now, actions);
        // Who is admitted again in the same reign was interrupted, not replaced; that is told where
        // somebody will have noticed.
        if let Some(loss) = self.loss.take()
            && (!same_reign || now.saturating_duration_since(loss.at) >= NOTICEABLE)
        {
            if self.view.failovers.len() == FAILOVERS_KEPT {
                self.view.failovers.remove(0);
            }
            self.view.failovers.push(FailoverRecord {
                from: Some(loss.from),
                to: claim.member.clone(),
                epoch,
                reason: loss.reason,
                lost_at: loss.at,
                claimed_at: claim.seen_at,
                admitted_at: now,
            });
        }
        if let Some(member) = self.view.members.get(&claim.member)
            && let Some(report) = member.report()
            && let Some(written) = report.written
        {
            self.trail.mark(report.sent_at, written);
        }
        if self.view.leader.admitted() != Some(&claim.member) {
            self.view.leader = LeaderState::Admitted { member: claim.member.clone(), since: now };
        }
        actions.push(Action::Admit { member: claim.member.clone(), epoch, reign: self.view.reign });
        actions.push(Action::Tell(TopologyEvent::Admitted { member: claim.member.clone(), epoch }));
    }

    pub(super) fn withdraw(
        &mut self,
        name: &str,
        reason: WithdrawReason,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        self.loss = Some(Loss { from: name.to_owned(), reason: reason.clone(), at: now });
        self.view.leader = LeaderState::Unknown { since: now };
        actions.push(Action::Withdraw { member: name.to_owned(), reason: reason.clone() });
        if reason.is_demotion() {
            self.fence(name, reason.clone(), actions);
        } else {
            self.unfenced = Some(name.to_owned());
        }
        actions.push(Action::Tell(TopologyEvent::LeaderLost { member: name.to_owned(), reason }));
    }

    /// At most once in one event: then nothing is left in flight.
    pub(super) fn fence(&mut self, name: &str, reason: WithdrawReason, actions: &mut Vec<Action>) {
        self.unfenced.take_if(|spared| spared == name);
        let fenced =
            |action: &Action| matches!(action, Action::Fence { member, .. } if member == name);
        if !actions.iter().any(fenced) {
            actions.push(Action::Fence { member: name.to_owned(), reason });
        }
    }

    /// Sets the unadmitted state, keeping `since` where nothing changes.
    fn set_leader(&mut self, claim: Option<&Claim>, now: Instant) {
        match (&self.view.leader, claim) {
            (LeaderState::Unknown { .. }, None) => {}
            (LeaderState::Claimed { member, .. }, Some(claim)) if *member == claim.member => {}
            (_, Some(claim)) => {
                self.view.leader =
                    LeaderState::Claimed { member: claim.member.clone(), since: now };
            }
            (_, None) => self.view.leader = LeaderState::Unknown { since: now },
        }
    }
}
