//! Named texts: reading them, and the edits of one.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use manyhands_crdt::{Anchor, Bias, Document};

use crate::document::EditError;
use crate::presence::LineColumn;
use crate::workspace::Workspace;

/// Most bytes of one change that inserts; longer texts become several changes. Well below the limit of
/// the service, 64 KiB.
const INSERT_BYTES_MAX: usize = 32 << 10;
/// Most characters that one change deletes; each can cost an id range of its own.
const DELETE_CHARS_MAX: usize = 4096;

/// A named text of a workspace. All positions count Unicode scalar values.
#[derive(Clone)]
pub struct Text {
    workspace: Workspace,
    container: Arc<str>,
}

impl Text {
    pub(crate) fn new(workspace: Workspace, name: &str) -> Text {
        Text { workspace, container: name.into() }
    }

    /// Inserts before the character at `at`. A text beyond some ten thousand characters becomes several
    /// changes, which others may see one after another.
    pub fn insert(&self, at: usize, text: &str) -> Result<(), EditError> {
        let (mut at, mut rest) = (at, text);
        while !rest.is_empty() {
            let piece = &rest[..rest.floor_char_boundary(INSERT_BYTES_MAX)];
            self.workspace.edit(|edit| edit.insert(&self.container, at, piece))?;
            at += piece.chars().count();
            rest = &rest[piece.len()..];
        }
        Ok(())
    }

    /// Appends to the end of the text as it is at that moment.
    pub fn push(&self, text: &str) -> Result<(), EditError> {
        let mut rest = text;
        while !rest.is_empty() {
            let piece = &rest[..rest.floor_char_boundary(INSERT_BYTES_MAX)];
            self.workspace.edit(|edit| {
                let end = edit.text(&self.container).map_or(0, |text| text.len());
                edit.insert(&self.container, end, piece)
            })?;
            rest = &rest[piece.len()..];
        }
        Ok(())
    }

    /// Deletes a range of characters. A long one becomes several changes.
    pub fn delete(&self, range: Range<usize>) -> Result<(), EditError> {
        let mut left = range.len();
        while left > 0 {
            let piece = left.min(DELETE_CHARS_MAX);
            self.workspace.edit(|edit| edit.delete(&self.container, range.start..range.start + piece))?;
            left -= piece;
        }
        Ok(())
    }

    /// Characters in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.look(0, |text| text.len())
    }

    /// It has no characters, or does not exist yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lines in it: one more than line breaks.
    #[must_use]
    pub fn lines(&self) -> usize {
        self.look(1, |text| text.lines())
    }

    /// Line and column of a position.
    #[must_use]
    pub fn line_column(&self, at: usize) -> LineColumn {
        self.look(LineColumn::default(), |text| {
            let (line, column) = text.line_column(at);
            LineColumn { line, column }
        })
    }

    /// The position of a line and column; the end of the line or of the text when there are fewer.
    #[must_use]
    pub fn at_line_column(&self, place: LineColumn) -> usize {
        self.look(0, |text| text.at_line_column(place.line, place.column).unwrap_or(text.len()))
    }

    /// A place that sticks to the character before (left) or after (right) it, whatever others edit.
    #[must_use]
    pub fn anchor(&self, at: usize, bias: Bias) -> Anchor {
        self.look(Anchor { at: None, bias }, |text| text.anchor(at, bias))
    }

    /// Where an anchor is now; `None` when its character has not arrived here.
    #[must_use]
    pub fn resolve(&self, anchor: &Anchor) -> Option<usize> {
        self.look(None, |text| text.resolve(anchor))
    }

    fn look<T>(&self, empty: T, look: impl FnOnce(&manyhands_crdt::Text<'_>) -> T) -> T {
        self.workspace.read(|document| document.text(&self.container).map_or(empty, |text| look(&text)))
    }
}

/// The text as it is now.
impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.workspace.read(|document| f.write_str(&read(document, &self.container)))
    }
}

pub(crate) fn read(document: &Document, container: &str) -> String {
    document.text(container).map(|text| text.to_string()).unwrap_or_default()
}
