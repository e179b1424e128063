use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use manyhands_crdt::ReplicaId;
use manyhands_proto::v1::server_frame::Frame as ServerFrame;
use manyhands_proto::{Chain, Code, DocumentName, HEADS_MAX, Incarnation, Position, Seq, v1};

use super::presence::Roster;
use super::send_queue::SendQueue;
use super::uplink::Uplink;
use super::{Body, ChannelId, EdgeConfig, Effect, Fetched, Opened, Submitted};
use crate::backoff::{Backoff, Random};
use crate::{Grant, Limits, Refusal, Scope, SharedRun, position_to_wire};

/// One document on one session.
#[derive(Debug)]
pub(super) struct Channel {
    id: ChannelId,
    document: DocumentName,
    replica: Option<ReplicaId>,
    have: Option<Position>,
    heads: Vec<Bytes>,
    strategy: v1::Strategy,
    /// Whether the token allows it.
    writes: bool,
    phase: Phase,
    /// The newest seq that was heard of, sent or not.
    newest: Seq,
    roster: Roster,
    presence: Option<Option<v1::Peer>>,
    presence_at: Duration,
}

#[derive(Debug)]
enum Phase {
    /// Until there is room for one more that loads.
    Waiting,
    /// The owner was asked.
    Opening,
    Open(Box<Open>),
}

#[derive(Debug)]
struct Open {
    incarnation: Incarnation,
    /// The newest entry that was sent.
    sent: Seq,
    /// The chain hash there, if known.
    chain: Option<Chain>,
    /// What is left of the state.
    state: VecDeque<Bytes>,
    fetching: bool,
    /// Something that was to be sent was left out, or the client asked: the bus will not bring it.
    missing: bool,
    /// Something newer was heard of, which the bus will bring; from when on that is no longer believed.
    believed_until: Option<Duration>,
    fetch_at: Duration,
    backoff: Backoff,
    /// The client knows that it is behind.
    told_behind: bool,
    uplink: Uplink,
}

/// What a channel needs from its session.
pub(super) struct Surroundings<'a> {
    pub(super) now: Duration,
    pub(super) config: &'a EdgeConfig,
    pub(super) queue: &'a mut SendQueue,
    pub(super) random: &'a mut Random,
}

/// An `Err` evicts the channel.
type Step = Result<(), Refusal>;

impl Channel {
    pub(super) fn new(
        id: ChannelId,
        document: DocumentName,
        replica: Option<ReplicaId>,
        have: Option<Position>,
        writes: bool,
    ) -> Channel {
        Channel {
            id,
            document,
            replica,
            have,
            heads: Vec::new(),
            strategy: v1::Strategy::Unspecified,
            writes,
            phase: Phase::Waiting,
            newest: Seq(0),
            roster: Roster::default(),
            presence: None,
            presence_at: Duration::ZERO,
        }
    }

    /// What else the client asked for.
    pub(super) fn with_terms(self, strategy: v1::Strategy, heads: Vec<Bytes>) -> Channel {
        // A position says more, and is always enough.
        let heads = if self.have.is_some() { Vec::new() } else { heads };
        Channel { strategy, heads, ..self }
    }

    pub(super) fn id(&self) -> ChannelId {
        self.id
    }

    /// Whether it holds a state that is to be sent.
    pub(super) fn is_loading(&self) -> bool {
        matches!(&self.phase, Phase::Open(open) if !open.state.is_empty())
    }

    /// Asks the owner, if that was not done yet.
    pub(super) fn start(&mut self, out: &mut Vec<Effect>) -> bool {
        if !matches!(self.phase, Phase::Waiting) {
            return false;
        }
        self.phase = Phase::Opening;
        out.push(Effect::Open {
            channel: self.id,
            document: self.document.clone(),
            replica: self.replica,
            have: self.have,
            heads: self.heads.clone(),
            strategy: self.strategy,
        });
        true
    }

    pub(super) fn leave(&self) -> Effect {
        Effect::Leave { channel: self.id, document: self.document.clone() }
    }

    pub(super) fn opened(
        &mut self,
        result: Result<Opened, Refusal>,
        with: &mut Surroundings<'_>,
        out: &mut Vec<Effect>,
    ) -> Step {
        let Opened { position, next_counter, body, strategy, heads, max_base: _ } = result?;
        if !matches!(self.phase, Phase::Opening) {
            return Ok(());
        }
        let (recovery, sent, chain, state, runs) = match body {
            Body::State(state) => {
                let state: VecDeque<Bytes> = state.into_iter().filter(|chunk| !chunk.is_empty()).collect();
                (v1::Recovery::State, position.seq, Some(position.chain), state, Vec::new())
            }
            Body::Tail(runs) => {
                if self.have.is_some_and(|have| have.incarnation != position.incarnation) {
                    return Err(Refusal::new(Code::Internal, "a tail of another history"));
                }
                // Who named heads has what is before the first entry that comes now.
                let known = match runs.first() {
                    _ if self.heads.is_empty() => Seq(0),
                    Some(run) => Seq(run.first().0.saturating_sub(1)),
                    None => position.seq,
                };
                let sent = self.have.map_or(known, |have| have.seq);
                (v1::Recovery::Tail, sent, self.have.map(|have| have.chain), VecDeque::new(), runs)
            }
        };
        let state_bytes: usize = state.iter().map(Bytes::len).sum();
        if state_bytes > with.config.state_bytes_max {
            let message = format!("the document's state has {state_bytes} bytes");
            return Err(Refusal::new(Code::TooLarge, message));
        }
        if recovery == v1::Recovery::State && state_bytes == 0 {
            return Err(Refusal::new(Code::Internal, "a state without bytes"));
        }
        let opened = v1::Opened {
            channel: self.id.number,
            recovery: recovery.into(),
            position: Some(position_to_wire(&position)),
            next_counter,
            can_write: self.writes && self.replica.is_some(),
            state_bytes: state_bytes as u64,
            strategy: strategy.into(),
            heads: heads_of(heads),
        };
        with.queue.send(with.now, ServerFrame::Opened(opened), out);
        self.newest = self.newest.max(position.seq);
        // The shell joins the lane of presence on this same answer, after it was handled.
        self.presence_at = with.now + with.config.presence_interval;
        self.phase = Phase::Open(Box::new(Open {
            incarnation: position.incarnation,
            sent,
            chain,
            state,
            fetching: false,
            missing: false,
            believed_until: None,
            fetch_at: Duration::ZERO,
            backoff: Backoff::new(Duration::from_millis(250), Duration::from_secs(5)),
            told_behind: false,
            uplink: Uplink::default(),
        }));
        runs.iter().try_for_each(|run| self.deliver(run, with, out))?;
        if let Phase::Open(open) = &mut self.phase {
            open.missing = open.state.is_empty() && open.sent < self.newest;
        }
        Ok(())
    }

    /// Sends a run if it is the next; leaves it out if there is no room, or if one before it is missing.
    /// What was left out is fetched in [`Channel::pump`].
    pub(super) fn deliver(
        &mut self,
        run: &SharedRun,
        with: &mut Surroundings<'_>,
        out: &mut Vec<Effect>,
    ) -> Step {
        self.newest = self.newest.max(run.last());
        let Phase::Open(open) = &mut self.phase else { return Ok(()) };
        if run.last() <= open.sent {
            let forked = run.last() == open.sent && open.chain.is_some_and(|chain| chain != run.chain());
            return if forked { Err(Code::HistoryReset.into()) } else { Ok(()) };
        }
        if run.first() > open.sent.next() || !open.state.is_empty() || with.queue.is_full() {
            open.missing = true;
            return Ok(());
        }
        with.queue.send_bytes(with.now, run.frame(self.id.number), out);
        open.sent = run.last();
        open.chain = Some(run.chain());
        open.believed_until = None;
        open.missing &= open.sent < self.newest;
        open.expect(self.newest, with);
        Ok(())
    }

    pub(super) fn tip_seen(&mut self, position: &Position, with: &Surroundings<'_>) -> Step {
        let Phase::Open(open) = &mut self.phase else {
            self.newest = self.newest.max(position.seq);
            return Ok(());
        };
        let forked = position.seq == open.sent && open.chain.is_some_and(|chain| chain != position.chain);
        if position.incarnation != open.incarnation || forked {
            return Err(Code::HistoryReset.into());
        }
        self.newest = self.newest.max(position.seq);
        open.expect(self.newest, with);
        Ok(())
    }

    pub(super) fn fetched(
        &mut self,
        result: Result<Fetched, Refusal>,
        with: &mut Surroundings<'_>,
        out: &mut Vec<Effect>,
    ) -> Step {
        let Phase::Open(open) = &mut self.phase else { return Ok(()) };
        open.fetching = false;
        let before = open.sent;
        match result {
            Ok(Fetched { runs, tip }) => {
                self.tip_seen(&tip, with)?;
                runs.iter().try_for_each(|run| self.deliver(run, with, out))?;
            }
            Err(refusal) if refusal.code.retry() == manyhands_proto::Retry::Later => {}
            Err(refusal) => return Err(refusal),
        }
        let Phase::Open(open) = &mut self.phase else { return Ok(()) };
        open.missing = open.sent < self.newest;
        if open.sent > before {
            open.backoff.reset();
        } else {
            open.fetch_at = with.now + open.backoff.next(with.random);
        }
        Ok(())
    }

    /// The client has less than was sent, or believes so. Whether it wants what it was sent again, which a
    /// good client needs only when something is wrong.
    pub(super) fn fetch_asked(&mut self, after: u64) -> bool {
        let Phase::Open(open) = &mut self.phase else { return false };
        open.missing = true;
        let again = Seq(after) < open.sent && open.state.is_empty();
        if again {
            open.sent = Seq(after);
            open.chain = None;
        }
        again
    }

    pub(super) fn push(&mut self, push: v1::Push, limits: &Limits) -> Result<(), Refusal> {
        let Phase::Open(open) = &mut self.phase else { return Err(Code::NotOpen.into()) };
        let allowed = match (self.writes, self.replica) {
            (true, Some(_)) => Ok(()),
            (false, _) => Err("the token has no write scope here"),
            (_, None) => Err("the document was opened without a replica, for reading"),
        };
        let allowed = allowed.map_err(|why| Refusal::new(Code::Forbidden, why));
        open.uplink.offer(push, allowed, limits)
    }

    pub(super) fn submitted(
        &mut self,
        result: Result<Submitted, Refusal>,
        with: &mut Surroundings<'_>,
        out: &mut Vec<Effect>,
    ) -> Step {
        let Phase::Open(open) = &mut self.phase else { return Ok(()) };
        if let Err(refusal) = &result
            && refusal.code == Code::HistoryReset
        {
            return Err(refusal.clone());
        }
        let verdict = open.uplink.submitted(self.id.number, result);
        if let Some(ack) = verdict.ack {
            self.newest = self.newest.max(Seq(ack.seq));
            open.expect(self.newest, with);
            with.queue.send(with.now, ServerFrame::Ack(ack), out);
        }
        if let Some(reject) = verdict.reject {
            with.queue.send(with.now, ServerFrame::Reject(reject), out);
        }
        Ok(())
    }

    /// The token changed.
    pub(super) fn regrant(
        &mut self,
        grant: &Grant,
        with: &mut Surroundings<'_>,
        out: &mut Vec<Effect>,
    ) -> Step {
        if !grant.allows(&self.document, Scope::Read) {
            return Err(Refusal::new(Code::Forbidden, "the fresh token does not cover this workspace"));
        }
        self.writes = grant.allows(&self.document, Scope::Write);
        if let Phase::Open(open) = &mut self.phase
            && !self.writes
        {
            let refusal = Refusal::new(Code::Forbidden, "the fresh token has no write scope here");
            if let Some(reject) = open.uplink.refuse_waiting(self.id.number, &refusal) {
                with.queue.send(with.now, ServerFrame::Reject(reject), out);
            }
        }
        Ok(())
    }

    pub(super) fn roster(&mut self, full: bool, peers: Vec<v1::Peer>, left: Vec<String>, max: usize) {
        self.roster.add(full, peers, left, max);
    }

    pub(super) fn set_presence(&mut self, peer: Option<v1::Peer>) {
        self.presence = Some(peer);
    }

    pub(super) fn deadline(&self, has_room: bool) -> Option<Duration> {
        let presence = self.presence.is_some().then_some(self.presence_at);
        let fetch = match &self.phase {
            Phase::Open(open) if has_room => open.fetch_due(),
            _ => None,
        };
        presence.into_iter().chain(fetch).min()
    }

    /// Sends what there is room for and asks for what is due.
    pub(super) fn pump(
        &mut self,
        now: Duration,
        config: &EdgeConfig,
        queue: &mut SendQueue,
        out: &mut Vec<Effect>,
    ) {
        let channel = self.id;
        let Phase::Open(open) = &mut self.phase else { return };
        while !queue.is_full()
            && let Some(data) = open.state.pop_front()
        {
            let last = open.state.is_empty();
            let chunk = v1::StateChunk { channel: channel.number, data, last };
            queue.send(now, ServerFrame::State(chunk), out);
        }
        if let Some(push) = open.uplink.next()
            && let Some(replica) = self.replica
        {
            out.push(Effect::Submit {
                channel,
                document: self.document.clone(),
                incarnation: open.incarnation,
                replica,
                first_counter: push.first_counter,
                count: push.count,
                changes: push.changes.clone(),
            });
        }
        if open.sent >= self.newest {
            open.told_behind = false;
        } else if queue.is_full() && !open.told_behind && open.state.is_empty() {
            open.told_behind = true;
            // Only its seq was heard of, not its proof.
            let newest =
                v1::Position { incarnation: open.incarnation.0, seq: self.newest.0, chain: Bytes::new() };
            let tip = v1::Tip { channel: channel.number, position: Some(newest) };
            queue.send(now, ServerFrame::Tip(tip), out);
        }
        if queue.has_room() && open.fetch_due().is_some_and(|due| now >= due) {
            open.fetching = true;
            open.missing = false;
            open.believed_until = None;
            out.push(Effect::Fetch {
                channel,
                document: self.document.clone(),
                incarnation: open.incarnation,
                after: open.sent,
            });
        }
        while !self.roster.is_empty() && queue.has_room() {
            queue.send(now, ServerFrame::Presence(self.roster.take(channel.number)), out);
        }
        if now >= self.presence_at
            && let Some(presence) = self.presence.take()
        {
            self.presence_at = now + config.presence_interval;
            let document = self.document.clone();
            out.push(match presence {
                Some(peer) => Effect::SetPresence { channel, document, peer },
                None => Effect::ClearPresence { channel, document },
            });
        }
    }
}

impl Open {
    /// The bus is to bring what was heard of, within a while.
    fn expect(&mut self, newest: Seq, with: &Surroundings<'_>) {
        if self.sent < newest {
            self.believed_until.get_or_insert(with.now + with.config.bus_max);
        }
    }

    /// When to fetch, if that is needed and not under way.
    fn fetch_due(&self) -> Option<Duration> {
        if self.fetching || !self.state.is_empty() {
            return None;
        }
        let needed_from = if self.missing { Duration::ZERO } else { self.believed_until? };
        Some(needed_from.max(self.fetch_at))
    }
}

/// What a client is told of a document's heads: none when there are more than it could name.
fn heads_of(heads: Vec<v1::Head>) -> Vec<Bytes> {
    let few = heads.len() <= HEADS_MAX;
    heads.into_iter().filter(|_| few).map(|head| head.hash).collect()
}
