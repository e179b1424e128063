//! A worker's place in a partition: every entry at least once, in order, one worker at a time.

use std::time::Duration;

use manyhands_proto::{NodeId, Offset, PartitionId};

use crate::{Cursor, Entry, LogError, ReadLimit, SharedLog};

/// A follower that holds its cursor. It holds it for the `ttl` after each call that writes; who takes
/// longer over its entries calls [`Follower::keep`].
pub struct Follower {
    log: SharedLog,
    cursor: Cursor,
    ttl: Duration,
    read: Offset,
}

impl Follower {
    /// Takes the cursor of the follower `name` in a partition, or `None` if another node works on it. A
    /// follower that was never there begins before the first entry.
    pub async fn take(
        log: SharedLog,
        name: &str,
        partition: PartitionId,
        node: &NodeId,
        ttl: Duration,
    ) -> Result<Option<Follower>, LogError> {
        let cursor = log.take_cursor(name, partition, node, ttl).await?;
        Ok(cursor.map(|cursor| Follower { log, read: cursor.offset, cursor, ttl }))
    }

    /// Everything up to here is done, durably.
    #[must_use]
    pub fn done(&self) -> Offset {
        self.cursor.offset
    }

    /// The entries after those that were read last; none when there are no more for now. They come again
    /// to whoever takes the cursor before they are said to be done.
    pub async fn read(&mut self, limit: ReadLimit) -> Result<Vec<Entry>, LogError> {
        let entries = self.log.follow(self.cursor.partition, self.read, limit).await?;
        if let Some(last) = entries.last() {
            self.read = last.offset;
        }
        Ok(entries)
    }

    /// Says that everything up to `through` is done. `false`: another worker has the cursor now, and this
    /// one must stop. After an error it may be called again.
    pub async fn advance(&mut self, through: Offset) -> Result<bool, LogError> {
        let cursor = Cursor { offset: through, ..self.cursor.clone() };
        let held = self.log.advance(&cursor, self.ttl).await?;
        if held {
            self.cursor = cursor;
        }
        Ok(held)
    }

    /// Extends the hold without moving. `false` as in [`Follower::advance`].
    pub async fn keep(&mut self) -> Result<bool, LogError> {
        self.log.advance(&self.cursor, self.ttl).await
    }

    /// Gives the cursor back at once, for others to take.
    pub async fn release(self) -> Result<(), LogError> {
        self.log.advance(&self.cursor, Duration::ZERO).await.map(drop)
    }
}
