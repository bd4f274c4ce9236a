//! What members ask each other.

use leaderpool::patroni::{Lsn, Timeline};

use super::postgres::Proc;
use super::teeth::Mutation;
use super::world::{Event, NAMES, World, index, trace};
use crate::decide::*;

impl World {
    /// A peer's REST API is asked.
    pub(super) fn peer_is_asked(&mut self, from: usize, boot: u32, to: usize, asked: Moment) {
        let node = &self.nodes[to];
        if !node.machine {
            return;
        }
        self.refresh(to);
        let node = &self.nodes[to];
        let answer = match &node.agent {
            // Connection refused.
            None => None,
            Some(agent) => {
                let pg = &node.pg;
                Some(Answer {
                    asked,
                    running: pg.runs(),
                    primary: pg.proc == Proc::Primary,
                    leads: agent.seen.leads(),
                    timeline: self.branches[pg.branch].timeline,
                    lsn: Lsn(pg.lsn),
                    limitation: agent.seen.stopping.map(|_| "the agent stops".to_owned()),
                })
            }
        };
        self.send(to, from, Event::Told { to: from, boot, by: to, asked, answer });
    }

    pub(super) fn peer_answers(
        &mut self,
        to: usize,
        boot: u32,
        by: usize,
        asked: Moment,
        answer: Option<Answer>,
    ) {
        let now = self.local(to);
        let ignore = self.setup.mutation == Some(Mutation::IgnorePeers);
        let Some(agent) = self.agent_mut(to, boot) else { return };
        let peer: &mut Peer = agent.seen.peers.entry(NAMES[by].to_owned()).or_default();
        match answer {
            None => {
                peer.failed = peer.failed.max(Some(asked));
                peer.denies_since = None;
                peer.running_since = None;
            }
            Some(mut answer) => {
                if ignore {
                    answer.lsn = Lsn(0);
                    answer.timeline = Timeline(0);
                    answer.primary = false;
                    answer.leads = false;
                }
                if answer.running {
                    peer.running_since.get_or_insert(now);
                } else {
                    peer.running_since = None;
                }
                if answer.leads {
                    peer.denies_since = None;
                } else {
                    peer.denies_since.get_or_insert(asked);
                }
                if peer.answer.as_ref().is_none_or(|known| known.asked <= answer.asked) {
                    peer.answer = Some(answer);
                }
            }
        }
        self.wake(to);
    }

    pub(super) fn failsafe_asked(&mut self, from: usize, boot: u32, to: usize, round: Moment) {
        let now = self.local(to);
        self.refresh(to);
        let Some(agent) = &mut self.nodes[to].agent else { return };
        let accepts = accepts_failsafe(&agent.seen, NAMES[from]).is_ok();
        if accepts {
            agent.seen.failsafe.promised = Some((NAMES[from].to_owned(), now));
        }
        self.send(to, from, Event::FailsafeTold { to: from, boot, by: to, round, accepts });
    }

    pub(super) fn failsafe_told(
        &mut self,
        to: usize,
        boot: u32,
        by: usize,
        round: Moment,
        accepts: bool,
    ) {
        let majority = self.setup.mutation == Some(Mutation::FailsafeByMajority);
        let Some(agent) = self.agent_mut(to, boot) else { return };
        if !accepts || agent.seen.failsafe.asked != Some(round) {
            return;
        }
        agent.accepted.insert(by, round);
        let Some(asked) = &agent.seen.cluster.failsafe else { return };
        let all = asked.keys().filter(|name| **name != agent.seen.me.name);
        let yes = all.clone().filter(|name| agent.accepted.get(&index(name)) == Some(&round));
        if yes.count() == all.count() || majority {
            agent.seen.failsafe.accepted = Some(round);
            trace!(self, "{}: everyone accepts", NAMES[to]);
            self.arm_fence(to);
            self.ping_watchdog(to);
            self.wake(to);
        }
    }
}
