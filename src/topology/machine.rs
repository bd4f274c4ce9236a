//! The state machine itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::event::{Action, Cadence, Event, SourceKind, WithdrawReason};
use super::refusal::Refusal;
use super::switchover::Planned;
use super::trail::LeaderTrail;
use super::view::{ClusterView, LeaderState};
use crate::patroni::{ClusterSnapshot, DynamicConfig, MemberRole, SystemId, Timeline};

/// Changes of leader kept for the report.
pub(super) const FAILOVERS_KEPT: usize = 16;

/// An interruption of a reign that lasts this long is reported like a change of leader.
pub(super) const NOTICEABLE: Duration = Duration::from_millis(100);

/// Bounds of the state machine.
#[derive(Debug, Clone, Copy)]
pub struct TopologyConfig {
    /// The source whose word counts; the others are fallbacks.
    pub main_source: SourceKind,
    /// Probes in a row without an answer in time, after which a member counts as down. At least 1.
    pub timeouts_before_down: u32,
    /// How long an unproved claim is probed urgently before the rate drops.
    pub urgent_for: Duration,
    /// How long one request to change the leader holds writes, where nothing comes of it.
    pub switchover_hold: Duration,
    /// The same, as long as the leader's agent says that it is stopping the server.
    pub switchover_limit: Duration,
    /// After a request that came to nothing, for how long no other one holds writes.
    pub switchover_pause: Duration,
}

impl Default for TopologyConfig {
    fn default() -> Self {
        Self {
            main_source: SourceKind::Etcd,
            timeouts_before_down: 2,
            urgent_for: Duration::from_secs(120),
            switchover_hold: Duration::from_secs(3),
            switchover_limit: Duration::from_secs(15),
            switchover_pause: Duration::from_secs(30),
        }
    }
}

/// The leader key as last seen.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub(super) member: String,
    pub(super) revision: i64,
    pub(super) seen_at: Instant,
    /// Only a probe sent since this moment proves the claim…
    pub(super) proof_after: Instant,
    /// …and, as moments can be equal, answered in a later event than this one.
    pub(super) proof_event: u64,
}

/// What the machine remembers of asking one member.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    /// Answers to questions sent before this are old news.
    pub(super) newest: Instant,
    /// The event that brought the last answer; 0 for none.
    pub(super) answered_in: u64,
    /// Failures since then.
    pub(super) failures: u32,
    /// The cluster and timeline of the last answer, whatever became of the member since.
    pub(super) word: Option<(SystemId, Timeline)>,
    /// It was seen shutting down: only an answer to a question sent since then clears it.
    pub(super) doubted_at: Option<Instant>,
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
    /// One for each member.
    pub(super) asked: BTreeMap<String, Asked>,
    /// The last leader, where its work in flight was spared because it was not known to be demoted.
    pub(super) unfenced: Option<String>,
    /// The last snapshot of the main source.
    pub(super) last_word: Option<Arc<ClusterSnapshot>>,
    pub(super) told_refusal: Option<Refusal>,
    pub(super) planned: Planned,
    pub(super) wake_at: Option<Instant>,
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
                sync_standbys: Vec::new(),
                switchover: None,
                hold: None,
                history: Vec::new(),
                rejected: Vec::new(),
                refused: None,
                failovers: Vec::new(),
            },
            claim: None,
            last_leader: None,
            loss: None,
            trail: LeaderTrail::default(),
            asked: BTreeMap::new(),
            unfenced: None,
            last_word: None,
            told_refusal: None,
            planned: Planned::default(),
            wake_at: None,
        }
    }

    /// The cluster as it is known now.
    #[must_use]
    pub fn view(&self) -> &ClusterView {
        &self.view
    }

    /// When to tell [`Event::Tick`], if nothing else is told before: always later than the last event.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.wake_at
    }

    /// Takes one event in. The actions are to be carried out in their order, after the view was
    /// published. `wall` is what the clock on the wall shows: switchovers are scheduled by it.
    pub fn apply(&mut self, event: Event, now: Instant, wall: SystemTime) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Snapshot { source, snapshot } => {
                self.take_snapshot(source, &snapshot, now, &mut actions);
            }
            Event::Contact { source } => {
                self.contact(source, now, &mut actions);
                self.believe_main_again(source, now, &mut actions);
            }
            Event::SourceLost { source, reason } => {
                self.source_lost(source, reason, now, &mut actions);
            }
            Event::Probed { member, address, result } => {
                self.probed(&member, &address, result, now, &mut actions);
            }
            Event::Suspect { member, cause } => self.suspect(&member, cause, now, &mut actions),
            Event::Tick => {}
        }
        self.follow_request(now, wall);
        self.judge(now, &mut actions);
        self.set_cadences(now, &mut actions);
        self.view.version += 1;
        actions
    }

    /// The number of the event being applied, from 1.
    pub(super) fn event_number(&self) -> u64 {
        self.view.version + 1
    }

    fn set_cadences(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let named = self.claim.as_ref().map(|claim| claim.member.as_str());
        // A key made anew by the same member is a new reason to hurry.
        let news_at = self.claim.as_ref().map(|claim| claim.seen_at);
        let waiting_since = news_at.unwrap_or(now).max(self.view.leader.since());
        let leaderless_for = now.saturating_duration_since(waiting_since);
        let admitted = self.view.leader.admitted().is_some();
        for member in self.view.members.values_mut() {
            let failing = self.asked.get(&member.name).is_some_and(|asked| asked.failures > 0);
            let leads = named == Some(member.name.as_str());
            let in_doubt = leads && (failing || self.view.degraded.is_some());
            let sought = self.config.main_source == SourceKind::Fixed && !admitted;
            let wanted = if leads && !admitted && member.role != MemberRole::StandbyLeader {
                if leaderless_for < self.config.urgent_for {
                    Cadence::Urgent
                } else {
                    Cadence::Watchful
                }
            } else if in_doubt || sought {
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
