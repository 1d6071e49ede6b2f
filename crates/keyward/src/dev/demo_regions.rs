//! `keyward dev demo-regions`: a Region is lost and comes back, step by step, by the commands that a user would type. Fails
//! with the first step that does not hold.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use keyward_client::Repeat;
use keyward_env::{Env, RealEnv};
use keyward_proto::v1;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::regions::World;
use crate::cli::output::sayln;
use crate::error::Failure;

const VIRGINIA: &str = "us-east-1";
const IRELAND: &str = "eu-west-1";
const SYDNEY: &str = "ap-southeast-2";
/// A step that takes longer has failed.
const STEP_PATIENCE: Duration = Duration::from_secs(30);
/// Between looks.
const LOOK: Duration = Duration::from_millis(50);
/// Clients that go on encrypting in the Region that nothing happens to.
const CLIENTS: usize = 2;

struct Demo {
    folder: PathBuf,
    program: PathBuf,
    steps: u32,
}

fn failed(step: &str, why: impl std::fmt::Display) -> Failure {
    Failure::new(format!("the demo failed at: {step}: {why}"))
}

fn since(began: Duration) -> String {
    let took = RealEnv.boot_now().saturating_sub(began);
    if took < Duration::from_secs(2) {
        format!("{} ms", took.as_millis())
    } else {
        format!("{:.1} s", took.as_secs_f64())
    }
}

pub async fn run(port_base: u16) -> Result<(), Failure> {
    let began = RealEnv.boot_now();
    let folder = std::env::temp_dir().join(format!("keyward-demo-regions-{}", std::process::id()));
    let program = std::env::current_exe().map_err(|e| Failure::new(e.to_string()))?;
    let mut up = Command::new(&program)
        .args(["dev", "up", "--nodes", "3", "--port-base", &port_base.to_string()])
        .args(["--regions", &[VIRGINIA, IRELAND, SYDNEY].join(","), "--data"])
        .arg(&folder)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| failed("dev up --regions", e))?;
    let mut demo = Demo { folder: folder.clone(), program, steps: 0 };
    let result = demo.all(&mut up, began).await;
    if let Some(pid) = up.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
        // One that has ended needs no telling.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    drop(RealEnv.timeout(STEP_PATIENCE, up.wait()).await);
    drop(fs::remove_dir_all(&folder));
    result?;
    sayln!("\nall steps hold; {} in all", since(began));
    Ok(())
}

impl Demo {
    fn say(&mut self, text: &str) {
        self.steps += 1;
        sayln!("{:2}. {text}", self.steps);
    }

    async fn all(&mut self, up: &mut Child, began: Duration) -> Result<(), Failure> {
        let out = up.stdout.take().ok_or_else(|| failed("dev up", "it has no output"))?;
        let mut lines = BufReader::new(out).lines();
        loop {
            match lines.next_line().await {
                Ok(Some(line)) if line.contains("are up and linked") => break,
                Ok(Some(_)) => {}
                _ => return Err(failed("dev up --regions", "it ended; its errors are above")),
            }
        }
        self.say(&format!("three Regions of three processes each, linked, after {}", since(began)));
        let key = self.make_key().await?;
        let (input, sealed) = self.seal(&key).await?;

        let (stop, calls, failures) =
            (Arc::new(AtomicBool::new(false)), Arc::default(), Arc::default());
        let load = self.load(&key, &stop, &calls, &failures)?;
        self.lose_virginia(&key, &input, &sealed).await?;
        self.promote(&key).await?;
        self.return_virginia(&key).await?;
        stop.store(true, Ordering::Relaxed);
        for client in load {
            drop(client.await);
        }
        let (calls, failures) = (calls.load(Ordering::Relaxed), failures.load(Ordering::Relaxed));
        if failures > 0 || calls == 0 {
            return Err(failed("calls in Sydney", format!("{failures} of {calls} failed")));
        }
        self.say(&format!("all the while {calls} calls were made in {SYDNEY}: none failed"));
        Ok(())
    }

    fn world(&self) -> Result<World, Failure> {
        World::open(&self.folder)
    }

    /// Runs `keyward` as a user of a Region would.
    async fn keyward(&self, region: &str, arguments: &[&str]) -> Result<String, Failure> {
        let home = self.world()?.home(&self.folder, region)?;
        let output = Command::new(&self.program)
            .args(arguments)
            .envs(home.environment())
            .stdin(Stdio::null())
            .output()
            .await
            .map_err(|e| failed(&arguments.join(" "), e))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(failed(&arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
    }

    async fn json(&self, region: &str, arguments: &[&str]) -> Result<Value, Failure> {
        let text = self.keyward(region, &[arguments, &["--output", "json"]].concat()).await?;
        serde_json::from_str(&text).map_err(|e| failed(&arguments.join(" "), e))
    }

    async fn fault(&self, arguments: &[&str]) -> Result<(), Failure> {
        let folder = self.folder.display().to_string();
        let command = [&["dev", "fault", "--data", &folder], arguments].concat();
        self.keyward(VIRGINIA, &command).await.map(drop)
    }

    /// Waits until the key's primary is there, as seen from a Region.
    async fn until_primary(&self, seen_from: &str, key: &str, is: &str) -> Result<(), Failure> {
        let end = RealEnv.boot_now() + STEP_PATIENCE;
        loop {
            let told = self.json(seen_from, &["key", "describe", key]).await;
            let primary = told
                .as_ref()
                .ok()
                .map(|key| key["MultiRegionConfiguration"]["PrimaryKey"]["Region"].clone());
            if primary.as_ref().and_then(Value::as_str) == Some(is) {
                return Ok(());
            }
            if RealEnv.boot_now() > end {
                return Err(failed("waiting for the primary", format!("{told:?}")));
            }
            RealEnv.sleep(LOOK).await;
        }
    }

    async fn make_key(&mut self) -> Result<String, Failure> {
        let made = self.json(VIRGINIA, &["key", "create", "--multi-region"]).await?;
        let key = made["KeyId"].as_str().unwrap_or_default().to_owned();
        let mut slowest = Duration::ZERO;
        for region in [IRELAND, SYDNEY] {
            self.keyward(VIRGINIA, &["key", "replicate", &key, region]).await?;
            let began = RealEnv.boot_now();
            let client =
                self.world()?.home(&self.folder, region)?.client("dev", &[], STEP_PATIENCE)?;
            let request = v1::EncryptRequest {
                key_id: key.clone(),
                plaintext: b"a secret".to_vec(),
                ..v1::EncryptRequest::default()
            };
            while client
                .key(Repeat::Safe, request.clone(), |mut c, r| async move { c.encrypt(r).await })
                .await
                .is_err()
            {
                if RealEnv.boot_now() - began > STEP_PATIENCE {
                    return Err(failed("replicate", format!("no replica in {region}")));
                }
                RealEnv.sleep(Duration::from_millis(2)).await;
            }
            slowest = slowest.max(RealEnv.boot_now() - began);
        }
        self.say(&format!(
            "a key in {VIRGINIA}, replicas in {IRELAND} and {SYDNEY}: each encrypts at most {} ms after ReplicateKey",
            slowest.as_millis()
        ));
        Ok(key)
    }

    async fn seal(&mut self, key: &str) -> Result<(PathBuf, PathBuf), Failure> {
        let (input, sealed) = (self.program.clone(), self.folder.join("demo.kwd"));
        let began = RealEnv.boot_now();
        let (from, to) = (input.display().to_string(), sealed.display().to_string());
        self.keyward(VIRGINIA, &["file", "encrypt", "--key-id", key, &from, "-o", &to]).await?;
        let bytes = fs::metadata(&input).map(|m| m.len()).unwrap_or(0);
        self.say(&format!(
            "a real file of {} MiB (this program) encrypted in {VIRGINIA} in {}",
            bytes >> 20,
            since(began)
        ));
        Ok((input, sealed))
    }

    fn load(
        &self,
        key: &str,
        stop: &Arc<AtomicBool>,
        calls: &Arc<AtomicU64>,
        failures: &Arc<AtomicU64>,
    ) -> Result<Vec<tokio::task::JoinHandle<()>>, Failure> {
        use keyward_env::AsyncRuntime;
        let home = self.world()?.home(&self.folder, SYDNEY)?;
        let one = |_| {
            let client = home.client("dev", &[], Duration::from_secs(5))?;
            let (key, stop) = (key.to_owned(), Arc::clone(stop));
            let (calls, failures) = (Arc::clone(calls), Arc::clone(failures));
            Ok(<RealEnv as Env>::Runtime::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let request = v1::EncryptRequest {
                        key_id: key.clone(),
                        plaintext: b"a secret".to_vec(),
                        ..v1::EncryptRequest::default()
                    };
                    let made = client
                        .key(Repeat::Safe, request, |mut c, r| async move { c.encrypt(r).await });
                    calls.fetch_add(1, Ordering::Relaxed);
                    if made.await.is_err() {
                        failures.fetch_add(1, Ordering::Relaxed);
                    }
                    RealEnv.sleep(Duration::from_millis(5)).await;
                }
            }))
        };
        (0..CLIENTS).map(one).collect()
    }

    async fn lose_virginia(
        &mut self,
        key: &str,
        input: &Path,
        sealed: &Path,
    ) -> Result<(), Failure> {
        // Acknowledged while its links are cut: nobody else hears of it.
        for other in [IRELAND, SYDNEY] {
            self.fault(&["cut", VIRGINIA, other]).await?;
        }
        RealEnv.sleep(LOOK * 4).await;
        self.keyward(VIRGINIA, &["key", "enable-rotation", key, "--days", "100"]).await?;
        self.fault(&["down", VIRGINIA]).await?;
        self.say(&format!(
            "{VIRGINIA}'s links are cut; it acknowledges a change (rotate every 100 days); all its nodes are killed"
        ));
        let began = RealEnv.boot_now();
        let opened = self.folder.join("demo.out");
        let (from, to) = (sealed.display().to_string(), opened.display().to_string());
        self.keyward(IRELAND, &["file", "decrypt", &from, "-o", &to, "--force"]).await?;
        let read = |path: &Path| fs::read(path).map_err(|e| failed("comparing", e));
        if read(input)? != read(&opened)? {
            return Err(failed("comparing", "the decrypted file is another one"));
        }
        self.say(&format!(
            "the file opens in {IRELAND}, byte for byte the same, in {}",
            since(began)
        ));
        Ok(())
    }

    async fn promote(&mut self, key: &str) -> Result<(), Failure> {
        // A Region that was heard of a moment ago may live.
        let end = RealEnv.boot_now() + STEP_PATIENCE;
        let mut began = RealEnv.boot_now();
        let mut promoted = self.keyward(IRELAND, &["region", "promote", VIRGINIA]).await;
        while promoted.is_err() && RealEnv.boot_now() < end {
            RealEnv.sleep(LOOK * 10).await;
            began = RealEnv.boot_now();
            promoted = self.keyward(IRELAND, &["region", "promote", VIRGINIA]).await;
        }
        promoted?;
        let took = since(began);
        self.until_primary(SYDNEY, key, IRELAND).await?;
        self.say(&format!(
            "`keyward region promote {VIRGINIA}` in {IRELAND}: done in {took}, and {SYDNEY} follows after {}",
            since(began)
        ));
        self.keyward(IRELAND, &["key", "enable-rotation", key, "--days", "200"]).await?;
        self.say(&format!("{IRELAND} takes a change: rotate every 200 days"));
        Ok(())
    }

    async fn return_virginia(&mut self, key: &str) -> Result<(), Failure> {
        let began = RealEnv.boot_now();
        self.fault(&["heal"]).await?;
        self.until_primary(VIRGINIA, key, IRELAND).await?;
        self.say(&format!(
            "{VIRGINIA} comes back, hears that it was overtaken and gives way, after {}",
            since(began)
        ));
        let report = self.keyward(VIRGINIA, &["region", "report"]).await?;
        if !report.contains("100 days") {
            return Err(failed("region report", "what it had acknowledged is not in it"));
        }
        self.say("its report tells what it had acknowledged and nobody had heard of:");
        for line in report.lines().filter(|line| !line.is_empty()) {
            sayln!("      {line}");
        }
        self.keyward(VIRGINIA, &["region", "reconcile", key, "discard"]).await?;
        let rotation = self.keyward(VIRGINIA, &["key", "rotations", key]).await?;
        if !rotation.contains("200") {
            return Err(failed("key rotations", rotation));
        }
        self.say("decided: discarded. All three Regions rotate every 200 days");
        Ok(())
    }
}
