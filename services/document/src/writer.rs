//! The loop of one partition: take what waits, admit, append, release.
//!
//! One append is under way at a time, and while it is, the mailbox fills: so an idle partition appends one op
//! and a busy one many. Opens and reads are answered between appends and so never see what is not durable.
//! Everything that takes long and is not the append, reading from the log above all, runs beside the loop.

mod house;
mod questions;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use manyhands_bus::{Message, Topic};
use manyhands_crdt::{Admission, Applied, ChangeRef, Refusal};
use manyhands_history::{Appended, Lease};
use manyhands_process::telemetry;
use manyhands_proto::{DocumentName, Offset, v1};
use prost::Message as _;
use tracing::{Instrument, Span};

use crate::aside::{Aside, Drawn};
use crate::mailbox::{Asked, Done, Mailbox, Ticket, Turn};
use crate::node::{Clock, Shared, Term};
use crate::partition::{Admitted, Delta, Partition, Released, RequestLimits};
use crate::request::{Submit, Submitted};
use crate::residency::Residency;
use crate::resident::Outcome;
use crate::tips::Tips;

/// How long what is noted as published may lag behind.
const NOTE_AFTER: Duration = Duration::from_secs(1);

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
    /// What was drawn for documents that have no entry and left memory: whoever opened one may still write to it.
    drawn: BTreeMap<DocumentName, Drawn>,
    published: Published,
    sweep_at: Duration,
    /// What this partition has added to the node's count of bytes in memory.
    counted_bytes: usize,
    counted_documents: usize,
}

/// How far the bus has been told, and how far the log knows of that.
struct Published {
    told: Offset,
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
        let (rules, apply) = (shared.rules.clone(), shared.apply);
        let partition = Partition::new(lease.partition(), lease.epoch(), lease.head(), limits, rules, apply);
        let published = Published { told: lease.head(), noted: lease.published(), due: None, busy: false };
        Writer {
            residency: Residency::new(shared.config.memory.waiting_max),
            aside: Aside::new(shared.clone(), lease.partition()),
            shared,
            lease,
            term,
            mailbox,
            partition,
            tips: Tips::default(),
            drawn: BTreeMap::new(),
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
            let released = if admitted.needs_append() {
                let Some(appended) = self.append(&admitted).await else { break };
                admitted.release(appended)
            } else {
                admitted.settle()
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
        // Between release and the next admission, memory is what is durable.
        self.published.told = self.partition.head();
        self.published.due.get_or_insert(now + NOTE_AFTER);
    }

    fn publish_delta(&self, delta: Delta) {
        let Delta { document, incarnation, run, trace } = delta;
        // Its first entry is what makes an incarnation the document's: whoever opened it before may have another.
        let document = if run.first_seq == 1 { document.to_string() } else { String::new() };
        let epoch = self.lease.epoch().0;
        let delta = v1::BusDelta { epoch, incarnation: incarnation.0, run: Some(run), document };
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
}

/// Applies a change and turns a panic into an outcome, so that it costs one document its place in memory and
/// nobody anything else.
pub(crate) fn apply(
    state: &mut manyhands_crdt::Document,
    change: ChangeRef<'_>,
    admission: &Admission,
) -> Outcome {
    guarded(|| state.admit(change, admission))
}

fn guarded(merge: impl FnOnce() -> Result<Applied, Refusal>) -> Outcome {
    match catch_unwind(AssertUnwindSafe(merge)) {
        Ok(Ok(applied)) => Outcome::Applied(applied),
        Ok(Err(refusal)) => Outcome::Refused(refusal),
        Err(_) => Outcome::Panicked,
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use manyhands_bus::{Limits, LocalBus};
    use manyhands_crdt::{Document as State, PushWriter, ReplicaId};
    use manyhands_history::{EventLog, Member, MemoryLog};
    use manyhands_proto::{Code, Incarnation, NodeId, PartitionId, Seq};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::config::Config;
    use crate::node::Node;
    use crate::request::{Grant, Open, Opened};
    use crate::schema::Schemas;

    /// Merging, with a fault planted in it.
    fn breakable(state: &mut State, change: ChangeRef<'_>, admission: &Admission) -> Outcome {
        guarded(|| {
            assert!(!change.body.windows(6).any(|bytes| bytes == b"BREAK!"), "planted");
            state.admit(change, admission)
        })
    }

    fn submit(incarnation: Incarnation, replica: u64, texts: &[&str]) -> Submit<()> {
        let mut state = State::new();
        let mut push = PushWriter::new();
        for text in texts {
            let mut edit = state.edit(ReplicaId(replica));
            edit.insert("page", 0, text).unwrap();
            push.push(0, &edit.commit(0).unwrap().body);
        }
        Submit {
            document: DocumentName::from_str("demo").unwrap(),
            incarnation,
            replica: ReplicaId(replica),
            first_counter: 0,
            count: push.count(),
            changes: Bytes::from(push.finish()),
            grant: grant(),
            trace: None,
            known: Vec::new(),
            ticket: (),
        }
    }

    fn grant() -> Grant {
        Grant {
            subject: "ann".to_owned(),
            scopes: vec!["write".to_owned()],
            workspaces: vec!["*".to_owned()],
            expires_at_ms: u64::MAX,
        }
    }

    fn open_of(document: &DocumentName) -> Open {
        Open {
            document: document.clone(),
            replica: None,
            have: None,
            heads: Vec::new(),
            strategy: None,
            grant: grant(),
        }
    }

    async fn open(node: &Node) -> Opened {
        let document = DocumentName::from_str("demo").unwrap();
        let asked = || open_of(&document);
        loop {
            match node.ask(&document, |ticket| Asked::Open(asked(), ticket)).await {
                Ok(opened) => return opened,
                Err(refused) => assert_eq!(refused.code, Code::NotOwner),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_change_that_panics_is_refused_and_everything_else_goes_on() {
        let log = Arc::new(MemoryLog::new());
        let bus = Arc::new(LocalBus::new(Limits::default()));
        let node = Arc::new(Node::new(Config::default(), Schemas::default(), log, bus, breakable));
        let running = node.clone();
        let running = tokio::spawn(async move {
            running.run(String::new(), None, std::future::pending()).await;
        });
        let position = open(&node).await.header.position.unwrap();
        let incarnation = Incarnation(position.incarnation);

        let poison = node.submit(submit(incarnation, 9, &["fine", "BREAK!"])).await.unwrap();
        let rejection = poison.rejection.unwrap();
        assert_eq!((poison.next_counter, rejection.counter, rejection.code), (4, 4, Code::Internal));
        // The document comes back from the log, with what was good and without the rest.
        let opened = open(&node).await;
        assert_eq!(State::decode(&opened.state).unwrap().text("page").unwrap().to_string(), "fine");
        let answer = node.submit(submit(incarnation, 8, &["on"])).await.unwrap();
        assert_eq!(answer, Submitted { next_counter: 2, seq: Seq(2), rejection: None });
        running.abort();
    }

    /// As after a pause: the loop wakes up before anybody could tell it to end.
    // enforces: I-2
    #[tokio::test]
    async fn a_writer_whose_lease_ran_out_answers_nothing() {
        let document = DocumentName::from_str("demo").unwrap();
        let partition = PartitionId::of(&document);
        let member = Member { node: NodeId("a".to_owned()), address: String::new() };
        let log = Arc::new(MemoryLog::new());
        let leases = log.claim(&member, &[partition], Duration::from_secs(60)).await.unwrap();
        let bus = Arc::new(LocalBus::new(Limits::default()));
        let shared = Node::new(Config::default(), Schemas::default(), log, bus, apply).shared;
        for (term, answered) in [(Duration::from_secs(60), true), (Duration::ZERO, false)] {
            let (mailbox, batch) = (&shared.config.mailbox, shared.config.batch.clone());
            let (desk, mailbox) = Mailbox::new(mailbox, batch, CancellationToken::new());
            let open = open_of(&document);
            let (reply, answer) = tokio::sync::oneshot::channel();
            desk.put(Asked::Open(open, Ticket::new(reply, None))).unwrap();
            let term = Term::new(shared.clock, term);
            let writer = Writer::new(shared.clone(), leases[0].clone(), term, mailbox);
            let running = tokio::spawn(writer.run());
            assert_eq!(answer.await.is_ok(), answered);
            running.abort();
        }
    }
}
