use std::time::Duration;

use bytes::{Bytes, BytesMut};
use manyhands_crdt::ReplicaId;
use manyhands_proto::v1::client_frame::Frame as ClientFrame;
use manyhands_proto::{Chain, Code, DocumentName, Incarnation, Position, Retry, Seq, v1};

use super::outbox::{Closed, Outbox};
use super::{ClientConfig, Effect, Event, OutgoingChange};
use crate::backoff::{Backoff, Random};
use crate::{Limits, encode_client, position_from_wire, position_to_wire};

/// One document of the application.
#[derive(Debug)]
pub(super) struct Channel {
    number: u32,
    document: DocumentName,
    replica: Option<ReplicaId>,
    strategy: v1::Strategy,
    phase: Phase,
    /// What the application has.
    position: Option<Position>,
    /// The history that the replica's changes belong to, once they can depend on it.
    lineage: Option<Incarnation>,
    outbox: Outbox,
    presence: Presence,
    backoff: Backoff,
}

#[derive(Debug)]
enum Phase {
    /// To be opened on the next occasion.
    Closed {
        open_at: Duration,
    },
    Opening {
        wire: u32,
        until: Duration,
    },
    /// A state is arriving.
    Loading(Loading),
    Open(Open),
    /// Closed by the server for good.
    Evicted,
}

#[derive(Debug)]
struct Loading {
    wire: u32,
    position: Position,
    bytes: BytesMut,
    expected: usize,
    until: Duration,
}

#[derive(Debug)]
struct Open {
    wire: u32,
    incarnation: Incarnation,
    /// The newest seq that was heard of.
    newest: Seq,
    /// When to ask for what is missing, if something is.
    fetch_at: Option<Duration>,
}

#[derive(Debug, Default)]
struct Presence {
    shown: Option<(Bytes, Vec<v1::TextCursor>)>,
    dirty: bool,
    at: Duration,
}

/// What a channel needs from its client.
pub(super) struct Surroundings<'a> {
    pub(super) now: Duration,
    pub(super) config: &'a ClientConfig,
    pub(super) random: &'a mut Random,
}

/// An `Err` says how the server broke the protocol.
type Step = Result<(), String>;

impl Channel {
    pub(super) fn new(
        number: u32,
        document: DocumentName,
        replica: Option<ReplicaId>,
        config: &ClientConfig,
    ) -> Channel {
        Channel {
            number,
            document,
            replica,
            strategy: v1::Strategy::Unspecified,
            phase: Phase::Closed { open_at: Duration::ZERO },
            position: None,
            lineage: None,
            outbox: Outbox::new(config),
            presence: Presence::default(),
            backoff: Backoff::new(config.backoff_first, config.backoff_max),
        }
    }

    pub(super) fn is(&self, document: &DocumentName, replica: Option<ReplicaId>) -> bool {
        self.document == *document && self.replica == replica
    }

    pub(super) fn position(&self) -> Option<Position> {
        self.position
    }

    pub(super) fn outbox(&self) -> impl Iterator<Item = &OutgoingChange> {
        self.outbox.changes()
    }

    pub(super) fn wire(&self) -> Option<u32> {
        match &self.phase {
            Phase::Opening { wire, .. } => Some(*wire),
            Phase::Loading(loading) => Some(loading.wire),
            Phase::Open(open) => Some(open.wire),
            Phase::Closed { .. } | Phase::Evicted => None,
        }
    }

    /// The application opens it, with what it has.
    pub(super) fn open_again(
        &mut self,
        now: Duration,
        have: Option<Position>,
        lineage: Option<Incarnation>,
        strategy: v1::Strategy,
    ) {
        self.strategy = strategy;
        self.position = have.filter(|have| have.seq.0 > 0);
        self.lineage = self.position.map(|position| position.incarnation).or(lineage).or(self.lineage);
        self.close(now);
    }

    /// The socket is gone.
    pub(super) fn detach(&mut self) {
        if !matches!(self.phase, Phase::Evicted) {
            self.close(Duration::ZERO);
        }
    }

    pub(super) fn wants_open(&self, now: Duration) -> bool {
        matches!(self.phase, Phase::Closed { open_at } if now >= open_at)
    }

    pub(super) fn ask_open(
        &mut self,
        now: Duration,
        wire: u32,
        config: &ClientConfig,
        out: &mut Vec<Effect>,
    ) {
        self.phase = Phase::Opening { wire, until: now + config.open_max };
        let open = v1::Open {
            channel: wire,
            document: self.document.to_string(),
            replica: self.replica.map_or(0, |replica| replica.0),
            have: self.position.as_ref().map(position_to_wire),
            strategy: self.strategy.into(),
            heads: Vec::new(),
        };
        send(ClientFrame::Open(open), out);
    }

    /// Leaves an opening that is not answered; it begins anew after a while. The number on the wire that it
    /// had is free.
    pub(super) fn give_up_waiting(
        &mut self,
        with: &mut Surroundings<'_>,
        out: &mut Vec<Effect>,
    ) -> Option<u32> {
        let (wire, until) = match &self.phase {
            Phase::Opening { wire, until } => (*wire, *until),
            Phase::Loading(loading) => (loading.wire, loading.until),
            _ => return None,
        };
        if with.now < until {
            return None;
        }
        send(ClientFrame::Leave(v1::Leave { channel: wire }), out);
        self.reopen(Code::Timeout.number(), Duration::ZERO, with.now, with.random, out);
        Some(wire)
    }

    pub(super) fn opened(
        &mut self,
        opened: v1::Opened,
        with: &mut Surroundings<'_>,
        out: &mut Vec<Effect>,
    ) -> Step {
        let Phase::Opening { wire, .. } = self.phase else {
            return Err("Opened where nothing was asked".to_owned());
        };
        let recovery = opened.recovery();
        let position =
            opened.position.as_ref().and_then(position_from_wire).ok_or("Opened without a position")?;
        let incarnation = position.incarnation;
        out.push(Effect::Event(Event::Opened {
            channel: self.number,
            recovery,
            position,
            can_write: opened.can_write,
            next_counter: opened.next_counter,
            strategy: opened.strategy(),
        }));
        self.outbox.restart();
        self.judge_history(incarnation, opened.next_counter, out);
        match recovery {
            v1::Recovery::Tail => {
                // Nothing is a prefix of every history.
                let nothing = Position { incarnation, seq: Seq(0), chain: Chain::default() };
                let have = self.position.filter(|have| have.seq.0 > 0).unwrap_or(nothing);
                if have.incarnation != incarnation {
                    return Err("a tail of another history".to_owned());
                }
                self.position = Some(have);
                self.phase = Phase::Open(Open { wire, incarnation, newest: position.seq, fetch_at: None });
                self.look_for_gap(have.seq, with);
                Ok(())
            }
            v1::Recovery::State => {
                let expected = usize::try_from(opened.state_bytes).unwrap_or(usize::MAX);
                if expected > with.config.state_bytes_max {
                    return Err(format!("a state of {expected} bytes"));
                }
                let until = with.now + with.config.answer_max;
                self.phase =
                    Phase::Loading(Loading { wire, position, bytes: BytesMut::new(), expected, until });
                Ok(())
            }
            v1::Recovery::Unspecified => Err("Opened without a recovery".to_owned()),
        }
    }

    /// Changes that depend on a history cannot go into another, nor behind a hole.
    fn judge_history(&mut self, incarnation: Incarnation, next_counter: u64, out: &mut Vec<Effect>) {
        let code = if self.lineage.is_some_and(|lineage| lineage != incarnation) {
            Code::HistoryReset
        } else if self.outbox.first_counter().is_some_and(|first| next_counter < first) {
            Code::MissingPredecessor
        } else {
            return;
        };
        self.refuse(0, code.number(), code.message().to_owned(), Bytes::new(), out);
    }

    pub(super) fn state(
        &mut self,
        chunk: v1::StateChunk,
        with: &mut Surroundings<'_>,
        out: &mut Vec<Effect>,
    ) -> Step {
        let Phase::Loading(loading) = &mut self.phase else {
            return Err("a state where none was announced".to_owned());
        };
        let got = loading.bytes.len() + chunk.data.len();
        if got > loading.expected || (chunk.last && got < loading.expected) {
            return Err(format!("a state of {got} bytes, where {} were announced", loading.expected));
        }
        loading.until = with.now + with.config.answer_max;
        if !chunk.last {
            loading.bytes.extend_from_slice(&chunk.data);
            return Ok(());
        }
        let bytes = if loading.bytes.is_empty() {
            chunk.data
        } else {
            loading.bytes.extend_from_slice(&chunk.data);
            std::mem::take(&mut loading.bytes).freeze()
        };
        let Loading { wire, position, .. } = *loading;
        self.moved_to(position);
        self.phase = Phase::Open(Open {
            wire,
            incarnation: position.incarnation,
            newest: position.seq,
            fetch_at: None,
        });
        out.push(Effect::Event(Event::State { channel: self.number, position, bytes }));
        Ok(())
    }

    pub(super) fn delta(
        &mut self,
        delta: v1::Delta,
        with: &mut Surroundings<'_>,
        out: &mut Vec<Effect>,
    ) -> Step {
        let Phase::Open(open) = &mut self.phase else {
            return Err("entries on a channel that is not open".to_owned());
        };
        let v1::Delta { first_seq, count, entries, chain, .. } = delta;
        let chain = Chain::try_from(&chain[..]).map_err(|_| "entries without a chain hash")?;
        let last = first_seq.checked_add(u64::from(count)).filter(|_| first_seq > 0 && count > 0);
        let last = Seq(last.ok_or("entries with impossible seqs")? - 1);
        let have = self.position.map_or(Seq(0), |position| position.seq);
        open.newest = open.newest.max(last);
        if last <= have {
            let forked =
                self.position.is_some_and(|position| last == position.seq && chain != position.chain);
            if forked {
                self.start_over(with, out);
            }
            return Ok(());
        }
        if first_seq > have.0 + 1 {
            open.fetch_at.get_or_insert(with.now);
            return Ok(());
        }
        let position = Position { incarnation: open.incarnation, seq: last, chain };
        open.fetch_at = None;
        self.moved_to(position);
        self.backoff.reset();
        out.push(Effect::Event(Event::Entries {
            channel: self.number,
            first_seq: Seq(first_seq),
            count,
            entries,
            known: have,
            position,
        }));
        self.look_for_gap(last, with);
        Ok(())
    }

    pub(super) fn tip(&mut self, tip: v1::Tip, with: &mut Surroundings<'_>, out: &mut Vec<Effect>) -> Step {
        let Phase::Open(open) = &mut self.phase else { return Ok(()) };
        let tip = tip.position.ok_or("a tip without a position")?;
        let forked = self.position.is_some_and(|position| {
            tip.seq == position.seq.0 && !tip.chain.is_empty() && tip.chain[..] != position.chain
        });
        if tip.incarnation != open.incarnation.0 || forked {
            self.start_over(with, out);
            return Ok(());
        }
        open.newest = open.newest.max(Seq(tip.seq));
        let have = self.position.map_or(Seq(0), |position| position.seq);
        self.look_for_gap(have, with);
        Ok(())
    }

    pub(super) fn acked(
        &mut self,
        ack: &v1::Ack,
        with: &mut Surroundings<'_>,
        out: &mut Vec<Effect>,
    ) -> Step {
        let Phase::Open(open) = &mut self.phase else { return Ok(()) };
        // What is durable is part of this history, even if its entries have not come back yet.
        self.lineage = Some(open.incarnation);
        open.newest = open.newest.max(Seq(ack.seq));
        if let Some(next_counter) = self.outbox.acked(with.now, ack.next_counter) {
            self.backoff.reset();
            let (channel, seq) = (self.number, Seq(ack.seq));
            out.push(Effect::Event(Event::Acked { channel, next_counter, seq }));
        }
        let have = self.position.map_or(Seq(0), |position| position.seq);
        self.look_for_gap(have, with);
        Ok(())
    }

    pub(super) fn rejected(
        &mut self,
        reject: v1::Reject,
        with: &mut Surroundings<'_>,
        out: &mut Vec<Effect>,
    ) -> Step {
        let v1::Reject { counter, code, message, next_counter, retry_after_ms, current, .. } = reject;
        let at_least = Duration::from_millis(u64::from(retry_after_ms));
        let Some(first) = self.outbox.first_counter() else { return Ok(()) };
        match (Code::from_number(code), Retry::of(code)) {
            (Some(Code::MissingPredecessor), _) if next_counter >= first => {
                self.outbox.go_back(with.now, next_counter, at_least, with.random);
            }
            (Some(Code::MissingReference), _) => self.refuse(counter, code, message, current, out),
            (Some(Code::NotOpen), _) | (_, Retry::AfterResync) => {
                let wire = self.wire();
                wire.into_iter().for_each(|channel| send(ClientFrame::Leave(v1::Leave { channel }), out));
                self.reopen(code, at_least, with.now, with.random, out);
            }
            // A fault of the server's is no judgement on the change.
            (_, Retry::No) if code < 900 => self.refuse(counter, code, message, current, out),
            _ => self.outbox.go_back(with.now, counter, at_least, with.random),
        }
        Ok(())
    }

    pub(super) fn evicted(
        &mut self,
        now: Duration,
        evict: v1::Evict,
        random: &mut Random,
        out: &mut Vec<Effect>,
    ) {
        let v1::Evict { code, message, retry_after_ms, .. } = evict;
        if Retry::of(code) == Retry::No && code < 900 {
            self.phase = Phase::Evicted;
            self.outbox.restart();
            out.push(Effect::Event(Event::Evicted { channel: self.number, code, message }));
            return;
        }
        if code == Code::HistoryReset.number() {
            self.position = None;
        }
        self.reopen(code, Duration::from_millis(u64::from(retry_after_ms)), now, random, out);
    }

    pub(super) fn presence(&self, update: v1::PresenceUpdate, out: &mut Vec<Effect>) -> Step {
        let v1::PresenceUpdate { full, peers, left, .. } = update;
        out.push(Effect::Event(Event::Presence { channel: self.number, full, peers, left }));
        Ok(())
    }

    pub(super) fn submit(&mut self, change: OutgoingChange, config: &ClientConfig, out: &mut Vec<Effect>) {
        if let Err(Closed { code, message }) = self.outbox.add(&change, config) {
            let (channel, current, changes) = (self.number, Bytes::new(), vec![change]);
            out.push(Effect::Event(Event::Refused { channel, code, message, current, changes }));
        }
    }

    pub(super) fn set_presence(
        &mut self,
        data: Bytes,
        cursors: Vec<v1::TextCursor>,
        limits: &Limits,
        out: &mut Vec<Effect>,
    ) {
        let bytes = presence_frame_len(&data, &cursors);
        if bytes > limits.presence_bytes_max as usize {
            out.push(Effect::Event(Event::PresenceTooLarge { channel: self.number, bytes }));
            return;
        }
        self.presence.shown = (!data.is_empty() || !cursors.is_empty()).then_some((data, cursors));
        self.presence.dirty = true;
    }

    /// The application leaves: what is not acknowledged is its own again.
    pub(super) fn hand_back(mut self, why: &str, out: &mut Vec<Effect>) {
        if !self.outbox.is_empty() {
            self.refuse(0, Code::NotOpen.number(), why.to_owned(), Bytes::new(), out);
        }
    }

    pub(super) fn deadline(&self, limits: &Limits, config: &ClientConfig) -> Option<Duration> {
        match &self.phase {
            Phase::Closed { open_at } => Some(*open_at),
            Phase::Opening { until, .. } => Some(*until),
            Phase::Loading(loading) => Some(loading.until),
            Phase::Evicted => None,
            Phase::Open(open) => {
                let presence = self.presence.dirty.then_some(self.presence.at);
                [open.fetch_at, presence, self.outbox.deadline(limits, config)].into_iter().flatten().min()
            }
        }
    }

    /// Sends what is due and may go out.
    pub(super) fn pump(&mut self, limits: &Limits, with: &mut Surroundings<'_>, out: &mut Vec<Effect>) {
        let Phase::Open(open) = &mut self.phase else { return };
        let (now, channel) = (with.now, open.wire);
        if let Some(fetch_at) = &mut open.fetch_at
            && now >= *fetch_at
        {
            *fetch_at = now + with.config.answer_max;
            let after_seq = self.position.map_or(0, |position| position.seq.0);
            send(ClientFrame::Fetch(v1::Fetch { channel, after_seq }), out);
        }
        while let Some(push) = self.outbox.next(now, channel, limits, with.config) {
            send(ClientFrame::Push(push), out);
        }
        if self.presence.dirty && now >= self.presence.at {
            self.presence.dirty = false;
            self.presence.at = now + with.config.presence_interval;
            let (data, cursors) = self.presence.shown.clone().unwrap_or_default();
            send(ClientFrame::Presence(v1::SetPresence { channel, data, cursors }), out);
        }
    }

    /// What is known to exist but has not come: the edge brings it by itself, so ask only after a while.
    fn look_for_gap(&mut self, have: Seq, with: &Surroundings<'_>) {
        let Phase::Open(open) = &mut self.phase else { return };
        if open.newest <= have {
            open.fetch_at = None;
        } else {
            open.fetch_at.get_or_insert(with.now + with.config.answer_max / 2);
        }
    }

    fn moved_to(&mut self, position: Position) {
        self.position = Some(position);
        if position.seq.0 > 0 {
            self.lineage = Some(position.incarnation);
        }
    }

    /// What the application has is not what the server has: begin with the state.
    fn start_over(&mut self, with: &mut Surroundings<'_>, out: &mut Vec<Effect>) {
        let wire = self.wire();
        wire.into_iter().for_each(|channel| send(ClientFrame::Leave(v1::Leave { channel }), out));
        self.position = None;
        self.reopen(Code::HistoryReset.number(), Duration::ZERO, with.now, with.random, out);
    }

    fn reopen(
        &mut self,
        code: u32,
        at_least: Duration,
        now: Duration,
        random: &mut Random,
        out: &mut Vec<Effect>,
    ) {
        let wait = at_least.saturating_add(self.backoff.next(random));
        self.close(now.saturating_add(wait));
        out.push(Effect::Event(Event::Reopening { channel: self.number, code }));
    }

    fn close(&mut self, open_at: Duration) {
        self.phase = Phase::Closed { open_at };
        self.outbox.restart();
        self.presence.dirty = self.presence.shown.is_some();
    }

    fn refuse(&mut self, counter: u64, code: u32, message: String, current: Bytes, out: &mut Vec<Effect>) {
        let changes = self.outbox.refuse(counter, Closed { code, message: message.clone() });
        out.push(Effect::Event(Event::Refused { channel: self.number, code, message, current, changes }));
    }
}

fn send(frame: ClientFrame, out: &mut Vec<Effect>) {
    out.push(Effect::Send(encode_client(frame)));
}

fn presence_frame_len(data: &Bytes, cursors: &[v1::TextCursor]) -> usize {
    use prost::Message;
    v1::SetPresence { channel: u32::MAX, data: data.clone(), cursors: cursors.to_vec() }.encoded_len()
}
