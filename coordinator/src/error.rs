//! What can go wrong with a run, and what that means: for the run, for callers, for people. One table each.

use crate::journal::JournalError;
use crate::tasks::{LeaseError, TaskFailure};
use planning::PlanningError;
use planning::retry::FailureClass;
use service::status::{Reason, chain};
use service::store::StoreError;
use tonic::Status;
use types::RunId;

/// Why a run cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The journal cannot be read or written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// A task will not be tried again.
    #[error("{stage} failed: {}", .failure.message)]
    Task {
        /// Which stage.
        stage: &'static str,
        /// How.
        failure: TaskFailure,
    },
    /// More samples without a finite loss or gradient than the run may leave out.
    #[error(
        "calibrate failed twice for the same samples: {}; that makes {poisoned} of the shot's {samples} samples ({which}), and \
         the run leaves out a share of {allowed} at most; {remedy}", .failure.message
    )]
    Poisoned {
        /// How the last shard failed.
        failure: TaskFailure,
        /// Samples of all shards that failed so.
        poisoned: u64,
        /// Samples of the shot.
        samples: u64,
        /// Which are poisoned.
        which: String,
        /// The share that may be left out.
        allowed: f64,
        /// What to do.
        remedy: String,
    },
    /// The target cannot be reached.
    #[error("{0}")]
    Target(String),
    /// No cut meets the shot's limit.
    #[error("no cut of the layers' paths for shot {shot}")]
    Cut {
        /// Which shot.
        shot: u32,
        /// Why.
        #[source]
        source: PlanningError,
    },
    /// Model or data are not what they were when the run began.
    #[error("{what} changed since the run began; put it back, or start anew with another --state folder")]
    Changed {
        /// What differs.
        what: &'static str,
    },
    /// Another run's shots cannot be this run's.
    #[error("run {from} cannot be cut at another size: {problem}")]
    NotKept {
        /// Which run.
        from: RunId,
        /// Why not.
        problem: String,
    },
    /// Too many layers needed more damping than asked for.
    #[error(
        "{layers} layers needed more damping than asked for (largest used: {largest} of the mean of the diagonal), the run \
         allows {allowed}; give more calibration tokens or a larger --damping"
    )]
    Damped {
        /// How many.
        layers: u32,
        /// The largest damping.
        largest: f64,
        /// How many were allowed.
        allowed: u32,
    },
    /// A worker's result or a stored object is not what it must be.
    #[error("{what} is not valid: {problem}")]
    Invalid {
        /// What it is.
        what: String,
        /// What is wrong.
        problem: String,
    },
    /// The run was asked to stop.
    #[error("the run was stopped")]
    Stopped,
}

/// What becomes of a run after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consequence {
    /// Ended for good.
    Fail,
    /// Waits; the same spec continues it.
    Pause,
}

impl RunError {
    /// Returns the published reason.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Journal(JournalError::Store { source, .. }) | Self::Store(source) => source.reason(),
            Self::Journal(JournalError::Corrupt { .. } | JournalError::Newer { .. }) => Reason::JournalCorrupt,
            Self::Journal(JournalError::Fenced { .. }) => Reason::Fenced,
            Self::Task { failure, .. } => match failure.class {
                FailureClass::InvalidInput => Reason::InputInvalid,
                FailureClass::Numerical | FailureClass::NotFinite => Reason::Numerical,
                FailureClass::OutOfMemory => Reason::OutOfMemory,
                // Whoever waits for the store wants to know what to do about it.
                FailureClass::Store => failure.reason.unwrap_or(Reason::StoreUnavailable),
                FailureClass::Unavailable => Reason::PeerUnavailable,
                FailureClass::Internal => Reason::Internal,
            },
            Self::Poisoned { .. } => Reason::Numerical,
            Self::Target(_) | Self::Cut { .. } => Reason::TargetUnreachable,
            Self::Changed { .. } | Self::NotKept { .. } => Reason::InputInvalid,
            Self::Damped { .. } => Reason::NotPositiveDefinite,
            Self::Invalid { .. } => Reason::Internal,
            Self::Stopped => Reason::ShuttingDown,
        }
    }

    pub(crate) fn consequence(&self) -> Consequence {
        match self {
            Self::Journal(JournalError::Store { .. } | JournalError::Fenced { .. })
            | Self::Store(_)
            | Self::Stopped => Consequence::Pause,
            Self::Task { failure, .. } if failure.class == FailureClass::Store => Consequence::Pause,
            Self::Journal(JournalError::Corrupt { .. } | JournalError::Newer { .. })
            | Self::Task { .. }
            | Self::Poisoned { .. }
            | Self::Target(_)
            | Self::Cut { .. }
            | Self::Changed { .. }
            | Self::NotKept { .. }
            | Self::Damped { .. }
            | Self::Invalid { .. } => Consequence::Fail,
        }
    }

    /// Returns the answer to a worker whose result could not be committed.
    pub(crate) fn status(&self) -> Status {
        self.reason().status(chain(self))
    }
}

/// Returns the answer to a worker's call about a task.
pub(crate) fn lease_status(error: &LeaseError) -> Status {
    let reason = match error {
        LeaseError::Unknown { .. } => Reason::TaskUnknown,
        LeaseError::Stale { .. } | LeaseError::Committed { .. } => Reason::GenerationStale,
        LeaseError::NotReported { .. } => Reason::NotReported,
    };
    reason.status(error.to_string())
}
