//! A drill's report as one page of HTML that needs nothing else.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use keyward_load::plot::{Chart, Line, Scale, escaped};
use keyward_load::shell;

use super::definition::Drill;
use super::history::{CallRecord, History};
use super::report::{HISTORY, JSON, RegionReport, Report, percentile};
use super::verdict::{Verdict, seconds};

/// Characters of what a command said that are shown.
const SAID_MAX: usize = 160;

/// A cell that is no longer is not broken into lines.
const WHOLE_MAX: usize = 16;
/// Looks that are further apart are not joined by a line, in microseconds.
const GAP_US: u64 = 2_500_000;

/// The page.
pub fn page(report: &Report, drill: &Drill, history: &History) -> String {
    let (class, word) = if report.held { ("good", "held") } else { ("bad", "did not hold") };
    let mut html = format!(
        "<p class=\"soft\">{}, keyward {}</p><p>{}</p><p class=\"{class}\"><b>What was promised {word}.</b></p>",
        escaped(&report.date),
        escaped(&report.version),
        escaped(&report.about)
    );
    promises(&mut html, report);
    curves(&mut html, report, drill, history);
    regions(&mut html, report);
    timeline(&mut html, report);
    loads(&mut html, report);
    html.push_str("<h2>Again</h2><code>");
    html.push_str(
        &report.commands.iter().map(|line| escaped(line)).collect::<Vec<_>>().join("<br>"),
    );
    let _ = write!(
        html,
        "</code><p class=\"soft\">SHA-256 of the drill's file: {}. Every call is in {HISTORY}, SHA-256 {}. {JSON} has \
         all of this, signed by the operator: keyward drill verify FOLDER.</p>",
        report.drill_sha256, report.history_sha256
    );
    shell(&report.name, &html)
}

fn sign(verdict: &Verdict) -> String {
    let (class, word) = if verdict.held { ("good", "held") } else { ("bad", "broken") };
    format!("<b class=\"{class}\">{word}</b>")
}

fn promises(html: &mut String, report: &Report) {
    html.push_str("<h2>Promises</h2>");
    let promised = report.verdicts.iter().filter(|verdict| !verdict.invariant);
    let cells = |verdict: &Verdict| {
        let of = verdict.of.as_deref().unwrap_or("");
        let texts = [&verdict.name, of, &verdict.promised, &verdict.seen];
        [sign(verdict)].into_iter().chain(texts.map(escaped)).collect()
    };
    table(html, &["", "promise", "of", "promised", "seen"], promised.map(cells));
    html.push_str("<h2>What must hold always</h2>");
    let always = report.verdicts.iter().filter(|verdict| verdict.invariant);
    let cells = |verdict: &Verdict| {
        let texts = [&verdict.name, &verdict.promised, &verdict.seen];
        [sign(verdict)].into_iter().chain(texts.map(|text| escaped(text))).collect()
    };
    table(html, &["", "rule", "that is", "seen"], always.map(cells));
}

/// Goodput, latency and lag, with every step marked by its number.
fn curves(html: &mut String, report: &Report, drill: &Drill, history: &History) {
    let marks: Vec<(f64, String)> = (1..)
        .zip(&report.events)
        .map(|(number, event)| (event.began_us as f64 / 1e6, number.to_string()))
        .collect();
    html.push_str("<h2>Answered calls a second</h2>");
    let chart = by_slot("answered a second", drill, history, Scale::Linear, goodput);
    html.push_str(&chart.svg_marked(&marks));
    html.push_str("<h2>Latency, 99th percentile of each half second</h2>");
    let chart = by_slot("milliseconds", drill, history, Scale::Log, latency);
    html.push_str(&chart.svg_marked(&marks));
    if drill.regions().len() > 1 {
        html.push_str("<h2>How far each Region is behind the others</h2>");
        html.push_str(&lag(drill, history).svg_marked(&marks));
    }
}

fn regions(html: &mut String, report: &Report) {
    let time = |ms: u64| format!("{} s", seconds(Duration::from_millis(ms)));
    let row = |region: &RegionReport| {
        let recovery = match region.rto_ms {
            0 => "no outage".to_owned(),
            ms => format!("{}, from {} on", time(ms), time(region.rto_began_ms)),
        };
        let lost = match (region.changes, region.changes_lost) {
            (0, _) => "nothing was changed".to_owned(),
            (all, 0) => format!("none of {all} changes"),
            (all, lost) => format!("{lost} of {all} changes, over {}", time(region.rpo_ms)),
        };
        let quotas = region.headroom_lost_ppm.iter().map(|(quota, ppm)| {
            format!("{}: {} %", escaped(quota), (*ppm as f64 / 1000.0).round() / 10.0)
        });
        let quotas: Vec<String> = quotas.collect();
        vec![
            escaped(&region.region),
            recovery,
            lost,
            time(region.lag_peak_ms),
            if quotas.is_empty() {
                "no quota was drawn on".to_owned()
            } else {
                quotas.join("<br>")
            },
        ]
    };
    html.push_str("<h2>Regions</h2>");
    table(
        html,
        &[
            "Region",
            "without an answered call (RTO)",
            "acknowledged and lost (RPO)",
            "behind, at most",
            "quota headroom lost, the most of what was seen once a second",
        ],
        report.regions.iter().map(row),
    );
}

fn timeline(html: &mut String, report: &Report) {
    let time = |us: u64| format!("{} s", seconds(Duration::from_micros(us / 1000 * 1000)));
    html.push_str("<h2>What happened</h2>");
    table(
        html,
        &["", "at", "took", "in", "command", "said"],
        (1..).zip(&report.events).map(|(number, event)| {
            let said: String = event.said.chars().take(SAID_MAX).collect();
            let said = match event.done {
                true => escaped(&said),
                false => format!("<b class=\"bad\">failed</b> {}", escaped(&said)),
            };
            vec![
                number.to_string(),
                time(event.began_us),
                time(event.ended_us - event.began_us),
                escaped(&event.region),
                escaped(&event.command),
                said,
            ]
        }),
    );
}

fn loads(html: &mut String, report: &Report) {
    html.push_str("<h2>Calls</h2>");
    table(
        html,
        &["load", "Region", "calls", "answered", "p50", "p99", "longest outage", "errors"],
        report.loads.iter().map(|load| {
            let otherwise: Vec<String> =
                load.otherwise.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
            let ms = |us: u64| format!("{:.1} ms", us as f64 / 1000.0);
            vec![
                escaped(&load.name),
                escaped(&load.region),
                load.calls.to_string(),
                load.answered.to_string(),
                ms(load.p50_us),
                ms(load.p99_us),
                format!("{} s", seconds(Duration::from_millis(load.outage_ms))),
                escaped(&otherwise.join(", ")),
            ]
        }),
    );
}

/// Cells are HTML already.
fn table(html: &mut String, columns: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    html.push_str("<div class=\"wide\"><table><tr>");
    for column in columns {
        let _ = write!(html, "<th class=\"text\">{column}</th>");
    }
    html.push_str("</tr>");
    for row in rows {
        html.push_str("<tr>");
        for cell in row {
            let whole = if cell.len() <= WHOLE_MAX { " style=\"white-space:nowrap\"" } else { "" };
            let _ = write!(html, "<td class=\"text\"{whole}>{cell}</td>");
        }
        html.push_str("</tr>");
    }
    html.push_str("</table></div>");
}

/// Half a second of a load's calls.
const SLOT_US: u64 = 500_000;

fn goodput(calls: &[&CallRecord]) -> f64 {
    calls.iter().filter(|call| call.answered()).count() as f64 * 1e6 / SLOT_US as f64
}

fn latency(calls: &[&CallRecord]) -> f64 {
    let mut times: Vec<u64> =
        calls.iter().filter(|call| call.answered()).map(|call| call.took_us).collect();
    times.sort_unstable();
    match times.is_empty() {
        true => f64::NAN,
        false => percentile(&times, 99) as f64 / 1000.0,
    }
}

/// A line for each load.
fn by_slot<'a>(
    y_name: &'a str,
    drill: &Drill,
    history: &History,
    y: Scale,
    value: fn(&[&CallRecord]) -> f64,
) -> Chart<'a> {
    let slots = u64::try_from(drill.lasts().as_micros()).unwrap_or(0).div_ceil(SLOT_US);
    let line = |load: &super::definition::LoadSpec| {
        let mut slot_calls: BTreeMap<u64, Vec<&CallRecord>> = BTreeMap::new();
        for call in history.calls_by(load.name.get_ref()) {
            slot_calls.entry(call.began_us / SLOT_US).or_default().push(call);
        }
        let name = format!("{}, {}", load.name.get_ref(), load.region.get_ref());
        let middle = |slot: u64| (slot as f64 + 0.5) * SLOT_US as f64 / 1e6;
        let of = |slot: u64| slot_calls.get(&slot).map_or(&[][..], Vec::as_slice);
        Line::new(name, (0..slots).map(|slot| (middle(slot), value(of(slot)))))
    };
    let lines = drill.load.iter().map(line).collect();
    Chart { x_name: "seconds", y_name, x: Scale::Linear, y, lines }
}

fn lag<'a>(drill: &Drill, history: &History) -> Chart<'a> {
    let line = |region: String| {
        let looks = history.looks.iter().filter(|look| look.region == region);
        let (mut points, mut before_us) = (Vec::new(), 0);
        for look in looks {
            let at = look.at_us as f64 / 1e6;
            if look.at_us > before_us + GAP_US {
                points.push((at, f64::NAN));
            }
            points.push((at, look.lag_ms as f64 / 1000.0));
            before_us = look.at_us;
        }
        Line::new(region.clone(), points)
    };
    let lines = drill.regions().into_iter().map(line).collect();
    Chart { x_name: "seconds", y_name: "seconds behind", x: Scale::Linear, y: Scale::Linear, lines }
}
