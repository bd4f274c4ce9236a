//! What a failed attempt did, and whether to make another one.
//!
//! [`outcome`] says what a failure means for the data: nothing was sent, nothing was applied, or nobody
//! knows. [`decide`] says whether another attempt is safe and may help. [`Backoff`] is the pause between
//! two attempts, and [`RetryBudget`] keeps retries from multiplying an overload. All but the budget, which
//! reads tokio's clock, are functions of what they are given.
//!
//! `docs/outcomes.md` holds the whole table; a test compares it with the code.

mod backoff;
mod budget;
mod decide;
mod outcome;
mod sqlstate;
#[cfg(test)]
mod table;

pub use backoff::Backoff;
pub use budget::{BudgetConfig, BudgetError, RetryBudget};
pub use decide::{Decision, GiveUp, Limits, Pause, Progress, Work, can_help, decide};
pub use outcome::{Attempt, Cause, Outcome, Phase, outcome};
pub use sqlstate::{SqlClass, SqlState5, SqlStateParseError};
