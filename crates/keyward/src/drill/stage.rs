//! What a drill is played on: Regions of real processes, brought up by `keyward dev up`, and commands run in them as a
//! user would type them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use keyward_client::{Client, Repeat};
use keyward_env::{Env, RealEnv};
use keyward_proto::v1;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::definition::{Drill, KeySpec, fill, words};
use crate::dev::regions::World;
use crate::error::Failure;

/// Bringing up, or one command, takes no longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// A key is in all its Regions within this.
const KEY_WITHIN: Duration = Duration::from_secs(20);
/// A call of a load, tries on other nodes included.
pub const CALL_PATIENCE: Duration = Duration::from_secs(2);
/// Between looks.
const LOOK: Duration = Duration::from_millis(20);

/// Regions of real processes.
pub struct Stage {
    folder: PathBuf,
    program: PathBuf,
    world: World,
    up: Child,
    keys: BTreeMap<String, String>,
}

impl Stage {
    /// Brings up what the drill asks for, and makes its keys.
    pub async fn bring_up(drill: &Drill, folder: &Path, port_base: u16) -> Result<Self, Failure> {
        let program = std::env::current_exe().map_err(|e| Failure::new(e.to_string()))?;
        let cannot =
            |why: &dyn std::fmt::Display| Failure::new(format!("cannot bring it up: {why}"));
        let mut up = Command::new(&program)
            .args(["dev", "up", "--regions", &drill.regions().join(",")])
            .args(["--nodes", &drill.topology.nodes.get_ref().to_string()])
            .args(["--port-base", &port_base.to_string(), "--data"])
            .arg(folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| cannot(&e))?;
        let Some(out) = up.stdout.take() else { return Err(cannot(&"no output")) };
        let mut lines = BufReader::new(out).lines();
        let ready = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if line.contains("up and linked") {
                    return true;
                }
            }
            false
        };
        if RealEnv.timeout(PATIENCE, ready).await != Some(true) {
            drop(up.kill().await);
            let said = up.wait_with_output().await.map(|all| all.stderr).unwrap_or_default();
            return Err(cannot(&String::from_utf8_lossy(&said).trim()));
        }
        // What it says later nobody reads.
        RealEnv.spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let world = World::open(folder)?;
        let mut stage =
            Self { folder: folder.to_path_buf(), program, world, up, keys: BTreeMap::new() };
        for key in &drill.key {
            let id = stage.make(key).await?;
            stage.keys.insert(key.name.get_ref().clone(), id);
        }
        Ok(stage)
    }

    /// A key's id.
    pub fn key(&self, name: &str) -> &str {
        self.keys.get(name).map_or("", String::as_str)
    }

    /// A client of that Region's manager and user of keys.
    pub fn client(&self, region: &str) -> Result<Client, Failure> {
        self.world.home(&self.folder, region)?.client("dev", &[], CALL_PATIENCE)
    }

    async fn make(&self, key: &KeySpec) -> Result<String, Failure> {
        let regions: Vec<&str> =
            key.regions.get_ref().iter().map(|region| region.get_ref().as_str()).collect();
        let Some((first, others)) = regions.split_first() else {
            return Err(Failure::new("a key is in one Region at least"));
        };
        let client = self.client(first)?;
        let request = v1::CreateKeyRequest {
            description: Some(key.name.get_ref().clone()),
            multi_region: (!others.is_empty()).then_some(true),
            ..v1::CreateKeyRequest::default()
        };
        let made = client
            .key(Repeat::IfUnsent, request, |mut c, r| async move { c.create_key(r).await })
            .await?;
        let id = made.key_metadata.unwrap_or_default().key_id;
        for to in others {
            let request = v1::ReplicateKeyRequest {
                key_id: id.clone(),
                replica_region: (*to).to_owned(),
                ..v1::ReplicateKeyRequest::default()
            };
            let asked = client
                .key(Repeat::IfUnsent, request, |mut c, r| async move { c.replicate_key(r).await });
            asked.await?;
        }
        let end = RealEnv.boot_now() + KEY_WITHIN;
        for region in regions {
            let client = self.client(region)?;
            loop {
                let request = v1::DescribeKeyRequest { key_id: id.clone() };
                let asked = client
                    .key(Repeat::Safe, request, |mut c, r| async move { c.describe_key(r).await });
                if asked.await.is_ok() {
                    break;
                }
                if RealEnv.boot_now() > end {
                    return Err(Failure::new(format!("key {id} did not come to {region}")));
                }
                RealEnv.sleep(LOOK).await;
            }
        }
        Ok(id)
    }

    /// The node that leads a Region.
    async fn leader(&self, region: &str) -> Option<String> {
        let arguments = ["cluster", "status", "--output", "json"].map(str::to_owned);
        let output = self.keyward(region, &arguments).await.ok()?;
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        let leads = |node: &&serde_json::Value| node["Leader"] == true;
        let leader = status["Nodes"].as_array()?.iter().find(leads)?;
        leader["Node"].as_u64().map(|node| node.to_string())
    }

    /// A step's command, with names filled in. What it said, if it succeeded; or why not.
    pub async fn run(&self, region: &str, command: &str) -> Result<String, String> {
        let leader = match command.contains("{leader}") {
            true => Some(self.leader(region).await.ok_or("nobody leads")?),
            false => None,
        };
        let filled = fill(command, |name| match name {
            "leader" => leader.clone(),
            name => self.keys.get(name).cloned(),
        });
        let mut arguments = words(&filled.map_err(|name| format!("{{{name}}} is nothing known"))?);
        if arguments.iter().take(2).map(String::as_str).eq(["dev", "fault"]) {
            arguments.extend(["--data".to_owned(), self.folder.display().to_string()]);
        }
        let output = self.keyward(region, &arguments).await.map_err(|e| e.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr)),
        }
    }

    async fn keyward(&self, region: &str, arguments: &[String]) -> std::io::Result<Output> {
        let home = self
            .world
            .home(&self.folder, region)
            .map_err(|failure| std::io::Error::other(failure.to_string()))?;
        let running = Command::new(&self.program)
            .args(arguments)
            .envs(home.environment())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let timed_out = || std::io::Error::from(std::io::ErrorKind::TimedOut);
        RealEnv.timeout(PATIENCE, running).await.unwrap_or_else(|| Err(timed_out()))
    }

    /// The operator's certificate and private key of the first Region, PEM.
    pub fn operator(&self) -> Result<(String, String), Failure> {
        let home = self.world.home(&self.folder, &self.world.regions[0])?;
        let environment: BTreeMap<&str, String> = home.environment().into_iter().collect();
        let read = |name: &str| {
            let path = environment.get(name).cloned().unwrap_or_default();
            std::fs::read_to_string(&path)
                .map_err(|e| Failure::new(format!("cannot read {path}: {e}")))
        };
        Ok((read("KEYWARD_OPERATOR_CERT")?, read("KEYWARD_OPERATOR_KEY")?))
    }

    /// Stops all of it.
    pub async fn down(mut self) {
        let pid = self.up.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
        if let Some(pid) = pid {
            // One that has ended needs no telling.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        drop(RealEnv.timeout(PATIENCE, self.up.wait()).await);
    }
}
