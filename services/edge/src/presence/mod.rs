//! Who else is here: a lane of its own, beside the log and never in it.
//!
//! [`roster`] decides, as a pure machine, what of this node's sessions is told to whom and when. A [`Presence`]
//! is where the nodes leave their sessions' entries for each other, so that one who joins sees at once who is
//! here. Everything in it is a hint: an entry vanishes by itself unless it is put again, a roster may be seconds
//! old, and a store that is lost is filled again by the next heartbeat. Editing never waits for it.

#[cfg(test)]
mod conformance;
mod local;
mod redis;
pub mod roster;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use manyhands_proto::DocumentName;

pub use local::LocalPresence;
pub use redis::RedisPresence;

/// How long an entry lives unless it is put again.
pub const TTL: Duration = Duration::from_secs(30);

/// Largest entry, in bytes.
pub const ENTRY_BYTES_MAX: usize = 4 * 1024;

/// Most entries of one document.
pub const ENTRIES_MAX: usize = 1_000;

/// Longest time that one call may take; after it, the store counts as unavailable.
pub const ANSWER_MAX: Duration = Duration::from_secs(1);

/// An entry was not put.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PutError {
    /// The store does not answer. The next heartbeat tries again.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The document has [`ENTRIES_MAX`] entries of others.
    #[error("the document has {ENTRIES_MAX} sessions with presence already")]
    Full,
    /// The entry is larger than [`ENTRY_BYTES_MAX`].
    #[error("an entry has at most {ENTRY_BYTES_MAX} bytes")]
    TooLarge,
}

/// The presence store does not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the presence store is unavailable: {0}")]
pub struct Unavailable(pub(crate) String);

/// The seam. Entries vanish by themselves; a roster may be seconds old. Every call ends within [`ANSWER_MAX`].
#[async_trait]
pub trait Presence: Send + Sync + 'static {
    /// Puts a session's entry, in place of the one before, for `ttl` from now.
    async fn put(
        &self,
        document: &DocumentName,
        session: &str,
        entry: Bytes,
        ttl: Duration,
    ) -> Result<(), PutError>;

    /// Takes a session's entry away, if there is one.
    async fn remove(&self, document: &DocumentName, session: &str) -> Result<(), Unavailable>;

    /// The sessions of a document and their entries, [`ENTRIES_MAX`] at most, in no order.
    async fn roster(&self, document: &DocumentName) -> Result<Vec<(String, Bytes)>, Unavailable>;
}

/// A URL names no presence store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the URL of a presence store: {0}")]
pub struct InvalidUrl(String);

/// Opens the store that a URL names: `redis://[user:password@]host[:port][/database][?prefix=mh]`, or `local:` for
/// one inside this process. A Redis that is away is no error here: it is looked for with every call.
pub fn open(url: &str) -> Result<Arc<dyn Presence>, InvalidUrl> {
    match url.split_once(':') {
        Some(("local", "")) => Ok(Arc::new(LocalPresence::default())),
        Some(("redis" | "rediss", _)) => Ok(Arc::new(RedisPresence::open(url)?)),
        // The URL is not repeated: it may hold a password.
        _ => Err(InvalidUrl("write redis://host:6379, or local: for one process".into())),
    }
}
