//! The bus over a real NATS server, held to the contract of all, and what happens when the server goes.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use manyhands_bus::conformance::{Ends, LIMITS, message, next, next_text};
use manyhands_bus::{NatsBus, OpenError, Received, SharedBus, Subscription, Topic, WhenAway, open};
use manyhands_neighbours::{Dir, Nats};
use manyhands_proto::PartitionId;

const TOPIC: Topic = Topic::Deltas(PartitionId(9));

async fn server() -> Nats {
    tokio::task::spawn_blocking(|| Nats::start(Dir::Temporary).unwrap()).await.unwrap()
}

async fn connect(url: &str) -> SharedBus {
    Arc::new(NatsBus::open(url, WhenAway::Fail, LIMITS).await.unwrap())
}

async fn ends_at(url: &str) -> Ends {
    Ends { here: connect(url).await, there: connect(url).await }
}

/// Two connections to a server that all scenarios share, each under its own prefix.
async fn two_connections() -> (Ends, ()) {
    static SERVER: OnceLock<Nats> = OnceLock::new();
    static SCENARIO: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let start = || SERVER.get_or_init(|| Nats::start(Dir::Temporary).unwrap()).url();
    let url = tokio::task::spawn_blocking(start).await.unwrap();
    let number = SCENARIO.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    (ends_at(&format!("{url}?prefix=test.{number}")).await, ())
}

manyhands_bus::conformance!(two_connections);

async fn blocking(mut server: Nats, act: impl FnOnce(&mut Nats) + Send + 'static) -> Nats {
    let act = move || {
        act(&mut server);
        server
    };
    tokio::task::spawn_blocking(act).await.unwrap()
}

/// Publishes until it is received, whatever of it was lost before; gives how often `Lost` came.
async fn until_it_flows(bus: &SharedBus, subscription: &mut Box<dyn Subscription>, text: &str) -> usize {
    let mut losses = 0;
    let mut again = tokio::time::interval(Duration::from_millis(50));
    let flows = async {
        loop {
            tokio::select! {
                _ = again.tick() => bus.publish(TOPIC, message(text.to_owned())),
                received = subscription.next() => match received.unwrap() {
                    Received::Lost => losses += 1,
                    Received::Message(message) if message.payload == text => return,
                    Received::Message(_) => {}
                },
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), flows).await.unwrap();
    losses
}

// enforces: I-8
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_costs_each_subscriber_a_loss_and_no_more() {
    let server = server().await;
    let ends = ends_at(&server.url()).await;
    let mut first = ends.there.subscribe(TOPIC).await.unwrap();
    let mut other = ends.there.subscribe(Topic::Routes).await.unwrap();
    ends.here.publish(TOPIC, message("before"));
    assert_eq!(next_text(&mut first).await, "before");

    let server = blocking(server, Nats::kill).await;
    // Nobody waits for a server that is not there.
    for _ in 0..50_000 {
        ends.here.publish(TOPIC, message("into the void"));
    }
    let _server = blocking(server, |server| server.restart().unwrap()).await;

    // What was under way in the client may still arrive, faster than it is read here: more than one loss.
    assert!(until_it_flows(&ends.here, &mut first, "after").await >= 1);
    assert!(ends.here.is_connected() && ends.there.is_connected());
    assert_eq!(next(&mut other).await, Received::Lost);
    ends.here.publish(Topic::Routes, message("after"));
    assert_eq!(next_text(&mut other).await, "after");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_made_while_the_server_is_away_stands_when_it_is_back() {
    let server = server().await;
    let ends = ends_at(&server.url()).await;
    let server = blocking(server, Nats::kill).await;
    while ends.there.is_connected() {
        tokio::task::yield_now().await;
    }
    let mut subscription = ends.there.subscribe(TOPIC).await.unwrap();
    let _server = blocking(server, |server| server.restart().unwrap()).await;
    assert_eq!(until_it_flows(&ends.here, &mut subscription, "after").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_at_the_start() {
    let server = blocking(server().await, Nats::kill).await;
    let url = server.url();

    let Err(OpenError::Away(why)) = open(&url, WhenAway::Fail).await else { panic!("it was opened") };
    assert!(why.contains(url.trim_start_matches("nats://")), "{why}");

    let bus = open(&url, WhenAway::Retry).await.unwrap();
    assert!(!bus.is_connected());
    let mut subscription = bus.subscribe(TOPIC).await.unwrap();
    let _server = blocking(server, |server| server.restart().unwrap()).await;
    assert_eq!(next(&mut subscription).await, Received::Lost);
    assert_eq!(until_it_flows(&bus, &mut subscription, "after").await, 0);
}

// enforces: I-10
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_does_not_hold_the_publisher() {
    let server = server().await;
    let ends = ends_at(&server.url()).await;
    let mut subscription = ends.there.subscribe(TOPIC).await.unwrap();
    server.pause();
    // 400 MB, far more than all queues on the way may hold.
    let payload = vec![b'x'; 100_000];
    for _ in 0..4_000 {
        ends.here.publish(TOPIC, message(payload.clone()));
    }
    server.resume();
    until_it_flows(&ends.here, &mut subscription, "after").await;
}
