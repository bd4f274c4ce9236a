//! Choosing where a call goes. Pure: a view, a policy and the time in, a choice out.

mod pick;
mod policy;
mod successor;
#[cfg(test)]
pub(crate) mod tests;

pub use policy::{Freshness, Ineligible, ReadPolicy};

pub(crate) use pick::pick_two;
pub(crate) use policy::{ReadChoice, choose_read};
pub(crate) use successor::successor;
