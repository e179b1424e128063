//! The measured cases, generic over the engine.

use crate::alloc;
use crate::framing;
use crate::measure::{ProcessorTime, Results, agree};
use crate::peer::{Branch, Peer};
use crate::trace::{Patch, Rng, Trace, oracle};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::slice::from_ref;
use std::time::{Duration, Instant};

fn timed<R>(f: impl FnOnce() -> R) -> (Duration, R) {
    let start = ProcessorTime::now();
    let result = f();
    (start.elapsed(), result)
}

fn slices(updates: &[Vec<u8>]) -> Vec<&[u8]> {
    updates.iter().map(Vec::as_slice).collect()
}

fn by(client: u64, updates: &[Vec<u8>]) -> Vec<(u64, &[u8])> {
    updates.iter().map(|update| (client, update.as_slice())).collect()
}

/// Whether the engine takes this case in this kind of run.
fn wanted<P: Peer>(r: &Results, case: &str) -> bool {
    !(r.quick && P::SLOW.iter().any(|slow| case.starts_with(slow)))
}

/// A linear list of edits by one client: local + encode, remote one by one, in bulk. Gives what a second
/// replica received, and the author's replica.
fn linear<P: Peer>(r: &mut Results, patches: &[Patch], end: &str, base: Option<&[u8]>) -> (Vec<Vec<u8>>, P) {
    let n = patches.len() as f64;
    let (mut made, mut author) = (Vec::new(), None);
    let stat = r.time(|| {
        let mut doc = base.map_or_else(|| P::new(2), |base| P::load(base, 2));
        let mut updates = Vec::with_capacity(patches.len());
        let (time, ()) = timed(|| {
            for p in patches {
                updates.push(doc.edit_encode(from_ref(p)));
            }
        });
        agree(&[&doc.text()], end, false);
        made = updates;
        author = Some(doc);
        time
    });
    r.put("local+encode", "ns/op", stat, 1e9 / n, "");
    made.retain(|update| !update.is_empty());
    let updates = P::deliver(base, &by(2, &made), true);
    r.num("wire", "B/op", updates.iter().map(Vec::len).sum::<usize>() as f64 / n, "");
    framed::<P>(r, &made, &updates);
    remote::<P>(r, &updates, end, false, base);
    (updates, author.expect("it ran once at least"))
}

/// What an op of a live stream is on the wire, everything included: one update a message, and ten.
fn framed<P: Peer>(r: &mut Results, made: &[Vec<u8>], updates: &[Vec<u8>]) {
    for (many, down, up) in [(1, "frame down", "frame up"), (10, "frame down x10", "frame up x10")] {
        let (mut received, mut sent) = (0, 0);
        for (n, chunk) in updates.chunks(many).enumerate() {
            received += framing::message(P::frame_down((n * many) as u64 + 1, &slices(chunk)).len(), false);
        }
        for (n, chunk) in made.chunks(many).enumerate() {
            let first = (n * many) as u64 + 1;
            // A keystroke is one op, so the counter is about the number of the change.
            sent += framing::message(P::frame_up(first, first, &slices(chunk)).len(), true);
        }
        r.num(down, "B/op", received as f64 / updates.len() as f64, "");
        r.num(up, "B/op", sent as f64 / made.len() as f64, "");
    }
}

/// The updates one by one. How many were taken before the patience ended, and the time.
fn feed<P: Peer>(doc: &mut P, updates: &[&[u8]], patience: Duration) -> (Duration, usize) {
    let (start, since) = (ProcessorTime::now(), Instant::now());
    for (i, update) in updates.iter().enumerate() {
        if i % 64 == 63 && since.elapsed() > patience {
            return (start.elapsed(), i);
        }
        doc.apply(update);
    }
    (start.elapsed(), updates.len())
}

/// Times passes of `feed` over documents that `fresh` makes, and lets `check` see each at its end. Whether the
/// engine came to the end.
fn fed<P: Peer>(
    r: &mut Results,
    metric: &'static str,
    updates: &[&[u8]],
    fresh: impl Fn() -> P,
    mut check: impl FnMut(&mut P) -> &'static str,
) -> bool {
    let (mut note, mut partial) = ("", None);
    let patience = r.patience();
    let stat = r.time(|| {
        if partial.is_some() {
            return Duration::ZERO;
        }
        let mut doc = fresh();
        let (time, taken) = feed(&mut doc, updates, patience);
        if taken < updates.len() {
            partial = Some(time.as_secs_f64() * 1e9 / taken as f64);
        } else {
            note = check(&mut doc);
        }
        time
    });
    match partial {
        Some(mean) => r.num(metric, "ns/op", mean, "partial"),
        None => r.put(metric, "ns/op", stat, 1e9 / updates.len() as f64, note),
    }
    partial.is_none()
}

/// Updates arriving one by one at a second replica, then the same in one bulk call. The text.
fn remote<P: Peer>(
    r: &mut Results,
    updates: &[Vec<u8>],
    end: &str,
    may_differ: bool,
    base: Option<&[u8]>,
) -> String {
    let all = slices(updates);
    let (head, tail) = all.split_at(P::TAIL.map_or(0, |k| all.len().saturating_sub(k)));
    let empty = || base.map_or_else(|| P::new(999_983), |base| P::load(base, 999_983));
    let fresh = || {
        let mut doc = empty();
        if !head.is_empty() {
            doc.apply_many(head);
        }
        doc
    };
    let mut bulk = String::new();
    let stat = r.time(|| {
        let mut doc = empty();
        let (time, ()) = timed(|| doc.apply_many(&all));
        bulk = doc.text();
        agree(&[&bulk], end, may_differ);
        time
    });
    r.put("bulk", "ns/op", stat, 1e9 / all.len() as f64, "");
    let came = fed(r, "remote", tail, fresh, |doc: &mut P| {
        agree(&[&doc.text(), &bulk], end, may_differ);
        ""
    });
    if !came {
        return bulk;
    }

    // Latency of single updates, each with two readings of the clock (~40 ns).
    let mut doc = fresh();
    let mut times: Vec<u64> = Vec::with_capacity(tail.len());
    for update in tail {
        let start = Instant::now();
        doc.apply(update);
        times.push(start.elapsed().as_nanos() as u64);
    }
    times.sort_unstable();
    r.num("remote p99", "ns", times[(times.len() - 1) * 99 / 100] as f64, "");
    drop(doc);

    alloc::start();
    let mut doc = fresh();
    let before = alloc::now().calls;
    for update in tail {
        doc.apply(update);
    }
    let heap = alloc::stop();
    r.num("heap live", "B", heap.live as f64, "");
    r.num("allocs", "1/op", (heap.calls - before) as f64 / tail.len() as f64, "");
    black_box(&mut doc);
    bulk
}

/// Save, load, sizes and heap of a document.
fn storage<P: Peer>(r: &mut Results, mut doc: P, end: &str) {
    let stat = r.time(|| {
        let (time, bytes) = timed(|| doc.save());
        black_box(bytes.len());
        time
    });
    r.put("save", "us", stat, 1e6, "");
    let bytes = doc.save();
    drop(doc);
    r.num("save size", "B", bytes.len() as f64, "");
    let stat = r.time(|| timed(|| black_box(P::load(&bytes, 7))).0);
    r.put("load", "us", stat, 1e6, "");
    // Some load lazily; the edit makes them ready.
    let stat = r.time(|| {
        let (time, mut doc) = timed(|| {
            let mut doc = P::load(&bytes, 7);
            doc.edit(&[Patch::ins(0, "x")]);
            doc
        });
        assert!(doc.text().strip_prefix('x') == Some(end), "wrong text after loading");
        time
    });
    r.put("load+edit", "us", stat, 1e6, "");

    alloc::start();
    let mut doc = P::load(&bytes, 7);
    drop(doc.text());
    doc.edit(&[Patch::ins(0, "x"), Patch::del(0, 1)]);
    let heap = alloc::stop();
    r.num("heap", "B", heap.live as f64, "");
    black_box(&mut doc);
    drop(doc);

    alloc::start();
    let idle = P::idle(&bytes);
    let heap = alloc::stop();
    r.num("heap idle", "B", heap.live as f64, "");
    black_box(idle);
}

pub fn sequential<P: Peer>(r: &mut Results, trace: &Trace) {
    if !wanted::<P>(r, "seq") {
        return;
    }
    let patches = trace.linear(P::UNIT);
    let (updates, author) = linear::<P>(r, &patches, &trace.end, None);
    storage(r, P::keeper(author, &updates), &trace.end);
    let mut extras: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    for run in 0..6 {
        for (metric, time) in P::extras(&patches) {
            // The first is the warm-up.
            if run == 0 {
                continue;
            }
            extras.entry(metric).or_default().push(time.as_secs_f64() * 1e9 / patches.len() as f64);
        }
    }
    for (metric, mut times) in extras {
        times.sort_by(f64::total_cmp);
        r.num(metric, "ns/op", times[times.len() / 2], "");
    }
}

/// Replays a concurrent trace: one replica per agent, each brought exactly to the parents of its next
/// transaction, then edited. Every transaction's update in trace order.
fn replay<P: Peer>(trace: &Trace) -> Vec<Vec<u8>> {
    if let Some(updates) = P::replay(trace) {
        return updates;
    }
    let agents = trace.agents();
    let mut docs: Vec<P> = (0..agents).map(|agent| P::new(agent as u64 + 1)).collect();
    let mut seen = vec![vec![false; trace.txns.len()]; agents];
    let mut updates: Vec<Vec<u8>> = Vec::with_capacity(trace.txns.len());
    for (i, txn) in trace.txns.iter().enumerate() {
        let doc = &mut docs[txn.agent];
        let missing = trace.missing(&mut seen[txn.agent], &txn.parents);
        let refs: Vec<&[u8]> =
            missing.iter().map(|&k| updates[k].as_slice()).filter(|update| !update.is_empty()).collect();
        match refs[..] {
            [] => {}
            [one] => doc.apply(one),
            _ => doc.apply_many(&refs),
        }
        seen[txn.agent][i] = true;
        let patches = txn.fitted(doc.len());
        updates.push(if patches.is_empty() { Vec::new() } else { doc.edit_encode(&patches) });
    }
    updates.retain(|update| !update.is_empty());
    updates
}

pub fn concurrent<P: Peer>(r: &mut Results, trace: &Trace) {
    assert!(trace.is_ascii());
    if !wanted::<P>(r, &r.case) {
        return;
    }
    let updates = replay::<P>(trace);
    r.num("wire", "B/op", updates.iter().map(Vec::len).sum::<usize>() as f64 / updates.len() as f64, "");
    let text = remote::<P>(r, &updates, &trace.end, true, None);
    let mut doc = P::new(999_979);
    doc.apply_many(&slices(&updates));
    storage(r, doc, &text);
}

fn letters(rng: &mut Rng, n: usize) -> String {
    (0..n).map(|_| if rng.below(7) == 0 { ' ' } else { (b'a' + rng.below(26) as u8) as char }).collect()
}

/// Clients that type at one spot without seeing one another. The server gets their keystrokes round robin;
/// another replica gets them client after client; both must agree.
fn same_spot<P: Peer>(r: &mut Results, clients: usize, keys: usize, backward: bool) {
    let base = P::base(&[Patch::ins(0, "0123456789")]);
    let mut per: Vec<Vec<Vec<u8>>> = Vec::new();
    for c in 0..clients {
        let mut doc = P::load(&base, c as u64 + 2);
        let letter = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"[c % 52] as char;
        let key = |k| Patch::ins(if backward { 5 } else { 5 + k }, letter.to_string());
        per.push((0..keys).map(|k| doc.edit_encode(&[key(k)])).collect());
    }
    let one = |c: usize, k: usize| (c as u64 + 2, per[c][k].as_slice());
    let grouped: Vec<_> =
        (0..clients).flat_map(|c| (0..keys).map(move |k| (c, k))).map(|(c, k)| one(c, k)).collect();
    let mixed: Vec<_> =
        (0..keys).flat_map(|k| (0..clients).map(move |c| (c, k))).map(|(c, k)| one(c, k)).collect();
    let mut other = P::load(&base, 999_983);
    other.apply_many(&slices(&P::deliver(Some(&base), &grouped, false)));
    let text = other.text();
    drop(other);
    let updates = P::deliver(Some(&base), &mixed, false);
    let all = slices(&updates);
    let (head, tail) = all.split_at(P::TAIL.map_or(0, |k| all.len().saturating_sub(k)));
    let fresh = || {
        let mut doc = P::load(&base, 999_979);
        if !head.is_empty() {
            doc.apply_many(head);
        }
        doc
    };
    fed(r, "remote", tail, fresh, |doc: &mut P| {
        let got = doc.text();
        assert!(got == text, "order of arrival changed the text");
        assert_eq!(got.len(), 10 + clients * keys);
        let middle = &got.as_bytes()[5..5 + clients * keys];
        let runs = 1 + middle.windows(2).filter(|w| w[0] != w[1]).count();
        if keys == 1 || runs == clients { "" } else { "INTERLEAVED" }
    });
}

/// One random single-character insert after another into a million characters pasted in one piece.
fn random_inserts<P: Peer>(r: &mut Results) {
    let mut rng = Rng::new(1);
    let text = letters(&mut rng, 1_000_000);
    let base = P::base(&[Patch::ins(0, text.clone())]);
    let patches: Vec<Patch> =
        (0..20_000).map(|i| Patch::ins(rng.below(1_000_000 + i), letters(&mut rng, 1))).collect();
    let mut all = vec![Patch::ins(0, text)];
    all.extend_from_slice(&patches);
    linear::<P>(r, &patches, &oracle(&all), Some(&base));
}

/// Insert one character, delete it, and again: tombstones pile up, the text stays as it was.
fn pairs<P: Peer>(r: &mut Results, pairs: usize) {
    let base = P::base(&[Patch::ins(0, "0123456789")]);
    let patches: Vec<Patch> = (0..pairs).flat_map(|_| [Patch::ins(5, "x"), Patch::del(5, 1)]).collect();
    linear::<P>(r, &patches, "0123456789", Some(&base));
}

/// Typing at the very start, each character before the last one.
fn prepend<P: Peer>(r: &mut Results) {
    let mut rng = Rng::new(3);
    let patches: Vec<Patch> = (0..50_000).map(|_| Patch::ins(0, letters(&mut rng, 1))).collect();
    linear::<P>(r, &patches, &oracle(&patches), None);
}

/// One client's keystrokes on a large document while offline, in bursts at random places.
fn branch<P: Peer>(base: &[u8], len: usize, client: u64, keys: usize) -> Branch {
    let mut rng = Rng::new(client);
    let mut doc = P::load(base, client);
    let mark = doc.mark();
    let (mut len, mut at) = (len, 0);
    let mut updates = Vec::with_capacity(keys);
    for k in 0..keys {
        if k % 20 == 0 {
            at = rng.below(len - 40);
        }
        if rng.below(5) == 0 && at > 0 {
            at -= 1;
            len -= 1;
            updates.push(doc.edit_encode(&[Patch::del(at, 1)]));
        } else {
            updates.push(doc.edit_encode(&[Patch::ins(at, letters(&mut rng, 1))]));
            at += 1;
            len += 1;
        }
    }
    Branch { client, updates, whole: doc.encode_since(&mark) }
}

/// The document moves on by 10,000 keystrokes of one client; then the server, which has those, merges the branches
/// of `clients` others, who have not, each as one update. The time for all.
fn offline<P: Peer>(r: &mut Results, trace: &Trace, clients: usize, keys: usize) {
    let base = P::base(&trace.linear(P::UNIT));
    let len = trace.end.len();
    let first = branch::<P>(&base, len, 2, 10_000);
    let branches: Vec<Branch> = (0..clients).map(|c| branch::<P>(&base, len, c as u64 + 3, keys)).collect();
    // The other order, as the check.
    let mut mixed = Vec::new();
    for branch in branches.iter().rev().chain([&first]) {
        mixed.extend(by(branch.client, &branch.updates));
    }
    let mut other = P::load(&base, 999_983);
    other.apply_many(&slices(&P::deliver(Some(&base), &mixed, false)));
    let text = other.text();
    drop(other);
    let (first, branches) = P::deliver_branches(&base, &by(2, &first.updates), &branches);
    r.num("branch size", "B", branches.iter().map(Vec::len).sum::<usize>() as f64 / clients as f64, "");
    let first = slices(&first);
    let patience = r.patience();
    let mut partial = None;
    let stat = r.time(|| {
        if partial.is_some() {
            return Duration::ZERO;
        }
        let mut doc = P::load(&base, 999_979);
        doc.apply_many(&first);
        black_box(doc.text().len());
        let (start, since) = (ProcessorTime::now(), Instant::now());
        let mut merged = 0;
        while merged < branches.len() && since.elapsed() < patience {
            doc.apply_branch(&branches[merged]);
            merged += 1;
        }
        let time = start.elapsed();
        if merged < branches.len() {
            partial = Some(time.as_secs_f64() * 1e6 / merged as f64);
        } else {
            agree(&[&doc.text()], &text, false);
        }
        time
    });
    match partial {
        Some(mean) => r.num("merge branch", "us", mean, "partial"),
        None => r.put("merge branch", "us", stat, 1e6 / clients as f64, ""),
    }
}

pub fn pathological<P: Peer>(r: &mut Results, paper: &Trace) {
    let mut run = |case: &str, f: &dyn Fn(&mut Results)| {
        if wanted::<P>(r, case) {
            r.case = case.into();
            f(r);
        }
    };
    run("same-spot-10x1000", &|r| same_spot::<P>(r, 10, 1000, false));
    run("same-spot-back-10x1000", &|r| same_spot::<P>(r, 10, 1000, true));
    run("same-spot-50x200", &|r| same_spot::<P>(r, 50, 200, false));
    run("same-spot-back-50x200", &|r| same_spot::<P>(r, 50, 200, true));
    run("same-spot-2000x1", &|r| same_spot::<P>(r, 2000, 1, false));
    run("offline-10k", &|r| offline::<P>(r, paper, 1, 10_000));
    run("offline-100k", &|r| offline::<P>(r, paper, 1, 100_000));
    run("offline-1000x20", &|r| offline::<P>(r, paper, 1_000, 20));
    run("random-1M-20k", &|r| random_inserts::<P>(r));
    run("pairs-200k", &|r| pairs::<P>(r, 200_000));
    run("prepend-50k", &|r| prepend::<P>(r));
}
