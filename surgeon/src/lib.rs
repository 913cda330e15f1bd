//! The surgeon: takes each block's curvature from the calibrators, computes its removal paths, carries out the cut in its
//! layers, and writes the smaller model. It does not decide how much goes.
//!
//! Invariants:
//! * Tensors live on one compute thread, which holds the factors of one block at a time, and packed sums only while a shard is
//!   added to them.
//! * Shards are added in their order, whenever they came: same bits.
//! * Factors are in the store, checked, before their calibrator may forget them; a broken stream goes on where it broke.
//! * Everything is keyed by run, shot and block or by content, so that doing it again changes nothing.
//!
//! | file | what |
//! |---|---|
//! | `worker.rs`, `worker/` | tasks: from the coordinator, over the bench, to the store |
//! | `plan.rs`, `gather.rs`, `pull.rs`, `receive.rs` | factors: from the calibrators into the store |
//! | `pull/neighbour.rs` | the same from the calibrator of the same process |
//! | `merge.rs`, `merge/` | one sum of a block's shards, in their order, as they come |
//! | `bench.rs` | what happens on the compute thread |
//! | `standalone.rs` | factors, paths and cuts of callers, without a coordinator |
//! | `grpc.rs` | `SurgeonService` |

mod bench;
mod config;
mod error;
mod gather;
mod grpc;
mod job;
#[doc(hidden)]
pub mod measure;
mod merge;
mod metrics;
mod plan;
mod pull;
mod receive;
mod standalone;
mod worker;

pub use config::{Args, Options, ReceiveArgs};
pub use error::Error;
#[doc(hidden)] // for fuzz/factor_stream: whatever comes over a stream
pub use receive::Partial;
pub use receive::StreamFault;

use bench::Bench;
use futures::Stream;
use gather::Gatherer;
use grpc::{Board, Grpc};
use merge::Merger;
use model::{ModelError, device};
use proto::v1;
use proto::v1::surgeon_service_server::SurgeonServiceServer;
use proto::v1::worker_service_client::WorkerServiceClient;
use pull::Budget;
use service::{ComputeThread, RequestIds, Server, Shutdown, WorkerOptions, run_standalone, run_worker};
use standalone::Standalone;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tch::{Device, Kind, Tensor};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tonic::transport::server::Connected;
use worker::Handler;
use worker::block::Blocks;

/// Jobs that may wait for the compute thread.
const QUEUE: usize = 4;
/// How long open calls may take to end.
const GRACE: Duration = Duration::from_secs(2);
/// Tasks leased at once: all blocks of a shot, so that no block that waits on a shelf goes unasked for.
const MAX_TASKS: u32 = 4096;
/// Batches it carries out at once: a block that is given back must be leased again while its siblings wait for it.
const MAX_BATCHES: usize = 64;

/// Serves `SurgeonService` on `incoming` and works for the coordinator, until `shutdown` fires or either fails.
///
/// # Errors
/// The device cannot be opened, the coordinator refuses this worker or is lost, or the service cannot be served.
pub async fn serve<I, IO>(options: Options, incoming: I, shutdown: Shutdown) -> Result<(), Error>
where
    I: Stream<Item = std::io::Result<IO>>,
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let compute = ComputeThread::spawn("surgeon", QUEUE).map_err(Error::Thread)?;
    let Options { place, device: choice, threads, receive_bytes, neighbour } = options;
    let opened = compute.run(move || {
        threads.iter().copied().for_each(device::set_threads);
        let opened = (choice.open()?, device::libtorch_version()?);
        start_pool()?;
        Ok::<_, Error>(opened)
    });
    let (device, libtorch) = opened.await??;
    let device_name = device_name(device);
    let beat = compute.beat();
    service::telemetry::metrics::watch_process(&place.store);
    service::telemetry::metrics::watch_compute(beat.clone());

    let stop = shutdown.token().child_token();
    let board = Board::default();
    let bench = Arc::new(Mutex::new(Bench::new(device).reaching(place.places.telling(beat.clone()))));
    let blocks = Blocks { compute, bench, turn: Arc::default(), store: place.store.clone() };
    let budget = Budget::new(receive_bytes);
    metrics::watch(&budget, device);
    let standalone = match place.coordinator {
        Some(_) => None,
        None => Some(Arc::new(Standalone::new(blocks.clone(), budget.clone(), stop.clone()))),
    };
    let (name, shown_as) = (place.worker.clone(), device_name.clone());
    let grpc = Grpc { board: board.clone(), worker: name, device: shown_as, standalone };
    let (ready, is_ready) = watch::channel(false);
    let worker = WorkerOptions {
        worker: place.worker,
        role: v1::WorkerRole::Surgeon,
        endpoint: place.endpoint,
        libtorch,
        device: device_name,
        max_tasks: MAX_TASKS,
        max_batches: MAX_BATCHES,
        ready,
    };
    let server = Server::new(place.peers).with_admin(place.admin).tell(place.vitals).ready_when(is_ready);
    let server = server.alive_while(beat.clone(), place.stuck_after);
    let server = server
        .add_guarded(SurgeonServiceServer::new(grpc).max_decoding_message_size(proto::MAX_MESSAGE_BYTES), place.guard);
    // Whichever of the two ends first stops the other.
    let serving = async {
        let served = server.serve(incoming, stop.clone(), GRACE).await;
        stop.cancel();
        served
    };
    let working = async {
        let Some(coordinator) = place.coordinator else {
            run_standalone(worker.ready, stop.clone()).await;
            return Ok(());
        };
        let gatherer = Gatherer {
            merger: Merger::new(place.store.clone(), blocks.compute.clone(), budget.clone()),
            store: place.store,
            connector: place.connector,
            coordinator: WorkerServiceClient::new(coordinator.clone()),
            budget,
            neighbour,
            ids: RequestIds::new(worker.worker.as_str()),
        };
        let handler = Arc::new(Handler { blocks, gatherer, board });
        let worked = run_worker(coordinator, worker, handler, stop.clone()).await;
        stop.cancel();
        worked
    };
    let (served, worked) = tokio::join!(serving, working);
    worked?;
    Ok(served?)
}

/// Makes this thread's pool of CPU threads exist.
///
/// With calibrator and surgeon in one process their pools together have more threads than the machine has cores, and
/// OpenMP, once it knows, lets waiting threads sleep instead of spin. Known from the start, that is an order of magnitude
/// on a busy machine (measured on two cores at load 6: 25 s against 1.3 s for one small shot).
fn start_pool() -> Result<(), Error> {
    let many = Tensor::f_ones([1 << 18], (Kind::Float, Device::Cpu)).and_then(|ones| ones.f_exp());
    many.map(drop).map_err(|e| ModelError::from(e).into())
}

/// Returns the name of a device as it is written on the command line.
fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(number) => format!("cuda:{number}"),
        Device::Cpu | Device::Mps | Device::Vulkan => "cpu".to_owned(),
    }
}
