//! `leaderpool-agent`: will be one beside each PostgreSQL server. So far it reads a configuration and tells what is
//! wrong with it; the rooms that run a member are there, and nothing joins them yet.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use leaderpool_agent::config::{Config, Diagnostics, Environment, ServerVersion, Severity};

/// Tells what is wrong with a patroni.yml. (It does not run a member of a cluster yet.)
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Read this patroni.yml (or the *.yml of this directory), print what is wrong with it, and exit: with 1 if it
    /// cannot be used.
    #[arg(long, value_name = "FILE", visible_alias = "validate-config")]
    validate: PathBuf,

    /// The major version of PostgreSQL to render settings for. Without it, the one in `bin_dir` is asked.
    #[arg(long, value_name = "VERSION")]
    server_version: Option<String>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    validate(&arguments.validate, arguments.server_version.as_deref())
}

/// Prints every finding of the configuration at `path`, and a line that sums them up.
fn validate(path: &Path, version: Option<&str>) -> anyhow::Result<ExitCode> {
    let version = match version {
        Some(text) => Some(
            ServerVersion::parse(text)
                .with_context(|| format!("`{text}` is not a version of PostgreSQL from 10 on"))?,
        ),
        None => None,
    };
    let environment: Environment = std::env::vars_os()
        .map(|(name, value)| {
            (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
        })
        .collect();
    let files = files(path)?;
    let named: Vec<(&str, &[u8])> =
        files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let (config, mut diagnostics) = Config::load_files(&named, &environment);
    if let Some(config) = &config {
        match version.or_else(|| installed(config)) {
            Some(version) => {
                let effective = config.effective(&config.bootstrap.dynamic, version);
                diagnostics.extend(effective.diagnostics);
                println!("settings are looked at for PostgreSQL {}", version.major());
            }
            None => println!(
                "no PostgreSQL was found, so its settings were not looked at; name a version with \
                 --server-version"
            ),
        }
    }
    if !diagnostics.is_empty() {
        println!("{diagnostics}");
    }
    println!("{}: {}", path.display(), summary(&diagnostics));
    Ok(if diagnostics.has_errors() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The file, or the files of the directory in the order of their names.
fn files(path: &Path) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut paths = vec![path.to_owned()];
    if path.is_dir() {
        let entries = path.read_dir().with_context(|| format!("cannot read {}", path.display()))?;
        paths = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|e| e == "yml" || e == "yaml"))
            .collect();
        paths.sort();
    }
    paths
        .into_iter()
        .map(|path| {
            let bytes =
                std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok((path.display().to_string(), bytes))
        })
        .collect()
}

/// The version of the server that this configuration would start.
fn installed(config: &Config) -> Option<ServerVersion> {
    let options = &config.postgresql.options;
    let name = options.bin_name.get("postgres").map_or("postgres", String::as_str);
    let program = options.bin_dir.as_ref().map_or_else(|| PathBuf::from(name), |d| d.join(name));
    let output = std::process::Command::new(program).arg("--version").output().ok()?;
    ServerVersion::parse(&String::from_utf8_lossy(&output.stdout))
}

fn summary(diagnostics: &Diagnostics) -> String {
    let count = |severity, one: &str| match diagnostics.count(severity) {
        0 => None,
        1 => Some(format!("1 {one}")),
        many => Some(format!("{many} {one}s")),
    };
    let counts: Vec<String> = [
        count(Severity::Error, "error"),
        count(Severity::Warning, "warning"),
        count(Severity::Notice, "notice"),
    ]
    .into_iter()
    .flatten()
    .collect();
    if counts.is_empty() { "nothing to remark".to_owned() } else { counts.join(", ") }
}
