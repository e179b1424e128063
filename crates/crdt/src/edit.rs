//! Local editing: positions in, a change out.

use std::ops::Range;

use crate::body::{self, NAME_BYTES_MAX, RawInsert, RawRange, Ref};
use crate::change::Change;
use crate::document::Document;
use crate::error::EditError;
use crate::id::{COUNTER_MAX, Client, Id, ReplicaId};

/// A local edit under way. Each call takes effect at once; [`commit`](Edit::commit) makes one change of all
/// of them.
///
/// An edit that is dropped without `commit` is not lost: the replica's next edit goes on with it.
#[must_use = "a local edit reaches others by `commit`"]
pub struct Edit<'d> {
    document: &'d mut Document,
    replica: ReplicaId,
}

/// Local ops that are applied and in no change yet.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    client: Client,
    first: u32,
    ops: Vec<PendingOp>,
    text: String,
    ranges: Vec<(Id, u32)>,
    /// An upper bound of the body's length.
    bytes: usize,
}

#[derive(Clone, Debug)]
enum PendingOp {
    /// `text` is a range of `Pending::text`; `name` is the container when there is no origin.
    Insert {
        id: Id,
        len: u32,
        left: Id,
        right: Id,
        inherited: bool,
        text: (usize, usize),
        name: Option<u32>,
    },
    Delete {
        counter: u32,
        ranges: (usize, usize),
    },
}

/// Most that an op takes beside its text and its name: a header, two references, a length.
const OP_BYTES_MAX: usize = 1 + 2 * (5 + 5) + 5;
/// Most that a range of a deletion takes.
const RANGE_BYTES_MAX: usize = 5 + 5 + 5;

impl Document {
    /// Starts a local edit of `replica`. The replica must be this device's own.
    pub fn edit(&mut self, replica: ReplicaId) -> Edit<'_> {
        Edit { document: self, replica }
    }
}

impl Edit<'_> {
    /// The document with what this edit did so far.
    pub fn document(&self) -> &Document {
        self.document
    }

    /// Inserts `text` before the character at `at`, counted in scalars; at the end when `at` is the
    /// length. Nothing happens when `text` is empty.
    ///
    /// # Errors
    /// When `at` is after the end or a limit is reached; then nothing has happened.
    pub fn insert(&mut self, container: &str, at: usize, text: &str) -> Result<(), EditError> {
        if container.is_empty() || container.len() > NAME_BYTES_MAX {
            return Err(EditError::ContainerName);
        }
        let sequence = self.document.containers.get(container).copied();
        let len = sequence.map_or(0, |text| self.document.sequences.widths(text).scalars as usize);
        if at > len {
            return Err(EditError::OutOfBounds { at, len });
        }
        if text.is_empty() {
            return Ok(());
        }
        let scalars = body::scalars(text);
        self.room(OP_BYTES_MAX + NAME_BYTES_MAX + 1 + text.len(), u64::from(scalars))?;
        let limits = self.document.limits;
        if self.document.sequences.elements() + scalars as usize > limits.elements_max {
            let limit = limits.elements_max as u64;
            return Err(EditError::TooLarge { what: "characters of a document", limit });
        }
        if sequence.is_none() && self.document.names.len() >= limits.containers_max {
            return Err(EditError::TooLarge { what: "containers", limit: limits.containers_max as u64 });
        }

        let client = self.begin()?;
        let sequence = self.document.text_or_new(container);
        let (left, right) = self.document.sequences.origins_at(sequence, at);
        let id = Id::new(client, self.document.replicas[client as usize].next);
        let inherited = !left.is_none()
            && left.client == client
            && left.counter + 1 == id.counter
            && self.document.sequences.find(left).is_some_and(|place| place.right == right);
        self.document.insert(sequence, id, left, right, text, &mut ());
        self.document.replicas[client as usize].next += scalars;

        let pending = self.pending(client, id.counter);
        let start = pending.text.len();
        pending.text.push_str(text);
        if inherited && let Some(PendingOp::Insert { len, text: (_, end), .. }) = pending.ops.last_mut() {
            *len += scalars;
            *end += text.len();
            pending.bytes += text.len();
            return Ok(());
        }
        let name = (left.is_none() && right.is_none()).then_some(sequence);
        pending.bytes += OP_BYTES_MAX + text.len() + if name.is_some() { container.len() + 1 } else { 0 };
        let text = (start, start + text.len());
        pending.ops.push(PendingOp::Insert { id, len: scalars, left, right, inherited, text, name });
        Ok(())
    }

    /// Deletes the characters in `range`, counted in scalars. Nothing happens when it is empty.
    ///
    /// # Errors
    /// When the range ends after the end or a limit is reached; then nothing has happened.
    pub fn delete(&mut self, container: &str, range: Range<usize>) -> Result<(), EditError> {
        let sequence = self.document.containers.get(container).copied();
        let len = sequence.map_or(0, |text| self.document.sequences.widths(text).scalars as usize);
        if range.end > len {
            return Err(EditError::OutOfBounds { at: range.end, len });
        }
        let Some(sequence) = sequence.filter(|_| !range.is_empty()) else { return Ok(()) };
        let mut ids = Vec::new();
        self.document.sequences.ids(sequence, range, &mut |id, len| ids.push((id, len)));
        self.room(OP_BYTES_MAX + 5 + ids.len() * RANGE_BYTES_MAX, 1)?;

        let client = self.begin()?;
        for &(id, len) in &ids {
            self.document.delete(id, len, &mut ());
        }
        // A deletion right after a deletion joins it: one op, whatever the number of ranges.
        let state = &mut self.document.replicas[client as usize];
        let counter = state.next;
        let pending = self.pending(client, counter);
        let start = pending.ranges.len();
        pending.bytes += OP_BYTES_MAX + 5 + ids.len() * RANGE_BYTES_MAX;
        pending.ranges.extend(ids);
        let end = pending.ranges.len();
        if let Some(PendingOp::Delete { ranges, .. }) = pending.ops.last_mut() {
            ranges.1 = end;
            return Ok(());
        }
        pending.ops.push(PendingOp::Delete { counter, ranges: (start, end) });
        self.document.replicas[client as usize].next += 1;
        Ok(())
    }

    /// Makes one change of everything since the last commit; `None` when nothing happened. `base` is the
    /// newest seq that this document has received.
    pub fn commit(self, base: u64) -> Option<Change> {
        let client = self.document.client(self.replica)?;
        let at = self.document.pending.iter().position(|pending| pending.client == client)?;
        let pending = self.document.pending.swap_remove(at);
        let next = self.document.replicas[client as usize].next;
        Some(Change {
            replica: self.replica,
            counter: u64::from(pending.first),
            next_counter: u64::from(next),
            base,
            body: pending.encode(self.document),
        })
    }

    /// Checks that the change has room for so many more bytes and the replica for so many counters.
    fn room(&self, bytes: usize, counters: u64) -> Result<(), EditError> {
        if self.replica.0 == 0 {
            return Err(EditError::NoReplica);
        }
        let limits = self.document.limits;
        let client = self.document.client(self.replica);
        if client.is_none() && self.document.replicas.len() >= limits.replicas_max {
            return Err(EditError::TooLarge { what: "replicas", limit: limits.replicas_max as u64 });
        }
        let pending = self.document.pending.iter().find(|pending| Some(pending.client) == client);
        if pending.map_or(0, |pending| pending.bytes) + bytes > limits.change_bytes_max {
            let limit = limits.change_bytes_max as u64;
            return Err(EditError::TooLarge { what: "bytes of a change", limit });
        }
        if self.document.next_counter(self.replica) + counters > COUNTER_MAX {
            return Err(EditError::CountersUsedUp);
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<Client, EditError> {
        let replica = self.replica;
        let client = match self.document.client(replica) {
            Some(client) => client,
            None => self.document.add_replica(replica),
        };
        Ok(client)
    }

    /// The replica's ops that wait for `commit`, the first of them at `first` when there are none yet.
    fn pending(&mut self, client: Client, first: u32) -> &mut Pending {
        let document = &mut *self.document;
        let at = match document.pending.iter().position(|pending| pending.client == client) {
            Some(at) => at,
            None => {
                document.pending.push(Pending {
                    client,
                    first,
                    ops: Vec::new(),
                    text: String::new(),
                    ranges: Vec::new(),
                    bytes: 0,
                });
                document.pending.len() - 1
            }
        };
        &mut document.pending[at]
    }
}

impl Pending {
    fn encode(mut self, document: &Document) -> Vec<u8> {
        let mut body = Vec::with_capacity(self.bytes);
        let ops = std::mem::take(&mut self.ops);
        let mut raw = Vec::new();
        for (n, op) in ops.iter().enumerate() {
            let more = n + 1 < ops.len();
            match *op {
                PendingOp::Insert { id, len, left, right, inherited, text, name } => {
                    let insert = RawInsert {
                        left: reference(document, id, left),
                        right: if inherited { Ref::Inherited } else { reference(document, id, right) },
                        name: name.map(|text| &*document.names[text as usize]),
                        text: &self.text[text.0..text.1],
                        len,
                    };
                    body::put_insert(&mut body, &insert, more);
                }
                PendingOp::Delete { counter, ranges: (start, end) } => {
                    let op = Id::new(self.client, counter);
                    canonical_ranges(document, op, &mut self.ranges[start..end], &mut raw);
                    body::put_delete(&mut body, &raw, more);
                }
            }
        }
        body
    }
}

/// How the op at `from` names `id`.
fn reference(document: &Document, from: Id, id: Id) -> Ref {
    if id.is_none() {
        Ref::None
    } else if id.client == from.client {
        Ref::Own(u64::from(from.counter - id.counter))
    } else {
        Ref::Other { index: log_index(document, id.client), counter: u64::from(id.counter) }
    }
}

/// Own elements first, then by replica id, ascending; ranges that touch become one.
fn canonical_ranges(document: &Document, op: Id, ranges: &mut [(Id, u32)], raw: &mut Vec<RawRange>) {
    ranges.sort_unstable_by_key(|&(id, _)| {
        (id.client != op.client, document.replicas[id.client as usize].id, id.counter)
    });
    raw.clear();
    let mut last: Option<(Id, u32)> = None;
    for &(id, len) in ranges.iter() {
        if let Some((start, last_len)) = &mut last
            && start.plus(*last_len) == id
        {
            *last_len += len;
            raw.last_mut().expect("pushed with `last`").len += u64::from(len);
            continue;
        }
        last = Some((id, len));
        raw.push(match reference(document, op, id) {
            Ref::Other { index, counter } => {
                RawRange { index: Some(index), from: counter, len: u64::from(len) }
            }
            Ref::Own(distance) => RawRange { index: None, from: distance, len: u64::from(len) },
            Ref::None | Ref::Inherited => unreachable!("a deleted element has an id"),
        });
    }
}

/// Elements of others came by the log, so their replica has an index.
fn log_index(document: &Document, client: Client) -> u64 {
    u64::from(document.replicas[client as usize].log_index.expect("others' elements came by the log"))
}
