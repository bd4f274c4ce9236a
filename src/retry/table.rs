//! The whole table, and what must hold over all of it.

use std::fmt::Write as _;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// Codes that `docs/outcomes.md` names one by one; it has a row for the rest of each class.
const NAMED: [&str; 22] = [
    "08007", "23505", "25006", "25P03", "25P04", "40001", "40002", "40003", "40P01", "42501",
    "53000", "53100", "53200", "53300", "53400", "55P03", "57014", "57P01", "57P02", "57P03",
    "57P04", "57P05",
];

const LIMITS: Limits = Limits { max_attempts: 3 };
const FIRST: Progress =
    Progress { attempts_made: 1, time_left: Duration::from_secs(1), leader_changed: false };

const PHASES: [(&str, Phase, bool); 6] = [
    ("connecting", Phase::Connect, false),
    ("`BEGIN`", Phase::Begin, false),
    ("statement on its own", Phase::Statement, false),
    ("statement in a transaction", Phase::Statement, true),
    ("`COMMIT`", Phase::Commit, true),
    ("`ROLLBACK`", Phase::Rollback, true),
];

fn code(text: &str) -> SqlState5 {
    text.parse().expect("a code")
}

/// A code of the class that is not named.
fn representative(class: SqlClass) -> Cause {
    Cause::Sqlstate(code(&format!("{}999", class.prefix().unwrap_or("ZZ"))))
}

fn verdict(cause: Cause, attempt: Attempt) -> String {
    let outcome = outcome(cause, attempt);
    let retried = |work| match decide(outcome, cause, work, FIRST, LIMITS) {
        Decision::Retry { .. } => true,
        Decision::GiveUp(_) => false,
    };
    let once = retried(Work::default());
    let idempotent = retried(Work { idempotent: true, read_only: false });
    let read_only = retried(Work { idempotent: false, read_only: true });
    assert_eq!(idempotent, read_only, "{cause:?} {attempt:?}");
    let again = match (once, idempotent) {
        (true, true) => "again",
        (false, false) => "no",
        (false, true) => "if idempotent",
        (true, false) => panic!("{cause:?} {attempt:?}: idempotence must not hinder"),
    };
    format!("{outcome:?}, {again}")
}

fn cell(cause: Cause, phase: Phase, in_transaction: bool, sent: bool) -> String {
    let attempt = |synchronous| Attempt { phase, sent, in_transaction, synchronous };
    let (plain, synchronous) = (verdict(cause, attempt(false)), verdict(cause, attempt(true)));
    if plain == synchronous { plain } else { format!("{plain} (synchronous mode: {synchronous})") }
}

fn row(label: &str, cause: Cause, sent: bool) -> String {
    let mut row = format!("| {label} |");
    for (_, phase, in_transaction) in PHASES {
        write!(row, " {} |", cell(cause, phase, in_transaction, sent)).expect("a string");
    }
    row
}

fn table() -> Vec<String> {
    let columns: Vec<&str> = PHASES.iter().map(|(name, ..)| *name).collect();
    let mut rows = vec![
        format!("| cause | {} |", columns.join(" | ")),
        format!("|---|{}", "---|".repeat(columns.len())),
        row(
            "any, and nothing was sent yet: as `Cause::ConnectionLost`",
            Cause::ConnectionLost,
            false,
        ),
        row("`Cause::ConnectionLost`", Cause::ConnectionLost, true),
        row("`Cause::TimedOut`", Cause::TimedOut, true),
        row("`Cause::Cut`", Cause::Cut, true),
        row("`Cause::Cancelled`", Cause::Cancelled, true),
        row("`Cause::Client`", Cause::Client, true),
        row("`Cause::Answer`", Cause::Answer, true),
        row("`Cause::Panic`, of any code", Cause::Panic(code("53100")), true),
    ];
    for class in SqlClass::ALL {
        let named: Vec<_> =
            NAMED.iter().filter(|named| Some(&named[..2]) == class.prefix()).collect();
        for text in &named {
            rows.push(row(&format!("`{text}`"), Cause::Sqlstate(code(text)), true));
        }
        let label = match (class.prefix(), named.is_empty()) {
            (None, _) => "any other class".to_owned(),
            (Some(prefix), true) => format!("class {prefix}"),
            (Some(prefix), false) => format!("class {prefix}, the rest"),
        };
        rows.push(row(&label, representative(*class), true));
    }
    rows
}

#[test]
fn the_written_table_is_what_the_code_does() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/outcomes.md");
    let text = std::fs::read_to_string(path).expect("docs/outcomes.md");
    let written: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
    let expected = table();
    let missing: Vec<&String> =
        expected.iter().filter(|row| !written.contains(&row.as_str())).collect();
    let wrong: Vec<&&str> =
        written.iter().filter(|row| !expected.iter().any(|right| right == *row)).collect();
    assert!(
        missing.is_empty() && wrong.is_empty(),
        "docs/outcomes.md differs from the code.\nThe code says:\n{}\nThe file says:\n{}",
        missing.iter().map(|row| row.as_str()).collect::<Vec<_>>().join("\n"),
        wrong.iter().map(|row| **row).collect::<Vec<_>>().join("\n"),
    );
    assert_eq!(written, expected, "the rows are in another order");
}

#[test]
fn a_class_row_speaks_for_all_its_codes() {
    let alphabet = *b"0123456P";
    for class in SqlClass::ALL {
        let expected = row("", representative(*class), true);
        let prefix = class.prefix().unwrap_or("ZZ").as_bytes();
        for a in alphabet {
            for b in alphabet {
                for c in alphabet {
                    let code = SqlState5::new([prefix[0], prefix[1], a, b, c]).expect("a code");
                    if !NAMED.contains(&code.as_str()) {
                        assert_eq!(row("", Cause::Sqlstate(code), true), expected, "{code}");
                    }
                }
            }
        }
    }
}

fn causes() -> impl Strategy<Value = Cause> {
    let codes = proptest::sample::select(&NAMED[..]).prop_map(code);
    let classes = proptest::sample::select(SqlClass::ALL).prop_map(representative);
    prop_oneof![
        4 => codes.clone().prop_map(Cause::Sqlstate),
        4 => classes,
        1 => codes.prop_map(Cause::Panic),
        1 => Just(Cause::ConnectionLost),
        1 => Just(Cause::TimedOut),
        1 => Just(Cause::Cut),
        1 => Just(Cause::Cancelled),
        1 => Just(Cause::Client),
        1 => Just(Cause::Answer),
    ]
}

fn attempts() -> impl Strategy<Value = Attempt> {
    let phases = proptest::sample::select(&PHASES[..]).prop_map(|(_, phase, _)| phase);
    (phases, any::<[bool; 3]>()).prop_map(|(phase, [sent, in_transaction, synchronous])| Attempt {
        phase,
        sent,
        in_transaction,
        synchronous,
    })
}

proptest! {
    #[test]
    fn unknown_is_repeated_only_where_that_does_no_harm(
        cause in causes(),
        attempt in attempts(),
        [idempotent, read_only, leader_changed] in any::<[bool; 3]>(),
        attempts_made in 0_u32..6,
        left in 0_u64..3,
        max_attempts in 0_u32..6,
    ) {
        let outcome = outcome(cause, attempt);
        let time_left = Duration::from_millis(left);
        let progress = Progress { attempts_made, time_left, leader_changed };
        let work = Work { idempotent, read_only };
        let decision = decide(outcome, cause, work, progress, Limits { max_attempts });
        if let Decision::Retry { after } = decision {
            prop_assert!(outcome != Outcome::Unknown || idempotent || read_only);
            prop_assert!(attempts_made < max_attempts && !time_left.is_zero());
            prop_assert!(can_help(cause) && cause != Cause::Cancelled);
            prop_assert!(after == Pause::WithBackoff || leader_changed);
        }
    }

    #[test]
    fn what_was_never_sent_is_never_unknown(cause in causes(), attempt in attempts()) {
        let unsent = Attempt { sent: false, ..attempt };
        prop_assert_ne!(outcome(cause, unsent), Outcome::Unknown);
        prop_assert_eq!(outcome(cause, unsent), outcome(Cause::ConnectionLost, unsent));
    }

    #[test]
    fn synchronous_mode_only_adds_doubt(cause in causes(), attempt in attempts()) {
        let with = outcome(cause, Attempt { synchronous: true, ..attempt });
        let without = outcome(cause, Attempt { synchronous: false, ..attempt });
        prop_assert!(with == without || with == Outcome::Unknown);
    }

    #[test]
    fn commit_and_rollback_are_always_in_a_transaction(cause in causes(), attempt in attempts()) {
        prop_assume!(matches!(attempt.phase, Phase::Commit | Phase::Rollback));
        let other = Attempt { in_transaction: !attempt.in_transaction, ..attempt };
        prop_assert_eq!(outcome(cause, attempt), outcome(cause, other));
    }
}
