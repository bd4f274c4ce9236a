//! Who leads, who may be read: the state machine over what discovery sees and what the members say.
//!
//! [`Topology::apply`] takes an event and the time and returns actions; it does no IO, has no clock of
//! its own and never waits, so every rule here can be tested in any order of events. The rules:
//!
//! - **Two keys admit a write target.** The leader key names it, and a probe *sent after that was seen*
//!   finds it out of recovery, in this cluster, on a timeline not older than any seen. The key alone is
//!   taken before the promotion; the server alone is what an old primary says too.
//! - **The epoch only grows.** A claim that would take it back is refused and named.
//! - **Losing one key withdraws the admission** at once. Work in flight is cut only where the node is
//!   known to be demoted or foreign, not where proof is merely missing; but it is cut before another
//!   member is admitted, and before the node goes.
//! - **A lost source is not a lost leader.** While etcd is away the last claim stands, as long as the
//!   member itself confirms it, and the members' REST is asked. Its answers may be older than what is
//!   known: they move the claim off a leader that confirms itself only to a newer timeline.
//! - **A leader that is asked to go lends nothing more**, for some seconds and without losing its reign; the
//!   request alone admits nobody and cuts nothing.
//! - **Answers are ordered by when they were asked for**, and equal moments by the order of events.
//! - **Without keys** (a host list) the servers are compared: nobody is admitted before each was asked.

mod admission;
mod epoch;
mod event;
mod machine;
mod members;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod properties;
mod refusal;
#[cfg(test)]
mod scenarios;
mod sources;
mod switchover;
mod trail;
mod view;

pub use epoch::Epoch;
pub use event::{
    Action, BreakerState, Cadence, Event, MemberSpec, ProbeFailure, ProbeReport, SourceKind,
    Suspicion, TopologyEvent, WithdrawReason,
};
pub use machine::{Topology, TopologyConfig};
pub use refusal::Refusal;
pub use view::{
    ClusterView, FailoverRecord, LeaderState, MemberHealth, MemberView, SwitchoverHold,
};
