//! Faults on real processes: whatever breaks, a run ends with the bits of an undisturbed one, or with the right error.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod bucket;
mod caller;
mod clock;
mod cut;
mod full;
mod liar;
mod order;
mod poison;
mod slow;
mod stall;
