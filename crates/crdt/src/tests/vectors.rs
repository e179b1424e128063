//! `tests/vectors/merge.json`: what concurrent changes come to, as the linked list has it. Other engines are held to
//! the file; so is this one, in every order of delivery (`tests/vectors.rs`).

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::history::{Action, History, Step};
use super::oracle::NAMES;
use super::world::{Options, World};
use crate::change::{BODY_FORMAT, Change};
use crate::sequence::tests::Random;

/// A case for each rule, in the notation of [`History`].
const CASES: [(&str, &str); 22] = [
    (
        "five at one spot stand by replica id",
        "5: 0i0:ff 1h9.0 2h9.0 3h9.0 4h9.0 0i50:a 1i50:b 2i50:c 3i50:d 4i50:e",
    ),
    ("five make the same text", "5: 0i0:a 1i0:b 2i0:c 3i0:d 4i0:e"),
    ("passages typed on stay whole", "3: 0i0:ff 1h9.0 2h9.0 0i50:aa 1i50:bb 2i50:cc 1i75:b 2i75:c"),
    ("passages typed backwards stay whole", "3: 0i0:ff 1h9.0 2h9.0 1i50:b 2i50:c 1i34:d 2i34:e 0i50:a"),
    ("one types on, one backwards", "3: 0i0:ff 1h9.0 2h9.0 1i50:a 1i67:b 2i50:c 2i34:d 1i75:e"),
    (
        "the farther right origin goes first",
        "6: 0i0:f 3h9.0 5h9.0 4h9.0 1h9.0 3i0:b 5i0:a 4h1.0 1h9.0 4i50:d 1i34:e",
    ),
    ("what hangs on a rival stays with it", "4: 0i0:ff 1h9.0 2h9.0 3h9.0 1i50:b 2i50:c 3h1.0 3i67:d 0i50:a"),
    ("between two rivals", "4: 0i0:ff 1h9.0 2h9.0 3h9.0 1i50:b 2i50:c 3h9.0 3i50:d 0i50:a"),
    ("at the end", "5: 0i0:a 1h9.0 2h9.0 3h9.0 4h9.0 0i100:b 1i100:c 2i100:d 3i100:e 4i100:f"),
    ("at the start", "5: 0i0:a 1h9.0 2h9.0 3h9.0 4h9.0 0i0:b 1i0:c 2i0:d 3i0:e 4i0:f"),
    ("deletions that overlap", "3: 0i0:abcdef 1h9.0 2h9.0 1d17:3 2d34:3 0d50:2"),
    ("insertions into what others delete", "4: 0i0:abcdef 1h9.0 2h9.0 3h9.0 1d0:6 2i50:ä 3i50:ß 0i34:語"),
    ("typing on behind what others delete", "3: 0i0:abc 1h9.0 2h9.0 0i100:de 1d34:2 2d67:1 0i100:f"),
    (
        "a run split in many places",
        "5: 0i0:abcdef 1h9.0 2h9.0 3h9.0 4h9.0 1i17:ä 2i34:ß 3i50:語 4d17:4 0i84:🎉",
    ),
    ("characters beyond the basic plane", "3: 0i0:🎉語🎉🎉 1h9.0 2h9.0 1i25:🎉 2d25:2 0i50:a 1d0:1"),
    ("several ops in a change", "3: 0i0:abc 1h9.0 2h9.0 1i34:d,d0:1,i100:e 2d0:1,i0:f,i34:ä 0i67:|,d34:1"),
    (
        "several ranges in a deletion",
        "3: 0i0:abcdef 1h9.0 2h9.0 1i50:ää 2h9.0 2i25:ß 2d23:5 0d0:1,d40:1 1d50:2",
    ),
    ("two texts", "3: 0i0:a,I0:b 1h9.0 2h9.0 1i100:c,D0:1 2I100:d,i0:e 0I0:f"),
    (
        "forged: a right origin that is not behind the left one",
        "4: 0i0:abc 1h9.0 2h9.0 3h9.0 1x3.1:d 2x2.2:e 3x3.2:f",
    ),
    (
        "forged: origins with others between",
        "5: 0i0:abc 1h9.0 2h9.0 3h9.0 4h9.0 1x1.3:d 2x0.3:e 3x1.0:f 4x0.2:ä 0x2.0:ß",
    ),
    (
        "forged: origins of rivals",
        "4: 0i0:ab 1h9.0 2h9.0 3h9.0 1x1.2:d 2x1.2:e 3h9.0 3x2.4:f 3x3.1:ä 0x1.0:ß",
    ),
    (
        "forged: left children of somebody else's",
        "4: 0i0:ab 1h9.0 2h9.0 3h9.0 1x0.1:d 2x0.1:e 3h9.0 3x0.2:f 3x0.3:ä 0x0.2:ß",
    ),
];
const RANDOM_CASES: u64 = 24;

/// Five who have the same text, and do one thing each, near one another.
fn random_case(seed: u64) -> History {
    let random = &mut Random(seed);
    let letters = (0..1 + random.at(7)).map(|_| random.at(12)).collect();
    let start = Action::Insert { container: 0, at: 0, letters };
    let mut steps = vec![Step::Edit { peer: 0, actions: vec![start] }];
    steps.extend((1..5).map(|peer| Step::Hear { peer, count: 1, pick: 0 }));
    let spot = random.at(101);
    for peer in 0..5 {
        let letters: Vec<usize> = (0..1 + random.at(3)).map(|_| random.at(12)).collect();
        let at = if random.chance(80) { spot } else { random.at(101) };
        steps.push(match random.below(10) {
            0..2 => Step::Forge { peer, container: 0, left: random.at(9), right: random.at(9), letters },
            2..4 => {
                let delete = Action::Delete { container: 0, at, len: 1 + random.at(4) };
                Step::Edit { peer, actions: vec![delete] }
            }
            _ => Step::Edit { peer, actions: vec![Action::Insert { container: 0, at, letters }] },
        });
    }
    History { peers: 5, steps }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn row(change: &Change) -> Value {
    json!({
        "replica": change.replica.0.to_string(),
        "counter": change.counter,
        "next_counter": change.next_counter,
        "base": change.base,
        "body": hex(&change.body),
    })
}

fn case(name: &str, history: &History) -> Value {
    let mut world = World::after(history, Options::default());
    let mut changes = Vec::new();
    let first: Vec<usize> = world
        .events
        .iter()
        .scan(0, |sum, events| Some(std::mem::replace(sum, *sum + events.len())))
        .collect();
    for event in world.events.iter().flatten() {
        let mut row = row(&event.change);
        let after =
            event.had.iter().zip(&first).filter(|(had, _)| **had > 0).map(|(had, first)| first + had - 1);
        row["after"] = after.collect::<Vec<_>>().into();
        row["hash"] = hex(&event.hash).into();
        changes.push(row);
    }
    world.finish();
    let known = &world.peers[0].known;
    let mut texts = serde_json::Map::new();
    for (container, name) in NAMES.iter().enumerate() {
        if world.oracle.elements(container, known).next().is_some() {
            let visible = world.oracle.elements(container, known).filter(|(_, deleted)| !deleted);
            texts
                .insert((*name).to_owned(), visible.map(|(element, _)| element.c).collect::<String>().into());
        }
    }
    json!({
        "name": name,
        "history": history.to_string(),
        "start": world.roll.iter().map(row).collect::<Vec<_>>(),
        "changes": changes,
        "texts": texts,
        "state_hash": hex(&world.oracle.state_hash(known)),
    })
}

// enforces: I-5
#[test]
fn the_list_makes_the_vectors_of_merging() {
    let mut cases: Vec<Value> = CASES
        .iter()
        .map(|(name, history)| case(name, &History::parse(history).expect("a history in its notation")))
        .collect();
    cases.extend((0..RANDOM_CASES).map(|seed| case(&format!("five at random, {seed}"), &random_case(seed))));
    // A line for each case.
    let cases: Vec<String> = cases.iter().map(|case| format!("    {case}")).collect();
    let made =
        format!("{{\n  \"body_format\": {BODY_FORMAT},\n  \"cases\": [\n{}\n  ]\n}}\n", cases.join(",\n"));
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/merge.json");
    if fs::read_to_string(&file).unwrap_or_default() != made {
        let new = std::env::temp_dir().join("merge.json");
        fs::write(&new, made).unwrap();
        panic!("vectors/merge.json says otherwise; what the list makes is in {}", new.display());
    }
}
