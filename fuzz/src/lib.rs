//! What the fuzz targets share: a limit on single allocations, seeds, and a place for hostile files.
//!
//! A target says what holds for every input, and libFuzzer looks for one that breaks it. Panics, overflows, endless loops
//! and memory that only a header promises are found without being asked for. Nothing here knows a format.

mod memory;
mod scratch;
mod seeds;

pub use scratch::Scratch;
pub use seeds::{example, plant};
