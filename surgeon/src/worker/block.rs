//! One block on the bench: its factors from the store, added in shard order, then its paths or its new weights.

use super::Handler;
use crate::bench::{BlockJob, NewLayer};
use crate::error::Error;
use crate::job::Block;
use bytes::Bytes;
use proto::v1;
use service::checkpoint::{self, LayerBytes};
use service::keys;
use service::{Lease, StoreError};
use std::time::Instant;
use types::{BlockDescription, LayerCut, ObjectRef, RemovalPath, RunId, RunSpec};

impl Handler {
    /// Computes the removal paths of a block whose factors are stored, and stores them.
    pub(super) async fn score_block(
        &self,
        shot: &(RunId, u32),
        spec: RunSpec,
        block: &Block,
        lease: &Lease,
    ) -> Result<v1::ScoreResult, Error> {
        let _turn = self.turn.lock().await;
        let start = Instant::now();
        let job = self.block_job(spec, block).await?;
        self.lay_out(shot, block, lease).await?;
        let (token, compute) = (lease.token().clone(), self.compute.clone());
        let paths = self
            .on_bench(move |bench| {
                let paths = bench.score(&job, &|| {
                    compute.touch();
                    token.is_cancelled()
                });
                bench.clear();
                paths
            })
            .await?;
        let json = serde_json::to_vec(&paths).map_err(|e| Error::Bug(format!("paths do not fit into JSON: {e}")))?;
        let paths = self.keep(keys::paths(&shot.0, shot.1, block.number), Bytes::from(json)).await?;
        let compute_seconds = start.elapsed().as_secs_f64();
        tracing::info!(bytes = paths.bytes, compute_seconds, "block scored");
        Ok(v1::ScoreResult { paths: Some(paths.into()), compute_seconds })
    }

    /// Carries out the cut in a block and stores its new weights.
    pub(super) async fn update_block(
        &self,
        shot: &(RunId, u32),
        spec: RunSpec,
        (block, paths, cuts): (&Block, &str, Vec<LayerCut>),
        lease: &Lease,
    ) -> Result<v1::UpdateResult, Error> {
        let _turn = self.turn.lock().await;
        let start = Instant::now();
        let job = self.block_job(spec, block).await?;
        let paths = self.paths(paths).await?;
        if cuts.iter().any(|cut| cut.steps > 0) {
            self.lay_out(shot, block, lease).await?;
        }
        let (token, compute) = (lease.token().clone(), self.compute.clone());
        let layers = self
            .on_bench(move |bench| {
                let layers = bench.update(&job, &paths, &cuts, &|| {
                    compute.touch();
                    token.is_cancelled()
                });
                bench.clear();
                layers
            })
            .await?;
        let mut result = v1::UpdateResult::default();
        for NewLayer { mut state, weights, predicted } in layers {
            if let Some(bytes) = weights {
                let key = keys::weights(&shot.0, shot.1, blake3::hash(&bytes).to_hex().as_str());
                state.weights = Some(self.keep(key, bytes).await?);
            }
            result.layers.push(state.into());
            result.predicted.push(predicted);
        }
        result.compute_seconds = start.elapsed().as_secs_f64();
        Ok(result)
    }

    /// Returns a block with its layers' present weights.
    async fn block_job(&self, spec: RunSpec, block: &Block) -> Result<BlockJob, Error> {
        let (number, of) = (block.number, spec.clone());
        let description = self.on_bench(move |bench| bench.describe(&of, number)).await?;
        let changed = self.changed(block, &description).await?;
        Ok(BlockJob { spec, block: description, changed })
    }

    async fn changed(&self, block: &Block, description: &BlockDescription) -> Result<Vec<LayerBytes>, Error> {
        let manifest = checkpoint::manifest(&self.store, block.checkpoint.as_deref()).await?;
        let ours = |layer| description.layers.iter().any(|l| l.layer == layer);
        let states = manifest.layers.into_iter().filter(|state| ours(state.layer.clone())).collect();
        Ok(checkpoint::layers(&self.store, states).await?)
    }

    /// Adds a block's factors on the bench, shard after shard: one shard's bytes are in memory at a time.
    async fn lay_out(&self, shot: &(RunId, u32), block: &Block, lease: &Lease) -> Result<(), Error> {
        self.on_bench(|bench| {
            bench.clear();
            Ok(())
        })
        .await?;
        for shard in 0..block.shards {
            if lease.token().is_cancelled() {
                return Err(Error::Cancelled);
            }
            let bytes = match self.store.get(&keys::factors(&shot.0, shot.1, shard, block.number)).await {
                Err(StoreError::NotFound { .. }) => {
                    return Err(Error::FactorsGone { shard, blocks: vec![block.number] });
                }
                other => other?,
            };
            self.on_bench(move |bench| bench.add(&bytes)).await?;
        }
        Ok(())
    }

    async fn paths(&self, key: &str) -> Result<Vec<RemovalPath>, Error> {
        let bytes = self.store.get(key).await?;
        serde_json::from_slice(&bytes).map_err(|e| Error::Damaged { key: key.to_owned(), problem: e.to_string() })
    }

    /// Puts an object into the store and returns how to find it.
    async fn keep(&self, key: String, bytes: Bytes) -> Result<ObjectRef, Error> {
        let blake3 = blake3::hash(&bytes).to_hex().to_string();
        let object = ObjectRef { key, blake3, bytes: bytes.len() as u64 };
        self.store.put(&object.key, bytes).await?;
        Ok(object)
    }
}
