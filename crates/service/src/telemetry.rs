//! What a service tells of itself: logs on standard error, traces and metrics to a collector, metrics at `/metrics`.
//!
//! `docs/telemetry.json` lists every span and metric. Logs are plain lines for people or JSON for machines. Traces and
//! metrics go to the OTLP endpoint that `OTEL_EXPORTER_OTLP_ENDPOINT` names, nowhere if it names none. A collector that
//! is slow or dead costs telemetry, nothing else: what it does not take in time is dropped.

mod export;
mod log;
pub mod metrics;
mod scrape;
pub mod trace;

pub use export::Telemetry;
pub use log::LogFormat;
pub use scrape::scrape;

use export::Collector;
use std::io::IsTerminal;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::{EnvFilter, FilterExt, FilterFn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// Environment variable with the filter, e.g. `info` or `warn,coordinator=debug`.
pub const FILTER_VARIABLE: &str = "LLM_SURGEON_LOG";

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter cannot be read.
    #[error(
        "'{filter}' is no log filter; write for example info or warn,coordinator=debug ({FILTER_VARIABLE} sets it)"
    )]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The format is not known.
    #[error("unknown log format '{0}', expected one of plain, json")]
    Format(String),
    /// The collector's address or another of its settings cannot be.
    #[error("OTEL_EXPORTER_OTLP_ENDPOINT '{endpoint}': {problem}")]
    Collector {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Metrics cannot be collected.
    #[error("metrics cannot be collected: {0}")]
    Metrics(String),
    /// It was set up before in this process.
    #[error("logging is already set up")]
    Twice,
}

/// Sets up logs, traces and metrics of the service `name`. To be called within the runtime that its messages use.
pub fn init(name: &'static str, format: LogFormat, default_filter: &str) -> Result<Telemetry, TelemetryError> {
    let collector = Collector::from_environment();
    let telemetry = Telemetry::start(name, collector.as_ref())?;
    let traces = telemetry.tracer().map(|tracer| {
        let layer = tracing_opentelemetry::layer().with_tracer(tracer).with_location(false).with_threads(false);
        layer.with_target(false).with_tracked_inactivity(false).with_filter(FilterFn::new(is_told))
    });
    start(format, default_filter, std::io::stderr, traces)?;
    trace::switch(telemetry.traces());
    if let Some(collector) = collector {
        tracing::info!(endpoint = collector.endpoint(), "traces and metrics go to a collector");
    }
    Ok(telemetry)
}

/// Sends logs to a writer of the caller's, for instance one that keeps clear of progress bars, and nothing to anybody else.
pub fn init_with_writer<W>(format: LogFormat, default_filter: &str, writer: W) -> Result<(), TelemetryError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    start(format, default_filter, writer, None::<tracing_subscriber::layer::Identity>)
}

fn start<W, T>(format: LogFormat, default_filter: &str, writer: W, traces: Option<T>) -> Result<(), TelemetryError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
    T: Layer<tracing_subscriber::Registry> + Send + Sync + 'static,
{
    let asked = std::env::var(FILTER_VARIABLE).ok().filter(|text| !text.trim().is_empty());
    let filter = parse(asked.as_deref().unwrap_or(default_filter))?;
    // A shot's spans are told at any level of logs.
    let logs = logs(format, writer).with_filter(filter.and(FilterFn::new(is_not_the_exporters)));
    let set = tracing_subscriber::registry().with(traces).with(logs).try_init();
    set.map_err(|_| TelemetryError::Twice)
}

fn logs<S, W>(format: LogFormat, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'s> LookupSpan<'s>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    match format {
        LogFormat::Plain => {
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
            Box::new(layer.compact().with_ansi(colour))
        }
        LogFormat::Json => {
            let layer = layer.json().with_ansi(false);
            Box::new(layer.map_event_format(|json| log::WithIds(json.flatten_event(true).with_current_span(false))))
        }
    }
}

/// Says whether a span goes to the collector: ours, that tell of stages and tasks.
fn is_told(metadata: &Metadata<'_>) -> bool {
    const OURS: [&str; 5] = ["calibrator", "surgeon", "coordinator", "service", "pruning"];
    let module = metadata.target().split("::").next().unwrap_or_default();
    metadata.is_span() && *metadata.level() <= Level::INFO && OURS.contains(&module)
}

/// The exporter says at every try that a collector is dead; that some spans were dropped, it says once.
fn is_not_the_exporters(metadata: &Metadata<'_>) -> bool {
    !metadata.target().starts_with("opentelemetry") || metadata.name().ends_with("DroppingStarted")
}

fn parse(filter: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::try_new(filter).map_err(|source| TelemetryError::Filter { filter: filter.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_is_named_with_the_variable_that_sets_it() {
        let error = parse("warn,=[").unwrap_err().to_string();
        assert!(error.contains("'warn,=['") && error.contains(FILTER_VARIABLE), "{error}");
        assert!(parse("warn,coordinator=debug").is_ok());
    }

    #[test]
    fn logging_is_set_up_once() {
        assert!(init_with_writer(LogFormat::Json, "warn", std::io::stderr).is_ok());
        let again = init_with_writer("plain".parse().unwrap(), "warn", std::io::stderr);
        assert!(matches!(again, Err(TelemetryError::Twice)));
    }
}
