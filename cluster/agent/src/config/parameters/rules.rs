//! What is special about some settings.

use super::value::boolean;

/// Settings that are the same on all members, so only the dynamic configuration has a say; with the value that
/// holds where it has none.
pub const CLUSTER_WIDE: [(&str, Option<&str>); 15] = [
    ("listen_addresses", None),
    ("port", None),
    ("cluster_name", None),
    ("wal_level", Some("replica")),
    ("hot_standby", Some("on")),
    ("max_connections", Some("100")),
    ("max_wal_senders", Some("10")),
    ("wal_keep_segments", None),
    ("wal_keep_size", None),
    ("max_prepared_transactions", Some("0")),
    ("max_locks_per_transaction", Some("64")),
    ("track_commit_timestamp", Some("off")),
    ("max_replication_slots", Some("10")),
    ("max_worker_processes", Some("8")),
    ("wal_log_hints", Some("on")),
];

/// Settings that are given to the server on its command line, where `ALTER SYSTEM` cannot change them.
pub const COMMAND_LINE: [&str; 13] = [
    "listen_addresses",
    "port",
    "cluster_name",
    "wal_level",
    "hot_standby",
    "max_connections",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
    "track_commit_timestamp",
    "max_replication_slots",
    "max_worker_processes",
    "wal_log_hints",
];

/// Segments are taken to have 16 MB.
pub(super) const SEGMENT_MB: i64 = 16;
/// How much WAL is kept where nothing else is said: 8 segments.
pub(super) const KEEP_SEGMENTS: i64 = 8;

pub(crate) fn is_cluster_wide(name: &str) -> bool {
    CLUSTER_WIDE.iter().any(|(wide, _)| *wide == name)
}

/// The value that a cluster-wide setting has where `text` will not do, and why it will not.
pub(super) fn cluster_wide_fault(name: &str, text: &str) -> Option<(&'static str, String)> {
    let (_, default) = CLUSTER_WIDE.iter().find(|(wide, _)| *wide == name)?;
    let default = (*default)?;
    let least: i64 = match name {
        "max_connections" => 25,
        "max_wal_senders" => 3,
        "max_prepared_transactions" => 0,
        "max_locks_per_transaction" => 32,
        "max_replication_slots" => 4,
        "max_worker_processes" => 2,
        "wal_level" => {
            let fine = ["replica", "logical", "hot_standby"];
            return (!fine.iter().any(|f| f.eq_ignore_ascii_case(text))).then(|| {
                (
                    default,
                    format!("with `{text}` nothing can be replicated: `replica` or `logical`"),
                )
            });
        }
        "hot_standby" => {
            return (boolean(text) != Some(true))
                .then(|| (default, "replicas have to answer questions".to_owned()));
        }
        _ => {
            return boolean(text)
                .is_none()
                .then(|| (default, format!("`{text}` is neither `on` nor `off`")));
        }
    };
    match text.trim().parse::<i64>() {
        Ok(value) if value >= least => None,
        Ok(value) => {
            Some((default, format!("{value} is less than {least}, the least for a cluster")))
        }
        Err(_) => Some((default, format!("`{text}` is not a whole number"))),
    }
}

/// Why a setting is not to be set by a configuration.
pub(super) enum Forbidden {
    /// The agent sets it; from where.
    Managed(&'static str),
    /// It would do harm.
    Refused(&'static str),
}

pub(super) fn forbidden(name: &str) -> Option<Forbidden> {
    use Forbidden::{Managed, Refused};
    Some(match name {
        "listen_addresses" | "port" => Managed("it comes from `postgresql.listen`"),
        "cluster_name" => Managed("it is the `scope`"),
        "data_directory" => Managed("it is `postgresql.data_dir`"),
        "config_file" => Managed("it is in `postgresql.config_dir`"),
        "include" | "include_dir" | "include_if_exists" => Refused(
            "another file could say anything; `postgresql.custom_conf` names one to begin with",
        ),
        "transaction_isolation"
        | "transaction_read_only"
        | "transaction_deferrable"
        | "role"
        | "session_authorization"
        | "seed"
        | "is_superuser" => Refused("it belongs to a session; the server would not start"),
        _ => return None,
    })
}

/// What is allowed and dangerous.
pub(super) fn risk(name: &str, text: &str) -> Option<&'static str> {
    let on = boolean(text) == Some(true);
    let off = boolean(text) == Some(false);
    match name {
        "fsync" if off => Some(
            "after a crash of the machine the data may be broken, and the agent would start it all the same",
        ),
        "full_page_writes" if off => {
            Some("a crash may leave torn pages, and pg_rewind refuses to work")
        }
        "zero_damaged_pages" | "ignore_checksum_failure" | "ignore_invalid_pages" if on => {
            Some("damage is passed over in silence, and replicated")
        }
        "allow_system_table_mods" | "ignore_system_indexes" if on => {
            Some("meant for repairs by hand")
        }
        "default_transaction_read_only" if on => Some("the primary refuses writes"),
        "session_replication_role" if text.eq_ignore_ascii_case("replica") => {
            Some("triggers and foreign keys do not fire")
        }
        "synchronous_commit" if off => Some(
            "an acknowledged transaction may be lost in a crash, and synchronous mode protects none",
        ),
        _ => None,
    }
}

/// Another name that the setting has in `major`, or a setting that took its place.
pub(super) fn renamed(name: &str, major: u32) -> Option<&'static str> {
    let when = |newer: bool, name| newer.then_some(name);
    match name {
        "force_parallel_mode" => when(major >= 16, "debug_parallel_query"),
        "debug_parallel_query" => when(major < 16, "force_parallel_mode"),
        "logical_replication_mode" => when(major >= 17, "debug_logical_replication_streaming"),
        "debug_logical_replication_streaming" => when(major == 16, "logical_replication_mode"),
        "ssl_ecdh_curve" => when(major >= 18, "ssl_groups"),
        "min_parallel_relation_size" => Some("min_parallel_table_scan_size"),
        "unix_socket_directory" => Some("unix_socket_directories"),
        "sort_mem" => Some("work_mem"),
        "vacuum_mem" => Some("maintenance_work_mem"),
        _ => None,
    }
}

/// What became of a setting that is gone.
pub(super) fn fate(name: &str) -> Option<&'static str> {
    Some(match name {
        "checkpoint_segments" => "set `max_wal_size`: three times as many segments of 16 MB",
        "default_with_oids" => "tables no longer have OIDs",
        "operator_precedence_warning" => "the change it warned of is long past",
        "replacement_sort_tuples" => "sorting needs no such limit",
        "stats_temp_directory" => "statistics are in shared memory",
        "vacuum_cleanup_index_scale_factor" => "vacuum decides by itself",
        "vacuum_defer_cleanup_age" => "use `hot_standby_feedback` or slots",
        "old_snapshot_threshold" => "set timeouts: `idle_in_transaction_session_timeout`, …",
        "db_user_namespace" => "users are the same in all databases",
        "trace_recovery_messages" => "set `log_min_messages`",
        "promote_trigger_file" | "trigger_file" => "the agent promotes without a file",
        "sql_inheritance" => "inheritance is always on",
        "ssl_renegotiation_limit" => "there is no renegotiation",
        "custom_variable_classes" => "any class may be used",
        "autovacuum_vacuum_cost_page_miss" => "set `vacuum_cost_page_miss`",
        _ => return None,
    })
}
