//! When to announce the newest positions of which documents: pure.
//!
//! A delta can be lost on the bus. The next one shows it; for the last one there is no next, so positions
//! are announced soon after a change and for a while after that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use manyhands_proto::DocumentName;

/// After a change, at most this long.
const AFTER_CHANGE: Duration = Duration::from_millis(500);
/// How often while a document is recently active.
const REPEAT: Duration = Duration::from_secs(5);
/// How long a document is recently active after a change.
const ACTIVE: Duration = Duration::from_secs(60);

/// The documents of one partition that have something to announce.
#[derive(Debug, Default)]
pub struct Tips {
    changed: BTreeSet<DocumentName>,
    changed_due: Option<Duration>,
    /// With the time of the last change.
    active: BTreeMap<DocumentName, Duration>,
    repeat_due: Option<Duration>,
}

impl Tips {
    /// The document has new entries.
    pub fn changed(&mut self, now: Duration, document: &DocumentName) {
        self.changed.insert(document.clone());
        self.active.insert(document.clone(), now);
        self.changed_due.get_or_insert(now + AFTER_CHANGE);
        self.repeat_due.get_or_insert(now + REPEAT);
    }

    /// When [`due`](Tips::due) will next have something.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        match (self.changed_due, self.repeat_due) {
            (Some(changed), Some(repeat)) => Some(changed.min(repeat)),
            (changed, repeat) => changed.or(repeat),
        }
    }

    /// The documents to announce now.
    pub fn due(&mut self, now: Duration) -> BTreeSet<DocumentName> {
        let mut due = BTreeSet::new();
        if self.changed_due.is_some_and(|at| at <= now) {
            self.changed_due = None;
            due = std::mem::take(&mut self.changed);
        }
        if self.repeat_due.is_some_and(|at| at <= now) {
            due.extend(self.active.keys().cloned());
            self.active.retain(|_, &mut last| last + ACTIVE > now);
            self.repeat_due = (!self.active.is_empty()).then_some(now + REPEAT);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    // enforces: I-6
    #[test]
    fn a_document_is_announced_soon_after_its_change_and_then_for_a_while() {
        let mut tips = Tips::default();
        assert_eq!(tips.deadline(), None);
        let document: DocumentName = "a".parse().unwrap();
        tips.changed(at(1000), &document);
        tips.changed(at(1400), &document);
        let mut announced = Vec::new();
        while let Some(deadline) = tips.deadline() {
            assert_eq!(tips.due(deadline - at(1)), BTreeSet::new());
            assert_eq!(tips.due(deadline), BTreeSet::from([document.clone()]));
            announced.push(deadline);
        }
        assert_eq!(announced[..3], [at(1500), at(6000), at(11_000)]);
        assert_eq!(announced.len(), 14);
        assert!(announced.last() >= Some(&at(61_000)));
    }
}
