//! A Region's home on this machine: where its nodes are, what they are configured as, and how it is founded.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keyward_client::{Client, ClientConfig, Repeat};
use keyward_env::{Env, RealEnv};
use keyward_model::{AccountId, Region, Timestamp};
use keyward_proto::v1;
use keyward_service::{Authority, signing_request};
use serde::{Deserialize, Serialize};

use super::{LOOK_AGAIN, OBSERVE_OFFSET};
use crate::config::{
    AuditSection, Config, HsmSection, NodeSection, ObserveSection, RegionsSection, RootSection,
    TimerProfile, TlsSection,
};
use crate::error::Failure;
use crate::pem;
use crate::setup::until_listening;

/// What a development Region looks like; kept in `dev.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    #[serde(with = "as_text")]
    pub region: Region,
    #[serde(with = "as_text")]
    pub account: AccountId,
    pub nodes: u16,
    pub port_base: u16,
    /// Other Regions seem as far away as AWS's.
    #[serde(default)]
    pub aws_like_delays: bool,
    /// Nodes use keys for so long after their roots have gone; as configured by default when absent.
    #[serde(default)]
    pub root_grace_seconds: Option<u64>,
    /// Founded, all nodes in, principals made.
    pub ready: bool,
}

impl Plan {
    /// Refuses before anything is made when a port is taken: by another Region, most likely.
    pub fn check_ports(&self) -> Result<(), Failure> {
        for node in 1..=self.nodes {
            let port = self.port_base + node;
            for port in [port, port + OBSERVE_OFFSET] {
                if let Err(error) = std::net::TcpListener::bind(("127.0.0.1", port)) {
                    return Err(Failure::new(format!("port {port} cannot be used: {error}"))
                        .next("stop what uses it, or choose others with --port-base"));
                }
            }
        }
        Ok(())
    }
}

/// Identifiers as their texts: the file is read by people.
mod as_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<T: Display, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The folder of a development Region.
#[derive(Clone)]
pub struct Home {
    pub(super) folder: PathBuf,
    pub plan: Plan,
}

pub(super) fn io_failure(what: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Failure {
    let text = format!("cannot {what} {}", path.display());
    move |error| Failure::new(format!("{text}: {error}"))
}

impl Home {
    /// Opens a folder that `dev up` has made ready.
    pub fn open(folder: &Path) -> Result<Self, Failure> {
        let path = folder.join("dev.json");
        let text = fs::read_to_string(&path).map_err(|_| {
            Failure::new(format!("{} holds no development Region", folder.display()))
                .next(format!("keyward dev up --data {}", folder.display()))
        })?;
        let plan: Plan = serde_json::from_str(&text)
            .map_err(|e| Failure::new(format!("{}: {e}", path.display())))?;
        let folder = folder.canonicalize().map_err(io_failure("find", folder))?;
        if !plan.ready {
            return Err(Failure::new(format!(
                "setting {} up was interrupted before it was done",
                folder.display()
            ))
            .next(format!("rm -r {} and start again", folder.display())));
        }
        Ok(Self { folder, plan })
    }

    /// Makes a new folder: authority, node certificates, configurations, the operator.
    pub fn create(folder: &Path, plan: Plan) -> Result<(Self, Authority), Failure> {
        fs::create_dir_all(folder.join("pki")).map_err(io_failure("make", folder))?;
        let folder = folder.canonicalize().map_err(io_failure("find", folder))?;
        let home = Self { folder, plan };
        home.save()?;
        let (entropy, now) = (RealEnv.entropy(), Timestamp(RealEnv.wall_now_ms()));
        let authority = Authority::generate(home.plan.region.as_str(), &*entropy, now)
            .map_err(Failure::from_error)?;
        pem::write(&home.pki("ca.pem"), "CERTIFICATE", authority.certificate(), 0o644)?;
        let operator = home.operator_arn().parse().map_err(Failure::from_error)?;
        let (key, request) = signing_request().map_err(Failure::from_error)?;
        let issued = authority
            .issue(&request, &operator, 90, &*entropy, now)
            .map_err(Failure::from_error)?;
        pem::write(&home.pki("operator.pem"), "CERTIFICATE", &issued.certificate, 0o644)?;
        pem::write(&home.pki("operator.key"), "PRIVATE KEY", &key, 0o600)?;
        for node in 1..=home.plan.nodes {
            let (key, request) = signing_request().map_err(Failure::from_error)?;
            let hosts = ["127.0.0.1".to_owned(), "localhost".to_owned()];
            let issued = authority
                .issue_node(&request, u64::from(node), &hosts, &*entropy, now)
                .map_err(Failure::from_error)?;
            let place = home.node_folder(node);
            fs::create_dir_all(&place).map_err(io_failure("make", &place))?;
            pem::write(&place.join("node.pem"), "CERTIFICATE", &issued.certificate, 0o644)?;
            pem::write(&place.join("node.key"), "PRIVATE KEY", &key, 0o600)?;
            let text = toml::to_string_pretty(&home.node_config(node))
                .map_err(|e| Failure::new(e.to_string()))?;
            let path = home.config_path(node);
            fs::write(&path, text).map_err(io_failure("write", &path))?;
        }
        Ok((home, authority))
    }

    fn save(&self) -> Result<(), Failure> {
        let path = self.folder.join("dev.json");
        let text =
            serde_json::to_string_pretty(&self.plan).map_err(|e| Failure::new(e.to_string()))?;
        fs::write(&path, text).map_err(io_failure("write", &path))
    }

    fn node_config(&self, node: u16) -> Config {
        let port = self.plan.port_base + node;
        let local = |port: u16| std::net::SocketAddr::from(([127, 0, 0, 1], port));
        Config {
            node: NodeSection {
                // The certificate says it: a restored node has another one.
                id: None,
                region: self.plan.region.clone(),
                listen: local(port),
                advertise: None,
                data: "data".into(),
            },
            tls: TlsSection {
                certificate: "node.pem".into(),
                private_key: "node.key".into(),
                authority: "../pki/ca.pem".into(),
            },
            root: RootSection::File { path: "root.key".into() },
            // A laptop's memory limits must not keep anybody from trying; the node warns.
            hsm: self.hsm(),
            // A laptop's disk: segments are taken whole.
            audit: AuditSection { segment_bytes: 8 * 1024 * 1024, ..AuditSection::default() },
            observe: ObserveSection {
                listen: Some(local(port + OBSERVE_OFFSET)),
                ..ObserveSection::default()
            },
            regions: if self.plan.aws_like_delays {
                RegionsSection::AWS_LIKE
            } else {
                RegionsSection::default()
            },
            timers: TimerProfile::Default,
        }
    }

    fn hsm(&self) -> HsmSection {
        let usual = HsmSection { allow_unlocked: true, ..HsmSection::default() };
        match self.plan.root_grace_seconds {
            Some(root_grace_seconds) => HsmSection {
                root_grace_seconds,
                // What goes so soon is noticed sooner.
                root_probe_interval_ms: 500,
                ..usual
            },
            None => usual,
        }
    }

    fn operator_arn(&self) -> String {
        format!("arn:aws:iam::{}:user/operator", self.plan.account)
    }

    fn pki(&self, name: &str) -> PathBuf {
        self.folder.join("pki").join(name)
    }

    pub fn node_folder(&self, node: u16) -> PathBuf {
        self.folder.join(format!("node-{node}"))
    }

    /// Says how wrong a node's wall clock is.
    pub(super) fn skew_file(&self, node: u16) -> PathBuf {
        self.node_folder(node).join("clock-skew-ms")
    }

    /// Says which nodes are cut off from the others.
    pub(super) fn isolated_file(&self) -> PathBuf {
        self.folder.join("isolated-nodes")
    }

    /// Cuts these nodes off from the others, and no others.
    pub(super) fn isolate(&self, nodes: &[u16]) -> Result<(), Failure> {
        let text = nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let (to, beside) = (self.isolated_file(), self.folder.join("isolated-nodes.new"));
        fs::write(&beside, text).map_err(io_failure("write", &beside))?;
        fs::rename(&beside, &to).map_err(io_failure("write", &to))
    }

    /// Takes a node's root away, or puts it back where it was.
    pub(super) fn take_root(&self, node: u16, away: bool) -> Result<(), Failure> {
        let (here, there) =
            (self.node_folder(node).join("root.key"), self.node_folder(node).join("root.away"));
        let (from, to) = if away { (here, there) } else { (there, here) };
        match from.exists() {
            true => fs::rename(&from, &to).map_err(io_failure("move", &from)),
            // It is where it should be.
            false => Ok(()),
        }
    }

    /// Puts what a node had on its disk aside. Its process has ended.
    pub(super) fn lose_disk(&self, node: u16) -> Result<(), Failure> {
        let data = self.node_folder(node).join("data");
        let mut aside =
            (1..).map(|number| self.node_folder(node).join(format!("data.lost-{number}")));
        match aside.find(|aside| !aside.exists()) {
            Some(aside) if data.exists() => {
                fs::rename(&data, &aside).map_err(io_failure("move", &data))
            }
            _ => Ok(()),
        }
    }

    /// All clocks are right, all nodes reach each other, all roots are there.
    pub(super) fn forget_faults(&self) {
        // There may be none.
        let _ = fs::remove_file(self.isolated_file());
        for node in 1..=self.plan.nodes {
            let _ = fs::remove_file(self.skew_file(node));
            let _ = self.take_root(node, false);
        }
    }

    pub fn config_path(&self, node: u16) -> PathBuf {
        self.node_folder(node).join("keyward.toml")
    }

    pub fn endpoint(&self, node: u16) -> String {
        format!("127.0.0.1:{}", self.plan.port_base + node)
    }

    /// Where a node shows its metrics.
    pub fn observe_endpoint(&self, node: u16) -> String {
        format!("127.0.0.1:{}", self.plan.port_base + node + OBSERVE_OFFSET)
    }

    pub(super) fn endpoints(&self) -> Vec<String> {
        (1..=self.plan.nodes).map(|node| self.endpoint(node)).collect()
    }

    /// A client that shows `pki/<who>.pem`, of these nodes or of all.
    pub fn client(&self, who: &str, nodes: &[u16], patience: Duration) -> Result<Client, Failure> {
        let read = |name: String| {
            let path = self.pki(&name);
            fs::read(&path).map_err(io_failure("read", &path))
        };
        let endpoints = match nodes {
            [] => self.endpoints(),
            some => some.iter().map(|node| self.endpoint(*node)).collect(),
        };
        let config = ClientConfig {
            endpoints,
            authority: read("ca.pem".to_owned())?,
            certificate: read(format!("{who}.pem"))?,
            private_key: read(format!("{who}.key"))?.into(),
            patience,
        };
        Ok(Client::new(&config)?)
    }

    /// What points other commands at this Region.
    pub fn environment(&self) -> [(&'static str, String); 6] {
        let path = |name: &str| self.pki(name).display().to_string();
        [
            ("KEYWARD_ENDPOINTS", self.endpoints().join(",")),
            ("KEYWARD_CA", path("ca.pem")),
            ("KEYWARD_CERT", path("dev.pem")),
            ("KEYWARD_KEY", path("dev.key")),
            ("KEYWARD_OPERATOR_CERT", path("operator.pem")),
            ("KEYWARD_OPERATOR_KEY", path("operator.key")),
        ]
    }

    pub(super) fn exports(&self) -> String {
        let pairs = self.environment();
        let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
        pairs.iter().map(|(name, value)| format!("export {name}={}\n", quoted(value))).collect()
    }

    /// Founds the Region, adds the other nodes, makes the principal that uses it.
    pub async fn found(&mut self, authority: &Authority) -> Result<(), Failure> {
        let operator = self.client("operator", &[1], Duration::from_secs(20))?;
        let request = v1::FoundRegionRequest {
            operator_arn: self.operator_arn(),
            ca_certificate: authority.certificate().to_vec(),
            ca_private_key: authority.private_key().to_vec(),
            outside_authorities: Vec::new(),
            purpose: Some("dev".to_owned()),
        };
        operator
            .operator(Repeat::IfUnsent, request, |mut c, r| async move { c.found_region(r).await })
            .await?;
        for node in 2..=self.plan.nodes {
            let request = v1::AddNodeRequest {
                node_id: u64::from(node),
                address: self.endpoint(node),
                learner: false,
            };
            // Many processes that start at once may need a while; a member asks it for two seconds only.
            until_listening(&self.endpoint(node)).await?;
            operator
                .operator(Repeat::IfUnsent, request, |mut c, r| async move { c.add_node(r).await })
                .await?;
        }
        let (key, csr) = signing_request().map_err(Failure::from_error)?;
        let request = v1::CreatePrincipalRequest {
            arn: format!("arn:aws:iam::{}:user/dev", self.plan.account),
            kinds: vec!["administrator".to_owned(), "user".to_owned()],
            certificate_signing_request: Some(csr),
            validity_in_days: Some(90),
        };
        let created =
            operator
                .operator(Repeat::IfUnsent, request, |mut c, r| async move {
                    c.create_principal(r).await
                })
                .await?;
        pem::write(&self.pki("dev.key"), "PRIVATE KEY", &key, 0o600)?;
        let certificate = created.certificate.unwrap_or_default();
        pem::write(&self.pki("dev.pem"), "CERTIFICATE", &certificate, 0o644)?;
        self.plan.ready = true;
        self.save()
    }

    /// Waits until every node holds a serving lease.
    pub async fn wait_ready(&self, end: Duration) -> Result<v1::ClusterStatusResponse, Failure> {
        loop {
            if let Ok(status) = self.status(Duration::from_secs(2)).await
                && status.nodes.len() == usize::from(self.plan.nodes)
                && status.nodes.iter().all(|node| node.reachable && node.lease != "none")
            {
                return Ok(status);
            }
            if RealEnv.boot_now() >= end {
                return Err(Failure::new("the Region did not become ready in time").next(format!(
                    "look at the logs: {}",
                    self.node_folder(1).join("node.log").display()
                )));
            }
            RealEnv.sleep(LOOK_AGAIN * 2).await;
        }
    }

    /// The cluster, as any node that answers sees it.
    pub async fn status(&self, patience: Duration) -> Result<v1::ClusterStatusResponse, Failure> {
        let operator = self.client("operator", &[], patience)?;
        let request = v1::ClusterStatusRequest {};
        Ok(operator
            .operator(Repeat::Safe, request, |mut c, r| async move { c.cluster_status(r).await })
            .await?)
    }
}
