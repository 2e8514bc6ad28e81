//! What is drawn at random and can be drawn again.

use std::env;
use std::time::Duration;

use anyhow::{Context, Result};

/// Names the seed, to see the same again.
const SEED: &str = "OPENCLAW_LAB_SEED";

/// The generator `SplitMix64`.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    /// From the seed that the environment names, or the time; it is printed.
    pub(super) fn new() -> Result<Self> {
        Self::or(u64::try_from(jiff::Timestamp::now().as_microsecond()).context("the clock is out of range")?)
    }

    /// From the seed that the environment names, or this one; it is printed.
    pub(super) fn or(seed: u64) -> Result<Self> {
        let seed = match env::var(SEED) {
            Ok(seed) => seed.parse().with_context(|| format!("reading {SEED}"))?,
            Err(_) => seed,
        };
        println!("{SEED}={seed}");
        Ok(Self::of(seed))
    }

    pub(super) fn of(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        u32::try_from(mixed >> 32).unwrap_or(0)
    }

    pub(super) fn up_to(&mut self, limit: Duration) -> Duration {
        limit.mul_f64(f64::from(self.next()) / f64::from(u32::MAX))
    }

    /// Less than `end`, which is more than 0.
    pub(super) fn below(&mut self, end: u32) -> u32 {
        self.next() % end
    }

    /// One of `weights`, each as often as it weighs; its index.
    pub(super) fn weighted(&mut self, weights: &[u32]) -> usize {
        let mut drawn = self.below(weights.iter().sum());
        let is_left = |weight: &u32| {
            let is_in = drawn < *weight;
            drawn = drawn.saturating_sub(*weight);
            is_in
        };
        weights.iter().position(is_left).unwrap_or_default()
    }
}
