//! Clients, edges, feeds, a lossy bus and one log in virtual time. Everything that happens is drawn from a
//! seed; nothing here knows what the machines ought to do, but for the shells' duty to do what they say.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash};
use std::time::Duration;

use bytes::Bytes;
use manyhands_proto::{Code, DocumentName, Epoch, Position};
use manyhands_session::client::{self, Event};
use manyhands_session::edge::{self, ChannelId, Edge, EdgeConfig, Fetched, Opened, Submitted};
use manyhands_session::feed::{self, Feed, FeedConfig};
use manyhands_session::{Grant, Limits, Refusal, Scopes, SharedRun, Workspaces};

use crate::app::{self, App};
use crate::log::Document;
use crate::random::Random;

pub(crate) const DOCUMENTS: [&str; 2] = ["alpha", "beta"];
const NODES: usize = 2;
/// The wall clock at the beginning, milliseconds.
const WALL_MS: u64 = 1_800_000_000_000;

pub(crate) struct World {
    pub(crate) now: Duration,
    random: Random,
    faults: bool,
    queue: BTreeMap<(Duration, u64), Happening>,
    last: u64,
    pub(crate) documents: Vec<Document>,
    epoch: u64,
    nodes: Vec<BTreeMap<usize, Followed>>,
    sockets: BTreeMap<u64, Socket>,
    pub(crate) apps: Vec<App>,
    /// A digest of every effect: what a seed must repeat.
    pub(crate) digest: Option<DefaultHasher>,
    pub(crate) counts: Counts,
}

/// What happened in a run, so that a test can see that it was not idle.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) edits: u64,
    pub(crate) cuts: u64,
    pub(crate) slow_closes: u64,
    pub(crate) rejects: u64,
    pub(crate) fetches: u64,
    pub(crate) states: u64,
    pub(crate) most_queued: usize,
}

/// A document that a node follows.
#[derive(Default)]
struct Followed {
    feed: Option<Feed>,
    sessions: Vec<(u64, ChannelId)>,
    /// Whose inbox was full: to be told where the document stands.
    missed: BTreeSet<(u64, ChannelId)>,
}

/// One connection.
struct Socket {
    node: usize,
    app: usize,
    edge: Edge,
    /// Sent by the edge, not yet taken by the network.
    waiting: VecDeque<Bytes>,
    pumping: bool,
    stalled_until: Duration,
    /// When the last message of each way arrives: a socket keeps its order.
    up_at: Duration,
    down_at: Duration,
}

enum Happening {
    Connected {
        app: usize,
        socket: u64,
    },
    ConnectFailed {
        app: usize,
        socket: u64,
    },
    ToEdge {
        socket: u64,
        frame: Bytes,
    },
    ToClient {
        socket: u64,
        frame: Bytes,
    },
    ClosedToClient {
        socket: u64,
        app: usize,
        code: Option<u16>,
    },
    ClosedToEdge {
        socket: u64,
    },
    Pump {
        socket: u64,
    },
    Open {
        socket: u64,
        channel: ChannelId,
        document: usize,
        replica: Option<u64>,
        have: Option<Position>,
    },
    OpenAnswer {
        socket: u64,
        channel: ChannelId,
        document: usize,
        result: Result<Opened, Refusal>,
    },
    Submit {
        socket: u64,
        channel: ChannelId,
        document: usize,
        replica: u64,
        first: u64,
        count: u32,
        changes: Bytes,
    },
    SubmitAnswer {
        socket: u64,
        channel: ChannelId,
        result: Result<Submitted, Refusal>,
    },
    FetchAnswer {
        socket: u64,
        channel: ChannelId,
        result: Result<Fetched, Refusal>,
    },
    FeedAnswer {
        node: usize,
        document: usize,
        result: Result<Fetched, Refusal>,
    },
    TokenAnswer {
        socket: u64,
    },
    Bus {
        node: usize,
        document: usize,
        input: feed::Input,
    },
    Tips,
    Edit {
        app: usize,
        channel: u32,
    },
    Mishap,
}

impl World {
    pub(crate) fn new(seed: u64, digest: Option<DefaultHasher>) -> World {
        let mut random = Random::new(seed);
        let mut world = World {
            now: Duration::ZERO,
            faults: true,
            queue: BTreeMap::new(),
            last: 0,
            documents: vec![Document::new(0xa1), Document::new(0xb2)],
            epoch: 1,
            nodes: (0..NODES).map(|_| BTreeMap::new()).collect(),
            sockets: BTreeMap::new(),
            apps: (0..3).map(|name| App::new(name, random.next(), app::config())).collect(),
            digest,
            counts: Counts::default(),
            random,
        };
        for app in 0..world.apps.len() {
            for (number, document) in DOCUMENTS.iter().enumerate() {
                let writes = world.random.chance(75);
                let open = world.apps[app].open(number as u32 + 1, document, writes);
                world.tell_client(app, open);
            }
            world.tell_client(app, client::Input::Start);
        }
        world.after(Duration::from_millis(500), Happening::Tips);
        world.after(Duration::from_millis(300), Happening::Mishap);
        world
    }

    /// Edits and mishaps for a while.
    pub(crate) fn live(&mut self, busy: Duration) {
        for app in 0..self.apps.len() {
            for channel in 1..=DOCUMENTS.len() as u32 {
                let at = self.random.millis(0, 1000);
                self.after(at, Happening::Edit { app, channel });
            }
        }
        self.run_until(busy);
        self.faults = false;
        let sockets: Vec<u64> = self.sockets.keys().copied().collect();
        for socket in sockets {
            if let Some(socket) = self.sockets.get_mut(&socket) {
                socket.stalled_until = Duration::ZERO;
            }
            self.start_pump(socket);
        }
    }

    /// No more edits or mishaps, time only.
    pub(crate) fn rest(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    fn run_until(&mut self, end: Duration) {
        let mut steps = 0u64;
        loop {
            let happening = self.queue.keys().next().map(|(at, _)| *at);
            let clients = self.apps.iter().filter_map(|app| app.client.deadline());
            let edges = self.sockets.values().filter_map(|socket| socket.edge.deadline());
            let feeds = self
                .nodes
                .iter()
                .flat_map(BTreeMap::values)
                .filter_map(|followed| followed.feed.as_ref()?.deadline());
            let next = clients.chain(edges).chain(feeds).chain(happening).min().unwrap_or(end);
            if next >= end {
                self.now = end;
                return;
            }
            steps += 1;
            assert!(steps < 2_000_000, "the world spins at {:?}", self.now);
            self.now = self.now.max(next);
            self.tick();
            if happening.is_some_and(|at| at <= self.now)
                && let Some((_, happening)) = self.queue.pop_first()
            {
                self.happen(happening);
            }
        }
    }

    fn tick(&mut self) {
        let now = self.now;
        for app in 0..self.apps.len() {
            if self.apps[app].client.deadline().is_some_and(|at| at <= now) {
                self.tell_client(app, client::Input::Tick);
                let next = self.apps[app].client.deadline();
                assert!(next.is_none_or(|next| next > now), "client {app} is due again at once");
            }
        }
        let due = |socket: &Socket| socket.edge.deadline().is_some_and(|at| at <= now);
        let sockets: Vec<u64> = self.sockets.iter().filter(|(_, s)| due(s)).map(|(id, _)| *id).collect();
        for socket in sockets {
            self.tell_edge(socket, edge::Input::Tick);
            let again = self.sockets.get(&socket).is_some_and(due);
            assert!(!again, "an edge is due again at once");
        }
        for node in 0..self.nodes.len() {
            for document in 0..DOCUMENTS.len() {
                let feed = self.nodes[node].get(&document).and_then(|followed| followed.feed.as_ref());
                if feed.and_then(Feed::deadline).is_some_and(|at| at <= now) {
                    self.tell_feed(node, document, feed::Input::Tick);
                }
            }
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Connected { app, socket } => self.connected(app, socket),
            Happening::ConnectFailed { app, socket } => {
                if self.apps[app].socket.take_if(|current| *current == socket).is_some() {
                    self.tell_client(app, client::Input::SocketFailed { refusal: None });
                }
            }
            Happening::ToEdge { socket, frame } => self.tell_edge(socket, edge::Input::Frame(frame)),
            Happening::ToClient { socket, frame } => {
                if let Some(app) = self.apps.iter().position(|app| app.socket == Some(socket)) {
                    self.tell_client(app, client::Input::Frame(frame));
                }
            }
            Happening::ClosedToClient { socket, app, code } => {
                if self.apps[app].socket.take_if(|current| *current == socket).is_some() {
                    let reason = String::new();
                    self.tell_client(app, client::Input::SocketClosed { code, reason });
                }
            }
            Happening::ClosedToEdge { socket } => self.forget(socket),
            Happening::Pump { socket } => self.pump(socket),
            Happening::Open { socket, channel, document, replica, have } => {
                let result = self.fail().unwrap_or_else(|| Ok(self.documents[document].open(replica, have)));
                let delay = self.delay();
                self.after(delay, Happening::OpenAnswer { socket, channel, document, result });
            }
            Happening::OpenAnswer { socket, channel, document, result } => {
                self.start_following(socket, channel, document, result);
            }
            Happening::Submit { socket, channel, document, replica, first, count, changes } => {
                let result = self.submit(document, replica, first, count, &changes);
                let delay = self.delay();
                self.after(delay, Happening::SubmitAnswer { socket, channel, result });
            }
            Happening::SubmitAnswer { socket, channel, result } => {
                self.tell_edge(socket, edge::Input::Submitted { channel, result });
            }
            Happening::FetchAnswer { socket, channel, result } => {
                self.tell_edge(socket, edge::Input::Fetched { channel, result });
            }
            Happening::FeedAnswer { node, document, result } => {
                self.tell_feed(node, document, feed::Input::Fetched(result));
            }
            Happening::TokenAnswer { socket } => {
                let verified = edge::Input::TokenVerified(Ok(self.grant()));
                self.tell_edge(socket, verified);
            }
            Happening::Bus { node, document, input } => self.tell_feed(node, document, input),
            Happening::Tips => {
                for document in 0..DOCUMENTS.len() {
                    let tip = feed::Input::Tip {
                        epoch: Epoch(self.epoch),
                        position: self.documents[document].position(),
                    };
                    self.publish(document, &tip);
                    self.remind(document);
                }
                self.after(Duration::from_millis(500), Happening::Tips);
            }
            Happening::Edit { app, channel } => self.edit(app, channel),
            Happening::Mishap => self.mishap(),
        }
    }

    fn edit(&mut self, app: usize, channel: u32) {
        if !self.faults {
            return;
        }
        if let Some(input) = self.apps[app].edit(channel, &mut self.random) {
            self.counts.edits += 1;
            self.tell_client(app, input);
        }
        // Now and then a burst.
        let most = if self.random.chance(60) { 30 } else { 1500 };
        let pause = self.random.millis(1, most);
        self.after(pause, Happening::Edit { app, channel });
    }

    fn mishap(&mut self) {
        if !self.faults {
            return;
        }
        let sockets: Vec<u64> = self.sockets.keys().copied().collect();
        let chosen = (!sockets.is_empty()).then(|| sockets[self.random.below(sockets.len() as u64) as usize]);
        match (self.random.below(10), chosen) {
            (0..3, Some(socket)) => self.cut(socket),
            (3..6, Some(socket)) => {
                let pause = self.random.millis(100, 14_000);
                if let Some(socket) = self.sockets.get_mut(&socket) {
                    socket.stalled_until = self.now + pause;
                }
                self.after(pause, Happening::Pump { socket });
            }
            (6, Some(socket)) => {
                let node = self.sockets[&socket].node;
                let within = self.random.millis(100, 3_000);
                let leaving: Vec<u64> =
                    self.sockets.iter().filter(|(_, s)| s.node == node).map(|(id, _)| *id).collect();
                for socket in leaving {
                    self.tell_edge(socket, edge::Input::Drain { within });
                }
            }
            (7, Some(socket)) => {
                // The edge dies: its sockets and all that it knew.
                let node = self.sockets[&socket].node;
                let lost: Vec<u64> =
                    self.sockets.iter().filter(|(_, s)| s.node == node).map(|(id, _)| *id).collect();
                lost.into_iter().for_each(|socket| self.cut(socket));
                self.nodes[node].clear();
            }
            (8, _) => self.epoch += 1,
            (9, _) => {
                let node = self.random.below(NODES as u64) as usize;
                for document in 0..DOCUMENTS.len() {
                    self.tell_feed(node, document, feed::Input::Suspect);
                }
            }
            _ => {}
        }
        let pause = self.random.millis(50, 2_500);
        self.after(pause, Happening::Mishap);
    }

    fn cut(&mut self, socket: u64) {
        let Some(Socket { app, .. }) = self.sockets.get(&socket) else { return };
        let app = *app;
        self.counts.cuts += 1;
        self.forget(socket);
        // The client may be long in noticing, or never be told.
        if self.random.chance(80) {
            let delay = self.delay();
            self.after(delay, Happening::ClosedToClient { socket, app, code: None });
        }
    }

    fn forget(&mut self, socket: u64) {
        if let Some(gone) = self.sockets.remove(&socket) {
            for followed in self.nodes[gone.node].values_mut() {
                followed.sessions.retain(|(session, _)| *session != socket);
            }
        }
    }

    fn grant(&self) -> Grant {
        Grant {
            subject: "ada".to_owned(),
            scopes: Scopes::parse(["read", "write"]),
            workspaces: Workspaces::Any,
            expires_at_ms: WALL_MS + self.now.as_millis() as u64 + 20_000,
        }
    }

    fn connected(&mut self, app: usize, socket: u64) {
        if self.apps[app].socket != Some(socket) {
            return;
        }
        let node = self.random.below(NODES as u64) as usize;
        let wall_ms = WALL_MS + self.now.as_millis() as u64;
        let edge = Edge::new(
            edge_config(),
            format!("session-{socket}"),
            self.grant(),
            None,
            self.random.next(),
            self.now,
            wall_ms,
        );
        let waiting = VecDeque::new();
        let (stalled_until, up_at, down_at) = (Duration::ZERO, self.now, self.now);
        let socket_state = Socket { node, app, edge, waiting, pumping: false, stalled_until, up_at, down_at };
        self.sockets.insert(socket, socket_state);
        self.tell_client(app, client::Input::SocketOpened);
    }

    fn tell_client(&mut self, app: usize, input: client::Input) {
        let mut effects = Vec::new();
        self.apps[app].client.handle(self.now, input, &mut effects);
        for effect in effects {
            self.note(format_args!("{app} {effect:?}"));
            match effect {
                client::Effect::Connect => {
                    self.last += 1;
                    let socket = self.last;
                    self.apps[app].socket = Some(socket);
                    let delay = self.delay();
                    let fails = self.faults && self.random.chance(15);
                    let happening = match fails {
                        true => Happening::ConnectFailed { app, socket },
                        false => Happening::Connected { app, socket },
                    };
                    self.after(delay, happening);
                }
                client::Effect::Send(frame) => {
                    let delay = self.delay();
                    let current = self.apps[app].socket.expect("frames go over a socket");
                    if let Some(socket) = self.sockets.get_mut(&current) {
                        socket.up_at = socket.up_at.max(self.now + delay);
                        let at = socket.up_at;
                        self.at(at, Happening::ToEdge { socket: current, frame });
                    }
                }
                client::Effect::CloseSocket { .. } => {
                    let socket = self.apps[app].socket.take().expect("a socket to close");
                    let delay = self.delay();
                    self.after(delay, Happening::ClosedToEdge { socket });
                }
                client::Effect::Event(event) => self.tell_app(app, event),
            }
        }
        self.apps[app].check_outbox();
        while self.apps[app].tokens_wanted > 0 {
            self.apps[app].tokens_wanted -= 1;
            self.tell_client(app, client::Input::Token("fresh".to_owned()));
        }
    }

    fn tell_app(&mut self, app: usize, event: Event) {
        if matches!(event, Event::State { .. }) {
            self.counts.states += 1;
        }
        self.apps[app].learn(event);
        for (&channel, open) in &self.apps[app].documents {
            let document = &self.documents[channel as usize - 1];
            let durable = open.replica.map_or(0, |replica| document.next_counter(replica));
            assert!(open.acked <= durable, "client {app} was told that {} is durable", open.acked);
        }
    }

    fn tell_edge(&mut self, id: u64, input: edge::Input) {
        let now = self.now;
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        let mut effects = Vec::new();
        socket.edge.handle(now, input, &mut effects);
        for effect in effects {
            self.note(format_args!("{id} {effect:?}"));
            self.do_for_edge(id, effect);
        }
    }

    fn do_for_edge(&mut self, id: u64, effect: edge::Effect) {
        let delay = self.delay();
        match effect {
            edge::Effect::Send(frame) => {
                let Some(socket) = self.sockets.get_mut(&id) else { return };
                socket.waiting.push_back(frame);
                let queued: usize = socket.waiting.iter().map(Bytes::len).sum();
                self.counts.most_queued = self.counts.most_queued.max(queued);
                self.start_pump(id);
            }
            edge::Effect::Ping => {
                // The other end's WebSocket answers by itself, if it lives.
                let lives = self.apps.iter().any(|app| app.socket == Some(id));
                if lives {
                    self.tell_edge(id, edge::Input::Heard);
                }
            }
            edge::Effect::Open { channel, document, replica, have, .. } => {
                let document = index(&document);
                let replica = replica.map(|replica| replica.0);
                self.after(delay, Happening::Open { socket: id, channel, document, replica, have });
            }
            edge::Effect::Submit {
                channel,
                document,
                incarnation,
                replica,
                first_counter,
                count,
                changes,
            } => {
                let document = index(&document);
                assert_eq!(incarnation, self.documents[document].incarnation);
                let (replica, first) = (replica.0, first_counter);
                let submit =
                    Happening::Submit { socket: id, channel, document, replica, first, count, changes };
                self.after(delay, submit);
            }
            edge::Effect::Fetch { channel, document, after, .. } => {
                self.counts.fetches += 1;
                let document = index(&document);
                let Some(node) = self.sockets.get(&id).map(|socket| socket.node) else { return };
                let feed = self.nodes[node].get(&document).and_then(|followed| followed.feed.as_ref());
                let recent = feed.and_then(|feed| feed.recent(after)).map(Ok);
                let result = recent
                    .or_else(|| self.fail())
                    .unwrap_or_else(|| Ok(self.documents[document].fetch(after)));
                self.after(delay, Happening::FetchAnswer { socket: id, channel, result });
            }
            edge::Effect::Leave { channel, document } => {
                let Some(node) = self.sockets.get(&id).map(|socket| socket.node) else { return };
                if let Some(followed) = self.nodes[node].get_mut(&index(&document)) {
                    followed.sessions.retain(|seat| *seat != (id, channel));
                }
            }
            edge::Effect::SetPresence { .. } | edge::Effect::ClearPresence { .. } => {}
            edge::Effect::SendText(_) | edge::Effect::Mirror { .. } | edge::Effect::Recall { .. } => {
                unreachable!("these belong to the JSON dialect")
            }
            edge::Effect::VerifyToken(_) => self.after(delay, Happening::TokenAnswer { socket: id }),
            edge::Effect::Close { code, .. } => {
                let benign =
                    matches!(code, Code::SlowConsumer | Code::Idle | Code::ShuttingDown | Code::TokenExpired);
                assert!(benign, "the edge closed a good client's socket: {code}");
                self.counts.slow_closes += u64::from(code == Code::SlowConsumer);
                let Some(Socket { app, down_at, .. }) = self.sockets.get(&id) else { return };
                let (app, at) = (*app, (*down_at).max(self.now + delay));
                self.at(at, Happening::ClosedToClient { socket: id, app, code: code.close() });
                self.forget(id);
            }
        }
    }

    fn start_pump(&mut self, id: u64) {
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        if !socket.pumping && !socket.waiting.is_empty() {
            socket.pumping = true;
            let at = self.now.max(socket.stalled_until);
            self.at(at, Happening::Pump { socket: id });
        }
    }

    /// The network takes a few messages, if the client reads.
    fn pump(&mut self, id: u64) {
        let delay = self.delay();
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        socket.pumping = false;
        if self.now >= socket.stalled_until {
            let taken = self.random.below(8) as usize + 1;
            for _ in 0..taken {
                let Some(frame) = socket.waiting.pop_front() else { break };
                socket.down_at = socket.down_at.max(self.now + delay);
                let at = socket.down_at;
                self.last += 1;
                self.queue.insert((at, self.last), Happening::ToClient { socket: id, frame });
            }
            let bytes = socket.waiting.iter().map(Bytes::len).sum();
            self.tell_edge(id, edge::Input::Queued { bytes });
        }
        self.start_pump(id);
    }

    fn start_following(
        &mut self,
        id: u64,
        channel: ChannelId,
        document: usize,
        result: Result<Opened, Refusal>,
    ) {
        let Some(node) = self.sockets.get(&id).map(|socket| socket.node) else { return };
        if let Ok(opened) = &result {
            let position = opened.position;
            let seed = self.random.next();
            let now = self.now;
            let followed = self.nodes[node].entry(document).or_default();
            followed.feed.get_or_insert_with(|| Feed::new(feed_config(), position.incarnation, seed, now));
            followed.sessions.push((id, channel));
            self.tell_edge(id, edge::Input::Opened { channel, result });
            self.tell_feed(node, document, feed::Input::Opened { position });
            let delivered =
                self.nodes[node].get(&document).and_then(|followed| followed.feed.as_ref()?.position());
            if let Some(position) = delivered {
                self.tell_edge(id, edge::Input::TipSeen { channel, position });
            }
        } else {
            self.tell_edge(id, edge::Input::Opened { channel, result });
        }
    }

    fn tell_feed(&mut self, node: usize, document: usize, input: feed::Input) {
        let now = self.now;
        let Some(followed) = self.nodes[node].get_mut(&document) else { return };
        let Some(feed) = &mut followed.feed else { return };
        let mut effects = Vec::new();
        feed.handle(now, input, &mut effects);
        let sessions = followed.sessions.clone();
        for effect in effects {
            self.note(format_args!("{node} {document} {effect:?}"));
            match effect {
                feed::Effect::Deliver(run) => self.deliver(node, document, &sessions, &run),
                feed::Effect::Fetch { after, .. } => {
                    let result = self.fail().unwrap_or_else(|| Ok(self.documents[document].fetch(after)));
                    let delay = self.delay();
                    self.after(delay, Happening::FeedAnswer { node, document, result });
                }
                feed::Effect::Lost => panic!("a feed lost a history that never changed"),
            }
        }
    }

    fn deliver(&mut self, node: usize, document: usize, sessions: &[(u64, ChannelId)], run: &SharedRun) {
        for &(socket, channel) in sessions {
            // A full inbox.
            if self.faults && self.random.chance(3) {
                if let Some(followed) = self.nodes[node].get_mut(&document) {
                    followed.missed.insert((socket, channel));
                }
                continue;
            }
            self.tell_edge(socket, edge::Input::Entries { channel, run: run.clone() });
        }
    }

    /// The shell's duty to those who missed a run.
    fn remind(&mut self, document: usize) {
        for node in 0..NODES {
            let Some(followed) = self.nodes[node].get_mut(&document) else { continue };
            let missed = std::mem::take(&mut followed.missed);
            if let Some(position) = followed.feed.as_ref().and_then(Feed::position) {
                for (socket, channel) in missed {
                    self.tell_edge(socket, edge::Input::TipSeen { channel, position });
                }
            }
        }
    }

    fn submit(
        &mut self,
        document: usize,
        replica: u64,
        first: u64,
        count: u32,
        changes: &[u8],
    ) -> Result<Submitted, Refusal> {
        let fate = if self.faults { self.random.below(100) } else { 100 };
        let refuse = |code: Code| {
            let mut refusal = Refusal::from(code);
            refusal.retry_after_ms = 40;
            Err(refusal)
        };
        match fate {
            0..4 => return refuse(Code::Unavailable),
            4..6 => return refuse(Code::Overloaded),
            6..8 => return refuse(Code::Timeout),
            8 => return refuse(Code::Internal),
            _ => {}
        }
        let (submitted, run) = self.documents[document].submit(replica, first, count, changes);
        self.counts.rejects += u64::from(submitted.rejection.is_some());
        if let Some(run) = run {
            let incarnation = self.documents[document].incarnation;
            self.publish(document, &feed::Input::Delta { epoch: Epoch(self.epoch), incarnation, run });
        }
        // Durable, but nobody is told.
        if fate < 12 { refuse(Code::Timeout) } else { Ok(submitted) }
    }

    fn publish(&mut self, document: usize, input: &feed::Input) {
        for node in 0..NODES {
            let copies = match (self.faults, self.random.below(100)) {
                (true, 0..12) => 0,
                (true, 12..24) => 2,
                _ => 1,
            };
            for _ in 0..copies {
                let delay = if self.faults && self.random.chance(20) {
                    self.random.millis(0, 700)
                } else {
                    self.random.millis(0, 3)
                };
                self.after(delay, Happening::Bus { node, document, input: input.clone() });
            }
        }
    }

    fn note(&mut self, effect: std::fmt::Arguments<'_>) {
        if let Some(digest) = &mut self.digest {
            effect.to_string().hash(digest);
        }
    }

    fn fail<T>(&mut self) -> Option<Result<T, Refusal>> {
        (self.faults && self.random.chance(10)).then(|| Err(Code::Unavailable.into()))
    }

    fn delay(&mut self) -> Duration {
        let most = if self.faults && self.random.chance(10) { 900 } else { 12 };
        self.random.millis(0, most)
    }

    fn after(&mut self, delay: Duration, happening: Happening) {
        self.at(self.now + delay, happening);
    }

    fn at(&mut self, at: Duration, happening: Happening) {
        self.last += 1;
        self.queue.insert((at, self.last), happening);
    }
}

/// Small enough that every limit is met.
pub(crate) fn edge_config() -> EdgeConfig {
    EdgeConfig {
        limits: Limits {
            push_changes_max: 8,
            in_flight_changes_max: 16,
            in_flight_bytes_max: 600,
            ..Limits::default()
        },
        hello_max: Duration::from_secs(5),
        ping_interval: Duration::from_secs(4),
        send_queue_bytes_max: 1_500,
        send_queue_bytes_close: 6_000,
        openings_max: 1,
        ..EdgeConfig::default()
    }
}

fn feed_config() -> FeedConfig {
    FeedConfig {
        held_runs_max: 5,
        held_bytes_max: 2_000,
        ring_runs_max: 10,
        silence_max: Duration::from_secs(3),
        ..FeedConfig::default()
    }
}

fn index(document: &DocumentName) -> usize {
    DOCUMENTS.iter().position(|name| *name == document.as_str()).expect("a document of this world")
}
