//! The heads of a log: the entries that nobody's past contains.

use std::collections::BTreeMap;

use crate::id::{Hash, ReplicaId};

/// The heads of a document: hashes of the entries that no other entry has in its past.
///
/// An entry's past is what its author had seen: everything up to its base, and the author's own earlier
/// entries. So the heads are the newest entry of each replica, as far as it is newer than every base. In a
/// quiet document that is one.
///
/// ```
/// use manyhands_crdt::{Heads, ReplicaId};
///
/// let mut heads = Heads::new();
/// heads.enter(ReplicaId(7), 1, 0, [1; 16]);
/// heads.enter(ReplicaId(9), 2, 0, [2; 16]);
/// assert_eq!(heads.hashes(), [[1; 16], [2; 16]]);
/// heads.enter(ReplicaId(9), 3, 2, [3; 16]);
/// assert_eq!(heads.hashes(), [[3; 16]]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heads {
    by_seq: BTreeMap<u64, (ReplicaId, Hash)>,
    by_replica: BTreeMap<ReplicaId, u64>,
    max_base: u64,
}

impl Heads {
    /// The heads of an empty log: none.
    #[must_use]
    pub fn new() -> Heads {
        Heads::default()
    }

    /// What [`iter`](Heads::iter) and [`max_base`](Heads::max_base) gave. Entries that are no heads by the
    /// others are left out.
    ///
    /// ```
    /// use manyhands_crdt::{Heads, ReplicaId};
    ///
    /// let mut heads = Heads::new();
    /// heads.enter(ReplicaId(7), 1, 0, [1; 16]);
    /// assert_eq!(Heads::from_parts(heads.max_base(), heads.iter()), heads);
    /// ```
    pub fn from_parts(max_base: u64, heads: impl IntoIterator<Item = (Hash, ReplicaId, u64)>) -> Heads {
        let mut all = Heads { max_base, ..Heads::default() };
        for (hash, replica, seq) in heads {
            if all.by_replica.get(&replica).is_none_or(|&before| before < seq) {
                all.put(replica, seq, hash);
            }
        }
        all.drop_seen();
        all
    }

    /// Takes in the next entry of the log. O(log heads), and what it makes past.
    pub fn enter(&mut self, replica: ReplicaId, seq: u64, base: u64, hash: Hash) {
        self.put(replica, seq, hash);
        self.max_base = self.max_base.max(base);
        self.drop_seen();
    }

    fn put(&mut self, replica: ReplicaId, seq: u64, hash: Hash) {
        if let Some(before) = self.by_replica.insert(replica, seq) {
            self.by_seq.remove(&before);
        }
        if let Some((other, _)) = self.by_seq.insert(seq, (replica, hash))
            && other != replica
        {
            self.by_replica.remove(&other);
        }
    }

    fn drop_seen(&mut self) {
        while let Some(first) = self.by_seq.first_entry()
            && *first.key() <= self.max_base
        {
            let (replica, _) = first.remove();
            self.by_replica.remove(&replica);
        }
    }

    /// The hashes, in ascending order.
    #[must_use]
    pub fn hashes(&self) -> Vec<Hash> {
        let mut hashes: Vec<Hash> = self.by_seq.values().map(|&(_, hash)| hash).collect();
        hashes.sort_unstable();
        hashes
    }

    /// Hash, replica and seq of each, in order of seq.
    pub fn iter(&self) -> impl Iterator<Item = (Hash, ReplicaId, u64)> + '_ {
        self.by_seq.iter().map(|(&seq, &(replica, hash))| (hash, replica, seq))
    }

    /// The newest base of all entries: what is up to there is in somebody's past.
    #[must_use]
    pub fn max_base(&self) -> u64 {
        self.max_base
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_seq.len()
    }

    /// Whether the log is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_seq.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Straight from the definition: which entries are in no other's past.
    fn by_definition(log: &[(u64, u64)]) -> Vec<u64> {
        let seqs = 1..=log.len() as u64;
        let of = |seq: u64| log[seq as usize - 1];
        let past_of = |seq: u64, of_seq: u64| {
            of_seq != seq && (seq <= of(of_seq).1 || (of(seq).0 == of(of_seq).0 && seq < of_seq))
        };
        seqs.clone().filter(|&seq| !seqs.clone().any(|other| past_of(seq, other))).collect()
    }

    #[test]
    fn heads_are_what_nobodys_past_contains() {
        let mut random = crate::sequence::tests::Random(7);
        for _ in 0..2_000 {
            let mut log = Vec::new();
            let mut heads = Heads::new();
            for seq in 1..=random.below(30) {
                let (replica, base) = (1 + random.below(5), random.below(seq));
                log.push((replica, base));
                heads.enter(ReplicaId(replica), seq, base, [seq as u8; 16]);
                let seqs: Vec<u64> = heads.iter().map(|(_, _, seq)| seq).collect();
                assert_eq!(seqs, by_definition(&log), "{log:?}");
                assert_eq!(heads.hashes(), seqs.iter().map(|&seq| [seq as u8; 16]).collect::<Vec<_>>());
                let again = Heads::from_parts(heads.max_base(), heads.iter().collect::<Vec<_>>());
                assert_eq!(again, heads);
            }
        }
    }
}
