//! The lane of presence: runs the roster machine between the sessions, the bus and the store.
//!
//! It gives way to everything else. What does not fit into an inbox or into the store's queue is dropped; a
//! fresh roster, the next heartbeat or the next sweep makes up for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use manyhands_bus::{Message, Received, SharedBus, Topic};
use manyhands_proto::{DocumentName, PartitionId, v1};
use manyhands_session::edge::{ChannelId, Input};
use prost::Message as _;
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{sleep, sleep_until};

use crate::presence::roster::{Output, Roster, Viewer};
use crate::presence::{Presence, TTL, Unavailable};

/// Workers that talk to the store; a document's calls stay in order with one of them.
const WORKERS: u16 = 4;
/// Calls that wait for one worker. Further ones are dropped.
const CALLS_MAX: usize = 1024;
/// Pause after the bus could not be subscribed to.
const AGAIN: Duration = Duration::from_secs(1);

/// Who is where, of all sessions of this edge. Clones share it.
#[derive(Clone)]
pub(crate) struct Lane {
    shared: Arc<Shared>,
}

struct Shared {
    bus: SharedBus,
    store: Arc<dyn Presence>,
    workers: Vec<mpsc::Sender<Call>>,
    state: Mutex<State>,
    stirred: Notify,
    started: Instant,
}

#[derive(Default)]
struct State {
    roster: Roster,
    viewers: BTreeMap<Viewer, Place>,
    listeners: BTreeMap<PartitionId, Listener>,
    out: Vec<Output>,
}

/// How a viewer is reached.
struct Place {
    document: DocumentName,
    channel: ChannelId,
    inbox: mpsc::Sender<Input>,
}

/// A partition's subscription, as long as somebody looks at one of its documents.
struct Listener {
    viewers: usize,
    task: AbortHandle,
}

/// What the store is asked.
enum Call {
    Put { document: DocumentName, session: String, entry: Bytes },
    Remove { document: DocumentName, session: String },
    Read(DocumentName),
}

/// A session's presence in a document that it has open; dropping it takes the presence away.
pub(crate) struct Presenter {
    shared: Arc<Shared>,
    document: DocumentName,
    viewer: Viewer,
}

impl Lane {
    /// Starts the lane. It ends with the runtime.
    pub(crate) fn start(bus: SharedBus, store: Arc<dyn Presence>) -> Lane {
        let (workers, queues): (Vec<_>, Vec<_>) = (0..WORKERS).map(|_| mpsc::channel(CALLS_MAX)).unzip();
        let shared = Arc::new(Shared {
            bus,
            store,
            workers,
            state: Mutex::default(),
            stirred: Notify::new(),
            started: Instant::now(),
        });
        for queue in queues {
            tokio::spawn(Arc::clone(&shared).work(queue));
        }
        tokio::spawn(Arc::clone(&shared).tick());
        Lane { shared }
    }

    /// A session has opened a document: it is told who is there, and what changes.
    pub(crate) fn join(
        &self,
        session: &str,
        document: DocumentName,
        channel: ChannelId,
        inbox: mpsc::Sender<Input>,
    ) -> Presenter {
        let shared = &self.shared;
        let viewer = Viewer { session: session.to_owned(), channel: channel.opening };
        let partition = PartitionId::of(&document);
        {
            let mut state = shared.lock();
            let listener = state.listeners.entry(partition).or_insert_with(|| Listener {
                viewers: 0,
                task: tokio::spawn(Arc::clone(shared).listen(partition)).abort_handle(),
            });
            listener.viewers += 1;
            state.viewers.insert(viewer.clone(), Place { document: document.clone(), channel, inbox });
            state.roster.join(shared.now(), &document, viewer.clone());
        }
        shared.stirred.notify_one();
        Presenter { shared: Arc::clone(shared), document, viewer }
    }

    /// The sessions that show something in a document, on any edge. May be seconds old.
    pub(crate) async fn peers(&self, document: &DocumentName) -> Result<Vec<v1::Peer>, Unavailable> {
        let shared = &self.shared;
        let stored = shared.store.roster(document).await;
        let state = shared.lock();
        if let Some(here) = state.roster.peers(document) {
            let mut peers: BTreeMap<String, v1::Peer> =
                here.map(|peer| (peer.session.clone(), peer.clone())).collect();
            // Who has just left is still in the store.
            let stored = stored.unwrap_or_default();
            let others = decoded(stored).filter(|peer| state.roster.believes(shared.now(), document, peer));
            others.for_each(|peer| {
                peers.entry(peer.session.clone()).or_insert(peer);
            });
            return Ok(peers.into_values().collect());
        }
        drop(state);
        Ok(decoded(stored?).collect())
    }
}

fn decoded(entries: Vec<(String, Bytes)>) -> impl Iterator<Item = v1::Peer> {
    let peers =
        entries.into_iter().filter_map(|(session, entry)| Some((session, v1::Peer::decode(entry).ok()?)));
    peers.filter(|(session, peer)| peer.session == *session).map(|(_, peer)| peer)
}

impl Presenter {
    /// Shows this to the others, in place of what was shown before. The session machine has stamped it with
    /// the session and its user.
    pub(crate) fn show(&self, peer: v1::Peer) {
        let mut state = self.shared.lock();
        if let Err(limit) = state.roster.set(self.shared.now(), &self.document, peer) {
            tracing::debug!(%limit, document = %self.document, "a presence is not shown");
            metrics::counter!("manyhands_edge_presence_shed_total", "why" => "limit").increment(1);
        }
        drop(state);
        self.shared.stirred.notify_one();
    }

    /// Shows nothing any more.
    pub(crate) fn hide(&self) {
        self.shared.step(|state, now| {
            state.roster.clear(now, &self.document, &self.viewer.session, &mut state.out);
        });
    }
}

impl Drop for Presenter {
    fn drop(&mut self) {
        let partition = PartitionId::of(&self.document);
        self.shared.step(|state, now| {
            state.viewers.remove(&self.viewer);
            state.roster.leave(now, &self.document, &self.viewer, &mut state.out);
            if let Some(listener) = state.listeners.get_mut(&partition) {
                listener.viewers -= 1;
                if listener.viewers == 0 {
                    listener.task.abort();
                    state.listeners.remove(&partition);
                }
            }
        });
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Gives something to the machine and does what it says.
    fn step(&self, what: impl FnOnce(&mut State, Duration)) {
        let now = self.now();
        let mut state = self.lock();
        what(&mut state, now);
        let mut out = std::mem::take(&mut state.out);
        for output in out.drain(..) {
            self.perform(&mut state, now, output);
        }
        state.out = out;
        drop(state);
        self.stirred.notify_one();
    }

    fn perform(&self, state: &mut State, now: Duration, output: Output) {
        match output {
            Output::Put { document, session, entry } => {
                self.call(Call::Put { document, session, entry });
            }
            Output::Remove { document, session } => {
                self.call(Call::Remove { document, session });
            }
            Output::Read(document) => {
                if !self.call(Call::Read(document.clone())) {
                    state.roster.read_failed(&document);
                }
            }
            Output::Publish(partition, presence) => {
                let message = v1::BusMessage { message: Some(v1::bus_message::Message::Presence(presence)) };
                let message = Message { payload: message.encode_to_vec().into(), traceparent: None };
                self.bus.publish(Topic::Presence(partition), message);
            }
            Output::Update(viewer, changes) => {
                let Some(place) = state.viewers.get(&viewer) else { return };
                let presence = Input::Presence {
                    channel: place.channel,
                    full: changes.full,
                    peers: changes.peers.clone(),
                    left: changes.left.clone(),
                };
                if place.inbox.try_send(presence).is_err() {
                    metrics::counter!("manyhands_edge_presence_shed_total", "why" => "inbox").increment(1);
                    // It gets the roster as a whole with the next tick instead.
                    state.roster.join(now, &place.document, viewer);
                }
            }
        }
    }

    fn call(&self, call: Call) -> bool {
        let document = match &call {
            Call::Put { document, .. } | Call::Remove { document, .. } | Call::Read(document) => document,
        };
        let worker = PartitionId::of(document).0 % WORKERS;
        let taken = self.workers[usize::from(worker)].try_send(call).is_ok();
        if !taken {
            metrics::counter!("manyhands_edge_presence_shed_total", "why" => "store").increment(1);
        }
        taken
    }

    async fn work(self: Arc<Self>, mut calls: mpsc::Receiver<Call>) {
        let store = &self.store;
        while let Some(call) = calls.recv().await {
            let failed = match call {
                Call::Put { document, session, entry } => {
                    store.put(&document, &session, entry, TTL).await.err().map(|error| error.to_string())
                }
                Call::Remove { document, session } => {
                    store.remove(&document, &session).await.err().map(|error| error.to_string())
                }
                Call::Read(document) => match store.roster(&document).await {
                    Ok(entries) => {
                        self.step(|state, now| state.roster.read(now, &document, entries));
                        None
                    }
                    Err(error) => {
                        self.step(|state, _| state.roster.read_failed(&document));
                        Some(error.to_string())
                    }
                },
            };
            if let Some(error) = failed {
                tracing::debug!(error, "the presence store did not take a call");
                metrics::counter!("manyhands_edge_presence_store_failures_total").increment(1);
            }
        }
    }

    async fn listen(self: Arc<Self>, partition: PartitionId) {
        loop {
            if let Ok(mut subscription) = self.bus.subscribe(Topic::Presence(partition)).await {
                while let Some(received) = subscription.next().await {
                    match received {
                        Received::Message(message) => {
                            if let Ok(v1::BusMessage {
                                message: Some(v1::bus_message::Message::Presence(presence)),
                            }) = v1::BusMessage::decode(message.payload)
                            {
                                self.step(|state, now| state.roster.heard(now, presence));
                            }
                        }
                        Received::Lost => self.step(|state, _| state.roster.lost(partition)),
                    }
                }
            }
            sleep(AGAIN).await;
        }
    }

    async fn tick(self: Arc<Self>) {
        loop {
            let due = self.lock().roster.deadline();
            tokio::select! {
                () = self.stirred.notified() => {}
                () = sleep_until((self.started + due.unwrap_or_default()).into()), if due.is_some() => {
                    self.step(|state, now| {
                        let State { roster, out, .. } = state;
                        roster.tick(now, out);
                    });
                }
            }
        }
    }
}
