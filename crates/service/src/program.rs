//! What `main` of every service binary does: flags, environment and file to one configuration, logs, signals, the bounded
//! stop, the exit status.
//!
//! Flags say where a service runs and never change a number; those that do are in the run specification.

mod exit;
mod settings;

pub use exit::{Exit, Failure};

use crate::Shutdown;
use crate::telemetry::{self, LogFormat};
use clap::{Args, Parser};
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// How long a service may take to lay down its work after a signal, before it is ended anyway. Longer than the workers'
/// own bounds on handlers and releases together.
const DRAIN: Duration = Duration::from_secs(12);
/// How long a collector may take for what waits at the end.
const FLUSH: Duration = Duration::from_secs(2);
/// Threads that carry messages; computing has its own.
const MESSAGE_THREADS: usize = 4;

/// Flags that every service has.
#[derive(Debug, Clone, Args)]
pub struct ProgramArgs {
    /// File of settings: TOML, one `flag = value` a line; flags and environment come before it
    #[arg(long, value_name = "FILE", help_heading = "Program")]
    pub config: Option<PathBuf>,
    /// What log lines on standard error look like: plain or json
    #[arg(long, value_name = "FORMAT", default_value = "plain", help_heading = "Program")]
    pub log_format: LogFormat,
}

/// What the services' programs differ in, besides their own flags.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// What it is called in traces and metrics.
    pub name: &'static str,
    /// Begins the names of environment variables: `--some-flag` is also `PREFIX_SOME_FLAG`.
    pub prefix: &'static str,
    /// Where it listens if nothing is said: a port of its own on this host.
    pub listen: &'static str,
}

/// Runs a service: parses its flags, sets up logs and signals, serves until a signal or a failure, and returns the exit
/// status.
pub fn main<A>(program: Program, serve: impl AsyncFnOnce(A, Shutdown) -> Result<(), Failure>) -> ExitCode
where
    A: Parser + AsRef<ProgramArgs>,
{
    main_with(program, std::env::args_os().collect(), serve)
}

/// Does the same with the words of this command line; the first is the program's.
pub fn main_with<A>(
    program: Program,
    words: Vec<OsString>,
    serve: impl AsyncFnOnce(A, Shutdown) -> Result<(), Failure>,
) -> ExitCode
where
    A: Parser + AsRef<ProgramArgs>,
{
    let args: A = match parse(program, words) {
        Ok(args) => args,
        Err(code) => return code,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(MESSAGE_THREADS)
        .thread_name("messages")
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return end(&Failure::new(Exit::System, format!("cannot start threads: {error}"))),
    };
    let telemetry = runtime.block_on(async { telemetry::init(program.name, args.as_ref().log_format, "info") });
    let telemetry = match telemetry {
        Ok(telemetry) => telemetry,
        Err(error) => return end(&Failure::new(Exit::Usage, crate::status::chain(&error))),
    };
    let (served, drained) = runtime.block_on(async {
        let shutdown = match Shutdown::on_signals() {
            Ok(shutdown) => shutdown,
            Err(error) => return (Err(Failure::new(Exit::System, format!("cannot listen for signals: {error}"))), true),
        };
        let overdue = async {
            shutdown.token().cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        tokio::select! {
            served = serve(args, shutdown.clone()) => (served, shutdown.token().is_cancelled()),
            () = overdue => (Err(Failure::new(Exit::Overdue, "did not stop in time; open leases will expire".into())), false),
        }
    });
    telemetry.flush(FLUSH); // while there is a runtime to send with
    runtime.shutdown_timeout(Duration::from_secs(1));
    let exit = match &served {
        Ok(()) => Exit::Done,
        Err(failure) => {
            end(failure);
            failure.exit
        }
    };
    tracing::info!(exit = exit.code(), drained, "stopped");
    let _ = std::io::stderr().flush(); // nobody could be told
    if !drained || exit != Exit::Done {
        // A computation that is still running must not meet its library being torn down.
        signal_hook::low_level::exit(i32::from(exit.code()));
    }
    ExitCode::SUCCESS
}

/// Returns the parsed flags, or what to exit with: help and version end well, faults do not.
fn parse<A: Parser>(program: Program, given: Vec<OsString>) -> Result<A, ExitCode> {
    let command = A::command().mut_arg("listen", |arg| arg.required(false).default_value(program.listen));
    let command = settings::with_environment(command, program.prefix).after_help(exit::table());
    let all = settings::with_file(&command, given, program.prefix).map_err(|failure| end(&failure))?;
    let parsed = command.try_get_matches_from(all).and_then(|matches| A::from_arg_matches(&matches));
    parsed.map_err(|error| {
        let _ = error.print(); // nobody listens
        let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
        ExitCode::from(exit.code())
    })
}

/// Says why the program ends.
fn end(failure: &Failure) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "error: {}", failure.message); // nobody could be told
    ExitCode::from(failure.exit.code())
}
