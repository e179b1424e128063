//! An edge that runs, and a client that says what it is told to say.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use manyhands_bus::{LocalBus, SharedBus};
use manyhands_edge::presence::{LocalPresence, Presence};
use manyhands_edge::{Config, Surroundings, channel};
use manyhands_process::health::Health;
use manyhands_process::shutdown::Shutdown;
use manyhands_process::telemetry::Metrics;
use manyhands_process::value::Secret;
use manyhands_proto::v1;
use manyhands_proto::v1::client_frame::Frame as ClientFrame;
use manyhands_proto::v1::server_frame::Frame as ServerFrame;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::documents::Documents;

pub(crate) const SECRET: &str = "a secret for tests, long enough for HS256";
/// Longest time that anything in a test may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) documents: Documents,
    pub(crate) bus: SharedBus,
    pub(crate) shutdown: Shutdown,
    pub(crate) health: Health,
    pub(crate) task: JoinHandle<std::io::Result<()>>,
}

pub(crate) fn config() -> Config {
    Config {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        secret: Secret::new(SECRET),
        documents: vec!["http://one".to_owned()],
        ..Config::default()
    }
}

pub(crate) async fn start(config: Config) -> Running {
    let bus: SharedBus = Arc::new(LocalBus::new(manyhands_bus::Limits::default()));
    let documents = Documents::new(Arc::clone(&bus));
    start_with(config, bus, [("http://one", documents)]).await
}

/// An edge among several document nodes, by address. The first is given back.
pub(crate) async fn start_with<const N: usize>(
    config: Config,
    bus: SharedBus,
    nodes: [(&'static str, Documents); N],
) -> Running {
    start_beside(config, bus, nodes, Arc::new(LocalPresence::default())).await
}

/// The same with a presence store that other edges use too.
pub(crate) async fn start_beside<const N: usize>(
    config: Config,
    bus: SharedBus,
    nodes: [(&'static str, Documents); N],
    presence: Arc<dyn Presence>,
) -> Running {
    let documents = nodes[0].1.clone();
    let nodes: BTreeMap<_, _> = nodes.into_iter().collect();
    let nowhere = Documents::new(Arc::clone(&bus));
    let connector = Arc::new(move |address: &str| {
        let node = nodes.get(address).unwrap_or(&nowhere);
        if !nodes.contains_key(address) {
            node.state().refusals.extend((0..1000).map(|_| tonic::Status::unavailable("nobody is there")));
        }
        channel(node.server())
    });
    let health = Health::new();
    let surroundings = Surroundings {
        bus: Arc::clone(&bus),
        presence,
        connector,
        health: health.clone(),
        metrics: Metrics::detached(),
    };
    let edge = manyhands_edge::build(config, surroundings).await.unwrap();
    let address = edge.address();
    let shutdown = Shutdown::new(Duration::from_secs(30));
    let task = tokio::spawn(edge.run(shutdown.clone()));
    Running { address, documents, bus, shutdown, health, task }
}

pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

pub(crate) fn claims(workspace: &str, scope: &str) -> Value {
    json!({ "sub": "ada", "exp": now_s() + 600, "workspace": workspace, "scope": scope })
}

pub(crate) fn sign(claims: &Value, algorithm: Algorithm, secret: &str) -> String {
    let key = EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&Header::new(algorithm), claims, &key).unwrap()
}

pub(crate) fn token(workspace: &str, scope: &str) -> String {
    sign(&claims(workspace, scope), Algorithm::HS256, SECRET)
}

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON in {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// What a handshake needs beside the road of its token.
pub(crate) const UPGRADE: &[(&str, &str)] = &[
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

impl Running {
    /// Sends a request word for word and reads the answer to its end, or to the end of its head for a 101.
    pub(crate) async fn request(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> Answer {
        let mut text = format!("{method} {target} HTTP/1.1\r\nHost: {}\r\n", self.address);
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if !headers.iter().any(|(name, _)| *name == "Connection") {
            text.push_str("Connection: close\r\n");
        }
        text.push_str("\r\n");
        self.raw(text.as_bytes()).await
    }

    pub(crate) async fn get(&self, target: &str, headers: &[(&str, &str)]) -> Answer {
        self.request("GET", target, headers).await
    }

    pub(crate) async fn raw(&self, bytes: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut text = Vec::new();
        let read = async {
            let mut chunk = [0; 4096];
            while let Ok(count) = stream.read(&mut chunk).await {
                text.extend_from_slice(&chunk[..count]);
                if count == 0 || is_whole(&text) {
                    break;
                }
            }
        };
        timeout(PATIENCE, read).await.expect("an answer");
        let text = String::from_utf8_lossy(&text).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Answer { status, head: head.to_owned(), body: body.to_owned() }
    }

    /// A handshake that is let in.
    pub(crate) async fn connect(&self, token: &str) -> Client {
        self.connect_to("/v1/sync", token).await
    }

    pub(crate) async fn connect_to(&self, path: &str, token: &str) -> Client {
        let mut request = format!("ws://{}{path}", self.address).into_client_request().unwrap();
        let headers = request.headers_mut();
        headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
        headers.insert("sec-websocket-protocol", "manyhands.v1".parse().unwrap());
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (socket, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        assert_eq!(response.headers()["sec-websocket-protocol"], "manyhands.v1");
        Client { socket, passed: VecDeque::new() }
    }

    /// A session that may do what `scope` says everywhere, after its hello.
    pub(crate) async fn greet(&self, scope: &str) -> Client {
        let mut client = self.connect(&token("*", scope)).await;
        client.hello().await;
        client
    }
}

fn is_whole(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head
        .lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.parse::<usize>().ok());
    head.contains(" 101 ") || length.is_some_and(|length| body.len() >= length)
}

pub(crate) struct Client {
    pub(crate) socket: WebSocketStream<TcpStream>,
    /// Frames that came before the one that was looked for. An ack and its delta come by two roads, in any order.
    passed: VecDeque<ServerFrame>,
}

impl Client {
    pub(crate) async fn send(&mut self, frame: ClientFrame) {
        let bytes = v1::ClientFrame { frame: Some(frame) }.encode_to_vec();
        self.socket.send(Message::Binary(bytes.into())).await.unwrap();
    }

    /// The next frame of the protocol.
    pub(crate) async fn next(&mut self) -> ServerFrame {
        loop {
            let message = timeout(PATIENCE, self.socket.next()).await.expect("a frame in time");
            match message.expect("a frame before the end").unwrap() {
                Message::Binary(bytes) => return v1::ServerFrame::decode(bytes).unwrap().frame.unwrap(),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("not a frame: {other:?}"),
            }
        }
    }

    /// The next frame that `wanted` takes; others are kept for later.
    pub(crate) async fn find<T>(&mut self, wanted: impl Fn(ServerFrame) -> Option<T>) -> T {
        for index in 0..self.passed.len() {
            if let Some(found) = wanted(self.passed[index].clone()) {
                self.passed.remove(index);
                return found;
            }
        }
        loop {
            let frame = self.next().await;
            match wanted(frame.clone()) {
                Some(found) => return found,
                None => self.passed.push_back(frame),
            }
        }
    }

    pub(crate) async fn delta(&mut self) -> v1::Delta {
        self.find(|frame| if let ServerFrame::Delta(delta) = frame { Some(delta) } else { None }).await
    }

    pub(crate) async fn evict(&mut self) -> v1::Evict {
        self.find(|frame| if let ServerFrame::Evict(evict) = frame { Some(evict) } else { None }).await
    }

    pub(crate) async fn reject(&mut self) -> v1::Reject {
        self.find(|frame| if let ServerFrame::Reject(reject) = frame { Some(reject) } else { None }).await
    }

    pub(crate) async fn ack(&mut self) -> v1::Ack {
        self.find(|frame| if let ServerFrame::Ack(ack) = frame { Some(ack) } else { None }).await
    }

    /// How the server closes; frames before it are passed over.
    pub(crate) async fn closed(&mut self) -> (u16, String) {
        loop {
            let message = timeout(PATIENCE, self.socket.next()).await.expect("a close in time");
            if let Message::Close(close) = message.expect("a close before the end").unwrap() {
                let close = close.expect("a reason");
                return (close.code.into(), close.reason.to_string());
            }
        }
    }

    pub(crate) async fn hello(&mut self) -> v1::Welcome {
        let hello = v1::Hello { version_min: 1, version_max: 1, client: "test".into(), features: Vec::new() };
        self.send(ClientFrame::Hello(hello)).await;
        match self.next().await {
            ServerFrame::Welcome(welcome) => welcome,
            other => panic!("not a welcome: {other:?}"),
        }
    }

    pub(crate) async fn ask_open(&mut self, channel: u32, document: &str, replica: u64) {
        let open = v1::Open { channel, document: document.into(), replica, ..v1::Open::default() };
        self.send(ClientFrame::Open(open)).await;
    }

    /// Opens a document and reads its state.
    pub(crate) async fn open(&mut self, channel: u32, document: &str, replica: u64) -> v1::Opened {
        self.ask_open(channel, document, replica).await;
        let opened = self
            .find(|frame| match frame {
                ServerFrame::Opened(opened) => Some(opened),
                ServerFrame::Evict(evict) => panic!("evicted: {evict:?}"),
                _ => None,
            })
            .await;
        if opened.state_bytes > 0 {
            self.find(|frame| matches!(frame, ServerFrame::State(state) if state.last).then_some(())).await;
        }
        opened
    }

    pub(crate) async fn push(&mut self, channel: u32, counter: u64, change: &[u8]) {
        let changes = Bytes::copy_from_slice(change);
        self.send(ClientFrame::Push(v1::Push { channel, first_counter: counter, count: 1, changes })).await;
    }
}
