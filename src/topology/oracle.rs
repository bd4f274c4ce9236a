//! What must hold after any event, told from the events and the actions alone: a second, slower
//! reading of the rules, which shares nothing with the machine.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::*;
use crate::patroni::{ClusterSnapshot, FailoverRequest, ServerAddress, SystemId};

/// A leader named by a source.
#[derive(Debug, Clone, PartialEq)]
struct Word {
    member: String,
    revision: i64,
    seen_at: Instant,
    seen_in: u64,
}

/// What one member's node brought since it was made.
#[derive(Debug, Clone)]
struct Heard {
    address: ServerAddress,
    cadence: Cadence,
    added_at: Instant,
    report: Option<(ProbeReport, u64)>,
    timeouts: u32,
    is_down: bool,
    suspected_at: Option<Instant>,
    /// Since its last report, somebody of its cluster followed a newer timeline.
    outdone: bool,
}

/// A time in which the main source's last word asked the holder of the key to give it away.
#[derive(Debug)]
struct Asked {
    leader: String,
    from: Instant,
    /// Whether writes may be held for it.
    counts: bool,
    /// When it ended without another holder, where it did.
    in_vain: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Oracle {
    config: TopologyConfig,
    event: u64,
    system_id: Option<SystemId>,
    nodes: BTreeMap<String, Heard>,
    /// What the main source says.
    key: Option<Word>,
    /// The same, counted from the last moment it can have been news.
    key_anew: Option<Word>,
    /// Whom fallbacks named since the main source last said anything.
    rumours: BTreeMap<String, Word>,
    degraded: bool,
    admitted: Option<String>,
    /// The last admission: member, epoch and reign.
    last: Option<(String, Epoch, u64)>,
    /// Withdrawn, and its work in flight not cut yet.
    spared: Option<String>,
    /// The last word of the main source.
    holder: Option<String>,
    request: Option<FailoverRequest>,
    /// All of them, from the first.
    asked: Vec<Asked>,
    /// Whether the last one still goes on.
    is_asked: bool,
    /// Whose writes are held.
    held: Option<String>,
}

macro_rules! must {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}

impl Oracle {
    pub(super) fn new(config: TopologyConfig) -> Self {
        Self {
            config,
            event: 0,
            system_id: None,
            nodes: BTreeMap::new(),
            key: None,
            key_anew: None,
            rumours: BTreeMap::new(),
            degraded: false,
            admitted: None,
            last: None,
            spared: None,
            holder: None,
            request: None,
            asked: Vec::new(),
            is_asked: false,
            held: None,
        }
    }

    /// Checks one step: what was told, when, what came out, and the view afterwards.
    pub(super) fn check(
        &mut self,
        event: &Event,
        now: Instant,
        wall: SystemTime,
        actions: &[Action],
        machine: &Topology,
    ) -> Result<(), String> {
        let view = machine.view();
        self.event += 1;
        must!(view.version == self.event, "the version did not grow by one");
        self.hear(event, now);
        self.compare_timelines();
        self.hear_request(event, now, wall, view);
        self.check_hold(now, wall, machine)?;
        for action in actions {
            self.carry_out(action, actions, now).map_err(|why| format!("{action:?}: {why}"))?;
        }
        self.compare(view, now)?;
        self.judge(view)
    }

    fn hear(&mut self, event: &Event, now: Instant) {
        match event {
            Event::Snapshot { source, snapshot } if *source == self.config.main_source => {
                self.degraded = false;
                self.hear_main(*source, snapshot, now);
            }
            Event::Snapshot { snapshot, .. } => {
                if self.degraded && self.is_ours(snapshot) {
                    self.system_id = self.system_id.or(snapshot.system_id);
                    if let Some(leader) = &snapshot.leader {
                        let word = self.word(&leader.name, 0, now);
                        self.rumours.entry(leader.name.clone()).or_insert(word);
                    }
                }
            }
            Event::Contact { source } => {
                self.degraded &= *source != self.config.main_source;
            }
            Event::SourceLost { source, .. } => {
                self.degraded |= *source == self.config.main_source;
            }
            Event::Probed { member, address, result } => {
                let Some(node) = self.nodes.get_mut(member) else { return };
                if node.address == *address {
                    node.hear(result, self.event, self.config.timeouts_before_down);
                }
            }
            Event::Suspect { member, cause } => {
                let Some(node) = self.nodes.get_mut(member) else { return };
                let last = self.last.as_ref().map(|(last, _, _)| last);
                let leads = self.admitted.as_ref() == Some(member)
                    || (self.held.as_ref() == Some(member) && last == Some(member));
                if *cause == Suspicion::ShuttingDown && leads {
                    node.suspected_at = Some(now);
                }
            }
            Event::Tick => {}
        }
    }

    fn hear_request(&mut self, event: &Event, now: Instant, wall: SystemTime, view: &ClusterView) {
        if let Event::Snapshot { source, snapshot } = event
            && *source == self.config.main_source
        {
            let is_ours = self.is_ours(snapshot);
            self.request = snapshot.failover.clone().filter(|_| is_ours);
            if !snapshot.rejected.iter().any(|rejected| rejected.key == "leader") || !is_ours {
                let leader = snapshot.leader.as_ref().filter(|_| is_ours);
                self.holder = leader.map(|leader| leader.name.clone());
            }
        }
        let leaving = self.holder.clone().filter(|holder| self.is_due(holder, wall, view));
        if let Some(last) = self.asked.last_mut().filter(|_| self.is_asked)
            && leaving.as_ref() != Some(&last.leader)
        {
            self.is_asked = false;
            last.in_vain = (self.holder.as_ref() == Some(&last.leader)).then_some(now);
        }
        if let Some(leader) = leaving.filter(|_| !self.is_asked) {
            let counts = self.asked.iter().all(|before| {
                !before.counts
                    || before.in_vain.is_none_or(|at| now >= at + Duration::from_secs(30))
            });
            self.asked.push(Asked { leader, from: now, counts, in_vain: None });
            self.is_asked = true;
        }
        self.held =
            self.asked.last().filter(|asked| self.is_asked && asked.counts).and_then(|asked| {
                let stops =
                    view.members.get(&asked.leader).is_some_and(|m| m.state.0 == "stopping");
                let limit = Duration::from_secs(if stops { 15 } else { 3 });
                (now - asked.from < limit).then(|| asked.leader.clone())
            });
    }

    /// Whether it is time for `holder` to give its key to a member that is there.
    fn is_due(&self, holder: &str, wall: SystemTime, view: &ClusterView) -> bool {
        let Some(request) = &self.request else { return false };
        let candidate = request.member.as_ref().map(|name| (name, view.members.get(name)));
        let makes_sense = match (request.leader.as_deref(), candidate) {
            (Some(leader), None) => leader == holder,
            (Some(leader), Some((name, known))) => {
                leader == holder && name != holder && known.is_some()
            }
            (None, Some((name, known))) => {
                name != holder && known.is_some_and(|known| known.state.is_running())
            }
            (None, None) => false,
        };
        makes_sense && request.schedule().due_in(wall) == Some(Duration::ZERO)
    }

    /// The hold as it is told, and that its end will not be slept through.
    fn check_hold(&self, now: Instant, wall: SystemTime, machine: &Topology) -> Result<(), String> {
        let told = machine.view().hold.as_ref();
        must!(told.map(|hold| &hold.leader) == self.held.as_ref(), "held is {:?}", self.held);
        let wake_at = machine.wake_at();
        must!(wake_at.is_none_or(|at| at > now), "it wants to be woken in the past");
        must!(told.is_none_or(|hold| wake_at == Some(hold.until)), "woken at {wake_at:?}");
        let due_in = self.request.as_ref().and_then(|request| request.schedule().due_in(wall));
        must!(
            self.held.is_some()
                || due_in.is_none_or(|due_in| due_in.is_zero() || wake_at <= Some(now + due_in)),
            "a switchover due in {due_in:?} is slept through"
        );
        Ok(())
    }

    fn hear_main(&mut self, source: SourceKind, snapshot: &ClusterSnapshot, now: Instant) {
        if source == SourceKind::Fixed {
            return;
        }
        if !self.is_ours(snapshot) {
            (self.key, self.key_anew) = (None, None);
            self.rumours.clear();
            return;
        }
        self.system_id = self.system_id.or(snapshot.system_id);
        match &snapshot.leader {
            Some(leader) => {
                let listed = snapshot.members.get(&leader.name).and_then(|listed| listed.timeline);
                let newest = self.last.as_ref().map(|(_, epoch, _)| epoch.timeline);
                let is_old = source == SourceKind::Rest
                    && self.admitted.as_ref().is_some_and(|member| *member != leader.name)
                    && listed.zip(newest).is_some_and(|(listed, newest)| listed < newest);
                let is_same = self.key.as_ref().is_some_and(|key| {
                    key.member == leader.name
                        && (source == SourceKind::Rest || key.revision == leader.revision)
                });
                let word = self.word(&leader.name, leader.revision, now);
                // A rumour of the last leader is a rumour of the key that it had then.
                let believed = self.rumours.get(&leader.name).filter(|_| {
                    self.last.as_ref().is_some_and(|(member, epoch, _)| {
                        (member, epoch.revision) == (&leader.name, leader.revision)
                    })
                });
                if !is_old && !is_same {
                    let seen = believed.unwrap_or(&word).clone();
                    self.key = Some(Word { revision: leader.revision, ..seen });
                }
                // If a rumour was believed meanwhile, the key starts anew; if not, it stands.
                if !is_old && (!is_same || !self.rumours.is_empty()) {
                    self.key_anew = Some(word);
                }
                self.rumours.clear();
            }
            None if snapshot.rejected.iter().any(|rejected| rejected.key == "leader") => {}
            None => {
                (self.key, self.key_anew) = (None, None);
                self.rumours.clear();
            }
        }
    }

    /// Whoever once followed a newer timeline counts, up or down, until it says otherwise.
    fn compare_timelines(&mut self) {
        let words = self.nodes.values().filter_map(|node| node.report.as_ref());
        let words: Vec<_> = words.map(|(word, _)| (word.system_id, word.timeline)).collect();
        for node in self.nodes.values_mut() {
            let Some((report, _)) = &node.report else { continue };
            node.outdone |= words
                .iter()
                .any(|(id, timeline)| *id == report.system_id && *timeline > report.timeline);
        }
    }

    fn is_ours(&self, snapshot: &ClusterSnapshot) -> bool {
        self.system_id.zip(snapshot.system_id).is_none_or(|(known, found)| known == found)
    }

    fn word(&self, member: &str, revision: i64, now: Instant) -> Word {
        Word { member: member.to_owned(), revision, seen_at: now, seen_in: self.event }
    }

    fn carry_out(&mut self, action: &Action, all: &[Action], now: Instant) -> Result<(), String> {
        match action {
            Action::AddMember(spec) => {
                let node = Heard {
                    address: spec.address.clone(),
                    cadence: Cadence::Normal,
                    added_at: now,
                    report: None,
                    timeouts: 0,
                    is_down: false,
                    suspected_at: None,
                    outdone: false,
                };
                let before = self.nodes.insert(spec.name.clone(), node);
                must!(before.is_none(), "it was there already");
            }
            Action::RemoveMember(name) => {
                must!(self.nodes.remove(name).is_some(), "it was not there");
                must!(self.admitted.as_ref() != Some(name), "it is admitted");
                must!(self.spared.as_ref() != Some(name), "its work in flight is left to hang");
            }
            Action::SetCadence(name, cadence) => {
                let node = self.nodes.get_mut(name).ok_or("no such node")?;
                must!(node.cadence != *cadence, "nothing changes");
                node.cadence = *cadence;
            }
            Action::ProbeNow(name) => must!(self.nodes.contains_key(name), "no such node"),
            Action::Admit { member, epoch, reign } => {
                must!(self.nodes.contains_key(member), "no such node");
                must!(
                    self.admitted.as_ref().is_none_or(|admitted| admitted == member),
                    "another one is admitted"
                );
                must!(
                    self.spared.as_ref().is_none_or(|spared| spared == member),
                    "the last leader's work was not cut"
                );
                let expected = match &self.last {
                    None => 1,
                    Some((last, known, reign)) => {
                        must!(epoch.is_at_least(known), "the epoch goes back from {known:?}");
                        must!(
                            self.admitted.is_none() || epoch != known,
                            "it is admitted in this epoch"
                        );
                        reign + u64::from((last, known.timeline) != (member, epoch.timeline))
                    }
                };
                must!(*reign == expected, "expected reign {expected}");
                self.spared = None;
                self.admitted = Some(member.clone());
                self.last = Some((member.clone(), *epoch, *reign));
            }
            Action::Withdraw { member, reason } => {
                must!(self.admitted.as_ref() == Some(member), "it is not admitted");
                must!(
                    !matches!(reason, WithdrawReason::Switchover { .. })
                        || self.held.as_ref() == Some(member),
                    "nobody may hold its writes"
                );
                self.admitted = None;
                self.spared = Some(member.clone());
            }
            Action::Fence { member, .. } => {
                must!(self.nodes.contains_key(member), "no such node");
                must!(self.admitted.as_ref() != Some(member), "it is admitted");
                let times = all.iter().filter(
                    |action| matches!(action, Action::Fence { member: other, .. } if other == member),
                );
                must!(times.count() == 1, "twice in one event");
                self.spared.take_if(|spared| spared == member);
            }
            Action::StartFallback => must!(self.degraded, "the main source is well"),
            Action::StopFallback => must!(!self.degraded, "the main source is away"),
            Action::Tell(_) => {}
        }
        Ok(())
    }

    /// The view against the actions so far.
    fn compare(&mut self, view: &ClusterView, now: Instant) -> Result<(), String> {
        let admitted = self.admitted.as_deref();
        must!(view.leader.admitted() == admitted, "actions say {admitted:?} is admitted");
        must!(view.write_target().is_some() == admitted.is_some(), "the leader is no member");
        let last = self.last.as_ref().map(|(_, epoch, reign)| (*epoch, *reign));
        must!(
            last.unzip() == (view.epoch, (view.reign > 0).then_some(view.reign)),
            "actions say {last:?}"
        );
        must!(self.degraded == view.degraded.is_some(), "degraded: {:?}", view.degraded);
        let known = self.system_id.or(view.system_id);
        must!(view.system_id == known, "the cluster changed from {known:?}");
        self.system_id = known;
        must!(view.failovers.len() <= 16, "the list of failovers grows without bound");
        must!(
            view.failovers.is_sorted_by(|a, b| b.epoch.is_at_least(&a.epoch)),
            "failovers are out of order"
        );
        let names: Vec<_> = view.members.keys().collect();
        must!(names == self.nodes.keys().collect::<Vec<_>>(), "nodes differ: {names:?}");
        for (name, node) in &self.nodes {
            let member = &view.members[name];
            must!(member.address == node.address, "{name} is at {}", member.address);
            must!(member.cadence == node.cadence, "{name}: cadence {:?}", member.cadence);
            must!(member.fresh_at.is_none_or(|at| at <= now), "{name} is fresh in the future");
            let Some(report) = member.report() else { continue };
            must!(Some(report.system_id) == known || known.is_none(), "{name} is foreign and up");
            if !report.in_recovery {
                must!(
                    view.epoch.is_none_or(|epoch| epoch.timeline <= report.timeline),
                    "{name} is a former primary and up"
                );
                must!(member.fresh_at.is_none() && member.lag_bytes.is_none(), "{name} lags");
            }
        }
        Ok(())
    }

    /// Nobody is admitted without proof, and with proof nobody is kept waiting.
    fn judge(&self, view: &ClusterView) -> Result<(), String> {
        let admitted = view.leader.admitted();
        if self.config.main_source == SourceKind::Fixed {
            return self.judge_fixed(admitted);
        }
        must!(self.held.is_none() || self.held.as_deref() != admitted, "lent in spite of a hold");
        let mut words = self.key.iter().chain(self.rumours.values());
        if let Some(name) = admitted {
            let proved = words.any(|word| word.member == name && self.proves(word));
            must!(proved, "{name} is admitted without proof, the key being {:?}", self.key);
        } else if self.rumours.is_empty()
            && let Some(key) = &self.key_anew
            && self.proves(key)
            && !self.is_old_claim(key)
            && self.held.as_ref() != Some(&key.member)
        {
            return Err(format!("{} is not admitted in spite of proof", key.member));
        }
        Ok(())
    }

    fn judge_fixed(&self, admitted: Option<&str>) -> Result<(), String> {
        let primaries: Vec<(&String, &ProbeReport)> = self
            .nodes
            .iter()
            .filter_map(|(name, node)| Some((name, self.as_primary(node)?)))
            .collect();
        if let Some(name) = admitted {
            must!(
                primaries.iter().any(|(other, _)| *other == name) && !self.nodes[name].outdone,
                "{name} is admitted, but primaries are {primaries:?}"
            );
        } else if let [(name, _)] = primaries[..]
            && !self.nodes[name].outdone
        {
            let all_asked = self
                .nodes
                .values()
                .all(|node| node.report.is_some() || node.is_down || node.timeouts > 0);
            must!(
                !all_asked || self.nodes[name].suspected_at.is_some(),
                "{name} is the only primary and not admitted"
            );
        }
        Ok(())
    }

    /// The last report, where the node is up and out of recovery in this cluster, on a timeline
    /// that is not older than any admitted.
    fn as_primary<'a>(&self, node: &'a Heard) -> Option<&'a ProbeReport> {
        let (report, _) = node.report.as_ref().filter(|_| !node.is_down)?;
        let newest = self.last.as_ref().map(|(_, epoch, _)| epoch.timeline);
        let fits = !report.in_recovery
            && newest.is_none_or(|newest| report.timeline >= newest)
            && self.system_id.is_none_or(|expected| expected == report.system_id);
        fits.then_some(report)
    }

    fn proves(&self, word: &Word) -> bool {
        let Some(node) = self.nodes.get(&word.member) else { return false };
        let Some(report) = self.as_primary(node) else { return false };
        let answered_in = node.report.as_ref().map_or(0, |(_, event)| *event);
        report.sent_at >= word.seen_at && answered_in > word.seen_in && node.suspected_at.is_none()
    }

    fn is_old_claim(&self, key: &Word) -> bool {
        let Some((member, epoch, _)) = &self.last else { return false };
        let timeline = self.nodes.get(&key.member).and_then(|node| node.report.as_ref());
        self.config.main_source == SourceKind::Etcd
            && *member != key.member
            && key.revision < epoch.revision
            && timeline.is_some_and(|(report, _)| report.timeline == epoch.timeline)
    }
}

impl Heard {
    fn hear(&mut self, result: &Result<ProbeReport, ProbeFailure>, event: u64, enough: u32) {
        match result {
            Ok(report) => {
                let newest =
                    self.report.as_ref().map_or(self.added_at, |(report, _)| report.sent_at);
                if report.sent_at < newest {
                    return;
                }
                self.suspected_at.take_if(|at| *at <= report.sent_at);
                self.report = Some((report.clone(), event));
                self.outdone = false;
                self.timeouts = 0;
                self.is_down = false;
            }
            Err(ProbeFailure::TimedOut(_)) => {
                self.timeouts += 1;
                self.is_down |= self.timeouts >= enough;
            }
            Err(ProbeFailure::Refused(_) | ProbeFailure::Failed(_)) => self.is_down = true,
        }
    }
}
