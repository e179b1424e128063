//! A Redis server that keeps nothing on disk: what it holds is a hint.

use std::io::{self, Read, Write};
use std::net::SocketAddr;

use nix::sys::signal::Signal;

use crate::server::{Kind, Server, connect, find};
use crate::{Detached, Dir, Error};

static KIND: Kind = Kind { program: "redis-server", package: "redis-server", ready };

/// A Redis server.
pub struct Redis(Server);

impl Redis {
    /// Starts a server and waits until it takes clients.
    pub fn start(dir: impl Into<Dir>) -> Result<Redis, Error> {
        let mut server = Server::new(&KIND, find(&KIND, KIND.program, &[])?, dir.into())?;
        let address = server.address();
        server.args(["--bind".into(), address.ip().to_string()]);
        server.args(["--port".into(), address.port().to_string()]);
        server.args(["--save", "", "--appendonly", "no"]);
        server.run()?;
        Ok(Redis(server))
    }

    /// Where clients connect.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}", self.0.address())
    }

    /// The process, 0 when it does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.0.kill();
    }

    /// Ends it in order.
    pub fn stop(&mut self) {
        self.0.stop();
    }

    /// Stops it if it runs and starts it again on the same port, empty.
    pub fn restart(&mut self) -> Result<(), Error> {
        self.0.stop();
        self.0.run()
    }

    /// SIGSTOP: its sockets stay open and nothing answers.
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

fn ready(address: SocketAddr) -> io::Result<bool> {
    let mut stream = connect(address)?;
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    Ok(&answer == b"+PONG")
}
