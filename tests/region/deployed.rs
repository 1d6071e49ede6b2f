//! The files in `deploy/`, as three machines would run them: three network namespaces, three `keyward server`
//! processes started by the unit's own command line, told ready as systemd would be told.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use keyward_env::{Env, RealEnv};
use serde_json::Value;

use crate::support::KEYWARD;

const UNIT: &str = include_str!("../../deploy/keyward.service");
const SAMPLE: &str = include_str!("../../deploy/keyward.toml");
const PORT: u16 = 7100;

fn sudo(arguments: &[&str]) -> Output {
    Command::new(arguments[0]).args(&arguments[1..]).output().expect("a command")
}

/// Three machines on one network. Gone when dropped.
struct Machines {
    name: String,
    folder: tempfile::TempDir,
    running: Vec<Option<Child>>,
}

impl Machines {
    /// None, said aloud, where namespaces cannot be made.
    fn new() -> Option<Self> {
        let name = format!("kw{}", std::process::id() % 10_000);
        let folder = tempfile::tempdir().expect("a folder");
        let machines = Self { name, folder, running: vec![None, None, None] };
        let bridge = machines.name.clone();
        let made = sudo(&["ip", "link", "add", &bridge, "type", "bridge"]).status.success()
            && sudo(&["ip", "addr", "add", "10.203.77.254/24", "dev", &bridge]).status.success()
            && sudo(&["ip", "link", "set", &bridge, "up"]).status.success()
            && (1..=3).all(|node| machines.plug(node));
        if made {
            return Some(machines);
        }
        eprintln!("skipped: network namespaces cannot be made here");
        None
    }

    fn space(&self, node: usize) -> String {
        format!("{}-{node}", self.name)
    }

    fn plug(&self, node: usize) -> bool {
        let (space, bridge) = (self.space(node), &self.name);
        let (outer, inner) = (format!("{bridge}o{node}"), format!("{bridge}i{node}"));
        let address = format!("10.203.77.{node}/24");
        let enter = |rest: &[&str]| {
            let head = ["ip", "netns", "exec", &space, "ip"];
            sudo(&[&head[..], rest].concat()).status.success()
        };
        sudo(&["ip", "netns", "add", &space]).status.success()
            && sudo(&["ip", "link", "add", &outer, "type", "veth", "peer", "name", &inner])
                .status
                .success()
            && sudo(&["ip", "link", "set", &inner, "netns", &space]).status.success()
            && sudo(&["ip", "link", "set", &outer, "master", bridge, "up"]).status.success()
            && enter(&["addr", "add", &address, "dev", &inner])
            && enter(&["link", "set", &inner, "up"])
            && enter(&["link", "set", "lo", "up"])
    }

    /// Plugs a machine's cable out or in.
    fn cable(&self, node: usize, state: &str) {
        let outer = format!("{}o{node}", self.name);
        assert!(sudo(&["ip", "link", "set", &outer, state]).status.success());
    }

    fn etc(&self, node: usize) -> PathBuf {
        self.folder.path().join(format!("machine-{node}"))
    }

    fn config(&self, node: usize) -> PathBuf {
        self.etc(node).join("keyward.toml")
    }

    /// The sample configuration, for this machine: only paths and the address differ.
    fn configure(&self, node: usize) {
        let etc = self.etc(node);
        fs::create_dir_all(&etc).expect("a folder");
        let text = SAMPLE
            .replace("kms-1.example.com:7100", &format!("10.203.77.{node}:{PORT}"))
            .replace("/etc/keyward", &etc.display().to_string())
            .replace("/var/lib/keyward", &etc.join("data").display().to_string());
        assert!(text.contains("10.203.77."), "the sample says where peers reach the node");
        fs::write(self.config(node), text).expect("written");
    }

    /// Runs the command line on a machine.
    fn on(&self, node: usize, arguments: &[&str]) -> Output {
        let pki = self.etc(1);
        Command::new("ip")
            .args(["netns", "exec", &self.space(node), KEYWARD])
            .args(arguments)
            .env(
                "KEYWARD_ENDPOINTS",
                format!("10.203.77.1:{PORT},10.203.77.2:{PORT},10.203.77.3:{PORT}"),
            )
            .env("KEYWARD_CA", pki.join("ca.pem"))
            .env("KEYWARD_OPERATOR_CERT", pki.join("operator.pem"))
            .env("KEYWARD_OPERATOR_KEY", pki.join("operator.key"))
            .env("KEYWARD_CERT", pki.join("app.pem"))
            .env("KEYWARD_KEY", pki.join("app.key"))
            .stdin(Stdio::null())
            .output()
            .expect("keyward runs")
    }

    fn on_ok(&self, node: usize, arguments: &[&str]) -> String {
        let output = self.on(node, arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "keyward {}: {error}", arguments.join(" "));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Starts the unit's command, and waits for its word that it is ready.
    fn start(&mut self, node: usize) {
        let line =
            UNIT.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("ExecStart");
        assert!(UNIT.contains("Type=notify") && UNIT.contains("LimitCORE=0"));
        let mut words = line.split_whitespace();
        assert_eq!(words.next(), Some("/usr/bin/keyward"));
        let arguments: Vec<String> = words
            .map(|word| word.replace("/etc/keyward", &self.etc(node).display().to_string()))
            .collect();
        let socket_path = self.etc(node).join("notify");
        drop(fs::remove_file(&socket_path));
        let socket = UnixDatagram::bind(&socket_path).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        let log = fs::File::create(self.etc(node).join("node.log")).expect("a log");
        let child = Command::new("ip")
            .args(["netns", "exec", &self.space(node), KEYWARD])
            .args(&arguments)
            .env("NOTIFY_SOCKET", &socket_path)
            .stderr(log)
            .spawn()
            .expect("a node");
        self.running[node - 1] = Some(child);
        let mut word = [0; 64];
        let length = socket.recv(&mut word).expect("the node says that it is ready");
        assert_eq!(&word[..length], b"READY=1", "{}", self.log(node));
    }

    fn log(&self, node: usize) -> String {
        fs::read_to_string(self.etc(node).join("node.log")).unwrap_or_default()
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for child in self.running.iter_mut().flatten() {
            drop(child.kill());
            drop(child.wait());
        }
        for node in 1..=3 {
            if std::thread::panicking() {
                eprintln!("--- machine {node}\n{}", self.log(node));
            }
            drop(sudo(&["ip", "netns", "del", &self.space(node)]));
            drop(sudo(&["ip", "link", "del", &format!("{}o{node}", self.name)]));
        }
        drop(sudo(&["ip", "link", "del", &self.name]));
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = RealEnv.boot_now() + Duration::from_secs(20);
    while !holds() {
        assert!(RealEnv.boot_now() < end, "{what}: not in time");
        RealEnv.sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_machines_are_founded_joined_cut_and_healed_by_the_shipped_files() {
    if !Path::new("/usr/sbin/ip").exists() && !Path::new("/sbin/ip").exists() {
        eprintln!("skipped: iproute2 is not installed");
        return;
    }
    let Some(mut machines) = Machines::new() else { return };
    for node in 1..=3 {
        machines.configure(node);
    }
    let config = |machines: &Machines, node| machines.config(node).display().to_string();
    let first = config(&machines, 1);
    machines.on_ok(1, &["cluster", "init", "--config", &first]);
    // A second founder on the same machine is refused, and changes nothing.
    let again = machines.on(1, &["cluster", "init", "--config", &first]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("is there already"));
    machines.start(1);
    for node in 2..=3 {
        let token = machines.on_ok(1, &["cluster", "invite"]);
        let path = config(&machines, node);
        machines.on_ok(node, &["cluster", "join", token.trim(), "--config", &path]);
        machines.start(node);
    }
    let voters = |machines: &Machines| {
        let output = machines.on(1, &["--output", "json", "cluster", "status"]);
        let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        status["Nodes"].as_array().into_iter().flatten().filter(|n| n["Role"] == "voter").count()
    };
    until("three nodes vote", || voters(&machines) == 3).await;
    let pki = machines.etc(1);
    machines.on_ok(
        1,
        &[
            "principal",
            "create",
            "arn:aws:iam::111122223333:user/app",
            "--kind",
            "administrator",
            "--kind",
            "user",
            "--out",
            &pki.join("app").display().to_string(),
        ],
    );
    let made = machines.on_ok(1, &["--output", "json", "key", "create", "--alias", "alias/app"]);
    let made: Value = serde_json::from_str(&made).expect("JSON");
    let key = made["KeyId"].as_str().expect("a key").to_owned();
    let plain = pki.join("plain");
    fs::write(&plain, b"to be kept").expect("written");
    let blob = machines.on_ok(2, &["key", "encrypt", "alias/app", &plain.display().to_string()]);
    let sealed = pki.join("sealed");
    fs::write(&sealed, blob).expect("written");
    let opens = |node: usize| {
        let endpoint = format!("10.203.77.{node}:{PORT}");
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
        let endpoint = format!("10.203.77.3:{PORT}");
        let output = machines
            .on(3, &["--endpoint", &endpoint, "key", "decrypt", &sealed.display().to_string()]);
        String::from_utf8_lossy(&output.stderr).contains("DisabledException")
    })
    .await;
}
