//! Logs, traces and metrics of one process, against a collector that speaks OTLP.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use manyhands_process::telemetry::{self, Config, Error, Format};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tracing::{info, info_span};

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn last(&self) -> serde_json::Value {
        let bytes = self.0.lock().unwrap();
        let text = std::str::from_utf8(&bytes).unwrap();
        serde_json::from_str(text.lines().last().unwrap()).unwrap()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_crosses_hops_and_is_named_in_the_log() {
    let collector = Collector::default();
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let config = Config {
        level: "info,manyhands_quiet=warn".into(),
        format: Format::Json,
        otlp_endpoint: format!("http://{}", incoming.local_addr().unwrap()),
        sample: 1.0,
    };
    let service = TraceServiceServer::new(collector.clone());
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));

    assert_eq!(telemetry::traceparent(), None);
    let log = Log::default();
    let writer = log.clone();
    let telemetry = telemetry::init_to("manyhands-test", &config, move || writer.clone(), false).unwrap();
    assert!(matches!(telemetry::init("again", &Config::default()), Err(Error::Twice)));

    // A library that asks whether a line would be heard and then writes none takes nothing from what comes after.
    let silent_question = || tracing::enabled!(target: "another", tracing::Level::INFO);
    assert!(silent_question());
    // One hop: the context of a span becomes text, in metadata and in a bus message.
    let sent =
        info_span!(target: "manyhands_test", "edge.submit", workspace = "demo", level = "x").in_scope(|| {
            let mut metadata = tonic::metadata::MetadataMap::new();
            telemetry::inject(&mut metadata);
            let sent = telemetry::extract(&metadata).unwrap().to_owned();
            assert_eq!(telemetry::traceparent().as_deref(), Some(sent.as_str()));
            sent
        });
    let parts: Vec<&str> = sent.split('-').collect();
    assert_eq!((sent.len(), parts[0], parts[3]), (55, "00", "01"), "{sent}");

    // The next: the text becomes the parent of a span.
    assert!(silent_question());
    let span = info_span!(target: "manyhands_test", "document.admit", document = "demo", tries = 2);
    assert!(telemetry::set_parent(&span, &sent));
    let received = span.in_scope(|| {
        info!(target: "manyhands_test", seq = 7, ts = "mine", durable = true, "appended");
        telemetry::traceparent().unwrap()
    });
    drop(span);
    let received: Vec<&str> = received.split('-').collect();
    assert_eq!(received[1], parts[1], "the same trace");
    assert_ne!(received[2], parts[2], "another span");

    let line = log.last();
    assert_eq!(line["msg"], "appended");
    assert_eq!(line["level"], "info");
    assert_eq!(line["target"], "manyhands_test");
    assert_eq!((&line["seq"], &line["durable"]), (&7.into(), &true.into()));
    assert_eq!(
        (&line["document"], &line["tries"], &line["ts_"]),
        (&"demo".into(), &2.into(), &"mine".into())
    );
    assert_eq!((&line["trace_id"], &line["span_id"]), (&received[1].into(), &received[2].into()));
    assert!(line["ts"].as_str().unwrap().ends_with('Z'));

    // What is no context leaves a span alone; what is quiet stays quiet.
    for text in
        ["", "00-0-0-01", &sent.replace(parts[1], &"0".repeat(32)), &format!("{sent}{}", "x".repeat(100))]
    {
        let span = info_span!(target: "manyhands_test", "other");
        assert!(!telemetry::set_parent(&span, text), "{text}");
    }
    info!(target: "manyhands_quiet", "not said");
    assert!(silent_question());
    info!(target: "manyhands_test", "outside of spans");
    let line = log.last();
    assert_eq!(
        (&line["msg"], line.get("trace_id"), line.get("document")),
        (&"outside of spans".into(), None, None)
    );

    metrics::counter!("manyhands_test_total", "topic" => "deltas").increment(3);
    metrics::histogram!("manyhands_append_seconds").record(0.003);
    metrics::histogram!("manyhands_batch_entries").record(50.0);
    let text = telemetry.metrics().render();
    for line in [
        "manyhands_test_total{topic=\"deltas\"} 3",
        "manyhands_append_seconds_bucket{le=\"0.0025\"} 0",
        "manyhands_append_seconds_bucket{le=\"0.005\"} 1",
        "manyhands_batch_entries_bucket{le=\"64\"} 1",
    ] {
        assert!(text.lines().any(|have| have == line), "{line} not in\n{text}");
    }

    tokio::time::timeout(Duration::from_secs(20), telemetry.flush()).await.unwrap();
    let exported = collector.0.lock().unwrap();
    let resources: Vec<_> = exported.iter().flat_map(|request| &request.resource_spans).collect();
    let named = format!("{:?}", resources[0].resource);
    assert!(named.contains("service.name") && named.contains("manyhands-test"), "{named}");
    let spans: Vec<_> =
        resources.iter().flat_map(|r| &r.scope_spans).flat_map(|scope| &scope.spans).collect();
    let span = |name: &str| *spans.iter().find(|span| span.name == name).unwrap();
    let (submit, admit) = (span("edge.submit"), span("document.admit"));
    assert_eq!(hex(&submit.trace_id), parts[1]);
    assert_eq!(admit.trace_id, submit.trace_id);
    assert_eq!(admit.parent_span_id, submit.span_id);
    assert_eq!(hex(&submit.span_id), parts[2]);
}

#[test]
fn settings_that_cannot_be_used() {
    let refused = |config: Config| telemetry::init("x", &config).unwrap_err().to_string();
    let level = refused(Config { level: "manyhands=loud".into(), ..Config::default() });
    assert!(level.starts_with("`telemetry.level` is not a level"), "{level}");
    assert_eq!(
        refused(Config { sample: 1.5, ..Config::default() }),
        "`telemetry.sample` is 1.5; expected a number from 0 to 1"
    );
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let otlp = refused(Config { otlp_endpoint: "not a url".into(), ..Config::default() });
    assert!(otlp.starts_with("`telemetry.otlp_endpoint` cannot be used"), "{otlp}");
}
