use std::sync::Arc;

use bytes::Bytes;
use manyhands_crdt::{Hash, ReplicaId, Strategy};
use manyhands_proto::{Position, Seq};

/// One op as it goes to JSON sessions: encoded once, for all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedOp {
    /// Who wrote.
    pub replica: ReplicaId,
    /// The number of the op.
    pub counter: u64,
    /// Its entry's place in the log.
    pub seq: Seq,
    /// For whom it is.
    pub audience: Audience,
    /// What it says about the key: the frame of the bare dialect.
    pub bare: Bytes,
    /// The same with the extensions.
    pub extended: Bytes,
}

/// Who is sent an op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Every session of the document.
    All,
    /// Only the one that wrote: the op changed nothing, and the frame says what is there instead.
    Author,
}

impl SharedOp {
    pub(crate) fn frame(&self, extended: bool) -> Bytes {
        if extended { self.extended.clone() } else { self.bare.clone() }
    }
}

/// What a run of the log means to JSON sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedOps {
    /// A session that has everything before this may take it.
    pub first: Seq,
    /// What a session has after it.
    pub last: Seq,
    /// The greatest timestamp that the document has seen, in microseconds.
    pub micros_max: u64,
    /// In the order of the log.
    pub ops: Arc<[SharedOp]>,
}

/// The state of the root map, encoded once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedState {
    /// Of what position.
    pub position: Position,
    /// How the document's maps merge.
    pub strategy: Strategy,
    /// The greatest timestamp that the document has seen, in microseconds.
    pub micros_max: u64,
    /// The `init` frame of the bare dialect.
    pub frame: Bytes,
}

/// What a session lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missed {
    /// The keys that changed, as ops.
    Ops(SharedOps),
    /// Too much for that: everything.
    State(SharedState),
}

/// A hash as it is written in `heads`.
pub(super) fn hex(hash: &Hash) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}
