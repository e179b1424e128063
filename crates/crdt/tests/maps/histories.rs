//! Random histories of two to six clients, compared with the oracle after every step.

use manyhands_crdt::{Hlc, Strategy};

use crate::common::Random;
use crate::world::{Put, World};

const HISTORIES: u64 = 20_000;
const MAPS: [&str; 3] = ["", "", "settings"];
const KEYS: [&str; 3] = ["title", "größe", "🎉"];
const VALUES: [&str; 8] =
    ["1.0", "-0", "1e400", "null", r#""\u0001\"ä🎉""#, "[]", r#"{"b":[1,{}],"a":true}"#, "90071992547409931"];

/// Writes in the log, those that were contested, and refused changes.
#[derive(Default)]
struct Seen {
    writes: usize,
    contested: usize,
    conflicts: u64,
    offline: u64,
}

fn put(world: &mut World, random: &mut Random, n: usize) {
    let (map, key) = (MAPS[random.at(3)], KEYS[random.at(3).min(random.at(3))]);
    // Few stamps, so that many are equal; under lww the later write is often the older one.
    let stamp = Hlc { micros: 1 + random.below(6), logical: random.below(2) as u16 };
    let value = (!random.chance(25)).then(|| VALUES[random.at(8)]);
    let expect = (world.strategy == Strategy::Server && random.chance(40)).then(|| {
        let shown = world.clients[n].document.map(map).and_then(|map| Some(map.get(key)?.seq));
        if random.chance(80) { shown.unwrap_or(0) } else { random.below(world.log.tip() + 2) }
    });
    world.put(n, &Put { map, key, value, stamp, expect });
}

fn live(strategy: Strategy, seed: u64, seen: &mut Seen) {
    let random = &mut Random(seed);
    let count = 2 + random.below(5);
    let mut world = World::new(strategy, count);
    let with_texts = random.chance(25);
    let mut offline = vec![0u64; count as usize];
    for _ in 0..10 + random.below(20) {
        let n = random.at(count as usize);
        let is_offline = offline[n] > 0;
        offline[n] = offline[n].saturating_sub(1);
        match random.below(20) {
            0..6 => {
                for _ in 0..1 + random.below(2) {
                    put(&mut world, random, n);
                    if with_texts && random.chance(30) {
                        let len = world.clients[n].document.text("page").map_or(0, |text| text.len());
                        let text = random.text(2);
                        world.write_text(n, random.at(len + 1), &text);
                    }
                }
                // Sometimes the edit stays open while the log goes on.
                if random.chance(85) {
                    world.commit(n);
                }
            }
            6..11 if !is_offline => {
                world.push(n);
                world.check_owner();
            }
            11..17 if !is_offline => {
                let seq = world.clients[n].document.seq();
                let tip = world.log.tip();
                let last = if random.chance(70) { tip } else { seq + random.below(tip - seq + 1) };
                world.hear(n, last, random.below(3));
            }
            17 => world.restart(n),
            18 if !is_offline => world.load(n),
            19 if !is_offline => {
                world.resend(n);
                offline[n] = random.below(8);
                seen.offline += 1;
            }
            _ => {}
        }
        world.check(n);
    }
    world.finish();
    let (writes, contested) = world.contested();
    seen.writes += writes;
    seen.contested += contested;
    seen.conflicts += world.conflicts;
}

fn many(strategy: Strategy) {
    let mut seen = Seen::default();
    for seed in 0..HISTORIES {
        let result =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| live(strategy, seed, &mut seen)));
        assert!(result.is_ok(), "{strategy}, seed {seed}");
    }
    let percent = seen.contested * 100 / seen.writes;
    println!(
        "{strategy}: {HISTORIES} histories, {} writes in logs, {percent} % of them beside another to the same key, \
         {} changes refused, {} offline periods",
        seen.writes, seen.conflicts, seen.offline
    );
    assert!(percent >= 30, "{percent} % of the writes are contested");
    assert!(seen.offline > HISTORIES / 4);
    assert_eq!(seen.conflicts > HISTORIES / 20, strategy == Strategy::Server, "{}", seen.conflicts);
}

// enforces: I-5
#[test]
fn random_histories_agree_with_the_oracle_under_crdt() {
    many(Strategy::Crdt);
}

// enforces: I-5
#[test]
fn random_histories_agree_with_the_oracle_under_lww() {
    many(Strategy::Lww);
}

// enforces: I-5
#[test]
fn random_histories_agree_with_the_oracle_under_server() {
    many(Strategy::Server);
}
