//! Gathering over the in-memory transport, from calibrators and a coordinator that follow a script.

use super::*;
use bytes::Bytes;
use futures::stream;
use model::tensor_file;
use proto::v1;
use proto::v1::calibrator_service_server::{CalibratorService, CalibratorServiceServer};
use proto::v1::stream_factors_response::Part;
use proto::v1::worker_service_server::{WorkerService, WorkerServiceServer};
use service::keys;
use service::{ComputeThread, LocalBlock, LocalFactors, MemoryNetwork, Peers, Reason, Server, SweepKey};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tch::Tensor;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

/// What one stream sends before it ends.
type Parts = Vec<Part>;
type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A calibrator that answers each stream with the next script, and notes what it was asked.
#[derive(Clone, Default)]
struct Calibrator {
    scripts: Arc<Mutex<VecDeque<Parts>>>,
    asked: Arc<Mutex<Vec<v1::StreamFactorsRequest>>>,
    released: Arc<Mutex<Vec<(u32, u64)>>>,
}

#[tonic::async_trait]
impl CalibratorService for Calibrator {
    type StreamFactorsStream = BoxStream<v1::StreamFactorsResponse>;

    async fn stream_factors(
        &self,
        request: Request<v1::StreamFactorsRequest>,
    ) -> Result<Response<Self::StreamFactorsStream>, Status> {
        self.asked.lock().unwrap().push(request.into_inner());
        let script = self.scripts.lock().unwrap().pop_front();
        let parts = script.ok_or_else(|| Reason::PeerUnavailable.status("the script is over"))?;
        let answers = parts.into_iter().map(|part| Ok(v1::StreamFactorsResponse { part: Some(part) }));
        Ok(Response::new(Box::pin(stream::iter(answers.collect::<Vec<_>>()))))
    }

    async fn release_factors(
        &self,
        request: Request<v1::ReleaseFactorsRequest>,
    ) -> Result<Response<v1::ReleaseFactorsResponse>, Status> {
        let request = request.into_inner();
        self.released.lock().unwrap().push((request.block, request.generation));
        Ok(Response::new(v1::ReleaseFactorsResponse {}))
    }

    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Result<Response<v1::GetStatusResponse>, Status> {
        Err(Status::unimplemented("not in this script"))
    }

    type CalibrateStream = futures::stream::Empty<Result<v1::CalibrateResponse, Status>>;

    async fn load_model(&self, _: Request<v1::LoadModelRequest>) -> Result<Response<v1::LoadModelResponse>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn calibrate(&self, _: Request<v1::CalibrateRequest>) -> Result<Response<Self::CalibrateStream>, Status> {
        Err(Status::unimplemented("not asked here"))
    }
}

/// A coordinator that knows only the plan.
#[derive(Clone)]
struct Coordinator(watch::Sender<v1::GetPlanResponse>);

#[tonic::async_trait]
impl WorkerService for Coordinator {
    type HeartbeatStream = BoxStream<v1::HeartbeatResponse>;

    async fn get_plan(&self, request: Request<v1::GetPlanRequest>) -> Result<Response<v1::GetPlanResponse>, Status> {
        let known = request.into_inner().known_version;
        let mut plan = self.0.subscribe();
        let newer = plan.wait_for(|plan| plan.version > known).await.map_err(|_| Status::unavailable("gone"))?;
        Ok(Response::new(newer.clone()))
    }

    async fn register_worker(
        &self,
        _: Request<v1::RegisterWorkerRequest>,
    ) -> Result<Response<v1::RegisterWorkerResponse>, Status> {
        Err(Status::unimplemented("not in this script"))
    }

    async fn lease_tasks(&self, _: Request<v1::LeaseTasksRequest>) -> Result<Response<v1::LeaseTasksResponse>, Status> {
        Err(Status::unimplemented("not in this script"))
    }

    async fn heartbeat(
        &self,
        _: Request<Streaming<v1::HeartbeatRequest>>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        Err(Status::unimplemented("not in this script"))
    }

    async fn complete_task(
        &self,
        _: Request<v1::CompleteTaskRequest>,
    ) -> Result<Response<v1::CompleteTaskResponse>, Status> {
        Err(Status::unimplemented("not in this script"))
    }

    async fn fail_task(&self, _: Request<v1::FailTaskRequest>) -> Result<Response<v1::FailTaskResponse>, Status> {
        Err(Status::unimplemented("not in this script"))
    }

    async fn release_task(
        &self,
        _: Request<v1::ReleaseTaskRequest>,
    ) -> Result<Response<v1::ReleaseTaskResponse>, Status> {
        Err(Status::unimplemented("not in this script"))
    }

    async fn report_paths(
        &self,
        _: Request<Streaming<v1::ReportPathsRequest>>,
    ) -> Result<Response<v1::ReportPathsResponse>, Status> {
        Err(Status::unimplemented("not in this script"))
    }

    async fn report_cost_histogram(
        &self,
        _: Request<v1::ReportCostHistogramRequest>,
    ) -> Result<Response<v1::ReportCostHistogramResponse>, Status> {
        Err(Status::unimplemented("not in this script"))
    }

    async fn get_cut(&self, _: Request<v1::GetCutRequest>) -> Result<Response<v1::GetCutResponse>, Status> {
        Err(Status::unimplemented("not in this script"))
    }
}

/// A calibrator in the surgeon's process: each attempt's blocks, in order of readiness.
#[derive(Debug, Default)]
struct Beside {
    generation: u64,
    waiting: Mutex<Vec<(u32, Bytes)>>,
    /// Bytes of memory that reading a block takes.
    to_read: u64,
    /// Attempts that were asked for, and what was released.
    asked: Mutex<Vec<u64>>,
    released: Mutex<Vec<u32>>,
}

impl Beside {
    fn with(generation: u64, blocks: &[u32]) -> Self {
        let waiting = blocks.iter().map(|block| (*block, file(0, *block))).collect();
        Self { generation, waiting: Mutex::new(waiting), ..Self::default() }
    }

    fn check(&self, sweep: &SweepKey) -> Result<(), Status> {
        assert_eq!((&sweep.run, sweep.shot, sweep.shard), (&run(), 1, 0));
        if sweep.generation.0 == self.generation {
            return Ok(());
        }
        Err(Reason::GenerationStale.status("another attempt"))
    }
}

#[tonic::async_trait]
impl LocalFactors for Beside {
    async fn next(&self, sweep: &SweepKey, asked: &BTreeSet<u32>) -> Result<Option<LocalBlock>, Status> {
        self.asked.lock().unwrap().push(sweep.generation.0);
        self.check(sweep)?;
        let waiting = self.waiting.lock().unwrap();
        let found = waiting.iter().map(|(block, _)| *block).find(|block| asked.contains(block));
        Ok(found.map(|block| LocalBlock { block, to_read: self.to_read }))
    }

    async fn read(&self, sweep: &SweepKey, block: u32) -> Result<Vec<Bytes>, Status> {
        self.check(sweep)?;
        let waiting = self.waiting.lock().unwrap();
        Ok(waiting.iter().filter(|(waits, _)| *waits == block).map(|(_, bytes)| bytes.clone()).collect())
    }

    async fn release(&self, sweep: &SweepKey, block: u32) -> Result<(), Status> {
        self.check(sweep)?;
        self.waiting.lock().unwrap().retain(|(waits, _)| *waits != block);
        self.released.lock().unwrap().push(block);
        Ok(())
    }
}

/// Everything of one test.
struct World {
    network: MemoryNetwork,
    plan: watch::Sender<v1::GetPlanResponse>,
    store: Store,
    gatherer: Gatherer,
}

impl World {
    fn new(sources: Vec<v1::ShardSource>) -> Self {
        let network = MemoryNetwork::new();
        let plan = watch::Sender::new(v1::GetPlanResponse { version: 1, shards: sources });
        let server = Server::new(Peers::SameProcess).add_service(WorkerServiceServer::new(Coordinator(plan.clone())));
        let incoming = network.listen("coordinator").unwrap();
        tokio::spawn(server.serve(incoming, tokio_util::sync::CancellationToken::new(), Duration::ZERO));
        let connector = Connector::new(network.clone());
        let coordinator = WorkerServiceClient::new(connector.channel("memory://coordinator").unwrap());
        let store = Store::memory();
        // Less than one block: blocks come one at a time, but they come.
        let budget = Budget::new(1024);
        let compute = ComputeThread::spawn("surgeon-test", 4).unwrap();
        let gatherer = Gatherer {
            store: store.clone(),
            merger: Merger::new(store.clone(), compute, budget.clone()),
            connector,
            coordinator,
            budget,
            neighbour: None,
            ids: RequestIds::new("surgeon"),
        };
        Self { network, plan, store, gatherer }
    }

    fn calibrator(&self, name: &str, scripts: Vec<Parts>) -> Calibrator {
        let calibrator = Calibrator { scripts: Arc::new(Mutex::new(scripts.into())), ..Calibrator::default() };
        let server = Server::new(Peers::SameProcess).add_service(CalibratorServiceServer::new(calibrator.clone()));
        let incoming = self.network.listen(name).unwrap();
        tokio::spawn(server.serve(incoming, tokio_util::sync::CancellationToken::new(), Duration::ZERO));
        calibrator
    }

    /// Puts a calibrator into the surgeon's own process. Over the network nobody is there.
    fn neighbour(&mut self, name: &str, beside: &Arc<Beside>) {
        let factors: Arc<dyn LocalFactors> = beside.clone();
        self.gatherer.neighbour = Some(Neighbour { endpoint: format!("memory://{name}"), factors });
    }

    /// Gathers to the end; returns the failure, if that is the end.
    async fn gather(&self, shards: u32, blocks: &[u32]) -> Result<(), PullFailure> {
        self.gather_pass(0, shards, blocks).await
    }

    async fn gather_pass(&self, pass: u32, shards: u32, blocks: &[u32]) -> Result<(), PullFailure> {
        let shot = PassOfShot { run: run(), number: 1, pass, shards, merging: Merging::AsTheyCome };
        let mut gathering = self.gatherer.start(&shot, &blocks.iter().copied().collect());
        let end = async {
            loop {
                match gathering.next().await {
                    Event::Progress { .. } => {}
                    Event::Failed(failure) => return Err(failure),
                    Event::Done => return Ok(()),
                }
            }
        };
        tokio::time::timeout(Duration::from_mins(1), end).await.expect("it ends")
    }

    async fn stored(&self, shard: u32, block: u32) -> Option<Bytes> {
        self.store.get(&keys::factors(&run(), 1, shard, block)).await.ok()
    }

    /// All shards of a pass are one sum, and each says that it is stored.
    async fn assert_merged(&self, pass: u32, shards: [u32; 2], block: u32) {
        for shard in shards {
            assert_eq!(self.stored(shard, block).await.unwrap(), Bytes::new(), "shard {shard}");
        }
        let files = shards.map(|shard| vec![file(shard, block)]);
        let [first, second] = files;
        let expected = crate::bench::merged(first, second, &|| ()).unwrap();
        let all = self.store.list(&keys::all_merged(&run(), 1, pass, block)).await.unwrap();
        assert_eq!(all, [keys::merged(&run(), 1, pass, block, 2)]);
        assert!(self.store.get(&all[0]).await.unwrap() == expected);
    }
}

fn run() -> RunId {
    RunId::new("r").unwrap()
}

fn running(shard: u32, name: &str, generation: u64) -> v1::ShardSource {
    let endpoint = format!("memory://{name}");
    v1::ShardSource { shard, state: v1::ShardState::Running.into(), endpoint, generation }
}

fn file(shard: u32, block: u32) -> Bytes {
    let values: Vec<f32> = (0..820_u32).map(|n| (n * 7 + shard * 3 + block) as f32 / 7.0).collect();
    let metadata = BTreeMap::from([("tokens".to_owned(), "40".to_owned())]);
    Bytes::from(tensor_file::encode(&[("A:down".to_owned(), Tensor::from_slice(&values))], &metadata).unwrap())
}

fn header(shard: u32, block: u32) -> Part {
    let bytes = file(shard, block);
    let blake3 = blake3::hash(&bytes).to_hex().to_string();
    Part::Header(v1::FactorHeader { block, bytes: bytes.len() as u64, blake3 })
}

fn chunk(shard: u32, block: u32, range: std::ops::Range<usize>) -> Part {
    let payload = file(shard, block).slice(range.clone());
    let crc32c = crc32c::crc32c(&payload);
    Part::Chunk(v1::FactorChunk { block, offset: range.start as u64, crc32c, payload })
}

/// Returns the chunk after the first 1000 bytes.
fn rest(shard: u32, block: u32) -> Part {
    chunk(shard, block, 1000..file(shard, block).len())
}

/// Returns the part with its chunk, if it is one, changed.
fn changed(part: Part, change: impl Fn(v1::FactorChunk) -> v1::FactorChunk) -> Part {
    match part {
        Part::Chunk(chunk) => Part::Chunk(change(chunk)),
        header @ Part::Header(_) => header,
    }
}

fn whole(shard: u32, block: u32) -> Parts {
    vec![header(shard, block), chunk(shard, block, 0..1000), rest(shard, block)]
}

#[tokio::test]
async fn every_block_of_every_shard_is_stored_and_released() {
    let world = World::new(vec![running(0, "a", 4), running(1, "b", 9)]);
    let both = |shard| vec![[whole(shard, 6), whole(shard, 5)].concat()];
    let (a, b) = (world.calibrator("a", both(0)), world.calibrator("b", both(1)));
    world.gather(2, &[5, 6]).await.unwrap();
    for block in [5, 6] {
        world.assert_merged(0, [0, 1], block).await;
    }
    assert_eq!(*a.released.lock().unwrap(), [(6, 4), (5, 4)]);
    assert_eq!(b.asked.lock().unwrap()[0].blocks, [5, 6]);
    assert_eq!(b.asked.lock().unwrap()[0].generation, 9);
}

#[tokio::test]
async fn a_later_pass_gathers_the_shards_that_count_on_from_those_before() {
    let world = World::new(vec![running(4, "a", 1), running(5, "b", 1)]);
    let _both = (world.calibrator("a", vec![whole(4, 6)]), world.calibrator("b", vec![whole(5, 6)]));
    world.gather_pass(2, 2, &[6]).await.unwrap();
    world.assert_merged(2, [4, 5], 6).await;
}

#[tokio::test]
async fn a_quarantined_shard_is_not_waited_for_even_in_the_middle_of_a_block() {
    let world = World::new(vec![running(0, "a", 1), running(1, "b", 1)]);
    let whole_shard = world.calibrator("a", vec![[whole(0, 6), whole(0, 5)].concat()]);
    // One block is delivered, the next one breaks off.
    let broken = [whole(1, 6), vec![header(1, 5), chunk(1, 5, 0..1000)]].concat();
    let _breaks = world.calibrator("b", vec![broken]);
    let given_up = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let gone = v1::ShardSource { shard: 1, state: v1::ShardState::Quarantined.into(), ..Default::default() };
        world.plan.send_replace(v1::GetPlanResponse { version: 2, shards: vec![running(0, "a", 1), gone] });
    };
    let (gathered, ()) = tokio::join!(world.gather(2, &[5, 6]), given_up);
    gathered.unwrap();
    assert_eq!(world.stored(1, 5).await, None, "nothing half-received is stored");
    assert_eq!(*whole_shard.released.lock().unwrap(), [(6, 1), (5, 1)]);
}

#[tokio::test]
async fn a_damaged_chunk_is_asked_for_again_from_where_the_good_ones_end() {
    let world = World::new(vec![running(0, "a", 1)]);
    let mut damaged = whole(0, 6);
    damaged[2] = changed(rest(0, 6), |chunk| v1::FactorChunk { crc32c: chunk.crc32c ^ 1, ..chunk });
    let calibrator = world.calibrator("a", vec![damaged, vec![header(0, 6), rest(0, 6)]]);
    world.gather(1, &[6]).await.unwrap();
    assert_eq!(world.stored(0, 6).await.unwrap(), file(0, 6));
    let asked = calibrator.asked.lock().unwrap();
    assert_eq!((asked[0].resume_block, asked[1].resume_block, asked[1].resume_offset), (None, Some(6), 1000));
}

#[tokio::test]
async fn a_file_with_a_wrong_digest_is_never_stored() {
    let world = World::new(vec![running(0, "a", 1)]);
    // The checksums are right, the header is of another file.
    let mixed = [header(0, 6), chunk(0, 5, 0..1000), rest(0, 5)]
        .map(|part| changed(part, |chunk| v1::FactorChunk { block: 6, ..chunk }));
    let calibrator = world.calibrator("a", vec![mixed.to_vec(), whole(0, 6)]);
    world.gather(1, &[6]).await.unwrap();
    assert_eq!(world.stored(0, 6).await.unwrap(), file(0, 6));
    assert_eq!(calibrator.asked.lock().unwrap()[1].resume_block, None, "nothing of it is kept");
}

#[tokio::test]
async fn what_is_stored_is_not_asked_for_and_what_should_be_stored_is_missed() {
    let world = World::new(vec![running(0, "a", 1)]);
    world.store.put(&keys::factors(&run(), 1, 0, 5), file(0, 5)).await.unwrap();
    let calibrator = world.calibrator("a", vec![whole(0, 6)]);
    world.gather(1, &[5, 6]).await.unwrap();
    assert_eq!(calibrator.asked.lock().unwrap()[0].blocks, [6]);

    let state = v1::ShardState::Stored.into();
    let gone = World::new(vec![v1::ShardSource { shard: 0, state, ..Default::default() }]);
    let failure = gone.gather(1, &[7]).await.unwrap_err();
    assert_eq!(failure.block, 7);
    assert!(matches!(failure.error, Error::FactorsGone { shard: 0, .. }), "{}", failure.error);
}

#[tokio::test]
async fn when_a_calibrator_dies_the_next_one_goes_on_inside_the_block() {
    let world = World::new(vec![running(0, "a", 1)]);
    let broken = vec![header(0, 6), chunk(0, 6, 0..1000)];
    let _dies = world.calibrator("a", vec![broken]);
    let next = world.calibrator("b", vec![vec![header(0, 6), rest(0, 6)]]);
    let moved = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        world.plan.send_replace(v1::GetPlanResponse { version: 2, shards: vec![running(0, "b", 2)] });
    };
    let (gathered, ()) = tokio::join!(world.gather(1, &[6]), moved);
    gathered.unwrap();
    assert_eq!(world.stored(0, 6).await.unwrap(), file(0, 6));
    let asked = next.asked.lock().unwrap();
    assert_eq!((asked[0].generation, asked[0].resume_offset), (2, 1000));
}

#[tokio::test]
async fn a_neighbours_blocks_are_stored_as_they_lie_there_and_released() {
    let mut world = World::new(vec![running(0, "a", 4)]);
    let beside = Arc::new(Beside::with(4, &[6, 5]));
    let pointers: Vec<_> = beside.waiting.lock().unwrap().iter().map(|(_, bytes)| bytes.as_ptr() as usize).collect();
    world.neighbour("a", &beside);
    world.gather(1, &[5, 6]).await.unwrap();
    assert_eq!(*beside.released.lock().unwrap(), [6, 5]);
    let stored = [world.stored(0, 6).await.unwrap(), world.stored(0, 5).await.unwrap()];
    assert_eq!(stored, [file(0, 6), file(0, 5)]);
    assert_eq!(stored.map(|bytes| bytes.as_ptr() as usize).to_vec(), pointers, "the same memory");
}

#[tokio::test]
async fn a_neighbours_blocks_from_files_come_one_at_a_time_through_the_budget() {
    let mut world = World::new(vec![running(0, "a", 4)]);
    let beside = Arc::new(Beside { to_read: 3000, ..Beside::with(4, &[6, 5]) });
    world.neighbour("a", &beside);
    world.gather(1, &[5, 6]).await.unwrap();
    assert_eq!(world.stored(0, 5).await.unwrap(), file(0, 5));
    assert_eq!(world.gatherer.budget.used(), 0);
}

#[tokio::test]
async fn a_neighbour_with_another_attempt_is_asked_again_when_the_plan_says_so() {
    let mut world = World::new(vec![running(0, "a", 1)]);
    let beside = Arc::new(Beside::with(2, &[6]));
    world.neighbour("a", &beside);
    let moved = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(world.stored(0, 6).await.is_none(), "another attempt's factors are not taken");
        world.plan.send_replace(v1::GetPlanResponse { version: 2, shards: vec![running(0, "a", 2)] });
    };
    let (gathered, ()) = tokio::join!(world.gather(1, &[6]), moved);
    gathered.unwrap();
    assert_eq!(world.stored(0, 6).await.unwrap(), file(0, 6));
    let asked = beside.asked.lock().unwrap();
    assert_eq!((asked.first(), asked.last()), (Some(&1), Some(&2)));
}

#[tokio::test]
async fn what_a_neighbour_does_not_have_comes_from_whom_the_plan_names_next() {
    let mut world = World::new(vec![running(0, "a", 1)]);
    let beside = Arc::new(Beside::with(1, &[6]));
    world.neighbour("a", &beside);
    let next = world.calibrator("b", vec![whole(0, 5)]);
    let moved = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        world.plan.send_replace(v1::GetPlanResponse { version: 2, shards: vec![running(0, "b", 2)] });
    };
    let (gathered, ()) = tokio::join!(world.gather(1, &[5, 6]), moved);
    gathered.unwrap();
    assert_eq!(world.stored(0, 5).await.unwrap(), file(0, 5));
    assert_eq!(next.asked.lock().unwrap()[0].blocks, [5], "the neighbour's end is not the work's");
    assert_eq!(*beside.released.lock().unwrap(), [6]);
}

#[tokio::test]
async fn other_calibrators_are_streamed_from_as_ever() {
    let mut world = World::new(vec![running(0, "a", 1), running(1, "b", 1)]);
    let beside = Arc::new(Beside::with(1, &[6]));
    world.neighbour("a", &beside);
    let other = world.calibrator("b", vec![whole(1, 6)]);
    world.gather(2, &[6]).await.unwrap();
    world.assert_merged(0, [0, 1], 6).await;
    assert_eq!(*other.released.lock().unwrap(), [(6, 1)]);
}
