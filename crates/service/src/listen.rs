//! Where a service listens between processes: TCP, with TLS or, where that is allowed, without; Unix sockets.
//!
//! Without TLS it listens on loopback and Unix sockets only, unless somebody insists. Handshakes are bounded in number and
//! time and hold up nobody else; so is the opening of HTTP/2, after which silent connections are probed.

use crate::tls::Tls;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// Handshakes under way at once.
const HANDSHAKES: usize = 64;
/// How long one may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a caller may take to open HTTP/2.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// What it must send for that, in bytes.
const PREFACE_BYTES: usize = 24;
/// Connections that wait to be served.
const BACKLOG: usize = 64;
/// Pause after the system refused a connection, for instance because there are too many.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// Why a service cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The text is no address.
    #[error("'{0}' is no address to listen at; write 127.0.0.1:7100, [::]:7100 or unix:///path")]
    BadAddress(String),
    /// Plain text that others could read.
    #[error(
        "{0} is not on this host alone and there is no TLS: name --tls-cert, --tls-key and --tls-ca, listen at 127.0.0.1, or insist with --insecure"
    )]
    Plain(String),
    /// TLS over a Unix socket: there is nothing to protect.
    #[error("{0} is a Unix socket, which needs no TLS; leave one of the two away")]
    TlsOnSocket(String),
    /// The system refused.
    #[error("cannot listen at {address}: {source}")]
    System {
        /// Where.
        address: String,
        /// What it said.
        source: io::Error,
    },
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// An IP address and port; port 0 for any free one.
    Ip(SocketAddr),
    /// A Unix socket.
    Socket(PathBuf),
}

impl std::str::FromStr for Address {
    type Err = ListenError;

    fn from_str(text: &str) -> Result<Self, ListenError> {
        if let Some(path) = text.strip_prefix("unix://").filter(|path| path.starts_with('/')) {
            return Ok(Self::Socket(PathBuf::from(path)));
        }
        text.parse().map(Self::Ip).map_err(|_| ListenError::BadAddress(text.chars().take(200).collect()))
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Socket(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// Whether what has no TLS may leave this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plain {
    /// On this host only.
    Local,
    /// Anywhere: somebody insists.
    Anywhere,
}

impl Plain {
    /// Returns what a flag `--insecure` says.
    pub fn new(insecure: bool) -> Self {
        if insecure { Self::Anywhere } else { Self::Local }
    }
}

/// Says whether an address can be reached from this host only.
pub fn is_local(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// A place where connections arrive.
#[derive(Debug)]
pub struct Listener {
    at: At,
    tls: Option<Tls>,
}

#[derive(Debug)]
enum At {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Begins to listen.
    pub async fn bind(address: &Address, tls: Option<Tls>, plain: Plain) -> Result<Self, ListenError> {
        let system = |source| ListenError::System { address: address.to_string(), source };
        let at = match address {
            Address::Ip(ip) if tls.is_none() && plain == Plain::Local && !is_local(ip.ip()) => {
                return Err(ListenError::Plain(ip.to_string()));
            }
            Address::Ip(ip) => At::Tcp(TcpListener::bind(ip).await.map_err(system)?),
            Address::Socket(_) if tls.is_some() => return Err(ListenError::TlsOnSocket(address.to_string())),
            Address::Socket(path) => {
                remove_dead(path).await.map_err(system)?;
                At::Unix(UnixListener::bind(path).map_err(system)?, path.clone())
            }
        };
        Ok(Self { at, tls })
    }

    /// Returns where others reach it, as far as that can be told from here: nothing for "any address".
    pub fn endpoint(&self) -> Option<String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        match &self.at {
            At::Tcp(tcp) => {
                let address = tcp.local_addr().ok().filter(|address| !address.ip().is_unspecified())?;
                Some(format!("{scheme}://{address}"))
            }
            At::Unix(_, path) => Some(format!("unix://{}", path.display())),
        }
    }

    /// Returns the port, if there is one.
    pub fn port(&self) -> Option<u16> {
        match &self.at {
            At::Tcp(tcp) => tcp.local_addr().ok().map(|address| address.port()),
            At::Unix(..) => None,
        }
    }

    /// Returns the connections from now on. Ends when the stream is dropped.
    pub fn incoming(self) -> ReceiverStream<io::Result<Connection>> {
        let (ready, connections) = mpsc::channel(BACKLOG);
        tokio::spawn(async move {
            let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
            loop {
                let accepted = tokio::select! {
                    accepted = self.at.accept() => accepted,
                    () = ready.closed() => return,
                };
                match (accepted, &self.tls) {
                    (Ok(Plaintext::Tcp(stream)), Some(tls)) => {
                        let Ok(turn) = handshakes.clone().acquire_owned().await else { return };
                        let Some(config) = tls.server() else { continue };
                        let (acceptor, ready) = (TlsAcceptor::from(config), ready.clone());
                        tokio::spawn(async move {
                            let _turn = turn;
                            shake_hands(acceptor, stream, &ready).await;
                        });
                    }
                    (Ok(plain), _) => {
                        if ready.send(Ok(Socket::from(plain).into())).await.is_err() {
                            return;
                        }
                    }
                    (Err(error), _) => {
                        tracing::warn!(%error, "a connection was not accepted");
                        tokio::time::sleep(REFUSED_PAUSE).await;
                    }
                }
            }
        });
        ReceiverStream::new(connections)
    }
}

impl Drop for At {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            let _ = std::fs::remove_file(path); // the next start removes it otherwise
        }
    }
}

impl At {
    async fn accept(&self) -> io::Result<Plaintext> {
        match self {
            Self::Tcp(tcp) => {
                let (stream, _) = tcp.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Plaintext::Tcp(stream))
            }
            Self::Unix(unix, _) => unix.accept().await.map(|(stream, _)| Plaintext::Unix(stream)),
        }
    }
}

/// Removes a socket's file that nobody listens at any more.
async fn remove_dead(path: &Path) -> io::Result<()> {
    let is_socket = |m: std::fs::Metadata| std::os::unix::fs::FileTypeExt::is_socket(&m.file_type());
    if std::fs::symlink_metadata(path).is_ok_and(is_socket) && UnixStream::connect(path).await.is_err() {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

async fn shake_hands(acceptor: TlsAcceptor, stream: TcpStream, ready: &mpsc::Sender<io::Result<Connection>>) {
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(secured)) => {
            let _ = ready.send(Ok(Socket::Tls(Box::new(secured)).into())).await; // nobody serves any more
        }
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

enum Plaintext {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl From<Plaintext> for Socket {
    fn from(plain: Plaintext) -> Self {
        match plain {
            Plaintext::Tcp(stream) => Self::Tcp(stream),
            Plaintext::Unix(stream) => Self::Unix(stream),
        }
    }
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
    /// Nothing once HTTP/2 is open.
    opening: Option<Opening>,
}

/// A caller that has not opened HTTP/2 yet.
#[derive(Debug)]
struct Opening {
    until: Pin<Box<Sleep>>,
    missing: usize,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl From<Socket> for Connection {
    fn from(socket: Socket) -> Self {
        let until = Box::pin(tokio::time::sleep(PREFACE_TIMEOUT));
        Self { socket, opening: Some(Opening { until, missing: PREFACE_BYTES }) }
    }
}

/// What is known of who calls; in the extensions of every request that came over a [`Connection`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Whether it showed a certificate that our authorities vouch for.
    pub certified: bool,
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        match &self.socket {
            Socket::Tcp(_) | Socket::Unix(_) => Caller { certified: false },
            // A certificate that does not check out fails the handshake.
            Socket::Tls(stream) => Caller { certified: stream.get_ref().1.peer_certificates().is_some() },
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let connection = self.get_mut();
        let before = buffer.filled().len();
        let read = match &mut connection.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
            Socket::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        };
        let Some(opening) = &mut connection.opening else { return read };
        if read.is_pending() && opening.until.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        opening.missing = opening.missing.saturating_sub(buffer.filled().len() - before);
        if opening.missing == 0 {
            connection.opening = None;
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Socket::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Socket::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Socket::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.socket {
            Socket::Tcp(stream) => stream.is_write_vectored(),
            Socket::Unix(stream) => stream.is_write_vectored(),
            Socket::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
