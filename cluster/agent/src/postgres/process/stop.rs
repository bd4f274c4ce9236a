//! Stopping a server: gently first, then less so, each for as long as the plan allows.

use std::fmt;
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, timeout};

use super::server::{Server, ServerExit};

/// The ways to stop a server, from the gentlest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopMode {
    /// Waits until all clients have left.
    Smart,
    /// Rolls back what is in progress and writes a checkpoint.
    Fast,
    /// Ends all processes at once; the next start recovers.
    Immediate,
    /// Kills all processes; the next start recovers.
    Kill,
}

impl fmt::Display for StopMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Smart => "smart",
            Self::Fast => "fast",
            Self::Immediate => "immediate",
            Self::Kill => "kill",
        })
    }
}

/// A way to stop, and how long to wait for it to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopStep {
    /// How.
    pub mode: StopMode,
    /// How long before the next step.
    pub patience: Duration,
}

/// The steps of stopping a server. Every plan has an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopPlan {
    steps: Vec<StopStep>,
}

impl StopPlan {
    /// One step.
    #[must_use]
    pub fn new(mode: StopMode, patience: Duration) -> Self {
        Self { steps: vec![StopStep { mode, patience }] }
    }

    /// One more step, should those before not have worked.
    #[must_use]
    pub fn then(mut self, mode: StopMode, patience: Duration) -> Self {
        self.steps.push(StopStep { mode, patience });
        self
    }

    /// The steps.
    #[must_use]
    pub fn steps(&self) -> &[StopStep] {
        &self.steps
    }
}

/// A server that was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped {
    /// The step that it took. A server that ended by itself before the first is said to have taken the first.
    pub by: StopMode,
    /// How it ended.
    pub exit: ServerExit,
    /// How long it took.
    pub took: Duration,
}

/// A server could not be stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StopError {
    /// It is still there after the last step.
    #[error("PostgreSQL (process {pid}) still runs after {took:?} and the last step ({mode})")]
    StillRunning {
        /// Its process id.
        pid: u32,
        /// The last step.
        mode: StopMode,
        /// Since the first.
        took: Duration,
    },
    /// It may not be signalled.
    #[error(
        "cannot signal PostgreSQL (process {pid}): {source}; run the agent as its user, or as root"
    )]
    Signal {
        /// Its process id.
        pid: u32,
        /// Why.
        source: std::io::Error,
    },
}

impl Server {
    /// Stops it, step by step. Cancel-safe: a server that was asked to stop goes on stopping, and a later call
    /// goes on from there.
    ///
    /// # Errors
    /// When it may not be signalled, or is still there at the end of the plan.
    pub async fn stop(&self, plan: &StopPlan) -> Result<Stopped, StopError> {
        let begin = Instant::now();
        let mut last = StopMode::Smart;
        for step in plan.steps() {
            last = step.mode;
            tracing::info!(pid = self.pid(), mode = %step.mode, patience = ?step.patience, "stopping PostgreSQL");
            self.ask_to_stop(step.mode).await?;
            if let Ok(exit) = timeout(step.patience, self.exited()).await {
                let took = begin.elapsed();
                tracing::info!(pid = self.pid(), mode = %step.mode, ?took, "PostgreSQL has stopped");
                return Ok(Stopped { by: step.mode, exit, took });
            }
            tracing::warn!(pid = self.pid(), mode = %step.mode, "PostgreSQL has not stopped in time");
        }
        Err(StopError::StillRunning { pid: self.pid(), mode: last, took: begin.elapsed() })
    }

    async fn ask_to_stop(&self, mode: StopMode) -> Result<(), StopError> {
        let fail = |source| StopError::Signal { pid: self.pid(), source };
        let signal = match mode {
            StopMode::Smart => Signal::TERM,
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
            StopMode::Kill => {
                let mut handle = self.fence().handle().map_err(fail)?;
                // It blocks until all are gone.
                let _ = tokio::task::spawn_blocking(move || handle.kill_everything()).await;
                return Ok(());
            }
        };
        match self.signal(signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(fail(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_keeps_its_order() {
        let second = Duration::from_secs(1);
        let plan = StopPlan::new(StopMode::Fast, second)
            .then(StopMode::Immediate, second)
            .then(StopMode::Kill, second);
        let modes: Vec<_> = plan.steps().iter().map(|s| s.mode.to_string()).collect();
        assert_eq!(modes, ["fast", "immediate", "kill"]);
    }
}
