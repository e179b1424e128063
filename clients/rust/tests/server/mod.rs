//! A server for one process: real sockets, the real edge machine, and documents in memory. It can hold
//! back, refuse, cut connections and change history on demand.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use manyhands_client::{Client, ClientOptions, Token};
use manyhands_crdt::{
    Admission, ChangeRef, Document, EntryWriter, Hash, Hlc, Limits, Refusal as Refused, ReplicaId, Strategy,
    read_push,
};
use manyhands_proto::{Chain, Code, DocumentName, Incarnation, Position, Seq, v1};
use manyhands_session::edge::{Body, ChannelId, Edge, EdgeConfig, Effect, Fetched, Input, Opened, Submitted};
use manyhands_session::{Grant, Refusal, Scopes, SharedRun, Workspaces};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};

/// The latest stamp that is taken, in the year 2200.
pub(crate) const STAMP_MAX: u64 = 7_258_118_400_000_000;

/// A server that ends with this value.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    world: Arc<World>,
    _accepting: JoinSet<()>,
}

struct World {
    inner: Mutex<Inner>,
    /// Goes up with everything that a session could have to tell.
    changed: watch::Sender<u64>,
    /// Goes up when all connections are to be cut.
    cut: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    documents: BTreeMap<DocumentName, Owned>,
    /// Tokens that open a socket, with their scopes.
    tokens: BTreeMap<String, String>,
    tokens_seen: Vec<String>,
    sockets: u64,
    /// New connections end before the handshake.
    away: bool,
    /// Changes are taken in but not answered.
    holds: bool,
    lets_through: Option<ReplicaId>,
    /// A change that inserts this is refused.
    forbidden: Option<String>,
    /// Openings are answered with entries from the first on, never with a state.
    tails_only: bool,
    states_sent: u64,
}

/// A document as its owner has it.
struct Owned {
    incarnation: Incarnation,
    document: Document,
    log: Vec<Entry>,
    /// What each change was, to know a resend from a fork.
    hashes: BTreeMap<(ReplicaId, u64), Hash>,
    roster: BTreeMap<String, v1::Peer>,
}

struct Entry {
    index: u32,
    new: Option<ReplicaId>,
    base: u64,
    body: Vec<u8>,
}

impl Server {
    pub(crate) async fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tokens = BTreeMap::from([("good".to_owned(), "read write".to_owned())]);
        let world = Arc::new(World {
            inner: Mutex::new(Inner { tokens, ..Inner::default() }),
            changed: watch::Sender::new(0),
            cut: watch::Sender::new(0),
        });
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, world.clone()));
        Server { address, world, _accepting: accepting }
    }

    pub(crate) fn options(&self, token: impl Into<Token>) -> ClientOptions {
        ClientOptions::new(format!("ws://{}", self.address).parse().unwrap(), token)
    }

    /// A client with a good token.
    pub(crate) fn client(&self) -> Client {
        Client::connect(self.options("good"))
    }

    /// Cuts every connection in mid-air.
    pub(crate) fn cut(&self) {
        self.world.cut.send_modify(|count| *count += 1);
    }

    pub(crate) fn away(&self, away: bool) {
        self.world.lock().away = away;
        if away {
            self.cut();
        }
    }

    pub(crate) fn hold(&self, holds: bool) {
        self.world.lock().holds = holds;
        self.world.tell();
    }

    pub(crate) fn forbid(&self, text: &str) {
        self.world.lock().forbidden = Some(text.to_owned());
    }

    pub(crate) fn tails_only(&self) {
        self.world.lock().tails_only = true;
    }

    pub(crate) fn allow(&self, token: &str, scopes: &str) {
        self.world.lock().tokens.insert(token.to_owned(), scopes.to_owned());
    }

    pub(crate) fn tokens_seen(&self) -> Vec<String> {
        self.world.lock().tokens_seen.clone()
    }

    pub(crate) fn sockets(&self) -> u64 {
        self.world.lock().sockets
    }

    pub(crate) fn states_sent(&self) -> u64 {
        self.world.lock().states_sent
    }

    /// Another history with other content takes a document's place.
    pub(crate) fn reset(&self, name: &str, text: &str) {
        self.begin(name, 1_000, text);
    }

    /// The same, once more.
    pub(crate) fn restore(&self, name: &str, text: &str) {
        self.begin(name, 2_000, text);
    }

    fn begin(&self, name: &str, incarnation: u64, text: &str) {
        let mut document = Document::new();
        let mut edit = document.edit(ReplicaId(77));
        edit.insert("main", 0, text).unwrap();
        let change = edit.commit(0).unwrap();
        let mut owned = Owned::new(incarnation);
        owned.submit(change.as_ref()).unwrap();
        self.world.lock().documents.insert(name.parse().unwrap(), owned);
        self.cut();
    }

    /// A copy of a client, one that took its replica along, writes.
    pub(crate) fn write_as(&self, name: &str, replica: ReplicaId, text: &str) {
        let mut inner = self.world.lock();
        let owned = inner.owned(&name.parse().unwrap());
        let mut document = Document::decode(&owned.document.encode()).unwrap();
        let mut edit = document.edit(replica);
        edit.insert("main", 0, text).unwrap();
        let change = edit.commit(owned.tip().seq.0).unwrap();
        owned.submit(change.as_ref()).unwrap();
    }

    /// Somebody else sets a key of a map.
    pub(crate) fn write_json_as(&self, name: &str, replica: u64, map: &str, key: &str, json: &str) {
        let mut inner = self.world.lock();
        let owned = inner.owned(&name.parse().unwrap());
        let mut document = Document::decode(&owned.document.encode()).unwrap();
        let mut edit = document.edit(ReplicaId(replica));
        edit.set(map, key, json, Hlc::at(1), None).unwrap();
        let change = edit.commit(owned.tip().seq.0).unwrap();
        owned.submit(change.as_ref()).unwrap();
    }

    /// Takes what this replica writes, even while it holds back everything else.
    pub(crate) fn let_through(&self, replica: ReplicaId) {
        self.world.lock().lets_through = Some(replica);
        self.world.tell();
    }

    pub(crate) fn text(&self, name: &str) -> String {
        let mut inner = self.world.lock();
        let owned = inner.owned(&name.parse().unwrap());
        owned.document.text("main").map(|text| text.to_string()).unwrap_or_default()
    }

    pub(crate) fn state_hash(&self, name: &str) -> [u8; 16] {
        self.world.lock().owned(&name.parse().unwrap()).document.state_hash()
    }
}

impl World {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}

impl Inner {
    fn owned(&mut self, name: &DocumentName) -> &mut Owned {
        let next = 1 + self.documents.len() as u64;
        self.documents.entry(name.clone()).or_insert_with(|| Owned::new(next))
    }
}

impl Owned {
    fn new(incarnation: u64) -> Owned {
        Owned {
            incarnation: Incarnation(incarnation),
            document: Document::new(),
            log: Vec::new(),
            hashes: BTreeMap::new(),
            roster: BTreeMap::new(),
        }
    }

    /// Any function of history and seq will do.
    fn position(&self, seq: u64) -> Position {
        let mut chain = Chain::default();
        if seq > 0 {
            chain[..8].copy_from_slice(&self.incarnation.0.to_le_bytes());
            chain[8..].copy_from_slice(&seq.to_le_bytes());
        }
        Position { incarnation: self.incarnation, seq: Seq(seq), chain }
    }

    fn tip(&self) -> Position {
        self.position(self.log.len() as u64)
    }

    fn submit(&mut self, change: ChangeRef<'_>) -> Result<(), Refused> {
        let new = self.document.replica_index(change.replica).is_none();
        let admission = Admission { stamp_max: Some(STAMP_MAX) };
        let applied = self.document.admit(change, &admission)?;
        self.hashes.insert((change.replica, change.counter), applied.hash);
        let index = self.document.replica_index(change.replica).unwrap();
        let new = new.then_some(change.replica);
        self.log.push(Entry { index, new, base: change.base, body: change.body.to_vec() });
        Ok(())
    }

    /// Whether it has this very change, under this number.
    fn has(&self, change: ChangeRef<'_>) -> bool {
        let hash = self.document.hash_of(change).map(|(_, hash)| hash);
        hash.is_ok_and(|hash| self.hashes.get(&(change.replica, change.counter)) == Some(&hash))
    }

    fn after(&self, seq: Seq) -> Vec<SharedRun> {
        let mut runs = Vec::new();
        let mut first = seq.0 as usize;
        for chunk in self.log[first..].chunks(10) {
            let mut run = EntryWriter::new();
            for (n, entry) in chunk.iter().enumerate() {
                run.push((first + n) as u64 + 1, entry.index, entry.new, entry.base, &entry.body);
            }
            let last = (first + chunk.len()) as u64;
            let run = v1::EntryRun {
                first_seq: first as u64 + 1,
                count: run.count(),
                entries: run.finish().into(),
                chain: Bytes::copy_from_slice(&self.position(last).chain),
            };
            runs.push(SharedRun::new(run).unwrap());
            first += chunk.len();
        }
        runs
    }
}

async fn accept(listener: TcpListener, world: Arc<World>) {
    let mut sessions = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        if !world.lock().away {
            sessions.spawn(session(stream, world.clone()));
        }
    }
}

/// Looks at the token of a handshake; refuses as an edge does.
fn admit(
    world: &World,
    request: &Request,
    mut response: Response,
) -> Result<(Response, String), ErrorResponse> {
    let header = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    let token = header.and_then(|header| header.strip_prefix("Bearer ")).unwrap_or_default().to_owned();
    let mut inner = world.lock();
    inner.tokens_seen.push(token.clone());
    match inner.tokens.get(&token) {
        Some(scopes) => {
            let protocol = request.headers()["sec-websocket-protocol"].clone();
            response.headers_mut().insert("sec-websocket-protocol", protocol);
            Ok((response, scopes.clone()))
        }
        None => {
            let problem = serde_json::json!({
                "type": "about:blank", "title": "Unauthorized", "status": 401,
                "detail": "the token's signature does not verify.", "code": 310, "fix": "Sign it."
            });
            let mut refusal = ErrorResponse::new(Some(problem.to_string()));
            *refusal.status_mut() = http::StatusCode::UNAUTHORIZED;
            Err(refusal)
        }
    }
}

async fn session(stream: TcpStream, world: Arc<World>) {
    let mut scopes = String::new();
    let check = |request: &Request, response: Response| {
        let (response, granted) = admit(&world, request, response)?;
        scopes = granted;
        Ok(response)
    };
    let Ok(mut socket) = tokio_tungstenite::accept_hdr_async(stream, check).await else { return };
    let number = {
        let mut inner = world.lock();
        inner.sockets += 1;
        inner.sockets
    };
    let (mut changed, mut cut) = (world.changed.subscribe(), world.cut.subscribe());
    cut.mark_unchanged();
    let started = Instant::now();
    let grant = Grant {
        subject: "ada".to_owned(),
        scopes: Scopes::parse(scopes.split(' ')),
        workspaces: Workspaces::Any,
        expires_at_ms: 3_600_000,
    };
    let name = format!("session-{number}");
    let mut edge = Edge::new(EdgeConfig::default(), name.clone(), grant, None, number, Duration::ZERO, 0);
    let mut live = Live { name, world: world.clone(), channels: BTreeMap::new(), held: Vec::new() };
    let mut inputs: VecDeque<Input> = VecDeque::new();
    loop {
        let mut effects = Vec::new();
        while let Some(input) = inputs.pop_front() {
            edge.handle(started.elapsed(), input, &mut effects);
            for effect in effects.drain(..) {
                let sent = match effect {
                    Effect::Send(frame) => socket.send(Message::Binary(frame)).await,
                    Effect::Ping => socket.send(Message::Ping(Bytes::new())).await,
                    Effect::Close { code, reason } => {
                        let frame = CloseFrame { code: code.close().unwrap().into(), reason: reason.into() };
                        let _ = socket.close(Some(frame)).await;
                        return;
                    }
                    effect => {
                        inputs.extend(live.perform(effect));
                        Ok(())
                    }
                };
                if sent.is_err() {
                    return live.leave();
                }
            }
        }
        let deadline = edge.deadline().map(|at| tokio::time::Instant::from_std(started + at));
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(Message::Binary(frame))) => inputs.push_back(Input::Frame(frame)),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => inputs.push_back(Input::Heard),
                _ => return live.leave(),
            },
            _ = changed.changed() => inputs.extend(live.news()),
            _ = cut.changed() => return live.leave(),
            () = tokio::time::sleep_until(deadline.unwrap()), if deadline.is_some() => inputs.push_back(Input::Tick),
        }
    }
}

/// What a session has open.
struct Live {
    name: String,
    world: Arc<World>,
    channels: BTreeMap<ChannelId, (DocumentName, Seq)>,
    /// Submits that wait until the server no longer holds them.
    held: Vec<Effect>,
}

impl Live {
    fn perform(&mut self, effect: Effect) -> Vec<Input> {
        let world = self.world.clone();
        let mut inner = world.lock();
        match effect {
            Effect::Open { channel, document, replica, have, strategy, .. } => {
                let tails_only = inner.tails_only;
                let new = !inner.documents.contains_key(&document);
                let owned = inner.owned(&document);
                if new && strategy != v1::Strategy::Unspecified {
                    owned.document = Document::with_strategy(merges(strategy), Limits::default());
                }
                if ![v1::Strategy::Unspecified, says(&owned.document)].contains(&strategy) {
                    return vec![Input::Opened { channel, result: Err(Code::StrategyMismatch.into()) }];
                }
                let strategy = says(&owned.document);
                let tip = owned.tip();
                let have = have.filter(|have| *have == owned.position(have.seq.0));
                let next_counter = replica.map_or(0, |replica| owned.document.next_counter(replica));
                let body = match have {
                    Some(have) => Body::Tail(owned.after(have.seq)),
                    None if tails_only || tip.seq.0 == 0 => Body::Tail(owned.after(Seq(0))),
                    None => Body::State(vec![owned.document.encode().into()]),
                };
                self.channels.insert(channel, (document, tip.seq));
                if matches!(body, Body::State(_)) {
                    inner.states_sent += 1;
                }
                drop(inner);
                let opened = Opened { strategy, ..Opened::new(tip, next_counter, body) };
                let mut inputs = vec![Input::Opened { channel, result: Ok(opened) }];
                inputs.extend(self.news());
                inputs
            }
            Effect::Submit { replica, .. } if inner.holds && inner.lets_through != Some(replica) => {
                self.held.push(effect);
                Vec::new()
            }
            Effect::Submit { channel, document, incarnation, replica, first_counter, count, changes } => {
                let forbidden = inner.forbidden.clone();
                let owned = inner.owned(&document);
                let result = if owned.incarnation == incarnation {
                    Ok(submit(owned, forbidden.as_deref(), replica, first_counter, count, &changes))
                } else {
                    Err(Refusal::from(Code::HistoryReset))
                };
                drop(inner);
                world.tell();
                vec![Input::Submitted { channel, result }]
            }
            Effect::Fetch { channel, document, after, .. } => {
                let owned = inner.owned(&document);
                let fetched = Fetched { runs: owned.after(after), tip: owned.tip() };
                vec![Input::Fetched { channel, result: Ok(fetched) }]
            }
            Effect::SetPresence { document, peer, .. } => {
                inner.owned(&document).roster.insert(self.name.clone(), peer);
                drop(inner);
                world.tell();
                Vec::new()
            }
            Effect::ClearPresence { document, .. } => {
                inner.owned(&document).roster.remove(&self.name);
                drop(inner);
                world.tell();
                Vec::new()
            }
            Effect::Leave { channel, .. } => {
                self.channels.remove(&channel);
                Vec::new()
            }
            effect => panic!("not expected here: {effect:?}"),
        }
    }

    /// What the open documents have that this session was not told.
    fn news(&mut self) -> Vec<Input> {
        let mut inputs = Vec::new();
        let world = self.world.clone();
        let tries = {
            let inner = world.lock();
            !inner.holds || inner.lets_through.is_some()
        };
        if tries {
            for submit in std::mem::take(&mut self.held) {
                inputs.extend(self.perform(submit));
            }
        }
        let mut inner = world.lock();
        for (&channel, (document, sent)) in &mut self.channels {
            let owned = inner.owned(document);
            if owned.tip().seq < *sent {
                inputs.push(Input::Lost { channel });
                continue;
            }
            inputs.extend(owned.after(*sent).into_iter().map(|run| Input::Entries { channel, run }));
            *sent = owned.tip().seq;
            let peers = owned.roster.values().cloned().collect();
            inputs.push(Input::Presence { channel, full: true, peers, left: Vec::new() });
        }
        inputs
    }

    fn leave(&mut self) {
        let mut inner = self.world.lock();
        for owned in inner.documents.values_mut() {
            owned.roster.remove(&self.name);
        }
        drop(inner);
        self.world.tell();
    }
}

fn merges(strategy: v1::Strategy) -> Strategy {
    Strategy::ALL[strategy as usize - 1]
}

fn says(document: &Document) -> v1::Strategy {
    v1::Strategy::try_from(i32::from(document.strategy().code())).unwrap()
}

/// Durable are all changes before the first that is refused; what is known already counts as durable.
fn submit(
    owned: &mut Owned,
    forbidden: Option<&str>,
    replica: ReplicaId,
    first_counter: u64,
    count: u32,
    changes: &Bytes,
) -> Submitted {
    let mut rejection = None;
    for change in read_push(replica, first_counter, count, changes) {
        let (change, _) = change.unwrap();
        let mut current = String::new();
        let refused = if forbidden.is_some_and(|word| contains(change.body, word.as_bytes())) {
            Some((Code::Forbidden, "this word is not allowed".to_owned()))
        } else {
            match owned.submit(change) {
                Ok(()) => None,
                Err(Refused::Known { .. }) if owned.has(change) => None,
                Err(Refused::Known { .. }) => Some((Code::Fork, "another change".to_owned())),
                Err(Refused::Conflict(conflict)) => {
                    let value = conflict.value.as_deref().unwrap_or("null");
                    current = format!("{{\"value\":{value},\"seq\":{}}}", conflict.seq);
                    Some((Code::Conflict, "the key has another value".to_owned()))
                }
                Err(error @ Refused::ClockAhead { .. }) => Some((Code::ClockAhead, error.to_string())),
                Err(Refused::Gap { .. }) => Some((Code::MissingPredecessor, "a gap".to_owned())),
                Err(error) => Some((Code::MissingReference, error.to_string())),
            }
        };
        if let Some((code, message)) = refused {
            rejection = Some(v1::Rejection {
                counter: change.counter,
                code: code.number(),
                message,
                next_counter: owned.document.next_counter(replica),
                current: current.into(),
                ..v1::Rejection::default()
            });
            break;
        }
    }
    Submitted { next_counter: owned.document.next_counter(replica), seq: owned.tip().seq, rejection }
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|window| window == word)
}
