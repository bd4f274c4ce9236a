//! One conditional write, as data: what must hold, what is then done, what is looked at otherwise.
//!
//! Every write of the session is one of these, so that a model of etcd can carry them out in tests.

use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse,
};
use leaderpool::patroni::RawKey;

/// What must hold of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cond {
    /// It was made at this revision; 0: it is not there.
    Created(String, i64),
    /// It was last written at this revision; 0: it is not there.
    Modified(String, i64),
    /// It is there and holds this.
    Holds(String, Vec<u8>),
    /// It hangs on this lease.
    Leased(String, i64),
}

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Op {
    Put { key: String, value: Vec<u8>, lease: i64 },
    Delete { key: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) when: Vec<Cond>,
    pub(super) then: Op,
    /// The keys to read where the conditions do not hold.
    pub(super) look: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// Whether the conditions held and the write was done.
    pub(super) done: bool,
    /// The store's revision with it.
    pub(super) revision: i64,
    /// The keys of `look`, in its order, where it was not done.
    pub(super) found: Vec<Option<RawKey>>,
}

impl Answer {
    /// The key looked at in place `index`.
    pub(super) fn found(&self, index: usize) -> Option<&RawKey> {
        self.found.get(index)?.as_ref()
    }
}

impl Request {
    /// Carries it out at one endpoint.
    pub(super) async fn send(&self, mut client: Client) -> Result<Answer, etcd_client::Error> {
        let when: Vec<Compare> = self.when.iter().map(Cond::to_compare).collect();
        let then = match &self.then {
            Op::Put { key, value, lease } => {
                let options = (*lease != 0).then(|| PutOptions::new().with_lease(*lease));
                TxnOp::put(key.as_str(), value.clone(), options)
            }
            Op::Delete { key } => TxnOp::delete(key.as_str(), None::<DeleteOptions>),
        };
        let look: Vec<TxnOp> = self.look.iter().map(|key| TxnOp::get(key.as_str(), None)).collect();
        let answer = client.txn(Txn::new().when(when).and_then([then]).or_else(look)).await?;
        let found = match answer.succeeded() {
            true => Vec::new(),
            false => answer
                .op_responses()
                .iter()
                .map(|response| match response {
                    TxnOpResponse::Get(get) => get.kvs().first().map(raw_key),
                    _ => None,
                })
                .collect(),
        };
        Ok(Answer {
            done: answer.succeeded(),
            revision: answer.header().map_or(0, etcd_client::ResponseHeader::revision),
            found,
        })
    }
}

impl Cond {
    fn to_compare(&self) -> Compare {
        match self {
            Cond::Created(key, at) => Compare::create_revision(key.as_str(), CompareOp::Equal, *at),
            Cond::Modified(key, at) => Compare::mod_revision(key.as_str(), CompareOp::Equal, *at),
            Cond::Holds(key, value) => {
                Compare::value(key.as_str(), CompareOp::Equal, value.clone())
            }
            Cond::Leased(key, lease) => Compare::lease(key.as_str(), CompareOp::Equal, *lease),
        }
    }
}

pub(super) fn raw_key(kv: &KeyValue) -> RawKey {
    RawKey {
        key: String::from_utf8_lossy(kv.key()).into_owned(),
        value: kv.value().to_vec(),
        create_revision: kv.create_revision(),
        mod_revision: kv.mod_revision(),
        lease: kv.lease(),
    }
}
