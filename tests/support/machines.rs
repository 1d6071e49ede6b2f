//! Three machines on one network: network namespaces on this machine, each with a node that the files in `deploy/`
//! describe, started by the unit's own command line and told ready as systemd would be told.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use super::KEYWARD;

const UNIT: &str = include_str!("../../deploy/keyward.service");
const SAMPLE: &str = include_str!("../../deploy/keyward.toml");
pub const PORT: u16 = 7100;
/// Networks of this process, one after the other.
static NETWORKS: AtomicU8 = AtomicU8::new(0);

fn sudo(arguments: &[&str]) -> Output {
    Command::new(arguments[0]).args(&arguments[1..]).output().expect("a command")
}

/// The third number of a network that no test of this or another process has.
fn free_network() -> u8 {
    let used = sudo(&["ip", "-o", "-4", "address"]).stdout;
    let used = String::from_utf8_lossy(&used).into_owned();
    loop {
        let own =
            u64::from(std::process::id()) + u64::from(NETWORKS.fetch_add(1, Ordering::Relaxed));
        let network = (own % 250) as u8;
        if !used.contains(&format!(" 10.203.{network}.")) {
            return network;
        }
    }
}

/// Three machines on one network. Gone when dropped.
pub struct Machines {
    name: String,
    network: u8,
    pub folder: tempfile::TempDir,
    /// What nodes are started with beside the tests' own environment.
    pub environment: Vec<(String, String)>,
    running: Vec<Option<Child>>,
}

impl Machines {
    /// None, said aloud, where namespaces cannot be made.
    pub fn new() -> Option<Self> {
        if !Command::new("ip").arg("-V").output().is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: iproute2 is not installed");
            return None;
        }
        let network = free_network();
        let name = format!("kw{}{network}", std::process::id() % 10_000);
        let folder = tempfile::tempdir().expect("a folder");
        let (environment, running) = (Vec::new(), vec![None, None, None]);
        let machines = Self { name, network, folder, environment, running };
        let bridge = machines.name.clone();
        let own = format!("{}/24", machines.address(254));
        let made = sudo(&["ip", "link", "add", &bridge, "type", "bridge"]).status.success()
            && sudo(&["ip", "addr", "add", &own, "dev", &bridge]).status.success()
            && sudo(&["ip", "link", "set", &bridge, "up"]).status.success()
            && (1..=3).all(|node| machines.plug(node));
        if made {
            return Some(machines);
        }
        eprintln!("skipped: network namespaces cannot be made here");
        None
    }

    /// The address of a host on the network.
    pub fn address(&self, host: usize) -> String {
        format!("10.203.{}.{host}", self.network)
    }

    /// One more address of the machine that the tests run on.
    pub fn own_address(&self, host: usize) -> String {
        let address = self.address(host);
        let added = sudo(&["ip", "addr", "add", &format!("{address}/24"), "dev", &self.name]);
        assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
        address
    }

    fn space(&self, node: usize) -> String {
        format!("{}-{node}", self.name)
    }

    fn plug(&self, node: usize) -> bool {
        let (space, bridge) = (self.space(node), &self.name);
        let (outer, inner) = (format!("{bridge}o{node}"), format!("{bridge}i{node}"));
        let address = format!("{}/24", self.address(node));
        let enter = |rest: &[&str]| {
            let head = ["ip", "netns", "exec", &space, "ip"];
            sudo(&[&head[..], rest].concat()).status.success()
        };
        sudo(&["ip", "netns", "add", &space]).status.success()
            && sudo(&["ip", "link", "add", &outer, "type", "veth", "peer", "name", &inner])
                .status
                .success()
            && sudo(&["ip", "link", "set", &inner, "netns", &space]).status.success()
            && sudo(&["ip", "link", "set", &outer, "master", bridge, "up"]).status.success()
            && enter(&["addr", "add", &address, "dev", &inner])
            && enter(&["link", "set", &inner, "up"])
            && enter(&["link", "set", "lo", "up"])
    }

    /// Plugs a machine's cable out or in.
    pub fn cable(&self, node: usize, state: &str) {
        let outer = format!("{}o{node}", self.name);
        assert!(sudo(&["ip", "link", "set", &outer, state]).status.success());
    }

    pub fn etc(&self, node: usize) -> PathBuf {
        self.folder.path().join(format!("machine-{node}"))
    }

    pub fn config(&self, node: usize) -> PathBuf {
        self.etc(node).join("keyward.toml")
    }

    /// The sample configuration, for this machine: only paths and the address differ.
    pub fn configure(&self, node: usize) {
        self.configure_as(node, &self.address(node));
    }

    /// The same, reached by its peers at another address.
    pub fn configure_as(&self, node: usize, reached_at: &str) {
        let etc = self.etc(node);
        fs::create_dir_all(&etc).expect("a folder");
        let text = SAMPLE
            .replace("kms-1.example.com:7100", &format!("{reached_at}:{PORT}"))
            .replace("/etc/keyward", &etc.display().to_string())
            .replace("/var/lib/keyward", &etc.join("data").display().to_string());
        assert!(text.contains(reached_at), "the sample says where peers reach the node");
        fs::write(self.config(node), text).expect("written");
    }

    /// Where peers and clients reach a node, as its configuration says.
    pub fn reached_at(&self, node: usize) -> String {
        let text = fs::read_to_string(self.config(node)).expect("its configuration");
        let line = text.lines().find_map(|line| line.strip_prefix("advertise = \""));
        line.and_then(|rest| rest.split('"').next()).expect("advertise").to_owned()
    }

    /// Runs the command line on a machine.
    pub fn on(&self, node: usize, arguments: &[&str]) -> Output {
        let pki = self.etc(1);
        Command::new("ip")
            .args(["netns", "exec", &self.space(node), KEYWARD])
            .args(arguments)
            .env(
                "KEYWARD_ENDPOINTS",
                (1..=3).map(|node| self.reached_at(node)).collect::<Vec<_>>().join(","),
            )
            .env("KEYWARD_CA", pki.join("ca.pem"))
            .env("KEYWARD_OPERATOR_CERT", pki.join("operator.pem"))
            .env("KEYWARD_OPERATOR_KEY", pki.join("operator.key"))
            .env("KEYWARD_CERT", pki.join("app.pem"))
            .env("KEYWARD_KEY", pki.join("app.key"))
            .stdin(Stdio::null())
            .output()
            .expect("keyward runs")
    }

    pub fn on_ok(&self, node: usize, arguments: &[&str]) -> String {
        let output = self.on(node, arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "keyward {}: {error}", arguments.join(" "));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Starts the unit's command, and waits for its word that it is ready.
    pub fn start(&mut self, node: usize) {
        let line =
            UNIT.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("ExecStart");
        assert!(UNIT.contains("Type=notify") && UNIT.contains("LimitCORE=0"));
        let mut words = line.split_whitespace();
        assert_eq!(words.next(), Some("/usr/bin/keyward"));
        let arguments: Vec<String> = words
            .map(|word| word.replace("/etc/keyward", &self.etc(node).display().to_string()))
            .collect();
        let socket_path = self.etc(node).join("notify");
        drop(fs::remove_file(&socket_path));
        let socket = UnixDatagram::bind(&socket_path).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        let log = fs::File::create(self.etc(node).join("node.log")).expect("a log");
        let child = Command::new("ip")
            .args(["netns", "exec", &self.space(node), KEYWARD])
            .args(&arguments)
            .env("NOTIFY_SOCKET", &socket_path)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stderr(log)
            .spawn()
            .expect("a node");
        self.running[node - 1] = Some(child);
        let mut word = [0; 64];
        let length = socket.recv(&mut word).expect("the node says that it is ready");
        assert_eq!(&word[..length], b"READY=1", "{}", self.log(node));
    }

    /// Founds the Region on the first machine, has the others join, and makes a principal that manages and uses
    /// keys: `app.pem` and `app.key` in the first machine's folder.
    pub fn found(&mut self) {
        let config = |machines: &Self, node| machines.config(node).display().to_string();
        self.on_ok(1, &["cluster", "init", "--config", &config(self, 1)]);
        self.start(1);
        for node in 2..=3 {
            let token = self.on_ok(1, &["cluster", "invite"]);
            self.on_ok(node, &["cluster", "join", token.trim(), "--config", &config(self, node)]);
            self.start(node);
        }
        let end = std::time::Duration::from_secs(20);
        let began = keyward_env::Env::boot_now(&keyward_env::RealEnv);
        while self.voters() < 3 {
            let took = keyward_env::Env::boot_now(&keyward_env::RealEnv) - began;
            assert!(took < end, "three nodes do not vote");
        }
        let out = self.etc(1).join("app").display().to_string();
        let arn = "arn:aws:iam::111122223333:user/app";
        let kinds = ["--kind", "administrator", "--kind", "user", "--out", &out];
        self.on_ok(1, &[&["principal", "create", arn][..], &kinds].concat());
    }

    fn voters(&self) -> usize {
        let output = self.on(1, &["--output", "json", "cluster", "status"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        status["Nodes"].as_array().into_iter().flatten().filter(|n| n["Role"] == "voter").count()
    }

    /// Which node leads, as the first machine is told.
    pub fn leader(&self) -> Option<usize> {
        let output = self.on(1, &["--timeout", "2", "--output", "json", "cluster", "status"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        let leads = |node: &&serde_json::Value| node["Leader"].as_bool() == Some(true);
        let leader = status["Nodes"].as_array()?.iter().find(leads)?;
        leader["Node"].as_u64().and_then(|node| usize::try_from(node).ok())
    }

    /// The process of a node, if it runs.
    pub fn pid(&self, node: usize) -> Option<u32> {
        self.running[node - 1].as_ref().map(Child::id)
    }

    /// `kill -9`.
    pub fn kill(&mut self, node: usize) {
        if let Some(mut child) = self.running[node - 1].take() {
            child.kill().expect("kill");
            child.wait().expect("it ends");
        }
    }

    /// True if the node's process has ended by itself.
    pub fn has_ended(&mut self, node: usize) -> bool {
        self.running[node - 1].as_mut().is_some_and(|c| c.try_wait().expect("its state").is_some())
    }

    pub fn log(&self, node: usize) -> String {
        fs::read_to_string(self.etc(node).join("node.log")).unwrap_or_default()
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for child in self.running.iter_mut().flatten() {
            drop(child.kill());
            drop(child.wait());
        }
        for node in 1..=3 {
            if std::thread::panicking() {
                eprintln!("--- machine {node}\n{}", self.log(node));
            }
            drop(sudo(&["ip", "netns", "del", &self.space(node)]));
            drop(sudo(&["ip", "link", "del", &format!("{}o{node}", self.name)]));
        }
        drop(sudo(&["ip", "link", "del", &self.name]));
    }
}
