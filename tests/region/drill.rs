//! `keyward drill`: every shipped drill, their reports, a deployment that is there already, and verdicts that can be red.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;

use crate::support::{KEYWARD, Turn};

/// Drills that are played at the same time: they wait more than they work.
const LANES: u16 = 4;
/// Ports that one drill's Regions take.
const PORTS: u16 = 500;

fn keyward(arguments: &[&str]) -> Output {
    Command::new(KEYWARD).args(arguments).output().expect("keyward runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn drills() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/drills")
}

/// The first port of a lane; other tests' are below.
fn port_base(lane: u16) -> u16 {
    let own = u16::try_from(std::process::id() % 4).unwrap_or(0);
    20_000 + own * LANES * PORTS + lane * PORTS
}

/// Plays a drill.
fn play(file: &Path, report: &Path, lane: u16, more: &[&str]) -> Output {
    let (file, port) = (file.to_str().expect("a path"), port_base(lane).to_string());
    let report = report.to_str().expect("a path");
    let arguments = ["drill", "run", file, "--report", report, "--port-base", &port];
    keyward(&[&arguments[..], more].concat())
}

#[test]
fn the_shipped_drills_hold_what_they_promise() {
    let _turn = Turn::wait();
    let folder = tempfile::tempdir().expect("a folder");
    let mut files: Vec<PathBuf> = std::fs::read_dir(drills())
        .expect("drills")
        .map(|entry| entry.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "toml"))
        .collect();
    assert!(files.len() >= 18, "{files:?}");
    files.sort();
    let names: Vec<PathBuf> =
        files.iter().map(|file| PathBuf::from(file.file_stem().expect("a name"))).collect();
    // The longest are played first, so that none is left over in the end.
    files.sort_by_key(|file| lasts(file));
    let (left, failed) = (Mutex::new(files), Mutex::new(String::new()));
    std::thread::scope(|scope| {
        for lane in 0..LANES {
            let (left, failed, folder) = (&left, &failed, folder.path());
            scope.spawn(move || {
                loop {
                    let Some(file) = left.lock().expect("a lock").pop() else { return };
                    let report = folder.join(file.file_stem().expect("a name"));
                    let played = play(&file, &report, lane, &[]);
                    if !played.status.success() {
                        let told = text(&played.stdout) + &text(&played.stderr);
                        *failed.lock().expect("a lock") +=
                            &format!("{}:\n{told}\n", file.display());
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("a lock");
    assert!(failed.is_empty(), "{failed}");
    for name in &names {
        the_report_is_whole(&folder.path().join(name));
    }
    the_page_opens_in_a_browser(&folder.path().join("region-lost"));
    a_report_that_was_changed_is_noticed(&folder.path().join("leader-kill"));
}

fn lasts(file: &Path) -> u64 {
    let text = std::fs::read_to_string(file).expect("a drill");
    let line = text.lines().find_map(|line| line.strip_prefix("lasts = \"")).expect("its length");
    line.trim_end_matches("s\"").parse().expect("seconds")
}

fn the_report_is_whole(report: &Path) {
    let shown = report.to_str().expect("a path");
    let verified = keyward(&["drill", "verify", shown, "--output", "json"]);
    assert!(verified.status.success(), "{}", text(&verified.stderr));
    let told: serde_json::Value = serde_json::from_slice(&verified.stdout).expect("JSON");
    assert_eq!(told["Held"], true);
    let page = std::fs::read_to_string(report.join("report.html")).expect("a page");
    assert!(page.contains("<svg") && page.contains("held") && !page.contains("broken</b>"));
    let junit = std::fs::read_to_string(report.join("junit.xml")).expect("verdicts");
    assert!(junit.contains("failures=\"0\"") && junit.contains("<testcase"), "{junit}");
    let history = std::fs::read_to_string(report.join("history.csv")).expect("a history");
    assert!(history.lines().count() > 150, "{shown}: {} calls", history.lines().count());
}

/// One digit changed.
fn a_report_that_was_changed_is_noticed(report: &Path) {
    let path = report.join("history.csv");
    let history = std::fs::read_to_string(&path).expect("a history");
    std::fs::write(&path, history.replacen("answered", "answeree", 1)).expect("written");
    let refused = keyward(&["drill", "verify", report.to_str().expect("a path")]);
    assert!(!refused.status.success());
    assert!(text(&refused.stderr).contains("was changed after the report was signed"));
}

/// A browser finds all of it in the page, and nothing that it would have to fetch.
fn the_page_opens_in_a_browser(report: &Path) {
    let page = std::fs::read_to_string(report.join("report.html")).expect("a page");
    for fetched in ["src=", "href=", "@import", "url(", "<script", "<iframe", "http://", "https://"]
    {
        assert!(!page.contains(fetched), "the page has {fetched}");
    }
    let profile = tempfile::tempdir().expect("a folder");
    let opened = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(["--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1200,2400"])
        .arg(format!("--screenshot={}", profile.path().join("page.png").display()))
        .arg("--dump-dom")
        .arg(format!("file://{}", report.join("report.html").display()))
        .output()
        .expect("chromium is installed by deploy/setup.sh");
    assert!(opened.status.success(), "{}", text(&opened.stderr));
    let dom = text(&opened.stdout);
    let count = |what: &str| dom.matches(what).count();
    let told = std::fs::read_to_string(report.join("report.json")).expect("a report");
    let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    let of = |name: &str| told["Report"][name].as_array().expect("a list").len();
    // Three charts: goodput and latency with a line a load, lag with a line a Region; each with every step marked.
    assert_eq!(count("<svg"), 3);
    assert_eq!(count("class=\"mark\""), 3 * of("Events"));
    assert_eq!(count("<path class=\"line"), 2 * of("Loads") + of("Regions"));
    assert_eq!(count("<b class=\"good\">held</b>"), of("Verdicts"));
    for expected in [
        "keyward dev fault down us-east-1",
        "without an answered call (RTO)",
        "keyward drill run",
        "Regions agree",
    ] {
        assert!(dom.contains(expected), "{expected} is not in the page");
    }
    let picture = std::fs::metadata(profile.path().join("page.png")).map_or(0, |file| file.len());
    assert!(picture > 20_000, "the page is drawn in {picture} bytes");
}

const RED: &str = r#"
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

#[test]
fn a_verdict_can_be_red() {
    let _turn = Turn::wait();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("red.toml");
    std::fs::write(&file, RED).expect("written");
    let report = folder.path().join("report");
    let played = play(&file, &report, 0, &[]);
    assert!(!played.status.success(), "{}", text(&played.stdout));
    assert!(text(&played.stderr).contains("not all of what was promised held"));
    assert!(text(&played.stdout).contains("DisabledException"), "{}", text(&played.stdout));
    let junit = std::fs::read_to_string(report.join("junit.xml")).expect("verdicts");
    assert!(junit.contains("failures=\"1\""), "{junit}");
    let verified = keyward(&["drill", "verify", report.to_str().expect("a path")]);
    assert!(verified.status.success(), "a red report is a true one: {}", text(&verified.stderr));
    let played = play(&file, &report, 0, &["--expect-fail"]);
    assert!(played.status.success(), "{}", text(&played.stderr));

    let broken = folder.path().join("broken.toml");
    std::fs::write(&broken, RED.replace("key disable", "key disabel")).expect("written");
    let told = keyward(&["drill", "check", broken.to_str().expect("a path")]);
    assert!(!told.status.success());
    let told = text(&told.stderr);
    assert!(told.contains("broken.toml:15:7:") && told.contains("'disable'"), "{told}");
}

/// A deployment that is there already.
struct Deployment {
    folder: tempfile::TempDir,
    up: Child,
    port: u16,
}

impl Deployment {
    fn start() -> Self {
        let (folder, port) = (tempfile::tempdir().expect("a folder"), port_base(1));
        let mut up = Command::new(KEYWARD)
            .args(["dev", "up", "--regions", "us-east-1", "--nodes", "1"])
            .args(["--port-base", &port.to_string(), "--data"])
            .arg(folder.path().join("data"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("keyward dev up");
        let mut lines = BufReader::new(up.stdout.take().expect("its output")).lines();
        let ready = lines.any(|line| line.is_ok_and(|line| line.contains("are up and linked")));
        assert!(ready, "keyward dev up did not become ready");
        Self { folder, up, port }
    }

    fn pki(&self, name: &str) -> String {
        self.folder.path().join("data/us-east-1/pki").join(name).display().to_string()
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = Command::new(KEYWARD)
            .args(arguments)
            .env("KEYWARD_ENDPOINTS", format!("127.0.0.1:{}", self.port + 1))
            .env("KEYWARD_CA", self.pki("ca.pem"))
            .env("KEYWARD_CERT", self.pki("dev.pem"))
            .env("KEYWARD_KEY", self.pki("dev.key"))
            .output()
            .expect("keyward runs");
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    }

    /// A drill of its owner's.
    fn drill(&self) -> String {
        let fault = |what: &str| {
            let data = self.folder.path().join("data");
            format!("{KEYWARD} dev fault {what} --data {}", data.display())
        };
        format!(
            r#"
name = "ours"
lasts = "6s"
[attach]
allow = ["key disable", "key enable", "freeze", "thaw"]
[[attach.command]]
name = "freeze"
run = "{}"
[[attach.command]]
name = "thaw"
run = "{}"
[[attach.region]]
name = "us-east-1"
endpoints = ["127.0.0.1:{}"]
ca = "{}"
certificate = "{}"
private_key = "{}"
operator_certificate = "{}"
operator_key = "{}"
[[key]]
name = "orders"
id = "alias/rehearsal"
regions = ["us-east-1"]
[[load]]
name = "app"
region = "us-east-1"
key = "orders"
rate = 20
[[step]]
at = "1s"
do = "freeze"
[[step]]
at = "2s"
do = "thaw"
[[step]]
name = "disabled"
at = "3s"
run = "key disable {{orders}}"
[[step]]
at = "4s"
run = "key enable {{orders}}"
[[promise]]
name = "a moment's outage is no more than that"
region = "us-east-1"
until = "3s"
rto_max = "2s"
[[promise]]
name = "nobody uses what is disabled"
load = "app"
until = "4s"
after = "disabled"
last_success_max = "0s"
"#,
            fault("pause us-east-1"),
            fault("heal"),
            self.port + 1,
            self.pki("ca.pem"),
            self.pki("dev.pem"),
            self.pki("dev.key"),
            self.pki("operator.pem"),
            self.pki("operator.key"),
        )
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        crate::support::signal(&self.up, rustix::process::Signal::TERM);
        drop(self.up.wait());
    }
}

#[test]
fn a_drill_attaches_to_what_is_there_and_does_what_is_allowed_and_nothing_else() {
    let _turn = Turn::wait();
    let there = Deployment::start();
    there.run(&["key", "create", "--alias", "alias/rehearsal"]);
    let file = there.folder.path().join("ours.toml");
    let report = there.folder.path().join("report");

    // Not listed: refused before anything happens.
    std::fs::write(&file, there.drill().replace("\"key disable\", ", "")).expect("written");
    for verb in ["check", "run"] {
        let told = Command::new(KEYWARD)
            .args(["drill", verb, file.to_str().expect("a path")])
            .current_dir(there.folder.path())
            .output()
            .expect("keyward runs");
        assert!(!told.status.success());
        let told = text(&told.stderr);
        assert!(
            told.contains("ours.toml:38:7: this deployment does not allow 'key disable'"),
            "{told}"
        );
        assert!(told.contains("add \"key disable\" to allow"), "{told}");
    }
    assert!(!there.folder.path().join("drill-report").exists(), "nothing is half done");
    // A key that is not there is told before anything happens, too.
    std::fs::write(&file, there.drill().replace("alias/rehearsal", "alias/nobody"))
        .expect("written");
    let told = play(&file, &report, 0, &[]);
    let told = text(&told.stderr);
    assert!(told.contains("NotFoundException") && told.contains("nothing was done yet"), "{told}");
    assert!(there.run(&["key", "describe", "alias/rehearsal"]).contains("Enabled"));

    std::fs::write(&file, there.drill()).expect("written");
    let played = play(&file, &report, 0, &[]);
    assert!(played.status.success(), "{}{}", text(&played.stdout), text(&played.stderr));
    let shown = report.to_str().expect("a path");
    let verified = keyward(&["drill", "verify", shown, "--output", "json"]);
    assert!(verified.status.success(), "{}", text(&verified.stderr));
    // Signed by the operator of that deployment.
    let told = std::fs::read_to_string(report.join("report.json")).expect("a report");
    let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    let operator = std::fs::read_to_string(there.pki("operator.pem")).expect("a certificate");
    assert_eq!(told["Signature"]["Certificate"].as_str(), Some(operator.as_str()));
    let events = told["Report"]["Events"].as_array().expect("steps");
    assert!(events.iter().all(|event| event["Done"] == true), "{events:?}");
    assert_eq!(events.len(), 4);
}
