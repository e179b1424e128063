//! Questions to a sequence: by id, by position, in lines and UTF-16 units, and as a whole.

use std::ops::Range;

use super::span::Span;
use super::{At, Guess, Place, Run, Sequences, Widths};
use crate::id::Id;

impl Sequences {
    /// What a check needs to know of an element; `None` when there is none of that id.
    #[inline]
    pub(crate) fn find(&self, id: Id) -> Option<Place> {
        let at = self.locate(id)?;
        let next = self.after(At { off: at.off + 1, ..at }).map_or(Id::NONE, |(_, next)| next);
        let span = self.tree.span(at.leaf, at.slot);
        let (left, right) = (span.left_of(at.off), span.right_of(at.off));
        let text = self.tree.leaf(at.leaf).text;
        Some(Place { text, left, right, next, guess: (at.leaf, at.slot) })
    }

    /// Checks that all of these ids are elements, and says where the first is.
    ///
    /// # Errors
    /// The first id that is none.
    pub(crate) fn find_all(&self, id: Id, len: u32) -> Result<Guess, Id> {
        let first = self.locate(id).ok_or(id)?;
        let mut done = self.tree.span(first.leaf, first.slot).count_up(first.off);
        while done < len {
            let id = id.plus(done);
            let at = self.locate(id).ok_or(id)?;
            done += self.tree.span(at.leaf, at.slot).count_up(at.off);
        }
        Ok((first.leaf, first.slot))
    }

    /// Text, visible elements before it, and whether it is deleted.
    pub(crate) fn position(&self, id: Id) -> Option<(u32, usize, bool)> {
        let at = self.locate(id)?;
        let deleted = self.tree.span(at.leaf, at.slot).is_dead();
        Some((self.tree.leaf(at.leaf).text, self.visible_before(at) as usize, deleted))
    }

    /// Visible elements before an element.
    pub(super) fn visible_before(&self, at: At) -> u32 {
        let spans = &self.tree.leaf(at.leaf).spans()[..=at.slot as usize];
        let (span, before) = spans.split_last().expect("at least the span itself");
        let within = if span.is_dead() { 0 } else { at.off };
        let in_leaf = before.iter().map(Span::visible).sum::<u32>();
        self.tree.widths_before_leaf(at.leaf).scalars + in_leaf + within
    }

    /// The origins of an insertion after `at` visible elements: the visible one before, and whatever is
    /// next to that, tombstone or not.
    pub(crate) fn origins_at(&self, text: u32, at: usize) -> (Id, Id) {
        let (left, gap) = match at.checked_sub(1) {
            None => (Id::NONE, At { leaf: self.tree.roots[text as usize].first, slot: 0, off: 0 }),
            Some(before) => {
                let at = self.visible_at(text, before);
                (self.tree.span(at.leaf, at.slot).element(at.off), At { off: at.off + 1, ..at })
            }
        };
        (left, self.after(gap).map_or(Id::NONE, |(_, id)| id))
    }

    /// Where a visible element is; `at` must be below the length.
    fn visible_at(&self, text: u32, at: usize) -> At {
        let at = at as u32;
        let (leaf, before) = self.tree.descend(text, |sum| sum.scalars > at);
        let mut rest = at - before.scalars;
        for (slot, span) in self.tree.leaf(leaf).spans().iter().enumerate() {
            if rest < span.visible() {
                return At { leaf, slot: slot as u32, off: rest };
            }
            rest -= span.visible();
        }
        unreachable!("position {at} of {}", self.widths(text).scalars)
    }

    /// Calls `on` for each visible stretch of `range`: the span, and which of its elements.
    fn stretches(&self, text: u32, range: Range<usize>, on: &mut dyn FnMut(&Span, u32, u32)) {
        if range.is_empty() {
            return;
        }
        let mut rest = range.len() as u32;
        let mut at = self.visible_at(text, range.start);
        loop {
            let leaf = self.tree.leaf(at.leaf);
            for span in &leaf.spans()[at.slot as usize..] {
                let n = span.visible().saturating_sub(at.off).min(rest);
                if n > 0 {
                    on(span, at.off, n);
                    rest -= n;
                }
                at.off = 0;
                if rest == 0 {
                    return;
                }
            }
            at = At { leaf: leaf.next, slot: 0, off: 0 };
        }
    }

    /// The ids of visible elements, in order.
    pub(crate) fn ids(&self, text: u32, range: Range<usize>, on: &mut dyn FnMut(Id, u32)) {
        self.stretches(text, range, &mut |span, off, n| match span.step() {
            1 => on(span.element(off), n),
            _ => (off..off + n).for_each(|off| on(span.element(off), 1)),
        });
    }

    /// The visible text of a range.
    pub(crate) fn write(&self, text: u32, range: Range<usize>, out: &mut String) {
        self.stretches(text, range, &mut |span, off, n| self.read(span, off, n, out));
    }

    /// Widths of all that is visible.
    pub(crate) fn widths(&self, text: u32) -> Widths {
        self.tree.roots[text as usize].widths
    }

    /// Widths of the first `at` visible elements.
    pub(crate) fn widths_before(&self, text: u32, at: usize) -> Widths {
        self.widths_until(text, &|sum| sum.scalars as usize > at)
    }

    /// Widths of the longest prefix with which `enough` does not hold yet. `enough` must stay true once it
    /// is, as the prefix grows.
    pub(crate) fn widths_until(&self, text: u32, enough: &dyn Fn(Widths) -> bool) -> Widths {
        let (leaf, mut sum) = self.tree.descend(text, enough);
        for span in self.tree.leaf(leaf).spans() {
            let with = sum + self.widths_of(span);
            if enough(with) {
                let chars = self.text_of(span).chars();
                let mut next = |c| {
                    let with = sum + Widths::of(c);
                    let goes_on = !enough(with);
                    if goes_on {
                        sum = with;
                    }
                    goes_on
                };
                let _ = if span.is_backward() { chars.rev().all(&mut next) } else { chars.clone().all(next) };
                return sum;
            }
            sum = with;
        }
        sum
    }

    /// All runs of a text in order, as long as they can be: however it is cut up inside, the same state
    /// gives the same runs.
    pub(crate) fn runs(&self, text: u32, on: &mut dyn FnMut(Run<'_>)) {
        let mut content = String::new();
        let mut run: Option<Span> = None;
        let mut add = |span: Span, piece: &str| {
            match &mut run {
                Some(run) if run.is_dead() == span.is_dead() && run.continues_with(&span) => {
                    run.len += span.len;
                }
                _ => {
                    if let Some(run) = run.replace(span) {
                        on(as_run(&run, &content));
                    }
                    content.clear();
                }
            }
            content.push_str(piece);
        };
        let mut leaf = self.tree.roots[text as usize].first;
        while let Some(at) = self.tree.leaves.get(leaf as usize) {
            for span in at.spans() {
                let text = self.text_of(span);
                if span.step() == 1 {
                    add(*span, text);
                    continue;
                }
                // Element by element.
                let mut chars = text.chars();
                let mut utf8 = [0; 4];
                for off in 0..span.len {
                    let c = if span.is_backward() { chars.next_back() } else { chars.next() };
                    add(span.part(off, 1), c.map_or("", |c| c.encode_utf8(&mut utf8)));
                }
            }
            leaf = at.next;
        }
        if let Some(run) = run {
            on(as_run(&run, &content));
        }
    }

    /// All elements of a text in order, as [`runs`](Sequences::runs), but that runs of one element are put together
    /// whose ids are a step apart. Also the same for the same state.
    pub(crate) fn strides(&self, text: u32, on: &mut dyn FnMut(Run<'_>)) {
        let mut content = String::new();
        let mut waiting: Option<Span> = None;
        self.runs(text, &mut |run| {
            let single = (run.len == 1).then(|| Span::of_run(&run));
            if let (Some(span), Some(next)) = (&mut waiting, &single)
                && span.is_dead() == next.is_dead()
                && let Some(both) = self.joined(span, next)
            {
                *span = both;
                content.push_str(run.text);
                return;
            }
            if let Some(span) = waiting.take() {
                on(as_run(&span, &content));
            }
            match single {
                None => on(run),
                Some(span) => {
                    content.clear();
                    content.push_str(run.text);
                    waiting = Some(span);
                }
            }
        });
        if let Some(span) = waiting {
            on(as_run(&span, &content));
        }
    }
}

fn as_run<'a>(span: &Span, text: &'a str) -> Run<'a> {
    let Span { id, len, left, right, .. } = *span;
    Run { id, len, step: span.step(), left, right, deleted: span.is_dead(), text }
}
