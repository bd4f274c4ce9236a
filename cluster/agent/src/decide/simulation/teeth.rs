//! The checker has teeth: with any one of these rules broken, a run must fail.

use super::world::Setup;
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
}

impl Mutation {
    pub(super) const ALL: [Mutation; 7] = [
        Mutation::LeaseFromReply,
        Mutation::SyncKeyFirst,
        Mutation::PromoteWithoutKey,
        Mutation::NoFence,
        Mutation::RenewForTheDead,
        Mutation::FailsafeByMajority,
        Mutation::IgnorePeers,
    ];

    /// A setup in which the rule matters.
    pub(super) fn setup(self, setup: &mut Setup) {
        setup.mutation = Some(self);
        match self {
            Mutation::SyncKeyFirst => {
                setup.rules.synchronous_mode = SyncMode::On;
                setup.nodes = setup.nodes.max(3);
            }
            Mutation::FailsafeByMajority => setup.rules.failsafe_mode = true,
            Mutation::IgnorePeers => setup.rules.synchronous_mode = SyncMode::Quorum,
            _ => {}
        }
        while setup.rates.len() < setup.nodes {
            setup.rates.push(1000);
        }
    }
}
