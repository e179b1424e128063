//! What a document is: a sequence CRDT, its changes and its bytes.

/// An editing session's identity in the CRDT: random, 64 bit, never reused. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(pub u64);

/// BLAKE3, first 128 bits.
pub type Hash = [u8; 16];
