//! More replicas at one spot than a leaf holds, against the linked list.

use super::{Random, runs};
use crate::id::{Client, Id};
use crate::sequence::{Sequences, naive};

const CROWD: u64 = 150;

fn key(client: Client) -> u64 {
    u64::from(client) * 7919 % 1009 + 1
}

// enforces: I-5
#[test]
fn a_crowd_at_one_spot_stands_as_in_the_list() {
    for seed in 0..30 {
        let random = &mut Random(seed);
        let (mut tree, mut list) = (Sequences::default(), naive::Sequences::default());
        tree.add_text();
        list.add_text();
        let mut insert = |id: Id, left: Id, right: Id, text: &str| {
            tree.insert(&key, 0, id, left, right, text);
            list.insert(&key, 0, id, left, right, text);
        };
        insert(Id::new(0, 0), Id::NONE, Id::NONE, "0123");
        // Mostly the same gap; sometimes others that overlap it, or beside what somebody has put there.
        let mut next = vec![0; CROWD as usize + 1];
        for _ in 0..3 * CROWD {
            let client = 1 + random.below(CROWD) as u32;
            let counter = next[client as usize];
            let id = Id::new(client, counter);
            let other = 1 + random.below(CROWD) as u32;
            let (mut left, mut right) = (Id::new(0, 1), Id::new(0, 2));
            match random.below(12) {
                0 => right = Id::new(0, 3),
                1 => left = Id::new(0, 0),
                2 => right = Id::NONE,
                3 if next[other as usize] > 0 => left = Id::new(other, 0),
                4 if next[other as usize] > 0 => right = Id::new(other, 0),
                5..=7 if counter > 0 => left = Id::new(client, counter - 1),
                8..=9 if counter > 0 => right = Id::new(client, counter - 1),
                _ => {}
            }
            let text = random.text(1 + seed % 2);
            insert(id, left, right, &text);
            next[client as usize] += text.chars().count() as u32;
        }
        tree.check_invariants();
        assert_eq!(runs(|on| tree.runs(0, on)), runs(|on| list.runs(0, on)), "seed {seed}");
    }
}
