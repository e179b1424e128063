//! What an update is on a WebSocket: header, envelope and all.

/// Bytes of a WebSocket message with this payload (RFC 6455): a client's frames are masked.
pub fn message(payload: usize, from_client: bool) -> usize {
    let length = match payload {
        0..126 => 0,
        126..65_536 => 2,
        _ => 8,
    };
    2 + length + if from_client { 4 } else { 0 } + payload
}

/// As short as several updates can be told apart in one message: each with its length before it.
pub fn together(updates: &[&[u8]]) -> Vec<u8> {
    if let [one] = updates {
        return one.to_vec();
    }
    let mut out = Vec::new();
    for update in updates {
        put_varint(&mut out, update.len());
        out.extend_from_slice(update);
    }
    out
}

pub fn put_varint(out: &mut Vec<u8>, mut n: usize) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}
