//! Times of the engine alone: `make bench`, `make bench CASE=remote`. Beside others: `make bench-peers`.
//!
//! Each case is a session: a saved document and the entry records that come after it. Times are of the whole
//! session, with its changes as elements; heap and sizes are `bench-peers`' business.

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use common::{Log, Random};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use manyhands_crdt::{Change, Document, Hlc, Limits, MapOp, Patch, ReplicaId, Strategy, map_change_body};

const TEXT: &str = "text";
const AUTHOR: ReplicaId = ReplicaId(4711);

/// A position, how many characters go there, and what comes.
type Splice = (usize, usize, String);

/// What a replica starts from and what it then receives.
struct Session {
    name: String,
    base: Vec<u8>,
    base_seq: u64,
    changes: Vec<Change>,
    entries: Vec<Vec<u8>>,
}

impl Session {
    /// Puts the changes behind `log` in this order.
    fn new(name: impl Into<String>, mut log: Log, changes: Vec<Change>) -> Session {
        let (base, base_seq) = (log.document.encode(), log.tip());
        let mut entries = Vec::with_capacity(changes.len());
        for change in &changes {
            log.submit(change.as_ref()).expect("a good change");
            entries.push(log.run(log.tip(), log.tip()).1);
        }
        Session { name: name.into(), base, base_seq, changes, entries }
    }

    /// One author alone.
    fn alone(name: impl Into<String>, log: Log, splices: &[Splice]) -> Session {
        let mut document = open(&log.document.encode());
        let tip = log.tip();
        let changes =
            (tip..).zip(splices).filter_map(|(base, splice)| edit(&mut document, AUTHOR, base, splice));
        let changes = changes.collect();
        Session::new(name, log, changes)
    }

    fn start(&self) -> Document {
        open(&self.base)
    }

    fn end(&self) -> Document {
        let mut document = self.start();
        self.receive_at_once(&mut document, &self.entries.concat());
        document
    }

    fn receive_each(&self, document: &mut Document) {
        for (known, entry) in (self.base_seq..).zip(&self.entries) {
            document.replay(known + 1, 1, entry, known).expect("a good entry");
        }
    }

    fn receive_at_once(&self, document: &mut Document, run: &[u8]) {
        let count = self.entries.len() as u32;
        document.replay(self.base_seq + 1, count, run, self.base_seq).expect("good entries");
    }
}

fn limits() -> Limits {
    // Some traces paste whole files at once.
    Limits { change_bytes_max: 8 * 1024 * 1024, ..Limits::default() }
}

fn open(bytes: &[u8]) -> Document {
    Document::decode_with_limits(bytes, limits()).expect("what was saved")
}

fn edit(
    document: &mut Document,
    replica: ReplicaId,
    base: u64,
    (at, deleted, inserted): &Splice,
) -> Option<Change> {
    let mut edit = document.edit(replica);
    edit.delete(TEXT, *at..at + deleted).expect("in bounds");
    edit.insert(TEXT, *at, inserted).expect("in bounds");
    edit.commit(base)
}

/// A log whose first entry inserts `text`.
fn log_with(text: &str) -> Log {
    let mut log = Log { document: Document::with_limits(limits()), entries: Vec::new() };
    if !text.is_empty() {
        let mut author = Document::with_limits(limits());
        let first = edit(&mut author, ReplicaId(1), 0, &(0, 0, text.to_owned())).expect("an insertion");
        log.submit(first.as_ref()).expect("a good change");
    }
    log
}

/// Recorded sessions: the short one of this repository, and a long one where the folder of the traces lies
/// beside the repository.
fn recorded() -> Vec<Session> {
    let crdt = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = vec![crdt.join("tests/traces/blog-post-start.json.gz")];
    let beside = ["../../../shared", "../../../../shared"].map(|shared| crdt.join(shared));
    let long = beside.map(|shared| shared.join("traces/sequential/automerge-paper.json.gz"));
    paths.extend(long.into_iter().find(|path| path.exists()));
    paths.iter().map(|path| recorded_at(path)).collect()
}

fn recorded_at(path: &Path) -> Session {
    let mut json = String::new();
    let file = std::fs::File::open(path).expect("a trace");
    flate2::read::GzDecoder::new(file).read_to_string(&mut json).expect("gzip");
    let trace: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let mut splices = Vec::new();
    for transaction in trace["txns"].as_array().expect("transactions") {
        for patch in transaction["patches"].as_array().expect("patches") {
            let number = |n: usize| patch[n].as_u64().expect("a number") as usize;
            splices.push((number(0), number(1), patch[2].as_str().expect("a text").to_owned()));
        }
    }
    let name = path.file_name().expect("a file").to_string_lossy().replace(".json.gz", "");
    let session =
        Session::alone(name, log_with(trace["startContent"].as_str().unwrap_or_default()), &splices);
    let end = session.end();
    assert_eq!(end.text(TEXT).expect("it was written to").to_string(), trace["endContent"]);
    session
}

/// Two who write at the same time and see one another's bursts of five keys a burst late.
fn live() -> Session {
    let mut random = Random(7);
    let mut log = log_with("0123456789");
    let mut writers =
        [ReplicaId(2), ReplicaId(3)].map(|replica| (replica, open(&log.document.encode()), log.tip()));
    let start = Log { document: open(&log.document.encode()), entries: Vec::new() };
    let mut changes = Vec::new();
    for _ in 0..2_000 {
        for (_, document, known) in &mut writers {
            let (count, run) = log.run(*known + 1, log.tip());
            if count > 0 {
                document.replay(*known + 1, count, &run, *known).expect("good entries");
            }
            *known = log.tip();
        }
        for (replica, document, known) in &mut writers {
            let at = random.at(document.text(TEXT).expect("it has text").len());
            for key in 0..5 {
                let splice = if key == 4 { (at, 1, String::new()) } else { (at + key, 0, random.text(1)) };
                let change = edit(document, *replica, *known, &splice).expect("a change");
                log.submit(change.as_ref()).expect("a good change");
                changes.push(change);
            }
        }
    }
    // The first entry stays where the log numbered it.
    let mut session = Session { base_seq: 1, ..Session::new("live", start, Vec::new()) };
    session.entries = (2..=log.tip()).map(|seq| log.run(seq, seq).1).collect();
    session.changes = changes;
    session
}

/// Writers at one spot who do not see one another; their keys arrive in turn.
fn one_spot(name: &str, writers: u64, keys: usize, backwards: bool) -> Session {
    let log = log_with("0123456789");
    let base = log.document.encode();
    let mut per_writer = Vec::new();
    for writer in 0..writers {
        let mut document = open(&base);
        let key = |k: usize| (if backwards { 5 } else { 5 + k }, 0, "x".to_owned());
        per_writer.push(
            (0..keys).map(|k| edit(&mut document, ReplicaId(writer + 2), 1, &key(k))).collect::<Vec<_>>(),
        );
    }
    let turns = (0..keys).flat_map(|k| per_writer.iter().filter_map(move |changes| changes[k].clone()));
    Session::new(name, log, turns.collect())
}

/// A branch of 10,000 keys in bursts of 20, behind a document that moved on as far.
fn offline() -> Session {
    let mut random = Random(11);
    let mut log = log_with(&"All that glitters is not gold. ".repeat(4_000));
    let base = log.document.encode();
    let mut branch = |replica: ReplicaId| -> Vec<Change> {
        let (mut document, mut at) = (open(&base), 0);
        let keys = (0..10_000).filter_map(|k| {
            if k % 20 == 0 {
                at = random.at(100_000);
            }
            at += 1;
            edit(&mut document, replica, 1, &(at - 1, 0, random.text(1)))
        });
        keys.collect()
    };
    let (theirs, ours) = (branch(ReplicaId(2)), branch(ReplicaId(3)));
    for change in &theirs {
        log.submit(change.as_ref()).expect("a good change");
    }
    Session::new("offline-10k", log, ours)
}

fn hard() -> Vec<Session> {
    let mut random = Random(5);
    let scattered: Vec<Splice> = (0..20_000).map(|n| (random.at(1_000_000 + n), 0, random.text(1))).collect();
    let pairs: Vec<Splice> = (0..40_000)
        .map(|n| if n % 2 == 0 { (5, 0, "x".to_owned()) } else { (5, 1, String::new()) })
        .collect();
    let prepends: Vec<Splice> = (0..50_000).map(|_| (0, 0, random.text(1))).collect();
    vec![
        one_spot("forwards-10x1000", 10, 1_000, false),
        one_spot("backwards-10x1000", 10, 1_000, true),
        one_spot("forwards-50x200", 50, 200, false),
        one_spot("backwards-50x200", 50, 200, true),
        one_spot("replicas-2000x1", 2_000, 1, false),
        Session::alone("scattered-1M-20k", log_with(&"abcdefghi ".repeat(100_000)), &scattered),
        Session::alone("pairs-20k", log_with("0123456789"), &pairs),
        Session::alone("prepends-50k", log_with(""), &prepends),
    ]
}

/// Ten authors who write to a thousand keys of one map, each up to twenty entries behind.
fn maps() -> Vec<Session> {
    let session = |strategy: Strategy| {
        let random = &mut Random(11);
        let mut counters = [0; 10];
        let changes = (0..20_000u64).map(|seq| {
            let author = random.at(10);
            let counter = counters[author];
            counters[author] += 1;
            let (key, value) = (format!("key {}", random.below(1_000)), format!("{{\"n\":{seq}}}"));
            let stamp = Hlc::at(1_763_683_200_000_000 + seq * 1_000 + random.below(5_000));
            let value = (!random.chance(5)).then_some(&*value);
            let body = map_change_body(&MapOp { map: "", key: &key, value, stamp, expect: None });
            Change {
                replica: ReplicaId(1 + author as u64),
                counter,
                next_counter: counter + 1,
                base: seq - random.below(20).min(seq),
                body: body.expect("a good write"),
            }
        });
        let document = Document::with_strategy(strategy, Limits::default());
        let changes = changes.collect();
        Session::new(format!("map-{strategy}-20k"), Log { document, ..Log::default() }, changes)
    };
    Strategy::ALL.into_iter().map(session).collect()
}

/// One group: `run` over a fresh start of each session.
fn time(c: &mut Criterion, group: &str, sessions: &[&Session], run: impl Fn(&Session, &mut Document)) {
    let mut group = c.benchmark_group(group);
    for session in sessions {
        group.throughput(Throughput::Elements(session.changes.len() as u64));
        group.bench_function(&session.name, |bencher| {
            let whole = |mut document: Document| {
                run(session, &mut document);
                document
            };
            bencher.iter_batched(|| session.start(), whole, BatchSize::PerIteration);
        });
    }
    group.finish();
}

fn engine(c: &mut Criterion) {
    let (recorded, live, hard, offline, maps) = (recorded(), live(), hard(), offline(), maps());
    let ordinary: Vec<&Session> = recorded.iter().chain([&live]).collect();
    let each: Vec<&Session> = ordinary.iter().copied().chain(&hard).chain(&maps).collect();
    let admitted: Vec<&Session> = ordinary.iter().copied().chain(&maps).collect();
    let runs: Vec<&Session> = ordinary.iter().copied().chain([&offline]).collect();

    for session in &recorded {
        // An author's side of the same changes: what was deleted and inserted, from the patches.
        let mut document = session.start();
        let mut patches = Vec::new();
        let mut splices: Vec<Vec<Splice>> = Vec::new();
        for (known, entry) in (session.base_seq..).zip(&session.entries) {
            document.receive(known + 1, 1, entry, known, &mut patches).expect("a good entry");
            let splice = |patch| match patch {
                Patch::Text { at, deleted, inserted, .. } => (at, deleted, inserted),
                Patch::Map { .. } => unreachable!("the session has a text only"),
            };
            splices.push(patches.drain(..).map(splice).collect());
        }
        time(c, "local", &[session], |_, document| {
            for change in &splices {
                let mut edit = document.edit(ReplicaId(9));
                for (at, deleted, inserted) in change {
                    edit.delete(TEXT, *at..at + deleted).expect("in bounds");
                    edit.insert(TEXT, *at, inserted).expect("in bounds");
                }
                black_box(edit.commit(session.base_seq));
            }
        });
    }
    time(c, "remote", &each, |session, document| session.receive_each(document));
    time(c, "patches", &ordinary, |session, document| {
        let mut patches = Vec::new();
        for (known, entry) in (session.base_seq..).zip(&session.entries) {
            patches.clear();
            document.receive(known + 1, 1, entry, known, &mut patches).expect("a good entry");
        }
    });
    time(c, "admit", &admitted, |session, document| {
        for change in &session.changes {
            document.apply(change.as_ref()).expect("a good change");
        }
    });
    for session in &runs {
        let run = session.entries.concat();
        time(c, "bulk", &[session], |session, document| session.receive_at_once(document, &run));
    }
    for session in &admitted {
        let document = session.end();
        let bytes = document.encode();
        c.bench_function(&format!("save/{}", session.name), |bencher| bencher.iter(|| document.encode()));
        c.bench_function(&format!("load/{}", session.name), |bencher| bencher.iter(|| open(&bytes)));
    }
}

fn config() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
}

criterion_group! { name = benches; config = config(); targets = engine }
criterion_main!(benches);
