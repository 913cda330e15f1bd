//! The kernels of this crate as a caller sees them.

#![allow(clippy::unwrap_used, clippy::float_cmp, reason = "tests; exact zeros are the claim")]

mod common;
mod elements;
mod kronecker_sum;
mod masked;
mod oracle;
mod paths;
mod properties;
