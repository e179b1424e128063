//! The runs of a text as columns: one byte that says what is usual about a run, and beside it only what is
//! not. `INTERNALS.md` has the table.

use crate::error::{Flaw, Malformed};
use crate::id::{COUNTER_MAX, Id};
use crate::sequence::{Run, STEP_MAX, Sequences};
use crate::wire::{Reader, put_varint, put_zigzag};

const DELETED: u8 = 1;
const LEFT_SHIFT: u8 = 1;
const RIGHT_SHIFT: u8 = 3;
const OTHER_CLIENT: u8 = 1 << 5;
const ONE: u8 = 1 << 6;
/// The counter is where the last run of that replica, in document order, ended.
const GOES_ON: u8 = 1 << 7;

/// Left origin: the last element of the run before; the op before; none; or spelt out.
const LEFT_BEFORE: u8 = 0;
const LEFT_PREVIOUS: u8 = 1;
/// Right origin: the first element of the run behind; that of the run before; none; or spelt out.
const RIGHT_BEHIND: u8 = 0;
const RIGHT_AS_BEFORE: u8 = 1;
const NONE: u8 = 2;
const SPELT_OUT: u8 = 3;

#[derive(Default)]
struct Columns {
    flags: Vec<u8>,
    clients: Vec<u8>,
    lens: Vec<u8>,
    counters: Vec<u8>,
    origins: Vec<u8>,
    text: Vec<u8>,
}

/// What the runs before a run tell about it.
#[derive(Default)]
struct Context {
    /// For each client, where its last run ended.
    ends: Vec<u32>,
    client: u32,
    last: Option<Id>,
    right: Option<Id>,
}

impl Context {
    fn end(&mut self, client: u32) -> &mut u32 {
        let client = client as usize;
        if client >= self.ends.len() {
            self.ends.resize(client + 1, 0);
        }
        &mut self.ends[client]
    }

    fn pass(&mut self, run: &Run<'_>) {
        *self.end(run.id.client) = run.end();
        self.client = run.id.client;
        self.last = Some(run.last());
        self.right = Some(run.right);
    }
}

pub(crate) fn write(out: &mut Vec<u8>, sequences: &Sequences, text: u32) {
    let mut columns = Columns::default();
    let mut context = Context::default();
    // A run waits until the one behind it is known: that one's first element may be its right origin.
    let mut waiting: Option<Run<'static>> = None;
    sequences.strides(text, &mut |run| {
        if let Some(waiting) = waiting {
            columns.add(&mut context, &waiting, Some(run.id));
        }
        columns.text.extend_from_slice(run.text.as_bytes());
        waiting = Some(Run { text: "", ..run });
    });
    if let Some(waiting) = waiting {
        columns.add(&mut context, &waiting, None);
    }
    put_varint(out, columns.flags.len() as u64);
    out.extend_from_slice(&columns.flags);
    for column in [&columns.clients, &columns.lens, &columns.counters, &columns.origins, &columns.text] {
        put_varint(out, column.len() as u64);
        out.extend_from_slice(column);
    }
}

impl Columns {
    fn add(&mut self, context: &mut Context, run: &Run<'_>, behind: Option<Id>) {
        let Run { id, len, step, left, right, deleted, .. } = *run;
        let mut flags = if deleted { DELETED } else { 0 };
        if id.client != context.client {
            flags |= OTHER_CLIENT;
            put_varint(&mut self.clients, u64::from(id.client));
        }
        if len == 1 {
            flags |= ONE;
        } else {
            put_varint(&mut self.lens, (u64::from(len) - 2) << 1 | u64::from(step != 1));
            if step != 1 {
                put_zigzag(&mut self.lens, i64::from(step));
            }
        }
        let expected = *context.end(id.client);
        if id.counter == expected {
            flags |= GOES_ON;
        } else {
            put_zigzag(&mut self.counters, i64::from(id.counter) - i64::from(expected));
        }
        let previous = id.counter.checked_sub(1).map(|counter| Id::new(id.client, counter));
        flags |= match left {
            left if left.is_none() => NONE,
            left if context.last == Some(left) => LEFT_BEFORE,
            left if previous == Some(left) => LEFT_PREVIOUS,
            left => self.spell_out(id, left),
        } << LEFT_SHIFT;
        flags |= match right {
            right if right.is_none() => NONE,
            right if behind == Some(right) => RIGHT_BEHIND,
            right if context.right == Some(right) => RIGHT_AS_BEFORE,
            right => self.spell_out(id, right),
        } << RIGHT_SHIFT;
        self.flags.push(flags);
        context.pass(run);
    }

    fn spell_out(&mut self, id: Id, origin: Id) -> u8 {
        let other = id.client != origin.client;
        let distance = i64::from(id.counter) - i64::from(origin.counter);
        put_zigzag(&mut self.origins, distance * 2 + i64::from(other));
        if other {
            put_varint(&mut self.origins, u64::from(origin.client));
        }
        SPELT_OUT
    }
}

/// How many runs the next text has.
pub(crate) fn count(reader: &Reader<'_>) -> Result<usize, Malformed> {
    let mut reader = reader.clone();
    Ok(reader.bounded(reader.rest() as u64)? as usize)
}

/// Reads the runs of one text, and calls `on` for each; `false` from it ends the reading. Counters are within
/// what counters can be and clients below `clients`; nothing else is checked here.
pub(crate) fn read<'a>(
    reader: &mut Reader<'a>,
    clients: u32,
    mut on: impl FnMut(Run<'a>) -> bool,
) -> Result<(), Malformed> {
    let count = reader.bounded(reader.rest() as u64)? as usize;
    let all = reader.take(count)?;
    let mut column = || -> Result<Reader<'a>, Malformed> {
        let len = reader.bounded(reader.rest() as u64)? as usize;
        reader.part(len)
    };
    let (mut client_column, mut lens, mut counters, mut origins, mut text) =
        (column()?, column()?, column()?, column()?, column()?);
    let mut content = text.str(text.rest())?;

    let mut context = Context::default();
    // The run before, which may have the next element as its right origin.
    let mut last: Option<Run<'a>> = None;
    let mut waiting = false;
    for &flags in all {
        let client = if flags & OTHER_CLIENT != 0 {
            client_column.bounded(COUNTER_MAX)? as u32
        } else {
            context.client
        };
        if client >= clients {
            return client_column.fail(Flaw::Inconsistent);
        }
        let (len, step) = if flags & ONE != 0 { (1, 1) } else { len_and_step(&mut lens)? };
        let mut counter = *context.end(client);
        if flags & GOES_ON == 0 {
            let distance = counters.zigzag()?;
            counter = to_counter(&counters, i64::from(counter).checked_add(distance))?;
        }
        let end = i64::from(counter) + i64::from(len - 1) * i64::from(step);
        to_counter(&counters, Some(end))?;
        let id = Id::new(client, counter);
        if let Some(mut last) = last {
            if waiting {
                last.right = id;
                context.right = Some(id);
            }
            if !on(last) {
                return counters.fail(Flaw::Inconsistent);
            }
        }
        let left = match flags >> LEFT_SHIFT & 3 {
            LEFT_BEFORE => context.last,
            LEFT_PREVIOUS => counter.checked_sub(1).map(|counter| Id::new(client, counter)),
            NONE => Some(Id::NONE),
            _ => Some(spelt_out(&mut origins, id, clients)?),
        };
        let right = match flags >> RIGHT_SHIFT & 3 {
            RIGHT_BEHIND | NONE => Some(Id::NONE),
            RIGHT_AS_BEFORE => context.right,
            _ => Some(spelt_out(&mut origins, id, clients)?),
        };
        let (Some(left), Some(right)) = (left, right) else { return origins.fail(Flaw::Inconsistent) };
        waiting = flags >> RIGHT_SHIFT & 3 == RIGHT_BEHIND;
        let deleted = flags & DELETED != 0;
        let content = if deleted { "" } else { take_scalars(&mut content, len, &text)? };
        let run = Run { id, len, step, left, right, deleted, text: content };
        context.pass(&run);
        last = Some(run);
    }
    if waiting || !content.is_empty() {
        return text.fail(Flaw::Inconsistent);
    }
    for column in [&client_column, &lens, &counters, &origins] {
        column.end()?;
    }
    match last {
        Some(last) if !on(last) => text.fail(Flaw::Inconsistent),
        _ => Ok(()),
    }
}

/// Of a run of more than one element.
fn len_and_step(lens: &mut Reader<'_>) -> Result<(u32, i32), Malformed> {
    let value = lens.bounded((COUNTER_MAX - 2) << 1 | 1)?;
    let len = (value >> 1) as u32 + 2;
    if value & 1 == 0 {
        return Ok((len, 1));
    }
    let step = lens.zigzag()?;
    if step == 1 || !(1..=u64::from(STEP_MAX)).contains(&step.unsigned_abs()) {
        return lens.fail(Flaw::Bounds);
    }
    Ok((len, step as i32))
}

fn spelt_out(origins: &mut Reader<'_>, id: Id, clients: u32) -> Result<Id, Malformed> {
    let value = origins.zigzag()?;
    let counter = to_counter(origins, i64::from(id.counter).checked_sub(value >> 1))?;
    let client = if value & 1 == 0 { id.client } else { origins.bounded(COUNTER_MAX)? as u32 };
    if client >= clients {
        return origins.fail(Flaw::Inconsistent);
    }
    Ok(Id::new(client, counter))
}

fn to_counter(reader: &Reader<'_>, counter: Option<i64>) -> Result<u32, Malformed> {
    match counter.map(u64::try_from) {
        Some(Ok(counter)) if counter < COUNTER_MAX => Ok(counter as u32),
        _ => reader.fail(Flaw::Counter),
    }
}

/// Takes the next `len` characters.
fn take_scalars<'a>(content: &mut &'a str, len: u32, text: &Reader<'_>) -> Result<&'a str, Malformed> {
    let len = len as usize;
    let ascii = content.as_bytes().get(..len).is_some_and(<[u8]>::is_ascii);
    let bytes = if ascii {
        len
    } else {
        let mut chars = content.char_indices();
        match chars.nth(len - 1) {
            Some((at, c)) => at + c.len_utf8(),
            None => return text.fail(Flaw::Truncated),
        }
    };
    let (taken, rest) = content.split_at(bytes);
    *content = rest;
    Ok(taken)
}
