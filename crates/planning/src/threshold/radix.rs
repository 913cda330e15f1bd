//! The cut for single weights: exact radix select over histograms of float bits, in two rounds.
//!
//! Costs are finite and not negative, so the bits of an f32 cost, read as an integer, rise with it. The first round counts
//! the upper 16 bits of all costs; it tells in which bin the last cost to go lies. The second counts the lower 16 bits of
//! that bin's costs alone, which gives the cost itself, to the bit. What a histogram counts adds up, so the answer is the
//! same however the weights are spread over workers. No cost ever leaves its worker.
//!
//! Does not know tensors or layers: who counts is `pruning`.

mod histogram;

pub use histogram::{BINS, Histogram};

use crate::PlanningError;
use serde::{Deserialize, Serialize};

/// Which half of a cost's bits is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    /// The upper 16 bits, of all costs.
    First,
    /// The lower 16 bits, of the costs whose upper ones are the first round's bin.
    Second,
}

/// Returns the bin of a cost; the cost must be finite and not negative, else bins do not rise with it.
pub fn digit(cost: f32, round: Round) -> u16 {
    match round {
        Round::First => (cost.to_bits() >> 16) as u16,
        Round::Second => (cost.to_bits() & 0xFFFF) as u16,
    }
}

/// Where the last cost to go lies among the first round's bins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bin {
    /// Upper 16 bits of that cost: the prefix of the second round.
    pub digit: u16,
    /// Costs in lower bins; all of them go.
    pub below: u64,
    /// Costs in the bin; the second round must count as many.
    pub inside: u64,
}

/// The cut: costs below it go, and some of those that equal it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElementThreshold {
    /// Bits of the f32 cost.
    pub bits: u32,
    /// How many costs are below; all of them go.
    pub below: u64,
    /// How many of the costs that equal it go, in the order of layers and row-major positions.
    pub ties: u64,
}

impl ElementThreshold {
    /// Returns the cost, nats per token.
    pub fn cost(self) -> f32 {
        f32::from_bits(self.bits)
    }
}

/// Returns the bin of the `to_remove`-th cost by size, from the histogram of all layers' first digits.
///
/// # Errors
/// [`PlanningError::Infeasible`] when fewer costs were counted.
pub fn first_round(merged: &Histogram, to_remove: u64) -> Result<Bin, PlanningError> {
    locate(merged, to_remove)
}

/// Returns the exact threshold, from the histogram of all layers' second digits in the first round's bin.
///
/// When nothing is to go, it is zero and takes no ties.
///
/// # Errors
/// [`PlanningError::InvalidHistogram`] when the second round counted other costs than the first.
pub fn second_round(bin: Bin, merged: &Histogram, to_remove: u64) -> Result<ElementThreshold, PlanningError> {
    let within = to_remove.checked_sub(bin.below).filter(|within| *within <= bin.inside);
    let (Some(within), true) = (within, merged.total() == bin.inside) else {
        return Err(PlanningError::InvalidHistogram { problem: "the second round does not continue the first" });
    };
    let last = locate(merged, within)?;
    let bits = (u32::from(bin.digit) << 16) | u32::from(last.digit);
    Ok(ElementThreshold { bits, below: bin.below + last.below, ties: within - last.below })
}

/// Returns how many of its ties each layer removes: the first layers all of theirs, until `ties_to_take` are taken.
///
/// As many as there are, when fewer.
pub fn share_ties(ties_per_layer: &[u64], ties_to_take: u64) -> Vec<u64> {
    let mut left = ties_to_take;
    let take = |ties: &u64| {
        let taken = left.min(*ties);
        left -= taken;
        taken
    };
    ties_per_layer.iter().map(take).collect()
}

/// Returns the lowest bin up to which at least `rank` costs were counted.
fn locate(histogram: &Histogram, rank: u64) -> Result<Bin, PlanningError> {
    let mut below = 0;
    for (digit, &inside) in (0..=u16::MAX).zip(histogram.counts()) {
        if below + inside >= rank {
            return Ok(Bin { digit, below, inside });
        }
        below += inside;
    }
    Err(PlanningError::Infeasible { asked: rank, available: below })
}
