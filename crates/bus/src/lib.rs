//! How a delta reaches every edge: at most once.
//!
//! A bus may drop, repeat and reorder; nothing that depends on it is lost, because every delta carries its
//! document's seqs and every quiet document is announced by tips. What it may not do is block the one who
//! publishes. `conformance` holds each implementation to that.

#[cfg(feature = "conformance")]
pub mod conformance;
mod local;
mod nats;
mod queue;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use manyhands_proto::PartitionId;

pub use local::LocalBus;
pub use nats::{NatsBus, PREFIX};

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
    /// A `manyhands.v1.BusMessage`, of [`MESSAGE_BYTES_MAX`] bytes at most.
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
    /// Hands a message over. Never blocks and never fails: a message that cannot go, or that is larger than
    /// [`MESSAGE_BYTES_MAX`], is dropped and counted.
    fn publish(&self, topic: Topic, message: Message);

    /// When this returns, what is published from now on reaches the subscriber, or is reported as `Lost`,
    /// or is lost together with the connection, which is reported when it is back.
    async fn subscribe(&self, topic: Topic) -> Result<Box<dyn Subscription>, Unavailable>;

    /// Whether messages can go out right now.
    fn is_connected(&self) -> bool;
}

/// The seam as it is handed around.
pub type SharedBus = Arc<dyn DeltaBus>;

/// Largest payload of a message: what a NATS server takes by default, less room for headers. A publisher splits
/// what is larger; what it sends in spite of that is dropped.
pub const MESSAGE_BYTES_MAX: usize = 1_000_000;

/// What one subscriber may leave waiting. What does not fit is dropped and reported as [`Received::Lost`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Messages.
    pub queue_messages_max: usize,
    /// Bytes of payload.
    pub queue_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { queue_messages_max: 4_096, queue_bytes_max: 16 << 20 }
    }
}

/// What opening a bus does when its server cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenAway {
    /// Give up after five seconds.
    Fail,
    /// Return at once and go on trying; [`DeltaBus::is_connected`] tells.
    Retry,
}

/// A bus could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The URL names no bus.
    #[error("not the URL of a bus: {0}")]
    Url(String),
    /// No server answered.
    #[error("{0}")]
    Away(String),
}

/// Opens the bus that a URL names: `nats://host:4222` (several hosts with commas, `?prefix=` for subjects other
/// than `mh.…`) or `local:` for one inside this process.
///
/// # Errors
///
/// The URL names no bus, or no server answers and `when_away` is [`WhenAway::Fail`].
pub async fn open(url: &str, when_away: WhenAway) -> Result<SharedBus, OpenError> {
    match url.split_once(':') {
        Some(("local", "")) => Ok(Arc::new(LocalBus::new(Limits::default()))),
        Some(("nats" | "tls", _)) => Ok(Arc::new(NatsBus::open(url, when_away, Limits::default()).await?)),
        // The URL is not repeated: it may hold a password.
        _ => Err(OpenError::Url("write nats://host:4222, or local: for one process".into())),
    }
}

fn count_published(topic: Topic) {
    metrics::counter!("manyhands_bus_published_total", "topic" => topic.label()).increment(1);
}

/// A message that went nowhere.
fn count_dropped(topic: Topic, why: &'static str) {
    metrics::counter!("manyhands_bus_dropped_total", "topic" => topic.label(), "why" => why).increment(1);
}

/// A message that one subscriber did not get.
fn count_lost(topic: Topic) {
    metrics::counter!("manyhands_bus_lost_total", "topic" => topic.label()).increment(1);
}

impl Topic {
    /// The kind of topic, for metrics: no partition, or there would be 271 series of each.
    fn label(self) -> &'static str {
        match self {
            Topic::Deltas(_) => "deltas",
            Topic::Presence(_) => "presence",
            Topic::Routes => "routes",
        }
    }
}
