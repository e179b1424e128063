//! The suite on a real Postgres, and what only a server can suffer: kills, cut connections, standbys.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use manyhands_history::conformance::{Opening, Scribe, Subject, member, verify};
use manyhands_history::{
    AppendError, Batch, LogError, Options, ReadLimit, SharedLog, migrate, open as open_log,
};
use manyhands_neighbours::{Dir, Postgres};
use manyhands_proto::{Epoch, Offset, PartitionId};
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor, Row};

const ALL: ReadLimit = ReadLimit { entries_max: usize::MAX, bytes_max: usize::MAX };

/// One server for those tests that do it no harm.
static SERVER: LazyLock<Postgres> = LazyLock::new(|| Postgres::start(Dir::Temporary).unwrap());

fn options(cluster: &str) -> Options {
    Options { cluster: cluster.into(), ..Options::default() }
}

fn database(server: &Postgres) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    server.create_database(&format!("test_{n}")).unwrap()
}

async fn opened(server: &Postgres) -> (String, SharedLog) {
    let url = database(server);
    assert_eq!(migrate(&url, "test").await, Ok(1));
    let log = open_log(&url, &options("test")).await.unwrap();
    (url, log)
}

async fn open() -> Subject {
    let (url, log) = opened(&SERVER).await;
    let again = move || {
        let url = url.clone();
        Box::pin(async move { open_log(&url, &options("test")).await.unwrap() }) as Opening
    };
    Subject { log, again: Box::new(again) }
}

manyhands_history::conformance!(open);

#[tokio::test]
async fn a_database_that_is_not_ours_is_refused_with_what_to_do() {
    let url = database(&SERVER);
    let refusal = async |url: &str, cluster: &str| match open_log(url, &options(cluster)).await {
        Err(error) => error.to_string(),
        Ok(_) => panic!("it was opened"),
    };
    assert!(refusal(&url, "test").await.contains("run `manyhands migrate`"));
    assert_eq!(migrate(&url, "test").await, Ok(1));
    assert_eq!(migrate(&url, "test").await, Ok(0), "nothing is left to do");
    assert!(refusal(&url, "other").await.contains("has cluster \"test\", not \"other\""));
    assert!(matches!(migrate(&url, "other").await, Err(LogError::Mismatch(_))));
    let unreachable = "postgres://me:secret@127.0.0.1:9/nowhere";
    let message = refusal(unreachable, "test").await;
    assert!(message.contains("127.0.0.1:9") && !message.contains("secret"), "{message}");
    let mut connection = PgConnection::connect(&url).await.unwrap();
    connection.execute("UPDATE meta SET value = '16' WHERE key = 'partitions'").await.unwrap();
    assert!(refusal(&url, "test").await.contains("has partitions \"16\", not \"271\""));
}

#[tokio::test]
async fn a_server_that_would_lose_data_is_refused() {
    let server = Postgres::start_with(Dir::Temporary, &["fsync=off"]).unwrap();
    let url = database(&server);
    migrate(&url, "test").await.unwrap();
    let Err(error) = open_log(&url, &options("test")).await else { panic!("it was opened") };
    assert!(error.to_string().contains("set fsync=on"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrating_from_many_nodes_at_once_is_done_once() {
    let url = database(&SERVER);
    let tasks: Vec<_> = (0..6)
        .map(|_| {
            let url = url.clone();
            tokio::spawn(async move { migrate(&url, "test").await.unwrap() })
        })
        .collect();
    let mut steps = 0;
    for task in tasks {
        steps += task.await.unwrap();
    }
    assert_eq!(steps, 1);
}

/// Writers that append until they are told to stop. Each append is asked for until it is answered.
struct Load {
    stop: Arc<Mutex<bool>>,
    acknowledged: Arc<AtomicU64>,
    held: Vec<(PartitionId, Epoch)>,
    writers: Vec<tokio::task::JoinHandle<Scribe>>,
}

impl Load {
    async fn start(log: &SharedLog, partitions: u16) -> Load {
        let (stop, acknowledged) = (Arc::new(Mutex::new(false)), Arc::new(AtomicU64::new(0)));
        let (mut writers, mut held) = (Vec::new(), Vec::new());
        for p in 0..partitions {
            let mut scribe = Scribe::claim(log, "node", PartitionId(p * 7)).await;
            held.push((scribe.lease.partition(), scribe.lease.epoch()));
            let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
            writers.push(tokio::spawn(async move {
                let mut n = usize::from(p);
                while !*stop.lock().unwrap() {
                    n += 1;
                    scribe.write(n % 5, 1 + n % 7).await;
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                scribe
            }));
        }
        Load { stop, acknowledged, held, writers }
    }

    /// Waits until so many more batches are acknowledged.
    async fn more(&self, batches: u64) {
        let goal = self.acknowledged.load(Ordering::Relaxed) + batches;
        while self.acknowledged.load(Ordering::Relaxed) < goal {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn finish(self) -> Vec<Scribe> {
        *self.stop.lock().unwrap() = true;
        let mut scribes = Vec::new();
        for writer in self.writers {
            scribes.push(writer.await.unwrap());
        }
        scribes
    }
}

/// Reads back without the pool's help: its connections died with the server.
async fn check(url: &str, scribes: &[Scribe]) {
    let log = open_log(url, &options("test")).await.unwrap();
    for scribe in scribes {
        let stored = log.follow(scribe.lease.partition(), Offset(0), ALL).await.unwrap();
        verify(&scribe.appended, &stored).unwrap();
    }
}

/// The server is killed with appends under way, again and again. Each append that was answered is there
/// exactly once, whole, in order; no append is answered wrongly.
// enforces: I-1
// enforces: I-3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_loses_nothing_and_repeats_nothing() {
    let mut server = Postgres::start(Dir::Temporary).unwrap();
    let (url, log) = opened(&server).await;
    let load = Load::start(&log, 12).await;
    for kill in 0..12 {
        load.more(20 + 11 * kill).await;
        server = tokio::task::spawn_blocking(move || {
            server.kill();
            server.restart().unwrap();
            server
        })
        .await
        .unwrap();
    }
    load.more(50).await;
    let scribes = load.finish().await;
    check(&url, &scribes).await;
}

/// The same with single connections cut, and with answers that only come late.
// enforces: I-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_connections_lose_nothing_and_repeat_nothing() {
    let server = Postgres::start(Dir::Temporary).unwrap();
    let (url, log) = opened(&server).await;
    let load = Load::start(&log, 12).await;
    let mut nemesis = PgConnection::connect(&url).await.unwrap();
    let mut cut = 0;
    while cut < 150 {
        load.more(3).await;
        let rows = nemesis
            .fetch_all(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE query LIKE '%INSERT INTO entry%' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 2",
            )
            .await
            .unwrap();
        cut += rows.len();
    }
    server.pause();
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.resume();
    load.more(50).await;
    let scribes = load.finish().await;
    check(&url, &scribes).await;
}

/// Statements that lock many partitions at once never wait for each other in a circle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_are_renewed_while_everything_appends() {
    let (url, log) = opened(&SERVER).await;
    let load = Load::start(&log, 38).await;
    let all: Vec<PartitionId> = PartitionId::all().collect();
    let mut held: Vec<_> = load.held.clone();
    for round in 0..60 {
        // In orders that differ from round to round.
        held.rotate_left(11);
        if round % 2 == 0 {
            held.reverse();
        }
        let lost = log.renew(&member("node").node, &held, Duration::from_secs(600)).await.unwrap();
        assert!(lost.is_empty());
        let free = log.claim(&member("other"), &all, Duration::from_secs(600)).await.unwrap();
        assert_eq!(free.len(), all.len() - held.len(), "in each round all that are not held");
        let free: Vec<_> = free.iter().map(|lease| (lease.partition(), lease.epoch())).collect();
        log.release(&free).await.unwrap();
    }
    let scribes = load.finish().await;
    check(&url, &scribes).await;
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(connection.fetch_one(query).await.unwrap().get::<i64, _>(0), 0);
}

/// A claim that comes while an append is held up inside the server waits for it, and counts it in.
// enforces: I-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_waits_for_an_append_that_is_under_way() {
    const P: PartitionId = PartitionId(9);
    let (url, log) = opened(&SERVER).await;
    let other = open_log(&url, &options("test")).await.unwrap();
    let scribe = Scribe::claim(&log, "zombie", P).await;
    let zombie = (scribe.lease.clone(), scribe.draft(0, 4));
    log.release(&[(P, scribe.lease.epoch())]).await.unwrap();

    let mut lock = hold_up(&url, &zombie.1).await;
    let append = tokio::spawn(async move { log.append(&zombie.0, Offset(0), &zombie.1).await });
    let mut watch = PgConnection::connect(&url).await.unwrap();
    waiting(&mut watch, "INSERT INTO entry", 1).await;
    let claim = tokio::spawn(async move {
        let leases = other.claim(&member("owner"), &[P], Duration::from_secs(600)).await.unwrap();
        let seen = other.follow(P, Offset(0), ALL).await.unwrap();
        (leases, seen)
    });
    waiting(&mut watch, "epoch + 1", 1).await;
    assert!(!append.is_finished() && !claim.is_finished());
    lock.execute("ROLLBACK").await.unwrap();
    let appended = append.await.unwrap().unwrap();
    let (leases, seen) = claim.await.unwrap();
    assert_eq!((leases[0].head(), appended.head(), seen.len()), (Offset(4), Offset(4), 4));
}

/// Opens a transaction that holds the batch's insert up, but not the row of the partition: the append has
/// that row's lock, and waits to learn whether its first entry is a duplicate. Rolling back lets it go.
async fn hold_up(url: &str, batch: &Batch) -> PgConnection {
    let mut connection = PgConnection::connect(url).await.unwrap();
    connection.execute("BEGIN").await.unwrap();
    sqlx::query("INSERT INTO entry VALUES (9, $1, 1, 999, 0, 0, 0, '', '', 0, 0, '', '')")
        .bind(batch.entries[0].incarnation.0.cast_signed())
        .execute(&mut connection)
        .await
        .unwrap();
    connection
}

/// Waits until the server says that so many statements wait for a lock.
async fn waiting(watch: &mut PgConnection, statement: &str, count: i64) {
    let query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                 AND datname = current_database() AND pid <> pg_backend_pid() AND position($1 in query) > 0";
    loop {
        let row = sqlx::query(query).bind(statement).fetch_one(&mut *watch).await.unwrap();
        if row.get::<i64, _>(0) == count {
            return;
        }
    }
}

/// A caller that gave up has a twin in the server that is still under way; the repetition waits for it
/// and gives the true answer.
// enforces: I-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repetition_waits_for_its_twin() {
    const P: PartitionId = PartitionId(9);
    let (url, log) = opened(&SERVER).await;
    let mut scribe = Scribe::claim(&log, "node", P).await;
    let batch = scribe.draft(0, 4);
    let mut lock = hold_up(&url, &batch).await;
    let twin = tokio::spawn({
        let (log, lease, batch) = (log.clone(), scribe.lease.clone(), batch.clone());
        async move { log.append(&lease, Offset(0), &batch).await }
    });
    let mut watch = PgConnection::connect(&url).await.unwrap();
    waiting(&mut watch, "INSERT INTO entry", 1).await;
    twin.abort();
    // By another set of connections, as a restarted process would.
    let other = open_log(&url, &options("test")).await.unwrap();
    let (lease, repeated) = (scribe.lease.clone(), batch.clone());
    let again = tokio::spawn(async move { other.append(&lease, Offset(0), &repeated).await });
    waiting(&mut watch, "INSERT INTO entry", 2).await;
    assert!(!again.is_finished());
    lock.execute("ROLLBACK").await.unwrap();
    assert_eq!(again.await.unwrap().unwrap().head(), Offset(4));
    scribe.accept(batch);
    scribe.verify().await;
}

/// Where a standby must confirm, an append that committed on the primary alone is not acknowledged, also
/// not when its connection was cut and its rows are found.
// enforces: I-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_standby_confirmed_is_not_acknowledged() {
    const P: PartitionId = PartitionId(9);
    let mut server = Postgres::start(Dir::Temporary).unwrap();
    let (url, _) = opened(&server).await;
    server.execute("ALTER SYSTEM SET synchronous_standby_names = 'absent'").unwrap();
    server.restart().unwrap();
    // Only the connections that append insist on the standby.
    let url = format!("{url}&options[synchronous_commit]=local");
    let log = open_log(&url, &options("test")).await.unwrap();
    let mut scribe = Scribe::claim(&log, "node", P).await;
    let mut watch = PgConnection::connect(&url).await.unwrap();

    let batch = scribe.draft(0, 2);
    let append = tokio::spawn({
        let (log, lease, batch) = (log.clone(), scribe.lease.clone(), batch.clone());
        async move { log.append(&lease, Offset(0), &batch).await }
    });
    // Cut while it waits for the standby: the rows stay, on the primary.
    let first = until_waiting_for_a_standby(&mut watch, 0).await;
    sqlx::query("SELECT pg_terminate_backend($1)").bind(first).execute(&mut watch).await.unwrap();
    // The repetition comes by another connection, finds them, and has to wait for the standby as well.
    until_waiting_for_a_standby(&mut watch, first).await;
    assert_eq!(log.follow(P, Offset(0), ALL).await.unwrap().len(), 2, "visible on the primary");
    assert!(!append.is_finished(), "and not acknowledged");
    server.execute("ALTER SYSTEM RESET synchronous_standby_names").unwrap();
    server.execute("SELECT pg_reload_conf()").unwrap();
    assert_eq!(append.await.unwrap().unwrap().head(), Offset(2));
    scribe.accept(batch);
    scribe.verify().await;
}

/// Waits until a process other than `but` waits for a standby, and says which.
async fn until_waiting_for_a_standby(watch: &mut PgConnection, but: i32) -> i32 {
    let query = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND pid <> $1";
    loop {
        if let Some(row) = sqlx::query(query).bind(but).fetch_optional(&mut *watch).await.unwrap() {
            return row.get(0);
        }
    }
}

/// A database that comes back with an older state is noticed, not written on.
#[tokio::test]
async fn a_rolled_back_log_is_noticed() {
    const P: PartitionId = PartitionId(9);
    let (url, log) = opened(&SERVER).await;
    let mut scribe = Scribe::claim(&log, "node", P).await;
    scribe.write(0, 3).await;
    scribe.write(0, 3).await;
    let mut connection = PgConnection::connect(&url).await.unwrap();
    connection
        .execute("DELETE FROM entry WHERE \"offset\" > 3; UPDATE partition SET head = 3 WHERE p = 9")
        .await
        .unwrap();
    let error = scribe.append(scribe.draft(0, 1)).await.unwrap_err();
    assert_eq!(error, AppendError::Diverged { partition: P, expected: Offset(6), found: Offset(3) });
}
