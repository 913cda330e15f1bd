//! Decisions of a pruning run: how small after each shot, of which shape, where to cut each layer's removal path, how to split the
//! calibration data, what to do after a failure or a lost answer, which samples a run can do without; what other sizes would cost,
//! and what the run will take.
//!
//! Invariants: every function is pure. Equal arguments give equal results; time, randomness and identity come in as
//! arguments; nothing is read, written, awaited or logged. No tensors: costs arrive as numbers that surgeons computed.

pub mod assignment;
pub mod curve;
mod error;
pub mod forecast;
pub mod lease;
pub mod quarantine;
pub mod retry;
pub mod schedule;
pub mod shape;
pub mod threshold;

pub use error::PlanningError;
