//! Nodes over one log in memory and one bus in process.

mod world;

use std::sync::Arc;

use manyhands_crdt::Document as State;
use manyhands_history::MemoryLog;
use manyhands_proto::v1::{self, bus_message::Message};
use world::{Author, World, config, heard, open_request};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_acknowledged_published_and_opened_by_the_next() {
    let mut world = World::new(Arc::new(MemoryLog::new()));
    world.start(config());
    let mut bus = world.subscribe("demo").await;
    let mut ann = Author::join(&world, "demo", 7).await;
    assert_eq!(ann.known, 0);
    let request = ann.types(&["Hello"]);
    let answer = world.submit(&request).await.unwrap();
    assert_eq!(answer, v1::SubmitResponse { next_counter: 5, seq: 1, rejection: None });

    let delta = heard(&mut bus, |message| match message {
        Message::Delta(delta) => Some(delta),
        _ => None,
    })
    .await;
    assert_eq!(delta.incarnation, ann.incarnation);
    let run = delta.run.unwrap();
    let mut reader = State::new();
    reader.replay(run.first_seq, run.count, &run.entries, 0).unwrap();
    assert_eq!(reader.text("page").unwrap().to_string(), "Hello");

    let opened = world.open(&open_request("demo")).await.unwrap();
    let bob = opened.applied_to(State::new(), 0);
    assert_eq!((opened.seq(), bob.state_hash()), (1, ann.state.state_hash()));
}
