//! Counts of costs by 16 bits of their float, and their compact form in bytes. Does not know which bits.

use crate::PlanningError;

/// Bins of a histogram: one for each value of 16 bits.
pub const BINS: usize = 1 << 16;

/// How many costs fall into each bin; all together fit 64 bits.
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

    /// Returns the histogram with these counts, one for each bin.
    ///
    /// # Errors
    /// [`PlanningError::InvalidHistogram`] when there are not [`BINS`] of them or their sum overflows.
    pub fn from_counts(counts: Vec<u64>) -> Result<Self, PlanningError> {
        if counts.len() != BINS {
            return Err(invalid("it does not have 65,536 bins"));
        }
        let total = counts.iter().try_fold(0_u64, |sum, count| sum.checked_add(*count)).ok_or_else(overflow)?;
        Ok(Self { counts, total })
    }

    /// Returns the counts by bin.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Returns the count of one bin.
    pub fn count(&self, digit: u16) -> u64 {
        self.counts[usize::from(digit)]
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
        self.total = self.total.checked_add(costs).ok_or_else(overflow)?;
        self.counts[usize::from(digit)] += costs;
        Ok(())
    }

    /// Adds another histogram, bin by bin.
    ///
    /// # Errors
    /// [`PlanningError::InvalidHistogram`] when the total overflows.
    pub fn merge(&mut self, other: &Self) -> Result<(), PlanningError> {
        self.total = self.total.checked_add(other.total).ok_or_else(overflow)?;
        self.counts.iter_mut().zip(&other.counts).for_each(|(ours, theirs)| *ours += theirs);
        Ok(())
    }

    /// Returns the histogram as bytes: for each bin that is not empty, in rising order, the number of empty bins before it
    /// and its count, each as a LEB128 number. One histogram has one such form.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut empty = 0;
        for &count in &self.counts {
            if count == 0 {
                empty += 1;
                continue;
            }
            write_number(&mut bytes, std::mem::take(&mut empty));
            write_number(&mut bytes, count);
        }
        bytes
    }

    /// Returns the histogram that [`Self::encode`] wrote.
    ///
    /// # Errors
    /// [`PlanningError::InvalidHistogram`] for bytes that `encode` does not write.
    pub fn decode(bytes: &[u8]) -> Result<Self, PlanningError> {
        let mut histogram = Self::new();
        let (mut rest, mut bin) = (bytes, 0_u64);
        while !rest.is_empty() {
            let gap = read_number(&mut rest)?;
            let count = read_number(&mut rest)?;
            bin = bin.saturating_add(gap);
            let digit = u16::try_from(bin).map_err(|_| invalid("it names a bin beyond the last"))?;
            if count == 0 {
                return Err(invalid("it names an empty bin"));
            }
            histogram.add(digit, count)?;
            bin += 1;
        }
        Ok(histogram)
    }
}

fn write_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number & 0x7F) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Takes a number off the front of `bytes`; only its shortest form is one.
fn read_number(bytes: &mut &[u8]) -> Result<u64, PlanningError> {
    let mut number = 0_u64;
    for shift in (0..u64::BITS).step_by(7) {
        let Some((&byte, rest)) = bytes.split_first() else { return Err(invalid("it ends within a number")) };
        *bytes = rest;
        let part = u64::from(byte & 0x7F);
        if part << shift >> shift != part {
            return Err(invalid("a number is above 64 bits"));
        }
        number |= part << shift;
        if byte & 0x80 == 0 {
            let shortest = byte != 0 || shift == 0;
            return if shortest { Ok(number) } else { Err(invalid("a number has a longer form than it needs")) };
        }
    }
    Err(invalid("a number is above 64 bits"))
}

fn overflow() -> PlanningError {
    invalid("its total is above 64 bits")
}

fn invalid(problem: &'static str) -> PlanningError {
    PlanningError::InvalidHistogram { problem }
}
