//! What can go wrong in a calibrator, and what it means to the coordinator and to callers: one table.

use curvature::CurvatureError;
use model::ModelError;
use proto::InvalidMessage;
use proto::v1::FailureClass;
use service::checkpoint::CheckpointError;
use service::places::failure_of_read;
use service::program::{Exit, Failure};
use service::{ComputeError, PlaceError, Reason, StoreError, TaskFailure, WorkerError, status};
use std::time::Duration;
use tonic::Status;
use types::{Generation, RunId};

/// When to ask again for a sweep that has not begun.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// A failure of the calibrator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A task or request that cannot be taken.
    #[error(transparent)]
    Message(#[from] InvalidMessage),
    /// Model, text or sweep.
    #[error(transparent)]
    Model(ModelError),
    /// Factors.
    #[error("cannot add up curvature")]
    Curvature(#[from] CurvatureError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Where model, text or output lie.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The pruned weights to calibrate.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A shard outside of the calibration data.
    #[error("samples {first} to {} are not among the {found} calibration samples; the data changed since the run began", first + samples)]
    NoSuchSamples {
        /// First sample asked for.
        first: usize,
        /// How many.
        samples: usize,
        /// How many there are.
        found: usize,
    },
    /// A block that the model lacks.
    #[error("block {block} is not one of the model's {blocks}")]
    NoSuchBlock {
        /// Which.
        block: u32,
        /// How many there are.
        blocks: usize,
    },
    /// A loss asked for without data.
    #[error("there is no held-out data to evaluate on; name some with --eval-data")]
    NoHeldOutData,
    /// An older attempt's factors were asked for.
    #[error("generation {asked} is stale, the shard is at {present}")]
    GenerationStale {
        /// What was asked for.
        asked: Generation,
        /// What is right.
        present: Generation,
    },
    /// Factors of a sweep that is not under way here.
    #[error("no sweep of run {run}, shot {shot}, shard {shard}, generation {generation} is under way here")]
    NotSwept {
        /// The run.
        run: RunId,
        /// Its shot.
        shot: u32,
        /// The shard.
        shard: u32,
        /// The attempt.
        generation: Generation,
    },
    /// A block that waited in a file and cannot be read back.
    #[error("a block that waited in the folder of --spill cannot be read back")]
    SpillLost,
    /// A stream that should resume behind the end of a block.
    #[error("cannot resume block {block} at byte {offset} of {bytes}")]
    ResumeBehindEnd {
        /// Which block.
        block: u32,
        /// From where.
        offset: u64,
        /// Its length.
        bytes: u64,
    },
    /// A sweep asked for by a caller of a calibrator that works for a coordinator.
    #[error("this calibrator works for a coordinator; ask one that was started with --standalone")]
    HasCoordinator,
    /// A second sweep asked for by callers.
    #[error("another sweep is under way; ask again when it has ended")]
    Busy,
    /// The compute thread.
    #[error(transparent)]
    Compute(#[from] ComputeError),
    /// The compute thread could not be started.
    #[error("cannot start the compute thread")]
    Thread(#[source] std::io::Error),
    /// Our own gRPC service.
    #[error("cannot serve")]
    Serve(#[from] tonic::transport::Error),
    /// Our work for the coordinator.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// This calibrator is stopping.
    #[error("the calibrator is stopping")]
    Stopping,
    /// The lease is lost or the worker stops: nothing is wrong.
    #[error("stopped on request")]
    Cancelled,
}

impl From<ModelError> for Error {
    /// Takes our own error out of what the sweep wrapped it in.
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::Stopped => Self::Cancelled,
            ModelError::Observer { block, source } => match source.downcast::<Self>() {
                Ok(ours) => *ours,
                Err(source) => Self::Model(ModelError::Observer { block, source }),
            },
            other => Self::Model(other),
        }
    }
}

impl Error {
    /// Returns what the coordinator is told of a task's failure.
    pub(crate) fn told(&self) -> TaskFailure {
        let (class, reason) = self.table();
        TaskFailure { class, reason, message: service::status::chain(self) }
    }

    /// Returns what the coordinator can do about a failed task; `None` when the task is to be given back instead.
    pub fn class(&self) -> Option<FailureClass> {
        self.table().0
    }

    /// Returns how the program ends for this.
    pub fn failure(&self) -> Failure {
        let exit = match self {
            Self::Worker(error) => error.exit(),
            Self::Model(_) | Self::Thread(_) => Exit::System,
            _ => Exit::Internal,
        };
        Failure::new(exit, service::status::chain(self))
    }

    /// Returns the published reason.
    pub fn reason(&self) -> Reason {
        self.table().1
    }

    /// The table.
    fn table(&self) -> (Option<FailureClass>, Reason) {
        use FailureClass as C;
        use Reason as R;
        match self {
            Self::Message(_) | Self::ResumeBehindEnd { .. } => (Some(C::InvalidInput), R::MessageInvalid),
            Self::Model(error) => of_model(error),
            Self::Curvature(error) => of_curvature(error),
            Self::Place(error) => (Some(error.class()), error.reason()),
            Self::Store(error) | Self::Checkpoint(CheckpointError::Store(error)) => {
                (Some(error.class()), error.reason())
            }
            Self::Checkpoint(CheckpointError::Damaged { .. }) => (Some(C::Numerical), R::DigestMismatch),
            Self::NoSuchSamples { .. } | Self::NoHeldOutData => (Some(C::InvalidInput), R::DataInvalid),
            Self::NoSuchBlock { .. } => (Some(C::InvalidInput), R::ModelInvalid),
            Self::GenerationStale { .. } => (None, R::GenerationStale),
            Self::HasCoordinator => (Some(C::InvalidInput), R::HasCoordinator),
            Self::Busy => (None, R::Busy),
            // Swept again, without the folder.
            Self::NotSwept { .. } | Self::SpillLost => (None, R::PeerUnavailable),
            Self::Compute(ComputeError::Panicked { .. } | ComputeError::Gone) | Self::Thread(_) | Self::Serve(_) => {
                (Some(C::Internal), R::Internal)
            }
            Self::Worker(WorkerError::DeviceLost(_)) => (Some(C::Unavailable), R::Internal),
            Self::Worker(WorkerError::Refused(_)) => (Some(C::Internal), R::VersionMismatch),
            Self::Worker(WorkerError::Lost(_)) => (Some(C::Unavailable), R::PeerUnavailable),
            Self::Stopping | Self::Cancelled => (None, R::ShuttingDown),
        }
    }
}

fn of_model(error: &ModelError) -> (Option<FailureClass>, Reason) {
    use FailureClass as C;
    use ModelError as E;
    use Reason as R;
    if error.is_out_of_memory() {
        return (Some(C::OutOfMemory), R::OutOfMemory);
    }
    if error.is_storage_full() {
        return (Some(C::Store), R::StoreFull);
    }
    match error {
        E::Remote { source, .. } => {
            let (class, reason) = failure_of_read(source);
            (Some(class), reason)
        }
        E::Io { .. }
        | E::NotAModel { .. }
        | E::Config { .. }
        | E::Unsupported { .. }
        | E::TensorFile { .. }
        | E::MissingTensor { .. }
        | E::TensorShape { .. }
        | E::UnexpectedTensor { .. }
        | E::Tokenizer { .. } => (Some(C::InvalidInput), R::ModelInvalid),
        E::Data { .. } | E::TooLittleText { .. } => (Some(C::InvalidInput), R::DataInvalid),
        E::OutputExists { .. } => (Some(C::InvalidInput), R::OutputExists),
        E::Device(_) => (Some(C::InvalidInput), R::VersionMismatch),
        E::Overlay { .. } => (Some(C::Numerical), R::DigestMismatch),
        E::NotFinite { .. } => (Some(C::Numerical), R::NotFinite),
        E::Unfaithful { .. } | E::Pattern { .. } => (Some(C::Numerical), R::OutputWrong),
        E::Shape { .. } | E::Torch { .. } | E::Observer { .. } | E::UnknownLayer { .. } => {
            (Some(C::Internal), R::Internal)
        }
        E::Stopped => (None, R::ShuttingDown),
    }
}

fn of_curvature(error: &CurvatureError) -> (Option<FailureClass>, Reason) {
    use CurvatureError as E;
    use FailureClass as C;
    use Reason as R;
    match error {
        E::NotFinite { .. } => (Some(C::Numerical), R::NotFinite),
        E::NotPositiveDefinite { .. } => (Some(C::Numerical), R::NotPositiveDefinite),
        E::OutOfMemory(_) => (Some(C::OutOfMemory), R::OutOfMemory),
        E::Shape { .. } | E::Unknown { .. } | E::Packed { .. } | E::NoTokens { .. } | E::Tensor(_) => {
            (Some(C::Internal), R::Internal)
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        match error {
            Error::Message(invalid) => status::invalid_message(&invalid),
            Error::NotSwept { .. } | Error::Busy => error.reason().status_retry_after(error.to_string(), ASK_AGAIN),
            other => other.reason().status(status::chain(&other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    #[test]
    fn the_sweep_gives_our_own_errors_back_unwrapped() {
        let wrapped = |source| ModelError::Observer { block: 3, source };
        assert!(matches!(Error::from(wrapped(Box::new(Error::Cancelled))), Error::Cancelled));
        let nan = Error::Curvature(CurvatureError::NotFinite { name: "G of layers.3.o_proj".into() });
        let back = Error::from(wrapped(Box::new(nan)));
        assert_eq!((back.class(), back.reason()), (Some(FailureClass::Numerical), Reason::NotFinite));
        assert!(status::chain(&back).contains("layers.3.o_proj"), "{}", status::chain(&back));
        let foreign = Error::from(wrapped("something else".into()));
        assert_eq!(foreign.class(), Some(FailureClass::Internal));
        assert!(status::chain(&foreign).contains("something else"));
    }

    #[test]
    fn classes_and_codes_are_those_of_the_contract() {
        let full = Error::Store(StoreError::Full { key: "k".into(), source: "disk".into() });
        let text = Error::from(ModelError::TooLittleText { found: 1, needed: 2, remedy: "add text".into() });
        let stale = Error::GenerationStale { asked: Generation(1), present: Generation(2) };
        let damaged = Error::Checkpoint(CheckpointError::Damaged { key: "k".into(), problem: "p".into() });
        let panicked = Error::Compute(ComputeError::Panicked { message: "m".into() });
        for (error, class, code) in [
            (full, Some(FailureClass::Store), Code::Unavailable),
            (text, Some(FailureClass::InvalidInput), Code::InvalidArgument),
            (stale, None, Code::Aborted),
            (damaged, Some(FailureClass::Numerical), Code::DataLoss),
            (panicked, Some(FailureClass::Internal), Code::Internal),
            (Error::Cancelled, None, Code::Unavailable),
        ] {
            assert_eq!(error.class(), class, "{error}");
            assert_eq!(Status::from(error).code(), code);
        }
    }

    #[test]
    fn a_sweep_that_has_not_begun_is_worth_another_try() {
        let run = RunId::new("r").unwrap();
        let status = Status::from(Error::NotSwept { run, shot: 1, shard: 0, generation: Generation(1) });
        assert!(status::is_transient(&status) && status::retry_after(&status).is_some());
    }
}
