//! One character's whole way as one trace, as a collector sees it: from the socket into the log and out to
//! everybody else.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use loadtest::cluster::{Cluster, Options, Role};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::world::{BINARY, Dev, PATIENCE, client, saved, until};

/// The steps of one op, in the order in which they happen.
const ROAD: [&str; 5] = ["edge.submit", "document.admit", "log.append", "bus.publish", "edge.deliver"];

/// Takes spans as an operator's collector does, and who sent them.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<(String, Span)>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut collected = self.0.lock().unwrap();
        for resource in request.into_inner().resource_spans {
            let service = format!("{:?}", resource.resource);
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            collected.extend(spans.map(|span| (service.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Starts one, and gives the settings that make a process send everything to it.
    fn start() -> (Collector, Vec<(String, String)>) {
        let collector = Collector::default();
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let endpoint = format!("http://{}", incoming.local_addr().unwrap());
        let service = TraceServiceServer::new(collector.clone());
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        let settings = [("OTLP_ENDPOINT", endpoint), ("SAMPLE", "1.0".to_owned())];
        let settings = settings.map(|(name, value)| (format!("MANYHANDS_TELEMETRY__{name}"), value));
        (collector, settings.into())
    }

    /// Each step of the one op comes once, in one trace, and each has its cause in this trace.
    fn check(&self, processes: [&str; 2]) {
        let collected = self.0.lock().unwrap();
        let names: Vec<&str> = collected.iter().map(|(_, span)| &span.name[..]).collect();
        let of = |name: &str| {
            let mut found = collected.iter().filter(|(_, span)| span.name == name);
            let one = found.next().unwrap_or_else(|| panic!("no {name} among {names:?}"));
            assert!(found.next().is_none(), "{name} comes twice");
            one
        };
        let road = ROAD.map(of);
        let trace = &road[0].1.trace_id;
        let spans: BTreeMap<&[u8], &Span> = (collected.iter())
            .filter(|(_, span)| span.trace_id == *trace)
            .map(|(_, span)| (&span.span_id[..], span))
            .collect();
        assert!(road[0].1.parent_span_id.is_empty(), "the op begins at the edge");
        for (service, span) in &road[1..] {
            assert_eq!(&span.trace_id, trace, "{} is in another trace", span.name);
            let mut above = span;
            while let Some(parent) = spans.get(&above.parent_span_id[..]) {
                above = parent;
            }
            assert_eq!(above.name, "edge.submit", "what {} comes from", span.name);
            let process = if span.name.starts_with("edge.") { processes[0] } else { processes[1] };
            assert!(service.contains(&format!("\"{process}\"")), "{} is from {service}", span.name);
        }
        let publish = &road[3].1;
        assert_eq!(road[4].1.parent_span_id, publish.span_id, "a delivery comes from a publication");
    }
}

/// One types a character, the other sees it.
async fn type_one(urls: &[String], secret: Option<&std::path::Path>) {
    let (ada, bob) = (client(urls, secret), client(urls, secret));
    let (ada, bob) = (ada.open("demo").unwrap(), bob.open("demo").unwrap());
    for workspace in [&ada, &bob] {
        tokio::time::timeout(PATIENCE, workspace.loaded()).await.expect("loaded in time").unwrap();
    }
    ada.text("main").push("x").unwrap();
    until(&bob, |text| text == "x").await;
    saved(&ada).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_op_is_one_trace_in_one_process() {
    let (collector, settings) = Collector::start();
    let data = tempfile::tempdir().unwrap();
    let dev = Dev::start_with(data.path(), "127.0.0.1:0", settings);
    type_one(&[format!("ws://{}", dev.address())], None).await;
    // The last spans are sent when it leaves.
    assert!(tokio::task::spawn_blocking(|| dev.leave()).await.unwrap());
    collector.check(["dev", "dev"]);
}

/// Across gRPC and NATS.
#[tokio::test(flavor = "multi_thread")]
async fn an_op_is_one_trace_in_a_cluster() {
    let (collector, settings) = Collector::start();
    let folder = tempfile::tempdir().unwrap();
    let mut options = Options::new(folder.path(), BINARY);
    (options.edges, options.documents, options.environment) = (1, 1, settings);
    let mut cluster = tokio::task::spawn_blocking(|| Cluster::start(options)).await.unwrap().unwrap();
    let secret = cluster.secret_file().to_owned();
    type_one(&cluster.edge_urls(), Some(&secret)).await;
    tokio::task::block_in_place(|| {
        for role in [Role::Edge, Role::Document] {
            cluster.node_mut(role, 0).stop(PATIENCE).unwrap();
        }
    });
    for n in ["edge-0", "document-0"] {
        eprintln!("{}", std::fs::read_to_string(folder.path().join(format!("logs/{n}.log"))).unwrap());
    }
    collector.check(["edge", "document"]);
}
