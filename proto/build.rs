//! Compiles the contract with protox (no protoc needed) into tonic services and prost messages.

use std::io::Result;

fn main() -> Result<()> {
    let files = ["run", "coordinator_service", "worker_service", "calibrator_service", "surgeon_service"]
        .map(|name| format!("llm_surgeon/v1/{name}.proto"));
    println!("cargo:rerun-if-changed=llm_surgeon");
    let descriptors = protox::compile(&files, ["."]).map_err(std::io::Error::other)?;
    tonic_prost_build::configure().bytes(".llm_surgeon.v1.FactorChunk.payload").compile_fds(descriptors)
}
