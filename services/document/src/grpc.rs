//! The gRPC face: requests in, answers or a `Status` with the error's number in its details out.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;
use manyhands_crdt::{Hash, ReplicaId};
use manyhands_history::Strategy;
use manyhands_process::telemetry;
use manyhands_proto::v1::document_service_server::DocumentService;
use manyhands_proto::v1::{self, open_response::Part};
use manyhands_proto::{CHAIN_BYTES, Code, DocumentName, HEADS_MAX, Incarnation, Position, Seq};
use prost::Message;
use tonic::{Request, Response, Status};
use tracing::{Instrument, Span};

use crate::Server;
use crate::mailbox::Asked;
use crate::request::{Grant, Open, Opened, Read, Refused, Submit, Submitted, wire_position};

/// Most bytes of entries or state in one message of an open stream.
pub(crate) const PART_BYTES: usize = 256 * 1024;

type OpenStream = Pin<Box<dyn Stream<Item = Result<v1::OpenResponse, Status>> + Send>>;

#[tonic::async_trait]
impl DocumentService for Server {
    async fn submit(
        &self,
        request: Request<v1::SubmitRequest>,
    ) -> Result<Response<v1::SubmitResponse>, Status> {
        let (span, trace) = traced(tracing::info_span!("document.submit"), &request);
        let submit = parse_submit(request.into_inner(), trace).map_err(status)?;
        let submitted = self.node.submit(submit).instrument(span).await.map_err(status)?;
        Ok(Response::new(submit_response(submitted)))
    }

    type OpenStream = OpenStream;

    async fn open(&self, request: Request<v1::OpenRequest>) -> Result<Response<OpenStream>, Status> {
        let (span, _) = traced(tracing::info_span!("document.open"), &request);
        let open = parse_open(request.into_inner()).map_err(status)?;
        let document = open.document.clone();
        let opened = self.node.ask(&document, |ticket| Asked::Open(open, ticket));
        let opened = opened.instrument(span).await.map_err(status)?;
        Ok(Response::new(Box::pin(tokio_stream::iter(open_parts(opened).map(Ok)))))
    }

    async fn read(&self, request: Request<v1::ReadRequest>) -> Result<Response<v1::ReadResponse>, Status> {
        let (span, _) = traced(tracing::info_span!("document.read"), &request);
        let read = parse_read(request.into_inner()).map_err(status)?;
        let document = read.document.clone();
        let (run, tip) = self
            .node
            .ask(&document, |ticket| Asked::Read(read, ticket))
            .instrument(span)
            .await
            .map_err(status)?;
        Ok(Response::new(v1::ReadResponse { run: Some(run), tip: Some(wire_position(&tip)) }))
    }

    async fn get_routes(
        &self,
        _: Request<v1::GetRoutesRequest>,
    ) -> Result<Response<v1::GetRoutesResponse>, Status> {
        Ok(Response::new(v1::GetRoutesResponse { routes: self.node.routes() }))
    }
}

/// The span of a call, child of the caller's, and the trace context that came with it.
fn traced<R>(span: Span, request: &Request<R>) -> (Span, Option<String>) {
    let trace = telemetry::extract(request.metadata()).map(str::to_owned);
    if let Some(trace) = &trace {
        telemetry::set_parent(&span, trace);
    }
    (span, trace)
}

/// A refusal as gRPC says it.
fn status(refused: Refused) -> Status {
    let Refused { code, message, retry_after_ms, owner } = refused;
    metrics::counter!("manyhands_document_refusals_total", "code" => code.slug()).increment(1);
    let detail = v1::ErrorDetail { code: code.number(), message: message.clone(), retry_after_ms, owner };
    Status::with_details(code.grpc(), message, Bytes::from(detail.encode_to_vec()))
}

fn submit_response(submitted: Submitted) -> v1::SubmitResponse {
    let rejection = submitted.rejection.map(|rejection| {
        metrics::counter!("manyhands_document_refusals_total", "code" => rejection.code.slug()).increment(1);
        v1::Rejection {
            counter: rejection.counter,
            code: rejection.code.number(),
            message: rejection.message,
            next_counter: rejection.next_counter,
            retry_after_ms: 0,
            current: rejection.current,
        }
    });
    v1::SubmitResponse { next_counter: submitted.next_counter, seq: submitted.seq.0, rejection }
}

/// The header, then what it announces, in parts that a message can hold. State is sliced, not copied.
fn open_parts(opened: Opened) -> impl Iterator<Item = v1::OpenResponse> + Send {
    let Opened { header, tail, mut state } = opened;
    let chunks =
        std::iter::from_fn(move || (!state.is_empty()).then(|| state.split_to(state.len().min(PART_BYTES))));
    std::iter::once(Part::Header(header))
        .chain(tail.into_iter().map(Part::Entries))
        .chain(chunks.map(Part::State))
        .map(|part| v1::OpenResponse { part: Some(part) })
}

fn parse_submit(request: v1::SubmitRequest, trace: Option<String>) -> Result<Submit<()>, Refused> {
    let v1::SubmitRequest { document, incarnation, replica, first_counter, count, changes, grant } = request;
    Ok(Submit {
        document: parse_name(&document)?,
        incarnation: parse_incarnation(incarnation)?,
        replica: parse_replica(replica)
            .ok_or_else(|| Refused::new(Code::Malformed, "a replica is never 0"))?,
        first_counter,
        count,
        changes,
        grant: parse_grant(grant)?,
        trace,
        known: Vec::new(),
        ticket: (),
    })
}

fn parse_open(request: v1::OpenRequest) -> Result<Open, Refused> {
    let v1::OpenRequest { document, replica, have, grant, strategy, heads } = request;
    Ok(Open {
        document: parse_name(&document)?,
        replica: parse_replica(replica),
        have: have.map(|have| parse_position(&have)).transpose()?.flatten(),
        heads: parse_heads(&heads),
        strategy: parse_strategy(strategy)?,
        grant: parse_grant(grant)?,
    })
}

fn parse_read(request: v1::ReadRequest) -> Result<Read, Refused> {
    let v1::ReadRequest { document, incarnation, after_seq, bytes_max, grant } = request;
    let asked = usize::try_from(bytes_max).unwrap_or(PART_BYTES);
    Ok(Read {
        document: parse_name(&document)?,
        incarnation: parse_incarnation(incarnation)?,
        after: Seq(after_seq),
        bytes_max: if asked == 0 { PART_BYTES } else { asked.min(PART_BYTES) },
        grant: parse_grant(grant)?,
    })
}

fn parse_strategy(strategy: i32) -> Result<Option<Strategy>, Refused> {
    match v1::Strategy::try_from(strategy) {
        Ok(v1::Strategy::Unspecified) => Ok(None),
        Ok(v1::Strategy::Crdt) => Ok(Some(Strategy::Crdt)),
        Ok(v1::Strategy::Lww) => Ok(Some(Strategy::Lww)),
        Ok(v1::Strategy::Server) => Ok(Some(Strategy::Server)),
        Err(_) => Err(Refused::new(Code::StrategyMismatch, "this build does not know the strategy")),
    }
}

/// Heads that cannot be ours are as good as none: who has them gets the state.
fn parse_heads(heads: &[Bytes]) -> Vec<Hash> {
    let parsed: Option<Vec<Hash>> = heads.iter().map(|head| head.as_ref().try_into().ok()).collect();
    parsed.filter(|heads| heads.len() <= HEADS_MAX).unwrap_or_default()
}

fn parse_name(name: &str) -> Result<DocumentName, Refused> {
    name.parse()
        .map_err(|why: manyhands_proto::InvalidDocumentName| Refused::new(Code::InvalidName, why.to_string()))
}

fn parse_incarnation(incarnation: u64) -> Result<Incarnation, Refused> {
    match incarnation {
        0 => Err(Refused::new(Code::Malformed, "an incarnation is never 0")),
        incarnation => Ok(Incarnation(incarnation)),
    }
}

fn parse_replica(replica: u64) -> Option<ReplicaId> {
    (replica != 0).then_some(ReplicaId(replica))
}

fn parse_grant(grant: Option<v1::Grant>) -> Result<Grant, Refused> {
    grant.map(Grant::from).ok_or_else(|| Refused::new(Code::Forbidden, "the request carries no grant"))
}

/// `None` when the asker has nothing, not even an empty document.
fn parse_position(have: &v1::Position) -> Result<Option<Position>, Refused> {
    if have.incarnation == 0 {
        return Ok(None);
    }
    if have.seq == 0 {
        let incarnation = Incarnation(have.incarnation);
        return Ok(Some(Position { incarnation, seq: Seq(0), chain: [0; CHAIN_BYTES] }));
    }
    let chain: [u8; CHAIN_BYTES] = have.chain.as_ref().try_into().map_err(|_| {
        Refused::new(
            Code::Malformed,
            format!("a chain hash has {CHAIN_BYTES} bytes, not {}", have.chain.len()),
        )
    })?;
    Ok(Some(Position { incarnation: Incarnation(have.incarnation), seq: Seq(have.seq), chain }))
}
