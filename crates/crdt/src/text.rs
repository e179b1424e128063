//! Reading a text: slices, places that move with the text, lines and columns, UTF-16 offsets.

use std::fmt;
use std::ops::Range;

use crate::document::Document;
use crate::id::{Id, OpId};

/// A text container of a document, to read. Positions count Unicode scalar values from 0.
///
/// ```
/// use manyhands_crdt::{Document, ReplicaId};
///
/// let mut document = Document::new();
/// document.edit(ReplicaId(7)).insert("page", 0, "one 🎉\ntwo").unwrap();
/// let text = document.text("page").unwrap();
/// assert_eq!((text.len(), text.len_utf16(), text.lines()), (9, 10, 2));
/// assert_eq!((text.slice(4..5).as_str(), text.is_empty()), ("🎉", false));
///
/// // Lines and columns, from 0, and the offsets of JavaScript: both ways.
/// assert_eq!(text.line_column(7), (1, 1));
/// assert_eq!(text.at_line_column(1, 1), Some(7));
/// assert_eq!(text.utf16_of(5), 6);
/// assert_eq!(text.at_utf16(6), 5);
/// ```
#[derive(Clone, Copy)]
pub struct Text<'d> {
    document: &'d Document,
    text: u32,
}

/// What an anchor sticks to.
///
/// ```
/// use manyhands_crdt::{Bias, Document, ReplicaId};
///
/// let mut document = Document::new();
/// document.edit(ReplicaId(7)).insert("page", 0, "ad").unwrap();
/// let left = document.text("page").unwrap().anchor(1, Bias::Left);
/// let right = document.text("page").unwrap().anchor(1, Bias::Right);
/// document.edit(ReplicaId(7)).insert("page", 1, "bc").unwrap();
/// let text = document.text("page").unwrap();
/// assert_eq!((text.resolve(&left), text.resolve(&right)), (Some(1), Some(3)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bias {
    /// Stays behind what is on its left.
    Left,
    /// Stays before what is on its right.
    Right,
}

/// A place between two characters that moves with the text.
///
/// ```
/// use manyhands_crdt::{Bias, Document, ReplicaId};
///
/// let mut document = Document::new();
/// document.edit(ReplicaId(7)).insert("page", 0, "world").unwrap();
/// let cursor = document.text("page").unwrap().anchor(5, Bias::Left);
/// document.edit(ReplicaId(7)).insert("page", 0, "Hello ").unwrap();
/// assert_eq!(document.text("page").unwrap().resolve(&cursor), Some(11));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Anchor {
    /// The character that it sticks to; `None` is the start of the text for [`Bias::Left`], its end for
    /// [`Bias::Right`].
    pub at: Option<OpId>,
    /// On which side of it.
    pub bias: Bias,
}

impl Document {
    /// The text of that name, if anything was ever inserted into it.
    pub fn text(&self, container: &str) -> Option<Text<'_>> {
        let &text = self.containers.get(container)?;
        Some(Text { document: self, text })
    }
}

impl Text<'_> {
    /// Length in scalars.
    pub fn len(&self) -> usize {
        self.document.sequences.widths(self.text).scalars as usize
    }

    /// Whether nothing is visible.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Length in UTF-16 units, as JavaScript counts.
    pub fn len_utf16(&self) -> usize {
        self.document.sequences.widths(self.text).utf16 as usize
    }

    /// Lines: one more than there are line feeds.
    pub fn lines(&self) -> usize {
        self.document.sequences.widths(self.text).newlines as usize + 1
    }

    /// The characters in `range`; what is after the end is left out.
    pub fn slice(&self, range: Range<usize>) -> String {
        let end = range.end.min(self.len());
        let mut out = String::new();
        self.document.sequences.write(self.text, range.start.min(end)..end, &mut out);
        out
    }

    /// A place that sticks to the character before `at` or to the one after it. `at` is at most the
    /// length; more is taken as the length.
    pub fn anchor(&self, at: usize, bias: Bias) -> Anchor {
        let len = self.len();
        let at = at.min(len);
        let element = match bias {
            Bias::Left => at.checked_sub(1),
            Bias::Right => (at < len).then_some(at),
        };
        let mut anchor = Anchor { at: None, bias };
        if let Some(element) = element {
            self.document.sequences.ids(self.text, element..element + 1, &mut |id, _| {
                anchor.at = Some(self.document.op_id(id));
            });
        }
        anchor
    }

    /// Where an anchor is now. When its character is deleted, where that was. `None` when its character is
    /// not in this text, which may be because it has not arrived yet.
    pub fn resolve(&self, anchor: &Anchor) -> Option<usize> {
        let Some(OpId { replica, counter }) = anchor.at else {
            return Some(if anchor.bias == Bias::Left { 0 } else { self.len() });
        };
        let id = Id::new(self.document.client(replica)?, u32::try_from(counter).ok()?);
        let (text, at, deleted) = self.document.sequences.position(id)?;
        if text != self.text {
            return None;
        }
        Some(if anchor.bias == Bias::Left && !deleted { at + 1 } else { at })
    }

    /// Line and column of a position, both from 0, the column in scalars. A position after the end is
    /// taken as the end.
    pub fn line_column(&self, at: usize) -> (usize, usize) {
        let at = at.min(self.len());
        let line = self.document.sequences.widths_before(self.text, at).newlines as usize;
        (line, at - self.line_start(line))
    }

    /// The position of a line and column. A column after the end of the line is its end; `None` when there
    /// is no such line.
    pub fn at_line_column(&self, line: usize, column: usize) -> Option<usize> {
        let lines = self.lines();
        if line >= lines {
            return None;
        }
        let end = if line + 1 < lines { self.line_start(line + 1) - 1 } else { self.len() };
        Some(self.line_start(line).saturating_add(column).min(end))
    }

    /// The UTF-16 offset of a position. A position after the end is taken as the end.
    pub fn utf16_of(&self, at: usize) -> usize {
        self.document.sequences.widths_before(self.text, at.min(self.len())).utf16 as usize
    }

    /// The position of a UTF-16 offset; inside a surrogate pair, that of its character. An offset after the
    /// end is taken as the end.
    pub fn at_utf16(&self, offset: usize) -> usize {
        self.document.sequences.widths_until(self.text, &|sum| sum.utf16 as usize > offset).scalars as usize
    }

    /// The position of the first character of a line that exists.
    fn line_start(&self, line: usize) -> usize {
        if line == 0 {
            return 0;
        }
        let until = self.document.sequences.widths_until(self.text, &|sum| sum.newlines as usize >= line);
        // One more for the line feed itself.
        until.scalars as usize + 1
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.slice(0..self.len()))
    }
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Text").field(&self.to_string()).finish()
    }
}
