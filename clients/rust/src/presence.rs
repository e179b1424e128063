//! Who else has the workspace open, and where their cursors are.
//!
//! A cursor travels as anchors, which stick to characters; it is read back as line and column of the text
//! as it is here and now, so it moves with everybody's edits without another message.

use bytes::Bytes;
use manyhands_crdt::{Anchor, Bias, Document, OpId, ReplicaId};
use manyhands_proto::v1;

/// Most sessions of a roster that are kept; who comes later is not shown.
pub(crate) const PEERS_MAX: usize = 10_000;

/// A caret or a selection in a text, to be shown to others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The name of the text.
    pub container: String,
    /// Where the caret is.
    pub head: Anchor,
    /// The other end of the selection; the same as `head` without one.
    pub tail: Anchor,
}

impl Cursor {
    /// A caret without a selection.
    #[must_use]
    pub fn caret(container: &str, at: Anchor) -> Cursor {
        Cursor { container: container.to_owned(), head: at, tail: at }
    }
}

/// A place in a text for people: both count from 0, columns in Unicode scalar values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LineColumn {
    /// Line breaks before it.
    pub line: usize,
    /// Characters between the last line break and it.
    pub column: usize,
}

/// A cursor of somebody else, in the text as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCursor {
    /// The name of the text.
    pub container: String,
    /// Where the caret is.
    pub head: LineColumn,
    /// The other end of the selection.
    pub tail: LineColumn,
}

/// Somebody who has the workspace open.
#[derive(Clone, Debug, PartialEq)]
pub struct Present {
    /// Their session; one user may have several.
    pub session: String,
    /// Who it is, as the server verified it.
    pub user: String,
    /// What they show: any JSON.
    pub data: serde_json::Value,
    /// Their cursors. One whose character has not arrived here yet is left out until it has.
    pub cursors: Vec<PeerCursor>,
}

/// Somebody else, as the wire has it.
pub(crate) struct Peer {
    user: String,
    data: serde_json::Value,
    cursors: Vec<Cursor>,
}

impl Peer {
    /// Data that is not JSON is shown as null: it disturbs nobody else.
    pub(crate) fn from_wire(peer: &v1::Peer) -> Peer {
        Peer {
            user: peer.user.clone(),
            data: serde_json::from_slice(&peer.data).unwrap_or_default(),
            cursors: peer.cursors.iter().filter_map(cursor_from_wire).collect(),
        }
    }

    pub(crate) fn view(&self, session: &str, document: &Document) -> Present {
        let place = |container: &str, anchor: &Anchor| {
            let text = document.text(container)?;
            let (line, column) = text.line_column(text.resolve(anchor)?);
            Some(LineColumn { line, column })
        };
        let cursors = self.cursors.iter().filter_map(|cursor| {
            Some(PeerCursor {
                container: cursor.container.clone(),
                head: place(&cursor.container, &cursor.head)?,
                tail: place(&cursor.container, &cursor.tail)?,
            })
        });
        Present {
            session: session.to_owned(),
            user: self.user.clone(),
            data: self.data.clone(),
            cursors: cursors.collect(),
        }
    }
}

/// What this session shows to others. Only the newest counts, so it needs no queue.
#[derive(Default)]
pub(crate) struct OwnPresence {
    pub(crate) data: Bytes,
    pub(crate) cursors: Vec<v1::TextCursor>,
    /// The session machine does not have it yet.
    pub(crate) dirty: bool,
    /// Bytes of the last one, if the server does not take that much.
    pub(crate) too_large: Option<usize>,
}

pub(crate) fn cursor_to_wire(cursor: &Cursor) -> v1::TextCursor {
    let anchor = |anchor: &Anchor| v1::Anchor {
        replica: anchor.at.map_or(0, |id| id.replica.0),
        counter: anchor.at.map_or(0, |id| id.counter),
        bias: match anchor.bias {
            Bias::Left => v1::Bias::Left,
            Bias::Right => v1::Bias::Right,
        }
        .into(),
    };
    v1::TextCursor {
        container: cursor.container.clone(),
        head: Some(anchor(&cursor.head)),
        tail: Some(anchor(&cursor.tail)),
    }
}

fn cursor_from_wire(cursor: &v1::TextCursor) -> Option<Cursor> {
    let anchor = |anchor: &v1::Anchor| {
        let bias = match anchor.bias() {
            v1::Bias::Left => Bias::Left,
            v1::Bias::Right => Bias::Right,
            v1::Bias::Unspecified => return None,
        };
        let id = OpId { replica: ReplicaId(anchor.replica), counter: anchor.counter };
        Some(Anchor { at: (anchor.replica != 0).then_some(id), bias })
    };
    Some(Cursor {
        container: cursor.container.clone(),
        head: anchor(cursor.head.as_ref()?)?,
        tail: anchor(cursor.tail.as_ref()?)?,
    })
}
