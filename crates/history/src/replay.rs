//! From entries back to state: the fold that loading, playback and verification share.

use std::collections::{BTreeMap, VecDeque};

use manyhands_crdt::{BODY_FORMAT, ChangeRef, Document, Hash, Limits, ReplicaId, Strategy};
use manyhands_proto::{CHAIN_BYTES, Chain, PartitionId, Seq};

use crate::{DocumentRecord, Entry, EventLog, LogError, ReadLimit};

/// How many of a replica's newest changes are remembered by hash, to know a resend again without asking the
/// log.
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

/// Where an incarnation's log stands after an entry: what the next one is checked against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The newest entry; 0 before the first.
    pub seq: Seq,
    /// The chain hash there.
    pub chain: Chain,
    /// When it was admitted, in milliseconds since the Unix epoch.
    pub time_ms: u64,
}

impl Standing {
    /// Where the log stands after `entry`, if that is the next: all that can be told without merging it.
    /// `bound` is whether its replica has an entry before it, which bound it to a subject.
    ///
    /// # Errors
    /// What is wrong with the entry, to be read behind its number.
    pub fn after(&self, entry: &Entry, bound: bool) -> Result<Standing, String> {
        if entry.seq != self.seq.next() {
            return Err(format!("stands where {} belongs", self.seq.next()));
        }
        if entry.format != BODY_FORMAT {
            return Err(format!("has the unknown format {}", entry.format));
        }
        if entry.time_ms < self.time_ms {
            return Err("is older than the entry before it".to_owned());
        }
        if entry.subject.is_some() == bound {
            let how = if bound { "a second time" } else { "to nobody" };
            return Err(format!("binds its replica {how}"));
        }
        let chain = chain_after(&self.chain, &entry.hash);
        if chain != entry.chain {
            return Err("breaks the chain".to_owned());
        }
        Ok(Standing { seq: entry.seq, chain, time_ms: entry.time_ms })
    }
}

/// The change that an entry holds.
#[must_use]
pub fn change_of(entry: &Entry) -> ChangeRef<'_> {
    ChangeRef { replica: entry.replica, counter: entry.counter, base: entry.base.0, body: &entry.body }
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
    /// The state of a document without entries.
    #[must_use]
    pub fn new(strategy: Strategy) -> Replay {
        Replay { document: Document::with_strategy(strategy, Limits::default()), ..Replay::default() }
    }

    /// Takes the next entry in. What does not follow from the entries before is [`LogError::Corrupt`];
    /// the state is of no use then.
    pub fn fold(&mut self, entry: &Entry) -> Result<(), LogError> {
        let corrupt = |why: String| {
            Err(LogError::Corrupt(format!("seq {} of incarnation {} {why}", entry.seq, entry.incarnation)))
        };
        let stands = Standing { seq: self.seq, chain: self.chain, time_ms: self.time_ms };
        let stands = match stands.after(entry, self.replicas.contains_key(&entry.replica)) {
            Ok(stands) => stands,
            Err(why) => return corrupt(why),
        };
        let applied = match self.document.apply(change_of(entry)) {
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
        Standing { seq: self.seq, chain: self.chain, time_ms: self.time_ms } = stands;
        Ok(())
    }
}

/// Rebuilds a document's history from the log, from its first entry to its newest, page by page. One without
/// entries gives the empty state.
pub async fn replay(log: &dyn EventLog, record: &DocumentRecord) -> Result<Replay, LogError> {
    let partition = PartitionId::of(&record.name);
    let mut state = Replay::new(record.strategy);
    loop {
        let page = log.read(partition, record.incarnation, state.seq, PAGE).await?;
        if page.is_empty() {
            return Ok(state);
        }
        for entry in &page {
            state.fold(entry)?;
        }
    }
}
