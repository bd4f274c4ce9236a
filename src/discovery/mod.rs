//! Where the cluster's state is read from.
//!
//! A [`Source`] is a stream of [`Observation`]s: whole snapshots, signs of life, and the news that it
//! does not answer any more. It never ends by itself and never decides anything; what an observation
//! means is for [`topology`](crate::topology) to say.

mod etcd;
mod fixed;
mod http;
mod rest;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use etcd::EtcdSource;
pub use fixed::FixedSource;
pub use http::HttpClient;
pub use rest::RestSource;

use crate::patroni::ClusterSnapshot;
use crate::topology::SourceKind;

/// What a source sees.
#[derive(Debug, Clone)]
pub enum Observation {
    /// The whole cluster, as of now.
    Snapshot(Arc<ClusterSnapshot>),
    /// The source answered, and nothing has changed.
    Contact,
    /// The source does not answer: every endpoint with its reason.
    Lost(String),
}

/// A place where the cluster's state can be read.
pub trait Source: Send + 'static {
    /// What kind of place.
    fn kind(&self) -> SourceKind;

    /// Sends what it sees until `cancel` is cancelled or nobody listens.
    ///
    /// Cancel-safe: it holds nothing but connections.
    fn run(
        self: Box<Self>,
        out: mpsc::Sender<Observation>,
        cancel: CancellationToken,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// Joins `endpoint: reason` pairs into one sentence.
fn join_failures<'a>(failures: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    failures
        .into_iter()
        .map(|(endpoint, reason)| format!("{endpoint}: {reason}"))
        .collect::<Vec<_>>()
        .join("; ")
}
