//! All maps of a document in bytes, and what of them goes into the state hash.

use std::sync::Arc;

use crate::document::{Document, Limits};
use crate::error::{Flaw, Malformed};
use crate::id::{COUNTER_MAX, Id};
use crate::map::clock::Hlc;
use crate::map::op::{KEY_BYTES_MAX, MAP_NAME_BYTES_MAX, read_value};
use crate::map::register::{Held, Register};
use crate::map::strategy::Strategy;
use crate::map::{Map, Maps, Weight};
use crate::wire::{Reader, put_varint, put_zigzag};

/// Most bytes that a write takes beside its key and value, far more than any does.
pub(crate) const WRITE_BYTES_MAX: u64 = 64;

fn put_str(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

impl Maps {
    pub(crate) fn save(&self, out: &mut Vec<u8>) {
        let mut micros = 0;
        put_varint(out, self.maps.len() as u64);
        for (name, map) in &self.maps {
            put_str(out, name);
            put_varint(out, map.registers.len() as u64);
            for (key, register) in &map.registers {
                put_str(out, key);
                put_varint(out, register.held().len() as u64);
                for held in register.held() {
                    put_varint(out, held.id.client.into());
                    put_varint(out, held.id.counter.into());
                    put_varint(out, held.seq);
                    put_zigzag(out, held.stamp.micros as i64 - micros);
                    micros = held.stamp.micros as i64;
                    put_varint(out, held.stamp.logical.into());
                    // A value is never empty, so its length says whether there is one.
                    put_str(out, held.json.as_deref().unwrap_or_default());
                }
            }
        }
    }
}

impl Document {
    /// Reads what [`Maps::save`] made, into a document that has its replicas and its seq.
    pub(crate) fn load_maps(&mut self, reader: &mut Reader<'_>, limits: Limits) -> Result<(), Malformed> {
        let mut micros = 0;
        let mut last_name = None;
        for _ in 0..reader.bounded(limits.containers_max as u64)? {
            let len = reader.bounded(MAP_NAME_BYTES_MAX as u64)? as usize;
            let name = reader.str(len)?;
            if last_name.is_some_and(|last| last >= name) {
                return reader.fail(Flaw::Inconsistent);
            }
            last_name = Some(name);
            let mut map = Map::default();
            let mut last_key = "";
            let keys = reader.bounded(limits.keys_max as u64)?;
            for _ in 0..keys {
                let len = reader.bounded(KEY_BYTES_MAX as u64)? as usize;
                let key = reader.str(len)?;
                // Ascending; so no key is empty either.
                if last_key >= key {
                    return reader.fail(Flaw::Key);
                }
                last_key = key;
                let register = self.load_register(reader, &mut micros)?;
                let weight = Weight::of(key, &register);
                self.maps.writes += weight.writes;
                self.maps.bytes += weight.bytes;
                map.hidden += weight.hidden;
                if self.maps.writes > limits.keys_max || self.maps.bytes > limits.map_bytes_max {
                    return reader.fail(Flaw::Bounds);
                }
                map.registers.insert(key.into(), register);
            }
            if keys == 0 {
                return reader.fail(Flaw::Inconsistent);
            }
            self.maps.maps.insert(name.into(), map);
        }
        Ok(())
    }

    fn load_register(&self, reader: &mut Reader<'_>, micros: &mut i64) -> Result<Register, Malformed> {
        let start = reader.at();
        let writes = reader.bounded(self.replicas.len() as u64)?;
        let mut all: Vec<Held> = Vec::new();
        for _ in 0..writes {
            let held = self.load_held(reader, micros)?;
            let order = |held: &Held| if held.seq == 0 { u64::MAX } else { held.seq };
            // In order of the log, unlogged ones last.
            let follows =
                all.last().is_none_or(|last| order(last) < order(&held) || order(&held) == u64::MAX);
            if !follows {
                return reader.fail(Flaw::Inconsistent);
            }
            all.push(held);
        }
        // Of one replica only the newest is ever kept.
        let mut authors: Vec<u32> = all.iter().map(|held| held.id.client).collect();
        authors.sort_unstable();
        let twice = authors.windows(2).any(|pair| pair[0] == pair[1]);
        let may_remove = |held: &Held| match self.maps.strategy {
            Strategy::Crdt => false,
            Strategy::Lww => true,
            Strategy::Server => held.seq == 0,
        };
        let values = all.iter().all(|held| held.json.is_some() || may_remove(held));
        let count = all.len() == 1 || (all.len() > 1 && self.maps.strategy == Strategy::Crdt);
        if twice || !values || !count {
            return Err(Malformed { offset: start, flaw: Flaw::Inconsistent });
        }
        Ok(Register::from(all))
    }

    fn load_held(&self, reader: &mut Reader<'_>, micros: &mut i64) -> Result<Held, Malformed> {
        let start = reader.at();
        let (client, counter) = (reader.bounded(COUNTER_MAX)? as u32, reader.bounded(COUNTER_MAX)? as u32);
        let seq = reader.bounded(self.seq)?;
        let state = self.replicas.get(client as usize);
        let known = state.is_some_and(|state| {
            if seq == 0 { counter >= state.logged && counter < state.next } else { counter < state.logged }
        });
        if !known {
            return Err(Malformed { offset: start, flaw: Flaw::Counter });
        }
        let at = reader.at();
        let sum = micros.checked_add(reader.zigzag()?).and_then(|sum| u64::try_from(sum).ok());
        let logical = u16::try_from(reader.varint()?).ok();
        let (Some(sum), Some(logical)) = (sum.filter(|&sum| sum <= Hlc::MAX.micros), logical) else {
            return Err(Malformed { offset: at, flaw: Flaw::Stamp });
        };
        *micros = sum as i64;
        let stamp = Hlc { micros: sum, logical };
        let json = match reader.peek() {
            Some(0) => {
                reader.byte()?;
                None
            }
            _ => Some(Arc::from(read_value(reader)?)),
        };
        Ok(Held { id: Id::new(client, counter), seq, stamp, json })
    }

    /// What of the maps goes into the hash of the state.
    pub(crate) fn hash_maps(&self, hasher: &mut blake3::Hasher) {
        let mut row = vec![self.maps.strategy.code()];
        for (name, map) in &self.maps.maps {
            put_str(&mut row, name);
            put_varint(&mut row, map.registers.len() as u64);
            for (key, register) in &map.registers {
                put_str(&mut row, key);
                put_varint(&mut row, register.held().len() as u64);
                for held in register.held() {
                    let id = self.op_id(held.id);
                    row.extend_from_slice(&id.replica.0.to_le_bytes());
                    put_varint(&mut row, id.counter);
                    put_varint(&mut row, held.stamp.micros);
                    put_varint(&mut row, held.stamp.logical.into());
                    put_str(&mut row, held.json.as_deref().unwrap_or_default());
                }
                hasher.update(&row);
                row.clear();
            }
        }
        hasher.update(&row);
    }
}
