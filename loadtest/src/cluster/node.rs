//! One document node or edge as a process.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::Options;
use super::record::Part;

/// How often a condition outside of this process is looked at.
pub(super) const LOOK_EACH: Duration = Duration::from_millis(10);
/// Ports below those that the kernel gives to outgoing connections, so that nobody takes the port of a node
/// while it is down.
const PORTS: std::ops::Range<u16> = 12_000..32_000;
/// Bytes of a node's log that an error shows.
const LOG_TAIL_BYTES: usize = 2_000;

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Owns partitions and writes the log.
    Document,
    /// Holds the sockets.
    Edge,
}

impl Role {
    /// The subcommand and the start of file names.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Role::Document => "document",
            Role::Edge => "edge",
        }
    }
}

/// A node; its process is killed with this value.
pub struct Node {
    role: Role,
    name: String,
    binary: PathBuf,
    config: PathBuf,
    log: PathBuf,
    /// WebSockets of an edge, gRPC of a document node.
    listen: SocketAddr,
    /// Probes and metrics; an edge answers them where it listens.
    health: SocketAddr,
    environment: Vec<(String, String)>,
    child: Option<Child>,
}

impl Node {
    pub(super) fn new(role: Role, index: usize, options: &Options) -> anyhow::Result<Node> {
        let name = format!("{}-{index}", role.name());
        let listen = free_address()?;
        let health = match role {
            Role::Document => free_address()?,
            Role::Edge => listen,
        };
        Ok(Node {
            role,
            binary: options.binary.clone(),
            config: options.dir.join(format!("{name}.toml")),
            log: options.dir.join("logs").join(format!("{name}.log")),
            listen,
            health,
            name,
            environment: options.environment.clone(),
            child: None,
        })
    }

    /// What it does.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// Its name, such as `edge-0`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it takes what its role takes.
    #[must_use]
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Where it answers probes.
    #[must_use]
    pub fn health(&self) -> SocketAddr {
        self.health
    }

    /// The address of an edge for clients.
    #[must_use]
    pub fn url(&self) -> String {
        format!("ws://{}", self.listen)
    }

    /// The address of a document node for edges.
    #[must_use]
    pub fn rpc_url(&self) -> String {
        format!("http://{}", self.listen)
    }

    pub(super) fn config_path(&self) -> &Path {
        &self.config
    }

    pub(super) fn write_config(&self, text: &str) -> anyhow::Result<()> {
        fs::write(&self.config, text).with_context(|| format!("cannot write {}", self.config.display()))
    }

    /// Its process; 0 when it does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Starts it, on the same addresses as before, and does not wait until it is ready.
    pub fn start(&mut self) -> anyhow::Result<()> {
        self.kill();
        self.child = Some(spawn(&self.binary, self.role, &self.config, &self.log, &self.environment)?);
        Ok(())
    }

    /// Waits until its `/readyz` says yes.
    pub fn wait_ready(&mut self, within: Duration) -> anyhow::Result<()> {
        let since = Instant::now();
        while !is_ready(self.health) {
            let Some(child) = &mut self.child else { bail!("{} was not started", self.name) };
            if let Some(status) = child.try_wait()? {
                bail!("{} ended ({status}):\n{}", self.name, log_tail(&self.log));
            }
            if since.elapsed() > within {
                bail!("{} is not ready after {within:?}:\n{}", self.name, log_tail(&self.log));
            }
            std::thread::sleep(LOOK_EACH);
        }
        Ok(())
    }

    /// It was started and has ended by itself: how.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().ok().flatten())
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Errors mean that it is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM: it drains and leaves. Waits until it is gone; kills it after `within` and says so.
    pub fn stop(&mut self, within: Duration) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        signal(child.id(), Signal::SIGTERM);
        let since = Instant::now();
        while child.try_wait()?.is_none() {
            if since.elapsed() > within {
                let _ = child.kill();
                let _ = child.wait();
                bail!("{} did not leave within {within:?}:\n{}", self.name, log_tail(&self.log));
            }
            std::thread::sleep(LOOK_EACH);
        }
        Ok(())
    }

    /// SIGSTOP: connections stay open and nothing answers.
    pub fn pause(&self) {
        signal(self.pid(), Signal::SIGSTOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        signal(self.pid(), Signal::SIGCONT);
    }

    pub(super) fn detach(mut self) -> NodeRecord {
        let pid = self.child.take().map_or(0, |child| child.id());
        let url = match self.role {
            Role::Document => self.rpc_url(),
            Role::Edge => self.url(),
        };
        NodeRecord {
            role: self.role,
            part: Part::of(&self.name, pid, url),
            health: self.health,
            config: self.config.clone(),
            log: self.log.clone(),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A node of a cluster that outlives its starter.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeRecord {
    /// What it does.
    pub role: Role,
    /// Its process and address.
    pub part: Part,
    /// Where it answers probes.
    pub health: SocketAddr,
    pub(super) config: PathBuf,
    pub(super) log: PathBuf,
}

impl NodeRecord {
    /// It runs and its `/readyz` says yes.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.part.is_running() && is_ready(self.health)
    }

    /// Ends it if it runs, starts it again on the same addresses and waits until it is ready.
    pub(super) fn restart(&mut self, binary: &Path, within: Duration) -> anyhow::Result<()> {
        self.part.end(within);
        let mut child = spawn(binary, self.role, &self.config, &self.log, &[])?;
        let since = Instant::now();
        while !is_ready(self.health) {
            if let Some(status) = child.try_wait()? {
                bail!("{} ended ({status}):\n{}", self.part.name, log_tail(&self.log));
            }
            if since.elapsed() > within {
                let _ = child.kill();
                bail!("{} is not ready after {within:?}:\n{}", self.part.name, log_tail(&self.log));
            }
            std::thread::sleep(LOOK_EACH);
        }
        self.part = Part::of(&self.part.name, child.id(), self.part.url.clone());
        Ok(())
    }
}

fn spawn(
    binary: &Path,
    role: Role,
    config: &Path,
    log: &Path,
    environment: &[(String, String)],
) -> anyhow::Result<Child> {
    let out = File::options().create(true).append(true).open(log)?;
    let err = out.try_clone()?;
    Command::new(binary)
        .arg(role.name())
        .arg("--config")
        .arg(config)
        .envs(environment.iter().cloned())
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        // A group of its own: an interrupt at the terminal goes to us, and we end the nodes.
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", binary.display()))
}

pub(crate) fn signal(pid: u32, which: Signal) {
    if let Ok(pid) = i32::try_from(pid)
        && pid > 0
    {
        // A process that is gone needs no signal.
        let _ = kill(Pid::from_raw(pid), which);
    }
}

/// Asks a node's `/readyz`.
pub(crate) fn is_ready(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        write!(stream, "GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        Ok(status == *b"HTTP/1.1 200")
    };
    ask().unwrap_or(false)
}

pub(crate) fn log_tail(path: &Path) -> String {
    let log = fs::read(path).unwrap_or_default();
    let tail = String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_TAIL_BYTES)..]).into_owned();
    format!("{tail}\n(the end of {})", path.display())
}

/// A free port of loopback, each time another one.
pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    for _ in 0..1_000 {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, rand::random_range(PORTS)));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no free port between {} and {}", PORTS.start, PORTS.end)
}
