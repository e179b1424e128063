//! Typing on: the case that nearly every insertion is, in one look.

use super::span::SPAN_LEN_MAX;
use super::{At, Sequences, Widths};
use crate::id::Id;

impl Sequences {
    /// Makes the span in which the replica was last longer, if elements with ids from `id` on that are typed
    /// behind the one before `id`, with its right origin, belong at its end: nobody has come between. Says
    /// which text that is. When it is not so, or not seen at a glance, nothing has changed.
    #[inline]
    pub(crate) fn type_on(&mut self, id: Id, len: u32, content: &str) -> Option<u32> {
        let &(leaf, slot) = self.hints.get(id.client as usize)?;
        let at = self.tree.leaves.get(leaf as usize)?;
        let span = *at.spans().get(slot as usize)?;
        let goes_on = span.id.client == id.client
            && span.id.counter + span.len == id.counter
            && span.step() == 1
            && !span.is_dead()
            && span.len + len <= SPAN_LEN_MAX
            && span.at() + span.bytes() == self.content.end(id.client);
        if !goes_on {
            return None;
        }
        let next = self.after(At { leaf, slot, off: span.len }).map_or(Id::NONE, |(_, id)| id);
        if next != span.right {
            return None;
        }
        let text = at.text;
        let span = self.tree.span_mut(leaf, slot);
        span.grow(len, content.len() as u32);
        self.content.push(id.client, content);
        self.elements += len as usize;
        self.tree.widen(leaf, Widths::of_str(content, len));
        self.places.append(id, leaf);
        Some(text)
    }
}
