//! The log after the run, as events: read through the seam, folded here, and what the database knows beyond it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use manyhands_crdt::{ChangeRef, Document, EntryWriter, Limits, Patch};
use manyhands_history::{Entry, ReadLimit, SharedLog};
use manyhands_proto::{Incarnation, Offset, PartitionId};
use sqlx::{Connection as _, PgConnection, Row as _};

use crate::checker::{Event, Micros, Row};

/// What is read at a time.
const PAGE: ReadLimit = ReadLimit { entries_max: 4_096, bytes_max: 4 << 20 };

/// A document number for rows of documents that nobody drilled.
const NOBODYS: u16 = u16::MAX;

/// What Postgres is set to for a drill: it then knows when each row was committed.
pub(super) const POSTGRES: &str = "track_commit_timestamp=on";

/// Has Postgres write down which epoch each append was made under, in the append itself.
pub(super) const AUDIT: &str = r#"
CREATE TABLE drill_append (p smallint NOT NULL, epoch bigint NOT NULL, first bigint NOT NULL, last bigint NOT NULL);
CREATE FUNCTION drill_note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO drill_append VALUES (NEW.p, NEW.epoch, OLD.head + 1, NEW.head);
    RETURN NULL;
END $$;
CREATE TRIGGER drill_note AFTER UPDATE OF head ON partition
    FOR EACH ROW WHEN (OLD.head IS DISTINCT FROM NEW.head) EXECUTE FUNCTION drill_note();
"#;

/// What Postgres knows and the log does not say.
#[derive(Default)]
pub(super) struct Audit {
    committed: BTreeMap<(u16, u64), Micros>,
    appends: BTreeMap<u16, Vec<(u64, u64, u64)>>,
}

impl Audit {
    /// Reads it from a database with [`AUDIT`].
    pub(super) async fn read(url: &str) -> anyhow::Result<Audit> {
        let mut connection = PgConnection::connect(url).await?;
        let mut audit = Audit::default();
        let rows = sqlx::query(
            r#"SELECT p, "offset", (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000)::bigint AS at FROM entry"#,
        )
        .fetch_all(&mut connection)
        .await
        .context("cannot read when rows were committed")?;
        for row in rows {
            let (partition, offset): (i16, i64) = (row.try_get("p")?, row.try_get("offset")?);
            if let Some(at) = row.try_get::<Option<i64>, _>("at")? {
                audit
                    .committed
                    .insert((partition.cast_unsigned(), offset.cast_unsigned()), at.cast_unsigned());
            }
        }
        let rows = sqlx::query("SELECT p, epoch, first, last FROM drill_append ORDER BY p, last, first")
            .fetch_all(&mut connection)
            .await
            .context("cannot read who appended")?;
        for row in rows {
            let partition: i16 = row.try_get("p")?;
            let number = |name| row.try_get::<i64, _>(name).map(i64::cast_unsigned);
            let append = (number("epoch")?, number("first")?, number("last")?);
            audit.appends.entry(partition.cast_unsigned()).or_default().push(append);
        }
        Ok(audit)
    }
}

/// A document that was drilled.
pub(super) struct Drilled {
    pub(super) number: u16,
    pub(super) name: String,
    /// The seqs at which somebody was given a state.
    pub(super) wanted: BTreeSet<u64>,
}

/// All rows of the log, partition by partition, and the states that its documents fold to.
pub(super) async fn read(
    log: &SharedLog,
    documents: &[Drilled],
    audit: &Audit,
) -> anyhow::Result<Vec<Event>> {
    let mut folds: BTreeMap<Incarnation, Fold> = BTreeMap::new();
    let mut events = Vec::new();
    for drilled in documents {
        let mut wanted = drilled.wanted.clone();
        wanted.remove(&0);
        match log.document(&drilled.name.parse()?).await? {
            Some(record) => {
                let document = Document::with_strategy(record.strategy, Limits::default());
                folds.insert(record.incarnation, Fold { number: drilled.number, document, wanted });
            }
            None => {
                let state = Document::new().state_hash();
                events.push(Event::Folded { document: drilled.number, seq: 0, state });
            }
        }
    }
    for partition in PartitionId::all() {
        for &(epoch, first, last) in audit.appends.get(&partition.0).into_iter().flatten() {
            events.push(Event::Appended { partition: partition.0, epoch, first, last });
        }
        let mut after = Offset(0);
        loop {
            let page = log.follow(partition, after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = last.offset;
            for entry in &page {
                let committed = audit.committed.get(&(partition.0, entry.offset.0)).copied();
                fold(partition, entry, committed, &mut folds, &mut events)?;
            }
        }
    }
    for fold in folds.values() {
        let seq = fold.document.seq();
        let state = fold.document.state_hash();
        events.push(Event::Folded { document: fold.number, seq, state });
    }
    Ok(events)
}

struct Fold {
    number: u16,
    document: Document,
    wanted: BTreeSet<u64>,
}

fn fold(
    partition: PartitionId,
    entry: &Entry,
    committed: Option<Micros>,
    folds: &mut BTreeMap<Incarnation, Fold>,
    events: &mut Vec<Event>,
) -> anyhow::Result<()> {
    let row = |document, next_counter, body_hash, token| Row {
        document,
        partition: partition.0,
        incarnation: entry.incarnation.0,
        seq: entry.seq.0,
        offset: entry.offset.0,
        replica: entry.replica.0,
        counter: entry.counter,
        next_counter,
        hash: entry.hash,
        body_hash,
        chain: entry.chain,
        time_ms: entry.time_ms,
        committed,
        token,
    };
    let Some(fold) = folds.get_mut(&entry.incarnation) else {
        events.push(Event::Logged(row(NOBODYS, entry.counter + 1, entry.hash, None)));
        return Ok(());
    };
    let place = || format!("the log's row at seq {} of document {}", entry.seq, fold.number);
    let change =
        ChangeRef { replica: entry.replica, counter: entry.counter, base: entry.base.0, body: &entry.body };
    let (next_counter, hash) =
        fold.document.hash_of(change).with_context(|| format!("{} is no change", place()))?;
    let (index, new) = match fold.document.replica_index(entry.replica) {
        Some(index) => (index, None),
        None => (u32::try_from(fold.document.replica_count())?, Some(entry.replica)),
    };
    let mut run = EntryWriter::new();
    run.push(entry.seq.0, index, new, entry.base.0, &entry.body);
    let (number, seq) = (fold.number, entry.seq.0);
    let mut patches = Vec::new();
    fold.document
        .receive(seq, 1, &run.finish(), seq - 1, &mut patches)
        .with_context(|| format!("the log's row at seq {seq} of document {number} does not merge"))?;
    let token = patches.iter().find_map(|patch| match patch {
        Patch::Text { inserted, .. } => inserted.trim_end().parse().ok(),
        Patch::Map { .. } => None,
    });
    events.push(Event::Logged(row(number, next_counter, hash, token)));
    if fold.wanted.remove(&seq) {
        events.push(Event::Folded { document: number, seq, state: fold.document.state_hash() });
    }
    Ok(())
}
