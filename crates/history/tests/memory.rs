//! The suite on the log in memory.

use std::sync::Arc;
use std::time::Duration;

use manyhands_history::conformance::{Scribe, Subject};
use manyhands_history::{AppendError, Call, Fault, MemoryLog, SharedLog};
use manyhands_proto::PartitionId;

async fn open() -> Subject {
    let log: SharedLog = Arc::new(MemoryLog::new());
    let again = log.clone();
    Subject { log, again: Box::new(move || Box::pin(std::future::ready(again.clone()))) }
}

manyhands_history::conformance!(open);

/// A simulation decides what is lost, and the next try settles it.
#[tokio::test]
async fn faults_lose_requests_and_answers() {
    let mut faults = vec![Fault::None, Fault::Answer, Fault::None, Fault::Request];
    let log: SharedLog = Arc::new(MemoryLog::with(
        || Duration::ZERO,
        move |call| match call {
            Call::Append(_) => faults.pop().unwrap_or_default(),
            _ => Fault::None,
        },
    ));
    let mut scribe = Scribe::claim(&log, "a", PartitionId(3)).await;
    for stored in [0, 1] {
        let batch = scribe.draft(0, 1);
        assert!(matches!(scribe.append(batch.clone()).await, Err(AppendError::Unknown(_))));
        let lease = scribe.lease.clone();
        let held = log.follow(
            lease.partition(),
            scribe.head,
            manyhands_history::ReadLimit { entries_max: 9, bytes_max: 99 },
        );
        assert_eq!(held.await.unwrap().len(), stored);
        scribe.append(batch).await.unwrap();
    }
    scribe.verify().await;
}
