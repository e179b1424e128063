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

/// The columns of one text, to be read.
pub(crate) struct Opened<'a> {
    flags: &'a [u8],
    clients: Column<'a>,
    lens: Column<'a>,
    counters: Column<'a>,
    origins: Column<'a>,
    /// All that is visible.
    pub(crate) text: &'a str,
}

/// Reads where the columns of a text are.
pub(crate) fn open<'a>(reader: &mut Reader<'a>) -> Result<Opened<'a>, Malformed> {
    let count = reader.bounded(reader.rest() as u64)? as usize;
    let flags = reader.take(count)?;
    let mut column = || -> Result<Column<'a>, Malformed> {
        let len = reader.bounded(reader.rest() as u64)? as usize;
        reader.part(len).map(Column::new)
    };
    let (clients, lens, counters, origins) = (column()?, column()?, column()?, column()?);
    let len = reader.bounded(reader.rest() as u64)? as usize;
    Ok(Opened { flags, clients, lens, counters, origins, text: reader.str(len)? })
}

impl Opened<'_> {
    pub(crate) fn runs(&self) -> usize {
        self.flags.len()
    }

    /// Reads the runs, without their text, and calls `on` for each; with it, whether its left and its right origin
    /// may be no elements of this text. `false` from it ends the reading. Counters are within what counters can be
    /// and clients below `clients`; nothing else is checked here.
    pub(crate) fn read(
        mut self,
        clients: u32,
        mut on: impl FnMut(&Run<'_>, (bool, bool)) -> bool,
    ) -> Result<(), Malformed> {
        let mut ends = vec![0u32; clients as usize];
        let mut client = 0;
        // The run before, which may have the next element as its right origin.
        let mut waiting =
            Run { id: Id::NONE, len: 1, step: 1, left: Id::NONE, right: Id::NONE, deleted: true, text: "" };
        let mut unsure = (false, false);
        let mut all = self.flags.iter();
        for n in 0.. {
            let next = match all.next() {
                Some(&flags) => Some((flags, self.head(flags, &mut client, &ends)?)),
                None => None,
            };
            if n > 0 {
                if waiting.right == BEHIND {
                    let Some((_, next)) = &next else { return self.counters.fail() };
                    waiting.right = next.id;
                }
                if !on(&waiting, unsure) {
                    return self.counters.fail();
                }
            }
            let Some((flags, Head { id, len, step })) = next else { break };
            let (left_kind, right_kind) = (flags >> LEFT_SHIFT & 3, flags >> RIGHT_SHIFT & 3);
            let (left_spelt, right_spelt) = (left_kind == SPELT_OUT, right_kind == SPELT_OUT);
            let mut wrong = left_kind == LEFT_PREVIOUS && id.counter == 0;
            wrong |= n == 0 && (left_kind == LEFT_BEFORE || right_kind == RIGHT_AS_BEFORE);
            let far_left = self.origins.origin(left_spelt, id, &mut wrong, clients);
            let far_right = self.origins.origin(right_spelt, id, &mut wrong, clients);
            if wrong {
                return self.origins.fail();
            }
            let previous = Id::new(client, id.counter.wrapping_sub(1));
            let left = [waiting.last(), previous, Id::NONE, far_left][usize::from(left_kind)];
            let right = [BEHIND, waiting.right, Id::NONE, far_right][usize::from(right_kind)];
            waiting = Run { id, len, step, left, right, deleted: flags & DELETED != 0, text: "" };
            unsure = (left_spelt || left_kind == LEFT_PREVIOUS, right_spelt);
            ends[client as usize] = waiting.end();
        }
        for column in [self.clients, self.lens, self.counters, self.origins] {
            column.end()?;
        }
        Ok(())
    }

    /// Reads what a run is, without its origins. `ends` says for each client where its last run ended.
    #[inline(always)]
    fn head(&mut self, flags: u8, client: &mut u32, ends: &[u32]) -> Result<Head, Malformed> {
        if flags & OTHER_CLIENT != 0 {
            *client = u32::try_from(self.clients.next(true)).unwrap_or(u32::MAX);
        }
        let Some(&end) = ends.get(*client as usize) else { return self.clients.fail() };
        let one = flags & ONE != 0;
        let value = self.lens.next(!one);
        let mut step = 1;
        if value & 1 != 0 {
            step = unzigzag(self.lens.next(true));
            if step == 1 || !(1..=u64::from(STEP_MAX)).contains(&step.unsigned_abs()) {
                return self.lens.fail();
            }
        }
        let len = if one { 1 } else { (value >> 1) + 2 };
        if len > COUNTER_MAX {
            return self.lens.fail();
        }
        let counter = i64::from(end) + unzigzag(self.counters.next(flags & GOES_ON == 0));
        let last = counter + (len as i64 - 1) * step;
        let counters = 0..COUNTER_MAX as i64;
        if !counters.contains(&counter) || !counters.contains(&last) {
            return self.counters.fail();
        }
        Ok(Head { id: Id::new(*client, counter as u32), len: len as u32, step: step as i32 })
    }
}

struct Head {
    id: Id,
    len: u32,
    step: i32,
}

/// Stands for the id that is read next.
const BEHIND: Id = Id { client: u32::MAX, counter: 0 };

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Varints one after another. Whether one is there depends on flags that nobody can foresee, so
/// reading takes no branch on that, nor on how long short ones are; what is wrong shows at the end.
struct Column<'a> {
    /// From the start of everything, so that offsets are those of the whole.
    bytes: &'a [u8],
    at: usize,
    /// Whether something was no varint.
    wrong: bool,
}

impl<'a> Column<'a> {
    fn new(reader: Reader<'a>) -> Column<'a> {
        let (bytes, at) = reader.into_parts();
        Column { bytes, at, wrong: false }
    }

    /// The next number if it is `there`, else 0.
    #[inline(always)]
    fn next(&mut self, there: bool) -> u64 {
        let word = match self.bytes.get(self.at..self.at + 4) {
            Some(word) => u32::from_le_bytes(word.try_into().expect("four bytes")),
            None => self.near_end(),
        };
        // A byte without its highest bit is the last one.
        let stops = !word & 0x8080_8080;
        if stops == 0 {
            return if there { self.long() } else { 0 };
        }
        let bits = stops.trailing_zeros() + 1;
        let value = word & (u32::MAX >> (32 - bits));
        // In its shortest form it does not end with a byte of 0.
        self.wrong |= there & (bits > 8) & (value >> (bits - 8) == 0);
        self.at += if there { bits as usize / 8 } else { 0 };
        // Seven bits of each byte, in two steps.
        let value = value & 0x007f_007f | (value & 0x7f00_7f00) >> 1;
        let value = value & 0x3fff | (value & 0x3fff_0000) >> 2;
        if there { u64::from(value) } else { 0 }
    }

    /// A number of more than four bytes.
    #[cold]
    fn long(&mut self) -> u64 {
        let mut reader = Reader::starting_at(self.bytes, self.at);
        match reader.varint() {
            // What is longer means nothing here; the sum of two must not overflow.
            Ok(value) if value < 1 << 56 => {
                self.at = reader.at();
                value
            }
            _ => {
                self.wrong = true;
                0
            }
        }
    }

    /// An origin of an element, if it is `there`; else any id.
    #[inline(always)]
    fn origin(&mut self, there: bool, of: Id, wrong: &mut bool, clients: u32) -> Id {
        let value = unzigzag(self.next(there));
        let mut client = of.client;
        if value & 1 != 0 {
            client = self.next(true).min(u64::from(u32::MAX)) as u32;
        }
        let counter = i64::from(of.counter) - (value >> 1);
        *wrong |= client >= clients || !(0..COUNTER_MAX as i64).contains(&counter);
        Id::new(client, counter as u32)
    }

    #[cold]
    fn near_end(&self) -> u32 {
        let mut word = [0; 4];
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let n = rest.len().min(4);
        word[..n].copy_from_slice(&rest[..n]);
        u32::from_le_bytes(word)
    }

    fn fail<T>(&self) -> Result<T, Malformed> {
        Err(Malformed { offset: self.at.min(self.bytes.len()), flaw: Flaw::Inconsistent })
    }

    fn end(&self) -> Result<(), Malformed> {
        if self.at == self.bytes.len() && !self.wrong { Ok(()) } else { self.fail() }
    }
}
