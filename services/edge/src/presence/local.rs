//! The presence store inside one process.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use manyhands_proto::DocumentName;
use tokio::time::Instant;

use super::{ENTRIES_MAX, ENTRY_BYTES_MAX, Presence, PutError, TTL, Unavailable};

/// Entries in memory; those that were not put again are swept as they are met, and all of them now and then.
#[derive(Debug, Default)]
pub struct LocalPresence {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    documents: BTreeMap<DocumentName, Entries>,
    swept_at: Option<Instant>,
}

type Entries = BTreeMap<String, Entry>;

#[derive(Debug)]
struct Entry {
    bytes: Bytes,
    expires_at: Instant,
}

#[async_trait]
impl Presence for LocalPresence {
    async fn put(
        &self,
        document: &DocumentName,
        session: &str,
        entry: Bytes,
        ttl: Duration,
    ) -> Result<(), PutError> {
        if entry.len() > ENTRY_BYTES_MAX {
            return Err(PutError::TooLarge);
        }
        let now = Instant::now();
        let mut state = self.lock();
        state.sweep(now);
        let entries = state.documents.entry(document.clone()).or_default();
        entries.retain(|_, entry| entry.expires_at > now);
        if entries.len() >= ENTRIES_MAX && !entries.contains_key(session) {
            return Err(PutError::Full);
        }
        entries.insert(session.to_owned(), Entry { bytes: entry, expires_at: now + ttl });
        Ok(())
    }

    async fn remove(&self, document: &DocumentName, session: &str) -> Result<(), Unavailable> {
        let mut state = self.lock();
        if let Some(entries) = state.documents.get_mut(document) {
            entries.remove(session);
            if entries.is_empty() {
                state.documents.remove(document);
            }
        }
        Ok(())
    }

    async fn roster(&self, document: &DocumentName) -> Result<Vec<(String, Bytes)>, Unavailable> {
        let now = Instant::now();
        let state = self.lock();
        let entries = state.documents.get(document).into_iter().flatten();
        let alive = entries.filter(|(_, entry)| entry.expires_at > now);
        Ok(alive.map(|(session, entry)| (session.clone(), entry.bytes.clone())).collect())
    }
}

impl LocalPresence {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Forgets documents whose sessions ended without a word.
    fn sweep(&mut self, now: Instant) {
        if self.swept_at.is_some_and(|at| now < at + TTL) {
            return;
        }
        self.swept_at = Some(now);
        self.documents.retain(|_, entries| {
            entries.retain(|_, entry| entry.expires_at > now);
            !entries.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance;
    use super::*;

    conformance::suite!(LocalPresence::default());

    // enforces: I-10
    #[tokio::test(start_paused = true)]
    async fn documents_that_everybody_left_are_forgotten() {
        let presence = LocalPresence::default();
        for i in 0..100 {
            presence.put(&conformance::document(&format!("d{i}")), "s", Bytes::new(), TTL).await.unwrap();
        }
        tokio::time::advance(TTL * 2).await;
        presence.put(&conformance::document("other"), "s", Bytes::new(), TTL).await.unwrap();
        assert_eq!(presence.lock().documents.len(), 1);
    }
}
