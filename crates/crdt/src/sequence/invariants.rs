//! What must hold in the tree after every step; the tests ask after each op.

use super::span::SPAN_LEN_MAX;
use super::tree::{CHILDREN, NIL, SPANS};
use super::{Sequences, Widths};

impl Sequences {
    pub(crate) fn check_invariants(&self) {
        let mut elements = 0;
        let mut live = 0;
        let mut leaves_seen = 0;
        for (text, root) in self.tree.roots.iter().enumerate() {
            let mut leaves = Vec::new();
            let widths = self.check_node(root.node, NIL, &mut leaves).0;
            assert_eq!(widths, root.widths, "the root knows the whole");
            assert_eq!(leaves.first(), Some(&root.first));
            assert_eq!(leaves.last(), Some(&root.last));
            leaves_seen += leaves.len();
            for (n, &leaf) in leaves.iter().enumerate() {
                let at = self.tree.leaf(leaf);
                assert_eq!(at.text as usize, text);
                assert_eq!(at.prev, n.checked_sub(1).map_or(NIL, |n| leaves[n]), "linked as ordered");
                assert_eq!(at.next, leaves.get(n + 1).copied().unwrap_or(NIL), "linked as ordered");
                assert!(at.len > 0 || leaves.len() == 1, "no empty leaf but the only one");
                for (slot, span) in at.spans().iter().enumerate() {
                    assert!(span.len > 0 && (span.is_dead() || span.len <= SPAN_LEN_MAX));
                    assert!(span.bytes() >= span.visible());
                    assert_eq!(self.text_of(span).chars().count() as u32, span.visible());
                    elements += span.len as usize;
                    live += span.bytes() as usize;
                    assert!(span.len > 1 || span.step() == 1, "one element is forwards");
                    for off in 0..span.len {
                        let id = span.element(off);
                        assert_eq!(self.places.leaf(id), Some(leaf), "{id:?} is where the index says");
                        assert_eq!(self.locate(id), Some(super::At { leaf, slot: slot as u32, off }));
                    }
                    let (low, counters) = span.counters();
                    let of_others =
                        (0..counters).map(|n| low.plus(n)).filter(|&id| span.offset(id).is_none());
                    of_others
                        .for_each(|id| assert!(self.search(id).is_none(), "no element between a span's"));
                    if let Some(next) = at.spans().get(slot + 1) {
                        // A single one may be what a cut left of a span that did not go on as this does.
                        let joins = span.is_dead()
                            && next.is_dead()
                            && span.len > 1
                            && next.len > 1
                            && self.joined(span, next).is_some();
                        assert!(!joins, "tombstones side by side are one");
                    }
                }
            }
        }
        assert_eq!(leaves_seen, self.tree.leaves.len(), "every leaf is in a text");
        assert_eq!(elements, self.elements);
        assert_eq!(live, self.content.live);
    }

    /// Widths and height of a subtree.
    fn check_node(&self, node: u32, parent: u32, leaves: &mut Vec<u32>) -> (Widths, usize) {
        let at = &self.tree.nodes[node as usize];
        assert_eq!(at.parent, parent);
        assert!(at.len >= 1 && at.len as usize <= CHILDREN);
        let mut sum = Widths::default();
        let mut height = None;
        for n in 0..at.len as usize {
            let child = at.children[n];
            let (widths, below) = if at.above_leaves {
                let leaf = self.tree.leaf(child);
                assert_eq!(leaf.parent, node);
                assert!(leaf.len as usize <= SPANS);
                leaves.push(child);
                (leaf.spans().iter().fold(Widths::default(), |sum, span| sum + self.widths_of(span)), 0)
            } else {
                self.check_node(child, node, leaves)
            };
            assert_eq!(widths, at.widths[n], "a node knows its children");
            assert_eq!(*height.get_or_insert(below), below, "all leaves are equally deep");
            sum += widths;
        }
        (sum, height.unwrap_or(0) + 1)
    }
}
