//! What the README shows is so. (Its Rust code is compiled as a documentation test.)

use leaderpool::Config;

const README: &str = include_str!("../README.md");

fn blocks(language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    README
        .split(&fence)
        .skip(1)
        .filter_map(|rest| rest.split("```").next().map(str::to_owned))
        .collect()
}

#[test]
fn its_configuration_is_accepted() {
    let blocks = blocks("toml");
    assert!(!blocks.is_empty());
    for block in blocks {
        Config::from_toml(&block).unwrap_or_else(|error| panic!("{error}\n{block}"));
    }
}

#[test]
fn its_make_targets_exist() {
    let makefile = include_str!("../Makefile");
    let mentioned = README
        .split("make ")
        .skip(1)
        .filter_map(|rest| rest.split(|c: char| !c.is_ascii_lowercase()).next())
        .filter(|target| {
            ["demo", "test", "up", "status", "down", "failover", "lint", "bench"].contains(target)
        });
    for target in mentioned {
        assert!(makefile.contains(&format!("\n{target}:")), "no target {target}");
    }
}

#[test]
fn its_links_lead_somewhere() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for link in README.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        if !link.starts_with("http") {
            assert!(root.join(link).exists(), "{link} is missing");
        }
    }
}
