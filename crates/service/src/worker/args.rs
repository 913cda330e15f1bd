//! Flags that calibrators and surgeons share, and what they come to.

use crate::access::Guard;
use crate::listen::Listener;
use crate::network::NetworkArgs;
use crate::program::{Exit, Failure, ProgramArgs};
use crate::server::Peers;
use crate::status::chain;
use crate::store::Store;
use crate::transport::{Connector, Wire};
use clap::Args;
use proto::v1::WorkerRole;
use std::time::Duration;
use types::WorkerId;

/// Flags of a worker's place among the others.
#[derive(Debug, Clone, Args)]
pub struct WorkerArgs {
    /// The coordinator: `http://HOST:PORT`, `https://HOST:PORT` or `unix:///PATH`
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7100", help_heading = "Network")]
    pub coordinator: String,
    /// Work for whoever calls, without a coordinator
    #[arg(long, help_heading = "Network")]
    pub standalone: bool,
    /// Where other workers reach this one: a URL [default: where it listens]
    #[arg(long, value_name = "URL", help_heading = "Network")]
    pub advertise: Option<String>,
    /// This worker's name, the same after a restart and unlike all others [default: its role, host and port]
    #[arg(long, value_name = "NAME", help_heading = "Network")]
    pub worker: Option<String>,
    /// Where journals, factors and weights lie, the same for all: a folder that all hosts share, or `s3://BUCKET/PREFIX`
    /// [with --standalone: in memory]
    #[arg(long, value_name = "STORE", required_unless_present = "standalone", help_heading = "Storage")]
    pub store: Option<String>,
    /// Seconds without a sign of life from the thread that computes after which probes are told that this process is stuck:
    /// more than its longest single step takes
    #[arg(long, value_name = "SECONDS", default_value_t = 900, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Program")]
    pub stuck_after: u32,
    /// Where to listen, and who may call.
    #[command(flatten)]
    pub network: NetworkArgs,
    /// Logs and the settings file.
    #[command(flatten)]
    pub program: ProgramArgs,
}

/// A worker's place among the others, in one process or on many hosts.
#[derive(Debug)]
pub struct Place {
    /// Its name, unique while it lives.
    pub worker: WorkerId,
    /// Where its own service can be reached: `memory://name`, `http://host:port` and so on.
    pub endpoint: String,
    /// Where its callers live.
    pub peers: Peers,
    /// Who may call it.
    pub guard: Guard,
    /// Where probes ask.
    pub admin: Option<Listener>,
    /// Where everything lies.
    pub store: Store,
    /// The coordinator; `None` for a worker that works for whoever calls.
    pub coordinator: Option<Wire>,
    /// How others are reached.
    pub connector: Connector,
    /// For how long its computing may be silent before it counts as stuck.
    pub stuck_after: Duration,
}

impl WorkerArgs {
    /// Opens store and network; returns the place and where calls arrive. All faults of the flags are told at once.
    pub async fn open(&self, role: WorkerRole) -> Result<(Place, Listener), Failure> {
        let network = self.network.open().await?;
        let dial = || network.connector.channel(&self.coordinator).map(Some);
        let coordinator = if self.standalone { Ok(None) } else { dial() };
        let coordinator = coordinator.map_err(|e| format!("--coordinator: {}", chain(&e)));
        let endpoint = self.endpoint(&network.listener, &network.connector);
        let name = self.worker.clone().unwrap_or_else(|| usual_name(role, network.listener.port()));
        let worker = WorkerId::new(&name).map_err(|e| format!("--worker: {e}"));
        let store = match &self.store {
            None => Ok(Store::memory()),
            Some(address) => Store::open(address)
                .await
                .map_err(|e| Failure::new(Exit::Store, format!("--store {address}: {}", chain(&e)))),
        };
        match (worker, endpoint, coordinator) {
            (Ok(worker), Ok(endpoint), Ok(coordinator)) => {
                let place = Place {
                    worker,
                    endpoint,
                    peers: Peers::Network,
                    guard: if self.standalone { network.public } else { network.between_services },
                    admin: network.admin,
                    store: store?,
                    coordinator,
                    connector: network.connector,
                    stuck_after: Duration::from_secs(self.stuck_after.into()),
                };
                Ok((place, network.listener))
            }
            (worker, endpoint, coordinator) => {
                let faults = [worker.err(), endpoint.err(), coordinator.err(), store.err().map(|f| f.message)];
                Err(Failure::of_settings(faults.into_iter().flatten()))
            }
        }
    }

    /// Returns where others reach this worker.
    fn endpoint(&self, listener: &Listener, connector: &Connector) -> Result<String, String> {
        match self.advertise.clone().or_else(|| listener.endpoint()) {
            None => Err(format!(
                "--listen {} is every address of this host: name with --advertise the one that others reach",
                self.network.listen
            )),
            // The others reach it as we would.
            Some(url) => match connector.channel(&url) {
                Ok(_) => Ok(url),
                Err(error) => Err(format!("--advertise: {}", chain(&error))),
            },
        }
    }
}

/// Returns a name that is the same after a restart at the same place.
fn usual_name(role: WorkerRole, port: Option<u16>) -> String {
    let role = match role {
        WorkerRole::Calibrator => "calibrator",
        WorkerRole::Surgeon => "surgeon",
        WorkerRole::Unspecified => "worker",
    };
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let host: String = host.trim().chars().filter(|c| legal(*c)).take(100).collect();
    match port {
        Some(port) => format!("{role}-{host}-{port}"),
        // Several may listen at sockets of one host.
        None => format!("{role}-{host}-{}", std::process::id()),
    }
}
