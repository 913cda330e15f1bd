//! How long calls take to be answered, by method and code.

use crate::telemetry::metrics::{KeyValue, OF_CALLS, seconds};
use opentelemetry::metrics::Histogram;
use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Instant;
use tonic::Code;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

/// What a method is called that the contract does not have: anybody may make up names.
const OTHER: &str = "_OTHER";

/// The names of the contract's methods, as they are in paths.
static METHODS: LazyLock<BTreeSet<String>> = LazyLock::new(proto::methods);

/// Measures every call.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    duration: Histogram<f64>,
}

impl Measured {
    pub(super) fn new() -> Self {
        let about = "from a call to the head of its answer";
        Self { duration: seconds("rpc.server.call.duration", about, &OF_CALLS) }
    }
}

impl<S> Layer<S> for Measured {
    type Service = MeasuredService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        MeasuredService { inner, duration: Arc::new(self.duration.clone()) }
    }
}

/// A service whose calls are measured.
#[derive(Debug, Clone)]
pub(super) struct MeasuredService<S> {
    inner: S,
    duration: Arc<Histogram<f64>>,
}

impl<S> Service<Request<Body>> for MeasuredService<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path().trim_start_matches('/');
        let method = METHODS.get(path).map_or(OTHER, String::as_str).to_owned();
        let (began, duration) = (Instant::now(), Arc::clone(&self.duration));
        let answered = self.inner.call(request);
        Box::pin(async move {
            let answer = answered.await;
            let labels = [
                KeyValue::new("rpc.system.name", "grpc"),
                KeyValue::new("rpc.method", method),
                KeyValue::new("rpc.response.status_code", code_name(answer.as_ref().ok())),
            ];
            duration.record(began.elapsed().as_secs_f64(), &labels);
            answer
        })
    }
}

/// Returns the code of an answer: an error is told in its head, and what says nothing there is going well.
fn code_name(answer: Option<&Response<Body>>) -> &'static str {
    let told = |response: &Response<Body>| {
        let code = response.headers().get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()));
        code.unwrap_or(Code::Ok)
    };
    match answer.map_or(Code::Unknown, told) {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contract_s_methods_are_known_by_their_paths() {
        assert!(METHODS.contains("llm_surgeon.v1.CoordinatorService/CreateRun"));
        assert!(METHODS.contains("llm_surgeon.v1.CalibratorService/StreamFactors"));
        assert!(METHODS.len() > 20 && !METHODS.contains("llm_surgeon.v1.CoordinatorService/Nonsense"));
    }

    #[test]
    fn an_error_is_told_by_its_code() {
        let refused = tonic::Status::not_found("x").into_http::<Body>();
        assert_eq!(code_name(Some(&refused)), "NOT_FOUND");
        assert_eq!(code_name(Some(&Response::new(Body::empty()))), "OK");
    }
}
