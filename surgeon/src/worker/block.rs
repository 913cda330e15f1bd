//! One block on the bench: its factors from the store, added in shard order as far as they are not yet, then its paths or its
//! new weights. For the coordinator's tasks and for callers of a surgeon that works alone.

use crate::bench::{Bench, BlockJob, Digit, NewLayer};
use crate::error::Error;
use crate::job::Block;
use crate::merge::BlockPass;
use crate::metrics;
use bytes::Bytes;
use proto::v1;
use service::checkpoint::{self, LayerBytes};
use service::keys;
use service::memory::PeakMeter;
use service::{ComputeHandle, Store, StoreError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio_util::sync::CancellationToken;
use types::{BlockDescription, CostHistogram, LayerCut, ObjectRef, RemovalPath, RunId, RunSpec};

/// Computes one block at a time, with the factors that lie in the store; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Blocks {
    /// The thread that owns the device.
    pub(crate) compute: ComputeHandle,
    /// What lies there; locked by its jobs only.
    pub(crate) bench: Arc<Mutex<Bench>>,
    /// Held by the block whose factors lie on the bench.
    pub(crate) turn: Arc<tokio::sync::Mutex<()>>,
    /// Where factors, paths and weights lie.
    pub(crate) store: Store,
}

/// What was found out about a block: all that is known of it outside its surgeon.
#[derive(Debug)]
pub(crate) enum Found {
    /// The removal paths of its layers.
    Paths(Vec<RemovalPath>),
    /// Digits of the costs of its layers' items.
    Histograms(Vec<CostHistogram>),
}

/// A block that was scored.
#[derive(Debug)]
pub(crate) struct Scored {
    /// What came of it.
    pub(crate) found: Found,
    /// Seconds spent computing.
    pub(crate) compute_seconds: f64,
    /// Largest resident memory meanwhile.
    pub(crate) peak_memory_bytes: u64,
}

/// How laying a pass out ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Laid {
    /// All of it is on the bench.
    Whole,
    /// A surgeon that has lost the block, and does not know yet, merged a shard meanwhile.
    Overtaken,
}

impl Blocks {
    /// Computes what weighs a block's tokens in the pass after `pass`, whose sums are stored, and stores it.
    pub(crate) async fn weigh_block(
        &self,
        shot: &(RunId, u32),
        spec: RunSpec,
        (block, pass): (&Block, u32),
        stop: &CancellationToken,
    ) -> Result<v1::WeighResult, Error> {
        let _turn = self.turn.lock().await;
        let start = Instant::now();
        let job = self.block_job(spec, block).await?;
        self.lay_out(shot, (block, pass), stop).await?;
        let weighers = self.with_factors(stop, move |bench, cancelled| bench.weighers(&job, cancelled)).await?;
        self.store.put(&keys::weighers(&shot.0, shot.1, pass + 1, block.number), weighers).await?;
        Ok(v1::WeighResult { compute_seconds: start.elapsed().as_secs_f64() })
    }

    /// Computes what the coordinator needs to know of a block whose factors are stored.
    pub(crate) async fn score_block(
        &self,
        shot: &(RunId, u32),
        spec: RunSpec,
        block: &Block,
        stop: &CancellationToken,
    ) -> Result<Scored, Error> {
        let _turn = self.turn.lock().await;
        let (start, peak) = (Instant::now(), PeakMeter::start());
        let job = self.block_job(spec, block).await?;
        if block.round == 0 {
            self.lay_out(shot, (block, job.spec.passes()), stop).await?;
            self.mix(shot, &job, stop).await?;
        } else {
            self.lay_out_again(shot, (&job.spec, block), stop).await?;
        }
        let found = self
            .with_factors(stop, move |bench, cancelled| {
                if job.spec.structure.is_masked() {
                    let histograms = bench.histograms(&job, Digit::First, cancelled)?;
                    metrics::damped(histograms.iter().map(|h| h.damping));
                    Ok(Found::Histograms(histograms))
                } else {
                    let paths = bench.score(&job, cancelled)?;
                    metrics::damped(paths.iter().map(|p| p.damping));
                    Ok(Found::Paths(paths))
                }
            })
            .await?;
        let compute_seconds = start.elapsed().as_secs_f64();
        tracing::info!(compute_seconds, "block scored");
        Ok(Scored { found, compute_seconds, peak_memory_bytes: peak.bytes() })
    }

    /// Counts the second digits of a block's costs that begin with `digit`.
    pub(crate) async fn refine_block(
        &self,
        shot: &(RunId, u32),
        spec: RunSpec,
        (block, digit): (&Block, u16),
        stop: &CancellationToken,
    ) -> Result<Scored, Error> {
        let _turn = self.turn.lock().await;
        let (start, peak) = (Instant::now(), PeakMeter::start());
        let job = self.block_job(spec, block).await?;
        self.lay_out_again(shot, (&job.spec, block), stop).await?;
        let count = move |bench: &mut Bench, cancelled: &dyn Fn() -> bool| {
            bench.histograms(&job, Digit::Second(digit), cancelled)
        };
        let found = Found::Histograms(self.with_factors(stop, count).await?);
        let compute_seconds = start.elapsed().as_secs_f64();
        Ok(Scored { found, compute_seconds, peak_memory_bytes: peak.bytes() })
    }

    /// Carries out the cut in a block and stores its new weights.
    pub(crate) async fn update_block(
        &self,
        shot: &(RunId, u32),
        spec: RunSpec,
        (block, scores, cuts): (&Block, &str, Vec<LayerCut>),
        stop: &CancellationToken,
    ) -> Result<v1::UpdateResult, Error> {
        let _turn = self.turn.lock().await;
        let (start, peak) = (Instant::now(), PeakMeter::start());
        let job = self.block_job(spec, block).await?;
        let paths = if job.spec.structure.is_masked() { Vec::new() } else { self.paths(scores).await? };
        if cuts.iter().any(|cut| cut.steps > 0 || cut.elements.is_some_and(|e| e.items > 0)) {
            self.lay_out_again(shot, (&job.spec, block), stop).await?;
        }
        let layers =
            self.with_factors(stop, move |bench, cancelled| bench.update(&job, &paths, &cuts, cancelled)).await?;
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
        result.peak_memory_bytes = peak.bytes();
        Ok(result)
    }

    /// Runs a job on what lies on the bench, and clears it. The job asks whether it should stop; that it asks is the
    /// compute thread's sign of life.
    async fn with_factors<T: Send + 'static>(
        &self,
        stop: &CancellationToken,
        job: impl FnOnce(&mut Bench, &dyn Fn() -> bool) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (stop, compute) = (stop.clone(), self.compute.clone());
        self.on_bench(move |bench| {
            let found = job(bench, &|| {
                compute.touch();
                stop.is_cancelled()
            });
            bench.clear();
            found
        })
        .await
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

    /// Adds a block's sums of all passes up to `last` on the bench: of each pass the sum of the first shards, as far as they
    /// are merged, then shard after shard. One shard's bytes are in memory at a time. Quarantined shards are passed over,
    /// whatever of them is in the store; where there may be some, nothing is merged.
    async fn lay_out(
        &self,
        shot: &(RunId, u32),
        (block, last): (&Block, u32),
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        loop {
            self.on_bench(|bench| {
                bench.clear();
                Ok(())
            })
            .await?;
            let mut laid = Laid::Whole;
            for pass in 0..=last {
                let (run, shot) = (shot.0.clone(), shot.1);
                let of = BlockPass { run, shot, pass, shards: block.shards, block: block.number };
                laid = self.lay_out_pass(&of, block, stop).await?;
                if laid == Laid::Overtaken {
                    break;
                }
            }
            // Each time some sum has become longer.
            if laid == Laid::Whole {
                return Ok(());
            }
        }
    }

    async fn lay_out_pass(&self, of: &BlockPass, block: &Block, stop: &CancellationToken) -> Result<Laid, Error> {
        let pass = of.pass;
        let mut merged = 0;
        if let Some((shards, sum)) = of.longest(&self.store).await? {
            merged = shards;
            self.on_bench(move |bench| bench.add(pass, &sum)).await?;
        }
        for number in (merged..of.shards).filter(|number| block.counts(*number)) {
            if stop.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let key = of.own_key(number);
            let bytes = match self.store.get(&key).await {
                Err(StoreError::NotFound { .. }) => {
                    let shard = pass * of.shards + number;
                    return Err(Error::FactorsGone { shard, blocks: vec![of.block] });
                }
                other => other?,
            };
            if bytes.is_empty() {
                if of.merged(&self.store).await? > number {
                    return Ok(Laid::Overtaken);
                }
                let problem = "it says that its factors were merged, but no sum of shards has them".to_owned();
                return Err(Error::Damaged { key, problem });
            }
            self.on_bench(move |bench| bench.add(pass, &bytes)).await?;
        }
        Ok(Laid::Whole)
    }

    /// Adds the factors of earlier shots, faded, to those on the bench, and keeps the sum for the rest of this shot and for
    /// the next one. Nothing when earlier shots count for nothing.
    async fn mix(&self, shot: &(RunId, u32), job: &BlockJob, stop: &CancellationToken) -> Result<(), Error> {
        let (run, number) = (&shot.0, shot.1);
        if job.spec.decay == 0.0 {
            return Ok(());
        }
        if stop.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let earlier = match number {
            1 => None,
            _ => Some(self.store.get(&keys::running(run, number - 1, job.block.block)).await?),
        };
        let job = job.clone();
        let key = keys::running(run, number, job.block.block);
        let mixed = self.on_bench(move |bench| bench.mix(&job, earlier.as_deref())).await?;
        Ok(self.store.put(&key, mixed).await?)
    }

    /// Lays out what a block was scored with.
    async fn lay_out_again(
        &self,
        shot: &(RunId, u32),
        (spec, block): (&RunSpec, &Block),
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        if spec.decay == 0.0 {
            return self.lay_out(shot, (block, spec.passes()), stop).await;
        }
        let mixed = self.store.get(&keys::running(&shot.0, shot.1, block.number)).await?;
        self.on_bench(move |bench| {
            bench.clear();
            bench.add(0, &mixed)
        })
        .await
    }

    /// Returns the paths that lie under a key.
    pub(crate) async fn paths(&self, key: &str) -> Result<Vec<RemovalPath>, Error> {
        let bytes = self.store.get(key).await?;
        serde_json::from_slice(&bytes).map_err(|e| Error::Damaged { key: key.to_owned(), problem: e.to_string() })
    }

    /// Returns one block's description and over how many tokens its factors are, after adding and checking them.
    pub(crate) async fn check_block(
        &self,
        shot: &(RunId, u32),
        spec: RunSpec,
        block: &Block,
        stop: &CancellationToken,
    ) -> Result<(BlockDescription, u64), Error> {
        let _turn = self.turn.lock().await;
        let job = self.block_job(spec, block).await?;
        self.lay_out(shot, (block, 0), stop).await?;
        let description = job.block.clone();
        let tokens = self.with_factors(stop, move |bench, cancelled| bench.check(&job, cancelled)).await?;
        Ok((description, tokens))
    }

    /// Runs a job on the compute thread.
    pub(crate) async fn on_bench<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Bench) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let bench = Arc::clone(&self.bench);
        self.compute.run(move || job(&mut bench.lock().unwrap_or_else(PoisonError::into_inner))).await?
    }

    /// Puts an object into the store and returns how to find it.
    async fn keep(&self, key: String, bytes: Bytes) -> Result<ObjectRef, Error> {
        let blake3 = blake3::hash(&bytes).to_hex().to_string();
        let object = ObjectRef { key, blake3, bytes: bytes.len() as u64 };
        self.store.put(&object.key, bytes).await?;
        Ok(object)
    }
}

#[cfg(test)]
#[path = "block_tests.rs"]
mod tests;
