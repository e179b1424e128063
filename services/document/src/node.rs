//! The partitions that this node serves, and the way to their mailboxes.

use std::collections::BTreeMap;
use std::sync::RwLock;

use manyhands_bus::SharedBus;
use manyhands_history::SharedLog;
use manyhands_proto::{Code, DocumentName, NodeId, PartitionId, Position, v1};
use tokio::sync::oneshot;

use crate::config::Config;
use crate::request::{Answer, Open, Opened, Read, Refused, Submit, Submitted};

/// A request on its way to a partition's loop.
pub(crate) enum Asked {
    /// Changes.
    Submit(Submit<oneshot::Sender<Answer>>),
    /// A document from a position on.
    Open(Open, oneshot::Sender<Result<Opened, Refused>>),
    /// Entries after a seq.
    Read(Read, oneshot::Sender<Result<(v1::EntryRun, Position), Refused>>),
}

/// What the gRPC face and the writers of one process share.
pub(crate) struct Node {
    id: NodeId,
    config: Config,
    _log: SharedLog,
    _bus: SharedBus,
    routes: RwLock<BTreeMap<PartitionId, v1::Route>>,
}

impl Node {
    pub(crate) fn new(config: Config, log: SharedLog, bus: SharedBus) -> Node {
        let id = NodeId(format!("{}-{:08x}", config.node, rand::random::<u32>()));
        Node { id, config, _log: log, _bus: bus, routes: RwLock::default() }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) async fn submit(&self, submit: Submit<()>) -> Result<Submitted, Refused> {
        Err(self.not_owner(PartitionId::of(&submit.document)))
    }

    pub(crate) async fn ask<A>(
        &self,
        document: &DocumentName,
        _: impl FnOnce(oneshot::Sender<Result<A, Refused>>) -> Asked,
    ) -> Result<A, Refused> {
        Err(self.not_owner(PartitionId::of(document)))
    }

    pub(crate) fn routes(&self) -> Vec<v1::Route> {
        self.routes.read().map(|routes| routes.values().cloned().collect()).unwrap_or_default()
    }

    fn not_owner(&self, partition: PartitionId) -> Refused {
        let owner = self.routes.read().ok().and_then(|routes| routes.get(&partition).cloned());
        Refused { owner, ..Refused::later(Code::NotOwner, 50) }
    }

    pub(crate) async fn run(&self, advertise: String, shutdown: impl Future<Output = ()>) {
        tracing::info!(node = %self.id, %advertise, "serving");
        shutdown.await;
    }
}
