//! The contract between the services: package `llm_surgeon.v1`, and the passage from its messages to domain values.
//!
//! A message is parsed once, at the edge: `TryFrom<v1::X>` gives a valid value from `types` or an [`InvalidMessage`]
//! that names every bad field. After that nothing is optional that is always there. This crate opens no connection and
//! takes no decision.

pub mod bulk;
pub mod convert;

pub use convert::InvalidMessage;
pub use prost_types;

use prost::Message;
use std::collections::BTreeSet;
use std::time::SystemTime;

/// Generated messages, clients and servers.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("llm_surgeon.v1");
}

/// The contract itself, encoded as a `FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Version of the program, as workers and the coordinator tell each other.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Largest payload of one chunk of bulk data, in bytes.
pub const CHUNK_BYTES: usize = 1 << 20;

/// Largest message on a bulk stream, in bytes: a chunk and its frame, with room to spare.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// Largest message between coordinator, workers and clients, in bytes: tasks and events may carry a whole report.
pub const MAX_CONTROL_BYTES: usize = 64 << 20;

/// Returns the full names of all methods, as `llm_surgeon.v1.CoordinatorService/CreateRun`.
pub fn methods() -> BTreeSet<String> {
    // The descriptors are ours, made with the code; were they damaged, nothing would have a name.
    let files = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap_or_default().file;
    let services = files.iter().flat_map(|file| file.service.iter().map(move |service| (file.package(), service)));
    services
        .flat_map(|(package, s)| s.method.iter().map(move |m| format!("{package}.{}/{}", s.name(), m.name())))
        .collect()
}

/// Returns how many bytes a message takes on the wire.
pub fn encoded_bytes(message: &impl Message) -> usize {
    message.encoded_len()
}

/// Returns a point in time as messages carry it.
pub fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    time.into()
}
