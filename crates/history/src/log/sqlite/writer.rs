//! The only connection that writes, and its task.
//!
//! Appends that wait at the same time share one transaction, and so one flush of the disk; each keeps the
//! verdict of its own compare-and-set. An error of the disk ends the task for good: what a failed flush
//! left behind cannot be known, and must never be acknowledged by a later one that succeeds.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::LazyLock;
use std::time::Duration;

use manyhands_proto::{Incarnation, Offset, PartitionId};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Connection, Executor};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, warn};

use super::{ENTRY, Query, column, entry, number, unavailable};
use crate::log::batch::{Verdict, check, diverged, head_after, is_stored, judge};
use crate::log::{AppendError, Appended, Batch, Entry, Lease, LogError};

/// Jobs that wait; more wait at their callers.
const QUEUE: usize = 512;
/// Jobs that share a transaction at the most.
const ROUND_MAX: usize = 128;
/// Pause before a file that another process keeps busy is asked again.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// Why nothing is answered after an error of the disk.
const GONE: &str = "the event log's file failed and is closed";

/// The handle of the task. It ends when this is dropped and what waits is done.
pub(super) struct Writer(mpsc::Sender<Job>);

enum Job {
    Append(Append),
    Other(Box<Other>),
}

/// Work that is not an append, with its answer inside. Says whether the disk failed.
type Other = dyn for<'c> FnOnce(&'c mut SqliteConnection) -> Work<'c, Result<(), String>> + Send;

pub(super) type Work<'c, T> = Pin<Box<dyn Future<Output = T> + Send + 'c>>;

struct Append {
    lease: Lease,
    expected: Offset,
    batch: Batch,
    answer: oneshot::Sender<Result<Appended, AppendError>>,
}

impl Writer {
    pub(super) fn start(connection: SqliteConnection) -> Writer {
        let (jobs, waiting) = mpsc::channel(QUEUE);
        tokio::spawn(run(connection, waiting));
        Writer(jobs)
    }

    /// Ends when the task has ended, which it does when the disk failed.
    pub(super) async fn failed(&self) -> LogError {
        self.0.closed().await;
        LogError::Unavailable(GONE.into())
    }

    pub(super) async fn append(
        &self,
        lease: &Lease,
        expected: Offset,
        batch: &Batch,
    ) -> Result<Appended, AppendError> {
        check(lease, expected, batch)?;
        let gone = || AppendError::Unknown(GONE.into());
        let (answer, outcome) = oneshot::channel();
        let append = Append { lease: lease.clone(), expected, batch: batch.clone(), answer };
        self.0.send(Job::Append(append)).await.map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?
    }

    /// Runs other work on the connection, whether or not the caller stays to hear of it.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        work: impl for<'c> FnOnce(&'c mut SqliteConnection) -> Work<'c, Result<T, sqlx::Error>> + Send + 'static,
    ) -> Result<T, LogError> {
        let gone = || LogError::Unavailable(GONE.into());
        let (answer, outcome) = oneshot::channel();
        let job = Job::Other(Box::new(move |connection| {
            Box::pin(async move {
                let result = work(connection).await;
                let failed = match &result {
                    Err(error) if is_disk(error) => Err(error.to_string()),
                    _ => Ok(()),
                };
                // A caller that went away has decided not to know.
                let _ = answer.send(result);
                failed
            })
        }));
        self.0.send(job).await.map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?.map_err(unavailable)
    }
}

async fn run(mut connection: SqliteConnection, mut jobs: mpsc::Receiver<Job>) {
    let mut waiting = Vec::with_capacity(ROUND_MAX);
    while jobs.recv_many(&mut waiting, ROUND_MAX).await > 0 {
        let mut appends = Vec::new();
        let mut others = Vec::new();
        for job in waiting.drain(..) {
            match job {
                Job::Append(append) => appends.push(append),
                Job::Other(work) => others.push(work),
            }
        }
        let mut done = settle(&mut connection, appends).await.map_err(|error| error.to_string());
        for work in others {
            if done.is_ok() {
                done = work(&mut connection).await;
            }
        }
        if let Err(error) = done {
            error!(error, "the event log's file failed; nothing is acknowledged any more until a restart");
            return;
        }
    }
    // Leaves no write-ahead log behind; a crash may.
    if let Err(error) = connection.close().await {
        warn!(%error, "the event log's file was not closed in order");
    }
}

/// Gives each append its verdict. An error means that no verdict can be given.
async fn settle(connection: &mut SqliteConnection, appends: Vec<Append>) -> Result<(), sqlx::Error> {
    if appends.is_empty() {
        return Ok(());
    }
    match transact(connection, &appends).await {
        Ok(verdicts) => {
            for (append, verdict) in appends.into_iter().zip(verdicts) {
                let _ = append.answer.send(verdict);
            }
            return Ok(());
        }
        Err(error) if !is_refusal(&error) => return Err(error),
        Err(_) => connection.execute("ROLLBACK").await?,
    };
    // One of them is wrong, and must not take the others with it.
    for append in appends {
        let verdict = match transact(connection, std::slice::from_ref(&append)).await {
            Ok(mut verdicts) => verdicts.remove(0),
            Err(error) if is_refusal(&error) => {
                connection.execute("ROLLBACK").await?;
                Err(AppendError::Refused(error.to_string()))
            }
            Err(error) => return Err(error),
        };
        let _ = append.answer.send(verdict);
    }
    Ok(())
}

/// One transaction over several appends.
async fn transact(
    connection: &mut SqliteConnection,
    appends: &[Append],
) -> Result<Vec<Result<Appended, AppendError>>, sqlx::Error> {
    while let Err(error) = connection.execute("BEGIN IMMEDIATE").await {
        if !is_busy(&error) {
            return Err(error);
        }
        warn!("another process keeps the event log's file busy");
        tokio::time::sleep(BUSY_PAUSE).await;
    }
    let mut verdicts = Vec::with_capacity(appends.len());
    let mut entries: Vec<(PartitionId, &Entry)> = Vec::new();
    let mut fresh = BTreeSet::new();
    for append in appends {
        // A second append to a partition may build on the first, or be a repetition of it.
        if !fresh.insert(append.lease.partition) {
            insert(connection, &std::mem::take(&mut entries)).await?;
        }
        verdicts.push(append.compare_and_set(connection, &mut entries).await?);
    }
    insert(connection, &entries).await?;
    connection.execute("COMMIT").await?;
    Ok(verdicts)
}

impl Append {
    /// Moves the head and hands on what is to be inserted, if it is where it is expected.
    async fn compare_and_set<'a>(
        &'a self,
        connection: &mut SqliteConnection,
        entries: &mut Vec<(PartitionId, &'a Entry)>,
    ) -> Result<Result<Appended, AppendError>, sqlx::Error> {
        let Append { lease, expected, batch, .. } = self;
        let head = head_after(*expected, batch);
        let appended = Appended { partition: lease.partition, epoch: lease.epoch, head };
        let moved = sqlx::query("UPDATE partition SET head = $4 WHERE p = $1 AND epoch = $2 AND head = $3")
            .bind(column(lease.partition))
            .bind(lease.epoch.0.cast_signed())
            .bind(expected.0.cast_signed())
            .bind(head.0.cast_signed())
            .execute(&mut *connection)
            .await?;
        if moved.rows_affected() == 0 {
            return self.resolve(connection, appended).await;
        }
        for document in &batch.created {
            sqlx::query(
                "INSERT INTO document (incarnation, name, p, strategy, created_ms) VALUES ($1, $2, $3, $4, $5)",
            )
            .bind(document.incarnation.0.cast_signed())
            .bind(document.name.as_str())
            .bind(column(lease.partition))
            .bind(i64::from(document.strategy.code()))
            .bind(began(batch).get(&document.incarnation).copied())
            .execute(&mut *connection)
            .await?;
        }
        entries.extend(batch.entries.iter().map(|entry| (lease.partition, entry)));
        Ok(Ok(appended))
    }

    /// The head was not moved: by whose doing?
    async fn resolve(
        &self,
        connection: &mut SqliteConnection,
        appended: Appended,
    ) -> Result<Result<Appended, AppendError>, sqlx::Error> {
        let Append { lease, expected, batch, .. } = self;
        let row: SqliteRow = sqlx::query("SELECT epoch, head FROM partition WHERE p = $1")
            .bind(column(lease.partition))
            .fetch_one(&mut *connection)
            .await?;
        let (epoch, head) = (number(&row, "epoch").map_err(broken)?, number(&row, "head").map_err(broken)?);
        match judge(lease, *expected, batch, epoch, Offset(head)) {
            Verdict::Failed(error) => return Ok(Err(error)),
            Verdict::Compare => {}
        }
        let query = format!(r#"SELECT {ENTRY} FROM entry WHERE p = $1 AND "offset" > $2 ORDER BY "offset""#);
        let rows = sqlx::query(AssertSqlSafe(query))
            .bind(column(lease.partition))
            .bind(expected.0.cast_signed())
            .fetch_all(connection)
            .await?;
        let stored: Vec<_> = rows.iter().map(entry).collect::<Result<_, _>>().map_err(broken)?;
        let same = is_stored(batch, &stored);
        Ok(if same { Ok(appended) } else { Err(diverged(lease, *expected, Offset(head))) })
    }
}

/// When each incarnation has its first entry in the batch.
fn began(batch: &Batch) -> BTreeMap<Incarnation, i64> {
    let mut began = BTreeMap::new();
    for entry in &batch.entries {
        began.entry(entry.incarnation).or_insert(entry.time_ms.cast_signed());
    }
    began
}

/// Inserts in statements of few sizes, so that each is prepared once.
async fn insert(
    connection: &mut SqliteConnection,
    mut entries: &[(PartitionId, &Entry)],
) -> Result<(), sqlx::Error> {
    static STATEMENTS: LazyLock<[(usize, String); 3]> =
        LazyLock::new(|| [64, 8, 1].map(|rows| (rows, insert_statement(rows))));
    for (rows, statement) in STATEMENTS.iter() {
        while entries.len() >= *rows {
            let (now, later) = entries.split_at(*rows);
            entries = later;
            let query = sqlx::query(AssertSqlSafe(statement.as_str()));
            now.iter().fold(query, bind_entry).execute(&mut *connection).await?;
        }
    }
    Ok(())
}

fn insert_statement(rows: usize) -> String {
    let row = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
    format!("INSERT INTO entry (p, {ENTRY}) VALUES {}", vec![row; rows].join(", "))
}

fn bind_entry<'a>(query: Query<'a>, (partition, entry): &(PartitionId, &'a Entry)) -> Query<'a> {
    query
        .bind(column(*partition))
        .bind(entry.incarnation.0.cast_signed())
        .bind(entry.seq.0.cast_signed())
        .bind(entry.offset.0.cast_signed())
        .bind(entry.replica.0.cast_signed())
        .bind(entry.counter.cast_signed())
        .bind(entry.base.0.cast_signed())
        .bind(&entry.hash[..])
        .bind(&entry.chain[..])
        .bind(entry.time_ms.cast_signed())
        .bind(i64::from(entry.format))
        .bind(entry.subject.as_deref())
        .bind(&entry.body[..])
}

/// Whether the statement itself is wrong (a constraint, a type), and the transaction still in order.
fn is_refusal(error: &sqlx::Error) -> bool {
    const CONSTRAINT: i32 = 19;
    code(error).is_some_and(|code| code & 0xff == CONSTRAINT)
}

fn is_busy(error: &sqlx::Error) -> bool {
    const BUSY: i32 = 5;
    code(error).is_some_and(|code| code & 0xff == BUSY)
}

/// Whether the disk did not do what it was told, or is full.
fn is_disk(error: &sqlx::Error) -> bool {
    const READONLY: i32 = 8;
    const IOERR: i32 = 10;
    const CORRUPT: i32 = 11;
    const FULL: i32 = 13;
    const NOTADB: i32 = 26;
    code(error).is_some_and(|code| [READONLY, IOERR, CORRUPT, FULL, NOTADB].contains(&(code & 0xff)))
}

/// SQLite's extended result code.
fn code(error: &sqlx::Error) -> Option<i32> {
    error.as_database_error()?.code()?.parse().ok()
}

/// A stored row that does not decode.
fn broken(error: LogError) -> sqlx::Error {
    sqlx::Error::Decode(error.to_string().into())
}
