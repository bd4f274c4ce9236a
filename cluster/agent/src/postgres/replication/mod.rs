//! Being a primary or a standby: promotion, following, slots, synchronous standbys.

mod follow;
mod promote;
mod slots;
mod sync_names;

pub(crate) use follow::wait_streaming;
pub use follow::{FollowError, Streaming, is_from};
pub(crate) use promote::promote;
pub use promote::{PromoteError, Promoted};
pub use slots::{SlotPlan, slot_name_of};
pub(crate) use sync_names::wait_in_effect;
pub use sync_names::{SyncNames, SyncNamesError};
