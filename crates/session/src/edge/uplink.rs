use std::collections::VecDeque;

use bytes::Bytes;
use manyhands_proto::{Code, v1};

use super::Submitted;
use crate::{Limits, Refusal};

/// The way of one channel's changes to the owner: one request at a time, the rest waits in order.
///
/// After a refusal everything that was pushed behind it is refused with it. What of that is still on its
/// way is recognised by its counter and dropped without another word, until the client begins again at or
/// before the refused one, or at what was acknowledged since: one refusal, one answer.
#[derive(Debug, Default)]
pub(super) struct Uplink {
    submitted: Option<Push>,
    waiting: VecDeque<Push>,
    changes: u32,
    bytes: usize,
    refused_from: Option<u64>,
    /// What the client was told to be durable: from there it may begin again.
    acked: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Push {
    pub(super) first_counter: u64,
    pub(super) count: u32,
    pub(super) changes: Bytes,
}

/// What an owner's answer means for the client.
#[derive(Debug, PartialEq)]
pub(super) struct Verdict {
    pub(super) ack: Option<v1::Ack>,
    pub(super) reject: Option<v1::Reject>,
}

impl Uplink {
    /// Takes a push to be submitted, if `allowed`.
    pub(super) fn offer(
        &mut self,
        push: v1::Push,
        allowed: Result<(), Refusal>,
        limits: &Limits,
    ) -> Result<(), Refusal> {
        let v1::Push { first_counter, count, changes, .. } = push;
        if self.refused_from.is_some_and(|refused| first_counter > refused) {
            return Ok(());
        }
        let admitted = allowed.and_then(|()| self.admit(count, &changes, limits));
        match admitted {
            Ok(()) => {
                self.refused_from = None;
                self.changes += count;
                self.bytes += changes.len();
                self.waiting.push_back(Push { first_counter, count, changes });
            }
            Err(_) => self.refuse_from(first_counter),
        }
        admitted
    }

    fn admit(&self, count: u32, changes: &Bytes, limits: &Limits) -> Result<(), Refusal> {
        if count == 0 || changes.is_empty() {
            return Err(Refusal::new(Code::Malformed, "a push without changes"));
        }
        // Whatever a record looks like, it is not empty.
        if count as usize > changes.len() {
            return Err(Refusal::new(Code::Malformed, "a push that is shorter than its count"));
        }
        if count > limits.push_changes_max {
            let message = format!("{count} changes in a push, where {} are allowed", limits.push_changes_max);
            return Err(Refusal::new(Code::TooLarge, message));
        }
        if changes.len() > limits.in_flight_bytes_max as usize {
            let message = format!("a push of {} bytes", changes.len());
            return Err(Refusal::new(Code::TooLarge, message));
        }
        if self.changes + count > limits.in_flight_changes_max
            || self.bytes + changes.len() > limits.in_flight_bytes_max as usize
        {
            let mut refusal = Refusal::new(Code::Overloaded, "too many changes wait for their answer");
            refusal.retry_after_ms = 100;
            return Err(refusal);
        }
        Ok(())
    }

    /// What is to be submitted now, if anything.
    pub(super) fn next(&mut self) -> Option<&Push> {
        if self.submitted.is_some() {
            return None;
        }
        self.submitted = self.waiting.pop_front();
        self.submitted.as_ref()
    }

    /// Everything that waits is refused because of `refusal`, which is returned as the answer to the first.
    pub(super) fn refuse_waiting(&mut self, channel: u32, refusal: &Refusal) -> Option<v1::Reject> {
        let first = self.waiting.front()?.first_counter;
        self.drop_waiting();
        self.refuse_from(first);
        Some(reject(channel, first, refusal))
    }

    pub(super) fn submitted(&mut self, channel: u32, result: Result<Submitted, Refusal>) -> Verdict {
        let Some(push) = self.submitted.take() else { return Verdict { ack: None, reject: None } };
        self.changes -= push.count;
        self.bytes -= push.changes.len();
        match result {
            Ok(Submitted { next_counter, seq, rejection }) => {
                // Under the counters of what is refused, the log may have something else.
                let refused_at = rejection.as_ref().map_or(u64::MAX, |rejection| rejection.counter);
                let next_counter = next_counter.min(refused_at);
                // A resend of what is durable is acknowledged again: its first ack may have been lost.
                let acked = next_counter > push.first_counter;
                let ack = acked.then_some(v1::Ack { channel, next_counter, seq: seq.0 });
                self.acked = self.acked.max(ack.as_ref().map_or(0, |ack| ack.next_counter));
                self.refused_from = self.refused_from.map(|counter| counter.max(self.acked));
                let reject = rejection.map(|rejection| {
                    let begin_again = match Code::from_number(rejection.code) {
                        Some(Code::MissingPredecessor) => rejection.next_counter,
                        _ => rejection.counter,
                    };
                    self.drop_waiting();
                    self.refuse_from(begin_again);
                    let fix = Code::from_number(rejection.code).map_or("", Code::fix).to_owned();
                    let v1::Rejection { counter, code, message, next_counter, retry_after_ms, current } =
                        rejection;
                    v1::Reject { channel, counter, code, message, fix, next_counter, retry_after_ms, current }
                });
                Verdict { ack, reject }
            }
            Err(refusal) => {
                self.drop_waiting();
                self.refuse_from(push.first_counter);
                Verdict { ack: None, reject: Some(reject(channel, push.first_counter, &refusal)) }
            }
        }
    }

    fn refuse_from(&mut self, counter: u64) {
        self.refused_from = Some(counter.max(self.acked));
    }

    fn drop_waiting(&mut self) {
        for push in self.waiting.drain(..) {
            self.changes -= push.count;
            self.bytes -= push.changes.len();
        }
    }
}

pub(super) fn reject(channel: u32, counter: u64, refusal: &Refusal) -> v1::Reject {
    v1::Reject {
        channel,
        counter,
        code: refusal.code.number(),
        message: refusal.message.clone(),
        fix: refusal.code.fix().to_owned(),
        next_counter: refusal.next_counter,
        retry_after_ms: refusal.retry_after_ms,
        current: Bytes::new(),
    }
}
