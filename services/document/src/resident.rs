//! One document in memory: its state, where its log stands, and what is remembered of its newest entries.
//! Pure.
//!
//! It is what replaying the document's log gives, whether that was done just now or entry by entry as they
//! were admitted: same log, same bytes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use manyhands_crdt::{Applied, BODY_FORMAT, ChangeRef, Hash, ReplicaId};
use manyhands_history::{DocumentRecord, Entry};
use manyhands_proto::{Chain, Epoch, Position, Seq, v1};

use crate::request::{KnownChange, Opened, wire_position};
use crate::run::{Indices, Outgoing, RunWriter};

/// Changes remembered of each replica; a resend of an older one is compared with the log.
pub const KNOWN_CHANGES: usize = 64;
/// Newest entries remembered of a document, for tails and gaps.
const RECENT_ENTRIES: usize = 2048;
/// Bytes of them.
const RECENT_BYTES: usize = 256 * 1024;
/// A tail up to this many bytes is sent without asking how large the state would be.
const SMALL_TAIL_BYTES: u64 = 64 * 1024;

/// What one document may hold.
pub use manyhands_crdt::Limits;

/// Applies a change to a state. Given by the caller, who decides what a panic in it comes to.
pub type Apply = fn(&mut manyhands_crdt::Document, ChangeRef<'_>) -> Outcome;

/// What applying a change came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the state.
    Applied(Applied),
    /// It is not, and the state is as before.
    Refused(manyhands_crdt::Refusal),
    /// The state is no longer to be trusted.
    Panicked,
}

/// The log of a document does not give a document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry {seq} does not follow from the ones before: {what}")]
pub struct Corrupt {
    /// Which entry.
    pub seq: Seq,
    /// What is wrong with it.
    pub what: String,
}

/// A document in memory.
#[derive(Debug)]
pub struct Resident {
    record: DocumentRecord,
    state: manyhands_crdt::Document,
    seq: Seq,
    chain: Chain,
    time_ms: u64,
    authors: BTreeMap<ReplicaId, Author>,
    indices: Arc<Indices>,
    recent: VecDeque<Outgoing>,
    recent_bytes: usize,
    /// The chain hash before the oldest of `recent`.
    recent_after: Chain,
    /// Bytes of all bodies from the first entry on.
    body_bytes: u64,
    encoded: Option<Bytes>,
}

#[derive(Debug)]
struct Author {
    /// The only one who may write as this replica.
    subject: String,
    /// The newest changes, in order.
    known: VecDeque<KnownChange>,
}

/// What is remembered of a counter that the document has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// A change begins there.
    Here(KnownChange),
    /// No change begins there.
    Elsewhere,
    /// Only the log knows.
    Older,
}

/// What an [`Open`](crate::request::Open) comes to.
#[derive(Debug)]
pub enum Opening {
    /// Everything was in memory.
    Ready(Opened),
    /// Whether the asker's position is a prefix, and the tail after it, has to be read from the log.
    FromLog(LogTail),
}

/// A tail to be read from the log, or the state if the position turns out to be no prefix.
#[derive(Debug)]
pub struct LogTail {
    /// What the asker has.
    pub have: Position,
    /// Where the tail ends; also the position of `state`.
    pub through: Position,
    /// Who wrote, as of `through`.
    pub indices: Arc<Indices>,
    /// The answer if it is to be the state.
    pub otherwise: Opened,
}

impl Resident {
    /// A document without entries.
    #[must_use]
    pub fn new(record: DocumentRecord, limits: Limits) -> Resident {
        Resident {
            record,
            state: manyhands_crdt::Document::with_limits(limits),
            seq: Seq(0),
            chain: Chain::default(),
            time_ms: 0,
            authors: BTreeMap::new(),
            indices: Arc::default(),
            recent: VecDeque::new(),
            recent_bytes: 0,
            recent_after: Chain::default(),
            body_bytes: 0,
            encoded: None,
        }
    }

    /// Takes the next entry of the log in; verifies that it is the next, and that it is what was written.
    pub fn replay(&mut self, entry: &Entry) -> Result<(), Corrupt> {
        let corrupt = |what: &str| Corrupt { seq: entry.seq, what: what.to_owned() };
        if entry.incarnation != self.record.incarnation {
            return Err(corrupt("it belongs to another history"));
        }
        if entry.seq != self.seq.next() {
            return Err(corrupt("its number is not the next"));
        }
        if entry.format != BODY_FORMAT {
            return Err(corrupt("this build does not know its format"));
        }
        let known = self.authors.contains_key(&entry.replica);
        let subject = match (&entry.subject, known) {
            (Some(subject), false) => subject.as_str(),
            (None, true) => "",
            (Some(_), true) => return Err(corrupt("its replica was bound before")),
            (None, false) => return Err(corrupt("its replica is bound to nobody")),
        };
        let change = ChangeRef {
            replica: entry.replica,
            counter: entry.counter,
            base: entry.base.0,
            body: &entry.body,
        };
        let applied = self.state.apply(change).map_err(|refusal| corrupt(&refusal.to_string()))?;
        let body = entry.body.clone();
        let numbered = self.take(change, body, applied, subject, entry.time_ms);
        if numbered.hash != entry.hash {
            return Err(corrupt("its hash is another"));
        }
        if numbered.chain != entry.chain {
            return Err(corrupt("its chain hash is another"));
        }
        Ok(())
    }

    /// Applies a replica's next change and gives it its place. On [`Outcome::Panicked`] the document is to be
    /// dropped.
    pub(crate) fn admit(
        &mut self,
        change: ChangeRef<'_>,
        subject: &str,
        now_ms: u64,
        apply: Apply,
    ) -> Result<Numbered, Outcome> {
        match apply(&mut self.state, change) {
            Outcome::Applied(applied) => {
                let body = Bytes::copy_from_slice(change.body);
                Ok(self.take(change, body, applied, subject, now_ms))
            }
            outcome => Err(outcome),
        }
    }

    /// Notes a change that was applied as the next entry.
    fn take(
        &mut self,
        change: ChangeRef<'_>,
        body: Bytes,
        applied: Applied,
        subject: &str,
        now_ms: u64,
    ) -> Numbered {
        self.seq = self.seq.next();
        self.chain = chain_after(&self.chain, &applied.hash);
        self.time_ms = self.time_ms.max(now_ms);
        self.body_bytes += body.len() as u64;
        self.encoded = None;

        let index =
            self.state.replica_index(change.replica).expect("an applied change gives its replica an index");
        let author = self.authors.entry(change.replica);
        let first = matches!(author, std::collections::btree_map::Entry::Vacant(_));
        let author = author.or_insert_with(|| Author { subject: subject.to_owned(), known: VecDeque::new() });
        if first {
            Arc::make_mut(&mut self.indices).insert(change.replica, index);
        }
        if author.known.len() == KNOWN_CHANGES {
            author.known.pop_front();
        }
        author.known.push_back(KnownChange { counter: change.counter, hash: applied.hash, seq: self.seq });

        let outgoing = Outgoing {
            index,
            new: first.then_some(change.replica),
            base: Seq(change.base),
            chain: self.chain,
            body,
        };
        self.recent_bytes += outgoing.body.len();
        self.recent.push_back(outgoing.clone());
        while self.recent.len() > RECENT_ENTRIES || self.recent_bytes > RECENT_BYTES {
            let Some(oldest) = self.recent.pop_front() else { break };
            self.recent_bytes -= oldest.body.len();
            self.recent_after = oldest.chain;
        }
        Numbered {
            seq: self.seq,
            chain: self.chain,
            hash: applied.hash,
            next_counter: applied.next_counter,
            time_ms: self.time_ms,
            outgoing,
        }
    }

    /// The log's record of the document.
    #[must_use]
    pub fn record(&self) -> &DocumentRecord {
        &self.record
    }

    /// What merging needs.
    #[must_use]
    pub fn state(&self) -> &manyhands_crdt::Document {
        &self.state
    }

    /// Where the log stands.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { incarnation: self.record.incarnation, seq: self.seq, chain: self.chain }
    }

    /// Who a replica belongs to, if it ever wrote.
    #[must_use]
    pub fn subject(&self, replica: ReplicaId) -> Option<&str> {
        self.authors.get(&replica).map(|author| author.subject.as_str())
    }

    /// What is remembered of a counter below the replica's next one.
    #[must_use]
    pub fn known(&self, replica: ReplicaId, counter: u64) -> Known {
        let Some(author) = self.authors.get(&replica) else { return Known::Older };
        match author.known.binary_search_by_key(&counter, |known| known.counter) {
            Ok(at) => Known::Here(author.known[at]),
            Err(0) => Known::Older,
            Err(_) => Known::Elsewhere,
        }
    }

    /// The log indices of everybody who wrote.
    #[must_use]
    pub fn indices(&self) -> Arc<Indices> {
        self.indices.clone()
    }

    /// About how many bytes of memory it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let known: usize = self.authors.len() * (96 + KNOWN_CHANGES * size_of::<KnownChange>() / 2);
        self.state.memory_bytes()
            + self.recent_bytes
            + self.recent.len() * size_of::<Outgoing>()
            + known
            + self.encoded.as_ref().map_or(0, Bytes::len)
            + 512
    }

    /// The entries after `after`, if memory still has them all: in runs of about `part_bytes`, only the first
    /// run if `one` is set.
    #[must_use]
    pub fn recent_after(&self, after: Seq, part_bytes: usize, one: bool) -> Option<Vec<v1::EntryRun>> {
        let skip = self.recent_index(after)?;
        let mut runs = RunWriter::new(after, part_bytes);
        for entry in self.recent.range(skip..) {
            runs.push(entry);
            if one && runs.has_full_run() {
                break;
            }
        }
        Some(runs.finish())
    }

    /// Where in `recent` the entry after `after` is; its length if `after` is the newest.
    fn recent_index(&self, after: Seq) -> Option<usize> {
        let before_oldest = self.seq.0 - self.recent.len() as u64;
        (before_oldest..=self.seq.0).contains(&after.0).then(|| (after.0 - before_oldest) as usize)
    }

    /// The chain hash at `seq`, if memory has it.
    fn chain_at(&self, seq: Seq) -> Option<Chain> {
        match self.recent_index(seq)? {
            0 => Some(self.recent_after),
            index => Some(self.recent[index - 1].chain),
        }
    }

    /// Answers an open: the tail if the asker has a true prefix and the tail is not the larger part, else the
    /// state.
    pub fn open(
        &mut self,
        epoch: Epoch,
        replica: Option<ReplicaId>,
        have: Option<Position>,
        part_bytes: usize,
    ) -> Opening {
        let Some(have) = have.filter(|have| self.may_be_prefix(have)) else {
            return Opening::Ready(self.opened_with_state(epoch, replica));
        };
        let in_memory = self.recent_index(have.seq);
        let tail_bytes = match in_memory {
            Some(index) => self.recent.range(index..).map(|entry| entry.body.len() as u64).sum(),
            // All entries taken as equally long.
            None => (self.body_bytes * (self.seq.0 - have.seq.0)).checked_div(self.seq.0).unwrap_or(0),
        };
        if tail_bytes > SMALL_TAIL_BYTES && tail_bytes > self.encoded().len() as u64 {
            return Opening::Ready(self.opened_with_state(epoch, replica));
        }
        match self.recent_after(have.seq, part_bytes, false) {
            Some(tail) => {
                let header = self.header(v1::Recovery::Tail, epoch, replica);
                Opening::Ready(Opened { header, tail, state: Bytes::new() })
            }
            None => Opening::FromLog(LogTail {
                have,
                through: self.position(),
                indices: self.indices(),
                otherwise: self.opened_with_state(epoch, replica),
            }),
        }
    }

    /// Whether the asker may have a prefix of this log, as far as memory can tell.
    fn may_be_prefix(&self, have: &Position) -> bool {
        // Who has nothing has a prefix of everything.
        have.seq == Seq(0)
            || (have.incarnation == self.record.incarnation
                && have.seq <= self.seq
                && self.chain_at(have.seq).is_none_or(|chain| chain == have.chain))
    }

    fn opened_with_state(&mut self, epoch: Epoch, replica: Option<ReplicaId>) -> Opened {
        let state = self.encoded();
        let mut header = self.header(v1::Recovery::State, epoch, replica);
        header.state_bytes = state.len() as u64;
        Opened { header, tail: Vec::new(), state }
    }

    fn header(&self, recovery: v1::Recovery, epoch: Epoch, replica: Option<ReplicaId>) -> v1::OpenHeader {
        v1::OpenHeader {
            recovery: recovery.into(),
            position: Some(wire_position(&self.position())),
            next_counter: replica.map_or(0, |replica| self.state.next_counter(replica)),
            state_bytes: 0,
            epoch: epoch.0,
            ..v1::OpenHeader::default()
        }
    }

    /// The state's bytes, made once until the document changes.
    fn encoded(&mut self) -> Bytes {
        self.encoded.get_or_insert_with(|| Bytes::from(self.state.encode())).clone()
    }
}

/// A change's place, and the entry for those who read along.
#[derive(Debug)]
pub(crate) struct Numbered {
    pub(crate) seq: Seq,
    pub(crate) chain: Chain,
    pub(crate) hash: Hash,
    pub(crate) next_counter: u64,
    pub(crate) time_ms: u64,
    pub(crate) outgoing: Outgoing,
}

/// The chain hash after an entry: BLAKE3-128 over the one before it and the change's hash.
fn chain_after(chain: &Chain, hash: &Hash) -> Chain {
    let mut hasher = blake3::Hasher::new();
    hasher.update(chain);
    hasher.update(hash);
    let mut after = Chain::default();
    after.copy_from_slice(&hasher.finalize().as_bytes()[..size_of::<Chain>()]);
    after
}
