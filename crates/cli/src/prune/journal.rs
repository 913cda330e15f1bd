//! All that is known of a run, read from its state folder or from a coordinator elsewhere. For a folder it starts a
//! coordinator, which only reads, and no workers.

use super::check::{self, no_run};
use super::follow::{self, Finished};
use super::{DRAIN, newest_run};
use crate::error::CliError;
use crate::local::{Client, Local, call, message_thread};
use crate::summary::Timeline;
use coordinator::event::{Event, History};
use proto::v1;
use service::Store;
use std::path::Path;
use types::RunReport;

/// A run's journal, folded, and what its report adds.
#[derive(Debug)]
pub(crate) struct Journal {
    pub(crate) run: String,
    pub(crate) history: History,
    pub(crate) timeline: Timeline,
    pub(crate) warnings: Vec<String>,
    /// Name and version of the program.
    pub(crate) program: String,
}

impl Journal {
    /// Returns the journal of a run that was followed to its end.
    pub(super) fn new(run: &str, followed: Finished, report: RunReport) -> Self {
        let Finished { history, timeline } = followed;
        Self { run: run.to_owned(), history, timeline, warnings: report.warnings, program: report.program }
    }
}

/// Returns what is known of a run in a state folder: of the one named, otherwise of the newest.
pub(crate) fn journal_of(state: &Path, run: Option<&str>) -> Result<Journal, CliError> {
    check::state_folder(state)?;
    message_thread()?.block_on(async {
        let local = Local::start(Store::open_local(state).map_err(CliError::Store)?).await?;
        let journal = read(&local.client()?, state, run).await;
        local.stop(DRAIN).await;
        journal
    })
}

async fn read(client: &Client, state: &Path, run: Option<&str>) -> Result<Journal, CliError> {
    let wanted = |found: &v1::Run| run.is_none_or(|name| follow::run_id(&found.name) == name);
    let found = newest_run(client, wanted).await?.ok_or_else(|| no_run(state, run, "has no run that can be read"))?;
    journal_so_far(client, &found.name).await
}

/// Returns what is known of a run by now, by its resource name.
pub(crate) async fn journal_so_far(client: &Client, name: &str) -> Result<Journal, CliError> {
    let followed = records(client, name).await?;
    let report = follow::report(client, name).await?;
    Ok(Journal::new(follow::run_id(name), followed, report))
}

/// Returns a run's records up to now: all of them come before anything else does.
async fn records(client: &Client, name: &str) -> Result<Finished, CliError> {
    let request = v1::WatchRunRequest { name: name.to_owned(), from_sequence: 1 };
    let watch = |mut client: Client, request| async move { client.watch_run(request).await };
    let mut events = call(client, "cannot read the run's journal", request, watch).await?;
    let (mut history, mut timeline) = (History::default(), Timeline::default());
    while let Some(response) = events.message().await.map_err(CliError::call("cannot read the run's journal"))? {
        let Some(event) = response.event else { continue };
        match event.event {
            Some(v1::run_event::Event::RecordJson(json)) => {
                let record: Event = follow::parsed(&json)?;
                timeline.record(&record, follow::milliseconds(event.time));
                history.apply(record);
            }
            Some(
                v1::run_event::Event::Ended(_) | v1::run_event::Event::Progress(_) | v1::run_event::Event::Heartbeat(_),
            ) => break,
            None => {}
        }
    }
    Ok(Finished { history, timeline })
}
