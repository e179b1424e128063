//! Replays an editing trace as a server and as another client take it, one change at a time, and prints
//! what that costs.
//!
//! ```sh
//! cargo run --release -p manyhands-crdt --example replay -- ../shared/traces/sequential/automerge-paper.json.gz
//! ```

use std::error::Error;
use std::io::Read;
use std::sync::LazyLock;
use std::time::Instant;

use manyhands_crdt::{Change, Document, EntryWriter, Limits, PushWriter, ReplicaId};

const AUTHOR: ReplicaId = ReplicaId(0x1234_5678_9abc_def0);
const TIME_NANOS: u128 = 400_000_000;

fn main() -> Result<(), Box<dyn Error>> {
    for path in std::env::args().skip(1) {
        replay(&path)?;
    }
    Ok(())
}

fn replay(path: &str) -> Result<(), Box<dyn Error>> {
    let mut json = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path)?).read_to_string(&mut json)?;
    let trace: serde_json::Value = serde_json::from_str(&json)?;
    let end = trace["endContent"].as_str().ok_or("no endContent")?;
    let mut patches: Vec<(usize, usize, &str)> = Vec::new();
    for transaction in trace["txns"].as_array().ok_or("no txns")? {
        for patch in transaction["patches"].as_array().ok_or("no patches")? {
            let number = |n: usize| patch[n].as_u64().map(|n| n as usize).ok_or("no number");
            patches.push((number(0)?, number(1)?, patch[2].as_str().ok_or("no text")?));
        }
    }

    let mut changes: Vec<Change> = Vec::new();
    let local = mean(|| {
        changes.clear();
        let mut document = Document::with_limits(limits());
        let start = processor_nanos();
        for &(at, deleted, inserted) in &patches {
            let mut edit = document.edit(AUTHOR);
            edit.delete("text", at..at + deleted).expect("in bounds");
            edit.insert("text", at, inserted).expect("in bounds");
            changes.extend(edit.commit(changes.len() as u64));
        }
        processor_nanos() - start
    });
    let mut server = Document::new();
    let apply = mean(|| {
        server = Document::with_limits(limits());
        let start = processor_nanos();
        for change in &changes {
            server.apply(change.as_ref()).expect("a good change");
        }
        processor_nanos() - start
    });
    assert_eq!(server.text("text").ok_or("no text")?.to_string(), end, "the trace's end content");

    let (mut push_bytes, mut entry_bytes) = (0, 0);
    let mut entries = Vec::new();
    for (n, change) in changes.iter().enumerate() {
        let mut push = PushWriter::new();
        push.push(change.base, &change.body);
        push_bytes += push.len();
        let mut run = EntryWriter::new();
        run.push(n as u64 + 1, 0, (n == 0).then_some(AUTHOR), change.base, &change.body);
        entry_bytes += run.len();
        entries.push(run.finish());
    }
    let mut client = Document::new();
    let replay = mean(|| {
        client = Document::with_limits(limits());
        let start = processor_nanos();
        for (n, entry) in entries.iter().enumerate() {
            client.replay(n as u64 + 1, 1, entry, n as u64).expect("a good entry");
        }
        processor_nanos() - start
    });
    let mut shown = Vec::new();
    let receive = mean(|| {
        client = Document::with_limits(limits());
        let start = processor_nanos();
        for (n, entry) in entries.iter().enumerate() {
            shown.clear();
            client.receive(n as u64 + 1, 1, entry, n as u64, &mut shown).expect("a good entry");
        }
        processor_nanos() - start
    });
    let mut saved = Vec::new();
    let save = mean(|| {
        let start = processor_nanos();
        saved = server.encode();
        processor_nanos() - start
    });
    let load = mean(|| {
        let start = processor_nanos();
        client = Document::decode(&saved).expect("what was saved");
        processor_nanos() - start
    });
    assert_eq!(client.state_hash(), server.state_hash());

    let per_op = |nanos: u128| nanos as f64 / changes.len() as f64;
    println!("{path}: {} changes, {} characters at the end", changes.len(), end.chars().count());
    println!("  local edit and encode   {:8.1} ns an op", per_op(local));
    println!("  apply, with hash        {:8.1} ns an op", per_op(apply));
    println!("  receive, no patches     {:8.1} ns an op", per_op(replay));
    println!("  receive, patches        {:8.1} ns an op", per_op(receive));
    println!("  push record             {:8.2} bytes an op", push_bytes as f64 / changes.len() as f64);
    println!("  entry record            {:8.2} bytes an op", entry_bytes as f64 / changes.len() as f64);
    println!("  save                    {:8} us, {} bytes", save / 1000, saved.len());
    println!("  load                    {:8} us", load / 1000);
    println!(
        "  memory                  {:8} bytes fed, {} loaded",
        server.memory_bytes(),
        client.memory_bytes()
    );
    Ok(())
}

/// Pastes of whole files are one change in some traces.
fn limits() -> Limits {
    Limits { change_bytes_max: 16 * 1024 * 1024, ..Limits::default() }
}

/// What this thread has had of a processor, so that a busy machine does not count; elsewhere than on Linux
/// the time of day.
fn processor_nanos() -> u128 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let on_processor = schedstat.split(' ').next().and_then(|nanos| nanos.parse().ok());
    on_processor.unwrap_or_else(|| START.elapsed().as_nanos())
}

/// The mean of as many runs as fill the time; processor time comes in ticks, so one run says little.
fn mean(mut run: impl FnMut() -> u128) -> u128 {
    let (mut total, mut runs) = (0, 0);
    while total < TIME_NANOS || runs < 3 {
        total += run();
        runs += 1;
        if runs == 10_000 {
            break;
        }
    }
    total / runs
}
