use std::time::Duration;

use manyhands_crdt::ReplicaId;
use manyhands_proto::{Code, DocumentName, Incarnation, Position, Seq, v1};

use super::Choice;
use super::decode::Write;
use super::encode::{self, InitExtension, Origin};
use super::op::{Audience, Missed, SharedOp, SharedOps, SharedState};
use super::uplink::{Batch, Moment, News, Uplink};
use crate::backoff::{Backoff, Random};
use crate::edge::{ChannelId, EdgeConfig, Effect, Roster, SendQueue, Submitted};
use crate::{Grant, Limits, Refusal, Scope};

/// The one document of a JSON session.
#[derive(Debug)]
pub(crate) struct Channel {
    document: DocumentName,
    choice: Choice,
    /// Whether the token allows it.
    writes: bool,
    phase: Phase,
    /// What is known here is about this one.
    history: Option<Incarnation>,
    /// In which the owner was asked last.
    asked_in: Option<Incarnation>,
    uplink: Uplink,
    /// The newest seq that was heard of, sent or not.
    newest: Seq,
    /// The newest seq whose ops were sent, also if some are to be sent again.
    seen: Seq,
    /// The greatest timestamp that was given out or seen.
    micros: u64,
    fetching: bool,
    /// Something that was to be sent was left out.
    missing: bool,
    /// Something newer was heard of, which the feed will bring; from when on that is no longer believed.
    believed_until: Option<Duration>,
    fetch_at: Duration,
    backoff: Backoff,
    roster: Roster,
    presence: Option<v1::Peer>,
    presence_at: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    /// The mirror was asked for.
    Joining,
    /// The state was sent.
    Open {
        incarnation: Incarnation,
        /// The newest entry whose ops were sent.
        sent: Seq,
    },
}

/// What the channel needs from its session.
pub(crate) struct Surroundings<'a> {
    pub(crate) now: Duration,
    pub(crate) wall_ms: u64,
    pub(crate) wall_micros: u64,
    pub(crate) token_expires_in_ms: u64,
    pub(crate) session: &'a str,
    pub(crate) config: &'a EdgeConfig,
    pub(crate) queue: &'a mut SendQueue,
    pub(crate) random: &'a mut Random,
}

/// A session has one channel, and no word for it.
const ID: ChannelId = ChannelId { number: 0, opening: 1 };

/// An `Err` ends the session.
type Step = Result<(), Refusal>;

impl Channel {
    pub(crate) fn new(
        document: DocumentName,
        choice: Choice,
        writes: bool,
        presence: v1::Peer,
        random: &mut Random,
    ) -> Channel {
        Channel {
            document,
            choice,
            writes,
            phase: Phase::Waiting,
            history: None,
            asked_in: None,
            uplink: Uplink::new(replica(random)),
            newest: Seq(0),
            seen: Seq(0),
            micros: 0,
            fetching: false,
            missing: false,
            believed_until: None,
            fetch_at: Duration::ZERO,
            backoff: Backoff::new(Duration::from_millis(250), Duration::from_secs(5)),
            roster: Roster::default(),
            presence: Some(presence),
            presence_at: Duration::ZERO,
        }
    }

    pub(crate) fn extended(&self) -> bool {
        self.choice.extended
    }

    /// The document's mirror is here, or is another now, or cannot be had.
    pub(crate) fn mirrored(
        &mut self,
        result: Result<SharedState, Refusal>,
        with: &mut Surroundings<'_>,
        out: &mut Vec<Effect>,
    ) -> Step {
        let state = result?;
        if self.phase == Phase::Waiting {
            return Ok(());
        }
        let history = state.position.incarnation;
        if self.history.is_some_and(|before| before != history) {
            let mut news = Vec::new();
            self.uplink.reset(replica(with.random), &replaced(), &mut news);
            self.tell(news, with, out);
            (self.newest, self.seen) = (Seq(0), Seq(0));
        } else {
            self.pass(state.position.seq, with, out);
        }
        self.history = Some(history);
        self.init(&state, with, out);
        Ok(())
    }

    fn init(&mut self, state: &SharedState, with: &mut Surroundings<'_>, out: &mut Vec<Effect>) {
        let frame = if self.choice.extended {
            let more = InitExtension {
                seq: state.position.seq.0,
                strategy: state.strategy.name(),
                session: with.session,
                can_write: self.writes,
                server_time_ms: with.wall_ms,
                token_expires_in_ms: with.token_expires_in_ms,
            };
            encode::extended_init(&state.frame, &more)
        } else {
            state.frame.clone()
        };
        with.queue.send_whole(with.now, frame, out);
        let first = self.phase == Phase::Joining;
        self.phase = Phase::Open { incarnation: state.position.incarnation, sent: state.position.seq };
        self.newest = self.newest.max(state.position.seq);
        self.seen = self.seen.max(state.position.seq);
        self.micros = self.micros.max(state.micros_max);
        (self.fetching, self.missing, self.believed_until) = (false, self.newest > state.position.seq, None);
        // Heads tell what a client had when it came, and not later.
        self.choice.heads.clear();
        if first {
            // The shell joins the lane of presence on this same input, after it was handled.
            self.presence_at = with.now + with.config.presence_interval;
        }
    }

    /// Sends what a run means, if it is the next and there is room; what is left out is fetched.
    pub(crate) fn deliver(&mut self, ops: &SharedOps, with: &mut Surroundings<'_>, out: &mut Vec<Effect>) {
        self.newest = self.newest.max(ops.last);
        let Phase::Open { incarnation, sent } = self.phase else { return };
        if ops.last <= sent {
            return;
        }
        if ops.first > sent.next() || with.queue.is_full() {
            self.missing = true;
            return;
        }
        self.phase = Phase::Open { incarnation, sent: ops.last };
        self.seen = self.seen.max(ops.last);
        self.micros = self.micros.max(ops.micros_max);
        self.missing &= ops.last < self.newest;
        self.believed_until = None;
        for op in &*ops.ops {
            let repeated = self.uplink.came(op);
            if op.audience == Audience::All || repeated.is_some() {
                self.send_op(op, repeated, with, out);
            }
        }
        self.pass_late(with, out);
    }

    fn send_op(
        &self,
        op: &SharedOp,
        repeated: Option<u32>,
        with: &mut Surroundings<'_>,
        out: &mut Vec<Effect>,
    ) {
        for _ in 0..=repeated.unwrap_or(0) {
            with.queue.send_text(with.now, op.frame(self.choice.extended), out);
        }
    }

    /// Own ops that are in the log up to here and whose frames were not sent are sent back. The seq from which on
    /// the client must be told again what the keys have, if there was any: what it was told of them may be newer.
    fn pass(&mut self, upto: Seq, with: &mut Surroundings<'_>, out: &mut Vec<Effect>) -> Option<Seq> {
        let extended = self.choice.extended;
        self.uplink.passed(upto, |replica, said, times| {
            let frame = if extended {
                // Of its entry, no more is known here than that it is not newer than this.
                encode::extended_op(said, Origin { seq: upto.0, author: replica, heads: &[] })
            } else {
                encode::op(said)
            };
            for _ in 0..times {
                with.queue.send_text(with.now, frame.clone(), out);
            }
        })
    }

    /// The same for ops that were passed by what was sent already.
    fn pass_late(&mut self, with: &mut Surroundings<'_>, out: &mut Vec<Effect>) {
        let Phase::Open { incarnation, sent } = self.phase else { return };
        if let Some(after) = self.pass(sent, with, out) {
            self.newest = self.newest.max(sent);
            self.phase = Phase::Open { incarnation, sent: after.min(sent) };
            self.missing = true;
        }
    }

    /// The document is at least here.
    pub(crate) fn tip_seen(&mut self, position: &Position) {
        if let Phase::Open { incarnation, sent } = self.phase
            && incarnation == position.incarnation
            && position.seq > sent
        {
            self.newest = self.newest.max(position.seq);
            self.missing = true;
        }
    }

    /// The answer to a fetch.
    pub(crate) fn fetched(
        &mut self,
        result: Result<Option<Missed>, Refusal>,
        with: &mut Surroundings<'_>,
        out: &mut Vec<Effect>,
    ) -> Step {
        if !std::mem::take(&mut self.fetching) {
            return Ok(());
        }
        match result? {
            Some(Missed::Ops(ops)) => self.caught_up(&ops, with, out),
            Some(Missed::State(state)) => return self.mirrored(Ok(state), with, out),
            // The mirror does not have it either, and has asked for it.
            None => self.fetch_at = with.now + self.backoff.next(with.random),
        }
        self.missing = matches!(self.phase, Phase::Open { sent, .. } if sent < self.newest);
        Ok(())
    }

    /// As a run, but that it tells what the keys have now: own ops that it covers come before.
    fn caught_up(&mut self, ops: &SharedOps, with: &mut Surroundings<'_>, out: &mut Vec<Effect>) {
        let Phase::Open { incarnation, sent } = self.phase else { return };
        if ops.last <= sent || ops.first > sent.next() {
            return;
        }
        let repeated: Vec<Option<u32>> = ops.ops.iter().map(|op| self.uplink.came(op)).collect();
        // What is passed only now may be older than what this covers: then it has to be told from there again.
        let again = self.pass(ops.last, with, out).filter(|after| *after < sent);
        for (op, repeated) in ops.ops.iter().zip(repeated) {
            self.send_op(op, repeated, with, out);
        }
        self.newest = self.newest.max(ops.last);
        self.seen = self.seen.max(ops.last);
        self.micros = self.micros.max(ops.micros_max);
        self.believed_until = None;
        self.backoff.reset();
        self.phase = Phase::Open { incarnation, sent: again.unwrap_or(ops.last) };
        self.fetch_at = with.now;
    }

    /// The client writes.
    pub(crate) fn write(&mut self, write: Write, with: &Surroundings<'_>) -> Result<(), Refusal> {
        if !self.writes {
            return Err(Refusal::new(Code::Forbidden, "this token may read here, and not write"));
        }
        // After everything that the client may have seen, so that it wins over it.
        let micros = with.wall_micros.max(self.micros.saturating_add(1)).min(MICROS_MAX);
        if write.timestamp.is_none() {
            self.micros = micros;
        }
        // Whoever writes before the state has come has seen nothing.
        self.uplink.offer(write, Moment { base: self.seen, micros }, &with.config.limits)
    }

    /// What is known of an op that may be a repetition.
    pub(crate) fn recalled(
        &mut self,
        known: &[SharedOp],
        with: &mut Surroundings<'_>,
        out: &mut Vec<Effect>,
    ) {
        for _ in 0..self.uplink.checked(!known.is_empty()) {
            for op in known {
                with.queue.send_text(with.now, op.frame(self.choice.extended), out);
            }
        }
    }

    /// The owner's answer to a batch.
    pub(crate) fn submitted(
        &mut self,
        result: Result<Submitted, Refusal>,
        with: &mut Surroundings<'_>,
        out: &mut Vec<Effect>,
    ) {
        // What was stored in a history that is no more is not stored.
        let result = if self.asked_in == self.history { result } else { Err(replaced()) };
        let mut news = Vec::new();
        match result {
            Err(refusal) if refusal.code == Code::HistoryReset => {
                self.uplink.again(replica(with.random), &replaced(), &mut news);
                if let Phase::Open { incarnation, .. } = self.phase
                    && self.asked_in == Some(incarnation)
                {
                    // The mirror is of the old history and may not know it yet.
                    self.phase = Phase::Joining;
                    out.push(self.join(Some(incarnation)));
                }
            }
            result => {
                if let Ok(Submitted { seq, .. }) = &result {
                    self.newest = self.newest.max(*seq);
                }
                self.uplink.answered(result, replica(with.random), &mut news);
            }
        }
        self.tell(news, with, out);
        self.pass_late(with, out);
        if let Phase::Open { sent, .. } = self.phase
            && sent < self.newest
        {
            self.believed_until.get_or_insert(with.now + with.config.bus_max);
        }
    }

    fn tell(&mut self, news: Vec<News>, with: &mut Surroundings<'_>, out: &mut Vec<Effect>) {
        for news in news {
            match news {
                News::Acked(op) if self.choice.extended => {
                    with.queue.send_text(with.now, encode::ack(op.as_ref()), out);
                }
                News::Acked(_) => {}
                News::Refused { op, refusal, current } => {
                    let frame = encode::error(&refusal, None, op.as_ref(), &current);
                    with.queue.send_text(with.now, frame, out);
                }
            }
        }
    }

    /// The token changed.
    pub(crate) fn regrant(
        &mut self,
        grant: &Grant,
        with: &mut Surroundings<'_>,
        out: &mut Vec<Effect>,
    ) -> Step {
        if !grant.allows(&self.document, Scope::Read) {
            return Err(Refusal::new(Code::Forbidden, "the fresh token does not cover this workspace"));
        }
        self.writes = grant.allows(&self.document, Scope::Write);
        if !self.writes {
            let refusal = Refusal::new(Code::Forbidden, "the fresh token may not write here");
            let mut news = Vec::new();
            self.uplink.refuse_waiting(&refusal, &mut news);
            self.tell(news, with, out);
        }
        Ok(())
    }

    pub(crate) fn roster(&mut self, full: bool, peers: Vec<v1::Peer>, left: Vec<String>, max: usize) {
        // The bare dialect has no word for it.
        if self.choice.extended {
            self.roster.add(full, peers, left, max);
        }
    }

    pub(crate) fn set_presence(&mut self, peer: v1::Peer) {
        self.presence = Some(peer);
    }

    pub(crate) fn deadline(&self, has_room: bool) -> Option<Duration> {
        let presence = match self.phase {
            Phase::Open { .. } => self.presence.is_some().then_some(self.presence_at),
            Phase::Waiting => Some(Duration::ZERO),
            Phase::Joining => None,
        };
        let fetch = if has_room { self.fetch_due() } else { None };
        presence.into_iter().chain(fetch).min()
    }

    /// Asks for what is due.
    pub(crate) fn pump(&mut self, limits: &Limits, with: &mut Surroundings<'_>, out: &mut Vec<Effect>) {
        if self.phase == Phase::Waiting {
            self.phase = Phase::Joining;
            out.push(self.join(None));
        }
        let Phase::Open { incarnation, sent } = self.phase else { return };
        if let Some((key, timestamp)) = self.uplink.next_unchecked() {
            let document = self.document.clone();
            out.push(Effect::Recall { channel: ID, document, key, timestamp });
        }
        if let Some(Batch { replica, first_counter, count, changes }) = self.uplink.next_batch(limits) {
            self.asked_in = Some(incarnation);
            let document = self.document.clone();
            out.push(Effect::Submit {
                channel: ID,
                document,
                incarnation,
                replica,
                first_counter,
                count,
                changes,
            });
        }
        if with.queue.has_room() && self.fetch_due().is_some_and(|due| with.now >= due) {
            (self.fetching, self.missing, self.believed_until) = (true, false, None);
            let document = self.document.clone();
            out.push(Effect::Fetch { channel: ID, document, incarnation, after: sent });
        }
        while !self.roster.is_empty() && with.queue.has_room() {
            let frame = encode::presence(&self.roster.take(ID.number));
            with.queue.send_text(with.now, frame, out);
        }
        if with.now >= self.presence_at
            && let Some(peer) = self.presence.take()
        {
            self.presence_at = with.now + with.config.presence_interval;
            let document = self.document.clone();
            out.push(Effect::SetPresence { channel: ID, document, peer });
        }
    }

    fn join(&self, lost: Option<Incarnation>) -> Effect {
        Effect::Mirror {
            channel: ID,
            document: self.document.clone(),
            strategy: self.choice.strategy,
            heads: self.choice.heads.clone(),
            lost,
        }
    }

    /// When to fetch, if that is needed and not under way.
    fn fetch_due(&self) -> Option<Duration> {
        if self.fetching || !matches!(self.phase, Phase::Open { .. }) {
            return None;
        }
        let needed_from = if self.missing { Duration::ZERO } else { self.believed_until? };
        Some(needed_from.max(self.fetch_at))
    }
}

/// The last microsecond that a timestamp can name.
const MICROS_MAX: u64 = (1 << 53) - 1;

fn replaced() -> Refusal {
    Refusal::new(Code::HistoryReset, "the workspace's history was replaced")
}

/// A random replica; never 0.
fn replica(random: &mut Random) -> ReplicaId {
    ReplicaId(random.next().max(1))
}
