//! A list of hosts: every member is known beforehand, and the servers alone say who leads.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Observation, Source};
use crate::config::{ConfigError, FixedConfig};
use crate::patroni::{ClusterSnapshot, Member, ServerAddress};
use crate::topology::SourceKind;

/// The hosts of the configuration as a source that never changes.
pub struct FixedSource {
    snapshot: Arc<ClusterSnapshot>,
}

impl FixedSource {
    /// A source for these hosts.
    ///
    /// # Errors
    /// Where an entry is not `host[:port]`.
    pub fn new(config: &FixedConfig) -> Result<Self, ConfigError> {
        let mut snapshot = ClusterSnapshot::default();
        for host in &config.hosts {
            let address = ServerAddress::from_host_port(host)
                .map_err(|why| ConfigError::field("fixed.hosts", format!("{host:?}: {why}")))?;
            snapshot.members.insert(address.to_string(), Member::at(&address));
        }
        Ok(Self { snapshot: Arc::new(snapshot) })
    }
}

impl Source for FixedSource {
    fn kind(&self) -> SourceKind {
        SourceKind::Fixed
    }

    fn run(
        self: Box<Self>,
        out: mpsc::Sender<Observation>,
        cancel: CancellationToken,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            if out.send(Observation::Snapshot(self.snapshot)).await.is_ok() {
                cancel.cancelled().await;
            }
        })
    }
}
