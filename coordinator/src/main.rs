//! The program `coordinator`: the one that decides. What it does is in the library.

use coordinator::serve;
use service::program::{self, Program};
use std::process::ExitCode;

const PROGRAM: Program = Program { name: "coordinator", prefix: "COORDINATOR", listen: "127.0.0.1:7100" };

fn main() -> ExitCode {
    program::main(PROGRAM, serve)
}
