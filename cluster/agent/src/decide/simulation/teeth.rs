//! The checker has teeth: with any one of these rules broken, a run must fail.

use super::faults::{Fault, Peers};
use super::world::{Setup, Time};
use leaderpool::patroni::Tags;

use crate::decide::SyncMode;

/// A rule that is broken on purpose, by what `run/` would do wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mutation {
    /// The lease is counted from the answer rather than from the question.
    LeaseFromReply,
    /// The key is written before commits wait for the standbys that it names.
    SyncKeyFirst,
    /// The server is promoted before the key is won.
    PromoteWithoutKey,
    /// Nothing stops a server whose lease runs out.
    NoFence,
    /// The lease is renewed for a server that is dead.
    RenewForTheDead,
    /// One member that accepts is enough for failsafe mode.
    FailsafeByMajority,
    /// What the others say about themselves is not looked at.
    IgnorePeers,
    /// Clocks are taken to go at one speed.
    NoDrift,
    /// Who may take over in synchronous mode is not looked at.
    IgnoreSync,
    /// The timeline of a promotion is not claimed.
    NoClaim,
    /// The key is released when a switchover begins, rather than when all is received.
    ReleaseEarly,
}

impl Mutation {
    pub(super) const ALL: [Mutation; 11] = [
        Mutation::LeaseFromReply,
        Mutation::SyncKeyFirst,
        Mutation::PromoteWithoutKey,
        Mutation::NoFence,
        Mutation::RenewForTheDead,
        Mutation::FailsafeByMajority,
        Mutation::IgnorePeers,
        Mutation::NoDrift,
        Mutation::IgnoreSync,
        Mutation::NoClaim,
        Mutation::ReleaseEarly,
    ];

    /// Faults that make it show, beside the others.
    pub(super) fn faults(self, ttl: Time) -> Vec<Fault> {
        let cut = Fault::Cut { etcd: true, peers: Peers::None, one_way: false, time: ttl * 2 };
        match self {
            Mutation::LeaseFromReply => {
                vec![Fault::EtcdSlow(ttl * 2), Fault::EtcdSlow(ttl), cut, cut]
            }
            Mutation::NoFence | Mutation::FailsafeByMajority => {
                let some =
                    Fault::Cut { etcd: true, peers: Peers::Some, one_way: false, time: ttl * 3 };
                vec![some, some, some]
            }
            Mutation::SyncKeyFirst => {
                vec![
                    Fault::BreakStream,
                    Fault::BreakStream,
                    Fault::BreakStream,
                    Fault::Crash(ttl),
                    Fault::Crash(ttl),
                ]
            }
            Mutation::RenewForTheDead => vec![Fault::StallAndDie(ttl * 8); 3],
            Mutation::PromoteWithoutKey | Mutation::IgnorePeers => vec![Fault::Crash(ttl)],
            Mutation::NoDrift => vec![cut, cut, cut],
            Mutation::IgnoreSync => vec![Fault::BreakStream, Fault::Crash(ttl), Fault::Crash(ttl)],
            Mutation::NoClaim => vec![Fault::Crash(ttl); 6],
            Mutation::ReleaseEarly => vec![Fault::Switchover { named: true }; 2],
        }
    }

    /// A setup in which the rule matters.
    pub(super) fn setup(self, setup: &mut Setup) {
        setup.faults_of = Some(self);
        setup.mutation = Some(self);
        match self {
            Mutation::SyncKeyFirst => {
                setup.rules.synchronous_mode = SyncMode::On;
                setup.nodes = setup.nodes.max(3);
            }
            Mutation::IgnoreSync => {
                setup.rules.synchronous_mode = SyncMode::On;
            }
            Mutation::NoDrift => setup.rates = vec![900; setup.nodes],
            Mutation::NoClaim => setup.rules.synchronous_mode = SyncMode::Off,
            Mutation::FailsafeByMajority => setup.rules.failsafe_mode = true,
            Mutation::IgnorePeers => setup.rules.synchronous_mode = SyncMode::Quorum,
            _ => {}
        }
        setup.rates.resize(setup.nodes, 1000);
        setup.tags.resize(setup.nodes, Tags::default());
    }
}
