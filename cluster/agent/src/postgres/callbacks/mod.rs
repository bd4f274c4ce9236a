//! The user's commands that are told of the server's events. None of them holds anything up: a new one kills an older
//! one that still runs, since what that was told is no longer so. Reloads are told apart from the rest, and supersede only
//! each other.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::binaries::Tool;
use super::process::Identity;
use super::quote::split_words;
use super::settings::CallbackCommands;

/// Where no limit is configured. A command that runs for so long is not going to end.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// What a callback is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallbackAction {
    /// The server was started.
    Start,
    /// It was stopped.
    Stop,
    /// It was restarted.
    Restart,
    /// Its configuration was reloaded.
    Reload,
    /// It was promoted or demoted.
    RoleChange,
}

impl fmt::Display for CallbackAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "on_start",
            Self::Stop => "on_stop",
            Self::Restart => "on_restart",
            Self::Reload => "on_reload",
            Self::RoleChange => "on_role_change",
        })
    }
}

impl CallbackCommands {
    /// The command for an action, where there is one.
    #[must_use]
    pub fn command(&self, action: CallbackAction) -> Option<&str> {
        match action {
            CallbackAction::Start => self.on_start.as_deref(),
            CallbackAction::Stop => self.on_stop.as_deref(),
            CallbackAction::Restart => self.on_restart.as_deref(),
            CallbackAction::Reload => self.on_reload.as_deref(),
            CallbackAction::RoleChange => self.on_role_change.as_deref(),
        }
    }
}

/// Runs callbacks, as the account that PostgreSQL runs as.
#[derive(Debug)]
pub struct Callbacks {
    identity: Identity,
    reloads: Lane,
    others: Lane,
}

/// At most one command at a time.
#[derive(Debug, Default)]
struct Lane(Mutex<Option<JoinHandle<()>>>);

impl Callbacks {
    /// None runs yet.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        Self { identity: identity.clone(), reloads: Lane::default(), others: Lane::default() }
    }

    /// Starts the command for an action, if there is one: `COMMAND ACTION ROLE SCOPE`. Returns at once; failures are
    /// logged.
    pub fn run(
        &self,
        commands: &CallbackCommands,
        action: CallbackAction,
        role: &str,
        scope: &str,
    ) {
        let Some(line) = commands.command(action) else { return };
        let mut words = match split_words(line) {
            Ok(words) => words.into_iter(),
            Err(error) => {
                tracing::error!(%action, %error, "the callback cannot be run");
                return;
            }
        };
        let tool = Tool::new(words.next().unwrap_or_default(), &self.identity)
            .args(words)
            .args([&action.to_string(), role, scope])
            .keep_environment()
            .deadline(commands.timeout.unwrap_or(LONGEST));
        let lane = if action == CallbackAction::Reload { &self.reloads } else { &self.others };
        let role = role.to_owned();
        lane.supersede(async move {
            match tool.run().await {
                Ok(_) => tracing::debug!(%action, role, "the callback has ended"),
                Err(error) => tracing::warn!(%action, role, %error, "the callback has failed"),
            }
        });
    }

    /// Lets what runs end, for at most `patience`, and then kills it.
    pub async fn shutdown(&self, patience: Duration) {
        let (one, other) = (self.reloads.take(), self.others.take());
        let all = async {
            for mut task in [one, other].into_iter().flatten() {
                if timeout(patience, &mut task).await.is_err() {
                    task.abort();
                    let _ = task.await;
                }
            }
        };
        all.await;
    }
}

impl Lane {
    fn take(&self) -> Option<JoinHandle<()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn supersede(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let older = slot.take();
        if let Some(older) = &older {
            // Its command is killed with all that it started.
            older.abort();
        }
        *slot = Some(tokio::spawn(async move {
            if let Some(older) = older {
                let _ = older.await;
            }
            work.await;
        }));
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Some(task) = self.take() {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use tokio::time::{Instant, sleep};

    use super::*;

    struct Scene {
        dir: tempfile::TempDir,
        callbacks: Callbacks,
        commands: CallbackCommands,
    }

    /// A command that writes down what it was told, and takes its time when it is told `slow`.
    fn scene() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let script = dir.path().join("call back.sh");
        let log = dir.path().join("log");
        let text = format!(
            "#!/bin/sh\necho \"begin $*\" >> {0}\n[ \"$3\" = slow ] && sleep 30\necho \"end $*\" >> {0}\n",
            log.display()
        );
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let command = Some(format!("'{}' extra", script.display()));
        let commands = CallbackCommands {
            on_start: command.clone(),
            on_role_change: command.clone(),
            on_reload: command,
            ..CallbackCommands::default()
        };
        let callbacks = Callbacks::new(&Identity::resolve(None).unwrap());
        Scene { dir, callbacks, commands }
    }

    async fn wait_for(log: &Path, line: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            if text.lines().any(|l| l == line) {
                return;
            }
            assert!(Instant::now() < deadline, "{line:?} is not in {text:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_command_is_told_action_role_and_scope() {
        let scene = scene();
        let log = scene.dir.path().join("log");
        scene.callbacks.run(&scene.commands, CallbackAction::Start, "replica", "batman");
        wait_for(&log, "end extra on_start replica batman").await;
        scene.callbacks.run(&scene.commands, CallbackAction::Stop, "replica", "batman");
        scene.callbacks.shutdown(Duration::from_secs(5)).await;
        assert_eq!(std::fs::read_to_string(&log).unwrap().lines().count(), 2);
    }

    #[tokio::test]
    async fn a_newer_one_kills_the_older_but_not_a_reload() {
        let scene = scene();
        let log = scene.dir.path().join("log");
        let run = |action, role| scene.callbacks.run(&scene.commands, action, role, "batman");
        run(CallbackAction::RoleChange, "slow");
        wait_for(&log, "begin extra on_role_change slow batman").await;
        run(CallbackAction::Reload, "slow");
        wait_for(&log, "begin extra on_reload slow batman").await;
        run(CallbackAction::RoleChange, "primary");
        wait_for(&log, "end extra on_role_change primary batman").await;
        let begin = Instant::now();
        scene.callbacks.shutdown(Duration::from_millis(100)).await;
        assert!(begin.elapsed() < Duration::from_secs(10), "shutdown is bounded");
        assert!(!std::fs::read_to_string(&log).unwrap().contains("end extra on_role_change slow"));
    }

    #[tokio::test]
    async fn a_limit_is_kept() {
        let mut scene = scene();
        scene.commands.timeout = Some(Duration::from_millis(200));
        let log = scene.dir.path().join("log");
        scene.callbacks.run(&scene.commands, CallbackAction::Start, "slow", "batman");
        wait_for(&log, "begin extra on_start slow batman").await;
        let begin = Instant::now();
        scene.callbacks.shutdown(Duration::from_secs(20)).await;
        assert!(begin.elapsed() < Duration::from_secs(15));
    }
}
