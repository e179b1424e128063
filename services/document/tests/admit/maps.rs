//! Maps: what the owner alone can refuse, and heads.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use manyhands_crdt::{Hash, Hlc, MapOp, PushWriter, ReplicaId, Strategy, map_change_body};
use manyhands_document::request::{Opened, Rejection, Submit, Submitted};
use manyhands_document::resident::{Have, Opening};
use manyhands_document::schema::Schemas;
use manyhands_history::EventLog;
use manyhands_proto::v1::Recovery;
use manyhands_proto::{Code, Epoch, Incarnation, Offset, Seq};
use proptest::prelude::*;
use proptest::strategy::Strategy as _;
use serde_json::{Value, json};

use crate::bench::{ALL, Bench, CLOCK_AHEAD_MAX_MS, NOW, accepted, grant, refusal};

/// The latest stamp that is taken, in microseconds.
const STAMP_MAX: u64 = (NOW + CLOCK_AHEAD_MAX_MS) * 1_000;

fn set<'a>(key: &'a str, value: &'a str) -> MapOp<'a> {
    MapOp { map: "", key, value: Some(value), stamp: Hlc::at(NOW * 1_000), expect: None }
}

fn remove(key: &str) -> MapOp<'_> {
    MapOp { value: None, ..set(key, "null") }
}

fn if_seq(op: MapOp<'_>, seq: u64) -> MapOp<'_> {
    MapOp { expect: Some(seq), ..op }
}

fn at(op: MapOp<'_>, micros: u64) -> MapOp<'_> {
    MapOp { stamp: Hlc::at(micros), ..op }
}

/// Changes of one op each.
fn says(replica: u64, first_counter: u64, base: u64, ops: &[MapOp<'_>]) -> Submit<()> {
    let mut push = PushWriter::new();
    for op in ops {
        push.push(base, &map_change_body(op).unwrap());
    }
    Submit {
        document: "demo".parse().unwrap(),
        incarnation: Incarnation(99),
        replica: ReplicaId(replica),
        first_counter,
        count: push.count(),
        changes: Bytes::from(push.finish()),
        grant: grant(&format!("user-{replica}")),
        trace: None,
        known: Vec::new(),
        ticket: (),
    }
}

fn rejected(answer: Result<Submitted, manyhands_document::request::Refused>) -> (Rejection, Value) {
    let rejection = answer.unwrap().rejection.expect("it was not refused");
    let current = match rejection.current.as_ref() {
        b"" => Value::Null,
        current => serde_json::from_slice(current).unwrap(),
    };
    (rejection, current)
}

impl Bench {
    fn value(&self, key: &str) -> Option<String> {
        self.document().state().map("")?.get(key).map(|value| value.value.to_owned())
    }
}

/// A schema for "demo", in a file that lives as long as what comes with it.
fn schemas(text: &str) -> (Schemas, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("demo.json");
    std::fs::write(&path, text).unwrap();
    (Schemas::load(&BTreeMap::from([("demo".to_owned(), path)])).unwrap(), folder)
}

/// The document has `size` = 8 at seq 1, by replica 1, and `gone`, which was removed at seq 3. Each refusal
/// leaves log and memory as they are, and the next change of another one is taken.
// enforces: I-1, I-10
#[tokio::test]
async fn refused_writes_of_maps_leave_no_trace() {
    let schema = r#"{"required": ["size"], "properties": {"size": {"type": "integer"}}}"#;
    let conflict = |value: Option<u64>, key: &str, seq: u64| {
        let mut current = json!({ "map": "", "key": key, "seq": seq });
        if let Some(value) = value {
            current["value"] = json!(value);
        }
        current
    };
    let time = json!({ "time": NOW * 1_000, "max": STAMP_MAX });
    use Strategy::{Crdt, Lww, Server};
    for (what, strategy, op, code, current) in [
        ("too far ahead", Crdt, at(set("size", "9"), STAMP_MAX + 1), Code::ClockAhead, time.clone()),
        ("too far ahead", Lww, at(set("size", "9"), STAMP_MAX + 1), Code::ClockAhead, time.clone()),
        ("the year 2100", Lww, at(set("size", "9"), 4_102_444_800_000_000), Code::ClockAhead, time.clone()),
        ("a removal too far ahead", Lww, at(remove("size"), STAMP_MAX + 1), Code::ClockAhead, time),
        ("not absent", Server, if_seq(set("size", "9"), 0), Code::Conflict, conflict(Some(8), "size", 1)),
        ("changed since", Server, if_seq(set("size", "9"), 7), Code::Conflict, conflict(Some(8), "size", 1)),
        ("a removal", Server, if_seq(remove("size"), 7), Code::Conflict, conflict(Some(8), "size", 1)),
        ("never there", Server, if_seq(set("new", "9"), 1), Code::Conflict, conflict(None, "new", 0)),
        ("gone since", Server, if_seq(set("gone", "9"), 2), Code::Conflict, conflict(None, "gone", 0)),
        ("expected in vain", Crdt, if_seq(set("size", "9"), 1), Code::Malformed, Value::Null),
        ("expected in vain", Lww, if_seq(set("size", "9"), 1), Code::Malformed, Value::Null),
        ("another type", Server, set("size", "\"9\""), Code::SchemaViolation, json!({ "path": "/size" })),
        ("a required key", Server, remove("size"), Code::SchemaViolation, json!({ "path": "/size" })),
    ] {
        // Both checks of the strategy `server` look at the same write; where one is meant, the other is off.
        let schema = if code == Code::SchemaViolation { schema } else { "true" };
        let (schemas, _folder) = schemas(schema);
        let mut bench = Bench::of(strategy, schemas).await;
        let begin = [set("size", "8"), set("gone", "1"), remove("gone")];
        assert_eq!(bench.submit(says(1, 0, 0, &begin)).await, accepted(3, 3), "{what}");
        let before = bench.state();
        let (rejection, told) = rejected(bench.submit(says(2, 0, 3, &[op, set("size", "10")])).await);
        assert_eq!((rejection.code, rejection.counter, rejection.next_counter), (code, 0, 0), "{what}");
        assert_eq!(told, current, "{what}");
        assert_eq!((bench.log_length().await, bench.state()), (3, before), "{what}");
        // Others are not disturbed, and the author may write something else under the same counter.
        assert_eq!(bench.submit(says(3, 0, 3, &[set("size", "11")])).await, accepted(1, 4), "{what}");
        assert_eq!(
            bench.submit(says(2, 0, 4, &[at(set("size", "12"), NOW * 1_000 + 1)])).await,
            accepted(1, 5),
            "{what}"
        );
        assert_eq!(bench.value("size").as_deref(), Some("12"), "{what}");
    }
}

#[tokio::test]
async fn stamps_up_to_the_bound_are_taken_and_under_server_any() {
    for strategy in Strategy::ALL {
        let mut bench = Bench::of(strategy, Schemas::default()).await;
        let ops = [at(set("a", "1"), STAMP_MAX), at(set("b", "1"), 0), at(set("c", "1"), 1)];
        assert_eq!(bench.submit(says(1, 0, 0, &ops)).await, accepted(3, 3), "{strategy}");
        let far = says(1, 3, 3, &[at(set("d", "1"), Hlc::MAX.micros)]);
        let answer = bench.submit(far).await;
        match strategy {
            Strategy::Server => assert_eq!(answer, accepted(4, 4)),
            Strategy::Crdt | Strategy::Lww => assert_eq!(refusal(&answer), (Code::ClockAhead, Some(3))),
        }
    }
}

/// The document was written to by an owner whose clock was ahead of ours.
#[tokio::test]
async fn the_server_s_time_does_not_go_back_in_a_document() {
    let mut bench = Bench::of(Strategy::Lww, Schemas::default()).await;
    assert_eq!(bench.submit(says(1, 0, 0, &[set("a", "1")])).await, accepted(1, 1));
    let behind = NOW - CLOCK_AHEAD_MAX_MS;
    let ops = [at(set("a", "2"), STAMP_MAX), at(set("a", "3"), STAMP_MAX + 1)];
    let admitted = bench.partition.admit(behind, vec![says(1, 1, 1, &ops)]);
    assert_eq!(admitted.batch().entries[0].time_ms, NOW);
    let answer = bench.finish(admitted).await.answers.pop().unwrap().1;
    let (rejection, current) = rejected(answer);
    assert_eq!((rejection.code, rejection.counter), (Code::ClockAhead, 2));
    assert_eq!(current["time"], json!(NOW * 1_000));
}

/// Two saw the same value, and their writes come in one batch.
#[tokio::test]
async fn of_two_writes_that_expect_the_same_value_one_wins_and_the_other_is_told() {
    let mut bench = Bench::of(Strategy::Server, Schemas::default()).await;
    assert_eq!(bench.submit(says(1, 0, 0, &[set("turn", "\"white\"")])).await, accepted(1, 1));
    let ann = says(2, 0, 1, &[if_seq(set("turn", "\"black\""), 1)]);
    let bob = says(3, 0, 1, &[if_seq(set("turn", "\"green\""), 1)]);
    let mut answers = bench.commit(vec![ann.clone(), bob]).await.answers;
    let (rejection, current) = rejected(answers.pop().unwrap().1);
    assert_eq!(rejection.code, Code::Conflict);
    assert_eq!(current, json!({ "map": "", "key": "turn", "seq": 2, "value": "black" }));
    assert_eq!(answers.pop().unwrap().1, accepted(1, 2));
    // With what he was told, Bob may decide again.
    let bob = says(3, 0, 2, &[if_seq(set("turn", "\"green\""), 2)]);
    assert_eq!(bench.submit(bob).await, accepted(1, 3));
    // A resend of what was taken is acknowledged, though its value is another by now.
    assert_eq!(bench.submit(ann).await, accepted(1, 2));
    assert_eq!((bench.log_length().await, bench.value("turn").as_deref()), (3, Some("\"green\"")));
}

#[tokio::test]
async fn a_change_with_one_bad_write_is_refused_whole() {
    let (schemas, _folder) = schemas(r#"{"additionalProperties": {"type": "number"}}"#);
    let mut bench = Bench::of(Strategy::Server, schemas).await;
    let mut state = manyhands_crdt::Document::with_strategy(Strategy::Server, Default::default());
    let mut edit = state.edit(ReplicaId(1));
    edit.set("", "a", "1", Hlc::at(1), None).unwrap();
    edit.set("", "b", "\"1\"", Hlc::at(1), None).unwrap();
    edit.insert("page", 0, "Hello").unwrap();
    let change = edit.commit(0).unwrap();
    let mut push = PushWriter::new();
    push.push(0, &change.body);
    let submit = Submit { changes: Bytes::from(push.finish()), ..says(1, 0, 0, &[set("a", "1")]) };
    let (rejection, current) = rejected(bench.submit(submit).await);
    assert_eq!((rejection.code, current), (Code::SchemaViolation, json!({ "path": "/b" })));
    assert_eq!((bench.log_length().await, bench.value("a")), (0, None));
    assert!(bench.document().state().text("page").is_none());
}

/// A schema is for documents that merge by the strategy `server`, and a schema that came later does not refuse
/// what is in the log.
#[tokio::test]
async fn schemas_judge_new_writes_of_server_documents_only() {
    for strategy in [Strategy::Crdt, Strategy::Lww] {
        let (schemas, _folder) = schemas("false");
        let mut bench = Bench::of(strategy, schemas).await;
        assert_eq!(bench.submit(says(1, 0, 0, &[set("a", "1")])).await, accepted(1, 1));
    }
    let mut before = Bench::of(Strategy::Server, Schemas::default()).await;
    let first = says(1, 0, 0, &[set("a", "1")]);
    assert_eq!(before.submit(first.clone()).await, accepted(1, 1));
    let entries = before.log.read(before.lease.partition(), Incarnation(99), Seq(0), ALL).await.unwrap();
    let (schemas, _folder) = schemas("false");
    let mut bench = Bench::of(Strategy::Server, schemas).await;
    let name = bench.record.name.clone();
    for entry in &entries {
        bench.partition.document_mut(&name).unwrap().replay(entry).unwrap();
    }
    assert_eq!(bench.submit(first).await, accepted(1, 1));
    assert_eq!(refusal(&bench.submit(says(1, 1, 1, &[set("a", "2")])).await).0, Code::SchemaViolation);
}

// ---- Heads.

impl Bench {
    fn open_with(&mut self, heads: &[Hash]) -> Opened {
        let name = self.record.name.clone();
        let have = Have::Heads(heads.iter().copied().collect());
        let document = self.partition.document_mut(&name).unwrap();
        match document.open(Epoch(1), None, Some(have), 256 * 1024) {
            Opening::Ready(opened) => opened,
            Opening::FromLog(tail) => tail.otherwise,
        }
    }

    async fn hashes(&self) -> Vec<Hash> {
        let entries = self.log.follow(self.lease.partition(), Offset(0), ALL).await.unwrap();
        entries.iter().map(|entry| entry.hash).collect()
    }
}

fn tail(opened: &Opened) -> Option<Vec<u64>> {
    (opened.header.recovery() == Recovery::Tail).then(|| {
        opened.tail.iter().flat_map(|run| run.first_seq..run.first_seq + u64::from(run.count)).collect()
    })
}

// enforces: I-6
#[tokio::test]
async fn an_open_by_known_heads_brings_what_is_lacking_and_by_unknown_ones_the_state() {
    let mut bench = Bench::new().await;
    // 1 and 2 by Ann; then both at once: 3 and 5 by her, 4 by Bob.
    for submit in [
        says(1, 0, 0, &[set("a", "1"), set("b", "1")]),
        says(1, 2, 2, &[set("c", "1")]),
        says(2, 0, 2, &[set("d", "1")]),
        says(1, 3, 2, &[set("e", "1")]),
    ] {
        assert_eq!(bench.submit(submit).await.unwrap().rejection, None);
    }
    let hash = bench.hashes().await;
    let of = |seqs: &[usize]| seqs.iter().map(|seq| hash[seq - 1]).collect::<Vec<Hash>>();
    for (heads, lacking) in [
        (of(&[4, 5]), Some(vec![])),
        (of(&[3, 4]), Some(vec![5])),
        (of(&[2]), Some(vec![3, 4, 5])),
        (of(&[1]), Some(vec![2, 3, 4, 5])),
        (of(&[5]), Some(vec![4, 5])),
        // Nobody has that; nothing is the same as no heads.
        (vec![[9; 16]], None),
        ([of(&[4, 5]), vec![[9; 16]]].concat(), None),
        (vec![], None),
    ] {
        let opened = bench.open_with(&heads);
        assert_eq!(tail(&opened), lacking, "{heads:?}");
        let told: BTreeSet<Hash> =
            opened.header.heads.iter().map(|head| head.hash.as_ref().try_into().unwrap()).collect();
        assert_eq!(told, of(&[4, 5]).into_iter().collect(), "{heads:?}");
        assert_eq!(opened.header.max_base, 2);
    }
    bench.reload().await;
    assert_eq!(tail(&bench.open_with(&of(&[4, 5]))), Some(vec![]), "loading finds the heads again");
}

// ---- Properties.

#[derive(Clone, Debug)]
struct Written {
    replica: u64,
    key: u8,
    value: Option<u8>,
    lag: u64,
    ahead_ms: i64,
    /// How far off the expected seq is; `None` expects nothing.
    expect: Option<i64>,
}

fn written() -> impl proptest::strategy::Strategy<Value = Written> {
    let ahead = prop_oneof![4 => -100_000_i64..=60_000, 1 => 60_001_i64..100_000];
    let expect = prop::option::weighted(0.5, prop_oneof![2 => Just(0_i64), 1 => -2_i64..3]);
    (1..4_u64, 0..3_u8, prop::option::weighted(0.8, 0..20_u8), 0..4_u64, ahead, expect).prop_map(
        |(replica, key, value, lag, ahead_ms, expect)| Written { replica, key, value, lag, ahead_ms, expect },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    /// Whatever is written: what was refused is nowhere, what was taken is in the log, and the log gives the
    /// state; the heads that are told are what the log says they are.
    // enforces: I-1, I-5
    #[test]
    fn what_is_refused_leaves_no_trace(
        strategy in prop::sample::select(&Strategy::ALL[..]),
        writes in prop::collection::vec(written(), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let schema = r#"{"additionalProperties": {"maximum": 15}}"#;
            let (schemas, _folder) = schemas(schema);
            let mut bench = Bench::of(strategy, schemas).await;
            let (mut refused, mut taken) = (0, 0);
            for written in &writes {
                let seq = bench.document().position().seq.0;
                let replica = ReplicaId(written.replica);
                let counter = bench.document().state().next_counter(replica);
                let (key, value) = (format!("k{}", written.key), written.value.map(|value| value.to_string()));
                let held = bench.document().state().map("").and_then(|map| map.get(&key));
                let (has, own) = held.map_or((0, false), |held| (held.seq, held.op.replica == replica));
                let micros = (NOW.saturating_add_signed(written.ahead_ms)) * 1_000;
                let expect = written.expect.filter(|_| strategy == Strategy::Server);
                let expect = expect.map(|off| has.saturating_add_signed(off));
                let op = MapOp { map: "", key: &key, value: value.as_deref(), stamp: Hlc::at(micros), expect };
                let expected = if strategy == Strategy::Server {
                    let breaks = written.value.is_some_and(|value| value > 15);
                    // What one wrote oneself, one has seen.
                    let changed = expect.is_some_and(|expect| expect != has && !own);
                    if breaks { Some(Code::SchemaViolation) } else { changed.then_some(Code::Conflict) }
                } else {
                    (written.ahead_ms > 60_000).then_some(Code::ClockAhead)
                };
                let before = (bench.state(), bench.document().position());
                let base = seq.saturating_sub(written.lag);
                let answer = bench.submit(says(written.replica, counter, base, &[op])).await.unwrap();
                let got = answer.rejection.as_ref().map(|rejection| rejection.code);
                assert_eq!(got, expected, "{strategy} {written:?}");
                if expected.is_some() {
                    refused += 1;
                    assert_eq!((bench.state(), bench.document().position()), before);
                } else {
                    taken += 1;
                    assert_eq!(answer, accepted(counter + 1, seq + 1).unwrap());
                }
                assert_eq!(bench.log_length().await, taken, "{refused} were refused");
            }
            let state = bench.state();
            let heads = bench.open_with(&[]).header.heads;
            bench.reload().await;
            assert_eq!(bench.state(), state);
            assert_eq!(bench.open_with(&[]).header.heads, heads);
        });
    }
}
