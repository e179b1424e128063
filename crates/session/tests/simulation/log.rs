//! A document service that does right: what the machines are held against.

use std::collections::BTreeMap;

use bytes::Bytes;
use manyhands_proto::{Chain, Code, Incarnation, Position, Seq, v1};
use manyhands_session::SharedRun;
use manyhands_session::edge::{Body, Fetched, Opened, Submitted};

/// What the log keeps of a change, and what an application makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) replica: u64,
    pub(crate) counter: u64,
    pub(crate) next_counter: u64,
    pub(crate) id: u64,
}

const RECORD_BYTES: usize = 32;

impl Record {
    fn write(self, out: &mut Vec<u8>) {
        for field in [self.replica, self.counter, self.next_counter, self.id] {
            out.extend(field.to_le_bytes());
        }
    }

    pub(crate) fn read_all(bytes: &[u8]) -> Vec<Record> {
        assert_eq!(bytes.len() % RECORD_BYTES, 0);
        let field = |record: &[u8], at: usize| u64::from_le_bytes(record[at * 8..][..8].try_into().unwrap());
        bytes
            .chunks(RECORD_BYTES)
            .map(|record| Record {
                replica: field(record, 0),
                counter: field(record, 1),
                next_counter: field(record, 2),
                id: field(record, 3),
            })
            .collect()
    }
}

/// A change's body: how many counters it takes, who it is, and some weight.
pub(crate) fn body(ops: u8, id: u64, weight: u8) -> Bytes {
    let mut body = vec![ops, weight];
    body.extend(id.to_le_bytes());
    body.extend(std::iter::repeat_n(0xaa, usize::from(weight)));
    body.into()
}

/// Reads push records: base, then the body as `body` makes it.
fn read_push(mut bytes: &[u8], count: u32) -> Vec<(u8, u64)> {
    let mut changes = Vec::new();
    for _ in 0..count {
        let end = bytes.iter().position(|byte| byte & 0x80 == 0).expect("a base");
        bytes = &bytes[end + 1..];
        let (ops, weight) = (bytes[0], usize::from(bytes[1]));
        changes.push((ops, u64::from_le_bytes(bytes[2..10].try_into().unwrap())));
        bytes = &bytes[10 + weight..];
    }
    assert!(bytes.is_empty(), "bytes after the last record");
    changes
}

pub(crate) struct Document {
    pub(crate) incarnation: Incarnation,
    pub(crate) entries: Vec<Record>,
    chains: Vec<Chain>,
    next_counters: BTreeMap<u64, u64>,
}

impl Document {
    pub(crate) fn new(incarnation: u64) -> Document {
        Document {
            incarnation: Incarnation(incarnation),
            entries: Vec::new(),
            chains: vec![Chain::default()],
            next_counters: BTreeMap::new(),
        }
    }

    pub(crate) fn position(&self) -> Position {
        let seq = Seq(self.entries.len() as u64);
        Position { incarnation: self.incarnation, seq, chain: self.chains[self.entries.len()] }
    }

    pub(crate) fn next_counter(&self, replica: u64) -> u64 {
        self.next_counters.get(&replica).copied().unwrap_or(0)
    }

    /// The answer, and what is new in the log.
    pub(crate) fn submit(
        &mut self,
        replica: u64,
        first_counter: u64,
        count: u32,
        changes: &[u8],
    ) -> (Submitted, Option<SharedRun>) {
        let before = self.entries.len();
        let mut counter = first_counter;
        let mut rejection = None;
        let mut seq = 0;
        for (ops, id) in read_push(changes, count) {
            let next_counter = self.next_counter(replica);
            let record = Record { replica, counter, next_counter: counter + u64::from(ops), id };
            if counter > next_counter {
                rejection = Some(reject(counter, Code::MissingPredecessor, next_counter));
                break;
            }
            if counter < next_counter {
                let known = self
                    .entries
                    .iter()
                    .position(|entry| (entry.replica, entry.counter) == (replica, counter));
                let known = known.expect("a change begins where one began");
                assert_eq!(self.entries[known], record, "sent changes are immutable");
                seq = seq.max(known as u64 + 1);
            } else {
                self.append(record);
                seq = self.entries.len() as u64;
            }
            counter = record.next_counter;
        }
        let submitted = Submitted { next_counter: self.next_counter(replica), seq: Seq(seq), rejection };
        (submitted, self.run(before, self.entries.len()))
    }

    fn append(&mut self, record: Record) {
        let mut chain = self.chains[self.entries.len()];
        let mut bytes = Vec::new();
        record.write(&mut bytes);
        for (at, byte) in bytes.iter().enumerate() {
            let place = (at + usize::from(chain[at % 16])) % 16;
            chain[place] = chain[place].wrapping_mul(31).wrapping_add(*byte).wrapping_add(at as u8);
        }
        self.next_counters.insert(record.replica, record.next_counter);
        self.entries.push(record);
        self.chains.push(chain);
    }

    pub(crate) fn open(&self, replica: Option<u64>, have: Option<Position>) -> Opened {
        let next_counter = replica.map_or(0, |replica| self.next_counter(replica));
        let position = self.position();
        let have = have.map_or(0, |have| {
            let seq = have.seq.0 as usize;
            let ours = have.incarnation == self.incarnation && self.chains.get(seq) == Some(&have.chain);
            assert!(ours, "a client claims what it does not have: {have:?}");
            seq
        });
        if have == 0 && !self.entries.is_empty() {
            let mut state = Vec::new();
            self.entries.iter().for_each(|entry| entry.write(&mut state));
            let chunks = state.chunks(100).map(Bytes::copy_from_slice).collect();
            return Opened::new(position, next_counter, Body::State(chunks));
        }
        // A tail may end early; the rest is fetched.
        let end = self.entries.len().min(have + 40);
        let middle = have + (end - have) / 2;
        let runs = [self.run(have, middle), self.run(middle, end)].into_iter().flatten().collect();
        Opened::new(position, next_counter, Body::Tail(runs))
    }

    pub(crate) fn fetch(&self, after: Seq) -> Fetched {
        let after = (after.0 as usize).min(self.entries.len());
        let end = self.entries.len().min(after + 30);
        Fetched { runs: self.run(after, end).into_iter().collect(), tip: self.position() }
    }

    fn run(&self, begin: usize, end: usize) -> Option<SharedRun> {
        let mut entries = Vec::new();
        self.entries[begin..end].iter().for_each(|entry| entry.write(&mut entries));
        let run = v1::EntryRun {
            first_seq: begin as u64 + 1,
            count: (end - begin) as u32,
            entries: entries.into(),
            chain: Bytes::copy_from_slice(&self.chains[end]),
        };
        SharedRun::new(run).ok()
    }
}

fn reject(counter: u64, code: Code, next_counter: u64) -> v1::Rejection {
    v1::Rejection { counter, code: code.number(), next_counter, ..v1::Rejection::default() }
}
