//! An open workspace in the hands of the application.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use manyhands_crdt::{Anchor, Bias, Document, Patch, ReplicaId};
use tokio::sync::{broadcast, watch};

use crate::client::{Connection, Handle, Stop};
use crate::document::{EditError, OpenDocument, Phase, Refused, outgoing};
use crate::presence::{Cursor, LineColumn, Present, cursor_to_wire};

/// Most bytes of one change that inserts; longer texts become several changes. Well below the limit of
/// the service, 64 KiB.
const INSERT_BYTES_MAX: usize = 32 << 10;
/// Most characters that one change deletes; each can cost an id range of its own.
const DELETE_CHARS_MAX: usize = 4096;

/// A workspace that is open on a client. Edits apply here at once and are sent as soon as there is a
/// connection; they are kept until the server has stored them.
///
/// Clones are the same workspace. When the last one is gone, what is still pending is sent and the
/// workspace is left.
#[derive(Clone)]
pub struct Workspace {
    lease: Arc<Lease>,
}

/// One open workspace, shared with the driver.
pub(crate) struct Held {
    document: Mutex<OpenDocument>,
    /// Goes up with everything that a status shows.
    changed: watch::Sender<u64>,
    updates: OnceLock<broadcast::Sender<Update>>,
}

/// Keeps the client alive and tells it when the application has let go.
struct Lease {
    held: Arc<Held>,
    handle: Arc<Handle>,
}

/// Something that changed the text, in the order in which it did.
#[derive(Clone, Debug)]
pub enum Update {
    /// Apply these one after another.
    Patches {
        /// Made through this very handle, as opposed to by somebody else.
        local: bool,
        /// Positions count Unicode scalar values, each in the text after the patches before.
        patches: Arc<[Patch]>,
    },
    /// The text was replaced by the server's: read it.
    Reset,
    /// The observer was too slow and missed this many updates: read the text.
    Lagged(u64),
}

/// How a workspace is doing.
#[derive(Clone, Debug)]
pub struct Status {
    /// The client's connection.
    pub connection: Connection,
    /// The server's state has arrived, so that the text is more than what was typed here.
    pub loaded: bool,
    /// The token allows edits.
    pub can_write: bool,
    /// Edits that the server has not acknowledged. They are kept and sent.
    pub pending: usize,
    /// The newest entry of the server's log that is in the text; 0 before the first.
    pub seq: u64,
    /// Edits that the server refused, until [`Workspace::take_refused`] takes them.
    pub refused: Vec<Refused>,
    /// Bytes of the presence that was set last, if it is more than the server takes and so nobody sees it.
    pub presence_too_large: Option<usize>,
    /// The server closed this workspace: why.
    pub evicted: Option<Arc<Refused>>,
}

/// Why edits are not saved.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SaveError {
    /// The server refused some; [`Workspace::take_refused`] has them.
    #[error("the server refused edits: {}", .0.message)]
    Refused(Arc<Refused>),
    /// The client has stopped and will not reconnect by itself.
    #[error(transparent)]
    Stopped(Arc<Stop>),
    /// The workspace was closed, by the server or by the application.
    #[error("the workspace is closed")]
    Closed,
}

impl Workspace {
    pub(crate) fn new(held: Arc<Held>, handle: Arc<Handle>) -> Workspace {
        Workspace { lease: Arc::new(Lease { held, handle }) }
    }

    /// The text of this name. It need not exist yet: an empty text and none are the same.
    #[must_use]
    pub fn text(&self, name: &str) -> Text {
        Text { workspace: self.clone(), container: name.into() }
    }

    /// Makes several edits as one atomic change: everybody sees all of them or none.
    ///
    /// When `edits` fails, what it did before stays.
    pub fn edit<T>(&self, edits: impl FnOnce(&mut Edit<'_>) -> Result<T, EditError>) -> Result<T, EditError> {
        let result = {
            let mut open = self.held().lock();
            let options = &self.lease.handle.shared.options;
            match open.phase {
                Phase::Closed => return Err(EditError::Closed),
                Phase::Reloading => return Err(EditError::Reloading),
                _ if open.unmerged => return Err(EditError::Reloading),
                Phase::Loading | Phase::Live => {}
            }
            if !open.can_write {
                return Err(EditError::ReadOnly);
            }
            if open.pending() >= options.outbox_edits_max || open.pending_bytes() >= options.outbox_bytes_max
            {
                return Err(EditError::OutboxFull { pending: open.pending() });
            }
            let (seq, replica) = (open.seq(), open.replica);
            let mut edit = Edit { inner: open.document.edit(replica), made: Vec::new() };
            let result = edits(&mut edit);
            let Edit { inner, made } = edit;
            if let Some(change) = inner.commit(seq) {
                self.held().tell(Update::Patches { local: true, patches: made.as_slice().into() });
                open.keep(outgoing(change), made);
            }
            result
        };
        self.held().bump();
        self.lease.handle.shared.mark(self.held());
        result
    }

    /// Everything that changes the texts from now on, here or elsewhere.
    #[must_use]
    pub fn observe(&self) -> Observer {
        let _open = self.held().lock();
        self.subscribe()
    }

    /// A text as it is now, and everything that changes it from exactly then on.
    #[must_use]
    pub fn observe_text(&self, name: &str) -> (String, Observer) {
        let open = self.held().lock();
        (read(&open.document, name), self.subscribe())
    }

    fn subscribe(&self) -> Observer {
        let lag = self.lease.handle.shared.options.observer_lag_max;
        Observer { updates: self.held().updates.get_or_init(|| broadcast::Sender::new(lag)).subscribe() }
    }

    /// Waits until the server's state has arrived.
    pub async fn loaded(&self) -> Result<(), SaveError> {
        self.until(|open| match open.phase {
            Phase::Live => Some(Ok(())),
            Phase::Closed => Some(Err(SaveError::Closed)),
            Phase::Loading | Phase::Reloading => None,
        })
        .await
    }

    /// Waits until every edit that was made so far is stored durably by the server.
    pub async fn saved(&self) -> Result<(), SaveError> {
        let (target, refusals) = {
            let open = self.held().lock();
            (open.document.next_counter(open.replica), open.refusals)
        };
        self.until(|open| {
            if open.refusals != refusals {
                let refused = open.refused.last().cloned().map(Arc::new);
                return Some(Err(refused.map_or(SaveError::Closed, SaveError::Refused)));
            }
            match open.phase {
                _ if open.acked >= target || open.pending() == 0 => Some(Ok(())),
                Phase::Closed => Some(Err(SaveError::Closed)),
                _ => None,
            }
        })
        .await
    }

    /// Waits until `done` says so; looks again whenever something changed.
    async fn until(
        &self,
        mut done: impl FnMut(&OpenDocument) -> Option<Result<(), SaveError>>,
    ) -> Result<(), SaveError> {
        let mut changed = self.held().changed.subscribe();
        let mut connection = self.lease.handle.shared.connection.subscribe();
        loop {
            if let Some(result) = done(&self.held().lock()) {
                return result;
            }
            if let Connection::Stopped(stop) = &*connection.borrow_and_update() {
                return Err(SaveError::Stopped(stop.clone()));
            }
            // Both senders live as long as `self`.
            tokio::select! {
                _ = changed.changed() => {}
                _ = connection.changed() => {}
            }
        }
    }

    /// How it is doing right now.
    #[must_use]
    pub fn status(&self) -> Status {
        let connection = self.lease.handle.shared.connection.borrow().clone();
        let open = self.held().lock();
        Status {
            connection,
            loaded: open.phase == Phase::Live,
            can_write: open.can_write,
            pending: open.pending(),
            seq: open.seq(),
            refused: open.refused.clone(),
            presence_too_large: open.presence.too_large,
            evicted: open.evicted.clone(),
        }
    }

    /// Changes whenever [`Workspace::status`], the text or the roster did.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.held().changed.subscribe()
    }

    /// The edits that the server refused, oldest first. They are forgotten here.
    #[must_use]
    pub fn take_refused(&self) -> Vec<Refused> {
        std::mem::take(&mut self.held().lock().refused)
    }

    /// The identity under which this handle writes: another one after edits were refused.
    #[must_use]
    pub fn replica(&self) -> ReplicaId {
        self.held().lock().replica
    }

    /// Everything of this handle below this counter is durable.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.held().lock().acked
    }

    /// Edits that the server has not acknowledged.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.held().lock().pending()
    }

    /// Waits until the client has stopped for good.
    pub fn stopped(&self) -> impl Future<Output = Arc<Stop>> + Send + Unpin + 'static {
        let mut connection = self.lease.handle.shared.connection.subscribe();
        Box::pin(async move {
            loop {
                if let Connection::Stopped(stop) = &*connection.borrow_and_update() {
                    return stop.clone();
                }
                if connection.changed().await.is_err() {
                    return Arc::new(Stop::closed());
                }
            }
        })
    }

    /// Shows something to the others, cursors included, until it is set again or the session ends.
    pub fn set_presence(&self, data: &serde_json::Value, cursors: &[Cursor]) {
        {
            let mut open = self.held().lock();
            open.presence.data = data.to_string().into_bytes().into();
            open.presence.cursors = cursors.iter().map(cursor_to_wire).collect();
            open.presence.dirty = true;
            open.presence.too_large = None;
        }
        self.lease.handle.shared.mark(self.held());
    }

    /// The others who have the workspace open, with their cursors in the text as it is now.
    #[must_use]
    pub fn peers(&self) -> Vec<Present> {
        let open = self.held().lock();
        open.peers.iter().map(|(session, peer)| peer.view(session, &open.document)).collect()
    }

    /// Looks at the merged document itself. Keep it short: nothing arrives meanwhile.
    pub fn read<T>(&self, look: impl FnOnce(&Document) -> T) -> T {
        look(&self.held().lock().document)
    }

    pub(crate) fn held(&self) -> &Arc<Held> {
        &self.lease.held
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.held.lock().abandoned = true;
        self.handle.shared.mark(&self.held);
    }
}

impl Held {
    pub(crate) fn new(document: OpenDocument) -> Held {
        Held { document: Mutex::new(document), changed: watch::Sender::new(0), updates: OnceLock::new() }
    }

    /// A panic under the lock is a bug of ours that must not take the application's other threads along.
    pub(crate) fn lock(&self) -> MutexGuard<'_, OpenDocument> {
        self.document.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn bump(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// To be called under the lock, so that updates come in the order of what they tell.
    pub(crate) fn tell(&self, update: Update) {
        if let Some(updates) = self.updates.get() {
            // Nobody listens: nobody has to know.
            let _ = updates.send(update);
        }
    }
}

/// A stream of updates with a bounded memory.
pub struct Observer {
    updates: broadcast::Receiver<Update>,
}

impl Observer {
    /// The next update; `None` when the workspace is gone.
    pub async fn next(&mut self) -> Option<Update> {
        match self.updates.recv().await {
            Ok(update) => Some(update),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Update::Lagged(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// Edits that become one change.
pub struct Edit<'a> {
    inner: manyhands_crdt::Edit<'a>,
    made: Vec<Patch>,
}

impl Edit<'_> {
    /// A text with what this edit did so far, if anything was ever written to it. Nothing arrives from
    /// others during an edit, so a position that is read here is good.
    #[must_use]
    pub fn text(&self, container: &str) -> Option<manyhands_crdt::Text<'_>> {
        self.inner.document().text(container)
    }

    /// Inserts into a text before the character at `at`.
    pub fn insert(&mut self, container: &str, at: usize, text: &str) -> Result<(), EditError> {
        self.inner.insert(container, at, text)?;
        self.made.push(Patch { container: container.into(), at, deleted: 0, inserted: text.to_owned() });
        Ok(())
    }

    /// Deletes a range of characters from a text.
    pub fn delete(&mut self, container: &str, range: Range<usize>) -> Result<(), EditError> {
        self.inner.delete(container, range.clone())?;
        let patch = Patch {
            container: container.into(),
            at: range.start,
            deleted: range.len(),
            inserted: String::new(),
        };
        self.made.push(patch);
        Ok(())
    }
}

/// A named text of a workspace. All positions count Unicode scalar values.
#[derive(Clone)]
pub struct Text {
    workspace: Workspace,
    container: Arc<str>,
}

impl Text {
    /// Inserts before the character at `at`. A text beyond some ten thousand characters becomes several
    /// changes, which others may see one after another.
    pub fn insert(&self, at: usize, text: &str) -> Result<(), EditError> {
        let (mut at, mut rest) = (at, text);
        while !rest.is_empty() {
            let piece = &rest[..rest.floor_char_boundary(INSERT_BYTES_MAX)];
            self.workspace.edit(|edit| edit.insert(&self.container, at, piece))?;
            at += piece.chars().count();
            rest = &rest[piece.len()..];
        }
        Ok(())
    }

    /// Appends to the end of the text as it is at that moment.
    pub fn push(&self, text: &str) -> Result<(), EditError> {
        let mut rest = text;
        while !rest.is_empty() {
            let piece = &rest[..rest.floor_char_boundary(INSERT_BYTES_MAX)];
            self.workspace.edit(|edit| {
                let end = edit.text(&self.container).map_or(0, |text| text.len());
                edit.insert(&self.container, end, piece)
            })?;
            rest = &rest[piece.len()..];
        }
        Ok(())
    }

    /// Deletes a range of characters. A long one becomes several changes.
    pub fn delete(&self, range: Range<usize>) -> Result<(), EditError> {
        let mut left = range.len();
        while left > 0 {
            let piece = left.min(DELETE_CHARS_MAX);
            self.workspace.edit(|edit| edit.delete(&self.container, range.start..range.start + piece))?;
            left -= piece;
        }
        Ok(())
    }

    /// Characters in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.look(0, |text| text.len())
    }

    /// It has no characters, or does not exist yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lines in it: one more than line breaks.
    #[must_use]
    pub fn lines(&self) -> usize {
        self.look(1, |text| text.lines())
    }

    /// Line and column of a position.
    #[must_use]
    pub fn line_column(&self, at: usize) -> LineColumn {
        self.look(LineColumn::default(), |text| {
            let (line, column) = text.line_column(at);
            LineColumn { line, column }
        })
    }

    /// The position of a line and column; the end of the line or of the text when there are fewer.
    #[must_use]
    pub fn at_line_column(&self, place: LineColumn) -> usize {
        self.look(0, |text| text.at_line_column(place.line, place.column).unwrap_or(text.len()))
    }

    /// A place that sticks to the character before (left) or after (right) it, whatever others edit.
    #[must_use]
    pub fn anchor(&self, at: usize, bias: Bias) -> Anchor {
        self.look(Anchor { at: None, bias }, |text| text.anchor(at, bias))
    }

    /// Where an anchor is now; `None` when its character has not arrived here.
    #[must_use]
    pub fn resolve(&self, anchor: &Anchor) -> Option<usize> {
        self.look(None, |text| text.resolve(anchor))
    }

    fn look<T>(&self, empty: T, look: impl FnOnce(&manyhands_crdt::Text<'_>) -> T) -> T {
        self.workspace.read(|document| document.text(&self.container).map_or(empty, |text| look(&text)))
    }
}

/// The text as it is now.
impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.workspace.read(|document| f.write_str(&read(document, &self.container)))
    }
}

fn read(document: &Document, container: &str) -> String {
    document.text(container).map(|text| text.to_string()).unwrap_or_default()
}
