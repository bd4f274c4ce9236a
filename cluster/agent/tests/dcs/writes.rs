//! Conditional writes, and what the watch tells of them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leaderpool::patroni::{
    FailoverRequest, HistoryLine, Key, Lsn, Status, SyncState, SystemId, Timeline,
};
use leaderpool_agent::dcs::{
    Acquired, Changed, Changes, Initialize, Kept, MemberPut, Released, Seen, ViewChanges,
};
use serde_json::json;

use crate::bed::{Etcd, MINUTE, eventually, member, prefix, ready};

fn won(acquired: Acquired) -> leaderpool_agent::dcs::Reign {
    match acquired {
        Acquired::Won(reign) => reign,
        Acquired::Held(key) => panic!("held: {key:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_one_wins_the_race_and_release_opens_it_again() -> Result<()> {
    let etcd = Etcd::start(1).await?;
    let (a, b) = (etcd.session("a").await?, etcd.session("b").await?);
    let mut last = 0;
    for _ in 0..30 {
        let (first, second) = tokio::join!(a.acquire(), b.acquire());
        let (winner, reign) = match (first?, second?) {
            (Acquired::Won(reign), Acquired::Held(key)) => {
                ensure!(key.value == b"a" && key.create_revision == reign.create_revision);
                (&a, reign)
            }
            (Acquired::Held(key), Acquired::Won(reign)) => {
                ensure!(key.value == b"b" && key.create_revision == reign.create_revision);
                (&b, reign)
            }
            other => anyhow::bail!("{other:?}"),
        };
        ensure!(reign.create_revision > last, "revisions fence");
        last = reign.create_revision;
        ensure!(winner.reign() == Some(reign));
        let leadership = winner.lease().leadership();
        ensure!(leadership.until == winner.lease().state().valid_until, "{leadership:?}");
        ensure!(winner.acquire().await? == Acquired::Won(reign), "it is held, and stays so");
        ensure!(winner.release(reign).await? == Released::Yes);
        ensure!(winner.lease().leadership().until.as_nanos() == 0);
        ensure!(winner.release(reign).await? == Released::WasNotOurs(None));
    }
    a.shutdown().await;
    b.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_an_earlier_run_is_rebound_and_anothers_never() -> Result<()> {
    let etcd = Etcd::start(1).await?;
    let first = etcd.session("a").await?;
    let reign = won(first.acquire().await?);
    first.shutdown().await;
    // The same member, started again within the ttl.
    let again = etcd.session("a").await?;
    let Acquired::Held(key) = again.acquire().await? else { anyhow::bail!("it was held") };
    ensure!(key.value == b"a" && key.lease != again.lease().state().id);
    ensure!(again.rebind(&key).await? == Kept::Mine(reign));
    let stands = etcd.raw(&Key::Leader).await?.context("a key")?;
    ensure!(stands.lease == again.lease().state().id);
    ensure!(stands.create_revision == reign.create_revision);
    // What was seen is no longer what stands: the first run's view of the key is of no use to it.
    let b = etcd.session("b").await?;
    ensure!(matches!(b.rebind(&key).await?, Kept::Lost(Some(_))), "b may not take a's");
    again.release(reign).await?;
    let of_b = won(b.acquire().await?);
    let Kept::Lost(Some(found)) = again.rebind(&key).await? else { anyhow::bail!("not lost") };
    ensure!(found.value == b"b");
    ensure!(
        etcd.raw(&Key::Leader).await?.context("a key")?.create_revision == of_b.create_revision
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaders_writes_end_with_its_reign() -> Result<()> {
    let etcd = Etcd::start(1).await?;
    let (a, b) = (etcd.session("a").await?, etcd.session("b").await?);
    let old = won(a.acquire().await?);
    let status = Status { optime: Lsn(7), ..Status::default() };
    ensure!(matches!(a.put_status(old, &status).await?, Changed::Done(_)));
    let sync = SyncState { leader: Some("a".into()), quorum: 0, sync_standby: Some("b".into()) };
    let Changed::Done(seen) = a.put_sync(old, Seen::NOTHING, Some(&sync)).await? else {
        anyhow::bail!("no sync")
    };
    ensure!(matches!(
        a.put_sync(old, Seen::NOTHING, Some(&sync)).await?,
        Changed::Conflict(Some(_))
    ));
    let line = HistoryLine {
        timeline: Timeline(1),
        switch_lsn: Lsn(99),
        reason: "no recovery target specified".into(),
        at: Some("2026-11-23T13:09:21+00:00".into()),
        new_leader: Some("a".into()),
    };
    a.put_history(old, &[line]).await?;
    a.put_failsafe(old, &[("a".to_owned(), "http://a:8008/patroni".to_owned())].into()).await?;
    a.put_optime(old, Lsn(7)).await?;
    let text = async |key: &Key| -> Result<String> {
        Ok(String::from_utf8(etcd.raw(key).await?.context("a key")?.value)?)
    };
    ensure!(text(&Key::Status).await? == r#"{"optime":7}"#);
    ensure!(text(&Key::Sync).await? == r#"{"leader":"a","quorum":0,"sync_standby":"b"}"#);
    ensure!(text(&Key::Failsafe).await? == r#"{"a":"http://a:8008/patroni"}"#);
    ensure!(text(&Key::OptimeLeader).await? == "7");
    ensure!(text(&Key::History).await?.starts_with(r#"[[1,99,"no recovery"#));

    a.release(old).await?;
    let new = won(b.acquire().await?);
    for change in [
        a.put_status(old, &Status { optime: Lsn(8), ..Status::default() }).await?,
        a.put_sync(old, seen, None).await?,
        a.put_history(old, &[]).await?,
    ] {
        ensure!(
            matches!(&change, Changed::NotLeader(Some(key)) if key.value == b"b"),
            "{change:?}"
        );
    }
    ensure!(text(&Key::Status).await? == r#"{"optime":7}"#);
    ensure!(matches!(b.put_sync(new, seen, None).await?, Changed::Done(Seen::NOTHING)));
    ensure!(etcd.raw(&Key::Sync).await?.is_none());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_anyone_writes_are_compared_with_what_was_seen() -> Result<()> {
    let etcd = Etcd::start(1).await?;
    let (a, b) = (etcd.session("a").await?, etcd.session("b").await?);
    // One of two makes the cluster.
    let (first, second) = tokio::join!(a.claim_initialize(), b.claim_initialize());
    let (maker, claim) = match (first?, second?) {
        (Changed::Done(seen), Changed::Conflict(Some(_))) => (&a, seen),
        (Changed::Conflict(Some(_)), Changed::Done(seen)) => (&b, seen),
        other => anyhow::bail!("{other:?}"),
    };
    ensure!(maker.read().await?.initialize() == Initialize::InProgress);
    ensure!(matches!(maker.put_initialize(claim, SystemId(77)).await?, Changed::Done(_)));
    let read = maker.read().await?;
    ensure!(read.initialize() == Initialize::Done(SystemId(77)));
    ensure!(read.key(&Key::Initialize).context("a key")?.lease == 0, "it outlives its maker");
    ensure!(matches!(maker.delete_initialize(claim).await?, Changed::Conflict(Some(_))));

    let Changed::Done(seen) = a.put_config(Seen::NOTHING, &json!({"ttl": 30})).await? else {
        anyhow::bail!("no config")
    };
    ensure!(matches!(b.put_config(seen, &json!({"ttl": 20})).await?, Changed::Done(_)));
    ensure!(matches!(a.put_config(seen, &json!({"ttl": 40})).await?, Changed::Conflict(Some(_))));

    let wish = FailoverRequest { member: Some("b".into()), ..FailoverRequest::default() };
    let Changed::Done(seen) = a.put_failover(Seen::NOTHING, &wish).await? else {
        anyhow::bail!("no request")
    };
    ensure!(a.read().await?.cluster.failover == Some(wish));
    ensure!(matches!(a.clear_failover(seen).await?, Changed::Done(_)));
    ensure!(matches!(a.clear_failover(seen).await?, Changed::Conflict(_)));
    ensure!(etcd.raw(&Key::Failover).await?.context("never deleted")?.value == b"{}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_member_key_is_written_when_it_must_be() -> Result<()> {
    let etcd = Etcd::start(1).await?;
    let a = etcd.session("a").await?;
    let running = member("a", "running");
    ensure!(a.put_member(&running).await? == MemberPut::Unchanged);
    ensure!(a.put_member(&member("a", "stopped")).await? == MemberPut::Written);
    let key = Key::Member("a".into());
    let stands = etcd.raw(&key).await?.context("a key")?;
    ensure!(stands.lease == a.lease().state().id);
    a.wait_revision(stands.mod_revision, MINUTE).await?;
    // Somebody deletes it, and somebody of the same name writes it.
    etcd.client().await.delete(prefix().key(&key), None).await?;
    eventually("it is put again", MINUTE, async || {
        ensure!(a.put_member(&member("a", "stopped")).await? == MemberPut::Written);
        Ok(())
    })
    .await?;
    etcd.client().await.put(prefix().key(&key), "{}", None).await?;
    eventually("it is replaced", MINUTE, async || {
        let put = a.put_member(&member("a", "stopped")).await?;
        ensure!(matches!(&put, MemberPut::Replaced(key) if key.value == b"{}"), "{put:?}");
        Ok(())
    })
    .await?;
    // A race whose outcome was unknown ends with the member key: deleting the key by hand does not stop it.
    etcd.client().await.delete(prefix().key(&key), None).await?;
    won(a.acquire().await?);
    Ok(())
}

async fn next(changes: &mut ViewChanges, of: impl Fn(&Changes) -> bool) -> Result<Changes> {
    let wait = async {
        loop {
            let (_, change) = changes.next().await.context("the session ended")?;
            if of(&change) {
                return anyhow::Ok(change);
            }
        }
    };
    tokio::time::timeout(MINUTE, wait).await.context("the watch says nothing")?
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watch_wakes_with_a_reason() -> Result<()> {
    let etcd = Etcd::start(1).await?;
    let (a, b) = (etcd.session("a").await?, etcd.session("b").await?);
    let mut changes = b.changes();
    next(&mut changes, |change| change.members.contains(&"a".to_owned())).await?;
    let reign = won(a.acquire().await?);
    next(&mut changes, |change| change.leader_changed).await?;
    let view = b.view();
    ensure!(view.is_current() && view.leader().context("a leader")?.value == b"a");
    ensure!(view.cluster.leader.as_ref().context("a leader")?.revision == reign.create_revision);
    a.put_config(Seen::NOTHING, &json!({"ttl": 30})).await?;
    next(&mut changes, |change| change.config && !change.leader_changed).await?;
    a.put_failover(Seen::NOTHING, &FailoverRequest::default()).await?;
    next(&mut changes, |change| change.failover).await?;
    a.put_status(reign, &Status::default()).await?;
    next(&mut changes, |change| change.status).await?;
    a.release(reign).await?;
    next(&mut changes, |change| change.leader_deleted).await?;
    let proven = b.proven_at();
    eventually("silence is proven", MINUTE, async || {
        ensure!(b.proven_at() > proven);
        Ok(())
    })
    .await?;
    a.shutdown().await;
    next(&mut changes, |change| change.members_gone == ["a"]).await?;
    b.shutdown().await;
    ensure!(changes.next().await.is_none(), "it ends with the session");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn compacted_history_is_read_anew() -> Result<()> {
    let etcd = Etcd::start(1).await?;
    let proxy = crate::proxy::Proxy::start(etcd.port(0)).await?;
    let mut settings = etcd.settings("a");
    settings.endpoints = vec![proxy.endpoint()];
    // The watch is asked for only after the history before it is gone.
    proxy.hold_requests_after("/db/c/marker");
    let mut client = etcd.client().await;
    client.put("/db/c/marker", "1", None).await?;
    let session = leaderpool_agent::dcs::Session::start(settings)?;
    proxy.wait_held().await?;
    client.put("/db/c/leader", "x", None).await?;
    let last = client.put("/db/c/leader", "y", None).await?;
    let revision = last.header().context("a header")?.revision();
    client.compact(revision, None).await?;
    proxy.release();
    let view = session.wait_revision(revision, MINUTE).await?;
    ensure!(view.leader().context("a leader")?.value == b"y");
    client.put("/db/c/leader", "z", None).await?;
    session.wait_revision(revision + 1, Duration::from_secs(20)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_session_at_two_endpoints_of_which_one_is_dead() -> Result<()> {
    let etcd = Etcd::start(1).await?;
    let mut settings = etcd.settings("a");
    // Nothing listens on port 1.
    settings.endpoints.insert(0, "http://127.0.0.1:1".into());
    let a = ready(settings).await?;
    for _ in 0..20 {
        won(a.acquire().await?);
    }
    Ok(())
}
