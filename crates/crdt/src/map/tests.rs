//! What is counted as it changes is what a count from scratch gives.

use super::{Hlc, MapOp, Maps, Strategy, Weight, map_change_body};
use crate::change::ChangeRef;
use crate::document::{Document, Limits};
use crate::id::ReplicaId;
use crate::sequence::tests::Random;

fn counted(maps: &Maps) -> (usize, usize, Vec<usize>) {
    let (mut writes, mut bytes, mut hidden) = (0, 0, Vec::new());
    for map in maps.maps.values() {
        let weights = map.registers.iter().map(|(key, register)| Weight::of(key, register));
        hidden.push(0);
        for weight in weights {
            assert!(weight.writes > 0, "an empty register was left behind");
            writes += weight.writes;
            bytes += weight.bytes;
            *hidden.last_mut().unwrap() += weight.hidden;
        }
    }
    (writes, bytes, hidden)
}

fn check(document: &Document) {
    let hidden = document.maps.maps.values().map(|map| map.hidden).collect();
    let (writes, bytes) = document.maps.weight();
    assert_eq!((writes, bytes, hidden), counted(&document.maps));
    assert!(document.maps.maps.values().all(|map| !map.registers.is_empty()));
}

#[test]
fn counts_are_kept() {
    for seed in 0..600 {
        let random = &mut Random(seed);
        let strategy = Strategy::ALL[seed as usize % 3];
        let mut document = Document::with_strategy(strategy, Limits::default());
        let mut counters = [0; 4];
        for _ in 0..60 {
            let (author, n) = (random.below(4), random.below(9) + 1);
            let (map, key) = (["", "m"][random.below(2) as usize], "k".repeat(n as usize));
            let len = random.below(20) as usize;
            let value = format!("\"{}\"", "v".repeat(len));
            let value = random.chance(60).then_some(&*value);
            let stamp = Hlc::at(random.below(30));
            if author == 3 {
                // The device's own, which is not logged; its edits see all that is here.
                let mut edit = document.edit(ReplicaId(9));
                match value {
                    Some(value) => edit.set(map, &key, value, stamp, None).unwrap(),
                    None => edit.remove(map, &key, stamp, None).unwrap(),
                }
                edit.commit(0).unwrap();
            } else {
                let body = map_change_body(&MapOp { map, key: &key, value, stamp, expect: None }).unwrap();
                let counter = &mut counters[author as usize];
                let base = random.below(document.seq() + 1);
                let change =
                    ChangeRef { replica: ReplicaId(author + 1), counter: *counter, base, body: &body };
                document.apply(change).unwrap();
                *counter += 1;
            }
            check(&document);
        }
        let loaded = Document::decode(&document.encode()).unwrap();
        assert_eq!(loaded.maps.weight(), document.maps.weight());
        check(&loaded);
    }
}
