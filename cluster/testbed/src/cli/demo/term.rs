//! The terminal: an alternate screen without echo, given back as it was.

use std::io::{IsTerminal as _, Write as _};

use anyhow::Result;
use rustix::termios::{
    LocalModes, OptionalActions, QueueSelector, SpecialCodeIndex, Termios, tcflush, tcgetattr,
    tcgetwinsize, tcsetattr,
};

use crate::cli::start::colours;
use crate::cli::table::Line;

// The alternate screen, cleared, without the cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[2J";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

pub(super) struct Screen {
    before: Option<Termios>,
    colours: bool,
}

pub(super) fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

impl Screen {
    /// `None` where standard output is no terminal.
    pub(super) fn open() -> Result<Option<Self>> {
        if !is_terminal() {
            return Ok(None);
        }
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).ok();
        if let Some(before) = &before {
            let mut quiet = before.clone();
            quiet.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON);
            // A stopped process would hold the cluster and show nothing.
            quiet.special_codes[SpecialCodeIndex::VSUSP] = 0;
            tcsetattr(&stdin, OptionalActions::Now, &quiet)?;
        }
        let mut out = std::io::stdout();
        write!(out, "{ENTER}")?;
        out.flush()?;
        Ok(Some(Self { before, colours: colours() }))
    }

    /// Columns and rows.
    pub(super) fn size(&self) -> (usize, usize) {
        match tcgetwinsize(std::io::stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
                (usize::from(size.ws_col), usize::from(size.ws_row))
            }
            _ => (80, 24),
        }
    }

    /// Whether the terminal is set up for more than ASCII.
    pub(super) fn unicode(&self) -> bool {
        let set = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        let locale = set("LC_ALL").or_else(|| set("LC_CTYPE")).or_else(|| set("LANG"));
        locale.is_some_and(|locale| {
            let locale = locale.to_lowercase();
            locale.contains("utf-8") || locale.contains("utf8")
        })
    }

    pub(super) fn draw(&self, lines: &[Line]) -> Result<()> {
        let (width, height) = self.size();
        let mut text = String::from("\x1b[H");
        for (i, line) in lines.iter().take(height).enumerate() {
            if i > 0 {
                text.push_str("\r\n");
            }
            text.push_str(&line.show(width, self.colours));
            text.push_str("\x1b[K");
        }
        text.push_str("\x1b[J");
        let mut out = std::io::stdout();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut out = std::io::stdout();
        let _ = write!(out, "{LEAVE}").and_then(|()| out.flush());
        if let Some(before) = &self.before {
            let stdin = std::io::stdin();
            let _ = tcsetattr(&stdin, OptionalActions::Now, before);
            // What was typed meanwhile is not meant for the shell.
            let _ = tcflush(&stdin, QueueSelector::IFlush);
        }
    }
}
