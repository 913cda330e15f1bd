//! `/metrics` for Prometheus: plain HTTP on a port of its own, with nothing else on it.

use super::export::registry;
use crate::listen::Listener;
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder, TextEncoder};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Scrapes under way at once; more wait.
const SCRAPES: usize = 8;
/// How long a caller may take for its question.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a whole connection may last.
const CONNECTION_TIMEOUT: Duration = Duration::from_mins(5);

/// Answers scrapes at `listener` as long as the process lives.
pub fn scrape(listener: Listener) {
    tokio::spawn(async move {
        let turns = Arc::new(Semaphore::new(SCRAPES));
        let mut connections = listener.incoming();
        while let Some(connection) = connections.next().await {
            let (Ok(connection), Ok(turn)) = (connection, Arc::clone(&turns).acquire_owned().await) else { continue };
            tokio::spawn(async move {
                let _turn = turn;
                let mut http = http1::Builder::new();
                http.timer(TokioTimer::new()).header_read_timeout(HEADERS_TIMEOUT);
                let served = http.serve_connection(TokioIo::new(connection), service_fn(answer));
                if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_TIMEOUT, served).await {
                    tracing::debug!(%error, "a scrape broke off");
                }
            });
        }
    });
}

async fn answer<B>(request: Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => match page() {
            Ok(page) => (StatusCode::OK, page),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n").into_bytes()),
        },
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, b"only GET\n".to_vec()),
        _ => (StatusCode::NOT_FOUND, b"there is only /metrics\n".to_vec()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(prometheus::TEXT_FORMAT));
    Ok(response)
}

/// Returns all metrics in Prometheus' text format.
fn page() -> Result<Vec<u8>, prometheus::Error> {
    let mut page = Vec::new();
    if let Some(registry) = registry() {
        TextEncoder::new().encode(&registry.gather(), &mut page)?;
    }
    Ok(page)
}
