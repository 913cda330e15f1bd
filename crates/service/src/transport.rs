//! Where services listen and how they are reached: inside one process over memory, between processes over TCP or Unix
//! sockets. The same gRPC runs over all of them.
//!
//! Channels connect when they are first used and again after a loss; they retry no call.

use futures::Stream;
use hyper_util::rt::TokioIo;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};

/// HTTP/2 frame of bulk data, in bytes.
pub const FRAME_BYTES: u32 = 1 << 20;
/// Bytes of one bulk stream that may be under way.
pub const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// Bytes of one connection that may be under way.
pub const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// How often a silent connection between processes is probed.
pub const KEEPALIVE: Duration = Duration::from_secs(20);
/// How long a probe may stay unanswered.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that wait between the two ends of a connection in memory.
const PIPE_BYTES: usize = 1 << 20;
/// Connections that wait to be accepted.
const BACKLOG: usize = 64;

/// Why nothing can be reached or listened at.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Someone listens there.
    #[error("memory endpoint '{0}' is taken")]
    NameTaken(String),
    /// The name is none.
    #[error("memory endpoint '{0}' must be made of a-z, A-Z, 0-9, '.', '_' and '-'")]
    BadName(String),
    /// The address is none.
    #[error("'{endpoint}' is no endpoint; expected memory://name, http://host:port or unix:///path")]
    BadEndpoint {
        /// What was given.
        endpoint: String,
        /// What is wrong with it, when more is known.
        source: Option<tonic::transport::Error>,
    },
}

type Listeners = Arc<Mutex<HashMap<String, mpsc::Sender<DuplexStream>>>>;

/// The endpoints of one process; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct MemoryNetwork {
    listeners: Listeners,
}

impl MemoryNetwork {
    /// Returns a network where nobody listens yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the connections that are made to `memory://{name}` from now on.
    pub fn listen(&self, name: &str) -> Result<MemoryIncoming, TransportError> {
        check_name(name)?;
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        match listeners.entry(name.to_owned()) {
            Entry::Occupied(_) => Err(TransportError::NameTaken(name.to_owned())),
            Entry::Vacant(free) => {
                let (accept, connections) = mpsc::channel(BACKLOG);
                free.insert(accept);
                Ok(MemoryIncoming { connections, name: name.to_owned(), listeners: self.listeners.clone() })
            }
        }
    }

    async fn connect(self, name: String) -> io::Result<DuplexStream> {
        let gone = || io::Error::new(io::ErrorKind::ConnectionRefused, format!("nobody listens at memory://{name}"));
        let accept = self.listeners.lock().unwrap_or_else(PoisonError::into_inner).get(&name).cloned();
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        accept.ok_or_else(gone)?.send(far).await.map_err(|_| gone())?;
        Ok(near)
    }
}

fn check_name(name: &str) -> Result<(), TransportError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > 200 || !name.chars().all(legal) {
        return Err(TransportError::BadName(name.chars().take(200).collect()));
    }
    Ok(())
}

/// Connections to one name. When it is dropped the name is free again.
#[derive(Debug)]
pub struct MemoryIncoming {
    connections: mpsc::Receiver<DuplexStream>,
    name: String,
    listeners: Listeners,
}

impl Stream for MemoryIncoming {
    type Item = io::Result<DuplexStream>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.connections.poll_recv(context).map(|connection| connection.map(Ok))
    }
}

impl Drop for MemoryIncoming {
    fn drop(&mut self) {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

/// Reaches services by their endpoint; cheap to clone.
#[derive(Debug, Clone)]
pub struct Connector {
    network: MemoryNetwork,
}

impl Connector {
    /// Returns a connector that finds `memory://` names in this network.
    pub fn new(network: MemoryNetwork) -> Self {
        Self { network }
    }

    /// Returns a channel for control calls.
    pub fn channel(&self, endpoint: &str) -> Result<Channel, TransportError> {
        self.open(endpoint, |e| e)
    }

    /// Returns a channel for streams of bulk data; control calls don't share it.
    pub fn bulk_channel(&self, endpoint: &str) -> Result<Channel, TransportError> {
        self.open(endpoint, |e| {
            e.max_frame_size(FRAME_BYTES)
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        })
    }

    fn open(&self, endpoint: &str, tune: impl Fn(Endpoint) -> Endpoint) -> Result<Channel, TransportError> {
        let bad = |source| TransportError::BadEndpoint { endpoint: endpoint.chars().take(200).collect(), source };
        if let Some(name) = endpoint.strip_prefix("memory://") {
            check_name(name)?;
            let (network, name) = (self.network.clone(), name.to_owned());
            let connect = tower::service_fn(move |_| {
                let connecting = network.clone().connect(name.clone());
                async { connecting.await.map(TokioIo::new) }
            });
            // The address only fills the requests' authority; no probing, for both ends live and stall together.
            return Ok(tune(Endpoint::from_static("http://memory.invalid")).connect_with_connector_lazy(connect));
        }
        if !endpoint.starts_with("http://") && !endpoint.starts_with("unix:///") {
            return Err(bad(None));
        }
        let remote = Endpoint::from_shared(endpoint.to_owned()).map_err(|e| bad(Some(e)))?;
        let remote = remote
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        Ok(tune(remote).connect_lazy())
    }
}
