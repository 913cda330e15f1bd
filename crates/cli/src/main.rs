//! The program `llm-surgeon`: prunes, measures and shows language models.
//!
//! One file a subcommand: [`prune`], [`materialise`], [`eval`], [`generate`], [`inspect`], [`mod@report`], [`compare`]; what talks
//! to a coordinator elsewhere is in [`remote`], what works for one in [`serve`].
//! Results go to standard output, progress and logs to standard
//! error; exit codes are in [`error`]. `prune` is a client of the coordinator like any other: it starts the three
//! services in this process ([`local`]), creates a run and follows its journal. Nothing here decides about a run.

mod args;
mod compare;
mod error;
mod eval;
mod generate;
mod inspect;
mod local;
mod materialise;
mod output;
mod plan;
mod progress;
mod prune;
mod remote;
mod report;
mod serve;
mod sizes;
mod summary;
mod text;

use args::Command;
use remote::Control;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match args::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let done = match cli.command {
        Command::Prune(args) => prune::run(&args),
        Command::Materialise(args) => materialise::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Submit(args) => remote::submit(&args),
        Command::List(args) => remote::list(&args),
        Command::Watch(args) => remote::watch(&args),
        Command::Pause(args) => remote::control(&args, Control::Pause),
        Command::Resume(args) => remote::control(&args, Control::Resume),
        Command::Cancel(args) => remote::control(&args, Control::Cancel),
        Command::Delete(args) => remote::control(&args, Control::Delete),
        Command::Workers(args) => remote::workers(&args),
        Command::Artifacts(args) => remote::artifacts(&args),
        Command::Fetch(args) => remote::fetch(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Serve(args) => return serve::run(args),
    };
    ExitCode::from(error::report_error(done).code())
}
