//! The state of a running system, asked of all that takes part in it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::future::join_all;
use leaderpool_testbed::etcd::EtcdClient;
use leaderpool_testbed::haproxy::{self, READS, Server, WRITES};
use leaderpool_testbed::http::Http;
use leaderpool_testbed::postgres::{self, ServerState};
use serde::Serialize;
use serde_json::Value;

use super::place::{BackendState, Hold, NodeState, State};

const PATIENCE: Duration = Duration::from_secs(2);

/// What was found.
#[derive(Debug, Serialize)]
pub(super) struct Health {
    pub(super) healthy: bool,
    pub(super) problems: Vec<String>,
    /// Whom the leader key names.
    pub(super) leader: Option<String>,
    /// The revision of the key's creation.
    pub(super) leader_revision: Option<i64>,
    pub(super) members: Vec<Member>,
    pub(super) haproxy: Vec<Balanced>,
    pub(super) backends: Vec<Backend>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Role {
    /// It has the key and is writable.
    Leader,
    Replica,
    /// Writable without the key.
    Unadmitted,
    Unavailable,
}

impl Role {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Replica => "replica",
            Self::Unadmitted => "writable, without the key",
            Self::Unavailable => "unavailable",
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) role: Role,
    /// In its manager's words.
    pub(super) state: String,
    pub(super) timeline: Option<i32>,
    pub(super) lag_bytes: Option<u64>,
    pub(super) postgres: u16,
    pub(super) rest: u16,
    pub(super) problem: Option<String>,
    #[serde(skip)]
    position: Option<i64>,
}

/// One server of one of HAProxy's sections.
#[derive(Debug, Serialize)]
pub(super) struct Balanced {
    pub(super) section: String,
    pub(super) node: String,
    pub(super) status: String,
}

#[derive(Debug, Serialize)]
pub(super) struct Backend {
    pub(super) name: String,
    pub(super) port: u16,
    pub(super) ready: bool,
    /// The leader it writes to, or why it is not ready.
    pub(super) says: String,
}

/// A client of the system's etcd.
pub(super) fn etcd(state: &State) -> EtcdClient {
    EtcdClient::new(vec![Http::plain(state.etcd)])
}

/// Asks everyone.
pub(super) async fn look(state: &State) -> Health {
    let mut problems = Vec::new();
    let key = match etcd(state).get(&format!("{}leader", state.prefix)).await {
        Ok(Some(key)) => Some(key),
        Ok(None) => {
            problems.push("nobody holds the leader key".to_owned());
            None
        }
        Err(error) => {
            problems.push(format!("{error:#}"));
            None
        }
    };
    let leader = key.as_ref().map(|key| key.value.clone());
    let mut asked = Vec::new();
    for node in &state.nodes {
        asked.push(member(node, leader.as_deref()));
    }
    let mut called = Vec::new();
    for one in &state.backends {
        called.push(backend(one));
    }
    let servers = haproxy::servers(state.haproxy.stats);
    let (mut members, servers, backends) = tokio::join!(join_all(asked), servers, join_all(called));
    judge_members(&mut members, leader.as_deref(), &mut problems);
    let servers = servers.unwrap_or_else(|error| {
        problems.push(format!("HAProxy does not answer: {error:#}"));
        Vec::new()
    });
    if !servers.is_empty() {
        judge_haproxy(&servers, &members, &mut problems);
    }
    for backend in backends.iter().filter(|backend| !backend.ready) {
        problems.push(format!("{} is not ready: {}", backend.name, backend.says));
    }
    let balanced = |server: Server| Balanced {
        section: if server.section == WRITES { "writes" } else { "reads" }.to_owned(),
        node: server.node,
        status: server.status,
    };
    Health {
        healthy: problems.is_empty(),
        problems,
        leader,
        leader_revision: key.map(|key| key.create_revision),
        members,
        haproxy: servers.into_iter().map(balanced).collect(),
        backends,
    }
}

fn judge_members(members: &mut [Member], leader: Option<&str>, problems: &mut Vec<String>) {
    let primary = members.iter().find(|m| m.role == Role::Leader);
    let (timeline, written) =
        primary.map_or((None, None), |primary| (primary.timeline, primary.position));
    for member in members {
        let name = &member.name;
        match member.role {
            Role::Leader => {}
            Role::Replica => {
                let behind = written.zip(member.position).map(|(written, own)| written - own);
                member.lag_bytes = behind.map(|behind| u64::try_from(behind).unwrap_or(0));
                if timeline.is_some() && member.timeline != timeline {
                    member.problem.get_or_insert_with(|| "not on the leader's timeline".to_owned());
                }
                if leader == Some(name) {
                    member.problem = Some("has the leader key, but is in recovery".to_owned());
                }
            }
            Role::Unadmitted => {
                member.problem = Some("is writable without holding the leader key".to_owned());
            }
            Role::Unavailable => {}
        }
        problems.extend(member.problem.as_ref().map(|problem| format!("{name}: {problem}")));
    }
}

fn judge_haproxy(servers: &[Server], members: &[Member], problems: &mut Vec<String>) {
    for (section, role, what) in [(WRITES, Role::Leader, "writes"), (READS, Role::Replica, "reads")]
    {
        for server in servers.iter().filter(|server| server.section == section) {
            let wanted = members.iter().any(|m| m.name == server.node && m.role == role);
            if wanted != server.is_up() {
                let (node, status) = (&server.node, &server.status);
                problems.push(format!("HAProxy takes {node} to be {status} for {what}"));
            }
        }
    }
}

async fn member(node: &NodeState, leader: Option<&str>) -> Member {
    let (server, manager) = tokio::join!(ask_server(node.postgres), ask_manager(node.rest));
    let mut member = Member {
        name: node.name.clone(),
        role: Role::Unavailable,
        state: String::new(),
        timeline: None,
        lag_bytes: None,
        postgres: node.postgres,
        rest: node.rest,
        problem: None,
        position: None,
    };
    match manager {
        Ok(state) => member.state = state,
        Err(_) => {
            member.state = "no manager".to_owned();
            member.problem = Some("its manager does not answer".to_owned());
        }
    }
    match server {
        Ok((server, position)) => {
            member.role = match (server.in_recovery, leader == Some(node.name.as_str())) {
                (true, _) => Role::Replica,
                (false, true) => Role::Leader,
                (false, false) => Role::Unadmitted,
            };
            if server.in_recovery && !server.streaming {
                member.problem = Some("does not stream from the leader".to_owned());
            }
            member.timeline = server.timeline;
            member.position = position;
        }
        Err(_) if Hold::is_on(&node.dir) => {
            member.state = "killed".to_owned();
            member.problem = Some("is held down by `make failover`".to_owned());
        }
        Err(error) => member.problem = Some(format!("{error:#}")),
    }
    member
}

async fn ask_server(port: u16) -> Result<(ServerState, Option<i64>)> {
    const POSITION: &str = "select ((case when pg_is_in_recovery() then \
        coalesce(pg_last_wal_replay_lsn(), '0/0') else pg_current_wal_lsn() end) - '0/0')::bigint";
    let state = postgres::server_state(port, PATIENCE).await?;
    let position = async {
        let client = postgres::connect(port, "postgres", PATIENCE).await.ok()?;
        client.query_one(POSITION, &[]).await.ok()?.try_get(0).ok()
    };
    Ok((state, tokio::time::timeout(PATIENCE, position).await.ok().flatten()))
}

/// The state in the manager's own words.
async fn ask_manager(rest: u16) -> Result<String> {
    let answer = Http::plain(rest).get("/patroni", PATIENCE).await?.json()?;
    let word = |field: &str| answer[field].as_str().map(str::to_owned);
    word("replication_state").or_else(|| word("state")).context("no state in its answer")
}

async fn backend(backend: &BackendState) -> Backend {
    let (ready, says) = match Http::plain(backend.port).get("/ready?for=writes", PATIENCE).await {
        Ok(answer) => {
            let body = answer.json().unwrap_or_default();
            let text = |value: &Value| value.as_str().map(str::to_owned);
            match answer.status {
                200 => (true, text(&body["leader"]).unwrap_or_default()),
                _ => (false, text(&body["error"]["message"]).unwrap_or(answer.body)),
            }
        }
        Err(_) => (false, "it does not answer".to_owned()),
    };
    Backend { name: backend.name.clone(), port: backend.port, ready, says }
}
