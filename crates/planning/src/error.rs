//! What can be wrong with a question put to this crate.

use types::{LayerId, UnitKind};

/// Why there is no decision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanningError {
    /// The target is below what the units can leave: choose a larger one, or let more kinds of units go.
    #[error("{asked} must be freed, but at most {available} can be")]
    Infeasible {
        /// What should be freed, in the target's measure.
        asked: u64,
        /// What all paths free when cut as late as allowed.
        available: u64,
    },
    /// More sizes to be met than shots.
    #[error("{sizes} sizes need at least as many shots, there are {shots}")]
    TooFewShots {
        /// Sizes, the target included.
        sizes: usize,
        /// Shots.
        shots: u32,
    },
    /// Blocks that should keep equal widths begin with different ones.
    #[error(
        "a uniform shape needs the same {kind} units in every block, but '{layer}' differs from '{reference}' in {what}"
    )]
    Unequal {
        /// Kind of unit.
        kind: UnitKind,
        /// The first layer of that kind.
        reference: LayerId,
        /// The one that differs from it.
        layer: LayerId,
        /// In which respect.
        what: &'static str,
    },
    /// Units of this kind have no uniform shape.
    #[error("{kind} units of '{layer}' have no uniform shape{hint}")]
    NoUniformShape {
        /// Kind of unit.
        kind: UnitKind,
        /// A layer that has them.
        layer: LayerId,
        /// What stands in the way, beginning with a colon, or nothing.
        hint: &'static str,
    },
    /// A path that no surgeon should have sent: a bug or a damaged object.
    #[error("removal path of '{layer}' is invalid: {problem}")]
    InvalidPath {
        /// Whose path.
        layer: LayerId,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Counts of costs that no surgeon should have sent: a bug or a damaged message.
    #[error("histogram of costs is invalid: {problem}")]
    InvalidHistogram {
        /// What is wrong with it.
        problem: &'static str,
    },
}
