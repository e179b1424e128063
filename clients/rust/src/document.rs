//! What a client holds of one workspace: the merged document, the edits that the server has not
//! acknowledged, those that it refused, and who else is there.
//!
//! No I/O happens here. The application edits and reads under the lock; the driver passes in what the
//! server said.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use manyhands_crdt::{ChangeRef, Document, Patch, ReplicaId};
use manyhands_proto::{Code, DocumentName, Position, Seq};
use manyhands_session::client::OutgoingChange;

use crate::presence::{OwnPresence, Peer};

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
    /// The document does not take it: a position after the end, or more than fits into one change.
    #[error(transparent)]
    Document(#[from] manyhands_crdt::EditError),
}

/// Edits that the server refused, and why. They are in no log and no longer in the text.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Why, if this build knows the code.
    pub code: Option<Code>,
    /// Why, in the server's words.
    pub message: String,
    /// What to do about it.
    pub fix: String,
    /// The refused edits in the order in which they were made: the first one was at fault, the rest came
    /// after it.
    pub edits: Vec<Patch>,
}

/// A local change and what it did to the text, kept until the server has it.
struct Pending {
    change: OutgoingChange,
    edits: Vec<Patch>,
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
    /// Edits were refused; another replica takes over when the rest is acknowledged.
    renew: bool,
    /// Pending changes are not in the document: it was replaced, and what they refer to is on the way.
    pub(crate) unmerged: bool,
    /// It is loaded when everything up to this seq is merged.
    loaded_at: u64,
    pending: VecDeque<Pending>,
    pending_bytes: usize,
    /// The changes at the end of `pending` that the session machine does not have yet.
    unsent: usize,
}

impl OpenDocument {
    pub(crate) fn new(name: DocumentName, channel: u32, replica: ReplicaId) -> OpenDocument {
        OpenDocument {
            name,
            channel,
            replica,
            document: Document::new(),
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
        }
    }

    /// Local changes that are not acknowledged.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Bytes of local changes and of what they inserted.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// The seq of the newest entry that is merged; what a change made now has seen.
    pub(crate) fn seq(&self) -> u64 {
        self.position.map_or(0, |position| position.seq.0)
    }

    /// Keeps a change that was just applied to the document until the server has it.
    pub(crate) fn keep(&mut self, change: OutgoingChange, edits: Vec<Patch>) {
        self.pending_bytes += weight(&change, &edits);
        self.pending.push_back(Pending { change, edits });
        self.unsent += 1;
    }

    /// The changes that the session machine does not have yet, oldest first. It has them from now on.
    pub(crate) fn take_unsent(&mut self) -> Vec<OutgoingChange> {
        let first = self.pending.len() - self.unsent;
        self.unsent = 0;
        self.pending.range(first..).map(|pending| pending.change.clone()).collect()
    }

    /// Everything of this replica below `next_counter` is durable.
    pub(crate) fn ack(&mut self, next_counter: u64) {
        self.acked = self.acked.max(next_counter);
        while let Some(first) = self.pending.front()
            && first.change.next_counter <= self.acked
            && self.pending.len() > self.unsent
        {
            self.pending_bytes -= weight(&first.change, &first.edits);
            self.pending.pop_front();
        }
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
        self.position = Some(position);
        self.reloads = 0;
        self.check_loaded()?;
        Ok(patches)
    }

    /// The server's whole state. What is pending is merged into it again.
    pub(crate) fn reset(&mut self, bytes: &[u8], position: Position) -> Result<(), String> {
        self.document = match bytes {
            [] => Document::new(),
            bytes => Document::decode(bytes).map_err(|error| error.to_string())?,
        };
        self.position = Some(position);
        self.loaded_at = 0;
        self.unmerged = true;
        self.check_loaded()
    }

    /// All entries follow, from the first on. Says whether something that was here is gone.
    pub(crate) fn start_empty(&mut self) -> bool {
        let was_empty = self.document.version().is_empty();
        self.document = Document::new();
        self.unmerged = self.merge_pending().is_err();
        !was_empty
    }

    /// Takes the pending changes from that counter on out as refused. What was pending before them may still
    /// be acknowledged.
    pub(crate) fn refuse(&mut self, code: u32, message: String, from: u64) {
        let first = self.pending.partition_point(|pending| pending.change.counter < from);
        let refused = self.pending.split_off(first);
        self.unsent = self.unsent.saturating_sub(refused.len());
        let edits = refused.into_iter().flat_map(|pending| pending.edits).collect();
        self.refused.push(Refused::new(code, message, edits));
        self.refusals += 1;
        self.pending_bytes = self.pending.iter().map(|pending| weight(&pending.change, &pending.edits)).sum();
        self.phase = Phase::Reloading;
        self.renew = true;
    }

    /// Edits were refused, and nothing of this replica is on its way any more.
    pub(crate) fn wants_new_replica(&self) -> bool {
        self.renew && self.pending.is_empty()
    }

    /// Goes on under another replica, from the server's state: a refused change is in the text here and
    /// nowhere else, so this document is no longer the server's.
    pub(crate) fn begin_anew(&mut self, replica: ReplicaId) {
        self.renew = false;
        self.acked = 0;
        self.position = None;
        self.replica = replica;
        self.loaded_at = u64::MAX;
        self.announced = false;
        self.presence.dirty = true;
    }

    /// The server closed it for good. What is pending stays visible.
    pub(crate) fn close(&mut self, why: Refused) {
        self.phase = Phase::Closed;
        self.evicted = Some(Arc::new(why));
    }
}

impl Refused {
    pub(crate) fn new(code: u32, message: String, edits: Vec<Patch>) -> Refused {
        let code = Code::from_number(code);
        Refused { code, message, fix: code.map_or("Read the message.", Code::fix).to_owned(), edits }
    }
}

fn weight(change: &OutgoingChange, edits: &[Patch]) -> usize {
    change.body.len() + edits.iter().map(|edit| edit.inserted.len() + size_of::<Patch>()).sum::<usize>()
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
