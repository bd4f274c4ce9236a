//! Users, passwords and certificates.

use std::time::Duration;

use anyhow::{Result, ensure};
use etcd_client::{Client, Permission, PermissionType};
use leaderpool_agent::dcs::{Acquired, DcsError, DcsSettings, Session};

use crate::bed::{Etcd, MINUTE, eventually, member, ready};

async fn enable_users(client: &mut Client) -> Result<()> {
    client.user_add("root", "rootpw", None).await?;
    client.role_add("root").await?;
    client.user_grant_role("root", "root").await?;
    client.user_add("agent", "agentpw", None).await?;
    client.role_add("agent").await?;
    let all = Permission::new(PermissionType::Readwrite, "/db/c/").with_prefix();
    client.role_grant_permission("agent", all).await?;
    client.user_grant_role("agent", "agent").await?;
    client.user_add("stranger", "strangerpw", None).await?;
    client.auth_enable().await?;
    Ok(())
}

async fn refused(etcd: &Etcd, user: Option<(&str, &str)>) -> Result<DcsError> {
    let mut settings = etcd.settings("x");
    if let Some((name, password)) = user {
        settings.username = Some(name.to_owned());
        settings.password = Some(password.into());
    }
    let session = Session::start(settings)?;
    let error = session.wait_ready(Duration::from_secs(2)).await.expect_err("must be refused");
    session.shutdown().await;
    Ok(error)
}

#[tokio::test(flavor = "multi_thread")]
async fn users_and_their_tokens() -> Result<()> {
    let etcd = Etcd::start(1).await?;
    let mut settings = etcd.settings("a");
    settings.username = Some("agent".into());
    settings.password = Some("agentpw".into());
    settings.timing.ttl = Duration::from_secs(20);
    // While etcd has no users yet, ours is left out.
    let early = ready(DcsSettings { name: "early".into(), ..settings.clone() }).await?;
    enable_users(&mut etcd.client().await).await?;
    // And once it has some, it is named.
    early.put_member(&member("early", "with users")).await?;
    eventually("it goes on", MINUTE, async || {
        early.refresh_now(Duration::from_secs(1)).await?;
        early.read().await?;
        ensure!(early.view().is_current());
        Ok(())
    })
    .await?;
    early.shutdown().await;

    let wrong = refused(&etcd, Some(("agent", "wrong"))).await?;
    ensure!(matches!(wrong, DcsError::AuthFailed { .. }), "{wrong:?}");
    let none = refused(&etcd, None).await?;
    ensure!(matches!(none, DcsError::AuthFailed { .. }), "{none:?}");
    let stranger = refused(&etcd, Some(("stranger", "strangerpw"))).await?;
    ensure!(matches!(stranger, DcsError::PermissionDenied { .. }), "{stranger:?}");

    let a = ready(settings).await?;
    let Acquired::Won(reign) = a.acquire().await? else { anyhow::bail!("held") };
    // The tokens die with the server's memory.
    etcd.kill(0).await;
    etcd.spawn(0)?;
    etcd.wait().await?;
    eventually("it logs in again", MINUTE, async || {
        a.put_member(&member("a", "after the restart")).await?;
        a.keep(reign).await?;
        a.refresh_now(Duration::from_secs(1)).await?;
        ensure!(a.view().is_current());
        Ok(())
    })
    .await?;
    // And any change to the users makes them old.
    let mut root = etcd.client_of(0, Some(("root", "rootpw"))).await?;
    root.user_add("another", "pw", None).await?;
    a.put_member(&member("a", "after the change")).await?;
    a.refresh_now(MINUTE).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_on_both_sides() -> Result<()> {
    let etcd = Etcd::start_with(1, true).await?;
    let a = etcd.session("a").await?;
    ensure!(matches!(a.acquire().await?, Acquired::Won(_)));
    a.shutdown().await;

    let mut without = etcd.settings("b");
    without.tls.cert_file = None;
    without.tls.key_file = None;
    let mut distrusting = etcd.settings("b");
    distrusting.tls.ca_file = None;
    for (what, settings) in [("no certificate", without), ("no authority", distrusting)] {
        let session = Session::start(settings)?;
        let error = session.wait_ready(Duration::from_secs(1)).await.expect_err(what);
        eprintln!("  {what}: {error}");
        session.shutdown().await;
    }
    ensure!(etcd.tls().client.cert.exists());
    Ok(())
}
