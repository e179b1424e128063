//! `loadtest`: results on standard output, talk on standard error; the exit code says whether all was well.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use loadtest::cluster::{Cluster, Options, Record, Role};
use loadtest::drill::{self, Drill};
use loadtest::{checker, crowd::Crowd, probe::Probe, replay::Replay};
use serde::Serialize;

/// Drive a running system from outside, or run a cluster on this machine.
#[derive(Debug, Parser)]
#[command(name = "loadtest", version)]
struct Arguments {
    /// Print the result as JSON
    #[arg(long, global = true)]
    json: bool,
    /// Show no progress
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Type a recorded editing session through one or several clients while others watch
    Replay(Replay),
    /// Measure one keystroke from socket to socket
    Probe(Probe),
    /// Many connections over many documents at a fixed rate, every edit accounted for
    Crowd(Crowd),
    /// Kill processes and break links of a system of its own, and check that nothing that was promised is lost
    Drill(Drill),
    /// Check a history again that a drill kept
    Check {
        /// The drill's history.jsonl
        file: PathBuf,
    },
    /// Run Postgres, NATS, Redis, document nodes and edges on this machine
    Cluster {
        /// Directory of the cluster
        #[arg(long, global = true, default_value = ".manyhands")]
        dir: PathBuf,
        #[command(subcommand)]
        command: ClusterCommand,
    },
    /// Print the pid of the document node that owns a workspace
    Owner {
        /// Which workspace
        #[arg(long)]
        workspace: String,
        /// Directory of the cluster
        #[arg(long, default_value = ".manyhands")]
        dir: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Start it; addresses and pids are written to cluster.env
    Up {
        /// How many edges
        #[arg(long, default_value_t = 2)]
        edges: usize,
        /// How many document nodes
        #[arg(long, default_value_t = 2)]
        documents: usize,
        /// The manyhands program; by default the one next to this program
        #[arg(long)]
        binary: Option<PathBuf>,
    },
    /// End exactly what `up` started; data stays
    Down,
    /// Say what runs
    Status,
    /// Start one node again, whether it runs or was killed
    Restart {
        /// What it does
        #[arg(long)]
        role: Role,
        /// Its number
        #[arg(long, default_value_t = 0)]
        index: usize,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    match run(arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let Arguments { json, quiet, command } = arguments;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let bar = progress(quiet);
    match command {
        Command::Replay(replay) => {
            let report = runtime.block_on(replay.run(bar.clone()))?;
            bar.finish_and_clear();
            show(json, report.passed(), &report)
        }
        Command::Probe(probe) => {
            let report = runtime.block_on(probe.run(bar.clone()))?;
            bar.finish_and_clear();
            show(json, report.passed(), &report)
        }
        Command::Crowd(crowd) => {
            let report = runtime.block_on(crowd.run(bar.clone()))?;
            bar.finish_and_clear();
            show(json, report.passed(), &report)
        }
        Command::Drill(drill) => {
            let report = runtime.block_on(drill.run(bar.clone()))?;
            bar.finish_and_clear();
            if json {
                return show(json, report.passed(), &report);
            }
            println!("{}", report.text());
            println!("{}", if report.passed() { "passed" } else { "FAILED" });
            Ok(report.passed())
        }
        Command::Check { file } => {
            let verdict = drill::check_file(&file, checker::Options::default())?;
            show(json, verdict.holds(), &verdict)
        }
        Command::Cluster { dir, command } => cluster(command, dir, quiet).map(|()| true),
        Command::Owner { workspace, dir } => {
            let record = Record::read(&dir)?;
            let owner = runtime.block_on(record.owner(&workspace))?;
            println!("{}", owner.part.pid);
            Ok(true)
        }
    }
}

fn cluster(command: ClusterCommand, dir: PathBuf, quiet: bool) -> anyhow::Result<()> {
    match command {
        ClusterCommand::Up { edges, documents, binary } => {
            let binary = match binary {
                Some(binary) => binary,
                None => std::env::current_exe()?.with_file_name("manyhands"),
            };
            let options = Options { edges, documents, ..Options::new(&dir, binary) };
            let tell = |what: &str| {
                if !quiet {
                    eprintln!("starting {what}");
                }
            };
            let record = Cluster::start_telling(options, tell)?.detach()?;
            if !quiet {
                eprintln!("the cluster runs; {} says where", dir.join("cluster.env").display());
            }
            print!("{}", record.env());
            Ok(())
        }
        ClusterCommand::Down => Record::read(&dir)?.down(&dir),
        ClusterCommand::Status => {
            let record = Record::read(&dir)?;
            for part in [&record.postgres, &record.nats, &record.redis] {
                let state = if part.is_running() { "runs" } else { "gone" };
                println!("{:<12} {:>8} {state:<10} {}", part.name, part.pid, part.url);
            }
            for node in &record.nodes {
                let state = match (node.is_ready(), node.part.is_running()) {
                    (true, _) => "ready",
                    (false, true) => "not ready",
                    (false, false) => "gone",
                };
                println!("{:<12} {:>8} {state:<10} {}", node.part.name, node.part.pid, node.part.url);
            }
            Ok(())
        }
        ClusterCommand::Restart { role, index } => Record::read(&dir)?.restart(&dir, role, index),
    }
}

/// A progress bar on a terminal, nothing elsewhere.
fn progress(quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template("{msg:10} {wide_bar} {pos}/{len} {per_sec} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}

/// Prints a result, as JSON or as aligned lines.
fn show(json: bool, passed: bool, report: &impl Serialize) -> anyhow::Result<bool> {
    let value = serde_json::to_value(report)?;
    if json {
        println!("{value}");
        return Ok(passed);
    }
    for (key, value) in value.as_object().into_iter().flatten() {
        match value.as_object() {
            Some(times) => {
                let parts: Vec<String> =
                    times.iter().map(|(name, value)| format!("{name} {value}")).collect();
                println!("{key:<24} {}", parts.join("  "));
            }
            None => println!("{key:<24} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned)),
        }
    }
    println!("{}", if passed { "passed" } else { "FAILED" });
    Ok(passed)
}
