//! What talks to a coordinator elsewhere: asks for runs, shows, follows and stops them, shows and drains workers, moves files to its store
//! and from there.

mod artifacts;
mod fetch;
mod show;
mod upload;

pub(crate) use artifacts::artifacts;
pub(crate) use fetch::fetch;

use crate::args::{ControlArgs, ListArgs, RemoteArgs, RunArgs, SubmitArgs, WatchArgs, WorkersArgs};
use crate::error::CliError;
use crate::local::{Client, call, each_run, message_thread};
use crate::output::{print, print_json, print_line};
use crate::progress::Display;
use crate::prune::{self, Follower, Journal, journal_so_far, run_id};
use model::ModelFolder;
use proto::v1;
use proto::v1::artifact_service_client::ArtifactServiceClient;
use proto::v1::coordinator_service_client::CoordinatorServiceClient;
use service::access::TokenFile;
use service::listen::Plain;
use service::retry::{Retry, within};
use service::tls::Tls;
use service::{Connector, MemoryNetwork, RequestIds, Shutdown, Wire};
use std::time::{Duration, SystemTime};
use types::RunSpec;

/// How long a coordinator may take to answer for the first time.
const PATIENCE: Duration = Duration::from_secs(5);

/// What can be done to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    Pause,
    Resume,
    Cancel,
    Delete,
}

/// Asks for a run.
pub(crate) fn submit(args: &SubmitArgs) -> Result<(), CliError> {
    let display = prune::start_display(args.quiet)?;
    let mut spec = spec(&args.run)?;
    linked(&args.remote, async |link| {
        if args.upload {
            spec = self::spec(&upload::bring(&link, &args.run, &display).await?)?;
        }
        let client = link.client;
        let request_id = RequestIds::new("submit").next();
        let request =
            v1::CreateRunRequest { request_id, spec: Some(spec.clone().into()), validate_only: args.validate_only };
        let create = |mut client: Client, request| async move { client.create_run(request).await };
        let created = call(&client, "the coordinator does not take the run", request, create).await?;
        if args.validate_only {
            return print_line("the coordinator would take this run");
        }
        let run = created.run.ok_or_else(|| CliError::Unreadable("a created run without the run".into()))?;
        if !args.follow {
            return if args.json { print_json(&show::Run::from(&run)) } else { print_line(run_id(&run.name)) };
        }
        follow(client, &run, display, args.json).await
    })
}

/// Returns what is asked for. What can be checked from here is; the workers check the rest.
fn spec(run: &RunArgs) -> Result<RunSpec, CliError> {
    if run.model.exists() {
        return prune::spec(run, ModelFolder::open(&run.model)?.config());
    }
    let Some(seq_len) = run.seq_len else {
        return Err(CliError::Usage(format!(
            "{} is not to be seen from here, so --seq-len has no default; say how many tokens a sample has",
            run.model.display()
        )));
    };
    prune::unchecked(run, seq_len)?.validated().map_err(CliError::Spec)
}

/// Shows all runs.
pub(crate) fn list(args: &ListArgs) -> Result<(), CliError> {
    connected(&args.remote, async |client| {
        let mut runs = Vec::new();
        each_run(&client, "cannot list the runs", |run| {
            runs.push(show::Run::from(&run));
            None::<()>
        })
        .await?;
        if args.json {
            return runs.iter().try_for_each(print_json);
        }
        print(&show::runs(&runs))
    })
}

/// Follows a run.
pub(crate) fn watch(args: &WatchArgs) -> Result<(), CliError> {
    let display = prune::start_display(args.quiet)?;
    connected(&args.remote, async |client| {
        let request = v1::GetRunRequest { name: resource(&args.run) };
        let get = |mut client: Client, request| async move { client.get_run(request).await };
        let found = call(&client, "cannot find the run", request, get).await?;
        let run = found.run.ok_or_else(|| CliError::Unreadable("a found run without the run".into()))?;
        follow(client, &run, display, args.json).await
    })
}

/// Returns what is known of a run by now.
pub(crate) fn journal(args: &RemoteArgs, run: &str) -> Result<Journal, CliError> {
    connected(args, async |client| journal_so_far(&client, &resource(run)).await)
}

/// Follows a run to its end and says where the result is.
async fn follow(client: Client, run: &v1::Run, display: Display, json: bool) -> Result<(), CliError> {
    let signals = Shutdown::on_signals().map_err(|source| CliError::Setup { what: "listen for signals", source })?;
    let unreadable = |e: proto::InvalidMessage| CliError::Unreadable(e.to_string());
    let spec = proto::convert::required("spec", run.spec.clone()).map_err(unreadable)?;
    let spec: RunSpec = spec.try_into().map_err(unreadable)?;
    display.line(&format!("run {}", run_id(&run.name)));
    let started = SystemTime::now();
    Follower::new(client, run, &spec, started, display, json).watch_it_end(&signals).await?;
    if json { Ok(()) } else { print_line(&spec.output) }
}

/// Does something to a run.
pub(crate) fn control(args: &ControlArgs, control: Control) -> Result<(), CliError> {
    connected(&args.remote, async |client| {
        let (name, request_id) = (resource(&args.run), RequestIds::new("control").next());
        let run = match control {
            Control::Pause => {
                let request = v1::PauseRunRequest { request_id, name };
                let pause = |mut client: Client, request| async move { client.pause_run(request).await };
                call(&client, "cannot pause the run", request, pause).await?.run
            }
            Control::Resume => {
                let request = v1::ResumeRunRequest { request_id, name };
                let resume = |mut client: Client, request| async move { client.resume_run(request).await };
                call(&client, "cannot resume the run", request, resume).await?.run
            }
            Control::Cancel => {
                let request = v1::CancelRunRequest { request_id, name };
                let cancel = |mut client: Client, request| async move { client.cancel_run(request).await };
                call(&client, "cannot cancel the run", request, cancel).await?.run
            }
            Control::Delete => {
                let request = v1::DeleteRunRequest { request_id, name };
                let delete = |mut client: Client, request| async move { client.delete_run(request).await };
                call(&client, "cannot delete the run", request, delete).await?;
                None
            }
        };
        match run {
            Some(run) => print_line(&format!("{} is {}", run_id(&run.name), show::state(run.state()))),
            None => print_line(&format!("{} is deleted", run_id(&args.run))),
        }
    })
}

/// Shows all workers, or drains one.
pub(crate) fn workers(args: &WorkersArgs) -> Result<(), CliError> {
    connected(&args.remote, async |client| {
        if let Some(worker) = args.drain.as_ref().or(args.undrain.as_ref()) {
            let name = format!("workers/{}", worker.strip_prefix("workers/").unwrap_or(worker));
            let request_id = RequestIds::new("control").next();
            let request = v1::DrainWorkerRequest { request_id, name, undo: args.undrain.is_some() };
            let drain = |mut client: Client, request| async move { client.drain_worker(request).await };
            call(&client, "cannot drain the worker", request, drain).await?;
        }
        let list = |mut client: Client, request| async move { client.list_workers(request).await };
        let listed = call(&client, "cannot list the workers", v1::ListWorkersRequest {}, list).await?;
        let workers: Vec<_> = listed.workers.iter().map(show::Worker::from).collect();
        if args.json {
            return workers.iter().try_for_each(print_json);
        }
        print(&show::workers(&workers))
    })
}

/// The coordinator's services, as this program uses them.
#[derive(Debug, Clone)]
struct Link {
    client: Client,
    /// Over connections of its own: bulk data does not delay calls.
    artifacts: ArtifactServiceClient<Wire>,
}

/// Does something with a client of the coordinator.
fn connected<T>(args: &RemoteArgs, work: impl AsyncFnOnce(Client) -> Result<T, CliError>) -> Result<T, CliError> {
    linked(args, async |link| work(link.client).await)
}

/// Does something with the coordinator's services.
fn linked<T>(args: &RemoteArgs, work: impl AsyncFnOnce(Link) -> Result<T, CliError>) -> Result<T, CliError> {
    let usage = |error: &dyn std::error::Error| CliError::Usage(service::status::chain(error));
    let tls = Tls::open_caller(&args.tls).map_err(|e| usage(&e))?;
    let token = args.token_file.as_deref().map(TokenFile::open).transpose().map_err(|e| usage(&e))?;
    message_thread()?.block_on(async {
        let connector = Connector::new(MemoryNetwork::new()).between_hosts(tls, Plain::new(args.insecure), token);
        let wire = connector.channel(&args.coordinator)?;
        let client = CoordinatorServiceClient::new(wire).max_decoding_message_size(proto::MAX_CONTROL_BYTES);
        let artifacts = ArtifactServiceClient::new(connector.bulk_channel(&args.coordinator)?)
            .max_decoding_message_size(proto::MAX_MESSAGE_BYTES);
        greet(&client, &args.coordinator).await?;
        work(Link { client, artifacts }).await
    })
}

/// Makes sure that a coordinator is there, sooner than calls that may wait for one would tell.
async fn greet(client: &Client, url: &str) -> Result<(), CliError> {
    let retry = Retry { limit: PATIENCE, ..Retry::default() };
    let ask = || async { client.clone().get_server_info(within(PATIENCE, v1::GetServerInfoRequest {})).await };
    retry.call(ask).await.map(drop).map_err(|status| {
        if status.code() == tonic::Code::Unauthenticated {
            return CliError::call("the coordinator does not know us")(status);
        }
        CliError::Unreachable { url: url.to_owned(), status: Box::new(status) }
    })
}

/// Returns a run's resource name, however it was written.
fn resource(run: &str) -> String {
    format!("runs/{}", run_id(run))
}
