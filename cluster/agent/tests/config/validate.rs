//! `leaderpool-agent --validate`, as a person uses it.

use std::path::Path;
use std::process::Command;

use super::SEED;

struct Answer {
    code: Option<i32>,
    text: String,
}

fn validate(path: &Path, arguments: &[&str]) -> Answer {
    let output = Command::new(env!("CARGO_BIN_EXE_leaderpool-agent"))
        .arg("--validate")
        .arg(path)
        .args(arguments)
        .env_clear()
        .env("PATRONI_NAME", "patroni-master")
        .output()
        .expect("it can be started");
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    Answer { code: output.status.code(), text }
}

fn file(name: &str, text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(name);
    std::fs::write(&path, text).expect("it can be written");
    (dir, path)
}

#[test]
fn the_seeds_file_is_fine_and_every_finding_is_printed() {
    let (_dir, path) = file("patroni.yml", SEED);
    let answer = validate(&path, &["--server-version", "15"]);
    assert_eq!(answer.code, Some(0), "{}", answer.text);
    let place = format!("{}:10:3: notice[etcd-as-v3]: etcd: ", path.display());
    assert!(answer.text.contains(&place), "{}", answer.text);
    assert!(answer.text.contains("\n    done: loop_wait 1 s, retry_timeout 14 s\n"));
    assert!(answer.text.ends_with(": 3 warnings, 7 notices\n"), "{}", answer.text);
}

#[test]
fn an_error_makes_it_fail() {
    let (_dir, path) = file("patroni.yml", &SEED.replace("scope: postgres-cluster", "scop: x"));
    let answer = validate(&path, &["--server-version", "15"]);
    assert_eq!(answer.code, Some(1), "{}", answer.text);
    for part in [
        "error[missing]: scope: this must be given",
        "warning[unknown-key]: scop: no such key",
        "help: did you mean `scope`?",
        "1 error, 4 warnings",
    ] {
        assert!(answer.text.contains(part), "{part}: {}", answer.text);
    }
}

#[test]
fn a_fault_of_syntax_has_its_line() {
    let (_dir, path) = file("patroni.yml", &SEED.replace("  listen: 0.0.0.0:8008", "\tlisten: x"));
    let answer = validate(&path, &[]);
    assert_eq!(answer.code, Some(1));
    let place = format!("{}:6:1: error[yaml-syntax]: not YAML", path.display());
    assert!(answer.text.contains(&place), "{}", answer.text);
    assert!(answer.text.contains("begins with a tab"), "{}", answer.text);
}

#[test]
fn a_directory_is_read_in_the_order_of_names() {
    let (dir, path) = file("10-seed.yml", SEED);
    std::fs::write(dir.path().join("20-scope.yaml"), "scope: [1]\n").expect("it can be written");
    std::fs::write(dir.path().join("30-not-this.txt"), "{").expect("it can be written");
    let answer = validate(path.parent().expect("its directory"), &["--server-version", "15"]);
    assert_eq!(answer.code, Some(1), "{}", answer.text);
    assert!(
        answer.text.contains("20-scope.yaml:1:8: warning[wrong-type]: scope"),
        "{}",
        answer.text
    );
}

#[test]
fn what_cannot_be_done_is_said() {
    let answer = validate(Path::new("/does/not/exist.yml"), &[]);
    assert_eq!(answer.code, Some(1));
    assert!(answer.text.contains("cannot read /does/not/exist.yml"), "{}", answer.text);
    let (_dir, path) = file("patroni.yml", SEED);
    let answer = validate(&path, &["--server-version", "9.6"]);
    assert!(answer.text.contains("from 10 on"), "{}", answer.text);
}
