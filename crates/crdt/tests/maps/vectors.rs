//! `vectors/maps.json`: what other engines are held to, and what keeps this one from changing its bytes unawares.
//! Bodies, values, and histories whose end is the oracle's.

use std::path::Path;

use manyhands_crdt::{
    ChangeRef, Document, Hlc, Limits, MapOp, ReplicaId, Strategy, canonical_json, map_change_body,
    read_map_ops,
};
use serde_json::{Value, json};

use crate::common::Random;
use crate::naive;
use crate::values::VERDICTS;
use crate::world::{Put, World};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &Value) -> Vec<u8> {
    let text = text.as_str().unwrap();
    (0..text.len() / 2).map(|n| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).unwrap()).collect()
}

fn bodies() -> Vec<Value> {
    let stamp = Hlc::at(1_763_683_200_000_000);
    let plain = MapOp { map: "", key: "title", value: Some("\"Hello\""), stamp, expect: None };
    let late = Hlc { micros: (1 << 53) - 1, logical: u16::MAX };
    let ops = [
        plain,
        MapOp { value: None, ..plain },
        MapOp { map: "settings", key: "größe", value: Some("1.0"), ..plain },
        MapOp { stamp: Hlc { logical: 1, ..stamp }, ..plain },
        MapOp { expect: Some(0), ..plain },
        MapOp { map: "m", value: None, stamp: late, expect: Some(300), ..plain },
        MapOp { value: Some("{\"b\":[1e400,null],\"a\":\"\\u0000\\n🎉\"}"), ..plain },
    ];
    let body = |op: &MapOp<'_>| {
        json!({
            "map": op.map, "key": op.key, "value": op.value,
            "micros": op.stamp.micros, "logical": op.stamp.logical, "expect": op.expect,
            "body": hex(&map_change_body(op).unwrap()),
        })
    };
    ops.iter().map(body).collect()
}

fn values() -> Vec<Value> {
    let verdict = |&(text, _): &(&str, _)| match canonical_json(text) {
        Ok(canonical) => json!({ "text": text, "canonical": canonical }),
        Err(flaw) => json!({ "text": text, "flaw": format!("{:?}", flaw.what), "offset": flaw.offset }),
    };
    VERDICTS.iter().map(verdict).collect()
}

/// A history, and the state that it ends in as the oracle has it.
fn history(strategy: Strategy, seed: u64) -> Value {
    let random = &mut Random(seed);
    let mut world = World::new(strategy, 3);
    for _ in 0..24 {
        let n = random.at(3);
        match random.below(3) {
            0 => {
                let (map, key) = (["", "settings"][random.at(2)], ["a", "b"][random.at(2)]);
                let value = random.chance(70).then(|| format!("[{}]", random.below(1_000)));
                let stamp = Hlc { micros: random.below(8), logical: random.below(2) as u16 };
                world.put(n, &Put { map, key, value: value.as_deref(), stamp, expect: None });
                world.commit(n);
            }
            1 => drop(world.push(n)),
            _ => world.hear(n, world.log.tip(), 0),
        }
    }
    world.finish();
    let changes: Vec<Value> = world
        .changes
        .iter()
        .map(|change| {
            json!({
                "replica": change.replica.0.to_string(), "counter": change.counter, "base": change.base,
                "body": hex(&change.body),
                "hash": hex(&world.log.document.hash_of(change.as_ref()).unwrap().1),
            })
        })
        .collect();
    let state = naive::state(strategy, &world.writes);
    let mut version: Vec<(ReplicaId, u64)> = Vec::new();
    for change in &world.changes {
        version.retain(|&(replica, _)| replica != change.replica);
        version.push((change.replica, change.next_counter));
    }
    version.sort_unstable();
    json!({
        "strategy": strategy.name(),
        "changes": changes,
        "entries": hex(&world.log.run(1, world.log.tip()).1),
        "maps": maps(&state),
        "state_hash": hex(&naive::state_hash(strategy, &version, &state)),
        "document": hex(&world.log.document.encode()),
    })
}

/// What each key shows: the winner, then what conflicts with it, the newest first.
fn maps(state: &naive::State<'_>) -> Value {
    let mut all = serde_json::Map::new();
    for (name, keys) in state {
        let mut map = serde_json::Map::new();
        for (key, held) in keys {
            let shown: Vec<Value> = held
                .iter()
                .rev()
                .filter_map(|write| {
                    let value = write.value.as_deref()?;
                    Some(json!({
                        "value": value, "seq": write.seq, "replica": write.replica.0.to_string(),
                        "counter": write.counter, "micros": write.stamp.micros, "logical": write.stamp.logical,
                    }))
                })
                .collect();
            if !shown.is_empty() {
                map.insert((*key).to_owned(), shown.into());
            }
        }
        all.insert((*name).to_owned(), map.into());
    }
    all.into()
}

fn file() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/maps.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap_or("null".into())).unwrap()
}

// enforces: I-5
#[test]
fn the_oracle_makes_the_file() {
    let seeds = 0..4;
    let histories: Vec<Value> = Strategy::ALL
        .into_iter()
        .flat_map(|strategy| seeds.clone().map(move |seed| history(strategy, seed)))
        .collect();
    let made = json!({ "bodies": bodies(), "values": values(), "histories": histories });
    if made != file() {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("maps.json");
        std::fs::write(&path, serde_json::to_string_pretty(&made).unwrap() + "\n").unwrap();
        panic!("vectors/maps.json says otherwise; what is made is in {}", path.display());
    }
}

// enforces: I-5
#[test]
fn the_engine_takes_the_file() {
    let file = file();
    let list = |of: &Value, key: &str| of[key].as_array().unwrap().clone();
    for row in list(&file, "bodies") {
        let bytes = unhex(&row["body"]);
        let (_, op) = read_map_ops(&bytes).unwrap().next().unwrap();
        assert_eq!(
            (op.map, op.key, op.value),
            (row["map"].as_str().unwrap(), row["key"].as_str().unwrap(), row["value"].as_str(),)
        );
        assert_eq!(json!([op.stamp.micros, op.stamp.logical]), json!([row["micros"], row["logical"]]));
        assert_eq!(op.expect, row["expect"].as_u64());
    }
    for row in list(&file, "histories") {
        let strategy: Strategy = row["strategy"].as_str().unwrap().parse().unwrap();
        let mut owner = Document::with_strategy(strategy, Limits::default());
        let mut client = owner.clone();
        let changes = list(&row, "changes");
        for change in &changes {
            let replica = ReplicaId(change["replica"].as_str().unwrap().parse().unwrap());
            let (counter, base) = (change["counter"].as_u64().unwrap(), change["base"].as_u64().unwrap());
            let applied = owner.apply(ChangeRef { replica, counter, base, body: &unhex(&change["body"]) });
            assert_eq!(hex(&applied.unwrap().hash), change["hash"]);
        }
        client.replay(1, changes.len() as u32, &unhex(&row["entries"]), 0).unwrap();
        let loaded = Document::decode(&unhex(&row["document"])).unwrap();
        for document in [&owner, &client, &loaded] {
            assert_eq!(hex(&document.state_hash()), row["state_hash"]);
            for (name, keys) in row["maps"].as_object().unwrap() {
                let map = document.map(name).unwrap();
                assert_eq!(map.len(), keys.as_object().unwrap().len());
                for (key, shown) in keys.as_object().unwrap() {
                    let read = map.get(key).into_iter().chain(map.conflicts(key));
                    let read: Vec<Value> = read.map(|value| json!([value.value, value.seq])).collect();
                    let shown = shown.as_array().unwrap();
                    let shown: Vec<Value> =
                        shown.iter().map(|value| json!([value["value"], value["seq"]])).collect();
                    assert_eq!(read, shown);
                }
            }
        }
    }
}
