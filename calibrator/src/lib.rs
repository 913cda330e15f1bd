//! The calibrator: sweeps the model over shards of the calibration data and offers each block's curvature, and measures
//! the held-out loss. It decides nothing.
//!
//! Invariants:
//! * Tensors live on one compute thread, which holds one decoder at a time.
//! * At most two finished blocks wait for their surgeon in memory; more wait in a folder, if there is one; then the sweep waits.
//! * Factors are served under the generation that computed them; nobody gets an older attempt's.
//! * A task ends when everything it offered is in the store, so a calibrator holds nothing that would be missed.
//!
//! | file | what |
//! |---|---|
//! | `worker.rs` | tasks: from the store, to the compute thread, to the coordinator |
//! | `session.rs`, `sweep.rs` | what happens on the compute thread |
//! | `shelf.rs`, `spill.rs` | where finished blocks wait: in memory, in files |
//! | `neighbour.rs` | how the surgeon of the same process takes them |
//! | `standalone.rs` | sweeps for callers, without a coordinator |
//! | `grpc.rs`, `by_hand.rs` | `CalibratorService`, and its stream of factors without copies |

mod by_hand;
mod config;
mod correct;
mod error;
mod grpc;
mod job;
#[doc(hidden)]
pub mod measure;
mod metrics;
mod neighbour;
mod session;
mod shelf;
mod spill;
mod standalone;
mod sums;
mod sweep;
mod worker;

pub use config::{Args, Options, SweepArgs};
pub use error::Error;
pub use shelf::Shelf;
pub use spill::Spill;

use by_hand::ByHand;
use futures::Stream;
use grpc::Grpc;
use model::{ModelError, device};
use proto::v1;
use service::{ComputeThread, Server, Shutdown, WorkerOptions, run_standalone, run_worker};
use session::Session;
use standalone::Standalone;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tch::{Device, Kind, Tensor};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tonic::transport::server::Connected;
use worker::Handler;

/// Jobs that may wait for the compute thread.
const QUEUE: usize = 4;
/// How long open calls may take to end.
const GRACE: Duration = Duration::from_secs(2);

/// Serves `CalibratorService` on `incoming` and works for the coordinator, until `shutdown` fires or either fails.
///
/// # Errors
/// The device cannot be opened, the coordinator refuses this worker or is lost, or the service cannot be served.
pub async fn serve<I, IO>(options: Options, incoming: I, shutdown: Shutdown) -> Result<(), Error>
where
    I: Stream<Item = std::io::Result<IO>>,
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let compute = ComputeThread::spawn("calibrator", QUEUE).map_err(Error::Thread)?;
    let Options { place, device: choice, threads, weights, shelf } = options;
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
    metrics::watch(&shelf, device);
    let session = Arc::new(Mutex::new(Session::new(device, weights).reaching(place.places.telling(beat.clone()))));
    let standalone = match place.coordinator {
        Some(_) => None,
        None => Some(Standalone::new(compute.clone(), Arc::clone(&session), Arc::clone(&shelf), stop.clone())),
    };
    let grpc = Grpc {
        shelf: Arc::clone(&shelf),
        worker: place.worker.clone(),
        device: device_name.clone(),
        stop: stop.clone(),
        standalone: standalone.map(Arc::new),
    };
    let handler = Arc::new(Handler { compute, session, shelf, store: place.store });
    let (ready, is_ready) = watch::channel(false);
    let worker = WorkerOptions {
        worker: place.worker,
        role: v1::WorkerRole::Calibrator,
        endpoint: place.endpoint,
        libtorch,
        device: device_name,
        // A sweep has the device to itself.
        max_tasks: 1,
        max_batches: 1,
        ready,
    };
    let server = Server::new(place.peers).with_admin(place.admin).tell(place.vitals).ready_when(is_ready);
    let server = server.alive_while(beat.clone(), place.stuck_after);
    let server = server.add_guarded(ByHand::new(grpc), place.guard);
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
