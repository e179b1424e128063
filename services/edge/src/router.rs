//! The road to a document's owner: finds it, asks it, and asks again where the answer says that this is right.
//!
//! Every call may be repeated as it is: a change counts once however often it is submitted, and reading
//! changes nothing. So whatever can heal within [`Config::retry_for`] is not shown to a client.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use manyhands_bus::{Received, SharedBus, Topic};
use manyhands_process::telemetry;
use manyhands_process::value::ByteSize;
use manyhands_proto::v1::document_service_client::DocumentServiceClient;
use manyhands_proto::{Code, DocumentName, Epoch, PartitionId, Retry, Seq, v1};
use manyhands_session::edge::{Body, Fetched, Opened, Submitted};
use manyhands_session::{Refusal, SharedRun, position_from_wire};
use prost::Message;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Request, Response, Status};
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt};

use crate::routes::{Route, Routes};

/// What reaches a document node: a connection in a cluster, the server object itself in one process.
pub type DocumentChannel =
    BoxCloneSyncService<http::Request<tonic::body::Body>, http::Response<tonic::body::Body>, Unreachable>;

/// Nothing shows that a node has read what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreachable(pub String);

/// Makes the channel to an address. It is kept and cloned, so it connects lazily and repairs itself.
pub type Connector = Arc<dyn Fn(&str) -> DocumentChannel + Send + Sync>;

type Client = DocumentServiceClient<DocumentChannel>;

/// A question that is on its way.
type Asked<T> = Pin<Box<dyn Future<Output = Result<T, Status>> + Send>>;

/// How patiently owners are asked.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How long a call is repeated while it may heal by itself. Longer than a takeover takes.
    #[serde(with = "humantime_serde")]
    pub retry_for: Duration,
    /// How long one attempt may take.
    #[serde(with = "humantime_serde")]
    pub attempt_max: Duration,
    /// How long opening a document may take, all attempts together: its owner may have to replay it first.
    #[serde(with = "humantime_serde")]
    pub open_max: Duration,
    /// Shortest pause between two attempts; it doubles up to `pause_max`, and half of it is drawn.
    #[serde(with = "humantime_serde")]
    pub pause_min: Duration,
    /// Longest pause between two attempts.
    #[serde(with = "humantime_serde")]
    pub pause_max: Duration,
    /// Largest message to or from a document node.
    pub message_bytes_max: ByteSize,
    /// Largest document that is opened, by the bytes of its state or tail.
    pub open_bytes_max: ByteSize,
    /// Documents that are being opened at one time; further ones wait.
    pub opens_max: usize,
    /// Document nodes that are remembered at one time; beyond it, all are connected anew.
    pub nodes_max: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            retry_for: Duration::from_secs(10),
            attempt_max: Duration::from_secs(5),
            open_max: Duration::from_secs(60),
            pause_min: Duration::from_millis(20),
            pause_max: Duration::from_millis(500),
            message_bytes_max: ByteSize::mib(16),
            open_bytes_max: ByteSize::mib(64),
            opens_max: 64,
            nodes_max: 1024,
        }
    }
}

/// The channel that a service makes: a connection, or the server object itself.
pub fn channel<S>(service: S) -> DocumentChannel
where
    S: Service<http::Request<tonic::body::Body>, Response = http::Response<tonic::body::Body>>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Error: std::fmt::Display,
    S::Future: Send,
{
    BoxCloneSyncService::new(service.map_err(|error: S::Error| Unreachable(error.to_string())))
}

/// Connects to document nodes over the network, lazily, and repairs what breaks.
#[must_use]
pub fn connect() -> Connector {
    Arc::new(|address| match tonic::transport::Endpoint::from_shared(address.to_owned()) {
        Ok(endpoint) => {
            let connection = endpoint
                .connect_timeout(Duration::from_secs(2))
                .tcp_nodelay(true)
                .http2_keep_alive_interval(Duration::from_secs(5))
                .keep_alive_timeout(Duration::from_secs(5))
                .keep_alive_while_idle(true)
                .initial_stream_window_size(1 << 20)
                .initial_connection_window_size(4 << 20)
                .connect_lazy();
            channel(connection)
        }
        Err(error) => {
            let why = Unreachable(format!("`{address}` is not an address: {error}"));
            BoxCloneSyncService::new(tower::service_fn(move |_| std::future::ready(Err(why.clone()))))
        }
    })
}

/// Finds owners and asks them. Shared by all sessions.
pub struct Router {
    config: Config,
    seeds: Vec<String>,
    connector: Connector,
    routes: RwLock<Routes>,
    /// Sent to whenever a route has changed.
    news: watch::Sender<()>,
    clients: Mutex<BTreeMap<String, Client>>,
    opens: Semaphore,
    lost: Notify,
    next_seed: AtomicUsize,
}

/// A document as its owner gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenedDocument {
    /// What the session is told.
    pub opened: Opened,
    /// The epoch of the owner that said it.
    pub epoch: Epoch,
}

impl Router {
    /// A router that first asks the nodes at `seeds` (URLs).
    #[must_use]
    pub fn new(config: Config, seeds: Vec<String>, connector: Connector) -> Router {
        Router {
            opens: Semaphore::new(config.opens_max),
            config,
            seeds,
            connector,
            routes: RwLock::new(Routes::new()),
            news: watch::Sender::new(()),
            clients: Mutex::new(BTreeMap::new()),
            lost: Notify::new(),
            next_seed: AtomicUsize::new(0),
        }
    }

    /// Makes changes durable. The answer of the owner, or why none could be had.
    ///
    /// # Errors
    /// What the owner refuses, or what still fails after [`Config::retry_for`].
    pub async fn submit(&self, request: v1::SubmitRequest) -> Result<Submitted, Refusal> {
        let partition = partition_of(&request.document)?;
        let answer = self.call(partition, self.usual(), |mut client, max| {
            let request = request_of(request.clone(), max);
            Box::pin(async move { client.submit(request).await.map(Response::into_inner) })
        });
        let v1::SubmitResponse { next_counter, seq, rejection } = answer.await?;
        Ok(Submitted { next_counter, seq: Seq(seq), rejection })
    }

    /// Reads a document: what is missing after the position that is known, or all of it.
    ///
    /// # Errors
    /// As [`Router::submit`]; also `TooLarge` for a document over [`Config::open_bytes_max`].
    pub async fn open(&self, request: v1::OpenRequest) -> Result<OpenedDocument, Refusal> {
        let partition = partition_of(&request.document)?;
        let _permit = self.opens.acquire().await.map_err(|_| refusal(Code::ShuttingDown))?;
        let bytes_max = self.config.open_bytes_max.bytes();
        let patience = Patience { attempt: self.config.open_max / 2, all: self.config.open_max };
        let answer = self.call(partition, patience, |mut client, max| {
            let request = request_of(request.clone(), max);
            Box::pin(async move { collect(client.open(request).await?.into_inner(), bytes_max).await })
        });
        answer.await
    }

    /// Reads entries after a seq.
    ///
    /// # Errors
    /// As [`Router::submit`].
    pub async fn read(&self, request: v1::ReadRequest) -> Result<Fetched, Refusal> {
        let partition = partition_of(&request.document)?;
        let answer = self.call(partition, self.usual(), |mut client, max| {
            let request = request_of(request.clone(), max);
            Box::pin(async move { client.read(request).await.map(Response::into_inner) })
        });
        let v1::ReadResponse { run, tip } = answer.await?;
        let tip = tip.as_ref().and_then(position_from_wire).ok_or_else(unusable)?;
        let run = run.filter(|run| run.count > 0).map(SharedRun::new).transpose().map_err(|_| unusable())?;
        Ok(Fetched { runs: run.into_iter().collect(), tip })
    }

    /// Takes in what somebody says about an owner.
    pub fn learn(&self, route: &v1::Route) {
        if self.routes.write().unwrap_or_else(PoisonError::into_inner).learn(route) {
            self.news.send_replace(());
        }
    }

    /// The route of a partition, if one is known.
    #[must_use]
    pub fn route(&self, partition: PartitionId) -> Option<Route> {
        self.routes.read().unwrap_or_else(PoisonError::into_inner).of(partition).cloned()
    }

    /// Changes whenever a route does.
    #[must_use]
    pub fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// Listens for routes on the bus and asks the seeds whenever one is missing. Never ends.
    pub async fn follow_routes(&self, bus: &SharedBus) {
        tokio::join!(self.listen(bus), self.ask_seeds());
    }

    async fn listen(&self, bus: &SharedBus) {
        loop {
            if let Ok(mut announced) = bus.subscribe(Topic::Routes).await {
                while let Some(received) = announced.next().await {
                    match received {
                        Received::Message(message) => {
                            if let Ok(v1::BusMessage {
                                message: Some(v1::bus_message::Message::Routes(heard)),
                            }) = v1::BusMessage::decode(message.payload)
                            {
                                heard.routes.iter().for_each(|route| self.learn(route));
                            }
                        }
                        Received::Lost => self.lost.notify_one(),
                    }
                }
            }
            sleep(SEEDS_PAUSE).await;
        }
    }

    async fn ask_seeds(&self) {
        loop {
            for _ in 0..self.seeds.len() {
                let Some(address) = self.seed() else { break };
                let mut client = self.client(&address);
                let answer =
                    timeout(self.config.attempt_max, client.get_routes(v1::GetRoutesRequest {})).await;
                if let Ok(Ok(answer)) = answer {
                    answer.into_inner().routes.iter().for_each(|route| self.learn(route));
                    break;
                }
            }
            sleep(SEEDS_PAUSE).await;
            self.lost.notified().await;
        }
    }

    /// Asks, and asks again until there is an answer, a refusal that is final, or no time left.
    async fn call<T>(
        &self,
        partition: PartitionId,
        patience: Patience,
        ask: impl Fn(Client, Duration) -> Asked<T>,
    ) -> Result<T, Refusal> {
        let give_up = Instant::now() + patience.all;
        let mut pause = self.config.pause_min;
        let mut hops = 0;
        let mut avoid: Option<Route> = None;
        loop {
            let route = self.route(partition);
            // An owner that did not answer is not asked twice in a row while others could know better.
            let shunned = route.is_some() && route == avoid && !self.seeds.is_empty();
            let address = match &route {
                Some(route) if !shunned => Some(route.address.clone()),
                _ => self.seed(),
            };
            let failed = match address {
                None => Failed { refusal: refusal(Code::Unavailable), owner: None, unreachable: true },
                Some(address) => {
                    let max = patience.attempt.min(give_up.saturating_duration_since(Instant::now()));
                    match self.attempt(partition, &route, max, ask(self.client(&address), max)).await {
                        Ok(answer) => return Ok(answer),
                        Err(failed) => failed,
                    }
                }
            };
            if failed.refusal.code.retry() != Retry::Later {
                return Err(failed.refusal);
            }
            avoid = if failed.unreachable && !shunned { route.clone() } else { None };
            if failed.refusal.code == Code::NotOwner
                && !shunned
                && let Some(wrong) = &route
            {
                self.routes.write().unwrap_or_else(PoisonError::into_inner).forget(partition, wrong);
            }
            if let Some(owner) = &failed.owner {
                self.learn(owner);
            }
            let newer = self.newer_than(partition, &route);
            if newer && hops < HOPS_MAX {
                hops += 1;
                continue;
            }
            self.lost.notify_one();
            if Instant::now() + pause >= give_up {
                return Err(failed.refusal);
            }
            let asked =
                Duration::from_millis(failed.refusal.retry_after_ms.into()).min(self.config.pause_max);
            let drawn = pause.mul_f64(rand::random_range(0.5..=1.0)).max(asked);
            let _ = timeout(drawn, self.wait_for_newer(partition, &route)).await;
            pause = (pause * 2).min(self.config.pause_max);
        }
    }

    /// One attempt. It is given up as soon as a newer owner is known: the old one may never answer.
    async fn attempt<T>(
        &self,
        partition: PartitionId,
        route: &Option<Route>,
        max: Duration,
        answer: Asked<T>,
    ) -> Result<T, Failed> {
        tokio::select! {
            biased;
            answer = timeout(max, answer) => match answer {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(status)) => Err(Failed::of(&status)),
                Err(_) => Err(Failed { refusal: refusal(Code::Timeout), owner: None, unreachable: true }),
            },
            () = self.wait_for_newer(partition, route), if route.is_some() => {
                Err(Failed { refusal: refusal(Code::NotOwner), owner: None, unreachable: false })
            }
        }
    }

    fn newer_than(&self, partition: PartitionId, old: &Option<Route>) -> bool {
        match (self.route(partition), old) {
            (Some(new), Some(old)) => new.epoch > old.epoch && new.address != old.address,
            (Some(_), None) => true,
            (None, _) => false,
        }
    }

    async fn wait_for_newer(&self, partition: PartitionId, old: &Option<Route>) {
        let mut news = self.news();
        while !self.newer_than(partition, old) {
            if news.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn usual(&self) -> Patience {
        Patience { attempt: self.config.attempt_max, all: self.config.retry_for }
    }

    fn client(&self, address: &str) -> Client {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(address) {
            return client.clone();
        }
        if clients.len() >= self.config.nodes_max {
            clients.clear();
        }
        let client = DocumentServiceClient::new((self.connector)(address))
            .max_decoding_message_size(self.config.message_bytes_max.bytes())
            .max_encoding_message_size(self.config.message_bytes_max.bytes());
        clients.insert(address.to_owned(), client.clone());
        client
    }

    /// The seeds in turn.
    fn seed(&self) -> Option<String> {
        let turn = self.next_seed.fetch_add(1, Ordering::Relaxed);
        self.seeds.get(turn.checked_rem(self.seeds.len())?).cloned()
    }
}

/// Answers of `NotOwner` that are followed at once; after that, a pause comes between.
const HOPS_MAX: u32 = 3;
/// Pause between two rounds of questions to the seeds.
const SEEDS_PAUSE: Duration = Duration::from_millis(250);

/// How long one attempt may take, and all of them.
#[derive(Clone, Copy)]
struct Patience {
    attempt: Duration,
    all: Duration,
}

fn request_of<T>(message: T, max: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(max);
    telemetry::inject(request.metadata_mut());
    request
}

/// Why an attempt had no answer.
struct Failed {
    refusal: Refusal,
    owner: Option<v1::Route>,
    /// The node may be dead: nothing shows that it has read the question.
    unreachable: bool,
}

impl Failed {
    fn of(status: &Status) -> Failed {
        let detail = v1::ErrorDetail::decode(status.details()).ok();
        if let Some(detail) = detail.filter(|detail| detail.code != 0) {
            // A code that a newer node knows and this one does not keeps the meaning of its range.
            let code = Code::from_number(detail.code).unwrap_or(match Retry::of(detail.code) {
                Retry::Later => Code::Unavailable,
                Retry::AfterResync => Code::HistoryReset,
                Retry::No => Code::Internal,
            });
            let message = if detail.message.is_empty() { code.message().to_owned() } else { detail.message };
            let refusal = Refusal { code, message, retry_after_ms: detail.retry_after_ms, next_counter: 0 };
            return Failed { refusal, owner: detail.owner, unreachable: false };
        }
        // No node of ours made this status: it tells about the way, not about the document.
        let (code, unreachable) = match status.code() {
            tonic::Code::Unimplemented | tonic::Code::OutOfRange | tonic::Code::InvalidArgument => {
                (Code::Internal, false)
            }
            tonic::Code::DeadlineExceeded => (Code::Timeout, true),
            _ => (Code::Unavailable, true),
        };
        tracing::debug!(status = %status.code(), message = status.message(), "a document node did not answer");
        Failed { refusal: refusal(code), owner: None, unreachable }
    }
}

async fn collect(
    mut parts: tonic::Streaming<v1::OpenResponse>,
    bytes_max: usize,
) -> Result<OpenedDocument, Status> {
    use v1::open_response::Part;
    let cut_short = || status_of(Code::Unavailable, "the owner's answer was cut short");
    let unusable = || status_of(Code::Internal, "the owner's answer is not usable");
    let (mut header, mut tail, mut state, mut bytes) = (None, Vec::new(), Vec::new(), 0);
    while let Some(part) = parts.message().await? {
        match part.part {
            Some(Part::Header(found)) => header = Some(found),
            Some(Part::Entries(run)) => {
                bytes += run.entries.len();
                tail.push(SharedRun::new(run).map_err(|_| unusable())?);
            }
            Some(Part::State(piece)) => {
                bytes += piece.len();
                state.push(piece);
            }
            None => {}
        }
        if bytes > bytes_max {
            return Err(status_of(Code::TooLarge, "the document is too large to be opened here"));
        }
    }
    let header = header.ok_or_else(cut_short)?;
    let position = header.position.as_ref().and_then(position_from_wire).ok_or_else(unusable)?;
    let epoch = Epoch(header.epoch);
    let state_bytes: usize = state.iter().map(Bytes::len).sum();
    if state_bytes as u64 != header.state_bytes {
        return Err(cut_short());
    }
    let body = if header.recovery() == v1::Recovery::State { Body::State(state) } else { Body::Tail(tail) };
    let strategy = header.strategy();
    let v1::OpenHeader { next_counter, heads, max_base, .. } = header;
    let opened = Opened { position, next_counter, body, strategy, heads, max_base };
    Ok(OpenedDocument { opened, epoch })
}

/// A refusal that says what the table says.
pub(crate) fn refusal(code: Code) -> Refusal {
    let retry_after_ms = if code.retry() == Retry::Later { 1000 } else { 0 };
    Refusal { retry_after_ms, ..Refusal::from(code) }
}

fn status_of(code: Code, message: &str) -> Status {
    let detail = v1::ErrorDetail { code: code.number(), message: message.to_owned(), ..Default::default() };
    Status::with_details(code.grpc(), message, detail.encode_to_vec().into())
}

fn unusable() -> Refusal {
    Refusal::new(Code::Internal, "a document node's answer is not usable")
}

fn partition_of(document: &str) -> Result<PartitionId, Refusal> {
    let name: DocumentName = document.parse().map_err(|_| refusal(Code::InvalidName))?;
    Ok(PartitionId::of(&name))
}
