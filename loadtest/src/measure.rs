//! Times, taken by counting: an edit has arrived where the writer's counters are known up to its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use manyhands_client::{ReplicaId, Workspace};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

/// Longest time that a histogram tells apart, in microseconds: an hour.
const TIME_US_MAX: u64 = 3_600_000_000;

/// What one writer wrote, in its order.
pub struct Journal {
    replica: ReplicaId,
    edits: Mutex<Vec<Written>>,
}

#[derive(Clone, Copy)]
struct Written {
    /// The writer's first counter after the edit.
    end: u64,
    /// When it was made, or was meant to be made.
    at: Instant,
}

impl Journal {
    /// Of the writer behind this handle.
    #[must_use]
    pub fn of(workspace: &Workspace) -> Arc<Journal> {
        Arc::new(Journal { replica: workspace.replica(), edits: Mutex::default() })
    }

    /// Notes the edit that the writer makes in `make`; `at` is when it was meant to be made.
    pub fn note<T, E>(
        &self,
        workspace: &Workspace,
        at: Instant,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        // Under the lock, so that nobody can find the edit before it stands here.
        let mut edits = self.lock();
        let made = make()?;
        let end = workspace.read(|document| document.next_counter(self.replica));
        edits.push(Written { end, at });
        Ok(made)
    }

    /// Edits noted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Nothing was noted yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Everything that was noted has arrived here.
    #[must_use]
    pub fn has_arrived(&self, workspace: &Workspace) -> bool {
        let end = self.lock().last().map_or(0, |last| last.end);
        workspace.read(|document| document.next_counter(self.replica)) >= end
    }

    /// Edits that are acknowledged when everything below `acked` is.
    #[must_use]
    pub fn acked(&self, acked: u64) -> usize {
        self.lock().partition_point(|edit| edit.end <= acked)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Written>> {
        self.edits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Times of one kind, collected from many tasks.
#[derive(Clone)]
pub struct Times(Arc<Mutex<Histogram<u64>>>);

impl Default for Times {
    fn default() -> Times {
        let histogram = Histogram::new_with_bounds(1, TIME_US_MAX, 3).expect("these bounds are valid");
        Times(Arc::new(Mutex::new(histogram)))
    }
}

/// A summary in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Summary {
    /// Half are not longer.
    pub p50: f64,
    /// 99 of 100 are not longer.
    pub p99: f64,
    /// 999 of 1,000 are not longer.
    pub p999: f64,
    /// The longest.
    pub max: f64,
    /// How many were taken.
    pub samples: u64,
}

impl Times {
    pub(crate) fn record(&self, times: impl IntoIterator<Item = Duration>) {
        let mut histogram = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for time in times {
            let us = u64::try_from(time.as_micros()).unwrap_or(TIME_US_MAX);
            histogram.saturating_record(us.max(1));
        }
    }

    /// What was recorded so far.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let histogram = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Summary {
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max() as f64 / 1000.0,
            samples: histogram.len(),
        }
    }
}

/// Follows a workspace until `stop`: how long what others wrote took to get here, and how long what was
/// written here took to be acknowledged.
pub struct Follower {
    /// The workspace.
    pub workspace: Workspace,
    /// What is written through it, if anything is.
    pub own: Option<Arc<Journal>>,
    /// What others write.
    pub others: Vec<Arc<Journal>>,
    /// From an edit to its arrival here.
    pub latency: Times,
    /// From an edit to its acknowledgement.
    pub ack: Times,
}

impl Follower {
    /// Returns the longest time without an acknowledgement while some edit waited for one.
    pub async fn run(self, stop: CancellationToken) -> Duration {
        let mut changes = self.workspace.changes();
        let mut arrived = vec![0; self.others.len()];
        let mut acked = 0;
        let mut last_ack = Instant::now();
        let mut paused_max = Duration::ZERO;
        loop {
            let stopped = tokio::select! {
                biased;
                changed = changes.changed() => changed.is_err(),
                () = stop.cancelled() => true,
            };
            let known: Vec<u64> = self.workspace.read(|document| {
                self.others.iter().map(|journal| document.next_counter(journal.replica)).collect()
            });
            let now = Instant::now();
            for ((journal, cursor), known) in self.others.iter().zip(&mut arrived).zip(known) {
                self.latency.record(journal.pass(cursor, known, now));
            }
            if let Some(journal) = &self.own {
                let waited_since = journal.at(acked);
                let times = journal.pass(&mut acked, self.workspace.acked(), now);
                if let Some(since) = waited_since
                    && !times.is_empty()
                {
                    paused_max = paused_max.max(now.duration_since(since.max(last_ack)));
                    last_ack = now;
                }
                self.ack.record(times);
            }
            if stopped {
                return paused_max;
            }
        }
    }
}

impl Journal {
    /// The times of the edits from `cursor` on that end at or below `counter`; moves the cursor past them.
    fn pass(&self, cursor: &mut usize, counter: u64, now: Instant) -> Vec<Duration> {
        let edits = self.lock();
        let passed = edits[*cursor..].iter().take_while(|edit| edit.end <= counter);
        let times: Vec<Duration> = passed.map(|edit| now.saturating_duration_since(edit.at)).collect();
        *cursor += times.len();
        times
    }

    fn at(&self, index: usize) -> Option<Instant> {
        self.lock().get(index).map(|edit| edit.at)
    }
}

/// Processor time that this process has used: what the generator itself costs must be known next to what
/// it measures.
#[must_use]
pub fn own_cpu() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike as _;
    getrusage(UsageWho::RUSAGE_SELF).map_or(Duration::ZERO, |usage| {
        let us = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        Duration::from_micros(u64::try_from(us).unwrap_or(0))
    })
}
