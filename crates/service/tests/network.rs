//! Between hosts: certificates on both sides, tokens, certificates that are replaced, callers that stall.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use proto::v1;
use proto::v1::surgeon_service_client::SurgeonServiceClient;
use proto::v1::surgeon_service_server::{SurgeonService, SurgeonServiceServer};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use service::access::{Guard, TokenFile};
use service::listen::{Listener, Plain};
use service::tls::{Tls, TlsArgs};
use service::{Connector, MemoryNetwork, Peers, Reason, Server, status};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Request, Response, Status, Streaming};

const TOKEN: &str = "a-token-of-sixteen-or-more";

/// A surgeon with nothing to do.
struct Idle;

#[tonic::async_trait]
impl SurgeonService for Idle {
    async fn list_blocks(
        &self,
        _request: Request<v1::ListBlocksRequest>,
    ) -> Result<Response<v1::ListBlocksResponse>, Status> {
        Ok(Response::new(v1::ListBlocksResponse { worker: "idle".into(), ..v1::ListBlocksResponse::default() }))
    }

    type ApplyCutStream = futures::stream::Empty<Result<v1::ApplyCutResponse, Status>>;

    async fn upload_factors(
        &self,
        _: Request<Streaming<v1::UploadFactorsRequest>>,
    ) -> Result<Response<v1::UploadFactorsResponse>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn finalize_factors(
        &self,
        _: Request<v1::FinalizeFactorsRequest>,
    ) -> Result<Response<v1::FinalizeFactorsResponse>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn compute_path(
        &self,
        _: Request<v1::ComputePathRequest>,
    ) -> Result<Response<v1::ComputePathResponse>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn apply_cut(&self, _: Request<v1::ApplyCutRequest>) -> Result<Response<Self::ApplyCutStream>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn drop_factors(
        &self,
        _: Request<v1::DropFactorsRequest>,
    ) -> Result<Response<v1::DropFactorsResponse>, Status> {
        Err(Status::unimplemented("not asked here"))
    }
}

/// Who signs certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Writes a certificate for this host and its key into a folder, with this authority as the one to trust.
    fn issue(&self, folder: &Path) -> TlsArgs {
        std::fs::create_dir_all(folder).unwrap();
        let key = KeyPair::generate().unwrap();
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.0).unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap();
            Some(path)
        };
        TlsArgs {
            tls_cert: write("cert.pem", &certificate.pem()),
            tls_key: write("key.pem", &key.serialize_pem()),
            tls_ca: write("ca.pem", &self.0.pem()),
        }
    }
}

struct Served {
    endpoint: String,
    _stop: DropGuard,
}

async fn serve(tls: Option<Tls>, guard: Guard) -> Served {
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap(), tls, Plain::Local).await.unwrap();
    let endpoint = listener.endpoint().unwrap();
    let stop = CancellationToken::new();
    let server = Server::new(Peers::Network).add_guarded(SurgeonServiceServer::new(Idle), guard);
    tokio::spawn(server.serve(listener.incoming(), stop.clone(), Duration::ZERO));
    Served { endpoint, _stop: stop.drop_guard() }
}

async fn ask(endpoint: &str, tls: Option<Tls>, token: Option<TokenFile>) -> Result<String, Status> {
    let connector = Connector::new(MemoryNetwork::new()).between_hosts(tls, Plain::Local, token);
    let wire = connector.channel(endpoint).map_err(|e| Status::invalid_argument(e.to_string()))?;
    let answer = SurgeonServiceClient::new(wire).list_blocks(v1::ListBlocksRequest {}).await?;
    Ok(answer.into_inner().worker)
}

fn token_in(folder: &Path) -> TokenFile {
    let path: PathBuf = folder.join("token");
    std::fs::write(&path, TOKEN).unwrap();
    TokenFile::open(&path).unwrap()
}

fn open(args: &TlsArgs) -> Option<Tls> {
    Tls::open(args).unwrap()
}

#[tokio::test]
async fn who_has_a_certificate_of_the_authority_gets_through_and_nobody_else() {
    let temp = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let served = authority.issue(&temp.path().join("server"));
    let server = serve(open(&served), Guard::between_services(true, None)).await;
    assert!(server.endpoint.starts_with("https://"), "{}", server.endpoint);

    let member = authority.issue(&temp.path().join("member"));
    assert_eq!(ask(&server.endpoint, open(&member), None).await.unwrap(), "idle");

    let nameless = TlsArgs { tls_ca: member.tls_ca.clone(), ..TlsArgs::default() };
    let refused = ask(&server.endpoint, Tls::open_caller(&nameless).unwrap(), None).await.unwrap_err();
    assert_eq!(status::reason_of(&refused), Some(Reason::Unauthenticated));
    assert_eq!(refused.code(), Code::Unauthenticated);

    // Another authority's: neither do they trust us nor we them.
    let stranger = Authority::new().issue(&temp.path().join("stranger"));
    assert!(ask(&server.endpoint, open(&stranger), None).await.is_err());
    let poser = TlsArgs { tls_ca: member.tls_ca.clone(), ..stranger };
    assert!(ask(&server.endpoint, open(&poser), None).await.is_err(), "a certificate that nobody vouches for");

    let plain = server.endpoint.replace("https", "http");
    assert!(ask(&plain, None, None).await.is_err(), "plain text to a port with TLS");
}

#[tokio::test]
async fn a_token_opens_the_public_service_to_who_has_no_certificate() {
    let temp = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let served = authority.issue(&temp.path().join("server"));
    let token = token_in(temp.path());
    let server = serve(open(&served), Guard::new(true, Some(token.clone()))).await;
    let nameless = TlsArgs { tls_ca: served.tls_ca.clone(), ..TlsArgs::default() };
    let nameless = Tls::open_caller(&nameless).unwrap();
    assert_eq!(ask(&server.endpoint, nameless.clone(), Some(token)).await.unwrap(), "idle");
    assert_eq!(ask(&server.endpoint, nameless, None).await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn without_tls_the_token_alone_counts() {
    let temp = tempfile::tempdir().unwrap();
    let token = token_in(temp.path());
    let server = serve(None, Guard::new(false, Some(token.clone()))).await;
    assert_eq!(ask(&server.endpoint, None, Some(token)).await.unwrap(), "idle");
    let refused = ask(&server.endpoint, None, None).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("bearer token"), "{}", refused.message());
}

#[tokio::test]
async fn certificates_that_are_replaced_are_used_by_the_next_connection() {
    let temp = tempfile::tempdir().unwrap();
    let (old, new) = (Authority::new(), Authority::new());
    let place = temp.path().join("server");
    let tls = open(&old.issue(&place));
    let server = serve(tls, Guard::between_services(true, None)).await;
    let member = old.issue(&temp.path().join("member"));
    assert!(ask(&server.endpoint, open(&member), None).await.is_ok());

    // Files are told apart by when they were changed.
    tokio::time::sleep(Duration::from_millis(20)).await;
    new.issue(&place);
    assert!(ask(&server.endpoint, open(&member), None).await.is_err(), "of the old authority");
    let member = new.issue(&temp.path().join("member"));
    assert_eq!(ask(&server.endpoint, open(&member), None).await.unwrap(), "idle");

    tokio::time::sleep(Duration::from_millis(20)).await;
    std::fs::write(place.join("cert.pem"), "torn").unwrap();
    assert!(ask(&server.endpoint, open(&member), None).await.is_ok(), "what cannot be read replaces nothing");
}

#[tokio::test]
async fn callers_that_stall_in_the_handshake_hold_up_nobody() {
    let temp = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let served = authority.issue(&temp.path().join("server"));
    let server = serve(open(&served), Guard::between_services(true, None)).await;
    let address = server.endpoint.trim_start_matches("https://").to_owned();
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(tokio::net::TcpStream::connect(&address).await.unwrap());
    }
    let member = authority.issue(&temp.path().join("member"));
    assert_eq!(ask(&server.endpoint, open(&member), None).await.unwrap(), "idle");
    // They are let go in time.
    let mut byte = [0_u8; 1];
    let ended = tokio::time::timeout(Duration::from_secs(15), silent[0].read(&mut byte)).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)));
}

#[tokio::test]
async fn callers_that_never_open_http_2_are_let_go() {
    let server = serve(None, Guard::open()).await;
    let address = server.endpoint.trim_start_matches("http://").to_owned();
    let mut callers = Vec::new();
    for opening in [&b""[..], b"PRI * HTTP"] {
        let mut caller = tokio::net::TcpStream::connect(&address).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut caller, opening).await.unwrap();
        callers.push(caller);
    }
    for caller in &mut callers {
        let mut said = Vec::new(); // the server's own opening
        let ended = tokio::time::timeout(Duration::from_secs(15), caller.read_to_end(&mut said)).await;
        assert!(ended.is_ok(), "the connection is still open");
    }
}

#[tokio::test]
async fn a_unix_socket_of_a_dead_service_is_taken_over_and_one_in_use_is_not() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("a.sock");
    let address = format!("unix://{}", path.display()).parse().unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap()); // leaves its file behind
    let listener = Listener::bind(&address, None, Plain::Local).await.unwrap();
    assert_eq!(listener.endpoint().unwrap(), format!("unix://{}", path.display()));
    assert!(Listener::bind(&address, None, Plain::Local).await.is_err(), "somebody listens there");
    drop(listener);
    assert!(!path.exists());
}
