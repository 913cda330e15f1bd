//! All runs of one store: created, found, driven, stopped.

use crate::artifacts::{Artifacts, UploadLimits};
use crate::error::{Consequence, RunError};
use crate::event::{Ending, Event, History};
use crate::journal::{self, Journal, JournalError};
use crate::metrics;
use crate::pool::Pool;
use crate::run::{Run, Standing, StopCause, now_ms};
use crate::shot::run_to_the_end;
use crate::trace;
use crate::turns::Turns;
use proto::v1;
use proto::v1::artifact_service_server::ArtifactServiceServer;
use proto::v1::coordinator_service_server::CoordinatorServiceServer;
use proto::v1::worker_service_server::WorkerServiceServer;
use service::access::Guard;
use service::keys;
use service::listen::Listener;
use service::server::{Peers, Server};
use service::status::{Reason, chain};
use service::store::{Store, StoreError};
use service::telemetry::trace::Ended;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use types::{RunId, RunSpec, WorkerId};

/// How long a shutdown waits for calls under way.
const GRACE: Duration = Duration::from_secs(3);
/// Answers to mutating calls that are remembered.
const MAX_REQUESTS: usize = 10_000;

/// How a coordinator is deployed; nothing here changes a number.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// Where its callers live.
    pub peers: Peers,
    /// Who may create runs and look at them.
    pub public: Guard,
    /// Who may work.
    pub workers: Guard,
    /// How much callers may bring.
    pub uploads: UploadLimits,
}

impl Deployment {
    /// Returns that of a coordinator whose callers are in its process.
    pub fn same_process() -> Self {
        Self {
            peers: Peers::SameProcess,
            public: Guard::open(),
            workers: Guard::open(),
            uploads: UploadLimits::default(),
        }
    }
}

/// Why a coordinator stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Its services cannot be served.
    #[error("cannot serve")]
    Serve(#[from] tonic::transport::Error),
    /// Another coordinator has taken over one of its runs.
    #[error("another coordinator writes the journals of this store; there must be one")]
    Fenced,
}

/// Why a store's runs could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store cannot be listed.
    #[error("the store's runs cannot be listed")]
    Store(#[from] StoreError),
}

/// Why a run could not be created.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    /// The id was used for something else.
    #[error("request id '{id}' was used for another spec; choose a new one")]
    RequestIdReused {
        /// Which id.
        id: String,
    },
    /// The run could not be opened or recorded.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// A coordinator: cheap to clone, all clones are one.
#[derive(Debug, Clone)]
pub struct Coordinator {
    shared: Arc<Shared>,
}

/// Finds a coordinator without keeping it.
#[derive(Debug, Clone)]
pub(crate) struct WeakCoordinator(Weak<Shared>);

impl WeakCoordinator {
    pub(crate) fn upgrade(&self) -> Option<Coordinator> {
        self.0.upgrade().map(|shared| Coordinator { shared })
    }
}

#[derive(Debug)]
struct Shared {
    store: Store,
    pool: Arc<Pool>,
    /// Part of every record we write: nobody else ever has it.
    writer: String,
    runs: Mutex<BTreeMap<RunId, Arc<Run>>>,
    /// The digest of its specification and the run that answered it, by request id.
    requests: Mutex<HashMap<String, (blake3::Hash, RunId)>>,
    libtorch: Mutex<Option<String>>,
    /// Serialises creation: two equal requests must not open one journal twice.
    creating: tokio::sync::Mutex<()>,
    /// One for each run that may be under way at a time; runs wait for theirs in the order in which they came.
    turns: Turns,
    /// Fires when another coordinator is found to write a run of ours.
    fenced: CancellationToken,
}

impl Coordinator {
    /// Opens a store and folds the journals in it. Runs that have not ended wait for [`v1::CreateRunRequest`] with their
    /// spec, or for [`Coordinator::resume_all`].
    ///
    /// `parallel_runs`: how many runs are under way at a time, at least 1; later ones wait for their turn.
    pub async fn open(store: Store, parallel_runs: usize) -> Result<Self, OpenError> {
        let shared = Shared {
            store,
            pool: Arc::new(Pool::default()),
            writer: format!("{}-{}-{:08x}", std::process::id(), now_ms(), address_entropy()),
            runs: Mutex::default(),
            requests: Mutex::default(),
            libtorch: Mutex::default(),
            creating: tokio::sync::Mutex::default(),
            turns: Turns::new(parallel_runs),
            fenced: CancellationToken::new(),
        };
        let coordinator = Self { shared: Arc::new(shared) };
        coordinator.load().await?;
        metrics::watch(&coordinator);
        Ok(coordinator)
    }

    /// Returns what finds this coordinator as long as it lives.
    pub(crate) fn downgrade(&self) -> WeakCoordinator {
        WeakCoordinator(Arc::downgrade(&self.shared))
    }

    /// Continues every run that was under way when its coordinator stopped, oldest first. One that cannot be continued now
    /// stays paused.
    pub async fn resume_all(&self) {
        let mut stopped = self.all();
        stopped.retain(|run| run.standing().state == v1::RunState::Paused && !run.history(|h| h.paused));
        stopped.sort_by_key(|run| run.outline().created_ms);
        for run in stopped {
            match self.resume(&run).await {
                Ok(_) => tracing::info!(run = %run.id(), "run continued"),
                Err(error) => tracing::error!(run = %run.id(), error = chain(&error), "run cannot be continued"),
            }
        }
    }

    /// Serves `CoordinatorService`, `ArtifactService` and `WorkerService` on `incoming` until `shutdown`; then stops every run where it is.
    /// Health is told at `admin` as well.
    pub async fn serve<I, C>(
        self,
        incoming: I,
        deployment: Deployment,
        admin: Option<Listener>,
        shutdown: CancellationToken,
    ) -> Result<(), ServeError>
    where
        I: Stream<Item = std::io::Result<C>> + Send + 'static,
        C: tokio::io::AsyncRead + tokio::io::AsyncWrite + tonic::transport::server::Connected + Unpin + Send + 'static,
        C::ConnectInfo: Clone + Send + Sync + 'static,
    {
        let expiry = tokio::spawn(expire(self.shared.pool.clone(), shutdown.clone()));
        let coordinator =
            CoordinatorServiceServer::new(self.clone()).max_decoding_message_size(proto::MAX_CONTROL_BYTES);
        let worker = WorkerServiceServer::new(self.clone()).max_decoding_message_size(proto::MAX_CONTROL_BYTES);
        let stop = shutdown.child_token();
        let artifacts = Artifacts::open(self.clone(), deployment.uploads, stop.clone()).await;
        let artifacts = ArtifactServiceServer::new(artifacts).max_decoding_message_size(proto::MAX_MESSAGE_BYTES);
        let (stopping, fenced, on_stop) = (self.clone(), self.shared.fenced.clone(), stop.clone());
        let pausing = tokio::spawn(async move {
            tokio::select! {
                () = on_stop.cancelled() => {}
                () = fenced.cancelled() => on_stop.cancel(),
            }
            for run in stopping.all() {
                halt(&run, StopCause::Coordinator).await; // ends their watch streams, without which the server would wait
            }
        });
        let server = Server::new(deployment.peers).with_admin(admin);
        let server = server.add_guarded(coordinator, deployment.public.clone());
        let server = server.add_guarded(artifacts, deployment.public).add_guarded(worker, deployment.workers);
        let served = server.serve(incoming, stop, GRACE).await;
        pausing.abort();
        expiry.abort();
        if self.shared.fenced.is_cancelled() {
            return Err(ServeError::Fenced);
        }
        Ok(served?)
    }

    pub(crate) fn store(&self) -> &Store {
        &self.shared.store
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.shared.pool
    }

    fn runs(&self) -> MutexGuard<'_, BTreeMap<RunId, Arc<Run>>> {
        self.shared.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, id: &RunId) -> Option<Arc<Run>> {
        self.runs().get(id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Run>> {
        self.runs().values().cloned().collect()
    }

    /// All workers must compute with one libtorch: another could give other bits.
    pub(crate) fn check_libtorch(&self, worker: &WorkerId, version: &str) -> Result<(), Status> {
        let mut known = self.shared.libtorch.lock().unwrap_or_else(PoisonError::into_inner);
        let first = known.get_or_insert_with(|| version.to_owned());
        if first == version {
            return Ok(());
        }
        Err(Reason::VersionMismatch.status(format!(
            "worker {worker} has libtorch {version}, the others {first}: numbers could differ; run the same version"
        )))
    }

    /// Starts the run of a spec, or continues it; a run that failed or was cancelled starts anew under another name.
    pub(crate) async fn create(&self, request_id: &str, spec: RunSpec) -> Result<Arc<Run>, CreateError> {
        let _one_at_a_time = self.shared.creating.lock().await;
        if let Some(run) = self.answered(request_id, &spec)? {
            return Ok(run);
        }
        let id = self.name_for(&spec);
        let run = match self.get(&id).filter(|r| r.standing().state != v1::RunState::Paused) {
            Some(run) => run,
            None => self.start(id, spec.clone(), request_id).await?,
        };
        self.remember(request_id, &spec, run.id().clone());
        Ok(run)
    }

    /// Remembers which run answered a request.
    fn remember(&self, request_id: &str, spec: &RunSpec, run: RunId) {
        if request_id.is_empty() {
            return;
        }
        let mut requests = self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if requests.len() >= MAX_REQUESTS {
            requests.clear();
        }
        requests.insert(request_id.to_owned(), (digest(spec), run));
    }

    fn answered(&self, request_id: &str, spec: &RunSpec) -> Result<Option<Arc<Run>>, CreateError> {
        let requests = self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner);
        match requests.get(request_id) {
            Some((before, _)) if *before != digest(spec) => {
                Err(CreateError::RequestIdReused { id: request_id.to_owned() })
            }
            Some((_, id)) => Ok(self.get(id)),
            None => Ok(None),
        }
    }

    /// Returns the name of this spec's run that has not failed or been cancelled, or the first that is free.
    fn name_for(&self, spec: &RunSpec) -> RunId {
        let goes_on = |run: &&Arc<Run>| {
            run.spec() == spec && !matches!(run.standing().state, v1::RunState::Failed | v1::RunState::Cancelled)
        };
        // Specs of earlier programs had fewer fields, and so other names.
        if let Some(run) = self.all().iter().find(goes_on) {
            return run.id().clone();
        }
        let base = format!("r-{}", &digest(spec).to_hex().as_str()[..16]);
        let runs = self.runs();
        let names = (1..).map(|n: u32| if n == 1 { base.clone() } else { format!("{base}-{n}") });
        let mut ids = names.filter_map(|name| RunId::new(&name).ok());
        ids.find(|id| !runs.contains_key(id)).unwrap_or_else(|| unreachable!("there are more numbers than runs"))
    }

    async fn start(&self, id: RunId, spec: RunSpec, request_id: &str) -> Result<Arc<Run>, RunError> {
        let shared = &self.shared;
        let (journal, mut records) = Journal::open(shared.store.clone(), id.clone(), shared.writer.clone()).await?;
        if records.is_empty() {
            let event = Event::Created { spec: spec.clone(), request_id: request_id.to_owned() };
            match journal.append(&event, now_ms()).await {
                Ok(stored) => records.push((stored, event)),
                Err(JournalError::Fenced { .. }) => {} // another was quicker; the takeover reads what it wrote
                Err(error) => return Err(error.into()),
            }
        }
        journal.take_over(&mut records, now_ms).await?;
        let run = Run::new(
            id.clone(),
            spec,
            shared.store.clone(),
            shared.pool.clone(),
            Some(journal),
            records,
            Standing::plain(v1::RunState::Running),
        );
        let run = Arc::new(run);
        self.runs().insert(id, run.clone());
        tokio::spawn(drive(run.clone(), self.shared.clone()));
        Ok(run)
    }

    /// Continues a paused run; one in another state stays in it.
    pub(crate) async fn resume(&self, run: &Run) -> Result<Arc<Run>, RunError> {
        let _one_at_a_time = self.shared.creating.lock().await;
        match self.get(run.id()) {
            Some(present) if present.standing().state != v1::RunState::Paused => Ok(present),
            _ => self.start(run.id().clone(), run.spec().clone(), "").await,
        }
    }

    /// Stops a run until a caller resumes it.
    pub(crate) async fn pause(&self, run: &Run) {
        halt(run, StopCause::Pause).await;
    }

    /// Removes a run that is not under way, and everything it has in the store. Says whether it could.
    pub(crate) async fn delete(&self, run: &Run) -> Result<bool, StoreError> {
        let _one_at_a_time = self.shared.creating.lock().await;
        if run.standing().is_active() {
            return Ok(false);
        }
        self.shared.store.delete_prefix(&keys::run(run.id())).await?;
        self.runs().remove(run.id());
        Ok(true)
    }

    /// Stops a run for good.
    pub(crate) async fn cancel(&self, run: &Arc<Run>) -> Result<(), RunError> {
        halt(run, StopCause::Cancel).await;
        if run.standing().state != v1::RunState::Paused {
            return Ok(()); // cancelled by who drove it, or ended before
        }
        let (journal, _) =
            Journal::open(self.shared.store.clone(), run.id().clone(), self.shared.writer.clone()).await?;
        journal.append(&Event::Cancelled, now_ms()).await?;
        run.set_standing(Standing::plain(v1::RunState::Cancelled));
        self.shared.let_go(run);
        Ok(())
    }

    async fn load(&self) -> Result<(), StoreError> {
        let keys = self.shared.store.list("runs").await?;
        let mut names: Vec<&str> = keys.iter().filter_map(|key| key.split('/').nth(1)).collect();
        names.dedup();
        for id in names.into_iter().filter_map(|name| RunId::new(name).ok()) {
            match journal::replay(&self.shared.store, &id).await {
                Ok(records) => self.look_at(id, records),
                Err(error) => tracing::warn!(run = %id, error = chain(&error), "run cannot be read"),
            }
        }
        Ok(())
    }

    /// Makes a run of the store known without driving it.
    fn look_at(&self, id: RunId, records: Vec<(journal::Stored, Event)>) {
        let Some(Event::Created { spec, request_id }) = records.first().map(|(_, e)| e.clone()) else { return };
        self.remember(&request_id, &spec, id.clone());
        let (store, pool) = (self.shared.store.clone(), self.shared.pool.clone());
        let run = Run::new(id.clone(), spec, store, pool, None, records, Standing::plain(v1::RunState::Paused));
        run.set_standing(run.history(left_at));
        let run = Arc::new(run);
        self.runs().insert(id, run.clone());
        self.shared.let_go(&run);
    }

    /// Returns a folded run with its history and records, read again.
    pub(crate) async fn unfold(&self, run: &Run) -> Result<Arc<Run>, RunError> {
        let records = journal::replay(&self.shared.store, run.id()).await?;
        let (store, pool) = (self.shared.store.clone(), self.shared.pool.clone());
        let (id, spec, standing) = (run.id().clone(), run.spec().clone(), run.standing());
        Ok(Arc::new(Run::new(id, spec, store, pool, None, records, standing)))
    }
}

impl Shared {
    /// Keeps no more than an outline of a run that has ended; who looks at it now still has the whole.
    fn let_go(&self, run: &Arc<Run>) {
        let ended =
            matches!(run.standing().state, v1::RunState::Succeeded | v1::RunState::Failed | v1::RunState::Cancelled);
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        if ended
            && let Some(kept) = runs.get_mut(run.id())
            && Arc::ptr_eq(kept, run)
        {
            *kept = Arc::new(run.folded());
        }
    }
}

/// Returns where a run stands that nobody drives: at its end, or paused, by a caller or by the end of its coordinator.
fn left_at(history: &History) -> Standing {
    match &history.ending {
        Some(Ending::Succeeded) => Standing::plain(v1::RunState::Succeeded),
        Some(Ending::Failed { code, reason }) => {
            Standing { state: v1::RunState::Failed, reason: reason.clone(), code: code.clone() }
        }
        Some(Ending::Cancelled) => Standing::plain(v1::RunState::Cancelled),
        None if history.paused => Standing::paused(),
        None => Standing {
            state: v1::RunState::Paused,
            reason: "its coordinator stopped".into(),
            code: Reason::ShuttingDown.name().into(),
        },
    }
}

/// Drives a run until it ends, fails, pauses or is stopped.
async fn drive(run: Arc<Run>, shared: Arc<Shared>) {
    let result = tokio::select! {
        biased;
        () = run.stop.cancelled() => Err(RunError::Stopped),
        result = in_turn(&run, &shared.turns) => result,
    };
    shared.pool.remove_run(run.id().as_str());
    if result.as_ref().is_err_and(|error| error.reason() == Reason::Fenced) {
        tracing::error!(run = %run.id(), "another coordinator has taken the run over");
        shared.fenced.cancel();
    }
    let standing = match result {
        Ok(()) => conclude(&run, Event::Succeeded, Standing::plain(v1::RunState::Succeeded)).await,
        Err(error) => {
            let (code, reason) = (error.reason().name().to_owned(), chain(&error));
            match error.consequence() {
                Consequence::Pause => stopped_standing(&run, reason, code).await,
                Consequence::Fail => {
                    let event = Event::Failed { code: code.clone(), reason: reason.clone() };
                    conclude(&run, event, Standing { state: v1::RunState::Failed, reason, code }).await
                }
            }
        }
    };
    match standing.state {
        v1::RunState::Succeeded => trace::tell_run(&run, Ended::Well),
        v1::RunState::Failed => trace::tell_run(&run, Ended::Badly(&standing.reason)),
        v1::RunState::Cancelled => trace::tell_run(&run, Ended::Badly("cancelled")),
        _ => {} // somebody goes on with it
    }
    run.set_slot(None);
    run.set_standing(standing);
    shared.let_go(&run);
}

/// Waits for a run's turn, then carries it out.
async fn in_turn(run: &Run, turns: &Turns) -> Result<(), RunError> {
    let turn = if let Some(turn) = turns.try_take() {
        turn
    } else {
        run.set_standing(Standing::plain(v1::RunState::Queued));
        let turn = turns.take().await.ok_or(RunError::Stopped)?;
        run.set_standing(Standing::plain(v1::RunState::Running));
        turn
    };
    run.set_slot(Some(turn.slot()));
    tracing::info!(run = %run.id(), slot = turn.slot(), "run begins");
    run_to_the_end(run).await
}

/// Stops a run, and waits until nobody drives it any more.
async fn halt(run: &Run, cause: StopCause) {
    run.stop_for(cause);
    settled(run).await;
}

/// Returns where a run stands that does not go on, after journalling what a caller asked for.
async fn stopped_standing(run: &Run, reason: String, code: String) -> Standing {
    match run.stop_cause() {
        Some(StopCause::Cancel) => conclude(run, Event::Cancelled, Standing::plain(v1::RunState::Cancelled)).await,
        Some(StopCause::Pause) => {
            if let Err(error) = run.record(Event::Paused).await {
                tracing::warn!(run = %run.id(), error = chain(&error), "the pause is not in the journal");
            }
            Standing::paused()
        }
        Some(StopCause::Coordinator) | None => Standing { state: v1::RunState::Paused, reason, code },
    }
}

/// Journals a run's end. If that fails the run is not ended but paused: what is not durable did not happen.
async fn conclude(run: &Run, event: Event, standing: Standing) -> Standing {
    match run.record(event).await {
        Ok(()) => standing,
        Err(error) => {
            Standing { state: v1::RunState::Paused, reason: chain(&error), code: error.reason().name().to_owned() }
        }
    }
}

/// Waits until a run that was told to stop is not running any more.
async fn settled(run: &Run) {
    let mut changed = run.watch();
    while run.standing().is_active() {
        if changed.changed().await.is_err() {
            return;
        }
    }
}

async fn expire(pool: Arc<Pool>, shutdown: CancellationToken) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = tick.tick() => pool.expire(),
        }
    }
}

/// Returns what tells specifications apart.
fn digest(spec: &RunSpec) -> blake3::Hash {
    blake3::hash(&serde_json::to_vec(spec).unwrap_or_default()) // plain numbers and texts always fit
}

/// Returns bits that differ between processes started in the same millisecond under the same number (containers).
fn address_entropy() -> u32 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish() as u32
}
