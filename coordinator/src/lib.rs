//! The coordinator: runs, shots, tasks, leases, journal. It decides and computes no number from tensors; it links no libtorch.
//!
//! Map: the algorithm is [`shot::run_shot`]; its stages are in `stages/`, what they decide in crate `planning`. A run's
//! only memory is its journal ([`journal`], folded by [`event::History`]); [`tasks`] leases work to whoever asks; `artifacts` moves bulk
//! data between callers and the store.
//!
//! Invariants: an answer is sent only after its record is durable; a record is created once, so a replaced coordinator
//! is fenced by the store; a stage's result is journalled once, and going on after a kill is the same code.

mod artifacts;
mod config;
mod error;
pub mod event;
mod grpc;
pub mod journal;
mod metrics;
mod pool;
mod report;
mod reports;
mod result;
mod run;
mod runs;
mod scores;
pub mod shot;
mod stages;
pub mod tasks;
mod trace;
mod turns;
mod worker_grpc;

pub use artifacts::UploadLimits;
pub use config::{Args, serve};
pub use error::RunError;
pub use run::Run;
pub use runs::{Coordinator, Deployment, OpenError, ServeError};
pub use stages::shard_plan;
