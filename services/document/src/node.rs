//! The partitions that this node serves: the way to their mailboxes, and the shell that does what
//! [`ownership`](crate::ownership) decides.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::FutureExt;
use manyhands_bus::{Message, Received, SharedBus, Subscription, Topic};
use manyhands_history::{Lease, LogError, Member, SharedLog};
use manyhands_process::health::Check;
use manyhands_proto::{Code, DocumentName, Epoch, NodeId, PartitionId, v1};
use prost::Message as _;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::mailbox::{Asked, Desk, Mailbox, Ticket};
use crate::ownership::{Call, Effect, Input, Ownership, Route, Times};
use crate::request::{Refused, Submit, Submitted};
use crate::resident::Apply;
use crate::writer::Writer;

/// When to ask again after "not the owner", in milliseconds: about as long as a planned hand-over takes.
const NOT_OWNER_RETRY_MS: u32 = 50;
/// How often routes are repeated on the bus.
const ANNOUNCE: Duration = Duration::from_secs(5);
/// Reads of the log that a node has under way beside loads.
const READS_MAX: usize = 16;

/// What the writers of one node share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) log: SharedLog,
    pub(crate) bus: SharedBus,
    pub(crate) clock: Clock,
    pub(crate) apply: Apply,
    pub(crate) loads: Semaphore,
    pub(crate) reads: Semaphore,
    pub(crate) resident_bytes: AtomicUsize,
    pub(crate) resident_documents: AtomicUsize,
}

/// Time as the pure machines take it: since the node was made, by a clock that never goes back.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    pub(crate) fn instant(&self, at: Duration) -> Instant {
        self.start + at
    }

    /// Milliseconds since the Unix epoch.
    pub(crate) fn unix_ms() -> u64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Until when a writer may serve; renewals extend it.
#[derive(Clone)]
pub(crate) struct Term {
    clock: Clock,
    until_ms: Arc<AtomicU64>,
}

impl Term {
    fn new(clock: Clock, until: Duration) -> Term {
        let term = Term { clock, until_ms: Arc::default() };
        term.extend(until);
        term
    }

    fn extend(&self, until: Duration) {
        let until = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        self.until_ms.fetch_max(until, Ordering::Relaxed);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.clock.now() >= Duration::from_millis(self.until_ms.load(Ordering::Relaxed))
    }
}

/// One process's share of the partitions.
pub(crate) struct Node {
    id: NodeId,
    shared: Arc<Shared>,
    desks: RwLock<BTreeMap<PartitionId, Desk>>,
    /// Who owns what, as far as is known here: hints.
    routes: RwLock<BTreeMap<PartitionId, v1::Route>>,
}

impl Node {
    pub(crate) fn new(config: Config, log: SharedLog, bus: SharedBus, apply: Apply) -> Node {
        let id = NodeId(format!("{}-{:08x}", config.node, rand::random::<u32>()));
        let shared = Shared {
            loads: Semaphore::new(config.memory.loads_max),
            reads: Semaphore::new(READS_MAX),
            config,
            log,
            bus,
            clock: Clock { start: Instant::now() },
            apply,
            resident_bytes: AtomicUsize::new(0),
            resident_documents: AtomicUsize::new(0),
        };
        Node { id, shared: Arc::new(shared), desks: RwLock::default(), routes: RwLock::default() }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Has changes admitted and made durable.
    pub(crate) async fn submit(&self, submit: Submit<()>) -> Result<Submitted, Refused> {
        let bytes = submit.changes.len();
        if bytes > self.config().limits.submit_bytes_max {
            return Err(Refused::from(Code::TooLarge));
        }
        let room = self.desk(&submit.document)?.reserve(bytes)?;
        let document = submit.document.clone();
        self.ask_with(&document, |reply| Asked::Submit(submit.with_ticket(Ticket::new(reply, Some(room)))))
            .await
    }

    /// Asks the document's partition something and waits for the answer.
    pub(crate) async fn ask<A>(
        &self,
        document: &DocumentName,
        asked: impl FnOnce(Ticket<A>) -> Asked,
    ) -> Result<A, Refused> {
        self.ask_with(document, |reply| asked(Ticket::new(reply, None))).await
    }

    async fn ask_with<A>(
        &self,
        document: &DocumentName,
        asked: impl FnOnce(oneshot::Sender<Result<A, Refused>>) -> Asked,
    ) -> Result<A, Refused> {
        let (reply, answer) = oneshot::channel();
        self.desk(document)?.put(asked(reply))?;
        match tokio::time::timeout(self.config().request_timeout, answer).await {
            Ok(Ok(answer)) => answer,
            // The loop ended with the request in hand.
            Ok(Err(_)) => Err(self.not_owner(document)),
            Err(_) => Err(Refused::from(Code::Timeout)),
        }
    }

    fn desk(&self, document: &DocumentName) -> Result<Desk, Refused> {
        let desks = self.desks.read().unwrap_or_else(PoisonError::into_inner);
        desks.get(&PartitionId::of(document)).cloned().ok_or_else(|| self.not_owner(document))
    }

    fn not_owner(&self, document: &DocumentName) -> Refused {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        let owner = routes.get(&PartitionId::of(document)).cloned();
        // A hint at ourselves would send the asker in a circle.
        let owner = owner.filter(|route| !route.node.is_empty() && route.node != self.id.0);
        Refused { owner, ..Refused::later(Code::NotOwner, NOT_OWNER_RETRY_MS) }
    }

    /// Who owns what, as far as is known here.
    pub(crate) fn routes(&self) -> Vec<v1::Route> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        routes.values().filter(|route| !route.node.is_empty()).cloned().collect()
    }

    fn note_routes(&self, said: impl IntoIterator<Item = v1::Route>) {
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        for route in said {
            let Some(partition) = partition_of(&route) else { continue };
            if routes.get(&partition).is_none_or(|known| known.epoch <= route.epoch) {
                routes.insert(partition, route);
            }
        }
    }

    /// Takes its share of the partitions and serves it until `shutdown`; then lets everything go and leaves.
    pub(crate) async fn run(
        self: &Arc<Node>,
        advertise: String,
        check: Option<Check>,
        shutdown: impl Future<Output = ()>,
    ) {
        let member = Member { node: self.id.clone(), address: advertise };
        tracing::info!(node = %member.node, address = %member.address, "taking a share of the partitions");
        Keeper::new(self.clone(), member, check).run(shutdown).await;
        tracing::info!(node = %self.id, "left");
    }
}

impl Submit<()> {
    fn with_ticket<T>(self, ticket: T) -> Submit<T> {
        let Submit {
            document, incarnation, replica, first_counter, count, changes, grant, trace, known, ..
        } = self;
        Submit { document, incarnation, replica, first_counter, count, changes, grant, trace, known, ticket }
    }
}

/// Runs the ownership machine: makes its calls, starts and ends writers, listens to the others.
struct Keeper {
    node: Arc<Node>,
    member: Member,
    /// Where this node says whether it can do its work.
    check: Option<Check>,
    machine: Ownership,
    calls: JoinSet<Came>,
    writers: JoinSet<(PartitionId, Epoch)>,
    /// Won and not yet given to a writer.
    leases: BTreeMap<PartitionId, Lease>,
    terms: BTreeMap<PartitionId, (CancellationToken, Term)>,
}

/// What a call came to.
enum Came {
    Joined(Vec<Member>),
    Looked(Vec<manyhands_history::Ownership>),
    Claimed(Duration, Vec<Lease>),
    Said(Input),
    Left,
    Failed(Call, LogError),
}

impl Keeper {
    fn new(node: Arc<Node>, member: Member, check: Option<Check>) -> Keeper {
        let lease = &node.shared.config.lease;
        let times =
            Times { lease: lease.duration, renew: lease.renew, margin: lease.margin, announce: ANNOUNCE };
        Keeper {
            machine: Ownership::new(node.id.clone(), times),
            node,
            member,
            check,
            calls: JoinSet::new(),
            writers: JoinSet::new(),
            leases: BTreeMap::new(),
            terms: BTreeMap::new(),
        }
    }

    async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        let shared = self.node.shared.clone();
        let mut ticks = tokio::time::interval(shared.config.lease.renew / 4);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut others: Option<Box<dyn Subscription>> = None;
        let mut leave_by: Option<Instant> = None;
        let mut effects = Vec::new();
        loop {
            let input = tokio::select! {
                biased;
                () = &mut shutdown, if leave_by.is_none() => {
                    leave_by = Some(Instant::now() + shared.config.drain_timeout);
                    self.report(Err("shutting down"));
                    Some(Input::Drain)
                }
                _ = ticks.tick() => {
                    if others.is_none() {
                        others = shared.bus.subscribe(Topic::Routes).await.ok();
                    }
                    self.measure();
                    Some(Input::Tick)
                }
                Some(Ok(ended)) = self.writers.join_next() => Some(self.ended(ended)),
                Some(Ok(came)) = self.calls.join_next() => self.came(came),
                received = next(&mut others) => match received {
                    Some(Received::Message(message)) => self.heard(&message),
                    // What was lost, the next look at the log shows.
                    Some(Received::Lost) => None,
                    None => {
                        others = None;
                        None
                    }
                },
            };
            if let Some(input) = input {
                self.machine.handle(shared.clock.now(), input, &mut effects);
                for effect in effects.drain(..) {
                    self.perform(effect);
                }
            }
            if let Some(leave_by) = leave_by {
                let done = self.machine.is_empty() && self.calls.is_empty() && self.writers.is_empty();
                if done || Instant::now() >= leave_by {
                    return;
                }
            }
        }
    }

    fn perform(&mut self, effect: Effect) {
        let log = self.node.shared.log.clone();
        let started = self.node.shared.clock.now();
        let ttl = self.node.shared.config.lease.duration;
        let member = self.member.clone();
        match effect {
            Effect::Join => {
                self.call(async move { log.join(&member, ttl).await.map(Came::Joined) }, Call::Join);
            }
            Effect::Leave => {
                self.calls.spawn(async move {
                    if let Err(error) = log.leave(&member.node).await {
                        tracing::warn!(%error, "leaving is not noted in the log; the membership runs out");
                    }
                    Came::Left
                });
            }
            Effect::Look => self.call(async move { log.ownership().await.map(Came::Looked) }, Call::Look),
            Effect::Claim(partitions) => {
                let claim = async move {
                    let leases = log.claim(&member, &partitions, ttl).await?;
                    Ok(Came::Claimed(started, leases))
                };
                self.call(claim, Call::Claim);
            }
            Effect::Renew(asked) => {
                let renew = async move {
                    let lost = log.renew(&member.node, &asked, ttl).await?;
                    Ok(Came::Said(Input::Renewed { started, asked, lost }))
                };
                self.call(renew, Call::Renew);
            }
            Effect::Release(released) => {
                let release = async move {
                    log.release(&released).await?;
                    Ok(Came::Said(Input::Released { released }))
                };
                self.call(release, Call::Release);
            }
            Effect::Serve { partition, epoch, until } => self.serve(partition, epoch, until),
            Effect::Extend { partition, until } => {
                if let Some((_, term)) = self.terms.get(&partition) {
                    term.extend(until);
                }
            }
            Effect::Stop(partition) => {
                self.close(partition);
                if let Some((stop, _)) = self.terms.get(&partition) {
                    stop.cancel();
                }
            }
            Effect::Announce(routes) => self.announce(routes),
        }
    }

    fn call(&mut self, call: impl Future<Output = Result<Came, LogError>> + Send + 'static, kind: Call) {
        // A panic must not leave the machine waiting for an answer for ever.
        let call = AssertUnwindSafe(call).catch_unwind();
        self.calls.spawn(async move {
            match call.await {
                Ok(Ok(came)) => came,
                Ok(Err(error)) => Came::Failed(kind, error),
                Err(_) => Came::Failed(kind, LogError::Unavailable("the call panicked".to_owned())),
            }
        });
    }

    fn serve(&mut self, partition: PartitionId, epoch: Epoch, until: Duration) {
        let Some(lease) = self.leases.remove(&partition).filter(|lease| lease.epoch() == epoch) else {
            // The machine serves only what was just won; should that ever fail, the lease goes back.
            self.writers.spawn(async move { (partition, epoch) });
            return;
        };
        let shared = self.node.shared.clone();
        let stop = CancellationToken::new();
        let term = Term::new(shared.clock, until);
        let (desk, mailbox) = Mailbox::new(&shared.config.mailbox, shared.config.batch.clone(), stop.clone());
        let writer = Writer::new(shared, lease, term.clone(), mailbox);
        self.terms.insert(partition, (stop, term));
        self.node.desks.write().unwrap_or_else(PoisonError::into_inner).insert(partition, desk);
        self.writers.spawn(async move {
            if AssertUnwindSafe(writer.run()).catch_unwind().await.is_err() {
                tracing::error!(%partition, "the partition's loop panicked; it is claimed anew");
            }
            (partition, epoch)
        });
    }

    fn close(&self, partition: PartitionId) {
        self.node.desks.write().unwrap_or_else(PoisonError::into_inner).remove(&partition);
    }

    fn ended(&mut self, (partition, epoch): (PartitionId, Epoch)) -> Input {
        self.close(partition);
        self.terms.remove(&partition);
        Input::Ended { partition, epoch }
    }

    fn came(&mut self, came: Came) -> Option<Input> {
        Some(match came {
            Came::Joined(members) => {
                self.report(Ok(()));
                Input::Joined { members: members.into_iter().map(|member| member.node).collect() }
            }
            Came::Looked(rows) => {
                self.node.note_routes(rows.iter().map(|row| v1::Route {
                    partition: u32::from(row.partition.0),
                    epoch: row.epoch.0,
                    node: row.owner.as_ref().map_or(String::new(), |owner| owner.node.0.clone()),
                    address: row.owner.as_ref().map_or(String::new(), |owner| owner.address.clone()),
                }));
                let route = |row: manyhands_history::Ownership| Route {
                    partition: row.partition,
                    epoch: row.epoch,
                    owner: row.owner.map(|owner| owner.node),
                };
                Input::Looked { routes: rows.into_iter().map(route).collect() }
            }
            Came::Claimed(started, leases) => {
                let won = leases.iter().map(|lease| (lease.partition(), lease.epoch())).collect();
                self.leases = leases.into_iter().map(|lease| (lease.partition(), lease)).collect();
                Input::Claimed { started, won }
            }
            Came::Said(input) => input,
            Came::Left => return None,
            Came::Failed(call, error) => {
                tracing::warn!(?call, %error, "the event log did not answer");
                if call == Call::Join {
                    self.report(Err("the event log is not reachable"));
                }
                Input::Failed(call)
            }
        })
    }

    fn heard(&self, message: &Message) -> Option<Input> {
        let message = v1::BusMessage::decode(message.payload.clone()).ok()?.message?;
        let v1::bus_message::Message::Routes(v1::BusRoutes { routes }) = message else { return None };
        let routes: Vec<v1::Route> =
            routes.into_iter().filter(|route| route.node != self.member.node.0).collect();
        let said = routes.iter().filter_map(|route| {
            let owner = (!route.node.is_empty()).then(|| NodeId(route.node.clone()));
            Some(Route { partition: partition_of(route)?, epoch: Epoch(route.epoch), owner })
        });
        let input = Input::Heard { routes: said.collect() };
        self.node.note_routes(routes);
        Some(input)
    }

    /// Tells the others; without a node, a route says that nobody has the partition.
    fn announce(&self, routes: Vec<Route>) {
        let routes: Vec<v1::Route> = routes
            .into_iter()
            .map(|Route { partition, epoch, owner }| v1::Route {
                partition: u32::from(partition.0),
                epoch: epoch.0,
                address: owner.as_ref().map_or(String::new(), |_| self.member.address.clone()),
                node: owner.map_or(String::new(), |owner| owner.0),
            })
            .collect();
        self.node.note_routes(routes.clone());
        let message = v1::bus_message::Message::Routes(v1::BusRoutes { routes });
        let payload = Bytes::from(v1::BusMessage { message: Some(message) }.encode_to_vec());
        self.node.shared.bus.publish(Topic::Routes, Message { payload, traceparent: None });
    }

    fn report(&self, health: Result<(), &str>) {
        match (&self.check, health) {
            (Some(check), Ok(())) => check.pass(),
            (Some(check), Err(why)) => check.fail(why),
            (None, _) => {}
        }
    }

    fn measure(&self) {
        let shared = &self.node.shared;
        let depth: usize = {
            let desks = self.node.desks.read().unwrap_or_else(PoisonError::into_inner);
            desks.values().map(Desk::depth).sum()
        };
        let resident_bytes = shared.resident_bytes.load(Ordering::Relaxed);
        let resident_documents = shared.resident_documents.load(Ordering::Relaxed);
        metrics::gauge!("manyhands_document_partitions_owned").set(self.machine.serving() as f64);
        metrics::gauge!("manyhands_document_mailbox_requests").set(depth as f64);
        metrics::gauge!("manyhands_document_resident_bytes").set(resident_bytes as f64);
        metrics::gauge!("manyhands_document_resident_documents").set(resident_documents as f64);
    }
}

fn partition_of(route: &v1::Route) -> Option<PartitionId> {
    u16::try_from(route.partition).ok().map(PartitionId).filter(|id| id.0 < manyhands_proto::PARTITIONS)
}

/// The next thing of a subscription; nothing ever of one that is not there.
async fn next(subscription: &mut Option<Box<dyn Subscription>>) -> Option<Received> {
    match subscription {
        Some(subscription) => subscription.next().await,
        None => std::future::pending().await,
    }
}
