//! The hard cases: many at one spot, random places, tombstones that pile up. Prints what a server that only
//! merges pays for an op, and what a document then holds.
//!
//! ```sh
//! cargo run --release -p manyhands-crdt --example spots
//! ```

use std::time::Instant;

use manyhands_crdt::{Change, Document, EntryWriter, ReplicaId};

const OWNER: ReplicaId = ReplicaId(1);
const RUNS: usize = 9;

fn main() {
    for (clients, keys) in [(10, 1000), (50, 200)] {
        for backward in [false, true] {
            let way = if backward { "backward" } else { "forward" };
            let (base, changes) = one_spot(clients, keys, backward);
            report(&format!("one spot, {clients} x {keys} {way}"), &base, &changes);
        }
    }
    let (base, changes) = one_spot(2000, 1, false);
    report("one spot, 2000 x 1", &base, &changes);

    let mut random = 1u64;
    let mut below = move |n: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((random >> 33) as usize) % n
    };
    let base = based_on(&"letters and more ".repeat(1_000_000 / 17));
    let changes = edits(&base, 20_000, |document, n| {
        let at = below(900_000 + n);
        document.edit(OWNER).insert("text", at, "x").expect("in bounds");
    });
    report("20,000 random inserts into 1 M", &base, &changes);
    let base = based_on("0123456789");
    let changes = edits(&base, 200_000, |document, n| match n % 2 {
        0 => document.edit(OWNER).insert("text", 5, "x").expect("in bounds"),
        _ => document.edit(OWNER).delete("text", 5..6).expect("in bounds"),
    });
    report("200,000 inserts and deletions", &base, &changes);
    let changes = edits(&Document::new(), 50_000, |document, _| {
        document.edit(OWNER).insert("text", 0, "x").expect("in bounds");
    });
    report("50,000 prepends", &Document::new(), &changes);
}

fn based_on(text: &str) -> Document {
    // As from the log: every replica has its index.
    let mut server = Document::new();
    let mut again = Document::new();
    for piece in text.as_bytes().chunks(60_000) {
        let at = again.text("text").map_or(0, |text| text.len());
        let mut edit = again.edit(OWNER);
        edit.insert("text", at, std::str::from_utf8(piece).expect("ASCII")).expect("in bounds");
        server.apply(edit.commit(0).expect("an edit").as_ref()).expect("a good change");
    }
    server
}

fn edits(base: &Document, count: usize, mut step: impl FnMut(&mut Document, usize)) -> Vec<Change> {
    let mut document = base.clone();
    (0..count)
        .filter_map(|n| {
            step(&mut document, n);
            document.edit(OWNER).commit(0)
        })
        .collect()
}

fn one_spot(clients: u64, keys: usize, backward: bool) -> (Document, Vec<Change>) {
    let base = based_on("0123456789");
    let writers: Vec<Vec<Change>> = (0..clients)
        .map(|client| {
            let mut document = base.clone();
            // Arrival in another order than that of the ids.
            let replica = ReplicaId(2 + client.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 1_000_003);
            (0..keys)
                .map(|key| {
                    let mut edit = document.edit(replica);
                    edit.insert("text", if backward { 5 } else { 5 + key }, "x").expect("in bounds");
                    edit.commit(1).expect("an edit")
                })
                .collect()
        })
        .collect();
    let in_turn = (0..keys).flat_map(|key| writers.iter().map(move |writer| writer[key].clone())).collect();
    (base, in_turn)
}

fn report(name: &str, base: &Document, changes: &[Change]) {
    let mut state = base.clone();
    let entries: Vec<Vec<u8>> = changes
        .iter()
        .map(|change| {
            let new = state.replica_index(change.replica).is_none();
            state.apply(change.as_ref()).expect("a good change");
            let index = state.replica_index(change.replica).expect("applied");
            let mut run = EntryWriter::new();
            run.push(2, index, new.then_some(change.replica), change.base.min(1), &change.body);
            run.finish()
        })
        .collect();
    let mut best = f64::MAX;
    let mut document = Document::new();
    for _ in 0..RUNS {
        document = base.clone();
        let start = Instant::now();
        for entry in &entries {
            document.replay(2, 1, entry, 1).expect("a good entry");
        }
        best = best.min(start.elapsed().as_nanos() as f64 / entries.len() as f64);
    }
    assert_eq!(document.state_hash(), state.state_hash());
    let saved = document.encode();
    let start = Instant::now();
    let loaded = Document::decode(&saved).expect("what was saved");
    let load = start.elapsed().as_micros();
    println!(
        "{name:32} {best:8.0} ns an op, {:8} bytes fed, {:8} loaded, {:7} saved, load {load} us",
        document.memory_bytes(),
        loaded.memory_bytes(),
        saved.len()
    );
}
