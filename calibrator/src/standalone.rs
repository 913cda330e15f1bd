//! Curvature for callers of our own, without coordinator, run or store: a model is loaded, samples are swept, and the
//! caller takes each block's factors from the shelf as a surgeon would.
//!
//! One sweep at a time; it ends when everything it offered was released, or when its caller leaves.

use crate::error::Error;
use crate::job::Calibrate;
use crate::session::{Changed, DecoderKey, Session};
use crate::shelf::Shelf;
use crate::sweep::{Control, Stored, sweep};
use crate::worker::calibrate_result;
use futures::{Stream, StreamExt};
use proto::convert::{Fields, spec_without_end};
use proto::v1;
use proto::v1::calibrate_response::Part;
use service::memory::PeakMeter;
use service::{ComputeHandle, SweepKey};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use types::{Generation, RunId, RunSpec};

/// Messages that may wait for a caller; progress beyond them is not told.
const WAITING: usize = 16;
/// Tokens of a micro-batch when the caller does not say.
const MICRO_BATCH_TOKENS: u64 = 2048;
/// How long a call waits for the one before to end.
const TURN: Duration = Duration::from_secs(2);
/// Sweeps belong to a shot; a caller's is the only one.
const SHOT: u32 = 1;
const CALIBRATE: Fields = Fields("CalibrateRequest");

/// What a caller is told of a sweep.
pub(crate) type Answers = Pin<Box<dyn Stream<Item = Result<v1::CalibrateResponse, tonic::Status>> + Send>>;

/// Sweeps for callers.
#[derive(Debug)]
pub(crate) struct Standalone {
    compute: ComputeHandle,
    session: Arc<Mutex<Session>>,
    shelf: Arc<Shelf>,
    /// Held by the sweep under way.
    turn: Arc<Semaphore>,
    /// Of the last sweep.
    generation: AtomicU64,
    /// Ends sweeps with the program.
    stop: CancellationToken,
}

/// A sweep that a caller asked for.
#[derive(Debug)]
struct Asked {
    spec: RunSpec,
    key: SweepKey,
    task: Calibrate,
}

impl Standalone {
    /// Returns a calibrator's service for callers, on its compute thread and its shelf.
    pub(crate) fn new(
        compute: ComputeHandle,
        session: Arc<Mutex<Session>>,
        shelf: Arc<Shelf>,
        stop: CancellationToken,
    ) -> Self {
        Self { compute, session, shelf, turn: Arc::new(Semaphore::new(1)), generation: AtomicU64::new(0), stop }
    }

    /// Loads model and data and describes them.
    pub(crate) async fn load(&self, request: v1::LoadModelRequest) -> Result<v1::LoadModelResponse, Error> {
        let spec = spec_without_end(request.spec)?;
        let _turn = self.turn().await?;
        let run = name(&spec)?;
        let session = Arc::clone(&self.session);
        let loaded = self.compute.run(move || {
            let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
            let folder = session.folder(&spec)?;
            let model = model::units::describe_for(&folder, &spec)?;
            let key = DecoderKey { run, checkpoint: None };
            let (_, data) = session.load(&key, &spec, Changed::Here(Vec::new()))?;
            Ok::<_, Error>((model, data.samples.description.clone()))
        });
        let (model, data) = loaded.await??;
        Ok(v1::LoadModelResponse { model: Some(model.into()), data: Some(data.into()) })
    }

    /// Begins a sweep; the stream tells how to name it, how far it is and what it came to. Dropping the stream ends it.
    pub(crate) async fn calibrate(&self, request: v1::CalibrateRequest) -> Result<Answers, Error> {
        let turn = self.turn().await?;
        let asked = self.asked(request).await?;
        let stop = self.stop.child_token();
        let (answers, told) = mpsc::channel(WAITING);
        let opened = v1::SweepOpened {
            run: asked.key.run.to_string(),
            shot: asked.key.shot,
            shard: asked.key.shard,
            generation: asked.key.generation.0,
            blocks: asked.task.blocks.iter().rev().copied().collect(),
        };
        // There is room: nothing was sent yet.
        let _ = answers.try_send(Ok(v1::CalibrateResponse { part: Some(Part::Opened(opened)) }));
        tokio::spawn(self.sweep(asked, answers, stop.clone(), turn));
        let guard = stop.drop_guard();
        Ok(Box::pin(ReceiverStream::new(told).inspect(move |_| {
            let _until_the_caller_leaves = &guard;
        })))
    }

    /// Returns the right to the compute thread, after waiting for a sweep whose caller has just left.
    async fn turn(&self) -> Result<OwnedSemaphorePermit, Error> {
        match tokio::time::timeout(TURN, Arc::clone(&self.turn).acquire_owned()).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) | Err(_) => Err(Error::Busy),
        }
    }

    /// Returns a request as domain values, with what it leaves open filled in.
    async fn asked(&self, request: v1::CalibrateRequest) -> Result<Asked, Error> {
        CALIBRATE.at_most("blocks", request.blocks.len(), proto::convert::MAX_BLOCKS, "blocks")?;
        let spec = spec_without_end(request.spec)?;
        if spec.passes() > 0 {
            return Err(CALIBRATE.bad("spec.half_steps", "must be 0: a sweep for a caller sums plain factors").into());
        }
        let first = CALIBRATE.number("first_sample", request.first_sample, spec.samples.saturating_sub(1))?;
        let left = spec.samples - first;
        let samples = match CALIBRATE.number("samples", request.samples, left)? {
            0 => left,
            asked => asked,
        };
        let (session, of) = (Arc::clone(&self.session), spec.clone());
        let blocks = self.compute.run(move || {
            let session = session.lock().unwrap_or_else(PoisonError::into_inner);
            Ok::<_, Error>(session.folder(&of)?.config().blocks)
        });
        let blocks = blocks.await?? as u32;
        let mut wanted = if request.blocks.is_empty() { (0..blocks).collect() } else { request.blocks };
        wanted.sort_unstable();
        wanted.dedup();
        if let Some(&block) = wanted.iter().find(|block| **block >= blocks) {
            return Err(Error::NoSuchBlock { block, blocks: blocks as usize });
        }
        let micro_batch = match u64::from(request.micro_batch) {
            0 => (MICRO_BATCH_TOKENS / spec.seq_len).max(1),
            asked => asked,
        };
        let generation = Generation(self.generation.fetch_add(1, Ordering::Relaxed) + 1);
        let key = SweepKey { run: name(&spec)?, shot: SHOT, shard: 0, generation };
        let task = Calibrate {
            shard: 0,
            first_sample: first as usize,
            samples: samples as usize,
            checkpoint: None,
            blocks: wanted,
            micro_batch: micro_batch as usize,
            pass: 0,
        };
        Ok(Asked { spec, key, task })
    }

    /// Returns the sweep; it holds the turn until it has ended.
    fn sweep(
        &self,
        asked: Asked,
        answers: mpsc::Sender<Result<v1::CalibrateResponse, tonic::Status>>,
        stop: CancellationToken,
        turn: OwnedSemaphorePermit,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (compute, session, shelf) = (self.compute.clone(), Arc::clone(&self.session), Arc::clone(&self.shelf));
        async move {
            let (thread, tell) = (compute.clone(), answers.clone());
            let peak = PeakMeter::start();
            let swept = compute.run(move || {
                let Asked { spec, key, task } = asked;
                let cancelled = || {
                    thread.touch();
                    stop.is_cancelled()
                };
                let mut progress = |done, total| {
                    let part = Some(Part::Progress(v1::SweepProgress { done, total }));
                    let _ = tell.try_send(Ok(v1::CalibrateResponse { part })); // a caller who does not read misses some
                };
                let (_, weighers) = mpsc::channel(1);
                let stored = Stored { changed: Changed::Here(Vec::new()), weighers };
                let mut control = Control { progress: &mut progress, cancelled: &cancelled };
                let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
                sweep(&mut session, &shelf, &key, (&spec, &task, stored), &mut control)
            });
            let answer = match swept.await {
                Ok(Ok(swept)) => {
                    crate::metrics::swept(swept.result.tokens, &swept.result.times, swept.wait);
                    tracing::info!(tokens = swept.result.tokens, bytes = swept.factor_bytes, "swept for a caller");
                    Ok(v1::CalibrateResponse { part: Some(Part::Result(calibrate_result(swept, &peak))) })
                }
                Ok(Err(error)) => Err(error.into()),
                Err(error) => Err(Error::from(error).into()),
            };
            drop(turn);
            let _ = answers.send(answer).await; // the caller may have left
        }
    }
}

/// Returns the name under which model and data of a spec are kept: equal specs have equal names.
fn name(spec: &RunSpec) -> Result<RunId, Error> {
    let json = serde_json::to_vec(spec).unwrap_or_default(); // plain numbers and texts always fit
    let digest = blake3::hash(&json).to_hex();
    Ok(RunId::new(&format!("caller-{}", &digest.as_str()[..16])).map_err(|e| CALIBRATE.bad("spec", e.to_string()))?)
}
