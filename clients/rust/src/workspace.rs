//! An open workspace in the hands of the application.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use manyhands_crdt::{Document, Patch, ReplicaId, Strategy};
use tokio::sync::{broadcast, watch};

use crate::client::{Connection, Handle, Stop};
use crate::document::{EditError, OpenDocument, Phase, Refused, outgoing};
use crate::edit::{Author, Edit, can_make_again};
use crate::map::Map;
use crate::presence::{Cursor, Present, cursor_to_wire};
use crate::storage::StorageError;
use crate::text::{Text, read};

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
    /// Those of them that are not on this device's disk yet, if the client has a storage.
    pub unkept: usize,
    /// Why the storage does not take edits at the moment. They are sent all the same.
    pub storage: Option<Arc<StorageError>>,
    /// The newest entry of the server's log that is in the text; 0 before the first.
    pub seq: u64,
    /// Edits that the server refused, until they are made again, discarded or taken.
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
    /// The client has no storage, or it does not work.
    #[error("edits are not kept on this device: {0}")]
    NotKept(String),
}

impl Workspace {
    pub(crate) fn new(held: Arc<Held>, handle: Arc<Handle>) -> Workspace {
        Workspace { lease: Arc::new(Lease { held, handle }) }
    }

    /// The text of this name. It need not exist yet: an empty text and none are the same.
    #[must_use]
    pub fn text(&self, name: &str) -> Text {
        Text::new(self.clone(), name)
    }

    /// The map of this name; the empty name is the workspace's own state, which clients of the JSON protocol
    /// read and write.
    #[must_use]
    pub fn map(&self, name: &str) -> Map {
        Map::new(self.clone(), name)
    }

    /// How concurrent writes to its maps merge. Before it is loaded, what was asked for.
    #[must_use]
    pub fn strategy(&self) -> Strategy {
        self.held().lock().document.strategy()
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
                _ if open.unmerged || open.renew => return Err(EditError::Reloading),
                Phase::Loading | Phase::Live => {}
            }
            if !open.can_write {
                return Err(EditError::ReadOnly);
            }
            if open.pending() >= options.outbox_edits_max || open.pending_bytes() >= options.outbox_bytes_max
            {
                return Err(EditError::OutboxFull { pending: open.pending() });
            }
            let now_micros = self.lease.handle.shared.now_micros();
            let seq = open.seq();
            let OpenDocument { document, clock, replica, .. } = &mut *open;
            let mut edit = Edit::new(document, Author { replica: *replica, clock, now_micros });
            let result = edits(&mut edit);
            let (inner, made, patches) = edit.finish();
            if let Some(change) = inner.commit(seq) {
                self.held().tell(Update::Patches { local: true, patches: patches.into() });
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
        self.read_and_observe(|document| read(document, name))
    }

    /// Something of the document as it is now, and everything that changes it from exactly then on.
    pub(crate) fn read_and_observe<T>(&self, look: impl FnOnce(&Document) -> T) -> (T, Observer) {
        let open = self.held().lock();
        (look(&open.document), self.subscribe())
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
            (open.end(), open.refusals)
        };
        self.until(|open| {
            if open.refusals != refusals {
                let refused = open.refused.last().cloned().map(Arc::new);
                return Some(Err(refused.map_or(SaveError::Closed, SaveError::Refused)));
            }
            match open.phase {
                _ if open.is_past(target) => Some(Ok(())),
                Phase::Closed => Some(Err(SaveError::Closed)),
                _ => None,
            }
        })
        .await
    }

    /// Waits until every edit that was made so far is on this device's disk, or needs it no more. From then
    /// on it outlives this process, whatever happens to it.
    ///
    /// # Errors
    /// [`SaveError::NotKept`] without a storage, or when the disk refuses.
    pub async fn kept(&self) -> Result<(), SaveError> {
        if self.lease.handle.shared.storage().is_none() {
            return Err(SaveError::NotKept("the client was made without a storage".to_owned()));
        }
        let (target, _) = self.held().lock().made_and_kept();
        let mut changed = self.held().changed.subscribe();
        loop {
            {
                let open = self.held().lock();
                if let Some(failure) = &open.storage_failure {
                    return Err(SaveError::NotKept(failure.to_string()));
                }
                if open.made_and_kept().1 >= target {
                    return Ok(());
                }
            }
            // The sender lives as long as `self`.
            let _ = changed.changed().await;
        }
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
            unkept: open.unkept(),
            storage: open.storage_failure.clone(),
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

    /// The edits that the server refused, oldest first, also those of earlier processes with the same
    /// storage. They are kept until they are made again, discarded or taken.
    #[must_use]
    pub fn refused(&self) -> Vec<Refused> {
        self.held().lock().refused.clone()
    }

    /// The edits that the server refused, oldest first. They are the caller's now and forgotten here.
    #[must_use]
    pub fn take_refused(&self) -> Vec<Refused> {
        let taken = {
            let mut open = self.held().lock();
            let ids: Vec<u64> = open.refused.iter().map(|refused| refused.id).collect();
            ids.into_iter().filter_map(|id| open.settle(id)).collect()
        };
        self.lease.handle.shared.mark(self.held());
        taken
    }

    /// Forgets refused edits.
    pub fn discard(&self, refused: u64) -> Result<Refused, EditError> {
        let settled = self.held().lock().settle(refused).ok_or(EditError::NotRefused);
        self.lease.handle.shared.mark(self.held());
        settled
    }

    /// Makes refused edits again, in the workspace as it is now: at the same places, each change for itself.
    ///
    /// # Errors
    /// When one of them does not fit any more, or the workspace takes no edits now. Then nothing is made, and
    /// they stay where they are.
    pub fn retry(&self, refused: u64) -> Result<(), EditError> {
        let refused = {
            let open = self.held().lock();
            let found = open.refused.iter().find(|other| other.id == refused).cloned();
            let found = found.ok_or(EditError::NotRefused)?;
            can_make_again(&open.document, open.replica, found.changes())?;
            found
        };
        // Edits of other threads may come in between; then one that does not fit stops it, and what is left
        // stays refused.
        for (done, change) in refused.changes().enumerate() {
            if let Err(error) = self.edit(|edit| edit.make_again(change)) {
                if done > 0 {
                    self.held().lock().shorten(refused.id, done);
                    self.lease.handle.shared.mark(self.held());
                }
                return Err(error);
            }
        }
        self.discard(refused.id).map(|_| ())
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
