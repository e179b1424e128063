//! Every order of what few clients can do: write, remove, send, hear.

use manyhands_crdt::{Hlc, Strategy};

use crate::world::{Put, World};

/// How stamps run against the order of writing; it matters under lww only.
#[derive(Clone, Copy, Debug)]
enum Stamps {
    Rising,
    Falling,
    Equal,
}

/// Goes on in every possible way for so many steps; says how many ends there were.
fn every_way(world: &World, steps: u64, stamps: Stamps) -> u64 {
    if steps == 0 {
        world.clone().finish();
        return 1;
    }
    let stamp = Hlc::at(match stamps {
        Stamps::Rising => 100 - steps,
        Stamps::Falling => steps,
        Stamps::Equal => 7,
    });
    let value = format!("{steps}");
    let mut ends = 0;
    for n in 0..world.clients.len() {
        for value in [Some(&*value), None] {
            let mut next = world.clone();
            assert!(next.put(n, &Put { map: "", key: "k", value, stamp, expect: None }));
            next.commit(n);
            next.check(n);
            ends += every_way(&next, steps - 1, stamps);
        }
        let mut next = world.clone();
        if next.push(n) {
            next.check_owner();
            ends += every_way(&next, steps - 1, stamps);
        }
        let seq = world.clients[n].document.seq();
        if seq < world.log.tip() {
            let mut next = world.clone();
            next.hear(n, seq + 1, 0);
            next.check(n);
            ends += every_way(&next, steps - 1, stamps);
        }
    }
    ends
}

// enforces: I-5
#[test]
fn every_order_of_writing_sending_and_hearing_agrees_with_the_oracle() {
    let mut ends = 0;
    for strategy in Strategy::ALL {
        for stamps in [Stamps::Rising, Stamps::Falling, Stamps::Equal] {
            // Only lww looks at stamps.
            if strategy == Strategy::Lww || matches!(stamps, Stamps::Rising) {
                ends += every_way(&World::new(strategy, 2), 6, stamps);
                ends += every_way(&World::new(strategy, 3), 4, stamps);
            }
        }
    }
    println!("{ends} orders");
    assert!(ends > 50_000, "{ends}");
}
