//! Timing, and what was measured.

use nix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

/// A moment in this thread's processor time, so that whatever else the machine does counts little. Nothing that
/// is measured waits, or works in another thread.
pub struct ProcessorTime(Duration);

impl ProcessorTime {
    pub fn now() -> ProcessorTime {
        let now = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("the system has this clock");
        ProcessorTime(now.into())
    }
    pub fn elapsed(&self) -> Duration {
        ProcessorTime::now().0 - self.0
    }
}

/// One number with where it comes from.
#[derive(Clone, Debug)]
pub struct Row {
    pub case: String,
    pub peer: &'static str,
    pub metric: &'static str,
    pub median: f64,
    /// `partial` (given up, mean of what was done), `INTERLEAVED`, or nothing to say.
    pub note: &'static str,
}

/// All rows of a run, and how long a measurement may take.
pub struct Results {
    pub rows: Vec<Row>,
    pub quick: bool,
    pub case: String,
    pub peer: &'static str,
}

#[derive(Clone, Copy)]
pub struct Stat {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub runs: usize,
}

impl Stat {
    fn one(n: f64) -> Stat {
        Stat { median: n, min: n, max: n, runs: 1 }
    }
}

impl Results {
    /// One warm-up, then at least 5 runs (3 in a quick run, 2 when a run takes long, the warm-up alone when it
    /// took very long), more while the time budget lasts, 25 at most. Seconds.
    pub fn time(&self, mut f: impl FnMut() -> Duration) -> Stat {
        let (budget, least, long, very_long) =
            if self.quick { (0.05, 3, 0.3, 1.0) } else { (2.0, 5, 6.0, 20.0) };
        let start = Instant::now();
        let first = f().as_secs_f64();
        let whole = start.elapsed().as_secs_f64();
        if whole > very_long {
            return Stat::one(first);
        }
        let least = if whole > long { 2 } else { least };
        let start = Instant::now();
        let mut times = Vec::new();
        while times.len() < least || (start.elapsed().as_secs_f64() < budget && times.len() < 25) {
            times.push(f().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        let (min, max) = (times[0], times[times.len() - 1]);
        Stat { median: times[times.len() / 2], min, max, runs: times.len() }
    }

    /// After how long one pass over a case's updates is given up.
    pub fn patience(&self) -> Duration {
        Duration::from_secs(if self.quick { 1 } else { 20 })
    }

    pub fn put(&mut self, metric: &'static str, unit: &str, stat: Stat, scale: f64, note: &'static str) {
        let (median, min, max) = (stat.median * scale, stat.min * scale, stat.max * scale);
        println!(
            "{:<22} {:<14} {:<22} {median:>14.2} {unit:<6} [{min:.2} .. {max:.2}] x{} {note}",
            self.case, self.peer, metric, stat.runs
        );
        self.rows.push(Row { case: self.case.clone(), peer: self.peer, metric, median, note });
    }

    pub fn num(&mut self, metric: &'static str, unit: &str, n: f64, note: &'static str) {
        self.put(metric, unit, Stat::one(n), 1.0, note);
    }

    pub fn get(&self, case: &str, peer: &str, metric: &str) -> Option<&Row> {
        self.rows.iter().rev().find(|r| r.case == case && r.peer == peer && r.metric == metric)
    }
}

/// Whether replicas agree with one another, and with the text that must result unless that may differ (the
/// recorder of a concurrent trace had its own order of inserts at one spot).
pub fn agree(texts: &[&str], end: &str, may_differ: bool) {
    for text in &texts[1..] {
        assert!(*text == texts[0], "replicas diverge: {} and {} bytes", text.len(), texts[0].len());
    }
    assert!(may_differ || texts[0] == end, "wrong text: {} bytes, not {}", texts[0].len(), end.len());
}
