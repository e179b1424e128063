//! The loop of one partition: take what waits, admit, append, release.
//!
//! One append is under way at a time, and while it is, the mailbox fills: so an idle partition appends one op
//! and a busy one many. Opens and reads are answered between appends and so never see what is not durable.
//! Everything that takes long and is not the append, reading from the log above all, runs beside the loop.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use manyhands_bus::{Message, Topic};
use manyhands_crdt::ChangeRef;
use manyhands_history::{Appended, Lease};
use manyhands_process::telemetry;
use manyhands_proto::{Code, DocumentName, Offset, Position, v1};
use prost::Message as _;
use tracing::{Instrument, Span};

use crate::aside::Aside;
use crate::grpc::PART_BYTES;
use crate::mailbox::{Asked, Done, Mailbox, Ticket, Turn, overloaded};
use crate::node::{Clock, Shared, Term};
use crate::partition::{Admitted, Delta, Partition, Released, RequestLimits};
use crate::request::{Open, Opened, Read, Refused, Scope, Submit, Submitted, wire_position};
use crate::residency::{Arrival, Residency};
use crate::resident::{Opening, Outcome};
use crate::tips::Tips;

/// How far what is noted as published may lag behind, in time and in entries.
const NOTE_AFTER: Duration = Duration::from_secs(1);
const NOTE_ENTRIES: u64 = 1000;
/// How often documents are looked through for idle ones.
const SWEEP: Duration = Duration::from_secs(5);
/// Tasks that one partition has at the same time; who needs another is told to come back.
const TASKS_MAX: usize = 256;
/// Positions in one announcement.
const TIPS_MAX: usize = 256;

/// What the loop of one partition owns.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    lease: Lease,
    /// Until when the lease allows to serve.
    term: Term,
    mailbox: Mailbox,
    partition: Partition,
    residency: Residency<Asked>,
    aside: Aside,
    tips: Tips,
    published: Published,
    sweep_at: Duration,
    /// What this partition has added to the node's count of bytes in memory.
    counted_bytes: usize,
    counted_documents: usize,
}

/// How far the bus has been told, and how far the log knows of that.
struct Published {
    noted: Offset,
    due: Option<Duration>,
    /// Before the first note, what an earlier owner left is announced.
    busy: bool,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, lease: Lease, term: Term, mailbox: Mailbox) -> Writer {
        let limits = &shared.config.limits;
        let limits =
            RequestLimits { changes_max: limits.submit_changes_max, bytes_max: limits.submit_bytes_max };
        let partition = Partition::new(lease.partition(), lease.epoch(), lease.head(), limits, shared.apply);
        let published = Published { noted: lease.published(), due: None, busy: false };
        Writer {
            residency: Residency::new(shared.config.memory.waiting_max),
            aside: Aside::new(shared.clone(), lease.partition()),
            shared,
            lease,
            term,
            mailbox,
            partition,
            tips: Tips::default(),
            published,
            sweep_at: Duration::ZERO,
            counted_bytes: 0,
            counted_documents: 0,
        }
    }

    /// Serves the partition until it is told to end, its lease runs out or the log refuses an append. What
    /// memory held is then forgotten; what was not answered is asked again elsewhere.
    pub(crate) async fn run(mut self) {
        self.republish();
        while let Some(turn) = self.mailbox.take(self.wake()).await {
            if self.term.is_over() {
                break;
            }
            let (changes, questions) = self.sort(turn);
            let mut admitted = self.admit(changes);
            self.look_up(&mut admitted);
            let released = match admitted.settle() {
                Ok(released) => released,
                Err(admitted) => match self.append(&admitted).await {
                    Some(appended) => admitted.release(appended),
                    None => break,
                },
            };
            self.send(released);
            self.answer(questions);
            self.keep_house();
        }
        self.end().await;
    }

    fn admit(&mut self, changes: Vec<Submit<Ticket<Submitted>>>) -> Admitted<Ticket<Submitted>> {
        let mut spans = changes.iter().map(|submit| &submit.ticket.span);
        let span = match spans.next() {
            Some(first) => tracing::info_span!(parent: first, "document.admit", requests = changes.len()),
            None => Span::none(),
        };
        spans.for_each(|other| {
            span.follows_from(other);
        });
        let admitted = span.in_scope(|| self.partition.admit(Clock::unix_ms(), changes));
        for document in admitted.broken() {
            tracing::error!(%document, "merging a change panicked; the document is loaded anew");
            self.residency.forget(document);
        }
        admitted
    }

    /// Makes the batch durable. `None`: it is not known to be, and this writer is no longer the one to say.
    async fn append(&self, admitted: &Admitted<Ticket<Submitted>>) -> Option<Appended> {
        let batch = admitted.batch();
        let bytes: usize = batch.entries.iter().map(|entry| entry.body.len()).sum();
        metrics::histogram!("manyhands_append_batch_entries").record(batch.entries.len() as f64);
        metrics::histogram!("manyhands_append_batch_bytes").record(bytes as f64);
        let parent = admitted.first_ticket().map_or(Span::none(), |ticket| ticket.span.clone());
        let span = tracing::info_span!(parent: &parent, "log.append", entries = batch.entries.len(), bytes);
        let started = tokio::time::Instant::now();
        let appended = self.shared.log.append(&self.lease, admitted.expected(), batch).instrument(span).await;
        metrics::histogram!("manyhands_append_seconds").record(started.elapsed().as_secs_f64());
        appended
            .inspect_err(|error| {
                metrics::counter!("manyhands_document_appends_refused_total").increment(1);
                tracing::warn!(partition = %self.lease.partition(), %error, "the partition is given up");
            })
            .ok()
    }

    /// Answers first, then deltas.
    fn send(&mut self, released: Released<Ticket<Submitted>>) {
        let Released { answers, deltas } = released;
        let parent = answers.first().map_or(Span::none(), |(ticket, _)| ticket.span.clone());
        for (ticket, answer) in answers {
            ticket.answer(answer);
        }
        if deltas.is_empty() {
            return;
        }
        let now = self.shared.clock.now();
        tracing::info_span!(parent: &parent, "bus.publish", deltas = deltas.len()).in_scope(|| {
            for delta in deltas {
                self.tips.changed(now, &delta.document);
                self.resize(&delta.document);
                self.publish_delta(delta);
            }
        });
        self.published.due.get_or_insert(now + NOTE_AFTER);
    }

    fn publish_delta(&self, delta: Delta) {
        let Delta { incarnation, run, trace, .. } = delta;
        let delta = v1::BusDelta { epoch: self.lease.epoch().0, incarnation: incarnation.0, run: Some(run) };
        self.publish(v1::bus_message::Message::Delta(delta), telemetry::traceparent().or(trace));
    }

    fn publish(&self, message: v1::bus_message::Message, traceparent: Option<String>) {
        let payload = Bytes::from(v1::BusMessage { message: Some(message) }.encode_to_vec());
        let topic = Topic::Deltas(self.lease.partition());
        self.shared.bus.publish(topic, Message { payload, traceparent });
    }

    /// Takes in what was done on the side, and parts changes whose documents are in memory from questions.
    fn sort(&mut self, turn: Turn) -> (Vec<Submit<Ticket<Submitted>>>, Vec<Asked>) {
        let mut changes = Vec::new();
        let mut questions = Vec::new();
        for asked in turn.asked {
            match asked {
                Asked::Submit(_) => match self.arrive(asked) {
                    Some(Asked::Submit(submit)) => changes.push(submit),
                    Some(question) => questions.push(question),
                    None => {}
                },
                question => questions.push(question),
            }
        }
        for done in turn.done {
            match done {
                Done::Loaded(document, Ok(resident)) => {
                    let waited = self.residency.loaded(self.shared.clock.now(), &document, resident.bytes());
                    self.partition.insert(*resident);
                    self.mailbox.put_back(waited);
                }
                Done::Loaded(document, Err(refused)) => {
                    for asked in self.residency.forget(&document) {
                        asked.refuse(refused.clone());
                    }
                }
                Done::LookedUp(submit) => self.mailbox.put_back([Asked::Submit(submit)]),
                Done::Noted | Done::Republished => self.published.busy = false,
                Done::Answered => {}
            }
        }
        (changes, questions)
    }

    /// Gives back a request whose document is in memory; has the document loaded for the others.
    fn arrive(&mut self, asked: Asked) -> Option<Asked> {
        let document = asked.document().clone();
        match self.residency.arrive(self.shared.clock.now(), &document, asked) {
            Arrival::Resident(asked) => return Some(asked),
            Arrival::Waits => {}
            Arrival::Full(asked) => asked.refuse(overloaded()),
            Arrival::Load if self.is_busy() => {
                for asked in self.residency.forget(&document) {
                    asked.refuse(overloaded());
                }
            }
            Arrival::Load => {
                let aside = self.aside.clone();
                self.mailbox.tasks.spawn(async move { aside.load(document).await });
            }
        }
        None
    }

    fn is_busy(&self) -> bool {
        self.mailbox.tasks.len() >= TASKS_MAX
    }

    /// Asks the log about changes that are older than memory remembers.
    fn look_up(&mut self, admitted: &mut Admitted<Ticket<Submitted>>) {
        for (submit, counters) in admitted.take_lookups() {
            if self.is_busy() {
                submit.ticket.answer(Err(overloaded()));
                continue;
            }
            let aside = self.aside.clone();
            self.mailbox.tasks.spawn(async move { aside.look_up(submit, counters).await });
        }
    }

    /// Answers what asks for durable state, of which memory now holds nothing else.
    fn answer(&mut self, questions: Vec<Asked>) {
        for asked in questions {
            match self.arrive(asked) {
                Some(Asked::Open(open, ticket)) => self.answer_open(open, ticket),
                Some(Asked::Read(read, ticket)) => self.answer_read(&read, ticket),
                Some(Asked::Submit(_)) | None => {}
            }
        }
    }

    fn answer_open(&mut self, open: Open, ticket: Ticket<Opened>) {
        let Open { document: name, replica, have, grant } = open;
        if let Err(refused) = grant.check(Clock::unix_ms(), &name, Scope::Read) {
            return ticket.answer(Err(refused));
        }
        let Some(document) = self.partition.document_mut(&name) else {
            return ticket.answer(Err(Refused::later(Code::Unavailable, 100)));
        };
        let owner = replica.and_then(|replica| document.subject(replica));
        if owner.is_some_and(|subject| subject != grant.subject) {
            return ticket.answer(Err(Refused::from(Code::ReplicaTaken)));
        }
        let opening = document.open(self.lease.epoch(), replica, have, PART_BYTES);
        self.resize(&name);
        match opening {
            Opening::Ready(opened) => ticket.answer(Ok(opened)),
            Opening::FromLog(_) if self.is_busy() => ticket.answer(Err(overloaded())),
            Opening::FromLog(tail) => {
                let aside = self.aside.clone();
                self.mailbox.tasks.spawn(async move { aside.open(tail, ticket).await });
            }
        }
    }

    fn answer_read(&mut self, read: &Read, ticket: Ticket<(v1::EntryRun, Position)>) {
        if let Err(refused) = read.grant.check(Clock::unix_ms(), &read.document, Scope::Read) {
            return ticket.answer(Err(refused));
        }
        let Some(document) = self.partition.document(&read.document) else {
            return ticket.answer(Err(Refused::later(Code::Unavailable, 100)));
        };
        let tip = document.position();
        if read.incarnation != tip.incarnation || read.after > tip.seq {
            return ticket.answer(Err(Refused::from(Code::HistoryReset)));
        }
        match document.recent_after(read.after, read.bytes_max, true) {
            Some(runs) => ticket.answer(Ok((runs.into_iter().next().unwrap_or_default(), tip))),
            None if self.is_busy() => ticket.answer(Err(overloaded())),
            None => {
                let (aside, indices) = (self.aside.clone(), document.indices());
                let (after, bytes_max) = (read.after, read.bytes_max);
                self.mailbox
                    .tasks
                    .spawn(async move { aside.read(after, bytes_max, tip, indices, ticket).await });
            }
        }
    }

    /// When the loop has something to do though nobody asks.
    fn wake(&self) -> Option<tokio::time::Instant> {
        let published = self.published.due.filter(|_| !self.published.busy);
        let sweep = (!self.residency.is_empty()).then_some(self.sweep_at);
        let wake = [self.tips.deadline(), published, sweep].into_iter().flatten().min();
        wake.map(|at| self.shared.clock.instant(at))
    }

    fn keep_house(&mut self) {
        let now = self.shared.clock.now();
        let due = self.tips.due(now);
        self.announce(&due);
        self.note_published(now);
        if now >= self.sweep_at {
            self.sweep_at = now + SWEEP;
            self.evict(now);
        }
        self.count();
    }

    fn announce(&self, documents: &BTreeSet<DocumentName>) {
        let tips: Vec<v1::Position> = documents
            .iter()
            .filter_map(|name| self.partition.document(name))
            .map(|document| wire_position(&document.position()))
            .collect();
        for tips in tips.chunks(TIPS_MAX) {
            let tips = v1::BusTips { epoch: self.lease.epoch().0, tips: tips.to_vec() };
            self.publish(v1::bus_message::Message::Tips(tips), None);
        }
    }

    fn note_published(&mut self, now: Duration) {
        let head = self.partition.head();
        let due = self.published.due.is_some_and(|due| due <= now);
        let many = head.0 >= self.published.noted.0 + NOTE_ENTRIES;
        if self.published.busy || !(due || many) {
            return;
        }
        self.published = Published { noted: head, due: None, busy: true };
        let (log, lease) = (self.shared.log.clone(), self.lease.clone());
        self.mailbox.tasks.spawn(async move {
            if let Err(error) = log.published(&lease, head).await {
                tracing::debug!(%error, "what was published is not noted; the next note says it");
            }
            Done::Noted
        });
    }

    /// Announces the documents of the entries that the owner before may not have published: the edges that
    /// have them open fetch what they miss.
    fn republish(&mut self) {
        if self.lease.published() < self.lease.head() {
            self.published.busy = true;
            self.published.due = Some(self.shared.clock.now());
            let (aside, lease) = (self.aside.clone(), self.lease.clone());
            self.mailbox.tasks.spawn(async move { aside.republish(lease).await });
        }
    }

    fn resize(&mut self, name: &DocumentName) {
        if let Some(document) = self.partition.document(name) {
            self.residency.resized(name, document.bytes());
        }
    }

    /// Drops idle documents, and while the node holds too much, the least recently used.
    fn evict(&mut self, now: Duration) {
        let memory = &self.shared.config.memory;
        let excess = self.shared.resident_bytes.load(Ordering::Relaxed).saturating_sub(memory.bytes_max);
        for document in self.residency.evict(now.saturating_sub(memory.idle), excess) {
            self.partition.remove(&document);
        }
    }

    /// Keeps the node's sums of what is in memory.
    fn count(&mut self) {
        let (bytes, documents) = (self.residency.bytes(), self.residency.len());
        let add = |sum: &std::sync::atomic::AtomicUsize, counted: &mut usize, now: usize| {
            sum.fetch_add(now.wrapping_sub(*counted), Ordering::Relaxed);
            *counted = now;
        };
        add(&self.shared.resident_bytes, &mut self.counted_bytes, bytes);
        add(&self.shared.resident_documents, &mut self.counted_documents, documents);
        if self.shared.resident_bytes.load(Ordering::Relaxed) > self.shared.config.memory.bytes_max {
            self.sweep_at = self.shared.clock.now().min(self.sweep_at);
        }
    }

    async fn end(self) {
        let head = self.partition.head();
        // A stop in good order leaves nothing to republish; one without the lease is refused, and no matter.
        if head > self.published.noted && !self.term.is_over() {
            let _lost = self.shared.log.published(&self.lease, head).await;
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.resident_bytes.fetch_sub(self.counted_bytes, Ordering::Relaxed);
        self.shared.resident_documents.fetch_sub(self.counted_documents, Ordering::Relaxed);
    }
}

/// Applies a change and turns a panic into an outcome, so that it costs one document its place in memory and
/// nobody anything else.
pub(crate) fn apply(state: &mut manyhands_crdt::Document, change: ChangeRef<'_>) -> Outcome {
    match catch_unwind(AssertUnwindSafe(|| state.apply(change))) {
        Ok(Ok(applied)) => Outcome::Applied(applied),
        Ok(Err(refusal)) => Outcome::Refused(refusal),
        Err(_) => Outcome::Panicked,
    }
}
