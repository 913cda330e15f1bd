//! What the fuzz targets share: a limit on single allocations, seeds, and a place for hostile files.
//!
//! A target says what holds for every input, and libFuzzer looks for one that breaks it. Panics, overflows, endless loops
//! and memory that only a header promises are found without being asked for. Nothing here knows a format.

mod memory;
mod scratch;
mod seeds;

/// Lets panics that the program catches pass; one that it does not still ends the target. For the `init` of a target of code that
/// catches those of a library: libFuzzer's own hook ends the process before anybody can.
pub fn let_caught_panics_pass() {
    drop(std::panic::take_hook());
}

pub use scratch::Scratch;
pub use seeds::{example, plant};
