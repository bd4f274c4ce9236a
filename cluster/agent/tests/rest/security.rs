//! Passwords, allowlists and certificates.

use anyhow::{Context, Result, ensure};
use hyper::Method;
use leaderpool_agent::rest::{RestSettings, RestTls, VerifyClient};
use leaderpool_testbed::http::Http;
use leaderpool_testbed::process::RunAs;
use leaderpool_testbed::tls::{Authority, Identity};

use crate::bed::{Bed, MINUTE, settings, talk};

#[tokio::test]
async fn what_changes_something_wants_the_password() -> Result<()> {
    let bed = Bed::start(RestSettings {
        authentication: Some(("user".into(), "pass".into())),
        http_extra_headers: vec![("X-One".into(), "1".into())],
        https_extra_headers: vec![("X-Two".into(), "2".into())],
        command_timeout: std::time::Duration::from_millis(100),
        ..settings()
    })
    .await?;
    let post = |header: &str| format!("POST /reload HTTP/1.0\r\n{header}\r\n");
    for (header, code) in [
        ("", 401),
        ("Authorization: Basic dXNlcjpwYXNx\r\n", 401),
        ("Authorization: Basic dXNlcjpwYXNz\r\n", 503),
    ] {
        let reply = bed.send(&post(header)).await?;
        ensure!(reply.code == code, "{header:?}: {}", reply.head);
        ensure!(reply.head.contains("www-authenticate: basic realm") == (code == 401));
        ensure!(reply.head.contains("x-one: 1") && !reply.head.contains("x-two"));
    }
    // Reading is free.
    for path in ["/replica", "/config", "/cluster", "/metrics", "/patroni"] {
        ensure!(bed.ask("GET", path, "").await?.code != 401, "{path}");
    }
    // Settings are taken up without a restart; what cannot work is refused, and changes nothing.
    let short = std::time::Duration::from_millis(100);
    bed.server.reload(RestSettings { command_timeout: short, ..settings() })?;
    ensure!(bed.send(&post("")).await?.code == 503);
    let elsewhere = RestSettings { listen: "127.0.0.1:1".into(), ..settings() };
    ensure!(bed.server.reload(elsewhere).is_err());
    let bad = RestSettings { allowlist: vec!["1.2.3.4/99".into()], ..settings() };
    ensure!(bed.server.reload(bad).is_err());
    Ok(())
}

#[tokio::test]
async fn the_allowlist() -> Result<()> {
    let start = async |allowlist: &[&str], members| {
        Bed::start(RestSettings {
            allowlist: allowlist.iter().map(|&entry| entry.to_owned()).collect(),
            allowlist_include_members: members,
            command_timeout: std::time::Duration::from_millis(100),
            ..settings()
        })
        .await
    };
    let post = "POST /reload HTTP/1.0\r\n\r\n";
    for (list, from, code) in [
        (&["127.0.0.0/24"][..], [127, 0, 0, 9], 503),
        (&["127.0.0.0/24"][..], [127, 0, 1, 9], 403),
        (&["localhost"][..], [127, 0, 0, 1], 503),
        (&["localhost", "no.such.host.invalid"][..], [127, 0, 0, 2], 403),
    ] {
        let bed = start(list, false).await?;
        let reply = talk(bed.connect_from(from).await?, post).await?;
        ensure!(reply.code == code, "{list:?} {from:?}: {}", reply.body);
        let check = bed.connect_from(from).await?;
        ensure!(talk(check, "OPTIONS /replica HTTP/1.0\r\n\r\n").await?.code == 200);
    }
    // Members by their REST API, but for the failsafe question, which an out-of-date list must not stop.
    let bed = start(&[], true).await?;
    bed.status.send_modify(|status| {
        let mut now = (**status).clone();
        let mut member = leaderpool::patroni::Member::at(&leaderpool::patroni::ServerAddress {
            host: "127.0.0.2".into(),
            port: 1,
        });
        member.api_url = Some("http://127.0.0.2:8008/patroni".into());
        let snapshot = leaderpool::patroni::ClusterSnapshot {
            members: [("pg0".to_owned(), member)].into(),
            ..Default::default()
        };
        now.cluster = Some(
            leaderpool_agent::rest::ClusterFacts {
                snapshot: snapshot.into(),
                ..Default::default()
            }
            .into(),
        );
        *status = now.into();
    });
    ensure!(talk(bed.connect_from([127, 0, 0, 2]).await?, post).await?.code == 503);
    ensure!(talk(bed.connect_from([127, 0, 0, 3]).await?, post).await?.code == 403);
    let failsafe = "POST /failsafe HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}";
    ensure!(talk(bed.connect_from([127, 0, 0, 3]).await?, failsafe).await?.code == 502);
    Ok(())
}

struct Certificates {
    authority: Authority,
    server: Identity,
    client: Identity,
    _dir: tempfile::TempDir,
}

async fn certificates() -> Result<Certificates> {
    let dir = tempfile::tempdir()?;
    let authority = Authority::create(&dir.path().join("tls"), &RunAs::ourselves()).await?;
    let (server, client) = (authority.server("rest").await?, authority.client("operator").await?);
    Ok(Certificates { authority, server, client, _dir: dir })
}

#[tokio::test]
async fn certificates_are_asked_for_as_configured() -> Result<()> {
    let certificates = certificates().await?;
    let ca = certificates.authority.ca();
    let identity = (certificates.client.cert.as_path(), certificates.client.key.as_path());
    // What a client without and one with a certificate gets: reading, and changing.
    let table = [
        (VerifyClient::None, Some((200, 503)), (200, 503)),
        (VerifyClient::Optional, Some((200, 403)), (200, 503)),
        (VerifyClient::Required, None, (200, 503)),
    ];
    for (verify_client, without, with) in table {
        let tls = RestTls {
            certfile: certificates.server.cert.clone(),
            keyfile: Some(certificates.server.key.clone()),
            cafile: Some(ca.clone()),
            verify_client,
        };
        let bed = Bed::start(RestSettings {
            tls: Some(tls),
            command_timeout: std::time::Duration::from_millis(100),
            ..settings()
        })
        .await?;
        let port = bed.address().port();
        for (identity, want) in [(None, without), (Some(identity), Some(with))] {
            let http = Http::tls(port, &ca, identity)?;
            let read = http.get("/replica", MINUTE).await;
            match want {
                None => ensure!(read.is_err(), "{verify_client:?}: it must not be let in"),
                Some((reading, changing)) => {
                    ensure!(read?.status == reading, "{verify_client:?}");
                    let change = http.request(Method::POST, "/reload", None, None, MINUTE).await?;
                    ensure!(change.status == changing, "{verify_client:?} {}", change.body);
                }
            }
        }
        // Plain HTTP is not taken for TLS, and does no harm.
        ensure!(bed.send("GET /replica HTTP/1.0\r\n\r\n").await.is_err());
        bed.server.shutdown().await;
    }
    Ok(())
}

#[tokio::test]
async fn new_certificates_are_taken_up_by_a_reload() -> Result<()> {
    let (old, new) = (certificates().await?, certificates().await?);
    let with = |certificates: &Certificates| RestSettings {
        tls: Some(RestTls {
            certfile: certificates.server.cert.clone(),
            keyfile: Some(certificates.server.key.clone()),
            cafile: None,
            verify_client: VerifyClient::None,
        }),
        https_extra_headers: vec![("x-two".into(), "2".into())],
        ..settings()
    };
    let bed = Bed::start(with(&old)).await?;
    let port = bed.address().port();
    let trusts_old = Http::tls(port, &old.authority.ca(), None)?;
    let trusts_new = Http::tls(port, &new.authority.ca(), None)?;
    ensure!(trusts_old.get("/replica", MINUTE).await?.status == 200);
    ensure!(trusts_new.get("/replica", MINUTE).await.is_err());
    bed.server.reload(with(&new))?;
    ensure!(trusts_new.get("/replica", MINUTE).await?.status == 200);
    ensure!(trusts_old.get("/replica", MINUTE).await.is_err());
    // What cannot be read is named, and the old one goes on.
    let mut broken = with(&new);
    broken.tls.as_mut().context("TLS")?.certfile = "/nowhere/rest.crt".into();
    let error = bed.server.reload(broken).expect_err("must be refused").to_string();
    ensure!(error.contains("restapi.certfile: /nowhere/rest.crt"), "{error}");
    ensure!(trusts_new.get("/replica", MINUTE).await?.status == 200);
    Ok(())
}
