//! Where traces and metrics go: to a collector by OTLP, and metrics to whoever scrapes.

use super::TelemetryError;
use super::trace::Ids;
use opentelemetry::global;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{MetricExporter, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider};
use std::sync::OnceLock;
use std::time::Duration;

/// The standard variable that switches export on.
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// How long the collector may take for one batch.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Spans that wait for the collector; more than a shot has.
const QUEUED_SPANS: usize = 8192;
/// Scope of what we emit.
pub(super) const SCOPE: &str = "llm_surgeon";

static REGISTRY: OnceLock<prometheus::Registry> = OnceLock::new();

/// Returns what there is to scrape, once telemetry is set up.
pub(super) fn registry() -> Option<&'static prometheus::Registry> {
    REGISTRY.get()
}

/// Where traces and metrics are sent.
#[derive(Debug, Clone)]
pub(super) struct Collector {
    endpoint: String,
}

impl Collector {
    /// Returns the collector that the environment names, if it names one.
    pub(super) fn from_environment() -> Option<Self> {
        let endpoint = std::env::var(ENDPOINT).ok().filter(|text| !text.trim().is_empty())?;
        Some(Self { endpoint: endpoint.trim().to_owned() })
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    fn error(&self, problem: &impl ToString) -> TelemetryError {
        TelemetryError::Collector { endpoint: self.endpoint.clone(), problem: problem.to_string() }
    }

    fn spans(&self) -> Result<SpanExporter, TelemetryError> {
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(&self.endpoint).with_timeout(EXPORT_TIMEOUT);
        exporter.build().map_err(|e| self.error(&e))
    }

    fn metrics(&self) -> Result<MetricExporter, TelemetryError> {
        let exporter =
            MetricExporter::builder().with_tonic().with_endpoint(&self.endpoint).with_timeout(EXPORT_TIMEOUT);
        exporter.build().map_err(|e| self.error(&e))
    }
}

/// The exporters of this process; to be flushed at its end.
#[derive(Debug)]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
    meters: SdkMeterProvider,
}

impl Telemetry {
    /// Starts what exports for the service `name`.
    pub(super) fn start(name: &'static str, collector: Option<&Collector>) -> Result<Self, TelemetryError> {
        // OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come first.
        let named = std::env::var_os("OTEL_SERVICE_NAME").is_some_and(|given| !given.is_empty());
        let resource =
            Resource::builder().with_attribute(opentelemetry::KeyValue::new("service.version", proto::VERSION));
        let resource = if named { resource.build() } else { resource.with_service_name(name).build() };

        let metrics = |e: &dyn std::fmt::Display| TelemetryError::Metrics(e.to_string());
        let registry = prometheus::Registry::new();
        let scraped = opentelemetry_prometheus::exporter().with_registry(registry.clone()).scope_info_enabled(false);
        let meters = SdkMeterProvider::builder().with_resource(resource.clone());
        let meters = meters.with_reader(scraped.build().map_err(|e| metrics(&e))?);
        let meters = match collector {
            Some(collector) => meters.with_periodic_exporter(collector.metrics()?),
            None => meters,
        };
        let meters = meters.build();
        global::set_meter_provider(meters.clone());
        REGISTRY.set(registry).map_err(|_| TelemetryError::Twice)?;

        let traces = match collector {
            Some(collector) => {
                let batches = BatchConfigBuilder::default().with_max_queue_size(QUEUED_SPANS).build();
                let batches = BatchSpanProcessor::builder(collector.spans()?).with_batch_config(batches).build();
                let provider = SdkTracerProvider::builder().with_span_processor(batches).with_resource(resource);
                Some(provider.with_id_generator(Ids::default()).build())
            }
            None => None,
        };
        Ok(Self { traces, meters })
    }

    pub(super) fn tracer(&self) -> Option<SdkTracer> {
        self.traces.as_ref().map(|traces| traces.tracer(SCOPE))
    }

    pub(super) fn traces(&self) -> Option<SdkTracerProvider> {
        self.traces.clone()
    }

    /// Sends what waits, for no longer than `limit`; what the collector has not taken then is lost.
    pub fn flush(self, limit: Duration) {
        let ended = std::thread::spawn(move || {
            // Nobody could do anything about a collector that is not there.
            let _ = self.traces.map(|traces| traces.shutdown_with_timeout(limit / 2));
            let _ = self.meters.shutdown_with_timeout(limit / 2);
        });
        let began = std::time::Instant::now();
        while !ended.is_finished() && began.elapsed() < limit {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
