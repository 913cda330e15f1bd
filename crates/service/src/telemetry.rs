//! Logs: plain lines for people or JSON for machines, always on standard error, which leaves standard output to results.

use std::io::IsTerminal;
use std::str::FromStr;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Environment variable with the filter, e.g. `info` or `warn,coordinator=debug`.
pub const FILTER_VARIABLE: &str = "LLM_SURGEON_LOG";

/// Names of the fields of spans and events, so that all services spell them alike.
pub mod field {
    /// The run.
    pub const RUN: &str = "run";
    /// The shot.
    pub const SHOT: &str = "shot";
    /// The block.
    pub const BLOCK: &str = "block";
    /// The layer.
    pub const LAYER: &str = "layer";
    /// The worker.
    pub const WORKER: &str = "worker";
    /// The shard.
    pub const SHARD: &str = "shard";
    /// The generation of a task.
    pub const GENERATION: &str = "generation";
}

/// What log lines look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One short line an event, coloured on a terminal.
    Plain,
    /// One JSON object an event.
    Json,
}

impl FromStr for LogFormat {
    type Err = TelemetryError;

    fn from_str(text: &str) -> Result<Self, TelemetryError> {
        match text {
            "plain" => Ok(Self::Plain),
            "json" => Ok(Self::Json),
            other => Err(TelemetryError::Format(other.to_owned())),
        }
    }
}

/// Why logging could not be set up.
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
    /// It was set up before in this process.
    #[error("logging is already set up")]
    Twice,
}

/// Sends logs to standard error, filtered by [`FILTER_VARIABLE`] or else by `default_filter`.
pub fn init(format: LogFormat, default_filter: &str) -> Result<(), TelemetryError> {
    init_with_writer(format, default_filter, std::io::stderr)
}

/// Sends logs to a writer of the caller's, for instance one that keeps clear of progress bars.
pub fn init_with_writer<W>(format: LogFormat, default_filter: &str, writer: W) -> Result<(), TelemetryError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let asked = std::env::var(FILTER_VARIABLE).ok().filter(|text| !text.trim().is_empty());
    let filter = parse(asked.as_deref().unwrap_or(default_filter))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    let set = match format {
        LogFormat::Plain => {
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
            log.compact().with_ansi(colour).try_init()
        }
        LogFormat::Json => log.json().flatten_event(true).with_current_span(false).try_init(),
    };
    set.map_err(|_| TelemetryError::Twice)
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
        assert!(init(LogFormat::Json, "warn").is_ok());
        assert!(matches!(init("plain".parse().unwrap(), "warn"), Err(TelemetryError::Twice)));
    }
}
