//! The files in `deploy/`, as three machines would run them.

use std::fs;
use std::time::Duration;

use keyward_env::{Env, RealEnv};
use serde_json::Value;

use crate::support::machines::Machines;

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = RealEnv.boot_now() + Duration::from_secs(20);
    while !holds() {
        assert!(RealEnv.boot_now() < end, "{what}: not in time");
        RealEnv.sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_machines_are_founded_joined_cut_and_healed_by_the_shipped_files() {
    let Some(mut machines) = Machines::new() else { return };
    for node in 1..=3 {
        machines.configure(node);
    }
    machines.found();
    // A second founder on the same machine is refused, and changes nothing.
    let first = machines.config(1).display().to_string();
    let again = machines.on(1, &["cluster", "init", "--config", &first]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("is there already"));
    let made = machines.on_ok(1, &["--output", "json", "key", "create", "--alias", "alias/app"]);
    let made: Value = serde_json::from_str(&made).expect("JSON");
    let key = made["KeyId"].as_str().expect("a key").to_owned();
    let pki = machines.etc(1);
    let plain = pki.join("plain");
    fs::write(&plain, b"to be kept").expect("written");
    let blob = machines.on_ok(2, &["key", "encrypt", "alias/app", &plain.display().to_string()]);
    let sealed = pki.join("sealed");
    fs::write(&sealed, blob).expect("written");
    let opens = |node: usize| {
        let endpoint = machines.reached_at(node);
        let arguments = [
            "--endpoint",
            &endpoint,
            "--timeout",
            "5",
            "key",
            "decrypt",
            &sealed.display().to_string(),
        ];
        machines.on(node, &arguments).stdout == b"to be kept"
    };
    assert!((1..=3).all(opens), "every machine opens it");
    // A cable is out: that node refuses within a lease, the others go on; then it heals.
    machines.cable(3, "down");
    until("the node that is cut off refuses", || !opens(3)).await;
    machines.on_ok(1, &["key", "disable", &key]);
    assert!(!opens(1) && !opens(2), "disabled");
    machines.cable(3, "up");
    until("the node is back", || {
        let endpoint = machines.reached_at(3);
        let output = machines
            .on(3, &["--endpoint", &endpoint, "key", "decrypt", &sealed.display().to_string()]);
        String::from_utf8_lossy(&output.stderr).contains("DisabledException")
    })
    .await;
}
