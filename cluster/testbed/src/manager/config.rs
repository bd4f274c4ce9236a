//! One node's `patroni.yml`.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::yaml;
use crate::builder::ClusterBuilder;
use crate::etcd::Access;
use crate::postgres::{REPLICATOR, SUPERUSER};
use crate::tls::Identity;

/// What a node's configuration is made of.
pub(crate) struct NodeConfig<'a> {
    pub(crate) cluster: &'a ClusterBuilder,
    pub(crate) name: &'a str,
    pub(crate) dir: &'a Path,
    pub(crate) postgres_port: u16,
    pub(crate) rest_port: u16,
    pub(crate) etcd_ports: &'a [u16],
    pub(crate) etcd: &'a Access,
    pub(crate) bin_dir: &'a Path,
    pub(crate) log_dir: &'a Path,
    /// The server's certificate and the authority to check clients by.
    pub(crate) postgres_tls: Option<(&'a Identity, &'a Path)>,
}

impl NodeConfig<'_> {
    /// The file's text.
    pub(crate) fn to_yaml(&self) -> String {
        yaml::to_string(&self.to_json())
    }

    fn to_json(&self) -> Value {
        let address = |port: u16| format!("127.0.0.1:{port}");
        let (postgres, rest) = (address(self.postgres_port), address(self.rest_port));
        let mut config = json!({
            "scope": self.cluster.scope,
            "namespace": self.cluster.namespace,
            "name": self.name,
            "restapi": {"listen": rest, "connect_address": rest},
            "etcd3": self.etcd3(),
            "bootstrap": {
                "dcs": self.dynamic(),
                "initdb": self.initdb(),
                "pg_hba": self.pg_hba(),
            },
            "postgresql": {
                // In `bootstrap` alone they would come after initdb's own lines, which trust everybody
                // on this machine.
                "pg_hba": self.pg_hba(),
                "listen": postgres,
                "connect_address": postgres,
                "data_dir": self.dir.join("data"),
                "bin_dir": self.bin_dir,
                "pgpass": self.dir.join("pgpass"),
                "authentication": {
                    "replication": {"username": REPLICATOR.0, "password": REPLICATOR.1},
                    "superuser": {"username": SUPERUSER.0, "password": SUPERUSER.1},
                },
                // A spread checkpoint would let each clone wait for minutes.
                "basebackup": self.basebackup(),
                "parameters": self.parameters(),
            },
            "tags": self.tags(),
            // Its timeout would reboot the machine.
            "watchdog": {"mode": "off"},
        });
        if let Some(settings) = self.cluster.recovery.get(self.name) {
            config["postgresql"]["recovery_conf"] = settings.clone();
        }
        config
    }

    fn etcd3(&self) -> Value {
        let hosts: Vec<String> =
            self.etcd_ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let mut etcd = json!({"hosts": hosts, "protocol": self.etcd.scheme()});
        if let Some(ca) = self.etcd.ca() {
            etcd["cacert"] = json!(ca);
        }
        if let Some(identity) = self.etcd.identity() {
            etcd["cert"] = json!(identity.cert);
            etcd["key"] = json!(identity.key);
        }
        if let Some((user, password)) = self.etcd.root() {
            etcd["username"] = json!(user);
            etcd["password"] = json!(password);
        }
        etcd
    }

    /// The dynamic configuration that the first node writes to etcd.
    fn dynamic(&self) -> Value {
        let dynamic = &self.cluster.dynamic;
        let mut postgresql = json!({
            "use_pg_rewind": true,
            "use_slots": true,
            "parameters": {
                "wal_level": "replica",
                "hot_standby": "on",
                // Eight segments of 16 MB.
                "wal_keep_size": "128MB",
                "max_wal_senders": 10,
                "max_replication_slots": 10,
                "max_connections": 200,
                "wal_log_hints": "on",
            },
        });
        if self.cluster.archive {
            let parameters = &mut postgresql["parameters"];
            parameters["archive_mode"] = json!("on");
            parameters["archive_timeout"] = json!("1800s");
            parameters["archive_command"] = json!(
                "mkdir -p ../wal_archive && test ! -f ../wal_archive/%f && cp %p ../wal_archive/%f"
            );
            postgresql["recovery_conf"] = json!({"restore_command": "cp ../wal_archive/%f %p"});
        }
        let mut config = json!({
            "ttl": dynamic.ttl,
            "loop_wait": dynamic.loop_wait,
            "retry_timeout": dynamic.retry_timeout,
            "maximum_lag_on_failover": dynamic.maximum_lag_on_failover,
            "primary_start_timeout": dynamic.primary_start_timeout,
            "synchronous_mode": dynamic.synchronous_mode,
            "postgresql": postgresql,
        });
        if dynamic.failsafe_mode {
            config["failsafe_mode"] = json!(true);
        }
        merge(&mut config, &dynamic.extra);
        config
    }

    fn initdb(&self) -> Value {
        let mut options = vec![
            json!({"encoding": "UTF8"}),
            json!({"locale": "C.UTF-8"}),
            json!("data-checksums"),
        ];
        if !self.cluster.fsync {
            options.push(json!("no-sync"));
        }
        Value::Array(options)
    }

    fn basebackup(&self) -> Value {
        let mut options = vec![json!({"checkpoint": "fast"})];
        if !self.cluster.fsync {
            options.push(json!("no-sync"));
        }
        Value::Array(options)
    }

    fn pg_hba(&self) -> Vec<String> {
        let mut lines = vec!["local all all trust".to_owned()];
        lines.extend(self.cluster.pg_hba_first.iter().cloned());
        lines.push(format!("host replication {} 127.0.0.1/32 md5", REPLICATOR.0));
        lines.push("host all all 127.0.0.1/32 md5".to_owned());
        lines
    }

    fn parameters(&self) -> Value {
        let mut parameters = json!({
            "unix_socket_directories": self.socket_dir(),
            "shared_buffers": "32MB",
            "fsync": if self.cluster.fsync { "on" } else { "off" },
            "logging_collector": "on",
            "log_directory": self.log_dir,
            "log_filename": format!("{}.postgres.log", self.name),
            "log_file_mode": "0644",
            "log_rotation_age": 0,
            "log_rotation_size": 0,
            "log_line_prefix": "%m [%p] ",
        });
        if let Some((identity, ca)) = self.postgres_tls {
            parameters["ssl"] = json!("on");
            parameters["ssl_cert_file"] = json!(identity.cert);
            parameters["ssl_key_file"] = json!(identity.key);
            parameters["ssl_ca_file"] = json!(ca);
        }
        for (name, value) in &self.cluster.parameters {
            parameters[name] = json!(value);
        }
        parameters
    }

    /// Beside the data directory: in it ('.'), pg_rewind would try to copy the source's socket, and fail. Not by the name
    /// '..' either: Patroni 3 makes the data directory readable for all while it looks for that.
    fn socket_dir(&self) -> String {
        const LONGEST: usize = 107 - "/.s.PGSQL.65535.lock".len();
        let dir = self.dir.display().to_string();
        if dir.len() <= LONGEST { dir } else { String::new() }
    }

    fn tags(&self) -> Value {
        let mut tags = json!({
            "nofailover": false,
            "noloadbalance": false,
            "clonefrom": false,
            "nosync": false,
        });
        if let Some(own) = self.cluster.tags.get(self.name) {
            merge(&mut tags, own);
        }
        tags
    }
}

/// Lays `over` upon `base`, maps within maps; null removes.
fn merge(base: &mut Value, over: &Value) {
    let Value::Object(over) = over else { return };
    if !base.is_object() {
        *base = Value::Object(Map::new());
    }
    for (key, value) in over {
        if value.is_object() {
            merge(&mut base[key], value);
        } else if value.is_null() {
            base.as_object_mut().map(|map| map.remove(key));
        } else {
            base[key] = value.clone();
        }
    }
}
