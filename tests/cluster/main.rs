//! The library against real clusters: each scenario on each version of the manager.
//!
//! One cluster per version is started on first use and shared by its scenarios, which take turns; the
//! versions run side by side. `cargo test --test cluster -- switchover` runs the scenarios so named.

// The modules of a test are nobody else's.
#![allow(unreachable_pub)]

mod account;
mod bed;
mod breaker;
#[allow(dead_code, reason = "the library's own tests use the rest")]
#[path = "../../src/telemetry/tests/capture.rs"]
mod capture;
mod care;
mod faults;
mod hung;
mod members;
mod outcomes;
mod service;
mod store;
mod telemetry;
mod usage;

use std::future::Future;
use std::pin::Pin;

use libtest_mimic::{Arguments, Failed, Trial};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use bed::{Bed, Manager};

type Scenario = for<'a> fn(&'a Bed) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

macro_rules! scenarios {
    ($($module:ident :: $name:ident),* $(,)?) => {
        [$((stringify!($name), (|bed| Box::pin($module::$name(bed))) as Scenario)),*]
    };
}

/// What the pools saw goes to a file, which a failure is read beside.
fn log_to_file() -> std::io::Result<()> {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("cluster.log");
    let file = std::fs::File::create(&path)?;
    eprintln!("what the pools saw: {}", path.display());
    let log = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(std::sync::Mutex::new(file))
        .with_filter(EnvFilter::new("leaderpool=debug"));
    tracing_subscriber::registry().with(log).with(telemetry::capture_failovers()).init();
    Ok(())
}

fn main() {
    let mut arguments = Arguments::from_args();
    if let Err(error) = log_to_file() {
        eprintln!("no log of the pools: {error}");
    }
    if let Err(error) = telemetry::record_metrics() {
        eprintln!("no metrics: {error:#}");
    }
    // One thread per cluster: more would only wait for each other.
    arguments.test_threads.get_or_insert(Manager::ALL.len());
    let scenarios = scenarios![
        usage::reads_and_writes_go_where_they_belong,
        usage::bounded_staleness_is_kept,
        usage::abandoned_work_leaves_no_mess,
        usage::closing_waits_for_what_is_out,
        usage::tokens_read_their_own_writes,
        usage::tokens_know_what_a_failover_kept,
        usage::rest_alone_is_a_source,
        telemetry::a_switchover_is_one_trace,
        telemetry::the_steady_state_calls_no_recorder,
        usage::a_host_list_is_a_source,
        outcomes::transactions_end_as_they_say,
        outcomes::ten_switchovers_cost_no_error,
        outcomes::plain_writers_are_held_before_the_leader_goes,
        outcomes::the_first_57p01_closes_the_gate,
        outcomes::ten_kills_leave_nothing_in_doubt,
        service::services_follow_the_leader,
        faults::switchover,
        faults::switchover_that_never_comes,
        faults::postmaster_killed,
        faults::node_killed,
        faults::primary_frozen,
        faults::leader_key_deleted,
        store::etcd_stopped_and_started,
        store::etcd_frozen,
        store::one_of_three_etcd_members_lost,
        members::replica_added_and_removed,
        members::member_whose_json_is_garbage,
        members::foreign_address_in_conn_url,
        breaker::replica_that_takes_no_connections,
        breaker::replica_frozen_and_killed,
        hung::work_on_a_frozen_primary_ends,
        care::some_are_kept_ready,
        care::idle_connections_are_asked,
        care::leaks_are_told,
    ];
    // Side by side means alternating: neighbours in this list belong to different clusters.
    let trials = scenarios
        .into_iter()
        .flat_map(|(name, scenario)| {
            Manager::ALL.map(|manager| {
                Trial::test(format!("{manager}::{name}"), move || {
                    bed::run(manager, name, scenario)
                        .map_err(|error| Failed::from(format!("{error:#}")))
                })
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    bed::shut_down();
    conclusion.exit();
}
