//! Columns of text, with tones that become colours on a terminal.

/// How a cell looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Ink {
    #[default]
    Plain,
    Bold,
    Dim,
    Green,
    Yellow,
    Red,
    Cyan,
}

impl Ink {
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Green => "32",
            Self::Yellow => "33",
            Self::Red => "31",
            Self::Cyan => "36",
        }
    }
}

/// A line of differently inked pieces.
#[derive(Debug, Clone, Default)]
pub(super) struct Line(Vec<(Ink, String)>);

impl Line {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn of(ink: Ink, text: impl Into<String>) -> Self {
        Self::new().add(ink, text)
    }

    pub(super) fn add(mut self, ink: Ink, text: impl Into<String>) -> Self {
        self.0.push((ink, text.into()));
        self
    }

    /// A cell, filled up or cut to `width`, and a space after it.
    pub(super) fn left(self, ink: Ink, text: impl AsRef<str>, width: usize) -> Self {
        let text = cut(text.as_ref(), width);
        self.add(ink, format!("{text:<width$} "))
    }

    /// The same, its text at the right edge.
    pub(super) fn right(self, ink: Ink, text: impl AsRef<str>, width: usize) -> Self {
        let text = cut(text.as_ref(), width);
        self.add(ink, format!("{text:>width$} "))
    }

    /// How many columns it takes.
    pub(super) fn width(&self) -> usize {
        self.0.iter().map(|(_, text)| text.chars().count()).sum()
    }

    /// Its text, at most `width` columns of it, with escape sequences where `colours`.
    pub(super) fn show(&self, width: usize, colours: bool) -> String {
        let mut out = String::new();
        let mut left = width;
        for (ink, text) in &self.0 {
            let text = cut(text, left);
            left -= text.chars().count();
            if colours && *ink != Ink::Plain && !text.trim().is_empty() {
                out.push_str(&format!("\x1b[{}m{text}\x1b[0m", ink.code()));
            } else {
                out.push_str(&text);
            }
        }
        if colours { out } else { out.trim_end().to_owned() }
    }
}

/// The first `width` characters; a longer text ends in "~".
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width.saturating_sub(1)).collect();
    if width > 0 {
        short.push('~');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_by_what_is_seen_not_by_its_escapes() {
        let line = Line::new().left(Ink::Green, "leader", 8).right(Ink::Plain, "12", 4);
        assert_eq!(line.width(), 14);
        assert_eq!(line.show(80, false), "leader     12");
        assert_eq!(line.show(11, true), "\x1b[32mleader   \x1b[0m ~");
        assert_eq!(Line::of(Ink::Red, "long").left(Ink::Dim, "rest", 4).show(4, false), "long");
    }
}
