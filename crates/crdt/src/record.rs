//! Changes in frames: push records from one replica, entry records from the log.

use crate::body::{self, Scratch};
use crate::change::ChangeRef;
use crate::error::{Flaw, Malformed};
use crate::id::ReplicaId;
use crate::wire::{Reader, put_varint, put_zigzag};

/// Writes the `changes` of one push: consecutive changes of one replica.
///
/// ```
/// use manyhands_crdt::PushWriter;
///
/// let mut push = PushWriter::new();
/// assert!(push.is_empty());
/// push.push(0, &[0xe8, b'i']);
/// assert_eq!((push.count(), push.len()), (1, 3));
/// assert_eq!(push.finish(), [0, 0xe8, b'i']);
/// ```
#[derive(Debug, Default)]
pub struct PushWriter {
    bytes: Vec<u8>,
    count: u32,
    base: u64,
}

impl PushWriter {
    /// An empty push.
    pub fn new() -> PushWriter {
        PushWriter::default()
    }

    /// Adds the next change. Its counter must be where the change before ended.
    pub fn push(&mut self, base: u64, body: &[u8]) {
        if self.count == 0 {
            put_varint(&mut self.bytes, base);
        } else {
            put_zigzag(&mut self.bytes, base.wrapping_sub(self.base) as i64);
        }
        self.base = base;
        self.bytes.extend_from_slice(body);
        self.count += 1;
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is no change in it.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Changes so far.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The bytes.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Reads the `changes` of one push. Nothing is known of any document here: what comes out is well
/// formed, and not more.
///
/// ```
/// use manyhands_crdt::{Document, PushWriter, ReplicaId, read_push};
///
/// let mut ann = Document::new();
/// let mut edit = ann.edit(ReplicaId(7));
/// edit.insert("page", 0, "Hello").unwrap();
/// let change = edit.commit(0).unwrap();
/// let mut push = PushWriter::new();
/// push.push(change.base, &change.body);
///
/// let mut changes = read_push(ReplicaId(7), 0, push.count(), push.finish().leak());
/// assert_eq!(changes.next().unwrap().unwrap(), (change.as_ref(), 5));
/// assert!(changes.next().is_none());
/// ```
pub fn read_push(replica: ReplicaId, first_counter: u64, count: u32, bytes: &[u8]) -> PushChanges<'_> {
    PushChanges {
        replica,
        counter: first_counter,
        left: count,
        bytes,
        reader: Reader::new(bytes),
        base: None,
        scratch: Scratch::default(),
        done: false,
    }
}

/// The changes of a push, each with the first counter after it. Ends after the first error.
///
/// ```
/// use manyhands_crdt::{ReplicaId, read_push};
///
/// // Two changes are promised, and only one is there.
/// let read: Vec<_> = read_push(ReplicaId(7), 1, 2, &[0, 0xe8, b'i']).collect();
/// assert_eq!(read.len(), 2);
/// assert!(read[0].is_ok() && read[1].is_err());
/// ```
pub struct PushChanges<'a> {
    replica: ReplicaId,
    counter: u64,
    left: u32,
    bytes: &'a [u8],
    reader: Reader<'a>,
    base: Option<u64>,
    scratch: Scratch,
    done: bool,
}

impl<'a> PushChanges<'a> {
    fn read(&mut self) -> Result<(ChangeRef<'a>, u64), Malformed> {
        let start = self.reader.at();
        let base = match self.base {
            None => self.reader.varint()?,
            Some(base) => base
                .checked_add_signed(self.reader.zigzag()?)
                .ok_or(Malformed { offset: start, flaw: Flaw::Counter })?,
        };
        self.base = Some(base);
        let body_start = self.reader.at();
        let counters = body::skip(&mut self.reader, &mut self.scratch)?;
        let counter = self.counter;
        self.counter =
            counter.checked_add(counters).ok_or(Malformed { offset: body_start, flaw: Flaw::Counter })?;
        let body = &self.bytes[body_start..self.reader.at()];
        Ok((ChangeRef { replica: self.replica, counter, base, body }, self.counter))
    }
}

impl<'a> Iterator for PushChanges<'a> {
    type Item = Result<(ChangeRef<'a>, u64), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        if self.left == 0 {
            self.done = true;
            return self.reader.end().err().map(Err);
        }
        self.left -= 1;
        let item = self.read();
        self.done = item.is_err();
        Some(item)
    }
}

/// Writes the `entries` of a run of the log: changes of many replicas, in order of seq.
///
/// ```
/// use manyhands_crdt::{EntryWriter, ReplicaId};
///
/// let mut run = EntryWriter::new();
/// assert!(run.is_empty());
/// // Its author was up to date, so the lag is 0.
/// run.push(5, 2, None, 4, &[0xe8, b'i']);
/// assert_eq!((run.count(), run.len()), (1, 4));
/// assert_eq!(run.finish(), [2 << 1, 0, 0xe8, b'i']);
/// ```
#[derive(Debug, Default)]
pub struct EntryWriter {
    bytes: Vec<u8>,
    count: u32,
}

impl EntryWriter {
    /// An empty run.
    pub fn new() -> EntryWriter {
        EntryWriter::default()
    }

    /// Adds the entry at `seq`, one more than the one before. `index` is the replica's log index,
    /// `new` its id when this is its first entry in the log.
    ///
    /// # Panics
    /// When `base` is not below `seq`: no author has seen its own entry or a later one.
    pub fn push(&mut self, seq: u64, index: u32, new: Option<ReplicaId>, base: u64, body: &[u8]) {
        assert!(base < seq, "base {base} must be below seq {seq}");
        put_varint(&mut self.bytes, u64::from(index) << 1 | u64::from(new.is_some()));
        if let Some(replica) = new {
            self.bytes.extend_from_slice(&replica.0.to_le_bytes());
        }
        put_varint(&mut self.bytes, seq - 1 - base);
        self.bytes.extend_from_slice(body);
        self.count += 1;
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is no entry in it.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Entries so far.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The bytes.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// One entry as it lies in the bytes of a run.
///
/// ```
/// use manyhands_crdt::read_entries;
///
/// let entry = read_entries(5, 1, &[2 << 1, 1, 0xe8, b'i']).next().unwrap().unwrap();
/// assert_eq!((entry.seq, entry.index, entry.new, entry.base), (5, 2, None, 3));
/// assert_eq!((entry.counters, entry.body), (1, &[0xe8, b'i'][..]));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRef<'a> {
    /// Its place in the document's log.
    pub seq: u64,
    /// The log index of its replica.
    pub index: u64,
    /// The replica's id, when this is its first entry.
    pub new: Option<ReplicaId>,
    /// The newest seq that its author had applied when making it.
    pub base: u64,
    /// How many of the replica's counters it takes.
    pub counters: u64,
    /// The ops.
    pub body: &'a [u8],
}

/// Reads a run of `count` entries, the first at `first_seq`. Nothing is known of any document here: what
/// comes out is well formed, and not more.
///
/// ```
/// use manyhands_crdt::{EntryWriter, ReplicaId, read_entries};
///
/// let mut run = EntryWriter::new();
/// run.push(1, 0, Some(ReplicaId(7)), 0, &[0x80, 0x04, b'p', b'a', b'g', b'e', b'H']);
/// run.push(2, 0, None, 0, &[0xe8, b'i']);
/// let (count, bytes) = (run.count(), run.finish());
/// let authors: Vec<_> = read_entries(1, count, &bytes).map(|entry| entry.unwrap().new).collect();
/// assert_eq!(authors, [Some(ReplicaId(7)), None]);
/// ```
pub fn read_entries(first_seq: u64, count: u32, bytes: &[u8]) -> Entries<'_> {
    Entries {
        seq: first_seq,
        left: count,
        bytes,
        reader: Reader::new(bytes),
        scratch: Scratch::default(),
        done: false,
    }
}

/// The entries of a run. Ends after the first error.
///
/// ```
/// use manyhands_crdt::read_entries;
///
/// // No correct writer leaves bytes over.
/// let mut entries = read_entries(5, 0, &[2 << 1]);
/// assert!(entries.next().unwrap().is_err());
/// assert!(entries.next().is_none());
/// ```
pub struct Entries<'a> {
    seq: u64,
    left: u32,
    bytes: &'a [u8],
    reader: Reader<'a>,
    scratch: Scratch,
    done: bool,
}

impl<'a> Entries<'a> {
    fn read(&mut self) -> Result<EntryRef<'a>, Malformed> {
        let seq = self.seq;
        let head = read_entry_head(&mut self.reader, seq)?;
        let start = self.reader.at();
        let counters = body::skip(&mut self.reader, &mut self.scratch)?;
        let body = &self.bytes[start..self.reader.at()];
        self.seq = seq.checked_add(1).ok_or(Malformed { offset: start, flaw: Flaw::Bounds })?;
        Ok(EntryRef { seq, index: head.index, new: head.new, base: head.base, counters, body })
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<EntryRef<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        if self.left == 0 {
            self.done = true;
            return self.reader.end().err().map(Err);
        }
        self.left -= 1;
        let item = self.read();
        self.done = item.is_err();
        Some(item)
    }
}

/// The head of an entry record, before its body.
pub(crate) struct EntryHead {
    pub(crate) index: u64,
    pub(crate) new: Option<ReplicaId>,
    pub(crate) base: u64,
}

pub(crate) fn read_entry_head(reader: &mut Reader<'_>, seq: u64) -> Result<EntryHead, Malformed> {
    let head = reader.varint()?;
    let new = if head & 1 == 1 { Some(ReplicaId(reader.u64()?)) } else { None };
    let lag_at = reader.at();
    let lag = reader.varint()?;
    let Some(base) = seq.checked_sub(1).and_then(|before| before.checked_sub(lag)) else {
        return Err(Malformed { offset: lag_at, flaw: Flaw::Bounds });
    };
    Ok(EntryHead { index: head >> 1, new, base })
}
