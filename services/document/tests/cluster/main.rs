//! Nodes over one log and one bus in process: what an edge sees of them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod strategies;
mod world;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use manyhands_crdt::{Document as State, ReplicaId};
use manyhands_document::Config;
use manyhands_history::{Call, Fault, MemoryLog, Options, SharedLog};
use manyhands_proto::v1::document_service_server::DocumentService;
use manyhands_proto::v1::{self, Recovery, bus_message::Message};
use manyhands_proto::{Code, Seq};
use tonic::Request;
use world::{Author, Door, Frozen, World, code, config, grant, heard, open_request};

fn memory() -> SharedLog {
    Arc::new(MemoryLog::new())
}

fn delta(message: Message) -> Option<v1::BusDelta> {
    match message {
        Message::Delta(delta) => Some(delta),
        _ => None,
    }
}

fn tips(message: Message) -> Option<v1::BusTips> {
    match message {
        Message::Tips(tips) => Some(tips),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_acknowledged_published_announced_and_opened_by_the_next() {
    let mut world = World::new(memory());
    world.start(config());
    let mut bus = world.subscribe("demo").await;
    let mut ann = Author::join(&world, "demo", 7).await;
    assert_eq!(ann.known, 0);
    let answer = world.submit(&ann.types(&["Hello"])).await.unwrap();
    assert_eq!(answer, v1::SubmitResponse { next_counter: 5, seq: 1, rejection: None });

    let delta = heard(&mut bus, delta).await;
    assert_eq!((delta.incarnation, &delta.document[..]), (ann.incarnation, "demo"), "its first entry");
    let run = delta.run.unwrap();
    let mut reader = State::new();
    reader.replay(run.first_seq, run.count, &run.entries, 0).unwrap();
    assert_eq!(reader.text("page").unwrap().to_string(), "Hello");

    let opened = world.open(&open_request("demo")).await.unwrap();
    let bob = opened.applied_to(State::new(), 0);
    assert_eq!((opened.seq(), bob.state_hash()), (1, ann.state.state_hash()));
    // Whoever lost the delta hears of it all the same.
    assert_eq!(heard(&mut bus, tips).await.tips, [opened.header.position.unwrap()]);
}

/// Three authors type; every request is sent until it is answered, whoever answers.
async fn take_over(log: SharedLog, end: impl AsyncFn(&mut World)) {
    let mut world = World::new(log);
    world.start(config());
    world.owns(0, "demo").await;
    let mut authors = Vec::new();
    for replica in 1..=3 {
        authors.push(Author::join(&world, "demo", replica).await);
    }
    let mut acked = BTreeSet::new();
    for round in 0..60 {
        if round == 20 {
            end(&mut world).await;
            world.start(config());
        }
        for author in &mut authors {
            let request = author.types(&["abc"]);
            let answer = world.submit(&request).await.unwrap();
            assert_eq!(answer.next_counter, request.first_counter + 3);
            assert!(acked.insert(answer.seq), "two changes have one seq");
        }
    }
    let entries = world.entries("demo").await;
    let seqs: Vec<Seq> = entries.iter().map(|entry| entry.seq).collect();
    assert_eq!(seqs, (1..=180).map(Seq).collect::<Vec<_>>());
    assert_eq!(acked, (1..=180).collect());
    let opened = world.open(&open_request("demo")).await.unwrap();
    let state = opened.applied_to(State::new(), 0);
    assert_eq!(state.text("page").unwrap().len(), 540);
}

// enforces: I-2, I-4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_node_takes_over_from_one_that_was_killed() {
    take_over(memory(), async |world| world.kill(0).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_node_takes_over_from_one_that_leaves() {
    take_over(memory(), async |world| world.stop(0).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_on_disk_is_taken_over_as_well() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", directory.path().join("log.db").display());
    manyhands_history::migrate(&url, "manyhands").await.unwrap();
    let log = manyhands_history::open(&url, &Options::default()).await.unwrap();
    take_over(log, async |world| world.kill(0).await).await;
}

// enforces: I-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_slept_through_its_lease_cannot_append() {
    let mut world = World::new(memory());
    let (door, freeze) = Door::new(world.log.clone());
    world.start_over(config(), Arc::new(door));
    world.owns(0, "demo").await;
    let mut ann = Author::join(&world, "demo", 7).await;
    let mut bob = Author::join(&world, "demo", 8).await;
    world.submit(&ann.types(&["a"])).await.unwrap();

    freeze.send(Frozen::Everything).unwrap();
    let stale = world.nodes[0].server.clone();
    let late = ann.types(&["zombie"]);
    let request = late.clone();
    let asked = tokio::spawn(async move { stale.submit(Request::new(request)).await });
    world.start(config());
    world.owns(1, "demo").await;
    let answer = world.nodes[1].server.submit(Request::new(bob.types(&["b"]))).await.unwrap();
    assert_eq!(answer.into_inner().seq, 2);

    freeze.send(Frozen::Nothing).unwrap();
    let refused = asked.await.unwrap().unwrap_err();
    assert_eq!(code(&refused), Code::NotOwner);
    assert_eq!(world.entries("demo").await.len(), 2);
    // Sent again to the one who may, it counts.
    assert_eq!(world.submit(&late).await.unwrap().seq, 3);
    assert_eq!(world.entries("demo").await.len(), 3);
}

/// A log in memory of which some append fails.
fn failing(fault: Fault) -> SharedLog {
    let start = std::time::Instant::now();
    let appends = AtomicUsize::new(0);
    let faults = move |call| match call {
        Call::Append(_) if appends.fetch_add(1, Ordering::Relaxed) == 1 => fault,
        _ => Fault::None,
    };
    Arc::new(MemoryLog::with(move || start.elapsed(), faults))
}

// enforces: I-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_fails_is_not_acknowledged_and_not_published() {
    for fault in [Fault::Request, Fault::Answer] {
        let mut world = World::new(failing(fault));
        world.start(config());
        let mut ann = Author::join(&world, "demo", 7).await;
        world.submit(&ann.types(&["a"])).await.unwrap();
        let mut bus = world.subscribe("demo").await;

        let request = ann.types(&["b"]);
        let refused = world.nodes[0].server.submit(Request::new(request.clone())).await.unwrap_err();
        assert_eq!(code(&refused), Code::NotOwner);
        let durable = if fault == Fault::Answer { 2 } else { 1 };
        assert_eq!(world.entries("demo").await.len(), durable);
        // The next owner, here the same node, knows what is durable; the resend counts once.
        assert_eq!(world.submit(&request).await.unwrap().seq, 2);
        assert_eq!(world.entries("demo").await.len(), 2);
        match fault {
            // What nobody published is announced, so that it is fetched.
            Fault::Answer => {
                heard(&mut bus, |message| tips(message).filter(|tips| tips.tips[0].seq == 2)).await;
            }
            _ => {
                let of_2 = |delta: &v1::BusDelta| delta.run.as_ref().unwrap().first_seq == 2;
                let second = heard(&mut bus, |message| delta(message).filter(of_2)).await;
                assert_eq!(second.document, "", "only the first entry names its document");
            }
        }
    }
}

// enforces: I-10
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_a_partition_can_hold_is_refused_and_comes_later() {
    let mut world = World::new(memory());
    let (door, freeze) = Door::new(world.log.clone());
    let mut config = config();
    config.lease = Config::default().lease;
    config.mailbox.requests_max = 4;
    world.start_over(config, Arc::new(door));
    let mut ann = Author::join(&world, "demo", 7).await;
    world.submit(&ann.types(&["a"])).await.unwrap();
    freeze.send(Frozen::Appends).unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    let refused = loop {
        // One is in the append, then the mailbox fills.
        let mut author = Author {
            document: "demo".to_owned(),
            replica: ReplicaId(100 + waiting.len() as u64),
            incarnation: ann.incarnation,
            state: State::new(),
            known: 0,
            subject: "ann".to_owned(),
        };
        let (server, request) = (world.nodes[0].server.clone(), author.types(&["x"]));
        let mut asked = Box::pin(async move { server.submit(Request::new(request)).await });
        match futures_util::FutureExt::now_or_never(&mut asked) {
            Some(answer) => break answer.unwrap_err(),
            None => waiting.spawn(asked),
        };
        assert!(waiting.len() < 100, "nothing is ever refused");
    };
    assert_eq!(code(&refused), Code::Overloaded);
    freeze.send(Frozen::Nothing).unwrap();
    let count = waiting.len();
    while let Some(answer) = waiting.join_next().await {
        answer.unwrap().unwrap();
    }
    assert_eq!(world.entries("demo").await.len(), 1 + count);
}

// enforces: I-10
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_may_wait_for_a_load_is_refused() {
    let mut world = World::new(memory());
    let (door, freeze) = Door::new(world.log.clone());
    let mut config = config();
    config.memory.waiting_max = 2;
    world.start_over(config, Arc::new(door));
    world.owns(0, "demo").await;
    freeze.send(Frozen::Documents).unwrap();
    // Another document of the same partition.
    let partition = |name: &str| manyhands_proto::PartitionId::of(&name.parse().unwrap());
    let other = (0..).map(|i| format!("doc-{i}")).find(|name| partition(name) == partition("demo")).unwrap();
    let mut opens = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let (server, request) = (world.nodes[0].server.clone(), open_request(&other));
        opens.spawn(async move { world::open(&server, request).await });
    }
    let refused = opens.join_next().await.unwrap().unwrap().unwrap_err();
    assert_eq!(code(&refused), Code::Overloaded);
    freeze.send(Frozen::Nothing).unwrap();
    while let Some(opened) = opens.join_next().await {
        assert_eq!(opened.unwrap().unwrap().seq(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_that_had_to_leave_memory_comes_back_whole() {
    let mut world = World::new(memory());
    let mut config = config();
    config.memory.bytes_max = 1;
    world.start(config);
    let mut ann = Author::join(&world, "demo", 7).await;
    for _ in 0..20 {
        world.submit(&ann.types(&["abc"])).await.unwrap();
        let opened = world.open(&open_request("demo")).await.unwrap();
        assert_eq!(opened.applied_to(State::new(), 0).state_hash(), ann.state.state_hash());
    }
}

/// A document of 3,000 entries, more than memory keeps; positions in it as its author saw them.
async fn long_document(world: &World) -> (Author, Vec<v1::Position>) {
    let mut ann = Author::join(world, "demo", 7).await;
    let texts = vec!["x"; 1000];
    for _ in 0..3 {
        world.submit(&ann.types(&texts)).await.unwrap();
    }
    let entries = world.entries("demo").await;
    let positions = entries.iter().map(|entry| v1::Position {
        incarnation: entry.incarnation.0,
        seq: entry.seq.0,
        chain: Bytes::copy_from_slice(&entry.chain),
    });
    (ann, positions.collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_gives_the_tail_after_a_true_prefix_and_else_the_state() {
    let mut world = World::new(memory());
    world.start(config());
    let (ann, positions) = long_document(&world).await;
    let at = |seq: usize| positions[seq - 1].clone();
    let forged = |seq| v1::Position { chain: Bytes::from_static(&[1; 16]), ..at(seq) };
    for (what, have, recovery, entries) in [
        ("nothing", None, Recovery::State, 0),
        ("an empty document", Some(v1::Position { seq: 0, ..forged(1) }), Recovery::Tail, 3000),
        (
            "an empty document that was never written",
            Some(v1::Position { seq: 0, incarnation: 5, chain: Bytes::new() }),
            Recovery::Tail,
            3000,
        ),
        ("everything", Some(at(3000)), Recovery::Tail, 0),
        ("most of it", Some(at(2990)), Recovery::Tail, 10),
        ("the beginning, which only the log has", Some(at(10)), Recovery::Tail, 2990),
        ("more than there is", Some(v1::Position { seq: 3001, ..at(3000) }), Recovery::State, 0),
        ("another newest entry", Some(forged(3000)), Recovery::State, 0),
        ("another one near the end", Some(forged(2990)), Recovery::State, 0),
        ("another one at the beginning", Some(forged(10)), Recovery::State, 0),
        ("another history", Some(v1::Position { incarnation: 5, ..at(2990) }), Recovery::State, 0),
    ] {
        let request = v1::OpenRequest { have: have.clone(), replica: 7, ..open_request("demo") };
        let request = v1::OpenRequest { grant: Some(grant("user-7")), ..request };
        let opened = world.open(&request).await.unwrap();
        assert_eq!(opened.header.recovery(), recovery, "{what}");
        assert_eq!(opened.tail.iter().map(|run| run.count).sum::<u32>(), entries, "{what}");
        assert_eq!((opened.seq(), opened.header.next_counter), (3000, 3000), "{what}");
        if let (Some(first), Some(have)) = (opened.tail.first(), have) {
            assert_eq!(first.first_seq, have.seq + 1, "{what}");
            assert_eq!(opened.tail.last().unwrap().chain, at(3000).chain, "{what}");
        }
        if recovery == Recovery::State {
            assert_eq!(opened.applied_to(State::new(), 0).state_hash(), ann.state.state_hash(), "{what}");
        }
    }
}

// enforces: I-6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_with_a_gap_reads_all_that_it_misses() {
    let mut world = World::new(memory());
    world.start(config());
    let (ann, _) = long_document(&world).await;
    let (mut state, mut known) = (State::new(), 0);
    let request = |after_seq| v1::ReadRequest {
        document: "demo".to_owned(),
        incarnation: ann.incarnation,
        after_seq,
        bytes_max: 1000,
        grant: Some(grant("bob")),
    };
    while known < 3000 {
        let answer = world.read(&request(known)).await.unwrap();
        let run = answer.run.unwrap();
        assert_eq!((run.first_seq, answer.tip.unwrap().seq), (known + 1, 3000));
        assert!(run.entries.len() < 8000);
        state.replay(run.first_seq, run.count, &run.entries, known).unwrap();
        known += u64::from(run.count);
    }
    assert_eq!(state.state_hash(), ann.state.state_hash());
    assert_eq!(world.read(&request(3000)).await.unwrap().run.unwrap().count, 0);
    let refused = world.read(&request(3001)).await.unwrap_err();
    assert_eq!(code(&refused), Code::HistoryReset);
    let refused = world.read(&v1::ReadRequest { incarnation: 5, ..request(0) }).await.unwrap_err();
    assert_eq!(code(&refused), Code::HistoryReset);
    // A resend from the beginning is compared with the log.
    let mut again = Author { state: State::new(), known: 0, ..ann };
    assert_eq!(world.submit(&again.types(&["x"; 1000])).await.unwrap().seq, 1000);
    assert_eq!(world.entries("demo").await.len(), 3000);
}

// enforces: I-15
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_token_does_not_allow_is_not_told() {
    let mut world = World::new(memory());
    world.start(config());
    let mut ann = Author::join(&world, "demo", 7).await;
    world.submit(&ann.types(&["secret"])).await.unwrap();
    let good = grant("eve");
    for (grant, expected) in [
        (None, Code::Forbidden),
        (Some(v1::Grant { scopes: vec![], ..good.clone() }), Code::Forbidden),
        (Some(v1::Grant { workspaces: vec!["dem".to_owned()], ..good.clone() }), Code::Forbidden),
        (Some(v1::Grant { workspaces: vec![], ..good.clone() }), Code::Forbidden),
        (Some(v1::Grant { subject: String::new(), ..good.clone() }), Code::Forbidden),
        (Some(v1::Grant { expires_at_ms: 1, ..good.clone() }), Code::TokenExpired),
    ] {
        let open = v1::OpenRequest { grant: grant.clone(), ..open_request("demo") };
        assert_eq!(code(&world.open(&open).await.unwrap_err()), expected);
        let (document, incarnation) = ("demo".to_owned(), ann.incarnation);
        let read = v1::ReadRequest { document, incarnation, after_seq: 0, bytes_max: 0, grant };
        assert_eq!(code(&world.read(&read).await.unwrap_err()), expected);
    }
    let open = v1::OpenRequest { replica: 7, grant: Some(good), ..open_request("demo") };
    assert_eq!(code(&world.open(&open).await.unwrap_err()), Code::ReplicaTaken);
    let open = v1::OpenRequest { document: "../etc".to_owned(), ..open_request("demo") };
    assert_eq!(code(&world.open(&open).await.unwrap_err()), Code::InvalidName);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_over_grpc_with_hints_and_limits() {
    let (log, bus) = (memory(), Arc::new(manyhands_bus::LocalBus::new(manyhands_bus::Limits::default())));
    let (shutdown, asked) = tokio::sync::oneshot::channel::<()>();
    let mut running = Vec::new();
    let mut servers = Vec::new();
    let mut asked = Some(asked);
    for _ in 0..2 {
        let listen = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let config = Config { listen, ..config() };
        let document = manyhands_document::build(config, log.clone(), bus.clone()).unwrap();
        servers.push(document.server());
        let asked = asked.take();
        running.push(tokio::spawn(document.run(async {
            match asked {
                Some(asked) => drop(asked.await),
                None => std::future::pending().await,
            }
        })));
    }
    // Both have a share, and each knows of the other.
    let routes = async {
        loop {
            let routes = servers[0].get_routes(Request::new(v1::GetRoutesRequest {})).await.unwrap();
            let routes = routes.into_inner().routes;
            let nodes: BTreeSet<&str> = routes.iter().map(|route| route.node.as_str()).collect();
            if routes.len() == 271 && nodes.len() == 2 {
                break routes;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let routes = tokio::time::timeout(world::PATIENCE, routes).await.unwrap();
    let partition = manyhands_proto::PartitionId::of(&"demo".parse().unwrap());
    let owner = routes.iter().find(|route| route.partition == u32::from(partition.0)).unwrap();
    let other = routes.iter().find(|route| route.node != owner.node).unwrap();
    let client = async |address: &str| {
        let endpoint = tonic::transport::Endpoint::from_shared(address.to_owned()).unwrap();
        v1::document_service_client::DocumentServiceClient::new(endpoint.connect().await.unwrap())
    };
    let mut other = client(&other.address).await;
    // The wrong node says who is the right one.
    let hint = async {
        loop {
            let refused = other.open(open_request("demo")).await.unwrap_err();
            let detail = <v1::ErrorDetail as prost::Message>::decode(refused.details()).unwrap();
            assert_eq!(detail.code, Code::NotOwner.number());
            match detail.owner {
                Some(owner) => break owner,
                None => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
            }
        }
    };
    let hint = tokio::time::timeout(world::PATIENCE, hint).await.unwrap();
    assert_eq!(hint.address, owner.address);
    let mut right = client(&hint.address).await;
    let mut parts = right.open(open_request("demo")).await.unwrap().into_inner();
    assert!(parts.message().await.unwrap().is_some());
    let too_large = v1::SubmitRequest { changes: Bytes::from(vec![0; 2 << 20]), ..Default::default() };
    let refused = right.submit(too_large).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::OutOfRange);
    // The first one leaves in good order and closes its port.
    shutdown.send(()).unwrap();
    running.remove(0).await.unwrap().unwrap();
    running.remove(0).abort();
}
