//! What signals do to a process, tried on a process of its own: this test run again as its own child.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use manyhands_process::shutdown::Shutdown;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Set in the child, to what it holds.
const HOLDS: &str = "SIGNALS_TEST_HOLDS";

/// What the process under test does: says where it is, and holds its drain open or not.
fn process(holds: bool) {
    let say = |text: &str| {
        println!("{text}");
        std::io::stdout().flush().unwrap();
    };
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let shutdown = Shutdown::new(Duration::from_secs(600));
        let hold = holds.then(|| shutdown.hold("forever"));
        shutdown.run_on_signals().unwrap();
        say("running");
        shutdown.draining().await;
        say("draining");
        shutdown.stopping().await;
        say("stopped");
        drop(hold);
    });
    std::process::exit(0);
}

struct Process {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Process {
    fn start(test: &str, holds: bool) -> Process {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(HOLDS, holds.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Process { child, lines }
    }

    /// Waits for a line; those of the test harness are passed over.
    fn says(&mut self, text: &str) {
        // The harness ends its own line only after the test.
        assert!(self.lines.any(|line| line.unwrap().ends_with(text)), "it ended without saying {text}");
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    fn status(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

/// In the child: is the process under test and does not return.
fn child() {
    if let Ok(holds) = std::env::var(HOLDS) {
        process(holds == "true");
    }
}

#[test]
fn a_signal_drains_then_stops() {
    child();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut process = Process::start("a_signal_drains_then_stops", false);
        process.says("running");
        process.signal(signal);
        process.says("draining");
        process.says("stopped");
        assert_eq!(process.status(), Some(0));
    }
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    child();
    for (second, status) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        let mut process = Process::start("a_second_signal_ends_the_process_at_once", true);
        process.says("running");
        process.signal(Signal::SIGTERM);
        process.says("draining");
        process.signal(second);
        assert_eq!(process.status(), Some(status));
    }
}
