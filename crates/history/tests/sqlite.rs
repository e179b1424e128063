//! The suite on a SQLite file, and what only a file can suffer.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use manyhands_history::conformance::{Scribe, Subject, claim, verify};
use manyhands_history::{LogError, Options, ReadLimit, SharedLog, migrate, open as open_log};
use manyhands_proto::{Offset, PartitionId};

const ALL: ReadLimit = ReadLimit { entries_max: usize::MAX, bytes_max: usize::MAX };

fn url(path: &Path) -> String {
    format!("sqlite:{}", path.display())
}

async fn open() -> Subject {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let url = url(&dir.path().join("log.db"));
    assert_eq!(migrate(&url, "test").await, Ok(1));
    assert_eq!(migrate(&url, "test").await, Ok(0), "nothing is left to do");
    let again = move || {
        // The directory lives as long as the subject can be opened.
        let (url, dir) = (url.clone(), dir.clone());
        let opening = async move {
            let log = open_log(&url, &options("test")).await.unwrap();
            drop(dir);
            log
        };
        Box::pin(opening) as manyhands_history::conformance::Opening
    };
    Subject { log: again().await, again: Box::new(again) }
}

fn options(cluster: &str) -> Options {
    Options { cluster: cluster.into(), ..Options::default() }
}

manyhands_history::conformance!(open);

#[tokio::test]
async fn a_file_that_is_not_ours_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.db");
    let refusal = async |cluster: &str| match open_log(&url(&path), &options(cluster)).await {
        Err(LogError::Mismatch(message)) => message,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was opened"),
    };
    assert!(refusal("test").await.contains("there is no event log in sqlite:"));
    std::fs::write(&path, b"").unwrap();
    assert!(refusal("test").await.contains("run `manyhands migrate`"));
    migrate(&url(&path), "test").await.unwrap();
    assert!(refusal("other").await.contains("has cluster \"test\", not \"other\""));
    assert!(matches!(migrate(&url(&path), "other").await, Err(LogError::Mismatch(_))));
    std::fs::write(&path, b"this is no database, and it is long enough to be seen as none").unwrap();
    assert!(matches!(open_log(&url(&path), &options("test")).await, Err(LogError::Unavailable(_))));
}

/// The test below runs this one alone in a process of its own: it appends for ever and says what was
/// acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appender() {
    let Some(path) = std::env::var_os("HISTORY_APPENDER") else { return };
    let log = open_log(&url(Path::new(&path)), &options("test")).await.unwrap();
    let node = format!("node-{}", std::process::id());
    let mut tasks = Vec::new();
    for p in 0..6 {
        let (log, node) = (log.clone(), node.clone());
        tasks.push(tokio::spawn(async move {
            let mut scribe = Scribe::claim(&log, &node, PartitionId(p)).await;
            // A document of its own in each life, so that the scribe begins where nothing is.
            let n = usize::try_from(scribe.lease.epoch().0).unwrap();
            for _ in 0..u64::MAX {
                scribe.write(n, 1 + n % 5).await;
                eprintln!("acknowledged {p} {}", scribe.head);
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

/// A process that is killed has lost nothing that it acknowledged, and left nothing torn.
// enforces: I-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("log.db");
    migrate(&url(&path), "test").await.unwrap();
    for life in 1..=6_u64 {
        let mut appender = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "appender", "--nocapture"])
            .env("HISTORY_APPENDER", &path)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut acknowledged = [0_u64; 6];
        let mut lines = BufReader::new(appender.stderr.take().unwrap()).lines();
        let mut note = |line: String| {
            let Some((p, head)) = line.strip_prefix("acknowledged ").and_then(|line| line.split_once(' '))
            else {
                return;
            };
            let (p, head): (usize, u64) = (p.parse().unwrap(), head.parse().unwrap());
            assert!(head > acknowledged[p]);
            acknowledged[p] = head;
        };
        for line in lines.by_ref().take(100 + 37 * life as usize) {
            note(line.unwrap());
        }
        appender.kill().unwrap();
        appender.wait().unwrap();
        // What it had said before it died counts too; a line that was cut short does not.
        for line in lines.map_while(Result::ok).filter(|line| line.split(' ').count() == 3) {
            note(line);
        }
        let log: SharedLog = open_log(&url(&path), &options("test")).await.unwrap();
        assert!(acknowledged.iter().sum::<u64>() > 0);
        for (p, acknowledged) in acknowledged.into_iter().enumerate() {
            let partition = PartitionId(u16::try_from(p).unwrap());
            let stored = log.follow(partition, Offset(0), ALL).await.unwrap();
            // Against itself: gapless, and each document's chain whole.
            verify(&stored, &stored).unwrap();
            let head = stored.len() as u64;
            assert!(head >= acknowledged, "partition {p}: {acknowledged} acknowledged, {head} stored");
            let batch = 1 + life % 5;
            let this_life =
                stored.iter().filter(|entry| entry.seq.0 > 0 && entry.replica.0 == u64::MAX - life);
            assert_eq!(this_life.count() as u64 % batch, 0, "partition {p} holds a torn batch");
            // The next life claims it: its lease is of a node that is gone.
            let epoch = manyhands_proto::Epoch(life);
            log.release(&[(partition, epoch)]).await.unwrap();
        }
        drop(log);
    }
    let log = open_log(&url(&path), &options("test")).await.unwrap();
    assert_eq!(claim(&*log, "last", PartitionId(0)).await.epoch().0, 7);
}
