//! An OpenTelemetry collector that is not ours, on this host, which writes down all it is told.

use crate::cluster::until;
use crate::python_program;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The collector; it ends when this is dropped.
#[derive(Debug)]
pub struct Rotel {
    agent: Child,
    port: u16,
    log: PathBuf,
}

/// A span as the collector got it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Span {
    /// `service.name` of who told it.
    pub service: String,
    /// Its trace.
    pub trace: String,
    /// Itself.
    pub id: String,
    /// The span around it; empty for a root.
    pub parent: String,
    /// What it is called.
    pub name: String,
    /// Its attributes.
    pub attributes: BTreeMap<String, String>,
    /// Traces that it is linked to.
    pub links: Vec<String>,
}

/// A metric as the collector got it, over all services and times.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metric {
    /// Services that told it.
    pub services: BTreeSet<String>,
    /// `Sum`, `Gauge` or `Histogram`.
    pub kind: String,
    /// Its unit.
    pub unit: String,
    /// Values of its labels.
    pub labels: BTreeMap<String, BTreeSet<String>>,
}

impl Rotel {
    /// Starts the collector, which writes below `folder`.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(folder: &Path) -> Self {
        let free = || TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = || free().unwrap_or_else(|e| panic!("no free port: {e}")).port();
        let (grpc, http) = (port(), port());
        let log = folder.join("rotel.log");
        let file = std::fs::File::create(&log).unwrap_or_else(|e| panic!("{}: {e}", log.display()));
        let mut command = Command::new(python_program("rotel", "rotel-agent"));
        command.args(["start", "--exporter", "blackhole", "--debug-log-verbosity", "detailed"]);
        command.args(["--debug-log", "traces", "--debug-log", "metrics"]);
        command.args(["--otlp-grpc-endpoint", &format!("127.0.0.1:{grpc}")]);
        command.args(["--otlp-http-endpoint", &format!("127.0.0.1:{http}")]);
        let agent = command.env("NO_COLOR", "1").stdout(file).stderr(Stdio::null()).spawn();
        let agent = agent.unwrap_or_else(|e| panic!("{command:?}: {e}"));
        assert!(until(|| TcpStream::connect(("127.0.0.1", grpc)).ok()).is_some(), "rotel does not start");
        Self { agent, port: grpc, log }
    }

    /// Returns where services send to.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn lines(&self) -> Vec<String> {
        std::fs::read_to_string(&self.log).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// Returns all spans so far.
    pub fn spans(&self) -> Vec<Span> {
        let (mut spans, mut service, mut of_span, mut in_links) = (Vec::<Span>::new(), String::new(), false, false);
        for line in self.lines() {
            if line.starts_with("Resource") && line.contains('#') {
                (service, of_span) = (String::new(), false);
            } else if line.starts_with("Span #") {
                spans.push(Span { service: service.clone(), ..Span::default() });
                (of_span, in_links) = (true, false);
            } else if line.starts_with("Links:") {
                in_links = true;
            } else if line.starts_with("Scope") {
                of_span = false;
            }
            if let Some(name) = attribute(&line).filter(|(key, _)| !of_span && *key == "service.name") {
                name.1.clone_into(&mut service);
            }
            let Some(span) = spans.last_mut().filter(|_| of_span) else { continue };
            if in_links {
                span.links.extend(line.trim().strip_prefix("-> Trace ID: ").map(str::to_owned));
            } else if let Some((key, value)) = attribute(&line) {
                span.attributes.insert(key.to_owned(), value.to_owned());
            } else if let Some((key, value)) = line.split_once(':').map(|(key, value)| (key.trim(), value.trim())) {
                let field = match key {
                    "Trace ID" => &mut span.trace,
                    "Parent ID" => &mut span.parent,
                    "ID" => &mut span.id,
                    "Name" => &mut span.name,
                    _ => continue,
                };
                value.clone_into(field);
            }
        }
        spans
    }

    /// Returns all metrics so far, by name.
    pub fn metrics(&self) -> BTreeMap<String, Metric> {
        let mut metrics = BTreeMap::<String, Metric>::new();
        let (mut service, mut name, mut points) = (String::new(), String::new(), false);
        for line in self.lines() {
            if line.starts_with("Resource") && line.contains('#') || line.starts_with("ScopeSpans") {
                (name, points) = (String::new(), false);
            } else if line.starts_with("Descriptor") {
                points = false;
            } else if line.starts_with("Data point attributes") || line.contains("DataPoints #") {
                points = true;
            }
            let line = line.trim();
            if let Some(found) = line.strip_prefix("-> Name: ") {
                found.clone_into(&mut name);
                metrics.entry(name.clone()).or_default().services.insert(service.clone());
            }
            if let Some((_, value)) = attribute(line).filter(|(key, _)| *key == "service.name") {
                value.clone_into(&mut service);
            }
            let Some(metric) = metrics.get_mut(&name) else { continue };
            match line.strip_prefix("-> ").and_then(|field| field.split_once(": ")) {
                Some(("Unit", unit)) => unit.clone_into(&mut metric.unit),
                Some(("DataType", kind)) => kind.clone_into(&mut metric.kind),
                _ if points => {
                    if let Some((key, value)) = attribute(line) {
                        metric.labels.entry(key.to_owned()).or_default().insert(value.to_owned());
                    }
                }
                _ => {}
            }
        }
        metrics
    }
}

/// Returns key and value of a line `-> key: Str(value)`.
fn attribute(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.trim().strip_prefix("-> ")?.split_once(": ")?;
    let (_, value) = value.strip_suffix(')')?.split_once('(')?;
    Some((key, value))
}

impl Drop for Rotel {
    fn drop(&mut self) {
        let _ = self.agent.kill(); // it may have ended
        let _ = self.agent.wait();
    }
}
