//! Traces across tasks, processes and restarts: contexts as texts (W3C `traceparent`), and spans that are told under an id
//! that was given out before.
//!
//! A shot outlives the coordinator that began it. Its context is in the journal; what belongs to it is told as it ends,
//! under that context, by whoever has the run then; its own span is told when the shot is over. Everything here does
//! nothing while traces go nowhere.

use opentelemetry::context::FutureExt;
use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
    Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SdkTracerProvider};
use std::cell::Cell;
use std::sync::OnceLock;
use std::time::SystemTime;
use tracing_opentelemetry::OpenTelemetrySpanExt;

static PROVIDER: OnceLock<SdkTracerProvider> = OnceLock::new();

/// Tells spans to a provider from now on, if there is one.
pub(super) fn switch(provider: Option<SdkTracerProvider>) {
    if let Some(provider) = provider {
        let _first = PROVIDER.set(provider);
    }
}

thread_local! {
    /// The ids of the span that is built next on this thread, where they were given out before.
    static GIVEN: Cell<Option<(TraceId, SpanId)>> = const { Cell::new(None) };
}

/// Random ids, but for a span that has some.
#[derive(Debug, Default)]
pub(super) struct Ids(RandomIdGenerator);

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        GIVEN.get().map_or_else(|| self.0.new_trace_id(), |(trace, _)| trace)
    }

    fn new_span_id(&self) -> SpanId {
        GIVEN.get().map_or_else(|| self.0.new_span_id(), |(_, span)| span)
    }
}

/// Returns the context of a new trace, for a span that will be told later; empty while traces go nowhere.
pub fn new_root() -> String {
    if PROVIDER.get().is_none() {
        return String::new();
    }
    let ids = RandomIdGenerator::default();
    encode(&context(ids.new_trace_id(), ids.new_span_id()))
}

/// Makes a span part of the trace of `parent`, unless that is empty or no context.
pub fn continues(span: &tracing::Span, parent: &str) {
    if let Some(parent) = decode(parent).filter(|_| PROVIDER.get().is_some()) {
        // It fails for spans that are not told.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
}

/// Runs a future within a context: spans that begin in it, with no span around them, belong there.
pub async fn within<F: Future>(context: &str, future: F) -> F::Output {
    match decode(context).filter(|_| PROVIDER.get().is_some()) {
        Some(parent) => future.with_context(Context::new().with_remote_span_context(parent)).await,
        None => future.await,
    }
}

/// How something ended that has a span of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended<'a> {
    /// As it should.
    Well,
    /// Not so, and why.
    Badly(&'a str),
}

/// Tells the span of a context that [`new_root`] gave out, from `start` to now; `links`: contexts that it has to do with.
pub fn tell(
    name: &'static str,
    context: &str,
    start: SystemTime,
    links: &[&str],
    fields: Vec<KeyValue>,
    ended: Ended<'_>,
) {
    let (Some(provider), Some(own)) = (PROVIDER.get(), decode(context)) else { return };
    let links = links.iter().filter_map(|link| decode(link)).map(|link| Link::new(link, Vec::new(), 0)).collect();
    let builder = SpanBuilder::from_name(name).with_start_time(start).with_attributes(fields).with_links(links);
    GIVEN.set(Some((own.trace_id(), own.span_id())));
    let mut span = provider.tracer(super::export::SCOPE).build_with_context(builder, &Context::new());
    GIVEN.set(None);
    if let Ended::Badly(why) = ended {
        span.set_status(Status::error(why.to_owned()));
    }
    span.end();
}

fn context(trace: TraceId, span: SpanId) -> SpanContext {
    SpanContext::new(trace, span, TraceFlags::SAMPLED, true, TraceState::default())
}

fn encode(context: &SpanContext) -> String {
    if !context.is_valid() {
        return String::new();
    }
    format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), context.trace_flags().to_u8())
}

/// Reads a `traceparent`; `None` for anything else, also for one of a later version that is longer.
fn decode(text: &str) -> Option<SpanContext> {
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |part: &str, length| part.len() == length && part.bytes().all(|b| b.is_ascii_hexdigit());
    let whole = parts.next().is_none() && hex(version, 2) && hex(trace, 32) && hex(span, 16) && hex(flags, 2);
    if !whole || version == "ff" {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()? & TraceFlags::SAMPLED.to_u8());
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let read = SpanContext::new(trace, span, flags, true, TraceState::default());
    read.is_valid().then_some(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_comes_back_from_its_text_and_nothing_else_is_one() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(encode(&decode(text).unwrap()), text);
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-000f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "00-4bf92f3577b34da6a3ce929d0e0e473é-00f067aa0ba902b7-01",
        ] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn without_a_collector_nothing_is_given_out_and_nothing_breaks() {
        assert_eq!(new_root(), "");
        tell("shot", "", SystemTime::now(), &[""], Vec::new(), Ended::Badly("x"));
        assert_eq!(within("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", async { 7 }).await, 7);
    }
}
