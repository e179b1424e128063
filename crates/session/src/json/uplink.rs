use std::collections::VecDeque;

use bytes::Bytes;
use manyhands_crdt::{Hlc, MapOp, PushWriter, ReplicaId, map_change_body, read_map_ops};
use manyhands_proto::{Code, Seq, v1};

use super::decode::Write;
use super::encode::{Ref, Said};
use super::op::SharedOp;
use crate::edge::Submitted;
use crate::{Limits, Refusal};

/// The way of a session's ops to the owner.
///
/// An op waits for whether it is a repetition, then for the batch before it, and goes with all that wait then.
/// It is done when its author was sent it back. Until then it counts against the session's limits.
#[derive(Debug)]
pub(super) struct Uplink {
    /// Who writes. Another one after an answer that leaves open what became of a batch.
    replica: ReplicaId,
    next_counter: u64,
    /// Not yet known whether they were written before; in order.
    unchecked: VecDeque<Own>,
    /// Whether the first of them is being looked up.
    checking: bool,
    waiting: VecDeque<Own>,
    submitted: VecDeque<Own>,
    /// Durable, and not yet seen in the log.
    durable: VecDeque<Own>,
    bytes: usize,
}

/// How often an op is submitted to histories that are no more.
const TRIES_MAX: u32 = 4;

/// An op of this session on its way.
#[derive(Debug)]
struct Own {
    replica: ReplicaId,
    counter: u64,
    key: String,
    /// The client's, if it gave one.
    timestamp: Option<u64>,
    base: Seq,
    /// How often it was submitted to a history that was no more.
    tries: u32,
    body: Vec<u8>,
    /// How often it is to be sent back: once, and once more for each repetition.
    echoes: u32,
    echoed: bool,
    /// A seq that it is not beyond.
    seq: Seq,
}

/// A batch for the owner.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) replica: ReplicaId,
    pub(super) first_counter: u64,
    pub(super) count: u32,
    pub(super) changes: Bytes,
}

/// What is to be told about an op.
#[derive(Debug, PartialEq)]
pub(super) enum News {
    /// It is durable.
    Acked(Named),
    /// It is not, or nobody knows.
    Refused {
        op: Named,
        refusal: Refusal,
        /// A JSON object that says what stands in the way, or nothing.
        current: Bytes,
    },
}

/// What tells a client which of its ops is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) key: String,
    pub(super) timestamp: Option<u64>,
}

impl Named {
    pub(super) fn as_ref(&self) -> Ref<'_> {
        Ref { key: Some(&self.key), timestamp: self.timestamp }
    }
}

/// When and on what an op is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// The newest entry that the session was sent.
    pub(super) base: Seq,
    /// What the op is stamped with if its author did not.
    pub(super) micros: u64,
}

impl Uplink {
    pub(super) fn new(replica: ReplicaId) -> Uplink {
        Uplink {
            replica,
            next_counter: 0,
            unchecked: VecDeque::new(),
            checking: false,
            waiting: VecDeque::new(),
            submitted: VecDeque::new(),
            durable: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Takes an op in.
    pub(super) fn offer(&mut self, write: Write, at: Moment, limits: &Limits) -> Result<(), Refusal> {
        let Write { key, value, timestamp, expect } = write;
        if let Some(same) =
            self.all().find(|own| own.timestamp.is_some() && own.timestamp == timestamp && own.key == key)
        {
            same.echoes += 1;
            return Ok(());
        }
        let stamp = Hlc::at(timestamp.unwrap_or(at.micros));
        let op = MapOp { map: "", key: &key, value: value.as_deref(), stamp, expect };
        let body = map_change_body(&op).map_err(|error| Refusal::new(Code::Malformed, error.to_string()))?;
        let max = limits.change_bytes_max as usize;
        if body.len() > max {
            let message = format!("the op has {} bytes, where {max} are allowed", body.len());
            return Err(Refusal::new(Code::TooLarge, message));
        }
        let count = self.unchecked.len() + self.waiting.len() + self.submitted.len() + self.durable.len();
        if count >= limits.in_flight_changes_max as usize
            || self.bytes + weight(&key, &body) > limits.in_flight_bytes_max as usize
        {
            let mut refusal = Refusal::new(Code::Overloaded, "too many ops wait to be stored");
            refusal.retry_after_ms = 100;
            return Err(refusal);
        }
        self.bytes += weight(&key, &body);
        self.unchecked.push_back(Own {
            replica: self.replica,
            counter: 0,
            key,
            timestamp,
            base: at.base,
            tries: 0,
            body,
            echoes: 1,
            echoed: false,
            seq: Seq(0),
        });
        Ok(())
    }

    /// The next op that may be a repetition, as key and timestamp. One at a time.
    pub(super) fn next_unchecked(&mut self) -> Option<(String, u64)> {
        if self.checking {
            return None;
        }
        while let Some(own) = self.unchecked.pop_front() {
            if let Some(timestamp) = own.timestamp {
                let asked = (own.key.clone(), timestamp);
                self.unchecked.push_front(own);
                self.checking = true;
                return Some(asked);
            }
            self.waiting.push_back(own);
        }
        None
    }

    /// Whether the op that was looked up is known. If so, it is done, and the answer is how often it was asked.
    pub(super) fn checked(&mut self, known: bool) -> u32 {
        if !std::mem::take(&mut self.checking) {
            return 0;
        }
        let Some(own) = self.unchecked.pop_front() else { return 0 };
        if known {
            self.bytes -= weight(&own.key, &own.body);
            return own.echoes;
        }
        self.waiting.push_back(own);
        0
    }

    /// What is to be submitted now, if anything.
    pub(super) fn next_batch(&mut self, limits: &Limits) -> Option<Batch> {
        if !self.submitted.is_empty() || self.waiting.is_empty() {
            return None;
        }
        let first_counter = self.next_counter;
        let mut push = PushWriter::new();
        while let Some(own) = self.waiting.front()
            && push.count() < limits.push_changes_max.max(1)
            && (push.is_empty() || push.len() + own.body.len() + 10 <= limits.in_flight_bytes_max as usize)
        {
            push.push(own.base.0, &own.body);
            let Some(mut own) = self.waiting.pop_front() else { break };
            (own.replica, own.counter) = (self.replica, self.next_counter);
            self.next_counter += 1;
            self.submitted.push_back(own);
        }
        let count = push.count();
        Some(Batch { replica: self.replica, first_counter, count, changes: push.finish().into() })
    }

    /// The owner's answer to the batch. `fresh` is who writes from now on if this one must not any more.
    pub(super) fn answered(
        &mut self,
        result: Result<Submitted, Refusal>,
        fresh: ReplicaId,
        out: &mut Vec<News>,
    ) {
        let (next_counter, seq, rejection) = match result {
            Ok(Submitted { next_counter, seq, rejection }) => (next_counter, seq, rejection),
            Err(refusal) => {
                // What became of it is not known: what is sent under these numbers again could be a fork.
                self.renew(fresh);
                while let Some(own) = self.submitted.pop_front() {
                    self.refuse(own, &refusal, Bytes::new(), out);
                }
                return;
            }
        };
        let refused_at = rejection.as_ref().map_or(u64::MAX, |rejection| rejection.counter);
        let stored = next_counter.min(refused_at);
        while let Some(mut own) = self.submitted.pop_front_if(|own| own.counter < stored) {
            out.push(News::Acked(own.named()));
            own.seq = seq;
            if own.echoed {
                self.bytes -= weight(&own.key, &own.body);
            } else {
                self.durable.push_back(own);
            }
        }
        let Some(first) = self.submitted.pop_front() else { return };
        // From here on the numbers are free again.
        self.next_counter = first.counter;
        let Some(rejection) = rejection else {
            self.refuse(first, &Refusal::new(Code::Internal, "the owner did not say why"), Bytes::new(), out);
            self.wait_again();
            return;
        };
        let v1::Rejection { code, message, retry_after_ms, current, .. } = rejection;
        let code = Code::from_number(code).unwrap_or(Code::Internal);
        let refusal = Refusal { retry_after_ms, ..Refusal::new(code, message) };
        self.refuse(first, &refusal, current, out);
        match code {
            // The numbers are not what we took them for.
            Code::Fork | Code::ReplicaTaken | Code::MissingPredecessor => self.renew(fresh),
            // Whatever comes behind it would be answered the same.
            code if code.retry() != manyhands_proto::Retry::No => {
                while let Some(own) = self.submitted.pop_front() {
                    self.refuse(own, &refusal, Bytes::new(), out);
                }
            }
            _ => {}
        }
        self.wait_again();
    }

    /// The token, or the history, allows none of what is not stored.
    pub(super) fn refuse_waiting(&mut self, refusal: &Refusal, out: &mut Vec<News>) {
        self.checking = false;
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.append(&mut self.unchecked);
        for own in waiting {
            self.refuse(own, refusal, Bytes::new(), out);
        }
    }

    /// The history that the batch was made for is no more. What its author made without having seen anything of it,
    /// as on a workspace that was empty, is as good in the next one; the rest is refused.
    pub(super) fn again(&mut self, fresh: ReplicaId, refusal: &Refusal, out: &mut Vec<News>) {
        self.renew(fresh);
        let batch = std::mem::take(&mut self.submitted);
        for mut own in batch {
            own.tries += 1;
            if own.base == Seq(0) && own.tries < TRIES_MAX && !own.echoed {
                self.submitted.push_back(own);
            } else {
                self.refuse(own, refusal, Bytes::new(), out);
            }
        }
        self.wait_again();
    }

    /// The history is another. As for [`again`](Uplink::again), for all that is not on its way to the owner.
    pub(super) fn reset(&mut self, fresh: ReplicaId, refusal: &Refusal, out: &mut Vec<News>) {
        self.renew(fresh);
        self.checking = false;
        for (waiting, unchecked) in
            [(std::mem::take(&mut self.waiting), false), (std::mem::take(&mut self.unchecked), true)]
        {
            for own in waiting {
                match (own.base, unchecked) {
                    (Seq(0), true) => self.unchecked.push_back(own),
                    (Seq(0), false) => self.waiting.push_back(own),
                    _ => self.refuse(own, refusal, Bytes::new(), out),
                }
            }
        }
        while let Some(own) = self.durable.pop_front() {
            self.refuse(own, refusal, Bytes::new(), out);
        }
    }

    /// How often an op that has come by the log is to be sent to this session beside the once that all are: the
    /// times that it was repeated. `None` if it is not of this session.
    pub(super) fn came(&mut self, op: &SharedOp) -> Option<u32> {
        let is_it = |own: &Own| own.counter == op.counter && own.replica == op.replica;
        if let Some(own) = self.submitted.iter_mut().find(|own| is_it(own)) {
            own.echoed = true;
            return Some(own.echoes - 1);
        }
        let index = self.durable.iter().position(is_it)?;
        let own = self.durable.remove(index)?;
        self.bytes -= weight(&own.key, &own.body);
        Some(own.echoes - 1)
    }

    /// Ops that are in the log at or before `upto` and were not sent back, because what came in their place was
    /// told instead: they are sent back now, each as often as it is to be. The oldest entry that all of them had
    /// seen, if there are any.
    pub(super) fn passed(
        &mut self,
        upto: Seq,
        mut send: impl FnMut(ReplicaId, Said<'_>, u32),
    ) -> Option<Seq> {
        let mut oldest: Option<Seq> = None;
        while let Some(own) = self.durable.pop_front_if(|own| own.seq <= upto) {
            self.bytes -= weight(&own.key, &own.body);
            oldest = Some(oldest.map_or(own.base, |oldest| oldest.min(own.base)));
            if let Ok(mut ops) = read_map_ops(&own.body)
                && let Some((_, op)) = ops.next()
            {
                let said = Said { key: op.key, value: op.value, micros: op.stamp.micros };
                send(own.replica, said, own.echoes);
            }
        }
        oldest
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Own> {
        let sent = self.submitted.iter_mut().chain(&mut self.durable).filter(|own| !own.echoed);
        self.unchecked.iter_mut().chain(&mut self.waiting).chain(sent)
    }

    fn renew(&mut self, fresh: ReplicaId) {
        self.replica = fresh;
        self.next_counter = 0;
    }

    fn wait_again(&mut self) {
        while let Some(own) = self.submitted.pop_back() {
            self.waiting.push_front(own);
        }
    }

    fn refuse(&mut self, own: Own, refusal: &Refusal, current: Bytes, out: &mut Vec<News>) {
        self.bytes -= weight(&own.key, &own.body);
        // It has come by the log: whatever the answer was, it is there.
        if !own.echoed {
            out.push(News::Refused { op: own.named(), refusal: refusal.clone(), current });
        }
    }
}

impl Own {
    fn named(&self) -> Named {
        Named { key: self.key.clone(), timestamp: self.timestamp }
    }
}

/// What an op counts against the limit.
fn weight(key: &str, body: &[u8]) -> usize {
    key.len() + body.len()
}
