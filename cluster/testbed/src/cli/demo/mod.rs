//! `demo`: the system with a modest load on it, live in the terminal.

mod board;
mod load;
mod term;
mod view;

use std::fs::{File, OpenOptions};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use tokio::time::{MissedTickBehavior, interval};

use super::events::{Events, Tone};
use super::place::Place;
use super::start::{Options, break_line};
use super::supervise::supervise;
use super::system::System;
use super::up::next_steps;
use super::{Signals, say};
use board::Board;
use load::Load;
pub(super) use load::code;
use term::Screen;

const REDRAW: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(super) struct Demo {
    #[command(flatten)]
    options: Options,
}

impl Demo {
    /// Where messages go while the terminal is a picture.
    pub(super) fn open_log(&self) -> Result<File> {
        let place = Place::new(&self.options.folder.dir)?;
        place.create()?;
        let log = place.log();
        let file = OpenOptions::new().create(true).append(true).open(&log);
        file.with_context(|| format!("cannot write {}", log.display()))
    }

    pub(super) async fn run(self) -> Result<()> {
        let mut signals = Signals::install()?;
        let place = Place::new(&self.options.folder.dir)?;
        let dynamic = self.options.dynamic();
        say(format_args!(
            "starting the system, Patroni timing {}/{}/{}; Ctrl-C ends it",
            dynamic.ttl, dynamic.loop_wait, dynamic.retry_timeout
        ));
        let system = tokio::select! {
            system = System::start(&place, &self.options, "demo") => system.inspect_err(|_| break_line())?,
            // The dropped start takes its processes with it.
            () = signals.next() => {
                break_line();
                say("interrupted: what had been started is gone again");
                return Ok(());
            }
        };
        let events = Events::new(!term::is_terminal());
        say("\nready. In another terminal:");
        for line in next_steps(&system.state) {
            say(format_args!("  {line}"));
        }
        let watched = tokio::select! {
            watched = watch(&system, &events) => watched,
            () = signals.next() => Ok(()),
        };
        say("stopping; Ctrl-C again kills");
        let stopped = tokio::select! {
            stopped = system.stop() => stopped?,
            () = signals.next() => "killed".to_owned(),
        };
        say(stopped);
        watched
    }
}

/// Until dropped; the terminal is then as it was.
async fn watch(system: &System, events: &Events) -> Result<()> {
    events.add(Tone::Good, "the system is healthy, and the load begins");
    let load = Load::new(&system.state.backends);
    let board = Board::new(&system.state, load.clone(), events.clone());
    let show = async {
        match Screen::open()? {
            Some(screen) => draw(&screen, &board, events).await,
            None => lines(&board).await,
        }
    };
    tokio::select! {
        shown = show => shown,
        () = board.keep_looking() => Ok(()),
        () = load.run(events) => Ok(()),
        () = supervise(system, events) => Ok(()),
    }
}

async fn draw(screen: &Screen, board: &Board, events: &Events) -> Result<()> {
    let mut ticks = interval(REDRAW);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (width, height) = screen.size();
        let lines = view::picture(&board.shown(), events, width, height, screen.unicode());
        screen.draw(&lines)?;
    }
}

/// One line a second, where there is no terminal.
async fn lines(board: &Board) -> Result<()> {
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        say(view::line(&board.shown()));
    }
}
