//! A gapless stream out of a bus that loses, repeats and reorders.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bytes::Bytes;
use manyhands_proto::{Chain, Code, Epoch, Incarnation, Position, Seq, v1};
use manyhands_session::edge::Fetched;
use manyhands_session::feed::{Effect, Feed, FeedConfig, Input};
use manyhands_session::{Refusal, SharedRun};
use proptest::prelude::*;

const HISTORY: Incarnation = Incarnation(7);

fn chain(seq: u64) -> Chain {
    let mut chain = [0xc4; 16];
    chain[..8].copy_from_slice(&seq.to_le_bytes());
    chain
}

fn position(seq: u64) -> Position {
    Position {
        incarnation: HISTORY,
        seq: Seq(seq),
        chain: if seq == 0 { Chain::default() } else { chain(seq) },
    }
}

fn run(first: u64, last: u64) -> SharedRun {
    SharedRun::new(v1::EntryRun {
        first_seq: first,
        count: (last - first + 1) as u32,
        entries: Bytes::from(vec![1; 20]),
        chain: Bytes::copy_from_slice(&chain(last)),
    })
    .unwrap()
}

fn delta(first: u64, last: u64) -> Input {
    Input::Delta { epoch: Epoch(3), incarnation: HISTORY, run: run(first, last) }
}

fn tip(seq: u64) -> Input {
    Input::Tip { epoch: Epoch(3), position: position(seq) }
}

/// A feed with what it delivered.
struct Followed {
    feed: Feed,
    now: Duration,
    delivered: Vec<(u64, u64)>,
    fetches: Vec<u64>,
    lost: bool,
}

impl Followed {
    /// At seq 0 of an open document.
    fn new() -> Followed {
        Followed::with(FeedConfig::default())
    }

    fn with(config: FeedConfig) -> Followed {
        let feed = Feed::new(config, HISTORY, 1, Duration::ZERO);
        let mut followed =
            Followed { feed, now: Duration::ZERO, delivered: vec![], fetches: vec![], lost: false };
        followed.input(Input::Opened { position: position(0) });
        followed
    }

    fn input(&mut self, input: Input) -> &mut Followed {
        let mut effects = Vec::new();
        self.feed.handle(self.now, input, &mut effects);
        for effect in effects {
            assert!(!self.lost, "something after the end: {effect:?}");
            match effect {
                Effect::Deliver(run) => self.delivered.push((run.first().0, run.last().0)),
                Effect::Fetch { after, incarnation } => {
                    assert_eq!(incarnation, HISTORY);
                    self.fetches.push(after.0);
                }
                Effect::Lost => self.lost = true,
            }
        }
        self
    }

    fn at(&mut self, millis: u64) -> &mut Followed {
        self.now = Duration::from_millis(millis);
        self.input(Input::Tick)
    }

    fn fetched(&mut self, runs: &[(u64, u64)], newest: u64) -> &mut Followed {
        let runs = runs.iter().map(|&(first, last)| run(first, last)).collect();
        self.input(Input::Fetched(Ok(Fetched { runs, tip: position(newest) })))
    }
}

#[test]
fn what_comes_in_order_goes_out_at_once() {
    let mut followed = Followed::new();
    followed.input(delta(1, 1)).input(delta(2, 4)).input(delta(2, 4)).input(delta(3, 5));
    assert_eq!(followed.delivered, [(1, 1), (2, 4), (3, 5)]);
    assert!(followed.at(14_999).fetches.is_empty());
}

#[test]
fn a_reordering_waits_and_needs_no_fetch() {
    let mut followed = Followed::new();
    followed.input(delta(3, 3)).input(delta(2, 2));
    assert!(followed.delivered.is_empty());
    followed.input(delta(1, 1));
    assert_eq!(followed.delivered, [(1, 1), (2, 2), (3, 3)]);
    assert!(followed.at(1_000).fetches.is_empty());
}

#[test]
fn a_gap_is_fetched_after_250_ms_and_what_waited_for_it_follows() {
    let mut followed = Followed::new();
    followed.input(delta(1, 1)).input(delta(4, 4));
    assert_eq!(followed.feed.deadline(), Some(Duration::from_millis(250)));
    assert!(followed.at(249).fetches.is_empty());
    assert_eq!(followed.at(250).fetches, [1]);
    followed.at(5_000);
    assert_eq!(followed.fetches, [1], "one at a time");
    followed.fetched(&[(2, 3)], 4);
    assert_eq!(followed.delivered, [(1, 1), (2, 3), (4, 4)]);
}

// enforces: I-6
#[test]
fn the_loss_of_the_last_delta_is_found_by_a_tip() {
    let mut followed = Followed::new();
    followed.input(delta(1, 1)).input(tip(2)).at(250);
    assert_eq!(followed.fetches, [1]);
    followed.fetched(&[(2, 2)], 2);
    assert_eq!(followed.delivered, [(1, 1), (2, 2)]);
}

// enforces: I-8
#[test]
fn without_any_word_from_the_bus_the_owner_is_asked_more_and_more_rarely() {
    let mut followed = Followed::new();
    let mut asked = Vec::new();
    for second in 1..200 {
        followed.at(second * 1000);
        if followed.fetches.pop().is_some() {
            asked.push(second);
            followed.fetched(&[], 0);
        }
    }
    assert_eq!(asked, [15, 45, 105, 165]);
    followed.input(tip(0)).at(213_999);
    assert!(followed.fetches.is_empty());
    followed.at(214_000).fetched(&[(1, 1)], 1);
    assert_eq!(followed.delivered, [(1, 1)]);
}

#[test]
fn a_bus_that_says_that_it_lost_something_is_checked_at_once() {
    let mut followed = Followed::new();
    followed.input(Input::Suspect).input(Input::Suspect);
    assert_eq!(followed.fetches, [0]);
}

#[test]
fn an_owner_that_cannot_be_reached_is_asked_again_with_backoff() {
    let mut followed = Followed::new();
    followed.input(Input::Suspect);
    for attempt in 2..8 {
        followed.input(Input::Fetched(Err(Refusal::from(Code::Unavailable))));
        let due = followed.feed.deadline().unwrap();
        assert!(due <= followed.now + Duration::from_secs(5));
        followed.now = due;
        followed.input(Input::Tick);
        assert_eq!(followed.fetches.len(), attempt);
    }
    followed.input(Input::Fetched(Err(Refusal::from(Code::HistoryReset))));
    assert!(followed.lost && followed.feed.deadline().is_none());
}

#[test]
fn an_older_epoch_is_not_listened_to() {
    let mut followed = Followed::new();
    followed.input(delta(1, 1));
    let old = Input::Delta { epoch: Epoch(2), incarnation: Incarnation(99), run: run(2, 2) };
    followed.input(old).input(Input::Tip { epoch: Epoch(2), position: position(9) });
    assert!(!followed.lost);
    assert_eq!(followed.delivered, [(1, 1)]);
}

#[test]
fn another_history_or_another_chain_at_a_seq_ends_the_feed() {
    let forked = |seq| Position { chain: [1; 16], ..position(seq) };
    let other = Input::Delta { epoch: Epoch(3), incarnation: Incarnation(99), run: run(3, 3) };
    for end in
        [other, Input::Tip { epoch: Epoch(3), position: forked(2) }, Input::Opened { position: forked(1) }]
    {
        let mut followed = Followed::new();
        followed.input(delta(1, 1)).input(delta(2, 2)).input(end);
        assert!(followed.lost);
        followed.input(delta(3, 3)).at(60_000);
        assert_eq!(followed.delivered.len(), 2);
    }
}

// enforces: I-10
#[test]
fn what_waits_behind_a_gap_is_bounded_and_the_gap_is_fetched_at_once_when_it_is_full() {
    let mut followed = Followed::new();
    for seq in 2..=257 {
        followed.input(delta(seq, seq));
    }
    assert!(followed.fetches.is_empty());
    for seq in 258..10_000 {
        followed.input(delta(seq, seq));
    }
    assert_eq!(followed.fetches, [0]);
    followed.fetched(&[(1, 1)], 9_999);
    assert_eq!(followed.delivered.last(), Some(&(257, 257)));
    assert_eq!(followed.fetches, [0, 257], "the rest at once");
}

#[test]
fn the_ring_has_the_recent_runs_for_those_who_come() {
    let mut followed = Followed::with(FeedConfig { ring_runs_max: 3, ..FeedConfig::default() });
    for seq in 1..=5 {
        followed.input(delta(seq, seq));
    }
    let firsts = |fetched: Option<Fetched>| {
        fetched.map(|fetched| fetched.runs.iter().map(|run| run.first().0).collect::<Vec<_>>())
    };
    assert_eq!(firsts(followed.feed.recent(Seq(2))), Some(vec![3, 4, 5]));
    assert_eq!(firsts(followed.feed.recent(Seq(4))), Some(vec![5]));
    assert_eq!(firsts(followed.feed.recent(Seq(1))), None, "no longer there");
    assert_eq!(firsts(followed.feed.recent(Seq(5))), None, "nothing newer");
    assert_eq!(followed.feed.position(), Some(position(5)));
}

/// What the bus does to one message.
#[derive(Clone, Debug)]
struct Fate {
    length: u64,
    copies: Vec<u16>,
}

fn fate() -> impl Strategy<Value = Fate> {
    let copies = prop::collection::vec(prop_oneof![4 => 0u16..3, 1 => 0u16..600], 0..3);
    (1u64..4, copies).prop_map(|(length, copies)| Fate { length, copies })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    // enforces: I-6
    #[test]
    fn for_any_loss_repeat_and_reordering_every_seq_goes_out_in_order(
        fates in prop::collection::vec(fate(), 1..60),
        answers in prop::collection::vec((any::<bool>(), 1u64..20), 1..8),
        held in 1usize..6,
    ) {
        // When each message arrives, and the newest seq at that time.
        let mut arrivals = Vec::new();
        let mut newest = 0;
        for (number, fate) in fates.iter().enumerate() {
            let sent = number as u64 * 20;
            let (first, last) = (newest + 1, newest + fate.length);
            newest = last;
            arrivals.extend(fate.copies.iter().map(|delay| (sent + u64::from(*delay), first, last)));
        }
        arrivals.sort_unstable();
        let log_at = |millis: u64| -> u64 {
            fates.iter().take((millis / 20 + 1) as usize).map(|fate| fate.length).sum()
        };
        let config = FeedConfig { held_runs_max: held, ..FeedConfig::default() };
        let mut followed = Followed::with(config);
        let mut arrivals = arrivals.into_iter().peekable();
        let mut answers = answers.into_iter().cycle();
        let mut answered = 0;
        let end = fates.len() as u64 * 20 + 600;
        for millis in 0..end + 60_000 {
            followed.now = Duration::from_millis(millis);
            while let Some((_, first, last)) = arrivals.next_if(|(at, ..)| *at <= millis) {
                followed.input(delta(first, last));
            }
            if millis % 500 == 0 {
                followed.input(tip(log_at(millis)));
            }
            if followed.feed.deadline().is_some_and(|at| at <= followed.now) {
                followed.input(Input::Tick);
            }
            if answered < followed.fetches.len() && millis % 7 == 0 {
                let after = followed.fetches[answered];
                answered += 1;
                prop_assert_eq!(followed.fetches.len(), answered, "one fetch at a time");
                let tip = log_at(millis);
                match answers.next().unwrap() {
                    (false, _) if millis < end => {
                        followed.input(Input::Fetched(Err(Refusal::from(Code::Timeout))));
                    }
                    (_, most) => {
                        let last = tip.min(after + most);
                        let runs: &[(u64, u64)] = if last > after { &[(after + 1, last)] } else { &[] };
                        followed.fetched(runs, tip);
                    }
                }
            }
            if followed.feed.position() == Some(position(newest)) && arrivals.peek().is_none() {
                break;
            }
        }
        prop_assert!(!followed.lost);
        prop_assert_eq!(followed.feed.position(), Some(position(newest)));
        let mut seen = 0;
        for (first, last) in followed.delivered {
            prop_assert!(first <= seen + 1 && last > seen, "{first}..{last} after {seen}");
            seen = last;
        }
        prop_assert_eq!(seen, newest);
    }
}
