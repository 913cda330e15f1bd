//! Errors on the wire: a gRPC status with google.rpc details, and how to read them back.
//!
//! Every error carries an `ErrorInfo` with one of the published [`Reason`]s. Which error of a crate becomes which reason
//! is in that crate's `error.rs`.

use proto::InvalidMessage;
use std::error::Error;
use std::time::Duration;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};
use types::Violation;

/// The `domain` of every `ErrorInfo`.
pub const DOMAIN: &str = "llm-surgeon";

/// Longest message and field text, in bytes: a status travels in headers, and headers are short.
const MAX_MESSAGE: usize = 2000;
/// Most field violations that are sent.
const MAX_VIOLATIONS: usize = 16;
/// Longest description of one violation, in bytes.
const MAX_VIOLATION: usize = 300;

/// Declares the reasons with their names on the wire and their gRPC codes.
macro_rules! reasons {
    ($($(#[$doc:meta])+ $variant:ident = $name:literal, $code:ident;)+) => {
        /// Why something failed, for programs: the list is published, names never change their meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])+ $variant),+ }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Returns the name on the wire.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// Returns the gRPC code that goes with it.
            pub fn code(self) -> Code {
                match self { $(Self::$variant => Code::$code),+ }
            }
        }
    };
}

reasons! {
    /// A message lacks a field, or a field's value is not allowed; the field violations name it.
    MessageInvalid = "MESSAGE_INVALID", InvalidArgument;
    /// The run specification has faults; the field violations name all of them.
    SpecInvalid = "SPEC_INVALID", InvalidArgument;
    /// The model folder is missing, incomplete or of a kind that is not supported.
    ModelInvalid = "MODEL_INVALID", InvalidArgument;
    /// Calibration or held-out data cannot be read, or is too little.
    DataInvalid = "DATA_INVALID", InvalidArgument;
    /// Model, data or output lie where the worker may not reach, or the address is none.
    AddressRefused = "ADDRESS_REFUSED", InvalidArgument;
    /// Model, data or output did not pass a worker's check; the message says what, where and what to do.
    InputInvalid = "INPUT_INVALID", InvalidArgument;
    /// The asked size is smaller than what the removable units can reach.
    TargetUnreachable = "TARGET_UNREACHABLE", InvalidArgument;
    /// The output folder is not empty.
    OutputExists = "OUTPUT_EXISTS", FailedPrecondition;
    /// The output lies where it must not, or cannot be written.
    OutputRefused = "OUTPUT_REFUSED", FailedPrecondition;
    /// The written model did not load, or gave other logits than before it was written.
    OutputWrong = "OUTPUT_WRONG", FailedPrecondition;
    /// No run has this name.
    RunNotFound = "RUN_NOT_FOUND", NotFound;
    /// The run has ended; ended runs stay as they are.
    RunEnded = "RUN_ENDED", FailedPrecondition;
    /// The run is under way, which this call is not for; pause or cancel it first.
    RunActive = "RUN_ACTIVE", FailedPrecondition;
    /// The run was cancelled by its caller.
    RunCancelled = "RUN_CANCELLED", Cancelled;
    /// The run was paused by its caller, or the program was stopped.
    RunPaused = "RUN_PAUSED", FailedPrecondition;
    /// The run has no report yet.
    ReportNotReady = "REPORT_NOT_READY", FailedPrecondition;
    /// The request id was used for another request.
    RequestIdReused = "REQUEST_ID_REUSED", AlreadyExists;
    /// The worker is not registered (any more); it registers anew.
    WorkerUnknown = "WORKER_UNKNOWN", NotFound;
    /// The task does not exist (any more); the worker drops it.
    TaskUnknown = "TASK_UNKNOWN", NotFound;
    /// A newer attempt owns this work; the worker drops it.
    GenerationStale = "GENERATION_STALE", Aborted;
    /// The result names an object that this coordinator has not stored for this attempt; the worker reports it first.
    NotReported = "NOT_REPORTED", FailedPrecondition;
    /// The shot's cut is not chosen yet; an update is given out once it is.
    CutNotChosen = "CUT_NOT_CHOSEN", FailedPrecondition;
    /// The calibrator does not hold the asked factors.
    FactorsUnknown = "FACTORS_UNKNOWN", NotFound;
    /// The worker works for a coordinator and takes nothing from other callers; ask one that works alone.
    HasCoordinator = "HAS_COORDINATOR", FailedPrecondition;
    /// The worker does one thing at a time and is at it; ask again later.
    Busy = "BUSY", ResourceExhausted;
    /// Too many transfers are under way, or too many bytes of unfinished artifacts are here; ask again later.
    TransfersFull = "TRANSFERS_FULL", ResourceExhausted;
    /// The artifact is larger than the coordinator takes.
    ArtifactTooLarge = "ARTIFACT_TOO_LARGE", ResourceExhausted;
    /// The caller showed neither a certificate nor a token that the service wants.
    Unauthenticated = "UNAUTHENTICATED", Unauthenticated;
    /// Versions of the program or of libtorch differ, which would change numbers.
    VersionMismatch = "VERSION_MISMATCH", FailedPrecondition;
    /// Another coordinator writes this run's journal; this one stops.
    Fenced = "FENCED", Aborted;
    /// A stored record is torn, altered or of a newer form.
    JournalCorrupt = "JOURNAL_CORRUPT", DataLoss;
    /// Bytes do not match their checksum or digest.
    DigestMismatch = "DIGEST_MISMATCH", DataLoss;
    /// Nothing lies under this key in the store.
    ObjectNotFound = "OBJECT_NOT_FOUND", NotFound;
    /// Something lies under this key in the store already.
    ObjectExists = "OBJECT_EXISTS", AlreadyExists;
    /// The store's disk or quota is used up; the run pauses until there is space.
    StoreFull = "STORE_FULL", Unavailable;
    /// The store may not be read or written; the run pauses until the rights are right.
    StoreDenied = "STORE_DENIED", Unavailable;
    /// The store fails in another way; the run pauses.
    StoreUnavailable = "STORE_UNAVAILABLE", Unavailable;
    /// A loss, gradient, factor or weight is not finite; the message names the layer.
    NotFinite = "NOT_FINITE", FailedPrecondition;
    /// A factor is not positive definite even with the highest damping; the message names the layer.
    NotPositiveDefinite = "NOT_POSITIVE_DEFINITE", FailedPrecondition;
    /// A task met numbers that cannot be right, or an output that does not load; the message names where.
    Numerical = "NUMERICAL", FailedPrecondition;
    /// Memory does not suffice even for one sample.
    OutOfMemory = "OUT_OF_MEMORY", ResourceExhausted;
    /// A task failed too often; the message has the causal chain of the last failure.
    TaskFailed = "TASK_FAILED", FailedPrecondition;
    /// A peer cannot be reached.
    PeerUnavailable = "PEER_UNAVAILABLE", Unavailable;
    /// The service is stopping; ask again, perhaps elsewhere.
    ShuttingDown = "SHUTTING_DOWN", Unavailable;
    /// A panic was caught or a state was met that should not exist: a bug.
    Internal = "INTERNAL", Internal;
}

impl Reason {
    /// Returns the reason with this name on the wire.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.name() == name)
    }

    /// Returns a status for this reason.
    pub fn status(self, message: impl Into<String>) -> Status {
        self.with(message.into(), ErrorDetails::new())
    }

    /// Returns a status for this reason that names bad fields.
    pub fn status_with_violations(self, message: impl Into<String>, violations: &[Violation]) -> Status {
        let field = |v: &Violation| {
            FieldViolation::new(shortened(v.field.clone(), MAX_VIOLATION), shortened(v.problem.clone(), MAX_VIOLATION))
        };
        let fields: Vec<_> = violations.iter().take(MAX_VIOLATIONS).map(field).collect();
        self.with(message.into(), ErrorDetails::with_bad_request(fields))
    }

    /// Returns a status for this reason that says when to ask again.
    pub fn status_retry_after(self, message: impl Into<String>, delay: Duration) -> Status {
        self.with(message.into(), ErrorDetails::with_retry_info(Some(delay)))
    }

    fn with(self, message: String, mut details: ErrorDetails) -> Status {
        details.set_error_info(self.name(), DOMAIN, []);
        Status::with_error_details(self.code(), shortened(message, MAX_MESSAGE), details)
    }
}

/// Returns text that is at most `max` bytes long, and says where it was cut.
fn shortened(mut text: String, max: usize) -> String {
    const CUT: &str = " …";
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max - CUT.len()));
        text.push_str(CUT);
    }
    text
}

/// Returns the status for a message that could not be taken.
pub fn invalid_message(error: &InvalidMessage) -> Status {
    Reason::MessageInvalid.status_with_violations(error.to_string(), &error.violations)
}

/// Returns the status for a run specification that could not be taken.
pub fn spec_invalid(error: &InvalidMessage) -> Status {
    Reason::SpecInvalid.status_with_violations(error.to_string(), &error.violations)
}

/// Returns the reason that a status carries, if it is one of ours.
pub fn reason_of(status: &Status) -> Option<Reason> {
    let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN)?;
    Reason::from_name(&info.reason)
}

/// Returns the bad fields that a status names.
pub fn violations_of(status: &Status) -> Vec<Violation> {
    let fields = status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
    fields.into_iter().map(|v| Violation { field: v.field, problem: v.description }).collect()
}

/// Returns when to ask again, if a status says it.
pub fn retry_after(status: &Status) -> Option<Duration> {
    status.get_details_retry_info().and_then(|info| info.retry_delay)
}

/// Says whether the same call may succeed later: the peer is away, too busy or too slow, or the connection broke.
///
/// A broken connection reaches us under several codes; it is told by the transport error beneath. A status that came
/// over the wire has nothing beneath.
pub fn is_transient(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded => true,
        Code::ResourceExhausted => retry_after(status).is_some(),
        Code::Unknown | Code::Internal | Code::Cancelled => status.source().is_some(),
        _ => false,
    }
}

/// Returns an error with all its causes, outermost first, joined by `: `.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_reason_reads_back_from_its_status() {
        for reason in Reason::ALL {
            let status = reason.status("why");
            assert_eq!(reason_of(&status), Some(*reason));
            assert_eq!((status.code(), status.message()), (reason.code(), "why"));
        }
        let names: BTreeSet<_> = Reason::ALL.iter().map(|r| r.name()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        assert_eq!(reason_of(&Status::internal("another program's")), None);
    }

    #[test]
    fn long_texts_are_cut_at_a_character_so_that_headers_hold_them() {
        let status = Reason::Internal.status("ä".repeat(5000));
        assert!(status.message().len() <= MAX_MESSAGE && status.message().ends_with(" …"));
        let many = vec![Violation { field: "f".into(), problem: "p".repeat(1000) }; 500];
        let status = Reason::SpecInvalid.status_with_violations("bad", &many);
        assert_eq!(violations_of(&status).len(), MAX_VIOLATIONS);
        assert!(status.details().len() < 8192, "{}", status.details().len());
    }

    #[test]
    fn only_what_may_pass_is_transient() {
        assert!(is_transient(&Reason::ShuttingDown.status("x")));
        assert!(is_transient(&Reason::OutOfMemory.status_retry_after("x", Duration::from_secs(1))));
        for lasting in [Reason::OutOfMemory, Reason::Internal, Reason::SpecInvalid, Reason::GenerationStale] {
            assert!(!is_transient(&lasting.status("x")), "{lasting:?}");
        }
    }

    #[test]
    fn a_chain_names_every_cause() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::io::Error);
        assert_eq!(chain(&Outer(std::io::Error::other("inner"))), "outer: inner");
    }
}
