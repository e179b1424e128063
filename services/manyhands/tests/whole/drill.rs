//! A short drill: faults from a seed, and the checker over everything that clients and the log recorded.
//! `make drill` makes longer ones.

use std::path::PathBuf;

use indicatif::ProgressBar;
use loadtest::drill::Drill;

use crate::world::BINARY;

/// Runs it, and says what it found if that is not what should be.
async fn drill(seconds: f64, dev: bool) {
    let folder = tempfile::tempdir().unwrap();
    let drill = Drill {
        seconds,
        // Always the same faults; the longer runs draw others.
        seed: Some(1),
        dev,
        documents: 4,
        writers: 2,
        rate: 40.0,
        watchers: 2,
        pause_max: 4.0,
        // The machine that runs all tests at once is no measure of how fast anything settles.
        settle_max: 60.0,
        binary: Some(PathBuf::from(BINARY)),
        dir: Some(folder.path().join("run")),
    };
    let report = drill.run(ProgressBar::hidden()).await.unwrap();
    assert!(report.passed(), "{}", report.text());
}

// enforces: I-1, I-2, I-3, I-4, I-5, I-6, I-8, I-9, I-14
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_keeps_its_promises_through_a_drill() {
    drill(45.0, false).await;
}

// enforces: I-1, I-3, I-4, I-5, I-6, I-14
#[tokio::test(flavor = "multi_thread")]
async fn one_process_keeps_its_promises_through_a_drill() {
    drill(20.0, true).await;
}
