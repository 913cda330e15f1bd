//! `prune`: checks what can be checked here, starts the services, creates the run and follows it to its end.

mod check;
mod command;
mod follow;
mod journal;
mod request;

pub(crate) use check::{missing_data, only_paths, output_parent, state_folder};
pub(crate) use command::command;
pub(crate) use follow::{Follower, run_id};
pub(crate) use journal::{Journal, journal_of, journal_so_far};
pub(crate) use request::{absolute, is_address, spec, unchecked, usual_seq_len};

use crate::args::{MachineArgs, PruneArgs};
use crate::error::{CliError, report_error};
use crate::local::{Client, Deployment, Local, call, each_run};
use crate::output::{print, print_json, print_line, tell};
use crate::progress::{self, Display};
use crate::report;
use crate::summary::Summary;
use model::{ModelFolder, Weights};
use proto::v1;
use service::{RequestIds, Shutdown, Store};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use types::RunSpec;

/// How long workers may take to lay down their work.
const DRAIN: Duration = Duration::from_secs(10);
/// Threads that carry messages; computing has its own.
const MESSAGE_THREADS: usize = 4;

/// Prunes a model.
pub(crate) fn run(args: &PruneArgs) -> Result<(), CliError> {
    let display = start_display(args.quiet)?;
    request::target(&args.run)?;
    let (model, out) = (args.run.model.to_string_lossy(), args.run.out.to_string_lossy());
    let text = [("--data", &args.run.data), ("--eval-data", &args.run.eval_data)];
    let text = text.iter().flat_map(|(flag, paths)| paths.iter().map(move |path| (*flag, path.as_str())));
    check::only_paths([("MODEL", &*model), ("--out", &*out)].into_iter().chain(text))?;
    let folder = ModelFolder::open(&args.run.model)?;
    let spec = request::spec(&args.run, folder.config())?;
    let output = PathBuf::from(&spec.output);
    let state = std::path::absolute(args.state()).map_err(|source| CliError::Setup { what: "find --state", source })?;
    if output.exists() && !state.exists() {
        return Err(CliError::OutputExists(output));
    }
    check::inputs(&spec, &folder)?;
    if args.machine.weights == Weights::Stream && spec.correct_rank > 0 {
        let problem = "--correct-rank trains every layer and needs all weights in memory; go without --weights stream";
        return Err(CliError::Usage(problem.to_owned()));
    }
    drop(folder);
    args.machine.device.open()?;
    check::output_parent(&output)?;
    check::writable("--state", &state, &state)?;

    launch(Call { machine: args.machine, json: args.json, quiet: args.quiet }, &state, display, async |_| Ok(spec))
}

/// Returns the display for a run; the program's log goes through it.
pub(crate) fn start_display(quiet: bool) -> Result<Display, CliError> {
    progress::start(quiet, if quiet { "error" } else { "warn" })
}

/// How a run is carried out and shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    pub(crate) machine: MachineArgs,
    pub(crate) json: bool,
    pub(crate) quiet: bool,
}

/// Carries out the run that `spec` asks for, once the coordinator of `state` answers, and shows what came of it.
pub(crate) fn launch(
    call: Call,
    state: &Path,
    display: Display,
    spec: impl AsyncFnOnce(&Client) -> Result<RunSpec, CliError>,
) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(MESSAGE_THREADS)
        .thread_name("messages")
        .enable_all()
        .build()
        .map_err(|source| CliError::Setup { what: "start the message threads", source })?;
    let (done, drained) = runtime.block_on(serve_and_follow(call, state, display, spec));
    runtime.shutdown_timeout(Duration::from_secs(1));
    let done = done.and_then(|summary| show(call, &summary));
    if drained { done } else { leave(done) }
}

/// Prints what came of the run.
fn show(call: Call, summary: &Summary) -> Result<(), CliError> {
    match (call.json, call.quiet) {
        (true, quiet) => {
            if !quiet {
                tell(&format!("\n{}", summary.render()));
            }
            print_json(summary)
        }
        (false, true) => print_line(&summary.output),
        (false, false) => print(&format!("\n{}", summary.render())),
    }
}

/// Ends the program at once: a computation that could not be stopped must not meet libtorch being torn down.
fn leave(done: Result<(), CliError>) -> ! {
    let exit = report_error(done);
    signal_hook::low_level::exit(i32::from(exit.code()))
}

/// Runs the services around the run. Says beside the result whether all of them laid down their work.
async fn serve_and_follow(
    call: Call,
    state: &Path,
    display: Display,
    spec: impl AsyncFnOnce(&Client) -> Result<RunSpec, CliError>,
) -> (Result<Summary, CliError>, bool) {
    let start = async || {
        let signals =
            Shutdown::on_signals().map_err(|source| CliError::Setup { what: "listen for signals", source })?;
        let store = Store::open_local(state).map_err(CliError::Store)?;
        let local = Local::start(store.clone()).await?;
        Ok((signals, store, local))
    };
    let (signals, store, mut local) = match start().await {
        Ok(started) => started,
        Err(error) => return (Err(error), true),
    };
    tokio::spawn(leave_at_second_signal(signals.clone()));
    let MachineArgs { device, threads, weights } = call.machine;
    let deployment = Deployment { store, device, threads, weights };
    let session = Session { json: call.json, state, display, deployment, signals };
    let followed = session.drive(&mut local, spec).await;
    (followed, local.stop(DRAIN).await)
}

/// One call of the program.
struct Session<'a> {
    json: bool,
    state: &'a Path,
    display: Display,
    deployment: Deployment,
    signals: Shutdown,
}

impl Session<'_> {
    /// Creates the run and follows it.
    async fn drive(
        self,
        local: &mut Local,
        spec: impl AsyncFnOnce(&Client) -> Result<RunSpec, CliError>,
    ) -> Result<Summary, CliError> {
        let Self { json, state, display, deployment, signals } = self;
        let client = local.client()?;
        let spec = spec(&client).await?;
        let before = find_run(&client, &spec).await?;
        greet(&spec, before.as_ref(), state, &display)?;
        if before.as_ref().is_none_or(|run| run.state() != v1::RunState::Succeeded) {
            local.start_workers(&deployment)?;
        }
        let started = SystemTime::now();
        let run = create_run(&client, &spec).await?;
        let mut follower = Follower::new(client.clone(), &run, &spec, started, display, json);
        let followed = follower.until_it_ends(local, &signals).await?;
        let report = follow::report(&client, &run.name).await?;
        let journal = Journal::new(follow::run_id(&run.name), followed, report);
        if let Err(error) = report::put_all(&journal, &state.display().to_string()) {
            // The model is there and proved; its page can be made again.
            tell(&format!("warning: {error}; llm-surgeon report {} tries again\n", state.display()));
        }
        Summary::new(&journal.run, &journal.history, journal.timeline, journal.warnings, state)
            .ok_or_else(|| CliError::Unreadable(format!("the journal of {} has no end", run.name)))
    }
}

/// Returns the run that the same command began before, if there is one that can go on or is done.
async fn find_run(client: &Client, spec: &RunSpec) -> Result<Option<v1::Run>, CliError> {
    let wanted = v1::RunSpec::from(spec.clone());
    let usable = |run: &v1::Run| !matches!(run.state(), v1::RunState::Failed | v1::RunState::Cancelled);
    newest_run(client, |run| run.spec.as_ref() == Some(&wanted) && usable(run)).await
}

/// Returns the newest run of the store that is `wanted`.
pub(crate) async fn newest_run(
    client: &Client,
    wanted: impl Fn(&v1::Run) -> bool,
) -> Result<Option<v1::Run>, CliError> {
    each_run(client, "cannot list earlier runs", |run| wanted(&run).then_some(run)).await
}

/// Says what the command goes on from, or that it cannot.
fn greet(spec: &RunSpec, before: Option<&v1::Run>, state: &Path, display: &Display) -> Result<(), CliError> {
    let output = PathBuf::from(&spec.output);
    let Some(run) = before else {
        if output.exists() {
            return Err(CliError::OutputExists(output));
        }
        display.line(&format!("state: {}", state.display()));
        return Ok(());
    };
    let id = follow::run_id(&run.name);
    if run.state() == v1::RunState::Succeeded {
        if !output.exists() {
            return Err(CliError::OutputGone { run: id.to_owned(), state: state.to_owned(), output });
        }
        display.line(&format!("run {id} was finished before; its output is {}", output.display()));
        return Ok(());
    }
    // After the last shot the folder may have got its name in the moment before the program was stopped.
    if output.exists() && run.shots_done < spec.shots {
        return Err(CliError::OutputExists(output));
    }
    let at = (run.shots_done + 1).min(spec.shots);
    display.line(&format!("resuming run {id} at shot {at} of {}", spec.shots));
    Ok(())
}

async fn create_run(client: &Client, spec: &RunSpec) -> Result<v1::Run, CliError> {
    let request_id = RequestIds::new("cli").next();
    let request = v1::CreateRunRequest { request_id, spec: Some(spec.clone().into()), validate_only: false };
    let create = |mut client: Client, request| async move { client.create_run(request).await };
    let created = call(client, "cannot create the run", request, create).await?;
    created.run.ok_or_else(|| CliError::Unreadable("a created run without the run".into()))
}

/// Ends the program when somebody insists.
async fn leave_at_second_signal(first: Shutdown) {
    first.token().cancelled().await;
    if let (Some(_), Ok(signal)) = (first.signal(), service::shutdown::next_signal().await) {
        let what = "the same command resumes from the last committed step".into();
        leave(Err(CliError::Interrupted { signal, what }));
    }
}
