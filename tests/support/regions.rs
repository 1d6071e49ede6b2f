//! Several Regions of real processes, brought up as a user would: `keyward dev up --regions`.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use keyward_client::{Client, ClientConfig, Repeat};
use keyward_env::RealEnv;
use keyward_proto::v1;
use serde_json::Value;

use super::{KEYWARD, Turn, wait_until};

pub const NAMES: [&str; 3] = ["ap-southeast-2", "eu-west-1", "us-east-1"];

pub struct Regions {
    folder: tempfile::TempDir,
    port_base: u16,
    nodes: u16,
    up: Option<Child>,
    _turn: Turn,
}

impl Regions {
    /// Three Regions of so many nodes each.
    pub fn start(nodes: u16) -> Self {
        let turn = Turn::wait();
        // Below the ports of other tests; none other runs at the same time.
        let own = u16::try_from(std::process::id() % 16).unwrap_or(0);
        let port_base = 2_500 + own * 500;
        let folder = tempfile::tempdir().expect("a folder");
        let mut regions = Self { folder, port_base, nodes, up: None, _turn: turn };
        regions.up();
        regions
    }

    /// Brings them up, or up again.
    pub fn up(&mut self) {
        let mut up = Command::new(KEYWARD)
            .args(["dev", "up", "--regions", &NAMES.join(",")])
            .args(["--nodes", &self.nodes.to_string()])
            .args(["--port-base", &self.port_base.to_string(), "--data"])
            .arg(self.folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("keyward dev up");
        let mut lines = BufReader::new(up.stdout.take().expect("its output")).lines();
        let ready = lines.any(|line| line.is_ok_and(|line| line.contains("are up and linked")));
        assert!(ready, "keyward dev up --regions did not become ready");
        self.up = Some(up);
    }

    /// Stops all of them.
    pub fn down(&mut self) {
        if let Some(mut up) = self.up.take() {
            super::signal(&up, rustix::process::Signal::TERM);
            up.wait().expect("keyward dev up ends");
        }
    }

    /// Changes the configuration of a Region's first node.
    pub fn configure(&self, region: &str, from: &str, to: &str) {
        let path = self.folder.path().join(region).join("node-1").join("keyward.toml");
        let text = std::fs::read_to_string(&path).expect("a configuration");
        assert!(text.contains(from), "{text}");
        std::fs::write(path, text.replace(from, to)).expect("written");
    }

    fn pki(&self, region: &str, name: &str) -> PathBuf {
        self.folder.path().join(region).join("pki").join(name)
    }

    fn endpoints(&self, region: &str) -> Vec<String> {
        let at = NAMES.iter().position(|name| *name == region).expect("a Region");
        let first = self.port_base + 20 * u16::try_from(at).expect("few");
        (1..=self.nodes).map(|node| format!("127.0.0.1:{}", first + node)).collect()
    }

    fn command(&self, region: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(KEYWARD);
        command
            .args(arguments)
            .env("KEYWARD_ENDPOINTS", self.endpoints(region).join(","))
            .env("KEYWARD_CA", self.pki(region, "ca.pem"))
            .env("KEYWARD_CERT", self.pki(region, "dev.pem"))
            .env("KEYWARD_KEY", self.pki(region, "dev.key"))
            .env("KEYWARD_OPERATOR_CERT", self.pki(region, "operator.pem"))
            .env("KEYWARD_OPERATOR_KEY", self.pki(region, "operator.key"))
            .stdin(Stdio::null());
        command
    }

    /// Runs the command line as a user of that Region.
    pub fn run(&self, region: &str, arguments: &[&str]) -> Output {
        self.command(region, arguments).output().expect("keyward runs")
    }

    /// The same; it succeeds.
    pub fn ok(&self, region: &str, arguments: &[&str]) -> String {
        let output = self.run(region, arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{region}: keyward {}: {error}", arguments.join(" "));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The same; its answer as a program reads it.
    pub fn json(&self, region: &str, arguments: &[&str]) -> Value {
        let text = self.ok(region, &[arguments, &["--output", "json"]].concat());
        serde_json::from_str(&text).expect("JSON")
    }

    /// The same; it is refused. What it says.
    pub fn refused(&self, region: &str, arguments: &[&str]) -> String {
        let output = self.run(region, arguments);
        assert!(!output.status.success(), "{region}: keyward {} succeeded", arguments.join(" "));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Runs the command line against a Region as an operator of another one; it is refused. What it says.
    pub fn run_as_operator_of(&self, home: &str, region: &str, arguments: &[&str]) -> String {
        let mut command = self.command(region, arguments);
        command
            .env("KEYWARD_OPERATOR_CERT", self.pki(home, "operator.pem"))
            .env("KEYWARD_OPERATOR_KEY", self.pki(home, "operator.key"));
        let output = command.output().expect("keyward runs");
        assert!(!output.status.success(), "an operator of {home} is let in in {region}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// The ids of all nodes' processes.
    pub fn processes(&self) -> Vec<u32> {
        let supervisor = self.up.as_ref().map(Child::id);
        let of_parent = |process: u32| {
            let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
            // Behind the name, which may hold anything, in brackets: state and parent.
            let parent = text.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok();
            (parent == supervisor).then_some(process)
        };
        let all = std::fs::read_dir("/proc").expect("/proc").flatten();
        all.filter_map(|entry| of_parent(entry.file_name().to_str()?.parse().ok()?)).collect()
    }

    /// Asks for a fault, or for its end.
    pub fn fault(&self, arguments: &[&str]) {
        let folder = self.folder.path().to_str().expect("a path");
        self.ok(NAMES[0], &[&["dev", "fault", "--data", folder], arguments].concat());
        // The supervisor looks ten times a second.
        RealEnv.block_for(Duration::from_millis(250));
    }

    /// A client that manages and uses keys.
    pub fn client(&self, region: &str, patience: Duration) -> Arc<Client> {
        Arc::new(Client::new(&self.config(region, patience)).expect("a client"))
    }

    /// What such a client is made of.
    pub fn config(&self, region: &str, patience: Duration) -> ClientConfig {
        let read = |name: &str| std::fs::read(self.pki(region, name)).expect("a PEM file");
        ClientConfig {
            endpoints: self.endpoints(region),
            authority: read("ca.pem"),
            certificate: read("dev.pem"),
            private_key: read("dev.key").into(),
            patience,
        }
    }

    /// A principal that manages and uses keys, made in that Region. Its ARN.
    pub fn principal(&self, region: &str, name: &str) -> String {
        let arn = format!("arn:aws:iam::111122223333:user/{name}");
        let out = self.folder.path().join(name);
        let out = out.to_str().expect("a path");
        let kinds = ["--kind", "user", "--kind", "administrator"];
        self.ok(region, &[&["principal", "create", &arn, "--out", out], &kinds[..]].concat());
        arn
    }

    /// Where a file of that name is, or would be.
    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().expect("a path").to_owned()
    }

    /// Writes such a file. Where it is.
    pub fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).expect("written");
        self.path(name)
    }

    /// Such a principal as a caller of any Region.
    pub fn caller(&self, region: &str, name: &str) -> Arc<Client> {
        let read = |suffix: &str| {
            std::fs::read(self.folder.path().join(format!("{name}.{suffix}"))).expect("a PEM file")
        };
        let config = ClientConfig {
            certificate: read("pem"),
            private_key: read("key").into(),
            ..self.config(region, Duration::from_secs(5))
        };
        Arc::new(Client::new(&config).expect("a client"))
    }

    /// A multi-Region key whose primary is there, with replicas in the two others.
    pub async fn key_everywhere(&self, primary: &str) -> String {
        let key = self.json(primary, &["key", "create", "--multi-region"])["KeyId"]
            .as_str()
            .expect("an id")
            .to_owned();
        for other in NAMES.iter().filter(|name| **name != primary) {
            self.ok(primary, &["key", "replicate", &key, other]);
        }
        for region in NAMES {
            self.wait(region, "the key is there", async |client| {
                describe(client, &key).await.is_some()
            })
            .await;
        }
        key
    }

    /// Waits until something holds in a Region.
    pub async fn wait(
        &self,
        region: &str,
        what: &str,
        mut holds: impl AsyncFnMut(&Client) -> bool,
    ) {
        let client = self.client(region, Duration::from_secs(5));
        wait_until(&format!("{region}: {what}"), Duration::from_secs(20), async || {
            holds(&client).await
        })
        .await;
    }
}

impl Drop for Regions {
    fn drop(&mut self) {
        self.down();
    }
}

pub async fn describe(client: &Client, key: &str) -> Option<v1::KeyMetadata> {
    let request = v1::DescribeKeyRequest { key_id: key.to_owned() };
    let told =
        client.key(Repeat::Safe, request, |mut c, r| async move { c.describe_key(r).await }).await;
    told.ok()?.key_metadata
}

/// The state of a key, as DescribeKey tells it.
pub async fn state(client: &Client, key: &str) -> String {
    describe(client, key).await.map(|key| key.key_state).unwrap_or_default()
}

/// The Region of its primary.
pub async fn primary(client: &Client, key: &str) -> String {
    let told = describe(client, key).await.and_then(|key| key.multi_region_configuration);
    told.and_then(|of| of.primary_key).map(|key| key.region).unwrap_or_default()
}
