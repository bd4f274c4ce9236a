//! The whole system, by the command line as a person uses it.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leaderpool_testbed::process::scan;
use leaderpool_testbed::wait;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::OnceCell;
use tokio::time::timeout;

const PROGRAM: &str = env!("CARGO_BIN_EXE_leaderpool-testbed");
const EVERY: Duration = Duration::from_millis(50);
const MINUTE: Duration = Duration::from_secs(60);

/// A folder for one system, gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("leaderpool-cli-{name}-{}", std::process::id())))
    }

    /// A command on it.
    fn command(&self, name: &str, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg(name).arg("--dir").arg(&self.0).args(args);
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    async fn run(&self, name: &str, args: &[&str]) -> Result<Output> {
        let output = timeout(2 * MINUTE, self.command(name, args).output());
        output.await.with_context(|| format!("{name} does not end"))?.context("cannot start it")
    }

    /// A command that succeeds; what it says.
    async fn succeed(&self, name: &str, args: &[&str]) -> Result<String> {
        let output = self.run(name, args).await?;
        ensure!(output.status.success(), "{name}: {}", all(&output));
        Ok(all(&output))
    }

    /// A command that fails; its one sentence.
    async fn fail(&self, name: &str, args: &[&str]) -> Result<String> {
        let output = self.run(name, args).await?;
        ensure!(!output.status.success(), "{name} succeeds: {}", all(&output));
        let words = String::from_utf8(output.stderr)?;
        ensure!(words.starts_with("error: ") && words.lines().count() == 1, "{words}");
        Ok(words)
    }

    async fn nothing_is_left(&self) -> Result<()> {
        let dir = self.0.canonicalize()?;
        wait::until("nothing left", Duration::from_secs(10), EVERY, async || {
            let left = scan::under(&dir);
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })
        .await
    }

    fn pid(&self) -> Result<Pid> {
        let text = std::fs::read_to_string(self.0.join("pid"))?;
        Pid::from_raw(text.trim().parse()?).context("no process id")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn all(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// The arguments of a start, with the sample service as it is now.
async fn start() -> Result<[&'static str; 5]> {
    static BACKEND: OnceCell<String> = OnceCell::const_new();
    let backend = BACKEND.get_or_try_init(build_backend).await?;
    Ok(["--fast", "--ports", "free", "--backend", backend])
}

/// `cargo test` of the whole workspace has built it already; that of this package alone has not.
async fn build_backend() -> Result<String> {
    let profile = Path::new(PROGRAM).parent().context("no directory")?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--workspace", "--example", "backend", "--target-dir"]);
    cargo.arg(profile.parent().context("no target directory")?).current_dir(root);
    cargo.args(profile.ends_with("release").then_some("--release"));
    ensure!(cargo.status().await?.success(), "cannot build the sample service");
    Ok(profile.join("examples/backend").display().to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn up_status_failover_down_and_an_end_without_a_word() -> Result<()> {
    let folder = Folder::new("up");
    let start = start().await?;
    let up = folder.succeed("up", &start).await?;
    ensure!(
        up.contains("etcd on ") && up.contains("… ready in ") && up.contains("healthy"),
        "{up}"
    );

    let status: Value = serde_json::from_str(&folder.succeed("status", &["--json"]).await?)?;
    ensure!(status["healthy"] == true && status["up"] == true, "{status}");
    let roles: Vec<&Value> =
        status["members"].as_array().context("no members")?.iter().map(|m| &m["role"]).collect();
    ensure!(roles == ["leader", "replica", "replica"], "{status}");
    let ready = |backend: &Value| backend["ready"] == true;
    ensure!(status["backends"].as_array().is_some_and(|b| b.len() == 3 && b.iter().all(ready)));
    let config = std::fs::read_to_string(folder.0.join("leaderpool.toml"))?;
    ensure!(config.contains("[etcd]") && config.contains("[postgres]"), "{config}");

    let refusal = folder.fail("up", &start).await?;
    ensure!(refusal.contains("is up already") && refusal.contains("make down"), "{refusal}");
    let refusal = folder.fail("demo", &start).await?;
    ensure!(refusal.contains("is up already"), "{refusal}");

    let story = folder.succeed("failover", &["--kind", "switchover"]).await?;
    let told = [
        "asked patroni-master to hand the lead over",
        "holds the leader key",
        "accepts writes",
        "first write through the backends acknowledged",
        "first write through HAProxy",
        "patroni-master follows as a replica, on timeline 2",
        "no two nodes were writable at the same time",
    ];
    for part in told {
        ensure!(story.contains(part), "no \"{part}\" in:\n{story}");
    }
    let status: Value = serde_json::from_str(&folder.succeed("status", &["--json"]).await?)?;
    ensure!(status["leader"] != "patroni-master", "{status}");

    // What ends by itself is started again.
    let replica = status["system"]["nodes"].as_array().context("no nodes")?;
    let dir = replica[0]["dir"].as_str().context("no directory")?;
    let manager = scan::under(Path::new(dir)).into_iter().find(|p| p.cwd == Path::new(dir));
    scan::signal(&[manager.context("no manager")?], Signal::KILL);
    wait::until("its return", MINUTE, EVERY, async || {
        let log = std::fs::read_to_string(folder.0.join("testbed.log"))?;
        ensure!(log.contains("the manager of patroni-master is started again"), "{log}");
        Ok(())
    })
    .await?;

    kill_process(folder.pid()?, Signal::KILL)?;
    folder.nothing_is_left().await?;
    let gone = folder.fail("status", &[]).await?;
    ensure!(gone.contains("was killed") && gone.contains("make down"), "{gone}");
    let down = folder.succeed("down", &[]).await?;
    ensure!(down.contains("without a word") && down.contains("cleared away"), "{down}");
    let down = folder.succeed("down", &[]).await?;
    ensure!(down.starts_with("nothing is up"), "{down}");
    let json: Value = serde_json::from_slice(&folder.run("status", &["--json"]).await?.stdout)?;
    ensure!(json["up"] == false && json["healthy"] == false, "{json}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn demo_without_a_terminal_writes_lines_until_ctrl_c() -> Result<()> {
    let folder = Folder::new("demo");
    let mut demo = folder.command("demo", &start().await?).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(demo.stdout.take().context("piped")?).lines();
    let mut seen = Vec::new();
    let load = async {
        while let Some(line) = lines.next_line().await? {
            ensure!(!line.contains('\x1b'), "an escape sequence: {line:?}");
            let loaded = line.contains("requests/s") && !line.contains("; 0 requests/s");
            seen.push(line);
            if loaded {
                return Ok(());
            }
        }
        anyhow::bail!("it ended")
    };
    let loaded = timeout(2 * MINUTE, load).await.context("no load")?;
    loaded.with_context(|| seen.join("\n"))?;
    let text = seen.join("\n");
    for part in ["etcd on ", "make failover", "/events", "leader patroni-master", "3/3 members"] {
        ensure!(text.contains(part), "no \"{part}\" in:\n{text}");
    }
    ensure!(text.lines().last().is_some_and(|line| line.contains("errors 0")), "{text}");

    let down = {
        // The same folder, from elsewhere, is refused while it is up.
        let refusal = folder.fail("up", &start().await?).await?;
        ensure!(refusal.contains("is up already"), "{refusal}");
        kill_process(folder.pid()?, Signal::INT)?;
        timeout(Duration::from_secs(15), demo.wait()).await.context("Ctrl-C does not end it")??
    };
    ensure!(down.success(), "{down}");
    folder.nothing_is_left().await?;
    let status = folder.fail("status", &[]).await?;
    ensure!(status.contains("nothing is up"), "{status}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_during_the_start_and_a_missing_service() -> Result<()> {
    let folder = Folder::new("early");
    let missing = folder.fail("up", &["--backend", "/nonexistent/backend"]).await?;
    ensure!(missing.contains("cargo build --example backend"), "{missing}");

    let mut demo = folder.command("demo", &start().await?).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(demo.stdout.take().context("piped")?).lines();
    while let Some(line) = timeout(MINUTE, lines.next_line()).await.context("no etcd")?? {
        if line.contains("etcd on ") {
            break;
        }
    }
    kill_process(folder.pid()?, Signal::INT)?;
    let end = timeout(Duration::from_secs(10), demo.wait()).await.context("it goes on")??;
    ensure!(end.success(), "{end}");
    folder.nothing_is_left().await
}
