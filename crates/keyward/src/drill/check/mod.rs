//! Finds all that is wrong with a drill before anything happens.

mod attach;
mod promises;
mod steps;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::Duration;

use keyward_load::{Mix, Operation, duration};
use toml::Spanned;

use super::caller::OPERATIONS;
use super::changes::CHANGES_MAX;
use super::definition::{ChangesSpec, Drill, LoadSpec, Text, Topology, time};
use super::wrong::{Fault, nearest};
use crate::dev::regions;

/// Nodes of one Region at most, and Regions.
const NODES_MAX: u16 = 5;
/// A drill lasts so long at most.
const LASTS_MAX: Duration = Duration::from_secs(3600);
/// Calls a second of one load at most: every single one is on record.
const RATE_MAX: f64 = 2000.0;
/// Tries of one call at most.
const RETRIES_MAX: u32 = 100;
/// A drill's file, at most.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// All that is wrong.
pub fn check(drill: &Drill) -> Vec<Fault> {
    let names = |texts: Vec<&Text>| -> Vec<String> {
        texts.into_iter().map(|text| text.get_ref().clone()).collect()
    };
    let mut check = Check {
        drill,
        regions: drill.regions(),
        keys: names(drill.key.iter().map(|key| &key.name).collect()),
        principals: names(drill.principal.iter().map(|one| &one.name).collect()),
        lasts: Duration::ZERO,
        faults: Vec::new(),
    };
    check.all();
    check.faults
}

/// Finds what is wrong.
struct Check<'a> {
    drill: &'a Drill,
    regions: Vec<String>,
    keys: Vec<String>,
    principals: Vec<String>,
    lasts: Duration,
    faults: Vec<Fault>,
}

impl Check<'_> {
    fn fault<T>(&mut self, at: &Spanned<T>, what: impl Into<String>, hint: Option<String>) {
        self.faults.push(Fault { at: at.span(), what: what.into(), hint });
    }

    /// What is wrong with the file as a whole.
    fn whole(&mut self, what: &str) {
        self.faults.push(Fault { at: 0..0, what: what.to_owned(), hint: None });
    }

    /// One of these names.
    fn known(&mut self, kind: &str, name: &Text, all: &[String]) {
        if all.iter().all(|known| known != name.get_ref()) {
            let hint = match nearest(name.get_ref(), all) {
                Some(near) => format!("did you mean {near}?"),
                None if all.is_empty() => format!("no {kind} is named in this file"),
                None => format!("there are: {}", all.join(", ")),
            };
            self.fault(name, format!("there is no {kind} '{}'", name.get_ref()), Some(hint));
        }
    }

    fn region(&mut self, name: &Text) {
        let regions = self.regions.clone();
        self.known("Region", name, &regions);
    }

    /// A time of the drill.
    fn at(&mut self, text: &Text) -> Duration {
        self.time(text, self.lasts, "the drill's end")
    }

    /// A length of time.
    fn long(&mut self, text: &Text) {
        self.time(text, LASTS_MAX, "the longest that a drill may last");
    }

    fn time(&mut self, text: &Text, at_most: Duration, of: &str) -> Duration {
        match duration(text.get_ref()) {
            Err(error) => {
                let hint = "for example 500ms, 10s or 2m".to_owned();
                self.fault(text, error.to_string(), Some(hint));
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

    fn unique<'a>(&mut self, kind: &str, names: impl IntoIterator<Item = &'a Text>) {
        let mut seen = BTreeSet::new();
        for name in names {
            if !seen.insert(name.get_ref().clone()) {
                self.fault(name, format!("a second {kind} '{}'", name.get_ref()), None);
            }
        }
    }

    fn all(&mut self) {
        let drill = self.drill;
        self.lasts = self.time(&drill.lasts, LASTS_MAX, "the longest that a drill may last");
        if self.lasts < Duration::from_secs(1) {
            self.fault(&drill.lasts, "a drill lasts at least 1 s", None);
        }
        for region in drill.region_texts() {
            if region.get_ref().parse::<keyward_model::Region>().is_err() {
                let what = format!("'{}' is no Region's name", region.get_ref());
                self.fault(region, what, Some("for example us-east-1".to_owned()));
            }
        }
        self.unique("Region", drill.region_texts());
        match (&drill.topology, &drill.attach) {
            (Some(topology), None) => self.topology(topology),
            (None, Some(attach)) => self.attach(attach),
            (Some(topology), Some(_)) => {
                let hint = "[attach] is for a deployment that is there already".to_owned();
                self.fault(&topology.nodes, "a drill brings up, or attaches", Some(hint));
            }
            (None, None) => {
                self.whole("there is nothing to play on: give topology, or [attach]");
            }
        }
        self.things();
        if drill.load.is_empty() {
            self.whole("nobody calls: give a [[load]]");
        }
        let loads = drill.load.iter().map(|load| &load.name);
        self.unique("load", loads.chain(drill.changes.iter().map(|changes| &changes.name)));
        for load in &drill.load {
            self.load(load);
        }
        for changes in &drill.changes {
            self.changes(changes);
        }
        self.unique("step", drill.step.iter().filter_map(|step| step.name.as_ref()));
        for step in &drill.step {
            self.step(step);
        }
        self.unique("promise", drill.promise.iter().map(|promise| &promise.name));
        for promise in &drill.promise {
            self.promise(promise);
        }
    }

    fn topology(&mut self, topology: &Topology) {
        let regions = topology.regions.get_ref().len();
        if !(1..=regions::REGIONS_MAX).contains(&regions) {
            let what = format!("{regions} Regions: 1 to {}", regions::REGIONS_MAX);
            self.fault(&topology.regions, what, None);
        }
        let nodes = *topology.nodes.get_ref();
        if !(1..=NODES_MAX).contains(&nodes) {
            self.fault(&topology.nodes, format!("{nodes} nodes: 1 to {NODES_MAX}"), None);
        }
        if let Some(grace) = &topology.root_grace {
            self.long(grace);
            if time(grace) < Duration::from_secs(1) {
                self.fault(grace, "keys are used for at least 1 s after their roots", None);
            }
        }
    }

    /// Keys, principals and files.
    fn things(&mut self) {
        let drill = self.drill;
        let keys = drill.key.iter().map(|key| &key.name);
        self.unique("name", keys.chain(drill.principal.iter().map(|one| &one.name)));
        for key in &drill.key {
            for region in key.regions.get_ref() {
                self.region(region);
            }
            if key.regions.get_ref().is_empty() {
                self.fault(&key.regions, "a key is in one Region at least", None);
            }
            if let (Some(id), None) = (&key.id, &drill.attach) {
                let hint = "leave id out: the key is made".to_owned();
                self.fault(id, "what is brought up has no keys yet", Some(hint));
            }
        }
        for file in &drill.file {
            if file.name.get_ref().contains('/') || file.name.get_ref().starts_with('.') {
                self.fault(&file.name, "a file is in the folder of steps: a plain name", None);
            }
            if *file.bytes.get_ref() > FILE_BYTES_MAX {
                self.fault(&file.bytes, format!("at most {FILE_BYTES_MAX} bytes"), None);
            }
        }
    }

    /// A key that is in that Region.
    fn key_in(&mut self, key: &Text, region: &Text) {
        let keys = self.keys.clone();
        self.known("key", key, &keys);
        let has = self.drill.key.iter().find(|known| known.name.get_ref() == key.get_ref());
        if let Some(has) = has
            && has.regions.get_ref().iter().all(|at| at.get_ref() != region.get_ref())
        {
            let what = format!("{} is not in {}", key.get_ref(), region.get_ref());
            self.fault(key, what, Some("add that Region to the key's regions".to_owned()));
        }
    }

    fn load(&mut self, load: &LoadSpec) {
        self.region(&load.region);
        self.key_in(&load.key, &load.region);
        if let Some(principal) = &load.principal {
            let principals = self.principals.clone();
            self.known("principal", principal, &principals);
        }
        if let Some(nodes) = &load.nodes {
            self.nodes(nodes, &load.region);
        }
        if let Some(retries) = &load.retries
            && *retries.get_ref() > RETRIES_MAX
        {
            self.fault(retries, format!("at most {RETRIES_MAX} retries"), None);
        }
        self.mix(&load.mix);
        match (&load.rate, &load.command) {
            (Some(rate), None) => self.rate(rate, RATE_MAX),
            (None, Some(command)) if command.get_ref().is_empty() => {
                self.fault(command, "there is no program to run", None);
            }
            (None, Some(_)) => {}
            (Some(rate), Some(_)) => {
                self.fault(rate, "a program has its own rate", Some("leave one out".to_owned()));
            }
            (None, None) => {
                let hint = "calls a second, as in rate = 50".to_owned();
                self.fault(&load.name, "a load has a rate, or a command", Some(hint));
            }
        }
    }

    fn mix(&mut self, text: &Text) {
        match Mix::parse(text.get_ref()) {
            Err(error) => self.fault(text, error.to_string(), None),
            Ok(mix) => {
                if let Some(other) = mix.operations().find(|one| !OPERATIONS.contains(one)) {
                    let names = OPERATIONS.map(Operation::name).join(", ");
                    let what = format!("a drill's load has no {}", other.name());
                    self.fault(text, what, Some(format!("there are: {names}")));
                }
            }
        }
    }

    fn nodes(&mut self, nodes: &Spanned<Vec<u16>>, region: &Text) {
        let of_region = |attach: &super::definition::Attach| {
            let region = attach.region.iter().find(|one| one.name.get_ref() == region.get_ref());
            // Those of an environment are known when it is played.
            region.filter(|one| one.env_prefix.is_none()).map(|one| one.endpoints.len())
        };
        let there = match (&self.drill.topology, &self.drill.attach) {
            (Some(topology), _) => usize::from(*topology.nodes.get_ref()),
            (_, Some(attach)) => of_region(attach).unwrap_or(usize::MAX),
            _ => usize::MAX,
        };
        for node in nodes.get_ref() {
            if !(1..=there).contains(&usize::from(*node)) {
                let hint = format!("it has nodes 1 to {there}");
                let what = format!("{} has no node {node}", region.get_ref());
                self.fault(nodes, what, Some(hint));
            }
        }
    }

    fn rate(&mut self, rate: &Spanned<f64>, most: f64) {
        let per_second = *rate.get_ref();
        if !(per_second > 0.0 && per_second <= most) {
            let what = format!("{per_second} calls a second: more than 0, at most {most}");
            self.fault(rate, what, None);
        }
    }

    fn changes(&mut self, changes: &ChangesSpec) {
        self.region(&changes.region);
        self.key_in(&changes.key, &changes.region);
        self.rate(&changes.rate, 10.0);
        if let Some(until) = &changes.until {
            self.at(until);
        }
        let others =
            self.drill.changes.iter().filter(|one| one.key.get_ref() == changes.key.get_ref());
        if others.count() > 1 {
            let hint = "give each its own key".to_owned();
            self.fault(
                &changes.key,
                "two change the same key: nobody could tell what was lost",
                Some(hint),
            );
        }
        if self.lasts.as_secs_f64() * changes.rate.get_ref() > f64::from(CHANGES_MAX) {
            let what = format!(
                "more than {CHANGES_MAX} changes, which is all that a rotation period can tell apart"
            );
            self.fault(&changes.rate, what, None);
        }
    }
}
