//! Entries from the log, as a client takes them: in order of seq, with what changed for a view.

use std::sync::Arc;

use crate::body;
use crate::document::{Document, Observer};
use crate::error::{Flaw, Malformed, Refusal};
use crate::id::{Client, ReplicaId};
use crate::record::{EntryHead, read_entry_head};
use crate::wire::Reader;

/// A visible effect, in scalars: at `at`, `deleted` characters went, then `inserted` came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// The text's name.
    pub container: Arc<str>,
    /// Where, after all patches before this one.
    pub at: usize,
    /// Characters that went.
    pub deleted: usize,
    /// Characters that came.
    pub inserted: String,
}

impl Observer for Vec<Patch> {
    fn inserted(&mut self, container: &Arc<str>, at: usize, text: &str) {
        self.push(Patch { container: container.clone(), at, deleted: 0, inserted: text.to_owned() });
    }

    fn deleted(&mut self, container: &Arc<str>, at: usize, len: usize) {
        if let Some(last) = self.last_mut()
            && last.inserted.is_empty()
            && last.at == at
            && last.container == *container
        {
            last.deleted += len;
            return;
        }
        self.push(Patch { container: container.clone(), at, deleted: len, inserted: String::new() });
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
        if first_seq == 0 || first_seq.checked_add(u64::from(count)).is_none() {
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
                self.receive_entry(start, &head, entries, &mut reader, on)?;
            }
        }
        reader.end()?;
        Ok(())
    }

    fn receive_entry(
        &mut self,
        start: usize,
        head: &EntryHead,
        entries: &[u8],
        reader: &mut Reader<'_>,
        on: &mut impl Observer,
    ) -> Result<(), Refusal> {
        let (client, replica) = self.author(start, head)?;
        let state = self.replicas.get(client as usize);
        let (logged, next) = state.map_or((0, 0), |state| (state.logged, state.next));
        if logged < next {
            // Our own change came back.
            let counters = body::skip(reader, &mut self.scratch)?;
            let end = u64::from(logged) + counters;
            if end > u64::from(next) {
                return Err(Refusal::Known { next_counter: u64::from(next) });
            }
            self.replicas[client as usize].logged = end as u32;
        } else {
            let next = self.receive_body(client, replica, entries, reader, on)?;
            self.replicas[client as usize].logged = next;
        }
        if head.new.is_some() {
            self.give_index(client);
        }
        Ok(())
    }

    fn receive_body(
        &mut self,
        client: Client,
        replica: ReplicaId,
        entries: &[u8],
        reader: &mut Reader<'_>,
        on: &mut impl Observer,
    ) -> Result<u32, Refusal> {
        let limits = self.limits.doubled();
        let start = reader.clone();
        if let Some(keystroke) = body::read_keystroke(reader, &mut self.scratch) {
            if let Some(next) = self.keystroke(client, limits, &keystroke, on) {
                return Ok(next);
            }
            *reader = start;
        }
        self.check(client, replica, limits, reader)?;
        if client as usize == self.replicas.len() {
            self.add_replica(replica);
        }
        Ok(self.integrate(client, entries, on))
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
