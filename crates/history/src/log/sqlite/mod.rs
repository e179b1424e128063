//! The event log in one SQLite file: the same promises for one machine.
//!
//! One task owns the only connection that writes ([`writer`]); readers have a pool and, thanks to the
//! write-ahead log, never wait for it. Times are milliseconds by this machine's clock.

mod writer;

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use manyhands_crdt::ReplicaId;
use manyhands_proto::{DocumentName, Epoch, Incarnation, NodeId, Offset, PartitionId, Seq};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, Connection, Executor, Row};
use tracing::info;

use self::writer::Writer;
use super::schema::{CREATE_META, Meta, READ_META, WRITE_META, empty};
use super::{
    AppendError, Appended, Batch, Cursor, DocumentRecord, Entry, EventLog, Lease, LogError, Member, Options,
    Ownership, ReadLimit, stored_strategy,
};

/// How long a statement waits for another process that writes the same file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// An event log in a file.
pub(crate) struct SqliteLog {
    readers: SqlitePool,
    writer: Writer,
}

impl SqliteLog {
    pub(crate) async fn open(path: &Path, options: &Options) -> Result<SqliteLog, LogError> {
        let place = format!("sqlite:{}", path.display());
        if !path.is_file() {
            return Err(empty(&place));
        }
        let unreadable =
            |error: sqlx::Error| LogError::Unavailable(format!("{place} cannot be opened: {error}"));
        let mut connection = SqliteConnection::connect_with(&connect(path)).await.map_err(unreadable)?;
        let meta: Meta = match sqlx::query_as(READ_META).fetch_all(&mut connection).await {
            Ok(rows) => rows.into_iter().collect(),
            Err(error) if error.to_string().contains("no such table") => return Err(empty(&place)),
            Err(error) => return Err(unreadable(error)),
        };
        meta.check(&place, &options.cluster)?;
        let readers = SqlitePoolOptions::new()
            .max_connections(options.read_connections.max(1))
            .connect_with(connect(path).read_only(true))
            .await
            .map_err(unreadable)?;
        Ok(SqliteLog { readers, writer: Writer::start(connection) })
    }

    async fn entries(&self, query: Query<'_>) -> Result<Vec<Entry>, LogError> {
        let rows = query.fetch_all(&self.readers).await.map_err(unavailable)?;
        rows.iter().map(entry).collect()
    }
}

type Query<'a> = sqlx::query::Query<'a, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;

fn connect(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        // Each commit is on the disk before it returns.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
}

/// Makes the file if it is missing, and makes or updates its schema in one transaction.
pub(crate) async fn migrate(path: &Path, cluster: &str) -> Result<usize, LogError> {
    let place = format!("sqlite:{}", path.display());
    let failed =
        |error: sqlx::Error| LogError::Mismatch(format!("the schema of {place} was not changed: {error}"));
    let mut connection =
        SqliteConnection::connect_with(&connect(path).create_if_missing(true)).await.map_err(failed)?;
    // The connection is ours alone and is closed on any error, which rolls back.
    connection.execute("BEGIN IMMEDIATE").await.map_err(failed)?;
    connection.execute(CREATE_META).await.map_err(failed)?;
    let rows: Vec<(String, String)> =
        sqlx::query_as(READ_META).fetch_all(&mut connection).await.map_err(failed)?;
    let missing = Meta::from_iter(rows).missing(&place, cluster)?;
    for step in missing {
        sqlx::raw_sql(step.sqlite).execute(&mut connection).await.map_err(failed)?;
        info!(step = step.name, place, "took a step of the schema");
    }
    for (key, value) in Meta::current(cluster) {
        sqlx::query(WRITE_META).bind(key).bind(value).execute(&mut connection).await.map_err(failed)?;
    }
    connection.execute("COMMIT").await.map_err(failed)?;
    connection.close().await.map_err(failed)?;
    Ok(missing.len())
}

fn unavailable(error: sqlx::Error) -> LogError {
    match error {
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => LogError::Corrupt(error.to_string()),
        error => LogError::Unavailable(error.to_string()),
    }
}

/// The log's clock.
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    milliseconds(since)
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn until(ttl: Duration) -> i64 {
    now_ms().saturating_add(milliseconds(ttl))
}

fn partition_of(row: &SqliteRow) -> Result<PartitionId, LogError> {
    let p: i64 = row.try_get("p").map_err(unavailable)?;
    u16::try_from(p).map(PartitionId).map_err(|_| LogError::Corrupt(format!("there is no partition {p}")))
}

fn number(row: &SqliteRow, name: &str) -> Result<u64, LogError> {
    row.try_get::<i64, _>(name).map(i64::cast_unsigned).map_err(unavailable)
}

fn array<const N: usize>(row: &SqliteRow, name: &str) -> Result<[u8; N], LogError> {
    let bytes: &[u8] = row.try_get(name).map_err(unavailable)?;
    bytes.try_into().map_err(|_| LogError::Corrupt(format!("{name} has {} bytes, not {N}", bytes.len())))
}

/// The columns of an entry.
const ENTRY: &str =
    r#"incarnation, seq, "offset", replica, counter, base, hash, chain, time_ms, format, subject, body"#;

fn entry(row: &SqliteRow) -> Result<Entry, LogError> {
    let format: i64 = row.try_get("format").map_err(unavailable)?;
    Ok(Entry {
        offset: Offset(number(row, "offset")?),
        incarnation: Incarnation(number(row, "incarnation")?),
        seq: Seq(number(row, "seq")?),
        replica: ReplicaId(number(row, "replica")?),
        subject: row.try_get("subject").map_err(unavailable)?,
        counter: number(row, "counter")?,
        base: Seq(number(row, "base")?),
        hash: array(row, "hash")?,
        chain: array(row, "chain")?,
        time_ms: number(row, "time_ms")?,
        format: u16::try_from(format)
            .map_err(|_| LogError::Corrupt(format!("there is no format {format}")))?,
        body: Bytes::from(row.try_get::<Vec<u8>, _>("body").map_err(unavailable)?),
    })
}

/// As in Postgres: the first entry, which is the one behind `after`, comes whatever its size.
fn page(key: &str, order: &str, parameters: usize) -> AssertSqlSafe<String> {
    let (after, count, bytes) = (parameters + 1, parameters + 2, parameters + 3);
    AssertSqlSafe(format!(
        "SELECT {ENTRY} FROM (SELECT *, sum(length(body)) OVER (ORDER BY {order} ROWS UNBOUNDED PRECEDING) AS total \
         FROM (SELECT {ENTRY} FROM entry WHERE {key} AND {order} > ${after} ORDER BY {order} LIMIT ${count}) AS near) \
         AS counted WHERE total <= ${bytes} OR {order} = ${after} + 1 ORDER BY {order}"
    ))
}

fn at_most(limit: usize) -> i64 {
    i64::try_from(limit.max(1)).unwrap_or(i64::MAX)
}

fn column(partition: PartitionId) -> i64 {
    partition.0.into()
}

/// A seq or offset to read behind; `None` where there can be nothing.
fn place_after(number: u64) -> Option<i64> {
    i64::try_from(number).ok().filter(|&number| number < i64::MAX)
}

#[async_trait]
impl EventLog for SqliteLog {
    async fn failed(&self) -> LogError {
        self.writer.failed().await
    }

    async fn join(&self, member: &Member, ttl: Duration) -> Result<Vec<Member>, LogError> {
        let member = member.clone();
        let write = self.writer.write(move |connection| {
            Box::pin(async move {
                sqlx::query(
                    "INSERT INTO member (node, address, until) VALUES ($1, $2, $3) \
                     ON CONFLICT (node) DO UPDATE SET address = excluded.address, until = excluded.until",
                )
                .bind(member.node.0)
                .bind(member.address)
                .bind(until(ttl))
                .execute(&mut *connection)
                .await?;
                let now = now_ms();
                sqlx::query("DELETE FROM member WHERE until <= $1")
                    .bind(now)
                    .execute(&mut *connection)
                    .await?;
                sqlx::query_as("SELECT node, address FROM member ORDER BY node").fetch_all(connection).await
            })
        });
        let rows: Vec<(String, String)> = write.await?;
        Ok(rows.into_iter().map(|(node, address)| Member { node: NodeId(node), address }).collect())
    }

    async fn leave(&self, node: &NodeId) -> Result<(), LogError> {
        let node = node.0.clone();
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    sqlx::query("DELETE FROM member WHERE node = $1").bind(node).execute(connection).await
                })
            })
            .await
            .map(drop)
    }

    async fn ownership(&self) -> Result<Vec<Ownership>, LogError> {
        let rows = sqlx::query(
            "SELECT p, epoch, owner, address, coalesce(lease_until > $1, 0) AS live FROM partition ORDER BY p",
        )
        .bind(now_ms())
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable)?;
        let row = |row: SqliteRow| {
            let live: bool = row.try_get("live").map_err(unavailable)?;
            let owner: Option<String> = row.try_get("owner").map_err(unavailable)?;
            let address: Option<String> = row.try_get("address").map_err(unavailable)?;
            let member = owner.zip(address).map(|(node, address)| Member { node: NodeId(node), address });
            Ok(Ownership {
                partition: partition_of(&row)?,
                epoch: Epoch(number(&row, "epoch")?),
                owner: member.filter(|_| live),
            })
        };
        rows.into_iter().map(row).collect()
    }

    async fn claim(
        &self,
        member: &Member,
        partitions: &[PartitionId],
        ttl: Duration,
    ) -> Result<Vec<Lease>, LogError> {
        let member = member.clone();
        let wanted = list(partitions.iter().map(|partition| partition.0));
        let write = self.writer.write(move |connection| {
            Box::pin(async move {
                sqlx::query(
                    "UPDATE partition SET epoch = epoch + 1, owner = $2, address = $3, lease_until = $4 \
                     WHERE p IN (SELECT value FROM json_each($1)) \
                     AND (lease_until IS NULL OR lease_until <= $5) RETURNING p, epoch, head, published",
                )
                .bind(wanted)
                .bind(member.node.0)
                .bind(member.address)
                .bind(until(ttl))
                .bind(now_ms())
                .fetch_all(connection)
                .await
            })
        });
        let lease = |row: SqliteRow| {
            Ok(Lease {
                partition: partition_of(&row)?,
                epoch: Epoch(number(&row, "epoch")?),
                head: Offset(number(&row, "head")?),
                published: Offset(number(&row, "published")?),
            })
        };
        let mut leases = write.await?.into_iter().map(lease).collect::<Result<Vec<_>, LogError>>()?;
        leases.sort_by_key(|lease| lease.partition);
        Ok(leases)
    }

    async fn renew(
        &self,
        node: &NodeId,
        held: &[(PartitionId, Epoch)],
        ttl: Duration,
    ) -> Result<Vec<PartitionId>, LogError> {
        let (node, wanted) = (node.0.clone(), pairs(held));
        let write = self.writer.write(move |connection| {
            Box::pin(async move {
                sqlx::query(
                    "UPDATE partition SET lease_until = $3 WHERE owner = $2 AND (p, epoch) IN \
                     (SELECT value ->> 0, value ->> 1 FROM json_each($1)) RETURNING p",
                )
                .bind(wanted)
                .bind(node)
                .bind(until(ttl))
                .fetch_all(connection)
                .await
            })
        });
        let kept = write.await?.iter().map(partition_of).collect::<Result<Vec<_>, LogError>>()?;
        Ok(held.iter().map(|&(id, _)| id).filter(|id| !kept.contains(id)).collect())
    }

    async fn release(&self, held: &[(PartitionId, Epoch)]) -> Result<(), LogError> {
        let wanted = pairs(held);
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    sqlx::query(
                        "UPDATE partition SET owner = NULL, address = NULL, lease_until = NULL \
                         WHERE (p, epoch) IN (SELECT value ->> 0, value ->> 1 FROM json_each($1))",
                    )
                    .bind(wanted)
                    .execute(connection)
                    .await
                })
            })
            .await
            .map(drop)
    }

    async fn append(&self, lease: &Lease, expected: Offset, batch: &Batch) -> Result<Appended, AppendError> {
        self.writer.append(lease, expected, batch).await
    }

    async fn published(&self, lease: &Lease, offset: Offset) -> Result<(), LogError> {
        let (partition, epoch) = (column(lease.partition), lease.epoch.0.cast_signed());
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    sqlx::query(
                        "UPDATE partition SET published = $3 WHERE p = $1 AND epoch = $2 AND published < $3",
                    )
                    .bind(partition)
                    .bind(epoch)
                    .bind(offset.0.cast_signed())
                    .execute(connection)
                    .await
                })
            })
            .await
            .map(drop)
    }

    async fn document(&self, name: &DocumentName) -> Result<Option<DocumentRecord>, LogError> {
        let query = "SELECT incarnation, strategy FROM document WHERE name = $1 AND retired_ms IS NULL";
        let row = sqlx::query(query).bind(name.as_str()).fetch_optional(&self.readers).await;
        let Some(row) = row.map_err(unavailable)? else { return Ok(None) };
        Ok(Some(DocumentRecord {
            name: name.clone(),
            incarnation: Incarnation(number(&row, "incarnation")?),
            strategy: stored_strategy(row.try_get("strategy").map_err(unavailable)?)?,
        }))
    }

    async fn read(
        &self,
        partition: PartitionId,
        incarnation: Incarnation,
        after: Seq,
        limit: ReadLimit,
    ) -> Result<Vec<Entry>, LogError> {
        let Some(after) = place_after(after.0) else { return Ok(Vec::new()) };
        let query = sqlx::query(page("p = $1 AND incarnation = $2", "seq", 2))
            .bind(column(partition))
            .bind(incarnation.0.cast_signed())
            .bind(after)
            .bind(at_most(limit.entries_max))
            .bind(at_most(limit.bytes_max));
        self.entries(query).await
    }

    async fn find(
        &self,
        partition: PartitionId,
        incarnation: Incarnation,
        replica: ReplicaId,
        counter: u64,
    ) -> Result<Option<Entry>, LogError> {
        let key = "p = $1 AND incarnation = $2 AND replica = $3 AND counter = $4";
        let query = sqlx::query(AssertSqlSafe(format!("SELECT {ENTRY} FROM entry WHERE {key}")))
            .bind(column(partition))
            .bind(incarnation.0.cast_signed())
            .bind(replica.0.cast_signed())
            .bind(counter.cast_signed());
        Ok(self.entries(query).await?.pop())
    }

    async fn follow(
        &self,
        partition: PartitionId,
        after: Offset,
        limit: ReadLimit,
    ) -> Result<Vec<Entry>, LogError> {
        let Some(after) = place_after(after.0) else { return Ok(Vec::new()) };
        let query = sqlx::query(page("p = $1", r#""offset""#, 1))
            .bind(column(partition))
            .bind(after)
            .bind(at_most(limit.entries_max))
            .bind(at_most(limit.bytes_max));
        self.entries(query).await
    }

    async fn take_cursor(
        &self,
        follower: &str,
        partition: PartitionId,
        node: &NodeId,
        ttl: Duration,
    ) -> Result<Option<Cursor>, LogError> {
        let (name, node) = (follower.to_owned(), node.0.clone());
        let write = self.writer.write(move |connection| {
            Box::pin(async move {
                sqlx::query(
                    "INSERT INTO follower (name, p, cursor, epoch, owner, lease_until) \
                     VALUES ($1, $2, 0, 1, $3, $4) ON CONFLICT (name, p) DO UPDATE \
                     SET epoch = epoch + 1, owner = excluded.owner, lease_until = excluded.lease_until \
                     WHERE lease_until <= $5 OR owner = excluded.owner RETURNING cursor, epoch",
                )
                .bind(name)
                .bind(column(partition))
                .bind(node)
                .bind(until(ttl))
                .bind(now_ms())
                .fetch_optional(connection)
                .await
            })
        });
        let Some(row) = write.await? else { return Ok(None) };
        let (offset, epoch) = (Offset(number(&row, "cursor")?), Epoch(number(&row, "epoch")?));
        Ok(Some(Cursor { follower: follower.to_owned(), partition, offset, epoch }))
    }

    async fn advance(&self, cursor: &Cursor, ttl: Duration) -> Result<bool, LogError> {
        let cursor = cursor.clone();
        let write = self.writer.write(move |connection| {
            Box::pin(async move {
                sqlx::query(
                    "UPDATE follower SET cursor = $4, lease_until = $5 \
                     WHERE name = $1 AND p = $2 AND epoch = $3 AND cursor <= $4",
                )
                .bind(cursor.follower)
                .bind(column(cursor.partition))
                .bind(cursor.epoch.0.cast_signed())
                .bind(cursor.offset.0.cast_signed())
                .bind(until(ttl))
                .execute(connection)
                .await
            })
        });
        Ok(write.await?.rows_affected() == 1)
    }
}

/// Numbers as a JSON list, which is how SQLite takes a list as one parameter.
fn list(numbers: impl Iterator<Item = u16>) -> String {
    format!("[{}]", numbers.map(|number| number.to_string()).collect::<Vec<_>>().join(","))
}

/// Partitions and epochs as a JSON list of pairs.
fn pairs(held: &[(PartitionId, Epoch)]) -> String {
    let pairs: Vec<String> = held.iter().map(|(partition, epoch)| format!("[{partition},{epoch}]")).collect();
    format!("[{}]", pairs.join(","))
}
