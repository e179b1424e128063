//! From a body's bytes to ops that cannot fail: references resolved, limits and rules checked, nothing
//! changed yet. This is what makes applying a change all or nothing.

use std::sync::Arc;

use crate::body::{self, RawInsert, RawOp, RawRange, Ref, Scratch};
use crate::document::{Admission, Document, Limits};
use crate::error::{Flaw, Malformed, Refusal};
use crate::id::{COUNTER_MAX, Client, Id, OpId, ReplicaId};
use crate::map::MapOp;
use crate::map::admit::Writes;
use crate::sequence::{Guess, Place};
use crate::wire::Reader;

/// An op whose references are resolved and checked.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// `content` is where the text lies in the bytes that were read, `guess` where the left origin was seen.
    Insert { id: Id, len: u32, left: Id, right: Id, text: u32, content: (usize, usize), guess: Guess },
    /// Which of `Resolved::ranges` it deletes.
    Delete { counter: u32, ranges: (usize, usize) },
    /// `at` is where the op begins in the bytes that were read.
    Map { counter: u32, at: usize },
}

impl Op {
    fn counter(&self) -> u32 {
        match *self {
            Op::Insert { id, .. } => id.counter,
            Op::Delete { counter, .. } | Op::Map { counter, .. } => counter,
        }
    }
}

/// The ops of one change; kept in the document between changes, so that nothing is allocated for each.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resolved {
    pub(crate) ops: Vec<Op>,
    pub(crate) ranges: Vec<(Id, u32, Guess)>,
    /// Containers that this change makes; their texts get the next numbers.
    pub(crate) new_names: Vec<Arc<str>>,
}

/// Whose body is checked, and how strictly.
#[derive(Clone, Copy)]
pub(crate) struct Checked<'c> {
    pub(crate) client: Client,
    pub(crate) replica: ReplicaId,
    pub(crate) base: u64,
    pub(crate) limits: Limits,
    /// Only where the owner decides: what is in the log was admitted once.
    pub(crate) admission: Option<&'c Admission>,
}

impl Document {
    /// Reads one body of `client` and resolves it into `self.resolved`. Apart from that and the scratch
    /// the document stays as it is, also on success.
    pub(crate) fn check(&mut self, what: Checked<'_>, reader: &mut Reader<'_>) -> Result<(), Refusal> {
        let Checked { client, replica, limits, .. } = what;
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut resolved = std::mem::take(&mut self.resolved);
        scratch.indices.clear();
        resolved.ops.clear();
        resolved.ranges.clear();
        resolved.new_names.clear();
        let first = self.replicas.get(client as usize).map_or(0, |state| state.next);
        let mut check = Check {
            document: self,
            limits,
            client,
            replica,
            first,
            next: u64::from(first),
            elements: 0,
            deleted: 0,
            writes: Vec::new(),
            resolved: &mut resolved,
        };
        let result = check.body(reader, &mut scratch).and_then(|()| check.maps(what));
        self.scratch = scratch;
        self.resolved = resolved;
        result
    }
}

struct Check<'d, 'a> {
    document: &'d Document,
    limits: Limits,
    client: Client,
    replica: ReplicaId,
    /// First counter of the change.
    first: u32,
    /// First counter of the op that is looked at.
    next: u64,
    /// Elements that the change adds.
    elements: usize,
    /// Ids that the change deletes.
    deleted: u64,
    /// What it writes to maps.
    writes: Vec<MapOp<'a>>,
    resolved: &'d mut Resolved,
}

impl<'a> Check<'_, 'a> {
    fn body(&mut self, reader: &mut Reader<'a>, scratch: &mut Scratch) -> Result<(), Refusal> {
        loop {
            let start = reader.at();
            let (op, more) = body::read_op(reader, scratch)?;
            match op {
                RawOp::Insert(insert) => self.insert(start, reader, &insert)?,
                RawOp::Delete => self.delete(start, &scratch.ranges)?,
                RawOp::Map(op) => self.map(start, op)?,
            }
            if !more {
                return Ok(());
            }
        }
    }

    fn map(&mut self, start: usize, op: MapOp<'a>) -> Result<(), Refusal> {
        if self.next + 1 > COUNTER_MAX {
            return Err(Refusal::CountersUsedUp);
        }
        self.writes.push(op);
        self.resolved.ops.push(Op::Map { counter: self.next as u32, at: start });
        self.next += 1;
        Ok(())
    }

    /// Checks what the change writes to maps, once all of it was read.
    fn maps(&self, what: Checked<'_>) -> Result<(), Refusal> {
        if self.writes.is_empty() {
            return Ok(());
        }
        let writes = Writes {
            client: what.client,
            first: self.first,
            base: what.base,
            ops: &self.writes,
            new_texts: self.resolved.new_names.len(),
        };
        writes.check(self.document, what.limits, what.admission)
    }

    fn insert(
        &mut self,
        start: usize,
        reader: &mut Reader<'_>,
        insert: &RawInsert<'_>,
    ) -> Result<(), Refusal> {
        let id = Id::new(self.client, self.next as u32);
        if self.next + u64::from(insert.len) > COUNTER_MAX {
            return Err(Refusal::CountersUsedUp);
        }
        let left = self.resolve(start, insert.left)?;
        let (right, text, guess) = match self.backward(start, insert, left)? {
            Some((right, text)) => (right, text, Place::NO_GUESS),
            None => self.origins(start, insert, left)?,
        };
        self.elements += insert.len as usize;
        if self.document.sequences.elements() + self.elements > self.limits.elements_max {
            let limit = self.limits.elements_max as u64;
            return Err(Refusal::TooLarge { what: "characters of a document", limit });
        }
        self.next += u64::from(insert.len);
        let end = reader.at();
        let content = (end - insert.text.len(), end);
        self.resolved.ops.push(Op::Insert { id, len: insert.len, left, right, text, content, guess });
        Ok(())
    }

    /// Typing backwards: the right origin is an own element with the same left origin, which then needs no
    /// look. Right origin and text.
    fn backward(&self, start: usize, insert: &RawInsert<'_>, left: Id) -> Result<Option<(Id, u32)>, Refusal> {
        if insert.left == Ref::Own(1) || !matches!(insert.right, Ref::Own(_)) {
            return Ok(None);
        }
        let right = self.resolve(start, insert.right)?;
        // A flaw of the right origin is told after those of the left one.
        let place = self.place(right).ok().flatten();
        Ok(place.filter(|place| place.left == left).map(|place| (right, place.text)))
    }

    /// Looks the origins up: right origin, text, and where the left one was seen.
    fn origins(
        &mut self,
        start: usize,
        insert: &RawInsert<'_>,
        left: Id,
    ) -> Result<(Id, u32, Guess), Refusal> {
        let left_place = self.place(left)?;
        let right = match (insert.right, left_place) {
            (Ref::Inherited, Some(place)) => place.right,
            (right, _) => {
                let right = self.resolve(start, right)?;
                if insert.left == Ref::Own(1) && left_place.is_some_and(|place| place.right == right) {
                    return Err(Malformed { offset: start, flaw: Flaw::NotCanonical }.into());
                }
                right
            }
        };
        let text = match (left_place, insert.right) {
            (Some(place), Ref::Inherited | Ref::None) => place.text,
            // Mostly nobody has inserted between the two.
            (Some(place), _) if place.next == right => place.text,
            (left_place, _) => match (left_place, self.place(right)?) {
                (Some(left), Some(right_place)) if left.text != right_place.text => {
                    return Err(Refusal::OtherContainer { id: self.op_id(right) });
                }
                (Some(place), _) | (None, Some(place)) => place.text,
                (None, None) => self.named(insert)?,
            },
        };
        Ok((right, text, left_place.map_or(Place::NO_GUESS, |place| place.guess)))
    }

    /// The text of that name. When there is none, it will be the next that is made.
    fn named(&mut self, insert: &RawInsert<'_>) -> Result<u32, Refusal> {
        let name = insert.name.expect("read when there is no origin");
        if let Some(&text) = self.document.containers.get(name) {
            return Ok(text);
        }
        let known = self.document.names.len();
        if let Some(n) = self.resolved.new_names.iter().position(|new| **new == *name) {
            return Ok((known + n) as u32);
        }
        let text = known + self.resolved.new_names.len();
        if text + self.document.maps.len() >= self.limits.containers_max {
            let limit = self.limits.containers_max as u64;
            return Err(Refusal::TooLarge { what: "containers", limit });
        }
        self.resolved.new_names.push(name.into());
        Ok(text as u32)
    }

    fn delete(&mut self, start: usize, ranges: &[RawRange]) -> Result<(), Refusal> {
        if self.next + 1 > COUNTER_MAX {
            return Err(Refusal::CountersUsedUp);
        }
        let first = self.resolved.ranges.len();
        let mut last: Option<ReplicaId> = None;
        for (n, range) in ranges.iter().enumerate() {
            let (id, replica) = match range.index {
                None => (self.own(start, range.from)?, None),
                Some(index) => {
                    let id = self.other(start, index, range.from)?;
                    let replica = self.document.replicas[id.client as usize].id;
                    if n > 0 && ranges[n - 1].index != range.index && last.is_some_and(|last| last >= replica)
                    {
                        return Err(Malformed { offset: start, flaw: Flaw::NotCanonical }.into());
                    }
                    (id, Some(replica))
                }
            };
            last = replica;
            // Time is bounded too: no change can make the same elements be deleted over and over.
            self.deleted = self.deleted.saturating_add(range.len);
            if self.deleted > self.limits.elements_max as u64 {
                let limit = self.limits.elements_max as u64;
                return Err(Refusal::TooLarge { what: "deletions of a change", limit });
            }
            let guess = self.elements_of(id, range.len)?;
            self.resolved.ranges.push((id, range.len as u32, guess));
        }
        let ranges = (first, self.resolved.ranges.len());
        self.resolved.ops.push(Op::Delete { counter: self.next as u32, ranges });
        self.next += 1;
        Ok(())
    }

    /// All of `len` ids must be elements. Says where the first was seen.
    fn elements_of(&self, id: Id, len: u64) -> Result<Guess, Refusal> {
        let end = u64::from(id.counter) + len;
        let own = id.client == self.client;
        let known = if own { self.next } else { u64::from(self.document.replicas[id.client as usize].next) };
        if end > known {
            let counter = known.max(u64::from(id.counter));
            return Err(Refusal::MissingReference { id: self.op_id_at(id.client, counter) });
        }
        // What this change inserts itself is not in the document yet.
        let split = if own { end.min(u64::from(self.first).max(u64::from(id.counter))) } else { end };
        let before = (split - u64::from(id.counter)) as u32;
        let mut guess = Place::NO_GUESS;
        if before > 0 {
            guess = match self.document.sequences.find_all(id, before) {
                Ok(guess) => guess,
                Err(missing) => return Err(Refusal::NotAnElement { id: self.op_id(missing) }),
            };
        }
        let mut counter = split as u32;
        while u64::from(counter) < end {
            match self.op_of(counter) {
                Some(Op::Insert { id, len, .. }) => counter = id.counter + len,
                _ => return Err(Refusal::NotAnElement { id: self.op_id_at(id.client, u64::from(counter)) }),
            }
        }
        Ok(guess)
    }

    fn resolve(&self, start: usize, reference: Ref) -> Result<Id, Refusal> {
        match reference {
            Ref::None | Ref::Inherited => Ok(Id::NONE),
            Ref::Own(distance) => self.own(start, distance),
            Ref::Other { index, counter } => self.other(start, index, counter),
        }
    }

    fn own(&self, start: usize, distance: u64) -> Result<Id, Refusal> {
        match self.next.checked_sub(distance) {
            Some(counter) => Ok(Id::new(self.client, counter as u32)),
            None => Err(Malformed { offset: start, flaw: Flaw::Counter }.into()),
        }
    }

    fn other(&self, start: usize, index: u64, counter: u64) -> Result<Id, Refusal> {
        let log = &self.document.log;
        let client = usize::try_from(index).ok().and_then(|index| log.get(index).copied());
        let Some(client) = client else { return Err(Refusal::UnknownIndex { index }) };
        if client == self.client {
            // Own elements are given by distance.
            return Err(Malformed { offset: start, flaw: Flaw::NotCanonical }.into());
        }
        if counter >= u64::from(self.document.replicas[client as usize].next) {
            return Err(Refusal::MissingReference { id: self.op_id_at(client, counter) });
        }
        Ok(Id::new(client, counter as u32))
    }

    /// Where an origin is; `None` for no origin.
    fn place(&self, id: Id) -> Result<Option<Place>, Refusal> {
        if id.is_none() {
            return Ok(None);
        }
        let place = if id.client == self.client && id.counter >= self.first {
            self.in_change(id.counter)
        } else {
            self.document.sequences.find(id)
        };
        match place {
            Some(place) => Ok(Some(place)),
            None => Err(Refusal::NotAnElement { id: self.op_id(id) }),
        }
    }

    /// An element that an earlier op of this change inserts.
    fn in_change(&self, counter: u32) -> Option<Place> {
        match *self.op_of(counter)? {
            Op::Insert { id, left, right, text, .. } => {
                let left = if counter > id.counter { Id::new(id.client, counter - 1) } else { left };
                Some(Place { text, left, right, next: Id::NONE, guess: Place::NO_GUESS })
            }
            Op::Delete { .. } | Op::Map { .. } => None,
        }
    }

    /// The earlier op of this change that took that counter.
    fn op_of(&self, counter: u32) -> Option<&Op> {
        let after = self.resolved.ops.partition_point(|op| op.counter() <= counter);
        self.resolved.ops.get(after.checked_sub(1)?)
    }

    fn op_id(&self, id: Id) -> OpId {
        self.op_id_at(id.client, u64::from(id.counter))
    }

    fn op_id_at(&self, client: Client, counter: u64) -> OpId {
        let replica = match self.document.replicas.get(client as usize) {
            Some(state) => state.id,
            None => self.replica,
        };
        OpId { replica, counter }
    }
}
