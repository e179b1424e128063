//! The append: one statement, on connections that do nothing else.
//!
//! The statement compares and sets the partition's head under its epoch, and inserts, in one autocommit: no
//! transaction is ever open over a wait for us. When its outcome is unknown the connection is closed and
//! the same statement is run on a new one, until the database answers. If the earlier try had committed,
//! the head has moved and the statement does nothing; the rows are then read back and compared. If it is
//! still under way, its row lock makes the new one wait for its end.
//!
//! Appends of several partitions that wait at one connection go in one statement, each with a
//! compare-and-set of its own: one commit, many verdicts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use manyhands_proto::Offset;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::{ENTRY, column, entry, number, partition_of};
use crate::log::batch::{Verdict, check, diverged, head_after, is_stored, judge};
use crate::log::{AppendError, Appended, Batch, Lease};

/// An attempt that takes longer counts as unknown: longer than `lock_timeout`, which answers by itself.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(7);
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// Pause before an unknown outcome is asked for again; doubles up to the second figure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// Appends that wait at one connection; more wait at their callers.
const QUEUE: usize = 512;
/// What goes into one statement at the most. A single append may be larger.
const ROUND_APPENDS_MAX: usize = 64;
const ROUND_ENTRIES_MAX: usize = 1_024;
const ROUND_BYTES_MAX: usize = 1 << 20;

/// The rows of `partition` are locked in order, so that statements over several never wait in a circle.
/// Under `read committed` the conditions are checked again after a wait for a row.
const APPEND: &str = r#"
WITH want AS (
    SELECT * FROM unnest($1::smallint[], $2::bigint[], $3::bigint[], $4::bigint[])
        AS want (p, epoch, expected, count)
), locked AS (
    SELECT p FROM partition WHERE p = ANY ($1) ORDER BY p FOR NO KEY UPDATE
), moved AS (
    UPDATE partition AS row SET head = want.expected + want.count
    FROM locked JOIN want USING (p)
    WHERE row.p = locked.p AND row.epoch = want.epoch AND row.head = want.expected
    RETURNING row.p
), begun AS (
    INSERT INTO document (p, incarnation, name, strategy, created_ms)
    SELECT p, incarnation, name, strategy, created_ms
    FROM unnest($5::smallint[], $6::bigint[], $7::text[], $8::smallint[], $9::bigint[])
        AS document (p, incarnation, name, strategy, created_ms)
    JOIN moved USING (p)
), stored AS (
    INSERT INTO entry
        (p, incarnation, seq, "offset", replica, counter, base, hash, chain, time_ms, format, subject, body)
    SELECT p, incarnation, seq, "offset", replica, counter, base, hash, chain, time_ms, format, subject, body
    FROM unnest($10::smallint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[], $15::bigint[],
            $16::bigint[], $17::bytea[], $18::bytea[], $19::bigint[], $20::integer[], $21::text[], $22::bytea[])
        AS entry (p, incarnation, seq, "offset", replica, counter, base, hash, chain, time_ms, format, subject, body)
    JOIN moved USING (p)
)
SELECT p FROM moved"#;

/// The connections that append. A partition always goes by the same one, so its appends stay in order.
pub(super) struct Appenders(Vec<mpsc::Sender<Job>>);

struct Job {
    lease: Lease,
    expected: Offset,
    batch: Batch,
    answer: oneshot::Sender<Result<Appended, AppendError>>,
}

impl Appenders {
    /// Starts the tasks; they connect when there is work, and end when this value is dropped and what
    /// they hold is settled.
    pub(super) fn start(connect: &PgConnectOptions, connections: usize) -> Appenders {
        let connect = connect.clone().options([
            ("synchronous_commit", "on"),
            ("default_transaction_isolation", "read committed"),
            // An append is never cancelled by time: a wait for a standby that is cut short reports success.
            // Nor may an operator cancel one by hand (pg_cancel_backend) while a standby is away; to cut
            // its connection (pg_terminate_backend) is safe.
            ("statement_timeout", "0"),
            ("lock_timeout", "5s"),
            ("idle_in_transaction_session_timeout", "2s"),
            ("client_connection_check_interval", "1s"),
            ("tcp_user_timeout", "5s"),
            ("tcp_keepalives_idle", "5"),
            ("jit", "off"),
            ("plan_cache_mode", "force_generic_plan"),
        ]);
        let start = |_| {
            let (jobs, waiting) = mpsc::channel(QUEUE);
            tokio::spawn(Appender { connect: connect.clone(), connection: None }.run(waiting));
            jobs
        };
        Appenders((0..connections.max(1)).map(start).collect())
    }

    pub(super) async fn append(
        &self,
        lease: &Lease,
        expected: Offset,
        batch: &Batch,
    ) -> Result<Appended, AppendError> {
        check(lease, expected, batch)?;
        let gone = || AppendError::Unknown("the event log was closed".into());
        let (answer, outcome) = oneshot::channel();
        let job = Job { lease: lease.clone(), expected, batch: batch.clone(), answer };
        let appender = &self.0[usize::from(lease.partition.0) % self.0.len()];
        appender.send(job).await.map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?
    }
}

/// One connection and its task.
struct Appender {
    connect: PgConnectOptions,
    connection: Option<PgConnection>,
}

/// What came of running a statement.
enum Outcome {
    /// Verdicts in the order of the jobs.
    Settled(Vec<Result<Appended, AppendError>>),
    /// The database refused the statement for what is in it; nothing of it is stored.
    Refused(String),
}

impl Appender {
    async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut waiting: VecDeque<Job> = VecDeque::new();
        loop {
            if waiting.is_empty() {
                let Some(job) = jobs.recv().await else { return };
                waiting.push_back(job);
            }
            while waiting.len() < QUEUE
                && let Ok(job) = jobs.try_recv()
            {
                waiting.push_back(job);
            }
            let round = take_round(&mut waiting);
            self.settle(round, &jobs).await;
        }
    }

    /// Runs one round until every append of it has its answer.
    async fn settle(&mut self, round: Vec<Job>, jobs: &mpsc::Receiver<Job>) {
        let refused = match self.decide(&round, jobs).await {
            Some(Outcome::Settled(verdicts)) => {
                for (job, verdict) in round.into_iter().zip(verdicts) {
                    // A caller that went away has decided not to know.
                    let _ = job.answer.send(verdict);
                }
                return;
            }
            Some(Outcome::Refused(why)) => why,
            None => return,
        };
        if round.len() == 1 {
            for job in round {
                let _ = job.answer.send(Err(AppendError::Refused(refused.clone())));
            }
            return;
        }
        // One of them is wrong, and must not take the others with it.
        for job in round {
            Box::pin(self.settle(vec![job], jobs)).await;
        }
    }

    /// Asks until the database answers. `None` when nobody waits any more and the log is closed.
    async fn decide(&mut self, round: &[Job], jobs: &mpsc::Receiver<Job>) -> Option<Outcome> {
        let mut pause = PAUSE.0;
        loop {
            let why = match tokio::time::timeout(ATTEMPT_WITHIN, self.attempt(round)).await {
                Ok(Ok(outcome)) => return Some(outcome),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer in time".to_owned(),
            };
            // Closed, not returned to anything: what it was in the middle of must not meet the next try.
            self.connection = None;
            if jobs.is_closed() && round.iter().all(|job| job.answer.is_closed()) {
                return None;
            }
            warn!(appends = round.len(), why, "the outcome of an append is unknown; asking again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// One try. An error means that the outcome is unknown, or that it may be another one later.
    async fn attempt(&mut self, round: &[Job]) -> Result<Outcome, sqlx::Error> {
        if self.connection.is_none() {
            let connecting = PgConnection::connect_with(&self.connect);
            let connected = tokio::time::timeout(CONNECT_WITHIN, connecting).await;
            self.connection = Some(connected.map_err(|_| sqlx::Error::PoolTimedOut)??);
        }
        let Some(connection) = &mut self.connection else { return Err(sqlx::Error::PoolClosed) };
        let rows = match statement(round).fetch_all(&mut *connection).await {
            Ok(rows) => rows,
            Err(error) if is_refusal(&error) => return Ok(Outcome::Refused(error.to_string())),
            Err(error) => return Err(error),
        };
        let mut moved = BTreeSet::new();
        for row in &rows {
            moved.insert(partition_of(row).map_err(broken)?);
        }
        let mut verdicts = Vec::with_capacity(round.len());
        for job in round {
            verdicts.push(if moved.contains(&job.lease.partition) {
                Ok(job.appended())
            } else {
                resolve(connection, job).await?
            });
        }
        Ok(Outcome::Settled(verdicts))
    }
}

impl Job {
    fn appended(&self) -> Appended {
        let head = head_after(self.expected, &self.batch);
        Appended { partition: self.lease.partition, epoch: self.lease.epoch, head }
    }
}

/// As many waiting appends as go into one statement, one a partition.
fn take_round(waiting: &mut VecDeque<Job>) -> Vec<Job> {
    let mut round: Vec<Job> = Vec::new();
    let mut later = VecDeque::new();
    let mut partitions = BTreeSet::new();
    let (mut entries, mut bytes) = (0, 0);
    while let Some(job) = waiting.pop_front() {
        entries += job.batch.entries.len();
        bytes += job.batch.entries.iter().map(|entry| entry.body.len()).sum::<usize>();
        let full = round.len() >= ROUND_APPENDS_MAX || entries > ROUND_ENTRIES_MAX || bytes > ROUND_BYTES_MAX;
        if full && !round.is_empty() {
            later.push_back(job);
            break;
        }
        if partitions.insert(job.lease.partition) { round.push(job) } else { later.push_back(job) }
    }
    later.append(waiting);
    *waiting = later;
    round
}

type Statement<'a> = sqlx::query::Query<'a, sqlx::Postgres, sqlx::postgres::PgArguments>;

fn statement(round: &[Job]) -> Statement<'_> {
    let jobs = || round.iter();
    let documents = || {
        jobs().flat_map(|job| {
            let mut begun: BTreeMap<_, i64> = BTreeMap::new();
            for entry in &job.batch.entries {
                begun.entry(entry.incarnation).or_insert(entry.time_ms.cast_signed());
            }
            job.batch.created.iter().map(move |document| {
                let created_ms = begun.get(&document.incarnation).copied().unwrap_or(0);
                (column(job.lease.partition), document, created_ms)
            })
        })
    };
    let entries =
        || jobs().flat_map(|job| job.batch.entries.iter().map(|entry| (column(job.lease.partition), entry)));
    let numbers = |of: fn(&crate::Entry) -> u64| -> Vec<i64> {
        entries().map(|(_, entry)| of(entry).cast_signed()).collect()
    };
    sqlx::query(APPEND)
        .bind(jobs().map(|job| column(job.lease.partition)).collect::<Vec<_>>())
        .bind(jobs().map(|job| job.lease.epoch.0.cast_signed()).collect::<Vec<_>>())
        .bind(jobs().map(|job| job.expected.0.cast_signed()).collect::<Vec<_>>())
        .bind(jobs().map(|job| job.batch.entries.len() as i64).collect::<Vec<_>>())
        .bind(documents().map(|(p, ..)| p).collect::<Vec<_>>())
        .bind(documents().map(|(_, document, _)| document.incarnation.0.cast_signed()).collect::<Vec<_>>())
        .bind(documents().map(|(_, document, _)| document.name.as_str()).collect::<Vec<_>>())
        .bind(documents().map(|(_, document, _)| i16::from(document.strategy.code())).collect::<Vec<_>>())
        .bind(documents().map(|(.., created_ms)| created_ms).collect::<Vec<_>>())
        .bind(entries().map(|(p, _)| p).collect::<Vec<_>>())
        .bind(numbers(|entry| entry.incarnation.0))
        .bind(numbers(|entry| entry.seq.0))
        .bind(numbers(|entry| entry.offset.0))
        .bind(numbers(|entry| entry.replica.0))
        .bind(numbers(|entry| entry.counter))
        .bind(numbers(|entry| entry.base.0))
        .bind(entries().map(|(_, entry)| &entry.hash[..]).collect::<Vec<_>>())
        .bind(entries().map(|(_, entry)| &entry.chain[..]).collect::<Vec<_>>())
        .bind(numbers(|entry| entry.time_ms))
        .bind(entries().map(|(_, entry)| i32::from(entry.format)).collect::<Vec<_>>())
        .bind(entries().map(|(_, entry)| entry.subject.as_deref()).collect::<Vec<_>>())
        .bind(entries().map(|(_, entry)| &entry.body[..]).collect::<Vec<_>>())
}

/// The head was not moved: by whose doing?
async fn resolve(
    connection: &mut PgConnection,
    job: &Job,
) -> Result<Result<Appended, AppendError>, sqlx::Error> {
    let row = sqlx::query("SELECT epoch, head FROM partition WHERE p = $1")
        .bind(column(job.lease.partition))
        .fetch_one(&mut *connection)
        .await?;
    let (epoch, head) =
        (number(&row, "epoch").map_err(broken)?, Offset(number(&row, "head").map_err(broken)?));
    match judge(&job.lease, job.expected, &job.batch, epoch, head) {
        Verdict::Failed(error) => return Ok(Err(error)),
        Verdict::Compare => {}
    }
    let query = format!(
        r#"SELECT {ENTRY} FROM entry WHERE p = $1 AND "offset" > $2 AND "offset" <= $3 ORDER BY "offset""#
    );
    let rows = sqlx::query(AssertSqlSafe(query))
        .bind(column(job.lease.partition))
        .bind(job.expected.0.cast_signed())
        .bind(head.0.cast_signed())
        .fetch_all(&mut *connection)
        .await?;
    let stored: Vec<_> = rows.iter().map(entry).collect::<Result<_, _>>().map_err(broken)?;
    if !is_stored(&job.batch, &stored) {
        return Ok(Err(diverged(&job.lease, job.expected, head)));
    }
    // The row may be on the primary only. The commit of a later write waits for the standbys, and with it
    // for everything before.
    sqlx::query("UPDATE partition SET published = published WHERE p = $1")
        .bind(column(job.lease.partition))
        .execute(connection)
        .await?;
    Ok(Ok(job.appended()))
}

/// Whether the database says that the statement itself is wrong, which no repetition mends: data (22),
/// constraints (23), syntax and rights (42).
fn is_refusal(error: &sqlx::Error) -> bool {
    let Some(code) = error.as_database_error().and_then(|error| error.code()) else { return false };
    ["22", "23", "42"].iter().any(|class| code.starts_with(class))
}

/// A stored row that does not decode; asked for again, because nothing may be acknowledged on it.
fn broken(error: crate::LogError) -> sqlx::Error {
    sqlx::Error::Decode(error.to_string().into())
}
