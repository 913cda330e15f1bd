//! Flags that calibrators and surgeons share, and what they come to.

use crate::access::Guard;
use crate::listen::{Address, Listener};
use crate::network::{Network, NetworkArgs};
use crate::places::Places;
use crate::program::{Exit, Failure, ProgramArgs};
use crate::server::{Peers, Vitals};
use crate::status::chain;
use crate::store::Store;
use crate::transport::{Connector, Wire};
use clap::Args;
use proto::v1::WorkerRole;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;
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
    /// Buckets and folders in them where models, text and outputs may lie besides this host's paths: `s3://BUCKET/PREFIX`, several
    /// with commas between them [default: none]
    #[arg(long, value_name = "ADDRESSES", value_delimiter = ',', help_heading = "Storage")]
    pub allow: Vec<String>,
    /// Folder on a local disk for copies of text, tokenizers and finished models that lie in a bucket [default: the system's folder
    /// for temporary files]
    #[arg(long, value_name = "FOLDER", help_heading = "Storage")]
    pub scratch: Option<PathBuf>,
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
    /// Told how it is, where probes ask after several roles at once.
    pub vitals: Option<watch::Sender<Vitals>>,
    /// Where everything lies.
    pub store: Store,
    /// Where models, text and outputs lie.
    pub places: Places,
    /// The coordinator; `None` for a worker that works for whoever calls.
    pub coordinator: Option<Wire>,
    /// How others are reached.
    pub connector: Connector,
    /// For how long its computing may be silent before it counts as stuck.
    pub stuck_after: Duration,
}

/// A role of this process and where it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seat<'a> {
    pub(super) role: WorkerRole,
    /// Its name, if one was given.
    pub(super) name: Option<&'a str>,
    pub(super) listener: &'a Listener,
    /// The flag that says where it listens, and what it says.
    pub(super) listen: (&'static str, &'a Address),
    /// The flag that says where others reach it, and what it says.
    pub(super) advertise: (&'static str, Option<&'a str>),
}

/// What all roles of a process share.
#[derive(Debug)]
pub(super) struct Shared {
    coordinator: Option<Wire>,
    store: Store,
    places: Places,
}

impl WorkerArgs {
    /// Opens store and network; returns the place and where calls arrive. All faults of the flags are told at once.
    pub async fn open(&self, role: WorkerRole) -> Result<(Place, Listener), Failure> {
        let mut network = self.network.open().await?;
        let mut faults = Vec::new();
        let shared = self.shared(&network.connector, &mut faults).await;
        let seat = Seat {
            role,
            name: self.worker.as_deref(),
            listener: &network.listener,
            listen: ("--listen", &self.network.listen),
            advertise: ("--advertise", self.advertise.as_deref()),
        };
        let taken = seat.take(&network.connector, &mut faults);
        let (Some(shared), Some(taken)) = (shared, taken) else { return Err(Failure::of_all(faults)) };
        let admin = network.admin.take();
        Ok((Place { admin, ..self.place(taken, &shared, &network) }, network.listener))
    }

    /// Opens the store and the way to the coordinator.
    pub(super) async fn shared(&self, connector: &Connector, faults: &mut Vec<Failure>) -> Option<Shared> {
        let coordinator = if self.standalone { Ok(None) } else { connector.channel(&self.coordinator).map(Some) };
        let coordinator = coordinator.map_err(|e| Failure::new(Exit::Usage, format!("--coordinator: {}", chain(&e))));
        let store = match &self.store {
            None => Ok(Store::memory()),
            Some(address) => Store::open(address)
                .await
                .map_err(|e| Failure::new(Exit::Store, format!("--store {address}: {}", chain(&e)))),
        };
        let (coordinator, store) = (kept(coordinator, faults), kept(store, faults));
        let scratch = self.scratch.clone().unwrap_or_else(std::env::temp_dir);
        let places = Places::new(&self.allow, store.clone().unwrap_or_else(Store::memory), &scratch);
        let places = places.map_err(|e| Failure::new(Exit::Usage, format!("--allow, --scratch: {}", chain(&e))));
        let places = kept(places, faults);
        Some(Shared { coordinator: coordinator?, store: store?, places: places? })
    }

    /// Returns the place of a role with this name and endpoint.
    pub(super) fn place(&self, (worker, endpoint): (WorkerId, String), shared: &Shared, network: &Network) -> Place {
        Place {
            worker,
            endpoint,
            peers: Peers::Network,
            guard: if self.standalone { network.public.clone() } else { network.between_services.clone() },
            admin: None,
            vitals: None,
            store: shared.store.clone(),
            places: shared.places.clone(),
            coordinator: shared.coordinator.clone(),
            connector: network.connector.clone(),
            stuck_after: Duration::from_secs(self.stuck_after.into()),
        }
    }
}

impl Seat<'_> {
    /// Returns the role's name and where others reach it.
    pub(super) fn take(&self, connector: &Connector, faults: &mut Vec<Failure>) -> Option<(WorkerId, String)> {
        let usage = |message| Failure::new(Exit::Usage, message);
        let name = self.name.map_or_else(|| usual_name(self.role, self.listener.port()), str::to_owned);
        let worker = WorkerId::new(&name).map_err(|e| usage(format!("--worker: {e}")));
        let endpoint = self.endpoint(connector).map_err(usage);
        let (worker, endpoint) = (kept(worker, faults), kept(endpoint, faults));
        Some((worker?, endpoint?))
    }

    fn endpoint(&self, connector: &Connector) -> Result<String, String> {
        let ((listen, address), (advertise, told)) = (self.listen, self.advertise);
        match told.map(str::to_owned).or_else(|| self.listener.endpoint()) {
            None => Err(format!(
                "{listen} {address} is every address of this host: name with {advertise} the one that others reach"
            )),
            // The others reach it as we would.
            Some(url) => match connector.channel(&url) {
                Ok(_) => Ok(url),
                Err(error) => Err(format!("{advertise}: {}", chain(&error))),
            },
        }
    }
}

/// Returns what there is, or notes the fault.
fn kept<T>(found: Result<T, Failure>, faults: &mut Vec<Failure>) -> Option<T> {
    found.map_err(|fault| faults.push(fault)).ok()
}

/// Returns what a role is called in names.
pub(super) fn role_name(role: WorkerRole) -> &'static str {
    match role {
        WorkerRole::Calibrator => "calibrator",
        WorkerRole::Surgeon => "surgeon",
        WorkerRole::Unspecified => "worker",
    }
}

/// Returns a name that is the same after a restart at the same place.
fn usual_name(role: WorkerRole, port: Option<u16>) -> String {
    let role = role_name(role);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let host: String = host.trim().chars().filter(|c| legal(*c)).take(100).collect();
    match port {
        Some(port) => format!("{role}-{host}-{port}"),
        // Several may listen at sockets of one host.
        None => format!("{role}-{host}-{}", std::process::id()),
    }
}
