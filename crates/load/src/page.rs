//! A report as one page of HTML: no script, no file beside it, light or dark as the reader has it.

use std::fmt::Write;

use crate::plot::{Chart, Line, Scale, escaped, number};
use crate::promise::{Promise, Verdict};
use crate::report::{Latency, Report, SecondReport};

/// Quotas that are drawn.
const QUOTAS_DRAWN: usize = 6;

const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6675;--line:#d9dee6;--back:#fff;--card:#f6f8fb;
--c0:#2264d1;--c1:#0a8f5b;--c2:#d97706;--c3:#c62f2f;--c4:#7a3fc2;--c5:#0e7c8b;--bad:#c62f2f;--good:#0a8f5b}
@media(prefers-color-scheme:dark){:root{--ink:#e7ebf1;--soft:#9aa6b5;--line:#333c48;--back:#12161c;--card:#1a2029;
--c0:#6ea2ff;--c1:#3ecf97;--c2:#f5a742;--c3:#ff7a7a;--c4:#b78cf2;--c5:#4fc3d4;--bad:#ff7a7a;--good:#3ecf97}}
*{box-sizing:border-box}body{margin:0 auto;max-width:1040px;padding:24px 20px 60px;background:var(--back);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}
h1{font-size:24px;margin:0 0 4px}h2{font-size:17px;margin:34px 0 10px}p{margin:4px 0}.soft{color:var(--soft)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin:18px 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px}
.card b{display:block;font-size:21px;font-weight:600;font-variant-numeric:tabular-nums}.card span{color:var(--soft);font-size:13px}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}
th,td{text-align:right;padding:5px 10px;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child,td.text,th.text{text-align:left}td.text{white-space:normal}th{color:var(--soft);font-weight:500}
.warn{border-left:4px solid var(--c2);background:var(--card);padding:8px 12px;margin:8px 0;border-radius:0 8px 8px 0}
.bad{color:var(--bad)}.good{color:var(--good)}
svg{width:100%;height:auto;display:block}.grid{stroke:var(--line);stroke-width:1}.tick,.name{fill:var(--soft);font-size:12px}
.mark{stroke:var(--c3);stroke-width:1.5;stroke-dasharray:2 3}.line{fill:none;stroke-width:2;stroke-linejoin:round}.dashed{stroke-dasharray:6 5}
.line.c0{stroke:var(--c0)}.line.c1{stroke:var(--c1)}.line.c2{stroke:var(--c2)}.line.c3{stroke:var(--c3)}.line.c4{stroke:var(--c4)}.line.c5{stroke:var(--c5)}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:13px;color:var(--soft);margin:2px 0 4px}
.key i{display:inline-block;width:18px;border-top:3px solid;vertical-align:middle;margin-right:6px}.key i.dashed{border-top-style:dashed}
i.c0{border-color:var(--c0)}i.c1{border-color:var(--c1)}i.c2{border-color:var(--c2)}i.c3{border-color:var(--c3)}i.c4{border-color:var(--c4)}i.c5{border-color:var(--c5)}
code{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:8px 10px;display:block;overflow-x:auto;font-size:13px}
";

pub fn page(report: &Report) -> String {
    let (date, version) = (escaped(&report.date), escaped(&report.version));
    let mut html = format!("<p class=\"soft\">{date}, keyward {version}</p>");
    for warning in &report.warnings {
        let _ = write!(html, "<div class=\"warn\">{}</div>", escaped(warning));
    }
    cards(&mut html, report);
    search(&mut html, report);
    over_time(&mut html, report);
    percentiles(&mut html, report);
    operations(&mut html, report);
    refusals(&mut html, report);
    quotas(&mut html, report);
    usage(&mut html, report);
    asked(&mut html, report);
    shell(&report.title, &html)
}

/// A page around a body, in the style of reports.
#[must_use]
pub fn shell(title: &str, body: &str) -> String {
    let title = escaped(title);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>{body}</body></html>\n"
    )
}

fn card(html: &mut String, value: &str, name: &str) {
    let _ = write!(
        html,
        "<div class=\"card\"><b>{}</b><span>{}</span></div>",
        escaped(value),
        escaped(name)
    );
}

fn cards(html: &mut String, report: &Report) {
    html.push_str("<div class=\"cards\">");
    card(html, &format!("{}/s", number(report.goodput_per_second)), "answered (goodput)");
    card(html, &format!("{}/s", number(report.offered_per_second)), "offered");
    if let Some(latency) = &report.latency {
        card(html, &format!("{} ms", number(latency.p50_ms)), "median latency");
        card(html, &format!("{} ms", number(latency.p99_ms)), "99th percentile");
    }
    card(html, &number(report.throttled as f64), "refused for a quota");
    card(html, &number((report.refused + report.failed) as f64), "refused otherwise, or failed");
    let cpu = report.server.as_ref().and_then(|server| server.cpu_us_per_call);
    card(
        html,
        &cpu.map_or("not known".to_owned(), |cpu| format!("{} us", number(cpu))),
        "server CPU a call",
    );
    card(html, &format!("{} us", number(report.client.cpu_us_per_call)), "client CPU a call");
    html.push_str("</div>");
}

/// Words stand to the left, numbers to the right.
fn class(cell: &str) -> &'static str {
    let number = cell.is_empty()
        || cell.starts_with(|first: char| first.is_ascii_digit() || "+-".contains(first));
    if number { "" } else { " class=\"text\"" }
}

fn table(html: &mut String, columns: &[&str], rows: &[Vec<String>]) {
    html.push_str("<div class=\"wide\"><table><tr>");
    for (at, column) in columns.iter().enumerate() {
        let below = rows.first().and_then(|row| row.get(at)).map_or("", String::as_str);
        let _ = write!(html, "<th{}>{}</th>", class(below), escaped(column));
    }
    html.push_str("</tr>");
    for row in rows {
        html.push_str("<tr>");
        for cell in row {
            let _ = write!(html, "<td{}>{}</td>", class(cell), escaped(cell));
        }
        html.push_str("</tr>");
    }
    html.push_str("</table></div>");
}

fn figures(latency: Option<&Latency>) -> Vec<String> {
    match latency {
        Some(l) => [l.p50_ms, l.p90_ms, l.p99_ms, l.p999_ms, l.max_ms].map(number).into(),
        None => vec![String::new(); 5],
    }
}

fn search(html: &mut String, report: &Report) {
    if report.probes.is_empty() {
        return;
    }
    html.push_str("<h2>The search: rates that were tried</h2>");
    let rows: Vec<_> = report
        .probes
        .iter()
        .map(|probe| {
            let held = match (probe.held, probe.client_is_limit) {
                (true, _) => "held",
                (false, true) => "the client could not offer it",
                (false, false) => "did not hold",
            };
            vec![
                format!("{}/s", number(probe.rate)),
                format!("{}/s", number(probe.goodput)),
                probe.latency_ms.map(number).unwrap_or_default(),
                number(probe.bad_per_mille),
                held.to_owned(),
            ]
        })
        .collect();
    table(html, &["Rate", "Goodput", "Latency, ms", "Bad ends of 1000", ""], &rows);
}

fn over_time(html: &mut String, report: &Report) {
    let line = |name: &str, value: fn(&SecondReport) -> f64| {
        Line::new(name, report.course.iter().map(|second| (second.second, value(second))))
    };
    let mut lines = vec![line("offered", |s| s.offered), line("answered", |s| s.answered)];
    if report.throttled > 0 {
        lines.push(line("refused for a quota", |s| s.throttled));
    }
    if report.refused + report.failed > 0 {
        lines.push(line("refused otherwise, or failed", |s| s.refused + s.failed));
    }
    html.push_str("<h2>Goodput over time</h2>");
    let chart = |y_name, y, lines| Chart { x_name: "seconds", y_name, x: Scale::Linear, y, lines };
    html.push_str(&chart("calls a second", Scale::Linear, lines).svg());
    let latency = |name: &str, value: fn(&Latency) -> f64| {
        let points = report.course.iter();
        Line::new(name, points.map(|s| (s.second, s.latency.as_ref().map_or(f64::NAN, value))))
    };
    let lines = vec![
        latency("median", |l| l.p50_ms),
        latency("90 %", |l| l.p90_ms),
        latency("99 %", |l| l.p99_ms),
        latency("slowest", |l| l.max_ms),
    ];
    html.push_str("<h2>Latency over time</h2>");
    html.push_str(&chart("milliseconds", Scale::Log, lines).svg());
}

fn percentiles(html: &mut String, report: &Report) {
    html.push_str("<h2>Latency by percentile</h2>");
    let lines = vec![Line::new("calls answered", report.percentiles.iter().copied())];
    let chart = Chart {
        x_name: "part of the calls that took no longer",
        y_name: "milliseconds",
        x: Scale::Nines,
        y: Scale::Log,
        lines,
    };
    html.push_str(&chart.svg());
}

fn operations(html: &mut String, report: &Report) {
    html.push_str("<h2>By operation</h2>");
    let rows: Vec<_> = report
        .operations
        .iter()
        .map(|one| {
            let counts = [one.calls, one.answered, one.throttled, one.refused, one.failed];
            let mut row = vec![one.operation.to_owned()];
            row.extend(counts.map(|count| count.to_string()));
            row.extend(figures(one.latency.as_ref()));
            row
        })
        .collect();
    let columns = [
        "Operation",
        "Calls",
        "Answered",
        "Throttled",
        "Refused",
        "Failed",
        "p50 ms",
        "p90",
        "p99",
        "p99.9",
        "max",
    ];
    table(html, &columns, &rows);
    let refused: Vec<_> = report
        .operations
        .iter()
        .filter_map(|one| {
            let latency = one.throttled_latency.as_ref()?;
            Some([vec![one.operation.to_owned()], figures(Some(latency))].concat())
        })
        .collect();
    if !refused.is_empty() {
        html.push_str("<p class=\"soft\">How long refusals for a quota took:</p>");
        table(html, &["Operation", "p50 ms", "p90", "p99", "p99.9", "max"], &refused);
    }
}

fn refusals(html: &mut String, report: &Report) {
    if report.refusals.is_empty() {
        return;
    }
    html.push_str("<h2>What was not answered</h2>");
    let rows: Vec<_> = report
        .refusals
        .iter()
        .map(|one| vec![one.how.to_owned(), one.reason.clone(), one.calls.to_string()])
        .collect();
    table(html, &["How", "Reason", "Calls"], &rows);
}

/// A limit in a few words.
fn limit(promise: &Promise) -> String {
    let unit = promise.window.chars().next().unwrap_or('?');
    format!("{}/{unit}", promise.limit)
}

fn quotas(html: &mut String, report: &Report) {
    html.push_str("<h2>Quotas: what they promise, and what was admitted</h2>");
    if report.quotas.is_empty() {
        let why = match &report.server {
            Some(_) => "No call drew on a quota.",
            None => {
                "The Region was not asked: give an operator's certificate (--operator-cert, --operator-key)."
            }
        };
        let _ = write!(html, "<p class=\"soft\">{why}</p>");
        return;
    }
    html.push_str("<div class=\"wide\"><table><tr><th>Whose calls</th><th class=\"text\">Which</th><th>Limit</th><th>Seconds</th><th>Wanted</th><th>Admitted</th><th>Allows at most</th><th class=\"text\">Promise</th></tr>");
    for promise in &report.quotas {
        let class = match promise.verdict {
            Verdict::Kept => "good",
            Verdict::Over | Verdict::Under => "bad",
            Verdict::Unknown => "soft",
        };
        let _ = write!(
            html,
            "<tr><td>{}</td><td class=\"text\">{}</td><td>{}</td><td>{:.1}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"text {class}\">{}</td></tr>",
            escaped(&promise.holder),
            escaped(&promise.covers),
            limit(promise),
            promise.seconds,
            promise.wanted,
            promise.admitted,
            promise.allows,
            promise.verdict.says()
        );
    }
    html.push_str("</table></div><p class=\"soft\">Calls of everybody count against a quota, not this load's alone.</p>");
    headroom(html, report);
}

/// Rates admitted beside their limits: those that are closest to them.
fn headroom(html: &mut String, report: &Report) {
    let mut rates: Vec<&Promise> = report.quotas.iter().filter(|p| p.window == "second").collect();
    let full = |promise: &Promise| promise.admitted as f64 / promise.allows.max(1) as f64;
    rates.sort_by(|one, other| full(other).total_cmp(&full(one)));
    let lines: Vec<_> = rates
        .iter()
        .take(QUOTAS_DRAWN)
        .map(|promise| {
            let part = |rate: f64| 100.0 * rate / (promise.limit.max(1) as f64);
            let points = promise.course.iter().map(|(at, rate)| (*at, part(*rate)));
            Line::new(format!("{}, {} {}", promise.holder, promise.covers, limit(promise)), points)
        })
        .collect();
    if lines.is_empty() {
        return;
    }
    let last = lines.iter().flat_map(|line| &line.points).map(|point| point.0).fold(0.0, f64::max);
    let bound = Line {
        name: "the limit".to_owned(),
        points: vec![(0.0, 100.0), (last, 100.0)],
        dashed: true,
    };
    let lines: Vec<_> = lines.into_iter().chain([bound]).collect();
    html.push_str("<h2>Quota headroom over time</h2>");
    let chart = Chart {
        x_name: "seconds",
        y_name: "% of the limit admitted",
        x: Scale::Linear,
        y: Scale::Linear,
        lines,
    };
    html.push_str(&chart.svg());
}

fn usage(html: &mut String, report: &Report) {
    html.push_str("<h2>What it cost</h2>");
    let client = &report.client;
    let _ = write!(
        html,
        "<p>Client: {} us of CPU a call, {:.2} of {} processors; calls began {} ms late at the median and {} ms at the 99th percentile.</p>",
        number(client.cpu_us_per_call),
        client.cores,
        client.cores_there,
        number(client.late_p50_ms),
        number(client.late_p99_ms)
    );
    let Some(server) = &report.server else { return };
    let rows: Vec<_> = server
        .nodes
        .iter()
        .map(|node| {
            let shown = |value: Option<f64>| {
                value.map_or("not known".to_owned(), |value| format!("{value:.2}"))
            };
            vec![
                format!(
                    "{} {}{}",
                    node.node,
                    node.address,
                    if node.leader { " (leader)" } else { "" }
                ),
                shown(node.cpu_seconds),
                shown(node.cores),
                node.memory_mb.to_string(),
                format!("{:+}", node.memory_grew_mb),
            ]
        })
        .collect();
    let _ = write!(html, "<p>Region {}, {} keys.</p>", escaped(&server.region), server.keys);
    table(html, &["Node", "CPU, s", "Processors", "Memory, MB", "grew by"], &rows);
    if report.course.iter().any(|second| second.server_cores.is_some()) {
        let points = report.course.iter();
        let points = points.map(|s| (s.second, s.server_cores.unwrap_or(f64::NAN)));
        let lines = vec![Line::new("all nodes together", points)];
        let chart = Chart {
            x_name: "seconds",
            y_name: "processors",
            x: Scale::Linear,
            y: Scale::Linear,
            lines,
        };
        html.push_str(&chart.svg());
    }
}

fn asked(html: &mut String, report: &Report) {
    html.push_str("<h2>What was asked for</h2><div class=\"wide\"><table>");
    for (name, value) in &report.asked {
        let _ = write!(
            html,
            "<tr><td>{}</td><td class=\"text\">{}</td></tr>",
            escaped(name),
            escaped(value)
        );
    }
    let _ = write!(
        html,
        "</table></div><p class=\"soft\">Again:</p><code>{}</code>",
        escaped(&report.command)
    );
}
