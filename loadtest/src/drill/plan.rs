//! Which faults are made when: from a seed, and nothing else.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::proxy::{Mode, Way};

/// What can be hurt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    /// Processes: their kind and their name.
    pub processes: Vec<(&'static str, String)>,
    /// Links: their kind and their name.
    pub links: Vec<(&'static str, String)>,
}

/// How hard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// How long one fault lasts at most.
    pub lasts_max: Duration,
    /// How long a process stands still at most.
    pub pause_max: Duration,
    /// Time between the end of one fault and the start of the next, at most.
    pub gap_max: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            lasts_max: Duration::from_secs(4),
            pause_max: Duration::from_secs(6),
            gap_max: Duration::from_millis(1_500),
        }
    }
}

/// What is done to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// SIGKILL, and started again.
    Kill,
    /// Ended in order, and started again.
    Restart,
    /// SIGSTOP and SIGCONT.
    Pause,
    /// A link in another mode.
    Link(Mode),
    /// Every connection of a link is cut; new ones are taken.
    Cut,
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// When it begins, from the start of the run.
    pub at: Duration,
    /// How long it lasts.
    pub lasts: Duration,
    /// To what: the kind.
    pub kind: &'static str,
    /// To what: the name.
    pub target: String,
    /// What is done.
    pub harm: Harm,
}

impl Fault {
    /// What faults are counted by.
    #[must_use]
    pub fn label(&self) -> String {
        format!("{}: {}", self.kind, self.harm)
    }
}

impl fmt::Display for Harm {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Harm::Kill => "killed",
            Harm::Restart => "restarted",
            Harm::Pause => "paused",
            Harm::Cut => "cut",
            Harm::Link(mode) if mode.half_open => "half open",
            Harm::Link(Mode { swallow: Some(Way::Up), .. }) => "cut upwards",
            Harm::Link(Mode { swallow: Some(Way::Down), .. }) => "cut downwards",
            Harm::Link(mode) if mode.cut_after.is_some() => "cut after some bytes",
            Harm::Link(mode) if mode.hold => "held",
            Harm::Link(mode) if mode.refuse => "refused",
            Harm::Link(_) => "slow",
        })
    }
}

/// The faults of a run of this length, in the order in which they begin. Two that overlap never have the same
/// target, and none goes beyond the end.
#[must_use]
pub fn plan(seed: u64, length: Duration, targets: &Targets, pace: &Pace) -> Vec<Fault> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut free_at: BTreeMap<String, Duration> = BTreeMap::new();
    let mut faults = Vec::new();
    // So that there is something to hurt.
    let mut at = Duration::from_millis(500);
    loop {
        let fault = draw(&mut random, at, targets, pace);
        let Some(fault) = fault else { return faults };
        let end = fault.at + fault.lasts;
        if end > length {
            return faults;
        }
        let gap = below(&mut random, pace.gap_max);
        let overlaps = random.random_bool(0.2);
        let free = free_at.get(&fault.target).is_none_or(|free| *free <= at);
        if free {
            free_at.insert(fault.target.clone(), end + Duration::from_millis(200));
            at = if overlaps { at + fault.lasts / 2 } else { end + gap };
            faults.push(fault);
        } else {
            at += gap;
        }
    }
}

fn draw(random: &mut StdRng, at: Duration, targets: &Targets, pace: &Pace) -> Option<Fault> {
    let of_process = targets.links.is_empty() || random.random_bool(0.5);
    let kinds = if of_process { &targets.processes } else { &targets.links };
    // First a kind, then one of them: what there are more of is not hurt more.
    let mut names: Vec<&'static str> = kinds.iter().map(|(kind, _)| *kind).collect();
    names.dedup();
    let kind = *names.choose(random)?;
    let of_kind: Vec<&String> =
        kinds.iter().filter(|(other, _)| *other == kind).map(|(_, name)| name).collect();
    let target = (*of_kind.choose(random)?).clone();
    let (harm, lasts_max) = match of_process {
        true => match random.random_range(0..5) {
            0 | 1 => (Harm::Kill, pace.lasts_max / 4),
            2 => (Harm::Restart, pace.lasts_max / 8),
            _ => (Harm::Pause, pace.pause_max),
        },
        false => (harm_of_link(random), pace.lasts_max),
    };
    let lasts = if harm == Harm::Cut { Duration::ZERO } else { below(random, lasts_max) };
    Some(Fault { at, lasts, kind, target, harm })
}

fn harm_of_link(random: &mut StdRng) -> Harm {
    let mode = Mode::default();
    match random.random_range(0..8) {
        0 => Harm::Link(Mode { latency: Duration::from_millis(random.random_range(5..200)), ..mode }),
        1 => Harm::Link(Mode { hold: true, ..mode }),
        2 => Harm::Link(Mode { swallow: Some(Way::Up), ..mode }),
        3 => Harm::Link(Mode { swallow: Some(Way::Down), ..mode }),
        4 => Harm::Link(Mode { half_open: true, ..mode }),
        5 => Harm::Link(Mode { cut_after: Some(random.random_range(1..20_000)), ..mode }),
        6 => Harm::Link(Mode { refuse: true, ..mode }),
        _ => Harm::Cut,
    }
}

/// A duration from a tenth of a limit up to it.
fn below(random: &mut StdRng, limit: Duration) -> Duration {
    limit.mul_f64(random.random_range(0.1..=1.0))
}

/// A time in which some writer waited for an acknowledgement, and when it began and ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    /// From then.
    pub from: Duration,
    /// Until then.
    pub until: Duration,
}

/// For each fault, by when it really began and ended, the longest pause that it is held responsible for: of those
/// that were on during a pause, the one that began closest to the pause's own beginning; if none was on, the one
/// that had ended last.
#[must_use]
pub fn longest_pauses(faults: &[(Duration, Duration)], pauses: &[Pause]) -> Vec<Duration> {
    let mut longest = vec![Duration::ZERO; faults.len()];
    for pause in pauses {
        let on = (0..faults.len())
            .filter(|&fault| faults[fault].0 <= pause.until && faults[fault].1 >= pause.from)
            .min_by_key(|&fault| faults[fault].0.abs_diff(pause.from));
        // A process that is back has still to take up its work.
        let before = || faults.iter().rposition(|(_, until)| *until <= pause.from);
        if let Some(fault) = on.or_else(before) {
            longest[fault] = longest[fault].max(pause.until.saturating_sub(pause.from));
        }
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets() -> Targets {
        let named =
            |kind, names: &[&str]| names.iter().map(|name| (kind, (*name).to_owned())).collect::<Vec<_>>();
        Targets {
            processes: [named("edge", &["edge-0", "edge-1"]), named("nats", &["nats"])].concat(),
            links: named("edge to nats", &["edge-0 to nats", "edge-1 to nats"]),
        }
    }

    // enforces: I-11
    #[test]
    fn a_seed_is_a_plan() {
        let length = Duration::from_secs(300);
        let planned = |seed| plan(seed, length, &targets(), &Pace::default());
        assert_eq!(planned(7), planned(7));
        assert_ne!(planned(7), planned(8));
    }

    #[test]
    fn a_plan_hurts_everything_in_every_way_and_nothing_twice_at_once() {
        let length = Duration::from_secs(3_000);
        let faults = plan(1, length, &targets(), &Pace::default());
        assert!(faults.len() > 600, "{} faults", faults.len());
        let mut labels: Vec<String> = faults.iter().map(Fault::label).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), 2 * 3 + 8, "{labels:?}");
        for (n, fault) in faults.iter().enumerate() {
            assert!(fault.at + fault.lasts <= length);
            let clash = faults[n + 1..]
                .iter()
                .any(|later| later.target == fault.target && later.at < fault.at + fault.lasts);
            assert!(!clash, "{fault:?}");
        }
    }

    #[test]
    fn a_pause_belongs_to_the_fault_that_began_with_it() {
        let at = Duration::from_secs;
        let faults = [(at(10), at(12)), (at(20), at(25)), (at(21), at(40))];
        let pause = |from, until| Pause { from: at(from), until: at(until) };
        let pauses = [pause(11, 15), pause(9, 11), pause(19, 22), pause(22, 30), pause(50, 51)];
        assert_eq!(longest_pauses(&faults, &pauses), [at(4), at(3), at(8)]);
        assert!(longest_pauses(&[], &pauses).is_empty());
    }
}
