//! The tree that keeps the spans of a text in order: leaves of spans, nodes of children with the widths
//! of each, all in two vectors and linked by index. Spans come and never go, so leaves are never freed.

use super::Widths;
use super::places::Places;
use super::span::Span;

// Under the crate's own tests everything is small, so that short histories split leaves and nodes as well.
pub(super) const SPANS: usize = if cfg!(any(test, fuzzing)) { 4 } else { 32 };
pub(super) const CHILDREN: usize = if cfg!(any(test, fuzzing)) { 4 } else { 16 };
pub(super) const NIL: u32 = u32::MAX;

#[derive(Clone, Debug)]
pub(super) struct Leaf {
    pub(super) spans: [Span; SPANS],
    pub(super) len: u32,
    pub(super) text: u32,
    pub(super) next: u32,
    pub(super) prev: u32,
    pub(super) parent: u32,
}

impl Leaf {
    #[inline]
    pub(super) fn spans(&self) -> &[Span] {
        &self.spans[..self.len as usize]
    }
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) children: [u32; CHILDREN],
    pub(super) widths: [Widths; CHILDREN],
    pub(super) len: u32,
    pub(super) parent: u32,
    /// Whether the children are leaves.
    pub(super) above_leaves: bool,
}

impl Node {
    fn new(parent: u32, above_leaves: bool) -> Node {
        Node {
            children: [NIL; CHILDREN],
            widths: [Widths::default(); CHILDREN],
            len: 0,
            parent,
            above_leaves,
        }
    }

    #[inline]
    pub(super) fn index_of(&self, child: u32) -> usize {
        self.children[..self.len as usize].iter().position(|&c| c == child).expect("a child of its parent")
    }

    fn sum(&self) -> Widths {
        self.widths[..self.len as usize].iter().fold(Widths::default(), |sum, &widths| sum + widths)
    }

    fn insert(&mut self, at: usize, child: u32, widths: Widths) {
        let len = self.len as usize;
        self.children.copy_within(at..len, at + 1);
        self.widths.copy_within(at..len, at + 1);
        self.children[at] = child;
        self.widths[at] = widths;
        self.len += 1;
    }
}

/// One text: the root of its tree, and the first leaf.
#[derive(Clone, Copy, Debug)]
pub(super) struct Root {
    pub(super) node: u32,
    pub(super) first: u32,
    pub(super) last: u32,
    pub(super) widths: Widths,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Tree {
    pub(super) leaves: Vec<Leaf>,
    pub(super) nodes: Vec<Node>,
    pub(super) roots: Vec<Root>,
}

impl Tree {
    pub(super) fn add_text(&mut self) -> u32 {
        let text = self.roots.len() as u32;
        let leaf = self.add_leaf(text);
        let node = self.nodes.len() as u32;
        let mut root = Node::new(NIL, true);
        root.insert(0, leaf, Widths::default());
        self.nodes.push(root);
        self.leaves[leaf as usize].parent = node;
        self.roots.push(Root { node, first: leaf, last: leaf, widths: Widths::default() });
        text
    }

    #[inline]
    pub(super) fn leaf(&self, leaf: u32) -> &Leaf {
        &self.leaves[leaf as usize]
    }

    #[inline]
    pub(super) fn span(&self, leaf: u32, slot: u32) -> &Span {
        &self.leaves[leaf as usize].spans()[slot as usize]
    }

    #[inline]
    pub(super) fn span_mut(&mut self, leaf: u32, slot: u32) -> &mut Span {
        &mut self.leaves[leaf as usize].spans[slot as usize]
    }

    /// Adds to what is visible in a leaf.
    #[inline]
    pub(super) fn widen(&mut self, leaf: u32, by: Widths) {
        let mut child = leaf;
        let mut parent = self.leaves[leaf as usize].parent;
        while parent != NIL {
            let node = &mut self.nodes[parent as usize];
            let at = node.index_of(child);
            node.widths[at] += by;
            child = parent;
            parent = node.parent;
        }
        self.roots[self.leaves[leaf as usize].text as usize].widths += by;
    }

    /// Takes from what is visible in a leaf.
    #[inline]
    pub(super) fn narrow(&mut self, leaf: u32, by: Widths) {
        let mut child = leaf;
        let mut parent = self.leaves[leaf as usize].parent;
        while parent != NIL {
            let node = &mut self.nodes[parent as usize];
            let at = node.index_of(child);
            node.widths[at] -= by;
            child = parent;
            parent = node.parent;
        }
        self.roots[self.leaves[leaf as usize].text as usize].widths -= by;
    }

    /// Puts a span before `slot`; says where it is then. Widths and the span's own place in the index are
    /// the caller's to set; spans that move to another leaf get their new place here.
    ///
    /// `measure` tells the widths of spans that move.
    pub(super) fn insert_span(
        &mut self,
        leaf: u32,
        slot: u32,
        span: Span,
        places: &mut Places,
        measure: impl Fn(&Span) -> Widths,
    ) -> (u32, u32) {
        if (self.leaf(leaf).len as usize) < SPANS {
            self.put(leaf, slot as usize, span);
            return (leaf, slot);
        }
        if slot as usize == SPANS {
            // Typing goes on at the end of a leaf: what is before stays packed.
            let next = self.leaf(leaf).next;
            if next != NIL && (self.leaf(next).len as usize) < SPANS / 2 {
                self.put(next, 0, span);
                return (next, 0);
            }
            let new = self.add_leaf_after(leaf, Widths::default());
            self.put(new, 0, span);
            return (new, 0);
        }
        if slot == 0 {
            let prev = self.leaf(leaf).prev;
            if prev != NIL && (self.leaf(prev).len as usize) < SPANS {
                let end = self.leaf(prev).len;
                self.put(prev, end as usize, span);
                return (prev, end);
            }
            let new = self.add_leaf_before(leaf);
            self.put(new, 0, span);
            return (new, 0);
        }
        let (leaf, slot) = self.make_room(leaf, slot, places, measure);
        self.put(leaf, slot as usize, span);
        (leaf, slot)
    }

    /// Makes sure that two more spans fit into the leaf of a slot, by moving half of a full one to a new
    /// leaf; says where the slot is then.
    pub(super) fn make_room(
        &mut self,
        leaf: u32,
        slot: u32,
        places: &mut Places,
        measure: impl Fn(&Span) -> Widths,
    ) -> (u32, u32) {
        let len = self.leaf(leaf).len as usize;
        if len + 2 <= SPANS {
            return (leaf, slot);
        }
        let half = SPANS / 2;
        let moved: [Span; SPANS] = self.leaf(leaf).spans;
        let moved = &moved[half..len];
        let widths = moved.iter().fold(Widths::default(), |sum, span| sum + measure(span));
        self.set_child_widths(leaf, |own| own - widths);
        let new = self.add_leaf_after(leaf, widths);
        let upper = &mut self.leaves[new as usize];
        upper.spans[..moved.len()].copy_from_slice(moved);
        upper.len = moved.len() as u32;
        self.leaves[leaf as usize].len = half as u32;
        for span in moved {
            let (low, counters) = span.counters();
            places.assign(low, counters, new);
        }
        if slot as usize >= half { (new, slot - half as u32) } else { (leaf, slot) }
    }

    pub(super) fn remove_span(&mut self, leaf: u32, slot: u32) {
        let leaf = &mut self.leaves[leaf as usize];
        leaf.spans.copy_within(slot as usize + 1..leaf.len as usize, slot as usize);
        leaf.len -= 1;
    }

    /// Puts a span before `slot` of a leaf that has room.
    pub(super) fn put(&mut self, leaf: u32, slot: usize, span: Span) {
        let leaf = &mut self.leaves[leaf as usize];
        leaf.spans.copy_within(slot..leaf.len as usize, slot + 1);
        leaf.spans[slot] = span;
        leaf.len += 1;
    }

    fn add_leaf(&mut self, text: u32) -> u32 {
        // Doubling would leave up to half of the greatest part of a document unused.
        if self.leaves.len() == self.leaves.capacity() {
            self.leaves.reserve_exact(self.leaves.len() / 8 + 1);
        }
        self.leaves.push(Leaf {
            spans: [Span::EMPTY; SPANS],
            len: 0,
            text,
            next: NIL,
            prev: NIL,
            parent: NIL,
        });
        self.leaves.len() as u32 - 1
    }

    /// A new leaf at the end of a text that is being loaded: no node has it yet.
    pub(super) fn add_last_leaf(&mut self, text: u32) -> u32 {
        let last = self.roots[text as usize].last;
        let new = self.add_leaf(text);
        self.leaves[new as usize].prev = last;
        self.leaves[last as usize].next = new;
        self.roots[text as usize].last = new;
        new
    }

    /// Puts nodes over the leaves of a text that is loaded, which have these widths.
    pub(super) fn raise(&mut self, text: u32, widths: &[Widths]) {
        let Root { node: root, first, .. } = self.roots[text as usize];
        let mut above_leaves = true;
        // The first leaf is older than the others, which were added in one go.
        let others = self.leaves.len() as u32 - (widths.len() as u32 - 1)..;
        let mut children: Vec<(u32, Widths)> =
            std::iter::once(first).chain(others).zip(widths.iter().copied()).collect();
        while children.len() > CHILDREN {
            let new = children.chunks(CHILDREN).map(|children| {
                let node = self.nodes.len() as u32;
                self.nodes.push(Node::new(NIL, above_leaves));
                (node, self.fill(node, children))
            });
            children = new.collect();
            above_leaves = false;
        }
        self.nodes[root as usize] = Node::new(NIL, above_leaves);
        self.roots[text as usize].widths = self.fill(root, &children);
    }

    /// Gives an empty node its children; says how wide it is then.
    fn fill(&mut self, node: u32, children: &[(u32, Widths)]) -> Widths {
        for (n, &(child, widths)) in children.iter().enumerate() {
            self.nodes[node as usize].insert(n, child, widths);
            self.set_parent(node, child);
        }
        self.nodes[node as usize].sum()
    }

    /// A new leaf behind `leaf`, of these widths.
    pub(super) fn add_leaf_after(&mut self, leaf: u32, widths: Widths) -> u32 {
        let Leaf { text, next, .. } = *self.leaf(leaf);
        let new = self.add_leaf(text);
        self.leaves[new as usize].prev = leaf;
        self.leaves[new as usize].next = next;
        self.leaves[leaf as usize].next = new;
        match next {
            NIL => self.roots[text as usize].last = new,
            _ => self.leaves[next as usize].prev = new,
        }
        self.adopt(self.leaf(leaf).parent, leaf, 1, new, widths);
        new
    }

    fn add_leaf_before(&mut self, leaf: u32) -> u32 {
        let Leaf { text, prev, .. } = *self.leaf(leaf);
        let new = self.add_leaf(text);
        self.leaves[new as usize].prev = prev;
        self.leaves[new as usize].next = leaf;
        self.leaves[leaf as usize].prev = new;
        match prev {
            NIL => self.roots[text as usize].first = new,
            _ => self.leaves[prev as usize].next = new,
        }
        self.adopt(self.leaf(leaf).parent, leaf, 0, new, Widths::default());
        new
    }

    /// Changes the widths of a leaf in its parent alone: what it lost went to a neighbour.
    fn set_child_widths(&mut self, leaf: u32, change: impl Fn(Widths) -> Widths) {
        let mut child = leaf;
        let mut parent = self.leaf(leaf).parent;
        while parent != NIL {
            let node = &mut self.nodes[parent as usize];
            let at = node.index_of(child);
            node.widths[at] = change(node.widths[at]);
            child = parent;
            parent = node.parent;
        }
    }

    /// Makes `new` a child of `parent`, before its child `beside` or, with `after` 1, behind it; splits
    /// full nodes on the way up. The widths are added to all above.
    fn adopt(&mut self, parent: u32, beside: u32, after: usize, new: u32, widths: Widths) {
        let mut parent = parent;
        let mut at = self.nodes[parent as usize].index_of(beside) + after;
        if self.nodes[parent as usize].len as usize == CHILDREN {
            (parent, at) = self.split_node(parent, at);
        }
        self.nodes[parent as usize].insert(at, new, widths);
        self.set_parent(parent, new);
        let mut child = parent;
        let mut above = self.nodes[parent as usize].parent;
        while above != NIL {
            let node = &mut self.nodes[above as usize];
            let at = node.index_of(child);
            node.widths[at] += widths;
            child = above;
            above = node.parent;
        }
    }

    /// Makes room in a full node for a child at `at`; says where that place is now.
    fn split_node(&mut self, node: u32, at: usize) -> (u32, usize) {
        // The nodes above that are full too, the highest first.
        let mut full = vec![node];
        loop {
            let parent = self.nodes[full[full.len() - 1] as usize].parent;
            if parent == NIL || (self.nodes[parent as usize].len as usize) < CHILDREN {
                break;
            }
            full.push(parent);
        }
        for &node in full.iter().rev() {
            self.split_below_room(node);
        }
        let half = self.nodes[node as usize].len as usize;
        if at <= half {
            return (node, at);
        }
        let parent = self.nodes[node as usize].parent;
        let above = &self.nodes[parent as usize];
        (above.children[above.index_of(node) + 1], at - half)
    }

    /// Cuts a full node in two; its parent has room, or it is a root and gets one.
    fn split_below_room(&mut self, node: u32) {
        let Node { parent, above_leaves, .. } = self.nodes[node as usize];
        let parent = if parent == NIL { self.add_root(node) } else { parent };
        let new = self.nodes.len() as u32;
        let mut upper = Node::new(parent, above_leaves);
        let lower = &mut self.nodes[node as usize];
        let half = CHILDREN / 2;
        for n in half..CHILDREN {
            upper.insert(n - half, lower.children[n], lower.widths[n]);
        }
        lower.len = half as u32;
        let (low, high) = (lower.sum(), upper.sum());
        self.nodes.push(upper);
        for n in 0..CHILDREN - half {
            self.set_parent(new, self.nodes[new as usize].children[n]);
        }
        let above = &mut self.nodes[parent as usize];
        let at = above.index_of(node);
        above.widths[at] = low;
        above.insert(at + 1, new, high);
    }

    fn add_root(&mut self, old: u32) -> u32 {
        let new = self.nodes.len() as u32;
        let widths = self.nodes[old as usize].sum();
        let mut root = Node::new(NIL, false);
        root.insert(0, old, widths);
        self.nodes.push(root);
        self.nodes[old as usize].parent = new;
        let root =
            self.roots.iter_mut().find(|root| root.node == old).expect("a node without parent is a root");
        root.node = new;
        new
    }

    fn set_parent(&mut self, parent: u32, child: u32) {
        if self.nodes[parent as usize].above_leaves {
            self.leaves[child as usize].parent = parent;
        } else {
            self.nodes[child as usize].parent = parent;
        }
    }

    /// Which of two leaves of a text comes first.
    pub(super) fn compare_leaves(&self, a: u32, b: u32) -> std::cmp::Ordering {
        if a == b {
            return std::cmp::Ordering::Equal;
        }
        let (mut a, mut b) = (a, b);
        let (mut above_a, mut above_b) = (self.leaf(a).parent, self.leaf(b).parent);
        while above_a != above_b {
            (a, b) = (above_a, above_b);
            (above_a, above_b) = (self.nodes[a as usize].parent, self.nodes[b as usize].parent);
        }
        let node = &self.nodes[above_a as usize];
        node.index_of(a).cmp(&node.index_of(b))
    }

    /// What is visible before a leaf.
    pub(super) fn widths_before_leaf(&self, leaf: u32) -> Widths {
        let mut sum = Widths::default();
        let mut child = leaf;
        let mut parent = self.leaf(leaf).parent;
        while parent != NIL {
            let node = &self.nodes[parent as usize];
            let at = node.index_of(child);
            sum = node.widths[..at].iter().fold(sum, |sum, &widths| sum + widths);
            child = parent;
            parent = node.parent;
        }
        sum
    }

    /// The first leaf at whose end `enough` holds, or the last leaf, and what is visible before it.
    /// `enough` must stay true once it is.
    pub(super) fn descend(&self, text: u32, enough: impl Fn(Widths) -> bool) -> (u32, Widths) {
        let mut node = self.roots[text as usize].node;
        let mut before = Widths::default();
        loop {
            let at = &self.nodes[node as usize];
            let last = at.len as usize - 1;
            let mut child = 0;
            while child < last && !enough(before + at.widths[child]) {
                before += at.widths[child];
                child += 1;
            }
            if at.above_leaves {
                return (at.children[child], before);
            }
            node = at.children[child];
        }
    }
}
