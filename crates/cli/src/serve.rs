//! `llm-surgeon serve worker`: a calibrator and a surgeon in one process, for a host with one GPU. Factors that both have to
//! do with go from the one to the other without a copy ([`service::neighbour`]).
//!
//! A program like the services' own: its flags, environment, signals and exit codes are theirs ([`service::program`]).

use crate::args::{ServeArgs, ServeCommand, WorkerArgs};
use service::program::{self, Failure, Program};
use service::worker::Pair;
use service::{Neighbour, Shutdown};
use std::ffi::OsString;
use std::process::ExitCode;

const WORKER: Program = Program { name: "worker", prefix: "WORKER", listen: "127.0.0.1:7101" };

/// Serves until a signal or a failure, and returns the exit status.
pub(crate) fn run(args: ServeArgs) -> ExitCode {
    let ServeCommand::Worker { words } = args.what;
    let all = std::iter::once(OsString::from("worker")).chain(words).collect();
    program::main_with(WORKER, all, worker)
}

/// Runs both workers until `shutdown` fires or either ends, which stops the other.
async fn worker(args: WorkerArgs, shutdown: Shutdown) -> Result<(), Failure> {
    let Pair { calibrator: (calibrator, swept), surgeon: (surgeon, operated), health } = args.pair.open().await?;
    for place in [&calibrator, &surgeon] {
        tracing::info!(worker = %place.worker, endpoint = place.endpoint, "listening");
    }
    let (device, threads, shelf) = (args.device, args.threads, args.sweep.shelf()?);
    let neighbour = Neighbour { endpoint: calibrator.endpoint.clone(), factors: shelf.clone() };
    let calibrator = calibrator::Options { place: calibrator, device, threads, weights: args.sweep.weights, shelf };
    let surgeon = surgeon::Options {
        place: surgeon,
        device,
        threads,
        receive_bytes: args.receive.receive_memory,
        neighbour: Some(neighbour),
    };
    let sweeping = async {
        let served = calibrator::serve(calibrator, swept.incoming(), shutdown.clone()).await;
        shutdown.start();
        served.map_err(|error| error.failure())
    };
    let operating = async {
        let served = surgeon::serve(surgeon, operated.incoming(), shutdown.clone()).await;
        shutdown.start();
        served.map_err(|error| error.failure())
    };
    let both = async { tokio::join!(sweeping, operating) };
    tokio::select! {
        (swept, operated) = both => swept.and(operated),
        () = health.tell() => unreachable!("it is told for ever"),
    }
}
