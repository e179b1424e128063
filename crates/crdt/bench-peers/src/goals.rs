//! The table at the end: each goal of the engine beside the best peer of this very run.

use crate::measure::{Results, Row};
use crate::peers::ALL;

const OURS: &str = "manyhands";

/// The bound that must hold.
enum Must {
    /// At most this many times the best peer of this run.
    Ratio(f64),
    /// At most this, whatever the peers do.
    AtMost(f64),
    /// A bound on more than what is measured here; said, not judged.
    Elsewhere(&'static str),
}
use Must::{AtMost, Elsewhere, Ratio};

struct Goal<'a> {
    what: &'a str,
    unit: &'a str,
    /// The unit is this many times the one that was measured.
    scale: f64,
    /// More than one: their geometric mean, or the mean where zero is possible.
    cases: Vec<&'a str>,
    metric: &'a str,
    /// What of ours stands beside the peers' metric, when it is not the same.
    ours: &'a str,
    must: Must,
}

pub fn print(r: &Results, sequential: &[&str]) {
    let paper = || vec!["automerge-paper"];
    let goal = |what, unit, scale, cases, metric, must| Goal {
        what,
        unit,
        scale,
        cases,
        metric,
        ours: metric,
        must,
    };
    let remote = |what, case| goal(what, "ns", 1.0, vec![case], "remote", Ratio(1.0));
    let goals = vec![
        goal("remote, sequential", "ns", 1.0, sequential.to_vec(), "remote", Ratio(1.0)),
        Goal {
            ours: "remote, patches",
            ..goal("  with patches for a view", "ns", 1.0, sequential.to_vec(), "remote", Ratio(1.0))
        },
        Goal {
            ours: "admit",
            ..goal("  admitted, with the hash", "ns", 1.0, sequential.to_vec(), "remote", Ratio(1.0))
        },
        goal("remote p99", "ns", 1.0, sequential.to_vec(), "remote p99", Ratio(1.0)),
        goal("allocations a remote op", "", 1.0, sequential.to_vec(), "allocs", AtMost(0.1)),
        goal("local + encode", "ns", 1.0, sequential.to_vec(), "local+encode", Ratio(1.0)),
        goal("load and first edit", "us", 1.0, sequential.to_vec(), "load+edit", Ratio(1.0)),
        goal("heap, loaded and edited", "KB", 1e3, sequential.to_vec(), "heap", AtMost(806.0)),
        goal("heap, idle document", "KB", 1e3, sequential.to_vec(), "heap idle", AtMost(285.0)),
        goal("record of an update, automerge-paper", "B", 1.0, paper(), "wire", Elsewhere("in a frame")),
        goal("  as a message to a reader", "B", 1.0, paper(), "frame down", AtMost(13.9)),
        goal("  ten in a message to a reader", "B", 1.0, paper(), "frame down x10", AtMost(13.9)),
        goal("  as a message to the server", "B", 1.0, paper(), "frame up", Elsewhere("")),
        goal("saved, automerge-paper", "KB", 1e3, paper(), "save size", AtMost(106.0)),
        remote("remote, friendsforever", "friendsforever"),
        remote("remote, clownschool", "clownschool"),
        remote("one spot, forwards, 10 × 1,000", "same-spot-10x1000"),
        remote("one spot, backwards, 10 × 1,000", "same-spot-back-10x1000"),
        remote("one spot, forwards, 50 × 200", "same-spot-50x200"),
        remote("one spot, backwards, 50 × 200", "same-spot-back-50x200"),
        remote("one spot, 2,000 replicas, a key each", "same-spot-2000x1"),
        goal("random inserts into 1,000,000", "ns", 1.0, vec!["random-1M-20k"], "remote", Ratio(0.6)),
        goal("offline branch of 10,000 keys", "us", 1.0, vec!["offline-10k"], "merge branch", Ratio(1.0)),
        goal("offline branch of 100,000 keys", "us", 1.0, vec!["offline-100k"], "merge branch", Ratio(1.0)),
        goal(
            "each of 1,000 branches of 20 keys",
            "us",
            1.0,
            vec!["offline-1000x20"],
            "merge branch",
            Ratio(1.0),
        ),
        goal("200,000 insert-delete pairs, heap", "KB", 1e3, vec!["pairs-200k"], "heap live", AtMost(64.0)),
        goal("50,000 prepends, heap", "KB", 1e3, vec!["prepend-50k"], "heap live", AtMost(2_000.0)),
    ];
    header(&["what", "unit", OURS, "best peer", "ratio", "must", "met"], 2);
    for goal in &goals {
        line(r, goal);
    }
    println!(
        "\nMeans over {} sequential traces. {}\n\
         (i) runs of different writers are interleaved; (p) given up, mean of what was done.\n\
         The first row is `replay`: like the peers it makes no patches for a view; `receive` makes them, and a server's\n\
         `apply` hashes, which no peer but automerge does. The record of an update is without the frame around it; as\n\
         a message it has all of it: ours the protobuf frame with its chain hash, yrs y-protocols, the others, which have no\n\
         protocol, the WebSocket header alone.",
        sequential.len(),
        if r.quick { "A quick run: some engines are left out of some rows." } else { "" }
    );
    for (metric, unit) in [
        ("remote", "ns"),
        ("remote p99", "ns"),
        ("bulk", "ns"),
        ("local+encode", "ns"),
        ("allocs", "1/op"),
        ("wire", "B/op"),
        ("frame down", "B/op"),
        ("frame down x10", "B/op"),
        ("frame up", "B/op"),
        ("frame up x10", "B/op"),
        ("save size", "B"),
        ("load", "us"),
        ("load+edit", "us"),
        ("save", "us"),
        ("heap", "B"),
        ("heap live", "B"),
        ("heap idle", "B"),
        ("merge branch", "us"),
        ("branch size", "B"),
        ("remote, patches", "ns"),
        ("admit", "ns"),
    ] {
        detail(r, metric, unit);
    }
}

fn header(columns: &[&str], left: usize) {
    println!("\n| {} |", columns.join(" | "));
    println!("|{}{}", "---|".repeat(left), "---:|".repeat(columns.len() - left));
}

/// The mean over the cases, when the engine has all of them; and what is to be said of it.
fn mean<'r>(r: &'r Results, goal: &Goal<'_>, peer: &str) -> Option<(f64, &'r str)> {
    let metric = if peer == OURS { goal.ours } else { goal.metric };
    let rows: Option<Vec<&Row>> = goal.cases.iter().map(|case| r.get(case, peer, metric)).collect();
    let rows = rows?;
    let n = rows.len() as f64;
    let note = rows.iter().map(|row| row.note).find(|note| !note.is_empty()).unwrap_or("");
    let value = if goal.metric == "allocs" {
        rows.iter().map(|row| row.median).sum::<f64>() / n
    } else {
        (rows.iter().map(|row| row.median.ln()).sum::<f64>() / n).exp()
    };
    Some((value / goal.scale, note))
}

fn line(r: &Results, goal: &Goal<'_>) {
    let best = ALL
        .iter()
        .filter(|peer| **peer != OURS)
        .filter_map(|peer| mean(r, goal, peer).map(|(value, note)| (value, note, *peer)))
        .min_by(|a, b| a.0.total_cmp(&b.0));
    let bound = match (&goal.must, best) {
        (AtMost(bound), _) => Some(*bound),
        (Ratio(ratio), Some((value, ..))) => Some(ratio * value),
        (Ratio(_), None) | (Elsewhere(_), _) => None,
    };
    let must = match &goal.must {
        AtMost(bound) => format!("≤ {}", short(*bound)),
        Ratio(ratio) => format!("≤ {ratio:.1} ×"),
        Elsewhere(words) => (*words).to_owned(),
    };
    let peer =
        best.map_or("–".into(), |(value, note, peer)| format!("{}{} ({peer})", short(value), mark(note)));
    let (ours, ratio, met) = match mean(r, goal, OURS) {
        Some((value, note)) => (
            format!("{}{}", short(value), mark(note)),
            best.map_or("–".into(), |(best, ..)| format!("{:.2}", value / best)),
            match bound {
                Some(bound) if note.is_empty() && value <= bound => "yes",
                Some(_) => "NO",
                None => "–",
            },
        ),
        None => ("–".into(), "–".into(), "–"),
    };
    println!("| {} | {} | {ours} | {peer} | {ratio} | {must} | {met} |", goal.what, goal.unit);
}

/// Everything of one metric, a line a case.
fn detail(r: &Results, metric: &str, unit: &str) {
    let mut cases: Vec<&str> = Vec::new();
    for row in r.rows.iter().filter(|row| row.metric == metric) {
        if !cases.contains(&row.case.as_str()) {
            cases.push(&row.case);
        }
    }
    let peers: Vec<&str> = ALL
        .iter()
        .copied()
        .filter(|peer| cases.iter().any(|case| r.get(case, peer, metric).is_some()))
        .collect();
    if peers.is_empty() {
        return;
    }
    let title = format!("{metric}, {unit}");
    header(&[&[title.as_str()][..], &peers].concat(), 1);
    for case in cases {
        let cells: Vec<String> = peers
            .iter()
            .map(|peer| {
                r.get(case, peer, metric)
                    .map_or(String::new(), |row| format!("{}{}", short(row.median), mark(row.note)))
            })
            .collect();
        println!("| {case} | {} |", cells.join(" | "));
    }
}

fn mark(note: &str) -> &'static str {
    match note {
        "INTERLEAVED" => " (i)",
        "partial" => " (p)",
        _ => "",
    }
}

fn short(x: f64) -> String {
    if x < 100.0 && x != x.trunc() {
        return format!("{x:.2}");
    }
    let digits = format!("{x:.0}");
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
