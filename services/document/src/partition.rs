//! One partition's decisions: which changes are right, and what place they get. Pure.
//!
//! [`Partition::admit`] decides, merges and numbers; the result is an [`Admitted`], which nobody outside this
//! file can look into for answers or deltas. The only ways to those are [`Admitted::release`], which takes the
//! log's proof that the batch is durable, and [`Admitted::settle`], which works only when there is nothing to
//! make durable. So memory may be ahead of the log for one batch, and nothing can see it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use manyhands_crdt::{Admission, BODY_FORMAT, ChangeRef, read_push};
use manyhands_history::{Appended, Batch, Entry, Strategy};
use manyhands_proto::{Code, DocumentName, Epoch, Incarnation, Offset, PartitionId, Seq, v1};

use crate::refusal::{Why, explain};
use crate::request::{Answer, KnownChange, Refused, Rejection, Scope, Submit, Submitted};
use crate::resident::{Apply, Known, Outcome, Resident};
use crate::run::RunWriter;
use crate::schema::Schemas;

/// How often a document may break the merging before its writes are refused.
const BREAKS_MAX: u32 = 2;
/// Documents whose breaks are remembered.
const BROKEN_DOCUMENTS_MAX: usize = 1024;
/// Most bytes of one delta.
const DELTA_BYTES: usize = 128 * 1024;

/// What one request may hold.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    /// Changes.
    pub changes_max: u32,
    /// Bytes of them.
    pub bytes_max: usize,
}

/// What a change may say.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// How far ahead of the owner's time a stamp may be, in milliseconds.
    pub clock_ahead_max_ms: u64,
    /// What may be in the root maps of documents that merge by the strategy `server`.
    pub schemas: Arc<Schemas>,
}

/// The documents of one partition that are in memory, and where the partition's log stands.
pub struct Partition {
    id: PartitionId,
    epoch: Epoch,
    head: Offset,
    limits: RequestLimits,
    rules: Rules,
    apply: Apply,
    documents: BTreeMap<DocumentName, Resident>,
    broken: BTreeMap<DocumentName, u32>,
}

impl Partition {
    /// A partition as its lease finds it, with nothing in memory.
    #[must_use]
    pub fn new(
        id: PartitionId,
        epoch: Epoch,
        head: Offset,
        limits: RequestLimits,
        rules: Rules,
        apply: Apply,
    ) -> Partition {
        let (documents, broken) = (BTreeMap::new(), BTreeMap::new());
        Partition { id, epoch, head, limits, rules, apply, documents, broken }
    }

    /// Decides about requests in the order in which they came. A request for a document that is not in memory
    /// is answered with `Unavailable`.
    pub fn admit<T>(&mut self, now_ms: u64, requests: Vec<Submit<T>>) -> Admitted<T> {
        let mut admitted = Admitted {
            partition: self.id,
            epoch: self.epoch,
            expected: self.head,
            batch: Batch::default(),
            answers: Vec::with_capacity(requests.len()),
            runs: Vec::new(),
            lookups: Vec::new(),
            broken: Vec::new(),
        };
        for request in requests {
            match self.admit_one(now_ms, &request, &mut admitted) {
                Ok(answer) => admitted.answers.push((request.ticket, answer)),
                Err(Lookups(counters)) => admitted.lookups.push((request, counters)),
            }
        }
        self.head = admitted.head();
        admitted
    }

    /// Where the log will stand when everything that was admitted is durable.
    #[must_use]
    pub fn head(&self) -> Offset {
        self.head
    }

    /// Takes a document that was loaded from the log, or is new.
    pub fn insert(&mut self, document: Resident) {
        self.documents.insert(document.record().name.clone(), document);
    }

    /// Drops a document from memory.
    pub fn remove(&mut self, document: &DocumentName) {
        self.documents.remove(document);
    }

    /// A document, if it is in memory.
    #[must_use]
    pub fn document(&self, name: &DocumentName) -> Option<&Resident> {
        self.documents.get(name)
    }

    /// The same, to answer from it.
    pub fn document_mut(&mut self, name: &DocumentName) -> Option<&mut Resident> {
        self.documents.get_mut(name)
    }

    fn admit_one<T>(
        &mut self,
        now_ms: u64,
        request: &Submit<T>,
        admitted: &mut Admitted<T>,
    ) -> Result<Answer, Lookups> {
        let (name, apply, rules) = (&request.document, self.apply, self.rules.clone());
        let document = match self.check(now_ms, request) {
            Ok(document) => document,
            Err(refused) => return Ok(Err(refused)),
        };
        let next_counter = document.state().next_counter(request.replica);
        let mut submitted = Submitted { next_counter, seq: Seq(0), rejection: None };
        let reject = |mut submitted: Submitted, counter, next_counter, why: Why| {
            // What the log has at the refused counter, and after it, is not what was asked for.
            submitted.next_counter = submitted.next_counter.min(counter);
            let Why { code, message, current } = why;
            submitted.rejection = Some(Rejection { counter, code, message, next_counter, current });
            Ok(Ok(submitted))
        };
        if document.subject(request.replica).is_some_and(|subject| subject != request.grant.subject) {
            let why = Why::from(Code::ReplicaTaken);
            return reject(submitted, request.first_counter, next_counter, why);
        }
        let lookups = lookups(document, request, next_counter);
        if !lookups.is_empty() {
            return Err(Lookups(lookups));
        }

        // Time does not go back in a document, whoever owns it.
        let server_ms = document.time_ms().max(now_ms);
        let stamp_max = server_ms.saturating_add(rules.clock_ahead_max_ms).saturating_mul(1_000);
        let admission = Admission { stamp_max: Some(stamp_max) };
        let schema = match document.record().strategy {
            Strategy::Server => rules.schemas.of(name),
            Strategy::Crdt | Strategy::Lww => None,
        };
        let mut counter = request.first_counter;
        for change in read_push(request.replica, request.first_counter, request.count, &request.changes) {
            let next_counter = document.state().next_counter(request.replica);
            let decided = match change {
                Err(malformed) => Err(Why::new(Code::Malformed, malformed.to_string())),
                Ok((change, after)) if change.counter < next_counter => {
                    compare(document, &change, after, next_counter, &request.known)
                        .map(|known| (known.seq, after))
                }
                Ok((change, _)) if change.base > document.position().seq.0 => Err(Why::new(
                    Code::MissingReference,
                    format!("base {} is newer than the document, {}", change.base, document.position().seq),
                )),
                Ok((change, _)) => {
                    let next = change.counter == next_counter;
                    let checked = schema.filter(|_| next).map_or(Ok(()), |schema| schema.check(change.body));
                    let subject = &request.grant.subject;
                    match checked.map(|()| document.admit(change, subject, now_ms, &admission, apply)) {
                        Ok(Ok(numbered)) => {
                            let place = (numbered.seq, numbered.next_counter);
                            admitted.enter(document, change, subject, numbered, &request.trace);
                            Ok(place)
                        }
                        Ok(Err(Outcome::Refused(refusal))) => Err(explain(refusal, server_ms)),
                        Ok(Err(_)) => {
                            self.broke(name, admitted);
                            let why = Why::new(Code::Internal, "merging this change failed");
                            return reject(submitted, counter, next_counter, why);
                        }
                        Err(violation) => Err(Why::from(violation)),
                    }
                }
            };
            match decided {
                Ok((seq, after)) => {
                    submitted.seq = seq;
                    submitted.next_counter = after;
                    counter = after;
                }
                Err(why) => return reject(submitted, counter, next_counter, why),
            }
        }
        Ok(Ok(submitted))
    }

    /// What must be right about the request as a whole.
    fn check<T>(&mut self, now_ms: u64, request: &Submit<T>) -> Result<&mut Resident, Refused> {
        let name = &request.document;
        request.grant.check(now_ms, name, Scope::Write)?;
        if request.count == 0 {
            return Err(Refused::new(Code::Malformed, "the request holds no change"));
        }
        let RequestLimits { changes_max, bytes_max } = self.limits;
        if request.count > changes_max || request.changes.len() > bytes_max {
            return Err(Refused::new(
                Code::TooLarge,
                format!("one request holds at most {changes_max} changes and {bytes_max} bytes"),
            ));
        }
        if self.broken.get(name).is_some_and(|&breaks| breaks >= BREAKS_MAX) {
            return Err(Refused::new(
                Code::Internal,
                "this document's writes are stopped: merging them failed",
            ));
        }
        let Some(document) = self.documents.get_mut(name) else {
            return Err(Refused::later(Code::Unavailable, 100));
        };
        if document.record().incarnation != request.incarnation {
            return Err(Refused::from(Code::HistoryReset));
        }
        Ok(document)
    }

    /// Merging a change broke the document's state in memory: it leaves, and comes back from the log, where
    /// the change is not. When it goes on breaking, its writes stop; the partition goes on.
    fn broke<T>(&mut self, name: &DocumentName, admitted: &mut Admitted<T>) {
        self.documents.remove(name);
        if self.broken.len() >= BROKEN_DOCUMENTS_MAX {
            self.broken.pop_first();
        }
        *self.broken.entry(name.clone()).or_default() += 1;
        admitted.broken.push(name.clone());
    }
}

/// Counters of changes that only the log can compare.
struct Lookups(Vec<u64>);

/// The request's changes that the document has, that memory no longer knows, and that the log was not asked
/// about yet.
fn lookups<T>(document: &Resident, request: &Submit<T>, next_counter: u64) -> Vec<u64> {
    if request.first_counter >= next_counter {
        return Vec::new();
    }
    read_push(request.replica, request.first_counter, request.count, &request.changes)
        .map_while(|change| change.ok().map(|(change, _)| change.counter))
        .take_while(|&counter| counter < next_counter)
        .filter(|&counter| document.known(request.replica, counter) == Known::Older)
        .filter(|&counter| request.known.iter().all(|&(known, _)| known != counter))
        .collect()
}

/// Compares a change that the document has with what it has.
fn compare(
    document: &Resident,
    change: &ChangeRef<'_>,
    after: u64,
    next_counter: u64,
    from_log: &[(u64, Option<KnownChange>)],
) -> Result<KnownChange, Why> {
    let known = match document.known(change.replica, change.counter) {
        Known::Here(known) => Some(known),
        Known::Elsewhere => None,
        Known::Older => {
            from_log.iter().find(|(counter, _)| *counter == change.counter).and_then(|(_, known)| *known)
        }
    };
    let same = known.filter(|known| {
        after <= next_counter && document.state().hash_of(*change).is_ok_and(|(_, hash)| hash == known.hash)
    });
    same.ok_or_else(|| Why::from(Code::Fork))
}

/// A batch that was decided and merged and is not durable yet, with the answers and deltas that follow once
/// it is.
#[must_use = "what was admitted is in memory and must be appended, or the memory dropped"]
pub struct Admitted<T> {
    partition: PartitionId,
    epoch: Epoch,
    expected: Offset,
    batch: Batch,
    answers: Vec<(T, Answer)>,
    runs: Vec<Run>,
    lookups: Vec<(Submit<T>, Vec<u64>)>,
    broken: Vec<DocumentName>,
}

/// What may be let out.
#[derive(Debug)]
pub struct Released<T> {
    /// To those who asked, in the order in which they asked.
    pub answers: Vec<(T, Answer)>,
    /// To everybody who has the documents open.
    pub deltas: Vec<Delta>,
}

/// New entries of one document.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    /// Which document.
    pub document: DocumentName,
    /// In which history.
    pub incarnation: Incarnation,
    /// The entries.
    pub run: v1::EntryRun,
    /// The W3C trace context of the first request that they came from.
    pub trace: Option<String>,
}

struct Run {
    document: DocumentName,
    incarnation: Incarnation,
    entries: RunWriter,
    trace: Option<String>,
}

impl<T> Admitted<T> {
    /// The head that the log must have for this batch to follow.
    #[must_use]
    pub fn expected(&self) -> Offset {
        self.expected
    }

    /// What is to be appended.
    #[must_use]
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// The requests that cannot be decided before the log was asked for the replica's changes at the given
    /// counters. They come back through [`Partition::admit`] with [`Submit::known`] filled in.
    pub fn take_lookups(&mut self) -> Vec<(Submit<T>, Vec<u64>)> {
        std::mem::take(&mut self.lookups)
    }

    /// Documents that merging broke; they are no longer in memory.
    #[must_use]
    pub fn broken(&self) -> &[DocumentName] {
        &self.broken
    }

    /// Where the first answer will go.
    pub(crate) fn first_ticket(&self) -> Option<&T> {
        self.answers.first().map(|(ticket, _)| ticket)
    }

    /// Answers and deltas, now that the batch is durable.
    ///
    /// # Panics
    /// When the proof is of another batch.
    pub fn release(self, appended: Appended) -> Released<T> {
        let proven = (appended.partition(), appended.epoch(), appended.head());
        assert_eq!(proven, (self.partition, self.epoch, self.head()), "the proof is of another batch");
        self.let_out()
    }

    /// Whether there is something to append first.
    #[must_use]
    pub fn needs_append(&self) -> bool {
        !self.batch.entries.is_empty()
    }

    /// The answers, when nothing has to be made durable for them: everything that they say is durable was so
    /// before.
    ///
    /// # Panics
    /// When there is something to append.
    pub fn settle(self) -> Released<T> {
        assert!(!self.needs_append(), "nothing is let out before its append");
        self.let_out()
    }

    fn let_out(self) -> Released<T> {
        let deltas = self.runs.into_iter().flat_map(|Run { document, incarnation, entries, trace }| {
            entries.finish().into_iter().map(move |run| Delta {
                document: document.clone(),
                incarnation,
                run,
                trace: trace.clone(),
            })
        });
        Released { deltas: deltas.collect(), answers: self.answers }
    }

    fn head(&self) -> Offset {
        Offset(self.expected.0 + self.batch.entries.len() as u64)
    }

    /// Takes a numbered change into the batch.
    fn enter(
        &mut self,
        document: &Resident,
        change: ChangeRef<'_>,
        subject: &str,
        numbered: crate::resident::Numbered,
        trace: &Option<String>,
    ) {
        let record = document.record();
        let outgoing = &numbered.outgoing;
        if numbered.seq == Seq(1) {
            self.batch.created.push(record.clone());
        }
        self.batch.entries.push(Entry {
            offset: self.head().next(),
            incarnation: record.incarnation,
            seq: numbered.seq,
            replica: change.replica,
            subject: outgoing.new.is_some().then(|| subject.to_owned()),
            counter: change.counter,
            base: outgoing.base,
            hash: numbered.hash,
            chain: numbered.chain,
            time_ms: numbered.time_ms,
            format: BODY_FORMAT,
            body: Bytes::clone(&outgoing.body),
        });
        let at = match self.runs.iter().position(|run| run.incarnation == record.incarnation) {
            Some(at) => at,
            None => {
                self.runs.push(Run {
                    document: record.name.clone(),
                    incarnation: record.incarnation,
                    entries: RunWriter::new(Seq(numbered.seq.0 - 1), DELTA_BYTES),
                    trace: trace.clone(),
                });
                self.runs.len() - 1
            }
        };
        self.runs[at].entries.push(outgoing);
    }
}
