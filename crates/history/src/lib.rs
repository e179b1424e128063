//! A document's past: the event log, leases, followers and replay.

mod log;

pub use log::{
    AppendError, Appended, BATCH_ENTRIES_MAX, Batch, Call, Cursor, DocumentRecord, Entry, EventLog, Fault,
    Lease, LogError, Member, MemoryLog, Options, Ownership, ReadLimit, SharedLog, Strategy, migrate, open,
};
