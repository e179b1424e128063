//! What waits for a partition's loop: requests from outside, bounded in number and bytes, and the results of
//! what the loop had done on the side.

use std::collections::VecDeque;
use std::sync::Arc;

use manyhands_proto::{Code, DocumentName, Position, v1};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Span;

use crate::config::{BatchConfig, MailboxConfig};
use crate::request::{Open, Opened, Read, Refused, Submit, Submitted};
use crate::resident::Resident;

/// When to come back after an answer that a queue is full, in milliseconds.
const OVERLOADED_RETRY_MS: u32 = 250;
/// Requests looked at in one turn of the loop, whatever they weigh.
const TURN_REQUESTS_MAX: usize = 1024;

/// Where an answer goes. Dropped without an answer, the asker is told to look for the owner again.
pub(crate) struct Ticket<A> {
    reply: oneshot::Sender<Result<A, Refused>>,
    /// What the request is traced under.
    pub(crate) span: Span,
    /// The room that the request takes in the mailbox until it is answered.
    _room: Option<OwnedSemaphorePermit>,
}

impl<A> Ticket<A> {
    pub(crate) fn new(
        reply: oneshot::Sender<Result<A, Refused>>,
        room: Option<OwnedSemaphorePermit>,
    ) -> Ticket<A> {
        Ticket { reply, span: Span::current(), _room: room }
    }

    /// Answers. That nobody waits any more is their business.
    pub(crate) fn answer(self, answer: Result<A, Refused>) {
        let _gone = self.reply.send(answer);
    }

    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }
}

/// A request, with the way back.
pub(crate) enum Asked {
    /// Changes.
    Submit(Submit<Ticket<Submitted>>),
    /// A document from a position on.
    Open(Open, Ticket<Opened>),
    /// Entries after a seq.
    Read(Read, Ticket<(v1::EntryRun, Position)>),
}

impl Asked {
    pub(crate) fn document(&self) -> &DocumentName {
        match self {
            Asked::Submit(submit) => &submit.document,
            Asked::Open(open, _) => &open.document,
            Asked::Read(read, _) => &read.document,
        }
    }

    pub(crate) fn refuse(self, refused: Refused) {
        match self {
            Asked::Submit(submit) => submit.ticket.answer(Err(refused)),
            Asked::Open(_, ticket) => ticket.answer(Err(refused)),
            Asked::Read(_, ticket) => ticket.answer(Err(refused)),
        }
    }

    /// Changes and bytes that it adds to a batch.
    fn weight(&self) -> (usize, usize) {
        match self {
            Asked::Submit(submit) => (submit.count as usize, submit.changes.len()),
            Asked::Open(..) | Asked::Read(..) => (0, 0),
        }
    }

    fn is_abandoned(&self) -> bool {
        match self {
            Asked::Submit(submit) => submit.ticket.is_abandoned(),
            Asked::Open(_, ticket) => ticket.is_abandoned(),
            Asked::Read(_, ticket) => ticket.is_abandoned(),
        }
    }
}

/// What a task on the side has come to.
pub(crate) enum Done {
    /// A document was read from the log, or could not be.
    Loaded(DocumentName, Result<Box<Resident>, Refused>),
    /// The log was asked about old changes of a request.
    LookedUp(Submit<Ticket<Submitted>>),
    /// What was published is noted in the log.
    Noted,
    /// What the owner before may have left unpublished has been announced.
    Republished,
    /// A request was answered there.
    Answered,
}

/// The sending half.
#[derive(Clone)]
pub(crate) struct Desk {
    letters: mpsc::Sender<Asked>,
    room: Arc<Semaphore>,
}

impl Desk {
    /// Takes the room that so many bytes of changes need.
    pub(crate) fn reserve(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Refused> {
        u32::try_from(bytes)
            .ok()
            .and_then(|bytes| self.room.clone().try_acquire_many_owned(bytes).ok())
            .ok_or_else(overloaded)
    }

    /// Puts a request in. Nobody waits here: a full mailbox says so.
    pub(crate) fn put(&self, asked: Asked) -> Result<(), Refused> {
        self.letters.try_send(asked).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => overloaded(),
            // The loop has just ended; the next look finds who has the partition now.
            mpsc::error::TrySendError::Closed(_) => Refused::later(Code::NotOwner, 50),
        })
    }

    /// Requests that wait.
    pub(crate) fn depth(&self) -> usize {
        self.letters.max_capacity() - self.letters.capacity()
    }
}

pub(crate) fn overloaded() -> Refused {
    Refused::later(Code::Overloaded, OVERLOADED_RETRY_MS)
}

/// The receiving half.
pub(crate) struct Mailbox {
    letters: mpsc::Receiver<Asked>,
    /// Requests that waited for their document and can go on. As bounded as the queues that they come from.
    backlog: VecDeque<Asked>,
    /// What the loop has done on the side.
    pub(crate) tasks: JoinSet<Done>,
    stop: CancellationToken,
    limits: BatchConfig,
}

/// What one turn of the loop deals with.
#[derive(Default)]
pub(crate) struct Turn {
    pub(crate) asked: Vec<Asked>,
    pub(crate) done: Vec<Done>,
}

impl Mailbox {
    /// A mailbox and the way into it. It closes when `stop` is cancelled.
    pub(crate) fn new(
        config: &MailboxConfig,
        limits: BatchConfig,
        stop: CancellationToken,
    ) -> (Desk, Mailbox) {
        let (sender, letters) = mpsc::channel(config.requests_max);
        let desk = Desk { letters: sender, room: Arc::new(Semaphore::new(config.bytes_max)) };
        (desk, Mailbox { letters, backlog: VecDeque::new(), tasks: JoinSet::new(), stop, limits })
    }

    /// Waits for something to do, or until `wake`, and takes with it what else waits, up to one batch. `None`:
    /// the loop is to end.
    pub(crate) async fn take(&mut self, wake: Option<Instant>) -> Option<Turn> {
        let mut turn = Turn::default();
        if self.stop.is_cancelled() {
            return None;
        }
        if self.backlog.is_empty() {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                Some(done) = self.tasks.join_next() => turn.done.extend(finished(done)),
                asked = self.letters.recv() => turn.asked.push(asked?),
                () = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
        }
        while let Some(done) = self.tasks.try_join_next() {
            turn.done.extend(finished(done));
        }
        let (mut changes, mut bytes) = turn.asked.first().map_or((0, 0), Asked::weight);
        while changes < self.limits.entries_max
            && bytes < self.limits.bytes_max
            && turn.asked.len() < TURN_REQUESTS_MAX
        {
            let Some(asked) = self.backlog.pop_front().or_else(|| self.letters.try_recv().ok()) else {
                break;
            };
            let weight = asked.weight();
            changes += weight.0;
            bytes += weight.1;
            turn.asked.push(asked);
        }
        // Whoever gave up asking will ask again, and that is answered then.
        turn.asked.retain(|asked| !asked.is_abandoned());
        Some(turn)
    }

    /// Puts requests before all others.
    pub(crate) fn put_back(&mut self, asked: impl IntoIterator<Item = Asked>) {
        self.backlog.extend(asked);
    }
}

/// A task that panicked has dropped its ticket, which is its answer.
fn finished(done: Result<Done, tokio::task::JoinError>) -> Option<Done> {
    done.inspect_err(|error| tracing::error!(%error, "a task of a partition failed")).ok()
}
