//! Says whether a recorded run kept what is promised: one pass over its [`Event`]s, nothing but arithmetic.
//!
//! Every change writes something that nobody else writes, and the log numbers everything, so no search is
//! needed. What is kept meanwhile: for a log entry its chain hash, commit time, identity and token (about 90
//! bytes); for a client its position and what it sent and has not heard of. States and bodies are not kept.
//!
//! ```
//! use loadtest::checker::{Checker, Event, Options, Rule, Token};
//!
//! let mut checker = Checker::new(Options::default());
//! let token = Token { document: 0, writer: 0, number: 0 };
//! let (client, document, replica) = (1, 0, 7);
//! checker.take(&Event::Sent { client, document, replica, counter: 0, next_counter: 17, token });
//! checker.take(&Event::Acked { client, document, replica, next_counter: 17, at: 1_000 });
//! let verdict = checker.finish();
//! assert_eq!(verdict.violations[0].rule, Rule::AckedIsLogged, "the log has nothing");
//! ```

mod clients;
mod controls;
mod event;
mod log;
mod violation;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

pub use controls::{Control, controls};
pub use event::{Digest, Event, Micros, NoToken, Row, Token};
pub use violation::{Rule, Violation};

use clients::{Clients, View};
use log::{DocumentLog, PartitionLog};

/// What a run was promised beyond what always holds.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long after the last fault everything may take to be acknowledged and visible, in microseconds.
    pub settle_max: Micros,
    /// Violations that are kept; further ones are counted.
    pub violations_max: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { settle_max: 30_000_000, violations_max: 50 }
    }
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verdict {
    /// Rows of the log.
    pub rows: u64,
    /// Changes that were sent.
    pub sent: u64,
    /// Of them, those that were acknowledged.
    pub acked: u64,
    /// Those that were refused for good.
    pub refused: u64,
    /// Those whose author ended without an answer, and which the log has.
    pub unknown_logged: u64,
    /// Those whose author ended without an answer, and which the log does not have.
    pub unknown_absent: u64,
    /// Entries that were delivered, to all clients together.
    pub delivered: u64,
    /// States that were compared with the fold of the log.
    pub states: u64,
    /// Appends whose epoch is known.
    pub appends: u64,
    /// The greatest epoch of any partition.
    pub epoch_max: u64,
    /// How long after the last fault the last client had everything.
    pub settled: Micros,
    /// What is wrong, in the order in which it was found.
    pub violations: Vec<Violation>,
    /// Further violations that were not kept.
    pub violations_more: u64,
}

impl Verdict {
    /// Nothing is wrong.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.violations.is_empty()
    }
}

/// Takes the events of a run, in order.
#[derive(Debug, Default)]
pub struct Checker {
    options: Options,
    partitions: BTreeMap<u16, PartitionLog>,
    documents: BTreeMap<u16, DocumentLog>,
    clients: Clients,
    healed: Option<Micros>,
    verdict: Verdict,
}

/// Where violations go.
struct Findings<'a> {
    verdict: &'a mut Verdict,
    max: usize,
}

impl Findings<'_> {
    fn add(&mut self, rule: Rule, document: impl Into<Option<u16>>, seqs: &[u64], found: String) {
        if self.verdict.violations.len() < self.max {
            let violation = Violation { rule, document: document.into(), seqs: seqs.to_vec(), found };
            self.verdict.violations.push(violation);
        } else {
            self.verdict.violations_more += 1;
        }
    }
}

impl Checker {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(options: Options) -> Checker {
        Checker { options, ..Checker::default() }
    }

    /// Takes the next event.
    pub fn take(&mut self, event: &Event) {
        let max = self.options.violations_max;
        let mut findings = Findings { verdict: &mut self.verdict, max };
        match event {
            Event::Appended { partition, epoch, first, last } => {
                self.partitions.entry(*partition).or_default().appended(
                    *partition,
                    *epoch,
                    (*first, *last),
                    &mut findings,
                );
            }
            Event::Logged(row) => {
                self.partitions.entry(row.partition).or_default().logged(row, &mut findings);
                self.documents.entry(row.document).or_default().logged(row, &mut findings);
            }
            Event::Folded { document, seq, state } => {
                self.documents.entry(*document).or_default().folded.insert(*seq, *state);
            }
            Event::Sent { client, document, replica, counter, next_counter, token } => {
                findings.verdict.sent += 1;
                let log = self.documents.entry(*document).or_default();
                log.sent(*document, *replica, *counter, *next_counter, *token, &mut findings);
                self.clients.sent((*client, *document, *replica), *counter, *next_counter);
            }
            Event::Acked { client, document, replica, next_counter, at } => {
                let log = self.documents.entry(*document).or_default();
                let acked = self.clients.acked((*client, *document, *replica), *next_counter);
                for counter in acked {
                    findings.verdict.acked += 1;
                    log.acked(*document, *replica, counter, *at, &mut findings);
                }
            }
            Event::Refused { client, document, replica, from, returned } => {
                let log = self.documents.entry(*document).or_default();
                let refused = self.clients.refused((*client, *document, *replica), *from);
                findings.verdict.refused += refused.len() as u64;
                if *returned < refused.len() as u64 {
                    let found = format!(
                        "client {client}: {} changes were refused, {returned} came back",
                        refused.len()
                    );
                    findings.add(Rule::RefusedIsAbsent, *document, &[], found);
                }
                for counter in refused {
                    if let Some(entry) = log.find(*replica, counter) {
                        let seq = entry.seq;
                        let found = format!("client {client}: ({replica:016x}, {counter}) was refused");
                        findings.add(Rule::RefusedIsAbsent, *document, &[seq], found);
                    }
                }
            }
            Event::Gone { client } => self.clients.gone(*client),
            Event::Opened { client, document, incarnation, seq, chain, state } => {
                let log = self.documents.entry(*document).or_default();
                let told =
                    clients::Told { incarnation: *incarnation, seq: *seq, chain: *chain, state: *state };
                let view = self.clients.view(*client, *document);
                view.opened((*client, *document), &told, log, &mut findings);
            }
            Event::Delivered { client, document, first_seq, count, chain, at } => {
                findings.verdict.delivered += u64::from(*count);
                let log = self.documents.entry(*document).or_default();
                let run = clients::Run { first: *first_seq, count: *count, chain: *chain, at: *at };
                let view: &mut View = self.clients.view(*client, *document);
                view.delivered((*client, *document), &run, log, &mut findings);
            }
            Event::Healed { at } => self.healed = Some(*at),
            Event::Watched { client, document, at } => {
                let end = self.documents.entry(*document).or_default().end();
                let have = self.clients.view(*client, *document).have();
                if have != end {
                    let found = format!("client {client} was sent {have} of {end} entries");
                    findings.add(Rule::Settles, *document, &[], found);
                }
                self.settled(*client, *document, *at);
            }
            Event::Final { client, document, state, tokens, at } => {
                self.documents.entry(*document).or_default().is_final(
                    (*client, *document),
                    state,
                    tokens,
                    &mut findings,
                );
                self.settled(*client, *document, *at);
            }
        }
    }

    /// A client had everything at that time.
    fn settled(&mut self, client: u32, document: u16, at: Micros) {
        let took = self.healed.map_or(0, |healed| at.saturating_sub(healed));
        self.verdict.settled = self.verdict.settled.max(took);
        if took > self.options.settle_max {
            let max = self.options.violations_max;
            let found = format!("client {client} took {} ms after the last fault", took / 1000);
            Findings { verdict: &mut self.verdict, max }.add(Rule::Settles, document, &[], found);
        }
    }

    /// The end: says what came of it.
    #[must_use]
    pub fn finish(mut self) -> Verdict {
        let mut findings = Findings { verdict: &mut self.verdict, max: self.options.violations_max };
        for (partition, log) in &self.partitions {
            log.finish(*partition, &mut findings);
        }
        for ((client, document, replica), counter) in self.clients.unanswered() {
            let logged =
                self.documents.get(&document).is_some_and(|log| log.find(replica, counter).is_some());
            if logged {
                findings.verdict.unknown_logged += 1;
            } else {
                findings.verdict.unknown_absent += 1;
            }
            if !self.clients.is_gone(client) {
                let place = if logged { "in the log" } else { "not in the log" };
                let found =
                    format!("client {client} never heard of ({replica:016x}, {counter}), which is {place}");
                findings.add(Rule::Settles, document, &[], found);
            }
        }
        let known: BTreeSet<u16> = self.documents.keys().copied().collect();
        for (document, log) in &self.documents {
            log.finish(*document, &known, &mut findings);
        }
        self.verdict
    }
}

/// Checks a whole run.
pub fn check<'a>(events: impl IntoIterator<Item = &'a Event>, options: Options) -> Verdict {
    let mut checker = Checker::new(options);
    for event in events {
        checker.take(event);
    }
    checker.finish()
}
