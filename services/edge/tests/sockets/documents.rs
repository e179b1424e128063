//! A document node for tests: keeps changes in memory, numbers them, publishes them, and fails on demand. They are
//! opaque to it, unless it is told to merge them.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures_util::Stream;
use manyhands_bus::{Message, SharedBus, Topic};
use manyhands_crdt::{Admission, EntryWriter, Heads, Limits, Refusal, ReplicaId, Strategy, read_push};
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
    /// Changes are read and merged, as an owner does, for documents that are new from now on.
    pub(crate) merging: bool,
    /// What the next changes are refused with, one each, when merging.
    pub(crate) rejections: VecDeque<v1::Rejection>,
    pub(crate) submits: Vec<v1::SubmitRequest>,
    pub(crate) opens: usize,
    pub(crate) reads: usize,
}

#[derive(Clone)]
struct Document {
    incarnation: u64,
    entries: Vec<Bytes>,
    next_counters: BTreeMap<u64, u64>,
    merged: Option<Merged>,
}

/// What an owner knows of a document.
#[derive(Clone)]
struct Merged {
    document: manyhands_crdt::Document,
    heads: Heads,
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
        let old = state.document(document);
        let mut new = Document::new(old.incarnation + 1);
        new.merged = old.merged.as_ref().map(|merged| Merged::new(merged.document.strategy()));
        state.documents.insert(document.to_owned(), new);
    }

    fn publish(&self, document: &str, message: v1::bus_message::Message) {
        let partition = PartitionId::of(&document.parse::<DocumentName>().unwrap());
        let payload = v1::BusMessage { message: Some(message) }.encode_to_vec().into();
        self.bus.publish(Topic::Deltas(partition), Message { payload, traceparent: None });
    }

    /// What is in the document, as JSON; also proves that it was written.
    pub(crate) fn root(&self, document: &str) -> serde_json::Value {
        let mut state = self.state();
        let merged = state.document(document).merged.as_ref().expect("merging");
        let map = merged.document.map("");
        let entries = map.iter().flat_map(|map| map.iter());
        let entries =
            entries.map(|(key, value)| (key.to_owned(), serde_json::from_str(value.value).unwrap()));
        serde_json::Value::Object(entries.collect())
    }

    /// How many entries a document has.
    pub(crate) fn seq(&self, document: &str) -> usize {
        self.state().document(document).entries.len()
    }

    /// Decides on changes as an owner does.
    fn merge(&self, request: &v1::SubmitRequest) -> v1::SubmitResponse {
        let replica = ReplicaId(request.replica);
        let mut answer = v1::SubmitResponse { next_counter: request.first_counter, ..Default::default() };
        for read in read_push(replica, request.first_counter, request.count, &request.changes) {
            let (change, next_counter) = read.unwrap();
            let entry = {
                let mut state = self.state();
                let rejection = state.rejections.pop_front();
                let document = state.document(&request.document);
                let Some(merged) = &mut document.merged else { panic!("not a merging document") };
                let new = merged.document.replica_index(replica).is_none().then_some(replica);
                let stamp_max = Some(4_000_000_000_000_000);
                let result = match rejection {
                    Some(rejection) => Err(v1::Rejection { counter: change.counter, ..rejection }),
                    None => merged.document.admit(change, &Admission { stamp_max }).map_err(|refusal| {
                        let (code, current) = match &refusal {
                            Refusal::Conflict(conflict) => {
                                let value: serde_json::Value =
                                    conflict.value.as_ref().map_or(serde_json::Value::Null, |value| {
                                        serde_json::from_str(value).unwrap()
                                    });
                                (Code::Conflict, serde_json::json!({ "seq": conflict.seq, "value": value }))
                            }
                            Refusal::ClockAhead { .. } => {
                                (Code::ClockAhead, serde_json::json!({ "max": stamp_max }))
                            }
                            _ => (Code::Malformed, serde_json::Value::Null),
                        };
                        v1::Rejection {
                            counter: change.counter,
                            code: code.number(),
                            message: refusal.to_string(),
                            current: current.to_string().into(),
                            ..v1::Rejection::default()
                        }
                    }),
                };
                match result {
                    Ok(applied) => {
                        let seq = merged.document.seq();
                        merged.heads.enter(replica, seq, change.base, applied.hash);
                        let index = merged.document.replica_index(replica).unwrap();
                        let mut writer = EntryWriter::new();
                        writer.push(seq, index, new, change.base, change.body);
                        document.next_counters.insert(request.replica, next_counter);
                        writer.finish()
                    }
                    Err(rejection) => {
                        answer.rejection = Some(rejection);
                        return answer;
                    }
                }
            };
            self.append(&request.document, entry);
            answer.next_counter = next_counter;
            answer.seq = self.seq(&request.document) as u64;
        }
        answer
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
        let merging = self.merging;
        self.documents.entry(name.to_owned()).or_insert_with(|| Document {
            merged: merging.then(|| Merged::new(Strategy::Crdt)),
            ..Document::new(incarnation)
        })
    }
}

impl Merged {
    fn new(strategy: Strategy) -> Merged {
        let document = manyhands_crdt::Document::with_strategy(strategy, Limits::default());
        Merged { document, heads: Heads::new() }
    }
}

impl Document {
    fn new(incarnation: u64) -> Document {
        Document { incarnation, entries: Vec::new(), next_counters: BTreeMap::new(), merged: None }
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
        let (merging, incarnation) = {
            let mut state = self.state();
            let document = state.document(&request.document);
            (document.merged.is_some(), document.incarnation)
        };
        if merging {
            if request.incarnation != incarnation {
                return Err(status(Code::HistoryReset, "another history", None));
            }
            return Ok(Response::new(self.merge(&request)));
        }
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
        if let Some(merged) = &mut document.merged
            && let Some(asked) = Strategy::from_code(u8::try_from(request.strategy).unwrap())
            && asked != merged.document.strategy()
        {
            if merged.document.seq() > 0 {
                return Err(status(Code::StrategyMismatch, "made with another strategy", None));
            }
            *merged = Merged::new(asked);
        }
        let have =
            request.have.filter(|have| have.incarnation == document.incarnation).map_or(0, |have| have.seq);
        let state_bytes = match &document.merged {
            _ if have > 0 => None,
            Some(merged) if merged.document.seq() == 0 => None,
            Some(merged) => Some(Bytes::from(merged.document.encode())),
            None => Some(Bytes::from(format!("state@{}", document.entries.len()))),
        };
        let heads = document.merged.as_ref().map_or(Vec::new(), |merged| {
            let heads = merged.heads.iter();
            heads
                .map(|(hash, replica, seq)| v1::Head { hash: hash.to_vec().into(), replica: replica.0, seq })
                .collect()
        });
        let recovery = if state_bytes.is_some() { v1::Recovery::State } else { v1::Recovery::Tail };
        let strategy = document.merged.as_ref().map_or(0, |merged| merged.document.strategy().code());
        let header = v1::OpenHeader {
            recovery: recovery.into(),
            position: Some(document.position()),
            next_counter: document.next_counters.get(&request.replica).copied().unwrap_or(0),
            state_bytes: state_bytes.as_ref().map_or(0, |bytes| bytes.len() as u64),
            epoch: 1,
            strategy: strategy.into(),
            heads,
            max_base: document.merged.as_ref().map_or(0, |merged| merged.heads.max_base()),
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
