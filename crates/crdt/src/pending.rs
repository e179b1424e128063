//! What local editing keeps in a document between its steps: the ops that no change has taken yet, and where
//! the author was.

use std::sync::Arc;

use crate::body::{self, RawInsert, RawOp, RawRange, Ref, Scratch};
use crate::document::ReplicaState;
use crate::id::{Client, Id};
use crate::map::{MapOp, Maps};
use crate::wire::Reader;

/// Memory beyond this is not kept for the next change.
const SPARE_BYTES_MAX: usize = 4096;

#[derive(Clone, Debug, Default)]
pub(crate) struct Local {
    /// For each replica that has some; one without ops may be among them, whose memory is used again.
    pending: Vec<Pending>,
    pub(crate) caret: Option<Caret>,
    /// What a deletion looks up; kept for its memory.
    pub(crate) ids: Vec<(Id, u32)>,
}

/// Where the last local insertion ended, as long as nothing else has changed a text: who types on there, or
/// takes the last character back, needs no search.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caret {
    pub(crate) text: u32,
    /// The position in the text, in scalars.
    pub(crate) at: usize,
    /// The origins of what is inserted here.
    pub(crate) left: Id,
    pub(crate) right: Id,
    /// From this counter up to that of `left`, elements were typed here in one go.
    pub(crate) first: u32,
}

impl Caret {
    /// The element before the caret, and where the caret is once that is deleted; if it was typed here by
    /// that replica.
    pub(crate) fn take_back(self, client: Client) -> Option<(Id, Option<Caret>)> {
        let Caret { at, left, first, .. } = self;
        if left.client != client || left.counter < first {
            return None;
        }
        let before = (left.counter > first).then(|| Caret {
            at: at - 1,
            left: Id::new(client, left.counter - 1),
            // The tombstone.
            right: left,
            ..self
        });
        Some((left, before))
    }
}

impl Local {
    /// The replica's ops, if there are any.
    pub(crate) fn get(&self, client: Client) -> Option<&Pending> {
        self.pending.iter().find(|pending| pending.client == client && !pending.ops.is_empty())
    }

    /// The replica's ops, the first of them at `first` when there are none yet.
    pub(crate) fn get_or_new(&mut self, client: Client, first: u32) -> &mut Pending {
        let position = |of: &dyn Fn(&Pending) -> bool| self.pending.iter().position(of);
        let known = position(&|pending| pending.client == client && !pending.ops.is_empty())
            .or_else(|| position(&|pending| pending.ops.is_empty()));
        let at = known.unwrap_or_else(|| {
            self.pending.push(Pending::default());
            self.pending.len() - 1
        });
        let pending = &mut self.pending[at];
        if pending.ops.is_empty() {
            pending.client = client;
            pending.first = first;
        }
        pending
    }

    /// Whether a change has taken everything.
    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.pending.iter().all(|pending| pending.ops.is_empty())
    }

    /// The replica's ops, to make a change of them; [`taken`](Local::taken) when that is done.
    pub(crate) fn get_mut(&mut self, client: Client) -> Option<&mut Pending> {
        self.pending.iter_mut().find(|pending| pending.client == client && !pending.ops.is_empty())
    }

    /// A change has taken the ops of that replica. Their memory is used again.
    pub(crate) fn taken(&mut self, client: Client) {
        let own = |pending: &Pending| pending.client == client && !pending.ops.is_empty();
        let Some(at) = self.pending.iter().position(own) else { return };
        let one_is_enough = self.pending.len() > 1;
        let pending = &mut self.pending[at];
        if one_is_enough || pending.memory_bytes() > SPARE_BYTES_MAX {
            self.pending.swap_remove(at);
        } else {
            pending.clear();
        }
    }

    /// Keeps the memory of what a deletion looked up.
    pub(crate) fn keep(&mut self, ids: Vec<(Id, u32)>) {
        if ids.capacity() * size_of::<(Id, u32)>() <= SPARE_BYTES_MAX {
            self.ids = ids;
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.pending.capacity() * size_of::<Pending>()
            + self.pending.iter().map(Pending::memory_bytes).sum::<usize>()
            + self.ids.capacity() * size_of::<(Id, u32)>()
    }
}

/// Local ops that are applied and in no change yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pending {
    client: Client,
    /// The counter of the first op.
    pub(crate) first: u32,
    pub(crate) ops: Vec<PendingOp>,
    pub(crate) text: String,
    pub(crate) ranges: Vec<(Id, u32)>,
    /// The bytes of writes to maps, one after another.
    pub(crate) writes: Vec<u8>,
    /// An upper bound of the body's length.
    pub(crate) bytes: usize,
    /// The ranges of one deletion as the body has them.
    raw: Vec<RawRange>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum PendingOp {
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

/// The op of bytes that were just made.
pub(crate) fn first_write(bytes: &[u8]) -> MapOp<'_> {
    match body::read_op(&mut Reader::new(bytes), &mut Scratch::default()) {
        Ok((RawOp::Map(op), _)) => op,
        _ => unreachable!("an op that was just encoded"),
    }
}

impl Pending {
    fn clear(&mut self) {
        let Pending { client: _, first: _, ops, text, ranges, writes, bytes, raw } = self;
        ops.clear();
        text.clear();
        ranges.clear();
        writes.clear();
        raw.clear();
        *bytes = 0;
    }

    fn memory_bytes(&self) -> usize {
        self.ops.capacity() * size_of::<PendingOp>()
            + self.text.capacity()
            + self.ranges.capacity() * size_of::<(Id, u32)>()
            + self.writes.capacity()
            + self.raw.capacity() * size_of::<RawRange>()
    }

    /// Its writes to maps may have been made before the newest entries came. They count as made now, so what
    /// came since is seen by them here as everywhere else.
    pub(crate) fn saw(&self, maps: &mut Maps, base: u64) {
        for op in &self.ops {
            if let PendingOp::Map { bytes: (start, end) } = *op {
                let op = first_write(&self.writes[start..end]);
                maps.saw(op.map, op.key, base);
            }
        }
    }

    /// Adds the ops to `body`, in their canonical form.
    pub(crate) fn encode(&mut self, replicas: &[ReplicaState], names: &[Arc<str>], body: &mut Vec<u8>) {
        let Pending { client, ref ops, ref text, ref mut ranges, ref mut raw, ref writes, .. } = *self;
        for (n, op) in ops.iter().enumerate() {
            let more = n + 1 < ops.len();
            match *op {
                PendingOp::Insert { id, len, left, right, inherited, text: (start, end), name } => {
                    let insert = RawInsert {
                        left: reference(replicas, id, left),
                        right: if inherited { Ref::Inherited } else { reference(replicas, id, right) },
                        name: name.map(|text| &*names[text as usize]),
                        text: &text[start..end],
                        len,
                    };
                    body::put_insert(body, &insert, more);
                }
                PendingOp::Delete { counter, ranges: (start, end) } => {
                    let op = Id::new(client, counter);
                    canonical_ranges(replicas, op, &mut ranges[start..end], raw);
                    body::put_delete(body, raw, more);
                }
                PendingOp::Map { bytes: (start, end) } => {
                    let at = body.len();
                    body.extend_from_slice(&writes[start..end]);
                    if more {
                        body::more_follow(body, at);
                    }
                }
            }
        }
    }
}

/// How the op at `from` names `id`.
fn reference(replicas: &[ReplicaState], from: Id, id: Id) -> Ref {
    if id.is_none() {
        Ref::None
    } else if id.client == from.client {
        Ref::Own(u64::from(from.counter - id.counter))
    } else {
        Ref::Other { index: log_index(replicas, id.client), counter: u64::from(id.counter) }
    }
}

/// Own elements first, then by replica id, ascending; ranges that touch become one.
fn canonical_ranges(replicas: &[ReplicaState], op: Id, ranges: &mut [(Id, u32)], raw: &mut Vec<RawRange>) {
    if ranges.len() > 1 {
        ranges.sort_unstable_by_key(|&(id, _)| {
            (id.client != op.client, replicas[id.client as usize].id, id.counter)
        });
    }
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
        raw.push(match reference(replicas, op, id) {
            Ref::Other { index, counter } => {
                RawRange { index: Some(index), from: counter, len: u64::from(len) }
            }
            Ref::Own(distance) => RawRange { index: None, from: distance, len: u64::from(len) },
            Ref::None | Ref::Inherited => unreachable!("a deleted element has an id"),
        });
    }
}

/// An edit that would have to name a replica without an index is refused.
fn log_index(replicas: &[ReplicaState], client: Client) -> u64 {
    u64::from(replicas[client as usize].log_index.expect("what cannot be named is refused"))
}

#[cfg(test)]
mod tests {
    use crate::change::Change;
    use crate::document::Document;
    use crate::id::ReplicaId;

    /// All have a log index already.
    fn start() -> Document {
        let mut document = Document::new();
        for replica in [1, 2, 9].map(ReplicaId) {
            let mut author = Document::new();
            let mut edit = author.edit(replica);
            edit.insert("text", 0, "hello").expect("in bounds");
            let change = edit.commit(0).expect("an insertion");
            document.apply(change.as_ref()).expect("a good change");
        }
        document
    }

    /// Types, takes back, deletes and moves, mostly where it was; several steps make one change.
    fn session(document: &mut Document, seed: u64, forget: bool) -> (Vec<Change>, usize) {
        let mut state = seed;
        let mut random = move |n: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % n
        };
        let (mut changes, mut at, mut used) = (Vec::new(), 0, 0);
        for step in 0..120 {
            let replica = ReplicaId(1 + step / 60);
            let name = if random(40) == 0 { "other" } else { "text" };
            let len = document.text(name).map_or(0, |text| text.len());
            at = if random(12) == 0 { random(len + 1) } else { at.min(len) };
            if forget {
                document.local.caret = None;
            }
            used += usize::from(document.local.caret.is_some_and(|caret| caret.at == at));
            let mut edit = document.edit(replica);
            match random(7) {
                0..4 => {
                    let text = ["x", "ß", "🎉\n", "word"][random(4)];
                    edit.insert(name, at, text).expect("in bounds");
                    at += text.chars().count();
                }
                4 if at < len => edit.delete(name, at..len.min(at + 1 + random(3))).expect("in bounds"),
                _ if at > 0 => {
                    edit.delete(name, at - 1..at).expect("in bounds");
                    at -= 1;
                }
                _ => {}
            }
            if random(3) > 0 {
                changes.extend(document.edit(replica).commit(0));
            }
            // Somebody else's deletion of what was just typed, or insertion there.
            if random(15) == 0 && document.local.is_empty() {
                let mut other = document.clone();
                let len = other.text("text").map_or(0, |text| text.len());
                let mut edit = other.edit(ReplicaId(9));
                match random(2) {
                    0 if at > 0 && at <= len => edit.delete("text", at - 1..at).expect("in bounds"),
                    _ => edit.insert("text", at.min(len), "!").expect("in bounds"),
                }
                if let Some(change) = other.edit(ReplicaId(9)).commit(0) {
                    document.apply(change.as_ref()).expect("a good change");
                }
            }
        }
        (changes, used)
    }

    // enforces: I-5
    #[test]
    fn with_the_caret_or_without_the_same_changes_are_made() {
        let (mut carets, mut total) = (0, 0);
        for seed in 0..2000 {
            let (mut remembers, mut forgets) = (start(), start());
            let (changes, used) = session(&mut remembers, seed, false);
            let (expected, _) = session(&mut forgets, seed, true);
            assert_eq!(changes, expected, "seed {seed}");
            assert_eq!(remembers.state_hash(), forgets.state_hash(), "seed {seed}");
            carets += used;
            total += 120;
        }
        assert!(carets * 3 > total, "the caret was of use {carets} times of {total}");
    }
}
