//! What is asked of the run loop.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use leaderpool_agent::rest::{
    Command, ConfigOutcome, FailsafeOutcome, ReinitializeOutcome, RestSettings, RestartOutcome,
    SwitchoverOutcome,
};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::bed::{Bed, MINUTE, settings};

#[tokio::test]
async fn commands_and_their_outcomes() -> Result<()> {
    let bed = Bed::start(settings()).await?;
    bed.status.send_modify(|status| {
        let mut status_now = (**status).clone();
        status_now.mode.failsafe = true;
        *status = status_now.into();
    });
    let (address, mut commands) = (bed.address(), bed.commands);
    let run_loop = tokio::spawn(async move {
        let mut seen = Vec::new();
        while let Some(command) = commands.recv().await {
            seen.push(format!("{command:?}").split(' ').next().unwrap_or_default().to_owned());
            match command {
                Command::Restart { request, reply } => {
                    let outcome = match request.role {
                        Some(role) => RestartOutcome::Failed(format!("not a {role}")),
                        None => RestartOutcome::Done,
                    };
                    let _ = reply.send(outcome);
                }
                Command::Reload { reply } => {
                    let _ = reply.send(());
                }
                Command::Reinitialize { force, from_leader, reply } => {
                    let why = format!("{force} {from_leader}");
                    {
                        let _ = reply.send(ReinitializeOutcome::Refused(why));
                    };
                }
                Command::PatchConfig { patch, reply } => {
                    {
                        let _ = reply.send(ConfigOutcome::Done(Value::Object(patch)));
                    };
                }
                Command::PutConfig { reply, .. } => {
                    let _ = reply.send(ConfigOutcome::Conflict);
                }
                Command::Failsafe { request, reply } => {
                    let lsn = request.slots.and_then(|slots| slots.get("a").copied());
                    {
                        let _ = reply.send(FailsafeOutcome::Accepted { lsn });
                    };
                }
                Command::CancelRestart { reply } | Command::CancelSwitchover { reply } => {
                    {
                        let _ = reply.send(leaderpool_agent::rest::CancelOutcome::Nothing);
                    };
                }
                // Dropped without an answer.
                _ => {}
            }
        }
        seen
    });
    let ask = async |method: &str, path: &str, body: &str| {
        let stream = tokio::net::TcpStream::connect(address).await?;
        let length = body.len();
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        crate::bed::talk(stream, &text).await
    };
    let table = [
        ("POST", "/restart", "", 200, "restarted successfully"),
        ("POST", "/restart", r#"{"role":"replica"}"#, 503, "not a replica"),
        ("POST", "/restart", r#"{"x":1}"#, 400, "Unknown filter for the scheduled restart: x"),
        ("DELETE", "/restart", "", 404, "no restarts are scheduled"),
        ("DELETE", "/switchover", "", 404, "no switchover is scheduled"),
        ("POST", "/reload", "", 202, "reload scheduled"),
        ("POST", "/reinitialize", r#"{"force":"yes"}"#, 503, "true false"),
        ("POST", "/reinitialize", "", 503, "false false"),
        ("PATCH", "/config", r#"{"ttl":20}"#, 200, r#"{"ttl": 20}"#),
        (
            "PUT",
            "/config",
            r#"{"ttl":20}"#,
            409,
            "the configuration changed at the same moment: ask again",
        ),
        ("POST", "/failsafe", r#"{"name":"pg0","slots":{"a":7}}"#, 200, "Accepted"),
        (
            "POST",
            "/failsafe",
            r#"{"name":7}"#,
            400,
            "not a failsafe request: invalid type: integer `7`, expected a string",
        ),
        ("POST", "/switchover", r#"{"leader":"pg0"}"#, 412, "leader name does not match"),
    ];
    for (method, path, body, code, text) in table {
        let reply = ask(method, path, body).await?;
        ensure!(
            (reply.code, reply.body.as_str()) == (code, text),
            "{method} {path} {body}: {} {}",
            reply.code,
            reply.body
        );
    }
    let reply = ask("POST", "/failsafe", r#"{"slots":{"a":7}}"#).await?;
    ensure!(reply.head.contains("lsn: 7"), "{}", reply.head);
    bed.server.shutdown().await;
    drop(bed.server);
    drop(bed.status);
    let seen = tokio::time::timeout(MINUTE, run_loop).await??;
    ensure!(seen.len() == 11, "{seen:?}");
    Ok(())
}

fn with_leader(bed: &Bed) {
    use leaderpool::patroni::{ClusterSnapshot, LeaderKey, Member, ServerAddress};
    let at = |port| {
        let mut member = Member::at(&ServerAddress { host: "127.0.0.1".into(), port });
        member.api_url = Some("http://127.0.0.2:8008/patroni".into());
        member
    };
    let snapshot = ClusterSnapshot {
        leader: Some(LeaderKey { name: "pg0".into(), revision: 7 }),
        members: [("pg0".to_owned(), at(1)), ("pg1".to_owned(), at(2))].into(),
        ..ClusterSnapshot::default()
    };
    bed.status.send_modify(|status| {
        let mut now = (**status).clone();
        let facts = leaderpool_agent::rest::ClusterFacts {
            snapshot: snapshot.into(),
            ..Default::default()
        };
        now.cluster = Some(facts.into());
        *status = now.into();
    });
}

#[tokio::test]
async fn a_switchover_is_waited_for_and_outlives_its_client() -> Result<()> {
    let mut bed = Bed::start(settings()).await?;
    with_leader(&bed);
    let body = json!({"leader": "pg0", "candidate": "pg1"}).to_string();
    let text = format!("POST /switchover HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len());

    // Longer than slow clients are allowed to take.
    let stream = bed.connect().await?;
    let asked = tokio::spawn(async move { crate::bed::talk(stream, &text).await });
    let Some(Command::Switchover { request, reply }) = bed.commands.recv().await else {
        bail!("another command")
    };
    ensure!(request.candidate.as_deref() == Some("pg1"));
    tokio::time::sleep(Duration::from_secs(4)).await;
    ensure!(!asked.is_finished());
    let _ = reply.send(SwitchoverOutcome::Done { leader: "pg1".into() });
    let answer = tokio::time::timeout(MINUTE, asked).await???;
    ensure!(answer.body == "Successfully switched over to \"pg1\"", "{}", answer.body);

    // A client that goes away takes nothing with it.
    let mut stream = bed.connect().await?;
    let length = body.len();
    let text = format!("POST /switchover HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).await?;
    let command = bed.commands.recv().await.context("a command")?;
    drop(stream);
    ensure!(matches!(command, Command::Switchover { .. }));
    Ok(())
}

#[tokio::test]
async fn a_run_loop_that_is_busy_or_gone_is_said_so() -> Result<()> {
    let settings = RestSettings { command_timeout: Duration::from_millis(300), ..settings() };
    let mut bed = Bed::start(settings).await?;
    let reply = bed.ask("POST", "/reload", "").await?;
    ensure!(reply.code == 503 && reply.body.contains("no outcome is known yet"), "{}", reply.body);
    let reply = bed.ask("POST", "/restart", "").await?;
    ensure!(reply.code == 503, "{}", reply.body);
    // Two are in the queue, which holds two.
    let reply = bed.ask("POST", "/restart", "").await?;
    ensure!(reply.body.contains("too many commands"), "{}", reply.body);
    // Checks go on meanwhile.
    ensure!(bed.ask("GET", "/replica", "").await?.code == 200);
    bed.commands.close();
    while bed.commands.recv().await.is_some() {}
    let reply = bed.ask("POST", "/restart", "").await?;
    ensure!(reply.code == 503 && reply.body.contains("shutting down"), "{}", reply.body);
    Ok(())
}

/// The shutdown does not wait for a command.
#[tokio::test]
async fn shutdown_is_bounded() -> Result<()> {
    let mut bed = Bed::start(settings()).await?;
    let mut stream = bed.connect().await?;
    stream.write_all(b"POST /restart HTTP/1.0\r\nContent-Length: 0\r\n\r\n").await?;
    let _held = bed.commands.recv().await.context("a command")?;
    let _idle = bed.connect().await?;
    tokio::time::timeout(MINUTE, bed.server.shutdown()).await?;
    Ok(())
}
