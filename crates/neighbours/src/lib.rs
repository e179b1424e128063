//! Starts real Postgres, NATS and Redis servers from the machine's packages, for tests and local clusters.
//!
//! A server lives as long as its value, and never longer than the process that started it: a small
//! warden process sees the end of this one, however it ends, kills the server and removes its temporary
//! directory. [`Postgres::detach`] and its like give a server up instead, for a cluster that outlives
//! the command that starts it; [`stop`] ends such a server by its pid.
//!
//! Every call blocks, for some hundred milliseconds at most where a server starts. A test that needs its
//! runtime meanwhile calls from `spawn_blocking`.
//!
//! ```no_run
//! use manyhands_neighbours::{Dir, Postgres};
//!
//! let postgres = Postgres::start(Dir::Temporary)?;
//! let url = postgres.create_database("my_test")?;
//! # Ok::<(), manyhands_neighbours::Error>(())
//! ```

mod nats;
mod postgres;
mod redis;
mod server;

use std::path::PathBuf;

pub use nats::Nats;
pub use postgres::Postgres;
pub use redis::Redis;
pub use server::{Detached, stop};

/// Where a server keeps its files.
#[derive(Clone, Debug)]
pub enum Dir {
    /// A new directory that is removed with the server.
    Temporary,
    /// This directory; made when it is missing, and kept.
    At(PathBuf),
}

impl<P: Into<PathBuf>> From<P> for Dir {
    fn from(path: P) -> Dir {
        Dir::At(path.into())
    }
}

/// Why a server does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its program is not on this machine.
    #[error("{program} is not installed: apt-get install --no-install-recommends {package}")]
    Missing {
        /// The program.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// It ended instead of getting ready, or did not get ready in time.
    #[error("{program} did not get ready: {why}\n{log}")]
    NotReady {
        /// The program.
        program: &'static str,
        /// What happened.
        why: String,
        /// The end of what it wrote.
        log: String,
    },
    /// The server answered with an error.
    #[error("{program} refused: {message}")]
    Refused {
        /// The program.
        program: &'static str,
        /// Its answer.
        message: String,
    },
    /// The operating system refused something.
    #[error("{what}: {source}")]
    Os {
        /// What was tried.
        what: String,
        /// Why not.
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn os(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
        let what = what.into();
        move |source| Error::Os { what, source }
    }
}
