//! A drill's file: what is brought up or attached to, who calls, what happens when, and what must hold.

use std::path::Path;
use std::time::Duration;

use keyward_load::duration;
use serde::Deserialize;
use toml::Spanned;

use super::check::check;
use super::wrong::{Fault, Faults};
use crate::error::Failure;

/// A text of the file, and where it is.
pub type Text = Spanned<String>;

/// A drill, as its file has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drill {
    /// What it is called.
    pub name: String,
    /// What it shows, in a sentence.
    #[serde(default)]
    pub about: String,
    /// How long calls go on.
    pub lasts: Text,
    /// What is brought up.
    pub topology: Option<Topology>,
    /// Or what is there already.
    pub attach: Option<Attach>,
    /// Keys that are made before it begins, or are there.
    #[serde(default)]
    pub key: Vec<KeySpec>,
    /// Principals that are made before it begins, or are there.
    #[serde(default)]
    pub principal: Vec<PrincipalSpec>,
    /// Files for steps to work on.
    #[serde(default)]
    pub file: Vec<FileSpec>,
    /// Who calls.
    pub load: Vec<LoadSpec>,
    /// Changes that are made again and again, to see which of them a disaster takes.
    #[serde(default)]
    pub changes: Vec<ChangesSpec>,
    /// What happens.
    #[serde(default)]
    pub step: Vec<StepSpec>,
    /// What must hold.
    #[serde(default)]
    pub promise: Vec<PromiseSpec>,
}

/// What is brought up.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// Names of Regions.
    pub regions: Spanned<Vec<Text>>,
    /// Nodes of each.
    pub nodes: Spanned<u16>,
    /// How long nodes use keys after their roots have gone; an hour when absent.
    pub root_grace: Option<Text>,
}

/// A deployment that is there already. It is its owner's: nothing is done to it that `allow` does not list.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// Where its Regions are.
    pub region: Vec<AttachedRegion>,
    /// What may be done: commands of `keyward` by their first words, and the owner's own by their names.
    #[serde(default)]
    pub allow: Vec<Text>,
    /// The owner's own commands: faults, and their ends.
    #[serde(default)]
    pub command: Vec<OwnCommand>,
}

/// Where a Region is and who calls it. Files are beside the drill's.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachedRegion {
    /// Its name.
    pub name: Text,
    /// All of it from the environment: `PREFIX` + `KEYWARD_ENDPOINTS` and so on.
    pub env_prefix: Option<Text>,
    /// host:port of its nodes.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// Its certificate authority.
    pub ca: Option<Text>,
    /// Who calls.
    pub certificate: Option<Text>,
    /// With this key.
    pub private_key: Option<Text>,
    /// Who operates, and signs the report.
    pub operator_certificate: Option<Text>,
    /// With this key.
    pub operator_key: Option<Text>,
}

/// A command of the owner's own.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnCommand {
    /// What steps and `allow` call it.
    pub name: Text,
    /// What the shell runs.
    pub run: Text,
}

/// A key.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySpec {
    /// What loads and steps call it: `{name}` in a step is its id.
    pub name: Text,
    /// Where it is; the first one is its primary's. In one Region alone it is no multi-Region key.
    pub regions: Spanned<Vec<Text>>,
    /// Which one it is, of an attached deployment: its id, ARN or alias.
    pub id: Option<Text>,
}

/// A principal.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrincipalSpec {
    /// What loads and steps call it: `{name}` in a step is its ARN.
    pub name: Text,
    /// Who it is, in an attached deployment.
    pub arn: Option<Text>,
    /// Its certificate there.
    pub certificate: Option<Text>,
    /// Its private key there.
    pub private_key: Option<Text>,
}

/// A file, for steps to encrypt and to open again.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// Its name, in the folder that steps are run in.
    pub name: Text,
    /// How long it is.
    pub bytes: Spanned<u64>,
}

/// Calls at a steady rate, in an open loop; or a program that calls by itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadSpec {
    /// What promises call it.
    pub name: Text,
    /// The Region that is called.
    pub region: Text,
    /// With which key.
    pub key: Text,
    /// Operations by weight, as in `keyward bench --mix`.
    #[serde(default = "encrypt_and_decrypt")]
    pub mix: Text,
    /// Calls a second.
    pub rate: Option<Spanned<f64>>,
    /// Only these nodes are called; all when absent.
    pub nodes: Option<Spanned<Vec<u16>>>,
    /// Who calls; whoever steps are run as when absent.
    pub principal: Option<Text>,
    /// A call that is refused for a quota is made again at once, so often.
    pub retries: Option<Spanned<u32>>,
    /// A program that prints a line of JSON for each of its operations.
    pub command: Option<Spanned<Vec<String>>>,
}

fn encrypt_and_decrypt() -> Text {
    Spanned::new(0..0, "encrypt=1,decrypt=1".to_owned())
}

/// A key's rotation setting, changed at a steady rate.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangesSpec {
    /// What it is called.
    pub name: Text,
    /// The Region that is asked.
    pub region: Text,
    /// To change which key: one of its own.
    pub key: Text,
    /// Changes a second.
    pub rate: Spanned<f64>,
    /// None begins from then on; to the end when absent. Later ones would hide what was lost.
    pub until: Option<Text>,
}

/// Something that is done at its time: one of `run`, `do` and `metric`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepSpec {
    /// What promises call it.
    pub name: Option<Text>,
    /// When, from the beginning.
    pub at: Text,
    /// Where it is run: as a user and operator of that Region; the first one when absent.
    pub region: Option<Text>,
    /// A command of `keyward`, without that word.
    pub run: Option<Text>,
    /// A command of the deployment's owner, by its name.
    pub r#do: Option<Text>,
    /// A metric that has to be above zero, summed over the Region's nodes.
    pub metric: Option<Text>,
    /// It is tried again for so long until it succeeds; once when absent.
    pub within: Option<Text>,
    /// It has to be refused with this error.
    pub refused_with: Option<Text>,
    /// It has to fail, and say this.
    pub fails_with: Option<Text>,
    /// What it says has to contain this.
    pub shows: Option<Text>,
    /// What it says is written into this file.
    pub save: Option<Text>,
    /// Two files have to be the same then.
    pub same: Option<Spanned<Vec<String>>>,
}

/// What must hold, of calls that begin within a time.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromiseSpec {
    /// What is promised, in words.
    pub name: Text,
    /// Of which load.
    pub load: Option<Text>,
    /// Or of which Region: all its loads.
    pub region: Option<Text>,
    /// From then on; from the beginning when absent.
    pub from: Option<Text>,
    /// Until then; to the end when absent.
    pub until: Option<Text>,
    /// The step from whose end it is counted.
    pub after: Option<Text>,
    /// So many of a million calls may fail or be refused.
    pub errors_per_million: Option<u64>,
    /// Of all failures and refusals only this one is counted.
    pub error: Option<String>,
    /// No call fails or is refused but with these.
    pub errors_only: Option<Vec<String>>,
    /// The longest time without an answered call.
    pub outage_max: Option<Text>,
    /// 99 of 100 answered calls take no longer.
    pub p99_max: Option<Text>,
    /// Every call is refused with this.
    pub refused_with: Option<String>,
    /// The last answered call begins no later after the step than that.
    pub last_success_max: Option<Text>,
    /// So many calls are answered a second.
    pub per_second_min: Option<f64>,
    /// No more are admitted in any window.
    pub quota: Option<QuotaSpec>,
    /// Recovery time objective of a Region: the longest time without an answered call of any load.
    pub rto_max: Option<Text>,
    /// Recovery point objective of a Region: acknowledged changes that may not be there in the end.
    pub rpo_max: Option<u64>,
    /// A Region is never further behind another one.
    pub lag_max: Option<Text>,
}

/// A limit a second.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuotaSpec {
    /// Calls a second.
    pub rate: u64,
    /// Calls at once after a quiet while.
    pub burst: u64,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A command of `keyward`.
    Run(String),
    /// A command of the deployment's owner: its name, and what the shell runs.
    Own(String, String),
    /// A metric that has to be above zero.
    Metric(String),
}

/// A step, understood.
#[derive(Clone, Debug)]
pub struct Step {
    pub name: Option<String>,
    pub at: Duration,
    pub region: String,
    pub action: Action,
    pub within: Duration,
    pub refused_with: Option<String>,
    pub fails_with: Option<String>,
    pub shows: Option<String>,
    pub save: Option<String>,
    pub same: Vec<String>,
}

impl Drill {
    /// Reads a file, and finds all that is wrong with it.
    ///
    /// # Errors
    /// What it is, with line and column and what would do.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|e| Failure::new(format!("cannot read {file}: {e}")))?;
        Self::parse(&file, &text).map_err(|faults| {
            Failure::new(faults.to_string()).next("`keyward drill check FILE` looks at it again")
        })
    }

    /// The same, of a text.
    pub fn parse(file: &str, text: &str) -> Result<Self, Faults> {
        let all = |faults| Faults { file: file.to_owned(), text: text.to_owned(), faults };
        let drill: Self = toml::from_str(text).map_err(|error| {
            let at = error.span().unwrap_or(0..0);
            all(vec![Fault { at, what: error.message().to_owned(), hint: None }])
        })?;
        let faults = check(&drill);
        if faults.is_empty() { Ok(drill) } else { Err(all(faults)) }
    }

    /// How long calls go on.
    pub fn lasts(&self) -> Duration {
        time(&self.lasts)
    }

    /// Names of Regions, where the file has them.
    pub fn region_texts(&self) -> Vec<&Text> {
        let brought_up = self.topology.iter().flat_map(|topology| topology.regions.get_ref());
        let attached = self.attach.iter().flat_map(|attach| &attach.region);
        brought_up.chain(attached.map(|region| &region.name)).collect()
    }

    /// Names of Regions.
    pub fn regions(&self) -> Vec<String> {
        self.region_texts().into_iter().map(|region| region.get_ref().clone()).collect()
    }

    /// Steps, in the order of their times.
    pub fn steps(&self) -> Vec<Step> {
        let first = self.regions().first().cloned().unwrap_or_default();
        let text = |text: &Option<Text>| text.as_ref().map(|text| text.get_ref().clone());
        let mut steps: Vec<Step> = self
            .step
            .iter()
            .map(|step| Step {
                name: text(&step.name),
                at: time(&step.at),
                region: text(&step.region).unwrap_or_else(|| first.clone()),
                action: self.action(step),
                within: step.within.as_ref().map(time).unwrap_or_default(),
                refused_with: text(&step.refused_with),
                fails_with: text(&step.fails_with),
                save: text(&step.save),
                shows: text(&step.shows),
                same: step.same.as_ref().map(|same| same.get_ref().clone()).unwrap_or_default(),
            })
            .collect();
        steps.sort_by_key(|step| step.at);
        steps
    }

    fn action(&self, step: &StepSpec) -> Action {
        if let Some(run) = &step.run {
            return Action::Run(run.get_ref().clone());
        }
        if let Some(metric) = &step.metric {
            return Action::Metric(metric.get_ref().clone());
        }
        let name = step.r#do.as_ref().map(|name| name.get_ref().clone()).unwrap_or_default();
        let own = self.attach.iter().flat_map(|attach| &attach.command);
        let run = own.into_iter().find(|own| *own.name.get_ref() == name);
        Action::Own(name, run.map(|own| own.run.get_ref().clone()).unwrap_or_default())
    }
}

/// A time of a file that was checked.
pub fn time(text: &Text) -> Duration {
    duration(text.get_ref()).unwrap_or_default()
}
