//! A client that only watches, and takes the protocol by its word: frames as they come, nothing of the client
//! library between them and the notes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::{SinkExt as _, StreamExt as _};
use manyhands_proto::v1::{self, client_frame, server_frame};
use manyhands_proto::{PROTOCOL_VERSIONS, SUBPROTOCOL};
use prost::Message as _;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tokio_util::sync::CancellationToken;

use super::member::now;
use crate::access::Connector;
use crate::checker::{Digest, Event, Micros};

/// How long a connection may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// A connection that is silent for so long is dead, where the server has not said how often it pings.
const SILENCE_MAX: Duration = Duration::from_secs(40);
/// How long a watcher that was told of entries waits for them before it asks.
const BEHIND_MAX: Duration = Duration::from_secs(5);
/// How often it looks whether it is behind.
const LOOK_EACH: Duration = Duration::from_millis(500);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// One watcher of all documents.
pub(super) struct Watcher {
    pub(super) connector: Connector,
    pub(super) edge: usize,
    pub(super) client: u32,
    pub(super) documents: Vec<Watched>,
    pub(super) seed: u64,
    pub(super) end: CancellationToken,
}

/// What it has of one document.
pub(super) struct Watched {
    name: String,
    document: u16,
    have: Option<v1::Position>,
    have_at: Micros,
    /// What others may know of it.
    progress: Arc<AtomicU64>,
    loading: Option<(v1::Position, Vec<u8>)>,
    open: bool,
    open_again_at: Option<Instant>,
    /// The newest that it was told of, and when.
    tip: Option<(u64, Instant)>,
}

impl Watched {
    pub(super) fn new(document: u16, name: String, progress: Arc<AtomicU64>) -> Watched {
        Watched {
            name,
            document,
            have: None,
            have_at: now(),
            progress,
            loading: None,
            open: false,
            open_again_at: None,
            tip: None,
        }
    }

    fn seq(&self) -> u64 {
        self.have.as_ref().map_or(0, |have| have.seq)
    }
}

/// What it wrote down.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) events: Vec<Event>,
    pub(super) connections: u64,
    pub(super) trouble: Vec<String>,
}

impl Watcher {
    /// Watches until it is told to end.
    pub(super) async fn run(mut self) -> Seen {
        let mut seen = Seen::default();
        let mut random = StdRng::seed_from_u64(self.seed);
        let end = self.end.clone();
        while !end.is_cancelled() {
            let watched = tokio::select! {
                watched = self.connection(&mut seen, &mut random) => watched,
                () = end.cancelled() => break,
            };
            if let Err(error) = watched
                && seen.trouble.len() < 5
                && error.is::<Unexpected>()
            {
                seen.trouble.push(format!("watcher {}: {error:#}", self.client));
            }
            self.edge += 1;
            let wait = Duration::from_millis(random.random_range(50..500));
            let _ = tokio::time::timeout(wait, end.cancelled()).await;
        }
        for watched in &self.documents {
            let (client, document, at) = (self.client, watched.document, watched.have_at);
            seen.events.push(Event::Watched { client, document, at });
        }
        seen
    }

    async fn connection(&mut self, seen: &mut Seen, random: &mut StdRng) -> anyhow::Result<()> {
        let urls = self.connector.urls();
        let mut url = urls[self.edge % urls.len()].clone();
        url.set_path("/v1/sync");
        let mut request = url.as_str().into_client_request()?;
        let token = self.connector.token().await?;
        request.headers_mut().insert("Authorization", format!("Bearer {token}").parse()?);
        request.headers_mut().insert("Sec-WebSocket-Protocol", SUBPROTOCOL.parse()?);
        let (mut socket, _) =
            tokio::time::timeout(CONNECT_WITHIN, tokio_tungstenite::connect_async(request)).await??;
        seen.connections += 1;
        let (version_min, version_max) = PROTOCOL_VERSIONS;
        let hello =
            v1::Hello { version_min, version_max, client: "loadtest-watcher".into(), features: Vec::new() };
        send(&mut socket, client_frame::Frame::Hello(hello)).await?;
        for watched in &mut self.documents {
            (watched.open, watched.loading, watched.tip) = (false, None, None);
            watched.open_again_at = Some(Instant::now());
            // Now and then it begins anew, for a state.
            if random.random_ratio(1, 4) {
                watched.have = None;
            }
        }
        let mut silence_max = SILENCE_MAX;
        let mut heard = Instant::now();
        let mut welcome = false;
        loop {
            if welcome {
                self.ask(&mut socket).await?;
            }
            if heard.elapsed() > silence_max {
                bail!("silent for {silence_max:?}");
            }
            let Ok(message) = tokio::time::timeout(LOOK_EACH, socket.next()).await else { continue };
            heard = Instant::now();
            let frame = match message.context("the connection ended")?? {
                Message::Binary(bytes) => v1::ServerFrame::decode(bytes)?.frame,
                Message::Close(_) => return Ok(()),
                _ => continue,
            };
            match frame {
                Some(server_frame::Frame::Welcome(said)) => {
                    welcome = true;
                    silence_max = Duration::from_millis(u64::from(said.ping_interval_ms)).mul_f64(2.5);
                }
                Some(server_frame::Frame::Goaway(_)) => return Ok(()),
                Some(frame) => self.hear(frame, seen)?,
                None => {}
            }
        }
    }

    /// Opens what is to be opened, and asks for what is missing.
    async fn ask(&mut self, socket: &mut Socket) -> anyhow::Result<()> {
        let now = Instant::now();
        for (channel, watched) in (1..).zip(&mut self.documents) {
            if watched.open_again_at.is_some_and(|at| at <= now) {
                watched.open_again_at = None;
                let open = v1::Open {
                    channel,
                    document: watched.name.clone(),
                    have: watched.have.clone().filter(|have| have.seq > 0),
                    ..v1::Open::default()
                };
                send(socket, client_frame::Frame::Open(open)).await?;
            }
            if let Some((tip, since)) = watched.tip
                && watched.open
            {
                if tip <= watched.seq() {
                    watched.tip = None;
                } else if since.elapsed() > BEHIND_MAX {
                    watched.tip = Some((tip, now));
                    let fetch = v1::Fetch { channel, after_seq: watched.seq() };
                    send(socket, client_frame::Frame::Fetch(fetch)).await?;
                }
            }
        }
        Ok(())
    }

    fn hear(&mut self, frame: server_frame::Frame, seen: &mut Seen) -> anyhow::Result<()> {
        let client = self.client;
        match frame {
            server_frame::Frame::Opened(opened) => {
                let watched = self.channel(opened.channel)?;
                let position = opened.position.context(Unexpected("Opened without a position"))?;
                watched.open = true;
                if opened.recovery == i32::from(v1::Recovery::State) {
                    watched.loading = Some((position, Vec::new()));
                    return Ok(());
                }
                if position.seq > watched.seq() {
                    watched.tip = Some((position.seq, Instant::now()));
                }
                seen.events.push(told(client, watched.document, &position, None)?);
            }
            server_frame::Frame::State(chunk) => {
                let watched = self.channel(chunk.channel)?;
                let (position, mut bytes) =
                    watched.loading.take().context(Unexpected("a state that was not announced"))?;
                bytes.extend_from_slice(&chunk.data);
                if !chunk.last {
                    watched.loading = Some((position, bytes));
                    return Ok(());
                }
                let document = match &bytes[..] {
                    [] => manyhands_crdt::Document::new(),
                    bytes => manyhands_crdt::Document::decode(bytes)
                        .map_err(|_| Unexpected("a state that is no document"))?,
                };
                seen.events.push(told(client, watched.document, &position, Some(document.state_hash()))?);
                watched.now_has(position);
            }
            server_frame::Frame::Delta(delta) => {
                let watched = self.channel(delta.channel)?;
                let chain = digest(&delta.chain)?;
                let document = watched.document;
                let (first_seq, count) = (delta.first_seq, delta.count);
                seen.events.push(Event::Delivered { client, document, first_seq, count, chain, at: now() });
                let last = (first_seq + u64::from(count)).saturating_sub(1);
                if last > watched.seq() {
                    let incarnation = watched.have.as_ref().map_or(0, |have| have.incarnation);
                    watched.now_has(v1::Position { incarnation, seq: last, chain: delta.chain });
                }
            }
            server_frame::Frame::Tip(tip) => {
                let watched = self.channel(tip.channel)?;
                let seq = tip.position.map_or(0, |position| position.seq);
                if seq > watched.seq() && watched.tip.is_none_or(|(known, _)| known < seq) {
                    watched.tip = Some((seq, Instant::now()));
                }
            }
            server_frame::Frame::Evict(evict) => {
                let watched = self.channel(evict.channel)?;
                (watched.open, watched.loading) = (false, None);
                let wait = Duration::from_millis(u64::from(evict.retry_after_ms.max(200)));
                watched.open_again_at = Some(Instant::now() + wait);
                let repeats = matches!(evict.code, 100..=299 | 900..);
                if !repeats {
                    let what = format!("watcher {client}: {} was closed: {}", watched.name, evict.message);
                    seen.trouble.push(what);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn channel(&mut self, channel: u32) -> anyhow::Result<&mut Watched> {
        let index = (channel as usize).checked_sub(1);
        index.and_then(|index| self.documents.get_mut(index)).context(Unexpected("an unknown channel"))
    }
}

impl Watched {
    fn now_has(&mut self, position: v1::Position) {
        self.progress.store(position.seq, Relaxed);
        self.have = Some(position);
        self.have_at = now();
    }
}

/// The server said what the protocol does not allow.
#[derive(Debug, thiserror::Error)]
#[error("the server sent {0}")]
struct Unexpected(&'static str);

fn told(client: u32, document: u16, position: &v1::Position, state: Option<Digest>) -> anyhow::Result<Event> {
    let chain = match position.chain.len() {
        0 => None,
        _ => Some(digest(&position.chain)?),
    };
    let (incarnation, seq) = (position.incarnation, position.seq);
    Ok(Event::Opened { client, document, incarnation, seq, chain, state })
}

fn digest(bytes: &[u8]) -> anyhow::Result<Digest> {
    Ok(bytes.try_into().map_err(|_| Unexpected("a chain hash of another length"))?)
}

async fn send(socket: &mut Socket, frame: client_frame::Frame) -> anyhow::Result<()> {
    let bytes = v1::ClientFrame { frame: Some(frame) }.encode_to_vec();
    tokio::time::timeout(CONNECT_WITHIN, socket.send(Message::Binary(bytes.into()))).await??;
    Ok(())
}
