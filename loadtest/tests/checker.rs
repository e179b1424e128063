//! The checker on histories that are made up: one that holds, and every way to damage it.

use loadtest::checker::{Checker, Digest, Event, Options, Row, Rule, Token, check, controls};

const WRITERS: u32 = 3;
const DOCUMENTS: u16 = 2;
const ROWS: u64 = 40;
/// Who watches, and is sent every entry.
const WATCHER: u32 = 100;

fn digest(of: &[u8]) -> Digest {
    let mut digest = [0; 16];
    digest.copy_from_slice(&blake3::hash(of).as_bytes()[..16]);
    digest
}

fn state(document: u16, seq: u64) -> Digest {
    digest(format!("state {document} {seq}").as_bytes())
}

fn replica(client: u32, document: u16) -> u64 {
    u64::from(client) * 1_000 + u64::from(document) + 1
}

/// Two documents that three clients write in turns, in one partition each, under two epochs.
fn history() -> Vec<Event> {
    let (mut log, mut clients, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    for document in 0..DOCUMENTS {
        log.push(Event::Appended { partition: document, epoch: 3, first: 1, last: ROWS / 2 });
        log.push(Event::Appended { partition: document, epoch: 4, first: ROWS / 2 + 1, last: ROWS });
        let mut chain = [0; 16];
        let mut tokens = Vec::new();
        clients.push(Event::Opened {
            client: WATCHER,
            document,
            incarnation: 9,
            seq: 0,
            chain: None,
            state: None,
        });
        for seq in 1..=ROWS {
            let client = (seq % u64::from(WRITERS)) as u32;
            let number = (seq / u64::from(WRITERS)) as u32;
            let (counter, next_counter) = (u64::from(number) * 17, u64::from(number) * 17 + 17);
            // The third writer's first turn comes at seq 2, the first writer's at seq 3.
            let (counter, next_counter) =
                if client == 0 { (counter - 17, next_counter - 17) } else { (counter, next_counter) };
            let token = Token { document, writer: client as u16, number };
            let hash = digest(token.to_string().as_bytes());
            chain = digest(&[chain, hash].concat());
            tokens.push(token);
            let committed = 1_000_000 + seq * 1_000;
            log.push(Event::Logged(Row {
                document,
                partition: document,
                incarnation: 9,
                seq,
                offset: seq,
                replica: replica(client, document),
                counter,
                next_counter,
                hash,
                body_hash: hash,
                chain,
                time_ms: 1_000 + seq,
                committed: Some(committed),
                token: Some(token),
            }));
            clients.push(Event::Sent {
                client,
                document,
                replica: replica(client, document),
                counter,
                next_counter,
                token,
            });
            clients.push(Event::Acked {
                client,
                document,
                replica: replica(client, document),
                next_counter,
                at: committed + 200,
            });
            clients.push(Event::Delivered {
                client: WATCHER,
                document,
                first_seq: seq,
                count: 1,
                chain,
                at: committed + 300,
            });
        }
        for seq in [ROWS / 2, ROWS] {
            log.push(Event::Folded { document, seq, state: state(document, seq) });
        }
        ends.push(Event::Watched { client: WATCHER, document, at: 9_500_000 });
        for client in 0..WRITERS {
            let (state, tokens) = (state(document, ROWS), tokens.clone());
            ends.push(Event::Final { client, document, state, tokens, at: 10_000_000 });
        }
    }
    log.extend(clients);
    log.push(Event::Healed { at: 9_000_000 });
    log.extend(ends);
    log
}

fn rules(events: &[Event]) -> Vec<Rule> {
    check(events, Options::default()).violations.iter().map(|violation| violation.rule).collect()
}

#[test]
fn a_history_that_holds_is_said_to_hold() {
    let verdict = check(&history(), Options::default());
    assert_eq!(verdict.violations, []);
    let all = ROWS * u64::from(DOCUMENTS);
    assert_eq!((verdict.rows, verdict.sent, verdict.acked, verdict.delivered), (all, all, all, all));
    assert_eq!((verdict.epoch_max, verdict.appends), (4, 4));
}

#[test]
fn every_damage_is_named() {
    let history = history();
    for control in controls() {
        let damaged =
            control.damaged(&history).unwrap_or_else(|| panic!("{}: no place for it", control.name));
        let verdict = check(&damaged, Options::default());
        let named = verdict.violations.iter().any(|violation| violation.rule == control.rule);
        assert!(named, "{}: wanted {:?}, found {:?}", control.name, control.rule, verdict.violations);
    }
}

#[test]
fn every_rule_has_a_control() {
    for rule in Rule::ALL {
        assert!(
            controls().iter().any(|control| control.rule == *rule),
            "nothing shows that {} works",
            rule.slug()
        );
    }
}

#[test]
fn what_its_author_never_heard_of_may_be_there_or_not() {
    let mut history = history();
    let (logged, absent) = (replica(1, 0), replica(50, 0));
    history.retain(|event| !matches!(event, Event::Acked { replica, .. } if *replica == logged));
    let token = Token { document: 0, writer: 50, number: 0 };
    history.push(Event::Sent {
        client: 50,
        document: 0,
        replica: absent,
        counter: 0,
        next_counter: 17,
        token,
    });
    assert!(rules(&history).contains(&Rule::Settles), "they are there and were never answered");
    history.retain(|event| !matches!(event, Event::Acked { client: 1, .. }));
    history.extend([Event::Gone { client: 1 }, Event::Gone { client: 50 }]);
    let verdict = check(&history, Options::default());
    assert_eq!(verdict.violations, []);
    assert_eq!(verdict.unknown_absent, 1);
    assert!(verdict.unknown_logged > 1);
}

#[test]
fn a_state_is_a_notice_and_a_repetition_is_none_of_its_business() {
    let mut history = history();
    // The watcher misses everything up to the middle and is given a state instead.
    history.retain(|event| !matches!(event, Event::Delivered { first_seq, .. } if *first_seq <= ROWS / 2));
    let middle = |document| Event::Opened {
        client: WATCHER,
        document,
        incarnation: 9,
        seq: ROWS / 2,
        chain: None,
        state: Some(state(document, ROWS / 2)),
    };
    assert!(rules(&history).contains(&Rule::DeliveredInOrder));
    for event in &mut history {
        if let Event::Opened { document, .. } = event {
            *event = middle(*document);
        }
    }
    let again: Vec<Event> =
        history.iter().filter(|event| matches!(event, Event::Delivered { .. })).cloned().collect();
    history.extend(again);
    assert_eq!(check(&history, Options::default()).violations, []);
    // Going back to it later is wrong.
    history.push(middle(1));
    assert_eq!(rules(&history), [Rule::DeliveredInOrder]);
}

#[test]
fn a_history_survives_being_written_down() {
    let history = history();
    let lines: Vec<String> = history.iter().map(|event| serde_json::to_string(event).unwrap()).collect();
    let mut checker = Checker::new(Options::default());
    for (line, event) in lines.iter().zip(&history) {
        let read: Event = serde_json::from_str(line).unwrap();
        assert_eq!(read, *event);
        checker.take(&read);
    }
    assert!(checker.finish().holds());
}

#[test]
fn violations_are_bounded() {
    let mut history = history();
    history.retain(|event| !matches!(event, Event::Logged(_)));
    let options = Options { violations_max: 5, ..Options::default() };
    let verdict = check(&history, options);
    assert_eq!(verdict.violations.len(), 5);
    assert!(verdict.violations_more > 50);
    assert!(!verdict.holds());
}
