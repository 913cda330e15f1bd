//! TLS between hosts, with certificates on both sides, from PEM files that may be replaced while a service runs.
//!
//! Files are looked at for every new connection and read again when one of them has changed: rotation needs no restart,
//! and connections that are open stay open. A replacement that cannot be read is told once and the old one stays in use.

use clap::Args;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};

/// The one application protocol.
const HTTP2: &[u8] = b"h2";

/// Flags that name the files.
#[derive(Debug, Clone, Default, Args)]
pub struct TlsArgs {
    /// Our certificate and those that it was signed with, PEM; read again when it changes
    #[arg(long, value_name = "FILE", help_heading = "Security")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key, PEM
    #[arg(long, value_name = "FILE", help_heading = "Security")]
    pub tls_key: Option<PathBuf>,
    /// Certificates that sign the others' certificates, PEM
    #[arg(long, value_name = "FILE", help_heading = "Security")]
    pub tls_ca: Option<PathBuf>,
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Some of the flags are missing.
    #[error("--tls-cert, --tls-key and --tls-ca go together; {0} is missing")]
    Incomplete(&'static str),
    /// A file that cannot be read.
    #[error("{flag} {}: {problem}", path.display())]
    File {
        /// Which flag named it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Certificate and key that do not go together, or no certificate that can sign.
    #[error("the TLS files do not work together: {0}")]
    Pair(String),
}

/// Both ends' settings, as they were read.
#[derive(Debug, Clone)]
struct Loaded {
    server: Option<Arc<ServerConfig>>,
    client: Arc<ClientConfig>,
    /// When the files were last changed.
    changed: Vec<Option<SystemTime>>,
}

#[derive(Debug)]
struct Files {
    /// Our certificate and its key.
    own: Option<(PathBuf, PathBuf)>,
    ca: PathBuf,
}

impl Files {
    fn changed(&self) -> Vec<Option<SystemTime>> {
        let of = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
        let own = self.own.iter().flat_map(|(cert, key)| [of(cert), of(key)]);
        own.chain([of(&self.ca)]).collect()
    }
}

/// Who we are to others and whom we trust; cheap to clone.
#[derive(Debug, Clone)]
pub struct Tls {
    files: Arc<Files>,
    loaded: Arc<Mutex<Loaded>>,
}

impl Tls {
    /// Reads the files that a service's flags name; nothing if they name none.
    pub fn open(args: &TlsArgs) -> Result<Option<Self>, TlsError> {
        match (&args.tls_cert, &args.tls_key, &args.tls_ca) {
            (None, None, None) => Ok(None),
            (Some(cert), Some(key), Some(ca)) => Self::read(Some((cert, key)), ca),
            (None, _, _) => Err(TlsError::Incomplete("--tls-cert")),
            (_, None, _) => Err(TlsError::Incomplete("--tls-key")),
            (_, _, None) => Err(TlsError::Incomplete("--tls-ca")),
        }
    }

    /// Reads the files of who only calls: it needs no certificate where the service takes a token.
    pub fn open_caller(args: &TlsArgs) -> Result<Option<Self>, TlsError> {
        match (&args.tls_cert, &args.tls_key, &args.tls_ca) {
            (None, None, Some(ca)) => Self::read(None, ca),
            _ => Self::open(args),
        }
    }

    fn read(own: Option<(&PathBuf, &PathBuf)>, ca: &Path) -> Result<Option<Self>, TlsError> {
        let files = Files { own: own.map(|(cert, key)| (cert.clone(), key.clone())), ca: ca.to_owned() };
        let loaded = load(&files)?;
        Ok(Some(Self { files: Arc::new(files), loaded: Arc::new(Mutex::new(loaded)) }))
    }

    /// Returns how connections are accepted now. A caller may show a certificate, which is checked, or none. Nothing for who
    /// only calls.
    pub fn server(&self) -> Option<Arc<ServerConfig>> {
        self.present().server
    }

    /// Returns how connections are made now: with our certificate, to whom the authorities vouch for.
    pub fn client(&self) -> Arc<ClientConfig> {
        self.present().client
    }

    fn present(&self) -> Loaded {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = self.files.changed();
        if changed != loaded.changed {
            match load(&self.files) {
                Ok(fresh) => {
                    tracing::info!("TLS files read again");
                    *loaded = fresh;
                }
                Err(error) => {
                    tracing::error!(%error, "new TLS files cannot be used; the old ones stay in use");
                    loaded.changed = changed; // told once
                }
            }
        }
        loaded.clone()
    }
}

fn load(files: &Files) -> Result<Loaded, TlsError> {
    let changed = files.changed(); // before they are read: a later change is seen as one
    let mut roots = RootCertStore::empty();
    for certificate in certificates("--tls-ca", &files.ca)? {
        roots.add(certificate).map_err(|e| fault("--tls-ca", &files.ca, e.to_string()))?;
    }
    let roots = Arc::new(roots);
    let own = files.own.as_ref().map(|(cert, key)| Ok((certificates("--tls-cert", cert)?, private_key(key)?)));
    let own = own.transpose()?;
    let client = client(&roots, own.as_ref())?;
    let server = own.as_ref().map(|own| server(&roots, own)).transpose()?;
    Ok(Loaded { server: server.map(Arc::new), client: Arc::new(client), changed })
}

/// A certificate with those that it was signed with, and its key.
type Own = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn server(roots: &Arc<RootCertStore>, (chain, key): &Own) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let callers = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
    let callers = callers.allow_unauthenticated().build().map_err(|e| TlsError::Pair(e.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| TlsError::Pair(e.to_string()))?
        .with_client_cert_verifier(callers)
        .with_single_cert(chain.clone(), key.clone_key())
        .map_err(|e| TlsError::Pair(e.to_string()))?;
    config.alpn_protocols = vec![HTTP2.to_vec()];
    Ok(config)
}

fn client(roots: &Arc<RootCertStore>, own: Option<&Own>) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let servers = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone());
    let servers = servers.build().map_err(|e| TlsError::Pair(e.to_string()))?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| TlsError::Pair(e.to_string()))?
        .with_webpki_verifier(servers);
    let mut config = match own {
        Some((chain, key)) => {
            config.with_client_auth_cert(chain.clone(), key.clone_key()).map_err(|e| TlsError::Pair(e.to_string()))?
        }
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![HTTP2.to_vec()];
    Ok(config)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|e| fault("--tls-key", path, format!("no private key in PEM: {e}")))
}

fn certificates(flag: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let found: Vec<_> = read.map_err(|e: rustls_pki_types::pem::Error| fault(flag, path, e.to_string()))?;
    if found.is_empty() {
        return Err(fault(flag, path, "no certificate in PEM".into()));
    }
    Ok(found)
}

fn fault(flag: &'static str, path: &Path, problem: String) -> TlsError {
    TlsError::File { flag, path: path.to_owned(), problem }
}
