//! One document in memory: its state, where its log stands, and what is remembered of its newest entries.
//! Pure.
//!
//! It is what replaying the document's log gives, whether that was done just now or entry by entry as they
//! were admitted: same log, same bytes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use manyhands_crdt::{Admission, Applied, ChangeRef, Hash, Heads, ReplicaId};
use manyhands_history::{DocumentRecord, Entry, RECENT_CHANGES, Standing, Strategy, chain_after, change_of};
use manyhands_proto::{Chain, Epoch, Position, Seq, v1};

use crate::past::{Place, seen_through};
use crate::request::{KnownChange, Opened, wire_position, wire_strategy};
use crate::run::{Indices, Outgoing, RunWriter};

/// Newest entries remembered of a document, for tails and gaps.
const RECENT_ENTRIES: usize = 2048;
/// Bytes of them.
const RECENT_BYTES: usize = 256 * 1024;
/// A tail up to this many bytes is sent without asking how large the state would be.
const SMALL_TAIL_BYTES: u64 = 64 * 1024;

/// What one document may hold.
pub use manyhands_crdt::Limits;

/// Admits a change to a state. Given by the caller, who decides what a panic in it comes to.
pub type Apply = fn(&mut manyhands_crdt::Document, ChangeRef<'_>, &Admission) -> Outcome;

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
#[error("entry {seq} {what}")]
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
    heads: Heads,
    /// Whether somebody asked for the strategy that it has, or it has entries; otherwise it is only the default.
    settled: bool,
    recent: VecDeque<Recent>,
    recent_bytes: usize,
    /// The chain hash before the oldest of `recent`.
    recent_after: Chain,
    /// Bytes of all bodies from the first entry on.
    body_bytes: u64,
    encoded: Option<Bytes>,
}

/// One of the newest entries.
#[derive(Debug)]
struct Recent {
    outgoing: Outgoing,
    replica: ReplicaId,
    hash: Hash,
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

/// What somebody says they have of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Have {
    /// Everything up to there.
    Position(Position),
    /// The past of these entries, and themselves.
    Heads(BTreeSet<Hash>),
}

/// Whether a document merges as somebody asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It does.
    Fits,
    /// It does not, but has no entry, and nobody asked for what it has: it may be made anew.
    MayBeMadeAnew,
    /// It does not.
    Differs,
}

/// A tail to be read from the log, or the state if what the asker has turns out to be no prefix.
#[derive(Debug)]
pub struct LogTail {
    /// What the asker has.
    pub have: Have,
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
            state: manyhands_crdt::Document::with_strategy(record.strategy, limits),
            record,
            seq: Seq(0),
            chain: Chain::default(),
            time_ms: 0,
            authors: BTreeMap::new(),
            indices: Arc::default(),
            heads: Heads::new(),
            settled: false,
            recent: VecDeque::new(),
            recent_bytes: 0,
            recent_after: Chain::default(),
            body_bytes: 0,
            encoded: None,
        }
    }

    /// Takes the next entry of the log in; verifies that it is the next, and that it is what was written.
    pub fn replay(&mut self, entry: &Entry) -> Result<(), Corrupt> {
        let corrupt = |what: String| Corrupt { seq: entry.seq, what };
        if entry.incarnation != self.record.incarnation {
            return Err(corrupt("belongs to another history".to_owned()));
        }
        let stands = Standing { seq: self.seq, chain: self.chain, time_ms: self.time_ms };
        stands.after(entry, self.authors.contains_key(&entry.replica)).map_err(corrupt)?;
        let change = change_of(entry);
        let applied =
            self.state.apply(change).map_err(|refusal| corrupt(format!("does not merge: {refusal}")))?;
        if applied.hash != entry.hash {
            return Err(corrupt("has a body that is not its hash's".to_owned()));
        }
        let subject = entry.subject.as_deref().unwrap_or_default();
        self.take(change, entry.body.clone(), applied, subject, entry.time_ms);
        Ok(())
    }

    /// Applies a replica's next change and gives it its place. On [`Outcome::Panicked`] the document is to be
    /// dropped.
    pub(crate) fn admit(
        &mut self,
        change: ChangeRef<'_>,
        subject: &str,
        now_ms: u64,
        admission: &Admission,
        apply: Apply,
    ) -> Result<Numbered, Outcome> {
        match apply(&mut self.state, change, admission) {
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
        self.settled = true;
        self.heads.enter(change.replica, self.seq.0, change.base, applied.hash);

        let index =
            self.state.replica_index(change.replica).expect("an applied change gives its replica an index");
        let author = self.authors.entry(change.replica);
        let first = matches!(author, std::collections::btree_map::Entry::Vacant(_));
        let author = author.or_insert_with(|| Author { subject: subject.to_owned(), known: VecDeque::new() });
        if first {
            Arc::make_mut(&mut self.indices).insert(change.replica, index);
        }
        if author.known.len() == RECENT_CHANGES {
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
        let recent = Recent { outgoing: outgoing.clone(), replica: change.replica, hash: applied.hash };
        self.recent.push_back(recent);
        while self.recent.len() > RECENT_ENTRIES || self.recent_bytes > RECENT_BYTES {
            let Some(oldest) = self.recent.pop_front() else { break };
            self.recent_bytes -= oldest.outgoing.body.len();
            self.recent_after = oldest.outgoing.chain;
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

    /// When its newest entry was admitted, in milliseconds since the Unix epoch; 0 without one.
    #[must_use]
    pub fn time_ms(&self) -> u64 {
        self.time_ms
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
        let known: usize = self.authors.len() * (96 + RECENT_CHANGES * size_of::<KnownChange>() / 2);
        self.state.memory_bytes()
            + self.recent_bytes
            + self.recent.len() * size_of::<Recent>()
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
            runs.push(&entry.outgoing);
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
            index => Some(self.recent[index - 1].outgoing.chain),
        }
    }

    /// Answers an open: the tail if the asker has a true prefix and the tail is not the larger part, else the
    /// state.
    pub fn open(
        &mut self,
        epoch: Epoch,
        replica: Option<ReplicaId>,
        have: Option<Have>,
        part_bytes: usize,
    ) -> Opening {
        let (have, after) = match have {
            Some(Have::Position(have)) if self.may_be_prefix(&have) => (Have::Position(have), Some(have.seq)),
            Some(Have::Heads(heads)) if !heads.is_empty() && self.seq > Seq(0) => {
                let after = self.seen_through(&heads);
                (Have::Heads(heads), after)
            }
            _ => return Opening::Ready(self.opened_with_state(epoch, replica)),
        };
        if after.is_some_and(|after| self.is_long_after(after)) {
            return Opening::Ready(self.opened_with_state(epoch, replica));
        }
        match after.and_then(|after| self.recent_after(after, part_bytes, false)) {
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

    /// Whether the entries after this one are more than the state.
    fn is_long_after(&mut self, after: Seq) -> bool {
        let tail_bytes = match self.recent_index(after) {
            Some(index) => self.recent.range(index..).map(|entry| entry.outgoing.body.len() as u64).sum(),
            // All entries taken as equally long.
            None => (self.body_bytes * (self.seq.0 - after.0)).checked_div(self.seq.0).unwrap_or(0),
        };
        tail_bytes > SMALL_TAIL_BYTES && tail_bytes > self.encoded().len() as u64
    }

    /// Up to where everything is in the past of these heads, as far as memory can tell.
    fn seen_through(&self, heads: &BTreeSet<Hash>) -> Option<Seq> {
        if self.heads.len() == heads.len() && self.heads.iter().all(|(hash, ..)| heads.contains(&hash)) {
            return Some(self.seq);
        }
        let before = Seq(self.seq.0 - self.recent.len() as u64);
        let places = self.recent.iter().zip(before.0 + 1..).map(|(recent, seq)| Place {
            seq: Seq(seq),
            replica: recent.replica,
            base: recent.outgoing.base,
            hash: recent.hash,
        });
        seen_through(heads, before, places)
    }

    /// Whether it merges as somebody asks.
    #[must_use]
    pub fn fit(&self, asked: Strategy) -> Fit {
        match asked == self.record.strategy {
            true => Fit::Fits,
            false if self.settled => Fit::Differs,
            false => Fit::MayBeMadeAnew,
        }
    }

    /// Somebody who may write to it relies on the strategy that it has.
    pub fn settle(&mut self) {
        self.settled = true;
    }

    /// Whether its strategy is more than the default.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.settled
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
            strategy: wire_strategy(self.record.strategy).into(),
            heads: self.wire_heads(),
            max_base: self.heads.max_base(),
        }
    }

    fn wire_heads(&self) -> Vec<v1::Head> {
        let mut heads: Vec<v1::Head> = self
            .heads
            .iter()
            .map(|(hash, replica, seq)| v1::Head {
                hash: Bytes::copy_from_slice(&hash),
                replica: replica.0,
                seq,
            })
            .collect();
        heads.sort_unstable_by(|a, b| a.hash.cmp(&b.hash));
        heads
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
