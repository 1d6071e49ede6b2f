//! Where the Region is and who calls.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use keyward_client::{Client, ClientConfig};

use super::output::Format;
use crate::error::Failure;

#[derive(Args, Clone, Debug)]
pub struct ConnectArgs {
    /// host:port of the Region's nodes, separated by commas
    #[arg(
        long,
        global = true,
        env = "KEYWARD_ENDPOINTS",
        value_delimiter = ',',
        value_name = "HOST:PORT",
        help_heading = "Connection"
    )]
    pub endpoint: Vec<String>,
    /// The Region's certificate authority (PEM)
    #[arg(
        long,
        global = true,
        env = "KEYWARD_CA",
        value_name = "FILE",
        help_heading = "Connection"
    )]
    pub ca: Option<PathBuf>,
    /// The caller's certificate (PEM)
    #[arg(
        long,
        global = true,
        env = "KEYWARD_CERT",
        value_name = "FILE",
        help_heading = "Connection"
    )]
    pub cert: Option<PathBuf>,
    /// The caller's private key (PEM)
    #[arg(
        long,
        global = true,
        env = "KEYWARD_KEY",
        value_name = "FILE",
        help_heading = "Connection"
    )]
    pub key: Option<PathBuf>,
    /// An operator's certificate, for cluster and principal commands; --cert when absent
    #[arg(
        long,
        global = true,
        env = "KEYWARD_OPERATOR_CERT",
        value_name = "FILE",
        help_heading = "Connection"
    )]
    pub operator_cert: Option<PathBuf>,
    /// The operator's private key
    #[arg(
        long,
        global = true,
        env = "KEYWARD_OPERATOR_KEY",
        value_name = "FILE",
        help_heading = "Connection"
    )]
    pub operator_key: Option<PathBuf>,
    /// Seconds that one call may take
    #[arg(long, global = true, env = "KEYWARD_TIMEOUT", default_value_t = 10, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=60), help_heading = "Connection")]
    pub timeout: u64,
    /// Tables for people, JSON for programs
    #[arg(long, global = true, env = "KEYWARD_OUTPUT", value_enum, default_value_t = Format::Table)]
    pub output: Format,
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|e| Failure::new(format!("cannot read {}: {e}", path.display())))
}

impl ConnectArgs {
    /// A client that calls as a principal.
    pub fn client(&self) -> Result<Client, Failure> {
        self.connect(self.cert.as_deref(), self.key.as_deref(), ("--cert", "--key"))
    }

    /// What such a client is made of.
    pub fn config(&self) -> Result<ClientConfig, Failure> {
        self.read(self.cert.as_deref(), self.key.as_deref(), ("--cert", "--key"))
    }

    /// A client that calls as an operator.
    pub fn operator(&self) -> Result<Client, Failure> {
        match (&self.operator_cert, &self.operator_key) {
            (Some(cert), Some(key)) => {
                self.connect(Some(cert), Some(key), ("--operator-cert", "--operator-key"))
            }
            _ => self.client(),
        }
    }

    fn connect(
        &self,
        cert: Option<&Path>,
        key: Option<&Path>,
        names: (&str, &str),
    ) -> Result<Client, Failure> {
        Ok(Client::new(&self.read(cert, key, names)?)?)
    }

    fn read(
        &self,
        cert: Option<&Path>,
        key: Option<&Path>,
        names: (&str, &str),
    ) -> Result<ClientConfig, Failure> {
        let needed = |what: &str| {
            Failure::new(format!("{what} is not given")).next(
                "`eval \"$(keyward dev env)\"` sets everything for a Region of `keyward dev up`",
            )
        };
        if self.endpoint.is_empty() {
            return Err(needed("--endpoint (KEYWARD_ENDPOINTS)"));
        }
        Ok(ClientConfig {
            endpoints: self.endpoint.clone(),
            authority: read(self.ca.as_deref().ok_or_else(|| needed("--ca (KEYWARD_CA)"))?)?,
            certificate: read(cert.ok_or_else(|| needed(names.0))?)?,
            private_key: read(key.ok_or_else(|| needed(names.1))?)?.into(),
            patience: Duration::from_secs(self.timeout),
        })
    }
}
