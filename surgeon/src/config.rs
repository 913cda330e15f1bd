//! Where a surgeon runs. Nothing here changes a number; that is all in the run specification.

use model::device::DeviceChoice;
use service::{Connector, Peers, Store};
use tonic::transport::Channel;
use types::WorkerId;

/// How a surgeon is deployed.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name, unique while it lives.
    pub worker: WorkerId,
    /// Where its own service can be reached: `memory://name` or `http://host:port`.
    pub endpoint: String,
    /// Where its callers live.
    pub peers: Peers,
    /// What it computes on.
    pub device: DeviceChoice,
    /// Threads of a tensor operation on the CPU; `None` for as many as libtorch takes by itself.
    pub threads: Option<u32>,
    /// Where factors, paths and weights lie.
    pub store: Store,
    /// The coordinator.
    pub coordinator: Channel,
    /// How calibrators are reached.
    pub connector: Connector,
    /// Bytes of factors that may be in memory between a calibrator and the store; [`Options::RECEIVE_BYTES`] is usual.
    pub receive_bytes: u64,
}

impl Options {
    /// The usual budget for factors on their way: 2 GiB.
    pub const RECEIVE_BYTES: u64 = 2 << 30;
}
