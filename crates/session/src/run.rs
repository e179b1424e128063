use bytes::{BufMut, Bytes, BytesMut};
use manyhands_proto::{CHAIN_BYTES, Chain, Seq, v1};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

/// Entries of one document with contiguous seqs, on their way to many sessions.
///
/// Holds the encoded fields of a `Delta` but its channel, so a run is encoded once on a node and each
/// session copies it behind its own few bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedRun {
    first: Seq,
    count: u32,
    chain: Chain,
    fields: Bytes,
}

/// Why an `EntryRun` cannot be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedRun {
    /// There is nothing in it.
    #[error("a run without entries")]
    Empty,
    /// Its fields do not decode.
    #[error("a run whose fields do not decode")]
    Fields,
    /// Its seqs do not begin at 1 or leave the range.
    #[error("a run with impossible seqs")]
    Seq,
    /// Its chain hash is not 16 bytes.
    #[error("a run whose chain hash is not {CHAIN_BYTES} bytes")]
    Chain,
}

impl SharedRun {
    /// Checks a run and encodes it for all who will be sent it.
    pub fn new(run: v1::EntryRun) -> Result<SharedRun, MalformedRun> {
        let v1::EntryRun { first_seq, count, entries, chain } = run;
        let proof = Chain::try_from(&chain[..]).map_err(|_| MalformedRun::Chain)?;
        if count == 0 {
            return Err(MalformedRun::Empty);
        }
        if first_seq == 0 || first_seq.checked_add(u64::from(count)).is_none() {
            return Err(MalformedRun::Seq);
        }
        let delta = v1::Delta { channel: 0, first_seq, count, entries, chain };
        Ok(SharedRun { first: Seq(first_seq), count, chain: proof, fields: delta.encode_to_vec().into() })
    }

    /// The seq of the first entry.
    #[must_use]
    pub fn first(&self) -> Seq {
        self.first
    }

    /// The seq of the last entry.
    #[must_use]
    pub fn last(&self) -> Seq {
        Seq(self.first.0 + u64::from(self.count) - 1)
    }

    /// How many entries there are; never 0.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The chain hash after the last entry.
    #[must_use]
    pub fn chain(&self) -> Chain {
        self.chain
    }

    /// The records of the entries, for one who reads what is in them.
    ///
    /// # Errors
    /// None for a run that [`new`](SharedRun::new) made.
    pub fn entries(&self) -> Result<Bytes, MalformedRun> {
        v1::Delta::decode(self.fields.clone()).map(|delta| delta.entries).map_err(|_| MalformedRun::Fields)
    }

    /// What it weighs, for limits.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.fields.len()
    }

    /// The whole `ServerFrame` for one channel.
    #[must_use]
    pub fn frame(&self, channel: u32) -> Bytes {
        const DELTA_FIELD: u32 = 4;
        const CHANNEL_FIELD: u32 = 1;
        let channel_len = if channel == 0 { 0 } else { 1 + encoded_len_varint(u64::from(channel)) };
        let len = channel_len + self.fields.len();
        let mut frame = BytesMut::with_capacity(1 + encoded_len_varint(len as u64) + len);
        encode_key(DELTA_FIELD, WireType::LengthDelimited, &mut frame);
        encode_varint(len as u64, &mut frame);
        if channel != 0 {
            encode_key(CHANNEL_FIELD, WireType::Varint, &mut frame);
            encode_varint(u64::from(channel), &mut frame);
        }
        frame.put_slice(&self.fields);
        frame.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first_seq: u64, count: u32, chain: usize) -> v1::EntryRun {
        v1::EntryRun {
            first_seq,
            count,
            entries: Bytes::from_static(b"entries"),
            chain: vec![9; chain].into(),
        }
    }

    #[test]
    fn the_frame_is_what_the_schema_would_encode() {
        let shared = SharedRun::new(run(5, 3, 16)).unwrap();
        assert_eq!((shared.first(), shared.last(), shared.count()), (Seq(5), Seq(7), 3));
        for channel in [0, 1, 127, 128, u32::MAX] {
            let delta = v1::Delta {
                channel,
                first_seq: 5,
                count: 3,
                entries: Bytes::from_static(b"entries"),
                chain: vec![9; 16].into(),
            };
            let expected = v1::ServerFrame { frame: Some(v1::server_frame::Frame::Delta(delta)) };
            assert_eq!(shared.entries().as_deref(), Ok(&b"entries"[..]));
            assert_eq!(shared.frame(channel), expected.encode_to_vec(), "channel {channel}");
        }
    }

    #[test]
    fn impossible_runs_are_refused() {
        assert_eq!(SharedRun::new(run(1, 0, 16)), Err(MalformedRun::Empty));
        assert_eq!(SharedRun::new(run(0, 1, 16)), Err(MalformedRun::Seq));
        assert_eq!(SharedRun::new(run(u64::MAX, 1, 16)), Err(MalformedRun::Seq));
        assert_eq!(SharedRun::new(run(1, 1, 15)), Err(MalformedRun::Chain));
        assert_eq!(SharedRun::new(run(1, 1, 0)), Err(MalformedRun::Chain));
    }
}
