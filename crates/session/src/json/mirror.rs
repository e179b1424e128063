use bytes::Bytes;
use manyhands_crdt::{
    ChangeRef, Document, EntryRef, Hash, Heads, Limits, MapOp, MapValue, OpId, ReplicaId, Strategy,
    read_entries, read_map_ops,
};
use manyhands_proto::{Code, Position, Seq};

use super::encode::{self, Origin, Said};
use super::op::{Audience, Missed, SharedOp, SharedOps, SharedState};
use super::recent::{Recent, Touched};
use crate::edge::{Body, Opened};
use crate::{Refusal, SharedRun};

/// What a document may grow to and still be had by JSON sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MirrorLimits {
    /// Bytes of an `init` frame.
    pub init_bytes_max: usize,
    /// Bytes of memory that the mirror of one document takes, roughly; its texts count too.
    pub memory_bytes_max: usize,
}

impl Default for MirrorLimits {
    fn default() -> MirrorLimits {
        MirrorLimits { init_bytes_max: 8 * 1024 * 1024, memory_bytes_max: 128 * 1024 * 1024 }
    }
}

/// Keys that are told one by one to a session that missed something; more are told as a whole.
const MISSED_KEYS_MAX: usize = 1_000;

/// A document as the JSON sessions of an edge see it: held once, fed with every run, it says what each means to
/// them and what one lacks who comes to it.
#[derive(Debug)]
pub struct Mirror {
    limits: MirrorLimits,
    document: Document,
    at: Position,
    /// By log index.
    replicas: Vec<ReplicaId>,
    heads: Heads,
    recent: Recent,
    micros_max: u64,
    /// The state as a frame, until the next entry.
    state: Option<SharedState>,
}

impl Mirror {
    /// A mirror of what an owner answered to an open without a position.
    ///
    /// # Errors
    /// `TooLarge` if the document is beyond the limits, `Internal` if what came is none.
    pub fn new(opened: Opened, limits: MirrorLimits) -> Result<Mirror, Refusal> {
        let Opened { position, body, strategy, heads, max_base, .. } = opened;
        let (document, at, heads, runs) = match body {
            Body::State(pieces) => {
                let bytes: Vec<u8> = pieces.concat();
                if bytes.len() > limits.memory_bytes_max {
                    return Err(too_large(bytes.len(), limits.memory_bytes_max));
                }
                let document = Document::decode_with_limits(&bytes, document_limits()).map_err(unusable)?;
                let heads = heads.into_iter().filter_map(|head| {
                    Some((Hash::try_from(&head.hash[..]).ok()?, ReplicaId(head.replica), head.seq))
                });
                (document, position, Heads::from_parts(max_base, heads), Vec::new())
            }
            Body::Tail(runs) => {
                let empty = Position { seq: Seq(0), chain: [0; 16], ..position };
                let strategy = u8::try_from(i32::from(strategy)).ok().and_then(Strategy::from_code);
                let strategy = strategy.unwrap_or_default();
                (Document::with_strategy(strategy, document_limits()), empty, Heads::new(), runs)
            }
        };
        let mut mirror = Mirror {
            replicas: replicas_of(&document),
            micros_max: document
                .map("")
                .map_or(0, |map| map.iter().map(|(_, value)| value.stamp.micros).max().unwrap_or(0)),
            recent: Recent::new(at.seq.0),
            limits,
            document,
            at,
            heads,
            state: None,
        };
        for run in &runs {
            mirror.apply(run)?;
        }
        mirror.check_memory()?;
        Ok(mirror)
    }

    /// What it holds.
    #[must_use]
    pub fn position(&self) -> Position {
        self.at
    }

    /// How the document's maps merge.
    #[must_use]
    pub fn strategy(&self) -> Strategy {
        self.document.strategy()
    }

    /// Roughly the memory that it takes, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let state = self.state.as_ref().map_or(0, |state| state.frame.len());
        self.document.memory_bytes() + self.recent.bytes() + state
    }

    /// Whether it may go on.
    ///
    /// # Errors
    /// `TooLarge` once the document has grown beyond the limits.
    pub fn check_memory(&self) -> Result<(), Refusal> {
        let bytes = self.memory_bytes();
        if bytes > self.limits.memory_bytes_max {
            return Err(too_large(bytes, self.limits.memory_bytes_max));
        }
        Ok(())
    }

    /// Takes the next run in; what of it is known already is passed over. `None` if that is all of it.
    ///
    /// # Errors
    /// If the run is not the next, or no log made it: the mirror is good for nothing any more.
    pub fn apply(&mut self, run: &SharedRun) -> Result<Option<SharedOps>, Refusal> {
        let known = self.at.seq;
        if run.last() <= known {
            return Ok(None);
        }
        if run.first() > known.next() {
            return Err(Refusal::new(Code::Internal, "a run that is not the next"));
        }
        let bytes = run.entries()?;
        let mut ops = Vec::new();
        for entry in read_entries(run.first().0, run.count(), &bytes) {
            let entry = entry.map_err(unusable)?;
            if entry.seq > known.0 {
                self.enter(&entry, &mut ops)?;
            }
        }
        self.at = Position { seq: run.last(), chain: run.chain(), ..self.at };
        self.state = None;
        Ok(Some(SharedOps {
            first: known.next(),
            last: run.last(),
            micros_max: self.micros_max,
            ops: ops.into(),
        }))
    }

    /// The whole state.
    ///
    /// # Errors
    /// `TooLarge` if it is no frame that may be sent.
    pub fn state(&mut self) -> Result<SharedState, Refusal> {
        if let Some(state) = &self.state {
            return Ok(state.clone());
        }
        let map = self.document.map("");
        let entries = || map.iter().flat_map(|map| map.iter()).map(|(key, value)| (key, value.value));
        // Counted first: what is refused is not built.
        let bytes: usize = entries().map(|(key, value)| key.len() + value.len() + 4).sum();
        if bytes > self.limits.init_bytes_max {
            return Err(too_large(bytes, self.limits.init_bytes_max));
        }
        let state = self.shared(encode::init(entries(), &self.heads.hashes(), None))?;
        self.state = Some(state.clone());
        Ok(state)
    }

    /// What a client lacks who has these heads; everything if they are not known.
    ///
    /// # Errors
    /// As [`state`](Mirror::state).
    pub fn state_since(&mut self, heads: &[Hash]) -> Result<SharedState, Refusal> {
        let Some(touched) = self.seq_of(heads).and_then(|seq| self.recent.touched_after(seq)) else {
            return self.state();
        };
        let map = self.document.map("");
        let value = |key: &str| map.and_then(|map| map.get(key));
        let changed = touched.keys().filter_map(|key| Some((*key, value(key)?.value)));
        let removed: Vec<&str> = touched.keys().copied().filter(|key| value(key).is_none()).collect();
        self.shared(encode::init(changed, &self.heads.hashes(), Some(&removed)))
    }

    /// What a session lacks that has everything up to `seq`; `None` if that is nothing.
    ///
    /// # Errors
    /// As [`state`](Mirror::state).
    pub fn since(&mut self, seq: Seq) -> Result<Option<Missed>, Refusal> {
        if seq >= self.at.seq {
            return Ok(None);
        }
        let Some(touched) = self.recent.touched_after(seq.0).filter(|keys| keys.len() <= MISSED_KEYS_MAX)
        else {
            return self.state().map(Missed::State).map(Some);
        };
        let heads = self.heads.hashes();
        let ops = touched.values().map(|touched| self.current(touched, &heads)).collect();
        Ok(Some(Missed::Ops(SharedOps {
            first: seq.next(),
            last: self.at.seq,
            micros_max: self.micros_max,
            ops,
        })))
    }

    /// What to tell one who repeats an op: the op as it is stored, and behind it what the key has now, if that is
    /// another. Nothing if the op is not known: it is neither one of the key's values nor one of the newest entries.
    #[must_use]
    pub fn recall(&self, key: &str, micros: u64) -> Vec<SharedOp> {
        let heads = self.heads.hashes();
        let map = self.document.map("");
        let winner = map.and_then(|map| map.get(key));
        let held = map.and_then(|map| {
            let lost = map.conflicts(key);
            winner.into_iter().chain(lost).find(|value| value.stamp.micros == micros)
        });
        let stored = match (held, self.recent.op(key, micros)) {
            (Some(value), _) => winning(key, &value, &heads, Audience::Author),
            (None, Some(op)) => SharedOp { audience: Audience::Author, ..op.clone() },
            (None, None) => return Vec::new(),
        };
        let now = match winner {
            Some(winner) => Some(winning(key, &winner, &heads, Audience::Author)),
            None => self
                .recent
                .touched_after(stored.seq.0.saturating_sub(1))
                .and_then(|touched| touched.get(key).map(|touched| self.current(touched, &heads))),
        };
        let other = now.filter(|now| (now.seq, now.counter) != (stored.seq, stored.counter));
        std::iter::once(stored).chain(other).collect()
    }

    fn enter(&mut self, entry: &EntryRef<'_>, out: &mut Vec<SharedOp>) -> Result<(), Refusal> {
        if let Some(new) = entry.new {
            self.replicas.push(new);
        }
        let index = usize::try_from(entry.index).unwrap_or(usize::MAX);
        let replica = *self.replicas.get(index).ok_or_else(|| unusable("an entry of an unknown replica"))?;
        let counter = self.document.next_counter(replica);
        let root: Vec<(u64, MapOp<'_>)> =
            read_map_ops(entry.body).map_err(unusable)?.filter(|(_, op)| op.map.is_empty()).collect();
        let winner = |document: &Document, key: &str| -> Option<OpId> {
            document.map("").and_then(|map| map.get(key)).map(|value| value.op)
        };
        let before: Vec<Option<OpId>> = root.iter().map(|(_, op)| winner(&self.document, op.key)).collect();

        let change = ChangeRef { replica, counter, base: entry.base, body: entry.body };
        let applied = self.document.apply(change).map_err(unusable)?;
        self.heads.enter(replica, entry.seq, entry.base, applied.hash);
        let heads = if root.is_empty() { Vec::new() } else { self.heads.hashes() };
        let map = self.document.map("");
        let mut ops = Vec::with_capacity(root.len());
        for ((offset, op), before) in root.iter().zip(before) {
            let id = OpId { replica, counter: counter + offset };
            self.micros_max = self.micros_max.max(op.stamp.micros);
            let now = map.and_then(|map| map.get(op.key));
            let written = Said { key: op.key, value: op.value, micros: op.stamp.micros };
            let changed = now.map(|value| value.op) != before;
            // What is in force is told to all; if that is what they have already, only to the author, who
            // may believe something else.
            let audience = if changed { Audience::All } else { Audience::Author };
            let told = match now {
                // The key is as the op left it.
                Some(value) if value.op == id => None,
                None if op.value.is_none() => None,
                Some(value) => Some(winning(op.key, &value, &heads, audience)),
                None => Some(gone(op.key, (written.micros, replica, entry.seq), &heads)),
            };
            let own = shared(written, (id, entry.seq), &heads, Audience::All);
            let told = match told {
                // Numbered as the op that brought it about, so that its author knows that it has come.
                Some(told) => {
                    SharedOp { replica, counter: id.counter, seq: Seq(entry.seq), audience, ..told }
                }
                None => SharedOp { audience, ..own.clone() },
            };
            out.push(told);
            let touched = Touched { key: op.key.into(), micros: written.micros, replica, seq: entry.seq };
            ops.push((touched, own));
        }
        self.recent.add((entry.seq, replica, entry.base, applied.hash), ops);
        Ok(())
    }

    /// The seq at which a client was that has these heads.
    fn seq_of(&self, heads: &[Hash]) -> Option<u64> {
        let mut sorted = heads.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        if !sorted.is_empty() && sorted == self.heads.hashes() {
            return Some(self.at.seq.0);
        }
        self.recent.seq_of(&sorted)
    }

    /// What a key that was touched has now.
    fn current(&self, touched: &Touched, heads: &[Hash]) -> SharedOp {
        match self.document.map("").and_then(|map| map.get(&touched.key)) {
            Some(value) => winning(&touched.key, &value, heads, Audience::All),
            None => gone(&touched.key, (touched.micros, touched.replica, touched.seq), heads),
        }
    }

    fn shared(&self, frame: Bytes) -> Result<SharedState, Refusal> {
        if frame.len() > self.limits.init_bytes_max {
            return Err(too_large(frame.len(), self.limits.init_bytes_max));
        }
        let strategy = self.document.strategy();
        Ok(SharedState { position: self.at, strategy, micros_max: self.micros_max, frame })
    }
}

/// The value that a key has, as it is told.
fn winning(key: &str, value: &MapValue<'_>, heads: &[Hash], audience: Audience) -> SharedOp {
    let said = Said { key, value: Some(value.value), micros: value.stamp.micros };
    shared(said, (value.op, value.seq), heads, audience)
}

/// A key that has none, as it is told.
fn gone(key: &str, (micros, replica, seq): (u64, ReplicaId, u64), heads: &[Hash]) -> SharedOp {
    // Nobody waits for the echo of this number.
    let id = OpId { replica, counter: u64::MAX };
    shared(Said { key, value: None, micros }, (id, seq), heads, Audience::All)
}

fn shared(said: Said<'_>, (id, seq): (OpId, u64), heads: &[Hash], audience: Audience) -> SharedOp {
    let extended = encode::extended_op(said, Origin { seq, author: id.replica, heads });
    let bare = encode::op(said);
    SharedOp { replica: id.replica, counter: id.counter, seq: Seq(seq), audience, bare, extended }
}

fn replicas_of(document: &Document) -> Vec<ReplicaId> {
    let version = document.version();
    let mut by_index: Vec<(u32, ReplicaId)> =
        version.iter().filter_map(|(replica, _)| Some((document.replica_index(replica)?, replica))).collect();
    by_index.sort_unstable();
    by_index.into_iter().map(|(_, replica)| replica).collect()
}

/// What the log has was admitted once, perhaps under larger limits than the usual ones.
fn document_limits() -> Limits {
    let usual = Limits::default();
    Limits {
        change_bytes_max: usual.change_bytes_max * 16,
        elements_max: usual.elements_max * 2,
        replicas_max: usual.replicas_max * 2,
        containers_max: usual.containers_max * 2,
        keys_max: usual.keys_max * 2,
        map_bytes_max: usual.map_bytes_max * 2,
    }
}

fn unusable(why: impl ToString) -> Refusal {
    Refusal::new(Code::Internal, why.to_string())
}

fn too_large(bytes: usize, max: usize) -> Refusal {
    let message = format!(
        "the workspace takes {bytes} bytes, where {max} are allowed in the JSON dialect; use the binary protocol"
    );
    Refusal::new(Code::TooLarge, message)
}
