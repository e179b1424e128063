//! One socket as the server sees it: what may be sent to it, what it may ask for, when it ends.
//!
//! The shell around it owns the socket, the clock and the way to the document's owner. It calls
//! [`Edge::handle`] with each frame and each answer and does what comes out, in order. Everything here is
//! rebuilt by a reconnect; nothing here is the only copy of anything.

mod api;
mod bounds;
mod channel;
mod json;
mod presence;
mod send_queue;
mod token;
mod uplink;

use std::collections::BTreeMap;
use std::time::Duration;

use manyhands_crdt::ReplicaId;
use manyhands_proto::v1::client_frame::Frame as ClientFrame;
use manyhands_proto::v1::server_frame::Frame as ServerFrame;
use manyhands_proto::{Code, DocumentName, PROTOCOL_VERSIONS, v1};

pub use api::{Body, ChannelId, EdgeConfig, Effect, Fetched, Input, Opened, Submitted};

use crate::backoff::Random;
use crate::{Grant, Refusal, Scope, Violation, decode_client, position_from_wire};
pub(crate) use presence::Roster;
pub(crate) use send_queue::SendQueue;

use bounds::{Strikes, Unanswered, strike_weight};
use channel::{Channel, Surroundings};
use token::Token;
use uplink::reject;

/// One socket.
#[derive(Debug)]
pub struct Edge {
    config: EdgeConfig,
    session: String,
    /// What the client calls itself.
    client: String,
    workspace: Option<DocumentName>,
    token: Token,
    phase: Phase,
    /// The one document of a session in the JSON dialect; the others have `channels`.
    json: Option<Box<crate::json::Channel>>,
    /// By the number that the client chose.
    channels: BTreeMap<u32, Channel>,
    openings: u32,
    unanswered: Unanswered,
    queue: SendQueue,
    strikes: Strikes,
    random: Random,
    heard_at: Duration,
    pinged_at: Duration,
    goodbye: Option<Goodbye>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing was said yet.
    Hello {
        until: Duration,
    },
    Live,
    /// `Close` was the last effect.
    Closed,
}

/// How much of a client's name is kept.
const CLIENT_CHARS_MAX: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Goodbye {
    close_at: Duration,
}

/// An `Err` ends the session with the refusal's code.
type Step = Result<(), Refusal>;

impl Edge {
    /// A socket that was just upgraded with a token that verified as `grant`, at `now`, which is `wall_ms`
    /// milliseconds after the Unix epoch. `workspace` is the one that the address named, if it named one.
    #[must_use]
    pub fn new(
        config: EdgeConfig,
        session: String,
        grant: Grant,
        workspace: Option<DocumentName>,
        seed: u64,
        now: Duration,
        wall_ms: u64,
    ) -> Edge {
        Edge {
            phase: Phase::Hello { until: now + config.hello_max },
            token: Token::new(grant, now, wall_ms),
            queue: SendQueue::new(&config, now),
            strikes: Strikes::new(config.strikes_per_minute_max),
            config,
            session,
            client: String::new(),
            workspace,
            json: None,
            channels: BTreeMap::new(),
            openings: 0,
            unanswered: Unanswered::default(),
            random: Random::new(seed),
            heard_at: now,
            pinged_at: now,
            goodbye: None,
        }
    }

    /// Takes one thing in and says what to do, in order. After [`Effect::Close`] nothing more comes out.
    pub fn handle(&mut self, now: Duration, input: Input, out: &mut Vec<Effect>) {
        if self.phase == Phase::Closed {
            return;
        }
        let begin = out.len();
        let step = self.check_token(now).and_then(|()| self.step(now, input, out));
        if let Err(refusal) = step.and_then(|()| self.settle(now, out)) {
            self.close(&refusal, out);
        }
        out[begin..].iter().for_each(|effect| self.unanswered.asked(effect));
    }

    /// When to call with [`Input::Tick`] if nothing else comes before.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let hello = match self.phase {
            Phase::Hello { until } => Some(until),
            Phase::Live => None,
            Phase::Closed => return None,
        };
        let idle = self.heard_at + self.config.idle_max();
        let ping = (self.heard_at.max(self.pinged_at)) + self.config.ping_interval;
        let room = self.queue.has_room();
        let json = self.json.as_ref().and_then(|channel| channel.deadline(room));
        let channels = self.channels.values().filter_map(|channel| channel.deadline(room)).chain(json).min();
        let goodbye = self.goodbye.map(|goodbye| goodbye.close_at);
        [
            hello,
            Some(idle),
            Some(ping),
            Some(self.token.expires_at()),
            self.queue.deadline(),
            channels,
            goodbye,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// What the client calls itself, cut short; empty before its `Hello`. For logs only.
    #[must_use]
    pub fn client(&self) -> &str {
        &self.client
    }

    /// Who this session acts for, and what for.
    #[must_use]
    pub fn grant(&self) -> &Grant {
        self.token.grant()
    }

    /// Before anything else: what comes after the end is not done any more.
    fn check_token(&self, now: Duration) -> Step {
        if now >= self.token.expires_at() { Err(Code::TokenExpired.into()) } else { Ok(()) }
    }

    fn step(&mut self, now: Duration, input: Input, out: &mut Vec<Effect>) -> Step {
        match input {
            Input::Text(text) if self.json.is_some() => return self.text(now, &text, out),
            Input::Frame(_) if self.json.is_some() => return self.not_text(now, out),
            Input::Frame(bytes) => {
                self.heard_at = now;
                let max = self.config.limits.frame_bytes_max as usize;
                let frame = decode_client(bytes, max)?;
                return self.frame(now, frame, out);
            }
            Input::Text(_) => {
                let message = "a text message, where every message is binary";
                return Err(Refusal::new(Code::Violation, message));
            }
            Input::Heard => self.heard_at = now,
            Input::Opened { channel, result } => {
                self.unanswered.answered(channel, true);
                self.on_channel(now, channel, out, |channel, with, out| channel.opened(result, with, out));
            }
            Input::Submitted { channel, result } => {
                self.unanswered.answered(channel, false);
                if self.json.is_some() {
                    return self.on_json(now, out, |json, with, out| {
                        json.submitted(result, with, out);
                        Ok(())
                    });
                }
                self.on_channel(now, channel, out, |channel, with, out| channel.submitted(result, with, out));
            }
            Input::Fetched { channel, result } => {
                self.unanswered.answered(channel, false);
                self.on_channel(now, channel, out, |channel, with, out| channel.fetched(result, with, out));
            }
            Input::Entries { channel, run } => {
                self.on_channel(now, channel, out, |channel, with, out| channel.deliver(&run, with, out));
            }
            Input::Mirrored { result, .. } => {
                return self.on_json(now, out, |json, with, out| json.mirrored(result, with, out));
            }
            Input::Ops { ops, .. } => {
                return self.on_json(now, out, |json, with, out| {
                    json.deliver(&ops, with, out);
                    Ok(())
                });
            }
            Input::Missed { channel, result } => {
                self.unanswered.answered(channel, false);
                return self.on_json(now, out, |json, with, out| json.fetched(result, with, out));
            }
            Input::Recalled { known, .. } => {
                return self.on_json(now, out, |json, with, out| {
                    json.recalled(&known, with, out);
                    Ok(())
                });
            }
            Input::TipSeen { channel, position } => {
                if let Some(json) = &mut self.json {
                    json.tip_seen(&position);
                    return Ok(());
                }
                self.on_channel(now, channel, out, |channel, with, _| channel.tip_seen(&position, with));
            }
            Input::Lost { channel } => {
                self.on_channel(now, channel, out, |_, _, _| Err(Code::HistoryReset.into()));
            }
            Input::Presence { channel, full, peers, left } => {
                if let Some(json) = &mut self.json {
                    json.roster(full, peers, left, self.config.peers_max);
                    return Ok(());
                }
                self.on_channel(now, channel, out, |channel, with, _| {
                    channel.roster(full, peers, left, with.config.peers_max);
                    Ok(())
                });
            }
            Input::TokenVerified(result) => self.token_verified(now, result, out)?,
            Input::Queued { bytes } => self.queue.report(now, bytes),
            Input::Drain { within } => self.drain(now, within, out),
            Input::Tick => {}
        }
        Ok(())
    }

    fn frame(&mut self, now: Duration, frame: ClientFrame, out: &mut Vec<Effect>) -> Step {
        if let ClientFrame::Hello(hello) = frame {
            return self.hello(now, &hello, out);
        }
        if self.phase != Phase::Live {
            return Err(Refusal::new(Code::Violation, "the first frame was not Hello"));
        }
        match frame {
            ClientFrame::Hello(_) => Ok(()),
            ClientFrame::Open(open) => self.open(now, open, out),
            ClientFrame::Push(push) => self.push(now, push, out),
            ClientFrame::Fetch(fetch) => {
                let channel = self.channels.get_mut(&fetch.channel);
                let odd = channel.is_none_or(|channel| channel.fetch_asked(fetch.after_seq));
                if odd { self.strikes.add(now, 1, Code::NotOpen) } else { Ok(()) }
            }
            ClientFrame::Leave(leave) => {
                match self.channels.remove(&leave.channel) {
                    Some(channel) => out.push(channel.leave()),
                    None => self.strikes.add(now, 1, Code::NotOpen)?,
                }
                Ok(())
            }
            ClientFrame::Presence(presence) => self.presence(now, presence),
            ClientFrame::Auth(auth) => {
                self.strikes.add(now, 1, Code::Unauthenticated)?;
                out.extend(self.token.offer(auth.token));
                Ok(())
            }
            ClientFrame::Ping(ping) => {
                let pong = v1::Pong { nonce: ping.nonce, server_time_ms: self.token.wall_ms(now) };
                self.queue.send(now, ServerFrame::Pong(pong), out);
                Ok(())
            }
        }
    }

    fn hello(&mut self, now: Duration, hello: &v1::Hello, out: &mut Vec<Effect>) -> Step {
        if self.phase == Phase::Live {
            return Err(Refusal::new(Code::Violation, "a second Hello"));
        }
        let (oldest, newest) = PROTOCOL_VERSIONS;
        if hello.version_min == 0 || hello.version_min > hello.version_max {
            return Err(Refusal::new(Code::Violation, "a Hello with an impossible range of versions"));
        }
        if hello.version_max < oldest || hello.version_min > newest {
            let message = format!(
                "the server speaks versions {oldest} to {newest}, the client {} to {}",
                hello.version_min, hello.version_max
            );
            return Err(Refusal::new(Code::VersionUnsupported, message));
        }
        self.phase = Phase::Live;
        self.client = hello.client.chars().take(CLIENT_CHARS_MAX).collect();
        let welcome = v1::Welcome {
            version: hello.version_max.min(newest),
            session: self.session.clone(),
            limits: Some(self.config.limits.to_wire()),
            server_time_ms: self.token.wall_ms(now),
            token_expires_in_ms: self.token.expires_in_ms(now),
            ping_interval_ms: u32::try_from(self.config.ping_interval.as_millis()).unwrap_or(u32::MAX),
            features: Vec::new(),
        };
        self.queue.send(now, ServerFrame::Welcome(welcome), out);
        Ok(())
    }

    fn open(&mut self, now: Duration, open: v1::Open, out: &mut Vec<Effect>) -> Step {
        let number = open.channel;
        if self.channels.contains_key(&number) {
            return Err(Refusal::new(Code::Violation, format!("Open on channel {number}, which is in use")));
        }
        match self.admit(&open) {
            Ok((document, have)) => {
                self.openings += 1;
                let id = ChannelId { number, opening: self.openings };
                let replica = (open.replica != 0).then_some(ReplicaId(open.replica));
                let writes = self.token.grant().allows(&document, Scope::Write);
                let channel = Channel::new(id, document, replica, have, writes);
                let channel = channel.with_terms(open.strategy(), open.heads);
                self.channels.insert(number, channel);
                Ok(())
            }
            Err(refusal) => {
                let (weight, code) = (strike_weight(refusal.code), refusal.code);
                self.queue.send(now, evict(number, &refusal), out);
                self.strikes.add(now, weight, code)
            }
        }
    }

    /// Whether what an `Open` asks for may be had.
    fn admit(&self, open: &v1::Open) -> Result<(DocumentName, Option<manyhands_proto::Position>), Refusal> {
        let document = match (&self.workspace, open.document.as_str()) {
            (Some(workspace), "") => workspace.clone(),
            (workspace, name) => {
                let name: DocumentName =
                    name.parse().map_err(|error| Refusal::new(Code::InvalidName, format!("{error}")))?;
                if workspace.as_ref().is_some_and(|workspace| *workspace != name) {
                    let message = "this connection was made for another workspace";
                    return Err(Refusal::new(Code::Forbidden, message));
                }
                name
            }
        };
        if !self.token.grant().allows(&document, Scope::Read) {
            return Err(Refusal::new(
                Code::Forbidden,
                format!("the token does not cover workspace {document}"),
            ));
        }
        let occupied = self.channels.len() + self.unanswered.left(&self.channels);
        if occupied >= self.config.limits.documents_max as usize {
            let message = format!("{occupied} documents are open on this connection");
            return Err(Refusal::new(Code::LimitReached, message));
        }
        let have = match &open.have {
            Some(have) if have.seq > 0 => Some(position_from_wire(have).ok_or_else(|| {
                Refusal::new(Code::Malformed, "a position without its incarnation or chain")
            })?),
            _ => None,
        };
        Ok((document, have))
    }

    fn push(&mut self, now: Duration, push: v1::Push, out: &mut Vec<Effect>) -> Step {
        let number = push.channel;
        let first_counter = push.first_counter;
        let limits = &self.config.limits;
        let refused = match self.channels.get_mut(&number) {
            Some(channel) => channel.push(push, limits),
            None => Err(Code::NotOpen.into()),
        };
        if let Err(refusal) = refused {
            self.queue.send(now, ServerFrame::Reject(reject(number, first_counter, &refusal)), out);
            self.strikes.add(now, strike_weight(refusal.code), refusal.code)?;
        }
        Ok(())
    }

    fn presence(&mut self, now: Duration, set: v1::SetPresence) -> Step {
        let number = set.channel;
        let Some(channel) = self.channels.get_mut(&number) else {
            return self.strikes.add(now, 1, Code::NotOpen);
        };
        let bytes_max = self.config.limits.presence_bytes_max as usize;
        let peer = presence::peer(&self.session, &self.token.grant().subject, set, bytes_max)?;
        channel.set_presence(peer);
        Ok(())
    }

    fn token_verified(
        &mut self,
        now: Duration,
        result: Result<Grant, Refusal>,
        out: &mut Vec<Effect>,
    ) -> Step {
        out.extend(self.token.verified(now, result)?);
        if self.json.is_some() {
            return self.json_authenticated(now, out);
        }
        let authenticated = v1::Authenticated { token_expires_in_ms: self.token.expires_in_ms(now) };
        self.queue.send(now, ServerFrame::Authenticated(authenticated), out);
        let grant = self.token.grant().clone();
        let ids: Vec<ChannelId> = self.channels.values().map(Channel::id).collect();
        for id in ids {
            self.on_channel(now, id, out, |channel, with, out| channel.regrant(&grant, with, out));
        }
        Ok(())
    }

    fn drain(&mut self, now: Duration, within: Duration, out: &mut Vec<Effect>) {
        if self.goodbye.is_some() {
            return;
        }
        // The last quarter is for those who do not go by themselves when their moment comes.
        let delay = self.random.up_to(within * 3 / 4);
        if self.json.is_some() {
            return self.json_goodbye(now, delay, within, out);
        }
        self.goodbye = Some(Goodbye { close_at: now + within });
        let goaway = v1::Goaway {
            reconnect_after_ms: u32::try_from(delay.as_millis()).unwrap_or(u32::MAX),
            message: Code::ShuttingDown.message().to_owned(),
        };
        self.queue.send(now, ServerFrame::Goaway(goaway), out);
    }

    /// What is due, and what there is room for: runs after every input.
    fn settle(&mut self, now: Duration, out: &mut Vec<Effect>) -> Step {
        if let Phase::Hello { until } = self.phase
            && now >= until
        {
            return Err(Refusal::new(Code::Violation, "no Hello in time"));
        }
        self.check_token(now)?;
        if now >= self.heard_at + self.config.idle_max() {
            return Err(Code::Idle.into());
        }
        if self.goodbye.is_some_and(|goodbye| now >= goodbye.close_at) {
            return Err(Code::ShuttingDown.into());
        }
        self.queue.check(now)?;
        if now >= self.heard_at.max(self.pinged_at) + self.config.ping_interval {
            self.pinged_at = now;
            out.push(Effect::Ping);
        }
        let loading = self.channels.values().filter(|channel| channel.is_loading()).count();
        let mut opening = loading + self.unanswered.opens();
        for channel in self.channels.values_mut() {
            if opening < self.config.openings_max && channel.start(out) {
                opening += 1;
            }
            channel.pump(now, &self.config, &mut self.queue, out);
        }
        if self.json.is_some() {
            let limits = self.config.limits.clone();
            self.on_json(now, out, |json, with, out| {
                json.pump(&limits, with, out);
                Ok(())
            })?;
        }
        self.queue.check(now)
    }

    /// Runs `what` on a channel that is still the one meant; a refusal evicts it.
    fn on_channel(
        &mut self,
        now: Duration,
        id: ChannelId,
        out: &mut Vec<Effect>,
        what: impl FnOnce(&mut Channel, &mut Surroundings<'_>, &mut Vec<Effect>) -> Step,
    ) {
        let Some(channel) = self.channels.get_mut(&id.number).filter(|channel| channel.id() == id) else {
            return;
        };
        let mut with =
            Surroundings { now, config: &self.config, queue: &mut self.queue, random: &mut self.random };
        if let Err(refusal) = what(channel, &mut with, out) {
            out.push(channel.leave());
            self.channels.remove(&id.number);
            self.queue.send(now, evict(id.number, &refusal), out);
        }
    }

    /// Whether it speaks the JSON dialect.
    #[must_use]
    pub fn is_json(&self) -> bool {
        self.json.is_some()
    }

    /// What a session that ends for `code` is closed with: each dialect has its own.
    #[must_use]
    pub fn close_code(&self, code: Code) -> u16 {
        if self.json.is_some() {
            return crate::json::close_code(code);
        }
        code.close().unwrap_or(VIOLATION_CLOSE)
    }

    fn close(&mut self, refusal: &Refusal, out: &mut Vec<Effect>) {
        self.phase = Phase::Closed;
        self.channels.clear();
        let has_code = self.json.is_some() || refusal.code.close().is_some();
        let code = if has_code { refusal.code } else { Code::Violation };
        out.push(Effect::Close { code, reason: close_reason(code, &refusal.message) });
    }
}

fn evict(channel: u32, refusal: &Refusal) -> ServerFrame {
    ServerFrame::Evict(v1::Evict {
        channel,
        code: refusal.code.number(),
        message: refusal.message.clone(),
        fix: refusal.code.fix().to_owned(),
        retry_after_ms: refusal.retry_after_ms,
    })
}

/// What [`Code::Violation`] closes with.
const VIOLATION_CLOSE: u16 = 4500;

/// A close frame has room for 123 bytes.
fn close_reason(code: Code, message: &str) -> String {
    const BYTES_MAX: usize = 123;
    let mut reason = format!("{}: {message}", code.slug());
    let mut end = reason.len().min(BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.truncate(end);
    reason
}

impl From<Violation> for Refusal {
    fn from(violation: Violation) -> Refusal {
        let code = match violation {
            Violation::TooLarge { .. } => Code::TooLarge,
            _ => Code::Violation,
        };
        Refusal::new(code, violation.to_string())
    }
}
