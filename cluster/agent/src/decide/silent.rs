//! etcd does not answer.

use super::action::{Action, Choice};
use super::failsafe::pace;
use super::moment::{Moment, held};
use super::rows::Row;
use super::seen::{Etcd, Seen, Server};
use super::starting;

/// The rows.
pub(super) fn rows(seen: &Seen, now: Moment) -> Choice {
    match &seen.postgres.server {
        Server::Down { since, start_failed } if seen.etcd != Etcd::Unknown => {
            starting::down_in_silence(seen, now, *since, *start_failed)
        }
        Server::Down { .. } => {
            Row::EtcdUnknown.waits("etcd has not answered yet: nothing is known of the cluster")
        }
        Server::Starting { .. } => Row::StartsUp.waits("the server is starting; etcd is silent"),
        Server::Stopping { since, mode, was_primary } => {
            starting::stopping(now, *since, *mode, *was_primary)
        }
        Server::Standby { .. } => {
            Row::SilentStandby.waits("etcd is silent: the standby stays as it is")
        }
        Server::Primary { .. } => primary(seen, now),
    }
}

fn primary(seen: &Seen, now: Moment) -> Choice {
    let asks = seen.rules.failsafe_mode && seen.cluster.failsafe.is_some() && seen.reign.is_some();
    if asks {
        let next = seen.failsafe.asked.map_or(now, |asked| asked + pace(seen.rules.ttl));
        if now >= next {
            return Row::FailsafeAsks.says(
                Action::PingFailsafe,
                "etcd is silent: every member is asked to accept that this one leads on",
            );
        }
        let accepted = seen.failsafe.accepted;
        if accepted.is_some_and(|accepted| now < accepted + held(seen.rules.ttl)) {
            return Row::FailsafeLeads
                .waits("etcd is silent, and every member has accepted that this one leads on")
                .until(next);
        }
        return Row::SilentLeader
            .waits("etcd is silent; the lease is still good, and the members are asked")
            .until(next);
    }
    Row::SilentLeader.waits("etcd is silent, and the lease is still good")
}
