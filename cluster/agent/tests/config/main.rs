//! The configuration, from outside: the seed's own file, the documentation, Patroni and PostgreSQL themselves.

mod documentation;
mod mutations;
mod oracle;
mod seed;
mod server;
mod validate;

use leaderpool_agent::config::{Code, Config, Diagnostics, Environment};

/// The file of the system that this project rebuilds, as it stands in its description.
const SEED: &str = include_str!("patroni.yml");

fn environment(pairs: &[(&str, &str)]) -> Environment {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn seed_environment() -> Environment {
    environment(&[("PATRONI_NAME", "patroni-master"), ("HOME", "/var/lib/postgresql")])
}

/// The seed's configuration and what was found in it.
fn seed() -> (Config, Diagnostics) {
    let (config, diagnostics) = Config::load(SEED, &seed_environment());
    (config.unwrap_or_else(|| panic!("{diagnostics}")), diagnostics)
}

/// The codes of the findings at `path`.
fn codes_at(diagnostics: &Diagnostics, path: &str) -> Vec<Code> {
    diagnostics.iter().filter(|d| d.path == path).map(|d| d.code).collect()
}
