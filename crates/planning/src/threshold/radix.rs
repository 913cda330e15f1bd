//! The cut for single weights: exact radix select over histograms of float bits, in two rounds.
//!
//! Costs are finite and not negative, so the bits of an f32 cost, read as an integer, rise with it. The first round counts
//! the upper 16 bits of all costs; it tells in which bin the last cost to go lies. The second counts the lower 16 bits of
//! that bin's costs alone, which gives the cost itself, to the bit. What a histogram counts adds up, so the answer is the
//! same however the weights are spread over workers. No cost ever leaves its worker.
//!
//! Does not know tensors or layers: who counts is `pruning`.

use crate::PlanningError;

/// Bins of a histogram: one for each value of 16 bits.
const BINS: usize = 1 << 16;

/// How many costs have each value of one half of their bits; all together fit 64 bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BINS], total: 0 }
    }
}

impl Histogram {
    /// Returns a histogram of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the sum of all counts.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Adds `costs` to a bin.
    ///
    /// # Errors
    /// [`PlanningError::InvalidHistogram`] when the total overflows.
    pub fn add(&mut self, digit: u16, costs: u64) -> Result<(), PlanningError> {
        let total = self.total.checked_add(costs);
        self.total = total.ok_or(PlanningError::InvalidHistogram { problem: "its total is above 64 bits" })?;
        self.counts[usize::from(digit)] += costs;
        Ok(())
    }
}

/// Where the last cost to go lies among the first round's bins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bin {
    /// Upper 16 bits of that cost: the prefix of the second round.
    pub digit: u16,
    /// Costs in lower bins; all of them go.
    pub below: u64,
    /// Costs in the bin; the second round must count as many.
    pub inside: u64,
}

/// The cut: costs below it go, and some of those that equal it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ElementThreshold {
    /// Bits of the f32 cost.
    pub bits: u32,
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
    Ok(ElementThreshold { bits, ties: within - last.below })
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
    for (digit, &inside) in (0..=u16::MAX).zip(&histogram.counts) {
        if below + inside >= rank {
            return Ok(Bin { digit, below, inside });
        }
        below += inside;
    }
    Err(PlanningError::Infeasible { asked: rank, available: below })
}
