//! The three services in this process: coordinator, calibrator and surgeon, with the same contract between them as between
//! machines, over memory instead of a network; factors do not even go over that ([`service::neighbour`]).

use crate::error::CliError;
use model::Weights;
use model::device::DeviceChoice;
use proto::v1;
use proto::v1::coordinator_service_client::CoordinatorServiceClient;
use service::retry::{CALL_TIMEOUT, within};
use service::status::chain;
use service::transport::MemoryIncoming;
use service::worker::Place;
use service::{Connector, Guard, MemoryNetwork, Neighbour, Peers, Places, Retry, Shutdown, Store, Wire};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tonic::{Request, Response, Status};
use types::WorkerId;

/// Runs looked at on one page.
const PAGE: i32 = 1000;
const COORDINATOR: &str = "coordinator";
const CALIBRATOR: &str = "calibrator";
const SURGEON: &str = "surgeon";

/// Nobody probes the services of a command.
const NEVER_STUCK: Duration = Duration::MAX;

/// The command follows one run and waits for no other.
const ALL_RUNS: usize = usize::MAX;

/// The coordinator's client, as this program uses it.
pub(crate) type Client = CoordinatorServiceClient<Wire>;

/// Makes a call that may be repeated, with a deadline, until it is answered or refused.
pub(crate) async fn call<R, T, F>(
    client: &Client,
    what: &'static str,
    request: R,
    rpc: impl Fn(Client, Request<R>) -> F,
) -> Result<T, CliError>
where
    R: Clone,
    F: Future<Output = Result<Response<T>, Status>>,
{
    let retry = Retry::default();
    let answer = retry.call(|| rpc(client.clone(), within(CALL_TIMEOUT, request.clone())));
    answer.await.map_err(CliError::call(what))
}

/// Shows the runs of a coordinator to `look`, newest first, until it returns something.
pub(crate) async fn each_run<T>(
    client: &Client,
    what: &'static str,
    mut look: impl FnMut(v1::Run) -> Option<T>,
) -> Result<Option<T>, CliError> {
    let mut page_token = String::new();
    loop {
        let request = v1::ListRunsRequest { page_size: PAGE, page_token };
        let list = |mut client: Client, request| async move { client.list_runs(request).await };
        let page = call(client, what, request, list).await?;
        if let Some(found) = page.runs.into_iter().find_map(&mut look) {
            return Ok(Some(found));
        }
        if page.next_page_token.is_empty() {
            return Ok(None);
        }
        page_token = page.next_page_token;
    }
}

/// Returns what carries messages for a command that computes nothing.
pub(crate) fn message_thread() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| CliError::Setup { what: "start the message thread", source })
}

/// What the services need.
#[derive(Debug, Clone)]
pub(crate) struct Deployment {
    /// Where journals and checkpoints lie.
    pub(crate) store: Store,
    /// What both workers compute on.
    pub(crate) device: DeviceChoice,
    /// Threads of a tensor operation.
    pub(crate) threads: Option<u32>,
    /// Where the calibrator's weights lie.
    pub(crate) weights: Weights,
}

/// How one service ended.
type Ended = (&'static str, Result<(), String>);

/// The running services.
#[derive(Debug)]
pub(crate) struct Local {
    coordinator: JoinSet<Ended>,
    workers: JoinSet<Ended>,
    coordinator_stop: Shutdown,
    workers_stop: Shutdown,
    network: MemoryNetwork,
    connector: Connector,
}

impl Local {
    /// Starts a coordinator on the store. Nobody computes yet.
    pub(crate) async fn start(store: Store) -> Result<Self, CliError> {
        let network = MemoryNetwork::new();
        let connector = Connector::new(network.clone());
        let opened = coordinator::Coordinator::open(store, ALL_RUNS).await;
        let coordinator = opened.map_err(|e| CliError::Start { service: COORDINATOR, message: chain(&e) })?;
        let shutdown = Shutdown::new();
        let token = shutdown.token().clone();
        let incoming = network.listen(COORDINATOR)?;
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let served = coordinator.serve(incoming, coordinator::Deployment::same_process(), None, token).await;
            (COORDINATOR, served.map_err(|e| chain(&e)))
        });
        Ok(Self {
            coordinator: serving,
            workers: JoinSet::new(),
            coordinator_stop: shutdown,
            workers_stop: Shutdown::new(),
            network,
            connector,
        })
    }

    /// Starts the workers.
    pub(crate) fn start_workers(&mut self, deployment: &Deployment) -> Result<(), CliError> {
        let (device, threads) = (deployment.device, deployment.threads);
        let (place, weights) = (self.place(CALIBRATOR, deployment)?, deployment.weights);
        let shelf = Arc::new(calibrator::Shelf::new());
        let neighbour = Some(Neighbour { endpoint: place.endpoint.clone(), factors: shelf.clone() });
        let calibrator = calibrator::Options { place, device, threads, weights, shelf };
        let incoming: MemoryIncoming = self.network.listen(CALIBRATOR)?;
        let shutdown = self.workers_stop.clone();
        self.workers.spawn(async move {
            let served = calibrator::serve(calibrator, incoming, shutdown).await;
            (CALIBRATOR, served.map_err(|e| chain(&e)))
        });
        let (place, receive_bytes) = (self.place(SURGEON, deployment)?, surgeon::Options::RECEIVE_BYTES);
        let surgeon = surgeon::Options { place, device, threads, receive_bytes, neighbour };
        let incoming = self.network.listen(SURGEON)?;
        let shutdown = self.workers_stop.clone();
        self.workers.spawn(async move {
            let served = surgeon::serve(surgeon, incoming, shutdown).await;
            (SURGEON, served.map_err(|e| chain(&e)))
        });
        Ok(())
    }

    /// Returns a worker's place in this process.
    fn place(&self, name: &str, deployment: &Deployment) -> Result<Place, CliError> {
        Ok(Place {
            worker: worker_id(name)?,
            endpoint: endpoint(name),
            peers: Peers::SameProcess,
            guard: Guard::open(),
            admin: None,
            vitals: None,
            store: deployment.store.clone(),
            places: Places::paths_only(),
            coordinator: Some(self.connector.channel(&endpoint(COORDINATOR))?),
            connector: self.connector.clone(),
            stuck_after: NEVER_STUCK,
        })
    }

    /// Returns a client of the coordinator.
    pub(crate) fn client(&self) -> Result<Client, CliError> {
        let channel = self.connector.channel(&endpoint(COORDINATOR))?;
        Ok(CoordinatorServiceClient::new(channel).max_decoding_message_size(proto::MAX_CONTROL_BYTES))
    }

    /// Waits until a service ends, which none should before it is told to. Cancel-safe.
    pub(crate) async fn gone(&mut self) -> CliError {
        let ended = tokio::select! {
            Some(ended) = self.workers.join_next() => ended,
            Some(ended) = self.coordinator.join_next() => ended,
            else => return CliError::Gone { service: "program", message: "no service is left".into() },
        };
        let (service, message) = match ended {
            Ok((service, Ok(()))) => (service, "it stopped".to_owned()),
            Ok((service, Err(message))) => (service, message),
            Err(error) => ("program", format!("a service panicked: {error}")),
        };
        CliError::Gone { service, message }
    }

    /// Asks the workers to give back their tasks and waits for them, no longer than `limit`. Returns whether all did.
    pub(crate) async fn stop_workers(&mut self, limit: Duration) -> bool {
        self.workers_stop.start();
        all_end(&mut self.workers, limit).await
    }

    /// Stops first the workers, which need the coordinator to give back their tasks, then the coordinator; waits for each
    /// no longer than `limit`. Returns whether all did.
    pub(crate) async fn stop(mut self, limit: Duration) -> bool {
        let workers = self.stop_workers(limit).await;
        self.coordinator_stop.start();
        all_end(&mut self.coordinator, limit).await && workers
    }
}

async fn all_end(services: &mut JoinSet<Ended>, limit: Duration) -> bool {
    let all = async { while services.join_next().await.is_some() {} };
    tokio::time::timeout(limit, all).await.is_ok()
}

fn endpoint(name: &str) -> String {
    format!("memory://{name}")
}

fn worker_id(name: &str) -> Result<WorkerId, CliError> {
    WorkerId::new(name).map_err(|e| CliError::Unreadable(e.to_string()))
}
