//! Entries from the log, as a client takes them: in order of seq, with what changed for a view.

use std::sync::Arc;

use crate::body::{self, RawOp};
use crate::check::Checked;
use crate::document::{Document, Observer, Origin};
use crate::error::{Flaw, Malformed, Refusal};
use crate::id::{Client, Id, OpId, ReplicaId, SEQ_MAX};
use crate::map::Hlc;
use crate::record::{EntryHead, read_entry_head};
use crate::wire::Reader;

/// A visible effect of a change, for whoever shows the document.
///
/// ```
/// use manyhands_crdt::{Document, EntryWriter, Patch, ReplicaId};
///
/// let mut ann = Document::new();
/// let mut edit = ann.edit(ReplicaId(7));
/// edit.insert("page", 0, "Hi").unwrap();
/// let change = edit.commit(0).unwrap();
/// let mut run = EntryWriter::new();
/// run.push(1, 0, Some(ReplicaId(7)), change.base, &change.body);
///
/// let mut bob = Document::new();
/// let mut patches = Vec::new();
/// bob.receive(1, run.count(), &run.finish(), 0, &mut patches).unwrap();
/// assert_eq!(patches[0].container(), "page");
/// let Patch::Text { at, deleted, inserted, .. } = &patches[0] else { panic!("a text was edited") };
/// assert_eq!((*at, *deleted, inserted.as_str()), (0, 0, "Hi"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Patch {
    /// In a text, counted in scalars: at `at`, `deleted` characters went, then `inserted` came.
    Text {
        /// The text's name.
        container: Arc<str>,
        /// Where, after all patches before this one.
        at: usize,
        /// Characters that went.
        deleted: usize,
        /// Characters that came.
        inserted: String,
    },
    /// In a map, a key has another value, or the values that lost to it are others.
    Map {
        /// The map's name.
        container: Arc<str>,
        /// The key.
        key: Arc<str>,
        /// The value that the key has now, as JSON; `None` when it has none.
        value: Option<Arc<str>>,
        /// The stamp of that value, or of the removal.
        stamp: Hlc,
        /// The op that wrote it, or that removed the last one.
        op: OpId,
    },
}

impl Patch {
    /// The name of the text or map.
    #[must_use]
    pub fn container(&self) -> &str {
        match self {
            Patch::Text { container, .. } | Patch::Map { container, .. } => container,
        }
    }
}

impl Observer for Vec<Patch> {
    fn inserted(&mut self, container: &Arc<str>, at: usize, text: &str) {
        self.push(Patch::Text { container: container.clone(), at, deleted: 0, inserted: text.to_owned() });
    }

    fn deleted(&mut self, container: &Arc<str>, at: usize, len: usize) {
        if let Some(Patch::Text { container: of_last, at: at_last, deleted, inserted }) = self.last_mut()
            && inserted.is_empty()
            && *at_last == at
            && *of_last == *container
        {
            *deleted += len;
            return;
        }
        let inserted = String::new();
        self.push(Patch::Text { container: container.clone(), at, deleted: len, inserted });
    }

    fn wrote(
        &mut self,
        container: &Arc<str>,
        key: &Arc<str>,
        value: Option<&Arc<str>>,
        stamp: Hlc,
        op: OpId,
    ) {
        let (container, key, value) = (container.clone(), key.clone(), value.cloned());
        self.push(Patch::Map { container, key, value, stamp, op });
    }
}

impl Document {
    /// Takes a run of entries: `count` of them, the first at `first_seq`. Those up to `known` are
    /// skipped; own ones that are applied already only get their log index. Patches are added for what
    /// the others changed. What the log has was admitted once, so its limits are not checked again, but that
    /// nothing grows beyond twice of them.
    ///
    /// # Errors
    /// The entries before the one at fault stay applied; that one is not.
    pub fn receive(
        &mut self,
        first_seq: u64,
        count: u32,
        entries: &[u8],
        known: u64,
        patches: &mut Vec<Patch>,
    ) -> Result<(), Refusal> {
        self.receive_with(first_seq, count, entries, known, patches)
    }

    /// [`receive`](Document::receive) for those who need no patches: replay, tests.
    ///
    /// ```
    /// use manyhands_crdt::{Document, EntryWriter, ReplicaId};
    ///
    /// // Two entries of replica 7: "H", then "i" behind it.
    /// let mut run = EntryWriter::new();
    /// run.push(1, 0, Some(ReplicaId(7)), 0, &[0x80, 0x04, b'p', b'a', b'g', b'e', b'H']);
    /// run.push(2, 0, None, 0, &[0xe8, b'i']);
    /// let mut document = Document::new();
    /// document.replay(1, run.count(), &run.finish(), 0).unwrap();
    /// assert_eq!(document.text("page").unwrap().to_string(), "Hi");
    /// ```
    pub fn replay(&mut self, first_seq: u64, count: u32, entries: &[u8], known: u64) -> Result<(), Refusal> {
        self.receive_with(first_seq, count, entries, known, &mut ())
    }

    fn receive_with(
        &mut self,
        first_seq: u64,
        count: u32,
        entries: &[u8],
        known: u64,
        on: &mut impl Observer,
    ) -> Result<(), Refusal> {
        let mut reader = Reader::new(entries);
        let behind = first_seq.checked_add(u64::from(count));
        if first_seq == 0 || behind.is_none_or(|behind| behind > SEQ_MAX) {
            return Err(Malformed { offset: 0, flaw: Flaw::Bounds }.into());
        }
        if first_seq > known.saturating_add(1) {
            return Err(Refusal::MissingEntries { known });
        }
        for seq in first_seq..first_seq + u64::from(count) {
            let start = reader.at();
            let head = read_entry_head(&mut reader, seq)?;
            if seq <= known {
                body::skip(&mut reader, &mut self.scratch)?;
            } else {
                self.receive_entry(start, seq, &head, entries, &mut reader, on)?;
                self.seq = seq;
            }
        }
        reader.end()?;
        Ok(())
    }

    fn receive_entry(
        &mut self,
        start: usize,
        seq: u64,
        head: &EntryHead,
        entries: &[u8],
        reader: &mut Reader<'_>,
        on: &mut impl Observer,
    ) -> Result<(), Refusal> {
        let (client, replica) = self.author(start, head)?;
        let state = self.replicas.get(client as usize);
        let (logged, next) = state.map_or((0, 0), |state| (state.logged, state.next));
        let origin = Origin { client, seq, base: head.base };
        if logged < next {
            // Our own change came back.
            let body = reader.at();
            let counters = body::skip(reader, &mut self.scratch)?;
            let end = u64::from(logged) + counters;
            if end > u64::from(next) {
                return Err(Refusal::Known { next_counter: u64::from(next) });
            }
            if self.scratch.maps {
                self.own_writes_logged(Reader::starting_at(entries, body), logged, origin, on)?;
            }
            self.replicas[client as usize].logged = end as u32;
        } else {
            let next = self.receive_body(origin, replica, entries, reader, on)?;
            self.replicas[client as usize].logged = next;
        }
        if head.new.is_some() {
            self.give_index(client);
        }
        Ok(())
    }

    fn receive_body(
        &mut self,
        origin: Origin,
        replica: ReplicaId,
        entries: &[u8],
        reader: &mut Reader<'_>,
        on: &mut impl Observer,
    ) -> Result<u32, Refusal> {
        let Origin { client, base, .. } = origin;
        let limits = self.limits.doubled();
        let start = reader.clone();
        if let Some(keystroke) = body::read_keystroke(reader, &mut self.scratch) {
            if let Some(next) = self.keystroke(client, limits, &keystroke, on) {
                return Ok(next);
            }
            *reader = start;
        }
        self.check(Checked { client, replica, base, limits, admission: None }, reader)?;
        if client as usize == self.replicas.len() {
            self.add_replica(replica);
        }
        Ok(self.integrate(origin, entries, on))
    }

    /// Our own writes to maps, which start at that counter, have their place in the log now.
    fn own_writes_logged(
        &mut self,
        mut reader: Reader<'_>,
        first: u32,
        origin: Origin,
        on: &mut impl Observer,
    ) -> Result<(), Refusal> {
        let mut counter = u64::from(first);
        loop {
            let (op, more) = body::read_op(&mut reader, &mut self.scratch)?;
            if let RawOp::Map(write) = &op {
                self.logged(write, Id::new(origin.client, counter as u32), origin, on);
            }
            counter += op.counters();
            if !more {
                return Ok(());
            }
        }
    }

    /// Whose entry it is. A first entry must bring the next log index and a replica that has none.
    fn author(&self, start: usize, head: &EntryHead) -> Result<(Client, ReplicaId), Refusal> {
        let flaw = |flaw| Err(Malformed { offset: start, flaw }.into());
        let known = self.log.len() as u64;
        match head.new {
            Some(replica) => {
                if head.index != known {
                    return flaw(Flaw::Inconsistent);
                }
                let client = self.client_or_next(replica, self.limits.doubled())?;
                match self.replicas.get(client as usize) {
                    Some(state) if state.log_index.is_some() => flaw(Flaw::Inconsistent),
                    _ => Ok((client, replica)),
                }
            }
            None => match usize::try_from(head.index).ok().and_then(|index| self.log.get(index)) {
                Some(&client) => Ok((client, self.replicas[client as usize].id)),
                None => Err(Refusal::UnknownIndex { index: head.index }),
            },
        }
    }
}
