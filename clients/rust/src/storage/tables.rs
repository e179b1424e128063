//! The file's tables: what is written to them, and what is found in them.

use std::path::Path;

use bytes::Bytes;
use manyhands_crdt::ReplicaId;
use manyhands_proto::Incarnation;
use manyhands_session::client::OutgoingChange;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteRow, SqliteSynchronous};
use sqlx::{Connection as _, Executor as _, Row as _};

use super::{Found, LeftOutbox, StorageError, unusable};
use crate::document::{Pending, Refused, Why};
use crate::edit::LocalEdit;

/// The newest format of the file that this build reads.
const FORMAT: i64 = 1;

const SCHEMA: &str = "
    CREATE TABLE profile (one INTEGER PRIMARY KEY CHECK (one = 1), file TEXT NOT NULL) STRICT;
    CREATE TABLE replica (
        number INTEGER PRIMARY KEY,
        workspace TEXT NOT NULL,
        replica INTEGER NOT NULL,
        spent INTEGER NOT NULL,
        UNIQUE (workspace, replica)
    ) STRICT;
    CREATE TABLE outbox (
        replica INTEGER NOT NULL REFERENCES replica (number),
        counter INTEGER NOT NULL,
        next_counter INTEGER NOT NULL,
        base INTEGER NOT NULL,
        incarnation INTEGER,
        body BLOB NOT NULL,
        edits TEXT NOT NULL,
        PRIMARY KEY (replica, counter)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE refused (
        number INTEGER PRIMARY KEY,
        workspace TEXT NOT NULL,
        code INTEGER NOT NULL,
        message TEXT NOT NULL,
        current TEXT,
        changes TEXT NOT NULL
    ) STRICT;";

/// Something to be written down.
#[derive(Clone, Debug)]
pub(crate) enum Write {
    /// A change that waits for the server from now on.
    Keep {
        replica: ReplicaId,
        change: OutgoingChange,
        incarnation: Option<Incarnation>,
        edits: Vec<LocalEdit>,
    },
    /// Everything of this replica below is durable on the server.
    Acknowledged { replica: ReplicaId, next_counter: u64 },
    /// Everything of this replica from there on was refused, and nothing more is written under it.
    Refused { replica: ReplicaId, from: u64, refused: Refused },
    /// This is what is left of a refusal.
    Shortened { refused: Refused },
    /// The application has dealt with this refusal.
    Settled { refused: u64 },
}

/// Opens the file, with the identity that it says it has.
pub(super) async fn open(
    path: &Path,
    file: &Path,
) -> Result<(SqliteConnection, Option<String>), StorageError> {
    let unusable = |error: sqlx::Error| unusable(path, error);
    let options = SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // What counts as kept survives a power failure as well.
        .synchronous(SqliteSynchronous::Full);
    let mut connection = SqliteConnection::connect_with(&options).await.map_err(unusable)?;
    let found: i64 =
        sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut connection).await.map_err(unusable)?;
    if found > FORMAT {
        return Err(StorageError::Newer { path: path.to_owned(), found, known: FORMAT });
    }
    if found == 0 {
        connection.execute("BEGIN IMMEDIATE").await.map_err(unusable)?;
        sqlx::raw_sql(SCHEMA).execute(&mut connection).await.map_err(unusable)?;
        connection.execute("PRAGMA user_version = 1").await.map_err(unusable)?;
        connection.execute("COMMIT").await.map_err(unusable)?;
        return Ok((connection, None));
    }
    let recorded = sqlx::query_scalar("SELECT file FROM profile").fetch_optional(&mut connection);
    let recorded = recorded.await.map_err(unusable)?;
    Ok((connection, recorded))
}

/// Reads what waits. With `moved`, no replica of the file may be continued; that is written down first.
pub(super) async fn read(
    path: &Path,
    connection: &mut SqliteConnection,
    moved: bool,
    identity: &str,
) -> Result<Found, StorageError> {
    let failed = |error: sqlx::Error| unusable(path, error);
    connection.execute("BEGIN IMMEDIATE").await.map_err(failed)?;
    if moved {
        connection.execute("UPDATE replica SET spent = 1").await.map_err(failed)?;
    }
    // A replica without anything that waits is not continued by anybody.
    connection
        .execute("DELETE FROM replica WHERE number NOT IN (SELECT replica FROM outbox)")
        .await
        .map_err(failed)?;
    sqlx::query(
        "INSERT INTO profile (one, file) VALUES (1, ?) ON CONFLICT DO UPDATE SET file = excluded.file",
    )
    .bind(identity)
    .execute(&mut *connection)
    .await
    .map_err(failed)?;
    connection.execute("COMMIT").await.map_err(failed)?;

    let damaged = |reason: String| StorageError::Damaged { path: path.to_owned(), reason };
    let mut found = Found::default();
    let rows = sqlx::query(
        "SELECT workspace, r.replica, spent, counter, next_counter, base, incarnation, body, edits \
         FROM replica r JOIN outbox o ON o.replica = r.number ORDER BY r.number, counter",
    );
    for row in rows.fetch_all(&mut *connection).await.map_err(failed)? {
        let (workspace, replica, spent, pending) =
            waiting(&row).map_err(|reason| damaged(format!("a change that waits: {reason}")))?;
        let outboxes = &mut found.workspaces.entry(workspace).or_default().outboxes;
        match outboxes.back_mut().filter(|outbox| outbox.replica == replica) {
            Some(outbox) => {
                let expected = outbox.pending.back().map(|last| last.change.next_counter);
                if expected != Some(pending.change.counter) {
                    return Err(damaged(format!("change {} has no predecessor", pending.change.counter)));
                }
                outbox.pending.push_back(pending);
            }
            None => outboxes.push_back(LeftOutbox { replica, spent, pending: [pending].into() }),
        }
    }
    let rows = sqlx::query("SELECT * FROM refused ORDER BY number");
    for row in rows.fetch_all(&mut *connection).await.map_err(failed)? {
        let (workspace, refused) =
            refusal(&row).map_err(|reason| damaged(format!("a refused change: {reason}")))?;
        found.last_refused = refused.id;
        found.workspaces.entry(workspace).or_default().refused.push(refused);
    }
    Ok(found)
}

fn waiting(row: &SqliteRow) -> Result<(String, ReplicaId, bool, Pending), String> {
    let number = |name: &str| row.try_get(name).map(i64::cast_unsigned).map_err(text);
    let incarnation: Option<i64> = row.try_get("incarnation").map_err(text)?;
    let body: Vec<u8> = row.try_get("body").map_err(text)?;
    let edits: &str = row.try_get("edits").map_err(text)?;
    let change = OutgoingChange {
        counter: number("counter")?,
        next_counter: number("next_counter")?,
        base: number("base")?,
        body: Bytes::from(body),
    };
    let edits = serde_json::from_str(edits).map_err(text)?;
    let incarnation = incarnation.map(|number| Incarnation(number.cast_unsigned()));
    let spent = row.try_get("spent").map_err(text)?;
    let workspace = row.try_get("workspace").map_err(text)?;
    Ok((workspace, ReplicaId(number("replica")?), spent, Pending { change, incarnation, edits }))
}

fn refusal(row: &SqliteRow) -> Result<(String, Refused), String> {
    let number: i64 = row.try_get("number").map_err(text)?;
    let code: u32 = row.try_get("code").map_err(text)?;
    let changes: Vec<Vec<LocalEdit>> =
        serde_json::from_str(row.try_get("changes").map_err(text)?).map_err(text)?;
    let (message, current) = (row.try_get("message").map_err(text)?, row.try_get("current").map_err(text)?);
    let mut refused = Refused::new(Why { code, message, current }, changes);
    refused.id = number.cast_unsigned();
    Ok((row.try_get("workspace").map_err(text)?, refused))
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Writes all of it down, or nothing.
pub(super) async fn write(
    connection: &mut SqliteConnection,
    writes: &[(String, Write)],
) -> Result<(), sqlx::Error> {
    connection.execute("BEGIN IMMEDIATE").await?;
    for (workspace, write) in writes {
        one(connection, workspace, write).await?;
    }
    connection.execute("COMMIT").await?;
    Ok(())
}

async fn one(connection: &mut SqliteConnection, workspace: &str, write: &Write) -> Result<(), sqlx::Error> {
    match write {
        Write::Keep { replica, change, incarnation, edits } => {
            let (workspace_of, replica_of) = (workspace, replica.0.cast_signed());
            sqlx::query(
                "INSERT INTO replica (workspace, replica, spent) VALUES (?, ?, 0) \
                 ON CONFLICT (workspace, replica) DO UPDATE SET spent = spent",
            )
            .bind(workspace_of)
            .bind(replica_of)
            .execute(&mut *connection)
            .await?;
            sqlx::query(
                "INSERT INTO outbox (replica, counter, next_counter, base, incarnation, body, edits) VALUES \
                 ((SELECT number FROM replica WHERE workspace = ? AND replica = ?), ?, ?, ?, ?, ?, ?)",
            )
            .bind(workspace_of)
            .bind(replica_of)
            .bind(change.counter.cast_signed())
            .bind(change.next_counter.cast_signed())
            .bind(change.base.cast_signed())
            .bind(incarnation.map(|incarnation| incarnation.0.cast_signed()))
            .bind(&change.body[..])
            .bind(json(edits)?)
            .execute(connection)
            .await?;
        }
        Write::Acknowledged { replica, next_counter } => {
            sqlx::query(
                "DELETE FROM outbox WHERE next_counter <= ? \
                 AND replica = (SELECT number FROM replica WHERE workspace = ? AND replica = ?)",
            )
            .bind(next_counter.cast_signed())
            .bind(workspace)
            .bind(replica.0.cast_signed())
            .execute(connection)
            .await?;
        }
        Write::Refused { replica, from, refused } => {
            sqlx::query(
                "DELETE FROM outbox WHERE counter >= ? \
                 AND replica = (SELECT number FROM replica WHERE workspace = ? AND replica = ?)",
            )
            .bind(from.cast_signed())
            .bind(workspace)
            .bind(replica.0.cast_signed())
            .execute(&mut *connection)
            .await?;
            sqlx::query("UPDATE replica SET spent = 1 WHERE workspace = ? AND replica = ?")
                .bind(workspace)
                .bind(replica.0.cast_signed())
                .execute(&mut *connection)
                .await?;
            sqlx::query(
                "INSERT INTO refused (number, workspace, code, message, current, changes) VALUES (?, ?, ?, ?, ?, ?)",
            )
            .bind(refused.id.cast_signed())
            .bind(workspace)
            .bind(refused.number)
            .bind(&refused.message)
            .bind(&refused.current)
            .bind(json(&refused.changes().collect::<Vec<_>>())?)
            .execute(connection)
            .await?;
        }
        Write::Shortened { refused } => {
            sqlx::query("UPDATE refused SET changes = ? WHERE number = ?")
                .bind(json(&refused.changes().collect::<Vec<_>>())?)
                .bind(refused.id.cast_signed())
                .execute(connection)
                .await?;
        }
        Write::Settled { refused } => {
            sqlx::query("DELETE FROM refused WHERE number = ?")
                .bind(refused.cast_signed())
                .execute(connection)
                .await?;
        }
    }
    Ok(())
}

fn json(value: &impl serde::Serialize) -> Result<String, sqlx::Error> {
    serde_json::to_string(value).map_err(|error| sqlx::Error::Encode(error.into()))
}
