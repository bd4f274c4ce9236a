//! What sources say: members, claims, and whether the source answers at all.

use std::sync::Arc;

use tokio::time::Instant;

use super::event::{Action, Cadence, MemberSpec, SourceKind, TopologyEvent, WithdrawReason};
use super::machine::{Claim, Topology};
use super::refusal::Refusal;
use super::view::{MemberHealth, MemberView};
use crate::patroni::{ClusterSnapshot, Member};

impl Topology {
    pub(super) fn take_snapshot(
        &mut self,
        source: SourceKind,
        snapshot: &Arc<ClusterSnapshot>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        if source != self.config.main_source && self.view.degraded.is_none() {
            return;
        }
        self.contact(source, now, actions);
        self.view.source = source;
        if !self.same_cluster(snapshot, actions) {
            self.claim = None;
            return;
        }
        self.update_members(snapshot, now, actions);
        self.note_rejected(snapshot, actions);
        if let Some(config) = &snapshot.config {
            self.view.lease = config.lease();
            self.view.synchronous = config.is_synchronous();
        }
        if source == SourceKind::Etcd {
            self.view.history.clone_from(&snapshot.history);
        }
        self.view.switchover.clone_from(&snapshot.failover);
        if source != SourceKind::Fixed {
            self.update_claim(source, snapshot, now, actions);
        }
    }

    /// Whether the keys are still those of the cluster this pool was made for.
    pub(super) fn same_cluster(
        &mut self,
        snapshot: &ClusterSnapshot,
        actions: &mut Vec<Action>,
    ) -> bool {
        match (self.view.system_id, snapshot.system_id) {
            (Some(expected), Some(found)) if expected != found => {
                let refusal = Refusal::ClusterReplaced { expected, found };
                if self.view.refused.as_ref() != Some(&refusal) {
                    self.view.refused = Some(refusal.clone());
                    actions.push(Action::Tell(TopologyEvent::ClusterRefused { refusal }));
                }
                false
            }
            (known, found) => {
                self.view.system_id = known.or(found);
                self.view.refused = None;
                true
            }
        }
    }

    pub(super) fn update_members(
        &mut self,
        snapshot: &ClusterSnapshot,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        // A key that cannot be read says nothing new of its member: what was known of it stands.
        let unreadable = |name: &str| {
            snapshot.rejected.iter().any(|rejected| {
                rejected.key.strip_prefix("members/").is_some_and(|member| member == name)
            })
        };
        let gone: Vec<String> = self
            .view
            .members
            .values()
            .filter(|known| match snapshot.members.get(&known.name) {
                Some(listed) => listed.address().as_ref() != Ok(&known.address),
                None => !unreadable(&known.name),
            })
            .map(|known| known.name.clone())
            .collect();
        for name in gone {
            self.view.members.remove(&name);
            self.timeouts.remove(&name);
            if self.view.leader.admitted() == Some(&name) {
                let moved = match &snapshot.leader {
                    Some(leader) if leader.name != name => {
                        WithdrawReason::KeyMoved { to: leader.name.clone() }
                    }
                    Some(_) => WithdrawReason::Removed,
                    None => WithdrawReason::KeyGone,
                };
                self.withdraw(&name, moved, now, actions);
            }
            actions.push(Action::Tell(TopologyEvent::MemberRemoved { member: name.clone() }));
            actions.push(Action::RemoveMember(name));
        }
        for (name, listed) in &snapshot.members {
            self.update_member(name, listed, actions);
        }
    }

    pub(super) fn update_member(&mut self, name: &str, listed: &Member, actions: &mut Vec<Action>) {
        // Snapshots hold only members with a good address.
        let Ok(address) = listed.address() else { return };
        if let Some(known) = self.view.members.get_mut(name) {
            known.role = listed.role.clone();
            known.state = listed.state.clone();
            known.listed_timeline = listed.timeline;
            known.tags = listed.tags.clone();
            known.api_url.clone_from(&listed.api_url);
            return;
        }
        self.view.members.insert(
            name.to_owned(),
            MemberView {
                name: name.to_owned(),
                address: address.clone(),
                role: listed.role.clone(),
                state: listed.state.clone(),
                listed_timeline: listed.timeline,
                tags: listed.tags.clone(),
                api_url: listed.api_url.clone(),
                health: MemberHealth::Unknown,
                fresh_at: None,
                lag_bytes: None,
                cadence: Cadence::Normal,
            },
        );
        actions.push(Action::AddMember(MemberSpec {
            name: name.to_owned(),
            address: address.clone(),
        }));
        actions.push(Action::Tell(TopologyEvent::MemberAdded { member: name.to_owned(), address }));
    }

    pub(super) fn note_rejected(&mut self, snapshot: &ClusterSnapshot, actions: &mut Vec<Action>) {
        let rejected: Vec<(String, String)> = snapshot
            .rejected
            .iter()
            .map(|rejected| (rejected.key.clone(), rejected.reason.clone()))
            .collect();
        for (key, reason) in rejected.iter().filter(|pair| !self.view.rejected.contains(pair)) {
            actions.push(Action::Tell(TopologyEvent::KeyRejected {
                key: key.clone(),
                reason: reason.clone(),
            }));
        }
        self.view.rejected = rejected;
    }

    pub(super) fn update_claim(
        &mut self,
        source: SourceKind,
        snapshot: &ClusterSnapshot,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Some(leader) = &snapshot.leader else {
            // A leader key that cannot be read is no news of the leader, and neither is a fallback
            // that knows of none: while etcd is away the agents' own view grows old too.
            if source == self.config.main_source
                && !snapshot.rejected.iter().any(|rejected| rejected.key == "leader")
            {
                self.claim = None;
            }
            return;
        };
        // REST knows no revisions: the newest one stands.
        let known = self.claim.as_ref().map(|claim| claim.revision);
        let newest = known.max(self.view.epoch.map(|epoch| epoch.revision)).unwrap_or(0);
        let revision = if source == SourceKind::Etcd { leader.revision } else { newest };
        if let Some(claim) = &self.claim
            && claim.member == leader.name
            && claim.revision == revision
        {
            return;
        }
        self.claim_by(leader.name.clone(), revision, now, actions);
    }

    pub(super) fn claim_by(
        &mut self,
        member: String,
        revision: i64,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        actions.push(Action::Tell(TopologyEvent::Candidate { member: member.clone() }));
        self.claim = Some(Claim { member, revision, seen_at: now, proof_after: now, doubt: None });
    }

    pub(super) fn contact(&mut self, source: SourceKind, now: Instant, actions: &mut Vec<Action>) {
        if source != self.config.main_source {
            return;
        }
        self.view.contact_at = Some(now);
        if self.view.degraded.take().is_some() {
            actions.push(Action::StopFallback);
            actions.push(Action::Tell(TopologyEvent::Restored { source }));
        }
    }

    pub(super) fn source_lost(
        &mut self,
        source: SourceKind,
        reason: String,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        if source != self.config.main_source {
            return;
        }
        match &mut self.view.degraded {
            Some((_, known)) => *known = reason,
            None => {
                self.view.degraded = Some((now, reason.clone()));
                actions.push(Action::StartFallback);
                actions.push(Action::Tell(TopologyEvent::Degraded { source, reason }));
            }
        }
    }
}
