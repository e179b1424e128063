//! From entries back to state: the fold that loading, playback and verification share.

use std::collections::{BTreeMap, VecDeque};

use manyhands_crdt::{BODY_FORMAT, ChangeRef, Document, Hash, ReplicaId};
use manyhands_proto::{CHAIN_BYTES, Chain, Incarnation, PartitionId, Seq};

use crate::{Entry, EventLog, LogError, ReadLimit};

/// How many of a replica's newest changes a [`Replay`] remembers by hash, to know a resend again without
/// asking the log.
pub const RECENT_CHANGES: usize = 64;

/// What is read at a time.
const PAGE: ReadLimit = ReadLimit { entries_max: 1_024, bytes_max: 1 << 20 };

/// The chain hash after an entry with this hash.
#[must_use]
pub fn chain_after(before: &Chain, hash: &Hash) -> Chain {
    let mut hasher = blake3::Hasher::new();
    hasher.update(before).update(hash);
    let mut chain = [0; CHAIN_BYTES];
    hasher.finalize_xof().fill(&mut chain);
    chain
}

/// A document's state after a run of entries, each of which was verified.
#[derive(Debug, Default)]
pub struct Replay {
    /// The merged content.
    pub document: Document,
    /// The newest entry that is in it; 0 when there is none.
    pub seq: Seq,
    /// The chain hash there.
    pub chain: Chain,
    /// When the newest entry was admitted, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// Everyone who has an entry.
    pub replicas: BTreeMap<ReplicaId, Author>,
}

/// What the log says of a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Author {
    /// The first counter that the log does not hold.
    pub next_counter: u64,
    /// The subject that the replica belongs to.
    pub subject: Option<String>,
    /// First counter and hash of its newest changes, the oldest first; at most [`RECENT_CHANGES`].
    pub recent: VecDeque<(u64, Hash)>,
}

impl Replay {
    /// Takes the next entry in. What does not follow from the entries before is [`LogError::Corrupt`];
    /// the state is of no use then.
    pub fn fold(&mut self, entry: &Entry) -> Result<(), LogError> {
        let corrupt = |why: String| {
            Err(LogError::Corrupt(format!("seq {} of incarnation {} {why}", entry.seq, entry.incarnation)))
        };
        if entry.seq != self.seq.next() {
            return corrupt(format!("stands where {} belongs", self.seq.next()));
        }
        if entry.format != BODY_FORMAT {
            return corrupt(format!("has the unknown format {}", entry.format));
        }
        if entry.time_ms < self.time_ms {
            return corrupt("is older than the entry before it".into());
        }
        let chain = chain_after(&self.chain, &entry.hash);
        if chain != entry.chain {
            return corrupt("breaks the chain".into());
        }
        let change = ChangeRef {
            replica: entry.replica,
            counter: entry.counter,
            base: entry.base.0,
            body: &entry.body,
        };
        let applied = match self.document.apply(change) {
            Ok(applied) if applied.hash != entry.hash => {
                return corrupt("has a body that is not its hash's".into());
            }
            Ok(applied) => applied,
            Err(refusal) => return corrupt(format!("does not merge: {refusal}")),
        };
        let author = self
            .replicas
            .entry(entry.replica)
            .or_insert_with(|| Author { subject: entry.subject.clone(), ..Author::default() });
        author.next_counter = applied.next_counter;
        if author.recent.len() == RECENT_CHANGES {
            author.recent.pop_front();
        }
        author.recent.push_back((entry.counter, entry.hash));
        (self.seq, self.chain, self.time_ms) = (entry.seq, chain, entry.time_ms);
        Ok(())
    }
}

/// Rebuilds an incarnation from the log, from its first entry to its newest, page by page. An incarnation
/// without entries gives the empty state.
pub async fn replay(
    log: &dyn EventLog,
    partition: PartitionId,
    incarnation: Incarnation,
) -> Result<Replay, LogError> {
    let mut state = Replay::default();
    loop {
        let page = log.read(partition, incarnation, state.seq, PAGE).await?;
        if page.is_empty() {
            return Ok(state);
        }
        for entry in &page {
            state.fold(entry)?;
        }
    }
}
