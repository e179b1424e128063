//! Ids. Each is its own type, so that a seq cannot be taken for an offset.

use std::fmt;
use std::str::FromStr;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The one after this.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number! {
    /// The gapless number of an entry in a document's incarnation, from 1. 0 is "before the first".
    Seq
}
number! {
    /// The gapless number of an entry in a partition, from 1. 0 is "before the first".
    Offset
}
number! {
    /// The fencing number of a partition's writer. Grows with each claim and is never reused.
    Epoch
}

/// Which history of a document: random, unique over all documents, a new one after a restore or a reset.
///
/// Never 0, which on the wire means "none".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Bytes of a chain hash.
pub const CHAIN_BYTES: usize = 16;

/// BLAKE3-128 over the chain hash before and the hash of the change: two histories that agree here agree
/// in everything before. All zero at seq 0.
pub type Chain = [u8; CHAIN_BYTES];

/// A place in a document's history, and the proof of which history it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// Which history.
    pub incarnation: Incarnation,
    /// The newest entry that is included.
    pub seq: Seq,
    /// The chain hash at `seq`.
    pub chain: Chain,
}

/// How many partitions there are. Fixed for ever: it is written into the log when the log is made and
/// compared at every start.
pub const PARTITIONS: u16 = 271;

/// A share of all documents, with one writer at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId(pub u16);

impl PartitionId {
    /// Every partition, in order.
    pub fn all() -> impl Iterator<Item = PartitionId> {
        (0..PARTITIONS).map(PartitionId)
    }

    /// The partition that a document belongs to: FNV-1a 64 over the name's bytes, modulo
    /// [`PARTITIONS`]. Frozen; another function would be a migration under new epochs.
    #[must_use]
    pub fn of(document: &DocumentName) -> PartitionId {
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for byte in document.as_str().bytes() {
            hash ^= u64::from(byte);
            hash = hash.wrapping_mul(0x0000_0100_0000_01b3);
        }
        PartitionId((hash % u64::from(PARTITIONS)) as u16)
    }
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Longest name of a document, in bytes.
pub const DOCUMENT_NAME_BYTES_MAX: usize = 128;

/// The name of a document (public word: workspace): 1 to 128 of `A–Z a–z 0–9 . _ ~ : -`, not `.` or `..`.
///
/// These are characters that a URL path carries as they are, so that one document has one spelling.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DocumentName(String);

/// Why a text is not the name of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDocumentName {
    /// It has no characters.
    #[error("a workspace needs a name")]
    Empty,
    /// It is longer than [`DOCUMENT_NAME_BYTES_MAX`].
    #[error("a workspace name has at most {DOCUMENT_NAME_BYTES_MAX} characters")]
    TooLong,
    /// It has a character that is not allowed.
    #[error("a workspace name has letters, digits and . _ ~ : - only, and is neither . nor ..")]
    Character,
}

impl DocumentName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DocumentName {
    type Err = InvalidDocumentName;

    fn from_str(text: &str) -> Result<Self, InvalidDocumentName> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._~:-".contains(&byte);
        if text.is_empty() {
            Err(InvalidDocumentName::Empty)
        } else if text.len() > DOCUMENT_NAME_BYTES_MAX {
            Err(InvalidDocumentName::TooLong)
        } else if !text.bytes().all(allowed) || text == "." || text == ".." {
            Err(InvalidDocumentName::Character)
        } else {
            Ok(DocumentName(text.to_owned()))
        }
    }
}

impl fmt::Display for DocumentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A process that serves partitions: its name, unique in the cluster and new at each start.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub String);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DocumentName {
        text.parse().unwrap()
    }

    /// The frozen vectors: a change here loses documents.
    #[test]
    fn partitions_are_frozen() {
        assert_eq!(PARTITIONS, 271);
        for (text, partition) in [("a", 49), ("workspace-123", 104), ("demo", 146), ("Demo", 202)] {
            assert_eq!(PartitionId::of(&name(text)), PartitionId(partition), "{text}");
        }
    }

    #[test]
    fn partitions_are_even() {
        let mut counts = [0u32; PARTITIONS as usize];
        for i in 0..271 * 100 {
            counts[usize::from(PartitionId::of(&name(&format!("doc-{i}"))).0)] += 1;
        }
        assert!(counts.iter().all(|&count| (50..200).contains(&count)), "{counts:?}");
    }

    #[test]
    fn names() {
        for good in ["a", "workspace-123", "Team:Notes~1.2_x", "...", &"x".repeat(128)] {
            assert_eq!(name(good).as_str(), good);
        }
        use InvalidDocumentName::*;
        for (bad, why) in [
            ("", Empty),
            (".", Character),
            ("..", Character),
            ("a/b", Character),
            ("a b", Character),
            ("é", Character),
            ("a%2f", Character),
            ("a\0", Character),
        ] {
            assert_eq!(bad.parse::<DocumentName>(), Err(why), "{bad:?}");
        }
        assert_eq!("x".repeat(129).parse::<DocumentName>(), Err(TooLong));
    }
}
