//! What a map is, straight from the definition: all writes there are go in, what each key holds comes out.
//! Slow and simple; what the tests compare the engine with.

use std::collections::BTreeMap;

use manyhands_crdt::{Document, Hash, Hlc, ReplicaId, Strategy};

/// A write with all that is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) map: String,
    pub(crate) key: String,
    /// `None` removes the key.
    pub(crate) value: Option<String>,
    pub(crate) stamp: Hlc,
    pub(crate) expect: Option<u64>,
    pub(crate) replica: ReplicaId,
    pub(crate) counter: u64,
    /// Its place in the log; 0 as long as it has none.
    pub(crate) seq: u64,
    /// The newest entry that its author had.
    pub(crate) base: u64,
}

/// What each key of each map holds: the writes in order of the log, those that have no place in it last.
pub(crate) type State<'w> = BTreeMap<&'w str, BTreeMap<&'w str, Vec<&'w Write>>>;

impl Write {
    /// Whether its author knew `other` when making it.
    pub(crate) fn has_seen(&self, other: &Write) -> bool {
        (other.seq != 0 && other.seq <= self.base)
            || (other.replica == self.replica && other.counter < self.counter)
    }

    pub(crate) fn is_beside(&self, other: &Write) -> bool {
        self.id() != other.id() && !self.has_seen(other) && !other.has_seen(self)
    }

    fn id(&self) -> (ReplicaId, u64) {
        (self.replica, self.counter)
    }
}

/// What a key holds of all the writes to it, which are in order of the log.
pub(crate) fn held<'w>(strategy: Strategy, writes: &[&'w Write]) -> Vec<&'w Write> {
    let sets = |write: &&Write| write.value.is_some();
    match strategy {
        Strategy::Crdt => {
            let seen = |write: &Write| writes.iter().any(|other| other.has_seen(write));
            writes.iter().copied().filter(|write| sets(write) && !seen(write)).collect()
        }
        Strategy::Lww => {
            let newest = writes.iter().copied().max_by_key(|write| (write.stamp, write.id()));
            newest.into_iter().collect()
        }
        // A removal that is logged leaves nothing behind.
        Strategy::Server => {
            let last = writes.iter().copied().last();
            last.into_iter().filter(|last| sets(last) || last.seq == 0).collect()
        }
    }
}

/// The state that all of these writes make. Those without a seq are one replica's own.
pub(crate) fn state<'w>(strategy: Strategy, writes: impl IntoIterator<Item = &'w Write>) -> State<'w> {
    let mut all: Vec<&Write> = writes.into_iter().collect();
    all.sort_by_key(|write| (write.seq == 0, write.seq, write.counter));
    let mut by_key: State<'w> = BTreeMap::new();
    for write in all {
        by_key.entry(&write.map).or_default().entry(&write.key).or_default().push(write);
    }
    for map in by_key.values_mut() {
        map.values_mut().for_each(|writes| *writes = held(strategy, writes));
        map.retain(|_, held| !held.is_empty());
    }
    by_key.retain(|_, map| !map.is_empty());
    by_key
}

/// Whether a write that expects `expect` finds it, where its key holds that.
pub(crate) fn finds(held: &[&Write], author: ReplicaId, expect: u64) -> bool {
    match held.last() {
        None => expect == 0,
        Some(last) => last.seq == expect || last.replica == author,
    }
}

/// Compares a document's maps with what they must be: everything that can be read of them.
pub(crate) fn compare(document: &Document, state: &State<'_>) {
    assert_eq!(document.maps().collect::<Vec<_>>(), state.keys().copied().collect::<Vec<_>>());
    for (name, keys) in state {
        let map = document.map(name).unwrap();
        let mut shown = Vec::new();
        for (&key, held) in keys {
            let values: Vec<_> = held
                .iter()
                .rev()
                .filter_map(|write| {
                    let value = write.value.as_deref()?;
                    Some((value, write.stamp, write.id(), write.seq))
                })
                .collect();
            let read = map.get(key).into_iter().chain(map.conflicts(key));
            let read: Vec<_> = read
                .map(|value| (value.value, value.stamp, (value.op.replica, value.op.counter), value.seq))
                .collect();
            assert_eq!(read, values, "map {name:?}, key {key:?}");
            shown.extend(values.first().map(|&(value, ..)| (key, value)));
        }
        assert_eq!(map.len(), shown.len());
        assert_eq!(map.is_empty(), shown.is_empty());
        assert_eq!(map.iter().map(|(key, value)| (key, value.value)).collect::<Vec<_>>(), shown);
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_str(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// The state hash of a document without texts, as `INTERNALS.md` 5.5 has it.
pub(crate) fn state_hash(strategy: Strategy, version: &[(ReplicaId, u64)], state: &State<'_>) -> Hash {
    let mut bytes = (version.len() as u64 * 16).to_le_bytes().to_vec();
    for (replica, next_counter) in version {
        bytes.extend_from_slice(&replica.0.to_le_bytes());
        bytes.extend_from_slice(&next_counter.to_le_bytes());
    }
    bytes.push(strategy.code());
    for (name, keys) in state {
        put_str(&mut bytes, name);
        put_varint(&mut bytes, keys.len() as u64);
        for (key, held) in keys {
            put_str(&mut bytes, key);
            put_varint(&mut bytes, held.len() as u64);
            for write in held {
                bytes.extend_from_slice(&write.replica.0.to_le_bytes());
                put_varint(&mut bytes, write.counter);
                put_varint(&mut bytes, write.stamp.micros);
                put_varint(&mut bytes, write.stamp.logical.into());
                put_str(&mut bytes, write.value.as_deref().unwrap_or_default());
            }
        }
    }
    let mut hash = [0; 16];
    hash.copy_from_slice(&blake3::hash(&bytes).as_bytes()[..16]);
    hash
}
