//! A log that can be made to wait, as a process that was stopped makes everything wait.

use std::time::Duration;

use async_trait::async_trait;
use manyhands_crdt::ReplicaId;
use manyhands_history::{
    AppendError, Appended, Batch, Cursor, DocumentRecord, Entry, EventLog, Lease, LogError, Member,
    Ownership, ReadLimit, SharedLog,
};
use manyhands_proto::{DocumentName, Epoch, Incarnation, NodeId, Offset, PartitionId, Seq};
use tokio::sync::watch;

/// What waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frozen {
    Nothing,
    Everything,
    Appends,
    Documents,
}

/// Another log, seen through a door that can be shut.
pub(crate) struct Door {
    log: SharedLog,
    frozen: watch::Receiver<Frozen>,
}

impl Door {
    pub(crate) fn new(log: SharedLog) -> (Door, watch::Sender<Frozen>) {
        let (freeze, frozen) = watch::channel(Frozen::Nothing);
        (Door { log, frozen }, freeze)
    }

    async fn open(&self, what: Frozen) {
        let mut frozen = self.frozen.clone();
        let shut = |frozen: &Frozen| *frozen == Frozen::Everything || *frozen == what;
        let _gone = frozen.wait_for(|frozen| !shut(frozen)).await;
    }
}

#[async_trait]
impl EventLog for Door {
    async fn join(&self, member: &Member, ttl: Duration) -> Result<Vec<Member>, LogError> {
        self.open(Frozen::Everything).await;
        self.log.join(member, ttl).await
    }

    async fn leave(&self, node: &NodeId) -> Result<(), LogError> {
        self.open(Frozen::Everything).await;
        self.log.leave(node).await
    }

    async fn ownership(&self) -> Result<Vec<Ownership>, LogError> {
        self.open(Frozen::Everything).await;
        self.log.ownership().await
    }

    async fn claim(
        &self,
        member: &Member,
        partitions: &[PartitionId],
        ttl: Duration,
    ) -> Result<Vec<Lease>, LogError> {
        self.open(Frozen::Everything).await;
        self.log.claim(member, partitions, ttl).await
    }

    async fn renew(
        &self,
        node: &NodeId,
        held: &[(PartitionId, Epoch)],
        ttl: Duration,
    ) -> Result<Vec<PartitionId>, LogError> {
        self.open(Frozen::Everything).await;
        self.log.renew(node, held, ttl).await
    }

    async fn release(&self, held: &[(PartitionId, Epoch)]) -> Result<(), LogError> {
        self.open(Frozen::Everything).await;
        self.log.release(held).await
    }

    async fn append(&self, lease: &Lease, expected: Offset, batch: &Batch) -> Result<Appended, AppendError> {
        self.open(Frozen::Appends).await;
        self.log.append(lease, expected, batch).await
    }

    async fn published(&self, lease: &Lease, offset: Offset) -> Result<(), LogError> {
        self.open(Frozen::Everything).await;
        self.log.published(lease, offset).await
    }

    async fn document(&self, name: &DocumentName) -> Result<Option<DocumentRecord>, LogError> {
        self.open(Frozen::Documents).await;
        self.log.document(name).await
    }

    async fn read(
        &self,
        partition: PartitionId,
        incarnation: Incarnation,
        after: Seq,
        limit: ReadLimit,
    ) -> Result<Vec<Entry>, LogError> {
        self.open(Frozen::Everything).await;
        self.log.read(partition, incarnation, after, limit).await
    }

    async fn find(
        &self,
        partition: PartitionId,
        incarnation: Incarnation,
        replica: ReplicaId,
        counter: u64,
    ) -> Result<Option<Entry>, LogError> {
        self.open(Frozen::Everything).await;
        self.log.find(partition, incarnation, replica, counter).await
    }

    async fn follow(
        &self,
        partition: PartitionId,
        after: Offset,
        limit: ReadLimit,
    ) -> Result<Vec<Entry>, LogError> {
        self.open(Frozen::Everything).await;
        self.log.follow(partition, after, limit).await
    }

    async fn take_cursor(
        &self,
        follower: &str,
        partition: PartitionId,
        node: &NodeId,
        ttl: Duration,
    ) -> Result<Option<Cursor>, LogError> {
        self.log.take_cursor(follower, partition, node, ttl).await
    }

    async fn advance(&self, cursor: &Cursor, ttl: Duration) -> Result<bool, LogError> {
        self.log.advance(cursor, ttl).await
    }
}
