//! How a delta reaches every edge: at most once.
//!
//! A bus may drop, repeat and reorder; nothing that depends on it is lost, because every delta carries its
//! document's seqs and every quiet document is announced by tips. What it may not do is block the one who
//! publishes. `conformance` holds each implementation to that.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use manyhands_proto::PartitionId;

/// What a message is about; subscribers choose by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// Deltas and tips of a partition's documents.
    Deltas(PartitionId),
    /// Presence in a partition's documents.
    Presence(PartitionId),
    /// Who owns which partitions.
    Routes,
}

/// A message on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// A `manyhands.v1.BusMessage`.
    pub payload: Bytes,
    /// The W3C trace context of the op that caused it.
    pub traceparent: Option<String>,
}

/// What a subscriber is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A message.
    Message(Message),
    /// Messages were or may have been lost: the subscriber was too slow, or the connection was cut and is
    /// back. Everything that came by this subscription may have a gap.
    Lost,
}

/// A subscription; dropping it ends it.
#[async_trait]
pub trait Subscription: Send {
    /// The next thing; `None` when the bus is closed.
    async fn next(&mut self) -> Option<Received>;
}

/// The bus could not be reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bus is unavailable: {0}")]
pub struct Unavailable(pub String);

/// The seam. At most once; may drop, repeat and reorder.
#[async_trait]
pub trait DeltaBus: Send + Sync + 'static {
    /// Hands a message over. Never blocks and never fails: a message that cannot go is dropped.
    fn publish(&self, topic: Topic, message: Message);

    /// When this returns, what is published from now on reaches the subscriber, or is reported as `Lost`,
    /// or is lost together with the connection, which is reported when it is back.
    async fn subscribe(&self, topic: Topic) -> Result<Box<dyn Subscription>, Unavailable>;

    /// Whether messages can go out right now.
    fn is_connected(&self) -> bool;
}

/// The seam as it is handed around.
pub type SharedBus = Arc<dyn DeltaBus>;
