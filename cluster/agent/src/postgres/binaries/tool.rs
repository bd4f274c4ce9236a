//! Running a program to its end: with a deadline, its output kept within bounds, and killed with all that it
//! started when the caller goes away.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::postgres::process::Identity;

/// Of each stream, this much is kept: the beginning of the output, the end of the errors.
const KEPT: usize = 256 * 1024;
/// Between asking a program to stop and killing it.
const GRACE: Duration = Duration::from_secs(3);

/// A program to be run.
#[derive(Debug)]
pub(crate) struct Tool {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    cwd: PathBuf,
    identity: Identity,
    deadline: Duration,
    keep_locale: bool,
    keep_environment: bool,
}

/// What it said and how it ended.
#[derive(Debug)]
pub(crate) struct ToolOutput {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToolError {
    /// It could not be started.
    #[error("cannot run {}: {source}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It ended with an error.
    #[error("{0}")]
    Failed(Box<ToolFailure>),
    /// It had not ended by its deadline, and was stopped.
    #[error("{} had not ended after {after:?} and was stopped; it had said: {said}", program.display())]
    TimedOut {
        /// The program.
        program: PathBuf,
        /// The deadline.
        after: Duration,
        /// The end of what it said on standard error.
        said: String,
    },
}

/// A program's bad end.
#[derive(Debug, thiserror::Error)]
#[error("{} failed ({status}): {}", program.display(), said(stderr, stdout))]
pub struct ToolFailure {
    /// The program.
    pub program: PathBuf,
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl ToolError {
    /// The end of what the program said, where it said something.
    #[must_use]
    pub fn stderr(&self) -> &str {
        match self {
            Self::Failed(failure) => &failure.stderr,
            Self::TimedOut { said, .. } => said,
            Self::Start { .. } => "",
        }
    }
}

fn said<'a>(stderr: &'a str, stdout: &'a str) -> &'a str {
    let (stderr, stdout) = (stderr.trim(), stdout.trim());
    let text = if stderr.is_empty() { stdout } else { stderr };
    if text.is_empty() { "it said nothing" } else { tail(text, 2000) }
}

/// The last `most` bytes of a text, from the beginning of a line where possible.
fn tail(text: &str, most: usize) -> &str {
    let mut start = text.len().saturating_sub(most);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    let end = &text[start..];
    if start == 0 { end } else { end.split_once('\n').map_or(end, |(_, rest)| rest) }
}

impl Tool {
    pub(crate) fn new(program: impl AsRef<Path>, identity: &Identity) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            cwd: PathBuf::from("/"),
            identity: identity.clone(),
            deadline: Duration::from_secs(60),
            keep_locale: false,
            keep_environment: false,
        }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub(crate) fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    pub(crate) fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    pub(crate) fn in_dir(mut self, cwd: &Path) -> Self {
        self.cwd = cwd.to_owned();
        self
    }

    pub(crate) fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// For programs whose result depends on the locale (initdb). All others are run in the C locale, in
    /// which their answers can be read.
    pub(crate) fn keep_locale(mut self) -> Self {
        self.keep_locale = true;
        self
    }

    /// For a user's own commands, which may rely on anything in the environment.
    pub(crate) fn keep_environment(mut self) -> Self {
        self.keep_environment = true;
        self.keep_locale = true;
        self
    }

    fn command(&self) -> Command {
        let mut words = self.identity.prefix(true).into_iter();
        let mut command = match words.next() {
            Some(first) => {
                let mut command = Command::new(first);
                command.args(words).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        command.args(&self.args);
        if !self.keep_environment {
            scrub_for_tool(&mut command);
        }
        if !self.keep_locale {
            command.env("LC_ALL", "C").env("LANG", "C");
        }
        if let Some(home) = self.identity.home() {
            command.env("HOME", home).env("USER", self.identity.user());
        }
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        command.current_dir(&self.cwd).process_group(0).kill_on_drop(false);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs it. Cancel-safe: when the future is dropped, the program and all it started are killed.
    pub(crate) async fn run(self) -> Result<ToolOutput, ToolError> {
        let fail = |source| ToolError::Start { program: self.program.clone(), source };
        let mut group = spawn_from_the_lasting_thread(self.command()).await.map_err(fail)?;
        let mut stdout = Captured::new(group.child.stdout.take(), Keep::Beginning);
        let mut stderr = Captured::new(group.child.stderr.take(), Keep::End);
        let ended = {
            let reading = async { tokio::join!(stdout.read(), stderr.read()) };
            tokio::pin!(reading);
            // A daemon that the program left behind may hold its output open for ever: its end counts.
            let mut read = false;
            let ended = async {
                loop {
                    tokio::select! {
                        status = group.child.wait() => break status,
                        _ = &mut reading, if !read => read = true,
                    }
                }
            };
            match timeout(self.deadline, ended).await {
                Ok(status) => {
                    if !read {
                        let _ = timeout(Duration::from_millis(300), &mut reading).await;
                    }
                    Some(status.map_err(fail)?)
                }
                Err(_) => None,
            }
        };
        let (stdout, stderr) = (stdout.text(), stderr.text());
        let Some(status) = ended else {
            group.stop().await;
            let said = tail(stderr.trim(), 2000).to_owned();
            return Err(ToolError::TimedOut { program: self.program, after: self.deadline, said });
        };
        tracing::debug!(program = %self.program.display(), %status, stderr = stderr.trim(), "ended");
        if status.success() {
            return Ok(ToolOutput { stdout, stderr });
        }
        let failure = ToolFailure { program: self.program, status, stdout, stderr };
        Err(ToolError::Failed(Box::new(failure)))
    }
}

/// A running program and what it started. While its leader is not reaped, the group's id is nobody else's.
struct Group {
    child: Child,
}

impl Group {
    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            let _ = rustix::process::kill_process_group(pid, signal);
        }
    }

    async fn stop(mut self) {
        self.signal(Signal::INT);
        if timeout(GRACE, self.child.wait()).await.is_err() {
            self.signal(Signal::KILL);
            let _ = timeout(GRACE, self.child.wait()).await;
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

enum Keep {
    Beginning,
    End,
}

/// One output stream: read to its end, kept in part.
struct Captured<R> {
    stream: Option<R>,
    keep: Keep,
    bytes: VecDeque<u8>,
}

impl<R: AsyncRead + Unpin> Captured<R> {
    fn new(stream: Option<R>, keep: Keep) -> Self {
        Self { stream, keep, bytes: VecDeque::new() }
    }

    async fn read(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        let mut chunk = vec![0; 16 * 1024];
        while let Ok(n @ 1..) = stream.read(&mut chunk).await {
            match self.keep {
                Keep::Beginning => {
                    let room = KEPT - self.bytes.len();
                    self.bytes.extend(&chunk[..n.min(room)]);
                }
                Keep::End => {
                    self.bytes.extend(&chunk[..n]);
                    let excess = self.bytes.len().saturating_sub(KEPT);
                    self.bytes.drain(..excess);
                }
            }
        }
    }

    fn text(self) -> String {
        String::from_utf8_lossy(&Vec::from(self.bytes)).into_owned()
    }
}

/// Variables by which a caller's environment would make libpq's programs connect elsewhere.
const LIBPQ: [&str; 13] = [
    "PGDATA",
    "PGPORT",
    "PGHOST",
    "PGHOSTADDR",
    "PGUSER",
    "PGPASSWORD",
    "PGPASSFILE",
    "PGDATABASE",
    "PGSERVICE",
    "PGSERVICEFILE",
    "PGOPTIONS",
    "PGTARGETSESSIONATTRS",
    "PGREQUIREAUTH",
];

fn scrub_for_tool(command: &mut Command) {
    for name in LIBPQ {
        command.env_remove(name);
    }
    scrub_for_server(command);
}

/// What the server must not inherit: the agent's secrets, and systemd's socket, on which it would report itself in
/// place of the agent.
pub(crate) fn scrub_for_server(command: &mut Command) {
    for (key, _) in std::env::vars_os() {
        let name = key.to_string_lossy();
        let ours = name.starts_with("PATRONI_") || name.starts_with("KUBERNETES_");
        let systemds =
            ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID"];
        if ours
            || systemds.contains(&&*name)
            || ["PGDATA", "PGPORT", "PGPASSWORD"].contains(&&*name)
        {
            command.env_remove(&key);
        }
    }
}

type Request = (Command, tokio::runtime::Handle, oneshot::Sender<std::io::Result<Group>>);

/// The parent-death signal fires when the *thread* that forked ends, and a runtime's threads come and go.
async fn spawn_from_the_lasting_thread(command: Command) -> std::io::Result<Group> {
    static SPAWNER: OnceLock<mpsc::Sender<Request>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, mut requests) = mpsc::channel::<Request>(16);
        std::thread::spawn(move || {
            while let Some((mut command, runtime, reply)) = requests.blocking_recv() {
                let _inside = runtime.enter();
                if !reply.is_closed() {
                    // Whoever asked may be gone by now: then the group is dropped, and so killed.
                    let _ = reply.send(command.spawn().map(|child| Group { child }));
                }
            }
        });
        sender
    });
    let gone = || std::io::Error::other("the spawning thread is gone");
    let (reply, answer) = oneshot::channel();
    let request = (command, tokio::runtime::Handle::current(), reply);
    spawner.send(request).await.map_err(|_| gone())?;
    answer.await.map_err(|_| gone())?
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    fn sh(script: &str) -> Tool {
        let identity = Identity::resolve(None).unwrap();
        Tool::new("/bin/sh", &identity).arg("-c").arg(script)
    }

    #[tokio::test]
    async fn output_and_failure_are_told() {
        let output = sh("echo out; echo err >&2").run().await.unwrap();
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
        let error = sh("echo broken >&2; exit 3").run().await.unwrap_err().to_string();
        assert!(error.contains("broken") && error.contains('3'), "{error}");
        let none = Tool::new("/no/such/program", &Identity::resolve(None).unwrap());
        assert!(none.run().await.is_err());
    }

    #[tokio::test]
    async fn it_runs_as_the_account_and_never_as_root() {
        let output = sh("id -u").run().await.unwrap();
        assert_ne!(output.stdout.trim(), "0");
    }

    #[tokio::test]
    async fn much_output_is_bounded_and_does_not_block() {
        let output =
            sh("head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2").run().await.unwrap();
        assert_eq!((output.stdout.len(), output.stderr.len()), (KEPT, KEPT));
    }

    #[tokio::test]
    async fn a_deadline_stops_it_and_its_children() {
        let marker = format!("7{}", std::process::id());
        let script =
            format!("trap '' INT; sleep {marker} & echo waiting >&2; wait; sleep {marker}");
        let error = sh(&script).deadline(Duration::from_millis(300)).run().await.unwrap_err();
        assert!(
            matches!(&error, ToolError::TimedOut { said, .. } if said.contains("waiting")),
            "{error}"
        );
        assert_gone(&marker).await;
    }

    #[tokio::test]
    async fn a_dropped_future_kills_it() {
        let marker = format!("8{}", std::process::id());
        let running = sh(&format!("sleep {marker}; true")).run();
        assert!(timeout(Duration::from_millis(300), running).await.is_err());
        assert_gone(&marker).await;
    }

    async fn assert_gone(marker: &str) {
        for _ in 0..100 {
            let lists = std::fs::read_dir("/proc").unwrap().flatten();
            let left = lists
                .filter_map(|e| std::fs::read(e.path().join("cmdline")).ok())
                .any(|line| line.split(|b| *b == 0).any(|word| word == marker.as_bytes()));
            if !left {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("sleep {marker} still runs");
    }
}
