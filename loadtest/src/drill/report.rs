//! What a drill found, in figures.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;

use super::Made;
use super::member::Notes;
use super::plan::{Pause, longest_pauses};
use super::watcher::Seen;
use crate::checker::{Checker, Event, Options, Verdict, check, controls};

/// What came of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// How to make the same faults again.
    pub command: String,
    /// What the faults were drawn from.
    pub seed: u64,
    /// How long they were made.
    pub seconds: f64,
    /// How long everything took.
    pub elapsed_s: f64,
    /// Faults, by kind.
    pub faults: BTreeMap<String, FaultFigures>,
    /// All of them.
    pub faults_total: usize,
    /// Longest time in which some writer waited for an acknowledgement.
    pub pause_ms_max: u64,
    /// Clients that died in the middle of writing.
    pub clients_died: u64,
    /// Connections beyond each client's first.
    pub reconnects: u64,
    /// Processes that ended although nobody had killed them.
    pub ended_by_themselves: Vec<String>,
    /// Why edits were not made or were refused, and what else clients met, the first of each kind.
    pub trouble: Vec<String>,
    /// What the checker says.
    pub verdict: Verdict,
    /// Whether the checker can be believed.
    pub controls: Controls,
}

/// Faults of one kind.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct FaultFigures {
    /// How many.
    pub count: usize,
    /// The longest pause of writing that one of them made.
    pub pause_ms_max: u64,
}

/// The same history damaged on purpose, once for each kind of damage.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Controls {
    /// Kinds of damage that the checker named.
    pub named: usize,
    /// Kinds of damage that it did not name.
    pub missed: Vec<String>,
    /// Kinds for which the history had no place.
    pub without_place: Vec<String>,
    /// Every kind must have a place: the database says when rows were committed, and under which epoch.
    complete: bool,
}

impl Controls {
    pub(super) fn run(history: &[Event], options: Options, complete: bool) -> Controls {
        let mut result = Controls { complete, ..Controls::default() };
        // The damage is what must be found, however much else is.
        let options = Options { violations_max: usize::MAX, ..options };
        for control in controls() {
            let Some(damaged) = control.damaged(history) else {
                result.without_place.push(control.name.to_owned());
                continue;
            };
            let verdict = check(&damaged, options);
            if verdict.violations.iter().any(|violation| violation.rule == control.rule) {
                result.named += 1;
            } else {
                result.missed.push(control.name.to_owned());
            }
        }
        result
    }

    /// The checker finds what is there to be found.
    #[must_use]
    pub fn hold(&self) -> bool {
        self.missed.is_empty() && self.named > 0 && (self.without_place.is_empty() || !self.complete)
    }
}

impl Report {
    pub(super) fn of(
        verdict: Verdict,
        controls: Controls,
        faults: &[Made],
        notes: &[Notes],
        seen: &[Seen],
    ) -> Report {
        let times: Vec<(Duration, Duration)> = faults.iter().map(|made| (made.began, made.ended)).collect();
        let pauses: Vec<Pause> = notes.iter().flat_map(|notes| notes.pauses.iter().copied()).collect();
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let mut by_kind: BTreeMap<String, FaultFigures> = BTreeMap::new();
        for (made, longest) in faults.iter().zip(longest_pauses(&times, &pauses)) {
            let figures = by_kind.entry(made.label.clone()).or_default();
            figures.count += 1;
            figures.pause_ms_max = figures.pause_ms_max.max(ms(longest));
        }
        let watchers: u64 = seen.iter().map(|seen| seen.connections.saturating_sub(1)).sum();
        let mut trouble: Vec<String> = notes
            .iter()
            .flat_map(|notes| notes.trouble.iter())
            .chain(seen.iter().flat_map(|seen| seen.trouble.iter()))
            .cloned()
            .collect();
        trouble.sort_unstable();
        trouble.dedup();
        Report {
            faults: by_kind,
            faults_total: faults.len(),
            pause_ms_max: pauses.iter().map(|pause| ms(pause.until - pause.from)).max().unwrap_or(0),
            clients_died: notes.iter().map(|notes| notes.died).sum(),
            reconnects: watchers + notes.iter().map(|notes| notes.reconnects).sum::<u64>(),
            trouble,
            verdict,
            controls,
            ..Report::default()
        }
    }

    /// Nothing was broken, and it would have been found.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.verdict.holds() && self.verdict.acked > 0 && self.controls.hold()
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let verdict = &self.verdict;
        let mut lines = vec![
            self.command.clone(),
            String::new(),
            format!("{:<40} {:>6} {:>24}", "fault", "count", "longest pause of writing"),
        ];
        for (label, figures) in &self.faults {
            lines.push(format!("{label:<40} {:>6} {:>21} ms", figures.count, figures.pause_ms_max));
        }
        lines.push(format!("{:<40} {:>6} {:>21} ms", "all", self.faults_total, self.pause_ms_max));
        lines.push(String::new());
        let mut say = |what: &str, value: String| lines.push(format!("{what:<40} {value}"));
        say("changes sent", verdict.sent.to_string());
        say("changes acknowledged", verdict.acked.to_string());
        say("changes refused", verdict.refused.to_string());
        say(
            "outcomes that died with their client",
            format!(
                "{}, of which {} are in the log",
                verdict.unknown_logged + verdict.unknown_absent,
                verdict.unknown_logged
            ),
        );
        say("rows of the log", verdict.rows.to_string());
        say("appends, greatest epoch", format!("{}, {}", verdict.appends, verdict.epoch_max));
        say("entries delivered frame by frame", verdict.delivered.to_string());
        say("states compared with the log", verdict.states.to_string());
        say("clients that died, reconnects", format!("{}, {}", self.clients_died, self.reconnects));
        say("settled after the last fault", format!("{} ms", verdict.settled / 1000));
        say(
            "damage that the checker named",
            format!("{} of {}", self.controls.named, self.controls.named + self.controls.missed.len()),
        );
        for missed in &self.controls.missed {
            say("damage that it MISSED", missed.clone());
        }
        for without in &self.controls.without_place {
            say("damage without a place here", without.clone());
        }
        for ended in &self.ended_by_themselves {
            say("ended by itself", ended.clone());
        }
        for trouble in &self.trouble {
            say("trouble", trouble.clone());
        }
        say("violations", (verdict.violations.len() as u64 + verdict.violations_more).to_string());
        for violation in &verdict.violations {
            say("VIOLATION", violation.to_string());
        }
        say("elapsed", format!("{:.1} s", self.elapsed_s));
        lines.join("\n")
    }
}

/// Keeps a history, one event a line.
pub(super) fn write_history(path: &Path, history: &[Event]) -> anyhow::Result<()> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut out = BufWriter::new(file);
    for event in history {
        serde_json::to_writer(&mut out, event)?;
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

/// Checks a history that a drill kept, line by line.
///
/// # Errors
/// When the file cannot be read or a line is no event.
pub fn check_file(path: &Path, options: Options) -> anyhow::Result<Verdict> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut checker = Checker::new(options);
    for (number, line) in (1..).zip(BufReader::new(file).lines()) {
        let event: Event = serde_json::from_str(&line?)
            .with_context(|| format!("line {number} of {} is no event", path.display()))?;
        checker.take(&event);
    }
    Ok(checker.finish())
}
