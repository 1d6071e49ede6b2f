//! What came of a load, for programs and people.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use crate::promise::{Promise, promises};
use crate::run::{Measured, Pace, Plan};
use crate::search::Probe;
use crate::tally::{ByOperation, Counts, Second, Times, times};
use crate::watch::Observation;

/// Calls that begin later than this beside when they were meant to, at the 99th percentile, are the client's doing.
const LATE_MAX_MS: f64 = 5.0;
/// Of the calls of a schedule, the client has to get so many under way.
const BEGUN_MIN: f64 = 0.99;
/// Of this machine's processors, a client has used all it can get at so many.
const CORES_MAX: f64 = 0.95;

/// Percentiles of times, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
#[expect(missing_docs, reason = "percentiles")]
pub struct Latency {
    pub mean_ms: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
}

pub(crate) fn ms(times: &Times, quantile: f64) -> f64 {
    times.value_at_quantile(quantile) as f64 / 1000.0
}

impl Latency {
    fn of(times: &Times) -> Option<Self> {
        (!times.is_empty()).then(|| Self {
            mean_ms: times.mean() / 1000.0,
            p50_ms: ms(times, 0.5),
            p90_ms: ms(times, 0.9),
            p99_ms: ms(times, 0.99),
            p999_ms: ms(times, 0.999),
            max_ms: times.max() as f64 / 1000.0,
        })
    }
}

/// Calls that ended in one way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Refusals {
    /// `Throttled`, `Refused` or `Failed`.
    pub how: &'static str,
    /// The quota and whose it is, AWS's error name, or what happened.
    pub reason: String,
    /// How many.
    pub calls: u64,
}

/// Calls of one operation.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
#[expect(missing_docs, reason = "counts and percentiles")]
pub struct OperationReport {
    pub operation: &'static str,
    pub calls: u64,
    pub answered: u64,
    pub throttled: u64,
    pub refused: u64,
    pub failed: u64,
    /// Of those answered.
    pub latency: Option<Latency>,
    /// Of those refused for a quota.
    pub throttled_latency: Option<Latency>,
}

/// One second or so.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
#[expect(missing_docs, reason = "rates a second, and percentiles")]
pub struct SecondReport {
    /// Seconds from the first counted call to its end.
    pub second: f64,
    pub offered: f64,
    pub answered: f64,
    pub throttled: f64,
    pub refused: f64,
    pub failed: f64,
    pub in_flight: usize,
    pub latency: Option<Latency>,
    /// Processors that all nodes together used; none where the Region was not asked.
    pub server_cores: Option<f64>,
}

/// What one node used.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
#[expect(missing_docs, reason = "named by what they are")]
pub struct NodeUse {
    pub node: u64,
    pub address: String,
    pub version: String,
    pub leader: bool,
    /// User and system time meanwhile; none if it was away or was started anew.
    pub cpu_seconds: Option<f64>,
    /// Processors, on average.
    pub cores: Option<f64>,
    pub memory_mb: u64,
    pub memory_grew_mb: i64,
}

/// What the nodes used.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ServerUse {
    /// The Region.
    pub region: String,
    /// Its keys.
    pub keys: u64,
    /// User and system time of all nodes, divided by the calls that ended; none if a node was away or was started anew.
    pub cpu_us_per_call: Option<f64>,
    /// Each.
    pub nodes: Vec<NodeUse>,
}

/// What the client used.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ClientUse {
    /// User and system time, divided by the calls that ended.
    pub cpu_us_per_call: f64,
    /// Processors, on average.
    pub cores: f64,
    /// Processors that there are.
    pub cores_there: usize,
    /// How late calls began, beside when they were meant to.
    pub late_p50_ms: f64,
    /// The same.
    pub late_p99_ms: f64,
    /// It could not offer what was asked: the figures are its own, not the Region's.
    pub is_limit: bool,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
#[expect(missing_docs, reason = "named by what they are")]
pub struct Report {
    pub title: String,
    /// When it began: RFC 3339.
    pub date: String,
    pub version: String,
    /// The command that does it again.
    pub command: String,
    /// What was asked for, in words: name and value.
    pub asked: Vec<(String, String)>,
    /// How long calls were begun that count.
    pub seconds: f64,
    /// Calls that were meant to begin, that began, that were not begun since too many were under way.
    pub meant: u64,
    pub offered: u64,
    pub held_back: u64,
    pub answered: u64,
    pub throttled: u64,
    pub refused: u64,
    pub failed: u64,
    /// Calls a second.
    pub offered_per_second: f64,
    pub goodput_per_second: f64,
    /// Of calls answered, from when they were meant to begin.
    pub latency: Option<Latency>,
    /// The same, finely: parts of the calls, and milliseconds.
    pub percentiles: Vec<(f64, f64)>,
    pub operations: Vec<OperationReport>,
    pub refusals: Vec<Refusals>,
    pub quotas: Vec<Promise>,
    pub client: ClientUse,
    pub server: Option<ServerUse>,
    pub probes: Vec<Probe>,
    /// What has to be known to read the rest rightly.
    pub warnings: Vec<String>,
    pub course: Vec<SecondReport>,
}

/// What a report says beside what was measured.
#[derive(Clone, Debug, Default)]
pub struct Heading {
    /// A title.
    pub title: String,
    /// When it began: RFC 3339.
    pub date: String,
    /// The client's version.
    pub version: String,
    /// The command that does it again.
    pub command: String,
    /// What was asked for, in words.
    pub asked: Vec<(String, String)>,
    /// What is to be known already.
    pub warnings: Vec<String>,
    /// Processors that the client has.
    pub cores: usize,
}

impl Report {
    /// Puts it together.
    #[must_use]
    pub fn new(heading: Heading, plan: &Plan, measured: &Measured) -> Self {
        let mut sum = ByOperation::default();
        measured.tally.values().for_each(|calls| sum.add(calls));
        let ended = sum.counts.all().max(1) as f64;
        let seconds = measured.lasted.as_secs_f64().max(1e-3);
        let cpu = measured.client_cpu.as_secs_f64();
        let late = |quantile| match measured.late.is_empty() {
            true => 0.0,
            false => ms(&measured.late, quantile),
        };
        let cores = cpu / seconds;
        let client = ClientUse {
            cpu_us_per_call: cpu * 1e6 / ended,
            cores,
            cores_there: heading.cores,
            late_p50_ms: late(0.5),
            late_p99_ms: late(0.99),
            is_limit: limits(plan, measured, late(0.99), cores / heading.cores.max(1) as f64),
        };
        let server = server(&measured.seen, ended);
        let mut report = Self {
            title: heading.title,
            date: heading.date,
            version: heading.version,
            command: heading.command,
            asked: heading.asked,
            seconds,
            meant: measured.meant,
            offered: measured.offered,
            held_back: measured.held_back,
            answered: sum.counts.answered,
            throttled: sum.counts.all_throttled(),
            refused: sum.counts.all_refused(),
            failed: sum.counts.all_failed(),
            offered_per_second: measured.offered as f64 / seconds,
            goodput_per_second: sum.counts.answered as f64 / seconds,
            latency: Latency::of(&sum.answered),
            percentiles: percentiles(&sum.answered),
            operations: operations(&measured.tally),
            refusals: refusals(&sum.counts),
            quotas: promises(&measured.seen, measured.began),
            client,
            server,
            probes: Vec::new(),
            warnings: heading.warnings,
            course: course(measured),
        };
        report.warnings.extend(report.warns(plan, measured));
        report
    }

    fn warns(&self, plan: &Plan, measured: &Measured) -> Vec<String> {
        let mut warnings = Vec::new();
        if measured.cut_short {
            warnings.push(format!("it was stopped after {:.1} s, before its time", self.seconds));
        }
        if self.client.is_limit {
            warnings.push(format!(
                "the client is the limit: {} of {} calls were begun, the 99th percentile of them {:.1} ms late, on {:.2} of {} processors. Latencies hold the client's own waiting; offer less, or from more machines",
                self.offered, self.meant, self.client.late_p99_ms, self.client.cores, self.client.cores_there
            ));
        }
        if let (Pace::Open { in_flight_max, .. }, 1..) = (&plan.pace, self.held_back) {
            warnings.push(format!(
                "{} calls were not begun, since {in_flight_max} were under way (--in-flight-max): what was offered is less than what was asked for",
                self.held_back
            ));
        }
        if self.answered == 0 {
            warnings.push(
                "no call was answered: there is no latency and no goodput to speak of".to_owned(),
            );
        } else if self.answered * 2 < self.offered {
            warnings.push(
                "most calls were not answered: the latencies are those of the few that were"
                    .to_owned(),
            );
        }
        let ended = self.answered + self.throttled + self.refused + self.failed;
        if ended < self.offered {
            warnings.push(format!(
                "{} calls had not ended when the report was made",
                self.offered - ended
            ));
        }
        if let (Pace::Closed { .. }, true) =
            (&plan.pace, measured.tally.values().any(|calls| !calls.counts.failed.is_empty()))
        {
            warnings.push("callers in a closed loop call less while nothing answers: the latencies leave out what they did not ask; an open loop (--rate) does not".to_owned());
        }
        if let Some(server) = &self.server
            && server.cpu_us_per_call.is_none()
        {
            warnings.push(
                "a node was away or was started anew: the CPU of the nodes is not known".to_owned(),
            );
        }
        warnings
    }

    /// One line a second.
    #[must_use]
    pub fn csv(&self) -> String {
        let mut text = "second,offered_per_s,answered_per_s,throttled_per_s,refused_per_s,failed_per_s,in_flight,p50_ms,p90_ms,p99_ms,p999_ms,max_ms,server_cores\n".to_owned();
        let shown =
            |value: Option<f64>| value.map(|value| format!("{value:.3}")).unwrap_or_default();
        for second in &self.course {
            let at = |which: fn(&Latency) -> f64| shown(second.latency.as_ref().map(which));
            let _ = writeln!(
                text,
                "{:.3},{:.1},{:.1},{:.1},{:.1},{:.1},{},{},{},{},{},{},{}",
                second.second,
                second.offered,
                second.answered,
                second.throttled,
                second.refused,
                second.failed,
                second.in_flight,
                at(|l| l.p50_ms),
                at(|l| l.p90_ms),
                at(|l| l.p99_ms),
                at(|l| l.p999_ms),
                at(|l| l.max_ms),
                shown(second.server_cores),
            );
        }
        text
    }

    /// A page that needs nothing else.
    #[must_use]
    pub fn html(&self) -> String {
        crate::page::page(self)
    }
}

/// Whether the client could not offer what was asked.
fn limits(plan: &Plan, measured: &Measured, late_p99_ms: f64, of_cores: f64) -> bool {
    let Pace::Open { schedule, .. } = &plan.pace else { return false };
    // Arrivals are drawn: four standard deviations below what is offered on average are chance.
    let offers = schedule.offers();
    let short =
        !measured.cut_short && (measured.meant as f64) < BEGUN_MIN * offers - 4.0 * offers.sqrt();
    late_p99_ms > LATE_MAX_MS || of_cores > CORES_MAX || short
}

/// The percentile of a run, in milliseconds.
#[must_use]
pub fn percentile(measured: &Measured, quantile: f64) -> Option<f64> {
    let mut all = times();
    for calls in measured.tally.values() {
        all.add(&calls.answered).expect("the same bounds");
    }
    (!all.is_empty()).then(|| ms(&all, quantile))
}

fn percentiles(times: &Times) -> Vec<(f64, f64)> {
    if times.is_empty() {
        return Vec::new();
    }
    let mut parts: Vec<f64> = (0..20).map(|part| f64::from(part) * 0.05).collect();
    let mut rest = 0.05;
    // Down to the share of a single call.
    while rest > 1.0 / times.len() as f64 && rest > 1e-6 {
        rest *= 0.7;
        parts.push(1.0 - rest);
    }
    parts.into_iter().map(|part| (part, ms(times, part))).collect()
}

fn operations(tally: &crate::tally::Tally) -> Vec<OperationReport> {
    let report = |(operation, calls): (&crate::mix::Operation, &ByOperation)| OperationReport {
        operation: operation.aws_name(),
        calls: calls.counts.all(),
        answered: calls.counts.answered,
        throttled: calls.counts.all_throttled(),
        refused: calls.counts.all_refused(),
        failed: calls.counts.all_failed(),
        latency: Latency::of(&calls.answered),
        throttled_latency: Latency::of(&calls.throttled),
    };
    tally.iter().map(report).collect()
}

fn refusals(counts: &Counts) -> Vec<Refusals> {
    let throttled = counts.throttled.iter().map(|((quota, scope), calls)| Refusals {
        how: "Throttled",
        reason: format!("{quota}, {scope}"),
        calls: *calls,
    });
    let as_said = |how, kinds: &BTreeMap<String, u64>| -> Vec<Refusals> {
        let one = |(reason, calls): (&String, &u64)| Refusals {
            how,
            reason: reason.clone(),
            calls: *calls,
        };
        kinds.iter().map(one).collect()
    };
    let mut all: Vec<_> = throttled.collect();
    all.extend(as_said("Refused", &counts.refused));
    all.extend(as_said("Failed", &counts.failed));
    all.sort_by_key(|refusals| std::cmp::Reverse(refusals.calls));
    all
}

fn course(measured: &Measured) -> Vec<SecondReport> {
    let cores = cores(&measured.seen, measured.began);
    let nearest = |second: f64| {
        let close = cores.iter().filter(|(at, _)| (at - second).abs() <= 1.0);
        close.min_by(|one, other| (one.0 - second).abs().total_cmp(&(other.0 - second).abs()))
    };
    let report = |second: &Second| {
        let end = (second.at + second.lasted).as_secs_f64();
        SecondReport {
            second: end,
            offered: second.rate(second.offered),
            answered: second.rate(second.counts.answered),
            throttled: second.rate(second.counts.all_throttled()),
            refused: second.rate(second.counts.all_refused()),
            failed: second.rate(second.counts.all_failed()),
            in_flight: second.in_flight,
            latency: Latency::of(&second.answered),
            server_cores: nearest(end).map(|(_, cores)| *cores),
        }
    };
    measured.seconds.iter().map(report).collect()
}

/// Processors that all nodes together used, look by look.
fn cores(seen: &[Observation], began: Duration) -> Vec<(f64, f64)> {
    let pairs = seen.windows(2).filter_map(|pair| {
        let lasted = pair[1].at.saturating_sub(pair[0].at).as_secs_f64();
        let used = cpu_between(&pair[0], &pair[1])?;
        let at = pair[1].at.saturating_sub(began).as_secs_f64();
        (lasted > 0.1).then_some((at, used.iter().map(|(_, cpu)| cpu).sum::<f64>() / lasted))
    });
    pairs.collect()
}

/// Seconds of CPU of each node between two looks; none if one was away or was started anew.
fn cpu_between(before: &Observation, after: &Observation) -> Option<Vec<(u64, f64)>> {
    let one = |node: &keyward_proto::v1::NodeStatus| {
        let was = before.nodes.iter().find(|was| was.node_id == node.node_id)?;
        let there = node.reachable && was.reachable;
        let used = node.cpu_microseconds.checked_sub(was.cpu_microseconds).filter(|_| there)?;
        Some((node.node_id, used as f64 / 1e6))
    };
    after.nodes.iter().map(one).collect()
}

fn server(seen: &[Observation], ended: f64) -> Option<ServerUse> {
    let (first, last) = (seen.first()?, seen.last()?);
    let lasted = last.at.saturating_sub(first.at).as_secs_f64();
    // A node that was started anew in between has used less than before at one of the looks.
    let steady = seen.windows(2).all(|pair| cpu_between(&pair[0], &pair[1]).is_some());
    let used = cpu_between(first, last).filter(|_| steady && lasted > 0.5);
    let mb = |bytes: u64| (bytes >> 20).cast_signed();
    let nodes = last.nodes.iter().map(|node| {
        let was = first.nodes.iter().find(|was| was.node_id == node.node_id);
        let cpu = used.as_ref().and_then(|used| used.iter().find(|(id, _)| *id == node.node_id));
        NodeUse {
            node: node.node_id,
            address: node.address.clone(),
            version: node.version.clone(),
            leader: node.leader,
            cpu_seconds: cpu.map(|(_, cpu)| *cpu),
            cores: cpu.map(|(_, cpu)| cpu / lasted),
            memory_mb: node.resident_bytes >> 20,
            memory_grew_mb: was.map_or(0, |was| mb(node.resident_bytes) - mb(was.resident_bytes)),
        }
    });
    let all: Option<f64> = used.as_ref().map(|used| used.iter().map(|(_, cpu)| cpu).sum());
    Some(ServerUse {
        region: last.region.clone(),
        keys: last.keys,
        cpu_us_per_call: all.map(|cpu| cpu * 1e6 / ended),
        nodes: nodes.collect(),
    })
}
