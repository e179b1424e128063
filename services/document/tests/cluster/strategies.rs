//! Who decides how a document merges, and opens by heads.

use std::collections::BTreeMap;

use bytes::Bytes;
use manyhands_crdt::{Document as State, Hlc, MapOp, PushWriter, Strategy, map_change_body};
use manyhands_document::{Config, Error};
use manyhands_proto::v1::{self, Recovery};
use manyhands_proto::{CHAIN_BYTES, Code};

use crate::world::{Author, Opened, World, code, config, grant, open_request};
use crate::{long_document, memory};

fn asking(document: &str, strategy: v1::Strategy) -> v1::OpenRequest {
    v1::OpenRequest { strategy: strategy.into(), ..open_request(document) }
}

/// A write to the root map by a replica that has seen nothing, stamped so many microseconds after the epoch.
fn write(opened: &Opened, replica: u64, value: &str, micros: u64) -> v1::SubmitRequest {
    let op = MapOp { map: "", key: "k", value: Some(value), stamp: Hlc::at(micros), expect: None };
    let mut push = PushWriter::new();
    push.push(0, &map_change_body(&op).unwrap());
    v1::SubmitRequest {
        document: "demo".to_owned(),
        incarnation: opened.incarnation().0,
        replica,
        first_counter: 0,
        count: 1,
        changes: Bytes::from(push.finish()),
        grant: Some(grant(&format!("user-{replica}"))),
    }
}

/// The value that the document shows.
async fn value(world: &World) -> Option<String> {
    let state = world.open(&open_request("demo")).await.unwrap().state;
    let state = State::decode(&state).unwrap();
    state.map("")?.get("k").map(|value| value.value.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_who_asks_decides_and_the_log_keeps_it() {
    use v1::Strategy::{Crdt, Lww, Server, Unspecified};
    for (strategy, winner) in [(Lww, "1"), (Server, "2"), (Crdt, "2")] {
        let mut world = World::new(memory());
        let node = world.start(config());
        // By default it is `crdt`; as long as nobody has written, a writer may ask for another, once.
        let before = world.open(&asking("demo", Unspecified)).await.unwrap();
        assert_eq!(before.header.strategy(), Crdt);
        assert!(before.header.heads.is_empty());
        let opened = world.open(&asking("demo", strategy)).await.unwrap();
        assert_eq!(opened.header.strategy(), strategy);
        let anew = opened.incarnation() != before.incarnation();
        assert_eq!(anew, strategy != Crdt, "another merging is another history");
        if anew {
            // Who opened it before does not write to it unawares.
            let refused = world.submit(&write(&before, 3, "3", 3_000)).await.unwrap_err();
            assert_eq!(code(&refused), Code::HistoryReset);
        }
        let refused_otherwise = async |world: &World| {
            for other in [Crdt, Lww, Server].into_iter().filter(|other| *other != strategy) {
                let refused = world.open(&asking("demo", other)).await.unwrap_err();
                assert_eq!(code(&refused), Code::StrategyMismatch);
                for said in [strategy, other] {
                    let name = said.as_str_name().trim_start_matches("STRATEGY_").to_lowercase();
                    assert!(refused.message().contains(&name), "{refused}");
                }
            }
            let opened = world.open(&asking("demo", Unspecified)).await.unwrap();
            assert_eq!(opened.header.strategy(), strategy);
            opened
        };
        refused_otherwise(&world).await;
        assert_eq!(world.submit(&write(&opened, 1, "1", 2_000)).await.unwrap().rejection, None);
        assert_eq!(world.submit(&write(&opened, 2, "2", 1_000)).await.unwrap().rejection, None);
        assert_eq!(value(&world).await.as_deref(), Some(winner), "{strategy:?}");

        // The next owner has it from the log, whatever its own default is.
        world.stop(node).await;
        world.start(Config {
            strategy: if strategy == Crdt { Strategy::Lww } else { Strategy::Crdt },
            ..config()
        });
        let opened = refused_otherwise(&world).await;
        assert_eq!((opened.header.heads.len(), opened.header.max_base), (2, 0), "nobody has seen either");
        assert_eq!(value(&world).await.as_deref(), Some(winner), "{strategy:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_default_is_configured_and_who_only_reads_decides_nothing() {
    use v1::Strategy::{Lww, Server, Unspecified};
    let mut world = World::new(memory());
    let mut config = Config { strategy: Strategy::Lww, ..config() };
    // Nothing stays in memory: what was drawn for a document without entries is remembered all the same.
    config.memory.bytes_max = 1;
    world.start(config);
    let reading = |strategy| {
        let grant = v1::Grant { scopes: vec!["read".to_owned()], ..grant("eve") };
        v1::OpenRequest { grant: Some(grant), ..asking("demo", strategy) }
    };
    let by_default = world.open(&reading(Unspecified)).await.unwrap();
    assert_eq!(by_default.header.strategy(), Lww);
    assert_eq!(world.open(&reading(Server)).await.unwrap().header.strategy(), Server);
    let settled = world.open(&asking("demo", Lww)).await.unwrap();
    assert_eq!(settled.header.strategy(), Lww);
    assert_ne!(settled.incarnation(), by_default.incarnation());
    let refused = world.open(&reading(Server)).await.unwrap_err();
    assert_eq!(code(&refused), Code::StrategyMismatch);
    assert_eq!(world.open(&reading(Unspecified)).await.unwrap().incarnation(), settled.incarnation());
    assert_eq!(world.submit(&write(&settled, 1, "1", 1)).await.unwrap().seq, 1);
    let newer = v1::OpenRequest { strategy: 99, ..open_request("demo") };
    assert_eq!(code(&world.open(&newer).await.unwrap_err()), Code::StrategyMismatch);
}

#[test]
fn a_schema_that_does_not_compile_refuses_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("board.json");
    std::fs::write(&path, r#"{"type": "strin"}"#).unwrap();
    let schemas = BTreeMap::from([("board".to_owned(), path.clone())]);
    let bus = World::new(memory()).bus;
    let built = manyhands_document::build(Config { schemas, ..config() }, memory(), bus);
    let Err(error @ Error::Schema(_)) = built.map(drop) else { panic!("it started") };
    let error = error.to_string();
    let path = path.display().to_string();
    assert!(error.contains(&path) && error.contains("`board`") && error.contains("strin"), "{error}");
}

/// Heads that memory still knows, heads that only the log knows, and heads that nobody knows.
// enforces: I-6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_by_heads_gives_the_tail_behind_them_and_else_the_state() {
    let mut world = World::new(memory());
    world.start(config());
    let (ann, _) = long_document(&world).await;
    // Bob has seen the first 10 only, and is the second head.
    let mut bob =
        Author { replica: manyhands_crdt::ReplicaId(8), known: 10, subject: "user-8".into(), ..ann };
    bob.state = State::new();
    let op = MapOp { map: "", key: "k", value: Some("1"), stamp: Hlc::at(1), expect: None };
    let mut push = PushWriter::new();
    push.push(10, &map_change_body(&op).unwrap());
    let late =
        v1::SubmitRequest { changes: push.finish().into(), count: 1, first_counter: 0, ..bob.types(&["x"]) };
    assert_eq!(world.submit(&late).await.unwrap().seq, 3001);

    let entries = world.entries("demo").await;
    let hash = |seq: usize| Bytes::copy_from_slice(&entries[seq - 1].hash);
    let unknown = || Bytes::from_static(&[9; CHAIN_BYTES]);
    for (what, heads, lacking) in [
        ("everything", vec![hash(3000), hash(3001)], Some((3002, 0))),
        ("in another order, one twice", vec![hash(3001), hash(3000), hash(3001)], Some((3002, 0))),
        ("all but the last", vec![hash(3000)], Some((3001, 1))),
        ("most of it", vec![hash(2990)], Some((2991, 11))),
        ("what only the log has", vec![hash(50)], Some((51, 2951))),
        ("a new change with an old base", vec![hash(3001)], Some((11, 2991))),
        ("the same and a newer one", vec![hash(3001), hash(20)], Some((21, 2981))),
        ("what nobody has", vec![unknown()], None),
        ("one that is known and one that is not", vec![hash(3000), unknown()], None),
        ("what is no hash", vec![Bytes::from_static(b"head")], None),
        ("too many", vec![hash(3000); 1025], None),
    ] {
        let opened = world.open(&v1::OpenRequest { heads, ..open_request("demo") }).await.unwrap();
        let header = &opened.header;
        assert_eq!(header.heads.len(), 2, "{what}");
        let count = opened.tail.iter().map(|run| run.count).sum::<u32>();
        match lacking {
            Some((first, expected)) => {
                assert_eq!((header.recovery(), count), (Recovery::Tail, expected), "{what}");
                assert!(opened.tail.first().is_none_or(|run| run.first_seq == first), "{what}");
            }
            None => assert_eq!(header.recovery(), Recovery::State, "{what}"),
        }
    }
    // A position says more.
    let have = v1::Position { incarnation: bob.incarnation, seq: 0, chain: Bytes::new() };
    let both = v1::OpenRequest { have: Some(have), heads: vec![hash(3000)], ..open_request("demo") };
    let opened = world.open(&both).await.unwrap();
    assert_eq!(opened.tail.iter().map(|run| run.count).sum::<u32>(), 3001);
}
