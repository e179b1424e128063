//! A document while nobody edits it: its bytes, and what is asked of it without opening them.

use crate::document::{Document, Limits};
use crate::error::Malformed;
use crate::id::{ReplicaId, VersionVector};
use crate::map::Strategy;

/// A document kept as its saved bytes. It says what it has: how much of each replica, up to which entry. For
/// anything else it is [opened](IdleDocument::open).
///
/// ```
/// use manyhands_crdt::{Document, IdleDocument, Limits, ReplicaId};
///
/// let mut document = Document::new();
/// let mut edit = document.edit(ReplicaId(7));
/// edit.insert("page", 0, "Hello").unwrap();
/// edit.commit(0).unwrap();
///
/// let idle = IdleDocument::new(document.encode(), Limits::default()).unwrap();
/// assert_eq!(idle.next_counter(ReplicaId(7)), 5);
/// assert_eq!((idle.version(), idle.seq()), (document.version(), document.seq()));
/// assert_eq!(idle.strategy(), document.strategy());
/// assert!(idle.memory_bytes() < document.memory_bytes());
/// assert_eq!(idle.open().unwrap().state_hash(), document.state_hash());
/// assert_eq!(idle.bytes(), document.encode());
/// ```
#[derive(Clone, Debug)]
pub struct IdleDocument {
    bytes: Box<[u8]>,
    limits: Limits,
    strategy: Strategy,
    seq: u64,
    /// In order of replica.
    next_counters: Box<[(ReplicaId, u32)]>,
}

impl IdleDocument {
    /// Takes what [`Document::encode`] made.
    ///
    /// # Errors
    /// When the bytes are damaged, or their replicas beyond twice the limits. Texts and maps are not looked at.
    pub fn new(bytes: Vec<u8>, limits: Limits) -> Result<IdleDocument, Malformed> {
        let raw = Document::unpacked(&bytes, limits)?;
        let (head, _) = Document::decode_head(&raw, limits)?;
        let mut next_counters: Box<[_]> =
            head.replicas.iter().map(|replica| (replica.id, replica.next)).collect();
        next_counters.sort_unstable_by_key(|&(replica, _)| replica);
        let (strategy, seq) = (head.strategy(), head.seq());
        Ok(IdleDocument { bytes: bytes.into_boxed_slice(), limits, strategy, seq, next_counters })
    }

    /// The document, to edit or to read.
    ///
    /// # Errors
    /// With the first flaw in the texts and maps. [`Document::encode`] makes none, and bytes that were changed
    /// since do not get so far.
    pub fn open(&self) -> Result<Document, Malformed> {
        Document::decode_with_limits(&self.bytes, self.limits)
    }

    /// The bytes as they were given.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How its maps merge.
    pub fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// The newest entry of the log that is in it; 0 when there is none.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// The first counter of `replica` that is not here; 0 for an unknown replica.
    pub fn next_counter(&self, replica: ReplicaId) -> u64 {
        let at = self.next_counters.binary_search_by_key(&replica, |&(replica, _)| replica);
        at.map_or(0, |at| u64::from(self.next_counters[at].1))
    }

    /// How much of each replica is here.
    pub fn version(&self) -> VersionVector {
        let mut version = VersionVector::new();
        for &(replica, next) in &self.next_counters {
            version.advance(replica, u64::from(next));
        }
        version
    }

    /// The heap that it takes: the saved bytes, and 16 for each replica.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.len() + size_of_val(&*self.next_counters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> Document {
        let mut document = Document::new();
        for replica in [9, 3, 5].map(ReplicaId) {
            let mut author = Document::new();
            let mut edit = author.edit(replica);
            edit.insert("text", 0, &"word ".repeat(replica.0 as usize)).expect("in bounds");
            let change = edit.commit(0).expect("an insertion");
            document.apply(change.as_ref()).expect("a good change");
        }
        document
    }

    // enforces: I-5
    #[test]
    fn an_idle_document_says_what_the_open_one_says() {
        let document = document();
        let idle = IdleDocument::new(document.encode(), Limits::default()).expect("what was saved");
        for replica in (0..12).map(ReplicaId) {
            assert_eq!(idle.next_counter(replica), document.next_counter(replica));
        }
        assert_eq!((idle.version(), idle.seq()), (document.version(), 3));
        let mut opened = idle.open().expect("what was saved");
        assert_eq!(opened.state_hash(), document.state_hash());
        let mut edit = opened.edit(ReplicaId(3));
        edit.delete("text", 0..4).expect("in bounds");
        assert_eq!(edit.commit(3).expect("a deletion").counter, idle.next_counter(ReplicaId(3)));
    }

    // enforces: I-12
    #[test]
    fn damaged_bytes_do_not_become_an_idle_document() {
        let bytes = document().encode();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(IdleDocument::new(damaged, Limits::default()).is_err(), "byte {at}");
            assert!(IdleDocument::new(bytes[..at].to_vec(), Limits::default()).is_err(), "up to {at}");
        }
    }
}
