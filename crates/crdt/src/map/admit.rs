//! What must hold before a change's writes to maps are taken in.

use std::collections::{BTreeMap, BTreeSet};

use crate::document::{Admission, Document, Limits};
use crate::error::{Conflict, Refusal};
use crate::id::{Client, Id};
use crate::map::op::MapOp;
use crate::map::register::{Held, Register};
use crate::map::strategy::Strategy;

/// The writes of one change, before any of them is taken in.
pub(crate) struct Writes<'a> {
    pub(crate) client: Client,
    /// First counter of the change; what the writes' own ones are does not matter here.
    pub(crate) first: u32,
    pub(crate) base: u64,
    pub(crate) ops: &'a [MapOp<'a>],
    /// Containers that the change makes beside its maps.
    pub(crate) new_texts: usize,
}

impl Writes<'_> {
    /// Checks them against the document; `admission` only where the owner decides.
    pub(crate) fn check(
        &self,
        document: &Document,
        limits: Limits,
        admission: Option<&Admission>,
    ) -> Result<(), Refusal> {
        let strategy = document.maps.strategy;
        if strategy != Strategy::Server && self.ops.iter().any(|op| op.expect.is_some()) {
            return Err(Refusal::ExpectUnsupported);
        }
        if let Some(admission) = admission {
            match strategy {
                Strategy::Crdt | Strategy::Lww => self.clock(admission)?,
                Strategy::Server => self.expectations(document)?,
            }
        }
        self.containers(document, limits)?;
        self.size(document, limits)
    }

    fn clock(&self, admission: &Admission) -> Result<(), Refusal> {
        let Some(max_micros) = admission.stamp_max else { return Ok(()) };
        match self.ops.iter().find(|op| op.stamp.micros > max_micros) {
            Some(op) => Err(Refusal::ClockAhead { stamp_micros: op.stamp.micros, max_micros }),
            None => Ok(()),
        }
    }

    /// A write that says what it expects must find that. Its author's own earlier writes it has always seen.
    fn expectations(&self, document: &Document) -> Result<(), Refusal> {
        if self.ops.iter().all(|op| op.expect.is_none()) {
            return Ok(());
        }
        // Keys that the change has written to so far, and whether they have a value since.
        let mut written = BTreeMap::new();
        for op in self.ops {
            if let Some(expect) = op.expect {
                let held = document.maps.register(op.map, op.key).and_then(Register::last);
                let (seq, own) = match written.get(&(op.map, op.key)) {
                    Some(&has_value) => (0, has_value),
                    None => held.map_or((0, false), |held| (held.seq, held.id.client == self.client)),
                };
                if seq != expect && !own {
                    let held = held.filter(|_| seq != 0);
                    return Err(Refusal::Conflict(Box::new(Conflict {
                        map: op.map.to_owned(),
                        key: op.key.to_owned(),
                        seq,
                        value: held.and_then(|held| held.json.as_deref().map(str::to_owned)),
                    })));
                }
            }
            written.insert((op.map, op.key), op.value.is_some());
        }
        Ok(())
    }

    fn containers(&self, document: &Document, limits: Limits) -> Result<(), Refusal> {
        let known = document.names.len() + document.maps.len() + self.new_texts;
        if known + self.ops.len() <= limits.containers_max {
            return Ok(());
        }
        let new: BTreeSet<&str> =
            self.ops.iter().map(|op| op.map).filter(|name| !document.maps.contains(name)).collect();
        if new.is_empty() || known + new.len() <= limits.containers_max {
            return Ok(());
        }
        Err(Refusal::TooLarge { what: "containers", limit: limits.containers_max as u64 })
    }

    /// First as if every write came on top, which is quickly told; near the limit exactly.
    fn size(&self, document: &Document, limits: Limits) -> Result<(), Refusal> {
        let (mut writes, mut bytes) = document.maps.weight();
        let most: usize = self.ops.iter().map(|op| op.key.len() + op.value.map_or(0, str::len)).sum();
        if writes + self.ops.len() <= limits.keys_max && bytes + most <= limits.map_bytes_max {
            return Ok(());
        }
        let mut after: BTreeMap<(&str, &str), Register> = BTreeMap::new();
        for (n, op) in self.ops.iter().enumerate() {
            let register = after
                .entry((op.map, op.key))
                .or_insert_with(|| document.maps.register(op.map, op.key).cloned().unwrap_or_default());
            // A seq beyond all others: as if it were logged next.
            let write = Held {
                id: Id::new(self.client, self.first.saturating_add(n as u32)),
                seq: u64::MAX,
                stamp: op.stamp,
                json: op.value.map(Into::into),
            };
            let replica = |client: Client| document.replica_order(client);
            register.write(document.maps.strategy, write, self.base, &replica);
        }
        let (before_writes, before_bytes) = (writes, bytes);
        for ((map, key), register) in &after {
            let add = |register: &Register, writes: &mut usize, bytes: &mut usize| {
                let (held, values) = register.weight();
                *writes += held;
                *bytes += values + if held > 0 { key.len() } else { 0 };
            };
            add(register, &mut writes, &mut bytes);
            if let Some(register) = document.maps.register(map, key) {
                let (mut gone_writes, mut gone_bytes) = (0, 0);
                add(register, &mut gone_writes, &mut gone_bytes);
                writes -= gone_writes;
                bytes -= gone_bytes;
            }
        }
        // What does not grow may stay over a limit: that is how one gets below it.
        if writes > limits.keys_max.max(before_writes) {
            return Err(Refusal::TooLarge { what: "keys of a document", limit: limits.keys_max as u64 });
        }
        if bytes > limits.map_bytes_max.max(before_bytes) {
            return Err(Refusal::TooLarge {
                what: "bytes of a document's maps",
                limit: limits.map_bytes_max as u64,
            });
        }
        Ok(())
    }
}
