//! The suite that every event log passes.
//!
//! [`conformance!`](crate::conformance!) makes one test a scenario. A scenario gets a [`Subject`]: an empty
//! log of its own. What only one kind of log can suffer, such as a killed server, has tests beside that
//! kind; they use the [`Scribe`] and [`verify`] of this module.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "scenarios are tests")]

mod appends;
mod leases;
mod reads;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use manyhands_crdt::ReplicaId;
use manyhands_proto::{Chain, DocumentName, Epoch, Incarnation, NodeId, Offset, PartitionId, Seq};

use crate::{
    AppendError, Batch, DocumentRecord, Entry, EventLog, Lease, Member, ReadLimit, SharedLog, Strategy,
    chain_after,
};

pub use appends::*;
pub use leases::*;
pub use reads::*;

/// Makes a test of every scenario. `$open` is an async fn without arguments that returns a [`Subject`].
#[macro_export]
macro_rules! conformance {
    ($open:path) => {
        $crate::conformance! { $open:
            appends_are_whole_and_in_order
            numbers_of_all_sizes_are_kept
            a_stale_head_diverges
            the_same_append_again_is_recognized
            an_append_that_nobody_waits_for_is_whole
            wrong_batches_are_refused
            a_wrong_append_takes_no_other_with_it
            offsets_are_gapless_for_followers_at_any_moment
            a_second_incarnation_of_a_name_is_refused
            it_survives_being_opened_again
            a_stale_epoch_is_fenced
            a_claim_and_a_late_append_never_both_win
            claims_never_overlap
            a_lease_runs_out_by_the_log_s_clock
            renewing_keeps_and_releasing_frees
            publishing_is_noted_by_the_owner_only
            members_come_and_go
            reads_keep_their_limits
            changes_are_found_by_their_identity
            documents_are_found_by_their_name
            documents_keep_their_strategy
            a_cursor_belongs_to_one_worker
            a_follower_sees_everything_at_least_once
            replay_rebuilds_and_verifies
        }
    };
    ($open:path: $($scenario:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $scenario() {
                $crate::conformance::$scenario($open().await).await;
            }
        )*
    };
}

/// An empty log under test.
pub struct Subject {
    /// The log.
    pub log: SharedLog,
    /// Opens the same log again, as another node or after a restart.
    pub again: Box<dyn Fn() -> Opening + Send + Sync>,
}

/// A log that is being opened.
pub type Opening = Pin<Box<dyn Future<Output = SharedLog> + Send>>;

/// Long enough that no lease of a scenario ends by itself.
const LONG: Duration = Duration::from_secs(600);
/// Everything at once.
const ALL: ReadLimit = ReadLimit { entries_max: usize::MAX, bytes_max: usize::MAX };

/// A node for the scenarios.
#[must_use]
pub fn member(name: &str) -> Member {
    Member { node: NodeId(name.into()), address: format!("http://{name}:7000") }
}

/// Claims one partition, which must be free.
pub async fn claim(log: &dyn EventLog, node: &str, partition: PartitionId) -> Lease {
    let leases = log.claim(&member(node), &[partition], LONG).await.expect("claim");
    leases.into_iter().next().unwrap_or_else(|| panic!("partition {partition} is not free"))
}

fn held(lease: &Lease) -> [(PartitionId, Epoch); 1] {
    [(lease.partition(), lease.epoch())]
}

/// The n-th of the names that belong to a partition.
#[must_use]
pub fn name_in(partition: PartitionId, n: usize) -> DocumentName {
    (0..)
        .map(|i| format!("doc-{i}").parse().expect("a valid name"))
        .filter(|name| PartitionId::of(name) == partition)
        .nth(n)
        .expect("names do not end")
}

/// Writes well-formed batches of one partition and remembers those that were appended.
pub struct Scribe {
    log: SharedLog,
    /// What it writes under.
    pub lease: Lease,
    /// Where it left the partition.
    pub head: Offset,
    /// Everything that was appended, in order.
    pub appended: Vec<Entry>,
    documents: BTreeMap<usize, Progress>,
}

#[derive(Clone)]
struct Progress {
    incarnation: Incarnation,
    seq: Seq,
    chain: Chain,
    counter: u64,
}

impl Scribe {
    /// Claims the partition.
    pub async fn claim(log: &SharedLog, node: &str, partition: PartitionId) -> Scribe {
        let lease = claim(&**log, node, partition).await;
        Scribe::new(log.clone(), lease)
    }

    /// Goes on under a lease, from its head.
    #[must_use]
    pub fn new(log: SharedLog, lease: Lease) -> Scribe {
        Scribe { log, head: lease.head(), lease, appended: Vec::new(), documents: BTreeMap::new() }
    }

    /// The incarnation of the partition's n-th document, whether it has begun or not.
    #[must_use]
    pub fn incarnation(&self, n: usize) -> Incarnation {
        // Above the sign bit of what databases store.
        Incarnation(u64::MAX - (u64::from(self.lease.partition().0) << 32) - n as u64)
    }

    /// The next batch: `count` entries of the partition's n-th document. Only [`Scribe::append`] and
    /// [`Scribe::accept`] move on.
    #[must_use]
    pub fn draft(&self, n: usize, count: usize) -> Batch {
        self.draft_of(&vec![n; count])
    }

    /// The next batch: one entry for each of the documents named by their numbers.
    #[must_use]
    pub fn draft_of(&self, documents: &[usize]) -> Batch {
        let mut batch = Batch::default();
        let mut progress = self.documents.clone();
        for (index, &n) in documents.iter().enumerate() {
            let state = progress.entry(n).or_insert_with(|| {
                let incarnation = self.incarnation(n);
                let name = name_in(self.lease.partition(), n);
                batch.created.push(DocumentRecord { name, incarnation, strategy: Strategy::Crdt });
                Progress { incarnation, seq: Seq(0), chain: Chain::default(), counter: 0 }
            });
            let mut hash = [0; 16];
            hash[..8].copy_from_slice(&state.counter.to_le_bytes());
            hash[8..].copy_from_slice(&state.incarnation.0.to_le_bytes());
            let first = state.seq == Seq(0);
            state.seq = state.seq.next();
            state.chain = chain_after(&state.chain, &hash);
            batch.entries.push(Entry {
                offset: Offset(self.head.0 + 1 + index as u64),
                incarnation: state.incarnation,
                seq: state.seq,
                replica: ReplicaId(u64::MAX - n as u64),
                subject: first.then(|| format!("subject-{n}")),
                counter: state.counter,
                base: Seq(state.seq.0 - 1),
                hash,
                chain: state.chain,
                time_ms: 1_700_000_000_000 + state.seq.0,
                format: 1,
                body: Bytes::from(format!("entry {} of {n}", state.seq)),
            });
            state.counter += 3;
        }
        batch
    }

    /// Appends a batch, which must be the next one.
    pub async fn append(&mut self, batch: Batch) -> Result<(), AppendError> {
        let appended = self.log.append(&self.lease, self.head, &batch).await?;
        self.accept(batch);
        assert_eq!(appended.head(), self.head);
        assert_eq!((appended.partition(), appended.epoch()), (self.lease.partition(), self.lease.epoch()));
        Ok(())
    }

    /// Appends the next batch.
    pub async fn write(&mut self, n: usize, count: usize) {
        let batch = self.draft(n, count);
        self.append(batch).await.expect("append");
    }

    /// Notes a batch as appended.
    pub fn accept(&mut self, batch: Batch) {
        self.head = Offset(self.head.0 + batch.entries.len() as u64);
        for entry in &batch.entries {
            let n = (u64::MAX - entry.replica.0) as usize;
            self.documents.insert(
                n,
                Progress {
                    incarnation: entry.incarnation,
                    seq: entry.seq,
                    chain: entry.chain,
                    counter: entry.counter + 3,
                },
            );
        }
        self.appended.extend(batch.entries);
    }

    /// Checks that the log holds exactly what was appended.
    pub async fn verify(&self) {
        let partition = self.lease.partition();
        let stored = self.log.follow(partition, Offset(0), ALL).await.expect("follow");
        if let Err(fault) = verify(&self.appended, &stored) {
            panic!("partition {partition}: {fault}");
        }
        for state in self.documents.values() {
            let read = self.log.read(partition, state.incarnation, Seq(0), ALL).await.expect("read");
            let theirs = self.appended.iter().filter(|entry| entry.incarnation == state.incarnation);
            assert!(read.iter().eq(theirs), "a document's entries are those of the partition");
        }
    }
}

/// Compares everything that a partition holds with everything that was acknowledged, in order, and says
/// what is the matter.
pub fn verify(acknowledged: &[Entry], stored: &[Entry]) -> Result<(), String> {
    let mut seqs: BTreeMap<Incarnation, (Seq, Chain)> = BTreeMap::new();
    for (index, entry) in stored.iter().enumerate() {
        if entry.offset != Offset(index as u64 + 1) {
            return Err(format!("offset {} stands where {} belongs", entry.offset, index + 1));
        }
        let last = seqs.entry(entry.incarnation).or_default();
        let next = (last.0.next(), chain_after(&last.1, &entry.hash));
        if next != (entry.seq, entry.chain) {
            return Err(format!("offset {} does not follow in its document", entry.offset));
        }
        *last = next;
        match acknowledged.get(index) {
            Some(acknowledged) if acknowledged == entry => {}
            Some(_) => return Err(format!("offset {} is not what was acknowledged", entry.offset)),
            None => return Err(format!("offset {} was never acknowledged", entry.offset)),
        }
    }
    match acknowledged.get(stored.len()) {
        Some(entry) => Err(format!("offset {} was acknowledged and is lost", entry.offset)),
        None => Ok(()),
    }
}

/// Waits until the log says so, by asking it again and again. The test runner's patience is the limit.
async fn until<F: Future<Output = bool>>(mut ask: impl FnMut() -> F) {
    while !ask().await {
        tokio::task::yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryLog;

    /// A checker that finds nothing proves nothing.
    #[tokio::test]
    async fn the_checker_names_each_planted_fault() {
        let log: SharedLog = std::sync::Arc::new(MemoryLog::new());
        let mut scribe = Scribe::claim(&log, "a", PartitionId(7)).await;
        for n in [0, 1, 0, 1] {
            scribe.write(n, 3).await;
        }
        let good = scribe.appended.clone();
        assert_eq!(verify(&good, &good), Ok(()));
        type Plant = fn(&mut Vec<Entry>);
        let plants: [(&str, Plant); 6] = [
            ("lost", |stored| drop(stored.pop())),
            ("stands where", |stored| drop(stored.remove(4))),
            ("stands where", |stored| stored.swap(4, 5)),
            ("stands where", |stored| stored.insert(4, stored[4].clone())),
            ("not what was acknowledged", |stored| stored[4].body = Bytes::from_static(b"other")),
            ("does not follow", |stored| stored[4].chain[0] ^= 1),
        ];
        for (says, plant) in plants {
            let mut stored = good.clone();
            plant(&mut stored);
            let fault = verify(&good, &stored).unwrap_err();
            assert!(fault.contains(says), "{fault}");
        }
        assert!(verify(&good[..6], &good).unwrap_err().contains("never acknowledged"));
    }
}
