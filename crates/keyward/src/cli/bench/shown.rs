//! A bench's report on the terminal, and what it says of how it was asked.

use std::io::IsTerminal;

use keyward_client::ClientConfig;
use keyward_load::{Goal, Latency, Pace, Plan, Probe, Report, Search};

use super::{BenchCommand, sayln};

/// Processors that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The report for programs.
pub fn json(report: &Report) -> String {
    serde_json::to_string_pretty(report).unwrap_or_default()
}

/// The command that was typed.
pub fn again() -> String {
    let quoted = |argument: String| {
        let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./:=,@%+".contains(letter);
        if !argument.is_empty() && argument.chars().all(plain) {
            return argument;
        }
        format!("'{}'", argument.replace('\'', "'\\''"))
    };
    let arguments = std::env::args().skip(1).map(quoted);
    ["keyward".to_owned()].into_iter().chain(arguments).collect::<Vec<_>>().join(" ")
}

/// What was asked for, in words.
pub fn asked(command: &BenchCommand, plan: &Plan, config: &ClientConfig) -> Vec<(String, String)> {
    let pace = match &plan.pace {
        Pace::Open { schedule, spacing, .. } => {
            let rate = command.rate.clone().filter(|_| command.search.is_none());
            let mean = schedule.offers() / schedule.lasts().as_secs_f64();
            let rate = rate.unwrap_or_else(|| format!("{mean:.0}"));
            format!("open loop, {rate} calls a second, {spacing:?} arrivals").to_lowercase()
        }
        Pace::Closed { in_flight, .. } => {
            format!("closed loop, {in_flight} callers, each waiting for its answer")
        }
    };
    let keys = match command.key_id.len() {
        0 => format!("{}, made for it", command.keys),
        _ => command.key_id.join(", "),
    };
    let principals = command.principals.map_or("one".to_owned(), |count| count.to_string());
    let each = if command.streams { ", all calls of each on one stream" } else { "" };
    let time = |time: std::time::Duration| format!("{} s", time.as_secs_f64());
    let asked = [
        ("Pace", pace),
        ("Counted", time(plan.lasts())),
        ("Before that", time(plan.warm_up)),
        ("Operations", command.mix.clone()),
        ("Bytes of a plaintext", command.size.clone()),
        ("Keys", keys),
        ("Principals", principals),
        ("Connections", format!("{}{each}", command.connections)),
        ("Endpoints", config.endpoints.join(", ")),
        ("Seed", plan.seed.to_string()),
    ];
    asked.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// What came of one rate of a search, while it goes on.
pub fn tried(probe: &Probe) {
    let latency = probe.latency_ms.map_or("no answer".to_owned(), |ms| format!("{ms:.2} ms"));
    let verdict = match (probe.held, probe.client_is_limit) {
        (true, _) => "holds",
        (false, true) => "the client cannot offer it",
        (false, false) => "does not hold",
    };
    if std::io::stderr().is_terminal() {
        eprintln!("{:>8.0}/s  {latency:>10}  {verdict}", probe.rate);
    }
}

/// Adds what the search found.
pub fn searched(report: &mut Report, search: Search, goal: &Goal) {
    let percentile = goal.quantile * 100.0;
    let goal = format!("p{percentile} within {:?}", goal.within);
    report.asked.push(("Searched for".to_owned(), goal.clone()));
    let found = search.best().map(|best| best.rate);
    report.warnings.insert(0, match (found, search.client_is_limit()) {
        (Some(rate), false) => format!("the highest rate with {goal} is {rate:.0} calls a second; all figures below are of that rate"),
        (Some(rate), true) => format!("at {rate:.0} calls a second {goal} holds; at more the client is the limit, not the Region. All figures below are of that rate"),
        (None, _) => format!("no rate that was tried held {goal}; the figures below are of the last one"),
    });
    report.probes = search.probes;
}

fn figures(latency: &Latency) -> String {
    format!(
        "p50 {:.2} ms  p90 {:.2}  p99 {:.2}  p99.9 {:.2}  max {:.2}",
        latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.p999_ms, latency.max_ms
    )
}

/// The report for people.
pub fn table(report: &Report) {
    sayln!(
        "Answered      {} calls: {:.0} a second, of {:.0} offered, for {:.1} s",
        report.answered,
        report.goodput_per_second,
        report.offered_per_second,
        report.seconds
    );
    if let Some(latency) = &report.latency {
        sayln!("Latency       {}", figures(latency));
    }
    for one in report.operations.iter().filter(|_| report.operations.len() > 1) {
        let latency = one.latency.as_ref().map(figures).unwrap_or_default();
        sayln!("  {:<34}  {} of {}  {latency}", one.operation, one.answered, one.calls);
    }
    for one in &report.refusals {
        sayln!("{:<12}  {} calls: {}", one.how, one.calls, one.reason);
    }
    let client = &report.client;
    sayln!(
        "Client CPU    {:.1} us a call, {:.2} of {} processors",
        client.cpu_us_per_call,
        client.cores,
        client.cores_there
    );
    if let Some(server) = &report.server {
        let cores: f64 = server.nodes.iter().filter_map(|node| node.cores).sum();
        let nodes = server.nodes.len();
        match server.cpu_us_per_call {
            Some(cpu) => {
                sayln!("Server CPU    {cpu:.1} us a call, {cores:.2} processors on {nodes} node(s)")
            }
            None => sayln!("Server CPU    not known"),
        }
    }
    for quota in &report.quotas {
        sayln!(
            "Quota         {}, {} {} a {}: {} wanted and {} admitted in {:.1} s, {} allowed at most: {}",
            quota.holder,
            quota.covers,
            quota.limit,
            quota.window,
            quota.wanted,
            quota.admitted,
            quota.seconds,
            quota.allows,
            quota.verdict.says()
        );
    }
    for probe in &report.probes {
        let latency = probe.latency_ms.map_or("-".to_owned(), |ms| format!("{ms:.2} ms"));
        sayln!(
            "Tried         {:.0}/s: {latency}, {}",
            probe.rate,
            if probe.held { "held" } else { "did not hold" }
        );
    }
    for warning in &report.warnings {
        sayln!("Note          {warning}");
    }
}
