//! Tasks of the coordinator: which there are, and how each ends.
//!
//! All leased `Score` (or `Weigh`) tasks of one pass of a shot are one piece of work: their blocks are gathered together
//! and computed as they become ready. Other tasks of a batch run one after the other; batches share the bench, which holds
//! one block at a time.

pub(crate) mod block;
mod score;

use crate::error::Error;
use crate::gather::{Gatherer, Merging, PassOfShot};
use crate::grpc::Board;
use crate::job::{Block, Job, Work};
use block::Blocks;
use model::Overlay;
use model::export::{self, Breadth, WriteOptions};
use proto::convert::Fields;
use proto::v1;
use proto::v1::complete_task_request::Result as TaskResult;
use score::{BlockBatch, BlockTask, Then};
use service::checkpoint::{self, StoredObjects};
use service::memory::PeakMeter;
use service::{Lease, Leased, TaskHandler};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use types::{LayerCut, Pattern, RunSpec, Shape, Target};

const CUT: Fields = Fields("GetCutResponse");
/// Tokens on which the written model must compute what the one in memory computes.
const CHECK_TOKENS: i64 = 64;

/// Carries out a surgeon's tasks.
#[derive(Debug, Clone)]
pub(crate) struct Handler {
    /// Computes them.
    pub(crate) blocks: Blocks,
    /// Brings factors into the store.
    pub(crate) gatherer: Gatherer,
    /// Shows how far blocks are.
    pub(crate) board: Board,
}

impl TaskHandler for Handler {
    async fn handle(&self, tasks: Vec<Leased>) {
        let mut shots: BTreeMap<PassOfShot, Vec<BlockTask>> = BTreeMap::new();
        let mut others = Vec::new();
        for Leased { task, lease } in tasks {
            match Job::try_from(task) {
                Ok(job) => {
                    let span = job.span();
                    let (block, pass, then) = match job.work {
                        Work::Score(block) => (block, job.spec.passes(), Then::Compute),
                        Work::Weigh { block, pass } => (block, pass, Then::Compute),
                        Work::Gather { block, pass } => (block, pass, Then::Stop),
                        _ => {
                            others.push((job, lease, span));
                            continue;
                        }
                    };
                    let merging = Merging::of(&job.spec);
                    let key = PassOfShot { run: job.run, number: job.shot, pass, shards: block.shards, merging };
                    shots.entry(key).or_default().push(BlockTask { span, spec: job.spec, block, then, lease });
                }
                Err(invalid) => lease.report(Err(Error::from(invalid).told()), Duration::ZERO).await,
            }
        }
        let scoring = shots.into_iter().map(|(shot, tasks)| BlockBatch::new(self, shot, tasks).run());
        let rest = async {
            for (job, lease, span) in others {
                let start = Instant::now();
                let result = self.carry_out(job, &lease).instrument(span).await;
                lease.report(result.map_err(|e| e.told()), start.elapsed()).await;
            }
        };
        futures::future::join(futures::future::join_all(scoring), rest).await;
    }
}

impl Handler {
    async fn carry_out(&self, job: Job, lease: &Lease) -> Result<TaskResult, Error> {
        let shot = (job.run, job.shot);
        match job.work {
            Work::Refine { block, digit } => {
                let counted = self.blocks.refine_block(&shot, job.spec, (&block, digit), lease.token()).await?;
                let v1::ScoreResult { scores, compute_seconds, .. } = score::report(counted, lease).await?;
                Ok(TaskResult::Refine(v1::RefineResult { histograms: scores, compute_seconds }))
            }
            Work::Update { block, scores } => {
                self.update(&shot, job.spec, (block, scores), lease).await.map(TaskResult::Update)
            }
            Work::Materialise { checkpoint, report_json, output, shape } => {
                let written = self.materialise(job.spec, checkpoint, (report_json, output), shape, lease.token()).await;
                written.map(TaskResult::Materialise)
            }
            Work::Gather { .. } | Work::Weigh { .. } | Work::Score(_) => {
                Err(Error::Bug("a block came to be scored alone".into()))
            }
        }
    }

    async fn update(
        &self,
        shot: &(types::RunId, u32),
        spec: RunSpec,
        (block, scores): (Block, String),
        lease: &Lease,
    ) -> Result<v1::UpdateResult, Error> {
        let cuts: Vec<LayerCut> = CUT.list("cuts", lease.cut().await?, proto::convert::MAX_LAYERS)?;
        let updated = self.blocks.update_block(shot, spec, (&block, &scores, cuts), lease.token()).await?;
        tracing::info!(layers = updated.layers.len(), "block updated");
        Ok(updated)
    }

    async fn materialise(
        &self,
        spec: RunSpec,
        manifest: Option<String>,
        (report_json, output): (String, String),
        shape: Shape,
        stop: &CancellationToken,
    ) -> Result<v1::MaterialiseResult, Error> {
        let peak = PeakMeter::start();
        let checkpoint = checkpoint::manifest(&self.blocks.store, manifest.as_deref()).await?;
        // All of them together may be more than there is memory: each is read when it is computed with, and when it is written.
        let stored = Arc::new(StoredObjects::new(self.blocks.store.clone(), self.blocks.compute.beat()));
        let pattern = full_pattern(&spec, &output);
        let address = output.clone();
        let (written, place) = self
            .blocks
            .on_bench(move |bench| {
                let overlay = Overlay::later(checkpoint.layers, stored);
                let place = bench.output(&address)?;
                let folder = bench.folder(&spec)?;
                let options = WriteOptions {
                    breadth: match shape {
                        Shape::PerLayer => Breadth::Own,
                        Shape::Uniform | Shape::Padded | Shape::Auto => {
                            Breadth::Common { multiple_of: spec.multiple_of }
                        }
                    },
                    format: spec.format,
                    gguf_type: spec.gguf_type,
                    pattern,
                    shard_bytes: WriteOptions::SHARD_BYTES,
                };
                let ids = check_ids(folder.config().vocab, folder.config().max_positions);
                let written = export::write(folder, &overlay, options, &report_json, place.folder(), &ids)?;
                Ok((written, place))
            })
            .await?;
        tokio::select! {
            published = place.publish() => published?,
            // Half a copy is seen as such; whoever has the task now copies all of it.
            () = stop.cancelled() => return Err(Error::Cancelled),
        }
        tracing::info!(bytes = written.bytes, logit_difference = written.logit_difference, "model written");
        Ok(v1::MaterialiseResult {
            output,
            blake3: written.blake3,
            bytes: written.bytes,
            logit_difference: written.logit_difference,
            peak_memory_bytes: peak.bytes(),
        })
    }
}

/// Returns the pattern that every window of the model at `output` must have: where the run ends with all of them cut.
fn full_pattern(spec: &RunSpec, output: &str) -> Option<Pattern> {
    let share = match spec.target {
        Target::Size(share) => share,
        Target::Parameters(_) | Target::Bytes(_) => return None,
    };
    spec.pattern.filter(|pattern| output == spec.output && share <= pattern.share())
}

/// Returns tokens spread over the vocabulary, the same for the same model.
fn check_ids(vocabulary: i64, max_positions: i64) -> Vec<i64> {
    (0..CHECK_TOKENS.min(max_positions)).map(|n| (n * 7919 + 1) % vocabulary).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_tokens_are_in_the_vocabulary_and_within_the_model_s_length() {
        let ids = check_ids(259, 16);
        assert_eq!(ids.len(), 16);
        assert!(ids.iter().all(|id| (0..259).contains(id)));
        assert_eq!(check_ids(32000, 2048).len(), 64);
    }
}
