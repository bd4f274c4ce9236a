//! What sources say: members, claims, and whether the source answers at all.

use std::sync::Arc;

use tokio::time::Instant;

use super::event::{Action, Cadence, MemberSpec, SourceKind, TopologyEvent, WithdrawReason};
use super::machine::{Asked, Claim, Topology};
use super::refusal::Refusal;
use super::view::{MemberHealth, MemberView};
use crate::patroni::{ClusterSnapshot, Member, SyncState, Timeline};

/// What a snapshot says of the leader.
enum LeaderNews {
    /// Nothing that is new, or to be believed.
    None,
    Gone,
    Names {
        member: String,
        revision: i64,
    },
}

impl Topology {
    pub(super) fn take_snapshot(
        &mut self,
        source: SourceKind,
        snapshot: &Arc<ClusterSnapshot>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let is_main = source == self.config.main_source;
        if !is_main && self.view.degraded.is_none() {
            return;
        }
        self.contact(source, now, actions);
        if is_main {
            self.last_word = Some(Arc::clone(snapshot));
        }
        let is_ours = self.same_cluster(is_main, snapshot, now, actions);
        // A fallback's word of a request is as old as its agents' own view.
        if is_main {
            self.note_request(Some(&**snapshot).filter(|_| is_ours));
        }
        if !is_ours {
            return;
        }
        self.view.source = source;
        let news = self.leader_news(source, snapshot);
        self.update_members(is_main, snapshot, &news, now, actions);
        self.note_rejected(snapshot, actions);
        if let Some(config) = &snapshot.config {
            self.view.lease = config.lease();
            self.view.synchronous = config.is_synchronous();
        }
        let standbys = snapshot.sync.iter().flat_map(SyncState::standbys);
        self.view.sync_standbys = standbys.map(str::to_owned).collect();
        if source == SourceKind::Etcd {
            self.view.history.clone_from(&snapshot.history);
        }
        if is_main {
            self.view.switchover.clone_from(&snapshot.failover);
        }
        match news {
            LeaderNews::None => {}
            LeaderNews::Gone => self.claim = None,
            LeaderNews::Names { member, revision } => self.claim_by(member, revision, now, actions),
        }
    }

    /// Whether the snapshot shows the cluster this pool was made for.
    fn same_cluster(
        &mut self,
        is_main: bool,
        snapshot: &ClusterSnapshot,
        now: Instant,
        actions: &mut Vec<Action>,
    ) -> bool {
        match (self.view.system_id, snapshot.system_id) {
            (Some(expected), Some(found)) if expected != found => {
                let refusal = Refusal::ClusterReplaced { expected, found };
                // A fallback may be at a wrong address: that is no word of this cluster.
                let told = if is_main { &mut self.view.refused } else { &mut self.told_refusal };
                if told.as_ref() != Some(&refusal) {
                    *told = Some(refusal.clone());
                    actions.push(Action::Tell(TopologyEvent::ClusterRefused { refusal }));
                }
                if is_main {
                    self.claim = None;
                }
                false
            }
            (Some(_), _) | (None, None) => {
                self.view.refused = None;
                true
            }
            (None, Some(found)) => {
                self.view.system_id = Some(found);
                self.reconsider(now, actions);
                true
            }
        }
    }

    fn leader_news(&self, source: SourceKind, snapshot: &ClusterSnapshot) -> LeaderNews {
        let is_main = source == self.config.main_source;
        let Some(leader) = &snapshot.leader else {
            // A leader key that cannot be read is no news of the leader, and neither is a fallback
            // that knows of none: while etcd is away the agents' own view grows old too. A host
            // list has no leader key at all.
            let unreadable = snapshot.rejected.iter().any(|rejected| rejected.key == "leader");
            return if is_main && source != SourceKind::Fixed && !unreadable {
                LeaderNews::Gone
            } else {
                LeaderNews::None
            };
        };
        let known = self.claim.as_ref().filter(|claim| claim.member == leader.name);
        if source == SourceKind::Etcd {
            return match known {
                Some(claim) if claim.revision == leader.revision => LeaderNews::None,
                _ => LeaderNews::Names { member: leader.name.clone(), revision: leader.revision },
            };
        }
        let listed = snapshot.members.get(&leader.name).and_then(|member| member.timeline);
        if known.is_some() || self.is_old_news(is_main, listed) {
            return LeaderNews::None;
        }
        // There are no revisions here: the newest one stands.
        let claimed = self.claim.as_ref().map(|claim| claim.revision);
        let revision = claimed.max(self.view.epoch.map(|epoch| epoch.revision)).unwrap_or(0);
        LeaderNews::Names { member: leader.name.clone(), revision }
    }

    /// Whether another leader, named without a revision and on the timeline `listed`, is an answer from
    /// the past. A leader that confirms itself gives way only to one that can be newer; for a
    /// fallback, which may ask a member that is cut off, to one that is.
    fn is_old_news(&self, is_main: bool, listed: Option<Timeline>) -> bool {
        let Some(epoch) = self.view.epoch else { return false };
        self.view.leader.admitted().is_some()
            && if is_main {
                listed.is_some_and(|timeline| timeline < epoch.timeline)
            } else {
                listed.is_none_or(|timeline| timeline <= epoch.timeline)
            }
    }

    fn update_members(
        &mut self,
        is_main: bool,
        snapshot: &ClusterSnapshot,
        news: &LeaderNews,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        // A key that cannot be read says nothing new of its member: what was known of it stands.
        let unreadable = |name: &str| {
            snapshot.rejected.iter().any(|rejected| {
                rejected.key.strip_prefix("members/").is_some_and(|member| member == name)
            })
        };
        // Nor does a fallback's silence take the leader away.
        let kept = self.claim.as_ref().filter(|_| !is_main).map(|claim| claim.member.as_str());
        let gone: Vec<String> = self
            .view
            .members
            .values()
            .filter(|known| match snapshot.members.get(&known.name) {
                Some(listed) => listed.address().as_ref() != Ok(&known.address),
                None => !unreadable(&known.name) && kept != Some(&known.name),
            })
            .map(|known| known.name.clone())
            .collect();
        for name in gone {
            self.view.members.remove(&name);
            self.asked.remove(&name);
            if self.view.leader.admitted() == Some(&name) {
                let reason = match news {
                    LeaderNews::Names { member, .. } if *member != name => {
                        WithdrawReason::KeyMoved { to: member.clone() }
                    }
                    LeaderNews::Gone => WithdrawReason::KeyGone,
                    LeaderNews::Names { .. } | LeaderNews::None => WithdrawReason::Removed,
                };
                self.withdraw(&name, reason, now, actions);
            }
            // Later there would be no node left to cut its work on.
            if self.unfenced.as_ref() == Some(&name) {
                self.fence(&name, WithdrawReason::Removed, actions);
            }
            actions.push(Action::Tell(TopologyEvent::MemberRemoved { member: name.clone() }));
            actions.push(Action::RemoveMember(name));
        }
        for (name, listed) in &snapshot.members {
            self.update_member(name, listed, now, actions);
        }
    }

    fn update_member(
        &mut self,
        name: &str,
        listed: &Member,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
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
        self.asked.insert(
            name.to_owned(),
            Asked { newest: now, answered_in: 0, failures: 0, word: None, doubted_at: None },
        );
        actions.push(Action::AddMember(MemberSpec {
            name: name.to_owned(),
            address: address.clone(),
        }));
        actions.push(Action::Tell(TopologyEvent::MemberAdded { member: name.to_owned(), address }));
    }

    fn note_rejected(&mut self, snapshot: &ClusterSnapshot, actions: &mut Vec<Action>) {
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

    pub(super) fn claim_by(
        &mut self,
        member: String,
        revision: i64,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        actions.push(Action::Tell(TopologyEvent::Candidate { member: member.clone() }));
        let proof_event = self.event_number();
        self.claim = Some(Claim { member, revision, seen_at: now, proof_after: now, proof_event });
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

    /// The main source answered that nothing has changed since its last snapshot: what a fallback said
    /// meanwhile gives way to that, unless it led to another leader, and that one proved itself.
    pub(super) fn believe_main_again(
        &mut self,
        source: SourceKind,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        if source != self.config.main_source || self.view.source == source {
            return;
        }
        let Some(snapshot) = self.last_word.clone() else { return };
        let named = snapshot.leader.as_ref().map(|leader| leader.name.as_str());
        if self.view.leader.admitted().is_none_or(|name| named == Some(name)) {
            self.take_snapshot(source, &snapshot, now, actions);
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
