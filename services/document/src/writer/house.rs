//! What the loop does when its turn is done: announce, note what was published, let idle documents go.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use manyhands_proto::{DocumentName, Seq, v1};

use super::{Published, Writer};
use crate::aside::Drawn;
use crate::mailbox::Done;
use crate::request::wire_position;

/// How many entries what is noted as published may lag behind, whatever the time.
const NOTE_ENTRIES: u64 = 1000;
/// How often documents are looked through for idle ones.
const SWEEP: Duration = Duration::from_secs(5);
/// Documents without entries whose incarnation and strategy are remembered.
const DRAWN_MAX: usize = 1024;
/// Positions in one announcement.
const TIPS_MAX: usize = 256;

impl Writer {
    /// When the loop has something to do though nobody asks.
    pub(super) fn wake(&self) -> Option<tokio::time::Instant> {
        let published = self.published.due.filter(|_| !self.published.busy);
        let sweep = (!self.residency.is_empty()).then_some(self.sweep_at);
        let wake = [self.tips.deadline(), published, sweep].into_iter().flatten().min();
        wake.map(|at| self.shared.clock.instant(at))
    }

    pub(super) fn keep_house(&mut self) {
        let now = self.shared.clock.now();
        let due = self.tips.due(now);
        self.announce(&due);
        self.note_published(now);
        if now >= self.sweep_at {
            self.sweep_at = now + SWEEP;
            self.evict(now);
        }
        self.count();
    }

    fn announce(&self, documents: &BTreeSet<DocumentName>) {
        let tips: Vec<v1::Position> = documents
            .iter()
            .filter_map(|name| self.partition.document(name))
            .map(|document| wire_position(&document.position()))
            .collect();
        for tips in tips.chunks(TIPS_MAX) {
            let tips = v1::BusTips { epoch: self.lease.epoch().0, tips: tips.to_vec() };
            self.publish(v1::bus_message::Message::Tips(tips), None);
        }
    }

    fn note_published(&mut self, now: Duration) {
        let told = self.published.told;
        let due = self.published.due.is_some_and(|due| due <= now);
        let many = told.0 >= self.published.noted.0 + NOTE_ENTRIES;
        if self.published.busy || !(due || many) {
            return;
        }
        self.published = Published { told, noted: told, due: None, busy: true };
        let (log, lease) = (self.shared.log.clone(), self.lease.clone());
        self.mailbox.tasks.spawn(async move {
            if let Err(error) = log.published(&lease, told).await {
                tracing::debug!(%error, "what was published is not noted; the next note says it");
            }
            Done::Noted
        });
    }

    /// Announces the documents of the entries that the owner before may not have published: the edges that
    /// have them open fetch what they miss.
    pub(super) fn republish(&mut self) {
        if self.lease.published() < self.lease.head() {
            self.published.busy = true;
            self.published.due = Some(self.shared.clock.now());
            let (aside, lease) = (self.aside.clone(), self.lease.clone());
            self.mailbox.tasks.spawn(async move { aside.republish(lease).await });
        }
    }

    pub(super) fn resize(&mut self, name: &DocumentName) {
        if let Some(document) = self.partition.document(name) {
            self.residency.resized(name, document.bytes());
        }
    }

    /// Drops idle documents, and while the node holds too much, the least recently used.
    fn evict(&mut self, now: Duration) {
        let memory = &self.shared.config.memory;
        let excess = self.shared.resident_bytes.load(Ordering::Relaxed).saturating_sub(memory.bytes_max);
        for name in self.residency.evict(now.saturating_sub(memory.idle), excess) {
            let empty = self.partition.document(&name).filter(|document| document.position().seq == Seq(0));
            let drawn = empty.map(Drawn::of);
            self.partition.remove(&name);
            if let Some(drawn) = drawn {
                if self.drawn.len() >= DRAWN_MAX {
                    self.drawn.pop_first();
                }
                self.drawn.insert(name, drawn);
            }
        }
    }

    /// Keeps the node's sums of what is in memory.
    fn count(&mut self) {
        let (bytes, documents) = (self.residency.bytes(), self.residency.len());
        let add = |sum: &AtomicUsize, counted: &mut usize, now: usize| {
            sum.fetch_add(now.wrapping_sub(*counted), Ordering::Relaxed);
            *counted = now;
        };
        add(&self.shared.resident_bytes, &mut self.counted_bytes, bytes);
        add(&self.shared.resident_documents, &mut self.counted_documents, documents);
        if self.shared.resident_bytes.load(Ordering::Relaxed) > self.shared.config.memory.bytes_max {
            self.sweep_at = self.shared.clock.now().min(self.sweep_at);
        }
    }

    pub(super) async fn end(&mut self) {
        // A stop in good order leaves nothing to republish; one without the lease is refused, and no matter.
        let Published { told, noted, busy, .. } = self.published;
        if told > noted && !busy && !self.term.is_over() {
            let _lost = self.shared.log.published(&self.lease, told).await;
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.resident_bytes.fetch_sub(self.counted_bytes, Ordering::Relaxed);
        self.shared.resident_documents.fetch_sub(self.counted_documents, Ordering::Relaxed);
    }
}
