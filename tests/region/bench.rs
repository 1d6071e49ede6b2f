//! `keyward bench` against real nodes: what it reports is what happened, and what it cannot do it says.

use std::fs;
use std::time::Duration;

use keyward_env::RealEnv;
use serde_json::Value;

use crate::support::{Region, create_key, set_enabled};

const PRINCIPAL: &str = "arn:aws:iam::111122223333:user/dev";

fn report(region: &Region, arguments: &[&str]) -> Value {
    let text = region.run_ok(&[&["bench", "--output", "json"], arguments].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn number(report: &Value, name: &str) -> f64 {
    report[name].as_f64().unwrap_or_else(|| panic!("{name} is no number: {report}"))
}

/// An open loop above a quota: every call is accounted for, and the quota kept both sides of its promise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bench_accounts_for_every_call_and_for_the_quota() {
    let region = Region::start(3);
    region.wait_serving(3).await;
    let limit = ["--limit", "200/s", "--burst", "50"];
    region.run_ok(&[&["quota", "set", "--principal", PRINCIPAL], &limit[..]].concat());
    let saved =
        |ending: &str| region.folder.path().join(format!("r.{ending}")).display().to_string();
    let (page, lines, whole) = (saved("html"), saved("csv"), saved("json"));
    let mix = "encrypt=6,decrypt=3,generate-data-key=1";
    let told = report(
        &region,
        &[
            "--rate",
            "400",
            "--duration",
            "5s",
            "--arrivals",
            "uniform",
            "--mix",
            mix,
            "--keys",
            "3",
            "--size",
            "32=3,4096=1",
            "--save",
            &page,
            "--save",
            &lines,
            "--save",
            &whole,
        ],
    );
    let count = |name: &str| told[name].as_u64().unwrap_or_else(|| panic!("{name}: {told}"));
    // Evenly: one more or less at the ends.
    assert!((1999..=2001).contains(&count("Meant")), "{told}");
    assert_eq!(count("Offered"), count("Meant"));
    assert_eq!(count("Answered") + count("Throttled"), count("Offered"), "{told}");
    // 200 a second for 5 s, and what was left of 50 at once after a second of it.
    assert!((950..=1070).contains(&count("Answered")), "{}", count("Answered"));
    let refusals = told["Refusals"].as_array().expect("refusals");
    assert_eq!(refusals.len(), 1);
    assert_eq!(refusals[0]["How"], "Throttled");
    assert!(refusals[0]["Reason"].as_str().is_some_and(|reason| reason.contains(PRINCIPAL)));
    let quota = told["Quotas"].as_array().and_then(|all| all.first()).expect("a quota");
    assert_eq!((&quota["Verdict"], quota["Limit"].as_u64()), (&Value::from("Kept"), Some(200)));
    assert!(quota["Wanted"].as_u64() > quota["Admitted"].as_u64());
    let operations = told["Operations"].as_array().expect("operations");
    assert_eq!(operations.len(), 3);
    let calls = |operation: &Value| operation["Calls"].as_u64().unwrap_or(0);
    assert_eq!(operations.iter().map(calls).sum::<u64>(), count("Offered"));
    assert!(number(&told["Latency"], "P50Ms") <= number(&told["Latency"], "P99Ms"));
    let server = &told["Server"];
    assert!(number(server, "CpuUsPerCall") > 1.0 && number(server, "CpuUsPerCall") < 20_000.0);
    assert_eq!(server["Nodes"].as_array().map(Vec::len), Some(3));
    assert!(number(&told["Client"], "CpuUsPerCall") > 1.0);

    let page = fs::read_to_string(page).expect("a page");
    for part in ["<svg", "Goodput over time", "Quota headroom", "kept", PRINCIPAL, "</html>"] {
        assert!(page.contains(part), "the page has no {part}");
    }
    assert!(!page.contains("NaN") && !page.contains("http://") && !page.contains("<script"));
    let lines = fs::read_to_string(lines).expect("lines");
    let rows: Vec<&str> = lines.lines().collect();
    assert!((5..=7).contains(&(rows.len() - 1)), "{lines}");
    let columns = rows[0].split(',').count();
    assert!(rows.iter().all(|row| row.split(',').count() == columns), "{lines}");
    let whole: Value =
        serde_json::from_str(&fs::read_to_string(whole).expect("JSON")).expect("JSON");
    assert_eq!(whole["Answered"], told["Answered"]);

    // Keys that it made wait for their deletion.
    let keys = region.run_ok(&["key", "list", "--output", "json"]);
    let keys: Value = serde_json::from_str(&keys).expect("JSON");
    for key in keys["Keys"].as_array().expect("keys") {
        let id = key["KeyId"].as_str().expect("an id");
        let shown = region.run_ok(&["key", "describe", id, "--output", "json"]);
        assert!(shown.contains("PendingDeletion"), "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closed_loops_streams_principals_and_searches() {
    let region = Region::start(1);
    region.wait_serving(1).await;
    let key = create_key(&region.client(&[])).await.expect("a key");
    let brief = ["--duration", "1s", "--warm-up", "200ms"];
    let closed = report(
        &region,
        &[&["--in-flight", "4", "--streams", "--key-id", &key], &brief[..]].concat(),
    );
    assert!(number(&closed, "Answered") > 100.0, "{closed}");
    assert_eq!(number(&closed, "Failed") + number(&closed, "Refused"), 0.0, "{closed}");

    // Changes go through the log; principals are made, used and disabled.
    let mix = "encrypt=8,describe-key=1,update-key-description=1,create-key=1";
    let many = report(
        &region,
        &[&["--principals", "3", "--rate", "100", "--mix", mix], &brief[..]].concat(),
    );
    assert_eq!(number(&many, "Failed") + number(&many, "Refused"), 0.0, "{many}");
    assert_eq!(many["Operations"].as_array().map(Vec::len), Some(4), "{many}");
    let principals = region.run_ok(&["principal", "list", "--output", "json"]);
    let principals: Value = serde_json::from_str(&principals).expect("JSON");
    let benches = principals["Principals"].as_array().expect("principals").iter();
    let states = benches
        .filter(|one| one["Arn"].as_str().is_some_and(|arn| arn.contains("user/keyward-bench-")));
    let states: Vec<_> = states.map(|one| one["State"].as_str().expect("a state")).collect();
    assert_eq!(states, ["disabled"; 3]);
    // Again, by those that there are.
    report(&region, &[&["--principals", "2", "--rate", "50"], &brief[..]].concat());

    // A quota is the limit that a search finds.
    let limit = ["--limit", "300/s", "--burst", "15"];
    region.run_ok(&[&["quota", "set", "--principal", PRINCIPAL], &limit[..]].concat());
    let search =
        ["--search", "p99<500ms", "--rate", "100", "--key-id", &key, "--arrivals", "uniform"];
    let found = report(&region, &[&search, &brief[..]].concat());
    let probes = found["Probes"].as_array().expect("probes");
    let held = probes.iter().filter(|probe| probe["Held"] == true);
    let best = held.filter_map(|probe| probe["Rate"].as_f64()).fold(0.0, f64::max);
    // What a stall holds up is admitted later, and 15 at once come on top.
    assert!((100.0..=360.0).contains(&best), "{found}");
    assert!(probes.iter().any(|probe| probe["Held"] == false), "{found}");
}

/// A node dies in an open loop: callers go on elsewhere, and the report tells what failed meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_shows_in_the_report() {
    let mut region = Region::start(3);
    region.wait_serving(3).await;
    let leader = region.leader().await;
    let told = std::thread::scope(|scope| {
        let (runner, region) = (&region, &region);
        let bench = scope.spawn(move || {
            report(runner, &["--rate", "200", "--duration", "6s", "--timeout", "2"])
        });
        RealEnv.block_for(Duration::from_secs(4));
        let pid =
            rustix::process::Pid::from_raw(region.pid(leader).cast_signed()).expect("a process");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
        bench.join().expect("a report")
    });
    assert!(number(&told, "GoodputPerSecond") > 150.0, "{told}");
    assert!(told["Server"]["CpuUsPerCall"].is_null(), "a dead node's CPU is not known: {told}");
    let course = told["Course"].as_array().expect("seconds");
    let last = &course[course.len() - 1];
    assert!(number(last, "Answered") > 150.0, "the others go on: {last}");
    region.kill(leader);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_measured_is_told_before_or_in_the_report() {
    let region = Region::start(1);
    region.wait_serving(1).await;
    let client = region.client(&[]);
    let key = create_key(&client).await.expect("a key");
    let refused = |arguments: &[&str], words: &[&str]| {
        let output = region.run(&[&["bench", "--warm-up", "100ms"], arguments].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{arguments:?} succeeded");
        for word in words {
            assert!(error.contains(word), "{arguments:?} does not say {word:?}: {error}");
        }
        assert!(!error.contains("panicked"), "{error}");
    };
    refused(&["--rate", "fast"], &["'fast' is no rate", "next:"]);
    refused(&["--rate", "-5"], &["at least 0"]);
    refused(&["--rate", "100", "--in-flight", "3"], &["cannot be used with"]);
    refused(&["--in-flight", "0"], &["at least 1"]);
    refused(&["--duration", "0s"], &["measures nothing"]);
    refused(&["--mix", "encript=1"], &["no operation of a load", "encrypt, decrypt"]);
    refused(&["--mix", "encrypt=0"], &["weighs nothing"]);
    refused(&["--size", "5000"], &["1 to 4096 bytes"]);
    refused(&["--mix", "describe-key", "--streams"], &["an impossible mix", "next:"]);
    refused(&["--mix", "update-key-description", "--key-id", &key], &["an impossible mix"]);
    refused(&["--search", "fast"], &["no goal", "p99<5ms"]);
    refused(&["--save", "report.pdf"], &[".html, .json or .csv"]);
    refused(&["--save", "/no/such/folder/r.html"], &["no such folder"]);
    refused(&["--principals", "0"], &["out of range"]);
    refused(&["--key-id", "alias/nobody"], &["Encrypt is refused", "NotFound"]);
    refused(&["--endpoint", "127.0.0.1:1"], &["nothing listens there", "next:"]);
    // An administrator may make keys, and not use them.
    let who = [
        "--cert",
        &region.pki("admin.pem").display().to_string(),
        "--key",
        &region.pki("admin.key").display().to_string(),
    ]
    .map(str::to_owned);
    let who: Vec<&str> = who.iter().map(String::as_str).collect();
    region.run_ok(&[
        "principal",
        "create",
        "arn:aws:iam::111122223333:user/admin",
        "--kind",
        "administrator",
        "--out",
        &region.pki("admin").display().to_string(),
    ]);
    refused(&who, &["AccessDenied", "next:"]);
    set_enabled(&client, &key, false).await.expect("disabled");
    refused(&["--key-id", &key], &["Encrypt is refused", "Disabled"]);
    set_enabled(&client, &key, true).await.expect("enabled");

    // Without an operator there is a report, which says what it lacks; one endpoint of two is away, and it says so.
    let endpoints = format!("127.0.0.1:1,{}", region.endpoint(1));
    let own = [region.pki("dev.pem"), region.pki("dev.key")].map(|path| path.display().to_string());
    let told = report(
        &region,
        &[
            "--rate",
            "50",
            "--duration",
            "1s",
            "--key-id",
            &key,
            "--endpoint",
            &endpoints,
            "--operator-cert",
            &own[0],
            "--operator-key",
            &own[1],
        ],
    );
    assert!(told["Server"].is_null());
    let warnings = told["Warnings"].to_string();
    assert!(
        warnings.contains("needs an operator's certificate") && warnings.contains("is away"),
        "{warnings}"
    );
    assert!(number(&told, "Answered") > 20.0, "{told}");

    // More than this client can offer is told, and the client named.
    let told = report(
        &region,
        &[
            "--rate",
            "3000000",
            "--duration",
            "1s",
            "--key-id",
            &key,
            "--in-flight-max",
            "2000",
            "--timeout",
            "5",
        ],
    );
    assert_eq!(told["Client"]["IsLimit"], true, "{told}");
    assert!(told["Warnings"].to_string().contains("the client is the limit"), "{told}");
}
