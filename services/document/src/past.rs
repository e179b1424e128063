//! Whose past holds what: from the heads that somebody has to the entries that they lack. Pure.

use std::collections::{BTreeMap, BTreeSet};

use manyhands_crdt::{Hash, ReplicaId};
use manyhands_proto::Seq;

/// An entry, as far as its place in others' past is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its number.
    pub seq: Seq,
    /// Who made it.
    pub replica: ReplicaId,
    /// The newest seq that its author had seen.
    pub base: Seq,
    /// What it is known by.
    pub hash: Hash,
}

/// The newest seq up to which the past of `heads`, themselves included, holds every entry: who has these heads
/// lacks nothing before it. `entries` are those of the log after `after`, in order, up to its newest.
///
/// An entry's past is everything up to its base, and its author's own earlier entries. `None` when that
/// cannot be told from these entries: a head is not among them, or its base is before them.
pub fn seen_through(
    heads: &BTreeSet<Hash>,
    after: Seq,
    entries: impl Iterator<Item = Place> + Clone,
) -> Option<Seq> {
    let mut own: BTreeMap<ReplicaId, Seq> = BTreeMap::new();
    let mut found = 0;
    let mut seen = Seq(0);
    for entry in entries.clone().filter(|entry| heads.contains(&entry.hash)) {
        own.insert(entry.replica, entry.seq);
        seen = seen.max(entry.base);
        found += 1;
    }
    if found < heads.len() || seen < after {
        return None;
    }
    let more = entries.skip_while(|entry| entry.seq <= seen);
    let more = more.take_while(|entry| own.get(&entry.replica).is_some_and(|&newest| entry.seq <= newest));
    Some(more.last().map_or(seen, |entry| entry.seq))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A log from the replicas and bases of its entries.
    fn log(entries: &[(u64, u64)]) -> Vec<Place> {
        let place = |(index, &(replica, base)): (usize, &(u64, u64))| Place {
            seq: Seq(index as u64 + 1),
            replica: ReplicaId(replica),
            base: Seq(base),
            hash: [index as u8 + 1; 16],
        };
        entries.iter().enumerate().map(place).collect()
    }

    fn heads(seqs: &[u8]) -> BTreeSet<Hash> {
        seqs.iter().map(|&seq| [seq; 16]).collect()
    }

    #[test]
    fn what_heads_have_seen() {
        // Ann and Bob write at the same time from 2 on; nobody has seen 4 and 5.
        let log = log(&[(1, 0), (1, 0), (1, 2), (2, 2), (1, 2)]);
        let all = |of: &[u8]| seen_through(&heads(of), Seq(0), log.iter().copied());
        assert_eq!(all(&[1]), Some(Seq(1)));
        assert_eq!(all(&[2]), Some(Seq(2)));
        assert_eq!(all(&[3]), Some(Seq(3)));
        assert_eq!(all(&[4]), Some(Seq(2)), "Bob's own is behind what he lacks");
        assert_eq!(all(&[3, 4]), Some(Seq(4)));
        assert_eq!(all(&[5]), Some(Seq(3)), "Ann lacks Bob's");
        assert_eq!(all(&[4, 5]), Some(Seq(5)));
        assert_eq!(all(&[4, 5, 9]), None, "one is not known");
        let late = |of: &[u8], after: u64| {
            seen_through(&heads(of), Seq(after), log.iter().skip(after as usize).copied())
        };
        assert_eq!(late(&[4, 5], 2), Some(Seq(5)));
        assert_eq!(late(&[5], 3), None, "what it is based on is before the entries");
        assert_eq!(late(&[3], 3), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        /// Against the definition: the past of every set of heads, entry by entry.
        #[test]
        fn as_the_definition_says(
            drawn in proptest::collection::vec((1..4_u64, any::<proptest::sample::Index>()), 1..20),
            chosen in proptest::collection::vec(any::<proptest::sample::Index>(), 1..4),
        ) {
            let mut newest: BTreeMap<u64, u64> = BTreeMap::new();
            let mut entries = Vec::new();
            for (index, (replica, base)) in drawn.iter().enumerate() {
                // What somebody has seen, they do not forget.
                let least = newest.get(replica).copied().unwrap_or(0);
                let base = least + base.index(index + 1 - least as usize) as u64;
                newest.insert(*replica, base);
                entries.push((*replica, base));
            }
            let log = log(&entries);
            let chosen: BTreeSet<u64> = chosen.iter().map(|at| at.index(log.len()) as u64 + 1).collect();
            let has = |entry: &Place| chosen.iter().map(|&head| log[head as usize - 1]).any(|head| {
                entry.seq <= head.base || (entry.replica == head.replica && entry.seq <= head.seq)
            });
            let expected = log.iter().take_while(|entry| has(entry)).map(|entry| entry.seq).last();
            let hashes = chosen.iter().map(|&seq| [seq as u8; 16]).collect();
            let through = seen_through(&hashes, Seq(0), log.iter().copied());
            prop_assert_eq!(through, Some(expected.unwrap_or(Seq(0))));
        }
    }
}
