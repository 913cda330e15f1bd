//! Curvature of the loss landscape: Kronecker factors as mergeable sums, Kronecker sums by power iteration, damping, and
//! Cholesky-based solves.
//!
//! # The convention
//!
//! vec is row-major. A linear layer is y = W x (+ b) with W `[R, C]`; a bias is the last column of W and x gets a last 1
//! (the caller appends it). Over N calibration tokens, padding masked out:
//!
//! ```text
//! A = (1/N) Σ xₙ xₙᵀ  [C, C]      G = (1/N) Σ gₙ gₙᵀ  [R, R]      F ≈ G ⊗ A
//! ```
//!
//! gₙ is the gradient, with respect to yₙ, of the loss *summed* over the sequence, in nats. Then ½ δᵀ F δ predicts the
//! rise of the *mean* loss per token, in nats, when vec(W) moves by δ. `tests/convention.rs` holds this against a dense
//! Fisher.
//!
//! # Invariants
//!
//! A factor that is not finite or that cannot be made positive definite is an error that names the layer; it is never
//! replaced. The kind follows the input: f32 in service, f64 in tests. TF32 is left off, as libtorch starts.
//!
//! This crate does not know networks, files or the wire.

#![allow(clippy::doc_markdown, reason = "formulas in Unicode are not code")]

mod damping;
mod error;
mod factors;
mod inverse;
mod kronecker_sum;

pub use damping::{Damping, Factorised, LAMBDA_LIMIT, factorise};
pub use error::CurvatureError;
pub use factors::{BlockFactors, Side, merge_packed};
pub use inverse::{inverse, is_finite, solve, solve_right, try_cholesky};
pub use kronecker_sum::{
    CommonBasis, HalfStep, KroneckerSum, KroneckerTerm, PowerIteration, PowerOptions, common_basis,
};
