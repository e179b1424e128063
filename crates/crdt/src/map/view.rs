//! Reading a map: winners, and the values that lost to them.

use std::fmt;

use crate::document::Document;
use crate::id::OpId;
use crate::map::clock::Hlc;
use crate::map::{Held, Map, Register};

/// A map container of a document, to read.
///
/// ```
/// use manyhands_crdt::{Document, Hlc, ReplicaId};
///
/// let mut owner = Document::new();
/// for (replica, value) in [(7, "1"), (8, "2")] {
///     // Neither has heard of the other.
///     let mut author = Document::new();
///     let mut edit = author.edit(ReplicaId(replica));
///     edit.set("", "size", value, Hlc::at(1), None).unwrap();
///     owner.apply(edit.commit(0).unwrap().as_ref()).unwrap();
/// }
/// assert_eq!(owner.maps().collect::<Vec<_>>(), [""]);
/// let map = owner.map("").unwrap();
/// assert_eq!((map.len(), map.is_empty()), (1, false));
/// assert_eq!(map.iter().map(|(key, value)| (key, value.value)).collect::<Vec<_>>(), [("size", "2")]);
/// assert_eq!(map.conflicts("size").map(|lost| lost.value).collect::<Vec<_>>(), ["1"]);
/// ```
#[derive(Clone, Copy)]
pub struct MapView<'d> {
    document: &'d Document,
    map: &'d Map,
}

/// A value that a key has.
///
/// ```
/// use manyhands_crdt::{Document, Hlc, ReplicaId};
///
/// let mut document = Document::new();
/// document.edit(ReplicaId(7)).set("", "size", "3", Hlc::at(1), None).unwrap();
/// let size = document.map("").unwrap().get("size").unwrap();
/// assert_eq!((size.value, size.stamp, size.op.replica, size.seq), ("3", Hlc::at(1), ReplicaId(7), 0));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapValue<'d> {
    /// The value as JSON in the canonical spelling.
    pub value: &'d str,
    /// When its author made it.
    pub stamp: Hlc,
    /// The op that wrote it.
    pub op: OpId,
    /// Its entry's place in the log; 0 as long as it is not logged.
    pub seq: u64,
}

impl Document {
    /// The map of that name, as long as there is something in it; a removal that must be remembered is. The root
    /// map's name is empty.
    pub fn map(&self, name: &str) -> Option<MapView<'_>> {
        let map = self.maps.map(name)?;
        Some(MapView { document: self, map })
    }

    /// Names of the maps that have something in them, in order of name.
    pub fn maps(&self) -> impl Iterator<Item = &str> {
        self.maps.names().map(|name| &**name)
    }
}

impl<'d> MapView<'d> {
    /// The value of a key: of concurrent ones the winner.
    pub fn get(&self, key: &str) -> Option<MapValue<'d>> {
        self.winner(self.map.registers.get(key)?)
    }

    /// The values that lost to the winner and that nobody has replaced yet, the newest first. Only under
    /// [`Strategy::Crdt`](crate::Strategy::Crdt) are there any.
    pub fn conflicts(&self, key: &str) -> impl Iterator<Item = MapValue<'d>> + use<'d> {
        let held = self.map.registers.get(key).map_or(&[][..], Register::held);
        let view = *self;
        held.iter().rev().skip(1).filter_map(move |held| view.value(held))
    }

    /// The keys that have a value, in order of key, each with its winner.
    pub fn iter(&self) -> impl Iterator<Item = (&'d str, MapValue<'d>)> + use<'d> {
        let view = *self;
        self.map.registers.iter().filter_map(move |(key, register)| Some((&**key, view.winner(register)?)))
    }

    /// How many keys have a value.
    pub fn len(&self) -> usize {
        self.map.registers.len() - self.map.hidden
    }

    /// Whether no key has a value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn winner(&self, register: &'d Register) -> Option<MapValue<'d>> {
        self.value(register.last()?)
    }

    fn value(&self, held: &'d Held) -> Option<MapValue<'d>> {
        let value = held.json.as_deref()?;
        Some(MapValue { value, stamp: held.stamp, op: self.document.op_id(held.id), seq: held.seq })
    }
}

impl fmt::Debug for MapView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|(key, value)| (key, value.value))).finish()
    }
}
