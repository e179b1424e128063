//! The partitions that this node serves, and the way to their mailboxes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use manyhands_bus::SharedBus;
use manyhands_history::{Member, SharedLog};
use manyhands_process::health::Check;
use manyhands_proto::{Code, DocumentName, NodeId, PartitionId, v1};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use crate::config::Config;
use crate::keeper::Keeper;
use crate::mailbox::{Asked, Desk, Ticket};
use crate::partition::Rules;
use crate::request::{Refused, Submit, Submitted};
use crate::resident::Apply;
use crate::schema::Schemas;

/// When to ask again after "not the owner", in milliseconds: about as long as a planned hand-over takes.
const NOT_OWNER_RETRY_MS: u32 = 50;
/// Reads of the log that a node has under way beside loads.
const READS_MAX: usize = 16;

/// What the writers of one node share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) log: SharedLog,
    pub(crate) bus: SharedBus,
    pub(crate) clock: Clock,
    pub(crate) rules: Rules,
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
    pub(crate) fn new(clock: Clock, until: Duration) -> Term {
        let term = Term { clock, until_ms: Arc::default() };
        term.extend(until);
        term
    }

    pub(crate) fn extend(&self, until: Duration) {
        let until = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        self.until_ms.fetch_max(until, Ordering::Relaxed);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.clock.now() >= Duration::from_millis(self.until_ms.load(Ordering::Relaxed))
    }
}

/// One process's share of the partitions.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) shared: Arc<Shared>,
    pub(crate) desks: RwLock<BTreeMap<PartitionId, Desk>>,
    /// Who owns what, as far as is known here: hints.
    routes: RwLock<BTreeMap<PartitionId, v1::Route>>,
}

impl Node {
    pub(crate) fn new(
        config: Config,
        schemas: Schemas,
        log: SharedLog,
        bus: SharedBus,
        apply: Apply,
    ) -> Node {
        let id = NodeId(format!("{}-{:08x}", config.node, rand::random::<u32>()));
        let shared = Shared {
            loads: Semaphore::new(config.memory.loads_max),
            reads: Semaphore::new(READS_MAX),
            rules: Rules {
                clock_ahead_max_ms: u64::try_from(config.clock_ahead_max.as_millis()).unwrap_or(u64::MAX),
                schemas: Arc::new(schemas),
            },
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

    pub(crate) fn note_routes(&self, said: impl IntoIterator<Item = v1::Route>) {
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

/// The partition that a route is about; nothing that others say is trusted to be one.
pub(crate) fn partition_of(route: &v1::Route) -> Option<PartitionId> {
    u16::try_from(route.partition).ok().map(PartitionId).filter(|id| id.0 < manyhands_proto::PARTITIONS)
}
