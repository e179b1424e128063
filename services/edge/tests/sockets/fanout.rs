//! What the bus loses is found and read; who moves is followed; nothing is delivered twice or out of order.

use std::sync::Arc;

use manyhands_bus::{DeltaBus, LocalBus, Message, SharedBus, Subscription, Topic, Unavailable};
use manyhands_proto::v1::server_frame::Frame as ServerFrame;
use manyhands_proto::{Code, PartitionId, v1};
use prost::Message as _;

use crate::documents::{Documents, status};
use crate::running::{Client, config, start, start_with};

async fn expect_seqs(client: &mut Client, seqs: std::ops::RangeInclusive<u64>) {
    let mut next = *seqs.start();
    while next <= *seqs.end() {
        let delta = client.delta().await;
        assert_eq!(delta.first_seq, next, "in order, none missing, none twice");
        next += u64::from(delta.count);
    }
    assert_eq!(next, seqs.end() + 1);
}

// enforces: I-6
#[tokio::test]
async fn deltas_that_the_bus_loses_are_read_once_for_all_sessions() {
    let running = start(config()).await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = running.greet("read").await;
        client.open(1, "demo", 0).await;
        clients.push(client);
    }
    running.documents.append("demo", "one");
    running.documents.state().losing = true;
    for entry in ["two", "three", "four"] {
        running.documents.append("demo", entry);
    }
    running.documents.state().losing = false;
    running.documents.append("demo", "five");
    for client in &mut clients {
        expect_seqs(client, 1..=5).await;
    }
    assert_eq!(running.documents.state().reads, 1, "one read for the gap, not one for each session");
}

// enforces: I-6
#[tokio::test]
async fn the_loss_of_the_last_delta_is_found_by_the_tip() {
    let running = start(config()).await;
    let mut client = running.greet("read").await;
    client.open(1, "demo", 0).await;
    running.documents.state().losing = true;
    running.documents.append("demo", "the last");
    running.documents.tip("demo");
    expect_seqs(&mut client, 1..=1).await;
}

// enforces: I-8
#[tokio::test]
async fn repeated_late_and_senseless_messages_change_nothing() {
    let running = start(config()).await;
    let mut client = running.greet("read").await;
    client.open(1, "demo", 0).await;
    let topic = Topic::Deltas(PartitionId::of(&"demo".parse().unwrap()));
    let mut seen = running.bus.subscribe(topic).await.unwrap();
    running.documents.append("demo", "one");
    running.documents.append("demo", "two");
    let mut repeats = Vec::new();
    for _ in 0..2 {
        if let Some(manyhands_bus::Received::Message(message)) = seen.next().await {
            repeats.push(message);
        }
    }
    for message in repeats.into_iter().rev() {
        running.bus.publish(topic, message);
    }
    for nonsense in [vec![], vec![0xff; 40], v1::BusMessage { message: None }.encode_to_vec()] {
        running.bus.publish(topic, Message { payload: nonsense.into(), traceparent: Some("x".repeat(500)) });
    }
    let run = v1::EntryRun { first_seq: 9, count: 0, entries: "bad".into(), chain: "short".into() };
    let bad = v1::BusDelta { epoch: 9, incarnation: 1004, run: Some(run), document: String::new() };
    // The first entry of a document that has one already, and of one whose name cannot be one.
    let run = v1::EntryRun { first_seq: 1, count: 1, entries: "one".into(), chain: vec![7; 16].into() };
    let other = v1::BusDelta { epoch: 1, incarnation: 77, run: Some(run), document: "demo".to_owned() };
    let nobody = v1::BusDelta { document: "\n".to_owned(), ..other.clone() };
    for bad in [bad, other, nobody] {
        let bad = v1::BusMessage { message: Some(v1::bus_message::Message::Delta(bad)) };
        running.bus.publish(topic, Message { payload: bad.encode_to_vec().into(), traceparent: None });
    }
    running.documents.append("demo", "three");
    expect_seqs(&mut client, 1..=3).await;
}

#[tokio::test]
async fn one_who_comes_later_starts_where_its_state_ends() {
    let running = start(config()).await;
    let mut first = running.greet("read").await;
    first.open(1, "demo", 0).await;
    for entry in ["one", "two"] {
        running.documents.append("demo", entry);
    }
    expect_seqs(&mut first, 1..=2).await;
    let mut second = running.greet("read").await;
    let opened = second.open(1, "demo", 0).await;
    assert_eq!(opened.position.unwrap().seq, 2);
    running.documents.append("demo", "three");
    expect_seqs(&mut first, 3..=3).await;
    expect_seqs(&mut second, 3..=3).await;
}

#[tokio::test]
async fn a_history_that_was_replaced_evicts_who_follows_the_old_one() {
    let running = start(config()).await;
    let mut client = running.greet("read").await;
    client.open(1, "demo", 0).await;
    running.documents.append("demo", "one");
    expect_seqs(&mut client, 1..=1).await;
    running.documents.reset("demo");
    let mut other = running.greet("read").await;
    other.open(1, "demo", 0).await;
    let evict = client.evict().await;
    assert_eq!((evict.channel, evict.code), (1, Code::HistoryReset.number()));
    client.open(1, "demo", 0).await;
    running.documents.append("demo", "one again");
    assert_eq!(&client.delta().await.entries[..], b"one again");
    assert_eq!(&other.delta().await.entries[..], b"one again");
}

/// A document without entries has an incarnation in its owner's memory only.
// enforces: I-6
#[tokio::test]
async fn an_empty_document_whose_owner_changes_is_opened_anew_at_its_first_entry() {
    let running = start(config()).await;
    let mut readers = Vec::new();
    for _ in 0..2 {
        let mut reader = running.greet("read").await;
        assert_eq!(reader.open(1, "demo", 0).await.position.unwrap().incarnation, 1004);
        readers.push(reader);
    }
    running.documents.reset("demo");
    running.documents.append("demo", "one");
    for reader in &mut readers {
        let evict = reader.evict().await;
        assert_eq!((evict.channel, evict.code), (1, Code::HistoryReset.number()));
        let position = reader.open(1, "demo", 0).await.position.unwrap();
        assert_eq!((position.incarnation, position.seq), (1005, 1));
    }
    running.documents.append("demo", "two");
    for reader in &mut readers {
        expect_seqs(reader, 2..=2).await;
    }
    assert_eq!(running.documents.state().reads, 0, "the delta itself told it, not the silence");
}

// enforces: I-8
#[tokio::test]
async fn the_hint_of_a_former_owner_is_followed_and_failures_are_repeated() {
    let bus: SharedBus = Arc::new(LocalBus::new(manyhands_bus::Limits::default()));
    let [one, two] = [(); 2].map(|()| Documents::new(Arc::clone(&bus)));
    let nodes = [("http://one", one.clone()), ("http://two", two.clone())];
    let running = start_with(config(), bus, nodes).await;
    let partition = PartitionId::of(&"demo".parse().unwrap()).0.into();
    let route = v1::Route { partition, epoch: 5, node: "two".into(), address: "http://two".into() };
    one.state().moved_to = Some(route);

    let mut client = running.greet("write").await;
    client.open(1, "demo", 3).await;
    assert_eq!(
        (one.state().opens, two.state().opens),
        (1, 1),
        "asked the seed, then the owner that it named"
    );

    two.state().refusals.extend([
        tonic::Status::unavailable("the connection broke"),
        status(Code::Unavailable, "the log is away", None),
        status(Code::NotOwner, "about to own it again", None),
    ]);
    client.push(1, 0, b"kept on trying").await;
    assert_eq!(client.ack().await.next_counter, 1);
    let submits = two.state().submits.clone();
    assert!(
        submits.len() >= 4 && submits.iter().all(|submit| *submit == submits[0]),
        "the same request each time"
    );
    assert_eq!(client.delta().await.first_seq, 1, "and it counts once");
}

#[tokio::test]
async fn a_route_on_the_bus_ends_the_wait_for_a_node_that_is_gone() {
    let bus: SharedBus = Arc::new(LocalBus::new(manyhands_bus::Limits::default()));
    let [one, two] = [(); 2].map(|()| Documents::new(Arc::clone(&bus)));
    let nodes = [("http://one", one.clone()), ("http://two", two.clone())];
    let running = start_with(config(), Arc::clone(&bus), nodes).await;
    let mut client = running.greet("write").await;
    client.open(1, "demo", 3).await;
    one.state().refusals.extend((0..100).map(|_| tonic::Status::unavailable("gone")));
    client.push(1, 0, b"x").await;
    one.wait_until(|state| state.submits.len() >= 2).await;
    assert!(two.state().submits.is_empty());
    let partition = PartitionId::of(&"demo".parse().unwrap()).0.into();
    let route = v1::Route { partition, epoch: 2, node: "two".into(), address: "http://two".into() };
    let routes = v1::BusMessage {
        message: Some(v1::bus_message::Message::Routes(v1::BusRoutes { routes: vec![route] })),
    };
    bus.publish(Topic::Routes, Message { payload: routes.encode_to_vec().into(), traceparent: None });
    assert_eq!(client.ack().await.next_counter, 1);
    assert_eq!(two.state().submits.len(), 1);
}

// enforces: I-9
#[tokio::test]
async fn a_new_edge_goes_on_where_a_lost_one_was() {
    let bus: SharedBus = Arc::new(LocalBus::new(manyhands_bus::Limits::default()));
    let documents = Documents::new(Arc::clone(&bus));
    let lost = start_with(config(), Arc::clone(&bus), [("http://one", documents.clone())]).await;
    let mut before = lost.greet("write").await;
    before.open(1, "demo", 3).await;
    before.push(1, 0, b"one").await;
    before.ack().await;
    let seen = before.delta().await;
    lost.task.abort();
    documents.append("demo", "two");

    let new = start_with(config(), bus, [("http://one", documents)]).await;
    let mut after = new.greet("write").await;
    let have = v1::Position { incarnation: 1004, seq: 1, chain: seen.chain };
    let open =
        v1::Open { channel: 1, document: "demo".into(), replica: 3, have: Some(have), ..v1::Open::default() };
    after.send(v1::client_frame::Frame::Open(open)).await;
    let opened =
        after.find(|frame| if let ServerFrame::Opened(opened) = frame { Some(opened) } else { None }).await;
    assert_eq!((opened.recovery(), opened.next_counter), (v1::Recovery::Tail, 1));
    assert_eq!(&after.delta().await.entries[..], b"two");
}

/// A bus whose server is away.
struct Away;

#[tonic::async_trait]
impl DeltaBus for Away {
    fn publish(&self, _: Topic, _: Message) {}

    async fn subscribe(&self, _: Topic) -> Result<Box<dyn Subscription>, Unavailable> {
        Err(Unavailable("the server is away".to_owned()))
    }

    fn is_connected(&self) -> bool {
        false
    }
}

// enforces: I-8
#[tokio::test]
async fn without_a_bus_everything_still_arrives_later() {
    let bus: SharedBus = Arc::new(Away);
    let documents = Documents::new(Arc::clone(&bus));
    let running = start_with(config(), bus, [("http://one", documents)]).await;
    let mut writer = running.greet("write").await;
    let mut reader = running.greet("read").await;
    writer.open(1, "demo", 3).await;
    reader.open(1, "demo", 0).await;
    for counter in 0..3 {
        writer.push(1, counter, b"slowly").await;
        assert_eq!(writer.ack().await.next_counter, counter + 1);
    }
    expect_seqs(&mut writer, 1..=3).await;
    expect_seqs(&mut reader, 1..=3).await;
}
