//! Whether a run goes on without samples whose loss or gradient is not finite. Does not know which samples, only how many.
//!
//! What is left out is a whole shard: its sums cannot be told apart. So the samples of a shard count together, and what is
//! decided depends on no order: whichever shard fails first, the run goes on exactly if all of them together are few enough.

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    /// The run goes on without them.
    LeaveOut,
    /// The run fails.
    Fail {
        /// The least share, to four digits, that would have let it go on; `None` where nothing would be left.
        needed: Option<f64>,
    },
}

/// Returns what becomes of a run that allows `max_fraction` of a shot's `samples` to be left out, when `poisoned` of them are
/// to be, those left out before included.
pub fn judge(max_fraction: f64, samples: u64, poisoned: u64) -> Verdict {
    if poisoned >= samples {
        return Verdict::Fail { needed: None };
    }
    // The quotient is the very number that its decimal digits stand for; a product would miss 29 of 100 under 0.29.
    let share = poisoned as f64 / samples as f64;
    if share <= max_fraction {
        return Verdict::LeaveOut;
    }
    let rounded = ((share * 1e4).ceil() / 1e4).max(share);
    Verdict::Fail { needed: Some(if rounded < 1.0 { rounded } else { share }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_share_itself_is_allowed_and_one_sample_more_is_not() {
        assert_eq!(judge(0.29, 100, 29), Verdict::LeaveOut);
        assert_eq!(judge(0.29, 100, 30), Verdict::Fail { needed: Some(0.3) });
        assert_eq!(judge(0.0, 24, 1), Verdict::Fail { needed: Some(0.0417) });
        assert_eq!(judge(0.99, 4, 4), Verdict::Fail { needed: None }, "nothing would be left");
        assert_eq!(judge(0.5, 0, 0), Verdict::Fail { needed: None });
    }

    proptest! {
        #[test]
        fn what_is_said_to_suffice_does_and_less_poison_or_more_leave_never_hurts(
            samples in 1_u64..100_000, poisoned in 1_u64..100_000, fraction in 0.0..1.0, more in 0.0..1.0,
        ) {
            match judge(fraction, samples, poisoned) {
                Verdict::LeaveOut => {
                    prop_assert!(poisoned < samples);
                    prop_assert_eq!(judge(fraction, samples, poisoned - 1), Verdict::LeaveOut);
                    prop_assert_eq!(judge(fraction + more * (1.0 - fraction), samples, poisoned), Verdict::LeaveOut);
                }
                Verdict::Fail { needed: Some(needed) } => {
                    prop_assert!(needed > fraction && needed < 1.0);
                    prop_assert_eq!(judge(needed, samples, poisoned), Verdict::LeaveOut);
                }
                Verdict::Fail { needed: None } => prop_assert!(poisoned >= samples),
            }
        }

        #[test]
        fn nothing_is_left_out_unasked(samples in 1_u64..100_000, poisoned in 1_u64..100_000) {
            prop_assert_ne!(judge(0.0, samples, poisoned), Verdict::LeaveOut);
        }

        #[test]
        fn the_order_in_which_shards_fail_does_not_matter(
            shards in prop::collection::vec(1_u64..50, 1..20), poisoned in prop::collection::vec(any::<bool>(), 20),
            fraction in 0.0..1.0, turn in 0_usize..20,
        ) {
            let samples: u64 = shards.iter().sum();
            let mut failing: Vec<u64> = shards.iter().zip(poisoned).filter(|(_, p)| *p).map(|(n, _)| *n).collect();
            let goes_on = |failing: &[u64]| {
                failing.iter().scan(0, |sum, n| { *sum += n; Some(*sum) })
                    .all(|sum| judge(fraction, samples, sum) == Verdict::LeaveOut)
            };
            let first = goes_on(&failing);
            let turn = turn % failing.len().max(1);
            failing.rotate_left(turn);
            prop_assert_eq!(goes_on(&failing), first);
        }
    }
}
