//! `keyward drill`: the shipped drills, their reports, and verdicts that can be red.

use std::path::Path;
use std::process::{Command, Output};

use crate::support::{KEYWARD, Turn};

fn keyward(arguments: &[&str]) -> Output {
    Command::new(KEYWARD).args(arguments).output().expect("keyward runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn shipped(name: &str) -> String {
    format!("{}/../../deploy/drills/{name}.toml", env!("CARGO_MANIFEST_DIR"))
}

/// Plays a drill; its ports are below those of other tests.
fn play(file: &str, report: &Path, more: &[&str]) -> Output {
    let port = (11_000 + std::process::id() % 16 * 500).to_string();
    let report = report.to_str().expect("a path");
    let arguments = ["drill", "run", file, "--report", report, "--port-base", &port];
    keyward(&[&arguments[..], more].concat())
}

#[test]
fn the_shipped_drills_hold_what_they_promise() {
    let _turn = Turn::wait();
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["leader-kill", "key-disabled", "region-lost"] {
        let report = folder.path().join(name);
        let played = play(&shipped(name), &report, &[]);
        assert!(
            played.status.success(),
            "{name}: {}{}",
            text(&played.stdout),
            text(&played.stderr)
        );
        let shown = report.to_str().expect("a path");
        let verified = keyward(&["drill", "verify", shown, "--output", "json"]);
        assert!(verified.status.success(), "{}", text(&verified.stderr));
        let told: serde_json::Value = serde_json::from_slice(&verified.stdout).expect("JSON");
        assert_eq!(told["Held"], true);
        let page = std::fs::read_to_string(report.join("report.html")).expect("a page");
        assert!(page.contains("<svg") && page.contains("held") && !page.contains("broken</b>"));
        let junit = std::fs::read_to_string(report.join("junit.xml")).expect("verdicts");
        assert!(junit.contains("failures=\"0\"") && junit.contains("<testcase"), "{junit}");
        // Every call is there: none is told twice or forgotten.
        let history = std::fs::read_to_string(report.join("history.csv")).expect("a history");
        assert!(history.lines().count() > 500, "{name}: {} calls", history.lines().count());
        // One digit changed.
        let changed = history.replacen("answered", "answeree", 1);
        std::fs::write(report.join("history.csv"), changed).expect("written");
        let refused = keyward(&["drill", "verify", shown]);
        assert!(!refused.status.success());
        assert!(text(&refused.stderr).contains("was changed after the report was signed"));
    }
}

#[test]
fn a_verdict_can_be_red() {
    let _turn = Turn::wait();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("red.toml");
    let drill = r#"
name = "red"
lasts = "3s"
topology = { regions = ["us-east-1"], nodes = 1 }
[[key]]
name = "orders"
regions = ["us-east-1"]
[[load]]
name = "app"
region = "us-east-1"
key = "orders"
rate = 20
[[step]]
at = "1s"
run = "key disable {orders}"
[[promise]]
name = "nothing is refused"
load = "app"
errors_per_million = 0
"#;
    std::fs::write(&file, drill).expect("written");
    let file = file.to_str().expect("a path");
    let report = folder.path().join("report");
    let played = play(file, &report, &[]);
    assert!(!played.status.success(), "{}", text(&played.stdout));
    assert!(text(&played.stderr).contains("not all of what was promised held"));
    assert!(text(&played.stdout).contains("DisabledException"), "{}", text(&played.stdout));
    let junit = std::fs::read_to_string(report.join("junit.xml")).expect("verdicts");
    assert!(junit.contains("failures=\"1\""), "{junit}");
    let verified = keyward(&["drill", "verify", report.to_str().expect("a path")]);
    assert!(verified.status.success(), "a red report is a true one: {}", text(&verified.stderr));
    let played = play(file, &report, &["--expect-fail"]);
    assert!(played.status.success(), "{}", text(&played.stderr));

    let broken = folder.path().join("broken.toml");
    std::fs::write(&broken, drill.replace("key disable", "key disabel")).expect("written");
    let told = keyward(&["drill", "check", broken.to_str().expect("a path")]);
    assert!(!told.status.success());
    let told = text(&told.stderr);
    assert!(told.contains("broken.toml:15:7:") && told.contains("'disable'"), "{told}");
}
