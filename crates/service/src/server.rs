//! Serves gRPC with our limits, health included, and stops within a bound.
//!
//! Handlers of long streams must end them when the same token fires: a graceful stop waits for open streams, until the
//! grace is over.

mod calls;

use crate::access::Guard;
use crate::compute::Beat;
use crate::listen::Listener;
use crate::transport::{CONNECTION_WINDOW_BYTES, FRAME_BYTES, KEEPALIVE, KEEPALIVE_TIMEOUT, STREAM_WINDOW_BYTES};
use futures::Stream;
use std::convert::Infallible;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::server::Connected;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// The name under which probes ask whether a process is alive; under the empty name they ask whether it is ready.
pub const LIVE: &str = "live";
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(500);

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

/// How one role of a process is, for those who tell of the whole process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vitals {
    /// Whether it is ready.
    pub ready: bool,
    /// Whether it computes without getting stuck.
    pub alive: bool,
}

impl Default for Vitals {
    /// Returns those of a role that is about to begin.
    fn default() -> Self {
        Self { ready: false, alive: true }
    }
}

/// Services that are about to be served, with `grpc.health.v1` among them.
#[derive(Debug)]
pub struct Server {
    routes: Routes,
    health: HealthReporter,
    names: Vec<&'static str>,
    peers: Peers,
    /// Where health is told to probes that speak neither TLS nor tokens; nothing else is there.
    admin: Option<Listener>,
    admin_routes: Routes,
    /// Whether it is ready; always, if nobody says.
    ready: Option<watch::Receiver<bool>>,
    /// Whose silence, and how much of it, means that the process is stuck.
    alive: Option<(Beat, Duration)>,
    /// Told of both as well.
    vitals: Option<watch::Sender<Vitals>>,
}

impl Server {
    /// Returns a server that has only its health to tell.
    pub fn new(peers: Peers) -> Self {
        let (health, service) = tonic_health::server::health_reporter();
        let admin_routes = Routes::new(service.clone());
        let routes = reflection(Routes::new(service));
        let names = Vec::new();
        Self { routes, health, names, peers, admin: None, admin_routes, ready: None, alive: None, vitals: None }
    }

    /// Tells health on a port of its own as well, for probes.
    #[must_use]
    pub fn with_admin(self, admin: Option<Listener>) -> Self {
        Self { admin, ..self }
    }

    /// Is healthy only while `ready` says so.
    #[must_use]
    pub fn ready_when(self, ready: watch::Receiver<bool>) -> Self {
        Self { ready: Some(ready), ..self }
    }

    /// Is alive only while the compute thread gives signs of life at least so often.
    #[must_use]
    pub fn alive_while(self, beat: Beat, silent_for_less_than: Duration) -> Self {
        Self { alive: Some((beat, silent_for_less_than)), ..self }
    }

    /// Tells somebody in this process how it is, too.
    #[must_use]
    pub fn tell(self, vitals: Option<watch::Sender<Vitals>>) -> Self {
        Self { vitals, ..self }
    }

    /// Adds a service for everybody.
    #[must_use]
    pub fn add_service<S>(self, service: S) -> Self
    where
        S: tower::Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.add_guarded(service, Guard::open())
    }

    /// Adds a service for those whom the guard lets through.
    #[must_use]
    pub fn add_guarded<S>(mut self, service: S, guard: Guard) -> Self
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
        self.routes = self.routes.add_service(InterceptedService::new(service, guard));
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
        let first = self.ready.as_ref().is_none_or(|ready| *ready.borrow());
        let teller = Teller { health: self.health, names: self.names, vitals: self.vitals };
        teller.ready(first).await;
        let _follow = self.ready.map(|ready| {
            let (teller, stop) = (teller.clone(), shutdown.clone());
            AbortOnDrop(tokio::spawn(async move {
                stop.run_until_cancelled(follow(ready, teller)).await;
            }))
        });
        teller.alive(true).await;
        let _watch = self.alive.map(|(beat, limit)| AbortOnDrop(tokio::spawn(look_after(beat, limit, teller.clone()))));
        let _admin =
            self.admin.map(|listener| AbortOnDrop(tokio::spawn(serve_admin(listener, self.peers, self.admin_routes))));
        let router = builder(self.peers).layer(calls::Measured::new()).add_routes(self.routes);
        let serving = router.serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned());
        let overdue = async {
            shutdown.cancelled().await;
            teller.ready(false).await;
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

/// Adds what tells the contract to clients that have no copy of it. A contract that cannot be told is left untold.
fn reflection(routes: Routes) -> Routes {
    let builder =
        || tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(proto::DESCRIPTORS);
    match (builder().build_v1(), builder().build_v1alpha()) {
        (Ok(v1), Ok(v1alpha)) => routes.add_service(v1).add_service(v1alpha),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "the contract cannot be told by reflection");
            routes
        }
    }
}

/// Ends a task with its owner.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
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

fn status(ready: bool) -> ServingStatus {
    if ready { ServingStatus::Serving } else { ServingStatus::NotServing }
}

/// Tells health to probes, and nothing else.
async fn serve_admin(listener: Listener, peers: Peers, routes: Routes) {
    if let Err(error) = builder(peers).add_routes(routes).serve_with_incoming(listener.incoming()).await {
        tracing::error!(%error, "health is not told to probes any more");
    }
}

/// Tells probes of a process with several roles: ready when all of them are, alive while all of them are. Once a
/// role has ended the process is not ready. Never returns.
pub async fn tell_of_all(listener: Listener, mut roles: Vec<watch::Receiver<Vitals>>) {
    let (health, service) = tonic_health::server::health_reporter();
    let _admin = AbortOnDrop(tokio::spawn(serve_admin(listener, Peers::Network, Routes::new(service))));
    let teller = Teller { health, names: Vec::new(), vitals: None };
    loop {
        let all: Vec<Vitals> = roles.iter_mut().map(|role| *role.borrow_and_update()).collect();
        teller.ready(all.iter().all(|role| role.ready)).await;
        teller.alive(all.iter().all(|role| role.alive)).await;
        let changes = roles.iter_mut().map(|role| Box::pin(role.changed()));
        if futures::future::select_all(changes).await.0.is_err() {
            break;
        }
    }
    teller.ready(false).await;
    std::future::pending::<()>().await;
}

/// Tells how a server is to all who are told; cheap to clone.
#[derive(Debug, Clone)]
struct Teller {
    health: HealthReporter,
    names: Vec<&'static str>,
    vitals: Option<watch::Sender<Vitals>>,
}

impl Teller {
    /// Tells the readiness of the whole server, whose name is empty, and of each service.
    async fn ready(&self, ready: bool) {
        for name in std::iter::once(&"").chain(&self.names) {
            self.health.set_service_status(*name, status(ready)).await;
        }
        self.tell(|vitals| vitals.ready = ready);
    }

    async fn alive(&self, alive: bool) {
        self.health.set_service_status(LIVE, status(alive)).await;
        self.tell(|vitals| vitals.alive = alive);
    }

    fn tell(&self, change: impl FnOnce(&mut Vitals)) {
        if let Some(vitals) = &self.vitals {
            vitals.send_modify(change);
        }
    }
}

/// Tells health as readiness changes.
async fn follow(mut ready: watch::Receiver<bool>, teller: Teller) {
    while ready.changed().await.is_ok() {
        let now = *ready.borrow_and_update();
        teller.ready(now).await;
    }
}

/// Tells whether the compute thread lives.
async fn look_after(beat: Beat, limit: Duration, teller: Teller) {
    let mut stuck = false;
    loop {
        let silence = beat.silent_for();
        if stuck != (silence > limit) {
            stuck = !stuck;
            teller.alive(!stuck).await;
            if stuck {
                tracing::error!(seconds = silence.as_secs(), "the compute thread gives no sign of life");
            } else {
                tracing::warn!("the compute thread lives again");
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}
