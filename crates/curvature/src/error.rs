//! What can go wrong with curvature, by what the caller can do about it.

use tch::TchError;

/// A fault of this crate.
#[derive(Debug, thiserror::Error)]
pub enum CurvatureError {
    /// A tensor does not have the shape that its place demands: a bug of the caller.
    #[error("{name}: expected shape {expected:?}, got {actual:?}")]
    Shape {
        /// What the tensor was for.
        name: String,
        /// The shape it should have; -1 where any number will do.
        expected: Vec<i64>,
        /// The shape it has.
        actual: Vec<i64>,
    },
    /// No such factor was accumulated.
    #[error("there is no factor {name}")]
    Unknown {
        /// Side and layer.
        name: String,
    },
    /// A packed factor that cannot be one.
    #[error("packed factor '{name}' with {values} values: expected 'A:layer' or 'G:layer' and n(n+1)/2 values")]
    Packed {
        /// Its key.
        name: String,
        /// Its length.
        values: usize,
    },
    /// A mean over no tokens.
    #[error("{name}: no tokens were accumulated")]
    NoTokens {
        /// Side and layer.
        name: String,
    },
    /// A factor holds NaN or infinity.
    #[error("{name} is not finite")]
    NotFinite {
        /// Side and layer.
        name: String,
    },
    /// The damping ladder ended without a factorisation.
    #[error(
        "{name} is not positive definite even with damping {lambda} of its mean diagonal (smallest eigenvalue {smallest:e}, {tokens} tokens)"
    )]
    NotPositiveDefinite {
        /// Side and layer.
        name: String,
        /// Smallest eigenvalue without damping.
        smallest: f64,
        /// The largest λ that was tried.
        lambda: f64,
        /// Tokens that the factor is a mean of.
        tokens: u64,
    },
    /// The device or the host has no memory for a tensor.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// Any other failure of libtorch.
    #[error("tensor operation failed")]
    Tensor(#[source] TchError),
}

impl From<TchError> for CurvatureError {
    fn from(error: TchError) -> Self {
        match error {
            TchError::Torch(text) if text.contains("out of memory") || text.contains("allocate memory") => {
                // The first line says how much was asked for; the rest is a C++ backtrace.
                Self::OutOfMemory(text.lines().next().unwrap_or_default().to_owned())
            }
            other => Self::Tensor(other),
        }
    }
}
