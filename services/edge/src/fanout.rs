//! Every delta from the bus to every socket that has its document open.
//!
//! One subscription for each partition with open documents, one feed for each open document. A delta is
//! encoded once, by its feed's run, and handed to each session's inbox without waiting: a session whose inbox
//! is full misses it, is told where the document stands, and fetches. What the bus loses, the feed notices and
//! reads from the owner, once for all sessions.

mod documents;
mod readers;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use manyhands_bus::{Message, Received, SharedBus, Subscription, Topic};
use manyhands_process::telemetry;
use manyhands_proto::{DocumentName, Epoch, Incarnation, PartitionId, Position, Seq, v1};
use manyhands_session::edge::{ChannelId, Fetched, Input};
use manyhands_session::feed::{self, Feed, FeedConfig};
use manyhands_session::json::{Mirror, MirrorLimits};
use manyhands_session::{Refusal, SharedRun, position_from_wire};
use prost::Message as _;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::{sleep, sleep_until, timeout};

pub(crate) use readers::Reader;

use crate::router::Router;
use documents::{Attached, Document, Documents};

/// How long an open waits for the bus. After that it goes on: what is missed is read later.
const SUBSCRIBE_MAX: Duration = Duration::from_secs(1);
/// How often what is not urgent is looked after: empty documents, sessions that missed something, a bus that
/// is cut off.
const PULSE: Duration = Duration::from_secs(1);
/// Deltas that wait for the first answer of an owner, per partition.
const HELD_MAX: usize = 256;
/// Gaps that are read at one time on this edge; further ones wait.
const READS_MAX: usize = 64;
/// Over how long the reads of many documents are spread when all of them may have a gap.
const SPREAD: Duration = Duration::from_millis(200);
/// Most bytes of entries in one answer.
const READ_BYTES_MAX: u32 = 256 * 1024;

/// All open documents of this edge. Clones share it.
#[derive(Clone)]
pub(crate) struct Fanout {
    shared: Arc<Shared>,
}

struct Shared {
    bus: SharedBus,
    router: Arc<Router>,
    reads: Semaphore,
    mirrors: MirrorBounds,
    started: Instant,
    /// Locked before any partition's documents.
    partitions: Mutex<BTreeMap<PartitionId, Arc<Partition>>>,
}

/// What the mirrors of this edge may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MirrorBounds {
    pub(crate) each: MirrorLimits,
    /// Bytes of memory of all of them.
    pub(crate) all_bytes_max: usize,
}

/// One partition with open documents.
struct Partition {
    id: PartitionId,
    shared: Arc<Shared>,
    documents: Mutex<Documents>,
    subscribed: watch::Sender<bool>,
    /// Bytes that the mirrors of its documents take, as of the last pulse.
    mirror_bytes: AtomicUsize,
    /// A feed's deadline may have changed.
    stirred: Notify,
}

/// A session's place in a document; dropping it gives it up.
pub(crate) struct Seat {
    partition: Arc<Partition>,
    document: DocumentName,
    number: u64,
}

impl Fanout {
    pub(crate) fn new(bus: SharedBus, router: Arc<Router>, mirrors: MirrorBounds) -> Fanout {
        let shared = Shared {
            bus,
            router,
            reads: Semaphore::new(READS_MAX),
            mirrors,
            started: Instant::now(),
            partitions: Mutex::default(),
        };
        Fanout { shared: Arc::new(shared) }
    }

    /// Takes a place in a document: from now on its partition is subscribed to. Deltas come once
    /// [`Seat::start`] has said from where on.
    pub(crate) fn seat(
        &self,
        document: DocumentName,
        channel: ChannelId,
        inbox: mpsc::Sender<Input>,
    ) -> Seat {
        self.take_seat(document, |open, number| {
            let attached = Attached { channel, inbox, started: false, missed: false };
            open.sessions.insert(number, attached);
        })
    }

    /// Takes a place beside a document's mirror, which is made if there is none. Its state comes by the inbox, then
    /// what each run means.
    pub(crate) fn reader_seat(&self, document: DocumentName, reader: Reader) -> Seat {
        let seat = self.take_seat(document, |open, number| open.readers.add(number, reader));
        seat.join_mirror(None);
        seat
    }

    fn take_seat(&self, document: DocumentName, enter: impl FnOnce(&mut Document, u64)) -> Seat {
        let id = PartitionId::of(&document);
        let mut partitions = self.shared.partitions.lock().unwrap_or_else(PoisonError::into_inner);
        let partition = partitions.entry(id).or_insert_with(|| {
            let partition = Arc::new(Partition {
                id,
                shared: Arc::clone(&self.shared),
                documents: Mutex::default(),
                subscribed: watch::Sender::new(false),
                mirror_bytes: AtomicUsize::new(0),
                stirred: Notify::new(),
            });
            tokio::spawn(Arc::clone(&partition).follow());
            partition
        });
        let mut documents = partition.lock();
        let number = documents.next_seat;
        documents.next_seat += 1;
        let open = documents.by_name.entry(document.clone()).or_insert_with(Document::new);
        open.enter();
        enter(open, number);
        Seat { partition: Arc::clone(partition), document, number }
    }
}

impl Seat {
    /// Waits until the bus brings the document's deltas, or for a second: without a bus, deltas are read.
    pub(crate) async fn subscribed(&self) {
        let mut subscribed = self.partition.subscribed.subscribe();
        let _ = timeout(SUBSCRIBE_MAX, subscribed.wait_for(|subscribed| *subscribed)).await;
    }

    /// What comes after `position` is wanted from now on; the owner of `epoch` has given what comes before.
    // I-6: subscribed first, then asked, then started: nothing falls in between.
    pub(crate) fn start(&self, position: Position, epoch: Epoch) {
        let partition = &self.partition;
        partition.start(&mut partition.lock(), &self.document, position, epoch, Comer::Session(self.number));
        partition.stirred.notify_one();
    }

    /// The entries after a seq, for this session alone: recent ones from memory, others from the owner.
    pub(crate) async fn fetch(
        &self,
        incarnation: Incarnation,
        after: Seq,
        grant: v1::Grant,
    ) -> Result<Fetched, Refusal> {
        let recent = {
            let documents = self.partition.lock();
            let feed = documents.by_name.get(&self.document).and_then(|open| open.feed.as_ref());
            feed.filter(|feed| feed.incarnation() == incarnation).and_then(|feed| feed.recent(after))
        };
        if let Some(recent) = recent {
            return Ok(recent);
        }
        self.partition.shared.read(&self.document, incarnation, after, grant).await
    }

    /// The document that it is in.
    pub(crate) fn document(&self) -> &DocumentName {
        &self.document
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut documents = self.partition.lock();
        if let Some(open) = documents.by_name.get_mut(&self.document) {
            open.leave(self.number);
        }
        if !documents.by_name.values().any(Document::is_opening) {
            documents.held.clear();
        }
    }
}

impl Shared {
    async fn read(
        &self,
        document: &DocumentName,
        incarnation: Incarnation,
        after: Seq,
        grant: v1::Grant,
    ) -> Result<Fetched, Refusal> {
        metrics::counter!("manyhands_edge_gaps_read_total").increment(1);
        let request = v1::ReadRequest {
            document: document.to_string(),
            incarnation: incarnation.0,
            after_seq: after.0,
            bytes_max: READ_BYTES_MAX,
            grant: Some(grant),
        };
        self.router.read(request).await
    }
}

/// Who follows a document from a position on.
enum Comer {
    /// The session with this number.
    Session(u64),
    Mirror(Box<Mirror>),
}

impl Partition {
    fn lock(&self) -> MutexGuard<'_, Documents> {
        self.documents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody follows a document from a position on, which the owner of `epoch` has told. False if that is not the
    /// document's history any more, or too long ago.
    fn start(
        &self,
        documents: &mut Documents,
        name: &DocumentName,
        position: Position,
        epoch: Epoch,
        comer: Comer,
    ) -> bool {
        let now = self.shared.started.elapsed();
        let Documents { by_name, by_incarnation, held, .. } = documents;
        let Some(open) = by_name.get_mut(name) else { return false };
        let other = open.feed.as_ref().is_some_and(|feed| feed.incarnation() != position.incarnation);
        if other {
            if epoch < open.epoch {
                // A former owner has answered with a history that is not the document's any more.
                if let Comer::Session(number) = comer {
                    open.lose(Some(number));
                }
                return false;
            }
            by_incarnation.retain(|_, other| other != name);
            open.lose(None);
        }
        if let Comer::Session(number) = comer {
            let Some(attached) = open.sessions.get_mut(&number) else { return false };
            attached.started = true;
        }
        open.epoch = open.epoch.max(epoch);
        if open.feed.is_none() {
            let config = FeedConfig::default();
            open.feed = Some(Feed::new(config, position.incarnation, rand::random(), now));
            by_incarnation.insert(position.incarnation, name.clone());
            open.newest = Some(position);
        }
        match comer {
            Comer::Session(number) => open.catch_up(number, position.seq),
            Comer::Mirror(mirror) => {
                if !open.set_mirror(mirror) {
                    return false;
                }
            }
        }
        self.feed(name, open, feed::Input::Opened { position });
        held.retain(|delta| {
            let ours = delta.incarnation == position.incarnation.0;
            if ours && let Some(input) = delta_input(delta.clone()) {
                self.feed(name, open, input);
            }
            !ours
        });
        // Those who came for the mirror see all of that in it.
        open.readers.welcome();
        self.mend(name, open);
        if !by_name.values().any(Document::is_opening) {
            held.clear();
        }
        true
    }

    /// Follows the partition on the bus until no document of it is open any more.
    async fn follow(self: Arc<Self>) {
        let router = Arc::clone(&self.shared.router);
        let mut news = router.news();
        let mut epoch = router.route(self.id).map(|route| route.epoch);
        let mut pulse = tokio::time::interval(PULSE);
        let mut subscription = None;
        loop {
            let deadline = self.deadline();
            tokio::select! {
                received = next(&mut subscription, &self) => match received {
                    Some(Received::Message(message)) => self.receive(&message),
                    Some(Received::Lost) => {
                        metrics::counter!("manyhands_edge_bus_losses_total").increment(1);
                        self.suspect();
                    }
                    None => {
                        subscription = None;
                        self.subscribed.send_replace(false);
                    }
                },
                () = sleep_until((self.shared.started + deadline).into()) => self.tick(),
                () = self.stirred.notified() => {}
                Ok(()) = news.changed() => {
                    let newest = router.route(self.id).map(|route| route.epoch);
                    // Another owner: the last deltas of the former may never have left it.
                    if newest > std::mem::replace(&mut epoch, newest) {
                        self.suspect();
                    }
                }
                _ = pulse.tick() => {
                    if self.look_after() {
                        return;
                    }
                }
            }
        }
    }

    /// Hands what the bus brought to the feeds that it concerns. What cannot be read is dropped: if it was a
    /// delta, its absence is noticed.
    fn receive(&self, message: &Message) {
        let Ok(v1::BusMessage { message: Some(content) }) = v1::BusMessage::decode(message.payload.clone())
        else {
            return;
        };
        match content {
            v1::bus_message::Message::Delta(delta) => {
                let _entered = message.traceparent.as_ref().map(|traceparent| {
                    let span = tracing::info_span!("edge.deliver", partition = self.id.0);
                    telemetry::set_parent(&span, traceparent);
                    span.entered()
                });
                self.receive_delta(delta);
            }
            v1::bus_message::Message::Tips(v1::BusTips { epoch, tips }) => {
                let mut documents = self.lock();
                for position in tips.iter().filter_map(position_from_wire) {
                    let tip = feed::Input::Tip { epoch: Epoch(epoch), position };
                    documents.with(position.incarnation, |name, open| self.feed(name, open, tip));
                }
            }
            _ => {}
        }
    }

    fn receive_delta(&self, delta: v1::BusDelta) {
        let mut documents = self.lock();
        let incarnation = Incarnation(delta.incarnation);
        if let Ok(name) = delta.document.parse() {
            documents.first_entry(&name, Epoch(delta.epoch), incarnation);
        }
        if documents.by_incarnation.contains_key(&incarnation) {
            if let Some(input) = delta_input(delta) {
                documents.with(incarnation, |name, open| self.feed(name, open, input));
            }
        } else if documents.by_name.values().any(Document::is_opening) {
            if documents.held.len() >= HELD_MAX {
                documents.held.pop_front();
            }
            documents.held.push_back(delta);
        }
    }

    /// Gives one thing to a document's feed and does what it says.
    fn feed(&self, name: &DocumentName, open: &mut Document, input: feed::Input) {
        let suspected = matches!(input, feed::Input::Suspect);
        let now = self.shared.started.elapsed();
        let Some(feed) = &mut open.feed else { return };
        let mut effects = Vec::new();
        feed.handle(now, input, &mut effects);
        for effect in effects {
            match effect {
                feed::Effect::Deliver(run) => open.deliver(&run),
                feed::Effect::Fetch { after, incarnation } => {
                    self.read(
                        name.clone(),
                        incarnation,
                        after,
                        if suspected { SPREAD } else { Duration::ZERO },
                    );
                }
                feed::Effect::Lost => open.lose(None),
            }
        }
        self.mend(name, open);
    }

    /// Reads what a feed misses, once for all its sessions.
    fn read(&self, document: DocumentName, incarnation: Incarnation, after: Seq, spread: Duration) {
        let shared = Arc::clone(&self.shared);
        let id = self.id;
        tokio::spawn(async move {
            sleep(spread.mul_f64(rand::random())).await;
            let result = match shared.reads.acquire().await {
                Ok(_permit) => shared.read(&document, incarnation, after, own_grant(&document)).await,
                Err(_) => return,
            };
            let partition = {
                let partitions = shared.partitions.lock().unwrap_or_else(PoisonError::into_inner);
                partitions.get(&id).cloned()
            };
            let Some(partition) = partition else { return };
            partition
                .lock()
                .with(incarnation, |name, open| partition.feed(name, open, feed::Input::Fetched(result)));
            partition.stirred.notify_one();
        });
    }

    /// What came of one document may have a gap.
    fn suspect_one(&self, name: &DocumentName, open: &mut Document) {
        self.feed(name, open, feed::Input::Suspect);
        self.stirred.notify_one();
    }

    /// Everything that came by the bus may have a gap.
    fn suspect(&self) {
        self.each(|name, open| self.feed(name, open, feed::Input::Suspect));
    }

    fn tick(&self) {
        self.each(|name, open| self.feed(name, open, feed::Input::Tick));
    }

    fn each(&self, mut what: impl FnMut(&DocumentName, &mut Document)) {
        let mut documents = self.lock();
        documents.by_name.iter_mut().for_each(|(name, open)| what(name, open));
        documents.forget_lost();
    }

    fn deadline(&self) -> Duration {
        let documents = self.lock();
        let feeds = documents.by_name.values().filter_map(|open| open.feed.as_ref()?.deadline());
        feeds.min().unwrap_or(self.shared.started.elapsed() + Duration::from_secs(60))
    }

    /// Once a second. True if nothing is left to be followed.
    fn look_after(&self) -> bool {
        if !self.shared.bus.is_connected() {
            self.suspect();
        }
        let mut partitions = self.shared.partitions.lock().unwrap_or_else(PoisonError::into_inner);
        let mut documents = self.lock();
        documents.by_name.retain(|_, open| !open.is_deserted());
        let mut mirror_bytes = 0;
        for (name, open) in &mut documents.by_name {
            open.remind();
            mirror_bytes += open.readers.look_after();
            self.mend(name, open);
        }
        self.mirror_bytes.store(mirror_bytes, Ordering::Relaxed);
        documents.forget_lost();
        if documents.by_name.is_empty() {
            partitions.remove(&self.id);
        }
        documents.by_name.is_empty()
    }
}

/// The next thing from the bus; subscribes first if that has not been done, or was undone.
async fn next(subscription: &mut Option<Box<dyn Subscription>>, partition: &Partition) -> Option<Received> {
    loop {
        if let Some(subscription) = subscription {
            return subscription.next().await;
        }
        match partition.shared.bus.subscribe(Topic::Deltas(partition.id)).await {
            Ok(made) => {
                *subscription = Some(made);
                partition.subscribed.send_replace(true);
                // What was opened before has been without a bus.
                partition.suspect();
            }
            Err(error) => {
                tracing::debug!(%error, partition = partition.id.0, "no deltas from the bus");
                sleep(PULSE.mul_f64(rand::random_range(0.2..0.5))).await;
            }
        }
    }
}

/// What this edge reads a document with for all who have it open: each of them was checked when it opened.
fn own_grant(document: &DocumentName) -> v1::Grant {
    v1::Grant {
        subject: "edge".to_owned(),
        scopes: vec!["read".to_owned()],
        workspaces: vec![document.to_string()],
        expires_at_ms: u64::MAX,
    }
}

fn delta_input(delta: v1::BusDelta) -> Option<feed::Input> {
    let run = SharedRun::new(delta.run?).ok()?;
    Some(feed::Input::Delta { epoch: Epoch(delta.epoch), incarnation: Incarnation(delta.incarnation), run })
}
