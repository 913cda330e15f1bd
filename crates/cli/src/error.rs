//! What can go wrong for the person at the keyboard, and the exit status that says so. One table each.

mod exit;

pub(crate) use exit::{Exit, exit_codes};

use model::ModelError;
use service::shutdown::Signal;
use service::status::{Reason, chain, reason_of};
use service::store::StoreError;
use service::transport::TransportError;
use std::io;
use std::path::{Path, PathBuf};
use types::InvalidRunSpec;

/// What can be tried with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileAction {
    Read,
    Write,
}

impl std::fmt::Display for FileAction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if *self == Self::Read { "read" } else { "write" })
    }
}

/// Why the program could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// A request that cannot be.
    #[error("{0}")]
    Usage(String),
    /// A run specification with faults.
    #[error("{}", violations(.0))]
    Spec(InvalidRunSpec),
    /// The model crate's word on model, data or device.
    #[error("{}", chain(.0))]
    Model(ModelError),
    /// Data that is not there.
    #[error("{flag} {path}: no such file or folder; name files, folders or globs that exist")]
    DataMissing {
        /// The flag that named it.
        flag: &'static str,
        /// What it named.
        path: String,
    },
    /// The output folder is there.
    #[error("--out {}: exists already and is left as it is; name another folder or move it away", .0.display())]
    OutputExists(PathBuf),
    /// A run that was finished, but its folder is gone.
    #[error(
        "run {run} in --state {} was finished, but its folder {} is gone; to prune again, name another --state folder or remove that one",
        state.display(),
        output.display()
    )]
    OutputGone {
        /// The run.
        run: String,
        /// The state folder.
        state: PathBuf,
        /// The folder that was written.
        output: PathBuf,
    },
    /// A folder that cannot be written to.
    #[error("{flag} {}: cannot write in {}: {source}", path.display(), folder.display())]
    Unwritable {
        /// The flag that named it.
        flag: &'static str,
        /// What it named.
        path: PathBuf,
        /// Where writing was tried.
        folder: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The state folder cannot be used.
    #[error("--state: {}", chain(.0))]
    Store(StoreError),
    /// A service could not be started.
    #[error("the {service} cannot start: {message}")]
    Start {
        /// Which one.
        service: &'static str,
        /// Every cause.
        message: String,
    },
    /// A service ended though nobody asked it to.
    #[error("the {service} ended unexpectedly: {message}; the same command goes on from the last committed step")]
    Gone {
        /// Which one.
        service: &'static str,
        /// Every cause.
        message: String,
    },
    /// A service cannot be reached.
    #[error("{}", chain(.0))]
    Transport(#[from] TransportError),
    /// A coordinator elsewhere does not answer.
    #[error("no coordinator answers at {url}: {}; is it running, and is --coordinator right?", chain(&**status))]
    Unreachable {
        /// Where it should be.
        url: String,
        /// What happened instead.
        status: Box<tonic::Status>,
    },
    /// A call was refused or failed.
    #[error("{what}: {}", status.message())]
    Call {
        /// What was being done.
        what: &'static str,
        /// The answer.
        status: Box<tonic::Status>,
    },
    /// The run failed.
    #[error("run {run} failed [{code}]: {reason}")]
    Failed {
        /// The run.
        run: String,
        /// The published reason.
        code: String,
        /// Every cause.
        reason: String,
    },
    /// The run paused by itself.
    #[error("run {run} is paused [{code}]: {reason}; when that is mended, the same command goes on from there")]
    Paused {
        /// The run.
        run: String,
        /// The published reason.
        code: String,
        /// Every cause.
        reason: String,
    },
    /// The run was cancelled.
    #[error("run {run} was cancelled")]
    Cancelled {
        /// The run.
        run: String,
    },
    /// A signal stopped the program.
    #[error("stopped by {}: {what}", signal_name(*signal))]
    Interrupted {
        /// Which signal.
        signal: Signal,
        /// What became of the work, and how to go on.
        what: String,
    },
    /// A record that this program does not understand.
    #[error("the coordinator sent something this program cannot read: {0}; a bug, please report it")]
    Unreadable(String),
    /// A page cannot be made.
    #[error("the page cannot be made: {0}; a bug, please report it")]
    Page(String),
    /// A page cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    PageUnwritten {
        /// Where it was to be.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// An artifact that is not there.
    #[error("there is no artifact '{name}'; llm-surgeon artifacts shows what there is")]
    ArtifactMissing {
        /// What was asked for.
        name: String,
    },
    /// Bytes that are not what their digest says.
    #[error("{what} does not match its digest: {problem}")]
    Damaged {
        /// What it is.
        what: String,
        /// What that means and what to do.
        problem: String,
    },
    /// Another process writes the same file.
    #[error("--out {}: another fetch is at it", .0.display())]
    FetchedElsewhere(PathBuf),
    /// A file that cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: FileAction,
        /// With which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A folder without a report.
    #[error("{}: {}; name folders that prune or materialise has written", path.display(), missing(source))]
    ReportMissing {
        /// The report's place.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A report that this program cannot read.
    #[error("{}: {problem}", path.display())]
    ReportForm {
        /// The report's place.
        path: PathBuf,
        /// What is wrong with it and what to do.
        problem: String,
    },
    /// Standard output cannot be written.
    #[error("cannot write to standard output: {0}")]
    Stdout(#[source] io::Error),
    /// The program's own set-up failed.
    #[error("cannot {what}: {source}")]
    Setup {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// More than one fault at once.
    #[error("{} things are wrong:{}", .0.len(), listed(.0))]
    Several(Vec<CliError>),
}

impl From<ModelError> for CliError {
    fn from(error: ModelError) -> Self {
        Self::Model(error)
    }
}

impl CliError {
    /// Returns the one error, or all of them as one.
    pub(crate) fn from_all(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => errors.pop().map_or(Ok(()), Err),
            _ => Err(Self::Several(errors)),
        }
    }

    /// Returns a closure that makes a failure to do something with a file an error.
    pub(crate) fn file(action: FileAction, path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::File { action, path: path.to_owned(), source }
    }

    /// Returns a closure that makes a refused call an error.
    pub(crate) fn call(what: &'static str) -> impl FnOnce(tonic::Status) -> Self {
        move |status| Self::Call { what, status: Box::new(status) }
    }

    /// Returns the exit status.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) | Self::Spec(_) => Exit::Usage,
            Self::Model(error) => model_exit(error),
            Self::DataMissing { .. }
            | Self::ReportMissing { .. }
            | Self::ReportForm { .. }
            | Self::ArtifactMissing { .. }
            | Self::File { action: FileAction::Read, .. } => Exit::Input,
            Self::FetchedElsewhere(_)
            | Self::OutputExists(_)
            | Self::OutputGone { .. }
            | Self::Store(StoreError::PermissionDenied { .. }) => Exit::Output,
            Self::Unwritable { source, .. }
            | Self::PageUnwritten { source, .. }
            | Self::File { action: FileAction::Write, source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Exit::Io,
                _ => Exit::Output,
            },
            Self::Store(_) | Self::Stdout(_) => Exit::Io,
            Self::Unreachable { .. } => Exit::Unavailable,
            Self::Start { .. }
            | Self::Gone { .. }
            | Self::Transport(_)
            | Self::Cancelled { .. }
            | Self::Unreadable(_)
            | Self::Damaged { .. }
            | Self::Page(_)
            | Self::Setup { .. } => Exit::Failed,
            Self::Call { status, .. } => reason_of(status).map_or(Exit::Failed, failed_exit),
            Self::Failed { code, .. } => match Reason::from_name(code).map_or(Exit::Failed, failed_exit) {
                // The run has ended: asking again goes on with nothing.
                Exit::Paused => Exit::Failed,
                exit => exit,
            },
            Self::Paused { code, .. } => match Reason::from_name(code) {
                Some(Reason::StoreFull | Reason::StoreDenied | Reason::StoreUnavailable) => Exit::Io,
                _ => Exit::Paused,
            },
            Self::Interrupted { signal: Signal::Interrupt, .. } => Exit::Interrupted,
            Self::Interrupted { signal: Signal::Terminate, .. } => Exit::Terminated,
            Self::Several(errors) => errors.first().map_or(Exit::Failed, Self::exit),
        }
    }

    /// Returns whether the reader of standard output went away, which nobody needs to be told.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Stdout(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// Tells of an error, if there is one to tell of, and returns the exit status.
pub(crate) fn report_error(done: Result<(), CliError>) -> Exit {
    match done {
        Ok(()) => Exit::Done,
        Err(error) if error.is_broken_pipe() => error.exit(),
        Err(error) => {
            let prefix = if matches!(error, CliError::Interrupted { .. }) { "" } else { "error: " };
            crate::output::tell(&format!("{prefix}{error}\n"));
            error.exit()
        }
    }
}

fn model_exit(error: &ModelError) -> Exit {
    match error {
        ModelError::Unsupported { .. } | ModelError::UnexpectedTensor { .. } | ModelError::Device(_) => Exit::Usage,
        ModelError::Io { action: "write" | "create" | "rename" | "sync", .. } => Exit::Io,
        ModelError::Io { .. }
        | ModelError::Remote { .. }
        | ModelError::NotAModel { .. }
        | ModelError::Config { .. }
        | ModelError::TensorFile { .. }
        | ModelError::MissingTensor { .. }
        | ModelError::TensorShape { .. }
        | ModelError::Tokenizer { .. }
        | ModelError::Data { .. }
        | ModelError::TooLittleText { .. } => Exit::Input,
        ModelError::OutputExists { .. } => Exit::Output,
        ModelError::Overlay { .. }
        | ModelError::Shape { .. }
        | ModelError::Torch { .. }
        | ModelError::NotFinite { .. }
        | ModelError::Observer { .. }
        | ModelError::UnknownLayer { .. }
        | ModelError::Unfaithful { .. }
        | ModelError::Pattern { .. }
        | ModelError::Stopped => Exit::Failed,
    }
}

fn missing(source: &io::Error) -> String {
    if source.kind() == io::ErrorKind::NotFound { "there is no such report".to_owned() } else { source.to_string() }
}

fn violations(error: &InvalidRunSpec) -> String {
    let flag = |field: &str| match field {
        "model" => "MODEL".to_owned(),
        "output" => "--out".to_owned(),
        "damping_a" | "damping_g" => "--damping".to_owned(),
        "target" => "--target-…".to_owned(),
        other => format!("--{}", other.replace('_', "-")),
    };
    let faults: Vec<_> = error.violations.iter().map(|v| format!("{}: {}", flag(&v.field), v.problem)).collect();
    faults.join("; ")
}

fn listed(errors: &[CliError]) -> String {
    errors.iter().fold(String::new(), |text, error| text + "\n  - " + &error.to_string())
}

fn signal_name(signal: Signal) -> &'static str {
    match signal {
        Signal::Interrupt => "Ctrl-C",
        Signal::Terminate => "SIGTERM",
    }
}

/// Returns the status of a call or run that failed for this reason.
fn failed_exit(reason: Reason) -> Exit {
    match reason {
        Reason::MessageInvalid | Reason::SpecInvalid | Reason::TargetUnreachable => Exit::Usage,
        Reason::ModelInvalid
        | Reason::DataInvalid
        | Reason::InputInvalid
        | Reason::AddressRefused
        | Reason::ArtifactTooLarge => Exit::Input,
        Reason::OutputExists | Reason::OutputRefused => Exit::Output,
        Reason::StoreFull | Reason::StoreDenied | Reason::StoreUnavailable => Exit::Io,
        Reason::RunPaused
        | Reason::Fenced
        | Reason::PeerUnavailable
        | Reason::ShuttingDown
        | Reason::Busy
        | Reason::TransfersFull => Exit::Paused,
        Reason::OutputWrong
        | Reason::RunNotFound
        | Reason::RunEnded
        | Reason::RunActive
        | Reason::RunCancelled
        | Reason::ReportNotReady
        | Reason::RequestIdReused
        | Reason::WorkerUnknown
        | Reason::HasCoordinator
        | Reason::TaskUnknown
        | Reason::GenerationStale
        | Reason::NotReported
        | Reason::CutNotChosen
        | Reason::FactorsUnknown
        | Reason::VersionMismatch
        | Reason::Unauthenticated
        | Reason::JournalCorrupt
        | Reason::DigestMismatch
        | Reason::ObjectNotFound
        | Reason::ObjectExists
        | Reason::NotFinite
        | Reason::NotPositiveDefinite
        | Reason::Numerical
        | Reason::OutOfMemory
        | Reason::TaskFailed
        | Reason::Internal => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paused_run_says_that_the_same_command_goes_on() {
        let paused = |code: &str| CliError::Paused { run: "r-1".into(), code: code.into(), reason: "disk full".into() };
        assert_eq!(paused("STORE_FULL").exit(), Exit::Io);
        assert_eq!(paused("FENCED").exit(), Exit::Paused);
        assert!(paused("FENCED").to_string().contains("the same command goes on"));
    }

    #[test]
    fn a_failed_run_never_ends_as_if_it_were_paused() {
        for reason in Reason::ALL {
            let failed = CliError::Failed { run: "r-1".into(), code: reason.name().into(), reason: "gone".into() };
            assert_ne!(failed.exit(), Exit::Paused, "{}", reason.name());
        }
        let gone = CliError::Failed { run: "r-1".into(), code: "PEER_UNAVAILABLE".into(), reason: "gone".into() };
        assert_eq!(gone.exit(), Exit::Failed);
    }

    #[test]
    fn several_faults_are_listed_and_the_first_sets_the_status() {
        let faults = vec![CliError::OutputExists("o".into()), CliError::Usage("no".into())];
        let error = CliError::from_all(faults).unwrap_err();
        assert_eq!(error.exit(), Exit::Output);
        assert!(error.to_string().starts_with("2 things are wrong:\n  - --out o"), "{error}");
        assert!(CliError::from_all(Vec::new()).is_ok());
    }
}
