//! Maps: key to JSON value, in three ways of merging.
//!
//! [`register`] has what a write does to a key under each [`Strategy`]; [`op`] has the bytes of writes,
//! [`json`] the rules for values, [`clock`] the stamps, [`save`] the bytes of all maps of a document.

pub(crate) mod admit;
mod clock;
mod json;
mod op;
mod register;
pub(crate) mod save;
mod strategy;
mod view;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use clock::{Clock, Hlc};
pub use json::{JSON_DEPTH_MAX, JsonFlaw, JsonProblem, canonical_json};
pub use op::{KEY_BYTES_MAX, MAP_NAME_BYTES_MAX, MapOp, map_change_body, read_map_ops};
pub use strategy::{Strategy, UnknownStrategy};
pub use view::{MapValue, MapView};

pub(crate) use op::read as read_map;
pub(crate) use register::{Held, Register};

use crate::id::Id;

/// All maps of a document.
#[derive(Clone, Debug, Default)]
pub(crate) struct Maps {
    pub(crate) strategy: Strategy,
    maps: BTreeMap<Arc<str>, Map>,
    /// Writes that registers hold: values, the conflicting ones too, and remembered removals.
    writes: usize,
    /// Bytes of keys and values.
    bytes: usize,
}

/// One map. It exists as long as a register of it does.
#[derive(Clone, Debug, Default)]
struct Map {
    registers: BTreeMap<Arc<str>, Register>,
    /// Registers that show no value.
    hidden: usize,
}

/// A write with its place in time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Write<'a> {
    pub(crate) op: MapOp<'a>,
    pub(crate) id: Id,
    /// 0 when it is not in the log yet.
    pub(crate) seq: u64,
    /// What its author had seen.
    pub(crate) base: u64,
}

impl Write<'_> {
    fn held(&self) -> Held {
        Held { id: self.id, seq: self.seq, stamp: self.op.stamp, json: self.op.value.map(Arc::from) }
    }
}

/// A register that has changed, and the names it is found by.
pub(crate) struct Changed<'m> {
    pub(crate) map: &'m Arc<str>,
    pub(crate) key: &'m Arc<str>,
    /// The winner, when there is a value now.
    pub(crate) winner: Option<&'m Held>,
}

impl Maps {
    pub(crate) fn new(strategy: Strategy) -> Maps {
        Maps { strategy, ..Maps::default() }
    }

    /// How many maps have a register.
    pub(crate) fn len(&self) -> usize {
        self.maps.len()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.maps.keys()
    }

    /// Writes that are held, and bytes of keys and values.
    pub(crate) fn weight(&self) -> (usize, usize) {
        (self.writes, self.bytes)
    }

    pub(crate) fn contains(&self, map: &str) -> bool {
        self.maps.contains_key(map)
    }

    fn map(&self, map: &str) -> Option<&Map> {
        self.maps.get(map)
    }

    pub(crate) fn register(&self, map: &str, key: &str) -> Option<&Register> {
        self.maps.get(map)?.registers.get(key)
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        // A B-tree's nodes are two thirds full; a value has its counts and the allocator's word beside it.
        let register = (size_of::<Arc<str>>() + size_of::<Register>()) * 3 / 2 + 2 * 24;
        let registers: usize = self.maps.values().map(|map| map.registers.len()).sum();
        let names: usize = self.maps.keys().map(|name| name.len() + size_of::<Map>() + 64).sum();
        self.bytes + registers * register + self.writes * (size_of::<Held>() + 24) + names
    }

    /// Takes a write in, and tells who listens what changed, if anything did.
    pub(crate) fn write(
        &mut self,
        write: &Write<'_>,
        replica: &impl Fn(u32) -> u64,
        tell: Option<impl FnOnce(Changed<'_>)>,
    ) {
        let strategy = self.strategy;
        let apply = |register: &mut Register| register.write(strategy, write.held(), write.base, replica);
        self.change(write.op.map, write.op.key, apply, tell);
    }

    /// A write of our own came back by the log. Tells when another write wins than before, which is rare.
    pub(crate) fn logged(&mut self, write: &Write<'_>, tell: Option<impl FnOnce(Changed<'_>)>) {
        let strategy = self.strategy;
        let apply = |register: &mut Register| register.logged(strategy, write.held(), write.base);
        self.change(write.op.map, write.op.key, apply, tell);
    }

    /// A write of our own to that key, which was in no change, gets that base.
    pub(crate) fn saw(&mut self, map: &str, key: &str, base: u64) {
        if self.strategy == Strategy::Crdt {
            self.change(map, key, |register| register.saw(base), None::<fn(Changed<'_>)>);
        }
    }

    /// Changes a register, made if need be, and dropped when nothing is left in it.
    fn change(
        &mut self,
        map: &str,
        key: &str,
        apply: impl FnOnce(&mut Register) -> bool,
        tell: Option<impl FnOnce(Changed<'_>)>,
    ) {
        if !self.maps.contains_key(map) {
            self.maps.insert(map.into(), Map::default());
        }
        let of_map = self.maps.get_mut(map).expect("it is there or was just made");
        let (before, changed, after);
        match of_map.registers.get_mut(key) {
            Some(register) => {
                before = Weight::of(key, register);
                changed = apply(register);
                after = Weight::of(key, register);
            }
            None => {
                let mut register = Register::default();
                before = Weight::of(key, &register);
                changed = apply(&mut register);
                after = Weight::of(key, &register);
                if after.writes > 0 {
                    of_map.registers.insert(key.into(), register);
                }
            }
        }
        self.writes = self.writes - before.writes + after.writes;
        self.bytes = self.bytes - before.bytes + after.bytes;
        of_map.hidden = of_map.hidden - before.hidden + after.hidden;
        if let (true, Some(tell)) = (changed, tell) {
            self.tell(map, key, tell);
        }
        if after.writes == 0
            && let Some(of_map) = self.maps.get_mut(map)
        {
            of_map.registers.remove(key);
            if of_map.registers.is_empty() {
                self.maps.remove(map);
            }
        }
    }

    /// Tells of a register that has changed. Only who listens pays for finding the names.
    fn tell(&self, map: &str, key: &str, tell: impl FnOnce(Changed<'_>)) {
        let Some((map, of_map)) = self.maps.get_key_value(map) else { return };
        match of_map.registers.get_key_value(key) {
            Some((key, register)) => {
                let winner = register.last().filter(|held| held.json.is_some());
                tell(Changed { map, key, winner });
            }
            None => tell(Changed { map, key: &key.into(), winner: None }),
        }
    }
}

/// What a register counts for.
struct Weight {
    writes: usize,
    bytes: usize,
    hidden: usize,
}

impl Weight {
    fn of(key: &str, register: &Register) -> Weight {
        let (writes, values) = register.weight();
        // An empty register is about to go, or just came.
        if writes == 0 {
            return Weight { writes: 0, bytes: 0, hidden: 0 };
        }
        Weight { writes, bytes: key.len() + values, hidden: usize::from(register.is_hidden()) }
    }
}

#[cfg(test)]
mod tests;
