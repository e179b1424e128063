//! What a document is: texts and maps that merge, their changes and their bytes.
//!
//! A [`Document`] holds named texts and named maps. In a text every character has an identity, an [`OpId`], that it keeps for
//! ever; two replicas that hold the same changes hold the same text, in whatever order the changes
//! came. A map's keys hold JSON values; how concurrent writes to one key merge is
//! the document's [`Strategy`]. The crate is pure: no clock, no randomness, no threads, no input or output.
//!
//! `INTERNALS.md` beside this crate explains the order of concurrent insertions, the structure in
//! memory and every byte of the codecs.
//!
//! ```
//! use manyhands_crdt::{ChangeRef, Document, ReplicaId};
//!
//! let mut ann = Document::new();
//! let mut edit = ann.edit(ReplicaId(7));
//! edit.insert("page", 0, "Hello").unwrap();
//! let change = edit.commit(0).unwrap();
//!
//! let mut server = Document::new();
//! server.apply(change.as_ref()).unwrap();
//! assert_eq!(server.text("page").unwrap().to_string(), "Hello");
//! assert_eq!(server.state_hash(), ann.state_hash());
//! ```

#![deny(missing_docs)]

mod body;
mod change;
mod check;
mod columns;
mod document;
mod edit;
mod error;
mod heads;
mod id;
mod idle;
mod keystroke;
mod map;
mod pending;
mod receive;
mod record;
mod sequence;
mod snapshot;
mod text;
mod wire;

pub use change::{BODY_FORMAT, Change, ChangeRef};
pub use document::{Admission, Applied, Document, Limits};
pub use edit::Edit;
pub use error::{Conflict, EditError, Flaw, Malformed, Refusal};
pub use heads::Heads;
pub use id::{Hash, OpId, ReplicaId, VersionVector};
pub use idle::IdleDocument;
pub use map::{
    Clock, Hlc, JSON_DEPTH_MAX, JsonFlaw, JsonProblem, KEY_BYTES_MAX, MAP_NAME_BYTES_MAX, MapOp, MapValue,
    MapView, Strategy, UnknownStrategy, canonical_json, map_change_body, read_map_ops,
};
pub use receive::Patch;
pub use record::{Entries, EntryRef, EntryWriter, PushChanges, PushWriter, read_entries, read_push};
pub use text::{Anchor, Bias, Text};

/// Runs the history that some bytes say and panics when the document and its specification disagree.
#[cfg(fuzzing)]
pub fn fuzz_history(bytes: &[u8]) {
    tests::run_bytes(bytes);
}

#[cfg(any(test, fuzzing))]
mod tests;
