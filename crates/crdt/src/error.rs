//! What can be wrong with bytes, with a change, and with an edit.

use crate::id::{OpId, ReplicaId};
use crate::map::{JsonFlaw, JsonProblem};

/// Bytes that no correct writer makes.
///
/// ```
/// use manyhands_crdt::{Document, Flaw, Malformed};
///
/// let flawed = Document::decode(b"not a document, whatever it is").unwrap_err();
/// assert_eq!(flawed, Malformed { offset: 0, flaw: Flaw::UnknownFormat });
/// assert_eq!(flawed.to_string(), "malformed at byte 0: unknown format");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed at byte {offset}: {flaw}")]
pub struct Malformed {
    /// Where in the bytes that were given.
    pub offset: usize,
    /// What is wrong there.
    pub flaw: Flaw,
}

/// What is wrong with some bytes.
///
/// ```
/// use manyhands_crdt::{Document, Flaw};
///
/// let mut saved = Document::new().encode();
/// saved[5] ^= 1;
/// assert_eq!(Document::decode(&saved).unwrap_err().flaw, Flaw::Checksum);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Flaw {
    /// More bytes were expected.
    #[error("the bytes end too early")]
    Truncated,
    /// Bytes are left over.
    #[error("bytes are left over at the end")]
    TrailingBytes,
    /// A varint is longer than it need be, or does not fit.
    #[error("a number is not in its shortest form or too large")]
    Varint,
    /// An op kind of a later format, or reserved bits that are set.
    #[error("unknown kind of op")]
    UnknownOp,
    /// The format's number is not known here.
    #[error("unknown format")]
    UnknownFormat,
    /// The content of an insertion or a name is not UTF-8.
    #[error("text is not UTF-8")]
    Utf8,
    /// An insertion of nothing or a deletion of nothing.
    #[error("an op without effect")]
    Empty,
    /// The same could be said in a shorter way, and only the shortest is accepted.
    #[error("not in canonical form")]
    NotCanonical,
    /// A reference to a counter below 0 or above what a counter can be.
    #[error("a counter is out of range")]
    Counter,
    /// A container's name is empty or too long.
    #[error("a container's name is empty or longer than 255 bytes")]
    ContainerName,
    /// A key of a map is empty or too long.
    #[error("a key of a map is empty or longer than 512 bytes")]
    Key,
    /// The stamp of a map's write is beyond what stamps can be.
    #[error("a stamp is out of range")]
    Stamp,
    /// The value of a map's write is no JSON, or not in its canonical spelling.
    #[error("a value is not JSON in the canonical spelling: {0}")]
    Json(JsonProblem),
    /// A count or length that the rest of the bytes cannot hold, or above a limit.
    #[error("a count or length is out of bounds")]
    Bounds,
    /// The parts of a saved document contradict one another.
    #[error("the parts contradict one another")]
    Inconsistent,
    /// A checksum does not match.
    #[error("checksum does not match")]
    Checksum,
}

/// Why a change was not applied. The document is as it was before.
///
/// ```
/// use manyhands_crdt::{ChangeRef, Document, Refusal, ReplicaId};
///
/// let body = [0x80, 0x04, b'p', b'a', b'g', b'e', b'H'];
/// let later = ChangeRef { replica: ReplicaId(7), counter: 3, base: 0, body: &body };
/// match Document::new().apply(later) {
///     // Its author sends again from there.
///     Err(Refusal::Gap { next_counter }) => assert_eq!(next_counter, 0),
///     other => panic!("{other:?}"),
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The bytes are no change; `offset` counts from the start of the body or of the run of entries.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The replica's changes before this one are missing: send from `next_counter`.
    #[error("changes of this replica are missing: counter {next_counter} is expected")]
    Gap {
        /// The counter that is expected.
        next_counter: u64,
    },
    /// The change, or a part of it, is already here. Whether it is the same, its hash tells.
    #[error("already known up to counter {next_counter}")]
    Known {
        /// The counter that is expected.
        next_counter: u64,
    },
    /// It refers to an op that is not here, so its author cannot have seen it here.
    #[error("refers to op {}:{} which is not known", id.replica.0, id.counter)]
    MissingReference {
        /// The unknown op.
        id: OpId,
    },
    /// It refers to a replica by an index that the log has not given out.
    #[error("refers to replica index {index} which is not in the log")]
    UnknownIndex {
        /// The index.
        index: u64,
    },
    /// It refers to an op that inserted no character, as if it had.
    #[error("op {}:{} is not an element of a text", id.replica.0, id.counter)]
    NotAnElement {
        /// The op.
        id: OpId,
    },
    /// The two origins of an insertion are in different containers.
    #[error("origin {}:{} is in another container", id.replica.0, id.counter)]
    OtherContainer {
        /// The right origin.
        id: OpId,
    },
    /// Replica id 0 stands for "no replica" and cannot write.
    #[error("replica id 0 cannot write")]
    NoReplica,
    /// The replica has used up its counters: go on as a new replica.
    #[error("the counters of this replica are used up")]
    CountersUsedUp,
    /// A limit of the document would be exceeded.
    #[error("{what} would exceed the limit of {limit}")]
    TooLarge {
        /// What is limited.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
    },
    /// A write expects another value than the key has.
    #[error(transparent)]
    Conflict(Box<Conflict>),
    /// A write is stamped later than the owner allows: its author's clock is ahead.
    #[error("the stamp {stamp_micros} is beyond {max_micros} (microseconds since 1970): the clock is ahead")]
    ClockAhead {
        /// The stamp's microseconds.
        stamp_micros: u64,
        /// The greatest that is allowed now.
        max_micros: u64,
    },
    /// A write expects a value in a document whose strategy does not look at that.
    #[error("only the server strategy takes a write that says what it expects")]
    ExpectUnsupported,
    /// The run of entries starts after a hole, or a change was made on entries that are not here: fetch from
    /// `known + 1`.
    #[error("entries after seq {known} are missing")]
    MissingEntries {
        /// The newest seq that is here.
        known: u64,
    },
}

/// What a key has that a write expected otherwise.
///
/// ```
/// use manyhands_crdt::{Document, Hlc, Limits, Refusal, ReplicaId, Strategy};
///
/// let mut owner = Document::with_strategy(Strategy::Server, Limits::default());
/// let mut refusals = Vec::new();
/// for replica in [ReplicaId(7), ReplicaId(8)] {
///     // Both saw that there is no title.
///     let mut author = Document::with_strategy(Strategy::Server, Limits::default());
///     let mut edit = author.edit(replica);
///     edit.set("", "title", "\"mine\"", Hlc::at(1), Some(0)).unwrap();
///     let change = edit.commit(0).unwrap();
///     refusals.push(owner.admit(change.as_ref(), &Default::default()).err());
/// }
/// let [None, Some(Refusal::Conflict(conflict))] = &refusals[..] else { panic!("{refusals:?}") };
/// assert_eq!((conflict.seq, conflict.value.as_deref()), (1, Some("\"mine\"")));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("key {key:?} of map {map:?} is now at seq {seq}, not at what the write expects")]
pub struct Conflict {
    /// The map.
    pub map: String,
    /// The key.
    pub key: String,
    /// The seq of the value that the key has; 0 when it has none.
    pub seq: u64,
    /// That value as JSON.
    pub value: Option<String>,
}

/// Why a local edit was refused. The document is as it was before the call.
///
/// ```
/// use manyhands_crdt::{Document, EditError, ReplicaId};
///
/// let mut document = Document::new();
/// let refused = document.edit(ReplicaId(7)).delete("page", 0..1);
/// assert_eq!(refused, Err(EditError::OutOfBounds { at: 1, len: 0 }));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EditError {
    /// A position after the end.
    #[error("position {at} is after the end, {len}")]
    OutOfBounds {
        /// The position.
        at: usize,
        /// The length of the text in scalars.
        len: usize,
    },
    /// The change would grow beyond the limit: commit and go on in another change.
    #[error("{what} would exceed the limit of {limit}")]
    TooLarge {
        /// What is limited.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
    },
    /// A container's name is empty or longer than 255 bytes.
    #[error("a container's name has 1 to 255 bytes")]
    ContainerName,
    /// Replica id 0 stands for "no replica" and cannot write.
    #[error("replica id 0 cannot write")]
    NoReplica,
    /// The replica has used up its counters: go on as a new replica.
    #[error("the counters of this replica are used up")]
    CountersUsedUp,
    /// The edit is next to what another replica of this copy wrote, of which the log has nothing yet: a change has
    /// no name for it. Edit as that replica, or wait until its first change came back.
    #[error("replica {} has no entry in the log yet, so no other can edit beside what it wrote", replica.0)]
    NotLogged {
        /// The other replica.
        replica: ReplicaId,
    },
    /// A map's name is longer than 255 bytes.
    #[error("a map's name has at most 255 bytes")]
    MapName,
    /// A key of a map is empty or longer than 512 bytes.
    #[error("a key of a map has 1 to 512 bytes")]
    Key,
    /// A stamp beyond 2⁵³ microseconds.
    #[error("a stamp has less than 2^53 microseconds since 1970")]
    Stamp,
    /// A value is no JSON that can be stored.
    #[error(transparent)]
    Json(#[from] JsonFlaw),
    /// The key has another value than the write expects: read it and decide anew.
    #[error("the key is now at seq {seq}, not at what the write expects")]
    Conflict {
        /// The seq of the value that the key has; 0 when it has none.
        seq: u64,
    },
    /// A write expects a value in a document whose strategy does not look at that.
    #[error("only the server strategy takes a write that says what it expects")]
    ExpectUnsupported,
}
