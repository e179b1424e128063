//! Entries as they go out: in runs that a message can hold, each with the chain hash after its last entry.

use std::collections::BTreeMap;

use bytes::Bytes;
use manyhands_crdt::{EntryWriter, ReplicaId};
use manyhands_history::Entry;
use manyhands_proto::{Chain, Seq, v1};

/// A replica's log index in a document: the order of its first entry.
pub type Indices = BTreeMap<ReplicaId, u32>;

/// An entry, as far as readers need it.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The author's log index.
    pub index: u32,
    /// The author, on its first entry.
    pub new: Option<ReplicaId>,
    /// The newest seq that the author had seen.
    pub base: Seq,
    /// The chain hash after the entry.
    pub chain: Chain,
    /// The change.
    pub body: Bytes,
}

impl Outgoing {
    /// An entry that was read from the log. `None` if its author has no index: then the index table is older
    /// than the entry.
    #[must_use]
    pub fn from_entry(entry: &Entry, indices: &Indices) -> Option<Outgoing> {
        Some(Outgoing {
            index: *indices.get(&entry.replica)?,
            new: entry.subject.is_some().then_some(entry.replica),
            base: entry.base,
            chain: entry.chain,
            body: entry.body.clone(),
        })
    }
}

/// Writes entries with contiguous seqs into runs of at most about `part_bytes` each.
#[derive(Debug)]
pub struct RunWriter {
    part_bytes: usize,
    next: Seq,
    writer: EntryWriter,
    first: Seq,
    chain: Chain,
    done: Vec<v1::EntryRun>,
}

impl RunWriter {
    /// The first entry will be the one after `after`.
    #[must_use]
    pub fn new(after: Seq, part_bytes: usize) -> RunWriter {
        let next = after.next();
        RunWriter {
            part_bytes,
            next,
            writer: EntryWriter::new(),
            first: next,
            chain: Chain::default(),
            done: Vec::new(),
        }
    }

    /// Adds the next entry.
    pub fn push(&mut self, entry: &Outgoing) {
        let seq = self.next;
        self.writer.push(seq.0, entry.index, entry.new, entry.base.0, &entry.body);
        self.chain = entry.chain;
        self.next = seq.next();
        if self.writer.len() >= self.part_bytes {
            self.close();
        }
    }

    /// Whether one run is full already.
    #[must_use]
    pub fn has_full_run(&self) -> bool {
        !self.done.is_empty()
    }

    /// The runs, in order; none if nothing was added.
    #[must_use]
    pub fn finish(mut self) -> Vec<v1::EntryRun> {
        self.close();
        self.done
    }

    fn close(&mut self) {
        let writer = std::mem::take(&mut self.writer);
        if !writer.is_empty() {
            self.done.push(v1::EntryRun {
                first_seq: self.first.0,
                count: writer.count(),
                entries: Bytes::from(writer.finish()),
                chain: Bytes::copy_from_slice(&self.chain),
            });
        }
        self.first = self.next;
    }
}
