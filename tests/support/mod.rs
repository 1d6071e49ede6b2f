//! A Region of real processes, for tests and measurements.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub mod load;
pub mod machines;
pub mod regions;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keyward_client::{CallError, Client, ClientConfig};
use keyward_env::{Env, RealEnv};
use keyward_proto::v1;

pub use load::Load;

pub const KEYWARD: &str = env!("CARGO_BIN_EXE_keyward");

/// One Region at a time: the machine has few cores, and figures shall mean something.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
static PORTS: AtomicU16 = AtomicU16::new(0);

/// Held by a test with processes of its own whose figures count.
pub struct Turn {
    _held: MutexGuard<'static, ()>,
}

impl Turn {
    pub fn wait() -> Self {
        Self { _held: ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner) }
    }
}

/// A range of ports that no other test of this process uses.
pub fn port_base() -> u16 {
    let own = u16::try_from(std::process::id() % 500).unwrap_or(0) * 40;
    12_000 + own + PORTS.fetch_add(1, Ordering::Relaxed) % 8 * 20
}

/// Waits until something holds, at most for `patience`.
pub async fn wait_until(what: &str, patience: Duration, mut holds: impl AsyncFnMut() -> bool) {
    let end = RealEnv.boot_now() + patience;
    while !holds().await {
        assert!(RealEnv.boot_now() < end, "{what}: not within {patience:?}");
        RealEnv.sleep(Duration::from_millis(20)).await;
    }
}

/// A Region whose nodes are processes of this test.
pub struct Region {
    pub folder: tempfile::TempDir,
    pub port_base: u16,
    pub nodes: u16,
    /// What nodes are started with beside the tests' own environment.
    pub environment: Vec<(String, String)>,
    children: Vec<Option<Child>>,
    _turn: Option<Turn>,
}

impl Region {
    /// Founds a Region with `keyward dev up`, stops that, and starts the nodes on their own.
    pub fn start(nodes: u16) -> Self {
        Self::found(nodes, Some(Turn::wait()))
    }

    /// The same beside a Region that there is already.
    #[allow(dead_code, reason = "measurements compare Regions")]
    pub fn start_beside(nodes: u16) -> Self {
        Self::found(nodes, None)
    }

    fn found(nodes: u16, turn: Option<Turn>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let port_base = port_base();
        let mut up = Command::new(KEYWARD)
            .args([
                "dev",
                "up",
                "--nodes",
                &nodes.to_string(),
                "--port-base",
                &port_base.to_string(),
            ])
            .arg("--data")
            .arg(folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("keyward dev up");
        let mut lines = BufReader::new(up.stdout.take().expect("its output")).lines();
        let ready = lines.any(|line| line.is_ok_and(|line| line.contains("is up")));
        assert!(ready, "keyward dev up did not become ready");
        signal(&up, rustix::process::Signal::TERM);
        // It goes on although nobody reads its further words.
        drop(lines);
        up.wait().expect("keyward dev up ends");
        let children = (0..nodes).map(|_| None).collect();
        let mut region =
            Self { folder, port_base, nodes, environment: Vec::new(), children, _turn: turn };
        for node in 1..=nodes {
            region.start_node(node);
        }
        region
    }

    pub fn node_folder(&self, node: u16) -> PathBuf {
        self.folder.path().join(format!("node-{node}"))
    }

    pub fn config(&self, node: u16) -> PathBuf {
        self.node_folder(node).join("keyward.toml")
    }

    pub fn pki(&self, name: &str) -> PathBuf {
        self.folder.path().join("pki").join(name)
    }

    pub fn endpoint(&self, node: u16) -> String {
        format!("127.0.0.1:{}", self.port_base + node)
    }

    pub fn start_node(&mut self, node: u16) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.node_folder(node).join("node.log"))
            .expect("a log");
        let child = Command::new(KEYWARD)
            .args(["server", "--config"])
            .arg(self.config(node))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stderr(log)
            .spawn()
            .expect("a node");
        self.children[usize::from(node) - 1] = Some(child);
    }

    fn child(&self, node: u16) -> &Child {
        self.children[usize::from(node) - 1].as_ref().expect("the node runs")
    }

    pub fn pid(&self, node: u16) -> u32 {
        self.child(node).id()
    }

    /// True once the node's process has ended by itself.
    pub fn has_ended(&mut self, node: u16) -> bool {
        let child = self.children[usize::from(node) - 1].as_mut().expect("the node was started");
        child.try_wait().expect("its state").is_some()
    }

    /// `kill -9`.
    pub fn kill(&mut self, node: u16) {
        let mut child = self.children[usize::from(node) - 1].take().expect("the node runs");
        child.kill().expect("kill");
        child.wait().expect("it ends");
    }

    /// SIGTERM, and waits.
    pub fn stop(&mut self, node: u16) {
        let mut child = self.children[usize::from(node) - 1].take().expect("the node runs");
        signal(&child, rustix::process::Signal::TERM);
        let status = child.wait().expect("it ends");
        assert!(status.success(), "a node that is told to stop ends cleanly: {status}");
    }

    /// SIGSTOP: the process stands still and its clocks go on.
    pub fn pause(&self, node: u16) {
        signal(self.child(node), rustix::process::Signal::STOP);
    }

    pub fn resume(&self, node: u16) {
        signal(self.child(node), rustix::process::Signal::CONT);
    }

    /// A client with `pki/<who>.pem` that asks these nodes, or all.
    pub fn client_as(&self, who: &str, nodes: &[u16], patience: Duration) -> Arc<Client> {
        let endpoints = match nodes {
            [] => (1..=self.nodes).map(|node| self.endpoint(node)).collect(),
            some => some.iter().map(|node| self.endpoint(*node)).collect(),
        };
        let read = |name: String| fs::read(self.pki(&name)).expect("a PEM file");
        let config = ClientConfig {
            endpoints,
            authority: read("ca.pem".to_owned()),
            certificate: read(format!("{who}.pem")),
            private_key: read(format!("{who}.key")).into(),
            patience,
        };
        Arc::new(Client::new(&config).expect("a client"))
    }

    /// A client that manages and uses keys.
    pub fn client(&self, nodes: &[u16]) -> Arc<Client> {
        self.client_as("dev", nodes, Duration::from_secs(10))
    }

    pub async fn status(&self) -> Option<v1::ClusterStatusResponse> {
        use keyward_client::Repeat;
        let operator = self.client_as("operator", &[], Duration::from_secs(2));
        let request = v1::ClusterStatusRequest {};
        operator
            .operator(Repeat::Safe, request, |mut c, r| async move { c.cluster_status(r).await })
            .await
            .ok()
    }

    /// Waits until `count` nodes hold a lease and have applied the same.
    pub async fn wait_serving(&self, count: usize) {
        let end = RealEnv.boot_now() + Duration::from_secs(20);
        loop {
            let status = self.status().await;
            let nodes = status.as_ref().map_or(&[][..], |status| &status.nodes);
            let serving: Vec<_> =
                nodes.iter().filter(|n| n.reachable && n.lease != "none").collect();
            if serving.len() >= count && serving.iter().all(|n| n.applied == serving[0].applied) {
                return;
            }
            assert!(RealEnv.boot_now() < end, "{count} nodes do not serve: {status:#?}");
            RealEnv.sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn leader(&self) -> u16 {
        let mut leader = None;
        wait_until("a leader is known", Duration::from_secs(20), async || {
            leader = self.status().await.and_then(|status| {
                let leads = status.nodes.iter().find(|n| n.leader && n.lease == "leader");
                leads.map(|node| u16::try_from(node.node_id).unwrap_or(0))
            });
            leader.is_some()
        })
        .await;
        leader.expect("a leader")
    }

    /// Compiles a shared library that nodes are started with. None, said aloud, where there is no compiler.
    pub fn compile(&self, name: &str, source: &str) -> Option<PathBuf> {
        let (code, library) = (
            self.folder.path().join(format!("{name}.c")),
            self.folder.path().join(format!("{name}.so")),
        );
        fs::write(&code, source).expect("written");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .args([&library, &code])
            .arg("-ldl")
            .output();
        let Ok(compiled) = compiled else {
            eprintln!("skipped: no C compiler is installed (Debian: gcc)");
            return None;
        };
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        Some(library)
    }

    /// Runs the command line as a user would.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let endpoints: Vec<String> = (1..=self.nodes).map(|node| self.endpoint(node)).collect();
        Command::new(KEYWARD)
            .args(arguments)
            .env("KEYWARD_ENDPOINTS", endpoints.join(","))
            .env("KEYWARD_CA", self.pki("ca.pem"))
            .env("KEYWARD_CERT", self.pki("dev.pem"))
            .env("KEYWARD_KEY", self.pki("dev.key"))
            .env("KEYWARD_OPERATOR_CERT", self.pki("operator.pem"))
            .env("KEYWARD_OPERATOR_KEY", self.pki("operator.key"))
            .stdin(Stdio::null())
            .output()
            .expect("keyward runs")
    }

    /// Runs the command line as somebody else, is refused, and tells with which words.
    pub fn run_as(&self, who: &str, arguments: &[&str]) -> String {
        let endpoints: Vec<String> = (1..=self.nodes).map(|node| self.endpoint(node)).collect();
        let output = Command::new(KEYWARD)
            .args(arguments)
            .env("KEYWARD_ENDPOINTS", endpoints.join(","))
            .env("KEYWARD_CA", self.pki("ca.pem"))
            .env("KEYWARD_CERT", self.pki(&format!("{who}.pem")))
            .env("KEYWARD_KEY", self.pki(&format!("{who}.key")))
            .stdin(Stdio::null())
            .output()
            .expect("keyward runs");
        assert!(!output.status.success(), "{who} may not do that");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Room for one more node, which something else makes. Returns its number here.
    pub fn adopt(&mut self) -> u16 {
        self.nodes += 1;
        self.children.push(None);
        self.nodes
    }

    /// Runs the command line and expects success.
    pub fn run_ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "keyward {}: {error}", arguments.join(" "));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Hands leadership over until `node` has it: under load another one may be faster.
    pub async fn have_lead(&self, node: u16) {
        wait_until("the node leads", Duration::from_secs(20), async || {
            drop(self.run(&["cluster", "transfer", "--to", &node.to_string()]));
            self.leader().await == node
        })
        .await;
    }

    /// Invites one more node and has it join, as a user would. Returns its id; it runs.
    pub fn join(&mut self) -> u16 {
        let token = self.run_ok(&["cluster", "invite"]);
        let node = self.nodes + 1;
        let place = self.node_folder(node);
        let (config, data) = (self.config(node), place.join("data"));
        let joined = Command::new(KEYWARD)
            .args(["--output", "json", "cluster", "join", token.trim(), "--config"])
            .arg(&config)
            .args(["--address", &self.endpoint(node), "--listen", &self.endpoint(node), "--data"])
            .arg(&data)
            .output()
            .expect("keyward runs");
        let error = String::from_utf8_lossy(&joined.stderr);
        assert!(joined.status.success(), "cluster join: {error}");
        let told = String::from_utf8_lossy(&joined.stdout);
        assert!(told.contains(&format!("\"NodeId\": {node}")), "node {node} joined: {told}");
        self.nodes = node;
        self.children.push(None);
        self.start_node(node);
        node
    }

    pub fn log(&self, node: u16) -> String {
        fs::read_to_string(self.node_folder(node).join("node.log")).unwrap_or_default()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        for child in self.children.iter_mut().flatten() {
            drop(child.kill());
            drop(child.wait());
        }
        if std::thread::panicking() {
            for node in 1..=self.nodes {
                let log = self.log(node);
                let tail: Vec<&str> = log.lines().rev().take(15).collect();
                eprintln!("--- node {node}");
                for line in tail.iter().rev() {
                    eprintln!("{line}");
                }
            }
        }
    }
}

pub fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).expect("a process id");
    rustix::process::kill_process(pid, signal).expect("a signal");
}

/// Resident memory of a process, in MB.
pub fn resident_mb(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("/proc");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    let kib: u64 =
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number");
    kib / 1024
}

// --- Calls that tests make most.

/// Encrypts once, without a second try.
pub async fn encrypt(client: &Client, key_id: &str) -> Result<v1::EncryptResponse, CallError> {
    let request = v1::EncryptRequest {
        key_id: key_id.to_owned(),
        plaintext: b"plaintext".to_vec(),
        ..v1::EncryptRequest::default()
    };
    client.key_once(request, |mut c, r| async move { c.encrypt(r).await }).await
}

/// For how long, from `since` on, a node whose root is away goes on with keys that are open, until it refuses for want
/// of the root.
pub async fn goes_on_for(client: &Client, key_id: &str, since: Duration) -> Duration {
    let mut served = Duration::ZERO;
    wait_until("the grace is over", Duration::from_secs(20), async || {
        match encrypt(client, key_id).await {
            Ok(_) => {
                served = RealEnv.boot_now() - since;
                false
            }
            Err(error) => error.code.as_deref() == Some("KeyUnavailableException"),
        }
    })
    .await;
    served
}

pub async fn decrypt(client: &Client, blob: &[u8]) -> Result<v1::DecryptResponse, CallError> {
    let request =
        v1::DecryptRequest { ciphertext_blob: blob.to_vec(), ..v1::DecryptRequest::default() };
    client.key_once(request, |mut c, r| async move { c.decrypt(r).await }).await
}

pub async fn create_key(client: &Client) -> Result<String, CallError> {
    let created = client
        .key_once(v1::CreateKeyRequest::default(), |mut c, r| async move { c.create_key(r).await })
        .await?;
    Ok(created.key_metadata.expect("metadata").key_id)
}

pub async fn set_enabled(client: &Client, key_id: &str, enabled: bool) -> Result<(), CallError> {
    let key_id = key_id.to_owned();
    if enabled {
        let request = v1::EnableKeyRequest { key_id };
        client.key_once(request, |mut c, r| async move { c.enable_key(r).await }).await.map(drop)
    } else {
        let request = v1::DisableKeyRequest { key_id };
        client.key_once(request, |mut c, r| async move { c.disable_key(r).await }).await.map(drop)
    }
}

pub async fn schedule_deletion(client: &Client, key_id: &str, days: i32) {
    let request = v1::ScheduleKeyDeletionRequest {
        key_id: key_id.to_owned(),
        pending_window_in_days: Some(days),
    };
    client
        .key_once(request, |mut c, r| async move { c.schedule_key_deletion(r).await })
        .await
        .expect("scheduled");
}

/// The root ids of a node, as the Region knows them.
pub async fn roots_of(region: &Region, node: u16) -> Vec<String> {
    let status = region.status().await.expect("a status");
    let found = status.nodes.into_iter().find(|n| n.node_id == u64::from(node));
    found.expect("the node").root_ids
}

/// A material's sealed token, as the database of a node that stands still has it.
pub fn token_of(region: &Region, node: u16, material: &str) -> Vec<u8> {
    use keyward_state::Store;
    let material = hex::decode(material).expect("a material id");
    let data = region.node_folder(node).join("data").join("state");
    let store = keyward_raft::RocksStore::open(&data, &keyward_state::Table::STATE)
        .expect("the node's state");
    store.get(keyward_state::Table::Tokens, &material).expect("read").expect("a token")
}

/// The name of the refusal.
pub fn code<T>(result: Result<T, CallError>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => error.code.clone().unwrap_or_else(|| format!("untyped: {error}")),
    }
}

/// True if any file under `folder` holds `needle`.
pub fn found_in(folder: &Path, needle: &[u8]) -> Option<PathBuf> {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            if let Some(found) = found_in(&path, needle) {
                return Some(found);
            }
        } else if let Ok(content) = fs::read(&path)
            && content.windows(needle.len()).any(|window| window == needle)
        {
            return Some(path);
        }
    }
    None
}
