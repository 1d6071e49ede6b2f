//! Regions of a drill's own, by `keyward dev up`, with its keys, principals and files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use keyward_client::{Client, Repeat};
use keyward_env::{Env, RealEnv};
use keyward_proto::v1;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

use super::definition::{Action, Drill, FileSpec, KeySpec};
use super::place::{Identity, Place};
use super::stage::{CALL_PATIENCE, PATIENCE, Principal, Stage};
use crate::dev::regions::World;
use crate::error::Failure;

/// A key is in all its Regions within this; so is a principal.
const KEY_WITHIN: Duration = Duration::from_secs(20);
/// Between looks.
const LOOK: Duration = Duration::from_millis(20);

/// Regions of `keyward dev up`.
pub struct Dev {
    pub folder: PathBuf,
    world: World,
    up: Child,
}

impl Dev {
    async fn up(
        drill: &Drill,
        folder: &Path,
        program: &Path,
        port_base: u16,
    ) -> Result<Self, Failure> {
        let cannot =
            |why: &dyn std::fmt::Display| Failure::new(format!("cannot bring it up: {why}"));
        let topology = drill.topology.as_ref().ok_or_else(|| cannot(&"there is no topology"))?;
        let mut command = Command::new(program);
        command
            .args(["dev", "up", "--regions", &drill.regions().join(",")])
            .args(["--nodes", &topology.nodes.get_ref().to_string()])
            .args(["--port-base", &port_base.to_string(), "--data"])
            .arg(folder);
        if let Some(grace) = &topology.root_grace {
            let seconds = super::definition::time(grace).as_secs().max(1);
            command.args(["--root-grace", &seconds.to_string()]);
        }
        let mut up = command
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
        Ok(Self { folder: folder.to_path_buf(), world, up })
    }

    /// Whoever steps are run as.
    pub fn user(&self) -> String {
        format!("arn:aws:iam::{}:user/dev", self.world.account)
    }

    /// A node's configuration, by its place.
    pub fn config(&self, place: &str) -> Option<String> {
        let (region, node) = place.split_once('/')?;
        let home = self.world.home(&self.folder, region).ok()?;
        let node: u16 = node.parse().ok()?;
        Some(home.config_path(node).display().to_string())
    }

    /// A metric, summed over the nodes of a Region that answer.
    pub async fn metric(&self, region: &str, name: &str) -> Result<f64, String> {
        let home = self.world.home(&self.folder, region).map_err(|e| e.to_string())?;
        let mut sum = None;
        for node in 1..=self.world.nodes {
            let Ok(page) = metrics(&home.observe_endpoint(node)).await else { continue };
            let values = page.lines().filter(|line| {
                line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']))
            });
            let values = values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            *sum.get_or_insert(0.0) += values.sum::<f64>();
        }
        sum.ok_or_else(|| "no node shows its metrics".to_owned())
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

async fn metrics(endpoint: &str) -> std::io::Result<String> {
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect(endpoint).await?;
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await?;
        let mut page = String::new();
        stream.read_to_string(&mut page).await?;
        Ok(page)
    };
    let timed_out = || Err(std::io::Error::from(std::io::ErrorKind::TimedOut));
    RealEnv.timeout(CALL_PATIENCE, ask).await.unwrap_or_else(timed_out)
}

impl Stage {
    /// Brings up what the drill asks for, and makes its keys, principals and files. `folder`: a new one.
    pub async fn bring_up(drill: &Drill, folder: &Path, port_base: u16) -> Result<Self, Failure> {
        let program = std::env::current_exe().map_err(|e| Failure::new(e.to_string()))?;
        let world = folder.join("world");
        let dev = Dev::up(drill, &world, &program, port_base).await?;
        let places = drill.regions().into_iter().map(|region| {
            let home = dev.world.home(&world, &region)?;
            Ok(Place::of_dev(&region, home.environment()))
        });
        let places = places.collect::<Result<_, Failure>>()?;
        let mut stage = Self {
            work: folder.join("work"),
            program,
            places,
            keys: BTreeMap::new(),
            principals: BTreeMap::new(),
            dev: Some(dev),
        };
        for key in &drill.key {
            let id = stage.make_key(key).await?;
            stage.keys.insert(key.name.get_ref().clone(), id);
        }
        for one in &drill.principal {
            stage.make_principal(one.name.get_ref()).await?;
        }
        for file in &drill.file {
            make_file(&stage.work, file)?;
        }
        Ok(stage)
    }

    async fn make_key(&self, key: &KeySpec) -> Result<String, Failure> {
        let regions: Vec<&str> =
            key.regions.get_ref().iter().map(|region| region.get_ref().as_str()).collect();
        let Some((first, others)) = regions.split_first() else {
            return Err(Failure::new("a key is in one Region at least"));
        };
        let client = self.client(first, None, &[])?;
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
        for region in regions {
            self.until_it_works(&self.client(region, None, &[])?, &id, region).await?;
        }
        Ok(id)
    }

    /// A principal that uses keys, in every Region.
    async fn make_principal(&mut self, name: &str) -> Result<(), Failure> {
        let first = self.places.first().map(|place| place.region.clone()).unwrap_or_default();
        let account = self.dev.as_ref().map(|dev| dev.world.account.clone()).unwrap_or_default();
        let arn = format!("arn:aws:iam::{account}:user/{name}");
        let command = Action::Run(format!("principal create {arn} --kind user --out {name}"));
        let ran = self.act(&first, &command).await;
        if !ran.succeeded {
            return Err(Failure::new(format!("principal {name} could not be made: {}", ran.said)));
        }
        let file = |ending: &str| self.work.join(format!("{name}.{ending}")).display().to_string();
        let identity = Identity { certificate: file("pem"), private_key: file("key") };
        self.principals.insert(name.to_owned(), Principal { arn, identity });
        for place in &self.places {
            // Other Regions hear of it in a moment.
            if let Some(key) = self.keys.values().next() {
                let client = self.client(&place.region, Some(name), &[])?;
                self.until_known(&client, key, &place.region).await?;
            }
        }
        Ok(())
    }

    async fn until_it_works(&self, client: &Client, id: &str, region: &str) -> Result<(), Failure> {
        let end = RealEnv.boot_now() + KEY_WITHIN;
        loop {
            let request = v1::DescribeKeyRequest { key_id: id.to_owned() };
            let asked = client
                .key(Repeat::Safe, request, |mut c, r| async move { c.describe_key(r).await });
            if asked.await.is_ok() {
                return Ok(());
            }
            if RealEnv.boot_now() > end {
                return Err(Failure::new(format!("key {id} did not come to {region}")));
            }
            RealEnv.sleep(LOOK).await;
        }
    }

    async fn until_known(&self, client: &Client, key: &str, region: &str) -> Result<(), Failure> {
        let end = RealEnv.boot_now() + KEY_WITHIN;
        loop {
            let request = v1::DescribeKeyRequest { key_id: key.to_owned() };
            let asked = client
                .key(Repeat::Safe, request, |mut c, r| async move { c.describe_key(r).await });
            let known = match asked.await {
                Ok(_) => true,
                // A refusal for want of the key, or of a kind, comes after it was let in.
                Err(error) => {
                    matches!(
                        error.code.as_deref(),
                        Some("NotFoundException" | "AccessDeniedException")
                    )
                }
            };
            if known {
                return Ok(());
            }
            if RealEnv.boot_now() > end {
                return Err(Failure::new(format!("a principal did not come to {region}")));
            }
            RealEnv.sleep(LOOK).await;
        }
    }
}

/// A file of bytes that do not repeat.
fn make_file(folder: &Path, file: &FileSpec) -> Result<(), Failure> {
    use rand::{RngExt, SeedableRng};
    let mut dice = rand_chacha::ChaCha8Rng::seed_from_u64(*file.bytes.get_ref());
    let bytes: Vec<u8> = (0..*file.bytes.get_ref()).map(|_| dice.random()).collect();
    let path = folder.join(file.name.get_ref());
    std::fs::write(&path, bytes)
        .map_err(|e| Failure::new(format!("cannot write {}: {e}", path.display())))
}
