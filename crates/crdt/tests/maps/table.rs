//! What two writes to one key give under each strategy: one table, from which come a test for each cell and the
//! table in `INTERNALS.md`.

use std::fmt::Write as _;

use manyhands_crdt::{
    Admission, Document, EditError, Hlc, Limits, MapOp, ReplicaId, Strategy, map_change_body,
};

use crate::common::Log;

/// The greater replica: it wins where stamps are equal.
const ANN: ReplicaId = ReplicaId(900);
const BOB: ReplicaId = ReplicaId(17);

/// Before both, the key has this value, which both have seen. Its seq is 1.
const BEFORE: &str = "\"0\"";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Op {
    Set,
    Remove,
    /// Expects the value from before, by its seq.
    SetIfBefore,
    RemoveIfBefore,
    /// Expects the seq of the first write.
    SetIfFirst,
    /// Expects that the key has no value.
    SetIfAbsent,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum How {
    /// By Ann and Bob, neither of whom knows of the other's. Ann's comes first in the log.
    Beside,
    /// Bob has heard of Ann's when he makes his.
    After,
    /// Both by Ann, who has heard of nothing in between.
    OwnAfter,
}

/// The second write's stamp, beside the first one's.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stamp {
    Newer,
    Equal,
    Older,
}

struct Row {
    name: &'static str,
    first: Op,
    how: How,
    second: Op,
    stamp: Stamp,
    gives: [&'static str; 3],
}

macro_rules! table {
    ($($name:ident: $first:ident $how:ident $second:ident $stamp:ident => $crdt:literal, $lww:literal, $server:literal;)*) => {
        const ROWS: &[Row] = &[$(Row {
            name: stringify!($name),
            first: Op::$first,
            how: How::$how,
            second: Op::$second,
            stamp: Stamp::$stamp,
            gives: [$crdt, $lww, $server],
        }),*];
        $(mod $name {
            use super::{Strategy, cell};

            #[test]
            fn crdt() {
                cell(stringify!($name), Strategy::Crdt);
            }

            #[test]
            fn lww() {
                cell(stringify!($name), Strategy::Lww);
            }

            #[test]
            fn server() {
                cell(stringify!($name), Strategy::Server);
            }
        })*
    };
}

// A and B are the values of the first and the second write.
table! {
    set_beside_newer_set: Set Beside Set Newer => "B, A conflicts", "B", "B";
    set_beside_equal_set: Set Beside Set Equal => "B, A conflicts", "A", "B";
    set_beside_older_set: Set Beside Set Older => "B, A conflicts", "A", "B";
    set_beside_newer_removal: Set Beside Remove Newer => "A", "none", "none";
    set_beside_equal_removal: Set Beside Remove Equal => "A", "A", "none";
    set_beside_older_removal: Set Beside Remove Older => "A", "A", "none";
    removal_beside_newer_set: Remove Beside Set Newer => "B", "B", "B";
    removal_beside_equal_set: Remove Beside Set Equal => "B", "none", "B";
    removal_beside_older_set: Remove Beside Set Older => "B", "none", "B";
    removal_beside_newer_removal: Remove Beside Remove Newer => "none", "none", "none";
    removal_beside_equal_removal: Remove Beside Remove Equal => "none", "none", "none";
    removal_beside_older_removal: Remove Beside Remove Older => "none", "none", "none";
    newer_set_after_set: Set After Set Newer => "B", "B", "B";
    equal_set_after_set: Set After Set Equal => "B", "A", "B";
    older_set_after_set: Set After Set Older => "B", "A", "B";
    newer_removal_after_set: Set After Remove Newer => "none", "none", "none";
    equal_removal_after_set: Set After Remove Equal => "none", "A", "none";
    older_removal_after_set: Set After Remove Older => "none", "A", "none";
    newer_set_after_removal: Remove After Set Newer => "B", "B", "B";
    equal_set_after_removal: Remove After Set Equal => "B", "none", "B";
    older_set_after_removal: Remove After Set Older => "B", "none", "B";
    newer_removal_after_removal: Remove After Remove Newer => "none", "none", "none";
    older_removal_after_removal: Remove After Remove Older => "none", "none", "none";
    own_newer_set_after_set: Set OwnAfter Set Newer => "B", "B", "B";
    own_equal_set_after_set: Set OwnAfter Set Equal => "B", "B", "B";
    own_older_set_after_set: Set OwnAfter Set Older => "B", "A", "B";
    own_equal_removal_after_set: Set OwnAfter Remove Equal => "none", "none", "none";
    own_older_removal_after_set: Set OwnAfter Remove Older => "none", "A", "none";
    set_beside_set_that_expects: Set Beside SetIfBefore Newer => "no", "no", "A, refused";
    set_beside_removal_that_expects: Set Beside RemoveIfBefore Newer => "no", "no", "A, refused";
    removal_beside_set_that_expects: Remove Beside SetIfBefore Newer => "no", "no", "none, refused";
    removal_beside_set_that_expects_none: Remove Beside SetIfAbsent Newer => "no", "no", "stale";
    set_after_set_that_expects_it: Set After SetIfFirst Newer => "no", "no", "B";
    set_after_set_that_expects_an_older: Set After SetIfBefore Newer => "no", "no", "stale";
    set_after_removal_that_expects_none: Remove After SetIfAbsent Newer => "no", "no", "B";
    set_after_removal_that_expects_a_value: Remove After SetIfBefore Newer => "no", "no", "stale";
    own_set_after_set_that_expects_what_was_before: Set OwnAfter SetIfBefore Newer => "no", "no", "B";
}

impl Op {
    fn expect(self) -> Option<u64> {
        match self {
            Op::Set | Op::Remove => None,
            Op::SetIfBefore | Op::RemoveIfBefore => Some(1),
            Op::SetIfFirst => Some(2),
            Op::SetIfAbsent => Some(0),
        }
    }

    fn sets(self) -> bool {
        !matches!(self, Op::Remove | Op::RemoveIfBefore)
    }

    fn words(self, value: &str) -> String {
        let what = if self.sets() { format!("set {value}") } else { "remove".to_owned() };
        match self {
            Op::Set | Op::Remove => what,
            Op::SetIfBefore | Op::RemoveIfBefore => format!("{what}, expects the value before"),
            Op::SetIfFirst => format!("{what}, expects A"),
            Op::SetIfAbsent => format!("{what}, expects none"),
        }
    }
}

fn hear(document: &mut Document, log: &Log) {
    let known = document.seq();
    let (count, bytes) = log.run(known + 1, log.tip());
    document.replay(known + 1, count, &bytes, known).unwrap();
}

/// What a key holds, in the words of the table.
fn words(document: &Document) -> String {
    let name = |value: &str| value.trim_matches('"').to_owned();
    let Some(map) = document.map("") else { return "none".to_owned() };
    let mut words = map.get("k").map_or("none".to_owned(), |winner| name(winner.value));
    for conflict in map.conflicts("k") {
        write!(words, ", {} conflicts", name(conflict.value)).unwrap();
    }
    words
}

fn make(
    document: &mut Document,
    replica: ReplicaId,
    op: Op,
    value: &str,
    stamp: Hlc,
) -> Result<manyhands_crdt::Change, EditError> {
    let mut edit = document.edit(replica);
    let quoted = format!("\"{value}\"");
    match op.sets() {
        true => edit.set("", "k", &quoted, stamp, op.expect())?,
        false => edit.remove("", "k", stamp, op.expect())?,
    }
    Ok(edit.commit(0).unwrap())
}

/// Plays a row and says what it gives: on the owner's document, which all others come to agree with.
fn play(row: &Row, strategy: Strategy) -> String {
    let empty = || Document::with_strategy(strategy, Limits::default());
    let mut log = Log { document: empty(), ..Log::default() };
    let (mut ann, mut bob) = (empty(), empty());
    let before = MapOp { map: "", key: "k", value: Some(BEFORE), stamp: Hlc::at(1), expect: None };
    let body = map_change_body(&before).unwrap();
    let zoe = ReplicaId(5);
    log.submit(manyhands_crdt::ChangeRef { replica: zoe, counter: 0, base: 0, body: &body }).unwrap();
    hear(&mut ann, &log);
    hear(&mut bob, &log);

    let stamp = Hlc::at(match row.stamp {
        Stamp::Newer => 11,
        Stamp::Equal => 10,
        Stamp::Older => 9,
    });
    let admission = Admission::default();
    let first = make(&mut ann, ANN, row.first, "A", Hlc::at(10)).unwrap();
    log.admit(first.as_ref(), &admission).unwrap();
    if row.how == How::After {
        hear(&mut bob, &log);
    }
    let (second, replica) = if row.how == How::OwnAfter { (&mut ann, ANN) } else { (&mut bob, BOB) };
    let change = match make(second, replica, row.second, "B", stamp) {
        Ok(change) => change,
        // Its author's own document knows better already.
        Err(EditError::Conflict { .. }) => return "stale".to_owned(),
        Err(EditError::ExpectUnsupported) => return "no".to_owned(),
        Err(error) => panic!("{error}"),
    };
    let shown = words(second);
    let refused = log.admit(change.as_ref(), &admission).is_err();
    let gives = words(&log.document);
    if refused {
        return format!("{gives}, refused");
    }
    hear(&mut ann, &log);
    hear(&mut bob, &log);
    for document in [&ann, &bob] {
        assert_eq!(words(document), gives);
        assert_eq!(document.state_hash(), log.document.state_hash());
    }
    // Whoever knew of all shows the end at once; only what comes beside can change it.
    if row.how != How::Beside {
        assert_eq!(shown, gives);
    }
    gives
}

fn cell(name: &str, strategy: Strategy) {
    let row = ROWS.iter().find(|row| row.name == name).unwrap();
    assert_eq!(play(row, strategy), row.gives[usize::from(strategy.code()) - 1]);
}

/// The table as it stands in `INTERNALS.md`.
fn document() -> String {
    let mut table = String::from(
        "| first, by Ann | second | its stamp | crdt | lww | server |\n|---|---|---|---|---|---|\n",
    );
    for row in ROWS {
        let how = match row.how {
            How::Beside => "beside: ",
            How::After => "after: ",
            How::OwnAfter => "own, after: ",
        };
        let stamp = format!("{:?}", row.stamp).to_lowercase();
        let [crdt, lww, server] = row.gives;
        let (first, second) = (row.first.words("A"), row.second.words("B"));
        writeln!(table, "| {first} | {how}{second} | {stamp} | {crdt} | {lww} | {server} |").unwrap();
    }
    table
}

#[test]
fn internals_has_this_table() {
    let internals = include_str!("../../INTERNALS.md");
    let table = document();
    assert!(internals.contains(&table), "INTERNALS.md should have this table:\n{table}");
}
