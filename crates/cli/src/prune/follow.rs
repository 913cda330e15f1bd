//! Follows a run's journal and progress to the run's end, and pauses the run when a signal asks for it.

use super::DRAIN;
use crate::error::CliError;
use crate::local::{Client, Local, call};
use crate::output::print_line;
use crate::progress::{Display, Progress};
use crate::summary::Timeline;
use coordinator::event::{Event, History};
use proto::v1;
use service::{RequestIds, Shutdown};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tonic::{Request, Streaming};
use types::{RunReport, RunSpec};

/// A run that reached its end well.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Its journal, folded.
    pub(super) history: History,
    /// Where its time went.
    pub(super) timeline: Timeline,
}

/// Follows one run.
#[derive(Debug)]
pub(crate) struct Follower {
    client: Client,
    name: String,
    progress: Progress,
    json: bool,
    /// Records before this are from an earlier start.
    started_ms: u64,
    next: u64,
    history: History,
    timeline: Timeline,
}

impl Follower {
    /// Returns a follower of a run that was just created or found.
    /// Records from before `started` are an earlier start's.
    pub(crate) fn new(
        client: Client,
        run: &v1::Run,
        spec: &RunSpec,
        started: SystemTime,
        display: Display,
        json: bool,
    ) -> Self {
        let since = started.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self {
            client,
            name: run.name.clone(),
            progress: Progress::new(display, spec.shots, !spec.eval_data.is_empty()),
            json,
            started_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            next: 1,
            history: History::default(),
            timeline: Timeline::default(),
        }
    }

    /// Follows until the run ends. A signal pauses it; a service that is gone ends the program.
    pub(super) async fn until_it_ends(&mut self, local: &mut Local, signals: &Shutdown) -> Result<Finished, CliError> {
        let ended = tokio::select! {
            biased;
            () = signals.token().cancelled() => Err(None),
            gone = local.gone() => Err(Some(gone)),
            ended = self.follow() => Ok(ended),
        };
        self.progress.finish();
        match ended {
            Ok(ended) => self.conclude(&ended?),
            Err(Some(gone)) => Err(gone),
            Err(None) => Err(self.pause(local, signals).await),
        }
    }

    /// Follows until the run ends, which goes on when a signal ends the following.
    pub(crate) async fn watch_it_end(&mut self, signals: &Shutdown) -> Result<Finished, CliError> {
        let ended = tokio::select! {
            biased;
            () = signals.token().cancelled() => None,
            ended = self.follow() => Some(ended),
        };
        self.progress.finish();
        let run = run_id(&self.name);
        match ended {
            Some(ended) => self.conclude(&ended?),
            None => Err(CliError::Interrupted {
                signal: signals.signal().unwrap_or(service::shutdown::Signal::Terminate),
                what: format!("run {run} goes on; llm-surgeon watch {run} follows it again"),
            }),
        }
    }

    /// Takes events until the run ends; opens the stream again where it breaks.
    async fn follow(&mut self) -> Result<v1::Run, CliError> {
        loop {
            let mut events = self.watch().await?;
            while let Ok(Some(response)) = events.message().await {
                if let Some(ended) = self.take(response)? {
                    return Ok(ended);
                }
            }
        }
    }

    async fn watch(&self) -> Result<Streaming<v1::WatchRunResponse>, CliError> {
        let request = v1::WatchRunRequest { name: self.name.clone(), from_sequence: self.next };
        let watch = |mut client: Client, request: Request<_>| async move {
            client.watch_run(request.into_inner()).await // without a deadline: it lasts as long as the run
        };
        call(&self.client, "cannot follow the run", request, watch).await
    }

    /// Takes one event. Returns the run if it is the last.
    fn take(&mut self, response: v1::WatchRunResponse) -> Result<Option<v1::Run>, CliError> {
        use v1::run_event::Event as E;
        let Some(v1::RunEvent { sequence, time, event: Some(event) }) = response.event else { return Ok(None) };
        match event {
            E::RecordJson(json) => {
                self.record(&json, milliseconds(time))?;
                self.next = sequence + 1;
            }
            E::Progress(progress) => self.progress.stage(progress),
            E::Heartbeat(_) => {}
            E::Ended(run) => return Ok(Some(run)),
        }
        Ok(None)
    }

    fn record(&mut self, json: &str, time_ms: u64) -> Result<(), CliError> {
        if self.json {
            print_line(json)?;
        }
        let event = parsed(json)?;
        self.timeline.record(&event, time_ms);
        self.progress.record(&event, time_ms < self.started_ms);
        self.history.apply(event);
        Ok(())
    }

    fn conclude(&mut self, ended: &v1::Run) -> Result<Finished, CliError> {
        let (run, code, reason) = (run_id(&ended.name).to_owned(), ended.reason_code.clone(), ended.reason.clone());
        match ended.state() {
            v1::RunState::Succeeded => {
                Ok(Finished { history: std::mem::take(&mut self.history), timeline: self.timeline })
            }
            v1::RunState::Failed => Err(CliError::Failed { run, code, reason }),
            v1::RunState::Paused => Err(CliError::Paused { run, code, reason }),
            v1::RunState::Cancelled => Err(CliError::Cancelled { run }),
            v1::RunState::Running | v1::RunState::Queued | v1::RunState::Unspecified => {
                Err(CliError::Unreadable(format!("run {run} ended, but is still running")))
            }
        }
    }

    /// Has the workers give back their tasks, then pauses the run, after a signal.
    async fn pause(&self, local: &mut Local, signals: &Shutdown) -> CliError {
        local.stop_workers(DRAIN).await;
        let request_id = RequestIds::new("cli").next();
        let request = v1::PauseRunRequest { request_id, name: self.name.clone() };
        let mut client = self.client.clone();
        // If this does not come through, the journal holds what is committed all the same.
        let _ = tokio::time::timeout(DRAIN, client.pause_run(request)).await;
        let (run, done) = (run_id(&self.name), self.history.shots_done());
        let shots = self.history.planned_shots().unwrap_or_default();
        let what = format!("run {run} is paused, {done} of {shots} shots are committed; the same command resumes it");
        let signal = signals.signal().unwrap_or(service::shutdown::Signal::Terminate);
        CliError::Interrupted { signal, what }
    }
}

/// Returns a record's event.
pub(super) fn parsed(json: &str) -> Result<Event, CliError> {
    serde_json::from_str(json).map_err(|e| CliError::Unreadable(format!("a record: {e}")))
}

/// Returns a record's time, milliseconds since 1970.
pub(super) fn milliseconds(time: Option<proto::prost_types::Timestamp>) -> u64 {
    time.map_or(0, |t| (t.seconds * 1000 + i64::from(t.nanos) / 1_000_000).max(0) as u64)
}

/// Returns the report of a run.
pub(super) async fn report(client: &Client, name: &str) -> Result<RunReport, CliError> {
    let request = v1::GetRunReportRequest { name: name.to_owned() };
    let get = |mut client: Client, request| async move { client.get_run_report(request).await };
    let report = call(client, "cannot get the report", request, get).await?;
    serde_json::from_str(&report.report_json).map_err(|e| CliError::Unreadable(format!("the report: {e}")))
}

/// Returns a run's id out of its name.
pub(crate) fn run_id(name: &str) -> &str {
    name.strip_prefix("runs/").unwrap_or(name)
}
