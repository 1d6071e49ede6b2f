//! A drill's file: what is brought up, who calls, what happens when, and what must hold.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use clap::Parser;
use keyward_load::{Mix, Operation, duration};
use serde::Deserialize;
use toml::Spanned;

use super::play::OPERATIONS;
use crate::cli::{Cli, Command};
use crate::dev::{DevCommand, fault, regions};
use crate::error::Failure;

/// Nodes of one Region at most, and Regions.
const NODES_MAX: u16 = 5;
/// A drill lasts so long at most.
const LASTS_MAX: Duration = Duration::from_secs(3600);
/// Calls a second of one load at most: every single one is on record.
const RATE_MAX: f64 = 2000.0;

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
    pub lasts: Spanned<String>,
    /// What is brought up.
    pub topology: Topology,
    /// Keys that are made before it begins.
    #[serde(default)]
    pub key: Vec<KeySpec>,
    /// Who calls.
    pub load: Vec<LoadSpec>,
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
    pub regions: Spanned<Vec<Spanned<String>>>,
    /// Nodes of each.
    pub nodes: Spanned<u16>,
}

/// A key.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySpec {
    /// What loads and steps call it: `{name}` in a step is its id.
    pub name: Spanned<String>,
    /// Where it is; the first one is its primary's. In one Region alone it is no multi-Region key.
    pub regions: Spanned<Vec<Spanned<String>>>,
}

/// Calls at a steady rate, in an open loop.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadSpec {
    /// What promises call it.
    pub name: Spanned<String>,
    /// The Region that is called.
    pub region: Spanned<String>,
    /// With which key.
    pub key: Spanned<String>,
    /// Operations by weight, as in `keyward bench --mix`.
    #[serde(default = "encrypt_and_decrypt")]
    pub mix: Spanned<String>,
    /// Calls a second.
    pub rate: Spanned<f64>,
}

fn encrypt_and_decrypt() -> Spanned<String> {
    Spanned::new(0..0, "encrypt=1,decrypt=1".to_owned())
}

/// A command of `keyward`, run at its time.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepSpec {
    /// When, from the beginning.
    pub at: Spanned<String>,
    /// Where it is run: as a user and operator of that Region; the first one when absent.
    pub region: Option<Spanned<String>>,
    /// The command, without `keyward`.
    pub run: Spanned<String>,
    /// It is tried again for so long until it succeeds; once when absent.
    pub within: Option<Spanned<String>>,
}

/// What must hold of a load's calls that begin within a time.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromiseSpec {
    /// What is promised, in words.
    pub name: Spanned<String>,
    /// Of which load.
    pub load: Spanned<String>,
    /// From then on; from the beginning when absent.
    pub from: Option<Spanned<String>>,
    /// Until then; to the end when absent.
    pub until: Option<Spanned<String>>,
    /// So many of a million calls may fail or be refused.
    pub errors_per_million: Option<u64>,
    /// The longest time without an answered call (recovery time objective).
    pub outage_max: Option<Spanned<String>>,
    /// 99 of 100 answered calls take no longer.
    pub p99_max: Option<Spanned<String>>,
    /// Every call is refused with this.
    pub refused_with: Option<String>,
}

/// What is wrong with a drill, and where.
#[derive(Debug)]
pub struct Fault {
    at: Range<usize>,
    what: String,
    /// What would do.
    hint: Option<String>,
}

/// All that is wrong with a drill's file.
#[derive(Debug)]
pub struct Faults {
    file: String,
    text: String,
    faults: Vec<Fault>,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, fault) in self.faults.iter().enumerate() {
            let before = &self.text[..fault.at.start.min(self.text.len())];
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
            let shown = self.text.lines().nth(line - 1).unwrap_or("");
            if number > 0 {
                writeln!(f)?;
            }
            write!(f, "{}:{line}:{column}: {}\n    {shown}", self.file, fault.what)?;
            if let Some(hint) = &fault.hint {
                write!(f, "\n    {hint}")?;
            }
        }
        Ok(())
    }
}

/// Finds what is wrong.
struct Check<'a> {
    drill: &'a Drill,
    faults: Vec<Fault>,
}

/// A step, understood.
#[derive(Clone, Debug)]
pub struct Step {
    pub at: Duration,
    pub region: String,
    pub run: String,
    pub within: Duration,
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

    fn parse(file: &str, text: &str) -> Result<Self, Faults> {
        let all = |faults| Faults { file: file.to_owned(), text: text.to_owned(), faults };
        let drill: Self = toml::from_str(text).map_err(|error| {
            let at = error.span().unwrap_or(0..0);
            all(vec![Fault { at, what: error.message().to_owned(), hint: None }])
        })?;
        let mut check = Check { drill: &drill, faults: Vec::new() };
        check.all();
        let faults = check.faults;
        if faults.is_empty() { Ok(drill) } else { Err(all(faults)) }
    }

    /// How long calls go on.
    pub fn lasts(&self) -> Duration {
        time(&self.lasts)
    }

    /// Names of Regions.
    pub fn regions(&self) -> Vec<String> {
        self.topology.regions.get_ref().iter().map(|region| region.get_ref().clone()).collect()
    }

    /// Steps, in the order of their times.
    pub fn steps(&self) -> Vec<Step> {
        let first = self.regions().first().cloned().unwrap_or_default();
        let mut steps: Vec<Step> = self
            .step
            .iter()
            .map(|step| Step {
                at: time(&step.at),
                region: step.region.as_ref().map_or_else(|| first.clone(), |r| r.get_ref().clone()),
                run: step.run.get_ref().clone(),
                within: step.within.as_ref().map(time).unwrap_or_default(),
            })
            .collect();
        steps.sort_by_key(|step| step.at);
        steps
    }
}

/// A time of a file that was checked.
pub fn time(text: &Spanned<String>) -> Duration {
    duration(text.get_ref()).unwrap_or_default()
}

/// A command's words; quotes hold some together.
pub fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in text.chars() {
        match (c, quote) {
            (c, Some(q)) if c == q => quote = None,
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

impl Check<'_> {
    fn fault<T>(&mut self, at: &Spanned<T>, what: impl Into<String>, hint: Option<String>) {
        self.faults.push(Fault { at: at.span(), what: what.into(), hint });
    }

    /// One of these names.
    fn known(&mut self, kind: &str, name: &Spanned<String>, all: &[String]) {
        if all.iter().all(|known| known != name.get_ref()) {
            let hint = match nearest(name.get_ref(), all) {
                Some(near) => format!("did you mean {near}?"),
                None if all.is_empty() => format!("no {kind} is named in this file"),
                None => format!("there are: {}", all.join(", ")),
            };
            self.fault(name, format!("there is no {kind} '{}'", name.get_ref()), Some(hint));
        }
    }

    fn time(&mut self, text: &Spanned<String>, at_most: Duration, of: &str) -> Duration {
        match duration(text.get_ref()) {
            Err(error) => {
                self.fault(
                    text,
                    error.to_string(),
                    Some("for example 500ms, 10s or 2m".to_owned()),
                );
                Duration::ZERO
            }
            Ok(time) if time > at_most => {
                let what = format!("{} is after {of}, {} s", text.get_ref(), at_most.as_secs_f64());
                self.fault(text, what, None);
                time
            }
            Ok(time) => time,
        }
    }

    fn unique<'a>(&mut self, kind: &str, names: impl Iterator<Item = &'a Spanned<String>>) {
        let mut seen = BTreeSet::new();
        for name in names {
            if !seen.insert(name.get_ref().clone()) {
                self.fault(name, format!("a second {kind} '{}'", name.get_ref()), None);
            }
        }
    }

    fn all(&mut self) {
        let drill = self.drill;
        let lasts = self.time(&drill.lasts, LASTS_MAX, "the longest that a drill may last");
        if lasts < Duration::from_secs(1) {
            self.fault(&drill.lasts, "a drill lasts at least 1 s", None);
        }
        let regions = drill.regions();
        for region in drill.topology.regions.get_ref() {
            if region.get_ref().parse::<keyward_model::Region>().is_err() {
                let what = format!("'{}' is no Region's name", region.get_ref());
                self.fault(region, what, Some("for example us-east-1".to_owned()));
            }
        }
        self.unique("Region", drill.topology.regions.get_ref().iter());
        if !(1..=regions::REGIONS_MAX).contains(&regions.len()) {
            let what = format!("{} Regions: 1 to {}", regions.len(), regions::REGIONS_MAX);
            self.fault(&drill.topology.regions, what, None);
        }
        let nodes = *drill.topology.nodes.get_ref();
        if !(1..=NODES_MAX).contains(&nodes) {
            self.fault(&drill.topology.nodes, format!("{nodes} nodes: 1 to {NODES_MAX}"), None);
        }
        let keys: Vec<String> = drill.key.iter().map(|key| key.name.get_ref().clone()).collect();
        self.unique("key", drill.key.iter().map(|key| &key.name));
        for key in &drill.key {
            for region in key.regions.get_ref() {
                self.known("Region", region, &regions);
            }
            if key.regions.get_ref().is_empty() {
                self.fault(&key.regions, "a key is in one Region at least", None);
            }
        }
        if drill.load.is_empty() {
            self.faults.push(Fault {
                at: 0..0,
                what: "nobody calls: give a [[load]]".to_owned(),
                hint: None,
            });
        }
        self.unique("load", drill.load.iter().map(|load| &load.name));
        for load in &drill.load {
            self.load(load, &regions, &keys);
        }
        for step in &drill.step {
            self.step(step, &regions, &keys, lasts);
        }
        let loads: Vec<String> =
            drill.load.iter().map(|load| load.name.get_ref().clone()).collect();
        self.unique("promise", drill.promise.iter().map(|promise| &promise.name));
        for promise in &drill.promise {
            self.promise(promise, &loads, lasts);
        }
    }

    fn load(&mut self, load: &LoadSpec, regions: &[String], keys: &[String]) {
        self.known("Region", &load.region, regions);
        self.known("key", &load.key, keys);
        let has = self.drill.key.iter().find(|key| key.name.get_ref() == load.key.get_ref());
        if let Some(key) = has
            && key.regions.get_ref().iter().all(|at| at.get_ref() != load.region.get_ref())
        {
            let what = format!("{} is not in {}", load.key.get_ref(), load.region.get_ref());
            self.fault(&load.key, what, Some("add that Region to the key's regions".to_owned()));
        }
        match Mix::parse(load.mix.get_ref()) {
            Err(error) => self.fault(&load.mix, error.to_string(), None),
            Ok(mix) => {
                if let Some(other) = mix.operations().find(|one| !OPERATIONS.contains(one)) {
                    let names = OPERATIONS.map(Operation::name).join(", ");
                    let what = format!("a drill's load has no {}", other.name());
                    self.fault(&load.mix, what, Some(format!("there are: {names}")));
                }
            }
        }
        let rate = *load.rate.get_ref();
        if !(rate > 0.0 && rate <= RATE_MAX) {
            self.fault(
                &load.rate,
                format!("{rate} calls a second: more than 0, at most {RATE_MAX}"),
                None,
            );
        }
    }

    fn step(&mut self, step: &StepSpec, regions: &[String], keys: &[String], lasts: Duration) {
        self.time(&step.at, lasts, "the drill's end");
        if let Some(region) = &step.region {
            self.known("Region", region, regions);
        }
        if let Some(within) = &step.within {
            self.time(within, LASTS_MAX, "the longest that a drill may last");
        }
        // Anything that may stand in a brace, so that what is left is looked at as a command.
        let filled = fill(step.run.get_ref(), |name| match name {
            "leader" => Some("1".to_owned()),
            name if keys.iter().any(|key| key == name) => {
                Some("mrk-00000000000000000000000000000000".to_owned())
            }
            _ => None,
        });
        let text = match filled {
            Ok(text) => text,
            Err(name) => {
                let hint = nearest(&name, keys).map_or_else(
                    || "{leader} is the Region's leading node; {KEY} a key's id".to_owned(),
                    |near| format!("did you mean {{{near}}}?"),
                );
                return self.fault(&step.run, format!("{{{name}}} is nothing known"), Some(hint));
            }
        };
        let words = words(&text);
        let line = std::iter::once("keyward".to_owned()).chain(words);
        match Cli::try_parse_from(line) {
            Err(error) => {
                let said = error.render().to_string();
                let what = said
                    .lines()
                    .next()
                    .unwrap_or("no command of keyward")
                    .trim_start_matches("error: ")
                    .to_owned();
                let hint =
                    said.lines().find(|line| line.contains("tip:")).map(|l| l.trim().to_owned());
                self.fault(&step.run, what, hint);
            }
            Ok(cli) => self.command(step, &cli.command, regions),
        }
    }

    fn command(&mut self, step: &StepSpec, command: &Command, regions: &[String]) {
        match command {
            Command::Dev(DevCommand::Fault { command, .. }) => {
                let nodes = *self.drill.topology.nodes.get_ref();
                if let Err(why) = fault::check(regions, nodes, command) {
                    self.fault(&step.run, why.to_string(), None);
                }
            }
            Command::Dev(DevCommand::Clock(_))
            | Command::Key(_)
            | Command::Alias(_)
            | Command::File(_)
            | Command::Principal(_)
            | Command::Quota(_)
            | Command::Cluster(_)
            | Command::Region(_) => {}
            _ => {
                let hint =
                    "key, alias, file, principal, quota, cluster, region, dev fault, dev clock";
                self.fault(&step.run, "this is no step of a drill", Some(hint.to_owned()));
            }
        }
    }

    fn promise(&mut self, promise: &PromiseSpec, loads: &[String], lasts: Duration) {
        self.known("load", &promise.load, loads);
        let from = promise.from.as_ref().map(|at| self.time(at, lasts, "the drill's end"));
        let until = promise.until.as_ref().map(|at| self.time(at, lasts, "the drill's end"));
        if let (Some(from), Some(until), Some(at)) = (from, until, &promise.until)
            && until <= from
        {
            self.fault(at, "it ends before it begins", None);
        }
        for limit in [&promise.outage_max, &promise.p99_max].into_iter().flatten() {
            self.time(limit, LASTS_MAX, "the longest that a drill may last");
        }
        let limits = [
            promise.errors_per_million.is_some(),
            promise.outage_max.is_some(),
            promise.p99_max.is_some(),
            promise.refused_with.is_some(),
        ];
        if limits.iter().filter(|is| **is).count() != 1 {
            let hint = "errors_per_million, outage_max, p99_max or refused_with";
            self.fault(&promise.name, "a promise has one limit", Some(hint.to_owned()));
        }
    }
}

/// Puts what they stand for in the place of names in braces.
///
/// # Errors
/// A name that stands for nothing.
pub fn fill(text: &str, mut by: impl FnMut(&str) -> Option<String>) -> Result<String, String> {
    let (mut filled, mut rest) = (String::new(), text);
    while let Some((before, behind)) = rest.split_once('{') {
        let (name, after) = behind.split_once('}').unwrap_or((behind, ""));
        filled.push_str(before);
        filled.push_str(&by(name).ok_or_else(|| name.to_owned())?);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

/// The name that is likely meant.
fn nearest(name: &str, all: &[String]) -> Option<String> {
    let near = all.iter().map(|known| (distance(name, known), known)).min()?;
    (near.0 <= 2.max(name.len() / 3)).then(|| near.1.clone())
}

/// Changes of single characters from one text to the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
name = "leader-kill"
lasts = "10s"
topology = { regions = ["us-east-1"], nodes = 3 }
[[key]]
name = "orders"
regions = ["us-east-1"]
[[load]]
name = "app"
region = "us-east-1"
key = "orders"
rate = 50
[[step]]
at = "3s"
run = "dev fault kill us-east-1/{leader}"
[[step]]
at = "1s"
run = "key set-description {orders} 'two words'"
[[promise]]
name = "nobody notices"
load = "app"
outage_max = "1s"
"#;

    fn said(text: &str) -> String {
        Drill::parse("x.toml", text).map(|_| ()).expect_err("it is wrong").to_string()
    }

    #[test]
    fn a_good_one_is_read_with_its_steps_in_order() {
        let drill = Drill::parse("x.toml", GOOD).unwrap_or_else(|faults| panic!("{faults}"));
        let steps = drill.steps();
        assert_eq!(steps.len(), 2);
        assert!(steps[0].run.starts_with("key set-description"));
        assert_eq!(words(&steps[0].run), ["key", "set-description", "{orders}", "two words"]);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place_and_what_would_do() {
        let mut wrong = String::new();
        for (from, to, expected) in [
            ("rate = 50", "rates = 50", "12:1: unknown field `rates`"),
            ("rate = 50", "rate = -1", "-1 calls a second"),
            ("\"3s\"", "\"30s\"", "14:6: 30s is after the drill's end"),
            ("\"3s\"", "\"soon\"", "14:6:"),
            ("us-east-1/{leader}", "us-east-1/4", "15:7: us-east-1 has no node 4"),
            ("us-east-1/{leader}", "us-east-2/1", "there is no Region us-east-2"),
            ("fault kill", "fault kil", "15:7: unrecognized subcommand 'kil'"),
            ("fault kill us-east-1/{leader}", "up", "15:7: this is no step of a drill"),
            ("{orders}", "{order}", "did you mean {orders}?"),
            ("load = \"app\"", "load = \"ap\"", "did you mean app?"),
            ("key = \"orders\"", "key = \"order\"", "11:7: there is no key 'order'"),
            ("nodes = 3", "nodes = 9", "9 nodes: 1 to 5"),
            ("outage_max = \"1s\"", "until = \"1s\"", "a promise has one limit"),
            ("lasts = \"10s\"", "lasts = \"2h\"", "3:9:"),
            (
                "regions = [\"us-east-1\"]\n[[load]]",
                "regions = []\n[[load]]",
                "one Region at least",
            ),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let told = said(&GOOD.replacen(from, to, 1));
            if !told.contains(expected) {
                wrong += &format!("\n{from} -> {to}: {told}");
            }
        }
        assert!(wrong.is_empty(), "{wrong}");
    }
}
