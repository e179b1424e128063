//! The owner of one document, in memory.

use std::collections::BTreeMap;

use manyhands_crdt::{
    Admission, ChangeRef, Document, EntryWriter, Heads, Hlc, Limits, MapOp, Refusal as Refused, ReplicaId,
    Strategy, map_change_body, read_push,
};
use manyhands_proto::{Code, Incarnation, Position, Seq, v1};
use manyhands_session::SharedRun;
use manyhands_session::edge::{Body, Opened, Submitted};
use serde_json::Value;

pub(crate) struct Owner {
    pub(crate) document: Document,
    heads: Heads,
    /// Records, by seq.
    entries: Vec<Vec<u8>>,
}

const INCARNATION: Incarnation = Incarnation(7);

impl Owner {
    pub(crate) fn new(strategy: Strategy) -> Owner {
        let document = Document::with_strategy(strategy, Limits::default());
        Owner { document, heads: Heads::new(), entries: Vec::new() }
    }

    pub(crate) fn seq(&self) -> u64 {
        self.entries.len() as u64
    }

    pub(crate) fn position(&self) -> Position {
        Position { incarnation: INCARNATION, seq: Seq(self.seq()), chain: chain(self.seq()) }
    }

    /// Decides on one change.
    pub(crate) fn admit(&mut self, change: ChangeRef<'_>) -> Result<(), Refused> {
        let known = self.document.replica_index(change.replica);
        let applied = self.document.admit(change, &Admission::default())?;
        let seq = self.document.seq();
        self.heads.enter(change.replica, seq, change.base, applied.hash);
        let index = self.document.replica_index(change.replica).unwrap();
        let mut record = EntryWriter::new();
        record.push(seq, index, known.is_none().then_some(change.replica), change.base, change.body);
        self.entries.push(record.finish());
        Ok(())
    }

    /// A write that comes by another road than a session.
    pub(crate) fn write(&mut self, replica: u64, base: u64, key: &str, value: Option<&str>, micros: u64) {
        let op = MapOp { map: "", key, value, stamp: Hlc::at(micros), expect: None };
        let body = map_change_body(&op).unwrap();
        let replica = ReplicaId(replica);
        let counter = self.document.next_counter(replica);
        self.admit(ChangeRef { replica, counter, base, body: &body }).unwrap();
    }

    pub(crate) fn submit(&mut self, replica: ReplicaId, first: u64, count: u32, changes: &[u8]) -> Submitted {
        let mut next_counter = first;
        for read in read_push(replica, first, count, changes) {
            let (change, next) = read.unwrap();
            match self.admit(change) {
                Ok(()) | Err(Refused::Known { .. }) => next_counter = next,
                Err(refused) => {
                    let rejection = v1::Rejection {
                        counter: change.counter,
                        code: Code::Conflict.number(),
                        message: refused.to_string(),
                        ..v1::Rejection::default()
                    };
                    return Submitted { next_counter, seq: Seq(self.seq()), rejection: Some(rejection) };
                }
            }
        }
        Submitted { next_counter, seq: Seq(self.seq()), rejection: None }
    }

    /// The entries after a seq up to another.
    pub(crate) fn run(&self, after: u64, upto: u64) -> SharedRun {
        let entries = &self.entries[usize::try_from(after).unwrap()..usize::try_from(upto).unwrap()];
        SharedRun::new(v1::EntryRun {
            first_seq: after + 1,
            count: u32::try_from(entries.len()).unwrap(),
            entries: entries.concat().into(),
            chain: chain(upto).to_vec().into(),
        })
        .unwrap()
    }

    pub(crate) fn opened(&self) -> Opened {
        let body = if self.seq() == 0 {
            Body::Tail(Vec::new())
        } else {
            Body::State(vec![self.document.encode().into()])
        };
        let heads = self.heads.iter();
        Opened {
            strategy: v1::Strategy::try_from(i32::from(self.document.strategy().code())).unwrap(),
            heads: heads
                .map(|(hash, replica, seq)| v1::Head { hash: hash.to_vec().into(), replica: replica.0, seq })
                .collect(),
            max_base: self.heads.max_base(),
            ..Opened::new(self.position(), 0, body)
        }
    }

    /// What the keys have.
    pub(crate) fn root(&self) -> BTreeMap<String, Value> {
        let map = self.document.map("");
        let entries = map.iter().flat_map(|map| map.iter());
        entries.map(|(key, value)| (key.to_owned(), serde_json::from_str(value.value).unwrap())).collect()
    }
}

fn chain(seq: u64) -> [u8; 16] {
    let mut chain = [0; 16];
    chain[..8].copy_from_slice(&seq.to_le_bytes());
    chain
}
