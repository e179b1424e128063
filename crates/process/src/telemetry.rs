//! Logs, traces and metrics of a process.
//!
//! Logs go to standard error: readable on a terminal, JSON lines otherwise. Traces go to an OTLP collector when
//! one is configured; their context travels as a W3C `traceparent` through gRPC metadata and bus messages.
//! Metrics are Prometheus text; their names start with `manyhands_` and end with their base unit
//! (`_seconds`, `_bytes`) or `_total`.

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use serde::{Deserialize, Serialize};
use tonic::metadata::MetadataMap;
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Filter, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::log_line::JsonLines;

/// How a process reports about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `info`, or directives such as `info,manyhands_edge=debug`.
    pub level: String,
    /// How log lines look.
    pub format: Format,
    /// Where an OTLP collector takes traces over gRPC, `http://host:4317`. Empty: traces go nowhere.
    pub otlp_endpoint: String,
    /// The share of traces begun here that are recorded, 0 to 1. Others' decisions are kept.
    pub sample: f64,
}

impl Default for Config {
    fn default() -> Config {
        Config { level: "info".into(), format: Format::Auto, otlp_endpoint: String::new(), sample: 0.01 }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Pretty on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// Telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `level` is not a filter.
    #[error("`telemetry.level` is not a level: {0}; write `info`, or `info,manyhands_edge=debug`")]
    Level(String),
    /// `sample` is not a share.
    #[error("`telemetry.sample` is {0}; expected a number from 0 to 1")]
    Sample(f64),
    /// `otlp_endpoint` cannot be used.
    #[error("`telemetry.otlp_endpoint` cannot be used: {0}; write it as \"http://host:4317\"")]
    Otlp(String),
    /// This process has telemetry already.
    #[error("telemetry was set up before in this process")]
    Twice,
}

/// What must be kept while the process lives, and flushed at its end.
#[derive(Debug)]
pub struct Telemetry {
    metrics: Metrics,
    provider: Option<SdkTracerProvider>,
}

/// Longest time that the last spans are given to reach the collector.
const FLUSH_MAX: Duration = Duration::from_secs(2);

/// Installs logs, traces and metrics for the whole process. Call it once, inside a tokio runtime.
///
/// # Errors
///
/// A setting cannot be used, or it was called before.
pub fn init(service: &str, config: &Config) -> Result<Telemetry, Error> {
    init_to(service, config, io::stderr, io::stderr().is_terminal())
}

/// [`init`] with the logs going elsewhere.
///
/// # Errors
///
/// As with [`init`].
pub fn init_to<W>(service: &str, config: &Config, writer: W, terminal: bool) -> Result<Telemetry, Error>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(&config.level).map_err(|error| Error::Level(error.to_string()))?;
    let provider = tracer_provider(service, config)?;
    let traces = provider.as_ref().map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("manyhands"))
            // Ours only: the exporter's own connection must not trace itself. Log lines stay log lines.
            .with_filter(Asked(filter_fn(|meta| meta.is_span() && meta.target().starts_with("manyhands"))))
    });
    Registry::default()
        .with(traces)
        .with(logs(config.format, writer, terminal).with_filter(Asked(filter)))
        .try_init()
        .map_err(|_| Error::Twice)?;
    let metrics = Metrics::install().ok_or(Error::Twice)?;
    Ok(Telemetry { metrics, provider })
}

/// A filter that is asked about each span and line that it wants. With an answer for good, the layer goes by what
/// the thread was asked last, by whomever: after a library asked whether a line would be heard and wrote none, as
/// database drivers do, the next span of ours would be lost.
struct Asked<F>(F);

impl<S: Subscriber, F: Filter<S>> Filter<S> for Asked<F> {
    fn enabled(&self, meta: &Metadata<'_>, cx: &Context<'_, S>) -> bool {
        self.0.enabled(meta, cx)
    }

    fn callsite_enabled(&self, meta: &'static Metadata<'static>) -> Interest {
        let interest = self.0.callsite_enabled(meta);
        if interest.is_always() { Interest::sometimes() } else { interest }
    }

    fn event_enabled(&self, event: &Event<'_>, cx: &Context<'_, S>) -> bool {
        self.0.event_enabled(event, cx)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        self.0.max_level_hint()
    }

    fn on_new_span(&self, attrs: &Attributes<'_>, id: &Id, cx: Context<'_, S>) {
        self.0.on_new_span(attrs, id, cx);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, cx: Context<'_, S>) {
        self.0.on_record(id, values, cx);
    }

    fn on_enter(&self, id: &Id, cx: Context<'_, S>) {
        self.0.on_enter(id, cx);
    }

    fn on_exit(&self, id: &Id, cx: Context<'_, S>) {
        self.0.on_exit(id, cx);
    }

    fn on_close(&self, id: Id, cx: Context<'_, S>) {
        self.0.on_close(id, cx);
    }
}

fn logs<S, W>(format: Format, writer: W, terminal: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let pretty = match format {
        Format::Auto => terminal,
        Format::Pretty => true,
        Format::Json => false,
    };
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    if pretty {
        layer.with_ansi(terminal && std::env::var_os("NO_COLOR").is_none()).boxed()
    } else {
        layer.fmt_fields(tracing_subscriber::fmt::format::JsonFields::new()).event_format(JsonLines).boxed()
    }
}

fn tracer_provider(service: &str, config: &Config) -> Result<Option<SdkTracerProvider>, Error> {
    if !(0.0..=1.0).contains(&config.sample) {
        return Err(Error::Sample(config.sample));
    }
    if config.otlp_endpoint.is_empty() {
        return Ok(None);
    }
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(&config.otlp_endpoint)
        .build()
        .map_err(|error| Error::Otlp(error.to_string()))?;
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample)));
    let resource = Resource::builder().with_service_name(service.to_owned()).build();
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(sampler)
        .with_resource(resource)
        .build();
    Ok(Some(provider))
}

impl Telemetry {
    /// The metrics of this process.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// Sends the spans that are still waiting, for two seconds at most.
    pub async fn flush(self) {
        let Some(provider) = self.provider else { return };
        let flushed = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_MAX));
        // Twice the limit: the exporter's thread may be stuck in a connection.
        match tokio::time::timeout(FLUSH_MAX * 2, flushed).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the last spans were not exported"),
            Ok(Err(_)) | Err(_) => tracing::warn!("the last spans were not exported"),
        }
    }
}

/// Bounds of histograms whose names end with `_seconds`: half a millisecond to ten seconds.
pub const SECONDS_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Bounds of histograms whose names end with `_bytes`.
pub const BYTES_BUCKETS: &[f64] =
    &[64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0, 4_194_304.0];

/// Bounds of histograms whose names end with `_entries`, such as the size of a batch.
pub const ENTRIES_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// How often samples are folded into their buckets when nobody asks for the metrics; without it they would
/// pile up.
const UPKEEP: Duration = Duration::from_secs(5);

/// What `metrics::counter!` and its like recorded; clones share it.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
}

impl Metrics {
    /// Metrics of this process as Prometheus text.
    #[must_use]
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Metrics that nothing records to, for tests of what shows them.
    #[must_use]
    pub fn detached() -> Metrics {
        Metrics { handle: builder().build_recorder().handle() }
    }

    fn install() -> Option<Metrics> {
        let recorder = builder().build_recorder();
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).ok()?;
        let upkeep = handle.clone();
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(UPKEEP);
            loop {
                ticks.tick().await;
                upkeep.run_upkeep();
            }
        });
        Some(Metrics { handle })
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

fn builder() -> PrometheusBuilder {
    let of = |suffix: &str| Matcher::Suffix(suffix.to_owned());
    PrometheusBuilder::new()
        .set_buckets_for_metric(of("_seconds"), SECONDS_BUCKETS)
        .and_then(|builder| builder.set_buckets_for_metric(of("_bytes"), BYTES_BUCKETS))
        .and_then(|builder| builder.set_buckets_for_metric(of("_entries"), ENTRIES_BUCKETS))
        .expect("the bounds are not empty")
}

/// The header and metadata key of the W3C trace context.
pub const TRACEPARENT: &str = "traceparent";

/// Longest `traceparent` that is looked at, in bytes; version 0 has 55.
const TRACEPARENT_BYTES_MAX: usize = 128;

/// The trace context of the current span; `None` where nothing is traced.
#[must_use]
pub fn traceparent() -> Option<String> {
    let context = Span::current().context();
    if !context.span().span_context().is_valid() {
        return None;
    }
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&context, &mut carrier);
    carrier.remove(TRACEPARENT)
}

/// Makes a span the child of a span elsewhere. Call it before the span is entered. Gives `false`, and leaves
/// the span as it is, if the text is no trace context or nothing is traced here.
pub fn set_parent(span: &Span, traceparent: &str) -> bool {
    if traceparent.len() > TRACEPARENT_BYTES_MAX {
        return false;
    }
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    let context = TraceContextPropagator::new().extract(&carrier);
    context.span().span_context().is_valid() && span.set_parent(context).is_ok()
}

/// Writes the current span's context into the metadata of a gRPC request.
pub fn inject(metadata: &mut MetadataMap) {
    if let Some(value) = traceparent().and_then(|text| text.parse().ok()) {
        metadata.insert(TRACEPARENT, value);
    }
}

/// The trace context in the metadata of a gRPC request.
#[must_use]
pub fn extract(metadata: &MetadataMap) -> Option<&str> {
    metadata.get(TRACEPARENT)?.to_str().ok()
}
