//! The program `surgeon`: one surgeon that works for a coordinator. What it does is in the library.

use service::Shutdown;
use service::program::{self, Program};
use std::process::ExitCode;
use surgeon::{Args, serve};

const PROGRAM: Program = Program { name: "surgeon", prefix: "SURGEON", listen: "127.0.0.1:7102" };

fn main() -> ExitCode {
    program::main(PROGRAM, async |args: Args, shutdown: Shutdown| {
        let (options, listener) = args.open().await?;
        tracing::info!(worker = %options.place.worker, endpoint = options.place.endpoint, "listening");
        serve(options, listener.incoming(), shutdown).await.map_err(|error| error.failure())
    })
}
