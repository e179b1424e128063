//! The ops of maps, and their bytes: what a body says of a map, readable without any document.

use std::borrow::Cow;

use crate::body::{self, RawOp, Scratch};
use crate::error::{EditError, Flaw, Malformed};
use crate::map::clock::Hlc;
use crate::map::json;
use crate::wire::{Reader, put_varint};

const REMOVE: u8 = 1 << 3;
const NAMED: u8 = 1 << 4;
const LOGICAL: u8 = 1 << 5;
const EXPECT: u8 = 1 << 6;
const RESERVED: u8 = 1 << 7;

/// Bytes of a map's name at most; the root map's is empty.
///
/// ```
/// use manyhands_crdt::{Document, EditError, Hlc, MAP_NAME_BYTES_MAX, ReplicaId};
///
/// let name = "n".repeat(MAP_NAME_BYTES_MAX + 1);
/// let refused = Document::new().edit(ReplicaId(7)).set(&name, "key", "1", Hlc::at(1), None);
/// assert_eq!(refused, Err(EditError::MapName));
/// ```
pub const MAP_NAME_BYTES_MAX: usize = 255;
/// Bytes of a key at most.
///
/// ```
/// use manyhands_crdt::{Document, EditError, Hlc, KEY_BYTES_MAX, ReplicaId};
///
/// let key = "k".repeat(KEY_BYTES_MAX + 1);
/// let refused = Document::new().edit(ReplicaId(7)).set("", &key, "1", Hlc::at(1), None);
/// assert_eq!(refused, Err(EditError::Key));
/// ```
pub const KEY_BYTES_MAX: usize = 512;

/// A write to one key of a map.
///
/// ```
/// use manyhands_crdt::{Hlc, MapOp, map_change_body, read_map_ops};
///
/// let op = MapOp { map: "", key: "title", value: Some("\"new\""), stamp: Hlc::at(1), expect: None };
/// let body = map_change_body(&op).unwrap();
/// assert_eq!(read_map_ops(&body).unwrap().collect::<Vec<_>>(), [(0, op)]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapOp<'a> {
    /// The map's name, at most [`MAP_NAME_BYTES_MAX`] bytes; the root map's is empty.
    pub map: &'a str,
    /// The key, 1 to [`KEY_BYTES_MAX`] bytes.
    pub key: &'a str,
    /// The value as JSON; `None` removes the key.
    pub value: Option<&'a str>,
    /// When the author made it.
    pub stamp: Hlc,
    /// Under [`Strategy::Server`](crate::Strategy::Server) only: the seq of the value that the author saw, 0
    /// when the key was absent. The write is refused when that is no longer so.
    pub expect: Option<u64>,
}

impl MapOp<'_> {
    /// What no body can say.
    fn check(&self) -> Result<(), EditError> {
        if self.map.len() > MAP_NAME_BYTES_MAX {
            return Err(EditError::MapName);
        }
        if self.key.is_empty() || self.key.len() > KEY_BYTES_MAX {
            return Err(EditError::Key);
        }
        if self.stamp.micros > Hlc::MAX.micros {
            return Err(EditError::Stamp);
        }
        Ok(())
    }

    /// The op's bytes, with the value in the canonical spelling.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, EditError> {
        self.check()?;
        let value = match self.value {
            None => None,
            Some(value) => Some(match json::check(value) {
                Ok(()) => Cow::Borrowed(value),
                Err(_) => Cow::Owned(json::canonical_json(value)?),
            }),
        };
        let mut out =
            Vec::with_capacity(24 + self.map.len() + self.key.len() + value.as_ref().map_or(0, |v| v.len()));
        let mut header = body::KIND_MAP << 1;
        for (bit, set) in [
            (REMOVE, value.is_none()),
            (NAMED, !self.map.is_empty()),
            (LOGICAL, self.stamp.logical != 0),
            (EXPECT, self.expect.is_some()),
        ] {
            header |= if set { bit } else { 0 };
        }
        out.push(header);
        let mut put = |text: &str| {
            put_varint(&mut out, text.len() as u64);
            out.extend_from_slice(text.as_bytes());
        };
        if !self.map.is_empty() {
            put(self.map);
        }
        put(self.key);
        put_varint(&mut out, self.stamp.micros);
        if self.stamp.logical != 0 {
            put_varint(&mut out, self.stamp.logical.into());
        }
        if let Some(expect) = self.expect {
            put_varint(&mut out, expect);
        }
        if let Some(value) = value {
            put_varint(&mut out, value.len() as u64);
            out.extend_from_slice(value.as_bytes());
        }
        Ok(out)
    }
}

/// Reads what follows the header byte. What comes out keeps all the rules that need no document.
pub(crate) fn read<'a>(reader: &mut Reader<'a>, header: u8) -> Result<MapOp<'a>, Malformed> {
    if header & RESERVED != 0 {
        return Err(Malformed { offset: reader.at() - 1, flaw: Flaw::UnknownOp });
    }
    let map = if header & NAMED != 0 { short(reader, MAP_NAME_BYTES_MAX, Flaw::ContainerName)? } else { "" };
    let key = short(reader, KEY_BYTES_MAX, Flaw::Key)?;
    let stamp_at = reader.at();
    let out_of_range = Malformed { offset: stamp_at, flaw: Flaw::Stamp };
    let micros = reader.varint()?;
    if micros > Hlc::MAX.micros {
        return Err(out_of_range);
    }
    let logical = if header & LOGICAL != 0 { reader.varint()? } else { 0 };
    let Ok(logical) = u16::try_from(logical) else { return Err(out_of_range) };
    if header & LOGICAL != 0 && logical == 0 {
        return Err(Malformed { offset: stamp_at, flaw: Flaw::NotCanonical });
    }
    let expect = if header & EXPECT != 0 { Some(reader.varint()?) } else { None };
    let value = if header & REMOVE == 0 { Some(read_value(reader)?) } else { None };
    Ok(MapOp { map, key, value, stamp: Hlc { micros, logical }, expect })
}

fn short<'a>(reader: &mut Reader<'a>, max: usize, flaw: Flaw) -> Result<&'a str, Malformed> {
    let start = reader.at();
    match reader.varint()? {
        len if len > 0 && len <= max as u64 => reader.str(len as usize),
        _ => Err(Malformed { offset: start, flaw }),
    }
}

/// A value with its length before it.
pub(crate) fn read_value<'a>(reader: &mut Reader<'a>) -> Result<&'a str, Malformed> {
    let len = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
    let start = reader.at();
    let value = reader.str(len)?;
    json::check(value)
        .map_err(|flaw| Malformed { offset: start + flaw.offset, flaw: Flaw::Json(flaw.what) })?;
    Ok(value)
}

/// The body of a change that is this one op, for those who write without a [`Document`](crate::Document). Any
/// spelling of the value will do; the body has the canonical one.
///
/// ```
/// use manyhands_crdt::{ChangeRef, Document, Hlc, MapOp, ReplicaId, map_change_body, read_map_ops};
///
/// let op = MapOp { map: "", key: "title", value: Some("\"Hello\""), stamp: Hlc::at(17), expect: None };
/// let body = map_change_body(&op).unwrap();
/// assert_eq!(read_map_ops(&body).unwrap().collect::<Vec<_>>(), [(0, op)]);
///
/// let mut document = Document::new();
/// document.apply(ChangeRef { replica: ReplicaId(7), counter: 0, base: 0, body: &body }).unwrap();
/// assert_eq!(document.map("").unwrap().get("title").unwrap().value, "\"Hello\"");
/// ```
///
/// # Errors
/// When the map's name, the key, the stamp or the value is none that a map can take.
pub fn map_change_body(op: &MapOp<'_>) -> Result<Vec<u8>, EditError> {
    op.encode()
}

/// The map ops of a body, each with how many counters of the change come before it. Nothing is known of any
/// document here. The body is read whole before the first one comes out.
///
/// ```
/// use manyhands_crdt::{Document, Hlc, ReplicaId, read_map_ops};
///
/// let mut document = Document::new();
/// let mut edit = document.edit(ReplicaId(7));
/// edit.insert("page", 0, "Hi").unwrap();
/// edit.set("", "title", "\"new\"", Hlc::at(1), None).unwrap();
/// let change = edit.commit(0).unwrap();
/// let (before, op) = read_map_ops(&change.body).unwrap().next().unwrap();
/// assert_eq!((before, op.key, op.value), (2, "title", Some("\"new\"")));
/// ```
///
/// # Errors
/// When the bytes are no body.
pub fn read_map_ops(body: &[u8]) -> Result<impl Iterator<Item = (u64, MapOp<'_>)>, Malformed> {
    let mut scratch = Scratch::default();
    let mut reader = Reader::new(body);
    body::skip(&mut reader, &mut scratch)?;
    reader.end()?;
    let mut next = scratch.maps.then(|| Reader::new(body));
    let mut counters = 0;
    Ok(std::iter::from_fn(move || {
        while let Some(reader) = &mut next {
            // What could be read once can be read again.
            let (op, more) = body::read_op(reader, &mut scratch).ok()?;
            if !more {
                next = None;
            }
            let before = counters;
            counters += op.counters();
            if let RawOp::Map(op) = op {
                return Some((before, op));
            }
        }
        None
    }))
}
