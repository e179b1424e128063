//! A cluster in one process: nodes over one log and one bus, authors who write through them as an edge would.

mod frozen;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use manyhands_bus::{Limits, LocalBus, Received, SharedBus, Subscription, Topic};
use manyhands_crdt::{Document as State, PushWriter, ReplicaId};
use manyhands_document::{Config, Server, build};
use manyhands_history::{Entry, ReadLimit, SharedLog};
use manyhands_proto::v1::document_service_server::DocumentService;
use manyhands_proto::v1::{self, open_response::Part};
use manyhands_proto::{Code, DocumentName, Incarnation, PartitionId, Seq};
use prost::Message as _;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::{Request, Status};

pub(crate) use frozen::{Door, Frozen};

/// How long a test waits for something that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct World {
    pub(crate) log: SharedLog,
    pub(crate) bus: SharedBus,
    pub(crate) nodes: Vec<Node>,
}

pub(crate) struct Node {
    pub(crate) server: Server,
    running: JoinHandle<()>,
    shutdown: Option<oneshot::Sender<()>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.running.abort();
    }
}

/// Short leases, so that tests of what happens after a crash are short.
pub(crate) fn config() -> Config {
    let mut config = Config::default();
    config.lease.duration = Duration::from_millis(1200);
    config.lease.renew = Duration::from_millis(200);
    config.lease.margin = Duration::from_millis(300);
    config
}

impl World {
    pub(crate) fn new(log: SharedLog) -> World {
        World { log, bus: Arc::new(LocalBus::new(Limits::default())), nodes: Vec::new() }
    }

    pub(crate) fn start(&mut self, config: Config) -> usize {
        self.start_over(config, self.log.clone())
    }

    /// A node that sees the log in its own way.
    pub(crate) fn start_over(&mut self, config: Config, log: SharedLog) -> usize {
        let document = build(config, log, self.bus.clone()).unwrap();
        let server = document.server();
        let (shutdown, asked) = oneshot::channel::<()>();
        let running = tokio::spawn(document.run_in_process(async {
            let _dropped = asked.await;
        }));
        self.nodes.push(Node { server, running, shutdown: Some(shutdown) });
        self.nodes.len() - 1
    }

    /// Ends a node as `kill -9` does: nothing is released, nothing is said.
    pub(crate) async fn kill(&mut self, node: usize) {
        self.nodes[node].running.abort();
        let _aborted = (&mut self.nodes[node].running).await;
    }

    /// Ends a node in good order.
    pub(crate) async fn stop(&mut self, node: usize) {
        self.nodes[node].shutdown.take().unwrap().send(()).unwrap();
        (&mut self.nodes[node].running).await.unwrap();
    }

    /// Asks node after node, as an edge's router does, until one of them owns the document.
    pub(crate) async fn call<A, F: Future<Output = Result<A, Status>>>(
        &self,
        call: impl Fn(Server) -> F,
    ) -> Result<A, Status> {
        let tried = async {
            loop {
                for node in &self.nodes {
                    match call(node.server.clone()).await {
                        Err(status) if code(&status) == Code::NotOwner => {}
                        answer => return answer,
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, tried).await.expect("somebody serves the document in time")
    }

    pub(crate) async fn submit(&self, request: &v1::SubmitRequest) -> Result<v1::SubmitResponse, Status> {
        let call = |server: Server| async move { server.submit(Request::new(request.clone())).await };
        Ok(self.call(call).await?.into_inner())
    }

    pub(crate) async fn open(&self, request: &v1::OpenRequest) -> Result<Opened, Status> {
        self.call(|server: Server| async move { open(&server, request.clone()).await }).await
    }

    pub(crate) async fn read(&self, request: &v1::ReadRequest) -> Result<v1::ReadResponse, Status> {
        let call = |server: Server| async move { server.read(Request::new(request.clone())).await };
        Ok(self.call(call).await?.into_inner())
    }

    /// Waits until this node owns the document.
    pub(crate) async fn owns(&self, node: usize, document: &str) {
        let owns = async {
            while open(&self.nodes[node].server, open_request(document)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, owns).await.expect("the node owns the document in time");
    }

    /// Everything that the log has of a document.
    pub(crate) async fn entries(&self, name: &str) -> Vec<Entry> {
        let name: DocumentName = name.parse().unwrap();
        let Some(record) = self.log.document(&name).await.unwrap() else { return Vec::new() };
        let limit = ReadLimit { entries_max: usize::MAX, bytes_max: usize::MAX };
        self.log.read(PartitionId::of(&name), record.incarnation, Seq(0), limit).await.unwrap()
    }

    pub(crate) async fn subscribe(&self, document: &str) -> Box<dyn Subscription> {
        let partition = PartitionId::of(&document.parse().unwrap());
        self.bus.subscribe(Topic::Deltas(partition)).await.unwrap()
    }
}

/// A whole open stream.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) header: v1::OpenHeader,
    pub(crate) tail: Vec<v1::EntryRun>,
    pub(crate) state: Vec<u8>,
}

impl Opened {
    /// What somebody has who had `before` and takes this in.
    pub(crate) fn applied_to(&self, mut before: State, known: u64) -> State {
        if self.header.recovery() == v1::Recovery::State {
            return State::decode(&self.state).unwrap();
        }
        let mut known = known;
        for run in &self.tail {
            before.replay(run.first_seq, run.count, &run.entries, known).unwrap();
            known = run.first_seq + u64::from(run.count) - 1;
        }
        before
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        Incarnation(self.header.position.as_ref().unwrap().incarnation)
    }

    pub(crate) fn seq(&self) -> u64 {
        self.header.position.as_ref().unwrap().seq
    }
}

pub(crate) async fn open(server: &Server, request: v1::OpenRequest) -> Result<Opened, Status> {
    let mut parts = server.open(Request::new(request)).await?.into_inner();
    let Some(Part::Header(header)) = parts.next().await.unwrap()?.part else { panic!("no header") };
    let mut opened = Opened { header, tail: Vec::new(), state: Vec::new() };
    while let Some(part) = parts.next().await {
        match part?.part.unwrap() {
            Part::Header(_) => panic!("a second header"),
            Part::Entries(run) => opened.tail.push(run),
            Part::State(chunk) => {
                assert!(chunk.len() <= 256 * 1024);
                opened.state.extend_from_slice(&chunk);
            }
        }
    }
    assert_eq!(opened.header.state_bytes, opened.state.len() as u64);
    Ok(opened)
}

/// The error's number.
pub(crate) fn code(status: &Status) -> Code {
    let detail = v1::ErrorDetail::decode(status.details()).unwrap();
    Code::from_number(detail.code).unwrap()
}

pub(crate) fn grant(subject: &str) -> v1::Grant {
    v1::Grant {
        subject: subject.to_owned(),
        scopes: vec!["read".to_owned(), "write".to_owned()],
        workspaces: vec!["*".to_owned()],
        expires_at_ms: u64::MAX,
    }
}

pub(crate) fn open_request(document: &str) -> v1::OpenRequest {
    v1::OpenRequest { document: document.to_owned(), grant: Some(grant("ann")), ..v1::OpenRequest::default() }
}

/// Somebody who types into one document.
pub(crate) struct Author {
    pub(crate) document: String,
    pub(crate) replica: ReplicaId,
    pub(crate) incarnation: u64,
    pub(crate) state: State,
    pub(crate) known: u64,
    pub(crate) subject: String,
}

impl Author {
    /// Opens the document.
    pub(crate) async fn join(world: &World, document: &str, replica: u64) -> Author {
        let opened = world.open(&open_request(document)).await.unwrap();
        Author {
            document: document.to_owned(),
            replica: ReplicaId(replica),
            incarnation: opened.incarnation().0,
            known: opened.seq(),
            state: opened.applied_to(State::new(), 0),
            subject: format!("user-{replica}"),
        }
    }

    /// Types at the start of the page, and says it as a request.
    pub(crate) fn types(&mut self, texts: &[&str]) -> v1::SubmitRequest {
        let first_counter = self.state.next_counter(self.replica);
        let mut push = PushWriter::new();
        for text in texts {
            let mut edit = self.state.edit(self.replica);
            edit.insert("page", 0, text).unwrap();
            let change = edit.commit(self.known).unwrap();
            push.push(change.base, &change.body);
        }
        v1::SubmitRequest {
            document: self.document.clone(),
            incarnation: self.incarnation,
            replica: self.replica.0,
            first_counter,
            count: push.count(),
            changes: Bytes::from(push.finish()),
            grant: Some(grant(&self.subject)),
        }
    }
}

/// Waits for the next message of a subscription that `wanted` makes something of.
pub(crate) async fn heard<T>(
    subscription: &mut Box<dyn Subscription>,
    mut wanted: impl FnMut(v1::bus_message::Message) -> Option<T>,
) -> T {
    let heard = async {
        loop {
            let Some(Received::Message(message)) = subscription.next().await else { continue };
            let message = v1::BusMessage::decode(message.payload).unwrap().message.unwrap();
            if let Some(found) = wanted(message) {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, heard).await.expect("the message comes in time")
}
