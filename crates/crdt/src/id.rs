//! Who wrote what: replicas, op ids, and how much of each replica is known.

use std::cmp::Ordering;
use std::collections::BTreeMap;

/// An editing session's identity in the CRDT: random, 64 bit, never reused. Never 0.
///
/// ```
/// use manyhands_crdt::ReplicaId;
///
/// // Where two insert at one spot, the smaller id goes first.
/// assert!(ReplicaId(10) < ReplicaId(20));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(pub u64);

/// The identity of one op, and of the character that it inserted. A replica numbers its ops densely
/// from 0: an insertion takes a counter for each character, a deletion takes one.
///
/// ```
/// use manyhands_crdt::{Bias, Document, OpId, ReplicaId};
///
/// let mut document = Document::new();
/// document.edit(ReplicaId(7)).insert("page", 0, "abc").unwrap();
/// let anchor = document.text("page").unwrap().anchor(1, Bias::Right);
/// assert_eq!(anchor.at, Some(OpId { replica: ReplicaId(7), counter: 1 }));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId {
    /// Whose op it is.
    pub replica: ReplicaId,
    /// Which of that replica's ops.
    pub counter: u64,
}

/// BLAKE3, first 128 bits.
///
/// ```
/// use manyhands_crdt::{Document, Hash};
///
/// let hash: Hash = Document::new().state_hash();
/// assert_eq!(hash, Document::new().state_hash());
/// ```
pub type Hash = [u8; 16];

/// How many ops of each replica are known. As counters are dense, this says exactly what is missing.
///
/// The order is partial: `a <= b` when `b` knows all that `a` knows.
///
/// ```
/// use manyhands_crdt::{OpId, ReplicaId, VersionVector};
///
/// let (ann, bob) = (ReplicaId(7), ReplicaId(8));
/// let mut mine = VersionVector::new();
/// assert!(mine.is_empty());
/// mine.advance(ann, 5);
/// let mut theirs = VersionVector::new();
/// theirs.advance(ann, 3);
/// assert!(mine.contains(OpId { replica: ann, counter: 4 }));
/// assert!(mine.covers(&theirs) && theirs < mine);
///
/// theirs.advance(bob, 1);
/// assert_eq!(theirs.partial_cmp(&mine), None);
/// mine.merge(&theirs);
/// assert_eq!(mine.iter().collect::<Vec<_>>(), [(ann, 5), (bob, 1)]);
/// assert_eq!((mine.len(), mine.get(bob)), (2, 1));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionVector(BTreeMap<ReplicaId, u64>);

impl VersionVector {
    /// Knows nothing.
    pub fn new() -> VersionVector {
        VersionVector::default()
    }

    /// The first counter of `replica` that is not known; 0 for an unknown replica.
    pub fn get(&self, replica: ReplicaId) -> u64 {
        self.0.get(&replica).copied().unwrap_or(0)
    }

    /// Takes in that all counters of `replica` below `next_counter` are known. Never goes back.
    pub fn advance(&mut self, replica: ReplicaId, next_counter: u64) {
        if next_counter > self.get(replica) {
            self.0.insert(replica, next_counter);
        }
    }

    /// Whether this op is known.
    pub fn contains(&self, id: OpId) -> bool {
        id.counter < self.get(id.replica)
    }

    /// Whether everything in `other` is known here.
    pub fn covers(&self, other: &VersionVector) -> bool {
        other.iter().all(|(replica, next_counter)| next_counter <= self.get(replica))
    }

    /// Takes in everything that `other` knows.
    pub fn merge(&mut self, other: &VersionVector) {
        for (replica, next_counter) in other.iter() {
            self.advance(replica, next_counter);
        }
    }

    /// Replicas with their first unknown counter, in order of replica id.
    pub fn iter(&self) -> impl Iterator<Item = (ReplicaId, u64)> + '_ {
        self.0.iter().map(|(&replica, &next_counter)| (replica, next_counter))
    }

    /// How many replicas are known.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no replica is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl PartialOrd for VersionVector {
    fn partial_cmp(&self, other: &VersionVector) -> Option<Ordering> {
        match (self.covers(other), other.covers(self)) {
            (true, true) => Some(Ordering::Equal),
            (true, false) => Some(Ordering::Greater),
            (false, true) => Some(Ordering::Less),
            (false, false) => None,
        }
    }
}

/// A replica in this document's own table: an index, small and dense. Means nothing elsewhere.
pub(crate) type Client = u32;

/// An op id inside a document: half the size of [`OpId`], and comparable in one instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id {
    pub(crate) client: Client,
    pub(crate) counter: u32,
}

impl Id {
    /// No element: the start of the text as a left origin, its end as a right origin.
    pub(crate) const NONE: Id = Id { client: u32::MAX, counter: u32::MAX };

    pub(crate) fn new(client: Client, counter: u32) -> Id {
        Id { client, counter }
    }

    pub(crate) fn is_none(self) -> bool {
        self.client == u32::MAX
    }

    /// The id `n` further on in the same replica.
    pub(crate) fn plus(self, n: u32) -> Id {
        Id { client: self.client, counter: self.counter + n }
    }
}

/// A document holds counters as 32 bit; a replica that has used them up must be replaced by a new one.
pub(crate) const COUNTER_MAX: u64 = u32::MAX as u64 - 1;

/// Logs number their entries as signed 64 bit; so there is a number after each.
pub(crate) const SEQ_MAX: u64 = i64::MAX as u64;
