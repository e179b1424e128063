//! Local editing: positions in, a change out.

use std::ops::Range;

use crate::body::{self, NAME_BYTES_MAX};
use crate::change::{Change, ChangeRef};
use crate::document::{Admission, Document, Origin};
use crate::error::{EditError, Refusal};
use crate::id::{COUNTER_MAX, Client, Id, ReplicaId};
use crate::map::admit::Writes;
use crate::map::{Hlc, MapOp};
use crate::pending::{Caret, PendingOp, first_write};

/// A local edit under way. Each call takes effect at once; [`commit`](Edit::commit) makes one change of all
/// of them.
///
/// An edit that is dropped without `commit` is not lost: the replica's next edit goes on with it.
///
/// ```
/// use manyhands_crdt::{Document, ReplicaId};
///
/// let mut document = Document::new();
/// let mut edit = document.edit(ReplicaId(7));
/// edit.insert("page", 0, "Hallo").unwrap();
/// edit.delete("page", 1..2).unwrap();
/// edit.insert("page", 1, "e").unwrap();
/// assert_eq!(edit.document().text("page").unwrap().to_string(), "Hello");
/// assert!(edit.insert("page", 6, "!").is_err());
/// let change = edit.commit(0).unwrap();
/// assert_eq!(change.next_counter, 7);
/// ```
#[must_use = "a local edit reaches others by `commit`"]
pub struct Edit<'d> {
    document: &'d mut Document,
    replica: ReplicaId,
    /// None until the replica's first op.
    client: Option<Client>,
}

/// Most that an op takes beside its text and its name: a header, two references, a length.
const OP_BYTES_MAX: usize = 1 + 2 * (5 + 5) + 5;
/// Most that a range of a deletion takes.
const RANGE_BYTES_MAX: usize = 5 + 5 + 5;

impl Document {
    /// Starts a local edit of `replica`. The replica must be this device's own.
    pub fn edit(&mut self, replica: ReplicaId) -> Edit<'_> {
        let client = self.client(replica);
        Edit { document: self, replica, client }
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
        let sequence = self.text_named(container);
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

        let caret = sequence.and_then(|text| self.caret(text, at));
        let (left, right) = match (caret, sequence) {
            (Some(caret), _) => (caret.left, caret.right),
            (None, Some(text)) => self.document.sequences.origins_at(text, at),
            (None, None) => (Id::NONE, Id::NONE),
        };
        self.nameable(left)?;
        self.nameable(right)?;

        let client = self.begin();
        let sequence = sequence.unwrap_or_else(|| self.document.text_or_new(container));
        let document = &mut *self.document;
        let id = Id::new(client, document.replicas[client as usize].next);
        let inherited = left.client == client
            && left.counter + 1 == id.counter
            && (caret.is_some() || document.sequences.find(left).is_some_and(|place| place.right == right));
        if !inherited || document.sequences.type_on(id, scalars, text).is_none() {
            document.insert(sequence, id, left, right, text, &mut ());
        }
        document.replicas[client as usize].next += scalars;
        document.local.caret = Some(Caret {
            text: sequence,
            at: at + scalars as usize,
            left: id.plus(scalars - 1),
            right,
            first: caret.filter(|_| inherited).map_or(id.counter, |caret| caret.first),
        });

        let pending = document.local.get_or_new(client, id.counter);
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
        let sequence = self.text_named(container);
        let len = sequence.map_or(0, |text| self.document.sequences.widths(text).scalars as usize);
        if range.end > len {
            return Err(EditError::OutOfBounds { at: range.end, len });
        }
        let Some(sequence) = sequence.filter(|_| !range.is_empty()) else { return Ok(()) };
        let mut ids = std::mem::take(&mut self.document.local.ids);
        ids.clear();
        let caret = self.caret(sequence, range.end).filter(|_| range.len() == 1);
        let taken_back = caret.zip(self.client).and_then(|(caret, client)| caret.take_back(client));
        match taken_back {
            Some((id, _)) => ids.push((id, 1)),
            None => self.document.sequences.ids(sequence, range, &mut |id, len| ids.push((id, len))),
        }
        let deleted = self.delete_ids(&ids);
        if let Some((_, caret)) = taken_back
            && deleted.is_ok()
        {
            self.document.local.caret = caret;
        }
        self.document.local.keep(ids);
        deleted
    }

    fn delete_ids(&mut self, ids: &[(Id, u32)]) -> Result<(), EditError> {
        self.room(OP_BYTES_MAX + 5 + ids.len() * RANGE_BYTES_MAX, 1)?;
        for &(id, _) in ids {
            self.nameable(id)?;
        }
        let client = self.begin();
        let document = &mut *self.document;
        for &(id, len) in ids {
            document.delete(id, len, &mut ());
        }
        // A deletion right after a deletion joins it: one op, whatever the number of ranges.
        let next = &mut document.replicas[client as usize].next;
        let counter = *next;
        let pending = document.local.get_or_new(client, counter);
        let start = pending.ranges.len();
        pending.bytes += OP_BYTES_MAX + 5 + ids.len() * RANGE_BYTES_MAX;
        pending.ranges.extend_from_slice(ids);
        let end = pending.ranges.len();
        if let Some(PendingOp::Delete { ranges, .. }) = pending.ops.last_mut() {
            ranges.1 = end;
            return Ok(());
        }
        pending.ops.push(PendingOp::Delete { counter, ranges: (start, end) });
        *next += 1;
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
    /// ```
    /// use manyhands_crdt::{Document, Hlc, ReplicaId};
    ///
    /// let mut document = Document::new();
    /// let mut edit = document.edit(ReplicaId(7));
    /// edit.set("", "title", "1", Hlc::at(1), None).unwrap();
    /// edit.remove("", "title", Hlc::at(2), None).unwrap();
    /// assert!(edit.document().map("").is_none());
    /// ```
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
        let seq = document.seq;
        // The value in its canonical spelling.
        let op = first_write(&bytes);
        let writes = Writes {
            client: self.client.unwrap_or(document.replicas.len() as Client),
            first: self.next_counter(),
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

        let client = self.begin();
        let counter = self.document.replicas[client as usize].next;
        let origin = Origin { client, seq: 0, base: seq };
        self.document.write(&op, Id::new(client, counter), origin, &mut ());
        self.document.replicas[client as usize].next += 1;
        let pending = self.document.local.get_or_new(client, counter);
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
    ///
    /// ```
    /// use manyhands_crdt::{Document, ReplicaId};
    ///
    /// let mut document = Document::new();
    /// let mut edit = document.edit(ReplicaId(7));
    /// edit.insert("page", 0, "Hello").unwrap();
    /// let change = edit.commit(0).unwrap();
    /// assert_eq!((change.counter, change.next_counter), (0, 5));
    /// assert_eq!(document.edit(ReplicaId(7)).commit(0), None);
    /// ```
    pub fn commit(self, base: u64) -> Option<Change> {
        // Room for a keystroke, in the least that allocators give anyway.
        let mut body = Vec::with_capacity(24);
        let (ChangeRef { replica, counter, base, .. }, next_counter) = self.commit_into(base, &mut body)?;
        Some(Change { replica, counter, next_counter, base, body })
    }

    /// As [`commit`](Edit::commit), with the ops in a buffer of the caller's, which is emptied first: a keystroke
    /// then allocates nothing. The change, and the first counter after it.
    ///
    /// ```
    /// use manyhands_crdt::{Document, PushWriter, ReplicaId};
    ///
    /// let mut document = Document::new();
    /// let mut push = PushWriter::new();
    /// let mut body = Vec::new();
    /// for (at, key) in ["h", "i"].into_iter().enumerate() {
    ///     let mut edit = document.edit(ReplicaId(7));
    ///     edit.insert("page", at, key).unwrap();
    ///     let (change, next_counter) = edit.commit_into(0, &mut body).unwrap();
    ///     assert_eq!(next_counter, at as u64 + 1);
    ///     push.push(change.base, change.body);
    /// }
    /// assert_eq!(push.count(), 2);
    /// ```
    pub fn commit_into(self, base: u64, body: &mut Vec<u8>) -> Option<(ChangeRef<'_>, u64)> {
        let client = self.client?;
        let Document { local, replicas, names, maps, seq, .. } = self.document;
        let pending = local.get_mut(client)?;
        let base = if pending.writes.is_empty() { base } else { base.max(*seq) };
        pending.saw(maps, base);
        body.clear();
        pending.encode(replicas, names, body);
        let counter = u64::from(pending.first);
        local.taken(client);
        let next_counter = u64::from(replicas[client as usize].next);
        Some((ChangeRef { replica: self.replica, counter, base, body }, next_counter))
    }

    /// The text of that name. The one that was edited last is mostly meant.
    fn text_named(&self, container: &str) -> Option<u32> {
        let document = &*self.document;
        match document.local.caret {
            Some(Caret { text, .. }) if *document.names[text as usize] == *container => Some(text),
            _ => document.containers.get(container).copied(),
        }
    }

    /// The caret, if it is there.
    fn caret(&self, text: u32, at: usize) -> Option<Caret> {
        self.document.local.caret.filter(|caret| caret.text == text && caret.at == at)
    }

    fn next_counter(&self) -> u32 {
        self.client.map_or(0, |client| self.document.replicas[client as usize].next)
    }

    /// Checks that the change has room for so many more bytes and the replica for so many counters.
    fn room(&self, bytes: usize, counters: u64) -> Result<(), EditError> {
        if self.replica.0 == 0 {
            return Err(EditError::NoReplica);
        }
        let limits = self.document.limits;
        if self.client.is_none() && self.document.replicas.len() >= limits.replicas_max {
            return Err(EditError::TooLarge { what: "replicas", limit: limits.replicas_max as u64 });
        }
        let pending = self.client.and_then(|client| self.document.local.get(client));
        if pending.map_or(0, |pending| pending.bytes) + bytes > limits.change_bytes_max {
            let limit = limits.change_bytes_max as u64;
            return Err(EditError::TooLarge { what: "bytes of a change", limit });
        }
        if u64::from(self.next_counter()) + counters > COUNTER_MAX {
            return Err(EditError::CountersUsedUp);
        }
        Ok(())
    }

    /// Checks that a change of this replica can refer to an element: its own, or of one that the log knows.
    fn nameable(&self, id: Id) -> Result<(), EditError> {
        if id.is_none() || Some(id.client) == self.client {
            return Ok(());
        }
        let state = &self.document.replicas[id.client as usize];
        if state.log_index.is_some() { Ok(()) } else { Err(EditError::NotLogged { replica: state.id }) }
    }

    fn begin(&mut self) -> Client {
        match self.client {
            Some(client) => client,
            None => *self.client.insert(self.document.add_replica(self.replica)),
        }
    }
}
