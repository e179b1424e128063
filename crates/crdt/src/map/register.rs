//! One key of a map: which writes it holds, and what a further write does to them.

use std::sync::Arc;

use crate::id::Id;
use crate::map::clock::Hlc;
use crate::map::strategy::Strategy;

/// A write that a register holds.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) id: Id,
    /// Its entry's place in the log; 0 as long as it is not logged.
    pub(crate) seq: u64,
    pub(crate) stamp: Hlc,
    /// `None`: a removal that must be remembered.
    pub(crate) json: Option<Arc<str>>,
}

/// The writes of one key, in order of the log; those that are not logged last. The winner is the last.
///
/// | strategy | holds |
/// |---|---|
/// | crdt | all values that no later write has seen |
/// | lww | the write with the greatest stamp, removals too |
/// | server | the last of the log, or a later one of our own that is not logged, removals only then |
#[derive(Clone, Debug)]
pub(crate) enum Register {
    One(Held),
    /// Any number but one; none only before the first write and after the last removal.
    Many(Vec<Held>),
}

impl Default for Register {
    fn default() -> Register {
        Register::Many(Vec::new())
    }
}

impl From<Vec<Held>> for Register {
    fn from(mut all: Vec<Held>) -> Register {
        match all.len() {
            1 => Register::One(all.remove(0)),
            _ => Register::Many(all),
        }
    }
}

impl Register {
    pub(crate) fn held(&self) -> &[Held] {
        match self {
            Register::One(held) => std::slice::from_ref(held),
            Register::Many(held) => held,
        }
    }

    pub(crate) fn last(&self) -> Option<&Held> {
        self.held().last()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held().is_empty()
    }

    /// Whether it shows no value: it is empty, or a removal is what counts.
    pub(crate) fn is_hidden(&self) -> bool {
        self.last().is_none_or(|held| held.json.is_none())
    }

    /// How many writes it holds, and bytes of their values.
    pub(crate) fn weight(&self) -> (usize, usize) {
        let held = self.held();
        (held.len(), held.iter().map(|held| held.json.as_ref().map_or(0, |json| json.len())).sum())
    }

    fn held_mut(&mut self) -> &mut [Held] {
        match self {
            Register::One(held) => std::slice::from_mut(held),
            Register::Many(held) => held,
        }
    }

    fn edit(&mut self, change: impl FnOnce(&mut Vec<Held>)) {
        let mut all = match std::mem::take(self) {
            Register::One(held) => vec![held],
            Register::Many(held) => held,
        };
        change(&mut all);
        *self = all.into();
    }

    /// Drops what a write with that base has seen, and everything of `author`: its own earlier writes.
    fn drop_seen(&mut self, author: Option<u32>, base: u64) -> bool {
        let seen = |held: &Held| Some(held.id.client) == author || (held.seq != 0 && held.seq <= base);
        let any = self.held().iter().any(seen);
        match self {
            Register::One(_) if any => *self = Register::default(),
            Register::Many(_) if any => self.edit(|all| all.retain(|held| !seen(held))),
            _ => {}
        }
        any
    }

    /// Puts a write where the log has it: behind what is logged, before what is not.
    fn put(&mut self, write: Held) {
        if self.is_empty() {
            *self = Register::One(write);
            return;
        }
        self.edit(|all| {
            let at = match write.seq {
                0 => all.len(),
                _ => all.iter().position(|held| held.seq == 0).unwrap_or(all.len()),
            };
            all.insert(at, write);
        });
    }

    /// Takes a write in that is new here. Says whether anything changed.
    pub(crate) fn write(
        &mut self,
        strategy: Strategy,
        write: Held,
        base: u64,
        replica: &impl Fn(u32) -> u64,
    ) -> bool {
        match strategy {
            Strategy::Crdt => {
                let dropped = self.drop_seen(Some(write.id.client), base);
                let sets = write.json.is_some();
                if sets {
                    self.put(write);
                }
                dropped || sets
            }
            Strategy::Lww => {
                let key = |held: &Held| (held.stamp, replica(held.id.client), held.id.counter);
                let wins = self.last().is_none_or(|held| key(held) < key(&write));
                if wins {
                    *self = Register::One(write);
                }
                wins
            }
            Strategy::Server => {
                let own_on_top = self.last().is_some_and(|held| held.seq == 0);
                if write.seq != 0 && own_on_top {
                    return false;
                }
                // A logged removal needs no memory; ours must hide what others write until it is logged.
                let before = !self.is_empty();
                let keep = write.seq == 0 || write.json.is_some();
                *self = if keep { Register::One(write) } else { Register::default() };
                before || keep
            }
        }
    }

    /// A write of our own is in the log now. Says whether another write wins than before.
    pub(crate) fn logged(&mut self, strategy: Strategy, write: Held, base: u64) -> bool {
        let (id, winner) = (write.id, self.last().map(|held| held.id));
        let known = self.held().iter().position(|held| held.id == id);
        match (known, strategy) {
            (Some(_), Strategy::Server) if write.json.is_none() => *self = Register::default(),
            (Some(0), _) if self.held().len() == 1 => self.held_mut()[0].seq = write.seq,
            (Some(at), _) => {
                let mut held = None;
                self.edit(|all| held = Some(all.remove(at)));
                if let Some(held) = held {
                    self.put(Held { seq: write.seq, ..held });
                }
            }
            // Another replica of this device was shown on top of it.
            (None, Strategy::Server) => {
                self.write(strategy, write, base, &|_| 0);
            }
            (None, Strategy::Crdt | Strategy::Lww) => {}
        }
        self.last().map(|held| held.id) != winner
    }

    /// A write of our own that is in no change yet has seen more than when it was made. Says whether that
    /// changed anything.
    pub(crate) fn saw(&mut self, base: u64) -> bool {
        self.drop_seen(None, base)
    }
}
