use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use manyhands_crdt::PushWriter;
use manyhands_proto::v1;

use super::{ClientConfig, OutgoingChange};
use crate::Limits;
use crate::backoff::{Backoff, Random};

/// Every change that was made here and is not known to be durable, in order.
///
/// The first `sent` of them are on their way on the present opening. Whatever goes wrong, they are sent
/// again from the first that is not acknowledged; the log recognises what it has.
#[derive(Debug)]
pub(super) struct Outbox {
    changes: VecDeque<OutgoingChange>,
    bytes: usize,
    sent: usize,
    /// The first counter that was never sent on the present opening.
    sent_until: u64,
    pushes: VecDeque<Pushed>,
    /// The counter of the next change, once there was one.
    next_counter: Option<u64>,
    closed: Option<Closed>,
    hold_until: Duration,
    progress_at: Duration,
    backoff: Backoff,
}

/// One push on its way.
#[derive(Debug)]
struct Pushed {
    next_counter: u64,
    changes: u32,
    bytes: usize,
}

/// Why no further change is taken.
#[derive(Clone, Debug)]
pub(super) struct Closed {
    pub(super) code: u32,
    pub(super) message: String,
}

impl Outbox {
    pub(super) fn new(config: &ClientConfig) -> Outbox {
        Outbox {
            changes: VecDeque::new(),
            bytes: 0,
            sent: 0,
            sent_until: 0,
            pushes: VecDeque::new(),
            next_counter: None,
            closed: None,
            hold_until: Duration::ZERO,
            progress_at: Duration::ZERO,
            backoff: Backoff::new(config.backoff_first, config.backoff_max),
        }
    }

    pub(super) fn changes(&self) -> impl Iterator<Item = &OutgoingChange> {
        self.changes.iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    pub(super) fn first_counter(&self) -> Option<u64> {
        self.changes.front().map(|change| change.counter)
    }

    /// Takes a change, or says why it is handed back.
    pub(super) fn add(&mut self, change: &OutgoingChange, config: &ClientConfig) -> Result<(), Closed> {
        if let Some(closed) = &self.closed {
            return Err(closed.clone());
        }
        let continues = self.next_counter.is_none_or(|next| next == change.counter);
        if !continues || change.next_counter <= change.counter {
            return Err(Closed {
                code: manyhands_proto::Code::MissingPredecessor.number(),
                message: "the change does not continue the one before it".to_owned(),
            });
        }
        let full = self.changes.len() >= config.outbox_changes_max
            || self.bytes + change.body.len() > config.outbox_bytes_max;
        if full {
            // The next one would leave a hole: from here on nothing is taken.
            let closed = Closed {
                code: manyhands_proto::Code::LimitReached.number(),
                message: "too many changes wait for the server".to_owned(),
            };
            self.closed = Some(closed.clone());
            return Err(closed);
        }
        self.next_counter = Some(change.next_counter);
        self.bytes += change.body.len();
        self.changes.push_back(change.clone());
        Ok(())
    }

    /// Everything below `next_counter` is durable. Returns how far that was news. Only what was sent on this
    /// opening can be meant: a counter beyond is another's writing under the same replica, and is for the log
    /// to judge.
    pub(super) fn acked(&mut self, now: Duration, next_counter: u64) -> Option<u64> {
        let durable = next_counter.min(self.sent_until);
        let mut news = None;
        while let Some(change) = self.changes.pop_front_if(|change| change.next_counter <= durable) {
            self.sent = self.sent.saturating_sub(1);
            self.bytes -= change.body.len();
            news = Some(change.next_counter);
        }
        while self.pushes.pop_front_if(|push| push.next_counter <= durable).is_some() {}
        if news.is_some() {
            self.progress_at = now;
            self.backoff.reset();
        }
        news
    }

    /// Sends again from `counter` on, not before `at_least` and the backoff have passed.
    pub(super) fn go_back(&mut self, now: Duration, counter: u64, at_least: Duration, random: &mut Random) {
        self.sent = self.sent.min(self.changes.partition_point(|change| change.counter < counter));
        self.pushes.retain(|push| push.next_counter <= counter);
        self.hold_until = now.saturating_add(at_least).saturating_add(self.backoff.next(random));
        self.progress_at = now;
    }

    /// Nothing is on its way any more: a new opening begins with the first.
    pub(super) fn restart(&mut self) {
        self.sent = 0;
        self.sent_until = 0;
        self.pushes.clear();
        self.hold_until = Duration::ZERO;
    }

    /// Takes out what is at `counter` and after, for good.
    pub(super) fn refuse(&mut self, counter: u64, closed: Closed) -> Vec<OutgoingChange> {
        let from = self.changes.partition_point(|change| change.counter < counter);
        let refused: Vec<OutgoingChange> = self.changes.drain(from..).collect();
        self.sent = self.sent.min(from);
        self.pushes.retain(|push| push.next_counter <= counter);
        self.bytes -= refused.iter().map(|change| change.body.len()).sum::<usize>();
        self.closed = Some(closed);
        refused
    }

    pub(super) fn deadline(&self, limits: &Limits, config: &ClientConfig) -> Option<Duration> {
        let resend = (self.sent > 0).then_some(self.progress_at + config.resend_after);
        let send = self.may_send(limits, config).then_some(self.hold_until);
        resend.into_iter().chain(send).min()
    }

    /// The next push, if one may go out now.
    pub(super) fn next(
        &mut self,
        now: Duration,
        channel: u32,
        limits: &Limits,
        config: &ClientConfig,
    ) -> Option<v1::Push> {
        if self.sent > 0 && now >= self.progress_at + config.resend_after {
            self.sent = 0;
            self.pushes.clear();
            self.progress_at = now;
        }
        if now < self.hold_until || !self.may_send(limits, config) {
            return None;
        }
        if self.sent == 0 {
            self.progress_at = now;
        }
        let room = self.room(limits);
        let first_counter = self.changes.get(self.sent)?.counter;
        let mut next_counter = first_counter;
        let mut records = PushWriter::new();
        for change in self.changes.iter().skip(self.sent) {
            let bytes = records.len() + RECORD_OVERHEAD + change.body.len();
            if !records.is_empty() && (records.count() >= room.changes || bytes > room.bytes) {
                break;
            }
            records.push(change.base, &change.body);
            next_counter = change.next_counter;
        }
        let (count, changes) = (records.count(), Bytes::from(records.finish()));
        self.sent += count as usize;
        self.sent_until = self.sent_until.max(next_counter);
        self.pushes.push_back(Pushed { next_counter, changes: count, bytes: changes.len() });
        Some(v1::Push { channel, first_counter, count, changes })
    }

    /// Whether there is something to send and room for it.
    fn may_send(&self, limits: &Limits, config: &ClientConfig) -> bool {
        let Some(next) = self.changes.get(self.sent) else { return false };
        if self.pushes.is_empty() {
            return true;
        }
        let room = self.room(limits);
        self.pushes.len() < config.pushes_in_flight_max
            && room.changes > 0
            && next.body.len() + RECORD_OVERHEAD <= room.bytes
    }

    fn room(&self, limits: &Limits) -> Room {
        let changes: u32 = self.pushes.iter().map(|push| push.changes).sum();
        let bytes: usize = self.pushes.iter().map(|push| push.bytes).sum();
        let frame = (limits.frame_bytes_max as usize).saturating_sub(FRAME_OVERHEAD);
        Room {
            changes: limits.in_flight_changes_max.saturating_sub(changes).min(limits.push_changes_max),
            bytes: (limits.in_flight_bytes_max as usize).saturating_sub(bytes).min(frame),
        }
    }
}

/// What one more push may hold.
struct Room {
    changes: u32,
    bytes: usize,
}

/// Bytes of a push frame besides its records, at most.
const FRAME_OVERHEAD: usize = 64;
/// Bytes of a record besides its body, at most.
const RECORD_OVERHEAD: usize = 10;
