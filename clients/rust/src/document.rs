//! What a client holds of one workspace: the merged document, the edits that the server has not
//! acknowledged, those that it refused, and who else is there.
//!
//! No I/O happens here. The application edits and reads under the lock; the driver passes in what the
//! server said.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use manyhands_crdt::{ChangeRef, Clock, Document, Limits, Patch, ReplicaId, Strategy};
use manyhands_proto::{Code, DocumentName, Incarnation, Position, Seq};
use manyhands_session::client::OutgoingChange;

use crate::edit::LocalEdit;
use crate::presence::{OwnPresence, Peer};
use crate::storage::{Left, LeftOutbox, StorageError, Write};

/// Why an edit was not made. The text is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The token allows reading only.
    #[error("this workspace is open for reading only; use a token with the write scope")]
    ReadOnly,
    /// Too much waits for the server.
    #[error("{pending} edits wait for the server already; wait until they are saved")]
    OutboxFull {
        /// Edits that wait.
        pending: usize,
    },
    /// The document is being replaced by the server's, for instance because it refused an earlier edit.
    #[error("the document is being loaded anew; try again when it is")]
    Reloading,
    /// The workspace or its client is closed, or the server closed it.
    #[error("the workspace is closed")]
    Closed,
    /// A refused deletion was to be made again, and something else stands there now.
    #[error("the text has changed since; make the edit anew, or discard it")]
    Outdated,
    /// The value cannot be written as JSON.
    #[error("the value is not JSON: {0}")]
    NotJson(String),
    /// There is no such refusal, or it was dealt with.
    #[error("there is no refused edit of this number")]
    NotRefused,
    /// The document does not take it: a position after the end, or more than fits into one change.
    #[error(transparent)]
    Document(#[from] manyhands_crdt::EditError),
}

/// Edits that the server refused, and why. They are in no log and no longer in the workspace; they are kept
/// until the application makes them again or discards them.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Names it in [`Workspace::retry`](crate::Workspace::retry) and
    /// [`Workspace::discard`](crate::Workspace::discard).
    pub id: u64,
    /// Why, if this build knows the code.
    pub code: Option<Code>,
    /// The number of the code.
    pub number: u32,
    /// Why, in the server's words.
    pub message: String,
    /// What to do about it.
    pub fix: String,
    /// What stands in the way, as a JSON object: after a write to a map that expected another value, the
    /// `value` that the key has now and its `seq`.
    pub current: Option<String>,
    /// The refused edits in the order in which they were made: the first one was at fault, the rest came
    /// after it.
    pub edits: Vec<LocalEdit>,
    /// How many of them each change had.
    sizes: Vec<usize>,
}

/// A local change and what it did, kept until the server has it.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) change: OutgoingChange,
    /// The history that its author had seen, if any.
    pub(crate) incarnation: Option<Incarnation>,
    pub(crate) edits: Vec<LocalEdit>,
}

/// How far a workspace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing of the server's state has come yet.
    Loading,
    /// Merged with the server's state.
    Live,
    /// An edit was refused; the server's state is on the way.
    Reloading,
    /// The server or the application closed it.
    Closed,
}

/// See the [module](self).
pub(crate) struct OpenDocument {
    pub(crate) name: DocumentName,
    pub(crate) channel: u32,
    pub(crate) replica: ReplicaId,
    pub(crate) document: Document,
    /// What the application asked for, if it did.
    pub(crate) strategy: Option<Strategy>,
    /// Later than every write to a map that is known here.
    pub(crate) clock: Clock,
    pub(crate) phase: Phase,
    pub(crate) can_write: bool,
    /// The newest entry that is merged.
    pub(crate) position: Option<Position>,
    /// Everything of this replica below is durable.
    pub(crate) acked: u64,
    pub(crate) presence: OwnPresence,
    pub(crate) peers: BTreeMap<String, Peer>,
    pub(crate) refused: Vec<Refused>,
    /// Edits that were ever refused; tells [`saved`](crate::Workspace::saved) that there was one more.
    pub(crate) refusals: u64,
    /// Why the server closed the workspace.
    pub(crate) evicted: Option<Arc<Refused>>,
    /// The driver has told the session machine that this channel is to be open.
    pub(crate) announced: bool,
    /// No handle is left.
    pub(crate) abandoned: bool,
    /// How often in a row it had to be loaded anew.
    pub(crate) reloads: u32,
    /// Nothing more may be written under this replica: edits were refused, or it comes from elsewhere. Another
    /// one takes over when the rest is acknowledged.
    pub(crate) renew: bool,
    /// Pending changes are not in the document: it was replaced, and what they refer to is on the way.
    pub(crate) unmerged: bool,
    /// It is loaded when everything up to this seq is merged.
    loaded_at: u64,
    pending: VecDeque<Pending>,
    pending_bytes: usize,
    /// The changes at the end of `pending` that the session machine does not have yet.
    unsent: usize,
    /// What an earlier process left under other replicas; sent before anything new is written.
    left: VecDeque<LeftOutbox>,
    /// Changes are written to a disk before they are sent.
    stored: bool,
    /// The changes at the end of `pending` that are not on the disk yet, and not sent therefore.
    unkept: usize,
    /// The changes before these are being written: their replica and the first counter after them.
    keeping: Option<(ReplicaId, u64)>,
    /// What else the disk is to be told, in order.
    writes: Vec<Write>,
    /// Changes that were ever made here.
    made: u64,
    /// Why the disk does not take what is pending.
    pub(crate) storage_failure: Option<Arc<StorageError>>,
}

impl OpenDocument {
    pub(crate) fn new(name: DocumentName, channel: u32, replica: ReplicaId) -> OpenDocument {
        OpenDocument {
            name,
            channel,
            replica,
            document: Document::new(),
            strategy: None,
            clock: Clock::new(),
            phase: Phase::Loading,
            can_write: true,
            position: None,
            acked: 0,
            presence: OwnPresence::default(),
            peers: BTreeMap::new(),
            refused: Vec::new(),
            refusals: 0,
            evicted: None,
            announced: false,
            abandoned: false,
            reloads: 0,
            renew: false,
            unmerged: false,
            loaded_at: u64::MAX,
            pending: VecDeque::new(),
            pending_bytes: 0,
            unsent: 0,
            left: VecDeque::new(),
            stored: false,
            unkept: 0,
            keeping: None,
            writes: Vec::new(),
            made: 0,
            storage_failure: None,
        }
    }

    /// Takes over what an earlier process left of this workspace; from now on everything is written down.
    pub(crate) fn inherit(&mut self, left: Left) {
        self.stored = true;
        self.refused = left.refused;
        self.left = left.outboxes;
        self.next_left();
        // Without the server's state, only what refers to nothing can be shown.
        self.unmerged = self.merge_pending().is_err();
    }

    /// How a new workspace is to merge.
    pub(crate) fn wish(&mut self, strategy: Strategy) {
        self.strategy = Some(strategy);
        self.document = empty(strategy);
    }

    /// How the server says that it merges. Says whether something that was here is gone.
    pub(crate) fn merges_by(&mut self, strategy: Strategy) -> bool {
        self.document.strategy() != strategy && self.start_empty(strategy)
    }

    /// Goes on with what is left under another replica, if there is any.
    fn next_left(&mut self) -> bool {
        let Some(LeftOutbox { replica, spent, pending }) = self.left.pop_front() else { return false };
        self.replica = replica;
        self.unsent = pending.len();
        self.pending_bytes = pending.iter().map(weight).sum();
        self.pending = pending;
        self.renew = spent || !self.left.is_empty();
        true
    }

    /// Local changes that are not acknowledged.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len() + self.left.iter().map(|left| left.pending.len()).sum::<usize>()
    }

    /// Where this replica's writing stands: nothing that was made so far is beyond.
    pub(crate) fn end(&self) -> (ReplicaId, u64) {
        let last = self.pending.back().map_or(0, |last| last.change.next_counter);
        (self.replica, self.document.next_counter(self.replica).max(last))
    }

    /// Everything up to an [`end`](Self::end) is acknowledged or was refused.
    pub(crate) fn is_past(&self, (replica, counter): (ReplicaId, u64)) -> bool {
        self.left.is_empty() && (self.replica != replica || self.acked >= counter || self.pending.is_empty())
    }

    /// Bytes of local changes and of what they inserted.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// The seq of the newest entry that is merged; what a change made now has seen.
    pub(crate) fn seq(&self) -> u64 {
        self.position.map_or(0, |position| position.seq.0)
    }

    /// The history that what is pending belongs to, if it depends on one.
    pub(crate) fn lineage(&self) -> Option<Incarnation> {
        self.pending.iter().rev().find_map(|pending| pending.incarnation)
    }

    /// Keeps a change that was just applied to the document until the server has it.
    pub(crate) fn keep(&mut self, change: OutgoingChange, edits: Vec<LocalEdit>) {
        let incarnation = self.position.map(|position| position.incarnation);
        let pending = Pending { change, incarnation, edits };
        self.pending_bytes += weight(&pending);
        self.pending.push_back(pending);
        self.made += 1;
        self.unsent += 1;
        self.unkept += usize::from(self.stored);
    }

    /// The changes that the session machine does not have yet and may have, oldest first. It has them from
    /// now on.
    pub(crate) fn take_unsent(&mut self) -> Vec<OutgoingChange> {
        let first = self.pending.len() - self.unsent;
        let last = self.pending.len() - self.unkept.min(self.unsent);
        self.unsent = self.pending.len() - last;
        self.pending.range(first..last).map(|pending| pending.change.clone()).collect()
    }

    /// What the disk is to be told, in order.
    pub(crate) fn take_writes(&mut self) -> Vec<Write> {
        let first = self.pending.len() - self.unkept;
        let replica = self.replica;
        let keep = self.pending.range(first..).map(|pending| Write::Keep {
            replica,
            change: pending.change.clone(),
            incarnation: pending.incarnation,
            edits: pending.edits.clone(),
        });
        // What is told of other changes was told of changes that are on the disk, or were never to be there.
        let writes: Vec<Write> = std::mem::take(&mut self.writes).into_iter().chain(keep).collect();
        self.keeping = self.pending.back().map(|last| (replica, last.change.next_counter));
        writes
    }

    /// What [`take_writes`](Self::take_writes) gave is on the disk, or why it is not.
    pub(crate) fn wrote(&mut self, failure: Option<Arc<StorageError>>) {
        self.storage_failure = failure;
        if let Some((replica, until)) = self.keeping.take()
            && replica == self.replica
        {
            let kept = self.pending.partition_point(|pending| pending.change.next_counter <= until);
            self.unkept = self.unkept.min(self.pending.len() - kept);
        }
    }

    /// Changes that are not on the disk yet.
    pub(crate) fn unkept(&self) -> usize {
        self.unkept
    }

    /// There is something for the disk.
    pub(crate) fn wants_writing(&self) -> bool {
        self.unkept > 0 || !self.writes.is_empty()
    }

    /// Changes that were made here so far, and how many of them need no disk any more.
    pub(crate) fn made_and_kept(&self) -> (u64, u64) {
        (self.made, self.made - self.unkept as u64)
    }

    fn write(&mut self, write: Write) {
        if self.stored {
            if matches!(write, Write::Acknowledged { .. }) {
                self.writes.pop_if(|last| matches!(last, Write::Acknowledged { .. }));
            }
            self.writes.push(write);
        }
    }

    /// Everything of this replica below `next_counter` is durable.
    pub(crate) fn ack(&mut self, next_counter: u64) {
        self.acked = self.acked.max(next_counter);
        while let Some(first) = self.pending.front()
            && first.change.next_counter <= self.acked
            && self.pending.len() > self.unsent
        {
            self.pending_bytes -= weight(first);
            self.pending.pop_front();
        }
        self.write(Write::Acknowledged { replica: self.replica, next_counter });
    }

    /// The server has entries up to there; what they say follows.
    pub(crate) fn load_until(&mut self, position: Position) -> Result<(), String> {
        self.loaded_at = position.seq.0;
        self.check_loaded()
    }

    /// Once everything is here that the server had, the pending changes have all that they refer to.
    fn check_loaded(&mut self) -> Result<(), String> {
        if self.seq() < self.loaded_at {
            return Ok(());
        }
        if std::mem::take(&mut self.unmerged) {
            self.merge_pending()?;
        }
        if matches!(self.phase, Phase::Loading | Phase::Reloading) && !self.renew {
            self.phase = Phase::Live;
        }
        Ok(())
    }

    fn merge_pending(&mut self) -> Result<(), String> {
        for Pending { change, .. } in &self.pending {
            if change.next_counter > self.document.next_counter(self.replica) {
                let change = ChangeRef {
                    replica: self.replica,
                    counter: change.counter,
                    base: change.base,
                    body: &change.body,
                };
                self.document.reapply(change).map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    /// Entries from the log, in order. Gives what they changed in the text.
    pub(crate) fn receive(
        &mut self,
        first_seq: Seq,
        count: u32,
        entries: &[u8],
        known: Seq,
        position: Position,
    ) -> Result<Vec<Patch>, String> {
        let mut patches = Vec::new();
        self.document
            .receive(first_seq.0, count, entries, known.0, &mut patches)
            .map_err(|error| error.to_string())?;
        if self.document.strategy() != Strategy::Server {
            for patch in &patches {
                if let Patch::Map { stamp, .. } = patch {
                    self.clock.observe(*stamp);
                }
            }
        }
        self.position = Some(position);
        self.reloads = 0;
        self.check_loaded()?;
        Ok(patches)
    }

    /// The server's whole state. What is pending is merged into it again.
    pub(crate) fn reset(&mut self, bytes: &[u8], position: Position) -> Result<(), String> {
        self.document = match bytes {
            [] => empty(self.document.strategy()),
            bytes => Document::decode(bytes).map_err(|error| error.to_string())?,
        };
        if self.document.strategy() != Strategy::Server {
            for map in self.document.maps().filter_map(|name| self.document.map(name)) {
                map.iter().for_each(|(_, value)| self.clock.observe(value.stamp));
            }
        }
        self.position = Some(position);
        self.loaded_at = 0;
        self.unmerged = true;
        self.check_loaded()
    }

    /// All entries follow, from the first on. Says whether something that was here is gone.
    pub(crate) fn start_empty(&mut self, strategy: Strategy) -> bool {
        let was_empty = self.document.version().is_empty();
        self.document = empty(strategy);
        self.unmerged = self.merge_pending().is_err();
        !was_empty
    }

    /// Takes the pending changes from that counter on out as refused, under this number. What was pending
    /// before them may still be acknowledged.
    pub(crate) fn refuse(&mut self, id: u64, why: Why, from: u64) {
        let first = self.pending.partition_point(|pending| pending.change.counter < from);
        let refused = self.pending.split_off(first);
        self.unsent = self.unsent.saturating_sub(refused.len());
        self.unkept = self.unkept.saturating_sub(refused.len());
        let changes = refused.into_iter().map(|pending| pending.edits).collect();
        let refused = Refused { id, ..Refused::new(why, changes) };
        self.write(Write::Refused { replica: self.replica, from, refused: refused.clone() });
        self.refused.push(refused);
        self.refusals += 1;
        self.pending_bytes = self.pending.iter().map(weight).sum();
        self.phase = Phase::Reloading;
        self.renew = true;
    }

    /// The application has dealt with this refusal.
    pub(crate) fn settle(&mut self, id: u64) -> Option<Refused> {
        let at = self.refused.iter().position(|refused| refused.id == id)?;
        self.write(Write::Settled { refused: id });
        Some(self.refused.remove(at))
    }

    /// The first so many changes of a refusal were made again.
    pub(crate) fn shorten(&mut self, id: u64, done: usize) {
        if let Some(mut refused) = self.settle(id) {
            let edits: usize = refused.sizes.drain(..done.min(refused.sizes.len())).sum();
            refused.edits.drain(..edits.min(refused.edits.len()));
            // Instead of the note that it is settled.
            self.writes.pop();
            self.write(Write::Shortened { refused: refused.clone() });
            self.refused.push(refused);
        }
    }

    /// Nothing of this replica is on its way any more, and nothing more may be written under it.
    pub(crate) fn wants_new_replica(&self) -> bool {
        self.renew && self.pending.is_empty()
    }

    /// What waits, for whoever opens the workspace next.
    pub(crate) fn leave(&self) -> Left {
        let own = LeftOutbox { replica: self.replica, spent: self.renew, pending: self.pending.clone() };
        let own = (!self.pending.is_empty()).then_some(own);
        Left {
            outboxes: own.into_iter().chain(self.left.iter().cloned()).collect(),
            refused: self.refused.clone(),
        }
    }

    /// Goes on under another replica, from the server's state: a refused change is in the text here and
    /// nowhere else, so this document is no longer the server's.
    pub(crate) fn begin_anew(&mut self, replica: ReplicaId) {
        self.renew = false;
        self.acked = 0;
        self.position = None;
        self.loaded_at = u64::MAX;
        self.announced = false;
        self.presence.dirty = true;
        self.replica = replica;
        self.unmerged = self.next_left();
    }

    /// The server closed it for good. What is pending stays visible.
    pub(crate) fn close(&mut self, why: Refused) {
        self.phase = Phase::Closed;
        self.evicted = Some(Arc::new(why));
    }
}

/// What a server says with a refusal.
pub(crate) struct Why {
    pub(crate) code: u32,
    pub(crate) message: String,
    pub(crate) current: Option<String>,
}

impl Refused {
    pub(crate) fn new(Why { code, message, current }: Why, changes: Vec<Vec<LocalEdit>>) -> Refused {
        let known = Code::from_number(code);
        Refused {
            id: 0,
            code: known,
            number: code,
            message,
            fix: known.map_or("Read the message.", Code::fix).to_owned(),
            current,
            sizes: changes.iter().map(Vec::len).collect(),
            edits: changes.into_iter().flatten().collect(),
        }
    }

    /// Why a whole workspace is closed.
    pub(crate) fn closing(code: u32, message: String) -> Refused {
        Refused::new(Why { code, message, current: None }, Vec::new())
    }

    /// The edits of each change.
    pub(crate) fn changes(&self) -> impl Iterator<Item = &[LocalEdit]> {
        let mut rest = &self.edits[..];
        self.sizes.iter().map(move |&size| {
            let (change, others) = rest.split_at(size.min(rest.len()));
            rest = others;
            change
        })
    }
}

fn empty(strategy: Strategy) -> Document {
    Document::with_strategy(strategy, Limits::default())
}

fn weight(pending: &Pending) -> usize {
    pending.change.body.len() + pending.edits.iter().map(LocalEdit::weight).sum::<usize>()
}

/// A change as the session machine takes it.
pub(crate) fn outgoing(change: manyhands_crdt::Change) -> OutgoingChange {
    OutgoingChange {
        counter: change.counter,
        next_counter: change.next_counter,
        base: change.base,
        body: Bytes::from(change.body),
    }
}
