//! Random histories. A failure names its seed and a history that is as small as it could be made.
//!
//! `SEED=17 HISTORIES=1 cargo test -p manyhands-crdt --lib random_histories` runs one of them again, and
//! `HISTORY='2: 0i0:a 1h1.0'` one that was printed.

use std::cell::RefCell;
use std::env;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once};
use std::thread;

use super::history::{Action, History, Step};
use super::shrink::shrink;
use super::world::{Options, Seen, run};

const HISTORIES: u64 = 100_000;

fn number(name: &str) -> Option<u64> {
    let value = env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is a number, not {value}")))
}

thread_local! {
    /// Set while a panic is expected and told by the report: the last of them.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// What went wrong, if anything did. Says nothing itself: shrinking panics hundreds of times.
fn failure(history: &History, options: Options) -> Result<Seen, String> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let loud = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            let expected = PANIC.with_borrow_mut(|last| {
                if let Some(last) = last {
                    *last = panic.to_string();
                }
                last.is_some()
            });
            if !expected {
                loud(panic);
            }
        }));
    });
    PANIC.set(Some(String::new()));
    let result = panic::catch_unwind(AssertUnwindSafe(|| run(history, options)));
    let message = PANIC.take().unwrap_or_default();
    result.map_err(|_| message)
}

/// Shrinks a failing history and says all that is needed to see it again.
fn report(seed: u64, history: &History, options: Options, message: &str) -> String {
    let small = shrink(history, |smaller| failure(smaller, options).is_err());
    let last = failure(&small, options).err().unwrap_or_default();
    format!(
        "seed {seed}: {message}\nagain: SEED={seed} HISTORIES=1 cargo test -p manyhands-crdt --lib random_histories\n\
         smaller: HISTORY='{small}'\nwhich says: {last}"
    )
}

/// Runs histories on all cores; the first failure, if there is one.
fn many(first: u64, count: u64, options: Options) -> Result<Seen, String> {
    let next = AtomicU64::new(first);
    let total = Mutex::new(Seen::default());
    let failed: Mutex<Option<(u64, String)>> = Mutex::new(None);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                let mut seen = Seen::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count || failed.lock().unwrap().is_some() {
                        break;
                    }
                    match failure(&History::random(seed, options.forged), options) {
                        Ok(one) => seen.add(&one),
                        Err(message) => {
                            failed.lock().unwrap().get_or_insert((seed, message));
                        }
                    }
                }
                total.lock().unwrap().add(&seen);
            });
        }
    });
    match failed.into_inner().unwrap() {
        Some((seed, message)) => Err(report(seed, &History::random(seed, options.forged), options, &message)),
        None => Ok(total.into_inner().unwrap()),
    }
}

// enforces: I-5
#[test]
fn forged_origins_converge_as_the_list_has_them() {
    let options = Options { forged: 40, ..Options::default() };
    many(0, 10_000, options).unwrap_or_else(|report| panic!("{report}"));
}

// enforces: I-5
#[test]
fn random_histories_agree_with_the_list_and_converge() {
    if let Ok(line) = env::var("HISTORY") {
        let history = History::parse(&line).expect("a history as it was printed");
        run(&history, Options::default());
        return;
    }
    let first = number("SEED").unwrap_or(0);
    let count = number("HISTORIES").unwrap_or(HISTORIES);
    let seen = many(first, count, Options::default()).unwrap_or_else(|report| panic!("{report}"));
    let share = seen.contested * 100 / seen.inserts.max(1);
    println!(
        "{count} histories: {} ops by their authors, {} checks, {} times saved and loaded; {} of {} insertions, {share} %, had \
         a rival at the same place",
        seen.ops, seen.checks, seen.saves, seen.contested, seen.inserts
    );
    if count >= 1_000 {
        assert!(share >= 30, "the histories are too tame: {share} % of the insertions have a rival");
    }
}

#[test]
fn a_wrong_order_is_found_and_cut_down_to_what_shows_it() {
    let report = many(0, 1_000, Options { wrong_ties: true, ..Options::default() });
    let report = report.map(drop).unwrap_err();
    println!("{report}");
    let line = report.split('\'').nth(1).expect("the report has a history to run again");
    let small = History::parse(line).expect("a history as it was printed");
    assert!(failure(&small, Options { wrong_ties: true, ..Options::default() }).is_err());
    failure(&small, Options::default()).expect("without the planted mistake it is a good one");
    // Two people at one spot.
    let edits = small.steps.iter().filter(|step| matches!(step, Step::Edit { .. })).count();
    assert!(edits <= 2 && small.steps.len() <= 3, "{line}");
}

#[test]
fn histories_are_read_as_they_are_written() {
    for seed in 0..500 {
        let history = History::random(seed, 20);
        assert_eq!(History::parse(&history.to_string()), Some(history));
    }
    let insert = Action::Insert { container: 1, at: 50, letters: vec![0, 6] };
    let delete = Action::Delete { container: 0, at: 0, len: 2 };
    let steps = vec![
        Step::Edit { peer: 0, actions: vec![insert, delete] },
        Step::Hear { peer: 1, count: 4, pick: 17 },
    ];
    assert_eq!(History::parse("3: 0I50:a_,d0:2 1h4.17"), Some(History { peers: 3, steps }));
    assert_eq!(History::parse("7: 0h1.0"), None);
}
