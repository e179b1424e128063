use std::collections::{BTreeMap, BTreeSet};

use manyhands_proto::Code;
use manyhands_proto::v1;
use prost::Message;

use crate::Refusal;

/// What others see of this session; `None` takes it away. Stamped here, so that nobody can be someone else.
pub(super) fn peer(
    session: &str,
    user: &str,
    set: v1::SetPresence,
    bytes_max: usize,
) -> Result<Option<v1::Peer>, Refusal> {
    let bytes = set.encoded_len();
    if bytes > bytes_max {
        let message = format!("a presence of {bytes} bytes, where {bytes_max} are allowed");
        return Err(Refusal::new(Code::TooLarge, message));
    }
    if set.data.is_empty() && set.cursors.is_empty() {
        return Ok(None);
    }
    if std::str::from_utf8(&set.data).is_err() {
        return Err(Refusal::new(Code::Violation, "a presence that is no text"));
    }
    Ok(Some(v1::Peer {
        session: session.to_owned(),
        user: user.to_owned(),
        data: set.data,
        cursors: set.cursors,
    }))
}

/// What a channel is still to be told about the roster: the newest of each session, so that a slow reader
/// costs no more than the roster.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    full: bool,
    peers: BTreeMap<String, v1::Peer>,
    left: BTreeSet<String>,
}

impl Roster {
    pub(crate) fn is_empty(&self) -> bool {
        !self.full && self.peers.is_empty() && self.left.is_empty()
    }

    pub(crate) fn add(&mut self, full: bool, peers: Vec<v1::Peer>, left: Vec<String>, max: usize) {
        if full {
            *self = Roster { full: true, ..Roster::default() };
        }
        for session in left {
            self.peers.remove(&session);
            if !self.full && self.left.len() < max {
                self.left.insert(session);
            }
        }
        for peer in peers {
            self.left.remove(&peer.session);
            if self.peers.len() < max || self.peers.contains_key(&peer.session) {
                self.peers.insert(peer.session.clone(), peer);
            }
        }
    }

    /// The next piece: small, so that a large roster takes its turn with everything else.
    pub(crate) fn take(&mut self, channel: u32) -> v1::PresenceUpdate {
        let mut update = v1::PresenceUpdate {
            channel,
            full: std::mem::take(&mut self.full),
            peers: Vec::new(),
            left: std::mem::take(&mut self.left).into_iter().collect(),
        };
        let mut bytes = 0;
        while bytes < PIECE_BYTES
            && let Some((_, peer)) = self.peers.pop_first()
        {
            bytes += peer.encoded_len();
            update.peers.push(peer);
        }
        update
    }
}

/// A piece of a roster ends with the peer that reaches this.
const PIECE_BYTES: usize = 32 * 1024;
