//! The words of Manyhands: the protobuf messages, the ids, and the one table of errors.
//!
//! This crate holds no behaviour and depends on nothing of ours. What a frame means is in
//! `PROTOCOL.md` and, in the JSON dialect, in `JSON.md` next to the schema; what a document is, in `manyhands-crdt`.

mod code;
mod id;

pub use code::{CODES, Code, Retry};
pub use id::{
    CHAIN_BYTES, Chain, DOCUMENT_NAME_BYTES_MAX, DocumentName, Epoch, Incarnation, InvalidDocumentName,
    NodeId, Offset, PARTITIONS, PartitionId, Position, Seq,
};

/// The messages and services of `manyhands/v1/*.proto`.
#[allow(missing_docs, clippy::large_enum_variant, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("manyhands.v1");
}

/// The WebSocket subprotocol of the binary protocol.
pub const SUBPROTOCOL: &str = "manyhands.v1";

/// The WebSocket subprotocol of the JSON dialect with its extensions; without any, the dialect is the bare one.
pub const JSON_SUBPROTOCOL: &str = "manyhands.json.v1";

/// Another name of [`JSON_SUBPROTOCOL`].
pub const JSON_EXT_SUBPROTOCOL: &str = "manyhands.json.v1.ext";

/// The version of the binary protocol that this build speaks, the oldest and the newest.
pub const PROTOCOL_VERSIONS: (u32, u32) = (1, 1);

/// Heads that an `Open` may name; more are as good as unknown.
pub const HEADS_MAX: usize = 1024;
