//! What a drill leaves behind: a page for people, JSON and JUnit XML for programs, every call as CSV, and a signature.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use keyward_load::plot::{Chart, Line, Scale, escaped};
use keyward_load::shell;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, UnparsedPublicKey,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Serialize;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::definition::Drill;
use super::history::{CallRecord, Event, History, sha256};
use super::verdict::{Verdict, longest_outage, seconds};
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
struct LoadReport {
    name: String,
    region: String,
    calls: u64,
    answered: u64,
    /// Why others were not, by AWS's error name.
    otherwise: BTreeMap<String, u64>,
    p50_us: u64,
    p99_us: u64,
    /// The longest time in which no call was answered, and when it began.
    outage_ms: u64,
    outage_began_ms: u64,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Report {
    name: String,
    about: String,
    version: String,
    date: String,
    /// Every promise held.
    pub held: bool,
    /// What was promised, and what was seen.
    pub verdicts: Vec<Verdict>,
    loads: Vec<LoadReport>,
    events: Vec<Event>,
    /// SHA-256 of the drill's file, and of every call.
    drill_sha256: String,
    history_sha256: String,
    /// What repeats it.
    command: String,
}

fn percentile(sorted: &[u64], of_hundred: usize) -> u64 {
    sorted.get((sorted.len() * of_hundred).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0)
}

fn load_report(drill: &Drill, number: usize, history: &History) -> LoadReport {
    let spec = &drill.load[number];
    let calls: Vec<&CallRecord> = history.calls.iter().filter(|call| call.load == number).collect();
    let mut times: Vec<u64> =
        calls.iter().filter(|call| call.answered()).map(|call| call.took_us).collect();
    times.sort_unstable();
    let mut otherwise = BTreeMap::new();
    for call in calls.iter().filter(|call| !call.answered()) {
        *otherwise.entry(call.ended.clone()).or_default() += 1;
    }
    let (outage, began) = longest_outage(&calls, Duration::ZERO, drill.lasts());
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    LoadReport {
        name: spec.name.get_ref().clone(),
        region: spec.region.get_ref().clone(),
        calls: calls.len() as u64,
        answered: times.len() as u64,
        otherwise,
        p50_us: percentile(&times, 50),
        p99_us: percentile(&times, 99),
        outage_ms: ms(outage),
        outage_began_ms: ms(began),
    }
}

impl Report {
    /// What came of a drill.
    pub fn new(
        drill: &Drill,
        text: &str,
        history: &History,
        verdicts: Vec<Verdict>,
        date: String,
        command: String,
    ) -> Self {
        Self {
            name: drill.name.clone(),
            about: drill.about.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            date,
            held: verdicts.iter().all(|verdict| verdict.held),
            verdicts,
            loads: (0..drill.load.len()).map(|load| load_report(drill, load, history)).collect(),
            events: history.events.clone(),
            drill_sha256: sha256(text),
            history_sha256: sha256(&history.csv(&names(drill))),
            command,
        }
    }

    /// Writes all files of the report.
    pub fn save(
        &self,
        folder: &Path,
        drill: &Drill,
        history: &History,
        operator: &(String, String),
    ) -> Result<(), Failure> {
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text)
                .map_err(|e| Failure::new(format!("cannot write {}: {e}", path.display())))
        };
        std::fs::create_dir_all(folder)
            .map_err(|e| Failure::new(format!("cannot make {}: {e}", folder.display())))?;
        write(HISTORY, &history.csv(&names(drill)))?;
        write(PAGE, &self.page(drill, history))?;
        write(JUNIT, &self.junit())?;
        let signed = sign(self, &operator.0, &operator.1)?;
        write(
            JSON,
            &serde_json::to_string_pretty(&signed).map_err(|e| Failure::new(e.to_string()))?,
        )
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
            let of = escaped(verdict.load.as_deref().unwrap_or("all"));
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

    fn page(&self, drill: &Drill, history: &History) -> String {
        let (class, word) = if self.held { ("good", "held") } else { ("bad", "did not hold") };
        let mut html = format!(
            "<p class=\"soft\">{}, keyward {}</p><p>{}</p><p class=\"{class}\"><b>What was promised {word}.</b></p>",
            escaped(&self.date),
            escaped(&self.version),
            escaped(&self.about)
        );
        html.push_str("<h2>Promises</h2>");
        table(
            &mut html,
            &["", "promise", "of", "promised", "seen"],
            self.verdicts.iter().map(|verdict| {
                let sign = if verdict.held {
                    "<b class=\"good\">held</b>"
                } else {
                    "<b class=\"bad\">broken</b>"
                };
                vec![
                    sign.to_owned(),
                    escaped(&verdict.name),
                    escaped(verdict.load.as_deref().unwrap_or("")),
                    escaped(&verdict.promised),
                    escaped(&verdict.seen),
                ]
            }),
        );
        let marks: Vec<(f64, String)> = (1..)
            .zip(&self.events)
            .map(|(number, event)| (event.began_ms as f64 / 1000.0, number.to_string()))
            .collect();
        html.push_str("<h2>Answered calls a second</h2>");
        html.push_str(
            &chart("answered a second", drill, history, Scale::Linear, goodput).svg_marked(&marks),
        );
        html.push_str("<h2>Latency, 99th percentile of each half second</h2>");
        html.push_str(
            &chart("milliseconds", drill, history, Scale::Log, latency).svg_marked(&marks),
        );
        html.push_str("<h2>What happened</h2>");
        table(
            &mut html,
            &["", "at", "took", "in", "command", "said"],
            (1..).zip(&self.events).map(|(number, event)| {
                let time = |ms: u64| format!("{} s", seconds(Duration::from_millis(ms)));
                vec![
                    number.to_string(),
                    time(event.began_ms),
                    time(event.ended_ms - event.began_ms),
                    escaped(&event.region),
                    escaped(&event.command),
                    escaped(&event.said),
                ]
            }),
        );
        html.push_str("<h2>Calls</h2>");
        table(
            &mut html,
            &["load", "Region", "calls", "answered", "p50", "p99", "longest outage", "otherwise"],
            self.loads.iter().map(|load| {
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
        let _ = write!(
            html,
            "<h2>Again</h2><code>{}</code><p class=\"soft\">Every call is in {HISTORY}, SHA-256 {}; {JSON} is signed by the \
             operator: keyward drill verify FOLDER.</p>",
            escaped(&self.command),
            self.history_sha256
        );
        shell(&self.name, &html)
    }
}

fn names(drill: &Drill) -> Vec<String> {
    drill.load.iter().map(|load| load.name.get_ref().clone()).collect()
}

/// Cells are HTML already.
fn table(html: &mut String, columns: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    html.push_str("<div class=\"wide\"><table><tr>");
    for column in columns {
        let _ = write!(html, "<th class=\"text\">{column}</th>");
    }
    html.push_str("</tr>");
    for row in rows {
        let cells: String =
            row.iter().map(|cell| format!("<td class=\"text\">{cell}</td>")).collect();
        let _ = write!(html, "<tr>{cells}</tr>");
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

fn chart<'a>(
    y_name: &'a str,
    drill: &Drill,
    history: &History,
    y: Scale,
    value: fn(&[&CallRecord]) -> f64,
) -> Chart<'a> {
    let slots = u64::try_from(drill.lasts().as_micros()).unwrap_or(0).div_ceil(SLOT_US);
    let line = |(number, load): (usize, &super::definition::LoadSpec)| {
        let mut by_slot: BTreeMap<u64, Vec<&CallRecord>> = BTreeMap::new();
        for call in history.calls.iter().filter(|call| call.load == number) {
            by_slot.entry(call.began_us / SLOT_US).or_default().push(call);
        }
        let name = format!("{}, {}", load.name.get_ref(), load.region.get_ref());
        let middle = |slot: u64| (slot as f64 + 0.5) * SLOT_US as f64 / 1e6;
        let of = |slot: u64| by_slot.get(&slot).map_or(&[][..], Vec::as_slice);
        Line::new(name, (0..slots).map(|slot| (middle(slot), value(of(slot)))))
    };
    let lines = drill.load.iter().enumerate().map(line).collect();
    Chart { x_name: "seconds", y_name, x: Scale::Linear, y, lines }
}

/// What is signed: the report with its fields in the order of their names, without blanks. There are no fractions in it.
fn signed_bytes(report: &Value) -> Vec<u8> {
    report.to_string().into_bytes()
}

#[expect(
    clippy::disallowed_methods,
    reason = "ring draws a signature's nonce from its own source alone"
)]
fn sign(report: &Report, certificate: &str, private_key: &str) -> Result<Value, Failure> {
    let cannot =
        |why: &dyn std::fmt::Display| Failure::new(format!("the report cannot be signed: {why}"));
    let report = serde_json::to_value(report).map_err(|e| cannot(&e))?;
    let key = PrivateKeyDer::from_pem_slice(private_key.as_bytes()).map_err(|e| cannot(&e))?;
    let random = ring::rand::SystemRandom::new();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.secret_der(), &random)
        .map_err(|e| cannot(&e))?;
    let signature = pair.sign(&random, &signed_bytes(&report)).map_err(|e| cannot(&e))?;
    Ok(json!({
        "Report": report,
        "Signature": {
            "Algorithm": "ECDSA_SHA_256",
            "Certificate": certificate,
            "Value": BASE64.encode(signature.as_ref()),
        },
    }))
}

/// Checks a report's folder: who signed it, and that nothing of it was changed since.
///
/// # Errors
/// What does not fit.
pub fn verify(folder: &Path) -> Result<(Value, String), Failure> {
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read_to_string(&path)
            .map_err(|e| Failure::new(format!("cannot read {}: {e}", path.display())))
    };
    let wrong = |what: &str| {
        Failure::new(format!("{}: {what}", folder.join(JSON).display()))
            .next("take the report as it was written, or run the drill again")
    };
    let signed: Value = serde_json::from_str(&read(JSON)?)
        .map_err(|e| wrong(&format!("this is no report: {e}")))?;
    let text = |path: &[&str]| {
        let value = path.iter().fold(&signed, |value, name| &value[*name]);
        value.as_str().ok_or_else(|| wrong(&format!("{} is missing", path.join("."))))
    };
    let certificate =
        CertificateDer::from_pem_slice(text(&["Signature", "Certificate"])?.as_bytes())
            .map_err(|_| wrong("the certificate cannot be read"))?;
    let (_, parsed) = X509Certificate::from_der(&certificate)
        .map_err(|_| wrong("the certificate cannot be read"))?;
    let value = BASE64
        .decode(text(&["Signature", "Value"])?)
        .map_err(|_| wrong("the signature cannot be read"))?;
    let key = UnparsedPublicKey::new(
        &ECDSA_P256_SHA256_ASN1,
        &parsed.public_key().subject_public_key.data,
    );
    key.verify(&signed_bytes(&signed["Report"]), &value).map_err(|_| {
        wrong("the signature is not over this report: it was changed after it was signed")
    })?;
    if sha256(&read(HISTORY)?) != text(&["Report", "HistorySha256"])? {
        return Err(wrong(&format!("{HISTORY} was changed after the report was signed")));
    }
    let fingerprint = hex::encode(ring::digest::digest(&ring::digest::SHA256, &certificate));
    Ok((signed["Report"].clone(), fingerprint))
}
