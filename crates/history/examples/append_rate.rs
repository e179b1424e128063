//! How fast a log appends: `cargo run --release --example append_rate -- <url> [seconds]`.
//!
//! The URL is of an empty log; `postgres:` alone starts a server of its own. Batches are small and of one
//! document, one append a partition at a time, as an owner makes them.

#![allow(clippy::unwrap_used, reason = "a measurement")]

use std::time::{Duration, Instant};

use manyhands_history::conformance::Scribe;
use manyhands_history::{Options, SharedLog, migrate, open};
use manyhands_neighbours::{Dir, Postgres};
use manyhands_proto::PartitionId;

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let url = args.next().expect("the URL of an event log");
    let seconds = args.next().map_or(3, |text| text.parse().expect("seconds"));
    let server = (url == "postgres:").then(|| Postgres::start(Dir::Temporary).unwrap());
    let url = server.as_ref().map_or(url, |server| server.create_database("append_rate").unwrap());
    let options = Options { cluster: "append_rate".into(), ..Options::default() };
    migrate(&url, &options.cluster).await.unwrap();
    let log = open(&url, &options).await.unwrap();
    println!("partitions  entries/batch  batches/s  entries/s  p50 ms  p99 ms");
    let mut next = 0;
    for partitions in [1, 16, 64] {
        for entries in [1, 8, 64] {
            let mut latencies = Vec::new();
            let tasks: Vec<_> = (next..next + partitions)
                .map(|p| {
                    tokio::spawn(write(log.clone(), PartitionId(p), entries, Duration::from_secs(seconds)))
                })
                .collect();
            next += partitions;
            for task in tasks {
                latencies.extend(task.await.unwrap());
            }
            latencies.sort_unstable();
            let at = |share: f64| latencies[(latencies.len() as f64 * share) as usize].as_secs_f64() * 1e3;
            let rate = latencies.len() as f64 / seconds as f64;
            println!(
                "{partitions:10}  {entries:13}  {rate:9.0}  {:9.0}  {:6.2}  {:6.2}",
                rate * entries as f64,
                at(0.5),
                at(0.99)
            );
        }
    }
}

/// Appends for a while and returns how long each took.
async fn write(log: SharedLog, partition: PartitionId, entries: usize, time: Duration) -> Vec<Duration> {
    let mut scribe = Scribe::claim(&log, "append_rate", partition).await;
    let start = Instant::now();
    let mut latencies = Vec::new();
    while start.elapsed() < time {
        let batch = scribe.draft(0, entries);
        let began = Instant::now();
        scribe.append(batch).await.unwrap();
        latencies.push(began.elapsed());
    }
    log.release(&[(partition, scribe.lease.epoch())]).await.unwrap();
    latencies
}
