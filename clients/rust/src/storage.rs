//! The outbox on disk: what the server has not acknowledged outlives the process.
//!
//! A profile is a directory with a lock and one SQLite file. A change leaves for the server only when it is in
//! that file, and leaves the file only when the server has it, or when it was refused and the application has
//! made it again or discarded it. So what was sent is always known here, under the identity that it was sent
//! with, and sending it again counts once.
//!
//! A replica's numbering is continued by one process only: the lock keeps a second one out, and a file that
//! has been copied or brought back from a backup is recognised, because it is another file than the one that
//! it says it is. What waits in such a file is still sent as it is, but nothing new is written under its
//! replicas.

mod keeper;
mod tables;

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use manyhands_crdt::ReplicaId;
use sqlx::sqlite::SqliteConnection;

use crate::document::{Pending, Refused};

pub(crate) use keeper::Keeper;
pub(crate) use tables::Write;

/// Where a client keeps what the server has not acknowledged.
///
/// One process at a time has it, and in it one client. Everything that waits in it is sent when its workspace
/// is opened.
#[derive(Clone)]
pub struct Storage {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    /// What was found and no workspace has taken yet.
    found: Mutex<Found>,
    /// Taken by the client's keeper.
    opened: Mutex<Option<Opened>>,
}

/// The file, and what keeps others out of it.
pub(crate) struct Opened {
    connection: SqliteConnection,
    _lock: File,
}

/// What an earlier process left, by workspace.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) workspaces: BTreeMap<String, Left>,
    pub(crate) last_refused: u64,
}

/// What an earlier process left of one workspace.
#[derive(Default)]
pub(crate) struct Left {
    /// Replicas with changes that wait, in the order in which they were first written.
    pub(crate) outboxes: VecDeque<LeftOutbox>,
    pub(crate) refused: Vec<Refused>,
}

/// The changes of one replica that wait, oldest first.
#[derive(Clone)]
pub(crate) struct LeftOutbox {
    pub(crate) replica: ReplicaId,
    /// Nothing more may be written under it.
    pub(crate) spent: bool,
    pub(crate) pending: VecDeque<Pending>,
}

/// Why a profile cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StorageError {
    /// Another process has it, or another client of this one.
    #[error(
        "the profile {path} is in use by process {pid}; fix: end that process, or give this one another directory"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Who has it, as far as the lock says.
        pid: String,
    },
    /// A newer build wrote it.
    #[error(
        "the profile {path} has format {found}, and this build knows {known}; fix: use the newer build, or another directory"
    )]
    Newer {
        /// The directory.
        path: PathBuf,
        /// The format of the file.
        found: i64,
        /// The newest that this build reads.
        known: i64,
    },
    /// A row cannot be read. Nothing was changed.
    #[error(
        "the profile {path} is damaged: {reason}; fix: keep a copy of it, and give this process another directory"
    )]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The disk or the file system does not do what it is asked.
    #[error(
        "the profile {path} cannot be used: {reason}; fix: make room on its disk, or correct its permissions"
    )]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
}

impl Storage {
    /// Opens a profile, and makes it if there is none.
    ///
    /// # Errors
    /// When another process has it, or when the file cannot be read or written.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Storage, StorageError> {
        let path = path.into();
        let lock = lock(&path)?;
        let file = path.join("outbox.db");
        let (mut connection, recorded) = tables::open(&path, &file).await?;
        let unusable = |error: std::io::Error| unusable(&path, error);
        let identity = identity(&file).map_err(unusable)?;
        let moved = recorded.is_some_and(|recorded| recorded != identity);
        if moved {
            tracing::warn!(profile = %path.display(), "this profile is a copy; it goes on under new replicas");
        }
        let found = tables::read(&path, &mut connection, moved, &identity).await?;
        Ok(Storage {
            inner: Arc::new(Inner {
                path,
                found: Mutex::new(found),
                opened: Mutex::new(Some(Opened { connection, _lock: lock })),
            }),
        })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Workspaces in which something waits: edits for the server, or refused ones for the application.
    #[must_use]
    pub fn waiting(&self) -> Vec<String> {
        self.found(|found| found.workspaces.keys().cloned().collect())
    }

    /// What was left of a workspace; it is the caller's from now on.
    pub(crate) fn take(&self, workspace: &str) -> Left {
        self.found(|found| found.workspaces.remove(workspace)).unwrap_or_default()
    }

    /// A number for a refusal that no other has.
    pub(crate) fn next_refused(&self) -> u64 {
        self.found(|found| {
            found.last_refused += 1;
            found.last_refused
        })
    }

    /// A workspace was left; whoever opens it again goes on with this.
    pub(crate) fn give_back(&self, workspace: String, left: Left) {
        if !(left.outboxes.is_empty() && left.refused.is_empty()) {
            self.found(|found| found.workspaces.insert(workspace, left));
        }
    }

    /// The file, for the one keeper.
    pub(crate) fn opened(&self) -> Option<Opened> {
        self.inner.opened.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn found<T>(&self, look: impl FnOnce(&mut Found) -> T) -> T {
        look(&mut self.inner.found.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl std::fmt::Debug for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Storage").field(&self.inner.path).finish()
    }
}

/// Makes the profile this process's own, for as long as the file is open.
fn lock(path: &Path) -> Result<File, StorageError> {
    let unusable = |error: std::io::Error| unusable(path, error);
    fs::create_dir_all(path).map_err(unusable)?;
    let place = path.join("lock");
    let mut file = File::options().create(true).append(true).open(&place).map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let pid = fs::read_to_string(&place).unwrap_or_default().trim().to_owned();
            return Err(StorageError::InUse { path: path.to_owned(), pid });
        }
        Err(TryLockError::Error(error)) => return Err(unusable(error)),
    }
    file.set_len(0).map_err(unusable)?;
    writeln!(file, "{}", std::process::id()).map_err(unusable)?;
    Ok(file)
}

/// Which file this is, so that a copy of it, or one that a backup brought back, is another.
fn identity(file: &Path) -> std::io::Result<String> {
    let metadata = fs::metadata(file)?;
    // Not every file system tells when a file was made.
    let made = metadata.created().ok().and_then(|made| made.duration_since(UNIX_EPOCH).ok());
    let made = made.unwrap_or_default().as_nanos();
    #[cfg(unix)]
    let place = {
        use std::os::unix::fs::MetadataExt as _;
        metadata.ino()
    };
    #[cfg(not(unix))]
    let place = 0;
    Ok(format!("{place}:{made}"))
}

fn unusable(path: &Path, error: impl std::fmt::Display) -> StorageError {
    StorageError::Unusable { path: path.to_owned(), reason: error.to_string() }
}
