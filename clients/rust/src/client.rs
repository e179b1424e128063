//! One connection to the service, shared by the workspaces that are open on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use manyhands_crdt::{ReplicaId, Strategy};
use manyhands_proto::{Code, DocumentName, InvalidDocumentName};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::document::{OpenDocument, Phase};
use crate::driver::Driver;
use crate::options::ClientOptions;
use crate::socket::{ConnectError, Traffic};
use crate::storage::{Keeper, Storage};
use crate::workspace::{Held, Workspace};

/// How far a device's clock may be ahead of the server's before it is corrected, in milliseconds: a greeting
/// that was long under way must not count.
const AHEAD_MS: u64 = 10_000;

/// A client: one socket, kept open, for any number of workspaces.
///
/// Clones are the same client. It ends when the last clone and the last workspace of it are gone;
/// [`Client::close`] sends what is pending first.
#[derive(Clone)]
pub struct Client {
    handle: Arc<Handle>,
}

/// What the application's handles share. The driver holds [`Shared`] alone, so that this ends it.
pub(crate) struct Handle {
    pub(crate) shared: Arc<Shared>,
    _driver: DropGuard,
}

/// What the application's handles and the driver share.
pub(crate) struct Shared {
    pub(crate) options: ClientOptions,
    pub(crate) connection: watch::Sender<Connection>,
    pub(crate) traffic: Traffic,
    /// There is something in `wishes`.
    pub(crate) news: Notify,
    /// There is something in the wishes' `unkept`.
    pub(crate) unkept: Notify,
    /// This client has the storage of its options.
    stores: bool,
    keeper: Mutex<Option<(CancellationToken, JoinHandle<()>)>>,
    refusals: AtomicU64,
    /// How far this device's clock is ahead of the server's, in milliseconds, when that is too much.
    ahead_ms: AtomicU64,
    wishes: Mutex<Wishes>,
}

/// What the application wants of the driver. Each wish is there or not, so nothing can pile up.
#[derive(Default)]
pub(crate) struct Wishes {
    pub(crate) documents: BTreeMap<u32, Arc<Held>>,
    /// Channels of workspaces with local edits, presence or a handle that was dropped.
    pub(crate) dirty: BTreeSet<u32>,
    /// Workspaces with something for the disk.
    pub(crate) unkept: BTreeMap<u32, Arc<Held>>,
    pub(crate) wake: bool,
    pub(crate) close: bool,
    last_channel: u32,
}

/// How a client is connected.
#[derive(Clone, Debug)]
pub enum Connection {
    /// A connection is being made.
    Connecting,
    /// Connected, and the server has welcomed this session.
    Online,
    /// There is no connection. Edits are kept; the next attempt is on its way.
    Offline {
        /// Why the last connection ended.
        reason: String,
        /// Why the last attempt failed, if it did.
        error: Option<Arc<ConnectError>>,
    },
    /// It stopped and does not try again by itself: why.
    Stopped(Arc<Stop>),
}

/// Why a client stopped for good.
#[derive(Clone, Debug, thiserror::Error)]
#[error("stopped: {message}")]
pub struct Stop {
    /// The code, if there is one and this build knows it.
    pub code: Option<Code>,
    /// What happened.
    pub message: String,
    /// What to do about it.
    pub fix: String,
}

impl Stop {
    pub(crate) fn closed() -> Stop {
        Stop {
            code: None,
            message: "the application closed the client".to_owned(),
            fix: "Make a new client.".to_owned(),
        }
    }
}

/// What was still pending when the time to close was over. Without a storage it is lost with this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{pending} edits were not saved before the limit")]
pub struct Unsaved {
    /// Edits that the server has not acknowledged.
    pub pending: usize,
}

/// What a client moved, without the WebSocket's own headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Bytes of frames sent.
    pub bytes_sent: u64,
    /// Bytes of frames received.
    pub bytes_received: u64,
    /// Connections that were made; one more than reconnects.
    pub connections: u64,
}

impl Client {
    /// Starts a client; must be called within a Tokio runtime. It connects by itself, now and after every
    /// loss of the connection.
    #[must_use]
    pub fn connect(options: ClientOptions) -> Client {
        let opened = options.storage.as_ref().and_then(Storage::opened);
        let shared = Arc::new(Shared {
            stores: opened.is_some(),
            keeper: Mutex::new(None),
            options,
            connection: watch::Sender::new(Connection::Connecting),
            traffic: Traffic::default(),
            news: Notify::new(),
            unkept: Notify::new(),
            refusals: AtomicU64::new(0),
            ahead_ms: AtomicU64::new(0),
            wishes: Mutex::default(),
        });
        let cancel = CancellationToken::new();
        if let Some(opened) = opened {
            let ends = cancel.child_token();
            let keeper = tokio::spawn(Keeper::new(shared.clone(), opened).run(ends.clone()));
            *shared.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some((ends, keeper));
        }
        tokio::spawn(Driver::new(shared.clone(), rand::random()).run(cancel.clone()));
        Client { handle: Arc::new(Handle { shared, _driver: cancel.drop_guard() }) }
    }

    /// Opens a workspace under a new replica, or under the one whose edits an earlier process left in the
    /// storage. It can be edited at once; [`Workspace::loaded`] waits for the server's state.
    pub fn open(&self, workspace: &str) -> Result<Workspace, InvalidDocumentName> {
        self.open_as(workspace, None)
    }

    /// The same with a wish how the maps of the workspace merge. It decides that of a new workspace; one that
    /// merges otherwise is closed with [`Code::StrategyMismatch`].
    pub fn open_as(
        &self,
        workspace: &str,
        strategy: Option<Strategy>,
    ) -> Result<Workspace, InvalidDocumentName> {
        let name: DocumentName = workspace.parse()?;
        let shared = &self.handle.shared;
        let held = {
            let mut wishes = shared.wishes();
            wishes.last_channel += 1;
            let channel = wishes.last_channel;
            let mut document = OpenDocument::new(name, channel, new_replica());
            if let Some(strategy) = strategy {
                document.wish(strategy);
            }
            if let Some(storage) = shared.storage() {
                document.inherit(storage.take(workspace));
            }
            if wishes.close {
                document.phase = Phase::Closed;
            }
            let held = Arc::new(Held::new(document));
            wishes.documents.insert(channel, held.clone());
            wishes.dirty.insert(channel);
            held
        };
        shared.news.notify_one();
        Ok(Workspace::new(held, self.handle.clone()))
    }

    /// How it is connected, and every change of that.
    #[must_use]
    pub fn connection(&self) -> watch::Receiver<Connection> {
        self.handle.shared.connection.subscribe()
    }

    /// Waits until the server has welcomed this client, or until it has stopped.
    pub async fn online(&self) -> Result<(), Arc<Stop>> {
        let mut connection = self.connection();
        loop {
            match &*connection.borrow_and_update() {
                Connection::Online => return Ok(()),
                Connection::Stopped(stop) => return Err(stop.clone()),
                Connection::Connecting | Connection::Offline { .. } => {}
            }
            // The sender lives as long as `self`.
            let _ = connection.changed().await;
        }
    }

    /// Tries to connect now instead of after the current wait: the device woke up or the network is back.
    /// Also starts a stopped client again, for instance with a token that is good now.
    pub fn wake(&self) {
        self.handle.shared.connection.send_if_modified(|connection| {
            let stopped = matches!(connection, Connection::Stopped(_));
            if stopped {
                *connection = Connection::Connecting;
            }
            stopped
        });
        self.handle.shared.wishes().wake = true;
        self.handle.shared.news.notify_one();
    }

    /// Waits until everything that is pending is stored, at most `within`, and ends the connection.
    pub async fn close(self, within: Duration) -> Result<(), Unsaved> {
        let shared = self.handle.shared.clone();
        let documents: Vec<Arc<Held>> = shared.wishes().documents.values().cloned().collect();
        let saved = async {
            for held in &documents {
                let workspace = Workspace::new(held.clone(), self.handle.clone());
                // A refusal or a stop ends the wait as well; what is left is counted below.
                let _ = workspace.saved().await;
            }
        };
        let _ = tokio::time::timeout(within, saved).await;
        shared.wishes().close = true;
        let mut pending = 0;
        for held in &documents {
            let mut open = held.lock();
            open.phase = Phase::Closed;
            pending += open.pending();
        }
        shared.news.notify_one();
        // What is still to be written down is, and then the profile is free for another.
        let keeper = shared.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((ends, keeper)) = keeper {
            ends.cancel();
            let _ = keeper.await;
        }
        if pending == 0 { Ok(()) } else { Err(Unsaved { pending }) }
    }

    /// What it moved so far.
    #[must_use]
    pub fn moved(&self) -> Moved {
        let traffic = &self.handle.shared.traffic;
        Moved {
            bytes_sent: traffic.bytes_sent.load(Relaxed),
            bytes_received: traffic.bytes_received.load(Relaxed),
            connections: traffic.connections.load(Relaxed),
        }
    }
}

impl Shared {
    pub(crate) fn wishes(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The storage, if this client is the one that has it.
    pub(crate) fn storage(&self) -> Option<&Storage> {
        self.options.storage.as_ref().filter(|_| self.stores)
    }

    /// Microseconds since the Unix epoch: this device's clock, or the server's when this device's is ahead of
    /// it. A stamp from the future would be refused.
    pub(crate) fn now_micros(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let micros = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        micros.saturating_sub(self.ahead_ms.load(Relaxed).saturating_mul(1000))
    }

    /// The server's clock, in milliseconds since the Unix epoch, as of now.
    pub(crate) fn server_time(&self, server_ms: u64) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let own_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let ahead = own_ms.saturating_sub(server_ms);
        self.ahead_ms.store(if ahead > AHEAD_MS { ahead } else { 0 }, Relaxed);
    }

    /// A number for a refusal.
    pub(crate) fn next_refused(&self) -> u64 {
        match self.storage() {
            Some(storage) => storage.next_refused(),
            None => self.refusals.fetch_add(1, Relaxed) + 1,
        }
    }

    /// Tells the driver that a workspace has something for it, and the keeper if there is something for the
    /// disk.
    pub(crate) fn mark(&self, held: &Arc<Held>) {
        let (channel, wants_writing) = {
            let open = held.lock();
            (open.channel, open.wants_writing())
        };
        let mut wishes = self.wishes();
        wishes.dirty.insert(channel);
        self.news.notify_one();
        if wants_writing {
            wishes.unkept.insert(channel, held.clone());
            self.unkept.notify_one();
        }
    }
}

/// A new identity for an editing session: random, never 0, never used before.
pub(crate) fn new_replica() -> ReplicaId {
    ReplicaId(rand::random_range(1..=u64::MAX))
}
