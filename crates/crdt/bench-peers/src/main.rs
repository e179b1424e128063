//! Measures `manyhands-crdt` beside other sequence CRDTs, in one run on the same edits, and prints each goal with
//! the best peer of its row. `README.md` says how.

mod alloc;
mod cases;
mod framing;
mod goals;
mod measure;
mod peer;
mod peers;
mod trace;

use measure::Results;
use peer::Peer;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use trace::Trace;

#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

const SEQUENTIAL: &[&str] = &[
    "automerge-paper",
    "seph-blog1",
    "rustcode",
    "sveltecomponent",
    "json-crdt-patch",
    "json-crdt-blog-post",
    "friendsforever_flat",
    "clownschool_flat",
];
/// The sequential traces of a quick run.
const QUICK: &[&str] = &["automerge-paper", "sveltecomponent", "json-crdt-blog-post"];
const CONCURRENT: &[&str] = &["friendsforever", "clownschool"];

const USAGE: &str =
    "usage: bench-peers [--quick] [--traces FOLDER] [--peers a,b] [--sets sequential,concurrent,path]";

struct Args {
    quick: bool,
    traces: PathBuf,
    peers: Vec<String>,
    sets: Vec<String>,
}

fn args() -> Option<Args> {
    let list = |value: &str| value.split(',').map(str::to_owned).collect::<Vec<_>>();
    let mut args = Args {
        quick: false,
        traces: Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../../shared/traces"),
        peers: peers::ALL.iter().map(|name| (*name).to_owned()).collect(),
        sets: list("sequential,concurrent,path"),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--quick" => args.quick = true,
            "--traces" => args.traces = words.next()?.into(),
            "--peers" => args.peers = list(&words.next()?),
            "--sets" => args.sets = list(&words.next()?),
            _ => return None,
        }
    }
    let known = args.peers.iter().all(|name| peers::ALL.contains(&name.as_str()));
    known.then_some(args)
}

struct Traces {
    sequential: Vec<(String, Trace)>,
    concurrent: Vec<(String, Trace)>,
}

/// Reads them all first, so that a missing one is said before an hour of measuring.
fn read(args: &Args) -> Result<Traces, String> {
    let read = |folder: &str, names: &[&str]| -> Result<Vec<(String, Trace)>, String> {
        names
            .iter()
            .map(|name| {
                let path = args.traces.join(folder).join(format!("{name}.json.gz"));
                let trace = Trace::load(&path).map_err(|error| {
                    format!(
                        "no trace at {}: {error}\nThe traces are those of josephg/editing-traces, sorted into sequential/ \
                         and concurrent/; say where they lie with TRACES=folder (or --traces folder).",
                        path.display()
                    )
                })?;
                Ok(((*name).to_owned(), trace))
            })
            .collect()
    };
    Ok(Traces {
        sequential: read("sequential", if args.quick { QUICK } else { SEQUENTIAL })?,
        concurrent: read("concurrent", CONCURRENT)?,
    })
}

fn version<P: Peer>() {
    println!("{:<14} {}", P::NAME, P::VERSION);
}

fn measure<P: Peer>(r: &mut Results, traces: &Traces, sets: &[String]) {
    r.peer = P::NAME;
    let set = |name: &str| sets.iter().any(|set| set == name);
    if set("sequential") {
        for (name, trace) in &traces.sequential {
            r.case.clone_from(name);
            cases::sequential::<P>(r, trace);
        }
    }
    if set("concurrent") {
        for (name, trace) in &traces.concurrent {
            r.case.clone_from(name);
            cases::concurrent::<P>(r, trace);
        }
    }
    if set("path") {
        // The first trace is automerge-paper.
        cases::pathological::<P>(r, &traces.sequential[0].1);
    }
}

fn main() -> ExitCode {
    let Some(args) = args() else {
        eprintln!("{USAGE}\npeers: {}", peers::ALL.join(", "));
        return ExitCode::FAILURE;
    };
    let traces = match read(&args) {
        Ok(traces) => traces,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::FAILURE;
        }
    };
    for name in &args.peers {
        dispatch!(name.as_str(), version);
    }
    println!();
    let mut results = Results { rows: Vec::new(), quick: args.quick, case: String::new(), peer: "" };
    for name in &args.peers {
        dispatch!(name.as_str(), measure, &mut results, &traces, &args.sets);
    }
    let sequential: Vec<&str> = traces.sequential.iter().map(|(name, _)| name.as_str()).collect();
    goals::print(&results, &sequential);
    ExitCode::SUCCESS
}
