//! What every presence store must do, wherever it keeps its entries.

use std::time::Duration;

use bytes::Bytes;
use manyhands_proto::DocumentName;
use tokio::time::{Instant, sleep};

use super::{ENTRIES_MAX, ENTRY_BYTES_MAX, Presence, PutError, TTL};

/// Makes one test per scenario; the expression opens an empty store.
macro_rules! suite {
    ($open:expr) => {
        $crate::presence::conformance::suite!($open;
            an_entry_is_there_until_it_is_removed,
            documents_are_apart,
            an_entry_vanishes_by_itself,
            putting_again_keeps_an_entry,
            a_document_has_a_limit,
            who_has_expired_takes_no_place,
            an_entry_has_a_limit,
        );
    };
    ($open:expr; $($scenario:ident,)*) => {
        $(
            #[tokio::test]
            async fn $scenario() {
                $crate::presence::conformance::$scenario(&$open).await;
            }
        )*
    };
}
pub(super) use suite;

/// Short, for entries that must vanish while a test waits.
const SHORT: Duration = Duration::from_millis(300);

pub(super) fn document(name: &str) -> DocumentName {
    name.parse().unwrap()
}

/// Waits for what must become true, for thirty seconds at most.
pub(super) async fn eventually(mut becomes: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !becomes().await {
        assert!(Instant::now() < end, "it did not happen");
        sleep(Duration::from_millis(20)).await;
    }
}

fn entry(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn roster(presence: &impl Presence, name: &str) -> Vec<(String, String)> {
    let mut roster: Vec<_> = presence
        .roster(&document(name))
        .await
        .unwrap()
        .into_iter()
        .map(|(session, entry)| (session, String::from_utf8(entry.to_vec()).unwrap()))
        .collect();
    roster.sort();
    roster
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(session, entry)| ((*session).to_owned(), (*entry).to_owned())).collect()
}

pub(super) async fn an_entry_is_there_until_it_is_removed(presence: &impl Presence) {
    let d = document("d");
    assert_eq!(roster(presence, "d").await, pairs(&[]));
    presence.put(&d, "a", entry("1"), TTL).await.unwrap();
    presence.put(&d, "b", entry("2"), TTL).await.unwrap();
    assert_eq!(roster(presence, "d").await, pairs(&[("a", "1"), ("b", "2")]));
    presence.put(&d, "a", entry("3"), TTL).await.unwrap();
    assert_eq!(roster(presence, "d").await, pairs(&[("a", "3"), ("b", "2")]));
    presence.remove(&d, "a").await.unwrap();
    presence.remove(&d, "a").await.unwrap();
    presence.remove(&d, "never").await.unwrap();
    assert_eq!(roster(presence, "d").await, pairs(&[("b", "2")]));
    presence.remove(&d, "b").await.unwrap();
    assert_eq!(roster(presence, "d").await, pairs(&[]));
}

pub(super) async fn documents_are_apart(presence: &impl Presence) {
    presence.put(&document("a"), "s", entry("1"), TTL).await.unwrap();
    presence.put(&document("a:sessions"), "s", entry("2"), TTL).await.unwrap();
    assert_eq!(roster(presence, "a").await, pairs(&[("s", "1")]));
    presence.remove(&document("a"), "s").await.unwrap();
    assert_eq!(roster(presence, "a:sessions").await, pairs(&[("s", "2")]));
}

pub(super) async fn an_entry_vanishes_by_itself(presence: &impl Presence) {
    let d = document("d");
    presence.put(&d, "gone", entry("1"), SHORT).await.unwrap();
    presence.put(&d, "stays", entry("2"), TTL).await.unwrap();
    eventually(async || roster(presence, "d").await == pairs(&[("stays", "2")])).await;
}

pub(super) async fn putting_again_keeps_an_entry(presence: &impl Presence) {
    let d = document("d");
    let end = Instant::now() + SHORT * 4;
    while Instant::now() < end {
        presence.put(&d, "s", entry("1"), SHORT * 2).await.unwrap();
        assert_eq!(roster(presence, "d").await, pairs(&[("s", "1")]));
        sleep(SHORT / 10).await;
    }
    eventually(async || roster(presence, "d").await.is_empty()).await;
}

async fn fill(presence: &impl Presence, ttl: Duration) {
    for i in 0..ENTRIES_MAX {
        presence.put(&document("d"), &format!("s{i}"), entry("x"), ttl).await.unwrap();
    }
}

// enforces: I-10
pub(super) async fn a_document_has_a_limit(presence: &impl Presence) {
    let d = document("d");
    fill(presence, TTL * 4).await;
    assert_eq!(presence.put(&d, "more", entry("1"), TTL).await, Err(PutError::Full));
    assert_eq!(presence.put(&d, "s7", entry("1"), TTL).await, Ok(()));
    assert_eq!(presence.put(&document("other"), "more", entry("1"), TTL).await, Ok(()));
    assert_eq!(roster(presence, "d").await.len(), ENTRIES_MAX);
    presence.remove(&d, "s8").await.unwrap();
    assert_eq!(presence.put(&d, "more", entry("1"), TTL).await, Ok(()));
}

pub(super) async fn who_has_expired_takes_no_place(presence: &impl Presence) {
    // Long enough for the slowest store to be full for a moment.
    let d = document("d");
    fill(presence, Duration::from_secs(3)).await;
    eventually(async || presence.put(&d, "more", entry("1"), TTL).await.is_ok()).await;
    eventually(async || roster(presence, "d").await == pairs(&[("more", "1")])).await;
}

// enforces: I-10
pub(super) async fn an_entry_has_a_limit(presence: &impl Presence) {
    let d = document("d");
    let largest = Bytes::from(vec![0xff; ENTRY_BYTES_MAX]);
    presence.put(&d, "s", largest.clone(), TTL).await.unwrap();
    let larger = Bytes::from(vec![0xff; ENTRY_BYTES_MAX + 1]);
    assert_eq!(presence.put(&d, "s", larger, TTL).await, Err(PutError::TooLarge));
    assert_eq!(presence.roster(&d).await.unwrap(), [("s".to_owned(), largest)]);
}
