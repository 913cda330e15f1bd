//! What surgeons report of their blocks, and what they ask about them: a report is taken whole, held against the model and put into
//! the store under its block's key; a cut is read from the journal. Which reports can be is in [`crate::scores`].
//!
//! An attempt reports once. The board remembers what it was, so that a repeated call gets the first answer, and that no result can
//! name anything else. After a restart nothing is remembered: tasks are new then, and so are their attempts.

use crate::error::{RunError, lease_status};
use crate::result;
use crate::run::Run;
use crate::runs::Coordinator;
use crate::scores::{self, Coming, Due};
use crate::stages;
use crate::tasks::{Held, TaskFailure};
use crate::worker_grpc::{jitter, parse_worker};
use bytes::Bytes;
use planning::retry::FailureClass;
use proto::convert::{Fields, InvalidMessage, MAX_LAYERS, request_id};
use proto::v1;
use proto::v1::report_paths_request::Part;
use proto::v1::task::Work;
use service::keys;
use service::status::{Reason, chain, invalid_message};
use service::store::StoreError;
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;
use types::{BlockDescription, CostHistogram, LayerCut, LayerId, ObjectRef, WorkerId};

/// How long a report may be silent.
const IDLE: Duration = Duration::from_mins(1);
const PATHS: Fields = Fields("ReportPathsRequest");
const HISTOGRAMS: Fields = Fields("ReportCostHistogramRequest");

/// Returns where a block's report of a shot and round lies, by its digest.
type KeyOf = fn(&types::RunId, u32, u32, u32, &str) -> String;

/// Who reports under which lease.
#[derive(Debug)]
struct Reporter {
    request_id: String,
    worker: WorkerId,
    task_id: String,
    generation: u64,
}

impl Reporter {
    fn held(&self) -> Held<'_> {
        Held { worker: &self.worker, task_id: &self.task_id, generation: self.generation }
    }
}

/// A leased task and its block.
struct Asked {
    task: v1::Task,
    run: Arc<Run>,
    block: BlockDescription,
}

impl Coordinator {
    /// Takes the paths of a block; returns where they lie.
    pub(crate) async fn take_paths(
        &self,
        mut parts: impl Stream<Item = Result<v1::ReportPathsRequest, Status>> + Unpin + Send,
    ) -> Result<ObjectRef, Status> {
        let Some(Part::Header(header)) = next(&mut parts).await? else {
            return Err(invalid_message(&PATHS.bad("part", "the first message must be a header")));
        };
        let reporter = Reporter {
            request_id: request_id(header.request_id).map_err(|e| invalid_message(&e))?,
            worker: parse_worker(&header.worker)?,
            task_id: header.task_id,
            generation: header.generation,
        };
        let Asked { task, run, block } = self.asked(reporter.held())?;
        let Some(Work::Score(work)) = task.work.filter(|_| !run.spec().structure.is_masked()).filter(result::reports)
        else {
            return Err(invalid_message(&PATHS.bad("header.task_id", "it is no task that gives removal paths")));
        };
        let due = run
            .history(|h| Due::of(&block, run.spec().structure, |layer: &LayerId| h.layer_after(task.shot - 1, layer)));
        let mut coming = Coming::begin(&due, (header.layers, header.steps)).map_err(|e| self.fault(&reporter, &e))?;
        loop {
            match next(&mut parts).await? {
                Some(Part::Path(path)) => coming.add(path).map_err(|e| self.fault(&reporter, &e))?,
                Some(Part::Header(_)) => return Err(invalid_message(&PATHS.bad("part", "a second header came"))),
                None => break,
            }
        }
        let paths = coming.finish().map_err(|e| invalid_message(&e))?; // it broke: the call is made again
        due.check(&paths).map_err(|e| self.fault(&reporter, &e))?;
        let key = |blake3: &str| keys::scores(run.id(), task.shot, work.round, work.block, blake3);
        self.store_report(&run, &reporter, json(&paths)?, key).await
    }

    /// Takes the histograms of a block's layers; returns where they lie.
    pub(crate) async fn take_histograms(&self, request: v1::ReportCostHistogramRequest) -> Result<ObjectRef, Status> {
        let bytes = proto::encoded_bytes(&request);
        HISTOGRAMS.at_most("histograms", bytes, proto::MAX_MESSAGE_BYTES, "bytes").map_err(|e| invalid_message(&e))?;
        let reporter = Reporter {
            request_id: request_id(request.request_id).map_err(|e| invalid_message(&e))?,
            worker: parse_worker(&request.worker)?,
            task_id: request.task_id,
            generation: request.generation,
        };
        let Asked { task, run, block } = self.asked(reporter.held())?;
        let work = task.work.filter(|_| run.spec().structure.is_masked()).filter(result::reports);
        let (due, key_of, (round, number)): (_, KeyOf, _) = match work {
            Some(Work::Score(work)) => (scores::items(&block, run.spec()), keys::scores, (work.round, work.block)),
            Some(Work::Refine(work)) => {
                let first = run.history(|h| h.shots.get(&task.shot)?.scored.get(&work.block).map(|b| b.scores.clone()));
                let first = first.ok_or_else(|| Reason::Internal.status("a block is refined that was not scored"))?;
                let first = stages::load_json::<Vec<CostHistogram>>(&run, &first).await;
                let first = first.map_err(|e| match e {
                    RunError::Store(e) => self.store_failed(&reporter, &e),
                    other => other.status(),
                })?;
                let digit = work.digit as u16; // ours: it was one when the task was made
                (scores::items_with(&first, digit), keys::refined, (work.round, work.block))
            }
            _ => return Err(invalid_message(&HISTOGRAMS.bad("task_id", "it is no task that gives histograms"))),
        };
        let histograms: Vec<CostHistogram> = HISTOGRAMS
            .list("histograms", request.histograms, MAX_LAYERS)
            .and_then(|histograms| scores::check_histograms(&due, &histograms).map(|()| histograms))
            .map_err(|e| self.fault(&reporter, &e))?;
        let key = |blake3: &str| key_of(run.id(), task.shot, round, number, blake3);
        self.store_report(&run, &reporter, json(&histograms)?, key).await
    }

    /// Returns what the cut of its shot takes from a task's block.
    pub(crate) fn cut_of(&self, held: Held<'_>) -> Result<Vec<LayerCut>, Status> {
        let Asked { task, run, block } = self.asked(held)?;
        let cut = run.history(|h| h.shots.get(&task.shot).and_then(|s| s.cut.clone()));
        let cut = cut.ok_or_else(|| {
            Reason::CutNotChosen
                .status(format!("the cut of shot {} of run '{}' is not chosen yet", task.shot, task.run))
        })?;
        let ours = |cut: &LayerCut| block.layers.iter().any(|layer| layer.layer == cut.layer);
        Ok(cut.cuts.into_iter().filter(ours).collect())
    }

    /// Returns the leased task that `held` names, which must be of one block.
    fn asked(&self, held: Held<'_>) -> Result<Asked, Status> {
        let task = self.pool().leased(held).map_err(|e| lease_status(&e))?;
        let number = match &task.work {
            Some(Work::Score(work)) => work.block,
            Some(Work::Refine(work)) => work.block,
            Some(Work::Update(work)) => work.block,
            _ => return Err(invalid_message(&Fields("request").bad("task_id", "it is no task of one block's layers"))),
        };
        let ended = || Reason::TaskUnknown.status(format!("run '{}' of task '{}' has ended", task.run, held.task_id));
        let run = types::RunId::new(&task.run).ok().and_then(|id| self.get(&id)).ok_or_else(ended)?;
        let model = run.history(|h| h.prepared.as_ref().map(|p| p.model.clone()));
        let block = model.and_then(|model| model.blocks.into_iter().find(|block| block.block == number));
        let block = block.ok_or_else(|| Reason::Internal.status(format!("the model has no block {number}")))?;
        Ok(Asked { task, run, block })
    }

    /// Puts a report into the store, unless it is there already, and remembers where. `key` tells where by its digest.
    async fn store_report(
        &self,
        run: &Run,
        reporter: &Reporter,
        bytes: Bytes,
        key: impl Fn(&str) -> String,
    ) -> Result<ObjectRef, Status> {
        let held = reporter.held();
        let lost = |e| lease_status(&e);
        let storing = self.pool().storing(held).map_err(lost)?;
        let _one_at_a_time = storing.lock().await;
        let blake3 = blake3::hash(&bytes).to_hex().to_string();
        let object = ObjectRef { key: key(&blake3), bytes: bytes.len() as u64, blake3 };
        match self.pool().reported(held).map_err(lost)? {
            Some(before) if before.object == object => return Ok(object),
            Some(before) if before.request_id == reporter.request_id => {
                let problem = format!("request id '{}' was used for another report", before.request_id);
                return Err(Reason::RequestIdReused.status(problem));
            }
            Some(_) => {
                return Err(invalid_message(&PATHS.bad("header.task_id", "this attempt has reported something else")));
            }
            None => {}
        }
        run.store().put(&object.key, bytes).await.map_err(|e| self.store_failed(reporter, &e))?;
        self.pool().report(held, reporter.request_id.clone(), object.clone()).map_err(lost)?;
        tracing::debug!(run = %run.id(), task = reporter.task_id, bytes = object.bytes, "report stored");
        Ok(object)
    }

    /// Takes the task from a worker whose report cannot be: a bug of its, so as bad as a panic; another one is to try.
    fn fault(&self, reporter: &Reporter, invalid: &InvalidMessage) -> Status {
        let failure = TaskFailure { class: FailureClass::Internal, message: invalid.to_string(), reason: None };
        if let Err(lost) = self.pool().fail(reporter.held(), failure, jitter(&reporter.request_id)) {
            return lease_status(&lost);
        }
        tracing::warn!(worker = %reporter.worker, task = reporter.task_id, error = %invalid, "report refused");
        invalid_message(invalid)
    }

    /// Pauses the run of a report that cannot be stored, as if the store had failed its surgeon.
    fn store_failed(&self, reporter: &Reporter, error: &StoreError) -> Status {
        let (message, reason) = (chain(error), error.reason());
        let failure = TaskFailure { class: FailureClass::Store, message: message.clone(), reason: Some(reason) };
        match self.pool().fail(reporter.held(), failure, 0.0) {
            Ok(_) => reason.status(message),
            Err(lost) => lease_status(&lost),
        }
    }
}

/// Returns the next part of a report; nothing at its end.
async fn next(
    parts: &mut (impl Stream<Item = Result<v1::ReportPathsRequest, Status>> + Unpin),
) -> Result<Option<Part>, Status> {
    let silent = |_| Reason::PeerUnavailable.status(format!("the report was silent for {} s", IDLE.as_secs()));
    let Some(message) = tokio::time::timeout(IDLE, parts.next()).await.map_err(silent)? else { return Ok(None) };
    let message = message?;
    PATHS
        .at_most("part", proto::encoded_bytes(&message), proto::MAX_MESSAGE_BYTES, "bytes")
        .map_err(|e| invalid_message(&e))?;
    PATHS.required("part", message.part).map(Some).map_err(|e| invalid_message(&e))
}

/// Returns a report as it lies in the store.
fn json(report: &impl serde::Serialize) -> Result<Bytes, Status> {
    let json = serde_json::to_vec(report).map_err(|e| Reason::Internal.status(e.to_string()))?;
    Ok(Bytes::from(json))
}
