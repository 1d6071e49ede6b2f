//! `keyward dev demo`: the main job on real input, step by step, each with its figure. Fails with the
//! first step that does not hold.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use keyward_client::{CallError, Client, Repeat};
use keyward_env::{Env, RealEnv};
use keyward_proto::v1;

use crate::cli::output::sayln;
use crate::dev::{Fleet, Home, Plan};
use crate::error::Failure;

/// The least size of the file: large enough that nothing holds it whole.
const FILE_BYTES_MIN: u64 = 64 << 20;
/// Clients that go on encrypting on each survivor while the leader dies.
const CLIENTS_PER_NODE: usize = 2;
/// A step that takes longer has failed.
const STEP_PATIENCE: Duration = Duration::from_secs(20);

struct Demo {
    home: Home,
    fleet: Fleet,
    program: PathBuf,
    steps: u32,
}

/// What the load saw.
#[derive(Default)]
struct Load {
    calls: AtomicU64,
    failures: AtomicU64,
    stop: AtomicBool,
    last_failure: parking_lot::Mutex<Option<String>>,
}

pub async fn run(
    data: Option<PathBuf>,
    port_base: u16,
    file: Option<PathBuf>,
) -> Result<(), Failure> {
    let began = RealEnv.boot_now();
    let (folder, temporary) = match data {
        Some(folder) => (folder, false),
        None => {
            let name = format!("keyward-demo-{}", std::process::id());
            (std::env::temp_dir().join(name), true)
        }
    };
    if folder.join("dev.json").exists() {
        return Err(Failure::new(format!("{} is in use", folder.display()))
            .next("name a folder that does not exist yet"));
    }
    let plan = Plan {
        aws_like_delays: false,
        root_grace_seconds: None,
        region: "eu-west-1".parse().map_err(Failure::from_error)?,
        account: "111122223333".parse().map_err(Failure::from_error)?,
        nodes: 3,
        port_base,
        ready: false,
    };
    plan.check_ports()?;
    let (mut home, authority) = Home::create(&folder, plan)?;
    let mut fleet = Fleet::new(&home)?;
    fleet.start_all().await?;
    home.found(&authority).await?;
    home.wait_ready(RealEnv.boot_now() + STEP_PATIENCE).await?;
    let program = std::env::current_exe().map_err(|e| Failure::new(e.to_string()))?;
    let mut demo = Demo { home, fleet, program, steps: 0 };
    demo.say(&format!("three processes form a Region, ready in {}", since(began)));
    let result = demo.all(&folder, file).await;
    demo.fleet.stop_all().await;
    if temporary {
        drop(fs::remove_dir_all(&folder));
    }
    result?;
    sayln!("\nall steps hold; {} in all", since(began));
    Ok(())
}

fn since(began: Duration) -> String {
    let took = RealEnv.boot_now().saturating_sub(began);
    if took < Duration::from_secs(2) {
        format!("{} ms", took.as_millis())
    } else {
        format!("{:.1} s", took.as_secs_f64())
    }
}

fn failed(step: &str, why: impl std::fmt::Display) -> Failure {
    Failure::new(format!("the demo failed at: {step}: {why}"))
}

async fn encrypt(client: &Client, key_id: &str) -> Result<v1::EncryptResponse, CallError> {
    let request = v1::EncryptRequest {
        key_id: key_id.to_owned(),
        plaintext: b"a secret of thirty-two bytes, ok".to_vec(),
        ..v1::EncryptRequest::default()
    };
    client.key(Repeat::Safe, request, |mut c, r| async move { c.encrypt(r).await }).await
}

impl Demo {
    fn say(&mut self, text: &str) {
        self.steps += 1;
        sayln!("{:2}. {text}", self.steps);
    }

    fn client(&self, nodes: &[u16]) -> Result<Arc<Client>, Failure> {
        self.home.client("dev", nodes, Duration::from_secs(5)).map(Arc::new)
    }

    async fn all(&mut self, folder: &Path, file: Option<PathBuf>) -> Result<(), Failure> {
        let key = self.make_key().await?;
        let input = real_file(folder, file, &self.program)?;
        let sealed = folder.join("demo.kwd");
        self.encrypt_file(&input, &sealed).await?;
        self.decrypt_file(&input, &sealed, folder, "node 2", &[2]).await?;
        let killed = self.kill_leader_under_load(&key).await?;
        self.disable_is_seen_everywhere(&key, killed).await?;
        self.rotation_keeps_old_ciphertexts(&key, killed).await?;
        self.killed_node_returns(killed).await?;
        self.restart_everything().await?;
        self.decrypt_file(&input, &sealed, folder, "the restarted Region", &[]).await
    }

    async fn make_key(&mut self) -> Result<String, Failure> {
        let began = RealEnv.boot_now();
        let client = self.client(&[])?;
        let created = client
            .key(Repeat::IfUnsent, v1::CreateKeyRequest::default(), |mut c, r| async move {
                c.create_key(r).await
            })
            .await?;
        let key = created.key_metadata.unwrap_or_default();
        let request = v1::CreateAliasRequest {
            alias_name: "alias/demo".to_owned(),
            target_key_id: key.key_id.clone(),
        };
        client
            .key(Repeat::IfUnsent, request, |mut c, r| async move { c.create_alias(r).await })
            .await?;
        self.say(&format!("a key and alias/demo, known on all nodes after {}", since(began)));
        Ok(key.key_id)
    }

    /// Runs `keyward file ...` as a user would, against these nodes.
    async fn file_command(&self, arguments: &[&str], nodes: &[u16]) -> Result<(), Failure> {
        let pki = self.home.node_folder(1).with_file_name("pki");
        let all = [1, 2, 3];
        let nodes = if nodes.is_empty() { &all } else { nodes };
        let endpoints: Vec<String> = nodes.iter().map(|node| self.home.endpoint(*node)).collect();
        let output = tokio::process::Command::new(&self.program)
            .args(arguments)
            .env("KEYWARD_ENDPOINTS", endpoints.join(","))
            .env("KEYWARD_CA", pki.join("ca.pem"))
            .env("KEYWARD_CERT", pki.join("dev.pem"))
            .env("KEYWARD_KEY", pki.join("dev.key"))
            .output()
            .await
            .map_err(|e| Failure::new(format!("cannot run keyward: {e}")))?;
        if output.status.success() {
            return Ok(());
        }
        Err(failed(&arguments.join(" "), String::from_utf8_lossy(&output.stderr)))
    }

    async fn encrypt_file(&mut self, input: &Path, sealed: &Path) -> Result<(), Failure> {
        let began = RealEnv.boot_now();
        let (from, to) = (input.display().to_string(), sealed.display().to_string());
        let arguments = ["file", "encrypt", "--key-id", "alias/demo", &from, "-o", &to];
        self.file_command(&arguments, &[1]).await?;
        let bytes = fs::metadata(input).map(|m| m.len()).unwrap_or(0);
        self.say(&format!(
            "a real file of {} MiB encrypted through node 1 in {}",
            bytes >> 20,
            since(began)
        ));
        Ok(())
    }

    async fn decrypt_file(
        &mut self,
        input: &Path,
        sealed: &Path,
        folder: &Path,
        through: &str,
        nodes: &[u16],
    ) -> Result<(), Failure> {
        let began = RealEnv.boot_now();
        let opened = folder.join("demo.out");
        let (from, to) = (sealed.display().to_string(), opened.display().to_string());
        self.file_command(&["file", "decrypt", &from, "-o", &to, "--force"], nodes).await?;
        let read = |path: &Path| fs::read(path).map_err(|e| failed("comparing", e));
        if read(input)? != read(&opened)? {
            return Err(failed("comparing", "the decrypted file is another one"));
        }
        self.say(&format!(
            "decrypted through {through}, byte for byte the same, in {}",
            since(began)
        ));
        Ok(())
    }

    async fn leader(&self) -> Result<u16, Failure> {
        let status = self.home.wait_ready(RealEnv.boot_now() + STEP_PATIENCE).await?;
        let leader = status.nodes.iter().find(|node| node.leader).map(|node| node.node_id);
        leader
            .and_then(|leader| u16::try_from(leader).ok())
            .ok_or_else(|| failed("finding the leader", "none is known"))
    }

    async fn kill_leader_under_load(&mut self, key: &str) -> Result<u16, Failure> {
        let leader = self.leader().await?;
        let survivors: Vec<u16> = (1..=3).filter(|node| *node != leader).collect();
        let load = Arc::new(Load::default());
        for node in &survivors {
            for _ in 0..CLIENTS_PER_NODE {
                // One node each: nobody helps out when it fails.
                let client = self.client(&[*node])?;
                let (load, key) = (Arc::clone(&load), key.to_owned());
                RealEnv.spawn(async move {
                    while !load.stop.load(Ordering::Relaxed) {
                        load.calls.fetch_add(1, Ordering::Relaxed);
                        if let Err(error) = one_try(&client, &key).await {
                            load.failures.fetch_add(1, Ordering::Relaxed);
                            *load.last_failure.lock() = Some(error.to_string());
                        }
                        RealEnv.sleep(Duration::from_millis(1)).await;
                    }
                });
            }
        }
        RealEnv.sleep(Duration::from_millis(500)).await;
        let before = load.calls.load(Ordering::Relaxed);
        self.fleet.kill(leader).await?;
        let killed = RealEnv.boot_now();
        let client = self.client(&survivors)?;
        let request = v1::UpdateKeyDescriptionRequest {
            key_id: key.to_owned(),
            description: "changed by the survivors".to_owned(),
        };
        client
            .key(Repeat::Safe, request, |mut c, r| async move { c.update_key_description(r).await })
            .await
            .map_err(|e| failed("a change after the leader's death", e))?;
        let away = since(killed);
        RealEnv.sleep(Duration::from_secs(2)).await;
        load.stop.store(true, Ordering::Relaxed);
        RealEnv.sleep(Duration::from_millis(100)).await;
        let calls = load.calls.load(Ordering::Relaxed);
        let failures = load.failures.load(Ordering::Relaxed);
        self.say(&format!(
            "leader (node {leader}) killed with kill -9 under load: {} calls on the survivors since, \
             {failures} failed; control plane away for {away}",
            calls - before
        ));
        if failures > 0 {
            let why = load.last_failure.lock().clone().unwrap_or_default();
            return Err(failed("calls on the survivors", why));
        }
        Ok(leader)
    }

    async fn disable_is_seen_everywhere(&mut self, key: &str, away: u16) -> Result<(), Failure> {
        let nodes: Vec<u16> = (1..=3).filter(|node| *node != away).collect();
        let clients =
            nodes.iter().map(|node| self.client(&[*node])).collect::<Result<Vec<_>, _>>()?;
        let began = RealEnv.boot_now();
        let request = v1::DisableKeyRequest { key_id: key.to_owned() };
        clients[0]
            .key(Repeat::IfUnsent, request, |mut c, r| async move { c.disable_key(r).await })
            .await?;
        let took = since(began);
        for (node, client) in nodes.iter().zip(&clients) {
            match one_try(client, key).await {
                Err(error) if error.code.as_deref() == Some("DisabledException") => {}
                Err(error) => return Err(failed("the disabled key is refused", error)),
                Ok(_) => {
                    return Err(failed(
                        "the disabled key is refused",
                        format!("node {node} used it"),
                    ));
                }
            }
        }
        self.say(&format!(
            "DisableKey acknowledged after {took}; refused on the first try on every live node \
             (DisabledException)"
        ));
        let request = v1::EnableKeyRequest { key_id: key.to_owned() };
        clients[0]
            .key(Repeat::IfUnsent, request, |mut c, r| async move { c.enable_key(r).await })
            .await?;
        for client in &clients {
            one_try(client, key).await.map_err(|e| failed("the enabled key is used", e))?;
        }
        self.say("EnableKey acknowledged; used again on every live node");
        Ok(())
    }

    async fn rotation_keeps_old_ciphertexts(
        &mut self,
        key: &str,
        away: u16,
    ) -> Result<(), Failure> {
        let nodes: Vec<u16> = (1..=3).filter(|node| *node != away).collect();
        let client = self.client(&nodes)?;
        let old = encrypt(&client, key).await?;
        let began = RealEnv.boot_now();
        let request = v1::RotateKeyOnDemandRequest { key_id: key.to_owned() };
        client
            .key(
                Repeat::IfUnsent,
                request,
                |mut c, r| async move { c.rotate_key_on_demand(r).await },
            )
            .await?;
        let took = since(began);
        let new = encrypt(&client, key).await?;
        let mut materials = Vec::new();
        for blob in [old.ciphertext_blob, new.ciphertext_blob] {
            let request =
                v1::DecryptRequest { ciphertext_blob: blob, ..v1::DecryptRequest::default() };
            let answer = client
                .key(Repeat::Safe, request, |mut c, r| async move { c.decrypt(r).await })
                .await
                .map_err(|e| failed("opening ciphertexts after a rotation", e))?;
            materials.push(answer.key_material_id);
        }
        if materials[0] == materials[1] {
            return Err(failed("rotation", "the new ciphertext is under the old material"));
        }
        self.say(&format!("rotated in {took}; the old ciphertext still opens"));
        Ok(())
    }

    async fn killed_node_returns(&mut self, node: u16) -> Result<(), Failure> {
        let began = RealEnv.boot_now();
        self.fleet.start(node)?;
        let end = RealEnv.boot_now() + STEP_PATIENCE;
        loop {
            if let Ok(status) = self.home.wait_ready(end).await {
                let applied: Vec<u64> = status.nodes.iter().map(|node| node.applied).collect();
                if applied.iter().all(|index| *index == applied[0]) {
                    break;
                }
            }
            if RealEnv.boot_now() >= end {
                return Err(failed("the killed node returns", "it has not caught up in time"));
            }
            RealEnv.sleep(Duration::from_millis(50)).await;
        }
        self.say(&format!(
            "killed node {node} is back, caught up and serving after {}",
            since(began)
        ));
        Ok(())
    }

    async fn restart_everything(&mut self) -> Result<(), Failure> {
        self.fleet.stop_all().await;
        let began = RealEnv.boot_now();
        self.fleet.start_all().await?;
        self.home.wait_ready(RealEnv.boot_now() + STEP_PATIENCE).await?;
        self.say(&format!("all nodes stopped and started; serving again after {}", since(began)));
        Ok(())
    }
}

/// One call, no second try: what a caller without a retry would see.
async fn one_try(client: &Client, key: &str) -> Result<v1::EncryptResponse, CallError> {
    let request = v1::EncryptRequest {
        key_id: key.to_owned(),
        plaintext: b"under load".to_vec(),
        ..v1::EncryptRequest::default()
    };
    client.key_once(request, |mut c, r| async move { c.encrypt(r).await }).await
}

/// The file to encrypt: the user's, or this very program, repeated until it is large enough.
fn real_file(folder: &Path, file: Option<PathBuf>, program: &Path) -> Result<PathBuf, Failure> {
    if let Some(file) = file {
        let bytes =
            fs::metadata(&file).map(|m| m.len()).map_err(|e| failed("reading the file", e))?;
        if bytes < FILE_BYTES_MIN {
            return Err(failed("reading the file", "it is smaller than 64 MiB"));
        }
        return Ok(file);
    }
    let content = fs::read(program).map_err(|e| failed("reading this program", e))?;
    let place = folder.join("demo.in");
    let write = || -> std::io::Result<()> {
        let mut file = fs::File::create(&place)?;
        let mut written = 0;
        while written < FILE_BYTES_MIN {
            file.write_all(&content)?;
            written += content.len() as u64;
        }
        Ok(())
    };
    write().map_err(|e| failed("preparing the file", e))?;
    Ok(place)
}
