//! A whole document in bytes, and the hash of its state.

use crate::body::NAME_BYTES_MAX;
use crate::change::truncate;
use crate::columns;
use crate::document::{Document, Limits, ReplicaState};
use crate::error::{Flaw, Malformed};
use crate::id::{COUNTER_MAX, Hash, ReplicaId, SEQ_MAX};
use crate::map::Strategy;
use crate::map::save::WRITE_BYTES_MAX;
use crate::sequence::Unfinished;
use crate::wire::{Reader, put_varint};

const MAGIC: &[u8; 4] = b"mhd\x03";
const CHECKSUM_BYTES: usize = 16;

/// LZ4 makes at most so many bytes of one.
const LZ4_RATIO_MAX: u64 = 255;
/// What a character can take in a document's bytes, its run's columns included; far more than any does.
const ELEMENT_BYTES_MAX: u64 = 40;
const REPLICA_BYTES_MAX: u64 = 32;
const NAMES_BYTES_MAX: u64 = 1 << 20;

/// Undoes the compression. What it reserves is bounded by the bytes that are there and by the limits.
fn unpack(bytes: &[u8], limits: Limits) -> Result<Vec<u8>, Malformed> {
    let mut reader = Reader::starting_at(bytes, MAGIC.len());
    let of_limits = limits.elements_max as u64 * ELEMENT_BYTES_MAX
        + limits.replicas_max as u64 * REPLICA_BYTES_MAX
        + limits.keys_max as u64 * WRITE_BYTES_MAX
        + limits.map_bytes_max as u64
        + NAMES_BYTES_MAX;
    let len = reader.bounded(of_limits.min(bytes.len() as u64 * LZ4_RATIO_MAX))? as usize;
    let packed = reader.take(reader.rest())?;
    match lz4_flex::block::decompress(packed, len) {
        Ok(raw) if raw.len() == len => Ok(raw),
        _ => reader.fail(Flaw::Inconsistent),
    }
}

impl Document {
    /// The whole state: all that merging needs, the replica table with log indices, how much of each
    /// replica is here, and the seq. The text of deleted characters is not kept, their ids are. Edits must be committed
    /// before: what no change has taken would be known here and nowhere else.
    ///
    /// ```
    /// use manyhands_crdt::{Document, ReplicaId};
    ///
    /// let mut document = Document::new();
    /// let mut edit = document.edit(ReplicaId(7));
    /// edit.insert("page", 0, "Hello").unwrap();
    /// edit.commit(0).unwrap();
    /// let loaded = Document::decode(&document.encode()).unwrap();
    /// assert_eq!(loaded.text("page").unwrap().to_string(), "Hello");
    /// assert_eq!(loaded.state_hash(), document.state_hash());
    /// ```
    pub fn encode(&self) -> Vec<u8> {
        let raw = self.encode_raw();
        let mut out = MAGIC.to_vec();
        put_varint(&mut out, raw.len() as u64);
        out.extend_from_slice(&lz4_flex::block::compress(&raw));
        let sum = truncate(blake3::hash(&out));
        out.extend_from_slice(&sum);
        out
    }

    fn encode_raw(&self) -> Vec<u8> {
        let mut out = vec![self.maps.strategy.code()];
        put_varint(&mut out, self.seq);
        put_varint(&mut out, self.replicas.len() as u64);
        for replica in &self.replicas {
            out.extend_from_slice(&replica.id.0.to_le_bytes());
            put_varint(&mut out, u64::from(replica.next));
            put_varint(&mut out, u64::from(replica.next - replica.logged));
            put_varint(&mut out, replica.log_index.map_or(0, |index| u64::from(index) + 1));
        }
        put_varint(&mut out, self.names.len() as u64);
        for (text, name) in self.names.iter().enumerate() {
            put_varint(&mut out, name.len() as u64);
            out.extend_from_slice(name.as_bytes());
            columns::write(&mut out, &self.sequences, text as u32);
        }
        self.maps.save(&mut out);
        out
    }

    /// Reads what [`encode`](Document::encode) made. Survives any bytes: what comes out is a document that
    /// merging cannot trip over, or an error; memory stays in proportion to the bytes.
    ///
    /// # Errors
    /// With the first flaw that was found; its offset counts in what the compressed bytes unpack to.
    pub fn decode(bytes: &[u8]) -> Result<Document, Malformed> {
        Document::decode_with_limits(bytes, Limits::default())
    }

    /// As [`decode`](Document::decode), for a document with other limits than the usual ones.
    ///
    /// ```
    /// use manyhands_crdt::{Document, Limits};
    ///
    /// let limits = Limits { elements_max: 100_000_000, ..Limits::default() };
    /// let saved = Document::with_limits(limits).encode();
    /// assert!(Document::decode_with_limits(&saved, limits).is_ok());
    /// ```
    ///
    /// # Errors
    /// With the first flaw that was found; [`Flaw::Bounds`] when it is beyond twice the limits.
    pub fn decode_with_limits(bytes: &[u8], limits: Limits) -> Result<Document, Malformed> {
        let raw = Document::unpacked(bytes, limits)?;
        let (mut document, mut reader) = Document::decode_head(&raw, limits)?;
        let mut unfinished = Unfinished::new(document.replicas.iter().map(|replica| replica.next), raw.len());
        let texts = reader.bounded(limits.doubled().containers_max as u64)?;
        for _ in 0..texts {
            document.read_text(&mut reader, &mut unfinished)?;
        }
        document.load_maps(&mut reader, limits.doubled())?;
        reader.end()?;
        if document.sequences.loaded(unfinished).is_err() {
            return reader.fail(Flaw::Inconsistent);
        }
        Ok(document)
    }

    /// What is in the bytes of a document, once the checksum is seen to be right.
    pub(crate) fn unpacked(bytes: &[u8], limits: Limits) -> Result<Vec<u8>, Malformed> {
        let Some(end) = bytes.len().checked_sub(CHECKSUM_BYTES) else {
            return Err(Malformed { offset: bytes.len(), flaw: Flaw::Truncated });
        };
        if !bytes.starts_with(MAGIC) {
            return Err(Malformed { offset: 0, flaw: Flaw::UnknownFormat });
        }
        if truncate(blake3::hash(&bytes[..end])) != bytes[end..] {
            return Err(Malformed { offset: end, flaw: Flaw::Checksum });
        }
        unpack(&bytes[..end], limits.doubled())
    }

    /// A document that has its strategy, its seq and its replicas, and a reader of what comes behind those.
    pub(crate) fn decode_head(raw: &[u8], limits: Limits) -> Result<(Document, Reader<'_>), Malformed> {
        let mut reader = Reader::new(raw);
        let Some(strategy) = Strategy::from_code(reader.byte()?) else {
            return Err(Malformed { offset: 0, flaw: Flaw::UnknownFormat });
        };
        let mut document = Document::with_strategy(strategy, limits);
        document.seq = reader.bounded(SEQ_MAX)?;
        document.read_replicas(&mut reader)?;
        Ok((document, reader))
    }

    fn read_replicas(&mut self, reader: &mut Reader<'_>) -> Result<(), Malformed> {
        let count = reader.bounded(self.limits.doubled().replicas_max as u64)?;
        let mut by_index = Vec::new();
        for client in 0..count {
            let id = ReplicaId(reader.u64()?);
            let next = reader.bounded(COUNTER_MAX)? as u32;
            let logged = next - reader.bounded(u64::from(next))? as u32;
            let index = reader.bounded(count)?;
            let log_index = index.checked_sub(1).map(|index| index as u32);
            if id.0 == 0 || self.clients.insert(id, client as u32).is_some() {
                return reader.fail(Flaw::Inconsistent);
            }
            if let Some(index) = log_index {
                by_index.push((index, client as u32));
            }
            self.replicas.push(ReplicaState { id, next, logged, log_index });
        }
        by_index.sort_unstable();
        for (n, &(index, client)) in by_index.iter().enumerate() {
            if index as usize != n {
                return reader.fail(Flaw::Inconsistent);
            }
            self.log.push(client);
        }
        Ok(())
    }

    fn read_text(&mut self, reader: &mut Reader<'_>, unfinished: &mut Unfinished) -> Result<(), Malformed> {
        let len = reader.bounded(NAME_BYTES_MAX as u64)? as usize;
        let name = reader.str(len)?;
        if name.is_empty() || self.containers.contains_key(name) {
            return reader.fail(Flaw::ContainerName);
        }
        let text = self.text_or_new(name);
        let elements_max = self.limits.doubled().elements_max;
        let columns = columns::open(reader)?;
        let Document { replicas, sequences, .. } = self;
        let runs = columns.runs().min(elements_max);
        let mut loading = sequences.load(text, columns.text, runs, unfinished);
        columns.read(replicas.len() as u32, |run, unsure| {
            let known = replicas[run.id.client as usize].next;
            let fits = run.end() <= known && loading.elements() + run.len as usize <= elements_max;
            fits && loading.push(run, unsure)
        })?;
        if loading.finish() { Ok(()) } else { reader.fail(Flaw::Inconsistent) }
    }

    /// A hash of the canonical state: the same for all documents that hold the same changes, in whatever
    /// order they came, from the log or from a snapshot.
    ///
    /// It covers the version vector; for each text in order of name all elements in order as maximal
    /// runs: id, length, origins, whether deleted, and the text that is visible; the strategy; and for each
    /// key of each map the writes that it holds: id, stamp and value. Of the log's numbers it covers nothing.
    pub fn state_hash(&self) -> Hash {
        let mut hasher = blake3::Hasher::new();
        let mut row = Vec::new();
        for (replica, next) in self.version().iter() {
            row.extend_from_slice(&replica.0.to_le_bytes());
            row.extend_from_slice(&next.to_le_bytes());
        }
        hasher.update(&(row.len() as u64).to_le_bytes());
        hasher.update(&row);
        for (name, &text) in &self.containers {
            row.clear();
            put_varint(&mut row, name.len() as u64);
            row.extend_from_slice(name.as_bytes());
            hasher.update(&row);
            self.sequences.runs(text, &mut |run| {
                row.clear();
                for id in [run.id, run.left, run.right] {
                    let replica = if id.is_none() { 0 } else { self.replicas[id.client as usize].id.0 };
                    row.extend_from_slice(&replica.to_le_bytes());
                    put_varint(&mut row, u64::from(id.counter));
                }
                put_varint(&mut row, u64::from(run.len) << 1 | u64::from(run.deleted));
                put_varint(&mut row, run.text.len() as u64);
                hasher.update(&row);
                hasher.update(run.text.as_bytes());
            });
            hasher.update(&[0; 8]);
        }
        self.hash_maps(&mut hasher);
        truncate(hasher.finalize())
    }
}
