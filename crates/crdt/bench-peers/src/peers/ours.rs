//! Our own engine, through the public API of `manyhands-crdt` alone.
//!
//! Its clients do not send to one another: the log puts their changes in order, and others get entry
//! records. [`Peer::deliver`] is that log, outside of the measured time. What is measured at a second replica
//! is `replay` of one entry record: decode, check, integrate, text. Like the peers here it makes no patches for a
//! view; `remote, patches` measures `receive`, which does, and `admit` the server's `apply`, with the hash.

use crate::measure::ProcessorTime;
use crate::peer::{Branch, Peer, Unit};
use crate::trace::{Patch, Trace};
use manyhands_crdt::{Change, ChangeRef, Document, EntryWriter, IdleDocument, Limits, PushWriter, ReplicaId};
use manyhands_proto::v1;
use prost::Message;
use std::any::Any;
use std::collections::BTreeMap;
use std::time::Duration;

const TEXT: &str = "t";

pub struct Ours {
    doc: Document,
    me: ReplicaId,
    /// The newest seq of the log that the document has.
    seq: u64,
}

/// Some traces paste whole files as one change.
fn limits() -> Limits {
    Limits { change_bytes_max: 16 * 1024 * 1024, ..Limits::default() }
}

fn empty() -> Document {
    Document::with_limits(limits())
}

fn change(doc: &mut Document, me: ReplicaId, base: u64, patches: &[Patch]) -> Option<Change> {
    let mut edit = doc.edit(me);
    for p in patches {
        if p.del > 0 {
            edit.delete(TEXT, p.pos..p.pos + p.del).expect("in bounds");
        }
        if !p.ins.is_empty() {
            edit.insert(TEXT, p.pos, &p.ins).expect("in bounds");
        }
    }
    edit.commit(base)
}

/// The bytes of a document with the seq that it is at, as a snapshot row has it.
fn snapshot(doc: &Document, seq: u64) -> Vec<u8> {
    let mut bytes = seq.to_le_bytes().to_vec();
    bytes.extend_from_slice(&doc.encode());
    bytes
}

fn entry(seq: u64, index: u32, new: Option<ReplicaId>, base: u64, body: &[u8]) -> Vec<u8> {
    let mut run = EntryWriter::new();
    run.push(seq, index, new, base, body);
    run.finish()
}

impl Peer for Ours {
    const NAME: &'static str = "manyhands";
    const VERSION: &'static str = "manyhands-crdt";
    const UNIT: Unit = Unit::Chars;

    fn new(client: u64) -> Self {
        Ours { doc: empty(), me: ReplicaId(client), seq: 0 }
    }
    fn edit(&mut self, patches: &[Patch]) {
        change(&mut self.doc, self.me, self.seq, patches);
    }
    fn edit_encode(&mut self, patches: &[Patch]) -> Vec<u8> {
        change(&mut self.doc, self.me, self.seq, patches).map_or_else(Vec::new, |change| change.body)
    }
    fn apply(&mut self, entry: &[u8]) {
        self.doc.replay(self.seq + 1, 1, entry, self.seq).expect("a good entry");
        self.seq += 1;
    }
    fn apply_many(&mut self, entries: &[&[u8]]) {
        let count = entries.len() as u32;
        self.doc.replay(self.seq + 1, count, &entries.concat(), self.seq).expect("good entries");
        self.seq += u64::from(count);
    }
    fn text(&mut self) -> String {
        self.doc.text(TEXT).map(|text| text.to_string()).unwrap_or_default()
    }
    fn len(&mut self) -> usize {
        self.doc.text(TEXT).map_or(0, |text| text.len())
    }
    fn save(&mut self) -> Vec<u8> {
        snapshot(&self.doc, self.seq)
    }
    fn load(bytes: &[u8], client: u64) -> Self {
        let (seq, bytes) = bytes.split_first_chunk().expect("a seq first");
        let doc = Document::decode_with_limits(bytes, limits()).expect("what was saved");
        Ours { doc, me: ReplicaId(client), seq: u64::from_le_bytes(*seq) }
    }

    /// Through a server, which gives the author a log index for others to refer to.
    fn base(patches: &[Patch]) -> Vec<u8> {
        let (mut author, mut server) = (empty(), empty());
        let mut seq = 0;
        for p in patches {
            if let Some(change) = change(&mut author, ReplicaId(1), seq, std::slice::from_ref(p)) {
                server.apply(change.as_ref()).expect("a good change");
                seq += 1;
            }
        }
        snapshot(&server, seq)
    }

    fn idle(bytes: &[u8]) -> Box<dyn Any> {
        let (_, bytes) = bytes.split_first_chunk::<8>().expect("a seq first");
        Box::new(IdleDocument::new(bytes.to_vec(), limits()).expect("what was saved"))
    }

    /// A server's: it has all changes from the log.
    fn keeper(_: Self, entries: &[Vec<u8>]) -> Self {
        let mut server = Self::new(0);
        server.apply_many(&entries.iter().map(Vec::as_slice).collect::<Vec<_>>());
        server
    }

    fn deliver(base: Option<&[u8]>, updates: &[(u64, &[u8])], live: bool) -> Vec<Vec<u8>> {
        let start = base.map_or_else(|| Self::new(0), |base| Self::load(base, 0));
        let mut fresh: BTreeMap<u64, u32> = BTreeMap::new();
        let mut seq = start.seq;
        let mut entries = Vec::with_capacity(updates.len());
        for &(client, body) in updates {
            seq += 1;
            let base = if live { seq - 1 } else { start.seq };
            let known = start.doc.replica_index(ReplicaId(client)).or_else(|| fresh.get(&client).copied());
            let index = known.unwrap_or((start.doc.replica_count() + fresh.len()) as u32);
            let new = known.is_none().then_some(ReplicaId(client));
            if new.is_some() {
                fresh.insert(client, index);
            }
            entries.push(entry(seq, index, new, base, body));
        }
        entries
    }

    /// A run of entries each: the log took the branches after the other one's changes.
    fn deliver_branches(
        base: &[u8],
        first: &[(u64, &[u8])],
        branches: &[Branch],
    ) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let mut all = first.to_vec();
        for branch in branches {
            all.extend(branch.updates.iter().map(|update| (branch.client, update.as_slice())));
        }
        let mut entries = Self::deliver(Some(base), &all, false);
        let mut rest = entries.split_off(first.len()).into_iter();
        let runs = branches.iter().map(|branch| {
            let mut run = (branch.updates.len() as u32).to_le_bytes().to_vec();
            run.extend(rest.by_ref().take(branch.updates.len()).flatten());
            run
        });
        let runs = runs.collect();
        (entries, runs)
    }

    fn frame_down(first: u64, entries: &[&[u8]]) -> Vec<u8> {
        let delta = v1::Delta {
            channel: 1,
            first_seq: first,
            count: entries.len() as u32,
            entries: entries.concat().into(),
            // Of which every byte counts, whatever they are.
            chain: vec![0xff; 16].into(),
        };
        v1::ServerFrame { frame: Some(v1::server_frame::Frame::Delta(delta)) }.encode_to_vec()
    }
    fn frame_up(first: u64, counter: u64, bodies: &[&[u8]]) -> Vec<u8> {
        let mut changes = PushWriter::new();
        for (base, body) in (first - 1..).zip(bodies) {
            changes.push(base, body);
        }
        let push = v1::Push {
            channel: 1,
            first_counter: counter,
            count: bodies.len() as u32,
            changes: changes.finish().into(),
        };
        v1::ClientFrame { frame: Some(v1::client_frame::Frame::Push(push)) }.encode_to_vec()
    }
    fn apply_branch(&mut self, bytes: &[u8]) {
        let (count, run) = bytes.split_first_chunk().expect("a count first");
        let count = u32::from_le_bytes(*count);
        self.doc.replay(self.seq + 1, count, run, self.seq).expect("good entries");
        self.seq += u64::from(count);
    }

    /// Every agent first makes a change in another text, so that all know one another's log index, however
    /// little of the log they have.
    fn replay(trace: &Trace) -> Option<Vec<Vec<u8>>> {
        let replica = |agent: usize| ReplicaId(agent as u64 + 1);
        let agents = trace.agents();
        let mut log: Vec<Vec<u8>> = Vec::new();
        for agent in 0..agents {
            let mut doc = empty();
            let mut edit = doc.edit(replica(agent));
            edit.insert("agents", 0, "x").expect("in bounds");
            let hello = edit.commit(0).expect("a change");
            log.push(entry(agent as u64 + 1, agent as u32, Some(replica(agent)), 0, &hello.body));
        }
        let mut docs: Vec<Document> = (0..agents).map(|_| empty()).collect();
        for doc in &mut docs {
            doc.replay(1, agents as u32, &log.concat(), 0).expect("good entries");
        }
        let mut seen = vec![vec![false; trace.txns.len()]; agents];
        let mut base = vec![agents as u64; agents];
        let mut seqs: Vec<Option<u64>> = Vec::with_capacity(trace.txns.len());
        for (n, txn) in trace.txns.iter().enumerate() {
            let doc = &mut docs[txn.agent];
            for k in trace.missing(&mut seen[txn.agent], &txn.parents) {
                if let Some(seq) = seqs[k] {
                    doc.replay(seq, 1, &log[seq as usize - 1], seq - 1).expect("a good entry");
                    base[txn.agent] = base[txn.agent].max(seq);
                }
            }
            seen[txn.agent][n] = true;
            let len = doc.text(TEXT).map_or(0, |text| text.len());
            let made = change(doc, replica(txn.agent), base[txn.agent], &txn.fitted(len));
            seqs.push(made.map(|change| {
                let seq = log.len() as u64 + 1;
                log.push(entry(seq, txn.agent as u32, None, change.base, &change.body));
                base[txn.agent] = seq;
                seq
            }));
        }
        Some(log)
    }

    /// What the peers have no counterpart to, one update at a time: `receive` with patches for a view, and a
    /// server's `apply` with the hash of the change.
    fn extras(patches: &[Patch]) -> Vec<(&'static str, Duration)> {
        let mut author = empty();
        let me = ReplicaId(2);
        let mut changes = Vec::new();
        for p in patches {
            changes.extend(change(&mut author, me, changes.len() as u64, std::slice::from_ref(p)));
        }
        let bodies: Vec<(u64, &[u8])> = changes.iter().map(|change| (2, change.body.as_slice())).collect();
        let entries = Self::deliver(None, &bodies, true);
        let (mut client, mut shown) = (empty(), Vec::new());
        let start = ProcessorTime::now();
        for (n, entry) in entries.iter().enumerate() {
            shown.clear();
            client.receive(n as u64 + 1, 1, entry, n as u64, &mut shown).expect("a good entry");
        }
        let received = start.elapsed();
        let mut server = empty();
        let start = ProcessorTime::now();
        for change in &changes {
            let change =
                ChangeRef { replica: me, counter: change.counter, base: change.base, body: &change.body };
            server.apply(change).expect("a good change");
        }
        let applied = start.elapsed();
        assert_eq!(client.state_hash(), server.state_hash());
        vec![("remote, patches", received), ("admit", applied)]
    }

    type Mark = ();
    fn mark(&mut self) {}
    fn encode_since(&mut self, (): &()) -> Vec<u8> {
        Vec::new()
    }
}
