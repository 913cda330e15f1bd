//! The program `calibrator`: one calibrator that works for a coordinator. What it does is in the library.

use calibrator::{Args, serve};
use service::Shutdown;
use service::program::{self, Program};
use std::process::ExitCode;

const PROGRAM: Program = Program { name: "calibrator", prefix: "CALIBRATOR", listen: "127.0.0.1:7101" };

fn main() -> ExitCode {
    program::main(PROGRAM, async |args: Args, shutdown: Shutdown| {
        let (options, listener) = args.open().await?;
        tracing::info!(worker = %options.place.worker, endpoint = options.place.endpoint, "listening");
        serve(options, listener.incoming(), shutdown).await.map_err(|error| error.failure())
    })
}
