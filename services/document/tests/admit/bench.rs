//! A partition over a log in memory, and those who write to it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use manyhands_crdt::{Admission, ChangeRef, Document as State, PushWriter, ReplicaId, Strategy};
use manyhands_document::partition::{Admitted, Partition, Released, RequestLimits, Rules};
use manyhands_document::request::{Answer, Grant, KnownChange, Submit, Submitted};
use manyhands_document::resident::{Limits, Outcome, Resident};
use manyhands_document::schema::Schemas;
use manyhands_history::{DocumentRecord, EventLog, Lease, Member, MemoryLog, ReadLimit};
use manyhands_proto::{Code, DocumentName, Incarnation, NodeId, Offset, PartitionId, Seq};

pub(crate) const ALL: ReadLimit = ReadLimit { entries_max: usize::MAX, bytes_max: usize::MAX };
pub(crate) const LIMITS: RequestLimits = RequestLimits { changes_max: 100, bytes_max: 256 * 1024 };
pub(crate) const NOW: u64 = 1_000_000;
/// How far ahead of it a stamp may be.
pub(crate) const CLOCK_AHEAD_MAX_MS: u64 = 60_000;
/// What makes the merging of [`breakable`] panic.
pub(crate) const BREAKER: &str = "BREAK!";

pub(crate) fn apply(state: &mut State, change: ChangeRef<'_>, admission: &Admission) -> Outcome {
    match state.admit(change, admission) {
        Ok(applied) => Outcome::Applied(applied),
        Err(refusal) => Outcome::Refused(refusal),
    }
}

pub(crate) fn breakable(state: &mut State, change: ChangeRef<'_>, admission: &Admission) -> Outcome {
    let breaks = change.body.windows(BREAKER.len()).any(|bytes| bytes == BREAKER.as_bytes());
    if breaks { Outcome::Panicked } else { apply(state, change, admission) }
}

/// A partition with one document, "demo", and its log.
pub(crate) struct Bench {
    pub(crate) log: MemoryLog,
    pub(crate) lease: Lease,
    pub(crate) partition: Partition,
    pub(crate) record: DocumentRecord,
}

impl Bench {
    pub(crate) async fn new() -> Bench {
        Bench::of(Strategy::Crdt, Schemas::default()).await
    }

    /// With a document that merges so, under those schemas.
    pub(crate) async fn of(strategy: Strategy, schemas: Schemas) -> Bench {
        let name: DocumentName = "demo".parse().unwrap();
        let log = MemoryLog::new();
        let member = Member { node: NodeId("bench".to_owned()), address: String::new() };
        let leases = log.claim(&member, &[PartitionId::of(&name)], Duration::from_secs(60)).await.unwrap();
        let lease = leases.into_iter().next().unwrap();
        let rules = Rules { clock_ahead_max_ms: CLOCK_AHEAD_MAX_MS, schemas: Arc::new(schemas) };
        let (id, epoch, head) = (lease.partition(), lease.epoch(), lease.head());
        let mut partition = Partition::new(id, epoch, head, LIMITS, rules, breakable);
        let record = DocumentRecord { name, incarnation: Incarnation(99), strategy };
        partition.insert(Resident::new(record.clone(), Limits::default()));
        Bench { log, lease, partition, record }
    }

    /// Takes one batch through admit, append and release.
    pub(crate) async fn commit<T>(&mut self, batch: Vec<Submit<T>>) -> Released<T> {
        let admitted = self.partition.admit(NOW, batch);
        self.finish(admitted).await
    }

    pub(crate) async fn finish<T>(&self, admitted: Admitted<T>) -> Released<T> {
        if !admitted.needs_append() {
            return admitted.settle();
        }
        let appended = self.log.append(&self.lease, admitted.expected(), admitted.batch()).await;
        admitted.release(appended.unwrap())
    }

    pub(crate) async fn submit(&mut self, submit: Submit<()>) -> Answer {
        let mut answers = self.commit(vec![submit]).await.answers;
        assert_eq!(answers.len(), 1);
        answers.pop().unwrap().1
    }

    /// Like [`submit`](Bench::submit), and asks the log when the partition wants it, as the writer does.
    pub(crate) async fn submit_with_lookups(&mut self, submit: Submit<()>) -> Answer {
        let mut admitted = self.partition.admit(NOW, vec![submit]);
        let mut lookups = admitted.take_lookups();
        let Some((mut submit, counters)) = lookups.pop() else {
            return self.finish(admitted).await.answers.pop().unwrap().1;
        };
        assert!(admitted.batch().entries.is_empty(), "what waits for the log is not in a batch");
        for counter in counters {
            let (id, incarnation) = (self.lease.partition(), submit.incarnation);
            let entry = self.log.find(id, incarnation, submit.replica, counter).await.unwrap();
            let known = entry.map(|entry| KnownChange { counter, hash: entry.hash, seq: entry.seq });
            submit.known.push((counter, known));
        }
        self.submit(submit).await
    }

    /// Forgets the document and loads it from the log.
    pub(crate) async fn reload(&mut self) {
        let mut resident = Resident::new(self.record.clone(), Limits::default());
        for entry in
            self.log.read(self.lease.partition(), self.record.incarnation, Seq(0), ALL).await.unwrap()
        {
            resident.replay(&entry).unwrap();
        }
        self.partition.remove(&self.record.name);
        self.partition.insert(resident);
    }

    pub(crate) async fn log_length(&self) -> usize {
        self.log.follow(self.lease.partition(), Offset(0), ALL).await.unwrap().len()
    }

    pub(crate) fn document(&self) -> &Resident {
        self.partition.document(&self.record.name).unwrap()
    }

    pub(crate) fn state(&self) -> Vec<u8> {
        self.document().state().encode()
    }
}

pub(crate) fn grant(subject: &str) -> Grant {
    Grant {
        subject: subject.to_owned(),
        scopes: vec!["write".to_owned()],
        workspaces: vec!["demo".to_owned()],
        expires_at_ms: NOW + 1,
    }
}

/// Somebody with a state of their own.
pub(crate) struct Author {
    pub(crate) replica: ReplicaId,
    pub(crate) state: State,
    pub(crate) base: u64,
}

impl Author {
    pub(crate) fn new(replica: u64) -> Author {
        Author { replica: ReplicaId(replica), state: State::new(), base: 0 }
    }

    pub(crate) fn types(&mut self, texts: &[&str]) -> Submit<()> {
        let first_counter = self.state.next_counter(self.replica);
        let mut push = PushWriter::new();
        for text in texts {
            let mut edit = self.state.edit(self.replica);
            edit.insert("page", 0, text).unwrap();
            let change = edit.commit(self.base).unwrap();
            push.push(change.base, &change.body);
        }
        self.says(first_counter, push)
    }

    pub(crate) fn says(&self, first_counter: u64, push: PushWriter) -> Submit<()> {
        Submit {
            document: "demo".parse().unwrap(),
            incarnation: Incarnation(99),
            replica: self.replica,
            first_counter,
            count: push.count(),
            changes: Bytes::from(push.finish()),
            grant: grant(&format!("user-{}", self.replica.0)),
            trace: None,
            known: Vec::new(),
            ticket: (),
        }
    }
}

pub(crate) fn accepted(next_counter: u64, seq: u64) -> Answer {
    Ok(Submitted { next_counter, seq: Seq(seq), rejection: None })
}

/// The code of a refusal, of the whole or of a change, and the counter that is expected then.
pub(crate) fn refusal(answer: &Answer) -> (Code, Option<u64>) {
    match answer {
        Err(refused) => (refused.code, None),
        Ok(Submitted { rejection: Some(rejection), .. }) => (rejection.code, Some(rejection.next_counter)),
        Ok(Submitted { rejection: None, .. }) => panic!("it was not refused: {answer:?}"),
    }
}
