//! The event log in memory: for tests, and for simulation, which can make it fail on purpose.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use manyhands_crdt::ReplicaId;
use manyhands_proto::{DocumentName, Epoch, Incarnation, NodeId, Offset, PartitionId, Seq};

use super::batch::{Verdict, check, head_after, is_stored, judge};
use super::{
    AppendError, Appended, Batch, Cursor, DocumentRecord, Entry, EventLog, Lease, LogError, Member,
    Ownership, ReadLimit,
};

/// A call of the log, for one who decides about its fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// `append` to the partition.
    Append(PartitionId),
    /// `claim`, `renew`, `release`, `join`, `leave` or `ownership`.
    Lease,
    /// `take_cursor`, `advance` or `published`.
    Cursor,
    /// `document`, `read`, `find` or `follow`.
    Read,
}

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// The request is lost: no effect and no answer.
    Request,
    /// The answer is lost: the effect is there.
    Answer,
}

/// An event log that is lost with its process.
pub struct MemoryLog {
    state: Mutex<State>,
    clock: Box<dyn Fn() -> Duration + Send + Sync>,
    faults: Mutex<Box<dyn FnMut(Call) -> Fault + Send>>,
}

impl Default for MemoryLog {
    fn default() -> MemoryLog {
        MemoryLog::new()
    }
}

impl MemoryLog {
    /// An empty log whose leases run by the machine's clock.
    #[must_use]
    pub fn new() -> MemoryLog {
        let start = Instant::now();
        MemoryLog::with(move || start.elapsed(), |_| Fault::None)
    }

    /// An empty log on a clock of the caller's, with faults of the caller's choice.
    pub fn with(
        clock: impl Fn() -> Duration + Send + Sync + 'static,
        faults: impl FnMut(Call) -> Fault + Send + 'static,
    ) -> MemoryLog {
        MemoryLog {
            state: Mutex::new(State::new()),
            clock: Box::new(clock),
            faults: Mutex::new(Box::new(faults)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call<T>(&self, call: Call, effect: impl FnOnce(&mut State, Duration) -> T) -> Result<T, String> {
        let fault = (self.faults.lock().unwrap_or_else(PoisonError::into_inner))(call);
        if fault == Fault::Request {
            return Err("the request was lost on purpose".into());
        }
        let value = effect(&mut self.state(), (self.clock)());
        if fault == Fault::Answer { Err("the answer was lost on purpose".into()) } else { Ok(value) }
    }
}

struct State {
    partitions: BTreeMap<PartitionId, Partition>,
    documents: BTreeMap<DocumentName, DocumentRecord>,
    members: BTreeMap<NodeId, Held>,
    cursors: BTreeMap<(String, PartitionId), HeldCursor>,
}

#[derive(Default)]
struct Partition {
    epoch: Epoch,
    published: Offset,
    owner: Option<Held>,
    /// The entry at offset n is at n - 1.
    entries: Vec<Entry>,
    /// Indices into `entries`; that of seq n is at n - 1.
    incarnations: BTreeMap<Incarnation, Vec<usize>>,
    changes: BTreeMap<(Incarnation, ReplicaId, u64), usize>,
}

struct Held {
    member: Member,
    until: Duration,
}

struct HeldCursor {
    offset: Offset,
    epoch: Epoch,
    owner: NodeId,
    until: Duration,
}

impl State {
    fn new() -> State {
        State {
            partitions: PartitionId::all().map(|partition| (partition, Partition::default())).collect(),
            documents: BTreeMap::new(),
            members: BTreeMap::new(),
            cursors: BTreeMap::new(),
        }
    }

    fn append(&mut self, lease: &Lease, expected: Offset, batch: &Batch) -> Result<Appended, AppendError> {
        check(lease, expected, batch)?;
        let refused = |why: &str| Err(AppendError::Refused(why.into()));
        let Some(partition) = self.partitions.get_mut(&lease.partition) else {
            return refused("there is no such partition");
        };
        let head = head_after(expected, batch);
        let appended = Appended { partition: lease.partition, epoch: lease.epoch, head };
        if partition.epoch != lease.epoch || partition.head() != expected {
            return match judge(lease, expected, batch, partition.epoch.0, partition.head()) {
                Verdict::Failed(error) => Err(error),
                Verdict::Compare if is_stored(batch, &partition.entries[expected.0 as usize..]) => {
                    Ok(appended)
                }
                Verdict::Compare => Err(super::batch::diverged(lease, expected, head)),
            };
        }
        for document in &batch.created {
            if self.documents.contains_key(&document.name)
                || partition.incarnations.contains_key(&document.incarnation)
            {
                return refused("a document of this name has an incarnation already");
            }
        }
        let mut identities: Vec<_> = batch.entries.iter().map(identity).collect();
        identities.sort_unstable();
        let repeated = identities.windows(2).any(|pair| pair[0] == pair[1]);
        if repeated || identities.iter().any(|identity| partition.changes.contains_key(identity)) {
            return refused("a change would be stored twice");
        }
        let mut seen = BTreeSet::new();
        for entry in batch.entries.iter().filter(|entry| seen.insert(entry.incarnation)) {
            let stored = partition.incarnations.get(&entry.incarnation).map_or(0, Vec::len) as u64;
            if entry.seq != Seq(stored + 1) {
                return refused("a seq is taken, or would leave a gap");
            }
        }
        for document in &batch.created {
            self.documents.insert(document.name.clone(), document.clone());
        }
        for entry in &batch.entries {
            let index = partition.entries.len();
            partition.incarnations.entry(entry.incarnation).or_default().push(index);
            partition.changes.insert(identity(entry), index);
            partition.entries.push(entry.clone());
        }
        Ok(appended)
    }
}

impl Partition {
    fn head(&self) -> Offset {
        Offset(self.entries.len() as u64)
    }
}

fn identity(entry: &Entry) -> (Incarnation, ReplicaId, u64) {
    (entry.incarnation, entry.replica, entry.counter)
}

/// The first of `entries` that a read returns.
fn limited<'a>(entries: impl Iterator<Item = &'a Entry>, limit: ReadLimit) -> Vec<Entry> {
    let mut taken = Vec::new();
    let mut bytes = 0;
    for entry in entries.take(limit.entries_max.max(1)) {
        bytes += entry.body.len();
        if bytes > limit.bytes_max && !taken.is_empty() {
            break;
        }
        taken.push(entry.clone());
    }
    taken
}

#[async_trait]
impl EventLog for MemoryLog {
    async fn join(&self, member: &Member, ttl: Duration) -> Result<Vec<Member>, LogError> {
        self.call(Call::Lease, |state, now| {
            let held = Held { member: member.clone(), until: now + ttl };
            state.members.insert(member.node.clone(), held);
            state.members.retain(|_, held| held.until > now);
            state.members.values().map(|held| held.member.clone()).collect()
        })
        .map_err(LogError::Unavailable)
    }

    async fn leave(&self, node: &NodeId) -> Result<(), LogError> {
        self.call(Call::Lease, |state, _| state.members.remove(node)).map_err(LogError::Unavailable)?;
        Ok(())
    }

    async fn ownership(&self) -> Result<Vec<Ownership>, LogError> {
        self.call(Call::Lease, |state, now| {
            let row = |(&id, partition): (&PartitionId, &Partition)| Ownership {
                partition: id,
                epoch: partition.epoch,
                owner: partition
                    .owner
                    .as_ref()
                    .filter(|held| held.until > now)
                    .map(|held| held.member.clone()),
            };
            state.partitions.iter().map(row).collect()
        })
        .map_err(LogError::Unavailable)
    }

    async fn claim(
        &self,
        member: &Member,
        partitions: &[PartitionId],
        ttl: Duration,
    ) -> Result<Vec<Lease>, LogError> {
        self.call(Call::Lease, |state, now| {
            let mut leases = Vec::new();
            for (&id, partition) in &mut state.partitions {
                if !partitions.contains(&id) || partition.owner.as_ref().is_some_and(|held| held.until > now)
                {
                    continue;
                }
                partition.epoch = partition.epoch.next();
                partition.owner = Some(Held { member: member.clone(), until: now + ttl });
                let (epoch, head, published) = (partition.epoch, partition.head(), partition.published);
                leases.push(Lease { partition: id, epoch, head, published });
            }
            leases
        })
        .map_err(LogError::Unavailable)
    }

    async fn renew(
        &self,
        node: &NodeId,
        held: &[(PartitionId, Epoch)],
        ttl: Duration,
    ) -> Result<Vec<PartitionId>, LogError> {
        self.call(Call::Lease, |state, now| {
            let mut lost = Vec::new();
            for &(id, epoch) in held {
                let partition = state.partitions.get_mut(&id).filter(|partition| partition.epoch == epoch);
                match partition.and_then(|partition| partition.owner.as_mut()) {
                    Some(owner) if owner.member.node == *node => owner.until = now + ttl,
                    _ => lost.push(id),
                }
            }
            lost
        })
        .map_err(LogError::Unavailable)
    }

    async fn release(&self, held: &[(PartitionId, Epoch)]) -> Result<(), LogError> {
        self.call(Call::Lease, |state, _| {
            for &(id, epoch) in held {
                if let Some(partition) = state.partitions.get_mut(&id).filter(|held| held.epoch == epoch) {
                    partition.owner = None;
                }
            }
        })
        .map_err(LogError::Unavailable)
    }

    async fn append(&self, lease: &Lease, expected: Offset, batch: &Batch) -> Result<Appended, AppendError> {
        self.call(Call::Append(lease.partition), |state, _| state.append(lease, expected, batch))
            .map_err(AppendError::Unknown)?
    }

    async fn published(&self, lease: &Lease, offset: Offset) -> Result<(), LogError> {
        self.call(Call::Cursor, |state, _| {
            let partition = state.partitions.get_mut(&lease.partition);
            if let Some(partition) = partition.filter(|partition| partition.epoch == lease.epoch) {
                partition.published = partition.published.max(offset);
            }
        })
        .map_err(LogError::Unavailable)
    }

    async fn document(&self, name: &DocumentName) -> Result<Option<DocumentRecord>, LogError> {
        self.call(Call::Read, |state, _| state.documents.get(name).cloned()).map_err(LogError::Unavailable)
    }

    async fn read(
        &self,
        partition: PartitionId,
        incarnation: Incarnation,
        after: Seq,
        limit: ReadLimit,
    ) -> Result<Vec<Entry>, LogError> {
        self.call(Call::Read, |state, _| {
            let Some(partition) = state.partitions.get(&partition) else { return Vec::new() };
            let indices = partition.incarnations.get(&incarnation).map_or(&[][..], Vec::as_slice);
            let skipped = usize::try_from(after.0).unwrap_or(usize::MAX);
            limited(indices.iter().skip(skipped).map(|&index| &partition.entries[index]), limit)
        })
        .map_err(LogError::Unavailable)
    }

    async fn find(
        &self,
        partition: PartitionId,
        incarnation: Incarnation,
        replica: ReplicaId,
        counter: u64,
    ) -> Result<Option<Entry>, LogError> {
        self.call(Call::Read, |state, _| {
            let partition = state.partitions.get(&partition)?;
            let index = partition.changes.get(&(incarnation, replica, counter))?;
            partition.entries.get(*index).cloned()
        })
        .map_err(LogError::Unavailable)
    }

    async fn follow(
        &self,
        partition: PartitionId,
        after: Offset,
        limit: ReadLimit,
    ) -> Result<Vec<Entry>, LogError> {
        self.call(Call::Read, |state, _| {
            let Some(partition) = state.partitions.get(&partition) else { return Vec::new() };
            let skipped = usize::try_from(after.0).unwrap_or(usize::MAX);
            limited(partition.entries.iter().skip(skipped), limit)
        })
        .map_err(LogError::Unavailable)
    }

    async fn take_cursor(
        &self,
        follower: &str,
        partition: PartitionId,
        node: &NodeId,
        ttl: Duration,
    ) -> Result<Option<Cursor>, LogError> {
        self.call(Call::Cursor, |state, now| {
            let new = || HeldCursor {
                offset: Offset(0),
                epoch: Epoch(0),
                owner: node.clone(),
                until: Duration::ZERO,
            };
            let held = state.cursors.entry((follower.to_owned(), partition)).or_insert_with(new);
            if held.until > now && held.owner != *node {
                return None;
            }
            held.epoch = held.epoch.next();
            held.owner = node.clone();
            held.until = now + ttl;
            let (offset, epoch) = (held.offset, held.epoch);
            Some(Cursor { follower: follower.to_owned(), partition, offset, epoch })
        })
        .map_err(LogError::Unavailable)
    }

    async fn advance(&self, cursor: &Cursor, ttl: Duration) -> Result<bool, LogError> {
        self.call(Call::Cursor, |state, now| {
            let Some(held) = state.cursors.get_mut(&(cursor.follower.clone(), cursor.partition)) else {
                return false;
            };
            if held.epoch != cursor.epoch || held.offset > cursor.offset {
                return false;
            }
            held.offset = cursor.offset;
            held.until = now + ttl;
            true
        })
        .map_err(LogError::Unavailable)
    }
}
