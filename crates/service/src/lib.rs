//! What every service needs around its own work: storage, transport, errors on the wire, one thread for the device,
//! logs, shutdown, and the loop that both kinds of worker share.
//!
//! Invariants: every queue is bounded, every call has a deadline, every retry a limit and jitter; nothing is visible in
//! the store half-written. This crate knows no tensors, no curvature and no schedule, and takes no decision about a run.

pub mod access;
mod ahead;
pub mod bulk;
pub mod checkpoint;
pub mod compute;
pub mod keys;
pub mod listen;
pub mod memory;
pub mod neighbour;
pub mod network;
pub mod places;
pub mod program;
pub mod request_id;
pub mod retry;
pub mod server;
pub mod shutdown;
pub mod status;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod transfer;
pub mod transport;
pub mod worker;

pub use access::{Guard, TokenFile};
pub use compute::{Beat, ComputeError, ComputeHandle, ComputeThread};
pub use neighbour::{LocalBlock, LocalFactors, Neighbour, SweepKey};
pub use places::{OutputPlace, PlaceError, Places};
pub use request_id::RequestIds;
pub use retry::Retry;
pub use server::{Peers, Server};
pub use shutdown::Shutdown;
pub use status::Reason;
pub use store::{Store, StoreError};
pub use transport::{Connector, MemoryNetwork, TransportError, Wire};
pub use worker::{
    Lease, LeaseError, Leased, TaskFailure, TaskHandler, WorkerError, WorkerOptions, run_standalone, run_worker,
};
