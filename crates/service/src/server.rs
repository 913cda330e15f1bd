//! Serves gRPC with our limits, health included, and stops within a bound.
//!
//! Handlers of long streams must end them when the same token fires: a graceful stop waits for open streams, until the
//! grace is over.

use crate::transport::{CONNECTION_WINDOW_BYTES, FRAME_BYTES, KEEPALIVE, KEEPALIVE_TIMEOUT, STREAM_WINDOW_BYTES};
use futures::Stream;
use std::convert::Infallible;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::server::Connected;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// Streams that one connection may have open.
const MAX_STREAMS: u32 = 256;

/// Where the clients live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peers {
    /// In this process: they stall when we stall, so that nobody is probed.
    SameProcess,
    /// Anywhere: silent connections are probed.
    Network,
}

/// Services that are about to be served, with `grpc.health.v1` among them.
#[derive(Debug)]
pub struct Server {
    routes: Routes,
    health: HealthReporter,
    names: Vec<&'static str>,
    peers: Peers,
}

impl Server {
    /// Returns a server that has only its health to tell.
    pub fn new(peers: Peers) -> Self {
        let (health, service) = tonic_health::server::health_reporter();
        Self { routes: Routes::new(service), health, names: Vec::new(), peers }
    }

    /// Adds a service.
    #[must_use]
    pub fn add_service<S>(mut self, service: S) -> Self
    where
        S: tower::Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.names.push(S::NAME);
        self.routes = self.routes.add_service(service);
        self
    }

    /// Serves until `shutdown` fires and calls under way have ended, `grace` longer at most.
    pub async fn serve<I, IO>(
        self,
        incoming: I,
        shutdown: CancellationToken,
        grace: Duration,
    ) -> Result<(), tonic::transport::Error>
    where
        I: Stream<Item = std::io::Result<IO>>,
        IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    {
        report(&self.health, &self.names, ServingStatus::Serving).await;
        let router = builder(self.peers).add_routes(self.routes);
        let serving = router.serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned());
        let overdue = async {
            shutdown.cancelled().await;
            report(&self.health, &self.names, ServingStatus::NotServing).await;
            tokio::time::sleep(grace).await;
        };
        tokio::select! {
            served = serving => served,
            () = overdue => {
                tracing::warn!("connections still open after the grace; leaving them");
                Ok(())
            }
        }
    }
}

/// Returns a tonic server with the settings for bulk data.
fn builder(peers: Peers) -> tonic::transport::Server {
    let server = tonic::transport::Server::builder()
        .max_frame_size(FRAME_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(MAX_STREAMS);
    match peers {
        Peers::SameProcess => server,
        Peers::Network => {
            server.http2_keepalive_interval(Some(KEEPALIVE)).http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        }
    }
}

/// Tells the health of the whole server, whose name is empty, and of each service.
async fn report(health: &HealthReporter, names: &[&'static str], status: ServingStatus) {
    for name in std::iter::once(&"").chain(names) {
        health.set_service_status(*name, status).await;
    }
}
