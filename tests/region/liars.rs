//! Disks that lie, and files that are damaged: refused with the reason and the next step, or repaired. Never a wrong
//! answer, and the others go on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use keyward_env::{Env, RealEnv};

use crate::support::{Region, code, create_key, decrypt, encrypt, set_enabled, wait_until};

fn copy(from: &Path, to: &Path) {
    drop(fs::remove_dir_all(to));
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.is_ok_and(|status| status.success()), "a copy of {}", from.display());
}

/// The node ends, says why and what to do, and does so again when it is started again; the others serve.
async fn is_refused(region: &mut Region, node: u16, reason: &str, key: &str, blob: &[u8]) {
    wait_until("the node is refused and ends", Duration::from_secs(20), async || {
        region.has_ended(node)
    })
    .await;
    let log = region.log(node);
    assert!(log.contains(reason) && log.contains("cluster invite"), "{log}");
    region.start_node(node);
    wait_until("it does not start again", Duration::from_secs(10), async || region.has_ended(node))
        .await;
    let log = region.log(node);
    assert!(log.contains("may not take part any more"), "{log}");
    for other in (1..=3).filter(|other| *other != node) {
        let client = region.client(&[other]);
        assert_eq!(code(encrypt(&client, key).await), "ok", "node {other}");
        assert_eq!(decrypt(&client, blob).await.expect("it opens").plaintext, b"plaintext");
    }
}

/// A follower, so that what is tested is its return and not an election.
async fn follower(region: &Region) -> u16 {
    let leader = region.leader().await;
    (1..=3).find(|node| *node != leader).expect("a follower")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_disk_is_refused() {
    let mut region = Region::start(3);
    region.wait_serving(3).await;
    let key = create_key(&region.client(&[])).await.expect("a key");
    let blob = encrypt(&region.client(&[]), &key).await.expect("a ciphertext").ciphertext_blob;
    let node = follower(&region).await;
    region.stop(node);
    fs::remove_dir_all(region.node_folder(node).join("data")).expect("removed");
    region.start_node(node);
    is_refused(&mut region, node, "is empty", &key, &blob).await;
    // It comes back as a newcomer.
    region.run_ok(&["cluster", "remove", &node.to_string(), "--timeout", "20"]);
    let newcomer = region.join();
    region.wait_serving(3).await;
    let client = region.client(&[newcomer]);
    assert_eq!(decrypt(&client, &blob).await.expect("it opens").plaintext, b"plaintext");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_from_an_earlier_start_is_refused_in_a_cold_start_too() {
    let mut region = Region::start(3);
    region.wait_serving(3).await;
    let key = create_key(&region.client(&[])).await.expect("a key");
    let blob = encrypt(&region.client(&[]), &key).await.expect("a ciphertext").ciphertext_blob;
    let node = follower(&region).await;
    let (data, kept) = (region.node_folder(node).join("data"), region.folder.path().join("kept"));
    region.stop(node);
    copy(&data, &kept);
    region.start_node(node);
    region.wait_serving(3).await;
    set_enabled(&region.client(&[]), &key, true).await.expect("changed");
    RealEnv.sleep(Duration::from_millis(2500)).await;
    // All go down; one comes back with an old disk.
    for node in 1..=3 {
        region.kill(node);
    }
    copy(&kept, &data);
    for node in 1..=3 {
        region.start_node(node);
    }
    region.wait_serving(2).await;
    is_refused(&mut region, node, "older copy", &key, &blob).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_from_the_middle_of_the_last_run_is_refused() {
    let mut region = Region::start(3);
    region.wait_serving(3).await;
    let key = create_key(&region.client(&[])).await.expect("a key");
    let blob = encrypt(&region.client(&[]), &key).await.expect("a ciphertext").ciphertext_blob;
    let node = follower(&region).await;
    let (data, kept) = (region.node_folder(node).join("data"), region.folder.path().join("kept"));
    region.pause(node);
    copy(&data, &kept);
    region.resume(node);
    region.wait_serving(3).await;
    for round in 0..4 {
        set_enabled(&region.client(&[]), &key, round % 2 == 1).await.expect("changed");
    }
    RealEnv.sleep(Duration::from_millis(1500)).await;
    region.kill(node);
    copy(&kept, &data);
    region.start_node(node);
    is_refused(&mut region, node, "older copy", &key, &blob).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_nodes_disk_is_refused() {
    let mut region = Region::start(3);
    region.wait_serving(3).await;
    let leader = region.leader().await;
    let [one, two] = [1, 2, 3].into_iter().filter(|n| *n != leader).collect::<Vec<u16>>()[..]
    else {
        panic!("two followers")
    };
    region.stop(one);
    region.stop(two);
    let (own, others) =
        (region.node_folder(one).join("data"), region.node_folder(two).join("data"));
    let kept = region.folder.path().join("kept");
    copy(&own, &kept);
    copy(&others, &own);
    // The roots on record are the other's too: as on a machine that got the other's disk whole.
    region.start_node(one);
    wait_until("the node ends", Duration::from_secs(10), async || region.has_ended(one)).await;
    let log = region.log(one);
    assert!(log.contains(&format!("belongs to node {two}")), "{log}");
    copy(&kept, &own);
    region.start_node(one);
    region.start_node(two);
    region.wait_serving(3).await;
}

/// Each kind of file of a node: one of that kind, if there is one, and every table.
fn kinds(node: &Path) -> Vec<PathBuf> {
    let own = ["node.pem", "node.key", "root.key", "data/roots.toml"];
    let mut found: Vec<PathBuf> = own.iter().map(|name| node.join(name)).collect();
    for store in ["log", "state"] {
        let folder = node.join("data").join(store);
        let current = fs::read_to_string(folder.join("CURRENT-DB")).expect("read");
        let database = folder.join(current.trim());
        found.push(folder.join("CURRENT-DB"));
        let names: Vec<String> = fs::read_dir(&database)
            .expect("the database")
            .map(|entry| entry.expect("a file").file_name().to_string_lossy().into_owned())
            .collect();
        for kind in ["CURRENT", "IDENTITY"] {
            found.push(database.join(kind));
        }
        for (start, end) in [("MANIFEST-", ""), ("OPTIONS-", ""), ("", ".sst"), ("", ".log")] {
            let mut of_kind: Vec<&String> = names
                .iter()
                .filter(|name| {
                    name.starts_with(start) && name.ends_with(end) && !name.contains("LOG")
                })
                .filter(|name| fs::metadata(database.join(name)).is_ok_and(|meta| meta.len() > 0))
                .collect();
            of_kind.sort();
            let first = if end == ".sst" { 0 } else { of_kind.len().saturating_sub(1) };
            found.extend(of_kind[first..].iter().map(|name| database.join(name)));
        }
    }
    found
}

#[derive(Clone, Copy, Debug)]
enum Damage {
    Halved,
    Flipped,
    Deleted,
}

fn damage(path: &Path, how: Damage) {
    let mut bytes = fs::read(path).expect("read");
    match how {
        Damage::Halved => bytes.truncate(bytes.len() / 2),
        Damage::Flipped => {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
        }
        Damage::Deleted => {
            fs::remove_file(path).expect("removed");
            return;
        }
    }
    fs::write(path, bytes).expect("written");
}

/// Every kind of file, damaged in every way: the node serves right answers all the same, or ends and names what is
/// damaged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_is_repaired_or_named() {
    let mut region = Region::start(3);
    region.wait_serving(3).await;
    let client = region.client(&[]);
    let mut keys = Vec::new();
    for _ in 0..40 {
        keys.push(create_key(&client).await.expect("a key"));
    }
    let disabled = keys.pop().expect("a key");
    let blob = encrypt(&client, &keys[0]).await.expect("a ciphertext").ciphertext_blob;
    // A deletion has every node write its tables out, so that there are table files.
    let gone = create_key(&client).await.expect("a key");
    region.run_ok(&["key", "schedule-deletion", &gone, "--days", "7"]);
    region.run_ok(&["dev", "clock", "advance", "8d"]);
    wait_until("tables are on disk", Duration::from_secs(30), async || {
        region.run_ok(&["key", "deletion", "status", &gone]).matches("gone from every").count() == 3
    })
    .await;
    set_enabled(&client, &disabled, false).await.expect("disabled");
    let node = follower(&region).await;
    let (place, kept) = (region.node_folder(node), region.folder.path().join("kept"));
    region.stop(node);
    copy(&place, &kept);
    let mut failures = Vec::new();
    let mut tried = 0;
    for pristine in kinds(&kept) {
        let name = pristine.strip_prefix(&kept).expect("inside").to_owned();
        for how in [Damage::Halved, Damage::Flipped, Damage::Deleted] {
            tried += 1;
            copy(&kept, &place);
            damage(&place.join(&name), how);
            let before = region.log(node).len();
            region.start_node(node);
            let own = region.client_as("dev", &[node], Duration::from_millis(800));
            let end = RealEnv.boot_now() + Duration::from_secs(10);
            let verdict = loop {
                if region.has_ended(node) {
                    let said = region.log(node)[before..].to_owned();
                    let file = name.file_name().expect("a name").to_string_lossy().into_owned();
                    let store: PathBuf = name.iter().take(2).collect();
                    let named = said.contains(&file)
                        || said.contains(&store.display().to_string())
                        || said.contains(&format!("the disk of node {node}"))
                        || said.contains("files of `state`");
                    break if named { Ok("named") } else { Err(format!("not named: {said}")) };
                }
                match encrypt(&own, &keys[0]).await {
                    Ok(_) => break Ok("serves"),
                    Err(error) if RealEnv.boot_now() >= end => {
                        let said = &region.log(node)[before..];
                        break Err(format!("neither serves nor ends: {error}; it says {said}"));
                    }
                    Err(_) => RealEnv.sleep(Duration::from_millis(40)).await,
                }
            };
            match verdict {
                Ok("serves") => {
                    for key in &keys {
                        if code(encrypt(&own, key).await) != "ok" {
                            failures.push(format!("{} {how:?}: key {key} is lost", name.display()));
                        }
                    }
                    if code(encrypt(&own, &disabled).await) != "DisabledException" {
                        failures
                            .push(format!("{} {how:?}: a disabled key is used", name.display()));
                    }
                    if !decrypt(&own, &blob).await.is_ok_and(|open| open.plaintext == b"plaintext")
                    {
                        failures.push(format!("{} {how:?}: it opens wrongly", name.display()));
                    }
                    region.kill(node);
                }
                Ok(_) => {}
                Err(why) => {
                    failures.push(format!("{} {how:?}: {why}", name.display()));
                    if !region.has_ended(node) {
                        region.kill(node);
                    }
                }
            }
        }
    }
    assert!(tried >= 30, "only {tried} damages were tried");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
