//! A caller of the coordinator's services that is not one of our programs.

use proto::v1;
use proto::v1::coordinator_service_client::CoordinatorServiceClient;
use proto::v1::worker_service_client::WorkerServiceClient;
use service::Reason;
use service::status::reason_of;
use service::transport::{Connector, MemoryNetwork, Wire};
use tokio::runtime::Runtime;
use tonic::Status;

/// A caller at one endpoint of a coordinator; each has a connection of its own.
pub(crate) struct Caller {
    runtime: Runtime,
    wire: Wire,
}

impl Caller {
    pub(crate) fn new(endpoint: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let wire = {
            let _inside = runtime.enter();
            Connector::new(MemoryNetwork::new()).channel(endpoint).unwrap()
        };
        Self { runtime, wire }
    }

    /// Calls the public service.
    pub(crate) fn run<T>(&self, call: impl AsyncFnOnce(CoordinatorServiceClient<Wire>) -> T) -> T {
        self.runtime.block_on(call(CoordinatorServiceClient::new(self.wire.clone())))
    }

    /// Calls the workers' service.
    pub(crate) fn work<T>(&self, call: impl AsyncFnOnce(WorkerServiceClient<Wire>) -> T) -> T {
        self.runtime.block_on(call(WorkerServiceClient::new(self.wire.clone())))
    }

    /// Returns the only run there is.
    pub(crate) fn only_run(&self) -> v1::Run {
        let listed = e2e::cluster::until(|| {
            let listed = self.run(async |mut client| client.list_runs(v1::ListRunsRequest::default()).await);
            listed.ok().and_then(|listed| listed.into_inner().runs.pop())
        });
        listed.unwrap()
    }
}

/// Takes an answer that must be a refusal for `reason`, with its code, and returns its words.
#[track_caller]
pub(crate) fn refused<T>(reason: Reason, answer: Result<T, Status>) -> String {
    let Err(status) = answer else { panic!("{} was due, it is accepted", reason.name()) };
    assert_eq!(reason_of(&status), Some(reason), "{status:?}");
    assert_eq!(status.code(), reason.code(), "{status:?}");
    status.message().to_owned()
}
