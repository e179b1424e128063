//! The session in the JSON dialect: what differs from the binary one, and nothing else.

use std::time::Duration;

use bytes::Bytes;
use manyhands_proto::{Code, DocumentName, v1};

use super::{Edge, EdgeConfig, Effect, Goodbye, Phase, Step, presence};
use crate::json::{self, Channel, Choice, Message, Mistake, Ref, Surroundings};
use crate::{Grant, Refusal, Scope};

/// What a session shows that shows nothing of its own.
const ONLINE: &[u8] = br#"{"status":"online"}"#;

impl Edge {
    /// A socket in the JSON dialect for one workspace. It asks for the document with the first input; otherwise as
    /// [`Edge::new`].
    #[must_use]
    #[expect(clippy::too_many_arguments, reason = "what `new` takes, and the choice")]
    pub fn json(
        config: EdgeConfig,
        session: String,
        grant: Grant,
        workspace: DocumentName,
        choice: Choice,
        seed: u64,
        now: Duration,
        wall_ms: u64,
    ) -> Edge {
        let writes = grant.allows(&workspace, Scope::Write);
        let mut edge = Edge::new(config, session, grant, Some(workspace.clone()), seed, now, wall_ms);
        let online = edge.shown(Bytes::from_static(ONLINE));
        edge.json = Some(Box::new(Channel::new(workspace, choice, writes, online, &mut edge.random)));
        edge.phase = Phase::Live;
        edge
    }

    /// One text message.
    pub(super) fn text(&mut self, now: Duration, text: &Bytes, out: &mut Vec<Effect>) -> Step {
        self.heard_at = now;
        let Some(extended) = self.json.as_ref().map(|json| json.extended()) else { return Ok(()) };
        let max = self.config.limits.frame_bytes_max as usize;
        if text.len() > max {
            let message = format!("a message of {} bytes, where {max} are allowed", text.len());
            return self.refuse(now, Refusal::new(Code::TooLarge, message), Some(SPLIT), Ref::default(), out);
        }
        match json::decode(text, extended) {
            Ok(Message::Op(write)) => {
                let (key, timestamp) = (write.key.clone(), write.timestamp);
                let mut refused = None;
                self.on_json(now, out, |json, with, _| {
                    refused = json.write(write, with).err();
                    Ok(())
                })?;
                let Some(refusal) = refused else { return Ok(()) };
                let fix = match refusal.code {
                    Code::Forbidden => Some(WRITE),
                    Code::TooLarge => Some(SPLIT),
                    _ => None,
                };
                self.refuse(now, refusal, fix, Ref { key: Some(&key), timestamp }, out)
            }
            Ok(Message::Ping) => {
                self.queue.send_text(now, json::pong(), out);
                Ok(())
            }
            Ok(Message::Presence(data)) => {
                let data = data.map_or(Bytes::from_static(ONLINE), Bytes::from);
                let set = v1::SetPresence { data, ..v1::SetPresence::default() };
                let max = self.config.limits.presence_bytes_max as usize;
                match presence::peer(&self.session, &self.token.grant().subject, set, max) {
                    Ok(peer) => {
                        let shown = peer.unwrap_or_else(|| self.shown(Bytes::from_static(ONLINE)));
                        if let Some(json) = &mut self.json {
                            json.set_presence(shown);
                        }
                        Ok(())
                    }
                    Err(refusal) => self.refuse(now, refusal, None, Ref::default(), out),
                }
            }
            Ok(Message::Token(token)) => {
                self.strikes.add(now, 1, Code::Unauthenticated)?;
                out.extend(self.token.offer(token));
                Ok(())
            }
            Err(Mistake { code, message, fix, key, timestamp }) => {
                let about = Ref { key: key.as_deref(), timestamp };
                self.refuse(now, Refusal::new(code, message), fix.as_deref(), about, out)
            }
        }
    }

    /// A binary message.
    pub(super) fn not_text(&mut self, now: Duration, out: &mut Vec<Effect>) -> Step {
        self.heard_at = now;
        let refusal = Refusal::new(Code::Malformed, "a binary message, where every message is text");
        let fix = "Send text, or offer the subprotocol manyhands.v1 when connecting.";
        self.refuse(now, refusal, Some(fix), Ref::default(), out)
    }

    /// Says no. Whoever goes on after twenty in a minute is sent away.
    fn refuse(
        &mut self,
        now: Duration,
        refusal: Refusal,
        fix: Option<&str>,
        about: Ref<'_>,
        out: &mut Vec<Effect>,
    ) -> Step {
        self.queue.send_text(now, json::error(&refusal, fix, about, b""), out);
        let weight = if refusal.code == Code::Overloaded { 1 } else { 10 };
        self.strikes.add(now, weight, refusal.code)
    }

    /// The fresh token is in use.
    pub(super) fn json_authenticated(&mut self, now: Duration, out: &mut Vec<Effect>) -> Step {
        self.queue.send_text(now, json::token(self.token.expires_in_ms(now)), out);
        let grant = self.token.grant().clone();
        self.on_json(now, out, |json, with, out| json.regrant(&grant, with, out))
    }

    /// Nobody on this dialect need know how to leave: each is closed at a moment of its own.
    pub(super) fn json_goodbye(
        &mut self,
        now: Duration,
        delay: Duration,
        within: Duration,
        out: &mut Vec<Effect>,
    ) {
        let extended = self.json.as_ref().is_some_and(|json| json.extended());
        self.goodbye = Some(Goodbye { close_at: now + if extended { within } else { delay } });
        if extended {
            self.queue.send_text(now, json::bye(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)), out);
        }
    }

    /// Runs `what` on the document, if this is the JSON dialect; an `Err` is told and ends the session.
    pub(super) fn on_json(
        &mut self,
        now: Duration,
        out: &mut Vec<Effect>,
        what: impl FnOnce(&mut Channel, &mut Surroundings<'_>, &mut Vec<Effect>) -> Step,
    ) -> Step {
        let Some(channel) = &mut self.json else { return Ok(()) };
        let mut with = Surroundings {
            now,
            wall_ms: self.token.wall_ms(now),
            wall_micros: self.token.wall_micros(now),
            token_expires_in_ms: self.token.expires_in_ms(now),
            session: &self.session,
            config: &self.config,
            queue: &mut self.queue,
            random: &mut self.random,
        };
        what(channel, &mut with, out).inspect_err(|refusal| {
            let fix = if refusal.code == Code::TooLarge { Some(BINARY) } else { None };
            self.queue.send_text(now, json::error(refusal, fix, Ref::default(), b""), out);
        })
    }

    fn shown(&self, data: Bytes) -> v1::Peer {
        let user = self.token.grant().subject.clone();
        v1::Peer { session: self.session.clone(), user, data, cursors: Vec::new() }
    }
}

const WRITE: &str = "Mint the token with scope \"write\".";
const SPLIT: &str =
    "Split the value over several keys, or keep what is large elsewhere and its address here.";
const BINARY: &str = "Open the workspace with the binary protocol manyhands.v1, or split it.";
