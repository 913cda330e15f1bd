//! `SurgeonService`: how far the blocks are that this surgeon owns.

use crate::error::Error;
use crate::standalone::{NewWeights, Standalone};
use proto::v1;
use proto::v1::surgeon_service_server::SurgeonService;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tonic::{Request, Response, Status, Streaming};
use types::{RunId, WorkerId};

/// The blocks that are being gathered; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Board {
    blocks: Arc<Mutex<Blocks>>,
}

/// Shards stored and in all, by run, shot and block.
type Blocks = BTreeMap<(RunId, u32, u32), (u32, u32)>;

impl Board {
    /// Notes how many of a block's shards are stored.
    pub(crate) fn note(&self, run: &RunId, shot: u32, block: u32, (stored, shards): (u32, u32)) {
        self.lock().insert((run.clone(), shot, block), (stored, shards));
    }

    /// Forgets blocks of a shot.
    pub(crate) fn forget(&self, run: &RunId, shot: u32, blocks: &BTreeSet<u32>) {
        self.lock().retain(|(of_run, of_shot, block), _| (of_run, *of_shot) != (run, shot) || !blocks.contains(block));
    }

    fn lock(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct Grpc {
    /// What is shown.
    pub(crate) board: Board,
    /// Our name.
    pub(crate) worker: WorkerId,
    /// Our device.
    pub(crate) device: String,
    /// What callers ask for; `None` while a coordinator has the surgeon.
    pub(crate) standalone: Option<Arc<Standalone>>,
}

impl Grpc {
    fn standalone(&self) -> Result<&Standalone, Error> {
        self.standalone.as_deref().ok_or(Error::HasCoordinator)
    }
}

#[tonic::async_trait]
impl SurgeonService for Grpc {
    type ApplyCutStream = NewWeights;

    async fn upload_factors(
        &self,
        request: Request<Streaming<v1::UploadFactorsRequest>>,
    ) -> Result<Response<v1::UploadFactorsResponse>, Status> {
        Ok(Response::new(self.standalone()?.upload(request.into_inner()).await?))
    }

    async fn finalize_factors(
        &self,
        request: Request<v1::FinalizeFactorsRequest>,
    ) -> Result<Response<v1::FinalizeFactorsResponse>, Status> {
        Ok(Response::new(self.standalone()?.finalize(request.into_inner()).await?))
    }

    async fn compute_path(
        &self,
        request: Request<v1::ComputePathRequest>,
    ) -> Result<Response<v1::ComputePathResponse>, Status> {
        Ok(Response::new(self.standalone()?.path(request.into_inner()).await?))
    }

    async fn apply_cut(&self, request: Request<v1::ApplyCutRequest>) -> Result<Response<NewWeights>, Status> {
        Ok(Response::new(self.standalone()?.cut(request.into_inner()).await?))
    }

    async fn drop_factors(
        &self,
        request: Request<v1::DropFactorsRequest>,
    ) -> Result<Response<v1::DropFactorsResponse>, Status> {
        Ok(Response::new(self.standalone()?.forget(request.into_inner()).await?))
    }

    async fn list_blocks(
        &self,
        _request: Request<v1::ListBlocksRequest>,
    ) -> Result<Response<v1::ListBlocksResponse>, Status> {
        let blocks = self.board.lock();
        let status = |((run, shot, block), (stored, shards)): (&(RunId, u32, u32), &(u32, u32))| v1::BlockStatus {
            run: run.to_string(),
            shot: *shot,
            block: *block,
            shards_stored: *stored,
            shards: *shards,
        };
        Ok(Response::new(v1::ListBlocksResponse {
            worker: self.worker.to_string(),
            device: self.device.clone(),
            blocks: blocks.iter().map(status).collect(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn blocks_are_listed_until_they_are_forgotten() {
        let board = Board::default();
        let run = RunId::new("r").unwrap();
        board.note(&run, 1, 5, (0, 2));
        board.note(&run, 1, 5, (1, 2));
        board.note(&run, 2, 5, (0, 2));
        let grpc =
            Grpc { board: board.clone(), worker: WorkerId::new("w").unwrap(), device: "cpu".into(), standalone: None };
        let list =
            || async { grpc.list_blocks(Request::new(v1::ListBlocksRequest {})).await.unwrap().into_inner().blocks };
        let listed = list().await;
        assert_eq!((listed.len(), listed[0].shards_stored, listed[0].shards), (2, 1, 2));
        board.forget(&run, 1, &BTreeSet::from([5]));
        assert_eq!(list().await.iter().map(|b| b.shot).collect::<Vec<_>>(), [2]);
    }
}
