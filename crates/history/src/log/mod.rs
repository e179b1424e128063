//! The event log: the only thing that can make an acknowledgement true.
//!
//! The trait states what holds when a call returns; `conformance` holds every implementation to it.
//! Which implementation it is, the URL says: [`open`](crate::open).

mod batch;
mod memory;
mod open;
mod postgres;
mod schema;
mod sqlite;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use manyhands_crdt::{Hash, ReplicaId};
use manyhands_proto::{Chain, DocumentName, Epoch, Incarnation, NodeId, Offset, PartitionId, Seq};

pub use batch::BATCH_ENTRIES_MAX;
pub use manyhands_crdt::Strategy;
pub use memory::{Call, Fault, MemoryLog};
pub use open::{Options, migrate, open};

/// The strategy of a stored document. Documents from before there were maps have the code 0.
fn stored_strategy(code: i64) -> Result<Strategy, LogError> {
    match u8::try_from(code) {
        Ok(0) => Ok(Strategy::Crdt),
        Ok(code) => Strategy::from_code(code)
            .ok_or_else(|| LogError::Corrupt(format!("no strategy has the code {code}"))),
        Err(_) => Err(LogError::Corrupt(format!("no strategy has the code {code}"))),
    }
}

/// A document as the log knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentRecord {
    /// Its name.
    pub name: DocumentName,
    /// Its current history.
    pub incarnation: Incarnation,
    /// How its maps merge.
    pub strategy: Strategy,
}

/// A change with its place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Gapless in the partition. Chosen by the writer as the head plus 1, 2, …
    pub offset: Offset,
    /// Which document, in which history.
    pub incarnation: Incarnation,
    /// Gapless in the incarnation.
    pub seq: Seq,
    /// Who made the change.
    pub replica: ReplicaId,
    /// The subject that the replica belongs to; on the replica's first entry in the incarnation only.
    pub subject: Option<String>,
    /// The replica's counter of the change's first op.
    pub counter: u64,
    /// The newest seq that the author had seen.
    pub base: Seq,
    /// Hash of the change's canonical form.
    pub hash: Hash,
    /// The chain hash after this entry.
    pub chain: Chain,
    /// When the owner admitted it: milliseconds since the Unix epoch, never decreasing in a document.
    pub time_ms: u64,
    /// Format of `body`.
    pub format: u16,
    /// The change, in the change codec's body form.
    pub body: Bytes,
}

/// What one append makes durable: entries of one partition, and the documents that they begin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Documents that have their first entry in this batch.
    pub created: Vec<DocumentRecord>,
    /// In the order of their offsets.
    pub entries: Vec<Entry>,
}

/// The right to write one partition for a while, under an epoch. Only a log makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub(crate) partition: PartitionId,
    pub(crate) epoch: Epoch,
    pub(crate) head: Offset,
    pub(crate) published: Offset,
}

impl Lease {
    /// What may be written.
    #[must_use]
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// The fencing number.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The partition's newest offset when the lease was claimed.
    #[must_use]
    pub fn head(&self) -> Offset {
        self.head
    }

    /// How far the owners before this one are known to have published, when the lease was claimed. What
    /// lies between this and [`head`](Lease::head) is published again.
    #[must_use]
    pub fn published(&self) -> Offset {
        self.published
    }
}

/// The proof that a batch is durable. Only a log makes one, so that nothing can be acknowledged or
/// published that was not appended.
#[derive(Debug)]
#[must_use = "an append that nobody releases is an append that nobody hears of"]
pub struct Appended {
    pub(crate) partition: PartitionId,
    pub(crate) epoch: Epoch,
    pub(crate) head: Offset,
}

impl Appended {
    /// Where it was appended.
    #[must_use]
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// Under which epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The partition's head after it.
    #[must_use]
    pub fn head(&self) -> Offset {
        self.head
    }
}

/// Why a batch was not appended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Another owner has the partition. Forget everything about it; acknowledge nothing.
    #[error("partition {partition} is fenced: epoch {ours} is no longer the newest")]
    Fenced {
        /// Which partition.
        partition: PartitionId,
        /// The epoch of the lease that was used.
        ours: Epoch,
    },
    /// The partition's head is not where its owner left it: the log was rolled back, or something else
    /// wrote to it. Forget everything about the partition and alarm.
    #[error("partition {partition} has head {found} where its owner expected {expected}")]
    Diverged {
        /// Which partition.
        partition: PartitionId,
        /// Where the owner left it.
        expected: Offset,
        /// Where the log has it.
        found: Offset,
    },
    /// The log refused the batch as wrong: a bug in the caller. Nothing of it is durable.
    #[error("the log refused the batch: {0}")]
    Refused(String),
    /// The caller let go before the outcome was known. It may or may not be durable.
    #[error("the outcome of the append is unknown: {0}")]
    Unknown(String),
}

/// The log could not be reached, or not in time; the same call may succeed later.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// No answer.
    #[error("the event log is unavailable: {0}")]
    Unavailable(String),
    /// What is stored does not verify.
    #[error("the event log holds something that does not verify: {0}")]
    Corrupt(String),
    /// The log belongs to something else: another partition count, another schema, another cluster.
    #[error("{0}")]
    Mismatch(String),
    /// The URL names no event log that this program knows how to open.
    #[error("{0}")]
    Url(String),
}

/// How much one read returns at the most.
#[derive(Clone, Copy, Debug)]
pub struct ReadLimit {
    /// Entries.
    pub entries_max: usize,
    /// Bytes of bodies; at least one entry is returned all the same.
    pub bytes_max: usize,
}

/// Who owns a partition, as of now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ownership {
    /// Which.
    pub partition: PartitionId,
    /// The newest epoch; 0 if it was never claimed.
    pub epoch: Epoch,
    /// The holder of a lease that has not run out, and its address.
    pub owner: Option<Member>,
}

/// A node that shares in the partitions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Its name.
    pub node: NodeId,
    /// Where its DocumentService listens, as a URL.
    pub address: String,
}

/// A worker's durable place in a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The follower's name.
    pub follower: String,
    /// The partition that it follows.
    pub partition: PartitionId,
    /// Everything up to here is done.
    pub offset: Offset,
    /// The fencing number under which the follower works.
    pub epoch: Epoch,
}

/// A document's past, durable. Shared by every node of a cluster; see the module for the contract.
///
/// A partition has one lease holder with one append in flight, so commit order is number order, and
/// reading past an offset never skips a late commit.
#[async_trait]
pub trait EventLog: Send + Sync + 'static {
    /// Ends when this log has failed for good, with the reason: what is durable can then only be found out by
    /// opening it again in a new process. A log that can come back never ends this.
    async fn failed(&self) -> LogError {
        std::future::pending().await
    }

    /// Says that this node is alive for `ttl`, and which others are. Returns the live members, this one
    /// included, in order.
    async fn join(&self, member: &Member, ttl: Duration) -> Result<Vec<Member>, LogError>;

    /// Takes the node out of the members at once.
    async fn leave(&self, node: &NodeId) -> Result<(), LogError>;

    /// Who owns what. One row a partition, in order.
    async fn ownership(&self) -> Result<Vec<Ownership>, LogError>;

    /// Claims those of `partitions` whose lease has run out or was released, by the log's own clock.
    /// Each lease that comes back has a new epoch, and every append under an older one has either
    /// committed before `head` or never will.
    async fn claim(
        &self,
        member: &Member,
        partitions: &[PartitionId],
        ttl: Duration,
    ) -> Result<Vec<Lease>, LogError>;

    /// Extends leases. Returns the partitions that are no longer held under the given epoch.
    async fn renew(
        &self,
        node: &NodeId,
        held: &[(PartitionId, Epoch)],
        ttl: Duration,
    ) -> Result<Vec<PartitionId>, LogError>;

    /// Ends leases at once, so that others can claim. Those that are not held under the epoch are left
    /// alone.
    async fn release(&self, held: &[(PartitionId, Epoch)]) -> Result<(), LogError>;

    /// Makes a batch durable: whole, in order, and only while the lease's epoch is the newest and the
    /// head is `expected`. When it returns `Appended`, the batch survives any crash.
    ///
    /// An unknown outcome is repeated as it is until the log answers; dropping the future gives up
    /// waiting, not the statement. One append a partition at a time. The same batch appended again at the
    /// same head is recognized and is `Appended` without a second copy.
    async fn append(&self, lease: &Lease, expected: Offset, batch: &Batch) -> Result<Appended, AppendError>;

    /// Notes that everything up to `offset` was published. Lazy, and may be lost.
    async fn published(&self, lease: &Lease, offset: Offset) -> Result<(), LogError>;

    /// The document of this name, if it has an entry.
    async fn document(&self, name: &DocumentName) -> Result<Option<DocumentRecord>, LogError>;

    /// Entries of an incarnation with a seq above `after`, in order, gapless. Fewer than there are when a
    /// limit is reached; none only at the end.
    async fn read(
        &self,
        partition: PartitionId,
        incarnation: Incarnation,
        after: Seq,
        limit: ReadLimit,
    ) -> Result<Vec<Entry>, LogError>;

    /// The entry that holds the replica's change beginning at `counter`.
    async fn find(
        &self,
        partition: PartitionId,
        incarnation: Incarnation,
        replica: ReplicaId,
        counter: u64,
    ) -> Result<Option<Entry>, LogError>;

    /// Entries of a partition with an offset above `after`, in order, gapless.
    async fn follow(
        &self,
        partition: PartitionId,
        after: Offset,
        limit: ReadLimit,
    ) -> Result<Vec<Entry>, LogError>;

    /// Takes a follower's cursor in a partition for `ttl` if no other node works on it, under a new epoch.
    async fn take_cursor(
        &self,
        follower: &str,
        partition: PartitionId,
        node: &NodeId,
        ttl: Duration,
    ) -> Result<Option<Cursor>, LogError>;

    /// Moves a cursor forward to its `offset` and extends it for `ttl`, from zero, which gives it back.
    /// `false`: another worker has it, or it already stands further on.
    async fn advance(&self, cursor: &Cursor, ttl: Duration) -> Result<bool, LogError>;
}

/// The seam as it is handed around.
pub type SharedLog = Arc<dyn EventLog>;
