//! One socket: reads frames, hands them to the session machine, does what it says, in order.
//!
//! Nothing here waits on the client. What it does not read waits in [`Outgoing`], whose level the machine is
//! told; what it costs to be slow is the machine's business.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::StreamExt;
use manyhands_proto::{Code, DocumentName, Epoch, Incarnation, Position, Seq, v1};
use manyhands_session::edge::{ChannelId, Edge, EdgeConfig, Effect, Input};
use manyhands_session::json::Choice;
use manyhands_session::{Grant, Refusal, position_to_wire};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep_until;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message, Utf8Bytes};
use tracing::Instrument;

use crate::auth::Verifier;
use crate::config::Limits;
use crate::fanout::{Fanout, Reader, Seat};
use crate::lane::{Lane, Presenter};
use crate::outgoing::{Goodbye, Metered, Outgoing};
use crate::router::{OpenedDocument, Router};

/// Deliveries of open documents that wait for a session's task. When it is full, further ones are dropped: the
/// machine sees the gap at the next one, or at the next tip, and fetches.
const INBOX_MAX: usize = 1024;
/// Deliveries that are handled before the socket is written to again.
const BATCH_MAX: usize = 64;

/// What all sessions of this edge share.
pub(crate) struct Node {
    pub(crate) verifier: Verifier,
    pub(crate) router: Arc<Router>,
    pub(crate) fanout: Fanout,
    pub(crate) lane: Lane,
    session: EdgeConfig,
    websocket: WebSocketConfig,
    /// The same for the JSON dialect.
    websocket_json: WebSocketConfig,
    started: Instant,
    /// Set when the edge leaves: over how long.
    leave: watch::Sender<Option<Duration>>,
}

/// A handshake that was let in.
pub(crate) struct Admitted {
    pub(crate) grant: Grant,
    pub(crate) address: Address,
    /// Counts the socket among those that this edge may have.
    pub(crate) permit: OwnedSemaphorePermit,
}

/// What a handshake asked for.
pub(crate) enum Address {
    /// The binary protocol, for one workspace or for many.
    Binary(Option<DocumentName>),
    /// The JSON dialect.
    Json(DocumentName, Choice),
}

impl Node {
    pub(crate) fn new(
        limits: &Limits,
        verifier: Verifier,
        router: Arc<Router>,
        fanout: Fanout,
        lane: Lane,
    ) -> Node {
        let frame_bytes_max = limits.frame_bytes_max.bytes();
        let mut websocket = WebSocketConfig::default();
        // 4 KiB instead of 128: the buffer exists for every connection, however idle.
        websocket.read_buffer_size = 4 * 1024;
        websocket.write_buffer_size = 16 * 1024;
        websocket.max_write_buffer_size = limits.send_queue_bytes_close.bytes().saturating_mul(2);
        websocket.max_message_size = Some(frame_bytes_max);
        websocket.max_frame_size = Some(frame_bytes_max);
        // A message that is somewhat too long is answered; a state goes in one message.
        let mut websocket_json = websocket;
        websocket_json.max_message_size = Some(frame_bytes_max.saturating_mul(2));
        websocket_json.max_frame_size = websocket_json.max_message_size;
        websocket_json.max_write_buffer_size =
            websocket.max_write_buffer_size.saturating_add(limits.init_bytes_max.bytes().saturating_mul(2));
        Node {
            verifier,
            router,
            fanout,
            lane,
            session: limits.session(),
            websocket,
            websocket_json,
            started: Instant::now(),
            leave: watch::Sender::new(None),
        }
    }

    /// Milliseconds since the Unix epoch.
    pub(crate) fn wall_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// Tells every session to go, each at a moment of its own, within this time.
    pub(crate) fn leave(&self, within: Duration) {
        self.leave.send_replace(Some(within));
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Serves one socket to its end.
pub(crate) async fn serve<S>(node: Arc<Node>, stream: S, admitted: Admitted)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Admitted { grant, address, permit: _permit } = admitted;
    let _counted = Connection::count();
    let stream = Metered::new(stream);
    let meter = stream.meter();
    let websocket = match address {
        Address::Binary(_) => node.websocket,
        Address::Json(..) => node.websocket_json,
    };
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(websocket)).await;
    let (sink, mut incoming) = socket.split();
    let mut outgoing = Outgoing::new(sink, meter);
    let (inbox, mut deliveries) = mpsc::channel(INBOX_MAX);
    let mut leave = node.leave.subscribe();
    let mut leaving = false;
    let mut session = Session::new(node, grant, address, inbox);
    let mut batch = Vec::new();
    // A session for one workspace asks for it unasked.
    session.handle(Input::Tick, &mut outgoing);

    let goodbye = loop {
        let deadline = session.deadline();
        tokio::select! {
            message = incoming.next() => match heard(message) {
                Ok(input) => session.handle(input, &mut outgoing),
                Err(goodbye) => break goodbye,
            },
            written = outgoing.write(), if outgoing.level() > 0 => match written {
                Ok(()) => session.handle(Input::Queued { bytes: outgoing.level() }, &mut outgoing),
                Err(_) => break Goodbye::Gone,
            },
            Some(answer) = session.answers.join_next() => match answer {
                Ok(answer) => session.answered(answer, &mut outgoing),
                Err(error) => {
                    tracing::error!(%error, "a request of a session failed");
                    break Goodbye::Close(Code::Internal, Code::Internal.slug().to_owned());
                }
            },
            _ = deliveries.recv_many(&mut batch, BATCH_MAX) => {
                batch.drain(..).for_each(|delivery| session.handle(delivery, &mut outgoing));
            }
            within = given(&mut leave), if !leaving => {
                leaving = true;
                session.handle(Input::Drain { within }, &mut outgoing);
            }
            () = sleep_until(deadline) => {
                session.handle(Input::Queued { bytes: outgoing.level() }, &mut outgoing);
                session.handle(Input::Tick, &mut outgoing);
            }
        }
        if let Some(goodbye) = session.goodbye.take() {
            break goodbye;
        }
    };
    let mut close = 0;
    if let Goodbye::Close(code, reason) = &goodbye {
        close = session.machine.close_code(*code);
        metrics::counter!("manyhands_edge_sessions_closed_total", "code" => code.slug()).increment(1);
        let client = session.machine.client();
        tracing::debug!(session = session.id, client = ?client, %code, reason, "a session is closed");
    }
    drop(session);
    outgoing.close(goodbye, close, incoming).await;
}

/// What a message means to the session, or how the connection ended.
fn heard(message: Option<Result<Message, SocketError>>) -> Result<Input, Goodbye> {
    match message {
        Some(Ok(Message::Binary(bytes))) => {
            metrics::counter!("manyhands_edge_frames_received_total").increment(1);
            metrics::counter!("manyhands_edge_received_bytes_total").increment(bytes.len() as u64);
            Ok(Input::Frame(bytes))
        }
        Some(Ok(Message::Text(text))) => {
            metrics::counter!("manyhands_edge_frames_received_total").increment(1);
            metrics::counter!("manyhands_edge_received_bytes_total").increment(text.len() as u64);
            Ok(Input::Text(text.into()))
        }
        Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(Input::Heard),
        Some(Ok(Message::Close(_))) => Err(Goodbye::Answered),
        Some(Err(SocketError::Capacity(error))) => {
            Err(Goodbye::Close(Code::TooLarge, reason(Code::TooLarge, &error.to_string())))
        }
        Some(Err(SocketError::Protocol(error))) if is_said_by_the_client(&error) => {
            Err(Goodbye::Close(Code::Violation, reason(Code::Violation, &error.to_string())))
        }
        Some(Err(SocketError::Utf8(_))) => {
            Err(Goodbye::Close(Code::Violation, reason(Code::Violation, "a text message that is no text")))
        }
        Some(Err(_)) | None => Err(Goodbye::Gone),
    }
}

fn is_said_by_the_client(error: &ProtocolError) -> bool {
    !matches!(error, ProtocolError::ResetWithoutClosingHandshake | ProtocolError::SendAfterClosing)
}

/// As a close frame carries it: 123 bytes at most.
fn reason(code: Code, why: &str) -> String {
    let mut reason = format!("{}: {why}", code.slug());
    reason.truncate(reason.floor_char_boundary(123));
    reason
}

/// Waits for the word to leave, and for how long there is.
async fn given(leave: &mut watch::Receiver<Option<Duration>>) -> Duration {
    loop {
        if let Some(within) = *leave.borrow_and_update() {
            return within;
        }
        if leave.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The machine of one socket and what it needs around it.
struct Session {
    node: Arc<Node>,
    id: String,
    machine: Edge,
    /// The documents that are open, each with its place in the fan-out.
    seats: BTreeMap<ChannelId, Arc<Seat>>,
    /// Those that the owner has answered for, each with its place in the lane of presence.
    presenters: BTreeMap<ChannelId, Presenter>,
    /// Questions to owners. They end with the session.
    answers: JoinSet<Answer>,
    inbox: mpsc::Sender<Input>,
    effects: Vec<Effect>,
    /// What was answered at once, on its way to the machine.
    ready: VecDeque<Input>,
    goodbye: Option<Goodbye>,
}

/// What an owner answered, on its way to the machine.
struct Answer {
    input: Input,
    /// From where on the document's deltas are wanted, and who said so.
    start: Option<(ChannelId, Position, Epoch)>,
}

impl Session {
    fn new(node: Arc<Node>, grant: Grant, address: Address, inbox: mpsc::Sender<Input>) -> Session {
        let id = format!("{:016x}", rand::random::<u64>());
        let (now, wall_ms) = (node.now(), node.wall_ms());
        let (config, name, seed) = (node.session.clone(), id.clone(), rand::random());
        let machine = match address {
            Address::Binary(workspace) => Edge::new(config, name, grant, workspace, seed, now, wall_ms),
            Address::Json(workspace, choice) => {
                Edge::json(config, name, grant, workspace, choice, seed, now, wall_ms)
            }
        };
        Session {
            node,
            id,
            machine,
            seats: BTreeMap::new(),
            presenters: BTreeMap::new(),
            answers: JoinSet::new(),
            inbox,
            effects: Vec::new(),
            ready: VecDeque::new(),
            goodbye: None,
        }
    }

    fn deadline(&self) -> tokio::time::Instant {
        let deadline = self.machine.deadline().unwrap_or(self.node.now() + Duration::from_secs(60));
        (self.node.started + deadline).into()
    }

    /// Gives one thing to the machine and does what it says.
    fn handle<S>(&mut self, input: Input, outgoing: &mut Outgoing<S>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut effects = std::mem::take(&mut self.effects);
        let mut next = Some(input);
        while let Some(input) = next {
            let mirrored = match &input {
                Input::Mirrored { channel, result: Ok(_) } => Some(*channel),
                _ => None,
            };
            self.machine.handle(self.node.now(), input, &mut effects);
            for effect in effects.drain(..) {
                self.perform(effect, outgoing);
            }
            if let Some(channel) = mirrored {
                self.join_lane(channel);
            }
            next = self.ready.pop_front();
        }
        self.effects = effects;
    }

    fn answered<S>(&mut self, answer: Answer, outgoing: &mut Outgoing<S>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.handle(answer.input, outgoing);
        // The channel may have been left, or refused, in the meantime: then it has no seat any more.
        if let Some((channel, position, epoch)) = answer.start
            && let Some(seat) = self.seats.get(&channel)
        {
            seat.start(position, epoch);
            self.join_lane(channel);
        }
    }

    /// The document is open: its roster comes, and this session may be in it.
    fn join_lane(&mut self, channel: ChannelId) {
        if let Some(seat) = self.seats.get(&channel)
            && !self.presenters.contains_key(&channel)
        {
            let document = seat.document().clone();
            let presenter = self.node.lane.join(&self.id, document, channel, self.inbox.clone());
            self.presenters.insert(channel, presenter);
        }
    }

    fn perform<S>(&mut self, effect: Effect, outgoing: &mut Outgoing<S>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        match effect {
            Effect::Send(frame) => {
                metrics::counter!("manyhands_edge_frames_sent_total").increment(1);
                metrics::counter!("manyhands_edge_sent_bytes_total").increment(frame.len() as u64);
                outgoing.push(Message::Binary(frame));
            }
            Effect::SendText(frame) => {
                metrics::counter!("manyhands_edge_frames_sent_total").increment(1);
                metrics::counter!("manyhands_edge_sent_bytes_total").increment(frame.len() as u64);
                match Utf8Bytes::try_from(frame) {
                    Ok(text) => outgoing.push(Message::Text(text)),
                    Err(error) => {
                        tracing::error!(%error, "a frame that is no text");
                        self.goodbye = Some(Goodbye::Close(Code::Internal, Code::Internal.slug().to_owned()));
                    }
                }
            }
            Effect::Ping => outgoing.push(Message::Ping(Bytes::new())),
            Effect::Open { channel, document, replica, have, heads, strategy } => {
                let request = v1::OpenRequest {
                    document: document.to_string(),
                    replica: replica.map_or(0, |replica| replica.0),
                    have: have.as_ref().map(position_to_wire),
                    grant: Some(self.machine.grant().to_wire()),
                    strategy: strategy.into(),
                    heads,
                };
                self.open(channel, document, request);
            }
            Effect::Mirror { channel, document, strategy, heads, lost } => match self.seats.get(&channel) {
                Some(seat) => seat.join_mirror(lost),
                None => {
                    let reader = Reader { channel, inbox: self.inbox.clone(), strategy, heads };
                    let seat = self.node.fanout.reader_seat(document, reader);
                    self.seats.insert(channel, Arc::new(seat));
                }
            },
            Effect::Recall { channel, key, timestamp, .. } => {
                let known = self.seats.get(&channel).map(|seat| seat.recall(&key, timestamp));
                self.ready.push_back(Input::Recalled { channel, known: known.unwrap_or_default() });
            }
            Effect::Submit { channel, document, incarnation, replica, first_counter, count, changes } => {
                let request = v1::SubmitRequest {
                    document: document.to_string(),
                    incarnation: incarnation.0,
                    replica: replica.0,
                    first_counter,
                    count,
                    changes,
                    grant: Some(self.machine.grant().to_wire()),
                };
                self.submit(channel, request);
            }
            Effect::Fetch { channel, after, .. } if self.machine.is_json() => {
                let result = self.seats.get(&channel).map_or(Ok(None), |seat| seat.missed(after));
                self.ready.push_back(Input::Missed { channel, result });
            }
            Effect::Fetch { channel, incarnation, after, .. } => self.fetch(channel, incarnation, after),
            Effect::Leave { channel, .. } => {
                self.presenters.remove(&channel);
                self.seats.remove(&channel);
            }
            Effect::SetPresence { channel, peer, .. } => {
                if let Some(presenter) = self.presenters.get(&channel) {
                    presenter.show(peer);
                }
            }
            Effect::ClearPresence { channel, .. } => {
                if let Some(presenter) = self.presenters.get(&channel) {
                    presenter.hide();
                }
            }
            Effect::VerifyToken(token) => {
                let verified = self.node.verifier.verify(&token, self.node.wall_ms());
                let result = verified.map_err(|denied| Refusal::new(denied.code(), denied.to_string()));
                self.answers.spawn(async { Answer { input: Input::TokenVerified(result), start: None } });
            }
            Effect::Close { code, reason } => self.goodbye = Some(Goodbye::Close(code, reason)),
        }
    }

    /// Joins the document's fan-out first, so that nothing falls between what the owner says and what the bus
    /// brings; then asks the owner.
    fn open(&mut self, channel: ChannelId, document: DocumentName, request: v1::OpenRequest) {
        let seat = Arc::new(self.node.fanout.seat(document, channel, self.inbox.clone()));
        self.seats.insert(channel, Arc::clone(&seat));
        let router = Arc::clone(&self.node.router);
        self.answers.spawn(async move {
            seat.subscribed().await;
            let (result, start) = match router.open(request).await {
                Ok(OpenedDocument { opened, epoch }) => {
                    let start = Some((channel, opened.position, epoch));
                    (Ok(opened), start)
                }
                Err(refusal) => {
                    count_refusal(&refusal);
                    (Err(refusal), None)
                }
            };
            Answer { input: Input::Opened { channel, result }, start }
        });
    }

    fn submit(&mut self, channel: ChannelId, request: v1::SubmitRequest) {
        let span = tracing::info_span!("edge.submit", document = request.document, count = request.count);
        let router = Arc::clone(&self.node.router);
        let asked = async move {
            let asked_at = Instant::now();
            let result = router.submit(request).await;
            metrics::histogram!("manyhands_edge_submit_seconds").record(asked_at.elapsed());
            match &result {
                Ok(submitted) => {
                    if let Some(rejection) = &submitted.rejection {
                        let code = Code::from_number(rejection.code).map_or("unknown", Code::slug);
                        metrics::counter!("manyhands_edge_refusals_total", "code" => code).increment(1);
                    }
                }
                Err(refusal) => count_refusal(refusal),
            }
            Answer { input: Input::Submitted { channel, result }, start: None }
        };
        self.answers.spawn(asked.instrument(span));
    }

    fn fetch(&mut self, channel: ChannelId, incarnation: Incarnation, after: Seq) {
        let Some(seat) = self.seats.get(&channel).cloned() else { return };
        let grant = self.machine.grant().to_wire();
        self.answers.spawn(async move {
            let result = seat.fetch(incarnation, after, grant).await;
            Answer { input: Input::Fetched { channel, result }, start: None }
        });
    }
}

fn count_refusal(refusal: &Refusal) {
    metrics::counter!("manyhands_edge_refusals_total", "code" => refusal.code.slug()).increment(1);
}

/// One connection in the gauge, while it lives.
struct Connection;

impl Connection {
    fn count() -> Connection {
        metrics::gauge!("manyhands_edge_connections").increment(1);
        Connection
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        metrics::gauge!("manyhands_edge_connections").decrement(1);
    }
}
