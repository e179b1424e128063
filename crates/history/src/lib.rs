//! A document's past: the event log, leases, followers and replay.
//!
//! [`open`] makes an [`EventLog`] from a URL, [`replay`] makes state from its entries, and a [`Follower`]
//! works through a partition. The [`log`](EventLog) is the only thing that can make an acknowledgement
//! true: what was not appended has not happened.

#[cfg(feature = "conformance")]
pub mod conformance;
mod follow;
mod log;
mod replay;

pub use follow::Follower;
pub use log::{
    AppendError, Appended, BATCH_ENTRIES_MAX, Batch, Call, Cursor, DocumentRecord, Entry, EventLog, Fault,
    Lease, LogError, Member, MemoryLog, Options, Ownership, ReadLimit, SharedLog, Strategy, migrate, open,
};
pub use replay::{Author, RECENT_CHANGES, Replay, Standing, chain_after, change_of, replay};
