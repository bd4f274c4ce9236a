//! `failover`: takes the leader away and tells the story, with times.

mod seen;
mod story;
mod writers;

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use leaderpool_testbed::http::Http;
use leaderpool_testbed::process::scan::{self, Found};
use leaderpool_testbed::{WritablePoller, wait};
use rustix::process::Signal;
use serde_json::json;
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::time::{Instant, sleep};

use super::look::{Role, look};
use super::place::{Hold, NodeState, Place, State, only_one_failover};
use super::{Folder, Signals, say};
use seen::{Seen, What};
use story::Story;
use writers::Writers;

/// Before the fault, so that there is something to compare with.
const CALM: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct Failover {
    #[command(flatten)]
    folder: Folder,
    /// What happens to the leader.
    #[arg(long, value_enum, default_value_t = Kind::Node)]
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    /// All its processes are killed at one moment, as if the power went.
    Node,
    /// PostgreSQL's postmaster is killed; the manager lives.
    Postmaster,
    /// The lead is handed over, as planned.
    Switchover,
}

impl Failover {
    pub(super) async fn run(self) -> Result<()> {
        let mut signals = Signals::install()?;
        let place = Place::new(&self.folder.dir)?;
        let state = place.running()?;
        let _alone = only_one_failover(&place)?;
        let teller = Teller { state: &state, kind: self.kind };
        // Whatever ends this drops the hold on the node, which is then started again.
        tokio::select! {
            told = teller.tell() => told,
            () = signals.next() => bail!("interrupted; a node that was held down is started again"),
        }
    }
}

struct Teller<'a> {
    state: &'a State,
    kind: Kind,
}

impl Teller<'_> {
    async fn tell(&self) -> Result<()> {
        let state = self.state;
        let old = self.healthy_leader().await?;
        let (sender, mut seen) = mpsc::unbounded_channel();
        let nodes = state.nodes.iter().map(|node| (node.name.clone(), node.postgres)).collect();
        let poller = WritablePoller::start(nodes, Duration::from_millis(10));
        let writers = Writers::start(state, &sender);
        tokio::spawn(seen::watch_key(state.clone(), sender.clone()));
        writers.all_acknowledged().await?;
        sleep(CALM).await;
        let apps: Vec<_> = state.backends.iter().map(|backend| backend.name.as_str()).collect();
        say(format_args!(
            "{} leads. Writes go through {} and through HAProxy, all the time.\n",
            old.name,
            apps.join(", ")
        ));

        let mut story = Story::begin(state, self.kind, &old.name);
        let mut hold = self.strike(old, &mut story, &sender).await?;
        let end = Instant::now() + self.patience();
        let mut returns = false;
        while !story.is_over() {
            tokio::select! {
                one = seen.recv() => story.hear(one.context("nobody watches any more")?)?,
                () = sleep(Duration::from_millis(20)) => {}
            }
            story.look_at(&poller.intervals());
            story.print();
            if story.writes_are_back() && !returns {
                returns = true;
                // Without it the supervising process starts the node.
                if hold.take().is_some() {
                    story.started_again();
                }
                tokio::spawn(seen::watch_return(state.clone(), old.name.clone(), sender.clone()));
            }
            if Instant::now() > end {
                story.print_all();
                let (patience, missing) = (self.patience(), story.missing());
                bail!("not over after {patience:?}: {missing}; see `make status`");
            }
        }
        story.print_all();
        let account = writers.stop().await;
        say("");
        for line in story.sum_up(&account, &poller) {
            say(line);
        }
        writers::find_lost(state, &account).await
    }

    /// A story begins in peace.
    async fn healthy_leader(&self) -> Result<&NodeState> {
        let every = Duration::from_millis(500);
        let wait = Duration::from_secs(20);
        let name = wait::until("a healthy system", wait, every, async || {
            let health = look(self.state).await;
            if !health.healthy {
                bail!("{}", health.problems.join("; "));
            }
            let leader = health.members.into_iter().find(|m| m.role == Role::Leader);
            Ok(leader.context("no leader")?.name)
        })
        .await
        .map_err(|error| anyhow!("{error:#}; see `make status`"))?;
        self.state.node(&name)
    }

    /// The longest that all of it may take: the lease, some rounds of the managers, and the way back.
    fn patience(&self) -> Duration {
        Duration::from_secs(u64::from(self.state.ttl + 3 * self.state.loop_wait) + 90)
    }

    async fn strike(
        &self,
        old: &NodeState,
        story: &mut Story,
        tell: &UnboundedSender<Seen>,
    ) -> Result<Option<Hold>> {
        match self.kind {
            Kind::Node => {
                let hold = Hold::on(old)?;
                let all = scan::under(&old.dir);
                let servers = all.iter().filter(|p| p.command.starts_with("postgres")).count();
                story.struck(format!(
                    "killed {}: PostgreSQL ({servers} processes) and its manager, at one moment",
                    old.name
                ));
                scan::kill_under(&old.dir).await?;
                Ok(Some(hold))
            }
            Kind::Postmaster => {
                let postmaster = postmaster(old)?;
                story.struck(format!(
                    "killed the postmaster of {} (process {}); its manager lives, and looks every {} s",
                    old.name, postmaster.pid, self.state.loop_wait
                ));
                scan::signal(&[postmaster], Signal::KILL);
                Ok(None)
            }
            Kind::Switchover => {
                story.struck(format!("asked {} to hand the lead over", old.name));
                let (old, tell) = (old.clone(), tell.clone());
                tokio::spawn(async move {
                    if let Err(error) = switchover(&old).await {
                        let what = What::Refused(format!("{error:#}"));
                        let _ = tell.send(Seen { at: Instant::now(), what });
                    }
                });
                Ok(None)
            }
        }
    }
}

fn postmaster(node: &NodeState) -> Result<Found> {
    let data = node.dir.join("data");
    let pid = std::fs::read_to_string(data.join("postmaster.pid")).ok();
    let pid = pid.and_then(|text| text.lines().next()?.trim().parse::<u32>().ok());
    // A leftover file may name an id that is another's by now.
    let found = scan::under(&data).into_iter().find(|p| Some(p.pid) == pid);
    found.with_context(|| format!("PostgreSQL of {} does not run", node.name))
}

async fn switchover(old: &NodeState) -> Result<()> {
    let rest = Http::plain(old.rest);
    let body = json!({"leader": old.name});
    let answer = rest.post("/switchover", &body, Duration::from_secs(60)).await?;
    if answer.status != 200 {
        bail!("{} refused the switchover ({}): {}", old.name, answer.status, answer.body.trim());
    }
    Ok(())
}
