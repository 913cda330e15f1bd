//! Writing a pruned model for the runtimes that people use.

pub mod huggingface;
