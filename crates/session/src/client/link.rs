use std::time::Duration;

use manyhands_proto::{Code, Retry, v1};

use super::{ClientConfig, ConnectionState, Effect, Event, HandshakeRefusal};
use crate::backoff::{Backoff, Random};

/// The connection itself: makes it, keeps it, gives it up, and knows when not to try again.
#[derive(Debug)]
pub(super) struct Link {
    phase: Phase,
    backoff: Backoff,
    handshake_max: Duration,
    token_lead: Duration,
    heard_at: Duration,
    pinged_at: Duration,
}

#[derive(Debug)]
enum Phase {
    Stopped,
    TokenNeeded,
    Offline {
        retry_at: Duration,
    },
    /// The shell makes a socket.
    Connecting {
        until: Duration,
    },
    /// Hello was sent.
    Greeting {
        until: Duration,
    },
    Online(Online),
}

#[derive(Debug)]
struct Online {
    since: Duration,
    ping_interval: Duration,
    /// When to say that the token ends, and when it does.
    token: Option<(Duration, Duration)>,
    /// When to move to another server.
    moves_at: Option<Duration>,
}

/// What the passing of time asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Nothing,
    Ping,
    /// The socket was given up.
    Gone,
}

/// The longest that a server may put a client off.
const PATIENCE_MAX: Duration = Duration::from_secs(3600);
/// A connection that lasted this long was a good one.
const PROVED_AFTER: Duration = Duration::from_secs(10);

impl Link {
    pub(super) fn new(config: &ClientConfig) -> Link {
        Link {
            phase: Phase::Stopped,
            backoff: Backoff::new(config.backoff_first, config.backoff_max),
            handshake_max: config.handshake_max,
            token_lead: config.token_lead,
            heard_at: Duration::ZERO,
            pinged_at: Duration::ZERO,
        }
    }

    /// Whether frames may be sent.
    pub(super) fn carries(&self) -> bool {
        matches!(self.phase, Phase::Greeting { .. } | Phase::Online(_))
    }

    pub(super) fn start(&mut self, now: Duration, out: &mut Vec<Effect>) {
        if matches!(self.phase, Phase::Stopped | Phase::TokenNeeded | Phase::Offline { .. }) {
            self.connect(now, out);
        }
    }

    pub(super) fn stop(&mut self, out: &mut Vec<Effect>) {
        if self.has_socket() {
            out.push(Effect::CloseSocket { code: 1000, reason: "stopped".to_owned() });
        }
        if !matches!(self.phase, Phase::Stopped) {
            let state = ConnectionState::Stopped { code: None, message: "stopped".to_owned() };
            self.enter(Phase::Stopped, state, out);
        }
    }

    /// The socket is there; whether it was awaited.
    pub(super) fn opened(&mut self, now: Duration) -> bool {
        let Phase::Connecting { until } = self.phase else { return false };
        self.phase = Phase::Greeting { until };
        self.heard_at = now;
        self.pinged_at = now;
        true
    }

    pub(super) fn failed(
        &mut self,
        now: Duration,
        refusal: Option<HandshakeRefusal>,
        random: &mut Random,
        out: &mut Vec<Effect>,
    ) {
        if !matches!(self.phase, Phase::Connecting { .. }) {
            return;
        }
        let Some(HandshakeRefusal { status, code, message, retry_after }) = refusal else {
            return self.retry(now, Duration::ZERO, "no connection".to_owned(), random, out);
        };
        match (code, status) {
            (Some(Code::Unauthenticated | Code::TokenExpired), _) | (None, 401) => {
                self.need_token(message, out)
            }
            (Some(code), _) if code.retry() == Retry::No && code != Code::Internal => {
                self.enter(Phase::Stopped, ConnectionState::Stopped { code: Some(code), message }, out);
            }
            (None, 400..=499) if !matches!(status, 408 | 425 | 429) => {
                self.enter(Phase::Stopped, ConnectionState::Stopped { code: None, message }, out);
            }
            _ => self.retry(now, retry_after.unwrap_or_default(), message, random, out),
        }
    }

    /// The socket was closed by the other side; whether there was one.
    pub(super) fn closed(
        &mut self,
        now: Duration,
        code: Option<u16>,
        reason: &str,
        random: &mut Random,
        out: &mut Vec<Effect>,
    ) -> bool {
        if !self.has_socket() {
            return false;
        }
        self.prove(now);
        let close = code.unwrap_or(1006);
        let known = manyhands_proto::CODES.iter().copied().find(|known| known.close() == Some(close));
        match known {
            Some(Code::TokenExpired | Code::Unauthenticated) => self.need_token(reason.to_owned(), out),
            _ if Retry::of_close(close) == Retry::No => {
                let state = ConnectionState::Stopped { code: known, message: reason.to_owned() };
                self.enter(Phase::Stopped, state, out);
            }
            _ => self.retry(now, Duration::ZERO, format!("closed with {close} {reason}"), random, out),
        }
        true
    }

    /// The server said something that it may not say.
    pub(super) fn broken(
        &mut self,
        now: Duration,
        message: &str,
        random: &mut Random,
        out: &mut Vec<Effect>,
    ) {
        out.push(Effect::CloseSocket { code: 4500, reason: Code::Violation.slug().to_owned() });
        self.retry(now, Duration::ZERO, message.to_owned(), random, out);
    }

    pub(super) fn welcomed(
        &mut self,
        now: Duration,
        welcome: v1::Welcome,
        out: &mut Vec<Effect>,
    ) -> Result<(), String> {
        if !matches!(self.phase, Phase::Greeting { .. }) {
            return Err("a second Welcome".to_owned());
        }
        let (oldest, newest) = manyhands_proto::PROTOCOL_VERSIONS;
        if !(oldest..=newest).contains(&welcome.version) {
            return Err(format!("a Welcome of version {}", welcome.version));
        }
        // Silence must mean something, whatever the server says.
        let ping_interval = Duration::from_millis(u64::from(welcome.ping_interval_ms))
            .clamp(Duration::from_millis(100), Duration::from_secs(120));
        let online = Online { since: now, ping_interval, token: None, moves_at: None };
        let state =
            ConnectionState::Online { session: welcome.session, server_time_ms: welcome.server_time_ms };
        self.enter(Phase::Online(online), state, out);
        self.authenticated(now, welcome.token_expires_in_ms);
        Ok(())
    }

    pub(super) fn authenticated(&mut self, now: Duration, expires_in_ms: u64) {
        if let Phase::Online(online) = &mut self.phase {
            let left = Duration::from_millis(expires_in_ms);
            let ends = now.saturating_add(left);
            online.token = Some((ends - self.token_lead.min(left / 2), ends));
        }
    }

    /// A fresh token; returned when it is to go over the live socket.
    pub(super) fn token(
        &mut self,
        now: Duration,
        token: String,
        random: &mut Random,
        out: &mut Vec<Effect>,
    ) -> Option<String> {
        match self.phase {
            Phase::TokenNeeded => {
                // By the backoff, so that a source of bad tokens does not become a storm.
                self.retry(now, Duration::ZERO, "a fresh token came".to_owned(), random, out);
                None
            }
            Phase::Greeting { .. } | Phase::Online(_) => Some(token),
            _ => None,
        }
    }

    pub(super) fn going_away(&mut self, now: Duration, within: Duration) {
        if let Phase::Online(online) = &mut self.phase {
            online.moves_at = Some(now.saturating_add(within));
        }
    }

    /// Something came from the other side.
    pub(super) fn heard(&mut self, now: Duration) {
        self.heard_at = now;
    }

    /// The server did real work on this connection: the next failure is a first one.
    pub(super) fn proved(&mut self) {
        self.backoff.reset();
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        match &self.phase {
            Phase::Stopped | Phase::TokenNeeded => None,
            Phase::Offline { retry_at } => Some(*retry_at),
            Phase::Connecting { until } | Phase::Greeting { until } => Some(*until),
            Phase::Online(online) => {
                let silent = self.heard_at + online.silence_max();
                let ping = self.heard_at.max(self.pinged_at) + online.ping_interval;
                let token = online.token.map(|(report_at, _)| report_at);
                [Some(silent), Some(ping), token, online.moves_at].into_iter().flatten().min()
            }
        }
    }

    pub(super) fn settle(&mut self, now: Duration, random: &mut Random, out: &mut Vec<Effect>) -> Step {
        match &mut self.phase {
            Phase::Stopped | Phase::TokenNeeded => Step::Nothing,
            Phase::Offline { retry_at } => {
                if now >= *retry_at {
                    self.connect(now, out);
                }
                Step::Nothing
            }
            Phase::Connecting { until } | Phase::Greeting { until } => {
                if now < *until {
                    return Step::Nothing;
                }
                self.give_up(now, "no answer to the handshake", random, out)
            }
            Phase::Online(online) => {
                if now >= self.heard_at + online.silence_max() {
                    return self.give_up(now, "nothing was heard for too long", random, out);
                }
                if online.moves_at.is_some_and(|moves_at| now >= moves_at) {
                    out.push(Effect::CloseSocket { code: 1000, reason: "moving".to_owned() });
                    self.connect(now, out);
                    return Step::Gone;
                }
                if let Some((_, ends)) = online.token.take_if(|(report_at, _)| now >= *report_at) {
                    let within = ends.saturating_sub(now);
                    out.push(Effect::Event(Event::TokenExpiring { within }));
                }
                if now >= self.heard_at.max(self.pinged_at) + online.ping_interval {
                    self.pinged_at = now;
                    return Step::Ping;
                }
                Step::Nothing
            }
        }
    }

    fn has_socket(&self) -> bool {
        matches!(self.phase, Phase::Connecting { .. } | Phase::Greeting { .. } | Phase::Online(_))
    }

    fn give_up(&mut self, now: Duration, why: &str, random: &mut Random, out: &mut Vec<Effect>) -> Step {
        self.prove(now);
        let code = Code::Idle.close().unwrap_or(1001);
        out.push(Effect::CloseSocket { code, reason: Code::Idle.slug().to_owned() });
        self.retry(now, Duration::ZERO, why.to_owned(), random, out);
        Step::Gone
    }

    fn prove(&mut self, now: Duration) {
        if let Phase::Online(online) = &self.phase
            && now >= online.since + PROVED_AFTER
        {
            self.backoff.reset();
        }
    }

    fn connect(&mut self, now: Duration, out: &mut Vec<Effect>) {
        let until = now + self.handshake_max;
        self.enter(Phase::Connecting { until }, ConnectionState::Connecting, out);
        out.push(Effect::Connect);
    }

    fn retry(
        &mut self,
        now: Duration,
        at_least: Duration,
        reason: String,
        random: &mut Random,
        out: &mut Vec<Effect>,
    ) {
        // A server may ask for patience, not for ever.
        let wait = at_least.min(PATIENCE_MAX) + self.backoff.next(random);
        let retry_at = now + wait;
        self.enter(Phase::Offline { retry_at }, ConnectionState::Offline { retry_at, reason }, out);
    }

    fn need_token(&mut self, message: String, out: &mut Vec<Effect>) {
        self.enter(Phase::TokenNeeded, ConnectionState::TokenNeeded { message }, out);
    }

    fn enter(&mut self, phase: Phase, state: ConnectionState, out: &mut Vec<Effect>) {
        self.phase = phase;
        out.push(Effect::Event(Event::Connection(state)));
    }
}

impl Online {
    fn silence_max(&self) -> Duration {
        self.ping_interval * 5 / 2
    }
}
