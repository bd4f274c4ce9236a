//! Outcomes, in the codes and words that Patroni's clients know. Pure.

use super::answer::Answer;
use super::commands::{
    CancelOutcome, ConfigOutcome, FailsafeOutcome, ReinitializeOutcome, RestartOutcome, Switchover,
    SwitchoverOutcome,
};

impl Switchover {
    /// The outcome in Patroni's words.
    #[must_use]
    pub fn answer(&self, outcome: SwitchoverOutcome) -> Answer {
        let (title, done) = (self.kind.title(), self.kind.done());
        match outcome {
            SwitchoverOutcome::Done { leader } => match &self.candidate {
                Some(candidate) if *candidate != leader => {
                    let done = done[..1].to_uppercase() + &done[1..];
                    Answer::text(200, format!("{done} to \"{leader}\" instead of \"{candidate}\""))
                }
                _ => Answer::text(200, format!("Successfully {done} to \"{leader}\"")),
            },
            SwitchoverOutcome::Scheduled => Answer::text(202, format!("{title} scheduled")),
            SwitchoverOutcome::NotPossible(why) => {
                Answer::text(412, format!("{} is not possible: {why}", self.kind.action()))
            }
            SwitchoverOutcome::Failed => Answer::text(503, format!("{title} failed")),
            SwitchoverOutcome::Unknown => Answer::text(503, format!("{title} status unknown")),
            SwitchoverOutcome::NotWritten => {
                Answer::text(503, "failed to write failover key into DCS")
            }
        }
    }
}

impl From<RestartOutcome> for Answer {
    fn from(outcome: RestartOutcome) -> Self {
        match outcome {
            RestartOutcome::Done => Answer::text(200, "restarted successfully"),
            RestartOutcome::Scheduled => Answer::text(202, "Restart scheduled"),
            RestartOutcome::AlreadyScheduled => {
                Answer::text(409, "Another restart is already scheduled")
            }
            RestartOutcome::NotSatisfied => {
                Answer::text(503, "restart conditions are not satisfied")
            }
            RestartOutcome::Failed(why) => Answer::text(503, why),
        }
    }
}

impl CancelOutcome {
    /// The outcome for a restart.
    #[must_use]
    pub fn of_restart(self) -> Answer {
        self.answer("scheduled restart deleted", "no restarts are scheduled")
    }

    /// The outcome for a switchover.
    #[must_use]
    pub fn of_switchover(self) -> Answer {
        self.answer("scheduled switchover deleted", "no switchover is scheduled")
    }

    fn answer(self, done: &'static str, nothing: &'static str) -> Answer {
        match self {
            CancelOutcome::Done => Answer::text(200, done),
            CancelOutcome::Nothing => Answer::text(404, nothing),
            CancelOutcome::Conflict => {
                Answer::text(409, "it changed at the same moment: ask again")
            }
        }
    }
}

impl From<ReinitializeOutcome> for Answer {
    fn from(outcome: ReinitializeOutcome) -> Self {
        match outcome {
            ReinitializeOutcome::Started => Answer::text(200, "reinitialize started"),
            ReinitializeOutcome::Refused(why) => Answer::text(503, why),
        }
    }
}

impl ConfigOutcome {
    /// The outcome of a `PATCH`, or of a `PUT`.
    #[must_use]
    pub fn answer(self, patch: bool) -> Answer {
        match self {
            ConfigOutcome::Done(config) => Answer::json(200, &config),
            ConfigOutcome::Conflict => {
                Answer::text(409, "the configuration changed at the same moment: ask again")
            }
            ConfigOutcome::Absent => {
                Answer::text(503, "the cluster has no dynamic configuration yet")
            }
            ConfigOutcome::Invalid(why) => Answer::text(422, why),
            ConfigOutcome::Failed(why) => Answer::text(if patch { 503 } else { 502 }, why),
        }
    }
}

impl From<FailsafeOutcome> for Answer {
    fn from(outcome: FailsafeOutcome) -> Self {
        match outcome {
            FailsafeOutcome::Accepted { lsn } => {
                let answer = Answer::text(200, "Accepted");
                match lsn {
                    Some(lsn) => answer.with_header("lsn", lsn.0.to_string()),
                    None => answer,
                }
            }
            FailsafeOutcome::Refused(why) => Answer::text(500, why),
            FailsafeOutcome::Off => Answer::text(502, "failsafe_mode is off"),
        }
    }
}
