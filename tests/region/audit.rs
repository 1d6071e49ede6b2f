//! Everything is on record: every call, refused ones too, on the node that answered it.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use keyward_env::{Env, RealEnv};
use serde_json::Value;

use crate::support::{
    KEYWARD, Region, code, create_key, decrypt, encrypt, set_enabled, wait_until,
};

/// The records in a folder, as `keyward audit query` tells them.
fn records(folder: &Path, arguments: &[&str]) -> Vec<Value> {
    let output = Command::new(KEYWARD)
        .args(["--output", "json", "audit", "query", "--folder"])
        .arg(folder)
        .args(arguments)
        .output()
        .expect("keyward runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.is_empty(), "audit query: {error}");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("a record is JSON"))
        .collect()
}

fn names(records: &[Value]) -> Vec<String> {
    records
        .iter()
        .map(|r| {
            let error = r["errorCode"].as_str().unwrap_or("ok");
            format!("{} {error}", r["eventName"].as_str().unwrap_or_default())
        })
        .collect()
}

/// What `/readyz` says.
pub fn ready(region: &Region, node: u16) -> (bool, String) {
    let port = region.port_base + 100 + node;
    let mut answer = String::new();
    let asked = std::net::TcpStream::connect(("127.0.0.1", port)).and_then(|mut stream| {
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        stream.read_to_string(&mut answer)
    });
    assert!(asked.is_ok(), "readiness is answered");
    (answer.starts_with("HTTP/1.1 200"), answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_leaves_one_record_and_survives_kill() {
    let mut region = Region::start(1);
    region.wait_serving(1).await;
    let folder = region.node_folder(1).join("data/audit");
    let client = region.client(&[]);
    let key = create_key(&client).await.expect("a key");
    let before = records(&folder, &[]).len();
    let blob = encrypt(&client, &key).await.expect("a ciphertext").ciphertext_blob;
    decrypt(&client, &blob).await.expect("it opens");
    set_enabled(&client, &key, false).await.expect("disabled");
    assert_eq!(code(encrypt(&client, &key).await), "DisabledException");
    let unknown = "1234abcd-12ab-34cd-56ef-1234567890ab";
    assert_eq!(code(encrypt(&client, unknown).await), "NotFoundException");
    // An operator uses no keys; that is on record, too.
    let operator = region.client_as("operator", &[], Duration::from_secs(5));
    assert_eq!(code(encrypt(&operator, &key).await), "AccessDeniedException");
    region.run_ok(&["cluster", "rotate-domain-key"]);
    // The last answer has left: the record must be with the operating system.
    region.kill(1);
    let all = records(&folder, &[]);
    let new: Vec<Value> =
        all[before..].iter().filter(|r| r["eventName"] != "ClusterStatus").cloned().collect();
    assert_eq!(
        names(&new),
        [
            "Encrypt ok",
            "Decrypt ok",
            "DisableKey ok",
            "Encrypt DisabledException",
            "Encrypt NotFoundException",
            "Encrypt AccessDenied",
            "RotateDomainKey ok",
        ]
    );
    let encrypted = &new[0];
    assert_eq!(encrypted["eventSource"], "kms.amazonaws.com");
    assert_eq!(encrypted["userIdentity"]["arn"], "arn:aws:iam::111122223333:user/dev");
    assert_eq!(encrypted["requestParameters"]["keyId"], key.as_str());
    assert!(encrypted["resources"][0]["ARN"].as_str().expect("an ARN").ends_with(&key));
    assert_eq!(encrypted["sourceIPAddress"], "127.0.0.1");
    assert_eq!(encrypted["tlsDetails"]["tlsVersion"], "TLSv1.3");
    assert_eq!(encrypted["readOnly"], true);
    assert_eq!(new[2]["readOnly"], false);
    assert!(new[1]["additionalEventData"]["keyMaterialId"].is_string());
    assert!(new[3]["resources"][0]["ARN"].as_str().expect("an ARN").ends_with(&key));
    assert_eq!(new[6]["eventSource"], "operator.keyward");
    let text = all.iter().map(Value::to_string).collect::<String>();
    assert!(!text.contains("plaintext\""), "no plaintext in a record");
    assert_eq!(records(&folder, &["--key-id", &key, "--event", "Encrypt", "--newest"]).len(), 3);
    assert_eq!(records(&folder, &["--error", "AccessDenied"]).len(), 1);

    // Numbers go on without a gap over the restart.
    region.start_node(1);
    region.wait_serving(1).await;
    drop(encrypt(&client, &key).await);
    let all = records(&folder, &[]);
    let number = |r: &Value| r["additionalEventData"]["keyward"]["sequence"].as_u64();
    for pair in all.windows(2) {
        assert_eq!(number(&pair[0]).map(|n| n + 1), number(&pair[1]), "{pair:?}");
    }
}

/// A leader whose trail cannot be written refuses with that reason, hands over, is not ready, and comes back by
/// itself once it can.
async fn suffers_and_comes_back(
    region: &Region,
    key: &str,
    reason: &str,
    harm: impl FnOnce(),
    heal: impl FnOnce(),
) {
    region.have_lead(1).await;
    assert_eq!(region.leader().await, 1);
    let client = region.client(&[1]);
    harm();
    wait_until("the node refuses", Duration::from_secs(20), async || {
        encrypt(&client, key).await.is_err_and(|error| error.message.contains("audit trail"))
    })
    .await;
    let error = encrypt(&client, key).await.expect_err("refused");
    assert!(error.retryable && error.message.contains(reason), "{error}");
    let (is_ready, answer) = ready(region, 1);
    assert!(!is_ready && answer.contains("audit trail") && answer.contains(reason), "{answer}");
    wait_until("another node leads", Duration::from_secs(10), async || {
        let others = region.client_as("operator", &[2, 3], Duration::from_secs(2));
        let request = keyward_proto::v1::ClusterStatusRequest {};
        let status = others
            .operator(keyward_client::Repeat::Safe, request, |mut c, r| async move {
                c.cluster_status(r).await
            })
            .await;
        status.is_ok_and(|status| status.leader_id.is_some_and(|leader| leader != 1))
    })
    .await;
    for node in [2, 3] {
        let client = region.client(&[node]);
        assert_eq!(code(encrypt(&client, key).await), "ok", "node {node} serves");
    }
    heal();
    wait_until("the node is back", Duration::from_secs(20), async || {
        encrypt(&client, key).await.is_ok() && ready(region, 1).0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_audit_disk_is_full_serves_nothing_and_comes_back() {
    let mut region = Region::start(3);
    region.wait_serving(3).await;
    let key = create_key(&region.client(&[])).await.expect("a key");
    let small = region.folder.path().join("small");
    fs::create_dir(&small).expect("made");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"])
        .arg(&small)
        .status()
        .is_ok_and(|status| status.success());
    if !mounted {
        eprintln!("skipped: mounting a small file system is not permitted here");
        return;
    }
    let text = fs::read_to_string(region.config(1)).expect("read");
    let text = text
        .replace("segment_bytes = 8388608", "segment_bytes = 65536")
        .replace("[audit]", &format!("[audit]\nfolder = \"{}\"", small.join("audit").display()));
    assert!(text.contains("65536") && text.contains("small/audit"), "{text}");
    fs::write(region.config(1), text).expect("written");
    region.stop(1);
    region.start_node(1);
    region.wait_serving(3).await;
    let ballast = small.join("ballast");
    let fill = || {
        let of = format!("of={}", ballast.display());
        drop(Command::new("dd").args(["if=/dev/zero", "bs=4k", &of]).output());
    };
    let free = || fs::remove_file(&ballast).expect("removed");
    suffers_and_comes_back(&region, &key, "space", fill, free).await;
    // What was answered is there, what was refused need not be.
    let ok = |r: &&Value| r["eventName"] == "Encrypt" && r.get("errorCode").is_none();
    assert!(records(&small.join("audit"), &[]).iter().filter(ok).count() >= 1);
    region.stop(1);
    RealEnv.sleep(Duration::from_millis(100)).await;
    let unmounted = Command::new("umount").arg(&small).status();
    assert!(unmounted.is_ok_and(|status| status.success()));
}

/// The disk takes writes and fails to sync them. What was answered before is on record once, without a gap, and so
/// is what comes after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_audit_disk_fails_to_sync_serves_nothing_and_comes_back() {
    let mut region = Region::start(3);
    let Some(shim) = region.compile("failing_sync", include_str!("shims/failing_sync.c")) else {
        return;
    };
    region.wait_serving(3).await;
    let key = create_key(&region.client(&[])).await.expect("a key");
    let flag = region.folder.path().join("fail-sync");
    region.stop(1);
    region.environment = vec![
        ("LD_PRELOAD".to_owned(), shim.display().to_string()),
        ("KEYWARD_TEST_FAIL_SYNC".to_owned(), flag.display().to_string()),
    ];
    region.start_node(1);
    region.environment.clear();
    region.wait_serving(3).await;
    let harm = || fs::write(&flag, "").expect("written");
    let heal = || fs::remove_file(&flag).expect("removed");
    suffers_and_comes_back(&region, &key, "cannot sync", harm, heal).await;
    set_enabled(&region.client(&[1]), &key, false).await.expect("disabled");
    region.kill(1);
    let all = records(&region.node_folder(1).join("data/audit"), &[]);
    let number = |r: &Value| r["additionalEventData"]["keyward"]["sequence"].as_u64();
    for pair in all.windows(2) {
        assert_eq!(number(&pair[0]).map(|n| n + 1), number(&pair[1]), "{pair:?}");
    }
    assert_eq!(names(&all).iter().filter(|name| *name == "DisableKey ok").count(), 1);
}
