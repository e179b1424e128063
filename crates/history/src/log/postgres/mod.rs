//! The event log in Postgres.
//!
//! Appends go by connections of their own ([`append`]); everything else by a pool. Every call runs in a
//! task of its own, so that a caller that goes away leaves no connection in the middle of something.
//! Statements that lock several rows of `partition` lock them in order, so that none waits in a circle.

mod append;

use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use manyhands_crdt::ReplicaId;
use manyhands_proto::{DocumentName, Epoch, Incarnation, NodeId, Offset, PartitionId, Seq};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, Connection, Executor, Row};
use tracing::info;

use self::append::Appenders;
use super::schema::{CREATE_META, Meta, READ_META, WRITE_META, empty};
use super::{
    AppendError, Appended, Batch, Cursor, DocumentRecord, Entry, EventLog, Lease, LogError, Member, Options,
    Ownership, ReadLimit, stored_strategy,
};

/// How long opening waits for the server.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Longest run of a statement that is not an append.
const STATEMENT_TIMEOUT: &str = "10s";
/// Held while the schema is brought forward.
const MIGRATION_LOCK: &str = "SELECT pg_advisory_xact_lock(5504120717823476063)";

/// An event log in Postgres.
pub(crate) struct PostgresLog {
    pool: PgPool,
    appenders: Appenders,
}

impl PostgresLog {
    pub(crate) async fn open(url: &str, options: &Options) -> Result<PostgresLog, LogError> {
        let connect = parse(url)?;
        let place = place(&connect);
        let pool = PgPoolOptions::new()
            .max_connections(options.read_connections.max(1))
            .acquire_timeout(CONNECT_WITHIN)
            .connect_with(connect.clone().options([("statement_timeout", STATEMENT_TIMEOUT)]))
            .await
            .map_err(|error| unreachable_at(&place, &error))?;
        let meta: Meta = match sqlx::query_as(READ_META).fetch_all(&pool).await {
            Ok(rows) => rows.into_iter().collect(),
            Err(error) if is_undefined_table(&error) => return Err(empty(&place)),
            Err(error) => return Err(unreachable_at(&place, &error)),
        };
        meta.check(&place, &options.cluster)?;
        let (fsync,): (String,) = sqlx::query_as("SHOW fsync").fetch_one(&pool).await.map_err(unavailable)?;
        if fsync != "on" {
            return Err(LogError::Mismatch(format!(
                "Postgres at {place} runs with fsync={fsync} and would lose what it acknowledged: set fsync=on"
            )));
        }
        Ok(PostgresLog { pool, appenders: Appenders::start(&connect, options.append_connections) })
    }

    /// Runs database work to its end even when the caller goes away.
    async fn run<T, F>(&self, work: impl FnOnce(PgPool) -> F) -> Result<T, LogError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, LogError>> + Send + 'static,
    {
        let task = tokio::spawn(work(self.pool.clone()));
        task.await.map_err(|error| LogError::Unavailable(error.to_string()))?
    }
}

/// Makes or updates the schema in one transaction.
pub(crate) async fn migrate(url: &str, cluster: &str) -> Result<usize, LogError> {
    let connect = parse(url)?;
    let place = place(&connect);
    let mut connection =
        PgConnection::connect_with(&connect).await.map_err(|error| unreachable_at(&place, &error))?;
    let failed =
        |error: sqlx::Error| LogError::Mismatch(format!("the schema of {place} was not changed: {error}"));
    // The connection is ours alone and is closed on any error, which rolls back.
    connection.execute("BEGIN").await.map_err(failed)?;
    connection.execute(MIGRATION_LOCK).await.map_err(failed)?;
    connection.execute(CREATE_META).await.map_err(failed)?;
    let rows: Vec<(String, String)> =
        sqlx::query_as(READ_META).fetch_all(&mut connection).await.map_err(failed)?;
    let missing = Meta::from_iter(rows).missing(&place, cluster)?;
    for step in missing {
        sqlx::raw_sql(step.postgres).execute(&mut connection).await.map_err(failed)?;
        info!(step = step.name, place, "took a step of the schema");
    }
    for (key, value) in Meta::current(cluster) {
        sqlx::query(WRITE_META).bind(key).bind(value).execute(&mut connection).await.map_err(failed)?;
    }
    connection.execute("COMMIT").await.map_err(failed)?;
    Ok(missing.len())
}

fn parse(url: &str) -> Result<PgConnectOptions, LogError> {
    let options: PgConnectOptions = url.parse().map_err(|error: sqlx::Error| {
        LogError::Url(format!("the event log's URL is not postgres://user:password@host/database: {error}"))
    })?;
    Ok(options.application_name("manyhands"))
}

/// The database without its password, for messages.
fn place(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or(options.get_username());
    format!("postgres://{}:{}/{database}", options.get_host(), options.get_port())
}

fn unreachable_at(place: &str, error: &sqlx::Error) -> LogError {
    LogError::Unavailable(format!("{place} does not answer: {error}"))
}

fn unavailable(error: sqlx::Error) -> LogError {
    match error {
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => LogError::Corrupt(error.to_string()),
        error => LogError::Unavailable(error.to_string()),
    }
}

fn is_undefined_table(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("42P01"))
}

/// A partition as it is stored.
fn column(partition: PartitionId) -> i16 {
    // There are 271 partitions.
    partition.0 as i16
}

fn partition_of(row: &PgRow) -> Result<PartitionId, LogError> {
    let p: i16 = row.try_get("p").map_err(unavailable)?;
    u16::try_from(p).map(PartitionId).map_err(|_| LogError::Corrupt(format!("there is no partition {p}")))
}

fn number(row: &PgRow, name: &str) -> Result<u64, LogError> {
    row.try_get::<i64, _>(name).map(i64::cast_unsigned).map_err(unavailable)
}

fn array<const N: usize>(row: &PgRow, name: &str) -> Result<[u8; N], LogError> {
    let bytes: &[u8] = row.try_get(name).map_err(unavailable)?;
    bytes.try_into().map_err(|_| LogError::Corrupt(format!("{name} has {} bytes, not {N}", bytes.len())))
}

fn seconds(ttl: Duration) -> f64 {
    ttl.as_secs_f64()
}

/// The columns of an entry.
const ENTRY: &str =
    r#"incarnation, seq, "offset", replica, counter, base, hash, chain, time_ms, format, subject, body"#;

fn entry(row: &PgRow) -> Result<Entry, LogError> {
    let format: i32 = row.try_get("format").map_err(unavailable)?;
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

/// The page of entries where `key` matches, above `after` in the order of `order`. `after` and the limits
/// are the last three parameters; the first entry, which is the one behind `after`, comes whatever its size.
fn page(key: &str, order: &str, parameters: usize) -> AssertSqlSafe<String> {
    let (after, count, bytes) = (parameters + 1, parameters + 2, parameters + 3);
    AssertSqlSafe(format!(
        "SELECT {ENTRY} FROM (SELECT *, sum(length(body)) OVER (ORDER BY {order} ROWS UNBOUNDED PRECEDING) AS total \
         FROM (SELECT {ENTRY} FROM entry WHERE {key} AND {order} > ${after} ORDER BY {order} LIMIT ${count}) AS near) \
         AS counted WHERE total <= ${bytes} OR {order} = ${after} + 1 ORDER BY {order}"
    ))
}

/// A limit as a parameter.
fn at_most(limit: usize) -> i64 {
    i64::try_from(limit.max(1)).unwrap_or(i64::MAX)
}

/// A seq or offset to read behind; `None` where there can be nothing.
fn place_after(number: u64) -> Option<i64> {
    i64::try_from(number).ok().filter(|&number| number < i64::MAX)
}

#[async_trait]
impl EventLog for PostgresLog {
    async fn join(&self, member: &Member, ttl: Duration) -> Result<Vec<Member>, LogError> {
        let member = member.clone();
        self.run(async move |pool| {
            sqlx::query(
                "WITH gone AS (DELETE FROM member WHERE until < now() - interval '1 hour' AND node <> $1) \
                 INSERT INTO member (node, address, until) VALUES ($1, $2, now() + make_interval(secs => $3)) \
                 ON CONFLICT (node) DO UPDATE SET address = excluded.address, until = excluded.until",
            )
            .bind(member.node.0)
            .bind(member.address)
            .bind(seconds(ttl))
            .execute(&pool)
            .await
            .map_err(unavailable)?;
            let live = "SELECT node, address FROM member WHERE until > now() ORDER BY node COLLATE \"C\"";
            let rows: Vec<(String, String)> = sqlx::query_as(live).fetch_all(&pool).await.map_err(unavailable)?;
            Ok(rows.into_iter().map(|(node, address)| Member { node: NodeId(node), address }).collect())
        })
        .await
    }

    async fn leave(&self, node: &NodeId) -> Result<(), LogError> {
        let node = node.0.clone();
        self.run(async move |pool| {
            let leave = sqlx::query("DELETE FROM member WHERE node = $1").bind(node);
            leave.execute(&pool).await.map(drop).map_err(unavailable)
        })
        .await
    }

    async fn ownership(&self) -> Result<Vec<Ownership>, LogError> {
        self.run(async move |pool| {
            let rows = sqlx::query(
                "SELECT p, epoch, owner, address, coalesce(lease_until > now(), false) AS live \
                 FROM partition ORDER BY p",
            )
            .fetch_all(&pool)
            .await
            .map_err(unavailable)?;
            let row = |row: PgRow| {
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
        })
        .await
    }

    async fn claim(
        &self,
        member: &Member,
        partitions: &[PartitionId],
        ttl: Duration,
    ) -> Result<Vec<Lease>, LogError> {
        let member = member.clone();
        let wanted: Vec<i16> = partitions.iter().copied().map(column).collect();
        self.run(async move |pool| {
            // The row lock waits for an append that is under way, so what is read here is complete.
            let rows = sqlx::query(
                "WITH free AS ( \
                     SELECT p FROM partition \
                     WHERE p = ANY ($1) AND (lease_until IS NULL OR lease_until < now()) \
                     ORDER BY p FOR UPDATE) \
                 UPDATE partition AS row SET epoch = row.epoch + 1, owner = $2, address = $3, \
                     lease_until = now() + make_interval(secs => $4) \
                 FROM free WHERE row.p = free.p AND (row.lease_until IS NULL OR row.lease_until < now()) \
                 RETURNING row.p, row.epoch, row.head, row.published",
            )
            .bind(wanted)
            .bind(member.node.0)
            .bind(member.address)
            .bind(seconds(ttl))
            .fetch_all(&pool)
            .await
            .map_err(unavailable)?;
            let lease = |row: PgRow| {
                Ok(Lease {
                    partition: partition_of(&row)?,
                    epoch: Epoch(number(&row, "epoch")?),
                    head: Offset(number(&row, "head")?),
                    published: Offset(number(&row, "published")?),
                })
            };
            let mut leases = rows.into_iter().map(lease).collect::<Result<Vec<_>, LogError>>()?;
            leases.sort_by_key(|lease| lease.partition);
            Ok(leases)
        })
        .await
    }

    async fn renew(
        &self,
        node: &NodeId,
        held: &[(PartitionId, Epoch)],
        ttl: Duration,
    ) -> Result<Vec<PartitionId>, LogError> {
        let node = node.0.clone();
        let held = held.to_vec();
        self.run(async move |pool| {
            let (partitions, epochs) = columns(&held);
            let rows = sqlx::query(
                "WITH locked AS (SELECT p FROM partition WHERE p = ANY ($1) ORDER BY p FOR UPDATE) \
                 UPDATE partition AS row SET lease_until = now() + make_interval(secs => $4) \
                 FROM locked JOIN unnest($1, $2) AS held (p, epoch) USING (p) \
                 WHERE row.p = locked.p AND row.epoch = held.epoch AND row.owner = $3 RETURNING row.p",
            )
            .bind(partitions)
            .bind(epochs)
            .bind(node)
            .bind(seconds(ttl))
            .fetch_all(&pool)
            .await
            .map_err(unavailable)?;
            let kept = rows.iter().map(partition_of).collect::<Result<Vec<_>, LogError>>()?;
            Ok(held.into_iter().map(|(id, _)| id).filter(|id| !kept.contains(id)).collect())
        })
        .await
    }

    async fn release(&self, held: &[(PartitionId, Epoch)]) -> Result<(), LogError> {
        let (partitions, epochs) = columns(held);
        self.run(async move |pool| {
            sqlx::query(
                "WITH locked AS (SELECT p FROM partition WHERE p = ANY ($1) ORDER BY p FOR UPDATE) \
                 UPDATE partition AS row SET owner = NULL, address = NULL, lease_until = NULL \
                 FROM locked JOIN unnest($1, $2) AS held (p, epoch) USING (p) \
                 WHERE row.p = locked.p AND row.epoch = held.epoch",
            )
            .bind(partitions)
            .bind(epochs)
            .execute(&pool)
            .await
            .map(drop)
            .map_err(unavailable)
        })
        .await
    }

    async fn append(&self, lease: &Lease, expected: Offset, batch: &Batch) -> Result<Appended, AppendError> {
        self.appenders.append(lease, expected, batch).await
    }

    async fn published(&self, lease: &Lease, offset: Offset) -> Result<(), LogError> {
        let (partition, epoch) = (column(lease.partition), lease.epoch.0.cast_signed());
        self.run(async move |pool| {
            sqlx::query("UPDATE partition SET published = $3 WHERE p = $1 AND epoch = $2 AND published < $3")
                .bind(partition)
                .bind(epoch)
                .bind(offset.0.cast_signed())
                .execute(&pool)
                .await
                .map(drop)
                .map_err(unavailable)
        })
        .await
    }

    async fn document(&self, name: &DocumentName) -> Result<Option<DocumentRecord>, LogError> {
        let name = name.clone();
        self.run(async move |pool| {
            let query = "SELECT incarnation, strategy FROM document WHERE name = $1 AND retired_ms IS NULL";
            let row =
                sqlx::query(query).bind(name.as_str()).fetch_optional(&pool).await.map_err(unavailable)?;
            let Some(row) = row else { return Ok(None) };
            let strategy: i16 = row.try_get("strategy").map_err(unavailable)?;
            Ok(Some(DocumentRecord {
                name,
                incarnation: Incarnation(number(&row, "incarnation")?),
                strategy: stored_strategy(strategy.into())?,
            }))
        })
        .await
    }

    async fn read(
        &self,
        partition: PartitionId,
        incarnation: Incarnation,
        after: Seq,
        limit: ReadLimit,
    ) -> Result<Vec<Entry>, LogError> {
        let Some(after) = place_after(after.0) else { return Ok(Vec::new()) };
        self.run(async move |pool| {
            let rows = sqlx::query(page("p = $1 AND incarnation = $2", "seq", 2))
                .bind(column(partition))
                .bind(incarnation.0.cast_signed())
                .bind(after)
                .bind(at_most(limit.entries_max))
                .bind(at_most(limit.bytes_max))
                .fetch_all(&pool)
                .await
                .map_err(unavailable)?;
            rows.iter().map(entry).collect()
        })
        .await
    }

    async fn find(
        &self,
        partition: PartitionId,
        incarnation: Incarnation,
        replica: ReplicaId,
        counter: u64,
    ) -> Result<Option<Entry>, LogError> {
        self.run(async move |pool| {
            let key = "p = $1 AND incarnation = $2 AND replica = $3 AND counter = $4";
            let row = sqlx::query(AssertSqlSafe(format!("SELECT {ENTRY} FROM entry WHERE {key}")))
                .bind(column(partition))
                .bind(incarnation.0.cast_signed())
                .bind(replica.0.cast_signed())
                .bind(counter.cast_signed())
                .fetch_optional(&pool)
                .await
                .map_err(unavailable)?;
            row.as_ref().map(entry).transpose()
        })
        .await
    }

    async fn follow(
        &self,
        partition: PartitionId,
        after: Offset,
        limit: ReadLimit,
    ) -> Result<Vec<Entry>, LogError> {
        let Some(after) = place_after(after.0) else { return Ok(Vec::new()) };
        self.run(async move |pool| {
            let rows = sqlx::query(page("p = $1", r#""offset""#, 1))
                .bind(column(partition))
                .bind(after)
                .bind(at_most(limit.entries_max))
                .bind(at_most(limit.bytes_max))
                .fetch_all(&pool)
                .await
                .map_err(unavailable)?;
            rows.iter().map(entry).collect()
        })
        .await
    }

    async fn take_cursor(
        &self,
        follower: &str,
        partition: PartitionId,
        node: &NodeId,
        ttl: Duration,
    ) -> Result<Option<Cursor>, LogError> {
        let (follower, node) = (follower.to_owned(), node.0.clone());
        self.run(async move |pool| {
            let row = sqlx::query(
                "INSERT INTO follower AS row (name, p, cursor, epoch, owner, lease_until) \
                 VALUES ($1, $2, 0, 1, $3, now() + make_interval(secs => $4)) \
                 ON CONFLICT (name, p) DO UPDATE \
                 SET epoch = row.epoch + 1, owner = excluded.owner, lease_until = excluded.lease_until \
                 WHERE row.lease_until <= now() OR row.owner = excluded.owner RETURNING cursor, epoch",
            )
            .bind(&follower)
            .bind(column(partition))
            .bind(node)
            .bind(seconds(ttl))
            .fetch_optional(&pool)
            .await
            .map_err(unavailable)?;
            let Some(row) = row else { return Ok(None) };
            let (offset, epoch) = (Offset(number(&row, "cursor")?), Epoch(number(&row, "epoch")?));
            Ok(Some(Cursor { follower, partition, offset, epoch }))
        })
        .await
    }

    async fn advance(&self, cursor: &Cursor, ttl: Duration) -> Result<bool, LogError> {
        let cursor = cursor.clone();
        self.run(async move |pool| {
            let moved = sqlx::query(
                "UPDATE follower SET cursor = $4, lease_until = now() + make_interval(secs => $5) \
                 WHERE name = $1 AND p = $2 AND epoch = $3 AND cursor <= $4",
            )
            .bind(cursor.follower)
            .bind(column(cursor.partition))
            .bind(cursor.epoch.0.cast_signed())
            .bind(cursor.offset.0.cast_signed())
            .bind(seconds(ttl))
            .execute(&pool)
            .await
            .map_err(unavailable)?;
            Ok(moved.rows_affected() == 1)
        })
        .await
    }
}

fn columns(held: &[(PartitionId, Epoch)]) -> (Vec<i16>, Vec<i64>) {
    held.iter().map(|&(partition, epoch)| (column(partition), epoch.0.cast_signed())).unzip()
}
