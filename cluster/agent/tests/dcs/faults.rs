//! Members of etcd that freeze, die and come back.

use std::time::Duration;

use anyhow::{Result, ensure};
use leaderpool::patroni::Key;
use leaderpool_agent::dcs::{Acquired, BootTime, DcsError, Kept, Reign, Released, Session};
use tokio::time::{Instant, sleep};

use crate::bed::{Etcd, MINUTE, SHORT, eventually, member, ready};
use crate::proxy::Proxy;

async fn lead(session: &Session) -> Result<Reign> {
    match session.acquire().await? {
        Acquired::Won(reign) => Ok(reign),
        Acquired::Held(key) => anyhow::bail!("held: {key:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_one_of_three_members_may_freeze() -> Result<()> {
    let etcd = Etcd::start(3).await?;
    let mut settings = etcd.settings("a");
    // Longer than an election takes: the leader of etcd freezes as well.
    settings.timing.ttl = Duration::from_secs(10);
    settings.timing.retry_timeout = Duration::from_secs(10);
    let ttl = settings.timing.ttl;
    let a = ready(settings).await?;
    let reign = lead(&a).await?;
    let id = a.lease().state().id;
    for index in 0..3 {
        etcd.freeze(index).await;
        let began = Instant::now();
        a.put_member(&member("a", &format!("frozen {index}"))).await?;
        eprintln!("  member {index} frozen: a write after {:?}", began.elapsed());
        // Not for as long as the lease lasts: see below.
        let end = Instant::now() + ttl / 2;
        while Instant::now() < end {
            let leadership = a.lease().leadership();
            ensure!(leadership.until > BootTime::now(), "the lease was not renewed in time");
            ensure!(leadership.disputed_since.is_none());
            sleep(Duration::from_millis(100)).await;
        }
        ensure!(a.keep(reign).await? == Kept::Mine(reign), "member {index}");
        let proven = a.proven_at();
        eventually("the view is proven", ttl, async || {
            ensure!(a.proven_at() > proven && a.view().is_current());
            Ok(())
        })
        .await?;
        etcd.thaw(index);
        etcd.wait().await?;
    }
    ensure!(a.lease().state().id == id);
    a.shutdown().await;
    Ok(())
}

/// etcd's own trap: a leader of etcd that was frozen for longer than a lease lasts may revoke it when it
/// thaws, though the new leader has renewed it all the time. The loss is seen at once, and made good.
#[tokio::test(flavor = "multi_thread")]
async fn a_thawed_leader_of_etcd_may_revoke_a_living_lease() -> Result<()> {
    let etcd = Etcd::start(3).await?;
    let a = etcd.session("a").await?;
    let mut reign = lead(&a).await?;
    for round in 0..3 {
        let id = a.lease().state().id;
        let frozen = etcd.leader().await?;
        etcd.freeze(frozen).await;
        sleep(2 * SHORT.ttl).await;
        // At this ttl the election itself may have cost the lease; then it is won back here.
        reign =
            eventually("it leads meanwhile", MINUTE, async || stays_or_returns(&a, reign).await)
                .await?;
        etcd.thaw(frozen);
        etcd.wait().await?;
        sleep(Duration::from_millis(500)).await;
        reign = eventually("it leads after it", MINUTE, async || stays_or_returns(&a, reign).await)
            .await?;
        let leadership = a.lease().leadership();
        ensure!(leadership.until > BootTime::now() && leadership.disputed_since.is_none());
        let stands = etcd.raw(&Key::Leader).await?.expect("a key");
        ensure!(stands.lease == a.lease().state().id);
        eprintln!("  round {round}: the same lease: {}", a.lease().state().id == id);
    }
    Ok(())
}

async fn stays_or_returns(session: &Session, reign: Reign) -> Result<Reign> {
    match session.keep(reign).await? {
        Kept::Mine(reign) => Ok(reign),
        Kept::Lost(None) => lead(session).await,
        Kept::Lost(Some(key)) => anyhow::bail!("another leads: {key:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_members_freeze_and_thaw() -> Result<()> {
    let etcd = Etcd::start(3).await?;
    let (a, b) = (etcd.session("a").await?, etcd.session("b").await?);
    let reign = lead(&a).await?;
    for index in 0..3 {
        etcd.freeze(index).await;
    }
    let began = Instant::now();
    let (kept, raced) = tokio::join!(a.keep(reign), b.acquire());
    ensure!(began.elapsed() < 3 * SHORT.retry_timeout, "bounded: {:?}", began.elapsed());
    let (kept, raced) = (kept.expect_err("nobody answers"), raced.expect_err("nobody answers"));
    ensure!(matches!(kept, DcsError::TimedOut { .. } | DcsError::Unreachable { .. }), "{kept}");
    for index in 0..3 {
        ensure!(kept.to_string().contains(&etcd.endpoint(index)), "{kept}");
    }
    ensure!(raced.maybe_applied() && !kept.maybe_applied(), "it was sent: {raced}");
    eventually("the view says that it is old", MINUTE, async || {
        ensure!(a.view().stale.is_some());
        Ok(())
    })
    .await?;
    eventually("the leadership ends by the clock", MINUTE, async || {
        ensure!(a.lease().leadership().until <= BootTime::now());
        Ok(())
    })
    .await?;
    for index in 0..3 {
        etcd.thaw(index);
    }
    for session in [&a, &b] {
        eventually("all is well again", MINUTE, async || {
            ensure!(session.view().is_current());
            session.refresh_now(Duration::from_secs(1)).await?;
            session.put_member(&member("x", "running")).await?;
            Ok(())
        })
        .await?;
    }
    // etcd's new leader may have kept the old lease, or not: either way at most one leads.
    let kept = a.keep(reign).await?;
    let raced = b.acquire().await?;
    match (&kept, &raced) {
        (Kept::Mine(_), Acquired::Held(key)) => ensure!(key.value == b"a"),
        (Kept::Lost(_), _) => {}
        both => anyhow::bail!("{both:?}"),
    }
    eprintln!("  afterwards: {kept:?}, {raced:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_the_error_says_so() -> Result<()> {
    let etcd = Etcd::start(3).await?;
    let a = etcd.session("a").await?;
    etcd.kill(1).await;
    etcd.kill(2).await;
    let error = eventually("it is refused", MINUTE, async || match a.get(&Key::Leader).await {
        Err(error) if error.to_string().contains("no leader") => Ok(error),
        other => anyhow::bail!("{other:?}"),
    })
    .await?;
    ensure!(!error.maybe_applied());
    eprintln!("  {error}");
    etcd.spawn(1)?;
    etcd.wait().await?;
    eventually("two of three", MINUTE, async || Ok(a.get(&Key::Leader).await?)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_etcd_is_named_and_found_again() -> Result<()> {
    let etcd = Etcd::start(1).await?;
    let a = etcd.session("a").await?;
    let reign = lead(&a).await?;
    etcd.kill(0).await;
    let error = a.keep(reign).await.expect_err("nobody there");
    ensure!(matches!(error, DcsError::Unreachable { .. }), "{error:?}");
    ensure!(error.to_string().contains("efused"), "the reason is told: {error}");
    etcd.spawn(0)?;
    etcd.wait().await?;
    // It has kept its leases, and gives each its full time.
    ensure!(
        eventually("it answers", MINUTE, async || Ok(a.keep(reign).await?)).await?
            == Kept::Mine(reign)
    );
    eventually("the watch goes on", MINUTE, async || {
        ensure!(a.view().is_current());
        Ok(())
    })
    .await?;
    Ok(())
}

/// An attempt to take the key is held back on its way, given up, and made elsewhere. When it arrives at last
/// the key has been released, and it must not take it.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_attempt_takes_nothing() -> Result<()> {
    let etcd = Etcd::start(1).await?;
    let proxies = [Proxy::start(etcd.port(0)).await?, Proxy::start(etcd.port(0)).await?];
    let mut settings = etcd.settings("a");
    settings.endpoints = proxies.iter().map(Proxy::endpoint).collect();
    settings.timing.ttl = Duration::from_secs(20);
    let a = ready(settings).await?;
    for round in 0..6 {
        // The session moves on from the one that is held to the other.
        let proxy = &proxies[round % 2];
        proxy.hold();
        let reign = lead(&a).await?;
        ensure!(a.keep(reign).await? == Kept::Mine(reign));
        ensure!(a.release(reign).await? == Released::Yes);
        proxy.release();
        sleep(Duration::from_millis(200)).await;
        let stands = etcd.raw(&Key::Leader).await?;
        ensure!(stands.is_none(), "round {round}: a late attempt took the key: {stands:?}");
        a.put_member(&member("a", &format!("round {round}"))).await?;
    }
    Ok(())
}
