//! Tasks of the coordinator: which there are, what each needs from the store, and how it ends.
//!
//! One task runs at a time. What needs tensors happens in jobs on the compute thread, and tensors stay there.

use crate::correct::{LearnsFrom, correct};
use crate::error::Error;
use crate::job::{Calibrate, Job, Work};
use crate::metrics;
use crate::session::{Changed, DecoderKey, Output, Session};
use crate::shelf::Shelf;
use crate::sweep::{Control, Stored, Swept, sweep};
use bytes::Bytes;
use proto::v1;
use proto::v1::complete_task_request::Result as TaskResult;
use service::checkpoint::{self, StoredObjects};
use service::keys;
use service::memory::PeakMeter;
use service::{ComputeHandle, Lease, Leased, Store, SweepKey, TaskHandler};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tracing::Instrument;
use types::{ObjectRef, RunId, RunSpec};

/// How often the store is asked whether a surgeon has put what waits on the shelf: its word of it may get lost.
const LOOK: Duration = Duration::from_secs(2);
/// Blocks whose weighing matrices may wait for the sweep.
const AHEAD: usize = 1;
/// Tokens of held-out text in one forward pass.
const EVALUATE_TOKENS: u64 = 2048;

/// Carries out a calibrator's tasks.
#[derive(Debug)]
pub(crate) struct Handler {
    /// The thread that owns the device.
    pub(crate) compute: ComputeHandle,
    /// What lies there; locked by its jobs only.
    pub(crate) session: Arc<Mutex<Session>>,
    /// Where factors wait.
    pub(crate) shelf: Arc<Shelf>,
    /// Where checkpoints lie.
    pub(crate) store: Store,
}

impl TaskHandler for Handler {
    async fn handle(&self, tasks: Vec<Leased>) {
        for Leased { task, lease } in tasks {
            let start = Instant::now();
            let result = match Job::try_from(task) {
                Ok(job) => {
                    let span = job.span();
                    self.carry_out(job, &lease).instrument(span).await
                }
                Err(invalid) => Err(invalid.into()),
            };
            lease.report(result.map_err(|e| e.told()), start.elapsed()).await;
        }
    }
}

impl Handler {
    async fn carry_out(&self, job: Job, lease: &Lease) -> Result<TaskResult, Error> {
        match job.work {
            Work::Prepare { resumes } => self.prepare(job.run, job.spec, resumes).await.map(TaskResult::Prepare),
            Work::Calibrate(task) => {
                let key = SweepKey { run: job.run, shot: job.shot, shard: task.shard, generation: job.generation };
                self.calibrate(key, job.spec, task, lease).await.map(TaskResult::Calibrate)
            }
            Work::Correct { checkpoint, first_sample, left_out } => {
                let key = DecoderKey { run: job.run, checkpoint };
                let learns_from = LearnsFrom { first_sample, left_out };
                self.correct(key, (job.spec, job.shot, learns_from), lease).await.map(TaskResult::Correct)
            }
            Work::Evaluate { checkpoint } => {
                let key = DecoderKey { run: job.run, checkpoint };
                self.evaluate(key, job.spec, lease).await.map(TaskResult::Evaluate)
            }
        }
    }

    async fn prepare(&self, run: RunId, spec: RunSpec, resumes: bool) -> Result<v1::PrepareResult, Error> {
        let output = if resumes { Output::MayExist } else { Output::New };
        let prepared = self.with_session(move |session| session.prepare(&run, &spec, output)).await?;
        tracing::info!(family = prepared.model.family, tokens = prepared.data.tokens, "model and data are ready");
        Ok(v1::PrepareResult {
            model: Some(prepared.model.into()),
            data: Some(prepared.data.into()),
            eval_data: prepared.held_out.map(Into::into),
        })
    }

    async fn calibrate(
        &self,
        key: SweepKey,
        spec: RunSpec,
        mut task: Calibrate,
        lease: &Lease,
    ) -> Result<v1::CalibrateResult, Error> {
        let peak = PeakMeter::start();
        let weights = DecoderKey { run: key.run.clone(), checkpoint: task.checkpoint.clone() };
        let changed = self.changed(weights).await?;
        task.blocks = self.not_stored(&key, task.blocks).await?;
        let (ahead, weighers) = mpsc::channel(AHEAD);
        let mut weighed: Vec<u32> = task.blocks.iter().copied().filter(|_| task.pass > 0).collect();
        weighed.sort_unstable_by(|a, b| b.cmp(a)); // as the sweep comes to them
        let (pass, stored) = (task.pass, Stored { changed, weighers });
        let shelf = Arc::clone(&self.shelf);
        let swept_key = key.clone();
        let sweeping = self.with_control(lease, move |session, control| {
            sweep(session, &shelf, &swept_key, (&spec, &task, stored), control)
        });
        let swept = tokio::select! {
            swept = sweeping => swept?,
            error = self.release_stored(&key) => return Err(error),
            error = self.fetch_weighers(&key, (pass, weighed), ahead) => return Err(error),
        };
        metrics::swept(swept.result.tokens, &swept.result.times, swept.wait);
        tracing::info!(tokens = swept.result.tokens, factor_bytes = swept.factor_bytes, "shard swept");
        Ok(calibrate_result(swept, &peak))
    }

    async fn correct(
        &self,
        key: DecoderKey,
        (spec, shot, learns_from): (RunSpec, u32, LearnsFrom),
        lease: &Lease,
    ) -> Result<v1::CorrectResult, Error> {
        let peak = PeakMeter::start();
        let run = key.run.clone();
        let states = checkpoint::manifest(&self.store, key.checkpoint.as_deref()).await?.layers;
        let changed = self.changed(key.clone()).await?;
        let corrected = self
            .with_control(lease, move |session, control| {
                let folder = session.folder(&spec)?;
                let blocks = model::units::blocks_for(&folder, &spec);
                let loaded = session.load(&key, &spec, changed)?;
                let mut progress = |done, total| control.step(done, total);
                correct((&folder, &blocks), loaded, &states, (&spec, &learns_from), &mut progress)
            })
            .await?;
        let mut layers = Vec::with_capacity(corrected.layers.len());
        for (mut state, bytes) in corrected.layers {
            let blake3 = blake3::hash(&bytes).to_hex().to_string();
            let object = ObjectRef { key: keys::weights(&run, shot, &blake3), blake3, bytes: bytes.len() as u64 };
            self.store.put(&object.key, bytes).await?;
            state.weights = Some(object);
            layers.push(state.into());
        }
        let report = corrected.report;
        let before = report.loss_before.unwrap_or(f64::NAN);
        let after = report.loss_after.unwrap_or(before);
        tracing::info!(before, after, steps = report.steps_done, kept = report.steps_kept, "checkpoint corrected");
        Ok(v1::CorrectResult {
            layers,
            loss_before: before,
            loss_after: after,
            steps_done: report.steps_done,
            steps_kept: report.steps_kept,
            peak_memory_bytes: peak.bytes(),
        })
    }

    async fn evaluate(&self, key: DecoderKey, spec: RunSpec, lease: &Lease) -> Result<v1::EvaluateResult, Error> {
        let peak = PeakMeter::start();
        let changed = self.changed(key.clone()).await?;
        self.with_control(lease, move |session, control| {
            let (decoder, data) = session.load(&key, &spec, changed)?;
            let held_out = data.held_out.as_ref().ok_or(Error::NoHeldOutData)?;
            let micro_batch = (EVALUATE_TOKENS / spec.seq_len).max(1) as usize;
            // Once untimed: the first pass through a fresh model measures memory and threads being set up, and tokens per
            // second before and after pruning are compared.
            model::perplexity::evaluate(decoder, &held_out.ids[..held_out.ids.len().min(1)], 1, &mut |_, _| {
                ControlFlow::Continue(())
            })?;
            let start = Instant::now();
            let loss = model::perplexity::evaluate(decoder, &held_out.ids, micro_batch, &mut |done, total| {
                control.step(done, total)
            })?;
            tracing::info!(loss = loss.mean, segments = loss.segments, "held-out loss");
            Ok(v1::EvaluateResult {
                loss: loss.mean,
                segments: loss.segments,
                segments_in_data: held_out.in_data,
                tokens: loss.tokens,
                seconds: start.elapsed().as_secs_f64(),
                peak_memory_bytes: peak.bytes(),
            })
        })
        .await
    }

    /// Returns the layers that differ from the base model, or none when the decoder is loaded already.
    async fn changed(&self, key: DecoderKey) -> Result<Changed, Error> {
        let manifest = key.checkpoint.clone();
        let asked = self.with_session(move |session| Ok((session.holds(&key), session.is_streaming())));
        let (held, streaming) = asked.await?;
        if held {
            return Ok(Changed::Here(Vec::new()));
        }
        let layers = checkpoint::manifest(&self.store, manifest.as_deref()).await?.layers;
        if streaming {
            let stored = Arc::new(StoredObjects::new(self.store.clone(), self.compute.beat()));
            return Ok(Changed::InStore(layers, stored));
        }
        Ok(Changed::Here(checkpoint::layers(&self.store, layers).await?))
    }

    /// Fetches what weighs the tokens of each block in a later pass, a block ahead of the sweep; returns only when the store
    /// fails.
    async fn fetch_weighers(
        &self,
        key: &SweepKey,
        (pass, blocks): (u32, Vec<u32>),
        ahead: mpsc::Sender<(u32, Bytes)>,
    ) -> Error {
        for block in blocks {
            let bytes = match self.store.get(&keys::weighers(&key.run, key.shot, pass, block)).await {
                Ok(bytes) => bytes,
                Err(error) => return error.into(),
            };
            if ahead.send((block, bytes)).await.is_err() {
                break; // the sweep has ended
            }
        }
        std::future::pending().await
    }

    /// Returns the blocks whose factors are not in the store from an earlier attempt.
    async fn not_stored(&self, key: &SweepKey, blocks: Vec<u32>) -> Result<Vec<u32>, Error> {
        let mut missing = Vec::with_capacity(blocks.len());
        for block in blocks {
            if !self.store.exists(&keys::factors(&key.run, key.shot, key.shard, block)).await? {
                missing.push(block);
            }
        }
        Ok(missing)
    }

    /// Releases what waits on the shelf and is in the store nevertheless; returns only when the store fails.
    async fn release_stored(&self, key: &SweepKey) -> Error {
        loop {
            tokio::time::sleep(LOOK).await;
            for block in self.shelf.status().waiting {
                let stored = match self.store.exists(&keys::factors(&key.run, key.shot, key.shard, block)).await {
                    Ok(stored) => stored,
                    Err(error) => return error.into(),
                };
                if stored && let Err(error) = self.shelf.release(key, block, Duration::ZERO).await {
                    tracing::debug!(block, %error, "a stored block was not released");
                }
            }
        }
    }

    /// Runs a short job on the compute thread.
    async fn with_session<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Session) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let session = Arc::clone(&self.session);
        let locked = move || job(&mut session.lock().unwrap_or_else(PoisonError::into_inner));
        self.compute.run(locked).await?
    }

    /// Runs a long job on the compute thread that reports progress and stops when the lease is lost.
    async fn with_control<T: Send + 'static>(
        &self,
        lease: &Lease,
        job: impl FnOnce(&mut Session, &mut Control) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (lease, compute) = (lease.clone(), self.compute.clone());
        self.with_session(move |session| {
            // Asked between steps and while waiting: a good place to say that the thread lives.
            let cancelled = || {
                compute.touch();
                lease.token().is_cancelled()
            };
            let mut progress = |done, total| lease.progress(done, total);
            job(session, &mut Control { progress: &mut progress, cancelled: &cancelled })
        })
        .await
    }
}

/// Returns what is told of a sweep.
pub(crate) fn calibrate_result(Swept { result, wait, factor_bytes }: Swept, peak: &PeakMeter) -> v1::CalibrateResult {
    v1::CalibrateResult {
        loss_sum: result.loss_sum,
        targets: result.targets,
        tokens: result.tokens,
        forward_seconds: result.times.forward.as_secs_f64(),
        head_seconds: result.times.head.as_secs_f64(),
        backward_seconds: result.times.backward.as_secs_f64(),
        gram_seconds: result.times.gram.as_secs_f64(),
        wait_seconds: wait.as_secs_f64(),
        factor_bytes,
        peak_memory_bytes: peak.bytes(),
    }
}
