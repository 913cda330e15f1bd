//! What can go wrong in a surgeon, and what it means to the coordinator and to callers: one table.

use crate::receive::StreamFault;
use curvature::CurvatureError;
use model::ModelError;
use proto::InvalidMessage;
use proto::v1::FailureClass;
use pruning::PruningError;
use service::checkpoint::CheckpointError;
use service::places::failure_of_read;
use service::program::{Exit, Failure};
use service::{
    ComputeError, LeaseError, PlaceError, Reason, StoreError, TaskFailure, TransportError, WorkerError, status,
};
use tch::TchError;
use tonic::Status;

/// When to ask again for room.
const ASK_AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

/// A failure of the surgeon.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A task or answer that cannot be taken.
    #[error(transparent)]
    Message(#[from] InvalidMessage),
    /// The model folder, tensors or the final folder.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Factors.
    #[error(transparent)]
    Curvature(#[from] CurvatureError),
    /// Costs and updates.
    #[error(transparent)]
    Pruning(#[from] PruningError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Where model or output lie.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The pruned weights of the shot before.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// An object of the store that is not what it should be.
    #[error("'{key}' is damaged: {problem}")]
    Damaged {
        /// Which object.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// Factors that should be in the store and are not.
    #[error("factors of shard {shard} are not in the store for blocks {blocks:?}")]
    FactorsGone {
        /// Which shard.
        shard: u32,
        /// Which blocks.
        blocks: Vec<u32>,
    },
    /// A damaged or senseless stream of factors.
    #[error(transparent)]
    Stream(#[from] StreamFault),
    /// A calibrator that does not answer.
    #[error("the calibrator did not answer within {seconds} s")]
    Silent {
        /// How long.
        seconds: u64,
    },
    /// A stream that ended without a block.
    #[error("the calibrator at {endpoint} had none of the blocks that are missing")]
    NothingCame {
        /// Which calibrator.
        endpoint: String,
    },
    /// A calibrator's refusal, or a lost connection to it.
    #[error("the calibrator refused: {}", .0.message())]
    Calibrator(Box<Status>),
    /// A caller's upload that broke off.
    #[error("the upload broke: {}", .0.message())]
    Upload(Box<Status>),
    /// Memory for uploads is used up.
    #[error(
        "there is no room for {bytes} bytes of factors now; ask again, or start the surgeon with a larger --receive-memory"
    )]
    NoRoom {
        /// What was asked for.
        bytes: u64,
    },
    /// Something asked for by a caller of a surgeon that works for a coordinator.
    #[error("this surgeon works for a coordinator; ask one that was started with --standalone")]
    HasCoordinator,
    /// The coordinator's refusal, or a lost connection to it.
    #[error("the coordinator refused: {}", .0.message())]
    Coordinator(Box<Status>),
    /// An endpoint that cannot be dialled.
    #[error(transparent)]
    Transport(#[from] TransportError),
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
    /// A state that should not exist.
    #[error("this is a bug: {0}")]
    Bug(String),
    /// The lease is lost or the worker stops: nothing is wrong.
    #[error("stopped on request")]
    Cancelled,
}

impl From<TchError> for Error {
    fn from(error: TchError) -> Self {
        Self::Curvature(error.into())
    }
}

impl From<LeaseError> for Error {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Dropped | LeaseError::Stopped => Self::Cancelled,
            LeaseError::Refused(status) | LeaseError::Lost(status) => Self::Coordinator(Box::new(status)),
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

    /// Returns whether the plan should be asked again: another stream, or another calibrator, may do better.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Calibrator(_) | Self::Silent { .. } | Self::NothingCame { .. } | Self::Stream(_) => true,
            Self::Message(_)
            | Self::Model(_)
            | Self::Curvature(_)
            | Self::Pruning(_)
            | Self::Store(_)
            | Self::Checkpoint(_)
            | Self::Place(_)
            | Self::Damaged { .. }
            | Self::FactorsGone { .. }
            | Self::Upload(_)
            | Self::NoRoom { .. }
            | Self::HasCoordinator
            | Self::Coordinator(_)
            | Self::Transport(_)
            | Self::Compute(_)
            | Self::Thread(_)
            | Self::Serve(_)
            | Self::Worker(_)
            | Self::Bug(_)
            | Self::Cancelled => false,
        }
    }

    /// The table.
    fn table(&self) -> (Option<FailureClass>, Reason) {
        use FailureClass as C;
        use Reason as R;
        match self {
            Self::Message(_) => (Some(C::InvalidInput), R::MessageInvalid),
            Self::Model(error) => of_model(error),
            Self::Curvature(error) | Self::Pruning(PruningError::Factor(error)) => of_curvature(error),
            Self::Pruning(PruningError::NotFinite { .. }) => (Some(C::Numerical), R::NotFinite),
            Self::Pruning(PruningError::Unstable { .. }) => (Some(C::Numerical), R::NotPositiveDefinite),
            Self::Place(error) => (Some(error.class()), error.reason()),
            Self::Store(error) | Self::Checkpoint(CheckpointError::Store(error)) => {
                (Some(error.class()), error.reason())
            }
            Self::Damaged { .. } | Self::Checkpoint(CheckpointError::Damaged { .. }) => {
                (Some(C::Numerical), R::DigestMismatch)
            }
            Self::FactorsGone { .. } => (Some(C::Unavailable), R::ObjectNotFound),
            Self::Stream(_) => (Some(C::Unavailable), R::DigestMismatch),
            Self::HasCoordinator => (Some(C::InvalidInput), R::HasCoordinator),
            Self::NoRoom { .. } => (None, R::Busy),
            Self::Silent { .. }
            | Self::Upload(_)
            | Self::NothingCame { .. }
            | Self::Calibrator(_)
            | Self::Coordinator(_)
            | Self::Transport(_)
            | Self::Worker(WorkerError::Lost(_)) => (Some(C::Unavailable), R::PeerUnavailable),
            Self::Worker(WorkerError::DeviceLost(_)) => (Some(C::Unavailable), R::Internal),
            Self::Worker(WorkerError::Refused(_)) => (Some(C::Internal), R::VersionMismatch),
            Self::Pruning(PruningError::Shape { .. } | PruningError::Units { .. })
            | Self::Compute(ComputeError::Panicked { .. } | ComputeError::Gone)
            | Self::Thread(_)
            | Self::Serve(_)
            | Self::Bug(_) => (Some(C::Internal), R::Internal),
            Self::Cancelled => (None, R::ShuttingDown),
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
        E::Io { action: "read" | "map", .. }
        | E::NotAModel { .. }
        | E::Config { .. }
        | E::Unsupported { .. }
        | E::MissingTensor { .. }
        | E::TensorShape { .. }
        | E::UnexpectedTensor { .. }
        | E::Tokenizer { .. } => (Some(C::InvalidInput), R::ModelInvalid),
        E::Io { .. } => (Some(C::InvalidInput), R::OutputRefused),
        E::Data { .. } | E::TooLittleText { .. } => (Some(C::InvalidInput), R::DataInvalid),
        E::OutputExists { .. } => (Some(C::InvalidInput), R::OutputExists),
        E::Device(_) => (Some(C::InvalidInput), R::VersionMismatch),
        E::TensorFile { .. } | E::Overlay { .. } => (Some(C::Numerical), R::DigestMismatch),
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
        E::Packed { .. } => (Some(C::Numerical), R::DigestMismatch),
        E::OutOfMemory(_) => (Some(C::OutOfMemory), R::OutOfMemory),
        E::Shape { .. } | E::Unknown { .. } | E::NoTokens { .. } | E::Tensor(_) => (Some(C::Internal), R::Internal),
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        match error {
            Error::Message(invalid) => status::invalid_message(&invalid),
            Error::NoRoom { .. } => error.reason().status_retry_after(error.to_string(), ASK_AGAIN),
            other => other.reason().status(status::chain(&other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    #[test]
    fn classes_and_codes_are_those_of_the_contract() {
        let name = "G of model.layers.3.mlp.down_proj".to_owned();
        let singular = CurvatureError::NotPositiveDefinite { name, smallest: -1.0, lambda: 10.0, tokens: 4 };
        let full = StoreError::Full { key: "k".into(), source: "disk".into() };
        let gone = Error::FactorsGone { shard: 1, blocks: vec![3] };
        let foreign = ModelError::OutputExists { path: "out".into() };
        let digest = StreamFault::Digest { block: 3, expected: "a".into(), found: "b".into() };
        for (error, class, code) in [
            (PruningError::from(singular).into(), Some(FailureClass::Numerical), Code::FailedPrecondition),
            (full.into(), Some(FailureClass::Store), Code::Unavailable),
            (gone, Some(FailureClass::Unavailable), Code::NotFound),
            (foreign.into(), Some(FailureClass::InvalidInput), Code::FailedPrecondition),
            (digest.into(), Some(FailureClass::Unavailable), Code::DataLoss),
            (Error::Bug("b".into()), Some(FailureClass::Internal), Code::Internal),
            (Error::Cancelled, None, Code::Unavailable),
        ] {
            let error: Error = error;
            assert_eq!(error.class(), class, "{error}");
            assert_eq!(Status::from(error).code(), code);
        }
    }

    #[test]
    fn a_factor_that_fails_names_its_layer() {
        let failed = CurvatureError::NotFinite { name: "A of model.layers.3.mlp.down_proj".into() };
        let text = status::chain(&Error::from(PruningError::from(failed)));
        assert!(text.contains("model.layers.3.mlp.down_proj"), "{text}");
    }
}
