//! Where a calibrator runs. Nothing here changes a number; that is all in the run specification.

use model::device::DeviceChoice;
use service::{Peers, Store};
use tonic::transport::Channel;
use types::WorkerId;

/// How a calibrator is deployed.
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
    /// Where checkpoints lie.
    pub store: Store,
    /// The coordinator.
    pub coordinator: Channel,
}
