//! A TCP proxy that breaks links on demand: one for each link, in front of whoever listens.
//!
//! What is done to bytes is decided in [`Flow`], without a clock or a socket; the rest moves them.

mod flow;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use flow::{Flow, Mode, Step, Way};

/// Bytes that are moved at a time.
const CHUNK_BYTES: usize = 16 << 10;
/// How long the other side may take to accept.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// A proxy before one address. It ends, and everything that goes through it, with its value.
pub struct Proxy {
    name: String,
    listen: SocketAddr,
    mode: watch::Sender<Mode>,
    /// Goes up when all connections are to be cut.
    cut: watch::Sender<u64>,
    _ends: DropGuard,
}

impl Proxy {
    /// Listens on a free port of loopback and passes everything on to `upstream`. Must be called within a
    /// Tokio runtime.
    pub fn start(name: impl Into<String>, upstream: SocketAddr) -> std::io::Result<Proxy> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let listen = listener.local_addr()?;
        let (mode, _) = watch::channel(Mode::default());
        let (cut, _) = watch::channel(0);
        let ends = CancellationToken::new();
        let shell = Shell { upstream, mode: mode.clone(), cut: cut.clone() };
        tokio::spawn(shell.run(listener, ends.clone()));
        Ok(Proxy { name: name.into(), listen, mode, cut, _ends: ends.drop_guard() })
    }

    /// The link that it is.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is entered.
    #[must_use]
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// What is done from now on, to connections that are there and to new ones.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Nothing is done any more. Connections that lost bytes are cut: what is left of them is no stream.
    pub fn heal(&self) {
        let lost = self.mode.borrow().loses_bytes();
        self.mode.send_replace(Mode::default());
        if lost {
            self.cut();
        }
    }

    /// Ends every connection now.
    pub fn cut(&self) {
        self.cut.send_modify(|count| *count += 1);
    }
}

struct Shell {
    upstream: SocketAddr,
    mode: watch::Sender<Mode>,
    cut: watch::Sender<u64>,
}

impl Shell {
    async fn run(self, listener: TcpListener, ends: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
                () = ends.cancelled() => return,
            };
            // An error of one connection that was not accepted says nothing about the next.
            let Ok((inside, _)) = accepted else { continue };
            if self.mode.borrow().refuse {
                // With unread bytes or without, the other side sees its connection end at once.
                drop(inside);
                continue;
            }
            let (mode, cut) = (self.mode.subscribe(), self.cut.subscribe());
            connections.spawn(connection(inside, self.upstream, mode, cut));
        }
    }
}

async fn connection(
    inside: TcpStream,
    upstream: SocketAddr,
    mode: watch::Receiver<Mode>,
    mut cut: watch::Receiver<u64>,
) {
    cut.mark_unchanged();
    let Ok(Ok(outside)) = tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(upstream)).await else {
        return;
    };
    // Small frames are what this carries.
    let _ = (inside.set_nodelay(true), outside.set_nodelay(true));
    let (from_client, to_client) = inside.into_split();
    let (from_server, to_server) = outside.into_split();
    // Whichever way ends by a fault or an error ends the connection; an end of stream is passed on.
    tokio::select! {
        () = both(
            pump(from_client, to_server, Way::Up, mode.clone()),
            pump(from_server, to_client, Way::Down, mode),
        ) => {}
        _ = cut.changed() => {}
    }
}

/// Waits until both ways have ended well, or one of them badly.
async fn both(up: impl Future<Output = Ended>, down: impl Future<Output = Ended>) {
    tokio::pin!(up, down);
    tokio::select! {
        ended = &mut up => {
            if ended == Ended::Well {
                down.await;
            }
        }
        ended = &mut down => {
            if ended == Ended::Well {
                up.await;
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    Well,
    Cut,
}

/// Moves bytes one way.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    way: Way,
    mut mode: watch::Receiver<Mode>,
) -> Ended {
    let mut flow = Flow::new(way);
    let mut bytes = vec![0; CHUNK_BYTES];
    loop {
        let Ok(read) = from.read(&mut bytes).await else { return Ended::Cut };
        if read == 0 {
            // Where bytes disappear, so does the end of them.
            while matches!(flow.step(*mode.borrow_and_update(), 1), Step::Swallow | Step::Wait) {
                if mode.changed().await.is_err() {
                    return Ended::Cut;
                }
            }
            // Both ends closed in order, so the other way may still have something to say.
            return if to.shutdown().await.is_ok() { Ended::Well } else { Ended::Cut };
        }
        let mut chunk = &bytes[..read];
        loop {
            let step = flow.step(*mode.borrow_and_update(), chunk.len());
            match step {
                Step::Pass { after, count } => {
                    if !after.is_zero() {
                        tokio::time::sleep(after).await;
                    }
                    if to.write_all(&chunk[..count]).await.is_err() {
                        return Ended::Cut;
                    }
                    chunk = &chunk[count..];
                }
                Step::Swallow => chunk = &[],
                Step::Wait => {
                    if mode.changed().await.is_err() {
                        return Ended::Cut;
                    }
                }
                Step::Cut => return Ended::Cut,
            }
            if chunk.is_empty() {
                break;
            }
        }
    }
}
