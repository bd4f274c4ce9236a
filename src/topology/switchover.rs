//! Planned changes of leader: writes are held before the leader goes, not only when it is gone.
//!
//! Patroni writes `/failover` before it does anything else. What is sent while the server then stops is cut
//! off and in doubt, so that from the moment the request is due no write connection is lent; the time
//! that is left is for the work in flight. A key proves nothing, though, so that this has bounds:
//!
//! - One request holds writes once, for [`TopologyConfig::switchover_hold`]; up to
//!   [`TopologyConfig::switchover_limit`] only while the leader's own key says that it is stopping.
//! - When it is over and the same member still leads, its reign goes on with the connections it had, and
//!   for [`TopologyConfig::switchover_pause`] no request holds writes: whoever writes that key again and
//!   again costs a tenth of the time, not all of it.
//!
//! [`TopologyConfig::switchover_hold`]: super::TopologyConfig::switchover_hold
//! [`TopologyConfig::switchover_limit`]: super::TopologyConfig::switchover_limit
//! [`TopologyConfig::switchover_pause`]: super::TopologyConfig::switchover_pause

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::machine::Topology;
use super::view::SwitchoverHold;
use crate::patroni::{ClusterSnapshot, FailoverRequest, Schedule};

/// The wall clock may be set, so that a moment by it is looked at again after this long.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// The main source's last word on who leads and who shall.
#[derive(Debug, Default)]
pub(super) struct Planned {
    /// Who holds the leader key.
    holder: Option<String>,
    request: Option<(FailoverRequest, Schedule)>,
    /// The request that is due now.
    handover: Option<Handover>,
    /// No request holds writes before this moment, after one that came to nothing.
    quiet_until: Option<Instant>,
}

/// A time in which the holder of the leader key is asked to give it away.
#[derive(Debug)]
struct Handover {
    leader: String,
    since: Instant,
    /// Whether it holds writes, for as long as it may.
    holds: bool,
}

impl Topology {
    /// Takes in what a snapshot of the main source says; `None` where it is another cluster's.
    pub(super) fn note_request(&mut self, snapshot: Option<&ClusterSnapshot>) {
        let request = snapshot.and_then(|snapshot| snapshot.failover.as_ref());
        self.planned.request = request.map(|request| (request.clone(), request.schedule()));
        // A leader key that cannot be read is no news.
        let unreadable = |snapshot: &ClusterSnapshot| {
            snapshot.rejected.iter().any(|rejected| rejected.key == "leader")
        };
        if !snapshot.is_some_and(unreadable) {
            let leader = snapshot.and_then(|snapshot| snapshot.leader.as_ref());
            self.planned.holder = leader.map(|leader| leader.name.clone());
        }
    }

    /// Brings the hold in line with the request as it stands now.
    pub(super) fn follow_request(&mut self, now: Instant, wall: SystemTime) {
        let leaving = self.asked_to_go(wall).map(str::to_owned);
        let planned = &mut self.planned;
        if let Some(over) =
            planned.handover.take_if(|known| leaving.as_ref() != Some(&known.leader))
            && over.holds
            && planned.holder.as_ref() == Some(&over.leader)
        {
            planned.quiet_until = Some(now + self.config.switchover_pause);
        }
        if let Some(leader) = leaving
            && planned.handover.is_none()
        {
            // One that comes too early has had its chance.
            let holds = planned.quiet_until.is_none_or(|until| now >= until);
            planned.handover = Some(Handover { leader, since: now, holds });
        }
        self.view.hold = self.hold_at(now);
        self.wake_at = self.view.hold.as_ref().map_or_else(
            || {
                let (_, schedule) = self.planned.request.as_ref()?;
                let due_in = schedule.due_in(wall).filter(|due_in| !due_in.is_zero())?;
                Some(now + due_in.min(LOOK_AGAIN))
            },
            |hold| Some(hold.until),
        );
    }

    /// The holder of the leader key, where a request that is due asks it to give it away, to a member that
    /// can take it.
    fn asked_to_go(&self, wall: SystemTime) -> Option<&str> {
        let holder = self.planned.holder.as_deref()?;
        let (request, schedule) = self.planned.request.as_ref()?;
        let candidate = match &request.member {
            // Patroni asks it; its key may be old news.
            Some(name) if request.leader.is_some() => self.view.members.contains_key(name),
            Some(name) => {
                self.view.members.get(name).is_some_and(|member| member.state.is_running())
            }
            None => true,
        };
        let is_due = schedule.due_in(wall) == Some(Duration::ZERO);
        (is_due && candidate && request.asks_to_go(holder)).then_some(holder)
    }

    fn hold_at(&self, now: Instant) -> Option<SwitchoverHold> {
        let handover = self.planned.handover.as_ref().filter(|handover| handover.holds)?;
        let leader = self.view.members.get(&handover.leader);
        let limit = if leader.is_some_and(|member| member.state.is_stopping()) {
            self.config.switchover_limit
        } else {
            self.config.switchover_hold
        };
        let until = handover.since + limit;
        (now < until).then(|| SwitchoverHold {
            leader: handover.leader.clone(),
            to: self.planned.request.as_ref().and_then(|(request, _)| request.member.clone()),
            since: handover.since,
            until,
        })
    }
}
