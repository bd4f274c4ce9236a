//! Each key and how it is written.

use std::collections::BTreeMap;

use etcd_client::Client;
use leaderpool::patroni::{
    FailoverRequest, HistoryLine, Key, Lsn, Member, RawKey, Status, SyncState, SystemId,
    write_history,
};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::clock::BootTime;
use super::error::DcsError;
use super::request::{Request, raw_key};
use super::session::Session;
use super::writes::{
    Acquire, AcquireVerdict, Acquired, Change, Changed, Kept, Rebind, Reign, Release, Released,
    Seen,
};

/// How often a write is repeated that is based on nothing but the key's own last state.
const ROUNDS: usize = 5;

/// Our member key as we know it.
#[derive(Debug, Default)]
pub(super) struct OwnMember {
    seen: Option<Seen>,
    value: Vec<u8>,
    lease: i64,
    /// Some attempt to take the leader key has an unknown outcome: see [`Acquire`].
    fence_due: bool,
}

/// What came of putting the member key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberPut {
    /// It says this already, on this lease; nothing was written.
    Unchanged,
    /// It was written.
    Written,
    /// It was written over what somebody else had written since: another process of the same name, unless
    /// it is an earlier run of this one. This is what stood there.
    Replaced(RawKey),
}

/// The leader key.
impl Session {
    /// Takes the leader key, where there is none. Of all that race for it exactly one wins. The member key
    /// is to be put before.
    ///
    /// # Errors
    /// [`DcsError::NoLease`] without a live lease. Where the error
    /// [may have been applied](DcsError::maybe_applied), the key may be ours; then the next [`acquire`]
    /// finds it so, unless the lease ran out, and from the next [`put_member`](Self::put_member) on no
    /// attempt that is still under way can take it any more.
    ///
    /// [`acquire`]: Self::acquire
    pub async fn acquire(&self) -> Result<Acquired, DcsError> {
        let deadline = self.deadline();
        let mut own = self.own_member(deadline).await?;
        if own.fence_due && !own.value.is_empty() {
            self.write_member(&mut own, deadline).await?;
        }
        let mut guard = own.seen.unwrap_or_default();
        for _ in 0..ROUNDS {
            let lease = self.lease_id()?;
            let acquire = Acquire { names: &self.names, lease, guard };
            let answer = match self.send(&acquire.request(), deadline).await {
                Ok((answer, after_unknown)) => {
                    own.fence_due |= after_unknown;
                    answer
                }
                Err(error) => {
                    own.fence_due |= error.maybe_applied();
                    return Err(error);
                }
            };
            match acquire.judge(&answer) {
                AcquireVerdict::Won(reign) => {
                    self.reigns(reign, lease);
                    return Ok(Acquired::Won(reign));
                }
                AcquireVerdict::Held(key) => {
                    self.reigns_not();
                    return Ok(Acquired::Held(key));
                }
                AcquireVerdict::Guarded(seen) => guard = seen,
            }
        }
        Err(self.never_still(&self.names.member))
    }

    /// Whether the leader key is still ours, by a linearizable read. Where it hangs on an earlier lease of
    /// ours it is hung on the present one, if it is still what was read: a key that another has taken
    /// meanwhile is never written.
    ///
    /// [`Kept::Lost`] with no key there leaves the leadership [disputed](super::Leadership) rather than
    /// ended: [`acquire`](Self::acquire) at once, or stop the server.
    ///
    /// # Errors
    /// Where etcd does not answer, or there is no lease to hang it on. Leadership then goes on for as long
    /// as it counts anyway.
    pub async fn keep(&self, reign: Reign) -> Result<Kept, DcsError> {
        let deadline = self.deadline();
        let found = self.get_within(&Key::Leader, deadline).await?;
        match found {
            Some(key)
                if key.value == self.names.me.as_bytes()
                    && key.create_revision == reign.create_revision =>
            {
                let lease = self.lease_id()?;
                if self.names.mine(&key, lease).is_some() {
                    self.reigns(reign, lease);
                    return Ok(Kept::Mine(reign));
                }
                self.rebind_within(&key, deadline).await
            }
            other => Ok(self.lost(other)),
        }
    }

    /// Hangs the leader key `seen` on our lease: one that names us from an earlier run of this process. It
    /// is written only while it is still exactly that key.
    ///
    /// # Errors
    /// Where etcd does not answer, or there is no lease.
    pub async fn rebind(&self, seen: &RawKey) -> Result<Kept, DcsError> {
        if seen.value != self.names.me.as_bytes() {
            return Ok(Kept::Lost(Some(seen.clone())));
        }
        self.rebind_within(seen, self.deadline()).await
    }

    async fn rebind_within(&self, seen: &RawKey, deadline: Instant) -> Result<Kept, DcsError> {
        let lease = self.lease_id()?;
        let rebind = Rebind { names: &self.names, lease, seen };
        let (answer, _) = self.send(&rebind.request(), deadline).await?;
        match rebind.judge(&answer) {
            Kept::Mine(reign) => {
                self.reigns(reign, lease);
                Ok(Kept::Mine(reign))
            }
            Kept::Lost(found) => Ok(self.lost(found)),
        }
    }

    /// Gives the leader key up, if it is still that of this reign. The server must not be writable any more.
    ///
    /// # Errors
    /// Where etcd does not answer; the key then goes with the lease at the latest, if that is not renewed.
    pub async fn release(&self, reign: Reign) -> Result<Released, DcsError> {
        let deadline = self.deadline();
        // An attempt to take the key that is still under way must not take it again.
        let half = Instant::now() + self.links.timing().retry_timeout / 2;
        let mut own = self.own_member(half).await?;
        if own.fence_due
            && !own.value.is_empty()
            && let Err(error) = self.write_member(&mut own, half).await
        {
            tracing::warn!(%error, "releasing the leader key without its fence");
        }
        drop(own);
        // The watch is not to take the deletion for a loss.
        let before = self.reign.send_replace(None);
        let release = Release { names: &self.names, reign };
        match self.send(&release.request(), deadline).await {
            Ok((answer, after_unknown)) => {
                self.cell.unbind_leader();
                Ok(release.judge(&answer, after_unknown))
            }
            Err(error) => {
                self.reign.send_replace(before);
                Err(error)
            }
        }
    }

    /// Ends the leadership on this side only: the server is stopped, whatever the key says.
    pub fn abdicate(&self) {
        self.reigns_not();
    }

    fn reigns(&self, reign: Reign, lease: i64) {
        self.cell.bind_leader(lease);
        self.reign.send_replace(Some(reign));
    }

    fn reigns_not(&self) {
        self.cell.unbind_leader();
        self.reign.send_replace(None);
    }

    fn lost(&self, found: Option<RawKey>) -> Kept {
        match &found {
            // Another may lead already.
            Some(_) => self.reigns_not(),
            None => {
                self.cell.dispute(BootTime::now());
                self.reign.send_replace(None);
            }
        }
        Kept::Lost(found)
    }
}

/// Keys of this member.
impl Session {
    /// Puts the member key, on our lease, where it does not say this already.
    ///
    /// # Errors
    /// Where etcd does not answer, or there is no lease.
    pub async fn put_member(&self, member: &Member) -> Result<MemberPut, DcsError> {
        let value = json(member);
        let deadline = self.deadline();
        let lease = self.lease_id()?;
        let mut own = self.own_member(deadline).await?;
        if own.value == value && own.lease == lease && !own.fence_due && self.still_stands(&own) {
            return Ok(MemberPut::Unchanged);
        }
        own.value = value;
        self.write_member(&mut own, deadline).await
    }

    /// Puts it as it was put last, if it was.
    pub(super) async fn put_member_again(&self) -> Result<(), DcsError> {
        let deadline = self.deadline();
        let mut own = self.own_member(deadline).await?;
        if !own.value.is_empty() {
            self.write_member(&mut own, deadline).await?;
        }
        Ok(())
    }

    async fn write_member(
        &self,
        own: &mut OwnMember,
        deadline: Instant,
    ) -> Result<MemberPut, DcsError> {
        let mut replaced = None;
        let mut seen = own.seen.take();
        for _ in 0..ROUNDS {
            let lease = self.lease_id()?;
            let change = Change {
                names: &self.names,
                key: self.names.member.clone(),
                seen: Some(seen.unwrap_or_default()),
                value: Some(own.value.clone()),
                lease,
                reign: None,
            };
            let (answer, after_unknown) = self.send(&change.request(), deadline).await?;
            match change.judge(&answer, after_unknown) {
                Changed::Done(now) => {
                    *own = OwnMember {
                        seen: Some(now),
                        value: std::mem::take(&mut own.value),
                        lease,
                        fence_due: false,
                    };
                    return Ok(replaced.map_or(MemberPut::Written, MemberPut::Replaced));
                }
                Changed::Conflict(found) | Changed::NotLeader(found) => {
                    seen = Some(Seen::of(found.as_ref()));
                    // One on our own lease is our own, of an attempt that got no answer.
                    replaced = replaced.or(found.filter(|key| key.lease != lease));
                }
            }
        }
        Err(self.never_still(&self.names.member))
    }

    /// As far as the watch tells.
    fn still_stands(&self, own: &OwnMember) -> bool {
        let (Some(seen), view) = (own.seen, self.view()) else { return false };
        view.revision < seen.mod_revision || view.seen(&Key::Member(self.names.me.clone())) == seen
    }

    async fn own_member(
        &self,
        deadline: Instant,
    ) -> Result<tokio::sync::MutexGuard<'_, OwnMember>, DcsError> {
        // Whoever holds it is bound by a deadline as well.
        timeout_at(deadline, self.own.lock()).await.map_err(|_| DcsError::TimedOut {
            waited: self.links.timing().retry_timeout,
            failures: vec![("this session".into(), "another write is under way".into())],
            maybe_applied: false,
        })
    }
}

/// Keys of the cluster, that anyone may write.
impl Session {
    /// Claims the making of the cluster: `initialize` is made, empty, where there is none.
    /// [`Changed::Done`] to the one who may; everyone else gets the key that stands there.
    ///
    /// The claim hangs on our lease, which tells it from another's after an attempt of unknown outcome, and
    /// takes it away where its maker dies; the identifier that [replaces](Self::put_initialize) it does not.
    ///
    /// # Errors
    /// Where etcd does not answer, or there is no lease.
    pub async fn claim_initialize(&self) -> Result<Changed, DcsError> {
        let key = self.links.settings().prefix.key(&Key::Initialize);
        let change = Change {
            names: &self.names,
            key,
            seen: Some(Seen::NOTHING),
            value: Some(Vec::new()),
            lease: self.lease_id()?,
            reign: None,
        };
        let (answer, after_unknown) = self.send(&change.request(), self.deadline()).await?;
        Ok(change.judge(&answer, after_unknown))
    }

    /// Writes the system identifier, over the claim or whatever was seen there.
    ///
    /// # Errors
    /// Where etcd does not answer.
    pub async fn put_initialize(&self, seen: Seen, id: SystemId) -> Result<Changed, DcsError> {
        self.change(Key::Initialize, Some(seen), Some(id.to_string().into_bytes()), None).await
    }

    /// Takes the claim back, after the making of the cluster failed.
    ///
    /// # Errors
    /// Where etcd does not answer.
    pub async fn delete_initialize(&self, seen: Seen) -> Result<Changed, DcsError> {
        self.change(Key::Initialize, Some(seen), None, None).await
    }

    /// Writes the dynamic configuration, if it is still as it was seen.
    ///
    /// # Errors
    /// Where etcd does not answer.
    pub async fn put_config(&self, seen: Seen, config: &Value) -> Result<Changed, DcsError> {
        self.change(Key::Config, Some(seen), Some(json(config)), None).await
    }

    /// Asks for a switchover or failover, if the key is still as it was seen.
    ///
    /// # Errors
    /// Where etcd does not answer.
    pub async fn put_failover(
        &self,
        seen: Seen,
        request: &FailoverRequest,
    ) -> Result<Changed, DcsError> {
        self.change(Key::Failover, Some(seen), Some(json(request)), None).await
    }

    /// Clears the request that was seen, by writing `{}`.
    ///
    /// # Errors
    /// Where etcd does not answer.
    pub async fn clear_failover(&self, seen: Seen) -> Result<Changed, DcsError> {
        self.change(Key::Failover, Some(seen), Some(b"{}".to_vec()), None).await
    }

    /// Reads one key, linearizably. Cancel-safe.
    ///
    /// # Errors
    /// Where etcd does not answer.
    pub async fn get(&self, key: &Key) -> Result<Option<RawKey>, DcsError> {
        self.get_within(key, self.deadline()).await
    }
}

/// Keys that the leader writes. Each is written only while the leader key shows the reign, and so never
/// after another took over, even where etcd carries it out late.
impl Session {
    /// The position, and the slots.
    ///
    /// # Errors
    /// Where etcd does not answer.
    pub async fn put_status(&self, reign: Reign, status: &Status) -> Result<Changed, DcsError> {
        self.change(Key::Status, None, Some(json(status)), Some(reign)).await
    }

    /// The position in the key of Patroni before 2.1, for clusters with such a member.
    ///
    /// # Errors
    /// Where etcd does not answer.
    pub async fn put_optime(&self, reign: Reign, position: Lsn) -> Result<Changed, DcsError> {
        let value = position.0.to_string().into_bytes();
        self.change(Key::OptimeLeader, None, Some(value), Some(reign)).await
    }

    /// The synchronous state, if it is still as it was seen; `None` deletes it.
    ///
    /// # Errors
    /// Where etcd does not answer. Until a later read says so, neither state may be relied on.
    pub async fn put_sync(
        &self,
        reign: Reign,
        seen: Seen,
        state: Option<&SyncState>,
    ) -> Result<Changed, DcsError> {
        self.change(Key::Sync, Some(seen), state.map(json), Some(reign)).await
    }

    /// The switch points.
    ///
    /// # Errors
    /// Where etcd does not answer.
    pub async fn put_history(
        &self,
        reign: Reign,
        lines: &[HistoryLine],
    ) -> Result<Changed, DcsError> {
        let value = write_history(lines).into_bytes();
        self.change(Key::History, None, Some(value), Some(reign)).await
    }

    /// The members to ask when etcd is gone: names and URLs of their REST APIs.
    ///
    /// # Errors
    /// Where etcd does not answer.
    pub async fn put_failsafe(
        &self,
        reign: Reign,
        members: &BTreeMap<String, String>,
    ) -> Result<Changed, DcsError> {
        self.change(Key::Failsafe, None, Some(json(members)), Some(reign)).await
    }
}

impl Session {
    async fn change(
        &self,
        key: Key,
        seen: Option<Seen>,
        value: Option<Vec<u8>>,
        reign: Option<Reign>,
    ) -> Result<Changed, DcsError> {
        let key = self.links.settings().prefix.key(&key);
        let change = Change { names: &self.names, key, seen, value, lease: 0, reign };
        let (answer, after_unknown) = self.send(&change.request(), self.deadline()).await?;
        Ok(change.judge(&answer, after_unknown))
    }

    async fn send(
        &self,
        request: &Request,
        deadline: Instant,
    ) -> Result<(super::request::Answer, bool), DcsError> {
        match self.links.call(deadline, |client: Client| request.send(client)).await {
            Ok(answered) => Ok((answered.value, answered.after_unknown)),
            Err(error) => {
                if matches!(error, DcsError::NoLease(_)) {
                    self.doubt_lease();
                }
                Err(error)
            }
        }
    }

    async fn get_within(&self, key: &Key, deadline: Instant) -> Result<Option<RawKey>, DcsError> {
        let name = self.links.settings().prefix.key(key);
        let answer = self.links.ask(deadline, async |mut client: Client| {
            let answer = client.get(name.as_str(), None).await?;
            Ok(answer.kvs().first().map(raw_key))
        });
        answer.await
    }

    fn never_still(&self, key: &str) -> DcsError {
        DcsError::Refused {
            endpoint: "this session".into(),
            reason: format!(
                "{key} was changed by somebody else {ROUNDS} times in a row: does another agent run as {}?",
                self.names.me
            ),
        }
    }
}

/// Compact, as Patroni writes it.
fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("these types have text keys and no failing serializers")
}
