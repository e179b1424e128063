//! What clients were told, against the log.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::event::{Digest, Micros};
use super::log::DocumentLog;
use super::{Findings, Rule};

/// A client's identity in one document.
type Writer = (u32, u16, u64);

/// Everything that is kept of clients.
#[derive(Debug, Default)]
pub(super) struct Clients {
    /// What was sent and not heard of: counters, in order.
    outboxes: BTreeMap<Writer, VecDeque<(u64, u64)>>,
    views: BTreeMap<(u32, u16), View>,
    gone: BTreeSet<u32>,
}

impl Clients {
    pub(super) fn sent(&mut self, writer: Writer, counter: u64, next_counter: u64) {
        self.outboxes.entry(writer).or_default().push_back((counter, next_counter));
    }

    /// The counters that are acknowledged by this.
    pub(super) fn acked(&mut self, writer: Writer, next_counter: u64) -> Vec<u64> {
        let Some(outbox) = self.outboxes.get_mut(&writer) else { return Vec::new() };
        let mut acked = Vec::new();
        while let Some((counter, _)) = outbox.pop_front_if(|(_, next)| *next <= next_counter) {
            acked.push(counter);
        }
        acked
    }

    /// The counters that are refused by this.
    pub(super) fn refused(&mut self, writer: Writer, from: u64) -> Vec<u64> {
        let Some(outbox) = self.outboxes.get_mut(&writer) else { return Vec::new() };
        let first = outbox.partition_point(|(counter, _)| *counter < from);
        outbox.split_off(first).into_iter().map(|(counter, _)| counter).collect()
    }

    pub(super) fn gone(&mut self, client: u32) {
        self.gone.insert(client);
    }

    pub(super) fn is_gone(&self, client: u32) -> bool {
        self.gone.contains(&client)
    }

    /// What was sent and never heard of.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = (Writer, u64)> + '_ {
        self.outboxes
            .iter()
            .flat_map(|(writer, outbox)| outbox.iter().map(|(counter, _)| (*writer, *counter)))
    }

    pub(super) fn view(&mut self, client: u32, document: u16) -> &mut View {
        self.views.entry((client, document)).or_default()
    }
}

/// What a client was told about its place.
pub(super) struct Told {
    pub(super) incarnation: u64,
    pub(super) seq: u64,
    pub(super) chain: Option<Digest>,
    pub(super) state: Option<Digest>,
}

/// Entries that a client was sent.
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) count: u32,
    pub(super) chain: Digest,
    pub(super) at: Micros,
}

/// What a client has of a document.
#[derive(Debug, Default)]
pub(super) struct View {
    have: u64,
}

impl View {
    /// The newest seq that it was sent.
    pub(super) fn have(&self) -> u64 {
        self.have
    }

    pub(super) fn opened(
        &mut self,
        (client, document): (u32, u16),
        told: &Told,
        log: &DocumentLog,
        findings: &mut Findings<'_>,
    ) {
        let mut wrong = |rule, found: String| findings.add(rule, document, &[told.seq], found);
        // Before its first entry a document has a history that nobody is bound to.
        if told.seq > 0 {
            if log.incarnation.is_some_and(|incarnation| incarnation != told.incarnation) {
                let found = format!("client {client} opened another history, {:016x}", told.incarnation);
                wrong(Rule::DeliveredInOrder, found);
            }
            match (log.at(told.seq), told.chain) {
                (None, _) => {
                    let found = format!("client {client} opened at a position that the log does not have");
                    wrong(Rule::DeliveredInOrder, found);
                }
                (Some(entry), Some(chain)) if entry.chain != chain => {
                    let found = format!("client {client} opened at a chain hash that is not the log's");
                    wrong(Rule::DeliveredInOrder, found);
                }
                _ => {}
            }
        }
        if let Some(state) = told.state {
            if told.seq < self.have {
                let found = format!("client {client} was given an older state than the {} it had", self.have);
                wrong(Rule::DeliveredInOrder, found);
            }
            let folded = log.folded.get(&told.seq);
            if told.seq > 0 && folded != Some(&state) {
                let stale = log.folded.iter().find(|(_, folded)| **folded == state);
                let found = match stale {
                    Some((seq, _)) => format!("client {client} was given the state of seq {seq} instead"),
                    None => format!("client {client} was given a state that is not the log's"),
                };
                wrong(Rule::StatesEqual, found);
            }
            self.have = told.seq;
            findings.verdict.states += 1;
        }
    }

    pub(super) fn delivered(
        &mut self,
        (client, document): (u32, u16),
        run: &Run,
        log: &DocumentLog,
        findings: &mut Findings<'_>,
    ) {
        let last = run.first + u64::from(run.count) - u64::from(run.count > 0);
        let mut wrong = |rule, found: String| findings.add(rule, document, &[run.first, last], found);
        if run.first > self.have + 1 {
            let found = format!("client {client} has {} and was not told of what is between", self.have);
            wrong(Rule::DeliveredInOrder, found);
        }
        self.have = self.have.max(last);
        let Some(entry) = log.at(last) else {
            let found = format!("client {client} was sent what the log does not have");
            wrong(Rule::DeliveredInOrder, found);
            return;
        };
        if entry.chain != run.chain {
            let found = format!("client {client} was sent other entries than the log has, or another order");
            wrong(Rule::DeliveredInOrder, found);
        }
        // The last of a run was committed last.
        if let Some(committed) = entry.committed
            && run.at < committed
        {
            let found = format!("client {client} was sent it {} us before its commit", committed - run.at);
            wrong(Rule::AfterCommit, found);
        }
    }
}
