//! The session with etcd: lease, compare-and-swap, watch.
//!
//! [`Session`] is what the rest of the agent holds. Below it: `links` (one connection per endpoint, moved
//! on from where one is silent), `keeper` (the task that renews the lease), `watch` (the task that follows
//! the keys), `keys` (how each key is written). What decides is pure and has tests of its own: `writes`
//! (what each write is conditional on, and what its answer means), `lease` (what a renewal proves), `view`
//! (what changed), `error` (what each failure means for a write).
//!
//! Patroni's own rules of writing are kept, and made stricter where that is invisible to it: a leader's
//! writes carry its reign, and nothing is written without a condition.

mod clock;
mod error;
mod keeper;
mod keys;
mod lease;
mod links;
#[cfg(test)]
mod model;
mod request;
mod session;
mod settings;
mod view;
mod watch;
mod writes;

pub use clock::BootTime;
pub use error::DcsError;
pub use keys::MemberPut;
pub use lease::{Leadership, LeaseCell, LeaseState};
pub use session::{Session, ViewChanges};
pub use settings::{DcsSettings, DcsTiming, DcsTls};
pub use view::{Changes, DcsView, Initialize};
pub use writes::{Acquired, Changed, Kept, Reign, Released, Seen};
