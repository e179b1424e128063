//! What a document is: a sequence CRDT, its changes and its bytes.
//!
//! A [`Document`] holds named texts. Every character has an identity, an [`OpId`], that it keeps for
//! ever; two replicas that hold the same changes hold the same text, in whatever order the changes
//! came. The crate is pure: no clock, no randomness, no threads, no input or output.
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

mod body;
mod change;
mod check;
mod columns;
mod document;
mod edit;
mod error;
mod id;
mod keystroke;
mod receive;
mod record;
mod sequence;
mod snapshot;
mod text;
mod wire;

pub use change::{BODY_FORMAT, Change, ChangeRef};
pub use document::{Applied, Document, Limits};
pub use edit::Edit;
pub use error::{EditError, Flaw, Malformed, Refusal};
pub use id::{Hash, OpId, ReplicaId, VersionVector};
pub use receive::Patch;
pub use record::{Entries, EntryRef, EntryWriter, PushChanges, PushWriter, read_entries, read_push};
pub use text::{Anchor, Bias, Text};

#[cfg(test)]
mod tests;
