//! What a drill is played on: Regions, and commands run in them as a user would type them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use keyward_client::{Client, Repeat};
use keyward_env::{Env, RealEnv};
use keyward_proto::v1;
use tokio::process::Command;

use super::bring_up::Dev;
use super::definition::{Action, Drill};
use super::place::{Identity, Place};
use super::text::{fill, words};
use crate::error::Failure;

/// One command takes no longer.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// A call of a load, tries on other nodes included.
pub const CALL_PATIENCE: Duration = Duration::from_secs(2);

/// A principal of the drill.
#[derive(Clone, Debug)]
pub struct Principal {
    pub arn: String,
    pub identity: Identity,
}

/// Regions, with the drill's keys and principals in them.
pub struct Stage {
    /// The folder that steps are run in.
    pub work: PathBuf,
    pub program: PathBuf,
    pub places: Vec<Place>,
    /// Ids of keys.
    pub keys: BTreeMap<String, String>,
    pub principals: BTreeMap<String, Principal>,
    /// Where it was brought up for the drill.
    pub dev: Option<Dev>,
}

/// What a command came to.
pub struct Ran {
    /// With names filled in.
    pub command: String,
    pub succeeded: bool,
    pub said: String,
    /// The same, as it was.
    pub output: Vec<u8>,
}

impl Stage {
    /// Attaches to a deployment that is there. `file`: the drill's.
    pub async fn attach(drill: &Drill, file: &Path, work: &Path) -> Result<Self, Failure> {
        let beside = file.parent().filter(|folder| !folder.as_os_str().is_empty());
        let beside = beside.unwrap_or(Path::new("."));
        let beside = beside.canonicalize().unwrap_or_else(|_| beside.to_path_buf());
        let regions = drill.attach.iter().flat_map(|attach| &attach.region);
        let places =
            regions.map(|region| Place::attached(region, &beside)).collect::<Result<_, _>>()?;
        let path = |text: &Option<super::definition::Text>| {
            let text = text.as_ref().map(|text| text.get_ref().clone()).unwrap_or_default();
            beside.join(text).display().to_string()
        };
        let principals = drill.principal.iter().map(|one| {
            let identity = Identity {
                certificate: path(&one.certificate),
                private_key: path(&one.private_key),
            };
            let arn = one.arn.as_ref().map(|arn| arn.get_ref().clone()).unwrap_or_default();
            (one.name.get_ref().clone(), Principal { arn, identity })
        });
        let id = |key: &super::definition::KeySpec| {
            let id = key.id.as_ref().map(|id| id.get_ref().clone()).unwrap_or_default();
            (key.name.get_ref().clone(), id)
        };
        let mut stage = Self {
            work: work.to_path_buf(),
            program: std::env::current_exe().map_err(|e| Failure::new(e.to_string()))?,
            places,
            keys: drill.key.iter().map(id).collect(),
            principals: principals.collect(),
            dev: None,
        };
        stage.look(drill).await?;
        Ok(stage)
    }

    /// Everything that the drill needs is there and answers. Aliases are read now: changes of keys take none.
    async fn look(&mut self, drill: &Drill) -> Result<(), Failure> {
        let nothing = "nothing was done yet";
        for place in &self.places {
            place.operator(CALL_PATIENCE)?;
        }
        for key in &drill.key {
            let (name, mut found) = (key.name.get_ref(), None::<String>);
            for region in key.regions.get_ref() {
                let region = region.get_ref();
                let client = self.place(region)?.client(None, &[], CALL_PATIENCE)?;
                let request = v1::DescribeKeyRequest { key_id: self.key(name).to_owned() };
                let shown = client
                    .key(Repeat::Safe, request, |mut c, r| async move { c.describe_key(r).await });
                let shown = shown.await.map_err(|error| {
                    Failure::new(format!("key {name} in {region}: {error}")).next(nothing)
                })?;
                let shown = shown.key_metadata.unwrap_or_default();
                if !shown.enabled {
                    return Err(Failure::new(format!("key {name} in {region} is not enabled"))
                        .next(format!("{nothing}; a drill begins with keys that work")));
                }
                if found.as_ref().is_some_and(|found| *found != shown.key_id) {
                    return Err(Failure::new(format!("key {name} in {region} is another one"))
                        .next(format!(
                            "{nothing}; point its aliases at the same multi-Region key"
                        )));
                }
                found = Some(shown.key_id);
            }
            self.keys.insert(name.clone(), found.unwrap_or_default());
        }
        Ok(())
    }

    /// A Region.
    pub fn place(&self, region: &str) -> Result<&Place, Failure> {
        let found = self.places.iter().find(|place| place.region == region);
        found.ok_or_else(|| Failure::new(format!("there is no Region {region}")))
    }

    /// A key's id.
    pub fn key(&self, name: &str) -> &str {
        self.keys.get(name).map_or("", String::as_str)
    }

    /// A principal, if it is one of the drill's own.
    pub fn identity(&self, name: Option<&str>) -> Option<&Identity> {
        name.and_then(|name| self.principals.get(name)).map(|principal| &principal.identity)
    }

    /// A client of a Region's nodes, or of all of them.
    pub fn client(
        &self,
        region: &str,
        who: Option<&str>,
        nodes: &[u16],
    ) -> Result<Client, Failure> {
        self.place(region)?.client(self.identity(who), nodes, CALL_PATIENCE)
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

    /// Does what a step says.
    pub async fn act(&self, region: &str, action: &Action) -> Ran {
        match action {
            Action::Run(command) => self.run(region, command).await,
            Action::Own(name, shell) => {
                let mut command = Command::new("sh");
                command.arg("-c").arg(shell).current_dir(&self.work);
                let ran = self.output(region, command).await;
                told(format!("{name}: {shell}"), ran)
            }
            Action::Metric(name) => {
                let sum = match &self.dev {
                    Some(dev) => dev.metric(region, name).await,
                    None => Err("where metrics are is not known".to_owned()),
                };
                let (succeeded, said) = match sum {
                    Ok(sum) => (sum > 0.0, format!("{sum}")),
                    Err(why) => (false, why),
                };
                Ran { command: format!("metric {name}"), succeeded, said, output: Vec::new() }
            }
        }
    }

    /// A command of `keyward`, with names filled in.
    async fn run(&self, region: &str, command: &str) -> Ran {
        let failed = |why: String| failed(format!("keyward {command}"), why);
        let leader = match command.contains("{leader}") {
            true => match self.leader(region).await {
                Some(leader) => Some(leader),
                None => return failed("nobody leads".to_owned()),
            },
            false => None,
        };
        let filled = fill(command, |name| match name {
            "leader" => leader.clone(),
            name if name.starts_with("config:") => {
                self.dev.as_ref()?.config(name.strip_prefix("config:")?)
            }
            name => {
                let arn = self.principals.get(name).map(|principal| principal.arn.clone());
                arn.or_else(|| self.keys.get(name).cloned())
            }
        });
        let filled = match filled {
            Ok(filled) => filled,
            Err(name) => return failed(format!("{{{name}}} is nothing known")),
        };
        let mut arguments = words(&filled);
        if let (Some(dev), true) = (&self.dev, filled.starts_with("dev fault")) {
            arguments.extend(["--data".to_owned(), dev.folder.display().to_string()]);
        }
        told(format!("keyward {filled}"), self.keyward(region, &arguments).await)
    }

    async fn keyward(&self, region: &str, arguments: &[String]) -> std::io::Result<Output> {
        let mut command = Command::new(&self.program);
        command.args(arguments).current_dir(&self.work);
        self.output(region, command).await
    }

    async fn output(&self, region: &str, mut command: Command) -> std::io::Result<Output> {
        let place = self.place(region).map_err(|e| std::io::Error::other(e.to_string()))?;
        let running =
            command.envs(place.environment(None)).stdin(Stdio::null()).kill_on_drop(true).output();
        let timed_out = || std::io::Error::from(std::io::ErrorKind::TimedOut);
        RealEnv.timeout(PATIENCE, running).await.unwrap_or_else(|| Err(timed_out()))
    }

    /// The certificate and private key of the first Region's operator, PEM.
    pub fn signer(&self) -> Result<(String, String), Failure> {
        match self.places.first() {
            Some(place) => place.signer(),
            None => Err(Failure::new("there is no Region")),
        }
    }
}

fn failed(command: String, why: String) -> Ran {
    Ran { command, succeeded: false, said: why, output: Vec::new() }
}

fn told(command: String, ran: std::io::Result<Output>) -> Ran {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match ran {
        Ok(output) if output.status.success() => {
            Ran { command, succeeded: true, said: text(&output.stdout), output: output.stdout }
        }
        Ok(output) => failed(command, text(&output.stderr)),
        Err(error) => failed(command, error.to_string()),
    }
}
