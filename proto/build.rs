//! Compiles the contract with protox (no protoc needed) into tonic services and prost messages.

use prost::Message;
use std::io::Result;

fn main() -> Result<()> {
    let files = ["run", "path", "coordinator_service", "worker_service", "calibrator_service", "surgeon_service"]
        .map(|name| format!("llm_surgeon/v1/{name}.proto"));
    println!("cargo:rerun-if-changed=llm_surgeon");
    let descriptors = protox::compile(&files, ["."]).map_err(std::io::Error::other)?;
    // What reflection tells to clients that have no copy of the contract.
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".llm_surgeon.v1.FactorChunk.payload").compile_fds(descriptors)
}
