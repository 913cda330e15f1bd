//! Where services listen and how they are reached: inside one process over memory, between processes over TCP or Unix
//! sockets. The same gRPC runs over all of them.
//!
//! Channels connect when they are first used and again after a loss; they retry no call.

use crate::access::{Credentials, TokenFile};
use crate::listen::{Plain, is_local};
use crate::tls::Tls;
use futures::Stream;
use hyper_util::rt::TokioIo;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::DuplexStream;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};

/// A connection to a service, that shows who we are with every call.
pub type Wire = InterceptedService<Channel, Credentials>;

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
    #[error("'{endpoint}' is no endpoint; expected memory://name, http://host:port, https://host:port or unix:///path")]
    BadEndpoint {
        /// What was given.
        endpoint: String,
        /// What is wrong with it, when more is known.
        source: Option<tonic::transport::Error>,
    },
    /// Plain text that others could read.
    #[error(
        "'{0}' is not on this host and has no TLS: use https:// with --tls-cert, --tls-key and --tls-ca, or insist with --insecure"
    )]
    Plain(String),
    /// An endpoint with TLS, and we have no certificates.
    #[error("'{0}' has TLS: name --tls-cert, --tls-key and --tls-ca")]
    NoTls(String),
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
    tls: Option<Tls>,
    plain: Plain,
    credentials: Credentials,
}

impl Connector {
    /// Returns a connector that finds `memory://` names in this network, and others on this host.
    pub fn new(network: MemoryNetwork) -> Self {
        Self { network, tls: None, plain: Plain::Local, credentials: Credentials::default() }
    }

    /// Returns a connector that reaches other hosts as well, and shows them our certificate and token.
    #[must_use]
    pub fn between_hosts(self, tls: Option<Tls>, plain: Plain, token: Option<TokenFile>) -> Self {
        Self { tls, plain, credentials: Credentials::new(token), ..self }
    }

    /// Returns a channel for control calls.
    pub fn channel(&self, endpoint: &str) -> Result<Wire, TransportError> {
        self.open(endpoint, |e| e)
    }

    /// Returns a channel for streams of bulk data; control calls don't share it.
    pub fn bulk_channel(&self, endpoint: &str) -> Result<Wire, TransportError> {
        self.open(endpoint, |e| {
            e.max_frame_size(FRAME_BYTES)
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        })
    }

    fn open(&self, endpoint: &str, tune: impl Fn(Endpoint) -> Endpoint) -> Result<Wire, TransportError> {
        let channel = match endpoint.split_once("://") {
            Some(("memory", name)) => self.in_memory(name, tune)?,
            Some(("unix", path)) if path.starts_with('/') => tune(between_processes(endpoint)?).connect_lazy(),
            Some(("http", _)) => self.plain(endpoint, tune)?,
            Some(("https", authority)) => self.secured(endpoint, authority, tune)?,
            _ => return Err(bad(endpoint, None)),
        };
        Ok(InterceptedService::new(channel, self.credentials.clone()))
    }

    fn in_memory(&self, name: &str, tune: impl Fn(Endpoint) -> Endpoint) -> Result<Channel, TransportError> {
        check_name(name)?;
        let (network, name) = (self.network.clone(), name.to_owned());
        let connect = tower::service_fn(move |_| {
            let connecting = network.clone().connect(name.clone());
            async { connecting.await.map(TokioIo::new) }
        });
        // The address only fills the requests' authority; no probing, for both ends live and stall together.
        Ok(tune(Endpoint::from_static("http://memory.invalid")).connect_with_connector_lazy(connect))
    }

    fn plain(&self, endpoint: &str, tune: impl Fn(Endpoint) -> Endpoint) -> Result<Channel, TransportError> {
        let remote = between_processes(endpoint)?;
        if self.plain == Plain::Local && !is_here(remote.uri()) {
            return Err(TransportError::Plain(shortened(endpoint)));
        }
        Ok(tune(remote).connect_lazy())
    }

    fn secured(
        &self,
        endpoint: &str,
        authority: &str,
        tune: impl Fn(Endpoint) -> Endpoint,
    ) -> Result<Channel, TransportError> {
        let Some(tls) = self.tls.clone() else { return Err(TransportError::NoTls(shortened(endpoint))) };
        let origin: Uri = endpoint.parse().map_err(|_| bad(endpoint, None))?;
        let host = origin.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = origin.port_u16().unwrap_or(443);
        let name = ServerName::try_from(host.clone()).map_err(|_| bad(endpoint, None))?;
        let connect = tower::service_fn(move |_| {
            let (tls, host, name) = (tls.clone(), host.clone(), name.clone());
            async move {
                let stream = TcpStream::connect((host.as_str(), port)).await?;
                stream.set_nodelay(true)?;
                TlsConnector::from(tls.client()).connect(name, stream).await.map(TokioIo::new)
            }
        });
        // The connector does the TLS, so that tonic is to see a plain address; requests name the real one.
        let remote = between_processes(&format!("http://{authority}"))?.origin(origin);
        Ok(tune(remote).connect_with_connector_lazy(connect))
    }
}

/// Returns an endpoint in another process, whose silence is noticed.
fn between_processes(endpoint: &str) -> Result<Endpoint, TransportError> {
    let remote = Endpoint::from_shared(endpoint.to_owned()).map_err(|e| bad(endpoint, Some(e)))?;
    Ok(remote
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// Says whether an address is on this host for certain.
fn is_here(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(is_local)
}

fn bad(endpoint: &str, source: Option<tonic::transport::Error>) -> TransportError {
    TransportError::BadEndpoint { endpoint: shortened(endpoint), source }
}

fn shortened(endpoint: &str) -> String {
    endpoint.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn plain_text_leaves_this_host_only_if_somebody_insists() {
        let careful = Connector::new(MemoryNetwork::new());
        for local in ["http://127.0.0.1:7100", "http://localhost:7100", "http://[::1]:7100", "unix:///tmp/a.sock"] {
            assert!(careful.channel(local).is_ok(), "{local}");
        }
        for remote in ["http://10.0.0.1:7100", "http://coordinator:7100", "http://localhost.example.org:1"] {
            assert!(matches!(careful.channel(remote), Err(TransportError::Plain(_))), "{remote}");
            assert!(careful.clone().between_hosts(None, Plain::Anywhere, None).channel(remote).is_ok());
        }
        assert!(matches!(careful.channel("https://127.0.0.1:7100"), Err(TransportError::NoTls(_))));
        for none in ["127.0.0.1:7100", "ftp://a", "unix://relative", "memory://a/b", ""] {
            assert!(careful.channel(none).is_err(), "{none}");
        }
    }
}
