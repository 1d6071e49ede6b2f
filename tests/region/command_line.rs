//! `keyward` as a user meets it: files, configuration, errors that end with what to do next.

use std::fs;
use std::process::Command;

use crate::refusals::http_get;
use crate::support::{KEYWARD, Region, create_key};

fn fails(command: &mut Command, words: &[&str]) {
    let output = command.output().expect("keyward runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{command:?} succeeded");
    for word in words {
        assert!(error.contains(word), "{command:?} does not say {word:?}: {error}");
    }
    assert!(!error.contains("panicked"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_any_size_survive_and_damage_is_told() {
    let region = Region::start(1);
    region.wait_serving(1).await;
    let key = create_key(&region.client(&[])).await.expect("a key");
    let place = |name: &str| region.folder.path().join(name).display().to_string();
    let (input, sealed, opened) = (place("in"), place("in.kwd"), place("out"));
    for (bytes, signed) in
        [(0, false), (1, true), (65536, false), (65537, true), (9_000_000, false)]
    {
        let content: Vec<u8> = (0..bytes).map(|i: u32| (i.wrapping_mul(31) >> 3) as u8).collect();
        fs::write(&input, &content).expect("written");
        let mut arguments =
            vec!["file", "encrypt", "--key-id", &key, &input, "--context", "a=b", "--force"];
        if signed {
            arguments.push("--signed");
        }
        region.run_ok(&arguments);
        region.run_ok(&["file", "decrypt", &sealed, "-o", &opened, "--force", "--context", "a=b"]);
        assert!(fs::read(&opened).expect("read") == content, "{bytes} bytes");
        let shown = region.run_ok(&["file", "inspect", &sealed]);
        assert!(shown.contains(if signed { "0x0578" } else { "0x0478" }), "{shown}");
    }
    let refused = |arguments: &[&str], word: &str| {
        let output = region.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(word), "{arguments:?}: {error}");
    };
    refused(&["file", "decrypt", &sealed, "-o", &opened], "--force");
    refused(&["file", "decrypt", &sealed, "-o", &place("o2"), "--context", "a=c"], "context");
    let mut damaged = fs::read(&sealed).expect("read");
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    let broken = place("broken.kwd");
    fs::write(&broken, &damaged).expect("written");
    refused(&["file", "decrypt", &broken], "frame");
    assert!(!region.folder.path().join("broken").exists(), "nothing is left behind");
    damaged.truncate(middle);
    damaged[middle - 1] ^= 1;
    fs::write(&broken, &damaged).expect("written");
    refused(&["file", "decrypt", &broken], "frame");
    refused(&["file", "decrypt", &input], ".kwd");
    region.run_ok(&["key", "disable", &key]);
    refused(&["file", "decrypt", &sealed, "-o", &place("o3")], "DisabledException");

    let ready = http_get(region.port_base + 101, "/readyz");
    assert!(ready.starts_with("HTTP/1.1 200") && ready.ends_with("ready\n"), "{ready}");
    assert!(http_get(region.port_base + 101, "/livez").starts_with("HTTP/1.1 200"));
    let metrics = http_get(region.port_base + 101, "/metrics");
    for name in [
        "keyward_calls_total",
        "keyward_call_seconds_bucket",
        "keyward_raft_term",
        "keyward_raft_is_leader 1",
        "keyward_raft_applied_index",
        "keyward_lease_serving 1",
        "keyward_unsealed_keys",
    ] {
        assert!(metrics.contains(name), "{name} is not in the metrics");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_cannot_start_says_why_and_ends() {
    let mut region = Region::start(2);
    region.wait_serving(2).await;
    let config = region.config(2);
    let server = |config: &std::path::Path| {
        let mut command = Command::new(KEYWARD);
        command.args(["server", "--config"]).arg(config);
        command
    };
    // The port is in use: the node runs.
    fails(&mut server(&config), &["cannot listen", "another process"]);
    region.stop(2);
    let good = fs::read_to_string(&config).expect("read");
    let with = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        fs::write(&config, good.replace(from, to)).expect("written");
    };
    with("[tls]", "[tls]\ncolour = \"red\"");
    fails(&mut server(&config), &["unknown field `colour`", "line", "next:"]);
    // Another node's data folder.
    region.stop(1);
    with("data = \"data\"", "data = \"../node-1/data\"");
    fails(&mut server(&config), &["belongs to node 1", "this is node 2"]);
    region.start_node(1);
    // Mixed timers could serve stale answers.
    with("timers = \"default\"", "timers = \"quick\"");
    fails(&mut server(&config), &["timers"]);
    with("region = \"eu-west-1\"", "region = \"us-east-1\"");
    fails(&mut server(&config), &["belongs to Region eu-west-1"]);
    fs::write(&config, &good).expect("written");
    // A root that others can read, and none at all.
    let root = region.node_folder(2).join("root.key");
    let set_mode = |mode| {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&root, fs::Permissions::from_mode(mode)).expect("set");
    };
    set_mode(0o644);
    fails(&mut server(&config), &["0644", "chmod 600"]);
    set_mode(0o600);
    let kept = fs::read(&root).expect("read");
    fs::remove_file(&root).expect("removed");
    fails(&mut server(&config), &["root.key", "does not exist"]);
    fs::write(&root, kept).expect("written");
    set_mode(0o600);
    // A damaged database is named, and nothing is guessed.
    region.start_node(2);
    region.wait_serving(2).await;
    let check = region.run_ok(&["config", "check", "--config", &config.display().to_string()]);
    assert!(check.contains("eu-west-1"), "{check}");
    for shell in ["bash", "zsh", "fish"] {
        assert!(region.run_ok(&["completions", shell]).contains("keyward"));
    }
    let dead = region.run(&["key", "list", "--endpoint", "127.0.0.1:1"]);
    let error = String::from_utf8_lossy(&dead.stderr).into_owned();
    assert!(error.contains("nothing listens there") && error.contains("next:"), "{error}");
}

/// A full disk: refused or stopped with the reason, nothing acknowledged lost, back by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_ends_in_words_and_loses_nothing() {
    let mut region = Region::start(1);
    region.wait_serving(1).await;
    region.stop(1);
    let data = region.node_folder(1).join("data");
    let moved = region.folder.path().join("moved");
    fs::rename(&data, &moved).expect("moved");
    fs::create_dir(&data).expect("made");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=24m", "tmpfs"])
        .arg(&data)
        .status()
        .is_ok_and(|status| status.success());
    if !mounted {
        eprintln!("skipped: mounting a small file system is not permitted here");
        return;
    }
    let copied = Command::new("cp").arg("-a").arg(moved.join(".")).arg(&data).status();
    assert!(copied.is_ok_and(|status| status.success()));
    region.start_node(1);
    region.wait_serving(1).await;
    let client = region.client(&[]);
    let mut kept = vec![create_key(&client).await.expect("a key")];
    let ballast = data.join("ballast");
    drop(
        Command::new("dd")
            .args(["if=/dev/zero", "bs=64k"])
            .arg(format!("of={}", ballast.display()))
            .output(),
    );
    let mut refused = false;
    for _ in 0..400 {
        let client = region.client_as("dev", &[], std::time::Duration::from_millis(700));
        match create_key(&client).await {
            Ok(key) => kept.push(key),
            Err(_) => {
                refused = true;
                break;
            }
        }
    }
    assert!(refused, "the disk never filled up");
    fs::remove_file(&ballast).expect("removed");
    region.kill(1);
    let log = region.log(1);
    assert!(log.contains("No space left on device"), "{log}");
    region.start_node(1);
    region.wait_serving(1).await;
    let listed = region.run_ok(&["key", "list", "--output", "json"]);
    for key in kept {
        assert!(listed.contains(&key), "{key} was acknowledged and is lost");
    }
    region.stop(1);
    let unmounted = Command::new("umount").arg(&data).status();
    assert!(unmounted.is_ok_and(|status| status.success()));
}

/// A root behind a passphrase: from a credential file, told apart when wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_passphrase_root_opens_with_its_credential_only() {
    use std::os::unix::process::ExitStatusExt;

    let region = Region::start(1);
    let folder = region.folder.path().join("apart");
    fs::create_dir(&folder).expect("made");
    let good = fs::read_to_string(region.config(1)).expect("read");
    let text = good
        .replace("data = \"data\"", &format!("data = \"{}\"", folder.join("data").display()))
        .replace(
            &region.port_base.saturating_add(1).to_string(),
            &(region.port_base + 5).to_string(),
        )
        .replace(&(region.port_base + 101).to_string(), &(region.port_base + 105).to_string());
    let start = text.find("[root]").expect("a root");
    let end = text[start + 1..].find('[').map_or(text.len(), |at| start + 1 + at);
    let section = "[root]\nprovider = \"passphrase\"\nparams = \"apart.params\"\ncredential = \"apart.secret\"\n\n";
    let config = region.node_folder(1).join("apart.toml");
    fs::write(&config, format!("{}{section}{}", &text[..start], &text[end..])).expect("written");
    let secret = region.node_folder(1).join("apart.secret");
    fs::write(&secret, "a long enough passphrase\n").expect("written");
    let server = || {
        let mut command = Command::new(KEYWARD);
        command.args(["server", "--config"]).arg(&config).stderr(std::process::Stdio::piped());
        command
    };
    for _ in 0..2 {
        // Made at the first start, opened at the second.
        let mut child = server().spawn().expect("a node");
        crate::support::wait_until("it is up", std::time::Duration::from_secs(20), async || {
            std::net::TcpStream::connect(("127.0.0.1", region.port_base + 5)).is_ok()
                && region.node_folder(1).join("apart.params").exists()
                && folder.join("data/state").exists()
        })
        .await;
        let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).expect("a process id");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("told to stop");
        let status = child.wait().expect("it ends");
        assert!(status.success() && status.signal().is_none(), "{status}");
    }
    fs::write(&secret, "another long passphrase\n").expect("written");
    fails(&mut server(), &["passphrase is wrong"]);
    fs::remove_file(&secret).expect("removed");
    fails(&mut server(), &["apart.secret", "does not exist"]);
    let shown = fs::read_to_string(region.node_folder(1).join("apart.params")).expect("read");
    assert!(shown.contains("argon2id") && !shown.contains("passphrase\n"), "{shown}");
}
