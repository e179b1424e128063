use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use manyhands_crdt::{Hash, ReplicaId};

use super::op::SharedOp;

/// Entries that are remembered.
const ENTRIES_MAX: usize = 4096;
/// Bytes of keys and frames that are remembered with them.
const BYTES_MAX: usize = 1024 * 1024;
/// What an entry takes beside its keys and frames, roughly.
const ENTRY_BYTES: usize = 128;

/// The newest entries of a document, as far as JSON sessions need them: which keys each one touched, so that
/// one who missed some is told those keys and no others, and which ops they were, so that one who repeats an op
/// is told what became of it.
#[derive(Debug)]
pub(super) struct Recent {
    /// Everything after this is remembered.
    after: u64,
    entries: VecDeque<Entry>,
    /// By key and timestamp, the newest of them.
    ops: BTreeMap<(Arc<str>, u64), SharedOp>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    seq: u64,
    replica: ReplicaId,
    base: u64,
    hash: Hash,
    touched: Vec<Touched>,
    bytes: usize,
}

/// A key of the root map that an entry wrote to, or took away.
#[derive(Clone, Debug)]
pub(super) struct Touched {
    pub(super) key: Arc<str>,
    pub(super) micros: u64,
    pub(super) replica: ReplicaId,
    pub(super) seq: u64,
}

impl Recent {
    pub(super) fn new(after: u64) -> Recent {
        Recent { after, entries: VecDeque::new(), ops: BTreeMap::new(), bytes: 0 }
    }

    /// Takes in the next entry, with the ops that it has on the root map.
    pub(super) fn add(
        &mut self,
        (seq, replica, base, hash): (u64, ReplicaId, u64, Hash),
        ops: Vec<(Touched, SharedOp)>,
    ) {
        let mut entry = Entry { seq, replica, base, hash, touched: Vec::new(), bytes: ENTRY_BYTES };
        for (touched, op) in ops {
            entry.bytes += 2 * touched.key.len() + op.bare.len() + op.extended.len() + ENTRY_BYTES;
            self.ops.insert((touched.key.clone(), touched.micros), op);
            entry.touched.push(touched);
        }
        self.bytes += entry.bytes;
        self.entries.push_back(entry);
        while self.entries.len() > ENTRIES_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.after = oldest.seq;
            self.bytes -= oldest.bytes;
            for touched in oldest.touched {
                let name = (touched.key, touched.micros);
                if self.ops.get(&name).is_some_and(|op| op.seq.0 == oldest.seq) {
                    self.ops.remove(&name);
                }
            }
        }
    }

    /// The op that wrote to this key with this timestamp.
    pub(super) fn op(&self, key: &str, micros: u64) -> Option<&SharedOp> {
        self.ops.get(&(Arc::from(key), micros))
    }

    /// The keys that were touched after a seq, each with the newest that touched it; `None` if that is too long ago.
    pub(super) fn touched_after(&self, seq: u64) -> Option<BTreeMap<&str, &Touched>> {
        if seq < self.after {
            return None;
        }
        let begin = self.entries.partition_point(|entry| entry.seq <= seq);
        let touched = self.entries.range(begin..).flat_map(|entry| &entry.touched);
        Some(touched.map(|touched| (&*touched.key, touched)).collect())
    }

    /// The seq at which these were the heads; `None` if they never were, or if that is too long ago.
    pub(super) fn seq_of(&self, heads: &[Hash]) -> Option<u64> {
        let mut found: Vec<&Entry> = Vec::new();
        for hash in heads {
            let entry = self.entries.iter().rev().find(|entry| entry.hash == *hash)?;
            found.push(entry);
        }
        let newest = found.iter().map(|entry| entry.seq).max()?;
        let seen = found.iter().map(|entry| entry.base).max()?;
        // Whoever has these has everything up to `seen`; between there and the newest there may be others.
        if seen < self.after {
            return None;
        }
        let begin = self.entries.partition_point(|entry| entry.seq <= seen);
        let end = self.entries.partition_point(|entry| entry.seq <= newest);
        let past =
            |entry: &Entry| found.iter().any(|head| head.replica == entry.replica && entry.seq <= head.seq);
        self.entries.range(begin..end).all(past).then_some(newest)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::Audience;
    use bytes::Bytes;
    use manyhands_proto::Seq;

    fn enter(recent: &mut Recent, seq: u64, replica: u64, base: u64, key: &str) {
        enter_with(recent, seq, replica, base, key, 0);
    }

    fn enter_with(recent: &mut Recent, seq: u64, replica: u64, base: u64, key: &str, bytes: usize) {
        let replica = ReplicaId(replica);
        let touched = Touched { key: key.into(), micros: seq, replica, seq };
        let op = SharedOp {
            replica,
            counter: 0,
            seq: Seq(seq),
            audience: Audience::All,
            bare: vec![0; bytes].into(),
            extended: Bytes::new(),
        };
        recent.add((seq, replica, base, [seq as u8; 16]), vec![(touched, op)]);
    }

    #[test]
    fn what_was_touched_is_told_from_a_seq_on() {
        let mut recent = Recent::new(10);
        for (seq, key) in [(11, "a"), (12, "b"), (13, "a")] {
            enter(&mut recent, seq, 1, seq - 1, key);
        }
        let after = |seq| recent.touched_after(seq).map(|keys| keys.into_keys().collect::<String>());
        assert_eq!(after(9), None);
        assert_eq!(after(10).as_deref(), Some("ab"));
        assert_eq!(after(12).as_deref(), Some("a"));
        assert_eq!(after(13).as_deref(), Some(""));
        assert_eq!(recent.op("a", 13).map(|op| op.seq), Some(Seq(13)));
        assert_eq!(recent.op("a", 12), None);
    }

    #[test]
    fn heads_are_known_if_they_were_the_heads_of_a_moment() {
        let mut recent = Recent::new(0);
        // 1 and 2 concurrent, 3 has seen both, 4 has seen only 1 and follows 2 of its own replica.
        enter(&mut recent, 1, 1, 0, "a");
        enter(&mut recent, 2, 2, 0, "b");
        enter(&mut recent, 3, 1, 2, "c");
        enter(&mut recent, 4, 2, 1, "d");
        let known = |heads: &[u8]| recent.seq_of(&heads.iter().map(|head| [*head; 16]).collect::<Vec<_>>());
        assert_eq!(known(&[1]), Some(1));
        assert_eq!(known(&[2]), None, "whoever has 2 only lacks 1");
        assert_eq!(known(&[2, 1]), Some(2));
        assert_eq!(known(&[3]), Some(3));
        assert_eq!(known(&[4]), None, "4 has not seen 3");
        assert_eq!(known(&[3, 4]), Some(4));
        assert_eq!(known(&[3, 9]), None);
        assert_eq!(known(&[]), None);
    }

    // enforces: I-10
    #[test]
    fn what_is_remembered_is_bounded_by_number_and_by_bytes() {
        let mut recent = Recent::new(0);
        for seq in 1..=10_000 {
            enter(&mut recent, seq, 1, seq - 1, "a");
        }
        assert!(recent.entries.len() <= ENTRIES_MAX && recent.ops.len() <= ENTRIES_MAX);
        assert_eq!(recent.touched_after(10_000 - ENTRIES_MAX as u64 - 1).map(|keys| keys.len()), None);
        for seq in 10_001..=10_100 {
            enter_with(&mut recent, seq, 1, seq - 1, "a", 64 * 1024);
        }
        assert!(recent.bytes() <= BYTES_MAX && recent.ops.len() == recent.entries.len());
        assert!(recent.entries.len() >= 10);
    }
}
