//! `keyward dev`: a Region on this machine. One node runs in this process; more run as processes of their
//! own under a supervisor. Data is kept and used again.

mod demo_regions;
pub mod fault;
mod proxy;
pub mod regions;
pub mod suffer;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use clap::Subcommand;
use keyward_client::{Client, ClientConfig, Repeat};
use keyward_env::{Env, RealEnv};
use keyward_model::{AccountId, Region, Timestamp};
use keyward_proto::v1;
use keyward_service::{Authority, signing_request};
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};

use crate::cli::connect::ConnectArgs;
use crate::cli::output::done;
use crate::config::{
    AuditSection, Config, HsmSection, NodeSection, ObserveSection, Overrides, RegionsSection,
    RootSection, TimerProfile, TlsSection,
};
use crate::error::Failure;
use crate::setup::until_listening;
use crate::{demo, pem, server};

/// Nodes of a development Region at most.
const NODES_MAX: u16 = 9;
/// How long a Region may take until it serves.
const READY_PATIENCE: Duration = Duration::from_secs(30);
/// Between looks at a node that is starting.
const LOOK_AGAIN: Duration = Duration::from_millis(25);
/// A node that ended unexpectedly is started again after this.
const RESTART_AFTER: Duration = Duration::from_secs(3);
/// Health and metrics are this far above a node's gRPC port.
const OBSERVE_OFFSET: u16 = 100;

#[derive(Subcommand)]
pub enum DevCommand {
    /// Bring a Region up; Ctrl-C stops it, its data is kept
    #[command(after_help = "Examples:
  keyward dev up                      one node, in ./keyward-dev
  keyward dev up --nodes 3            three processes with real consensus
  keyward dev up --regions us-east-1,eu-west-1,ap-southeast-2 --nodes 3
                                      three Regions, linked, of three processes each
  eval \"$(keyward dev env)\"           in another terminal: point the other commands at it")]
    Up {
        /// How many nodes
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(NODES_MAX)))]
        nodes: u16,
        /// Where everything is kept
        #[arg(long, default_value = "keyward-dev", value_name = "DIR")]
        data: PathBuf,
        /// Node N listens on this port + N
        #[arg(long, default_value_t = 7100, value_parser = clap::value_parser!(u16).range(1024..=65000))]
        port_base: u16,
        /// The Region's name
        #[arg(long, default_value = "eu-west-1")]
        region: Region,
        /// Several Regions, linked with each other, instead of one
        #[arg(
            long,
            value_delimiter = ',',
            value_name = "REGION,REGION",
            conflicts_with = "region"
        )]
        regions: Vec<Region>,
        /// What other Regions tell comes about as late as with AWS KMS: minutes until a replica is there, one until a
        /// primary has moved
        #[arg(long, requires = "regions")]
        aws_like_delays: bool,
        /// Seconds that nodes use keys for after their roots have gone; an hour when absent
        #[arg(long, requires = "regions", value_parser = clap::value_parser!(u64).range(1..=86_400))]
        root_grace: Option<u64>,
        /// The account of the principal that is made
        #[arg(long, default_value = "111122223333")]
        account: AccountId,
    },
    /// Print the exports that point other commands at a Region of `dev up`
    Env {
        /// The folder of `dev up`
        #[arg(long, default_value = "keyward-dev", value_name = "DIR")]
        data: PathBuf,
        /// Which Region, of several
        #[arg(long)]
        region: Option<String>,
    },
    /// Faults of Regions that `dev up --regions` has brought up: cut links, stop nodes and Regions
    Fault {
        /// The folder of `dev up`
        #[arg(long, global = true, default_value = "keyward-dev", value_name = "DIR")]
        data: PathBuf,
        #[command(subcommand)]
        command: fault::FaultCommand,
    },
    /// Move the Region's clock ahead, so that waiting periods and rotations can be rehearsed
    #[command(subcommand)]
    Clock(ClockCommand),
    /// Show what happens when a Region is lost: a file opened elsewhere, promotion, its return and its report
    DemoRegions {
        /// The first Region's node N listens on this port + N; the rest follows
        #[arg(long, default_value_t = 7400, value_parser = clap::value_parser!(u16).range(1024..=60000))]
        port_base: u16,
    },
    /// Show the main job: a three-node Region, a real file, a killed leader, a disabled key, a restart
    Demo {
        /// Where to work; a fresh temporary folder when absent
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
        /// Node N listens on this port + N
        #[arg(long, default_value_t = 7300, value_parser = clap::value_parser!(u16).range(1024..=65000))]
        port_base: u16,
        /// The file to encrypt, 64 MiB or more; this program itself, repeated, when absent
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
pub enum ClockCommand {
    /// Move it ahead. It never goes back, and it is on record
    #[command(after_help = "Example:\n  keyward dev clock advance 8d")]
    Advance {
        /// For example 90s, 30m, 12h, 8d
        #[arg(value_parser = period)]
        by: i64,
    },
}

/// A period in milliseconds.
fn period(text: &str) -> Result<i64, String> {
    let wrong = || format!("'{text}' is no period: expected for example 90s, 30m, 12h or 8d");
    let unit = match text.chars().last() {
        Some('s') => 1_000,
        Some('m') => 60_000,
        Some('h') => 3_600_000,
        Some('d') => 86_400_000,
        _ => return Err(wrong()),
    };
    let number: i64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    number.checked_mul(unit).filter(|ms| *ms >= 0).ok_or_else(wrong)
}

/// Tells the person at the terminal, if there still is one: a supervisor whose output nobody reads goes on.
fn tell(line: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

pub async fn run(command: DevCommand, connect: &ConnectArgs) -> Result<(), Failure> {
    match command {
        DevCommand::Clock(ClockCommand::Advance { by }) => {
            let request = v1::AdvanceClockRequest { milliseconds: by };
            let moved =
                connect
                    .operator()?
                    .operator(Repeat::IfUnsent, request, |mut c, r| async move {
                        c.advance_clock(r).await
                    })
                    .await?;
            let hours = moved.offset_milliseconds / 3_600_000;
            done(connect.output, &format!("the Region's clock is {hours} h ahead of the real one"));
            Ok(())
        }
        DevCommand::Up {
            nodes,
            data,
            port_base,
            region: _,
            regions,
            account,
            aws_like_delays,
            root_grace,
        } if !regions.is_empty() || regions::World::is_in(&data) => {
            let world = if regions.is_empty() {
                regions::World::open(&data)?
            } else {
                regions::World {
                    aws_like_delays,
                    root_grace_seconds: root_grace,
                    ..regions::world(&regions, account, nodes, port_base)?
                }
            };
            regions::up(world, &data).await
        }
        DevCommand::Up {
            nodes,
            data,
            port_base,
            region,
            regions: _,
            account,
            aws_like_delays: _,
            root_grace: _,
        } => {
            let plan = Plan {
                region,
                account,
                nodes,
                port_base,
                aws_like_delays: false,
                root_grace_seconds: None,
                ready: false,
            };
            up(plan, &data).await
        }
        DevCommand::Fault { data, command } => fault::run(&data, command, connect.output),
        DevCommand::Env { data, region } => {
            let home = if regions::World::is_in(&data) {
                let world = regions::World::open(&data)?;
                let region = region.as_ref().unwrap_or(&world.regions[0]);
                world.home(&data, region)?
            } else {
                Home::open(&data)?
            };
            print!("{}", home.exports());
            Ok(())
        }
        DevCommand::DemoRegions { port_base } => demo_regions::run(port_base).await,
        DevCommand::Demo { data, port_base, file } => demo::run(data, port_base, file).await,
    }
}

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
    folder: PathBuf,
    pub plan: Plan,
}

fn io_failure(what: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Failure {
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
    fn skew_file(&self, node: u16) -> PathBuf {
        self.node_folder(node).join("clock-skew-ms")
    }

    /// Says which nodes are cut off from the others.
    fn isolated_file(&self) -> PathBuf {
        self.folder.join("isolated-nodes")
    }

    /// Cuts these nodes off from the others, and no others.
    fn isolate(&self, nodes: &[u16]) -> Result<(), Failure> {
        let text = nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let (to, beside) = (self.isolated_file(), self.folder.join("isolated-nodes.new"));
        fs::write(&beside, text).map_err(io_failure("write", &beside))?;
        fs::rename(&beside, &to).map_err(io_failure("write", &to))
    }

    /// Takes a node's root away, or puts it back where it was.
    fn take_root(&self, node: u16, away: bool) -> Result<(), Failure> {
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
    fn lose_disk(&self, node: u16) -> Result<(), Failure> {
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
    fn forget_faults(&self) {
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

    fn endpoints(&self) -> Vec<String> {
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

    fn exports(&self) -> String {
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

/// Node processes.
pub struct Fleet {
    home: Home,
    program: PathBuf,
    children: Vec<Option<Child>>,
}

impl Fleet {
    /// A fleet with no process running.
    pub fn new(home: &Home) -> Result<Self, Failure> {
        let program = std::env::current_exe()
            .map_err(|e| Failure::new(format!("cannot find this program: {e}")))?;
        let children = (0..home.plan.nodes).map(|_| None).collect();
        Ok(Self { home: home.clone(), program, children })
    }

    /// Starts a node; its log goes to `node.log` in its folder.
    pub fn start(&mut self, node: u16) -> Result<(), Failure> {
        let path = self.home.node_folder(node).join("node.log");
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(io_failure("write", &path))?;
        let child = Command::new(&self.program)
            .env(suffer::SKEW_FILE, self.home.skew_file(node))
            .env(suffer::ISOLATED_FILE, self.home.isolated_file())
            .args(["server", "--with-parent", "--config"])
            .arg(self.home.config_path(node))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C reaches the supervisor alone, which stops the nodes in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| Failure::new(format!("node {node} cannot be started: {e}")))?;
        self.children[usize::from(node) - 1] = Some(child);
        Ok(())
    }

    /// Starts every node and waits until each door takes connections.
    pub async fn start_all(&mut self) -> Result<(), Failure> {
        let end = RealEnv.boot_now() + READY_PATIENCE;
        for node in 1..=self.home.plan.nodes {
            self.start(node)?;
        }
        for node in 1..=self.home.plan.nodes {
            self.wait_door(node, end).await?;
        }
        Ok(())
    }

    /// Waits until a node's door takes connections; a node that ends instead is told with its last words.
    pub async fn wait_door(&mut self, node: u16, end: Duration) -> Result<(), Failure> {
        let endpoint = self.home.endpoint(node);
        while tokio::net::TcpStream::connect(&endpoint).await.is_err() {
            if let Some(child) = &mut self.children[usize::from(node) - 1]
                && let Ok(Some(status)) = child.try_wait()
            {
                return Err(self.last_words(node, status));
            }
            if RealEnv.boot_now() >= end {
                return Err(Failure::new(format!("node {node} did not open its door in time")));
            }
            RealEnv.sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    fn last_words(&self, node: u16, status: std::process::ExitStatus) -> Failure {
        let path = self.home.node_folder(node).join("node.log");
        let log = fs::read_to_string(&path).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let start = lines.iter().rposition(|line| line.starts_with("error:"));
        let last = &lines[start.unwrap_or(lines.len().saturating_sub(3))..];
        Failure::new(format!("node {node} ended ({status}): {}", last.join("\n  ")))
            .next(format!("its log is {}", path.display()))
    }

    /// Kills a node without a word, as a power cut would.
    pub async fn kill(&mut self, node: u16) -> Result<(), Failure> {
        if let Some(mut child) = self.children[usize::from(node) - 1].take() {
            child
                .kill()
                .await
                .map_err(|e| Failure::new(format!("cannot kill node {node}: {e}")))?;
        }
        Ok(())
    }

    /// Sends a node a signal, if it runs.
    pub fn signal(&self, node: u16, signal: rustix::process::Signal) {
        let child = self.children[usize::from(node) - 1].as_ref();
        if let Some(pid) = child
            .and_then(Child::id)
            .and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()))
        {
            // One that has ended hears nothing.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Sends every node a signal.
    pub fn tell_all(&self, signal: rustix::process::Signal) {
        (1..=self.home.plan.nodes).for_each(|node| self.signal(node, signal));
    }

    /// Lets a node's files grow, or not: then every write fails.
    pub fn let_files_grow(&self, node: u16, grow: bool) {
        let child = self.children[usize::from(node) - 1].as_ref();
        let pid = child.and_then(Child::id);
        if let Some(pid) = pid.and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
            let current = if grow { None } else { Some(0) };
            let limit = rustix::process::Rlimit { current, maximum: None };
            let fsize = rustix::process::Resource::Fsize;
            match rustix::process::prlimit(Some(pid), fsize, limit) {
                // One that has ended writes nothing.
                Ok(_) | Err(rustix::io::Errno::SRCH) => {}
                Err(why) => {
                    tell(&format!("node {node} cannot be given a limit for its files: {why}"))
                }
            }
        }
    }

    /// How a node has ended, if it has.
    pub fn has_ended(&mut self, node: u16) -> Option<std::process::ExitStatus> {
        let child = self.children[usize::from(node) - 1].as_mut();
        child.and_then(|child| child.try_wait().ok().flatten())
    }

    /// Tells every node to stop, and waits.
    pub async fn stop_all(&mut self) {
        for child in self.children.iter().flatten() {
            if let Some(pid) =
                child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()))
            {
                // A node that has ended already needs no telling.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        }
        for slot in &mut self.children {
            if let Some(mut child) = slot.take()
                && RealEnv.timeout(Duration::from_secs(8), child.wait()).await.is_none()
            {
                drop(child.kill().await);
            }
        }
    }

    /// Starts nodes again that ended by themselves, for ever.
    async fn keep_up(&mut self) -> Failure {
        loop {
            for node in 1..=self.home.plan.nodes {
                let ended = self.children[usize::from(node) - 1]
                    .as_mut()
                    .and_then(|child| child.try_wait().ok().flatten());
                if let Some(status) = ended {
                    tell(&format!("node {node} ended ({status}); it is started again"));
                    RealEnv.sleep(RESTART_AFTER).await;
                    if let Err(failure) = self.start(node) {
                        return failure;
                    }
                }
            }
            RealEnv.sleep(LOOK_AGAIN * 8).await;
        }
    }
}

/// Ends this process when its parent ends.
pub fn end_with_parent() {
    let signal = Some(rustix::process::Signal::TERM);
    if let Err(error) = rustix::process::set_parent_process_death_signal(signal) {
        eprintln!("this node will outlive its supervisor: {error}");
    }
}

async fn up(plan: Plan, folder: &Path) -> Result<(), Failure> {
    let began = RealEnv.boot_now();
    let (mut home, authority) = if folder.join("dev.json").exists() {
        let home = Home::open(folder)?;
        home.plan.check_ports()?;
        if home.plan.nodes != plan.nodes || home.plan.port_base != plan.port_base {
            tell(&format!(
                "{} holds a Region of {} node(s) on ports from {}: that is what comes up",
                folder.display(),
                home.plan.nodes,
                home.plan.port_base + 1
            ));
        }
        (home, None)
    } else {
        plan.check_ports()?;
        let (home, authority) = Home::create(folder, plan)?;
        (home, Some(authority))
    };
    if home.plan.nodes == 1 {
        up_one(&mut home, authority, began).await
    } else {
        up_many(&mut home, authority, began).await
    }
}

/// Founds if there is something to found, waits until all serve, and says so.
async fn bring_up(
    home: &mut Home,
    authority: Option<Authority>,
    began: Duration,
) -> Result<(), Failure> {
    if let Some(authority) = authority {
        home.found(&authority).await?;
    }
    home.wait_ready(RealEnv.boot_now() + READY_PATIENCE).await?;
    let took = RealEnv.boot_now() - began;
    tell(&format!(
        "Region {} is up: {} node(s), ready in {:.1} s\n  gRPC    {}\n  health  http://127.0.0.1:{}/readyz\n\nIn another terminal:\n  eval \"$(keyward dev env --data {})\"\n  keyward key create --alias alias/demo\n\nCtrl-C stops it; the data is kept.",
        home.plan.region,
        home.plan.nodes,
        took.as_secs_f64(),
        home.endpoints().join(" "),
        home.plan.port_base + 1 + OBSERVE_OFFSET,
        home.folder.display(),
    ));
    Ok(())
}

async fn up_one(
    home: &mut Home,
    authority: Option<Authority>,
    began: Duration,
) -> Result<(), Failure> {
    let overrides =
        Overrides { log: Some("warn,openraft=error".to_owned()), ..Overrides::default() };
    let config = Config::load(&home.config_path(1), &overrides).map_err(Failure::from_error)?;
    crate::observe::start_log(&config.observe);
    let stop = Arc::new(tokio::sync::Notify::new());
    let stopped = Arc::clone(&stop);
    let node = server::run(config, server::For::Good, async move {
        tokio::select! {
            () = server::until_told_to_stop() => {}
            () = stopped.notified() => {}
        }
    });
    let guide = async {
        let result = bring_up(home, authority, began).await;
        if result.is_err() {
            stop.notify_one();
        }
        result
    };
    let (served, guided) = tokio::join!(node, guide);
    guided.and(served)
}

async fn up_many(
    home: &mut Home,
    authority: Option<Authority>,
    began: Duration,
) -> Result<(), Failure> {
    let mut fleet = Fleet::new(home)?;
    let result = tokio::select! {
        () = server::until_told_to_stop() => Ok(()),
        result = async {
            fleet.start_all().await?;
            bring_up(home, authority, began).await?;
            Err(fleet.keep_up().await)
        } => result,
    };
    tell("stopping");
    fleet.stop_all().await;
    result
}
