//! `ArtifactService`: bulk data of the store for callers who have no other way to it. Decode, call, encode.
//!
//! Invariants: nothing but `artifacts/` is written for callers, and there only what matches its digest; no name reaches anything but
//! that and the results of runs; no object is ever in memory as a whole; whoever is silent is let go.

mod addresses;
mod read;
mod upload;
mod uploads;

pub(crate) use addresses::check_data;
pub use uploads::UploadLimits;

use crate::runs::Coordinator;
use futures::{StreamExt, TryStreamExt, stream};
use proto::InvalidMessage;
use proto::convert::{ArtifactAddress, Fields, artifact_name, artifact_of_name, request_id};
use proto::v1;
use proto::v1::artifact_service_server::ArtifactService;
use read::Parts;
use service::status::{Reason, chain, invalid_message};
use service::store::{Entry, StoreError};
use service::{Store, keys};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use uploads::Uploads;

/// Artifacts of a page when the caller does not say, and at most.
const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: usize = 1000;
/// Artifacts that are asked for by name at a time.
const LOOKS: usize = 16;
/// Streams of artifacts under way at a time, in and out: each holds a few MiB.
const MAX_TRANSFERS: usize = 32;
/// When to ask again for a transfer that there was no room for.
const SOON: Duration = Duration::from_secs(2);
const REQUEST: Fields = Fields("request");

/// The service; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Artifacts {
    coordinator: Coordinator,
    uploads: Arc<Uploads>,
    transfers: Arc<Semaphore>,
    /// Ends open streams.
    stop: CancellationToken,
}

impl Artifacts {
    /// Returns the service on a coordinator's store, with what of unfinished uploads lies there; drops what is forgotten until `stop`.
    pub(crate) async fn open(coordinator: Coordinator, limits: UploadLimits, stop: CancellationToken) -> Self {
        let uploads = Arc::new(Uploads::new(coordinator.store().clone(), limits));
        if let Err(error) = uploads.restore().await {
            tracing::warn!(error = chain(&error), "unfinished uploads cannot be read; they begin anew");
        }
        uploads::watch(&uploads);
        tokio::spawn(uploads::forget_from_time_to_time(Arc::downgrade(&uploads), stop.clone()));
        Self { coordinator, uploads, transfers: Arc::new(Semaphore::new(MAX_TRANSFERS)), stop }
    }

    fn store(&self) -> &Store {
        self.coordinator.store()
    }

    fn transfer(&self) -> Result<OwnedSemaphorePermit, Status> {
        let full = |_| Reason::TransfersFull.status_retry_after("too many transfers are under way; ask again", SOON);
        Arc::clone(&self.transfers).try_acquire_owned().map_err(full)
    }

    /// Returns the artifacts of these names that are there.
    async fn named(&self, names: &[String]) -> Result<Vec<v1::Artifact>, Status> {
        REQUEST.at_most("names", names.len(), MAX_PAGE, "names").map_err(|e| invalid_message(&e))?;
        let keys = names.iter().enumerate().map(|(n, name)| key(&format!("names[{n}]"), name));
        let mut keys: Vec<String> = keys.collect::<Result<_, _>>().map_err(|e| invalid_message(&e))?;
        keys.sort_unstable();
        keys.dedup();
        let entries = stream::iter(keys).map(async |key| self.store().entry(&key).await).buffered(LOOKS);
        let found = entries.try_filter_map(async |entry| Ok(entry.map(tell)));
        found.try_collect().await.map_err(|error| refusal(&error))
    }

    /// Returns a page of what lies below a folder.
    async fn page(&self, request: &v1::StatArtifactsRequest) -> Result<v1::StatArtifactsResponse, Status> {
        let invalid = |e: InvalidMessage| invalid_message(&e);
        let size = match usize::try_from(request.page_size) {
            Ok(0) => DEFAULT_PAGE,
            Ok(size) => size.min(MAX_PAGE),
            Err(_) => return Err(invalid(REQUEST.bad("page_size", "is below 0"))),
        };
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(key("page_token", token).map_err(invalid)?),
        };
        let mut found = Vec::new();
        for folder in folders(&request.prefix).map_err(invalid)? {
            let left = size + 1 - found.len();
            let page = self.store().page(folder, after.as_deref(), left, |name| key("", name).is_ok()).await;
            found.extend(page.map_err(|error| refusal(&error))?);
            if found.len() > size {
                break;
            }
        }
        let more = found.len() > size;
        found.truncate(size);
        let next_page_token = found.last().filter(|_| more).map(|entry| entry.key.clone()).unwrap_or_default();
        Ok(v1::StatArtifactsResponse { artifacts: found.into_iter().map(tell).collect(), next_page_token })
    }

    /// Returns the run that has not ended and has an artifact among its data.
    fn reader(&self, blake3: &str) -> Option<String> {
        let is_it = |path: &String| {
            ArtifactAddress::parse("data", path).is_ok_and(|found| found.is_some_and(|found| found.blake3 == blake3))
        };
        let waits = |state| matches!(state, v1::RunState::Running | v1::RunState::Queued | v1::RunState::Paused);
        let runs = self.coordinator.all().into_iter().filter(|run| waits(run.standing().state));
        let mut readers = runs.filter(|run| run.spec().data.iter().chain(&run.spec().eval_data).any(is_it));
        readers.next().map(|run| run.id().to_string())
    }
}

#[tonic::async_trait]
impl ArtifactService for Artifacts {
    type ReadArtifactStream = Parts;

    async fn stat_artifacts(
        &self,
        request: Request<v1::StatArtifactsRequest>,
    ) -> Result<Response<v1::StatArtifactsResponse>, Status> {
        let request = request.into_inner();
        if request.names.is_empty() {
            return Ok(Response::new(self.page(&request).await?));
        }
        if !request.prefix.is_empty() || !request.page_token.is_empty() {
            return Err(invalid_message(&REQUEST.bad("names", "stand alone, without prefix and page_token")));
        }
        let artifacts = self.named(&request.names).await?;
        Ok(Response::new(v1::StatArtifactsResponse { artifacts, next_page_token: String::new() }))
    }

    async fn read_artifact(&self, request: Request<v1::ReadArtifactRequest>) -> Result<Response<Parts>, Status> {
        let request = request.into_inner();
        let key = key("name", &request.name).map_err(|e| invalid_message(&e))?;
        let turn = self.transfer()?;
        let entry = self.store().entry(&key).await.map_err(|error| refusal(&error))?;
        let entry = entry.ok_or_else(|| refusal(&StoreError::NotFound { key }))?;
        let range = read::range(&request, entry.bytes).map_err(|e| invalid_message(&e))?;
        Ok(Response::new(read::parts(self.store().clone(), entry, range, turn, self.stop.clone())))
    }

    async fn write_artifact(
        &self,
        request: Request<Streaming<v1::WriteArtifactRequest>>,
    ) -> Result<Response<v1::WriteArtifactResponse>, Status> {
        let _turn = self.transfer()?;
        tokio::select! {
            written = self.uploads.write(request.into_inner()) => Ok(Response::new(written?)),
            () = self.stop.cancelled() => Err(stopping()),
        }
    }

    async fn delete_artifact(
        &self,
        request: Request<v1::DeleteArtifactRequest>,
    ) -> Result<Response<v1::DeleteArtifactResponse>, Status> {
        let request = request.into_inner();
        request_id(request.request_id).map_err(|e| invalid_message(&e))?;
        let blake3 = artifact_of_name("name", &request.name).map_err(|e| invalid_message(&e))?;
        if let Some(run) = self.reader(&blake3) {
            let message = format!("run '{run}' has not ended and reads {}; cancel it first", artifact_name(&blake3));
            return Err(Reason::RunActive.status(message));
        }
        self.uploads.remove(&blake3).await.map_err(|error| refusal(&error))?;
        tracing::info!(blake3, "artifact deleted");
        Ok(Response::new(v1::DeleteArtifactResponse {}))
    }
}

/// Returns the key of what a name means.
fn key(field: &str, name: &str) -> Result<String, InvalidMessage> {
    if let Ok(blake3) = artifact_of_name(field, name) {
        return Ok(keys::artifact(&blake3));
    }
    if keys::is_result(name) {
        return Ok(name.to_owned());
    }
    Err(REQUEST.bad(field, "names no artifact; such are artifacts/{blake3} and runs/{run}/shots/0001/checkpoint"))
}

/// Returns the folders that a prefix means, in the order of their names.
fn folders(prefix: &str) -> Result<Vec<&str>, InvalidMessage> {
    let folder = prefix.strip_suffix('/').unwrap_or(prefix);
    match folder.split('/').next() {
        Some("") if folder.is_empty() => Ok(vec![keys::ARTIFACTS, keys::RUNS]),
        Some(keys::ARTIFACTS | keys::RUNS) => Ok(vec![folder]),
        _ => Err(REQUEST.bad("prefix", "is no folder of artifacts; such are artifacts, runs and runs/{run}")),
    }
}

fn tell(entry: Entry) -> v1::Artifact {
    let blake3 = keys::digest(&entry.key).unwrap_or_default().to_owned();
    v1::Artifact { blake3, bytes: entry.bytes, write_time: Some(proto::timestamp(entry.written)), name: entry.key }
}

/// Returns the answer to a caller whose artifact the store has not, or cannot give or take.
fn refusal(error: &StoreError) -> Status {
    error.reason().status(chain(error))
}

fn stopping() -> Status {
    Reason::ShuttingDown.status("the coordinator stops; go on with the next one, from what is here")
}

#[cfg(test)]
#[path = "artifacts_tests.rs"]
mod tests;
