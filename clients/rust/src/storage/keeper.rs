//! The task that writes down what the open workspaces have: it takes whatever came together since the last
//! time and makes one transaction of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::{Connection as _, Executor as _};
use tokio_util::sync::CancellationToken;

use super::{Opened, StorageError, Write, tables, unusable};
use crate::client::Shared;
use crate::workspace::Held;

/// How long after a failure it tries again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// See the [module](self).
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    opened: Opened,
    /// What could not be written yet, in order, and where it comes from.
    backlog: Vec<(String, Write)>,
    waiting: BTreeMap<u32, Arc<Held>>,
}

impl Keeper {
    pub(crate) fn new(shared: Arc<Shared>, opened: Opened) -> Keeper {
        Keeper { shared, opened, backlog: Vec::new(), waiting: BTreeMap::new() }
    }

    /// Ends after `cancel`, with everything written that was there then. The profile is free afterwards.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        loop {
            let stopped = tokio::select! {
                biased;
                () = self.shared.unkept.notified() => false,
                () = tokio::time::sleep(RETRY_AFTER), if !self.backlog.is_empty() => false,
                () = cancel.cancelled() => true,
            };
            self.round().await;
            if stopped {
                break;
            }
        }
        // A file that is not closed in order is mended by whoever opens it next.
        let _ = self.opened.connection.close().await;
    }

    /// Writes what there is, and tells those who wait for it.
    async fn round(&mut self) {
        let documents: Vec<Arc<Held>> = {
            let mut wishes = self.shared.wishes();
            std::mem::take(&mut wishes.unkept).into_values().collect()
        };
        for held in documents {
            let mut open = held.lock();
            let (channel, workspace) = (open.channel, open.name.to_string());
            self.backlog.extend(open.take_writes().into_iter().map(|write| (workspace.clone(), write)));
            drop(open);
            self.waiting.insert(channel, held);
        }
        if self.backlog.is_empty() {
            return;
        }
        let result = tables::write(&mut self.opened.connection, &self.backlog).await;
        let failure = match result {
            Ok(()) => {
                self.backlog.clear();
                None
            }
            Err(error) => {
                // There may be no transaction to take back; either way none is open afterwards.
                let _ = self.opened.connection.execute("ROLLBACK").await;
                Some(Arc::new(self.failure(&error)))
            }
        };
        if let Some(failure) = &failure {
            tracing::error!(error = %failure, "edits are not kept on this device");
        }
        // What a disk refuses goes to the server all the same: that is the safer place by far.
        for held in self.waiting.values() {
            held.lock().wrote(failure.clone());
            held.bump();
            self.shared.mark(held);
        }
        if failure.is_none() {
            self.waiting.clear();
        }
    }

    fn failure(&self, error: &sqlx::Error) -> StorageError {
        let path = self.shared.options.storage.as_ref().map(super::Storage::path);
        unusable(path.unwrap_or_else(|| std::path::Path::new("")), error)
    }
}
