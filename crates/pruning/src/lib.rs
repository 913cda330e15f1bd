//! Costs of removing units under F = G ⊗ A, removal paths, and the closed-form update of what stays.
//!
//! Everything here is per layer: a [`LayerProblem`] holds the consumer's weights and its two factors, *undamped*; costs are
//! in nats per token and are computed under the damped factors, the same in path and update, so that the marginal costs
//! along a path add up to the cost that the joint update predicts.
//!
//! # Invariants
//!
//! * Under a Kronecker sum F is floored, never the sum as it came: how many directions that changed is in every result.
//! * A factor that is `None` is the identity: no G gives the layer-wise methods, neither gives magnitude.
//! * The bias is the last column; it takes part in every update and is never removed by itself.
//! * Under `element` and n:m a weight that is exactly zero has been removed and stays zero; a bias of zero has not.
//! * The work is done in the kind of the input (f32 in service) and once more in f64 when a pivot or a cost comes out
//!   impossible; then it is an error that names the layer. Nothing is replaced.
//! * Ties go to the lowest position, so the same input gives the same bits on the CPU.
//!
//! This crate does not decide how much is removed, and knows neither networks nor the wire.

#![allow(clippy::doc_markdown, reason = "formulas in Unicode are not code")]

mod cost;
mod error;
mod group;
mod histogram;
mod kronecker_sum;
mod problem;
mod select;
mod update;

pub use cost::{
    ElementCosts, RowColumnCosts, WindowCosts, coupled_path, element_costs, kronecker_sum_element_costs,
    kronecker_sum_path, kronecker_sum_row_column_costs, row_column_path, window_costs,
};
pub use error::PruningError;
pub use histogram::{histogram_counts, select_elements};
pub use kronecker_sum::{Clamped, Clamping, KroneckerSumProblem};
pub use problem::{LayerProblem, Units};
pub use update::{
    MaskedUpdate, MaskedUpdated, Updated, coupled_update, kronecker_sum_coupled_update, kronecker_sum_masked_update,
    masked_update, row_column_update,
};
