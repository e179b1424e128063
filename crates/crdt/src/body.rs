//! The bytes of a change: its ops, one after another, nothing else.
//!
//! A body names neither its replica nor its counter; own elements are given by their distance back,
//! others' by (log index, counter). `INTERNALS.md` has the table of every byte.

use crate::error::{Flaw, Malformed};
use crate::map::{MapOp, read_map};
use crate::wire::{Reader, put_varint};

const MORE: u8 = 1;
const KIND_INSERT: u8 = 0;
const KIND_DELETE: u8 = 1;
pub(crate) const KIND_MAP: u8 = 2;
const ONE: u8 = 0x80;

const LEFT_NONE: u8 = 0;
const LEFT_PREVIOUS: u8 = 1;
const LEFT_OWN: u8 = 2;
const LEFT_OTHER: u8 = 3;
const RIGHT_NONE: u8 = 0;
const RIGHT_OWN: u8 = 1;
const RIGHT_OTHER: u8 = 2;
const RIGHT_INHERITED: u8 = 3;

const DELETE_OTHER: u8 = 1 << 3;
const DELETE_ONE: u8 = 1 << 4;
const DELETE_MANY: u8 = 1 << 5;
const DELETE_RESERVED: u8 = 0xc0;

/// Headers of keystrokes.
const TYPED: u8 = KIND_INSERT << 1 | LEFT_PREVIOUS << 3 | RIGHT_INHERITED << 5;
const TYPED_ONE: u8 = TYPED | ONE;
const DELETED_ONE: u8 = KIND_DELETE << 1 | DELETE_ONE;

pub(crate) const NAME_BYTES_MAX: usize = 255;

/// A reference as a body makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ref {
    None,
    /// Distance back from the first counter of the op that refers.
    Own(u64),
    Other {
        index: u64,
        counter: u64,
    },
    /// Right origins only: the same as that of the left origin, which is the op before.
    Inherited,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct RawInsert<'a> {
    pub(crate) left: Ref,
    pub(crate) right: Ref,
    /// Present exactly when there is no origin at all.
    pub(crate) name: Option<&'a str>,
    pub(crate) text: &'a str,
    /// Scalars in `text`.
    pub(crate) len: u32,
}

/// `len` consecutive ids of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RawRange {
    /// `None`: the author's own.
    pub(crate) index: Option<u64>,
    /// The first id: a distance back for own ones, else a counter.
    pub(crate) from: u64,
    pub(crate) len: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum RawOp<'a> {
    Insert(RawInsert<'a>),
    /// The ranges were put into the scratch of the reader.
    Delete,
    Map(MapOp<'a>),
}

impl RawOp<'_> {
    /// How many counters it takes.
    pub(crate) fn counters(&self) -> u64 {
        match self {
            RawOp::Insert(insert) => u64::from(insert.len),
            RawOp::Delete | RawOp::Map(_) => 1,
        }
    }
}

/// A change of one op that goes on where its author was: what most changes are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Keystroke<'a> {
    /// Behind the author's op before, with the right origin of that.
    Typed { text: &'a str, len: u32 },
    /// One own element, by its distance.
    Deleted { distance: u64 },
}

/// What a reader collects on the side; kept between bodies, so that nothing is allocated for each.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scratch {
    pub(crate) ranges: Vec<RawRange>,
    /// Where in the bytes log indices stand: (start, end, index). What canonical form replaces.
    pub(crate) indices: Vec<(usize, usize, u64)>,
    /// Whether the body that was skipped has ops of maps.
    pub(crate) maps: bool,
}

/// Reads one op; `true` when another follows. Replaces `scratch.ranges`, adds to `scratch.indices`.
#[inline]
pub(crate) fn read_op<'a>(
    reader: &mut Reader<'a>,
    scratch: &mut Scratch,
) -> Result<(RawOp<'a>, bool), Malformed> {
    let header = reader.byte()?;
    let more = header & MORE != 0;
    let op = match header >> 1 & 3 {
        KIND_INSERT => RawOp::Insert(read_insert(reader, header, scratch)?),
        KIND_DELETE => {
            read_delete(reader, header, scratch)?;
            RawOp::Delete
        }
        KIND_MAP => RawOp::Map(read_map(reader, header)?),
        _ => return Err(Malformed { offset: reader.at() - 1, flaw: Flaw::UnknownOp }),
    };
    Ok((op, more))
}

#[inline]
fn read_insert<'a>(
    reader: &mut Reader<'a>,
    header: u8,
    scratch: &mut Scratch,
) -> Result<RawInsert<'a>, Malformed> {
    let start = reader.at() - 1;
    let left = match header >> 3 & 3 {
        LEFT_NONE => Ref::None,
        LEFT_PREVIOUS => Ref::Own(1),
        LEFT_OWN => Ref::Own(distance(reader, 2)?),
        _ => read_other(reader, scratch)?,
    };
    let right = match header >> 5 & 3 {
        RIGHT_NONE => Ref::None,
        RIGHT_OWN => Ref::Own(distance(reader, 1)?),
        RIGHT_OTHER => read_other(reader, scratch)?,
        _ if left == Ref::Own(1) => Ref::Inherited,
        _ => return Err(Malformed { offset: start, flaw: Flaw::NotCanonical }),
    };
    let name = if left == Ref::None && right == Ref::None { Some(read_name(reader)?) } else { None };
    if header & ONE != 0 {
        return Ok(RawInsert { left, right, name, text: reader.scalar()?, len: 1 });
    }
    let text_start = reader.at();
    let bytes = reader.varint()?;
    if bytes == 0 {
        return Err(Malformed { offset: text_start, flaw: Flaw::Empty });
    }
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    let text = reader.str(bytes)?;
    let len = scalars(text);
    if len == 1 {
        return Err(Malformed { offset: text_start, flaw: Flaw::NotCanonical });
    }
    Ok(RawInsert { left, right, name, text, len })
}

/// Reads a body that is one keystroke; any other one, also a malformed one, is left unread. Clears
/// `scratch.indices`, as a keystroke refers to nobody else.
#[inline]
pub(crate) fn read_keystroke<'a>(reader: &mut Reader<'a>, scratch: &mut Scratch) -> Option<Keystroke<'a>> {
    let mut ahead = reader.clone();
    scratch.indices.clear();
    let header = ahead.byte().ok()?;
    let keystroke = match header {
        TYPED | TYPED_ONE => {
            let RawInsert { text, len, .. } = read_insert(&mut ahead, header, scratch).ok()?;
            Keystroke::Typed { text, len }
        }
        DELETED_ONE => Keystroke::Deleted { distance: distance(&mut ahead, 1).ok()? },
        _ => return None,
    };
    *reader = ahead;
    Some(keystroke)
}

fn read_delete(reader: &mut Reader<'_>, header: u8, scratch: &mut Scratch) -> Result<(), Malformed> {
    let start = reader.at() - 1;
    scratch.ranges.clear();
    if header & DELETE_RESERVED != 0 {
        return Err(Malformed { offset: start, flaw: Flaw::UnknownOp });
    }
    let index = if header & DELETE_OTHER != 0 { Some(read_index(reader, scratch)?) } else { None };
    let from = if index.is_some() { reader.varint()? } else { distance(reader, 1)? };
    let len = if header & DELETE_ONE != 0 { 1 } else { length(reader, 2)? };
    let mut last = RawRange { index, from, len };
    scratch.ranges.push(last);
    check_range(last, reader)?;
    if header & DELETE_MANY == 0 {
        return Ok(());
    }
    let count_at = reader.at();
    let count = reader.varint()?;
    // Each range takes at least two bytes, so what is left bounds what is stored.
    if count == 0 || count > (reader.rest() / 2) as u64 {
        return Err(Malformed { offset: count_at, flaw: Flaw::Bounds });
    }
    for _ in 0..count {
        let range_at = reader.at();
        let head = reader.varint()?;
        let len = (head >> 1) + 1;
        last = if head & 1 == 0 {
            // The same replica, `gap` ids after the range before; ranges that touch are one range.
            let gap = length(reader, 1)?;
            let step = last.len.checked_add(gap);
            let from = match last.index {
                Some(_) => step.and_then(|step| last.from.checked_add(step)),
                None => step.and_then(|step| last.from.checked_sub(step)),
            };
            let Some(from) = from else {
                return Err(Malformed { offset: range_at, flaw: Flaw::Counter });
            };
            RawRange { index: last.index, from, len }
        } else {
            RawRange { index: Some(read_index(reader, scratch)?), from: reader.varint()?, len }
        };
        check_range(last, reader)?;
        scratch.ranges.push(last);
    }
    Ok(())
}

/// A range must stay within what counters can be: own ones end before the op, others do not overflow.
fn check_range(range: RawRange, reader: &Reader<'_>) -> Result<(), Malformed> {
    let fits = match range.index {
        None => range.len <= range.from,
        Some(_) => range.from.checked_add(range.len).is_some(),
    };
    if fits { Ok(()) } else { reader.fail(Flaw::Counter) }
}

fn read_other(reader: &mut Reader<'_>, scratch: &mut Scratch) -> Result<Ref, Malformed> {
    Ok(Ref::Other { index: read_index(reader, scratch)?, counter: reader.varint()? })
}

fn read_index(reader: &mut Reader<'_>, scratch: &mut Scratch) -> Result<u64, Malformed> {
    let start = reader.at();
    let index = reader.varint()?;
    scratch.indices.push((start, reader.at(), index));
    Ok(index)
}

fn distance(reader: &mut Reader<'_>, min: u64) -> Result<u64, Malformed> {
    let start = reader.at();
    let value = reader.varint()?;
    if value < min {
        return Err(Malformed {
            offset: start,
            flaw: if value == 0 { Flaw::Counter } else { Flaw::NotCanonical },
        });
    }
    Ok(value)
}

fn length(reader: &mut Reader<'_>, min: u64) -> Result<u64, Malformed> {
    let start = reader.at();
    let value = reader.varint()?;
    if value < min {
        return Err(Malformed {
            offset: start,
            flaw: if value == 0 { Flaw::Empty } else { Flaw::NotCanonical },
        });
    }
    Ok(value)
}

fn read_name<'a>(reader: &mut Reader<'a>) -> Result<&'a str, Malformed> {
    let start = reader.at();
    let bytes = reader.varint()?;
    if bytes == 0 || bytes > NAME_BYTES_MAX as u64 {
        return Err(Malformed { offset: start, flaw: Flaw::ContainerName });
    }
    reader.str(bytes as usize)
}

/// Scalars in a text, as a counter counts them.
#[inline]
pub(crate) fn scalars(text: &str) -> u32 {
    if text.len() == 1 { 1 } else { text.chars().count() as u32 }
}

/// Walks one body without looking at any document: where it ends and how many counters it takes.
pub(crate) fn skip(reader: &mut Reader<'_>, scratch: &mut Scratch) -> Result<u64, Malformed> {
    let mut counters = 0u64;
    scratch.indices.clear();
    scratch.maps = false;
    loop {
        let (op, more) = read_op(reader, scratch)?;
        counters += op.counters();
        scratch.maps |= matches!(op, RawOp::Map(_));
        if !more {
            return Ok(counters);
        }
    }
}

/// Says in an op's first byte, at `at`, that another op follows.
pub(crate) fn more_follow(out: &mut [u8], at: usize) {
    out[at] |= MORE;
}

pub(crate) fn put_insert(out: &mut Vec<u8>, insert: &RawInsert<'_>, more: bool) {
    let mut header = KIND_INSERT << 1 | u8::from(more);
    header |= match insert.left {
        Ref::None => LEFT_NONE,
        Ref::Own(1) => LEFT_PREVIOUS,
        Ref::Own(_) => LEFT_OWN,
        Ref::Other { .. } => LEFT_OTHER,
        Ref::Inherited => unreachable!("only a right origin is inherited"),
    } << 3;
    header |= match insert.right {
        Ref::None => RIGHT_NONE,
        Ref::Own(_) => RIGHT_OWN,
        Ref::Other { .. } => RIGHT_OTHER,
        Ref::Inherited => RIGHT_INHERITED,
    } << 5;
    if insert.len == 1 {
        header |= ONE;
    }
    out.push(header);
    if insert.left != Ref::Own(1) {
        put_ref(out, insert.left);
    }
    put_ref(out, insert.right);
    if let Some(name) = insert.name {
        put_varint(out, name.len() as u64);
        out.extend_from_slice(name.as_bytes());
    }
    if insert.len != 1 {
        put_varint(out, insert.text.len() as u64);
    }
    out.extend_from_slice(insert.text.as_bytes());
}

fn put_ref(out: &mut Vec<u8>, reference: Ref) {
    match reference {
        Ref::None | Ref::Inherited => {}
        Ref::Own(distance) => put_varint(out, distance),
        Ref::Other { index, counter } => {
            put_varint(out, index);
            put_varint(out, counter);
        }
    }
}

/// `ranges` in canonical order: own ones first, then by replica id, in each ascending and apart.
pub(crate) fn put_delete(out: &mut Vec<u8>, ranges: &[RawRange], more: bool) {
    let first = ranges[0];
    let mut header = KIND_DELETE << 1 | u8::from(more);
    if first.index.is_some() {
        header |= DELETE_OTHER;
    }
    if first.len == 1 {
        header |= DELETE_ONE;
    }
    if ranges.len() > 1 {
        header |= DELETE_MANY;
    }
    out.push(header);
    if let Some(index) = first.index {
        put_varint(out, index);
    }
    put_varint(out, first.from);
    if first.len != 1 {
        put_varint(out, first.len);
    }
    if ranges.len() == 1 {
        return;
    }
    put_varint(out, ranges.len() as u64 - 1);
    for pair in ranges.windows(2) {
        let (last, range) = (pair[0], pair[1]);
        let head = (range.len - 1) << 1;
        match range.index {
            Some(index) if last.index != range.index => {
                put_varint(out, head | 1);
                put_varint(out, index);
                put_varint(out, range.from);
            }
            Some(_) => {
                put_varint(out, head);
                put_varint(out, range.from - last.from - last.len);
            }
            None => {
                put_varint(out, head);
                put_varint(out, last.from - last.len - range.from);
            }
        }
    }
}
