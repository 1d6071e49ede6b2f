//! Where a Region is and who calls it: what `keyward` reads from its environment.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use keyward_client::{Client, ClientConfig};

use super::definition::{AttachedRegion, Text};
use crate::error::Failure;

/// What commands and clients find a Region by.
const NAMES: [&str; 6] = [
    "KEYWARD_ENDPOINTS",
    "KEYWARD_CA",
    "KEYWARD_CERT",
    "KEYWARD_KEY",
    "KEYWARD_OPERATOR_CERT",
    "KEYWARD_OPERATOR_KEY",
];

/// A caller's certificate and private key, as files.
#[derive(Clone, Debug)]
pub struct Identity {
    pub certificate: String,
    pub private_key: String,
}

/// A Region, as somebody reaches it.
#[derive(Clone, Debug)]
pub struct Place {
    pub region: String,
    environment: BTreeMap<&'static str, String>,
}

fn read(path: &str) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|e| Failure::new(format!("cannot read {path}: {e}")))
}

impl Place {
    /// A Region of `keyward dev`.
    pub fn of_dev(region: &str, environment: [(&'static str, String); 6]) -> Self {
        Self { region: region.to_owned(), environment: environment.into() }
    }

    /// One that the drill's file tells of. `beside`: the file's folder.
    pub fn attached(told: &AttachedRegion, beside: &Path) -> Result<Self, Failure> {
        let region = told.name.get_ref().clone();
        let environment = match &told.env_prefix {
            Some(prefix) => from_environment(&region, prefix.get_ref())?,
            None => {
                let file = |file: &Option<Text>| {
                    file.as_ref().map(|file| beside.join(file.get_ref()).display().to_string())
                };
                let values = [
                    Some(told.endpoints.join(",")),
                    file(&told.ca),
                    file(&told.certificate),
                    file(&told.private_key),
                    file(&told.operator_certificate),
                    file(&told.operator_key),
                ];
                NAMES.into_iter().zip(values).filter_map(|(n, v)| Some((n, v?))).collect()
            }
        };
        Ok(Self { region, environment })
    }

    /// What points `keyward` and programs at it, as that principal.
    pub fn environment(&self, who: Option<&Identity>) -> BTreeMap<&'static str, String> {
        let mut environment = self.environment.clone();
        if let Some(who) = who {
            environment.insert("KEYWARD_CERT", who.certificate.clone());
            environment.insert("KEYWARD_KEY", who.private_key.clone());
        }
        environment
    }

    fn get(&self, name: &str) -> Result<&str, Failure> {
        let value = self.environment.get(name).filter(|value| !value.is_empty());
        value
            .map(String::as_str)
            .ok_or_else(|| Failure::new(format!("{name} of {} is not told", self.region)))
    }

    fn connect(
        &self,
        who: (&str, &str),
        nodes: &[u16],
        patience: Duration,
    ) -> Result<Client, Failure> {
        let all: Vec<String> =
            self.get("KEYWARD_ENDPOINTS")?.split(',').map(|one| one.trim().to_owned()).collect();
        let endpoints = match nodes {
            [] => all,
            some => some
                .iter()
                .map(|node| {
                    let at = usize::from(*node).checked_sub(1);
                    at.and_then(|at| all.get(at)).cloned().ok_or_else(|| {
                        let there = all.len();
                        Failure::new(format!(
                            "{} has no node {node}: it has nodes 1 to {there}",
                            self.region
                        ))
                    })
                })
                .collect::<Result<_, _>>()?,
        };
        let config = ClientConfig {
            endpoints,
            authority: read(self.get("KEYWARD_CA")?)?,
            certificate: read(who.0)?,
            private_key: read(who.1)?.into(),
            patience,
        };
        Ok(Client::new(&config)?)
    }

    /// A client of these nodes, or of all.
    pub fn client(
        &self,
        who: Option<&Identity>,
        nodes: &[u16],
        patience: Duration,
    ) -> Result<Client, Failure> {
        let who = match who {
            Some(who) => (who.certificate.as_str(), who.private_key.as_str()),
            None => (self.get("KEYWARD_CERT")?, self.get("KEYWARD_KEY")?),
        };
        self.connect(who, nodes, patience)
    }

    /// A client of an operator, if one is told.
    pub fn operator(&self, patience: Duration) -> Result<Client, Failure> {
        let who = (self.get("KEYWARD_OPERATOR_CERT")?, self.get("KEYWARD_OPERATOR_KEY")?);
        self.connect(who, &[], patience)
    }

    /// The operator's certificate and private key, PEM.
    pub fn signer(&self) -> Result<(String, String), Failure> {
        let text = |name| {
            let path = self.get(name)?;
            std::fs::read_to_string(path)
                .map_err(|e| Failure::new(format!("cannot read {path}: {e}")))
        };
        Ok((text("KEYWARD_OPERATOR_CERT")?, text("KEYWARD_OPERATOR_KEY")?))
    }
}

fn from_environment(region: &str, prefix: &str) -> Result<BTreeMap<&'static str, String>, Failure> {
    let get = |name: &'static str| {
        let told = std::env::var(format!("{prefix}{name}")).ok().filter(|value| !value.is_empty());
        told.map(|value| (name, value))
    };
    let found: BTreeMap<&'static str, String> = NAMES.into_iter().filter_map(get).collect();
    match NAMES.iter().find(|name| !found.contains_key(*name)) {
        None => Ok(found),
        Some(missing) => Err(Failure::new(format!("{prefix}{missing} is not in the environment"))
            .next(format!("it tells where {region} is, and who calls and operates it"))),
    }
}
