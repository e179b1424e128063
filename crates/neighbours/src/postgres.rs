//! A Postgres cluster of its own, with fsync on.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use nix::unistd::{Uid, User};

use crate::server::{Kind, Server, connect, find};
use crate::{Detached, Dir, Error};

static KIND: Kind = Kind { program: "postgres", package: "postgresql", ready };

/// Where Debian keeps the server programs, one directory a major version.
const DEBIAN: &str = "/usr/lib/postgresql";

/// The user that the server runs as when this process is root, which Postgres refuses.
const UNPRIVILEGED: &str = "postgres";

/// Most bytes of one message of the server that are read.
const MESSAGE_BYTES_MAX: u32 = 1 << 20;

/// A Postgres server with the superuser `postgres` and no password.
pub struct Postgres(Server);

impl Postgres {
    /// Makes a cluster if the directory has none, starts it and waits until it takes queries.
    pub fn start(dir: impl Into<Dir>) -> Result<Postgres, Error> {
        Postgres::start_with(dir, &[])
    }

    /// The same with further settings, each `name=value`.
    pub fn start_with(dir: impl Into<Dir>, settings: &[&str]) -> Result<Postgres, Error> {
        let places = versions();
        let program = find(&KIND, "postgres", &places)?;
        let initdb = find(&KIND, "initdb", &places)?;
        let mut server = Server::new(&KIND, program, dir.into())?;
        if Uid::effective().is_root() {
            let user = User::from_name(UNPRIVILEGED).ok().flatten();
            let user = user.ok_or(Error::Missing { program: KIND.program, package: KIND.package })?;
            server.user(user.uid, user.gid)?;
        }
        let data = server.dir().join("data");
        if !data.join("PG_VERSION").is_file() {
            make_cluster(&server, &initdb, &data)?;
        }
        let address = server.address();
        server.args([
            "-D".to_owned(),
            data.display().to_string(),
            "-p".to_owned(),
            address.port().to_string(),
        ]);
        let listen = format!("listen_addresses={}", address.ip());
        // After a kill, one sync of the file system instead of one of every file.
        let sync = "recovery_init_sync_method=syncfs";
        let ours = [&listen, "unix_socket_directories=", "max_connections=200", sync];
        for setting in ours.iter().chain(settings) {
            server.args(["-c", setting]);
        }
        server.run()?;
        Ok(Postgres(server))
    }

    /// The database that every cluster has. Tests take one of their own: [`Postgres::create_database`].
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    fn url_of(&self, database: &str) -> String {
        format!("postgres://postgres@{}/{database}?sslmode=disable", self.0.address())
    }

    /// Makes a database and returns its URL. The name is letters, digits and underscores.
    pub fn create_database(&self, name: &str) -> Result<String, Error> {
        self.execute(&format!("CREATE DATABASE \"{name}\""))?;
        Ok(self.url_of(name))
    }

    /// Runs one statement in the `postgres` database and forgets what it returns.
    pub fn execute(&self, sql: &str) -> Result<(), Error> {
        let refused = |message| Error::Refused { program: KIND.program, message };
        let mut stream = connect(self.0.address()).map_err(Error::os("connect to postgres"))?;
        let answer = (|| {
            log_in(&mut stream)?;
            while !matches!(read_message(&mut stream)?, (b'Z', _)) {}
            let mut query = vec![b'Q'];
            query.extend((sql.len() as u32 + 5).to_be_bytes());
            query.extend(sql.as_bytes());
            query.push(0);
            stream.write_all(&query)?;
            let mut error = None;
            loop {
                match read_message(&mut stream)? {
                    (b'E', text) => error = Some(readable(&text)),
                    (b'Z', _) => return Ok(error),
                    _ => {}
                }
            }
        })();
        match answer.map_err(Error::os("talk to postgres"))? {
            Some(message) => Err(refused(message)),
            None => Ok(()),
        }
    }

    /// The postmaster, 0 when it does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// SIGKILL to the postmaster and every backend: a crash of the machine as far as Postgres can tell,
    /// except that the operating system keeps its page cache.
    pub fn kill(&mut self) {
        self.0.kill();
    }

    /// Ends it in order ("fast": open connections are cut).
    pub fn stop(&mut self) {
        self.0.stop();
    }

    /// Stops it if it runs and starts it again on the same port and data.
    pub fn restart(&mut self) -> Result<(), Error> {
        self.0.stop();
        self.0.run()
    }

    /// SIGSTOP to the postmaster and every backend: connections stay open and nothing answers.
    pub fn pause(&self) {
        self.0.signal_all(Signal::SIGSTOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.0.signal_all(Signal::SIGCONT);
    }

    /// Lets it outlive this process. [`stop`](crate::stop) ends it.
    #[must_use]
    pub fn detach(self) -> Detached {
        let url = self.url();
        Detached { pid: self.0.detach(), url }
    }
}

fn make_cluster(server: &Server, initdb: &Path, data: &Path) -> Result<(), Error> {
    let status = server
        .command(initdb)?
        .args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C"])
        .args(["--no-sync", "--no-instructions", "-D"])
        .arg(data)
        .status()
        .map_err(Error::os(format!("start {}", initdb.display())))?;
    if status.success() { Ok(()) } else { Err(server.not_ready(format!("initdb failed ({status})"))) }
}

/// Debian's directories of server programs, the newest version first.
fn versions() -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(DEBIAN) else { return Vec::new() };
    let mut versions: Vec<(u32, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    versions.sort_by(|a, b| b.cmp(a));
    versions.into_iter().map(|(_, path)| path).collect()
}

/// A server that still recovers takes the connection and answers with an error.
fn ready(address: SocketAddr) -> io::Result<bool> {
    log_in(&mut connect(address)?)
}

/// The start of the wire protocol, version 3.0. Says whether the server let us in.
fn log_in(stream: &mut TcpStream) -> io::Result<bool> {
    let parameters = b"user\0postgres\0database\0postgres\0\0";
    let mut start = Vec::new();
    start.extend((parameters.len() as u32 + 8).to_be_bytes());
    start.extend(196_608u32.to_be_bytes());
    start.extend(parameters);
    stream.write_all(&start)?;
    Ok(matches!(read_message(stream)?, (b'R', body) if body == [0; 4]))
}

fn read_message(stream: &mut TcpStream) -> io::Result<(u8, Vec<u8>)> {
    let mut header = [0; 5];
    stream.read_exact(&mut header)?;
    let [kind, length @ ..] = header;
    let length = u32::from_be_bytes(length);
    if !(4..=MESSAGE_BYTES_MAX).contains(&length) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; length as usize - 4];
    stream.read_exact(&mut body)?;
    Ok((kind, body))
}

/// The fields of an error response: each a letter and a text.
fn readable(fields: &[u8]) -> String {
    let mut severity_and_message = fields.split(|&byte| byte == 0).filter_map(|field| {
        let (kind, text) = field.split_first()?;
        matches!(kind, b'C' | b'M').then(|| String::from_utf8_lossy(text).into_owned())
    });
    let code = severity_and_message.next().unwrap_or_default();
    let message = severity_and_message.next().unwrap_or_default();
    format!("{message} ({code})")
}
