//! Whoever applies what a mirror says has what the document has, whenever they came and whatever they missed.

use manyhands_crdt::{Hash, Strategy};
use manyhands_proto::{Code, Seq};
use manyhands_session::json::{Audience, Mirror, MirrorLimits, Missed, SharedOps, SharedState};

use crate::owner::Owner;
use crate::{Random, View};

const T: u64 = 1_763_661_900_000_000;

/// One who is told what a mirror says.
struct Client {
    view: View,
    seq: Seq,
    extended: bool,
}

impl Client {
    fn new(state: &SharedState, extended: bool) -> Client {
        let mut client = Client { view: View::default(), seq: Seq(0), extended };
        client.init(state);
        client
    }

    fn init(&mut self, state: &SharedState) {
        self.view.take(&state.frame);
        self.seq = state.position.seq;
    }

    fn ops(&mut self, ops: &SharedOps) {
        assert!(ops.first <= self.seq.next(), "a gap");
        if ops.last > self.seq {
            for op in ops.ops.iter().filter(|op| op.audience == Audience::All) {
                self.view.take(if self.extended { &op.extended } else { &op.bare });
            }
            self.seq = ops.last;
        }
    }
}

fn unhex(text: &str) -> Hash {
    let mut hash = Hash::default();
    for (byte, at) in hash.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    }
    hash
}

fn history(seed: u64, strategy: Strategy) -> u64 {
    let mut random = Random(seed);
    let mut owner = Owner::new(strategy);
    let write = |owner: &mut Owner, random: &mut Random| {
        let key = ["a", "b", "c"][random.below(3) as usize];
        let value = random.below(1_000).to_string();
        let value = (!random.one_in(4)).then_some(&value[..]);
        // From having seen all to having seen nothing.
        let seq = owner.seq();
        let base = if random.one_in(2) { seq } else { random.below(seq + 1) };
        owner.write(1 + random.below(3), base, key, value, T + random.below(50));
    };
    for _ in 0..random.below(10) {
        write(&mut owner, &mut random);
    }
    let mut mirror = Mirror::new(owner.opened(), MirrorLimits::default()).unwrap();
    let mut clients =
        vec![Client::new(&mirror.state().unwrap(), false), Client::new(&mirror.state().unwrap(), true)];
    let mut partial = 0;
    for _ in 0..random.below(12) {
        let before = owner.seq();
        for _ in 0..=random.below(4) {
            write(&mut owner, &mut random);
        }
        // Runs may begin before what is known.
        let after = before.saturating_sub(random.below(3));
        let ops = mirror.apply(&owner.run(after, owner.seq())).unwrap().unwrap();
        assert_eq!((ops.first, ops.last), (Seq(before + 1), Seq(owner.seq())));
        assert_eq!(mirror.apply(&owner.run(after, owner.seq())).unwrap(), None);
        for client in &mut clients {
            if client.seq.0 == before && !random.one_in(4) {
                client.ops(&ops);
            } else if random.one_in(2) {
                match mirror.since(client.seq).unwrap() {
                    Some(Missed::Ops(ops)) => client.ops(&ops),
                    Some(Missed::State(state)) => client.init(&state),
                    None => assert_eq!(client.seq, mirror.position().seq),
                }
            } else if client.extended && random.one_in(2) && client.seq == mirror.position().seq {
                unreachable!("it is behind by this run");
            } else if random.one_in(3) {
                // It comes back with the heads that it has.
                let heads: Vec<Hash> = client.view.heads.iter().map(|head| unhex(head)).collect();
                let state = mirror.state_since(&heads).unwrap();
                partial += u64::from(state.frame.windows(9).any(|bytes| bytes == b"\"partial\""));
                client.init(&state);
            }
            if client.seq.0 == owner.seq() {
                assert_eq!(client.view.state, owner.root(), "{strategy} {seed}");
            }
        }
        if random.one_in(3) {
            clients.push(Client::new(&mirror.state().unwrap(), random.one_in(2)));
        }
    }
    for client in &mut clients {
        if let Some(missed) = mirror.since(client.seq).unwrap() {
            match missed {
                Missed::Ops(ops) => client.ops(&ops),
                Missed::State(state) => client.init(&state),
            }
        }
        assert_eq!(client.view.state, owner.root(), "{strategy} {seed}");
    }
    let fresh = Mirror::new(owner.opened(), MirrorLimits::default()).unwrap().state().unwrap();
    assert_eq!(mirror.state().unwrap().frame, fresh.frame, "from the log and from the state alike");
    partial
}

// enforces: I-5
#[test]
fn whoever_applies_what_a_mirror_says_has_what_the_document_has() {
    let mut partial = 0;
    for seed in 0..2_000 {
        for strategy in Strategy::ALL {
            partial += history(seed, strategy);
        }
    }
    assert!(partial > 500, "heads were known only {partial} times");
}

#[test]
fn a_removal_that_loses_is_told_to_its_author_and_what_it_reveals_to_all() {
    let mut owner = Owner::new(Strategy::Crdt);
    owner.write(1, 0, "k", Some("1"), T);
    let mut mirror = Mirror::new(owner.opened(), MirrorLimits::default()).unwrap();
    let told = |mirror: &mut Mirror, owner: &Owner| {
        let after = mirror.position().seq.0;
        let ops = mirror.apply(&owner.run(after, owner.seq())).unwrap().unwrap();
        let ops = ops.ops.iter().map(|op| (op.audience, String::from_utf8(op.bare.to_vec()).unwrap()));
        ops.collect::<Vec<_>>()
    };
    let set = |value: u64, micros: u64| {
        format!(r#"{{"type":"op","payload":{{"key":"k","value":{value},"timestamp":{micros}}}}}"#)
    };
    // Concurrent with the first: on top, and the first is kept below.
    owner.write(2, 0, "k", Some("2"), T + 1);
    assert_eq!(told(&mut mirror, &owner), [(Audience::All, set(2, T + 1))]);
    // It has seen the first only: what is on top stays.
    owner.write(3, 1, "k", None, T + 2);
    assert_eq!(told(&mut mirror, &owner), [(Audience::Author, set(2, T + 1))]);
    owner.write(1, 1, "k", Some("3"), T + 3);
    told(&mut mirror, &owner);
    // It has seen nothing of the third's: the second comes up again where only the newest was seen. As bases count
    // whole prefixes, that takes the author's own.
    owner.write(1, 1, "k", None, T + 4);
    assert_eq!(told(&mut mirror, &owner), [(Audience::All, set(2, T + 1))]);
    owner.write(1, owner.seq(), "k", None, T + 5);
    let gone = format!(r#"{{"type":"op","payload":{{"key":"k","value":null,"timestamp":{}}}}}"#, T + 5);
    assert_eq!(told(&mut mirror, &owner), [(Audience::All, gone)]);
}

// enforces: I-10
#[test]
fn what_is_too_large_is_refused_with_its_size() {
    let mut owner = Owner::new(Strategy::Crdt);
    for n in 0..10 {
        owner.write(1, 0, &format!("k{n}"), Some(&format!("\"{}\"", "x".repeat(1000))), T);
    }
    let refused = |limits| match Mirror::new(owner.opened(), limits) {
        Ok(mut mirror) => mirror.state().map(|_| ()).unwrap_err().code,
        Err(refusal) => refusal.code,
    };
    let usual = MirrorLimits::default();
    assert_eq!(refused(MirrorLimits { init_bytes_max: 10_000, ..usual }), Code::TooLarge);
    assert_eq!(refused(MirrorLimits { memory_bytes_max: 5_000, ..usual }), Code::TooLarge);
    let mut mirror = Mirror::new(owner.opened(), MirrorLimits { init_bytes_max: 11_000, ..usual }).unwrap();
    assert!(mirror.state().is_ok());
}

// enforces: I-12
#[test]
fn a_run_that_no_log_made_is_an_error() {
    let mut owner = Owner::new(Strategy::Lww);
    for n in 0..3 {
        owner.write(1 + n, n, "k", Some("1"), T + n);
    }
    let empty = Owner::new(Strategy::Lww).opened();
    let mut mirror = Mirror::new(empty.clone(), MirrorLimits::default()).unwrap();
    assert_eq!(mirror.apply(&owner.run(1, 3)).unwrap_err().code, Code::Internal);
    let good = owner.run(0, 3).entries().unwrap();
    for at in 0..good.len() {
        for flip in [1, 0x80] {
            let mut bytes = good.to_vec();
            bytes[at] ^= flip;
            let run = manyhands_proto::v1::EntryRun {
                first_seq: 1,
                count: 3,
                entries: bytes.into(),
                chain: vec![3; 16].into(),
            };
            let run = manyhands_session::SharedRun::new(run).unwrap();
            let mut mirror = Mirror::new(empty.clone(), MirrorLimits::default()).unwrap();
            // Another value may come of it, but no panic and no frame that is none.
            if let Ok(Some(ops)) = mirror.apply(&run) {
                for op in &*ops.ops {
                    View::default().take(&op.bare);
                }
            }
        }
    }
}
