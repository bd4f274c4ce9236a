//! One member: its pool, its connections, and the probe that asks it how it is.
//!
//! A pool belongs to a member, not to a role, so that the warm connections of a promoted replica carry
//! the first writes. What a connection may be used for is written on it: the reign under which it was
//! last verified as the primary's. The number is compared at each checkout, which costs no round trip.

mod breaker;
mod conn;
mod dial;
mod guard;
mod hot;
mod hung;
mod idle;
mod keeper;
mod leak;
mod load;
mod manager;
mod member;
mod probe;
mod run;
mod tend;
mod wire;

pub use conn::Conn;
pub use dial::DialError;

pub(crate) use dial::Dialer;
pub(crate) use guard::{Passage, Watch};
pub(crate) use leak::LeaseId;
#[cfg(feature = "metrics")]
pub(crate) use load::Tally;
pub(crate) use manager::{AFTERMATH, ConnObject};
pub(crate) use member::{CheckoutFailure, Node, NodeContext};
pub(crate) use probe::Demand;
pub(crate) use run::{COLUMNS as RUN_COLUMNS, RunSeen};
