//! What can go wrong with one layer, by what the caller can do about it.

use curvature::CurvatureError;
use tch::TchError;

/// A fault of this crate.
#[derive(Debug, thiserror::Error)]
pub enum PruningError {
    /// A factor cannot be used, memory is short, or libtorch failed.
    #[error(transparent)]
    Factor(#[from] CurvatureError),
    /// Weights, factors and units do not fit together: a bug of the caller.
    #[error("{layer}: {what} should have shape {expected:?} and has {actual:?}")]
    Shape {
        /// The layer.
        layer: String,
        /// Which tensor.
        what: &'static str,
        /// The shape that the weights and units demand.
        expected: Vec<i64>,
        /// The shape it has.
        actual: Vec<i64>,
    },
    /// Units that are not there, or that cannot go together: a bug of the caller.
    #[error("{layer}: {reason}")]
    Units {
        /// The layer.
        layer: String,
        /// What is wrong with them.
        reason: String,
    },
    /// Weights hold NaN or infinity.
    #[error("{layer}: {what} is not finite")]
    NotFinite {
        /// The layer.
        layer: String,
        /// Which tensor.
        what: &'static str,
    },
    /// Rounding made a pivot or a cost impossible, in f64 as well.
    #[error("{layer}: {what} became {value:e} after {removed} removals")]
    Unstable {
        /// The layer.
        layer: String,
        /// Which quantity.
        what: &'static str,
        /// Its value.
        value: f64,
        /// How far along the path.
        removed: usize,
    },
}

impl From<TchError> for PruningError {
    fn from(error: TchError) -> Self {
        Self::Factor(error.into())
    }
}
