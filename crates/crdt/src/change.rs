//! A change: the atomic batch of ops that one replica submits, and its hash.

use crate::body::{self, Scratch};
use crate::error::Malformed;
use crate::id::{Hash, ReplicaId};
use crate::wire::Reader;

/// The number of the format of bodies; a reader refuses others.
///
/// ```
/// // What a peer says when it connects.
/// let theirs = 1;
/// assert_eq!(theirs, manyhands_crdt::BODY_FORMAT);
/// ```
pub const BODY_FORMAT: u16 = 1;

/// A change as it lies in somebody's bytes.
///
/// ```
/// use manyhands_crdt::{ChangeRef, Document, ReplicaId};
///
/// // The bytes of `INTERNALS.md`: "H" is inserted into the empty text "page".
/// let body = [0x80, 0x04, b'p', b'a', b'g', b'e', b'H'];
/// let change = ChangeRef { replica: ReplicaId(7), counter: 0, base: 0, body: &body };
/// let mut document = Document::new();
/// document.apply(change).unwrap();
/// assert_eq!(document.text("page").unwrap().to_string(), "H");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangeRef<'a> {
    /// Whose change it is.
    pub replica: ReplicaId,
    /// The counter of its first op.
    pub counter: u64,
    /// The newest seq that the author had applied when making it.
    pub base: u64,
    /// The ops.
    pub body: &'a [u8],
}

/// A change that owns its bytes: what a local edit makes.
///
/// ```
/// use manyhands_crdt::{Document, ReplicaId};
///
/// let mut document = Document::new();
/// let mut edit = document.edit(ReplicaId(7));
/// edit.insert("page", 0, "Hi").unwrap();
/// let change = edit.commit(0).unwrap();
/// assert_eq!((change.replica, change.counter, change.next_counter), (ReplicaId(7), 0, 2));
/// assert_eq!(change.as_ref().body, change.body);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Whose change it is.
    pub replica: ReplicaId,
    /// The counter of its first op.
    pub counter: u64,
    /// The first counter after it: its ops take `counter..next_counter`.
    pub next_counter: u64,
    /// The newest seq that the author had applied when making it.
    pub base: u64,
    /// The ops.
    pub body: Vec<u8>,
}

impl Change {
    /// The same change, borrowed.
    pub fn as_ref(&self) -> ChangeRef<'_> {
        ChangeRef { replica: self.replica, counter: self.counter, base: self.base, body: &self.body }
    }
}

/// Bytes of the canonical form before the body.
const HEAD: usize = 24;

/// The hash over the canonical form: replica, counter, base (8 bytes each, little end first), then the
/// body with each log index replaced by the replica's id (8 bytes). So it does not depend on a log.
///
/// `scratch.indices` must be those of this body, with offsets from its start.
pub(crate) fn hash(
    change: ChangeRef<'_>,
    scratch: &Scratch,
    replica_at: impl Fn(u64) -> Option<ReplicaId>,
) -> Result<Hash, u64> {
    // A keystroke is one block of BLAKE3, which hashed at once costs less than fed to a hasher.
    let mut block = [0; blake3::BLOCK_LEN];
    block[..8].copy_from_slice(&change.replica.0.to_le_bytes());
    block[8..16].copy_from_slice(&change.counter.to_le_bytes());
    block[16..HEAD].copy_from_slice(&change.base.to_le_bytes());
    if scratch.indices.is_empty()
        && let Some(room) = block.get_mut(HEAD..HEAD + change.body.len())
    {
        room.copy_from_slice(change.body);
        return Ok(truncate(blake3::hash(&block[..HEAD + change.body.len()])));
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&block[..HEAD]);
    let mut done = 0;
    for &(start, end, index) in &scratch.indices {
        let replica = replica_at(index).ok_or(index)?;
        hasher.update(&change.body[done..start]);
        hasher.update(&replica.0.to_le_bytes());
        done = end;
    }
    hasher.update(&change.body[done..]);
    Ok(truncate(hasher.finalize()))
}

/// How many counters a body takes; it must end where the slice ends.
pub(crate) fn measure(bytes: &[u8], scratch: &mut Scratch) -> Result<u64, Malformed> {
    let mut reader = Reader::new(bytes);
    let counters = body::skip(&mut reader, scratch)?;
    reader.end()?;
    Ok(counters)
}

pub(crate) fn truncate(hash: blake3::Hash) -> Hash {
    let mut short = [0; 16];
    short.copy_from_slice(&hash.as_bytes()[..16]);
    short
}
