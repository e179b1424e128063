//! A document node for tests: keeps opaque changes in memory, numbers them, publishes them, and fails on demand.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures_util::Stream;
use manyhands_bus::{Message, SharedBus, Topic};
use manyhands_proto::v1::document_service_server::{DocumentService, DocumentServiceServer};
use manyhands_proto::{Code, DocumentName, PartitionId, v1};
use prost::Message as _;
use tokio::sync::Notify;
use tonic::{Request, Response, Status};

#[derive(Clone)]
pub(crate) struct Documents {
    bus: SharedBus,
    state: Arc<Mutex<State>>,
    asked: Arc<Notify>,
}

#[derive(Default)]
pub(crate) struct State {
    documents: BTreeMap<String, Document>,
    /// Answers that are given instead of the true ones, one call each.
    pub(crate) refusals: VecDeque<Status>,
    /// All calls are refused with `NotOwner` and this hint.
    pub(crate) moved_to: Option<v1::Route>,
    /// Deltas that are not published.
    pub(crate) losing: bool,
    pub(crate) submits: Vec<v1::SubmitRequest>,
    pub(crate) opens: usize,
    pub(crate) reads: usize,
}

#[derive(Clone)]
struct Document {
    incarnation: u64,
    entries: Vec<Bytes>,
    next_counters: BTreeMap<u64, u64>,
}

impl Documents {
    pub(crate) fn new(bus: SharedBus) -> Documents {
        Documents { bus, state: Arc::default(), asked: Arc::default() }
    }

    pub(crate) fn server(&self) -> DocumentServiceServer<Documents> {
        DocumentServiceServer::new(self.clone())
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Waits until `what` is true; looks again after every call.
    pub(crate) async fn wait_until(&self, what: impl Fn(&State) -> bool) {
        loop {
            let asked = self.asked.notified();
            if what(&self.state()) {
                return;
            }
            asked.await;
        }
    }

    /// Appends an entry that nobody pushed, and publishes it unless deltas are being lost.
    pub(crate) fn append(&self, document: &str, entry: impl Into<Bytes>) {
        let (delta, losing) = {
            let mut state = self.state();
            let losing = state.losing;
            let mut delta = state.document(document).append(entry.into());
            if delta.run.as_ref().is_some_and(|run| run.first_seq == 1) {
                delta.document = document.to_owned();
            }
            (delta, losing)
        };
        if !losing {
            self.publish(document, v1::bus_message::Message::Delta(delta));
        }
    }

    /// Announces where a document stands.
    pub(crate) fn tip(&self, document: &str) {
        let tip = self.state().document(document).position();
        let tips = v1::BusTips { epoch: 1, tips: vec![tip] };
        self.publish(document, v1::bus_message::Message::Tips(tips));
    }

    /// The document is another from now on.
    pub(crate) fn reset(&self, document: &str) {
        let mut state = self.state();
        let old = state.document(document).incarnation;
        state.documents.insert(document.to_owned(), Document::new(old + 1));
    }

    fn publish(&self, document: &str, message: v1::bus_message::Message) {
        let partition = PartitionId::of(&document.parse::<DocumentName>().unwrap());
        let payload = v1::BusMessage { message: Some(message) }.encode_to_vec().into();
        self.bus.publish(Topic::Deltas(partition), Message { payload, traceparent: None });
    }

    fn begin(&self) -> Result<(), Status> {
        let mut state = self.state();
        if let Some(owner) = &state.moved_to {
            return Err(status(Code::NotOwner, "elsewhere", Some(owner.clone())));
        }
        state.refusals.pop_front().map_or(Ok(()), Err)
    }
}

/// A status as a document node makes it.
pub(crate) fn status(code: Code, message: &str, owner: Option<v1::Route>) -> Status {
    let detail = v1::ErrorDetail { code: code.number(), message: message.into(), retry_after_ms: 0, owner };
    Status::with_details(code.grpc(), message, detail.encode_to_vec().into())
}

impl State {
    fn document(&mut self, name: &str) -> &mut Document {
        // "demo" is 1004; names of one length must not share a history.
        let incarnation = match name {
            "demo" => 1004,
            _ => name.bytes().fold(7, |hash: u64, byte| hash.wrapping_mul(257).wrapping_add(byte.into())),
        };
        self.documents.entry(name.to_owned()).or_insert_with(|| Document::new(incarnation))
    }
}

impl Document {
    fn new(incarnation: u64) -> Document {
        Document { incarnation, entries: Vec::new(), next_counters: BTreeMap::new() }
    }

    fn position(&self) -> v1::Position {
        self.position_at(self.entries.len() as u64)
    }

    fn position_at(&self, seq: u64) -> v1::Position {
        let chain = if seq == 0 { Bytes::new() } else { self.chain(seq) };
        v1::Position { incarnation: self.incarnation, seq, chain }
    }

    fn chain(&self, seq: u64) -> Bytes {
        let mut chain = [0; 16];
        chain[..8].copy_from_slice(&self.incarnation.to_le_bytes());
        chain[8..].copy_from_slice(&seq.to_le_bytes());
        Bytes::copy_from_slice(&chain)
    }

    fn append(&mut self, entry: Bytes) -> v1::BusDelta {
        self.entries.push(entry);
        let run = self.run(self.entries.len() as u64 - 1);
        v1::BusDelta { epoch: 1, incarnation: self.incarnation, run: Some(run), document: String::new() }
    }

    fn run(&self, after: u64) -> v1::EntryRun {
        let entries = &self.entries[usize::try_from(after).unwrap()..];
        v1::EntryRun {
            first_seq: after + 1,
            count: u32::try_from(entries.len()).unwrap(),
            entries: entries.concat().into(),
            chain: self.chain(self.entries.len() as u64),
        }
    }
}

type Parts = Pin<Box<dyn Stream<Item = Result<v1::OpenResponse, Status>> + Send>>;

#[tonic::async_trait]
impl DocumentService for Documents {
    async fn submit(
        &self,
        request: Request<v1::SubmitRequest>,
    ) -> Result<Response<v1::SubmitResponse>, Status> {
        let request = request.into_inner();
        self.state().submits.push(request.clone());
        self.asked.notify_waiters();
        self.begin()?;
        let next_counter = request.first_counter + u64::from(request.count);
        let known = {
            let mut state = self.state();
            let document = state.document(&request.document);
            let known = document.next_counters.entry(request.replica).or_default();
            std::mem::replace(known, next_counter.max(*known))
        };
        if known < next_counter {
            self.append(&request.document, request.changes);
        }
        let seq = self.state().document(&request.document).entries.len() as u64;
        Ok(Response::new(v1::SubmitResponse { next_counter, seq, rejection: None }))
    }

    type OpenStream = Parts;

    async fn open(&self, request: Request<v1::OpenRequest>) -> Result<Response<Parts>, Status> {
        self.state().opens += 1;
        self.asked.notify_waiters();
        self.begin()?;
        let request = request.into_inner();
        let mut state = self.state();
        let document = state.document(&request.document);
        let have =
            request.have.filter(|have| have.incarnation == document.incarnation).map_or(0, |have| have.seq);
        let state_bytes =
            if have == 0 { Some(Bytes::from(format!("state@{}", document.entries.len()))) } else { None };
        let recovery = if have == 0 { v1::Recovery::State } else { v1::Recovery::Tail };
        let header = v1::OpenHeader {
            recovery: recovery.into(),
            position: Some(document.position()),
            next_counter: document.next_counters.get(&request.replica).copied().unwrap_or(0),
            state_bytes: state_bytes.as_ref().map_or(0, |bytes| bytes.len() as u64),
            epoch: 1,
            ..v1::OpenHeader::default()
        };
        use v1::open_response::Part;
        let body = match state_bytes {
            Some(bytes) => Some(Part::State(bytes)),
            None if have < document.entries.len() as u64 => Some(Part::Entries(document.run(have))),
            None => None,
        };
        let parts: Vec<_> = [Some(Part::Header(header)), body]
            .into_iter()
            .flatten()
            .map(|part| Ok(v1::OpenResponse { part: Some(part) }))
            .collect();
        Ok(Response::new(Box::pin(futures_util::stream::iter(parts))))
    }

    async fn read(&self, request: Request<v1::ReadRequest>) -> Result<Response<v1::ReadResponse>, Status> {
        self.state().reads += 1;
        self.asked.notify_waiters();
        self.begin()?;
        let request = request.into_inner();
        let mut state = self.state();
        let document = state.document(&request.document);
        if request.incarnation != document.incarnation {
            return Err(status(Code::HistoryReset, "another history", None));
        }
        let run =
            (request.after_seq < document.entries.len() as u64).then(|| document.run(request.after_seq));
        Ok(Response::new(v1::ReadResponse { run, tip: Some(document.position()) }))
    }

    async fn get_routes(
        &self,
        _: Request<v1::GetRoutesRequest>,
    ) -> Result<Response<v1::GetRoutesResponse>, Status> {
        Ok(Response::new(v1::GetRoutesResponse { routes: Vec::new() }))
    }
}
