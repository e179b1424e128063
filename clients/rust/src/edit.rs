//! What the application does to a workspace: edits that become one change, and what is remembered of them
//! until the server has them.

use std::ops::Range;

use manyhands_crdt::{Document, Patch};
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
}

impl LocalEdit {
    /// What it did, as an observer is told.
    pub(crate) fn patch(&self) -> Patch {
        match self {
            LocalEdit::Insert { text, at, inserted } => Patch::Text {
                container: text.as_str().into(),
                at: *at,
                deleted: 0,
                inserted: inserted.clone(),
            },
            LocalEdit::Delete { text, at, deleted } => Patch::Text {
                container: text.as_str().into(),
                at: *at,
                deleted: deleted.chars().count(),
                inserted: String::new(),
            },
        }
    }

    /// Makes it again. A deletion is made again only where the same characters still stand.
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
        }
    }

    /// Bytes that it keeps in memory.
    pub(crate) fn weight(&self) -> usize {
        let (LocalEdit::Insert { inserted: text, .. } | LocalEdit::Delete { deleted: text, .. }) = self;
        size_of::<LocalEdit>() + text.len()
    }
}

/// Edits that become one change.
pub struct Edit<'a> {
    inner: manyhands_crdt::Edit<'a>,
    made: Vec<LocalEdit>,
}

impl<'a> Edit<'a> {
    pub(crate) fn new(inner: manyhands_crdt::Edit<'a>) -> Edit<'a> {
        Edit { inner, made: Vec::new() }
    }

    /// The edit, to be committed, and what was done.
    pub(crate) fn finish(self) -> (manyhands_crdt::Edit<'a>, Vec<LocalEdit>) {
        (self.inner, self.made)
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
            self.made.push(LocalEdit::Insert { text: container.to_owned(), at, inserted: text.to_owned() });
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
            self.made.push(LocalEdit::Delete { text: container.to_owned(), at: range.start, deleted });
        }
        Ok(())
    }
}

/// Whether edits can all be made again in a document, one group a change. Tries it on a copy.
pub(crate) fn can_make_again<'a>(
    document: &Document,
    replica: manyhands_crdt::ReplicaId,
    groups: impl Iterator<Item = &'a [LocalEdit]>,
) -> Result<(), EditError> {
    let mut copy = document.clone();
    for group in groups {
        let mut edit = Edit::new(copy.edit(replica));
        edit.make_again(group)?;
        // What it would look like on the wire does not matter for a trial.
        let _ = edit.finish().0.commit(0);
    }
    Ok(())
}
