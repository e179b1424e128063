//! The one task of a client: it owns the socket, the clock and the session machine, and carries things
//! between them and the open workspaces. What to do is decided by [`manyhands_session::client`].

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use manyhands_crdt::Strategy;
use manyhands_proto::v1::{self, Recovery};
use manyhands_proto::{Code, Position};
use manyhands_session::client::{
    Client as Machine, ClientConfig, ConnectionState, Effect, Event, HandshakeRefusal, Input,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::{Connection, Shared, Stop, new_replica};
use crate::document::{OpenDocument, Phase, Refused, Why};
use crate::options::TokenError;
use crate::presence::{PEERS_MAX, Peer};
use crate::socket::{ConnectError, Incoming, Socket};
use crate::workspace::{Held, Update};

/// How long saying goodbye to a server may take.
const GOODBYE_MAX: Duration = Duration::from_millis(500);
/// How often a workspace is loaded anew because entries do not fit it, before it is given up.
const RELOADS_MAX: u32 = 3;

type Pending<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;

pub(crate) struct Driver {
    shared: Arc<Shared>,
    machine: Machine,
    started: Instant,
    effects: Vec<Effect>,
    socket: Option<Socket>,
    /// A socket that is being made, and the token that it is made with.
    connecting: Pending<Result<(Socket, String), ConnectError>>,
    /// A token that is being asked for.
    asking: Pending<Result<String, TokenError>>,
    token: Option<String>,
    /// Which of the URLs is next.
    url: usize,
    last_error: Option<Arc<ConnectError>>,
    /// A new token was refused as well.
    token_refused: bool,
    /// This session's name in rosters.
    session: String,
    done: bool,
}

/// What a turn of the loop waits for.
enum News {
    Local,
    Connected(Result<(Socket, String), ConnectError>),
    Token(Result<String, TokenError>),
    Incoming(Incoming),
    Deadline,
}

impl Driver {
    pub(crate) fn new(shared: Arc<Shared>, seed: u64) -> Driver {
        let options = &shared.options;
        let config = ClientConfig {
            client: options.name.clone(),
            // The workspaces keep these limits, so that an edit beyond them is never made.
            outbox_changes_max: usize::MAX,
            outbox_bytes_max: usize::MAX,
            frame_bytes_max: options.message_bytes_max,
            ..ClientConfig::default()
        };
        Driver {
            machine: Machine::new(config, seed),
            shared,
            started: Instant::now(),
            effects: Vec::new(),
            socket: None,
            connecting: None,
            asking: None,
            token: None,
            url: 0,
            last_error: None,
            token_refused: false,
            session: String::new(),
            done: false,
        }
    }

    /// Runs until the application closes the client or lets go of it.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        self.feed(Input::Start).await;
        while !self.done {
            let deadline = self.machine.deadline().map(|at| self.started + at);
            let news = tokio::select! {
                () = cancel.cancelled() => break,
                () = self.shared.news.notified() => News::Local,
                result = ready(&mut self.connecting) => News::Connected(result),
                result = ready(&mut self.asking) => News::Token(result),
                incoming = read(&mut self.socket, &self.shared) => News::Incoming(incoming),
                () = sleep_until(deadline) => News::Deadline,
            };
            match news {
                News::Local => self.take_wishes().await,
                News::Connected(result) => self.connected(result).await,
                News::Token(result) => self.fresh_token(result).await,
                News::Incoming(incoming) => self.incoming(incoming).await,
                News::Deadline => self.feed(Input::Tick).await,
            }
        }
        self.feed(Input::Stop).await;
        self.stopped(Stop::closed());
        let documents = std::mem::take(&mut self.shared.wishes().documents);
        for held in documents.values() {
            held.lock().phase = Phase::Closed;
            held.bump();
        }
    }

    /// One thing into the machine, and everything that follows from it.
    async fn feed(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            self.machine.handle(self.started.elapsed(), input, &mut self.effects);
            for effect in std::mem::take(&mut self.effects) {
                match effect {
                    Effect::Connect => self.connect(),
                    Effect::Send(frame) => {
                        if let Some(socket) = &mut self.socket {
                            socket.send(frame);
                        }
                    }
                    Effect::CloseSocket { code, reason } => {
                        self.connecting = None;
                        if let Some(socket) = self.socket.take() {
                            socket.close(code, reason, &self.shared.traffic, GOODBYE_MAX).await;
                        }
                    }
                    Effect::Event(event) => inputs.extend(self.event(event)),
                }
            }
        }
    }

    fn connect(&mut self) {
        let shared = self.shared.clone();
        let token = self.token.clone();
        let url = shared.options.urls[self.url % shared.options.urls.len()].clone();
        self.socket = None;
        self.connecting = Some(Box::pin(async move {
            let token = match token {
                Some(token) => token,
                None => shared.options.token.get().await?,
            };
            let socket = Socket::connect(&url, &token, &shared.options).await?;
            Ok((socket, token))
        }));
    }

    async fn connected(&mut self, result: Result<(Socket, String), ConnectError>) {
        self.connecting = None;
        match result {
            Ok((socket, token)) => {
                self.shared.traffic.connections.fetch_add(1, Relaxed);
                self.socket = Some(socket);
                self.token = Some(token);
                self.feed(Input::SocketOpened).await;
            }
            Err(error) => {
                tracing::debug!(%error, "no connection");
                let refusal = match &error {
                    ConnectError::Refused { status, code, message, retry_after, .. } => {
                        Some(HandshakeRefusal {
                            status: *status,
                            code: *code,
                            message: message.clone(),
                            retry_after: *retry_after,
                        })
                    }
                    _ => None,
                };
                self.last_error = Some(Arc::new(error));
                self.url += 1;
                self.feed(Input::SocketFailed { refusal }).await;
            }
        }
    }

    async fn incoming(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Frame(frame) => self.feed(Input::Frame(frame)).await,
            Incoming::Heard => self.feed(Input::Heard).await,
            Incoming::Closed { code, reason } => {
                tracing::debug!(code, reason, "the connection is gone");
                self.socket = None;
                self.url += 1;
                self.feed(Input::SocketClosed { code, reason }).await;
            }
        }
    }

    async fn fresh_token(&mut self, result: Result<String, TokenError>) {
        self.asking = None;
        match result {
            Ok(token) => {
                self.token = Some(token.clone());
                self.feed(Input::Token(token)).await;
            }
            Err(error) => {
                self.last_error = Some(Arc::new(error.into()));
                self.token_not_to_be_had().await;
            }
        }
    }

    /// While a connection lives it goes on with the token that it has; without one this is the end.
    async fn token_not_to_be_had(&mut self) {
        if self.socket.is_none() {
            let error = self.last_error.clone();
            let message = error.as_ref().map_or_else(String::new, |error| error.to_string());
            let fix = error.as_ref().map_or("Use another token.", |error| error.fix()).to_owned();
            self.stopped(Stop { code: Some(Code::Unauthenticated), message, fix });
        }
    }

    /// Carries what the application did to the machine.
    async fn take_wishes(&mut self) {
        let (dirty, wake, close) = {
            let mut wishes = self.shared.wishes();
            let dirty: Vec<(u32, Arc<Held>)> = std::mem::take(&mut wishes.dirty)
                .into_iter()
                .filter_map(|channel| Some((channel, wishes.documents.get(&channel)?.clone())))
                .collect();
            (dirty, std::mem::take(&mut wishes.wake), wishes.close)
        };
        if wake {
            self.token_refused = false;
            if self.shared.options.token.is_renewable() && self.socket.is_none() {
                self.token = None;
            }
            self.feed(Input::Start).await;
        }
        for (channel, held) in dirty {
            for input in self.wishes_of(channel, &held) {
                self.feed(input).await;
            }
        }
        self.done |= close;
    }

    fn wishes_of(&self, channel: u32, held: &Held) -> Vec<Input> {
        let mut open = held.lock();
        if open.abandoned && (open.pending() == 0 || open.phase == Phase::Closed) {
            self.shared.wishes().documents.remove(&channel);
            if let Some(storage) = self.shared.storage() {
                storage.give_back(open.name.to_string(), open.leave());
            }
            return if open.announced { vec![Input::Leave { channel }] } else { Vec::new() };
        }
        let mut inputs = Vec::new();
        if open.phase == Phase::Closed {
            return inputs;
        }
        if !open.announced {
            open.announced = true;
            inputs.push(opening(&open));
        }
        inputs.extend(open.take_unsent().into_iter().map(|change| Input::Submit { channel, change }));
        if std::mem::take(&mut open.presence.dirty) {
            let (data, cursors) = (open.presence.data.clone(), open.presence.cursors.clone());
            inputs.push(Input::SetPresence { channel, data, cursors });
        }
        inputs
    }

    /// What the machine tells. Gives what the machine is to be told in turn.
    fn event(&mut self, event: Event) -> Option<Input> {
        let channel = match &event {
            Event::Connection(_) | Event::TokenExpiring { .. } | Event::GoingAway { .. } => {
                self.connection_event(event);
                return None;
            }
            Event::Opened { channel, .. }
            | Event::State { channel, .. }
            | Event::Entries { channel, .. }
            | Event::Acked { channel, .. }
            | Event::Refused { channel, .. }
            | Event::Presence { channel, .. }
            | Event::Evicted { channel, .. }
            | Event::PresenceTooLarge { channel, .. }
            | Event::Reopening { channel, .. } => *channel,
        };
        // A workspace that was left meanwhile needs no news.
        let held = self.shared.wishes().documents.get(&channel)?.clone();
        let mut open = held.lock();
        let input = document_event(&held, &mut open, &self.session, event, || self.shared.next_refused());
        if open.wants_new_replica() {
            open.begin_anew(new_replica());
        }
        let leave = open.abandoned && open.pending() == 0;
        let unheard = !open.announced || open.presence.dirty;
        let wants_writing = open.wants_writing();
        drop(open);
        held.bump();
        if leave || unheard || wants_writing {
            self.shared.mark(&held);
        }
        input
    }

    fn connection_event(&mut self, event: Event) {
        match event {
            Event::Connection(ConnectionState::Connecting) => {
                self.shared.connection.send_replace(Connection::Connecting);
            }
            Event::Connection(ConnectionState::Online { session, server_time_ms }) => {
                self.session = session;
                self.shared.server_time(server_time_ms);
                self.last_error = None;
                self.token_refused = false;
                self.shared.connection.send_replace(Connection::Online);
            }
            Event::Connection(ConnectionState::Offline { reason, .. }) => {
                let error = self.last_error.clone();
                self.shared.connection.send_replace(Connection::Offline { reason, error });
            }
            Event::Connection(ConnectionState::TokenNeeded { message }) => {
                self.token = None;
                let renewable = self.shared.options.token.is_renewable();
                if renewable && !std::mem::replace(&mut self.token_refused, true) {
                    self.ask_for_token();
                } else {
                    let fix =
                        self.last_error.as_ref().map_or(Code::Unauthenticated.fix(), |error| error.fix());
                    let fix = fix.to_owned();
                    self.stopped(Stop { code: Some(Code::Unauthenticated), message, fix });
                }
            }
            Event::Connection(ConnectionState::Stopped { code, message }) => {
                let fix = code.map_or("Read the message.", Code::fix).to_owned();
                self.stopped(Stop { code, message, fix });
            }
            Event::TokenExpiring { .. } if self.shared.options.token.is_renewable() => self.ask_for_token(),
            // The machine moves the connection by itself; the next server is as good as this one.
            Event::GoingAway { .. } => self.url += 1,
            _ => {}
        }
    }

    fn ask_for_token(&mut self) {
        let shared = self.shared.clone();
        self.asking = Some(Box::pin(async move { shared.options.token.get().await }));
    }

    fn stopped(&self, stop: Stop) {
        self.shared.connection.send_replace(Connection::Stopped(Arc::new(stop)));
    }
}

/// What the machine tells about one document.
fn document_event(
    held: &Held,
    open: &mut OpenDocument,
    session: &str,
    event: Event,
    next_refused: impl FnOnce() -> u64,
) -> Option<Input> {
    match event {
        // How far the log knows this replica is no acknowledgement: a copy of it may have written that.
        Event::Opened { recovery, position, can_write, strategy, .. } => {
            open.can_write = can_write;
            // An older server says nothing, and has texts only.
            let strategy = strategy_from_wire(strategy).unwrap_or(open.document.strategy());
            if recovery == Recovery::State && open.merges_by(strategy) {
                held.tell(Update::Reset);
            }
            if recovery != Recovery::Tail {
                return None;
            }
            if open.seq() == 0 && open.start_empty(strategy) {
                held.tell(Update::Reset);
            }
            open.load_until(position).err().and_then(|reason| reload(open, reason))
        }
        Event::State { position, bytes, .. } => match open.reset(&bytes, position) {
            Ok(()) => {
                held.tell(Update::Reset);
                None
            }
            Err(reason) => reload(open, reason),
        },
        Event::Entries { first_seq, count, entries, known, position, .. } => {
            match open.receive(first_seq, count, &entries, known, position) {
                Ok(patches) => {
                    if !patches.is_empty() {
                        held.tell(Update::Patches { local: false, patches: patches.into() });
                    }
                    None
                }
                Err(reason) => reload(open, reason),
            }
        }
        Event::Acked { next_counter, .. } => {
            open.ack(next_counter);
            None
        }
        Event::Refused { code, message, current, changes, .. } => {
            let from = changes.iter().map(|change| change.counter).min().unwrap_or(0);
            let current = std::str::from_utf8(&current).ok().filter(|current| !current.is_empty());
            let why = Why { code, message, current: current.map(str::to_owned) };
            open.refuse(next_refused(), why, from);
            None
        }
        Event::Presence { full, peers, left, .. } => {
            if full {
                open.peers.clear();
            }
            for gone in &left {
                open.peers.remove(gone);
            }
            for peer in peers.iter().filter(|peer| peer.session != session) {
                if open.peers.len() < PEERS_MAX || open.peers.contains_key(&peer.session) {
                    open.peers.insert(peer.session.clone(), Peer::from_wire(peer));
                }
            }
            None
        }
        Event::Evicted { code, message, .. } => {
            open.close(Refused::closing(code, message));
            None
        }
        Event::PresenceTooLarge { bytes, .. } => {
            open.presence.too_large = Some(bytes);
            None
        }
        Event::Reopening { .. }
        | Event::Connection(_)
        | Event::TokenExpiring { .. }
        | Event::GoingAway { .. } => None,
    }
}

/// What came does not fit what is here: takes the server's whole state instead. The outbox stays.
fn reload(open: &mut OpenDocument, reason: String) -> Option<Input> {
    tracing::warn!(workspace = %open.name, reason, "cannot follow the log; loading the whole state");
    open.reloads += 1;
    if open.reloads > RELOADS_MAX {
        open.close(Refused::closing(Code::Corrupt.number(), reason));
        return Some(Input::Leave { channel: open.channel });
    }
    open.position = None;
    Some(opening(open))
}

fn strategy_from_wire(strategy: v1::Strategy) -> Option<Strategy> {
    match strategy {
        v1::Strategy::Unspecified => None,
        v1::Strategy::Crdt => Some(Strategy::Crdt),
        v1::Strategy::Lww => Some(Strategy::Lww),
        v1::Strategy::Server => Some(Strategy::Server),
    }
}

fn strategy_to_wire(strategy: Option<Strategy>) -> v1::Strategy {
    match strategy {
        None => v1::Strategy::Unspecified,
        Some(Strategy::Crdt) => v1::Strategy::Crdt,
        Some(Strategy::Lww) => v1::Strategy::Lww,
        Some(Strategy::Server) => v1::Strategy::Server,
    }
}

fn opening(open: &OpenDocument) -> Input {
    Input::Open {
        channel: open.channel,
        document: open.name.clone(),
        replica: Some(open.replica),
        have: open.position.filter(|position: &Position| position.seq.0 > 0),
        strategy: strategy_to_wire(open.strategy),
        lineage: open.lineage(),
    }
}

async fn ready<T>(pending: &mut Pending<T>) -> T {
    match pending {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn read(socket: &mut Option<Socket>, shared: &Shared) -> Incoming {
    match socket {
        Some(socket) => socket.turn(&shared.traffic).await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
