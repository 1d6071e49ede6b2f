//! Backups: saved while the Region serves, proved, and a Region out of one when all nodes are lost.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use keyward_client::Repeat;
use keyward_proto::v1;
use serde_json::Value;

use crate::support::{
    KEYWARD, Load, Region, code, create_key, decrypt, encrypt, roots_of, schedule_deletion,
    wait_until,
};

/// What a command printed, and whether it went well.
fn keyward(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(KEYWARD).args(arguments).output().expect("keyward runs");
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    (output.status.success(), text)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path")
}

/// A machine for one more node, with a configuration and nothing else.
fn machine(region: &mut Region) -> (u16, PathBuf) {
    let node = region.adopt();
    fs::create_dir_all(region.node_folder(node)).expect("a folder");
    let mut config = fs::read_to_string(region.config(1)).expect("a configuration");
    let ports = |offset: u16| (region.port_base + offset + 1, region.port_base + offset + node);
    // The door's port, and the one that the node is observed at.
    for offset in [0, 100] {
        let (old, new) = ports(offset);
        config = config.replace(&format!(":{old}\""), &format!(":{new}\""));
    }
    fs::write(region.config(node), config).expect("written");
    (node, region.config(node))
}

async fn until_deleted(region: &Region, key: &str) {
    let client = region.client(&[]);
    wait_until("the key is gone", Duration::from_secs(60), async || {
        let request = v1::GetKeyDeletionStatusRequest { key_id: key.to_owned() };
        let status = client
            .key(
                Repeat::Safe,
                request,
                |mut c, r| async move { c.get_key_deletion_status(r).await },
            )
            .await;
        status.is_ok_and(|status| {
            status.key_state == "Deleted" && status.nodes.iter().all(|n| n.gone)
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_lost_all_nodes_is_restored_and_what_was_deleted_stays_so() {
    let mut region = Region::start(3);
    region.wait_serving(3).await;
    let client = region.client(&[]);
    let kept = create_key(&client).await.expect("a key");
    let doomed = create_key(&client).await.expect("a key");
    let blob = encrypt(&client, &kept).await.expect("a ciphertext").ciphertext_blob;
    let doomed_blob = encrypt(&client, &doomed).await.expect("a ciphertext").ciphertext_blob;
    region.run_ok(&["alias", "create", "alias/doomed", &doomed]);

    // Saved under load, as a file and as a stream; it says what it is and who made it.
    let file = region.folder.path().join("one.snapshot");
    let load = Load::start(vec![region.client(&[1]), region.client(&[2])], &kept, Duration::ZERO);
    let saved: Value = serde_json::from_str(&region.run_ok(&[
        "--output",
        "json",
        "snapshot",
        "save",
        text(&file),
    ]))
    .expect("JSON");
    let stream = region.run(&["snapshot", "save"]);
    load.end_well().await;
    assert_eq!(saved["Keys"], 2);
    assert!(stream.status.success() && stream.stdout.starts_with(b"KEYWARD SNAPSHOT"));
    let again = region.run(&["snapshot", "save", text(&file)]);
    assert!(!again.status.success(), "a backup is not overwritten");
    let inspected = region.run_ok(&["snapshot", "inspect", text(&file)]);
    assert!(
        inspected.contains("by this Region's authority") && inspected.contains("(node 3)"),
        "{inspected}"
    );
    let config = region.config(1);
    let (proved, told) = keyward(&["snapshot", "verify", text(&file), "--config", text(&config)]);
    assert!(proved && told.contains("TokensOpened") && told.contains("records since"), "{told}");
    let refused = region.run_as("dev", &["snapshot", "save", "-"]);
    assert!(refused.contains("is not an operator"), "{refused}");

    // Half of it is nothing.
    let half = region.folder.path().join("half.snapshot");
    let whole = fs::read(&file).expect("the file");
    fs::write(&half, &whole[..whole.len() - 100]).expect("written");
    let (proved, told) = keyward(&["snapshot", "verify", text(&half), "--config", text(&config)]);
    assert!(!proved && told.contains("truncated"), "{told}");

    // Over a living Region nothing is restored, and nothing is left of the try.
    let (node, restored_config) = machine(&mut region);
    let roots = region.config(2);
    let restore = |file: &Path, config: &Path, more: &[&str]| {
        let all = ["--output", "json", "snapshot", "restore", text(file), "--config", text(config)];
        keyward(&[&all[..], &["--roots-of", text(&roots)], more].concat())
    };
    let (done, told) = restore(&file, &restored_config, &[]);
    assert!(!done && told.contains("lives") && told.contains("node 1 answers"), "{told}");
    let left = fs::read_dir(region.node_folder(node)).expect("the folder").count();
    assert_eq!(left, 1, "the configuration alone");
    let named = region.folder.path().join("named.toml");
    let config = fs::read_to_string(&restored_config).expect("a configuration");
    fs::write(&named, config.replacen("[node]\n", "[node]\nid = 1\n", 1)).expect("written");
    let (done, told) = restore(&file, &named, &[]);
    assert!(!done && told.contains("node.id"), "{told}");

    // Later one key is deleted; then all nodes are lost.
    schedule_deletion(&client, &doomed, 7).await;
    region.run_ok(&["dev", "clock", "advance", "8d"]);
    until_deleted(&region, &doomed).await;
    for lost in 1..=3 {
        region.kill(lost);
    }
    let data = region.node_folder(node).join("data");
    fs::create_dir_all(data.join("state")).expect("a folder");
    let (done, told) = restore(&file, &restored_config, &[]);
    assert!(!done && told.contains("is not empty (state)"), "{told}");
    fs::remove_dir_all(&data).expect("removed");

    let lost_data = region.node_folder(1).join("data");
    let tombstones = ["--tombstones", text(&lost_data)];
    let (done, told) =
        restore(&file, &restored_config, &[&tombstones[..], &["--resurrect", &kept]].concat());
    assert!(!done && told.contains("nothing to resurrect"), "{told}");
    let (done, told) = restore(&file, &restored_config, &tombstones);
    assert!(done, "{told}");
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(told["DeletedLater"][0], doomed.as_str());
    assert_eq!(told["Keys"], 1);
    region.start_node(node);
    region.wait_serving(1).await;
    let here = region.client(&[node]);
    assert_eq!(decrypt(&here, &blob).await.expect("it opens").plaintext, b"plaintext");
    assert_eq!(code(encrypt(&here, &doomed).await), "NotFoundException");
    assert_eq!(code(encrypt(&here, "alias/doomed").await), "NotFoundException");
    assert_ne!(code(decrypt(&here, &doomed_blob).await), "ok");
    create_key(&here).await.expect("it goes on");

    // A lost node that comes back is refused, and ends.
    region.start_node(1);
    wait_until("a lost node is refused", Duration::from_secs(20), async || {
        region.log(1).contains("was given up")
    })
    .await;
    wait_until("and ends", Duration::from_secs(20), async || region.has_ended(1)).await;

    // It grows again, restarts, and is saved again; a new snapshot is one of the new history.
    region.stop(node);
    region.start_node(node);
    region.wait_serving(1).await;
    let second = region.folder.path().join("two.snapshot");
    let saved: Value = serde_json::from_str(&region.run_ok(&[
        "--output",
        "json",
        "snapshot",
        "save",
        text(&second),
    ]))
    .expect("JSON");
    assert_eq!(saved["Keys"], 2);
    region.stop(node);

    // Brought back by name only. The later snapshot tells as much as an old folder.
    let (other, other_config) = machine(&mut region);
    let later = ["--tombstones", text(&second), "--resurrect", &doomed];
    let own = region.config(node);
    let (done, told) =
        restore(&file, &other_config, &[&later[..], &["--roots-of", text(&own)]].concat());
    assert!(done, "{told}");
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(
        (&told["Keys"], &told["Resurrected"][0]),
        (&Value::from(2), &Value::from(doomed.as_str()))
    );
    region.start_node(other);
    region.wait_serving(1).await;
    let opened = decrypt(&region.client(&[other]), &doomed_blob).await.expect("it opens again");
    assert_eq!(opened.plaintext, b"plaintext");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keepers_of_shares_open_a_snapshot() {
    let mut region = Region::start(1);
    region.wait_serving(1).await;
    let client = region.client(&[]);
    let key = create_key(&client).await.expect("a key");
    let blob = encrypt(&client, &key).await.expect("a ciphertext").ciphertext_blob;
    let first = roots_of(&region, 1).await.remove(0);
    let path = region.node_folder(1).join("shares.root").display().to_string();
    region
        .run_ok(&["root", "add", "1", "shamir", "--path", &path, "--needed", "2", "--shares", "3"]);
    let roots = roots_of(&region, 1).await;
    let root = roots.into_iter().find(|id| id.starts_with("shamir:")).expect("it");
    let share = |number: u8| {
        let told = region.run_ok(&["--output", "json", "root", "take-share", "1", &root]);
        let told: Value = serde_json::from_str(&told).expect("JSON");
        let file = region.folder.path().join(format!("share-{number}"));
        fs::write(&file, told["Share"].as_str().expect("a share")).expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("its owner's alone");
        file
    };
    let shares = [share(1), share(2), share(3)];
    region.run_ok(&["root", "remove", "1", &first]);
    let file = region.folder.path().join("one.snapshot");
    region.run_ok(&["snapshot", "save", text(&file)]);

    // Too few of them open nothing, and a damaged one is named.
    let config = region.config(1);
    let verify = |shares: &[&Path]| {
        let given = shares.iter().flat_map(|share| ["--share", text(share)]);
        let given: Vec<&str> = given.collect();
        keyward(
            &[&["snapshot", "verify", text(&file), "--config", text(&config)], &given[..]].concat(),
        )
    };
    let (proved, told) = verify(&[]);
    assert!(!proved && told.contains("0 of 2 shares were given"), "{told}");
    let (proved, told) = verify(&[&shares[1]]);
    assert!(!proved && told.contains("1 of 2 shares were given"), "{told}");
    let damaged = region.folder.path().join("damaged");
    let good = fs::read_to_string(&shares[0]).expect("a share");
    let other =
        if good.contains('7') { good.replacen('7', "8", 1) } else { good.replacen('8', "7", 1) };
    fs::write(&damaged, other).expect("written");
    fs::set_permissions(&damaged, fs::Permissions::from_mode(0o600)).expect("its owner's alone");
    let (proved, told) = verify(&[&shares[1], &damaged]);
    assert!(!proved && told.contains("damaged: "), "{told}");
    let (proved, told) = verify(&[&shares[2], &shares[0]]);
    assert!(proved && told.contains("shamir:"), "{told}");

    // A Region comes out of it, on a machine that has a root of its own; no root in shares is made on the way.
    let (node, restored) = machine(&mut region);
    region.kill(1);
    let record = region.node_folder(1).join("data/roots.toml");
    let restore = |config: &Path| {
        let all = ["snapshot", "restore", text(&file), "--config", text(config)];
        let roots = ["--roots-of", text(&record)];
        let given = ["--share", text(&shares[0]), "--share", text(&shares[1])];
        keyward(&[&all[..], &roots, &given].concat())
    };
    let usual = fs::read_to_string(&restored).expect("a configuration");
    let in_shares = usual.replacen(
        "provider = \"file\"\n",
        "provider = \"shamir\"\nneeded = 2\nshares = 3\n",
        1,
    );
    assert_ne!(usual, in_shares);
    fs::write(&restored, in_shares).expect("written");
    let (done, told) = restore(&restored);
    assert!(!done && told.contains("nobody would be given its shares"), "{told}");
    fs::write(&restored, usual).expect("written");
    let (done, told) = restore(&restored);
    assert!(done, "{told}");
    region.start_node(node);
    region.wait_serving(1).await;
    let opened = decrypt(&region.client(&[node]), &blob).await.expect("it opens");
    assert_eq!(opened.plaintext, b"plaintext");
}
