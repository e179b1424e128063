//! What the application does to a workspace: edits that become one change, and what is remembered of them
//! until the server has them.

use std::ops::Range;

use manyhands_crdt::{Clock, Document, OpId, Patch, ReplicaId, canonical_json};
use serde::{Deserialize, Serialize};

use crate::document::EditError;

/// One edit as it was made: enough to show it, and to make it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LocalEdit {
    /// Characters were inserted into a text.
    Insert {
        /// The name of the text.
        text: String,
        /// Before which character, counted in Unicode scalar values.
        at: usize,
        /// What was inserted.
        inserted: String,
    },
    /// Characters were deleted from a text.
    Delete {
        /// The name of the text.
        text: String,
        /// The first of them, counted in Unicode scalar values.
        at: usize,
        /// What stood there.
        deleted: String,
    },
    /// A key of a map was set.
    Set {
        /// The name of the map.
        map: String,
        /// The key.
        key: String,
        /// The value, as canonical JSON.
        value: String,
    },
    /// A key of a map was removed.
    Remove {
        /// The name of the map.
        map: String,
        /// The key.
        key: String,
    },
}

impl LocalEdit {
    /// Makes it again. A deletion is made again only where the same characters still stand; a write to a map
    /// expects nothing any more.
    fn again(&self, edit: &mut Edit<'_>) -> Result<(), EditError> {
        match self {
            LocalEdit::Insert { text, at, inserted } => edit.insert(text, *at, inserted),
            LocalEdit::Delete { text, at, deleted } => {
                let range = *at..*at + deleted.chars().count();
                let now = edit.text(text).filter(|text| range.end <= text.len());
                if now.is_none_or(|text| text.slice(range.clone()) != *deleted) {
                    return Err(EditError::Outdated);
                }
                edit.delete(text, range)
            }
            LocalEdit::Set { map, key, value } => edit.set_json(map, key, value),
            LocalEdit::Remove { map, key } => edit.remove(map, key),
        }
    }

    /// Bytes that it keeps in memory.
    pub(crate) fn weight(&self) -> usize {
        let text = match self {
            LocalEdit::Insert { inserted: text, .. } | LocalEdit::Delete { deleted: text, .. } => text.len(),
            LocalEdit::Set { key, value, .. } => key.len() + value.len(),
            LocalEdit::Remove { key, .. } => key.len(),
        };
        size_of::<LocalEdit>() + text
    }
}

/// Edits that become one change.
pub struct Edit<'a> {
    inner: manyhands_crdt::Edit<'a>,
    author: Author<'a>,
    made: Vec<LocalEdit>,
    patches: Vec<Patch>,
}

/// Who edits, and what time it is there.
pub(crate) struct Author<'a> {
    pub(crate) replica: ReplicaId,
    pub(crate) clock: &'a mut Clock,
    /// Microseconds since the Unix epoch.
    pub(crate) now_micros: u64,
}

impl<'a> Edit<'a> {
    pub(crate) fn new(document: &'a mut Document, author: Author<'a>) -> Edit<'a> {
        Edit { inner: document.edit(author.replica), author, made: Vec::new(), patches: Vec::new() }
    }

    /// The edit, to be committed, what was done, and what an observer is told of it.
    pub(crate) fn finish(self) -> (manyhands_crdt::Edit<'a>, Vec<LocalEdit>, Vec<Patch>) {
        (self.inner, self.made, self.patches)
    }

    /// Makes edits again, in their order.
    pub(crate) fn make_again(&mut self, edits: &[LocalEdit]) -> Result<(), EditError> {
        edits.iter().try_for_each(|edit| edit.again(self))
    }

    /// A text with what this edit did so far, if anything was ever written to it. Nothing arrives from
    /// others during an edit, so a position that is read here is good.
    #[must_use]
    pub fn text(&self, container: &str) -> Option<manyhands_crdt::Text<'_>> {
        self.inner.document().text(container)
    }

    /// Inserts into a text before the character at `at`.
    pub fn insert(&mut self, container: &str, at: usize, text: &str) -> Result<(), EditError> {
        self.inner.insert(container, at, text)?;
        if !text.is_empty() {
            let inserted = text.to_owned();
            self.patches.push(Patch::Text {
                container: container.into(),
                at,
                deleted: 0,
                inserted: inserted.clone(),
            });
            self.made.push(LocalEdit::Insert { text: container.to_owned(), at, inserted });
        }
        Ok(())
    }

    /// Deletes a range of characters from a text.
    pub fn delete(&mut self, container: &str, range: Range<usize>) -> Result<(), EditError> {
        let len = self.text(container).map_or(0, |text| text.len());
        let deleted = match self.text(container) {
            Some(text) if range.end <= len => text.slice(range.clone()),
            _ => String::new(),
        };
        self.inner.delete(container, range.clone())?;
        if !deleted.is_empty() {
            self.patches.push(Patch::Text {
                container: container.into(),
                at: range.start,
                deleted: range.len(),
                inserted: String::new(),
            });
            self.made.push(LocalEdit::Delete { text: container.to_owned(), at: range.start, deleted });
        }
        Ok(())
    }

    /// A map with what this edit did so far, if there is anything in it.
    #[must_use]
    pub fn map(&self, name: &str) -> Option<manyhands_crdt::MapView<'_>> {
        self.inner.document().map(name)
    }

    /// Sets a key of a map.
    ///
    /// # Errors
    /// When the value is no JSON that can be stored, or a name or key is none.
    pub fn set(&mut self, map: &str, key: &str, value: &impl Serialize) -> Result<(), EditError> {
        self.set_json(map, key, &to_json(value)?)
    }

    /// Sets a key of a map to a value in JSON, whose numbers are kept as they are spelled.
    ///
    /// # Errors
    /// As [`set`](Edit::set).
    pub fn set_json(&mut self, map: &str, key: &str, json: &str) -> Result<(), EditError> {
        self.write(map, key, Some(json), None)
    }

    /// Sets a key under the strategy `server` if it still has the value of this seq, 0 for none. When the
    /// server finds another one, it refuses the change and hands it back with that.
    ///
    /// # Errors
    /// As [`set`](Edit::set); also when it is plain already that the key has another value.
    pub fn replace_json(&mut self, map: &str, key: &str, json: &str, seen: u64) -> Result<(), EditError> {
        self.write(map, key, Some(json), Some(seen))
    }

    /// Removes a key of a map.
    ///
    /// # Errors
    /// When the name or the key is none.
    pub fn remove(&mut self, map: &str, key: &str) -> Result<(), EditError> {
        self.write(map, key, None, None)
    }

    /// Removes a key under the strategy `server` if it still has the value of this seq; see
    /// [`replace_json`](Edit::replace_json).
    ///
    /// # Errors
    /// As [`replace_json`](Edit::replace_json).
    pub fn remove_seen(&mut self, map: &str, key: &str, seen: u64) -> Result<(), EditError> {
        self.write(map, key, None, Some(seen))
    }

    fn write(
        &mut self,
        map: &str,
        key: &str,
        json: Option<&str>,
        expect: Option<u64>,
    ) -> Result<(), EditError> {
        let stamp = self.author.clock.tick(self.author.now_micros);
        let json = json.map(canonical_json).transpose().map_err(manyhands_crdt::EditError::from)?;
        match &json {
            Some(json) => self.inner.set(map, key, json, stamp, expect)?,
            None => self.inner.remove(map, key, stamp, expect)?,
        }
        let counter = self.inner.document().next_counter(self.author.replica) - 1;
        let own = OpId { replica: self.author.replica, counter };
        let winner = self.inner.document().map(map).and_then(|view| view.get(key));
        let (value, stamp, op) =
            winner.map_or((None, stamp, own), |winner| (Some(winner.value.into()), winner.stamp, winner.op));
        self.patches.push(Patch::Map { container: map.into(), key: key.into(), value, stamp, op });
        let (map, key) = (map.to_owned(), key.to_owned());
        self.made.push(match json {
            Some(value) => LocalEdit::Set { map, key, value },
            None => LocalEdit::Remove { map, key },
        });
        Ok(())
    }
}

/// A value as JSON text.
pub(crate) fn to_json(value: &impl Serialize) -> Result<String, EditError> {
    serde_json::to_string(value).map_err(|error| EditError::NotJson(error.to_string()))
}

/// Whether edits can all be made again in a document, one group a change. Tries it on a copy.
pub(crate) fn can_make_again<'a>(
    document: &Document,
    replica: ReplicaId,
    groups: impl Iterator<Item = &'a [LocalEdit]>,
) -> Result<(), EditError> {
    let (mut copy, mut clock) = (document.clone(), Clock::new());
    for group in groups {
        let mut edit = Edit::new(&mut copy, Author { replica, clock: &mut clock, now_micros: 0 });
        edit.make_again(group)?;
        // What it would look like on the wire does not matter for a trial.
        let _ = edit.finish().0.commit(0);
    }
    Ok(())
}
