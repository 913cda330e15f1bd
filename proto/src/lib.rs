//! The contract: package `llm_surgeon.v1`.
#[allow(missing_docs, unreachable_pub, clippy::pedantic)]
pub mod v1 { tonic::include_proto!("llm_surgeon.v1"); }
