//! Every row of the table has a case that names it, and `docs/agent/decisions-table.md` is this table.

mod cases;
mod cases_of_the_race;
mod cases_of_the_server;
mod properties;
mod scene;
mod sync_steps;

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Row, Seen, decide};

/// One case: what is seen, and what must follow.
struct Case {
    row: Row,
    story: &'static str,
    /// How the action's debug form begins.
    action: &'static str,
    seen: Seen,
}

fn case(
    row: Row,
    story: &'static str,
    mut seen: Seen,
    change: impl FnOnce(&mut Seen),
    action: &'static str,
) -> Case {
    change(&mut seen);
    Case { row, story, action, seen }
}

fn cases() -> Vec<Case> {
    let mut cases = cases::cases();
    cases.extend(cases_of_the_server::cases());
    cases.extend(cases_of_the_race::cases());
    cases
}

#[test]
fn every_case_is_decided_by_its_row() {
    let mut wrong = Vec::new();
    for case in cases() {
        let decision = decide(&case.seen, scene::NOW);
        let action = format!("{:?}", decision.action);
        if decision.row != case.row || !action.starts_with(case.action) {
            wrong.push(format!(
                "{}: {}\n    expected {} {}\n    decided  {} {action} ({})",
                case.row.name(),
                case.story,
                case.row.name(),
                case.action,
                decision.row.name(),
                decision.reason,
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_row_has_a_case() {
    let cases = cases();
    let missing: Vec<&str> = Row::ALL
        .iter()
        .filter(|row| !cases.iter().any(|case| case.row == **row))
        .map(|row| row.name())
        .collect();
    assert!(missing.is_empty(), "rows without a case: {missing:?}");
}

/// The document, from the rows and their cases.
fn document() -> String {
    let mut stories: BTreeMap<Row, Vec<&str>> = BTreeMap::new();
    for case in cases() {
        stories.entry(case.row).or_default().push(case.story);
    }
    let mut text = String::from(
        "# What the agent decides\n\n\
         Each decision of `leaderpool-agent` comes from one row below, and names it in the log. The rows are looked at\n\
         from the top; within a part the file that its module in `cluster/agent/src/decide/` is says more. *Cases* are the\n\
         tests of the row. This file is written by a test: `UPDATE_DOCS=1 cargo test -p leaderpool-agent written_table`.\n",
    );
    let mut situation = "";
    for row in Row::ALL {
        if row.situation() != situation {
            situation = row.situation();
            let _ = write!(
                text,
                "\n## {situation}\n\n| row | when | what | cases |\n|---|---|---|---|\n"
            );
        }
        let cases = stories.get(row).map(|stories| stories.join("; ")).unwrap_or_default();
        let _ = writeln!(text, "| `{}` | {} | {} | {cases} |", row.name(), row.when(), row.does());
    }
    text
}

#[test]
fn the_written_table_is_what_the_code_does() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/agent/decisions-table.md");
    let expected = document();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::create_dir_all(std::path::Path::new(path).parent().expect("docs/agent"))
            .expect("docs/agent");
        std::fs::write(path, &expected).expect("decisions-table.md");
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    let differs =
        written.lines().zip(expected.lines()).find(|(written, expected)| written != expected);
    assert!(
        written == expected,
        "docs/agent/decisions-table.md is not what the code does; write it anew with UPDATE_DOCS=1.\n\
         first difference: {differs:?}"
    );
}
