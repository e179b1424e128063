//! What is done beside a partition's loop: reading from the log.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use manyhands_bus::{Message, Topic};
use manyhands_crdt::{Hash, Limits};
use manyhands_history::Strategy;
use manyhands_history::{DocumentRecord, Entry, Lease, LogError, ReadLimit};
use manyhands_proto::{Code, DocumentName, Incarnation, PartitionId, Position, Seq, v1};
use prost::Message as _;

use crate::grpc::PART_BYTES;
use crate::mailbox::{Done, Ticket};
use crate::node::Shared;
use crate::past::{Place, seen_through};
use crate::request::{KnownChange, Opened, Refused, Submit, Submitted, wire_position};
use crate::resident::{Corrupt, Have, LogTail, Resident};
use crate::run::{Indices, Outgoing, RunWriter};

/// One page of a replay.
const PAGE: ReadLimit = ReadLimit { entries_max: 4096, bytes_max: 1024 * 1024 };
/// When to ask again after the log could not be read, in milliseconds.
const UNREADABLE_RETRY_MS: u32 = 500;
/// Entries that are read first when heads are looked for backwards; twice as many then, and so on.
const STEP_BACK: u64 = 1024;
/// Pause before a republication is tried again.
const REPUBLISH_RETRY: Duration = Duration::from_millis(500);

/// Reads one partition's part of the log.
#[derive(Clone)]
pub(crate) struct Aside {
    shared: Arc<Shared>,
    partition: PartitionId,
}

impl Aside {
    pub(crate) fn new(shared: Arc<Shared>, partition: PartitionId) -> Aside {
        Aside { shared, partition }
    }

    /// Replays a document's log. A name without a log is a new document, whose incarnation is drawn here, unless
    /// it was `drawn` before, and becomes fixed by its first entry, like its strategy.
    pub(crate) async fn load(self, document: DocumentName, drawn: Option<Drawn>) -> Done {
        let loaded = self.replay(&document, drawn).await;
        if let Err(refused) = &loaded {
            tracing::error!(%document, code = %refused.code, why = refused.message, "a document was not loaded");
        }
        Done::Loaded(document, loaded)
    }

    async fn replay(&self, name: &DocumentName, drawn: Option<Drawn>) -> Result<Box<Resident>, Refused> {
        let _turn = self.shared.loads.acquire().await.map_err(|_| Refused::from(Code::ShuttingDown))?;
        let started = tokio::time::Instant::now();
        let limits = self.shared.config.limits.of_document();
        let Some(record) = self.shared.log.document(name).await.map_err(unreadable)? else {
            let default = self.shared.config.strategy;
            let drawn = drawn.unwrap_or_else(|| Drawn { record: new_record(name, default), settled: false });
            return Ok(Box::new(drawn.into_resident(limits)));
        };
        if record.strategy != Strategy::Server && self.shared.rules.schemas.of(name).is_some() {
            let strategy = record.strategy;
            tracing::warn!(document = %name, %strategy, "a schema is configured, but judges under `server` only");
        }
        let incarnation = record.incarnation;
        let mut resident = Box::new(Resident::new(record, limits));
        loop {
            let after = resident.position().seq;
            let page =
                self.shared.log.read(self.partition, incarnation, after, PAGE).await.map_err(unreadable)?;
            if page.is_empty() {
                metrics::histogram!("manyhands_document_load_seconds")
                    .record(started.elapsed().as_secs_f64());
                return Ok(resident);
            }
            // Merging a page takes milliseconds, which others should not wait for; and if it panics, it is
            // this document that cannot be read.
            let replayed = tokio::task::spawn_blocking(move || replay_page(resident, &page)).await;
            resident = replayed
                .map_err(|error| {
                    tracing::error!(document = %name, %error, "replaying a document failed");
                    Refused::from(Code::Corrupt)
                })?
                .map_err(|corrupt| Refused::new(Code::Corrupt, corrupt.to_string()))?;
        }
    }

    /// Fills in what the log knows about changes that memory does not remember.
    pub(crate) async fn look_up(self, mut submit: Submit<Ticket<Submitted>>, counters: Vec<u64>) -> Done {
        for counter in counters {
            let found =
                self.shared.log.find(self.partition, submit.incarnation, submit.replica, counter).await;
            match found {
                Ok(entry) => {
                    let known = entry.map(|Entry { hash, seq, .. }| KnownChange { counter, hash, seq });
                    submit.known.push((counter, known));
                }
                Err(error) => {
                    submit.ticket.answer(Err(unreadable(error)));
                    return Done::Answered;
                }
            }
        }
        Done::LookedUp(submit)
    }

    /// Answers an open from the log: with the tail if the asker's position proves to be a prefix.
    pub(crate) async fn open(self, tail: LogTail, ticket: Ticket<Opened>) -> Done {
        ticket.answer(self.tail_or_state(tail).await);
        Done::Answered
    }

    async fn tail_or_state(&self, tail: LogTail) -> Result<Opened, Refused> {
        let LogTail { have, through, indices, otherwise } = tail;
        let _turn = self.shared.reads.acquire().await.map_err(|_| Refused::from(Code::ShuttingDown))?;
        let have = match have {
            Have::Position(have) => have,
            Have::Heads(heads) => return self.tail_behind(&heads, &through, &indices, otherwise).await,
        };
        let read = |after, limit| self.shared.log.read(self.partition, through.incarnation, after, limit);
        if have.seq > Seq(0) {
            let one = ReadLimit { entries_max: 1, bytes_max: 1 };
            let newest = read(Seq(have.seq.0 - 1), one).await.map_err(unreadable)?;
            if newest.first().is_none_or(|entry| entry.seq != have.seq || entry.chain != have.chain) {
                return Ok(otherwise);
            }
        }
        let mut runs = RunWriter::new(have.seq, PART_BYTES);
        let (mut after, mut bytes) = (have.seq, 0);
        while after < through.seq {
            let limit = ReadLimit { entries_max: (through.seq.0 - after.0).min(4096) as usize, ..PAGE };
            let page = read(after, limit).await.map_err(unreadable)?;
            for entry in &page {
                bytes += entry.body.len();
                runs.push(&outgoing(entry, &indices)?);
                after = entry.seq;
            }
            if page.is_empty() {
                return Err(Refused::new(Code::Corrupt, format!("the log ends before seq {}", through.seq)));
            }
            // The estimate was wrong: what has been read already is more than the state.
            if bytes > otherwise.state.len() + PART_BYTES {
                return Ok(otherwise);
            }
        }
        Ok(with_tail(otherwise, runs))
    }

    /// The tail behind heads that memory does not remember: reads the log backwards until it has them all and
    /// what they are based on, or has read more than the state, which is the answer then, as it is for heads
    /// that nobody knows.
    async fn tail_behind(
        &self,
        heads: &BTreeSet<Hash>,
        through: &Position,
        indices: &Indices,
        otherwise: Opened,
    ) -> Result<Opened, Refused> {
        let mut newest: VecDeque<Entry> = VecDeque::new();
        let mut bytes = 0;
        let mut start = through.seq;
        let mut step = STEP_BACK;
        while start > Seq(0) && bytes <= otherwise.state.len() + PART_BYTES {
            let end = start;
            start = Seq(end.0.saturating_sub(step));
            step *= 2;
            let mut window = Vec::new();
            while window.last().map_or(start, |last: &Entry| last.seq) < end {
                let after = window.last().map_or(start, |last| last.seq);
                let limit = ReadLimit { entries_max: (end.0 - after.0).min(4096) as usize, ..PAGE };
                let page = self.shared.log.read(self.partition, through.incarnation, after, limit).await;
                let page = page.map_err(unreadable)?;
                if page.is_empty() {
                    return Err(Refused::new(Code::Corrupt, format!("the log ends before seq {end}")));
                }
                bytes += page.iter().map(|entry| entry.body.len()).sum::<usize>();
                window.extend(page);
            }
            window.into_iter().rev().for_each(|entry| newest.push_front(entry));
            let places = newest.iter().map(|&Entry { seq, replica, base, hash, .. }| Place {
                seq,
                replica,
                base,
                hash,
            });
            if let Some(seen) = seen_through(heads, start, places) {
                let mut runs = RunWriter::new(seen, PART_BYTES);
                for entry in newest.iter().filter(|entry| entry.seq > seen) {
                    runs.push(&outgoing(entry, indices)?);
                }
                return Ok(with_tail(otherwise, runs));
            }
        }
        Ok(otherwise)
    }

    /// Answers a read of entries that memory no longer has.
    pub(crate) async fn read(
        self,
        after: Seq,
        bytes_max: usize,
        tip: Position,
        indices: Arc<Indices>,
        ticket: Ticket<(v1::EntryRun, Position)>,
    ) -> Done {
        ticket.answer(self.run_after(after, bytes_max, tip, &indices).await.map(|run| (run, tip)));
        Done::Answered
    }

    async fn run_after(
        &self,
        after: Seq,
        bytes_max: usize,
        tip: Position,
        indices: &Indices,
    ) -> Result<v1::EntryRun, Refused> {
        let _turn = self.shared.reads.acquire().await.map_err(|_| Refused::from(Code::ShuttingDown))?;
        let limit = ReadLimit { entries_max: PAGE.entries_max, bytes_max };
        let page =
            self.shared.log.read(self.partition, tip.incarnation, after, limit).await.map_err(unreadable)?;
        let mut runs = RunWriter::new(after, usize::MAX);
        // What was appended since is not in the table of indices, and belongs to a later read.
        for entry in page.iter().take_while(|entry| entry.seq <= tip.seq) {
            runs.push(&outgoing(entry, indices)?);
        }
        Ok(runs.finish().into_iter().next().unwrap_or_default())
    }

    /// Announces the newest positions of the documents that have entries above what is known as published.
    pub(crate) async fn republish(self, lease: Lease) -> Done {
        let mut after = lease.published();
        while after < lease.head() {
            let page = match self.shared.log.follow(self.partition, after, PAGE).await {
                Ok(page) => page,
                Err(error) => {
                    tracing::warn!(partition = %self.partition, %error, "republishing waits for the log");
                    tokio::time::sleep(REPUBLISH_RETRY).await;
                    continue;
                }
            };
            let Some(last) = page.last() else { break };
            after = last.offset;
            let newest: BTreeMap<Incarnation, Position> = page
                .iter()
                .map(|&Entry { incarnation, seq, chain, .. }| {
                    (incarnation, Position { incarnation, seq, chain })
                })
                .collect();
            let tips = newest.values().map(wire_position).collect();
            let tips = v1::BusTips { epoch: lease.epoch().0, tips };
            let message = v1::BusMessage { message: Some(v1::bus_message::Message::Tips(tips)) };
            let payload = Bytes::from(message.encode_to_vec());
            self.shared.bus.publish(Topic::Deltas(self.partition), Message { payload, traceparent: None });
        }
        Done::Republished
    }
}

/// The answer with entries instead of the state.
fn with_tail(otherwise: Opened, runs: RunWriter) -> Opened {
    let mut header = otherwise.header;
    header.set_recovery(v1::Recovery::Tail);
    header.state_bytes = 0;
    Opened { header, tail: runs.finish(), state: Bytes::new() }
}

/// What a document without entries was made to be. Whoever opened it may still write to it, after it has left
/// memory.
pub(crate) struct Drawn {
    record: DocumentRecord,
    settled: bool,
}

impl Drawn {
    pub(crate) fn of(document: &Resident) -> Drawn {
        Drawn { record: document.record().clone(), settled: document.is_settled() }
    }

    fn into_resident(self, limits: Limits) -> Resident {
        let mut document = Resident::new(self.record, limits);
        if self.settled {
            document.settle();
        }
        document
    }
}

/// The record of a document that is new.
pub(crate) fn new_record(name: &DocumentName, strategy: Strategy) -> DocumentRecord {
    let incarnation = Incarnation(rand::random_range(1..=u64::MAX));
    DocumentRecord { name: name.clone(), incarnation, strategy }
}

fn replay_page(mut resident: Box<Resident>, page: &[Entry]) -> Result<Box<Resident>, Corrupt> {
    page.iter().try_for_each(|entry| resident.replay(entry))?;
    Ok(resident)
}

fn outgoing(entry: &Entry, indices: &Indices) -> Result<Outgoing, Refused> {
    Outgoing::from_entry(entry, indices)
        .ok_or_else(|| Refused::new(Code::Corrupt, format!("entry {} has an unknown author", entry.seq)))
}

fn unreadable(error: LogError) -> Refused {
    match error {
        LogError::Corrupt(why) => Refused::new(Code::Corrupt, why),
        // Internal text does not leave.
        error => {
            tracing::warn!(%error, "the event log cannot be read");
            Refused::later(Code::Unavailable, UNREADABLE_RETRY_MS)
        }
    }
}
