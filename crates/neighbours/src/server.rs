//! One server process: its directory, port, start, signals and end.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid};
use tempfile::TempDir;

use crate::{Dir, Error};

/// How long a server may take to get ready. Postgres replays its log after a kill.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long an asked server may take to end before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// How often a server that starts is asked whether it is ready. Each question costs Postgres a process.
const ASK_EACH: Duration = Duration::from_millis(20);
/// How often a condition outside of this process is looked at.
const LOOK_EACH: Duration = Duration::from_millis(5);
/// Ports below those that the kernel gives to outgoing connections, so that nobody takes the port of a
/// server that is restarted.
const PORTS: std::ops::Range<u16> = 12_000..32_000;
/// Bytes of a server's log that an error shows.
const LOG_TAIL_BYTES: usize = 2_000;

/// A server that was given up by the process that started it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detached {
    /// Its process, for [`stop`].
    pub pid: u32,
    /// How to reach it.
    pub url: String,
}

/// What sets one kind of server apart.
pub(crate) struct Kind {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
    /// Says whether the server that listens there is ready to work.
    pub(crate) ready: fn(SocketAddr) -> io::Result<bool>,
}

/// A server process on a port of its own, in a directory of its own.
pub(crate) struct Server {
    kind: &'static Kind,
    program: PathBuf,
    args: Vec<String>,
    user: Option<(Uid, Gid)>,
    port: Port,
    home: Home,
    running: Option<Running>,
}

struct Running {
    child: Child,
    warden: Warden,
}

impl Server {
    /// Prepares a server; [`Server::run`] starts it.
    pub(crate) fn new(kind: &'static Kind, program: PathBuf, dir: Dir) -> Result<Server, Error> {
        Ok(Server {
            kind,
            program,
            args: Vec::new(),
            user: None,
            port: Port::take()?,
            home: Home::open(dir)?,
            running: None,
        })
    }

    pub(crate) fn args(&mut self, args: impl IntoIterator<Item = impl Into<String>>) {
        self.args.extend(args.into_iter().map(Into::into));
    }

    /// Runs as another user, who gets the directory.
    pub(crate) fn user(&mut self, uid: Uid, gid: Gid) -> Result<(), Error> {
        let path = self.home.path();
        std::os::unix::fs::chown(path, Some(uid.as_raw()), Some(gid.as_raw()))
            .map_err(Error::os(format!("chown {}", path.display())))?;
        self.user = Some((uid, gid));
        Ok(())
    }

    pub(crate) fn dir(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.port.address
    }

    /// A command that runs as the server's user, in its directory, and keeps what it writes in the log.
    pub(crate) fn command(&self, program: &Path) -> Result<Command, Error> {
        let path = self.log_path();
        let log = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(Error::os(format!("open {}", path.display())))?;
        let copy = log.try_clone().map_err(Error::os("dup of a log file"))?;
        let mut command = Command::new(program);
        command.current_dir(self.dir()).stdin(Stdio::null()).stdout(log).stderr(copy);
        // A group of its own: an interrupt at the terminal goes to us, and we end the server.
        command.process_group(0);
        if let Some((uid, gid)) = self.user {
            command.uid(uid.as_raw()).gid(gid.as_raw());
        }
        Ok(command)
    }

    /// Starts the process and waits until it is ready.
    pub(crate) fn run(&mut self) -> Result<(), Error> {
        let child = self
            .command(&self.program)?
            .args(&self.args)
            .spawn()
            .map_err(Error::os(format!("start {}", self.program.display())))?;
        let warden = Warden::watch(&child, self.home.temporary())?;
        let running = self.running.insert(Running { child, warden });
        let since = Instant::now();
        let why = loop {
            match (self.kind.ready)(self.port.address) {
                Ok(true) => return Ok(()),
                Ok(false) | Err(_) if since.elapsed() < READY_WITHIN => {}
                Ok(false) => break "it answers, but is not ready".to_owned(),
                Err(error) => break error.to_string(),
            }
            if let Ok(Some(status)) = running.child.try_wait() {
                break format!("it ended ({status})");
            }
            std::thread::sleep(ASK_EACH);
        };
        let error = self.not_ready(why);
        self.kill();
        Err(error)
    }

    pub(crate) fn not_ready(&self, why: String) -> Error {
        let log = fs::read(self.log_path()).unwrap_or_default();
        let tail = &log[log.len().saturating_sub(LOG_TAIL_BYTES)..];
        Error::NotReady { program: self.kind.program, why, log: String::from_utf8_lossy(tail).into_owned() }
    }

    fn log_path(&self) -> PathBuf {
        self.home.path().join("server.log")
    }

    /// The process, 0 when it does not run.
    pub(crate) fn pid(&self) -> u32 {
        self.running.as_ref().map_or(0, |running| running.child.id())
    }

    /// SIGKILL to the server and all its children, and waits until they are gone.
    pub(crate) fn kill(&mut self) {
        let Some(mut running) = self.running.take() else { return };
        let pid = running.child.id();
        let children = children(pid);
        // The parent first, so that it cannot clean up after its children.
        signal(pid, Signal::SIGKILL);
        for &child in &children {
            signal(child, Signal::SIGKILL);
        }
        // Reaped below; an error means that it is gone already.
        let _ = running.child.wait();
        for &child in &children {
            while is_alive(child) {
                std::thread::sleep(LOOK_EACH);
            }
        }
        running.warden.dismiss();
    }

    /// Asks the server to end and waits until it has; kills it when it takes too long.
    pub(crate) fn stop(&mut self) {
        let Some(mut running) = self.running.take() else { return };
        signal(running.child.id(), Signal::SIGINT);
        let since = Instant::now();
        while since.elapsed() < STOP_WITHIN {
            if !matches!(running.child.try_wait(), Ok(None)) {
                running.warden.dismiss();
                return;
            }
            std::thread::sleep(LOOK_EACH);
        }
        self.running = Some(running);
        self.kill();
    }

    /// SIGSTOP or SIGCONT to the server and all its children.
    pub(crate) fn signal_all(&self, which: Signal) {
        let Some(running) = &self.running else { return };
        let pid = running.child.id();
        signal(pid, which);
        for child in children(pid) {
            signal(child, which);
        }
    }

    /// Gives the server up: it goes on without this process. Its directory is kept.
    pub(crate) fn detach(mut self) -> u32 {
        let Some(running) = self.running.take() else { return 0 };
        running.warden.dismiss();
        self.home.keep();
        running.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Ends a detached server: asks it, waits, and kills it when it takes longer than 20 s. Nothing happens
/// when there is no such process.
pub fn stop(pid: u32) {
    signal(pid, Signal::SIGINT);
    let since = Instant::now();
    while is_alive(pid) {
        if since.elapsed() > STOP_WITHIN {
            signal(pid, Signal::SIGKILL);
        }
        std::thread::sleep(LOOK_EACH);
    }
}

/// Where `program` is: in one of `places`, or on the PATH.
pub(crate) fn find(kind: &'static Kind, program: &str, places: &[PathBuf]) -> Result<PathBuf, Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    places
        .iter()
        .cloned()
        .chain(std::env::split_paths(&path))
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/local/sbin")])
        .map(|place| place.join(program))
        .find(|candidate| candidate.is_file())
        .ok_or(Error::Missing { program: kind.program, package: kind.package })
}

/// Connects with a time limit on everything, for a readiness probe.
pub(crate) fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    Ok(stream)
}

/// Kills the server and removes its directory when this process is gone, however it ended: its standard
/// input is a pipe that only this process holds.
struct Warden {
    shell: Child,
    input: Option<ChildStdin>,
}

impl Warden {
    const SCRIPT: &'static str = r#"
        if read -r _; then exit 0; fi
        kill -KILL "$1" 2>/dev/null
        if [ -n "$2" ]; then sleep 0.2; rm -rf -- "$2"; fi
    "#;

    fn watch(child: &Child, remove: Option<&Path>) -> Result<Warden, Error> {
        let mut shell = Command::new("/bin/sh")
            .args(["-c", Warden::SCRIPT, "manyhands-neighbours-warden", &child.id().to_string()])
            .arg(remove.unwrap_or(Path::new("")))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(Error::os("start /bin/sh"))?;
        let input = shell.stdin.take();
        Ok(Warden { shell, input })
    }

    fn dismiss(mut self) {
        if let Some(mut input) = self.input.take() {
            // A warden that is gone needs no dismissal.
            let _ = input.write_all(b"go\n");
        }
        let _ = self.shell.wait();
    }
}

/// A port that no other server of this kind of helper takes while this value lives: the same number as a
/// UDP port is the lock.
struct Port {
    address: SocketAddr,
    _lock: UdpSocket,
}

impl Port {
    fn take() -> Result<Port, Error> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let width = PORTS.len() as u32;
        let start = std::process::id().wrapping_mul(7919) % width;
        for _ in 0..width {
            let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
            let port = PORTS.start + ((start + step) % width) as u16;
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let Ok(lock) = UdpSocket::bind(address) else { continue };
            if TcpListener::bind(address).is_ok() {
                return Ok(Port { address, _lock: lock });
            }
        }
        Err(Error::Os { what: "find a free port".into(), source: io::ErrorKind::AddrInUse.into() })
    }
}

/// The directory of a server.
enum Home {
    Temporary(TempDir),
    Kept(PathBuf),
}

impl Home {
    fn open(dir: Dir) -> Result<Home, Error> {
        match dir {
            Dir::Temporary => tempfile::Builder::new()
                .prefix("manyhands-")
                .tempdir()
                .map(Home::Temporary)
                .map_err(Error::os("make a temporary directory")),
            Dir::At(path) => {
                fs::create_dir_all(&path).map_err(Error::os(format!("make {}", path.display())))?;
                let path =
                    fs::canonicalize(&path).map_err(Error::os(format!("resolve {}", path.display())))?;
                Ok(Home::Kept(path))
            }
        }
    }

    fn path(&self) -> &Path {
        match self {
            Home::Temporary(dir) => dir.path(),
            Home::Kept(path) => path,
        }
    }

    fn temporary(&self) -> Option<&Path> {
        match self {
            Home::Temporary(dir) => Some(dir.path()),
            Home::Kept(_) => None,
        }
    }

    fn keep(&mut self) {
        if let Home::Temporary(dir) = self {
            dir.disable_cleanup(true);
        }
    }
}

fn signal(pid: u32, which: Signal) {
    if let Ok(pid) = i32::try_from(pid)
        && pid > 0
    {
        // A process that is gone needs no signal.
        let _ = kill(Pid::from_raw(pid), which);
    }
}

/// Whether the process exists and is more than an entry that waits to be reaped.
fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z')
}

/// The processes whose parent is `pid`.
fn children(pid: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|&candidate| stat(candidate).is_some_and(|(_, parent)| parent == pid))
        .collect()
}

/// State and parent of a process.
fn stat(pid: u32) -> Option<(char, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything.
    let mut fields = text[text.rfind(')')? + 1..].split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}
