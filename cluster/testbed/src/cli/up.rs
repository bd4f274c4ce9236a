//! `up`: the system in the background, held by a process of its own.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::time::{Instant, interval};

use super::events::{Events, Tone};
use super::look::look;
use super::place::Place;
use super::start::{Options, break_line, pass_on};
use super::supervise::supervise;
use super::system::System;
use super::{Signals, down, say, status};

/// From nothing to healthy; Patroni may have to be installed first.
const DEADLINE: Duration = Duration::from_secs(300);
/// What begins the line that says that it is up.
const READY: &str = "ready: process";
/// What begins the words of its failure.
const REFUSAL: &str = "error: ";

#[derive(Debug, Args)]
pub(super) struct Up {
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Args)]
pub(super) struct Supervise {
    #[command(flatten)]
    options: Options,
}

impl Up {
    pub(super) async fn run(self) -> Result<()> {
        let mut signals = Signals::install()?;
        let began = Instant::now();
        let place = Place::new(&self.options.folder.dir)?;
        self.options.backend()?;
        super::start::manager(&self.options.manager)?;
        // Tried here, so that a refusal is ours to tell; the process that we start takes it for good.
        drop(place.take().await?);
        let log = place.log();
        let file = OpenOptions::new().create(true).truncate(true).write(true).open(&log);
        let file = file.with_context(|| format!("cannot write {}", log.display()))?;
        // A session of its own: neither Ctrl-C nor the terminal's end is meant for it.
        let mut child = Command::new("setsid")
            .arg(std::env::current_exe()?)
            .arg("supervise")
            .args(self.options.to_args()?)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("cannot start the process that holds the system (setsid)")?;
        say(format_args!("starting the system, Patroni timing {}", timing(&self.options)));
        let waited = tokio::select! {
            waited = follow(&place, &mut child) => waited,
            () = signals.next() => Err(anyhow::anyhow!("interrupted while it was starting; it was stopped")),
        };
        if let Err(error) = waited {
            break_line();
            if child.try_wait()?.is_none() {
                down::end(&place, child.id()).await?;
                let _ = child.wait();
            }
            return Err(error);
        }
        let state = place.running()?;
        let health = look(&state).await;
        say("");
        status::print(&status::table(&state, &health));
        say(format_args!("\nup after {:.1} s. Next:", began.elapsed().as_secs_f64()));
        for line in next_steps(&state) {
            say(format_args!("  {line}"));
        }
        Ok(())
    }
}

fn timing(options: &Options) -> String {
    let dynamic = options.dynamic();
    format!("{}/{}/{}", dynamic.ttl, dynamic.loop_wait, dynamic.retry_timeout)
}

/// What to try with a running system.
pub(super) fn next_steps(state: &super::place::State) -> Vec<String> {
    let app = state.backends.first().map_or(0, |backend| backend.port);
    let config = near(&state.config);
    let what = |command: &str, what: &str| format!("{command:<31}{what}");
    let stats = format!("http://127.0.0.1:{}/stats", state.haproxy.stats);
    let json = "-Hcontent-type:application/json -d'{\"kind\":\"hi\"}'";
    vec![
        what("make failover", "kills the leader and tells the story"),
        what("make failover KIND=switchover", "hands the lead over (or KIND=postmaster)"),
        what("make status", "who leads, who follows, where HAProxy sends"),
        what("make down", "stops all of it"),
        what(&stats, "HAProxy's page"),
        format!("curl -i 127.0.0.1:{app}/events {json}"),
        format!("cargo run --example downtime -- --config {config}   # a meter"),
    ]
}

/// A path as seen from here.
pub(super) fn near(path: &std::path::Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}

/// Prints what the process writes, until it says that it is ready.
async fn follow(place: &Place, child: &mut Child) -> Result<()> {
    let mut log = File::open(place.log())?;
    let (mut text, mut shown) = (Vec::new(), 0);
    let end = Instant::now() + DEADLINE;
    let mut ticks = interval(Duration::from_millis(50));
    loop {
        ticks.tick().await;
        let ended = child.try_wait()?;
        log.read_to_end(&mut text)?;
        let ready = find(&text, READY);
        let refusal = find(&text, REFUSAL);
        let until = ready.or(refusal).unwrap_or(text.len());
        pass_on(&text[shown..until]);
        shown = until;
        if ready.is_some() {
            return Ok(());
        }
        if let (Some(_), Some(at)) = (ended, refusal) {
            let words = String::from_utf8_lossy(&text[at + REFUSAL.len()..]).into_owned();
            bail!("{}", words.trim_end());
        }
        if let Some(status) = ended {
            bail!("the system did not come up ({status}); its log is {}", place.log().display());
        }
        if Instant::now() > end {
            bail!(
                "not healthy after {DEADLINE:?}; its log is {}\n{}",
                place.log().display(),
                leaderpool_testbed::logs::tails_in(&place.dir().join("cluster/logs"))
            );
        }
    }
}

fn find(text: &[u8], needle: &str) -> Option<usize> {
    text.windows(needle.len()).position(|window| window == needle.as_bytes())
}

impl Supervise {
    pub(super) async fn run(self) -> Result<()> {
        let mut signals = Signals::install()?;
        let place = Place::new(&self.options.folder.dir)?;
        let events = Events::new(true);
        // A start that is interrupted is dropped, and its processes with it.
        let system = tokio::select! {
            system = System::start(&place, &self.options, "up") => system.inspect_err(|_| break_line())?,
            () = signals.next() => return Ok(()),
        };
        say(format_args!("{READY} {}", std::process::id()));
        tokio::select! {
            () = supervise(&system, &events) => {}
            () = signals.next() => {}
        }
        events.add(Tone::Plain, "stopping");
        let stopped = tokio::select! {
            stopped = system.stop() => stopped?,
            () = signals.next() => "killed".to_owned(),
        };
        events.add(Tone::Plain, stopped);
        Ok(())
    }
}
