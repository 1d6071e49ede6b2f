//! Roots are added, removed and moved while the Region serves: from a file to an HSM and back, in shares.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use keyward_env::{Env, RealEnv};

use crate::support::{
    KEYWARD, Load, Region, code, create_key, decrypt, encrypt, goes_on_for, roots_of, wait_until,
};

/// SoftHSM 2, from Debian.
const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
const PIN: &str = "8714-2260";

/// A token of the test's own. None, said aloud, where SoftHSM is not installed.
pub fn token(region: &mut Region) -> Option<PathBuf> {
    if !Path::new(MODULE).exists() {
        eprintln!("skipped: {MODULE} is not installed (Debian: softhsm2)");
        return None;
    }
    let folder = region.folder.path().join("tokens");
    std::fs::create_dir_all(&folder).expect("a folder");
    let conf = region.folder.path().join("softhsm2.conf");
    std::fs::write(&conf, format!("directories.tokendir = {}\n", folder.display()))
        .expect("written");
    let made = Command::new("softhsm2-util")
        .args([
            "--init-token",
            "--free",
            "--label",
            "keyward",
            "--so-pin",
            "00000000",
            "--pin",
            PIN,
        ])
        .env("SOFTHSM2_CONF", &conf)
        .output()
        .expect("softhsm2-util");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let pin = region.folder.path().join("pin");
    std::fs::write(&pin, PIN).expect("written");
    std::fs::set_permissions(&pin, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("mode");
    region.environment.push(("SOFTHSM2_CONF".to_owned(), conf.display().to_string()));
    Some(pin)
}

fn refused(region: &Region, arguments: &[&str]) -> String {
    let output = region.run(arguments);
    assert!(!output.status.success(), "{arguments:?} was taken");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_moves_from_a_file_to_an_hsm_and_back_while_it_serves() {
    let mut region = Region::start(3);
    let Some(pin) = token(&mut region) else { return };
    // The nodes must know where the token is.
    for node in 1..=3 {
        region.stop(node);
        region.start_node(node);
    }
    region.wait_serving(3).await;
    let key = create_key(&region.client(&[])).await.expect("a key");
    let blob = encrypt(&region.client(&[1]), &key).await.expect("a ciphertext").ciphertext_blob;
    let load = Load::start(vec![region.client(&[2])], &key, Duration::from_millis(1));
    let pin = pin.display().to_string();
    let hsm = |label: &'static str| {
        let text = ["pkcs11", "--module", MODULE, "--token-label", "keyward", "--key-label", label];
        text.iter().map(|s| (*s).to_owned()).chain(["--pin-file".to_owned(), pin.clone()]).collect()
    };
    let with = |head: &[&str], tail: Vec<String>| -> Vec<String> {
        head.iter().map(|s| (*s).to_owned()).chain(tail).collect()
    };
    let run = |region: &Region, arguments: Vec<String>| {
        region.run_ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let file = roots_of(&region, 2).await.remove(0);
    let last = refused(&region, &["root", "remove", "2", &file]);
    assert!(last.contains("last root") && last.contains("root add"), "{last}");
    let odd = refused(&region, &["root", "add", "2", "file", "--path", "relative.key"]);
    assert!(odd.contains("absolute"), "{odd}");

    run(&region, with(&["--timeout", "60", "root", "add", "2"], hsm("root-2")));
    let both = roots_of(&region, 2).await;
    assert_eq!(both.len(), 2, "{both:?}");
    let token_root = both.iter().find(|id| id.starts_with("pkcs11:")).expect("the token's").clone();
    region.run_ok(&["root", "remove", "2", &file]);
    assert_eq!(roots_of(&region, 2).await, vec![token_root.clone()]);
    let listed = region.run_ok(&["root", "list"]);
    assert!(listed.contains("token keyward, key root-2"), "{listed}");
    load.end_well().await;

    // It starts from the token alone: the file is not looked at any more.
    std::fs::rename(region.node_folder(2).join("root.key"), region.folder.path().join("away"))
        .expect("moved");
    region.stop(2);
    region.start_node(2);
    region.wait_serving(3).await;
    let client = region.client(&[2]);
    assert_eq!(decrypt(&client, &blob).await.expect("it opens").plaintext, b"plaintext");
    assert_eq!(code(encrypt(&client, &key).await), "ok");

    // And back, in one step, under load; a domain key that came meanwhile is there too.
    let load = Load::start(vec![region.client(&[2])], &key, Duration::from_millis(1));
    region.run_ok(&["cluster", "rotate-domain-key"]);
    let path = region.node_folder(2).join("second.key").display().to_string();
    region.run_ok(&[
        "--timeout",
        "60",
        "root",
        "rotate",
        "2",
        &token_root,
        "file",
        "--path",
        &path,
    ]);
    let now = roots_of(&region, 2).await;
    assert!(now.len() == 1 && now[0].starts_with("file:") && now[0] != file, "{now:?}");
    load.end_well().await;
    region.stop(2);
    region.start_node(2);
    region.wait_serving(3).await;
    assert_eq!(decrypt(&client, &blob).await.expect("it opens").plaintext, b"plaintext");
    region.run_ok(&["root", "status"]);

    // A wrong PIN is told, tries again by itself never, and leaves nothing behind.
    let wrong = region.folder.path().join("wrong-pin");
    std::fs::write(&wrong, "1234").expect("written");
    std::fs::set_permissions(&wrong, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("mode");
    let arguments = with(&["root", "add", "2"], hsm("root-2"));
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let wrong = wrong.display().to_string();
    *arguments.last_mut().expect("the PIN file") = &wrong;
    for _ in 0..2 {
        let error = refused(&region, &arguments);
        assert!(error.contains("PIN"), "{error}");
    }
    assert_eq!(roots_of(&region, 2).await, now);
}

/// The node is killed at many moments of adding and removing roots: each time it comes back, ends with one
/// registered root at least, and its copies are complete.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_while_its_roots_change_ends_whole() {
    let mut region = Region::start(3);
    region.wait_serving(3).await;
    let key = create_key(&region.client(&[])).await.expect("a key");
    let blob = encrypt(&region.client(&[1]), &key).await.expect("a ciphertext").ciphertext_blob;
    for round in 0..8u64 {
        let old = roots_of(&region, 2).await.remove(0);
        let path = region.node_folder(2).join(format!("root-{round}.key")).display().to_string();
        let mut rotate = Command::new(KEYWARD)
            .args(["root", "rotate", "2", &old, "file", "--path", &path])
            .env("KEYWARD_ENDPOINTS", region.endpoint(1))
            .env("KEYWARD_CA", region.pki("ca.pem"))
            .env("KEYWARD_OPERATOR_CERT", region.pki("operator.pem"))
            .env("KEYWARD_OPERATOR_KEY", region.pki("operator.key"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("keyward");
        // From before the first step to after the last one.
        RealEnv.sleep(Duration::from_millis(20 + round * 45)).await;
        region.kill(2);
        rotate.wait().expect("it ends");
        region.start_node(2);
        region.wait_serving(3).await;
        wait_until("its roots are whole", Duration::from_secs(20), async || {
            region.run(&["root", "status"]).status.success()
        })
        .await;
        let client = region.client(&[2]);
        assert_eq!(decrypt(&client, &blob).await.expect("it opens").plaintext, b"plaintext");
        // Whatever is left over is removed by hand, but the last one.
        let roots = roots_of(&region, 2).await;
        for root in roots.iter().skip(1) {
            region.run_ok(&["root", "remove", "2", root]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_in_shares_is_opened_by_its_keepers() {
    let mut region = Region::start(3);
    region.wait_serving(3).await;
    let key = create_key(&region.client(&[])).await.expect("a key");
    let blob = encrypt(&region.client(&[1]), &key).await.expect("a ciphertext").ciphertext_blob;
    let file = roots_of(&region, 3).await.remove(0);
    let path = region.node_folder(3).join("shares.root").display().to_string();
    let few = refused(
        &region,
        &["root", "add", "3", "shamir", "--path", &path, "--needed", "4", "--shares", "3"],
    );
    assert!(few.contains("share"), "{few}");
    region
        .run_ok(&["root", "add", "3", "shamir", "--path", &path, "--needed", "2", "--shares", "3"]);
    let roots = roots_of(&region, 3).await;
    let root = roots.iter().find(|id| id.starts_with("shamir:")).expect("it").clone();
    let share = || {
        let text = region.run_ok(&["--output", "json", "root", "take-share", "3", &root]);
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        value["Share"].as_str().expect("a share").to_owned()
    };
    let shares = [share(), share(), share()];
    let none_left = refused(&region, &["root", "take-share", "3", &root]);
    assert!(none_left.contains("every share was taken"), "{none_left}");
    // A share of a root that is no more.
    let path = region.node_folder(3).join("other.root").display().to_string();
    region
        .run_ok(&["root", "add", "3", "shamir", "--path", &path, "--needed", "2", "--shares", "2"]);
    let other =
        roots_of(&region, 3).await.into_iter().find(|id| id.starts_with("shamir:") && *id != root);
    let other = other.expect("the other root");
    let text = region.run_ok(&["--output", "json", "root", "take-share", "3", &other]);
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let foreign = value["Share"].as_str().expect("a share").to_owned();
    region.run_ok(&["root", "remove", "3", &other]);
    region.run_ok(&["root", "remove", "3", &file]);
    region.stop(3);
    region.start_node(3);

    // Sealed: the node says so, refuses, and the others serve.
    let client = region.client(&[3]);
    wait_until("the sealed node refuses", Duration::from_secs(20), async || {
        code(decrypt(&client, &blob).await) == "KeyUnavailableException"
    })
    .await;
    assert_eq!(code(decrypt(&region.client(&[1]), &blob).await), "ok");
    let give = |share: &str| {
        let mut child = Command::new(KEYWARD)
            .args(["root", "give-share", "3", &root])
            .env("KEYWARD_ENDPOINTS", region.endpoint(3))
            .env("KEYWARD_CA", region.pki("ca.pem"))
            .env("KEYWARD_OPERATOR_CERT", region.pki("operator.pem"))
            .env("KEYWARD_OPERATOR_KEY", region.pki("operator.key"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("keyward");
        std::io::Write::write_all(&mut child.stdin.take().expect("stdin"), share.as_bytes())
            .expect("written");
        let output = child.wait_with_output().expect("it ends");
        format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    };
    let mut damaged = shares[0].clone();
    damaged.replace_range(5..6, if &damaged[5..6] == "7" { "8" } else { "7" });
    let wrong = give(&damaged);
    assert!(wrong.contains("error"), "{wrong}");
    let wrong = give(&foreign);
    assert!(wrong.contains("belongs to root"), "{wrong}");
    let first = give(&shares[2]);
    assert!(first.contains("1 of 2"), "{first}");
    assert!(give(&shares[2]).contains("error"), "the same share twice");
    let second = give(&shares[0]);
    assert!(second.contains("the root is open"), "{second}");
    wait_until("the node serves", Duration::from_secs(20), async || {
        decrypt(&client, &blob).await.is_ok_and(|opened| opened.plaintext == b"plaintext")
    })
    .await;
    for share in &shares {
        assert_eq!(crate::support::found_in(region.folder.path(), share.as_bytes()), None);
    }
}

/// A root that is gone: open keys go on for the configured time, then a typed refusal; readiness says so; all comes
/// back by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_that_is_gone_ends_the_use_of_keys_after_the_grace_and_not_before() {
    let mut region = Region::start(3);
    region.wait_serving(3).await;
    let key = create_key(&region.client(&[])).await.expect("a key");
    let text = std::fs::read_to_string(region.config(2)).expect("read");
    let changed = text
        .replace("root_grace_seconds = 3600", "root_grace_seconds = 3")
        .replace("root_probe_interval_ms = 5000", "root_probe_interval_ms = 100");
    assert_ne!(text, changed);
    std::fs::write(region.config(2), changed).expect("written");
    region.stop(2);
    region.start_node(2);
    region.wait_serving(3).await;
    let client = region.client(&[2]);
    assert_eq!(code(encrypt(&client, &key).await), "ok");
    let (root, away) = (region.node_folder(2).join("root.key"), region.folder.path().join("away"));
    std::fs::rename(&root, &away).expect("moved");
    let served = goes_on_for(&client, &key, RealEnv.boot_now()).await;
    assert!(served > Duration::from_secs(2), "open keys went on for {served:?} only");
    let error = encrypt(&client, &key).await.expect_err("refused");
    assert!(error.retryable, "{error}");
    assert_eq!(code(encrypt(&region.client(&[1]), &key).await), "ok", "the others serve");
    let status = region.run(&["root", "status"]);
    assert!(!status.status.success());
    assert!(String::from_utf8_lossy(&status.stdout).contains("failing"));
    std::fs::rename(&away, &root).expect("back");
    wait_until("it is back", Duration::from_secs(10), async || {
        encrypt(&client, &key).await.is_ok()
    })
    .await;
    region.run_ok(&["root", "status"]);
}
