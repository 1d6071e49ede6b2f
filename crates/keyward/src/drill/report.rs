//! What a drill leaves behind: a page for people, JSON and JUnit XML for programs, every call as CSV, and a signature.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use keyward_load::plot::escaped;
use serde::Serialize;

use super::definition::Drill;
use super::history::{Event, History, Kind, sha256};
use super::invariants::changed;
use super::limits::longest_outage;
use super::page::page;
use super::sign::Signer;
use super::verdict::Verdict;
use crate::error::Failure;

/// The page, in the folder of a report.
pub const PAGE: &str = "report.html";
/// The same for programs, signed.
pub const JSON: &str = "report.json";
/// Verdicts as test cases.
pub const JUNIT: &str = "junit.xml";
/// Every call.
pub const HISTORY: &str = "history.csv";

/// Of one load.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct LoadReport {
    pub name: String,
    pub region: String,
    pub calls: u64,
    pub answered: u64,
    /// Why others were not, by AWS's error name.
    pub otherwise: BTreeMap<String, u64>,
    pub p50_us: u64,
    pub p99_us: u64,
    /// The longest time in which no call was answered, and when it began.
    pub outage_ms: u64,
    pub outage_began_ms: u64,
}

/// Of one Region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct RegionReport {
    pub region: String,
    /// Recovery time: the longest time in which no call of any load was answered, and when it began.
    pub rto_ms: u64,
    pub rto_began_ms: u64,
    /// Changes that were acknowledged, those of them that are not there in the end, and over how long they were made.
    pub changes: u64,
    pub changes_lost: u64,
    pub rpo_ms: u64,
    /// How far it was behind another Region, at most.
    pub lag_peak_ms: u64,
    /// Of each quota, in millionths: what no node had, at most.
    pub headroom_lost_ppm: BTreeMap<String, u64>,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Report {
    pub name: String,
    pub about: String,
    pub version: String,
    pub date: String,
    /// Every promise held.
    pub held: bool,
    /// What was promised, and what was seen.
    pub verdicts: Vec<Verdict>,
    pub regions: Vec<RegionReport>,
    pub loads: Vec<LoadReport>,
    pub events: Vec<Event>,
    /// SHA-256 of the drill's file, and of every call.
    pub drill_sha256: String,
    pub history_sha256: String,
    /// What repeats it.
    pub commands: Vec<String>,
}

/// What a report is about.
pub struct Heading {
    /// The drill's file, as it is.
    pub text: String,
    pub date: String,
    pub commands: Vec<String>,
}

pub fn percentile(sorted: &[u64], of_hundred: usize) -> u64 {
    sorted.get((sorted.len() * of_hundred).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0)
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn load_report(name: &str, region: &str, drill: &Drill, history: &History) -> LoadReport {
    let calls = history.calls_by(name);
    let mut times: Vec<u64> =
        calls.iter().filter(|call| call.answered()).map(|call| call.took_us).collect();
    times.sort_unstable();
    let mut otherwise = BTreeMap::new();
    for call in calls.iter().filter(|call| !call.answered()) {
        *otherwise.entry(call.ended.clone()).or_default() += 1;
    }
    let (outage, began) = longest_outage(&calls, Duration::ZERO, drill.lasts());
    LoadReport {
        name: name.to_owned(),
        region: region.to_owned(),
        calls: calls.len() as u64,
        answered: times.len() as u64,
        otherwise,
        p50_us: percentile(&times, 50),
        p99_us: percentile(&times, 99),
        outage_ms: ms(outage),
        outage_began_ms: ms(began),
    }
}

fn region_report(region: &str, drill: &Drill, history: &History) -> RegionReport {
    let (rto, began) = longest_outage(&history.calls_in(region), Duration::ZERO, drill.lasts());
    let changes = changed(history);
    let here = || changes.iter().filter(|one| one.source.region == region);
    let lost_over = |one: &super::invariants::Changed<'_>| {
        let first = one.lost.first().map(|call| call.sent_us);
        let last = one.lost.last().map(|call| call.ended_us());
        first.zip(last).map_or(0, |(first, last)| last.saturating_sub(first))
    };
    let looks = || history.looks.iter().filter(|look| look.region == region);
    let mut headroom_lost_ppm = BTreeMap::new();
    for (quota, lost) in looks().flat_map(|look| &look.headroom_lost_ppm) {
        let most: &mut u64 = headroom_lost_ppm.entry(quota.clone()).or_default();
        *most = (*most).max(*lost);
    }
    RegionReport {
        region: region.to_owned(),
        rto_ms: ms(rto),
        rto_began_ms: ms(began),
        changes: here().map(|one| one.acknowledged.len() as u64).sum(),
        changes_lost: here().map(|one| one.lost.len() as u64).sum(),
        rpo_ms: here().map(|one| lost_over(one).div_ceil(1000)).max().unwrap_or(0),
        lag_peak_ms: looks().map(|look| look.lag_ms).max().unwrap_or(0),
        headroom_lost_ppm,
    }
}

impl Report {
    /// What came of a drill.
    pub fn new(drill: &Drill, heading: Heading, history: &History, verdicts: Vec<Verdict>) -> Self {
        let loads = history
            .sources
            .iter()
            .filter(|source| matches!(source.kind, Kind::Load | Kind::Program));
        let regions = drill.regions();
        Self {
            name: drill.name.clone(),
            about: drill.about.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            date: heading.date,
            held: verdicts.iter().all(|verdict| verdict.held),
            verdicts,
            regions: regions.iter().map(|region| region_report(region, drill, history)).collect(),
            loads: loads
                .map(|load| load_report(&load.name, &load.region, drill, history))
                .collect(),
            events: history.events.clone(),
            drill_sha256: sha256(&heading.text),
            history_sha256: sha256(&history.csv()),
            commands: heading.commands,
        }
    }

    /// Writes all files of the report.
    pub fn save(
        &self,
        folder: &Path,
        drill: &Drill,
        history: &History,
        signer: &Signer,
    ) -> Result<(), Failure> {
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text)
                .map_err(|e| Failure::new(format!("cannot write {}: {e}", path.display())))
        };
        write(HISTORY, &history.csv())?;
        write(PAGE, &page(self, drill, history))?;
        write(JUNIT, &self.junit())?;
        let json = serde_json::to_value(self).map_err(|e| Failure::new(e.to_string()))?;
        let signed = signer.sign(&json)?;
        let text =
            serde_json::to_string_pretty(&signed).map_err(|e| Failure::new(e.to_string()))?;
        write(JSON, &text)
    }

    fn junit(&self) -> String {
        let failures = self.verdicts.iter().filter(|verdict| !verdict.held).count();
        let mut xml = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites><testsuite name=\"{}\" tests=\"{}\" failures=\"{failures}\">\n",
            escaped(&self.name),
            self.verdicts.len()
        );
        for verdict in &self.verdicts {
            let name = escaped(&verdict.name);
            let of = escaped(verdict.of.as_deref().unwrap_or("always"));
            let text = escaped(&format!("{}; seen: {}", verdict.promised, verdict.seen));
            let _ = match verdict.held {
                true => writeln!(
                    xml,
                    "<testcase classname=\"{of}\" name=\"{name}\"><system-out>{text}</system-out></testcase>"
                ),
                false => writeln!(
                    xml,
                    "<testcase classname=\"{of}\" name=\"{name}\"><failure message=\"{text}\"/></testcase>"
                ),
            };
        }
        xml.push_str("</testsuite></testsuites>\n");
        xml
    }
}
