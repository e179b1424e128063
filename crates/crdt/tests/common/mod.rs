//! A log in miniature, and a generator whose seeds mean the same for ever.
#![allow(dead_code, reason = "each test file uses a part")]

use manyhands_crdt::{Admission, Applied, ChangeRef, Document, EntryWriter, Refusal, ReplicaId};

pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    pub(crate) fn at(&mut self, n: usize) -> usize {
        self.below(n as u64) as usize
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn text(&mut self, len: u64) -> String {
        const LETTERS: [char; 10] = ['a', 'b', 'c', 'd', ' ', '\n', 'ä', 'ß', '語', '🎉'];
        (0..len).map(|_| LETTERS[self.at(10)]).collect()
    }
}

/// One document's log: what its owner keeps.
#[derive(Clone, Default)]
pub(crate) struct Log {
    pub(crate) document: Document,
    pub(crate) entries: Vec<Entry>,
}

#[derive(Clone)]
pub(crate) struct Entry {
    index: u32,
    new: Option<ReplicaId>,
    base: u64,
    body: Vec<u8>,
}

impl Log {
    pub(crate) fn submit(&mut self, change: ChangeRef<'_>) -> Result<Applied, Refusal> {
        self.keep(change, |document| document.apply(change))
    }

    /// As [`submit`](Log::submit), with the checks that only the owner makes.
    pub(crate) fn admit(&mut self, change: ChangeRef<'_>, admission: &Admission) -> Result<Applied, Refusal> {
        self.keep(change, |document| document.admit(change, admission))
    }

    fn keep(
        &mut self,
        change: ChangeRef<'_>,
        apply: impl FnOnce(&mut Document) -> Result<Applied, Refusal>,
    ) -> Result<Applied, Refusal> {
        let new = self.document.replica_index(change.replica).is_none();
        let applied = apply(&mut self.document)?;
        let index = self.document.replica_index(change.replica).expect("it has an entry now");
        let new = new.then_some(change.replica);
        self.entries.push(Entry { index, new, base: change.base, body: change.body.to_vec() });
        Ok(applied)
    }

    pub(crate) fn tip(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Entries `first_seq..=last_seq` as a run: count and bytes.
    pub(crate) fn run(&self, first_seq: u64, last_seq: u64) -> (u32, Vec<u8>) {
        let mut run = EntryWriter::new();
        for seq in first_seq..=last_seq {
            let entry = &self.entries[seq as usize - 1];
            run.push(seq, entry.index, entry.new, entry.base, &entry.body);
        }
        (run.count(), run.finish())
    }
}
