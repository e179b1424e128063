//! One connection as the client sees it: keeps it, opens documents on it again and again, and holds every
//! change until the server has said that it is durable.
//!
//! The application has the documents; this machine has what is on its way. A change leaves the outbox when it
//! is acknowledged or when it is handed back, and in no other way.

mod api;
mod channel;
mod link;
mod outbox;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use manyhands_proto::v1::client_frame::Frame as ClientFrame;
use manyhands_proto::v1::server_frame::Frame as ServerFrame;
use manyhands_proto::{Code, Position, v1};

pub use api::{ClientConfig, ConnectionState, Effect, Event, HandshakeRefusal, Input, OutgoingChange};

use crate::backoff::Random;
use crate::{Limits, decode_server, encode_client};
use channel::{Channel, Surroundings};
use link::{Link, Step as LinkStep};

/// One connection and the documents on it.
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
    limits: Limits,
    link: Link,
    /// By the application's number.
    channels: BTreeMap<u32, Channel>,
    /// The application's number by the one on the wire, which is new for each opening: frames of an earlier
    /// one find nobody.
    wires: BTreeMap<u32, u32>,
    last_wire: u32,
    random: Random,
}

impl Client {
    /// Not connected; begins with [`Input::Start`].
    #[must_use]
    pub fn new(config: ClientConfig, seed: u64) -> Client {
        Client {
            link: Link::new(&config),
            config,
            limits: Limits::default(),
            channels: BTreeMap::new(),
            wires: BTreeMap::new(),
            last_wire: 0,
            random: Random::new(seed),
        }
    }

    /// Takes one thing in and says what to do, in order.
    pub fn handle(&mut self, now: Duration, input: Input, out: &mut Vec<Effect>) {
        match input {
            Input::Start => self.link.start(now, out),
            Input::SocketOpened => self.greet(now, out),
            Input::SocketFailed { refusal } => self.link.failed(now, refusal, &mut self.random, out),
            Input::SocketClosed { code, reason } => {
                if self.link.closed(now, code, &reason, &mut self.random, out) {
                    self.detach();
                }
            }
            Input::Frame(bytes) => self.frame(now, bytes, out),
            Input::Heard => self.link.heard(now),
            Input::Open { channel, document, replica, have, lineage, strategy } => {
                let kept = self.channels.get_mut(&channel).is_some_and(|open| open.is(&document, replica));
                if !kept {
                    self.leave(channel, "another document was opened in its place", out);
                    self.channels.insert(channel, Channel::new(channel, document, replica, &self.config));
                }
                self.close_wire(channel, out);
                if let Some(open) = self.channels.get_mut(&channel) {
                    open.open_again(now, have, lineage, strategy);
                }
            }
            Input::Submit { channel, change } => match self.channels.get_mut(&channel) {
                Some(open) => open.submit(change, &self.config, out),
                None => out.push(Effect::Event(Event::Refused {
                    channel,
                    code: Code::NotOpen.number(),
                    message: Code::NotOpen.message().to_owned(),
                    current: Bytes::new(),
                    changes: vec![change],
                })),
            },
            Input::SetPresence { channel, data, cursors } => {
                if let Some(open) = self.channels.get_mut(&channel) {
                    open.set_presence(data, cursors, &self.limits, out);
                }
            }
            Input::Leave { channel } => self.leave(channel, "the document was left", out),
            Input::Token(token) => {
                if let Some(token) = self.link.token(now, token, &mut self.random, out) {
                    out.push(Effect::Send(encode_client(ClientFrame::Auth(v1::Auth { token }))));
                }
            }
            Input::Stop => {
                self.link.stop(out);
                self.detach();
            }
            Input::Tick => {}
        }
        self.settle(now, out);
    }

    /// When to call with [`Input::Tick`] if nothing else comes before.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let channels = self.link.carries().then(|| {
            self.channels.values().filter_map(|channel| channel.deadline(&self.limits, &self.config)).min()
        });
        self.link.deadline().into_iter().chain(channels.flatten()).min()
    }

    /// What a channel has not been told to be durable, in order of the counters.
    pub fn outbox(&self, channel: u32) -> impl Iterator<Item = &OutgoingChange> {
        self.channels.get(&channel).into_iter().flat_map(Channel::outbox)
    }

    /// What the application of a channel has.
    #[must_use]
    pub fn position(&self, channel: u32) -> Option<Position> {
        self.channels.get(&channel).and_then(Channel::position)
    }

    /// Hello, and in the same breath the documents: an open needs no answer to the hello.
    fn greet(&mut self, now: Duration, out: &mut Vec<Effect>) {
        if !self.link.opened(now) {
            return;
        }
        let (version_min, version_max) = manyhands_proto::PROTOCOL_VERSIONS;
        let client = self.config.client.clone();
        let hello = v1::Hello { version_min, version_max, client, features: Vec::new() };
        out.push(Effect::Send(encode_client(ClientFrame::Hello(hello))));
    }

    fn frame(&mut self, now: Duration, bytes: Bytes, out: &mut Vec<Effect>) {
        if !self.link.carries() {
            return;
        }
        self.link.heard(now);
        let handled = decode_server(bytes, self.config.frame_bytes_max)
            .map_err(|violation| violation.to_string())
            .and_then(|frame| self.server_frame(now, frame, out));
        if let Err(message) = handled {
            self.link.broken(now, &message, &mut self.random, out);
            self.detach();
        }
    }

    /// An `Err` says how the server broke the protocol.
    fn server_frame(
        &mut self,
        now: Duration,
        frame: ServerFrame,
        out: &mut Vec<Effect>,
    ) -> Result<(), String> {
        match frame {
            ServerFrame::Welcome(welcome) => {
                self.limits = Limits::from_wire(&welcome.limits.unwrap_or_default());
                self.link.welcomed(now, welcome, out)
            }
            ServerFrame::Authenticated(authenticated) => {
                self.link.authenticated(now, authenticated.token_expires_in_ms);
                Ok(())
            }
            ServerFrame::Goaway(goaway) => {
                let within = Duration::from_millis(u64::from(goaway.reconnect_after_ms));
                self.link.going_away(now, within);
                out.push(Effect::Event(Event::GoingAway { within }));
                Ok(())
            }
            ServerFrame::Pong(_) => Ok(()),
            ServerFrame::Opened(opened) => {
                self.link.proved();
                self.on_channel(now, opened.channel, out, |channel, with, out| {
                    channel.opened(opened, with, out)
                })
            }
            ServerFrame::State(chunk) => {
                self.on_channel(now, chunk.channel, out, |channel, with, out| channel.state(chunk, with, out))
            }
            ServerFrame::Delta(delta) => {
                self.on_channel(now, delta.channel, out, |channel, with, out| channel.delta(delta, with, out))
            }
            ServerFrame::Ack(ack) => {
                self.on_channel(now, ack.channel, out, |channel, with, out| channel.acked(&ack, with, out))
            }
            ServerFrame::Reject(reject) => self.on_channel(now, reject.channel, out, |channel, with, out| {
                channel.rejected(reject, with, out)
            }),
            ServerFrame::Presence(update) => {
                self.on_channel(now, update.channel, out, |channel, _, out| channel.presence(update, out))
            }
            ServerFrame::Tip(tip) => {
                self.on_channel(now, tip.channel, out, |channel, with, out| channel.tip(tip, with, out))
            }
            ServerFrame::Evict(evict) => {
                let number = self.wires.remove(&evict.channel);
                let channel = number.and_then(|number| self.channels.get_mut(&number));
                if let Some(channel) = channel.filter(|channel| channel.wire() == Some(evict.channel)) {
                    channel.evicted(now, evict, &mut self.random, out);
                }
                Ok(())
            }
        }
    }

    /// Runs `what` on the channel that a frame is for; frames of an earlier opening are for nobody.
    fn on_channel(
        &mut self,
        now: Duration,
        wire: u32,
        out: &mut Vec<Effect>,
        what: impl FnOnce(&mut Channel, &mut Surroundings<'_>, &mut Vec<Effect>) -> Result<(), String>,
    ) -> Result<(), String> {
        let channel = self.wires.get(&wire).and_then(|number| self.channels.get_mut(number));
        let Some(channel) = channel.filter(|channel| channel.wire() == Some(wire)) else {
            return Ok(());
        };
        let mut with = Surroundings { now, config: &self.config, random: &mut self.random };
        what(channel, &mut with, out)
    }

    fn leave(&mut self, number: u32, why: &str, out: &mut Vec<Effect>) {
        self.close_wire(number, out);
        if let Some(channel) = self.channels.remove(&number) {
            channel.hand_back(why, out);
        }
    }

    fn close_wire(&mut self, number: u32, out: &mut Vec<Effect>) {
        let Some(wire) = self.channels.get(&number).and_then(Channel::wire) else { return };
        self.wires.remove(&wire);
        out.push(Effect::Send(encode_client(ClientFrame::Leave(v1::Leave { channel: wire }))));
    }

    /// The socket is gone, and all that was said on it.
    fn detach(&mut self) {
        self.wires.clear();
        self.last_wire = 0;
        for channel in self.channels.values_mut() {
            channel.detach();
        }
    }

    /// What is due, and what may go out: runs after every input.
    fn settle(&mut self, now: Duration, out: &mut Vec<Effect>) {
        match self.link.settle(now, &mut self.random, out) {
            LinkStep::Gone => self.detach(),
            LinkStep::Ping => {
                let ping = v1::Ping { nonce: u64::try_from(now.as_millis()).unwrap_or(u64::MAX) };
                out.push(Effect::Send(encode_client(ClientFrame::Ping(ping))));
            }
            LinkStep::Nothing => {}
        }
        if !self.link.carries() {
            return;
        }
        let mut with = Surroundings { now, config: &self.config, random: &mut self.random };
        for (&number, channel) in &mut self.channels {
            if let Some(wire) = channel.give_up_waiting(&mut with, out) {
                self.wires.remove(&wire);
            }
            if channel.wants_open(now) {
                self.last_wire += 1;
                self.wires.retain(|_, open| *open != number);
                self.wires.insert(self.last_wire, number);
                channel.ask_open(now, self.last_wire, &self.config, out);
            }
            channel.pump(&self.limits, &mut with, out);
        }
    }
}
