//! The program as people meet it: help, refusals with their exit codes, results on standard output. Runs the real binary
//! on tiny models. What pruning computes, and what survives a kill, is tested end to end elsewhere.

#![allow(clippy::unwrap_used)] // helpers of tests, not only tests

mod eval;
mod generate;
mod help;
mod inspect;
mod place;
mod prune;
mod report;
