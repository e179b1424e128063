//! A document's past: the event log, leases, followers and replay.

mod log;

pub use log::{
    AppendError, Appended, Batch, Cursor, DocumentRecord, Entry, EventLog, Lease, LogError, Member,
    Ownership, ReadLimit, SharedLog, Strategy,
};
