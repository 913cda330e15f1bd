//! Calls, errors and health over memory and sockets, and a stop that ends.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use proto::v1;
use proto::v1::surgeon_service_client::SurgeonServiceClient;
use proto::v1::surgeon_service_server::{SurgeonService, SurgeonServiceServer};
use service::Wire;
use service::status::{is_transient, reason_of, retry_after, violations_of};
use service::{Connector, MemoryNetwork, Peers, Reason, Server, TransportError};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use types::Violation;

/// Answers with one block, an error, or never.
#[derive(Clone)]
enum Fake {
    Blocks(String),
    Fails,
    Hangs,
}

#[tonic::async_trait]
impl SurgeonService for Fake {
    async fn list_blocks(&self, _: Request<v1::ListBlocksRequest>) -> Result<Response<v1::ListBlocksResponse>, Status> {
        let worker = match self {
            Self::Blocks(worker) => worker.clone(),
            Self::Fails => {
                let violation = Violation { field: "shots".into(), problem: "0 is outside 1 to 1000 — µ".into() };
                return Err(Reason::SpecInvalid.status_with_violations("bad spec", &[violation]));
            }
            Self::Hangs => std::future::pending().await,
        };
        Ok(Response::new(v1::ListBlocksResponse { worker, device: "cpu".into(), blocks: vec![] }))
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

const GRACE: Duration = Duration::from_secs(2);

fn serve(network: &MemoryNetwork, name: &str, fake: Fake) -> (CancellationToken, JoinHandle<()>) {
    let incoming = network.listen(name).unwrap();
    let stop = CancellationToken::new();
    let server = Server::new(Peers::SameProcess).add_service(SurgeonServiceServer::new(fake));
    let served = server.serve(incoming, stop.clone(), GRACE);
    (stop, tokio::spawn(async { served.await.unwrap() }))
}

async fn list(channel: &Wire) -> Result<v1::ListBlocksResponse, Status> {
    let mut client = SurgeonServiceClient::new(channel.clone()).max_decoding_message_size(proto::MAX_MESSAGE_BYTES);
    client.list_blocks(v1::ListBlocksRequest {}).await.map(Response::into_inner)
}

#[tokio::test]
async fn a_call_crosses_memory_on_control_and_bulk_channels() {
    let network = MemoryNetwork::new();
    let large = "x".repeat(3 << 20);
    let _server = serve(&network, "surgeon-0", Fake::Blocks(large.clone()));
    let connector = Connector::new(network);
    for channel in [connector.channel("memory://surgeon-0"), connector.bulk_channel("memory://surgeon-0")] {
        assert_eq!(list(&channel.unwrap()).await.unwrap().worker, large);
    }
}

#[tokio::test]
async fn a_call_crosses_tcp() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    let server = Server::new(Peers::Network).add_service(SurgeonServiceServer::new(Fake::Blocks("tcp".into())));
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let served = tokio::spawn(server.serve(incoming, stop.clone(), GRACE));
    let channel = Connector::new(MemoryNetwork::new()).bulk_channel(&endpoint).unwrap();
    assert_eq!(list(&channel).await.unwrap().worker, "tcp");
    drop(channel);
    stop.cancel();
    served.await.unwrap().unwrap();
}

#[tokio::test]
async fn details_of_an_error_survive_the_wire() {
    let network = MemoryNetwork::new();
    let _server = serve(&network, "a", Fake::Fails);
    let status = list(&Connector::new(network).channel("memory://a").unwrap()).await.unwrap_err();
    assert_eq!((reason_of(&status), status.message()), (Some(Reason::SpecInvalid), "bad spec"));
    let violations = violations_of(&status);
    assert_eq!(violations[0].field, "shots");
    assert_eq!(violations[0].problem, "0 is outside 1 to 1000 — µ");
    assert_eq!(retry_after(&status), None);
    assert!(!is_transient(&status));
}

#[tokio::test]
async fn one_name_has_one_listener_and_is_free_after_it() {
    let network = MemoryNetwork::new();
    let first = network.listen("a").unwrap();
    assert!(matches!(network.listen("a"), Err(TransportError::NameTaken(_))));
    drop(first);
    assert!(network.listen("a").is_ok());
    for bad in ["", "a/b", "a b", "ä"] {
        assert!(matches!(network.listen(bad), Err(TransportError::BadName(_))), "{bad}");
    }
    let connector = Connector::new(network);
    for bad in ["", "a", "memory://", "memory://a/b", "https://host:1", "http://", "ftp://x", "http://a b"] {
        assert!(connector.channel(bad).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn a_channel_finds_a_server_that_goes_and_comes_back() {
    let network = MemoryNetwork::new();
    let channel = Connector::new(network.clone()).channel("memory://a").unwrap();
    let status = list(&channel).await.unwrap_err();
    assert!(is_transient(&status), "{status:?}");
    for life in ["first", "second"] {
        let (stop, served) = serve(&network, "a", Fake::Blocks(life.into()));
        assert_eq!(
            service::Retry::default().call(|| async { list(&channel).await.map(Response::new) }).await.unwrap().worker,
            life
        );
        stop.cancel();
        served.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_broken_connection_is_transient_and_told_from_a_servers_own_error() {
    let network = MemoryNetwork::new();
    let mut incoming = network.listen("a").unwrap();
    let channel = Connector::new(network).channel("memory://a").unwrap();
    let call = tokio::spawn(async move { list(&channel).await });
    let connection = futures::StreamExt::next(&mut incoming).await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    drop(connection);
    let status = call.await.unwrap().unwrap_err();
    assert!(is_transient(&status), "{status:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_calls_no_longer_than_the_grace() {
    let network = MemoryNetwork::new();
    let (stop, served) = serve(&network, "a", Fake::Hangs);
    let channel = Connector::new(network).channel("memory://a").unwrap();
    let call = tokio::spawn(async move { list(&channel).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let start = tokio::time::Instant::now();
    stop.cancel();
    served.await.unwrap();
    assert_eq!(start.elapsed().as_secs(), GRACE.as_secs());
    call.abort();
}

#[tokio::test]
async fn health_tells_of_the_server_and_of_each_service() {
    let network = MemoryNetwork::new();
    let _server = serve(&network, "a", Fake::Fails);
    let mut health = HealthClient::new(Connector::new(network).channel("memory://a").unwrap());
    for name in ["", "llm_surgeon.v1.SurgeonService"] {
        let answer = health.check(HealthCheckRequest { service: name.into() }).await.unwrap().into_inner();
        assert_eq!(answer.status, 1, "{name}");
    }
    assert!(health.check(HealthCheckRequest { service: "nobody".into() }).await.is_err());
}
