//! Compiles the contract with protox (no protoc needed) into tonic services and prost messages.

use prost::Message;
use std::io::Result;

fn main() -> Result<()> {
    let services =
        ["coordinator_service", "worker_service", "calibrator_service", "surgeon_service", "artifact_service"];
    let files: Vec<String> =
        ["run", "path"].into_iter().chain(services).map(|name| format!("llm_surgeon/v1/{name}.proto")).collect();
    println!("cargo:rerun-if-changed=llm_surgeon");
    let descriptors = protox::compile(&files, ["."]).map_err(std::io::Error::other)?;
    // What reflection tells to clients that have no copy of the contract.
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".llm_surgeon.v1.FactorChunk.payload")
        .bytes(".llm_surgeon.v1.ArtifactChunk.payload")
        .compile_fds(descriptors)
}
