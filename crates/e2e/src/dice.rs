//! Numbers that look random and are the same for the same seed, so that a failure can be had again.

/// Variable of the environment that names another seed than the usual one.
const SEED: &str = "E2E_SEED";

/// A seeded sequence of numbers (splitmix64).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Returns the sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns a number in [0, `below`).
    pub fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below.max(1)
    }

    /// Returns a number in [1, `longest`], for the place of a cut: mostly anywhere, but one in three near the beginning, where
    /// a connection's greetings are.
    pub fn offset(&mut self, longest: u64) -> u64 {
        if self.roll(3) > 0 {
            return 1 + self.roll(longest);
        }
        let below = 1 << self.roll(u64::from(longest.max(2).ilog2()));
        below + self.roll(below)
    }
}

/// Returns the seed of this test run: `E2E_SEED`, or always the same.
pub fn seed() -> u64 {
    std::env::var(SEED).ok().and_then(|text| text.parse().ok()).unwrap_or(2026)
}
