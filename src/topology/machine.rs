//! The state machine itself.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::event::{Action, Cadence, Event, SourceKind, WithdrawReason};
use super::refusal::Refusal;
use super::trail::LeaderTrail;
use super::view::{ClusterView, LeaderState};
use crate::patroni::{DynamicConfig, MemberRole};

/// Changes of leader kept for the report.
pub(super) const FAILOVERS_KEPT: usize = 16;

/// Bounds of the state machine.
#[derive(Debug, Clone, Copy)]
pub struct TopologyConfig {
    /// The source whose word counts; the others are fallbacks.
    pub main_source: SourceKind,
    /// Probes in a row without an answer in time, after which a member counts as down. At least 1.
    pub timeouts_before_down: u32,
    /// How long an unproved claim is probed urgently before the rate drops.
    pub urgent_for: Duration,
}

impl Default for TopologyConfig {
    fn default() -> Self {
        Self {
            main_source: SourceKind::Etcd,
            timeouts_before_down: 2,
            urgent_for: Duration::from_secs(120),
        }
    }
}

/// The leader key as last seen.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub(super) member: String,
    pub(super) revision: i64,
    pub(super) seen_at: Instant,
    /// Only a probe sent after this proves the claim.
    pub(super) proof_after: Instant,
    /// Why the proof starts anew, where it does.
    pub(super) doubt: Option<WithdrawReason>,
}

#[derive(Debug, Clone)]
pub(super) struct Loss {
    pub(super) from: String,
    pub(super) reason: WithdrawReason,
    pub(super) at: Instant,
}

/// Follows one cluster. See the [module](crate::topology) for the rules.
#[derive(Debug)]
pub struct Topology {
    pub(super) config: TopologyConfig,
    pub(super) view: ClusterView,
    pub(super) claim: Option<Claim>,
    /// The member of the newest epoch.
    pub(super) last_leader: Option<String>,
    pub(super) loss: Option<Loss>,
    pub(super) trail: LeaderTrail,
    pub(super) timeouts: BTreeMap<String, u32>,
    pub(super) told_claim_refusal: Option<Refusal>,
}

impl Topology {
    /// A cluster of which nothing is known yet.
    #[must_use]
    pub fn new(config: TopologyConfig, now: Instant) -> Self {
        let defaults = DynamicConfig::default();
        Self {
            config,
            view: ClusterView {
                version: 0,
                system_id: None,
                epoch: None,
                reign: 0,
                leader: LeaderState::Unknown { since: now },
                members: BTreeMap::new(),
                source: config.main_source,
                degraded: None,
                contact_at: None,
                lease: defaults.lease(),
                synchronous: false,
                switchover: None,
                history: Vec::new(),
                rejected: Vec::new(),
                refused: None,
                failovers: Vec::new(),
            },
            claim: None,
            last_leader: None,
            loss: None,
            trail: LeaderTrail::default(),
            timeouts: BTreeMap::new(),
            told_claim_refusal: None,
        }
    }

    /// The cluster as it is known now.
    #[must_use]
    pub fn view(&self) -> &ClusterView {
        &self.view
    }

    /// Takes one event in. The actions are to be carried out in their order, after the view was
    /// published.
    pub fn apply(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Snapshot { source, snapshot } => {
                self.take_snapshot(source, &snapshot, now, &mut actions);
            }
            Event::Contact { source } => self.contact(source, now, &mut actions),
            Event::SourceLost { source, reason } => {
                self.source_lost(source, reason, now, &mut actions);
            }
            Event::Probed { member, address, result } => {
                self.probed(&member, &address, result, now, &mut actions);
            }
            Event::Suspect { member, cause } => self.suspect(&member, cause, now, &mut actions),
        }
        self.judge(now, &mut actions);
        self.set_cadences(now, &mut actions);
        self.view.version += 1;
        actions
    }

    fn set_cadences(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let named = self.claim.as_ref().map(|claim| claim.member.as_str());
        let leaderless_for = now.saturating_duration_since(self.view.leader.since());
        let admitted = self.view.leader.admitted().is_some();
        for member in self.view.members.values_mut() {
            let failing = self.timeouts.contains_key(&member.name);
            let leads = named == Some(member.name.as_str());
            let wanted = if leads && !admitted && member.role != MemberRole::StandbyLeader {
                if leaderless_for < self.config.urgent_for {
                    Cadence::Urgent
                } else {
                    Cadence::Watchful
                }
            } else if leads && (failing || self.view.degraded.is_some()) {
                Cadence::Watchful
            } else if self.config.main_source == SourceKind::Fixed && !admitted {
                Cadence::Watchful
            } else {
                Cadence::Normal
            };
            if member.cadence != wanted {
                member.cadence = wanted;
                actions.push(Action::SetCadence(member.name.clone(), wanted));
            }
        }
    }
}
