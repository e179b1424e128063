//! A document: its replicas, its texts, its maps, and the one way in for changes from the log.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::body::{self, RawOp, Scratch};
use crate::change::{self, ChangeRef};
use crate::check::{Checked, Op, Resolved};
use crate::error::Refusal;
use crate::id::{Client, Hash, Id, OpId, ReplicaId, VersionVector};
use crate::map::{Changed, Hlc, MapOp, Maps, Strategy, Write};
use crate::pending::Local;
use crate::sequence::Sequences;
use crate::wire::Reader;

/// What a document may grow to. A change that would exceed a limit is refused.
///
/// ```
/// use manyhands_crdt::{Document, EditError, Limits, ReplicaId};
///
/// let limits = Limits { elements_max: 3, ..Limits::default() };
/// let mut document = Document::with_limits(limits);
/// let refused = document.edit(ReplicaId(7)).insert("page", 0, "four");
/// assert_eq!(refused, Err(EditError::TooLarge { what: "characters of a document", limit: 3 }));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one change's body.
    pub change_bytes_max: usize,
    /// Characters of all texts, deleted ones included.
    pub elements_max: usize,
    /// Replicas that ever wrote.
    pub replicas_max: usize,
    /// Named containers: texts, and maps that have something in them.
    pub containers_max: usize,
    /// Keys of all maps. A key counts for each of its concurrent values, and under
    /// [`Strategy::Lww`](crate::Strategy::Lww) also when it was removed, as that must be remembered.
    pub keys_max: usize,
    /// Bytes of the keys and values of all maps.
    pub map_bytes_max: usize,
}

impl Limits {
    /// Room for own edits that the log does not have yet, on top of what the log may have.
    pub(crate) fn doubled(self) -> Limits {
        Limits {
            elements_max: self.elements_max.saturating_mul(2),
            replicas_max: self.replicas_max.saturating_mul(2),
            containers_max: self.containers_max.saturating_mul(2),
            keys_max: self.keys_max.saturating_mul(2),
            map_bytes_max: self.map_bytes_max.saturating_mul(2),
            ..self
        }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            change_bytes_max: 64 * 1024,
            elements_max: 4 * 1024 * 1024,
            replicas_max: 10_000,
            containers_max: 1_000,
            keys_max: 100_000,
            map_bytes_max: 16 * 1024 * 1024,
        }
    }
}

/// What only the owner of a document checks, when it decides on a change: what is in the log has passed.
///
/// ```
/// use manyhands_crdt::{Admission, Document, Hlc, Refusal, ReplicaId};
///
/// let mut ann = Document::new();
/// let mut edit = ann.edit(ReplicaId(7));
/// edit.set("", "title", "\"mine\"", Hlc::at(5_000), None).unwrap();
/// let change = edit.commit(0).unwrap();
///
/// let mut owner = Document::new();
/// let admission = Admission { stamp_max: Some(4_000) };
/// let refused = Refusal::ClockAhead { stamp_micros: 5_000, max_micros: 4_000 };
/// assert_eq!(owner.admit(change.as_ref(), &admission), Err(refused));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// The greatest stamp that a map's write may have, in microseconds since the Unix epoch. `None` allows
    /// any; under [`Strategy::Server`](crate::Strategy::Server), where stamps order nothing, it is not looked at.
    pub stamp_max: Option<u64>,
}

/// What became of a change that was applied.
///
/// ```
/// use manyhands_crdt::{Document, ReplicaId};
///
/// let mut ann = Document::new();
/// let mut edit = ann.edit(ReplicaId(7));
/// edit.insert("page", 0, "Hi").unwrap();
/// let change = edit.commit(0).unwrap();
///
/// let mut owner = Document::new();
/// let applied = owner.apply(change.as_ref()).unwrap();
/// assert_eq!(applied.next_counter, 2);
/// // The same change once more: its hash tells that it is no other one.
/// assert!(owner.apply(change.as_ref()).is_err());
/// assert_eq!(owner.hash_of(change.as_ref()), Ok((2, applied.hash)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The replica's first counter after the change.
    pub next_counter: u64,
    /// The hash of the change.
    pub hash: Hash,
}

/// What the document knows of one replica.
#[derive(Clone, Debug)]
pub(crate) struct ReplicaState {
    pub(crate) id: ReplicaId,
    /// First counter that is not applied.
    pub(crate) next: u32,
    /// First counter that has not come by the log; below `next` while own edits are under way.
    pub(crate) logged: u32,
    pub(crate) log_index: Option<u32>,
}

/// All that merging needs: texts with their tombstones, maps, and how much of each replica is in them.
///
/// ```
/// use manyhands_crdt::{Document, ReplicaId};
///
/// let mut document = Document::new();
/// let mut edit = document.edit(ReplicaId(7));
/// edit.insert("page", 0, "Hello").unwrap();
/// let change = edit.commit(0).unwrap();
///
/// let mut owner = Document::new();
/// owner.apply(change.as_ref()).unwrap();
/// assert_eq!(owner.containers().collect::<Vec<_>>(), ["page"]);
/// assert_eq!(owner.next_counter(ReplicaId(7)), 5);
/// assert_eq!((owner.replica_index(ReplicaId(7)), owner.replica_count()), (Some(0), 1));
/// assert_eq!(owner.seq(), 1);
/// assert_eq!(owner.version(), document.version());
/// assert!(owner.memory_bytes() < 10_000);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Document {
    pub(crate) limits: Limits,
    pub(crate) replicas: Vec<ReplicaState>,
    pub(crate) clients: BTreeMap<ReplicaId, Client>,
    /// Log index to client.
    pub(crate) log: Vec<Client>,
    pub(crate) names: Vec<Arc<str>>,
    pub(crate) containers: BTreeMap<Arc<str>, u32>,
    pub(crate) sequences: Sequences,
    pub(crate) maps: Maps,
    /// Entries of the log that are in it.
    pub(crate) seq: u64,
    pub(crate) local: Local,
    pub(crate) scratch: Scratch,
    pub(crate) resolved: Resolved,
}

/// What is told about the visible effect of a change, in order.
pub(crate) trait Observer {
    /// Whether it listens at all; positions are looked up only then.
    const LISTENS: bool = true;
    fn inserted(&mut self, container: &Arc<str>, at: usize, text: &str);
    fn deleted(&mut self, container: &Arc<str>, at: usize, len: usize);
    /// A map's key has another value, or other ones that conflict with it; the stamp and op of a value that
    /// is gone are those of the removal.
    fn wrote(&mut self, container: &Arc<str>, key: &Arc<str>, value: Option<&Arc<str>>, stamp: Hlc, op: OpId);
}

impl Observer for () {
    const LISTENS: bool = false;
    fn inserted(&mut self, _: &Arc<str>, _: usize, _: &str) {}
    fn deleted(&mut self, _: &Arc<str>, _: usize, _: usize) {}
    fn wrote(&mut self, _: &Arc<str>, _: &Arc<str>, _: Option<&Arc<str>>, _: Hlc, _: OpId) {}
}

/// What a body does not say of itself.
#[derive(Clone, Copy)]
pub(crate) struct Origin {
    pub(crate) client: Client,
    /// Its entry's place in the log; 0 when it has none yet.
    pub(crate) seq: u64,
    pub(crate) base: u64,
}

impl Document {
    /// An empty document with the usual limits, whose maps merge by [`Strategy::Crdt`].
    pub fn new() -> Document {
        Document::default()
    }

    /// An empty document whose maps merge by [`Strategy::Crdt`].
    pub fn with_limits(limits: Limits) -> Document {
        Document::with_strategy(Strategy::default(), limits)
    }

    /// An empty document whose maps merge by that strategy.
    ///
    /// ```
    /// use manyhands_crdt::{Document, Hlc, Limits, ReplicaId, Strategy};
    ///
    /// let mut document = Document::with_strategy(Strategy::Lww, Limits::default());
    /// let mut edit = document.edit(ReplicaId(7));
    /// edit.set("", "title", "\"new\"", Hlc::at(2_000), None).unwrap();
    /// edit.set("", "title", "\"old\"", Hlc::at(1_000), None).unwrap();
    /// edit.commit(0).unwrap();
    /// assert_eq!(document.map("").unwrap().get("title").unwrap().value, "\"new\"");
    /// ```
    pub fn with_strategy(strategy: Strategy, limits: Limits) -> Document {
        Document { limits, maps: Maps::new(strategy), ..Document::default() }
    }

    /// How its maps merge.
    ///
    /// ```
    /// use manyhands_crdt::{Document, Strategy};
    ///
    /// assert_eq!(Document::new().strategy(), Strategy::Crdt);
    /// ```
    pub fn strategy(&self) -> Strategy {
        self.maps.strategy
    }

    /// The newest entry of the log that is in it; 0 when there is none.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// The first counter of `replica` that is not here; 0 for an unknown replica.
    pub fn next_counter(&self, replica: ReplicaId) -> u64 {
        self.client(replica).map_or(0, |client| u64::from(self.replicas[client as usize].next))
    }

    /// How much of each replica is here.
    pub fn version(&self) -> VersionVector {
        let mut version = VersionVector::new();
        for replica in &self.replicas {
            version.advance(replica.id, u64::from(replica.next));
        }
        version
    }

    /// The replica's log index: the order of its first entry in the log. What bodies refer by.
    pub fn replica_index(&self, replica: ReplicaId) -> Option<u32> {
        self.replicas[self.client(replica)? as usize].log_index
    }

    /// Replicas that have an entry in the log.
    pub fn replica_count(&self) -> usize {
        self.log.len()
    }

    /// Names of all texts, in order of name.
    pub fn containers(&self) -> impl Iterator<Item = &str> {
        self.containers.keys().map(|name| &**name)
    }

    /// Roughly the heap that the document takes.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Document>()
            + self.sequences.memory_bytes()
            + self.maps.memory_bytes()
            + self.local.memory_bytes()
            + self.replicas.capacity() * (size_of::<ReplicaState>() + 32)
            + self.names.iter().map(|name| name.len() + 96).sum::<usize>()
    }

    /// Applies the log's next entry: the whole change or, when it is refused, nothing of it. It must be its
    /// replica's next change; a replica's first one gives it the next log index.
    ///
    /// # Errors
    /// [`Refusal::Known`] and [`Refusal::Gap`] when it is not the replica's next change; the rest says
    /// what is wrong with it.
    pub fn apply(&mut self, change: ChangeRef<'_>) -> Result<Applied, Refusal> {
        self.apply_next(change, None)
    }

    /// Decides on a change as the document's owner: [`apply`](Document::apply), and the checks that only
    /// count before a change is in the log.
    ///
    /// # Errors
    /// As [`apply`](Document::apply); [`Refusal::Conflict`] when a write expects another value than its key
    /// has, [`Refusal::ClockAhead`] when a stamp is beyond what `admission` allows.
    pub fn admit(&mut self, change: ChangeRef<'_>, admission: &Admission) -> Result<Applied, Refusal> {
        self.apply_next(change, Some(admission))
    }

    fn apply_next(
        &mut self,
        change: ChangeRef<'_>,
        admission: Option<&Admission>,
    ) -> Result<Applied, Refusal> {
        let (client, applied) = self.apply_at(change, self.seq + 1, admission)?;
        self.seq += 1;
        let state = &mut self.replicas[client as usize];
        state.logged = state.next;
        if state.log_index.is_none() {
            self.give_index(client);
        }
        Ok(applied)
    }

    /// Makes an own change again that is not in the log yet: the outbox of a client on top of a state that
    /// it got from the server. Its entry is expected like that of any local edit.
    ///
    /// ```
    /// use manyhands_crdt::{Document, ReplicaId};
    ///
    /// let mut ann = Document::new();
    /// let mut edit = ann.edit(ReplicaId(7));
    /// edit.insert("page", 0, "mine").unwrap();
    /// let waiting = edit.commit(0).unwrap();
    ///
    /// // What the server had meanwhile.
    /// let mut ann = Document::decode(&Document::new().encode()).unwrap();
    /// ann.reapply(waiting.as_ref()).unwrap();
    /// assert_eq!(ann.text("page").unwrap().to_string(), "mine");
    /// assert_eq!(ann.replica_index(ReplicaId(7)), None);
    /// ```
    ///
    /// # Errors
    /// As [`apply`](Document::apply); [`Refusal::MissingEntries`] when it writes to maps and its author had seen
    /// entries that are not here yet: they would come as if it had not.
    pub fn reapply(&mut self, change: ChangeRef<'_>) -> Result<Applied, Refusal> {
        self.apply_at(change, 0, None).map(|(_, applied)| applied)
    }

    fn apply_at(
        &mut self,
        change: ChangeRef<'_>,
        seq: u64,
        admission: Option<&Admission>,
    ) -> Result<(Client, Applied), Refusal> {
        let known = self.client(change.replica);
        let next_counter = known.map_or(0, |client| u64::from(self.replicas[client as usize].next));
        if change.counter < next_counter {
            return Err(Refusal::Known { next_counter });
        }
        if change.counter > next_counter {
            return Err(Refusal::Gap { next_counter });
        }
        if change.body.len() > self.limits.change_bytes_max {
            return Err(self.too_long());
        }
        let mut reader = Reader::new(change.body);
        if let Some(client) = known
            && let Some(keystroke) = body::read_keystroke(&mut reader, &mut self.scratch)
        {
            if reader.rest() == 0
                && let Some(next) = self.keystroke(client, self.limits, &keystroke, &mut ())
            {
                let hash = self.hash_checked(change)?;
                return Ok((client, Applied { next_counter: u64::from(next), hash }));
            }
            reader = Reader::new(change.body);
        }
        let client = self.client_or_next(change.replica, self.limits)?;
        let (replica, base, limits) = (change.replica, change.base, self.limits);
        self.check(Checked { client, replica, base, limits, admission }, &mut reader)?;
        reader.end()?;
        if seq == 0 && base > self.seq && self.resolved.ops.iter().any(|op| matches!(op, Op::Map { .. })) {
            return Err(Refusal::MissingEntries { known: self.seq });
        }
        let hash = self.hash_checked(change)?;
        if client as usize == self.replicas.len() {
            self.add_replica(change.replica);
        }
        let next = self.integrate(Origin { client, seq, base }, change.body, &mut ());
        Ok((client, Applied { next_counter: u64::from(next), hash }))
    }

    /// The first counter after a change and its hash, as [`apply`](Document::apply) would give them; for
    /// comparing a resend with what is in the log. Neither applies nor checks the change.
    ///
    /// # Errors
    /// When the bytes are no change or name a log index that was not given out.
    pub fn hash_of(&self, change: ChangeRef<'_>) -> Result<(u64, Hash), Refusal> {
        let mut scratch = Scratch::default();
        let counters = change::measure(change.body, &mut scratch)?;
        let hash = change::hash(change, &scratch, |index| self.replica_at(index))
            .map_err(|index| Refusal::UnknownIndex { index })?;
        Ok((change.counter.saturating_add(counters), hash))
    }

    fn hash_checked(&self, change: ChangeRef<'_>) -> Result<Hash, Refusal> {
        change::hash(change, &self.scratch, |index| self.replica_at(index))
            .map_err(|index| Refusal::UnknownIndex { index })
    }

    pub(crate) fn client(&self, replica: ReplicaId) -> Option<Client> {
        self.clients.get(&replica).copied()
    }

    fn replica_at(&self, index: u64) -> Option<ReplicaId> {
        let &client = self.log.get(usize::try_from(index).ok()?)?;
        Some(self.replicas[client as usize].id)
    }

    /// The replica's client, or the one that it would get.
    pub(crate) fn client_or_next(&self, replica: ReplicaId, limits: Limits) -> Result<Client, Refusal> {
        if replica.0 == 0 {
            return Err(Refusal::NoReplica);
        }
        match self.client(replica) {
            Some(client) => Ok(client),
            None if self.replicas.len() >= limits.replicas_max => {
                Err(Refusal::TooLarge { what: "replicas", limit: limits.replicas_max as u64 })
            }
            None => Ok(self.replicas.len() as Client),
        }
    }

    pub(crate) fn add_replica(&mut self, replica: ReplicaId) -> Client {
        let client = self.replicas.len() as Client;
        self.replicas.push(ReplicaState { id: replica, next: 0, logged: 0, log_index: None });
        self.clients.insert(replica, client);
        client
    }

    pub(crate) fn give_index(&mut self, client: Client) {
        self.replicas[client as usize].log_index = Some(self.log.len() as u32);
        self.log.push(client);
    }

    pub(crate) fn too_long(&self) -> Refusal {
        Refusal::TooLarge { what: "bytes of a change", limit: self.limits.change_bytes_max as u64 }
    }

    pub(crate) fn op_id(&self, id: Id) -> OpId {
        OpId { replica: self.replicas[id.client as usize].id, counter: u64::from(id.counter) }
    }

    /// The text of that name, made if need be.
    pub(crate) fn text_or_new(&mut self, name: &str) -> u32 {
        match self.containers.get(name) {
            Some(&text) => text,
            None => {
                let text = self.sequences.add_text();
                let name: Arc<str> = name.into();
                self.names.push(name.clone());
                self.containers.insert(name, text);
                text
            }
        }
    }

    /// Integrates what [`Document::check`] has resolved; returns the client's next counter. `bytes` is
    /// what the reader read from.
    pub(crate) fn integrate(&mut self, origin: Origin, bytes: &[u8], on: &mut impl Observer) -> u32 {
        let client = origin.client;
        let resolved = std::mem::take(&mut self.resolved);
        let utf8 = |(start, end): (usize, usize)| {
            std::str::from_utf8(&bytes[start..end]).expect("the check has decoded it")
        };
        for name in &resolved.new_names {
            self.text_or_new(name);
        }
        let mut next = self.replicas[client as usize].next;
        for op in &resolved.ops {
            match *op {
                Op::Insert { id, len, left, right, text, content, guess } => {
                    next = id.counter + len;
                    if !left.is_none() {
                        self.sequences.hint(left, guess);
                    }
                    self.insert(text, id, left, right, utf8(content), on);
                }
                Op::Delete { ranges: (start, end), .. } => {
                    next += 1;
                    for &(id, len, guess) in &resolved.ranges[start..end] {
                        self.sequences.hint(id, guess);
                        self.delete(id, len, on);
                    }
                }
                Op::Map { counter, at } => {
                    next = counter + 1;
                    self.write_at(bytes, at, Id::new(client, counter), origin, on);
                }
            }
        }
        self.replicas[client as usize].next = next;
        self.resolved = resolved;
        next
    }

    pub(crate) fn insert<O: Observer>(
        &mut self,
        text: u32,
        id: Id,
        left: Id,
        right: Id,
        content: &str,
        on: &mut O,
    ) {
        self.local.caret = None;
        let replicas = &self.replicas;
        let key = |client: Client| replicas[client as usize].id.0;
        self.sequences.insert(&key, text, id, left, right, content);
        if O::LISTENS {
            let (_, at, _) = self.sequences.position(id).expect("just inserted");
            on.inserted(&self.names[text as usize], at, content);
        }
    }

    pub(crate) fn delete<O: Observer>(&mut self, id: Id, len: u32, on: &mut O) {
        self.local.caret = None;
        let names = &self.names;
        let mut tell = |text: u32, at, len| on.deleted(&names[text as usize], at, len);
        self.sequences.delete(id, len, if O::LISTENS { Some(&mut tell) } else { None });
    }

    /// Takes in the write to a map whose op begins there.
    fn write_at<O: Observer>(&mut self, bytes: &[u8], at: usize, id: Id, origin: Origin, on: &mut O) {
        let mut reader = Reader::starting_at(bytes, at);
        if let Ok((RawOp::Map(op), _)) = body::read_op(&mut reader, &mut self.scratch) {
            self.write(&op, id, origin, on);
        }
    }

    pub(crate) fn write<O: Observer>(&mut self, op: &MapOp<'_>, id: Id, origin: Origin, on: &mut O) {
        let write = Write { op: *op, id, seq: origin.seq, base: origin.base };
        let replicas = &self.replicas;
        let tell = O::LISTENS.then_some(|changed: Changed<'_>| tell(replicas, &write, changed, on));
        self.maps.write(&write, &|client| replicas[client as usize].id.0, tell);
    }

    /// A write of our own to a map is in the log now.
    pub(crate) fn logged<O: Observer>(&mut self, op: &MapOp<'_>, id: Id, origin: Origin, on: &mut O) {
        let write = Write { op: *op, id, seq: origin.seq, base: origin.base };
        let replicas = &self.replicas;
        let tell = O::LISTENS.then_some(|changed: Changed<'_>| tell(replicas, &write, changed, on));
        self.maps.logged(&write, tell);
    }

    /// What stands for a replica where writes of one stamp are put in order.
    pub(crate) fn replica_order(&self, client: Client) -> u64 {
        self.replicas.get(client as usize).map_or(0, |state| state.id.0)
    }
}

fn tell<O: Observer>(replicas: &[ReplicaState], write: &Write<'_>, changed: Changed<'_>, on: &mut O) {
    let (value, stamp, id) = match changed.winner {
        Some(held) => (held.json.as_ref(), held.stamp, held.id),
        None => (None, write.op.stamp, write.id),
    };
    let op = OpId { replica: replicas[id.client as usize].id, counter: u64::from(id.counter) };
    on.wrote(changed.map, changed.key, value, stamp, op);
}
