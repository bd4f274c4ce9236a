//! The lease: renewal, its gate, its end, and its replacement.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leaderpool::patroni::Key;
use leaderpool_agent::dcs::{Acquired, BootTime, DcsError, DcsTiming, Kept, Reign, Session};
use tokio::time::sleep;

use crate::bed::{Etcd, MINUTE, SHORT, eventually, member};

async fn lead(session: &Session) -> Result<Reign> {
    match session.acquire().await? {
        Acquired::Won(reign) => Ok(reign),
        Acquired::Held(key) => anyhow::bail!("held: {key:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn renewals_keep_the_lease_nearly_full() -> Result<()> {
    let etcd = Etcd::start(1).await?;
    let a = etcd.session("a").await?;
    let reign = lead(&a).await?;
    let id = a.lease().state().id;
    let end = BootTime::now().plus(2 * SHORT.ttl);
    while BootTime::now() < end {
        let state = a.lease().state();
        ensure!(state.id == id && state.granted_ttl == SHORT.ttl);
        ensure!(state.is_valid(BootTime::now()), "{state:?}");
        ensure!(state.valid_until <= BootTime::now().plus(SHORT.ttl), "counted from the sending");
        ensure!(a.lease().leadership().until >= state.valid_until.min(BootTime::now()));
        sleep(Duration::from_millis(50)).await;
    }
    ensure!(a.keep(reign).await? == Kept::Mine(reign));
    let before = a.lease().state().valid_until;
    let refreshed = a.refresh_now(MINUTE).await?;
    ensure!(refreshed.valid_until > before);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_gate_ends_the_lease_and_no_sooner_than_counted() -> Result<()> {
    let etcd = Etcd::start(1).await?;
    let (a, b) = (etcd.session("a").await?, etcd.session("b").await?);
    let reign = lead(&a).await?;
    a.lease().allow_renewal_until(BootTime::now());
    ensure!(matches!(a.refresh_now(MINUTE).await, Err(DcsError::NoLease(_))));
    let until = a.lease().leadership().until;
    let of_b = eventually("the lease ends", MINUTE, async || lead(&b).await).await?;
    ensure!(BootTime::now() >= until, "etcd gave the key away before its time");
    ensure!(of_b.create_revision > reign.create_revision);
    // The thawed old leader: its key is another's, and stays so.
    a.lease().allow_renewal_until(BootTime::MAX);
    a.renew_soon();
    let lost = eventually("it answers", MINUTE, async || Ok(a.keep(reign).await?)).await?;
    ensure!(matches!(&lost, Kept::Lost(Some(key)) if key.value == b"b"), "{lost:?}");
    ensure!(a.lease().leadership().until == BootTime::ZERO);
    ensure!(a.reign().is_none());
    let stands = etcd.raw(&Key::Leader).await?.context("a key")?;
    ensure!(stands.value == b"b" && stands.lease == b.lease().state().id);
    // It gets a new lease, and its member key back.
    eventually("a new lease", MINUTE, async || {
        a.put_member(&member("a", "running")).await?;
        Ok(())
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_lease_is_known_at_once_and_the_key_won_back() -> Result<()> {
    let etcd = Etcd::start(1).await?;
    let a = etcd.session("a").await?;
    let reign = lead(&a).await?;
    // Let the watch show the reign, as it would be by the time.
    a.wait_revision(reign.create_revision, MINUTE).await?;
    let id = a.lease().state().id;
    let began = BootTime::now();
    etcd.client().await.lease_revoke(id).await?;
    eventually("the loss is known", SHORT.ttl, async || {
        ensure!(a.lease().leadership().disputed_since.is_some());
        Ok(())
    })
    .await?;
    eprintln!("  known after {:?}", BootTime::now().since(began));
    let leadership = a.lease().leadership();
    ensure!(leadership.ends(Duration::ZERO) < leadership.until);
    ensure!(a.keep(reign).await? == Kept::Lost(None));
    ensure!(a.lease().leadership().until != BootTime::ZERO, "disputed, not ended");
    let again = eventually("won back", MINUTE, async || lead(&a).await).await?;
    ensure!(again.create_revision > reign.create_revision);
    let leadership = a.lease().leadership();
    ensure!(leadership.disputed_since.is_none() && leadership.until > BootTime::now());
    ensure!(a.lease().state().id != id);
    a.put_member(&member("a", "running")).await?;
    ensure!(etcd.raw(&Key::Member("a".into())).await?.context("a key")?.lease != id);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_deleted_by_hand_is_disputed() -> Result<()> {
    let etcd = Etcd::start(1).await?;
    let a = etcd.session("a").await?;
    let reign = lead(&a).await?;
    a.wait_revision(reign.create_revision, MINUTE).await?;
    let id = a.lease().state().id;
    etcd.client().await.delete("/db/c/leader", None).await?;
    eventually("the loss is known", MINUTE, async || {
        ensure!(a.lease().leadership().disputed_since.is_some());
        Ok(())
    })
    .await?;
    ensure!(a.lease().state().id == id, "the lease lives");
    lead(&a).await?;
    ensure!(a.lease().leadership().disputed_since.is_none());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_ttl_is_another_lease_with_the_keys_on_it() -> Result<()> {
    let etcd = Etcd::start(1).await?;
    let a = etcd.session("a").await?;
    let reign = lead(&a).await?;
    let old = a.lease().state();
    let longer = DcsTiming { ttl: Duration::from_secs(20), ..SHORT };
    a.set_timing(longer).await?;
    let new = a.lease().state();
    ensure!(new.id != old.id && new.granted_ttl == longer.ttl);
    for key in [Key::Leader, Key::Member("a".into())] {
        let stands = etcd.raw(&key).await?.context("a key")?;
        ensure!(stands.lease == new.id, "{key}");
    }
    ensure!(
        etcd.raw(&Key::Leader).await?.context("a key")?.create_revision == reign.create_revision
    );
    ensure!(a.lease().leadership().until > BootTime::now().plus(Duration::from_secs(15)));
    // The old one runs out, and takes nothing with it.
    sleep(SHORT.ttl + Duration::from_secs(2)).await;
    ensure!(a.keep(reign).await? == Kept::Mine(reign));
    a.refresh_now(MINUTE).await?;
    ensure!(a.lease().state().id == new.id);
    // The same ttl again changes nothing.
    a.set_timing(DcsTiming { retry_timeout: Duration::from_secs(5), ..longer }).await?;
    ensure!(a.lease().state().id == new.id);
    Ok(())
}
