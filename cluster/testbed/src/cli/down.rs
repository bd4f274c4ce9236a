//! `down`: the end of a system, or of what is left of one.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use leaderpool_testbed::wait;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use super::place::{END, Place};
use super::{Folder, say};

#[derive(Debug, Args)]
pub(super) struct Down {
    #[command(flatten)]
    folder: Folder,
}

impl Down {
    pub(super) async fn run(self) -> Result<()> {
        let place = Place::new(&self.folder.dir)?;
        let Some(pid) = place.holder()? else { return clear(&place).await };
        let state = place.state()?;
        let began = Instant::now();
        end(&place, pid).await?;
        let left = place.sweep().await?;
        let what = match &state {
            Some(state) => format!(
                "the {} of `make {}`: {} backends, HAProxy, {} nodes ({}) and etcd",
                "system",
                state.command,
                state.backends.len(),
                state.nodes.len(),
                state.nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>().join(", "),
            ),
            None => "a system that was still starting".to_owned(),
        };
        say(format_args!("stopped {what}, in {:.1} s", began.elapsed().as_secs_f64()));
        if left > 0 {
            say(format_args!("{left} of its processes had to be killed"));
        }
        Ok(())
    }
}

/// SIGTERM to the process that holds the folder; SIGKILL, which its guardian answers by a sweep, if it stays.
pub(super) async fn end(place: &Place, pid: u32) -> Result<()> {
    let process = Pid::from_raw(pid.cast_signed()).context("the system has just begun: again")?;
    let gone = async |deadline: Duration| {
        wait::until("its end", deadline, Duration::from_millis(20), async || {
            ensure!(place.holder()? != Some(pid), "process {pid} is still there");
            Ok(())
        })
        .await
    };
    // It may have ended by itself meanwhile.
    let _ = kill_process(process, Signal::TERM);
    if gone(END).await.is_err() {
        say(format_args!("process {pid} has not ended after {END:?}: killed"));
        let _ = kill_process(process, Signal::KILL);
        gone(Duration::from_secs(10)).await?;
        place.remove_state()?;
    }
    Ok(())
}

async fn clear(place: &Place) -> Result<()> {
    let state = place.state()?;
    let left = place.sweep().await?;
    place.remove_state()?;
    match state {
        Some(state) => {
            place.discard_data(&state);
            let killed = match left {
                0 => "nothing of it was left running".to_owned(),
                n => format!("{n} of its processes were left, and are killed now"),
            };
            say(format_args!(
                "the system of `make {}` had lost its process {} without a word: {killed}; cleared away",
                state.command, state.pid
            ));
        }
        None if left > 0 => say(format_args!(
            "{left} processes of an earlier run were left in {}: killed",
            place.name()
        )),
        None => say(format_args!("nothing is up in {}", place.name())),
    }
    Ok(())
}
