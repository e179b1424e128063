//! From a URL to an event log: the scheme is the only switch.

use std::path::PathBuf;
use std::sync::Arc;

use super::{LogError, MemoryLog, SharedLog, postgres, sqlite};

/// What opening a log needs to know beside its URL.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster that the log belongs to. A log refuses every other one.
    pub cluster: String,
    /// Postgres: connections that only append. A partition's appends go by one of them.
    pub append_connections: usize,
    /// Connections for everything else.
    pub read_connections: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options { cluster: "manyhands".into(), append_connections: 4, read_connections: 8 }
    }
}

/// Opens the event log at `postgres://…`, `sqlite:<path>` or `memory:`. Refuses one that needs
/// [`migrate`] or belongs to another cluster. A log in memory is a new one each time.
pub async fn open(url: &str, options: &Options) -> Result<SharedLog, LogError> {
    Ok(match Place::parse(url)? {
        Place::Postgres(url) => Arc::new(postgres::PostgresLog::open(url, options).await?),
        Place::Sqlite(path) => Arc::new(sqlite::SqliteLog::open(&path, options).await?),
        Place::Memory => Arc::new(MemoryLog::new()),
    })
}

/// Makes the event log at `url`, or brings its schema forward. Does nothing to one that is up to date, and
/// refuses one of another cluster. Returns how many steps were taken.
pub async fn migrate(url: &str, cluster: &str) -> Result<usize, LogError> {
    match Place::parse(url)? {
        Place::Postgres(url) => postgres::migrate(url, cluster).await,
        Place::Sqlite(path) => sqlite::migrate(&path, cluster).await,
        Place::Memory => Ok(0),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    Postgres(&'a str),
    Sqlite(PathBuf),
    Memory,
}

impl Place<'_> {
    fn parse(url: &str) -> Result<Place<'_>, LogError> {
        // The URL itself may hold a password and is not repeated.
        let unknown = || {
            let schemes = "postgres://user@host/database, sqlite:path/to/file or memory:";
            LogError::Url(format!("the event log's URL names nothing that can be opened: use {schemes}"))
        };
        match url.split_once(':').ok_or_else(unknown)? {
            ("postgres" | "postgresql", rest) if rest.starts_with("//") => Ok(Place::Postgres(url)),
            ("sqlite", rest) => match rest.strip_prefix("//").unwrap_or(rest) {
                "" | ":memory:" => Err(LogError::Url(
                    "sqlite: needs the path of a file; memory: keeps the log in memory".into(),
                )),
                path => Ok(Place::Sqlite(path.into())),
            },
            ("memory", "") => Ok(Place::Memory),
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_is_the_switch() {
        let url = "postgres://me:secret@db/manyhands";
        assert_eq!(Place::parse(url), Ok(Place::Postgres(url)));
        assert_eq!(Place::parse("sqlite:data/log.db"), Ok(Place::Sqlite("data/log.db".into())));
        assert_eq!(Place::parse("sqlite:///var/log.db"), Ok(Place::Sqlite("/var/log.db".into())));
        assert_eq!(Place::parse("memory:"), Ok(Place::Memory));
        for wrong in
            ["", "memory", "mysql://me:secret@db", "postgres:x", "sqlite:", "sqlite::memory:", "memory:x"]
        {
            let Err(LogError::Url(message)) = Place::parse(wrong) else { panic!("{wrong:?} was accepted") };
            assert!(!message.contains("secret"), "{message}");
        }
    }
}
