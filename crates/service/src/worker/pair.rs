//! A calibrator and a surgeon in one process: one coordinator, store, set of certificates and port for probes; two places.

use super::args::{Place, Seat, WorkerArgs, role_name};
use crate::listen::{Address, Listener};
use crate::program::{Failure, ProgramArgs};
use crate::server::{Vitals, tell_of_all};
use clap::Args;
use proto::v1::WorkerRole;
use tokio::sync::watch;

/// Flags of both; those of a single worker say where the calibrator is.
#[derive(Debug, Clone, Args)]
pub struct PairArgs {
    /// What both share, and the calibrator's address.
    #[command(flatten)]
    pub worker: WorkerArgs,
    /// Where the surgeon listens, as --listen says for the calibrator
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7102", help_heading = "Network")]
    pub surgeon_listen: Address,
    /// Where other workers reach the surgeon: a URL [default: where it listens]
    #[arg(long, value_name = "URL", help_heading = "Network")]
    pub surgeon_advertise: Option<String>,
}

impl AsRef<ProgramArgs> for PairArgs {
    fn as_ref(&self) -> &ProgramArgs {
        &self.worker.program
    }
}

/// Two workers' places, and where their calls arrive.
#[derive(Debug)]
pub struct Pair {
    /// The calibrator's.
    pub calibrator: (Place, Listener),
    /// The surgeon's.
    pub surgeon: (Place, Listener),
    /// What probes are told of both.
    pub health: Health,
}

/// How two workers are together.
#[derive(Debug)]
pub struct Health {
    admin: Option<Listener>,
    roles: Vec<watch::Receiver<Vitals>>,
}

impl Health {
    /// Tells probes, if there is a port for them: ready when both workers are, alive while both are. Never returns.
    pub async fn tell(self) {
        match self.admin {
            Some(listener) => tell_of_all(listener, self.roles).await,
            None => std::future::pending().await,
        }
    }
}

impl PairArgs {
    /// Opens store and network. All faults of the flags are told at once.
    pub async fn open(&self) -> Result<Pair, Failure> {
        let flags = &self.worker;
        let mut network = flags.network.open().await?;
        let beside = network.listen(&self.surgeon_listen).await?;
        let mut faults = Vec::new();
        let shared = flags.shared(&network.connector, &mut faults).await;
        let name = |role| flags.worker.as_ref().map(|name| format!("{}-{name}", role_name(role)));
        let (first, second) = (name(WorkerRole::Calibrator), name(WorkerRole::Surgeon));
        let calibrator = Seat {
            role: WorkerRole::Calibrator,
            name: first.as_deref(),
            listener: &network.listener,
            listen: ("--listen", &flags.network.listen),
            advertise: ("--advertise", flags.advertise.as_deref()),
        };
        let surgeon = Seat {
            role: WorkerRole::Surgeon,
            name: second.as_deref(),
            listener: &beside,
            listen: ("--surgeon-listen", &self.surgeon_listen),
            advertise: ("--surgeon-advertise", self.surgeon_advertise.as_deref()),
        };
        let calibrator = calibrator.take(&network.connector, &mut faults);
        let surgeon = surgeon.take(&network.connector, &mut faults);
        let (Some(shared), Some(calibrator), Some(surgeon)) = (shared, calibrator, surgeon) else {
            return Err(Failure::of_all(faults));
        };
        let (of_calibrator, hears_calibrator) = watch::channel(Vitals::default());
        let (of_surgeon, hears_surgeon) = watch::channel(Vitals::default());
        let calibrator = Place { vitals: Some(of_calibrator), ..flags.place(calibrator, &shared, &network) };
        let surgeon = Place { vitals: Some(of_surgeon), ..flags.place(surgeon, &shared, &network) };
        let health = Health { admin: network.admin.take(), roles: vec![hears_calibrator, hears_surgeon] };
        Ok(Pair { calibrator: (calibrator, network.listener), surgeon: (surgeon, beside), health })
    }
}
