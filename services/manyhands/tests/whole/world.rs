//! The program as a process: started on a free port, killed, started again on the same data.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use manyhands_client::{Client, ClientOptions, Workspace};

/// The program under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_manyhands");

/// How long anything may take before the test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Runs a command to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// What a command that must fail said, on standard error.
pub(crate) fn failure(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(!output.status.success(), "{arguments:?} should have failed");
    String::from_utf8(output.stderr).unwrap()
}

/// A token of the development secret.
pub(crate) fn token(arguments: &[&str]) -> String {
    let output = run(&[&["token", "create"], arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// `manyhands dev`, killed with this value.
pub(crate) struct Dev {
    child: Child,
    address: SocketAddr,
    /// The last thing that it says.
    last_words: JoinHandle<String>,
}

impl Dev {
    /// Starts it and waits for its banner, which names the address.
    pub(crate) fn start(data: &Path, listen: &str) -> Dev {
        Dev::launch(Command::new(BINARY), data, listen)
    }

    /// The same on a disk on which no file grows beyond so many kilobytes.
    pub(crate) fn start_on_small_disk(data: &Path, listen: &str, kilobytes: u32) -> Dev {
        let mut shell = Command::new("sh");
        // What would end the process is ignored, so that the write fails, as it does on a full disk.
        let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", 2 * kilobytes);
        shell.args(["-c", &script, BINARY]);
        Dev::launch(shell, data, listen)
    }

    /// The same with more settings, as the environment names them.
    pub(crate) fn start_with(data: &Path, listen: &str, settings: Vec<(String, String)>) -> Dev {
        let mut command = Command::new(BINARY);
        command.envs(settings);
        Dev::launch(command, data, listen)
    }

    fn launch(mut command: Command, data: &Path, listen: &str) -> Dev {
        let mut child = command
            .args(["dev", "--listen", listen, "--data"])
            .arg(data)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = Vec::new();
        let address = loop {
            let line = lines.next().unwrap_or_else(|| panic!("it ended: {said:?}")).unwrap();
            if let Some(url) = line.trim().strip_prefix("WebSocket   ws://") {
                break url.split('/').next().unwrap().parse().unwrap();
            }
            said.push(line);
        };
        // What it logs later must not fill the pipe.
        let last_words = std::thread::spawn(move || lines.map_while(Result::ok).last().unwrap_or_default());
        Dev { child, address, last_words }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it has ended by itself. Gives its status and the last thing that it said.
    pub(crate) fn ended(mut self) -> (ExitStatus, String) {
        let status = self.child.wait().unwrap();
        let last_words = std::mem::replace(&mut self.last_words, std::thread::spawn(String::new));
        (status, last_words.join().unwrap())
    }

    /// Asks it to leave, as a terminal does, and returns whether it left well.
    pub(crate) fn leave(mut self) -> bool {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        self.child.wait().unwrap().success()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client of an edge, with a token for every workspace.
pub(crate) fn client(urls: &[String], secret_file: Option<&Path>) -> Client {
    let mut arguments = vec!["--workspace", "*", "--subject", "ada"];
    let secret_file = secret_file.map(|path| path.to_str().unwrap().to_owned());
    if let Some(path) = &secret_file {
        arguments.extend(["--secret-file", path]);
    }
    let mut options = ClientOptions::new(urls[0].parse().unwrap(), token(&arguments));
    for url in &urls[1..] {
        options = options.or_url(url.parse().unwrap());
    }
    Client::connect(options)
}

/// The text that everybody writes.
pub(crate) fn text(workspace: &Workspace) -> String {
    workspace.text("main").to_string()
}

/// Waits until a workspace shows what it should.
pub(crate) async fn until(workspace: &Workspace, what: impl Fn(&str) -> bool) {
    let mut changes = workspace.changes();
    let waiting = async {
        while !what(&text(workspace)) {
            changes.changed().await.unwrap();
        }
    };
    if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
        panic!("it still shows {:?}", text(workspace));
    }
}

/// Waits until everything written is durable.
pub(crate) async fn saved(workspace: &Workspace) {
    tokio::time::timeout(PATIENCE, workspace.saved()).await.expect("saved in time").unwrap();
}
