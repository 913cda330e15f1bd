//! A service's place in the network: where it listens, how it is reached, whom it lets in and what it shows to others. One
//! set of flags for all of them.

use crate::access::{Guard, TokenFile};
use crate::listen::{Address, Listener, Plain};
use crate::program::{Exit, Failure};
use crate::telemetry;
use crate::tls::{Tls, TlsArgs};
use crate::transport::{Connector, MemoryNetwork};
use clap::Args;
use std::path::PathBuf;

/// Flags that every service has.
#[derive(Debug, Clone, Args)]
pub struct NetworkArgs {
    /// Where to listen: IP:PORT (port 0 for any) or `unix:///PATH`
    #[arg(long, value_name = "ADDRESS", help_heading = "Network")]
    pub listen: Address,
    /// Where to tell health, and nothing else, without TLS: IP:PORT, for probes [default: nowhere]
    #[arg(long, value_name = "ADDRESS", help_heading = "Network")]
    pub admin: Option<Address>,
    /// Where to tell metrics to Prometheus, as plain HTTP at `/metrics`: IP:PORT [default: nowhere]
    #[arg(long, value_name = "ADDRESS", help_heading = "Network")]
    pub metrics: Option<Address>,
    /// File of the bearer token that callers show; read again when it changes
    #[arg(long, value_name = "FILE", help_heading = "Security")]
    pub token_file: Option<PathBuf>,
    /// TLS.
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Send and take plain text beyond this host, without TLS
    #[arg(long, help_heading = "Security")]
    pub insecure: bool,
}

/// What the flags come to.
#[derive(Debug)]
pub struct Network {
    /// Where calls arrive.
    pub listener: Listener,
    /// Where probes ask.
    pub admin: Option<Listener>,
    /// How others are reached.
    pub connector: Connector,
    /// Who may call a public service.
    pub public: Guard,
    /// Who may call what services offer each other.
    pub between_services: Guard,
    tls: Option<Tls>,
    plain: Plain,
}

impl Network {
    /// Begins to listen somewhere else as well, with the same certificates.
    pub async fn listen(&self, address: &Address) -> Result<Listener, Failure> {
        bind(address, self.tls.clone(), self.plain).await
    }
}

impl NetworkArgs {
    /// Reads certificates and token and begins to listen.
    pub async fn open(&self) -> Result<Network, Failure> {
        let usage = |error: &dyn std::error::Error| Failure::new(Exit::Usage, crate::status::chain(error));
        let tls = Tls::open(&self.tls).map_err(|e| usage(&e))?;
        let token = self.token_file.as_deref().map(TokenFile::open).transpose().map_err(|e| usage(&e))?;
        let plain = Plain::new(self.insecure);
        let listener = bind(&self.listen, tls.clone(), plain).await?;
        let admin = match &self.admin {
            // Probes come from the node, not from this host, and health is no secret.
            Some(address) => Some(bind(address, None, Plain::Anywhere).await?),
            None => None,
        };
        if let Some(address) = &self.metrics {
            telemetry::scrape(bind(address, None, Plain::Anywhere).await?); // as for probes
        }
        let connector = Connector::new(MemoryNetwork::new()).between_hosts(tls.clone(), plain, token.clone());
        Ok(Network {
            listener,
            admin,
            connector,
            public: Guard::new(tls.is_some(), token.clone()),
            between_services: Guard::between_services(tls.is_some(), token),
            tls,
            plain,
        })
    }
}

async fn bind(address: &Address, tls: Option<Tls>, plain: Plain) -> Result<Listener, Failure> {
    Listener::bind(address, tls, plain).await.map_err(|error| {
        let exit = match error {
            crate::listen::ListenError::System { .. } => Exit::System,
            _ => Exit::Usage,
        };
        Failure::new(exit, error.to_string())
    })
}
