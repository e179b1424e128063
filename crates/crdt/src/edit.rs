//! Local editing: positions in, a change out.

use std::ops::Range;

use crate::body::{self, NAME_BYTES_MAX, RawInsert, RawOp, RawRange, Ref, Scratch};
use crate::change::Change;
use crate::document::{Admission, Document, Origin};
use crate::error::{EditError, Refusal};
use crate::id::{COUNTER_MAX, Client, Id, ReplicaId};
use crate::map::admit::Writes;
use crate::map::{Hlc, MapOp};
use crate::wire::Reader;

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
    /// The bytes of writes to maps, one after another.
    writes: Vec<u8>,
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
    /// `bytes` is a range of `Pending::writes`.
    Map {
        bytes: (usize, usize),
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
        let containers = self.document.names.len() + self.document.maps.len();
        if sequence.is_none() && containers >= limits.containers_max {
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

    /// Sets a key of a map to a value, which is any JSON text. `stamp` says when, by the replica's
    /// [`Clock`](crate::Clock). `expect` is for documents of [`Strategy::Server`](crate::Strategy::Server): the
    /// seq of the value that is to be replaced, 0 for none; when the key has another by then, the owner
    /// refuses the change.
    ///
    /// ```
    /// use manyhands_crdt::{Document, Hlc, ReplicaId};
    ///
    /// let mut document = Document::new();
    /// let mut edit = document.edit(ReplicaId(7));
    /// edit.set("", "size", "{ \"width\": 3 }", Hlc::at(1), None).unwrap();
    /// let change = edit.commit(0).unwrap();
    /// assert_eq!(document.map("").unwrap().get("size").unwrap().value, "{\"width\":3}");
    /// ```
    ///
    /// # Errors
    /// When the value is no JSON that can be stored, a name, key or stamp is none, a limit is reached, or it is
    /// plain already that the key has another value than is expected; then nothing has happened.
    pub fn set(
        &mut self,
        map: &str,
        key: &str,
        value: &str,
        stamp: Hlc,
        expect: Option<u64>,
    ) -> Result<(), EditError> {
        self.write(&MapOp { map, key, value: Some(value), stamp, expect })
    }

    /// Removes a key of a map; also one that is not there, which says so to those who set it concurrently as
    /// far as the document's strategy hears of it.
    ///
    /// # Errors
    /// As [`set`](Edit::set).
    pub fn remove(&mut self, map: &str, key: &str, stamp: Hlc, expect: Option<u64>) -> Result<(), EditError> {
        self.write(&MapOp { map, key, value: None, stamp, expect })
    }

    fn write(&mut self, op: &MapOp<'_>) -> Result<(), EditError> {
        let bytes = op.encode()?;
        self.room(bytes.len(), 1)?;
        let document = &*self.document;
        let client = document.client(self.replica);
        let seq = document.seq;
        // The value in its canonical spelling.
        let op = first_write(&bytes);
        let writes = Writes {
            client: client.unwrap_or(document.replicas.len() as Client),
            first: document.next_counter(self.replica) as u32,
            base: seq,
            ops: std::slice::from_ref(&op),
            new_texts: 0,
        };
        let admission = Admission::default();
        writes.check(document, document.limits, Some(&admission)).map_err(|refusal| match refusal {
            Refusal::Conflict(conflict) => EditError::Conflict { seq: conflict.seq },
            Refusal::TooLarge { what, limit } => EditError::TooLarge { what, limit },
            _ => EditError::ExpectUnsupported,
        })?;

        let client = self.begin()?;
        let counter = self.document.replicas[client as usize].next;
        let origin = Origin { client, seq: 0, base: seq };
        self.document.write(&op, Id::new(client, counter), origin, &mut ());
        self.document.replicas[client as usize].next += 1;
        let pending = self.pending(client, counter);
        let start = pending.writes.len();
        pending.writes.extend_from_slice(&bytes);
        pending.bytes += bytes.len();
        let bytes = (start, pending.writes.len());
        pending.ops.push(PendingOp::Map { bytes });
        Ok(())
    }

    /// Makes one change of everything since the last commit; `None` when nothing happened. `base` is the
    /// newest seq that this document has received; a change that writes to maps is given at least
    /// [`Document::seq`], as its effect here is that of a write that has seen all of it.
    pub fn commit(self, base: u64) -> Option<Change> {
        let client = self.document.client(self.replica)?;
        let at = self.document.pending.iter().position(|pending| pending.client == client)?;
        let pending = self.document.pending.swap_remove(at);
        let base = if pending.writes.is_empty() { base } else { base.max(self.document.seq) };
        pending.saw(self.document, base);
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
                    writes: Vec::new(),
                    bytes: 0,
                });
                document.pending.len() - 1
            }
        };
        &mut document.pending[at]
    }
}

/// The op of bytes that were just made.
fn first_write(bytes: &[u8]) -> MapOp<'_> {
    match body::read_op(&mut Reader::new(bytes), &mut Scratch::default()) {
        Ok((RawOp::Map(op), _)) => op,
        _ => unreachable!("an op that was just encoded"),
    }
}

impl Pending {
    /// Its writes to maps may have been made before the newest entries came. They count as made now, so what
    /// came since is seen by them here as everywhere else.
    fn saw(&self, document: &mut Document, base: u64) {
        for op in &self.ops {
            if let PendingOp::Map { bytes: (start, end) } = *op {
                let op = first_write(&self.writes[start..end]);
                document.maps.saw(op.map, op.key, base);
            }
        }
    }

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
                PendingOp::Map { bytes: (start, end) } => {
                    let at = body.len();
                    body.extend_from_slice(&self.writes[start..end]);
                    if more {
                        body::more_follow(&mut body, at);
                    }
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
