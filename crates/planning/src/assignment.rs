//! Who gets what: calibration samples into shards, tasks to workers. Does not know workers, only how many.

/// Tokens a micro-batch holds at most: beyond it a larger one is no faster on a CPU and its graph leaves the caches.
pub const MAX_BATCH_TOKENS: u64 = 2048;

/// What the split of the calibration data depends on. Part of the run, never of a worker: it sets the order of sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sweep {
    /// Samples in all.
    pub samples: u64,
    /// Tokens a sample.
    pub seq_len: u64,
    /// Decoder blocks.
    pub blocks: u64,
    /// Residual width.
    pub hidden: u64,
    /// Largest FFN width.
    pub ffn: u64,
    /// Query heads times head size.
    pub attention: u64,
    /// Bytes of one number in forward and backward passes.
    pub dtype_bytes: u64,
    /// Bytes of one number of the kept boundary states.
    pub boundary_bytes: u64,
    /// Memory for boundary states and micro-batches, in bytes.
    pub memory: u64,
    /// Tokens a micro-batch holds at most; beyond it a larger one is no faster.
    pub max_batch_tokens: u64,
    /// As many shards as are to be swept at a time: their number is a multiple of it, as long as there are samples.
    pub min_shards: u64,
}

/// One shard of the calibration data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardPlan {
    /// Number of its first sample.
    pub first_sample: u64,
    /// How many samples, at least 1.
    pub samples: u64,
    /// Samples run through a block at a time, at least 1.
    pub micro_batch: u64,
}

impl Sweep {
    /// Returns what one sample keeps during a sweep, in bytes: the residual stream at all `blocks + 1` boundaries, and
    /// its gradient at one.
    pub fn boundary_bytes_per_sample(&self) -> u64 {
        let state = self.seq_len.saturating_mul(self.hidden);
        let states = state.saturating_mul(self.blocks + 1).saturating_mul(self.boundary_bytes);
        states.saturating_add(state.saturating_mul(self.dtype_bytes))
    }

    /// Returns an estimate of what one sample's graph of one block takes, in bytes:
    /// `2 · seq_len · (12·hidden + 6·ffn + 6·attention) · dtype_bytes`; the 2 is for the gradients.
    pub fn graph_bytes_per_sample(&self) -> u64 {
        let widths = [(12, self.hidden), (6, self.ffn), (6, self.attention)];
        let numbers = widths.iter().fold(0_u64, |sum, (n, width)| sum.saturating_add(width.saturating_mul(*n)));
        numbers.saturating_mul(2).saturating_mul(self.seq_len).saturating_mul(self.dtype_bytes)
    }
}

/// Returns contiguous shards that hold every sample once, as few as memory and `min_shards` allow, their sizes at most one
/// apart.
///
/// A shard's boundary states take at most half of `memory`, a micro-batch's graph at most a quarter; where not even one
/// sample fits, a shard or micro-batch is one sample.
pub fn shards(sweep: &Sweep) -> Vec<ShardPlan> {
    let fits = |memory: u64, per_sample: u64| (memory / per_sample.max(1)).max(1);
    let most = fits(sweep.memory / 2, sweep.boundary_bytes_per_sample());
    let micro_batch = fits(sweep.memory / 4, sweep.graph_bytes_per_sample())
        .min(sweep.max_batch_tokens / sweep.seq_len.max(1))
        .max(1);
    // As many for each calibrator: one shard more than there are would cost a whole round.
    let count = sweep.samples.div_ceil(most).next_multiple_of(sweep.min_shards.max(1)).min(sweep.samples);
    (0..count)
        .map(|shard| {
            let first_sample = share(sweep.samples, shard, count);
            let samples = share(sweep.samples, shard + 1, count) - first_sample;
            ShardPlan { first_sample, samples, micro_batch: micro_batch.min(samples) }
        })
        .collect()
}

/// Returns how many more of `total` things, which are with somebody or with nobody, one of `workers` may take who has `own`.
/// Everybody's share is the same, rounded up, so that the shares hold everything.
pub fn fair_share(total: usize, own: usize, workers: usize) -> usize {
    total.div_ceil(workers.max(1)).saturating_sub(own)
}

/// Returns where part `part` of `parts` begins among `total` things.
fn share(total: u64, part: u64, parts: u64) -> u64 {
    (u128::from(total) * u128::from(part) / u128::from(parts)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// SmolLM2-135M, 32 × 512 tokens.
    fn small() -> Sweep {
        Sweep {
            samples: 32,
            seq_len: 512,
            blocks: 30,
            hidden: 576,
            ffn: 1536,
            attention: 576,
            dtype_bytes: 4,
            boundary_bytes: 4,
            memory: 1 << 30,
            max_batch_tokens: 2048,
            min_shards: 1,
        }
    }

    #[test]
    fn memory_sets_the_number_of_shards() {
        let per_sample = 512 * 576 * 4 * 32;
        assert_eq!(small().boundary_bytes_per_sample(), per_sample);
        assert_eq!(shards(&small()), [(0, 10, 3), (10, 11, 3), (21, 11, 3)].map(plan), "14 samples fit");
        let roomy = Sweep { memory: 64 * per_sample, ..small() };
        assert_eq!(shards(&roomy), [(0, 32, 4)].map(plan));
        assert_eq!(shards(&Sweep { samples: 2, ..roomy }), [(0, 2, 2)].map(plan));
        let bf16 = Sweep { boundary_bytes: 2, ..small() };
        assert_eq!(shards(&bf16), [(0, 16, 3), (16, 16, 3)].map(plan));
        assert_eq!(shards(&Sweep { samples: 0, ..small() }), []);
        let sizes = |min_shards, samples| -> Vec<u64> {
            shards(&Sweep { samples, min_shards, ..roomy }).iter().map(|s| s.samples).collect()
        };
        assert_eq!(sizes(4, 32), [8; 4], "one for each calibrator");
        assert_eq!(sizes(9, 3), [1; 3], "but none is empty");
        let two_rounds = shards(&Sweep { min_shards: 2, ..small() });
        assert_eq!(two_rounds.len(), 4, "three would do, but one of two calibrators would wait for the other");
    }

    fn plan((first_sample, samples, micro_batch): (u64, u64, u64)) -> ShardPlan {
        ShardPlan { first_sample, samples, micro_batch }
    }

    #[test]
    fn a_sample_that_does_not_fit_goes_alone() {
        let tight = shards(&Sweep { samples: 3, memory: 1 << 20, ..small() });
        assert_eq!(tight.len(), 3);
        assert!(tight.iter().all(|s| s.samples == 1 && s.micro_batch == 1));
    }

    proptest! {
        #[test]
        fn shards_hold_every_sample_once_and_fit(
            samples in 1_u64..5000, seq_len in 1_u64..5000, blocks in 1_u64..100, hidden in 1_u64..9000,
            memory in 1_u64 << 20..1 << 40, boundary_bytes in prop::sample::select(vec![2_u64, 4]),
        ) {
            let c = Sweep { samples, seq_len, blocks, hidden, boundary_bytes, memory, ..small() };
            let plan = shards(&c);
            let mut next = 0;
            for shard in &plan {
                prop_assert_eq!(shard.first_sample, next);
                prop_assert!((1..=shard.samples).contains(&shard.micro_batch));
                prop_assert!(shard.samples == 1 || shard.samples * c.boundary_bytes_per_sample() <= memory / 2);
                let graph = shard.micro_batch * c.graph_bytes_per_sample();
                let fits = graph <= memory / 4 && shard.micro_batch * seq_len <= c.max_batch_tokens;
                prop_assert!(shard.micro_batch == 1 || fits);
                next += shard.samples;
            }
            prop_assert_eq!(next, samples);
            let sizes = plan.iter().map(|s| s.samples);
            prop_assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1);
            let fewer = samples.div_ceil(plan.len() as u64 - 1 + u64::from(plan.len() == 1));
            prop_assert!(plan.len() == 1 || fewer * c.boundary_bytes_per_sample() > memory / 2, "as few as fit");
        }

        #[test]
        fn shares_hold_everything_and_are_as_small_as_that_allows(total in 0_usize..200, workers in 1_usize..50) {
            let mut own = vec![0; workers];
            let mut left = total;
            // Who asks first is served first, as often as it likes.
            for own in &mut own {
                let taken = fair_share(total, *own, workers).min(left);
                *own += taken;
                left -= taken;
                prop_assert_eq!(fair_share(total, *own, workers).min(left), 0);
            }
            prop_assert_eq!(left, 0);
            prop_assert!(own.iter().all(|n| *n <= total.div_ceil(workers)));
        }
    }
}
