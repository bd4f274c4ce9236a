//! What members say of themselves, by probes and through the connections in use.

use tokio::time::Instant;

use super::event::{
    Action, ProbeFailure, ProbeReport, SourceKind, Suspicion, TopologyEvent, WithdrawReason,
};
use super::machine::Topology;
use super::refusal::Refusal;
use super::view::MemberHealth;
use crate::patroni::{ServerAddress, SystemId, Timeline};

impl Topology {
    pub(super) fn probed(
        &mut self,
        name: &str,
        address: &ServerAddress,
        result: Result<ProbeReport, ProbeFailure>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let event = self.event_number();
        let Some(member) = self.view.members.get_mut(name) else { return };
        let Some(asked) = self.asked.get_mut(name) else { return };
        if member.address != *address {
            return;
        }
        match result {
            Ok(report) => {
                if report.sent_at < asked.newest {
                    return;
                }
                asked.newest = report.sent_at;
                asked.answered_in = event;
                asked.failures = 0;
                asked.word = Some((report.system_id, report.timeline));
                if asked.doubted_at.is_some_and(|at| at <= report.sent_at) {
                    asked.doubted_at = None;
                }
                self.take_report(name, report, now, actions);
            }
            Err(failure) => {
                asked.failures = asked.failures.saturating_add(1);
                let failures = asked.failures;
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

    /// Why a member that says this may not be used.
    fn objection(&self, report: &ProbeReport) -> Option<Refusal> {
        if let Some(expected) = self.view.system_id
            && expected != report.system_id
        {
            return Some(Refusal::ForeignServer { expected, found: report.system_id });
        }
        let newest = self.newest_timeline(report.system_id)?;
        (!report.in_recovery && report.timeline < newest)
            .then_some(Refusal::OldTimeline { newest, found: report.timeline })
    }

    /// The newest timeline that counts against a primary of this cluster. With keys that is the last admitted
    /// leader's. Without, all have a say, and so a replica that follows a newer primary than can be reached
    /// speaks for it; the last word counts, as who falls silent has not taken it back.
    pub(super) fn newest_timeline(&self, cluster: SystemId) -> Option<Timeline> {
        let admitted = self.view.epoch.map(|epoch| epoch.timeline);
        if self.config.main_source != SourceKind::Fixed {
            return admitted;
        }
        let words = self.asked.values().filter_map(|asked| asked.word);
        words.filter(|(id, _)| *id == cluster).map(|(_, timeline)| timeline).max().max(admitted)
    }

    /// Looks again at what was answered before the cluster's identifier or newest timeline was known.
    pub(super) fn reconsider(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let refused: Vec<(String, Refusal)> = self
            .view
            .members
            .values()
            .filter_map(|member| Some((member.name.clone(), self.objection(member.report()?)?)))
            .collect();
        for (name, refusal) in refused {
            self.refuse(&name, refusal, now, actions);
        }
    }

    fn take_report(
        &mut self,
        name: &str,
        report: ProbeReport,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        if let Some(refusal) = self.objection(&report) {
            self.refuse(name, refusal, now, actions);
            return;
        }
        let timeline = self.view.epoch.map(|epoch| epoch.timeline);
        // Held writes do not end the reign.
        let leads = self.view.leader.admitted() == Some(name)
            || (self.is_held(name) && timeline == Some(report.timeline));
        if leads && let Some(written) = report.written {
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

    fn refuse(&mut self, name: &str, refusal: Refusal, now: Instant, actions: &mut Vec<Action>) {
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
        let reason = WithdrawReason::Refused(refusal);
        if self.view.leader.admitted() == Some(name) {
            self.withdraw(name, reason, now, actions);
        } else {
            self.fence(name, reason, actions);
        }
    }

    /// Whether writes to it are held although its reign goes on.
    fn is_held(&self, name: &str) -> bool {
        self.last_leader.as_deref() == Some(name)
            && self.view.hold.as_ref().is_some_and(|hold| hold.leader == name)
    }

    pub(super) fn suspect(
        &mut self,
        name: &str,
        cause: Suspicion,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let leads = self.view.leader.admitted() == Some(name) || self.is_held(name);
        let Some(asked) = self.asked.get_mut(name) else { return };
        if cause == Suspicion::ShuttingDown && leads {
            // It may be one session that was ended, not the server: the next probe tells, in one
            // round trip. Until then a write would meet a server that is going away.
            asked.doubted_at = Some(now);
        }
        // Of one that is down already this is no news, and each failed attempt to reach it says so.
        if self.view.members.get(name).is_some_and(|member| member.report().is_some()) {
            actions.push(Action::ProbeNow(name.to_owned()));
        }
    }
}
