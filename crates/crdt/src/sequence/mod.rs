//! The sequence: all texts of a document, as runs of characters in the order of the merge rule.
//!
//! [`integrate`] puts insertions where the merge rule wants them, [`delete`] makes tombstones, [`read`]
//! answers questions. Below lie [`tree`] (order and widths), [`places`] (id to leaf) and [`content`]
//! (characters).

mod content;
mod delete;
mod integrate;
mod load;
#[cfg(test)]
pub(crate) mod naive;
mod places;
mod read;
mod tree;
mod typing;
mod widths;

pub(crate) use widths::Widths;

use crate::id::Id;
use content::Content;
use places::Places;
use tree::{NIL, Span, Tree};

/// Consecutive elements of one replica that were typed in one go: each has the one before as its left
/// origin, and all have the same right origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run<'a> {
    pub(crate) id: Id,
    pub(crate) len: u32,
    pub(crate) left: Id,
    pub(crate) right: Id,
    pub(crate) deleted: bool,
    /// Empty when deleted.
    pub(crate) text: &'a str,
}

/// A leaf and a slot in it, where something was at some time.
pub(crate) type Guess = (u32, u32);

/// What a check needs to know of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) text: u32,
    /// Its origins.
    pub(crate) left: Id,
    pub(crate) right: Id,
    /// The element right after it, tombstone or not.
    pub(crate) next: Id,
    pub(crate) guess: Guess,
}

impl Place {
    pub(crate) const NO_GUESS: Guess = (NIL, 0);
}

/// All texts of a document.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sequences {
    tree: Tree,
    places: Places,
    content: Content,
    /// For each replica the span that was touched last; a guess, checked before use.
    hints: Vec<Guess>,
    /// For each replica the last element that it typed among rivals, and its right origin, which is behind it.
    behind: Vec<(Id, Id)>,
    elements: usize,
}

/// An element in the tree, or a gap: then it is the one before element `off` of its span, and `off` may be
/// the span's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct At {
    leaf: u32,
    slot: u32,
    off: u32,
}

impl Sequences {
    pub(crate) fn add_text(&mut self) -> u32 {
        self.tree.add_text()
    }

    /// Elements of all texts, visible or not.
    pub(crate) fn elements(&self) -> usize {
        self.elements
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.tree.leaves.capacity() * size_of::<tree::Leaf>()
            + self.tree.nodes.capacity() * size_of::<tree::Node>()
            + self.tree.roots.capacity() * size_of::<tree::Root>()
            + self.places.memory_bytes()
            + self.content.memory_bytes()
            + self.hints.capacity() * size_of::<Guess>()
            + self.behind.capacity() * size_of::<(Id, Id)>()
    }

    /// Where an element is.
    #[inline]
    fn locate(&self, id: Id) -> Option<At> {
        if let Some(&(leaf, slot)) = self.hints.get(id.client as usize)
            && let Some(leaf_at) = self.tree.leaves.get(leaf as usize)
        {
            // The span itself, or one beside it: people go on where they were, and next to it.
            let spans = leaf_at.spans();
            for slot in [slot, slot.wrapping_sub(1), slot.wrapping_add(1)] {
                if let Some(span) = spans.get(slot as usize)
                    && span.contains(id)
                {
                    return Some(At { leaf, slot, off: id.counter - span.id.counter });
                }
            }
        }
        self.search(id)
    }

    fn search(&self, id: Id) -> Option<At> {
        let leaf = self.places.leaf(id)?;
        let spans = self.tree.leaf(leaf).spans();
        let slot = spans.iter().position(|span| span.contains(id))?;
        Some(At { leaf, slot: slot as u32, off: id.counter - spans[slot].id.counter })
    }

    fn expect(&self, id: Id) -> At {
        self.locate(id).expect("the check has seen that it is an element")
    }

    /// Says where a look at an element of that replica may begin; a guess that is checked before use.
    #[inline]
    pub(crate) fn hint(&mut self, id: Id, (leaf, slot): Guess) {
        if leaf == NIL {
            return;
        }
        let client = id.client as usize;
        if client >= self.hints.len() {
            self.hints.resize(client + 1, (NIL, 0));
        }
        self.hints[client] = (leaf, slot);
    }

    /// The element that follows a gap: where, and its id.
    #[inline]
    fn after(&self, gap: At) -> Option<(At, Id)> {
        let leaf = self.tree.leaf(gap.leaf);
        let spans = leaf.spans();
        if let Some(span) = spans.get(gap.slot as usize) {
            if gap.off < span.len {
                return Some((gap, span.id.plus(gap.off)));
            }
            if let Some(next) = spans.get(gap.slot as usize + 1) {
                return Some((At { slot: gap.slot + 1, off: 0, ..gap }, next.id));
            }
        }
        let next = self.tree.leaves.get(leaf.next as usize)?;
        Some((At { leaf: leaf.next, slot: 0, off: 0 }, next.spans().first()?.id))
    }

    /// The gap before an element, as the end of the span before or a place inside its own.
    fn before(&self, at: At) -> Option<At> {
        if at.off > 0 {
            return Some(at);
        }
        let leaf = self.tree.leaf(at.leaf);
        let (leaf, slot) = match at.slot.checked_sub(1) {
            Some(slot) => (at.leaf, slot),
            None => (leaf.prev, self.tree.leaves.get(leaf.prev as usize)?.len - 1),
        };
        Some(At { leaf, slot, off: self.tree.span(leaf, slot).len })
    }

    /// The left origin of an element.
    fn left_of(&self, id: Id) -> Id {
        let at = self.expect(id);
        if at.off > 0 { Id::new(id.client, id.counter - 1) } else { self.tree.span(at.leaf, at.slot).left }
    }

    #[inline]
    fn text_of(&self, span: &Span) -> &str {
        if span.is_dead() { "" } else { self.content.get(span.id.client, span.at(), span.bytes) }
    }

    fn widths_of(&self, span: &Span) -> Widths {
        if span.is_dead() { Widths::default() } else { Widths::of_str(self.text_of(span), span.len) }
    }

    /// Bytes of the first `off` characters of a span.
    fn bytes_at(&self, span: &Span, off: u32) -> u32 {
        if span.bytes == span.len || span.is_dead() {
            return off.min(span.bytes);
        }
        let text = self.text_of(span);
        text.char_indices().nth(off as usize).map_or(text.len(), |(at, _)| at) as u32
    }
}

#[cfg(test)]
mod invariants;
#[cfg(test)]
pub(crate) mod tests;
