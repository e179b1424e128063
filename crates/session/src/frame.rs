use bytes::Bytes;
use manyhands_proto::{Chain, Incarnation, Position, Seq, v1};
use prost::Message;
use prost::encoding::{DecodeContext, decode_key, skip_field};

/// The most that either side reads as one frame before it has agreed on anything, in bytes.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// The most that a client's frame other than a push may have, in bytes. Small parts of a frame decode into
/// much larger values; a push has none.
pub const CONTROL_BYTES_MAX: usize = 64 * 1024;

/// Why bytes are not a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Longer than allowed.
    #[error("a frame of {bytes} bytes, where {max} are allowed")]
    TooLarge {
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        max: usize,
    },
    /// Not protobuf, or cut off.
    #[error("bytes that are no frame: {0}")]
    Undecodable(String),
    /// An envelope with nothing in it, or with something that this version does not have.
    #[error("a frame of a kind that this version does not have")]
    UnknownFrame,
}

/// A frame from a client. Fields that this version does not know are skipped.
pub fn decode_client(bytes: Bytes, max: usize) -> Result<v1::client_frame::Frame, Violation> {
    if bytes.len() <= max {
        check_control(&bytes)?;
    }
    let envelope: v1::ClientFrame = decode(bytes, max)?;
    envelope.frame.ok_or(Violation::UnknownFrame)
}

/// A frame from a server. Fields that this version does not know are skipped.
pub fn decode_server(bytes: Bytes, max: usize) -> Result<v1::server_frame::Frame, Violation> {
    let envelope: v1::ServerFrame = decode(bytes, max)?;
    envelope.frame.ok_or(Violation::UnknownFrame)
}

/// Measures what is not a push without decoding it. What cannot be measured is left to the decoder.
fn check_control(frame: &Bytes) -> Result<(), Violation> {
    const PUSH_FIELD: u32 = 3;
    let mut rest = &frame[..];
    let mut control = 0;
    while let Ok((field, wire_type)) = decode_key(&mut rest) {
        let before = rest.len();
        if skip_field(wire_type, field, &mut rest, DecodeContext::default()).is_err() {
            break;
        }
        if field != PUSH_FIELD {
            control += before - rest.len();
        }
    }
    if control > CONTROL_BYTES_MAX {
        return Err(Violation::TooLarge { bytes: control, max: CONTROL_BYTES_MAX });
    }
    Ok(())
}

/// Byte fields of the result are slices of `bytes`, so nothing is allocated that was not received.
fn decode<M: Message + Default>(bytes: Bytes, max: usize) -> Result<M, Violation> {
    if bytes.len() > max {
        return Err(Violation::TooLarge { bytes: bytes.len(), max });
    }
    M::decode(bytes).map_err(|error| Violation::Undecodable(error.to_string()))
}

/// The bytes of a client's frame.
#[must_use]
pub fn encode_client(frame: v1::client_frame::Frame) -> Bytes {
    v1::ClientFrame { frame: Some(frame) }.encode_to_vec().into()
}

/// The bytes of a server's frame.
#[must_use]
pub fn encode_server(frame: v1::server_frame::Frame) -> Bytes {
    v1::ServerFrame { frame: Some(frame) }.encode_to_vec().into()
}

/// A position as it travels.
#[must_use]
pub fn position_to_wire(position: &Position) -> v1::Position {
    let chain = if position.seq.0 == 0 { Bytes::new() } else { Bytes::copy_from_slice(&position.chain) };
    v1::Position { incarnation: position.incarnation.0, seq: position.seq.0, chain }
}

/// A position that travelled; `None` when its chain hash is not 16 bytes or its incarnation is missing.
#[must_use]
pub fn position_from_wire(wire: &v1::Position) -> Option<Position> {
    let chain = match (wire.seq, wire.chain.len()) {
        (0, 0) => Chain::default(),
        _ => Chain::try_from(&wire.chain[..]).ok()?,
    };
    let incarnation = (wire.incarnation != 0).then_some(Incarnation(wire.incarnation))?;
    Some(Position { incarnation, seq: Seq(wire.seq), chain })
}
