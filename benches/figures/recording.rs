//! What the audit trail costs a call: two servers of the shipped layers on the same data, put together as
//! `keyward server` does it, one with a trail and one without, are called in turn with 64 calls in flight. The
//! server without a trail is this program; `keyward` itself has no way to serve unrecorded.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keyward_audit::{RealFiles, Trail, TrailConfig};
use keyward_door_grpc::{Door, DoorConfig, GrpcTransport, Key, TlsFiles};
use keyward_env::{AsyncRuntime, Env, RealEnv};
use keyward_hsm::{
    ArenaConfig, CACHE_ENTRIES_DEFAULT, EnvClock, FileRoot, Hsm, HsmConfig, RootId, RootProvider,
    RootWatchConfig, SecretVec,
};
use keyward_raft::{BoxFuture, Node, NodeConfig, RocksStore};
use keyward_service::{Audit, KeptRoot, Kms, RootKeeper};
use keyward_state::{Table, Timers};

use crate::support::{Region, create_key, encrypt, wait_until};

/// Calls under way, and the connections that they share.
const IN_FLIGHT: usize = 64;
const CONNECTIONS: usize = 8;
/// Windows of each server.
const WINDOWS: usize = 12;
const WINDOW: Duration = Duration::from_secs(3);
/// The most that a record may cost, in microseconds of CPU.
const BAR_US: f64 = 4.0;
/// Ports, counted as nodes of the Region.
const SERVERS: [u16; 2] = [11, 12];

/// Serves a node's folder until it is killed.
pub struct Server {
    folder: PathBuf,
    listen: String,
    recorded: bool,
}

/// What this process was started for, if it is one of the two servers.
pub fn asked_to_serve() -> Option<Server> {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--serve").skip(1);
    Some(Server {
        folder: arguments.next()?.into(),
        listen: arguments.next()?,
        recorded: arguments.next()? == "recorded",
    })
}

struct OneRoot(RootId);

impl OneRoot {
    fn refuse<T: Send + 'static>() -> BoxFuture<'static, Result<T, String>> {
        Box::pin(std::future::ready(Err("this root is not changed".to_owned())))
    }
}

impl RootKeeper for OneRoot {
    fn kept(&self) -> Vec<KeptRoot> {
        vec![KeptRoot { id: self.0.clone(), place: "root.key".to_owned() }]
    }

    fn add(&self, _: String) -> BoxFuture<'_, Result<Arc<dyn RootProvider>, String>> {
        Self::refuse()
    }

    fn forget(&self, _: RootId) -> BoxFuture<'_, Result<(), String>> {
        Self::refuse()
    }

    fn offer(&self, _: RootId, _: SecretVec) -> BoxFuture<'_, Result<(u8, u8), String>> {
        Self::refuse()
    }

    fn next_share(&self, _: RootId) -> BoxFuture<'_, Result<(u8, String, u8), String>> {
        Self::refuse()
    }
}

impl Server {
    pub async fn serve(self) {
        drop(rustls::crypto::ring::default_provider().install_default());
        let read = |name: &str| std::fs::read(self.folder.join(name)).expect("a PEM file");
        let tls = TlsFiles {
            certificate: read("node.pem"),
            private_key: Key::new(read("node.key")),
            authority: read("../pki/ca.pem"),
            outside_authority: None,
        };
        let region: keyward_model::Region = "eu-west-1".parse().expect("a name");
        let door = Door::bind(DoorConfig {
            listen: self.listen.parse().expect("an address"),
            region: region.clone(),
            timers: Timers::DEFAULT,
            tls: tls.clone(),
        })
        .await
        .expect("a door");
        let path = self.folder.join("root.key");
        let root = FileRoot::open(&path, RealEnv.entropy(), true).expect("the root");
        let id = root.identity().clone();
        let config = HsmConfig {
            cache_max_entries: CACHE_ENTRIES_DEFAULT,
            arena: ArenaConfig { allow_unlocked: true, ..ArenaConfig::default() },
        };
        let hsm = Hsm::new(Arc::new(root), RealEnv.entropy(), &config).expect("an HSM");
        RealEnv.spawn(hsm.watch_roots(EnvClock::shared(RealEnv), RootWatchConfig::default()));
        let data = self.folder.join("data");
        let log = RocksStore::open(&data.join("log"), &Table::LOG).expect("the log");
        let state = RocksStore::open(&data.join("state"), &Table::STATE).expect("the state");
        let node = NodeConfig { node: 1, address: self.listen.clone(), timers: Timers::DEFAULT };
        let transport = Arc::new(GrpcTransport::new(&tls));
        let node = Node::start(node, RealEnv, Arc::new(log), Arc::new(state), transport)
            .await
            .expect("a node");
        let trail = self.recorded.then(|| {
            let config = TrailConfig::new(data.join("audit"), 1, region.clone());
            Trail::open(&RealEnv, Arc::new(RealFiles), config).expect("a trail").0
        });
        let audit = Audit::new(trail, region, *b"recorded");
        let kms = Kms::new(node, hsm, Arc::new(OneRoot(id)), audit, true);
        kms.start();
        door.serve(kms, std::future::pending()).await.expect("it serves");
    }
}

/// One of the two, as its caller sees it.
struct Called {
    process: Child,
    clients: Vec<Arc<keyward_client::Client>>,
    key: String,
}

impl Called {
    fn start(region: &Region, recorded: bool, key: &str) -> Self {
        let name = if recorded { "recorded" } else { "unrecorded" };
        let folder = region.folder.path().join(name);
        let copied = Command::new("cp").arg("-a").arg(region.node_folder(1)).arg(&folder).status();
        assert!(copied.is_ok_and(|status| status.success()), "the node's folder is copied");
        let at = SERVERS[usize::from(recorded)];
        let process = Command::new(std::env::current_exe().expect("this program"))
            .arg("--serve")
            .arg(folder)
            .args([&region.endpoint(at), name])
            .stdin(Stdio::null())
            .spawn()
            .expect("a server");
        let clients = (0..CONNECTIONS).map(|_| region.client(&[at])).collect();
        Self { process, clients, key: key.to_owned() }
    }

    /// User and system time of the process so far.
    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()));
        let stat = stat.expect("/proc");
        // Fields are counted from behind the name, which may hold anything (proc_pid_stat(5)).
        let fields = stat.rsplit_once(')').expect("a name").1;
        let ticks = |field: usize| -> u64 {
            fields.split_whitespace().nth(field - 3).and_then(|t| t.parse().ok()).expect("a number")
        };
        Duration::from_secs(ticks(14) + ticks(15)) / rustix::param::clock_ticks_per_second() as u32
    }

    /// Microseconds of CPU an Encrypt.
    async fn window(&self) -> f64 {
        let stop = Arc::new(AtomicBool::new(false));
        let before = self.cpu();
        let calls: Vec<_> = (0..IN_FLIGHT)
            .map(|call| {
                let client = Arc::clone(&self.clients[call % CONNECTIONS]);
                let (stop, key) = (Arc::clone(&stop), self.key.clone());
                <RealEnv as Env>::Runtime::spawn(async move {
                    let mut answered = 0u32;
                    while !stop.load(Ordering::Relaxed) {
                        encrypt(&client, &key).await.expect("a ciphertext");
                        answered += 1;
                    }
                    answered
                })
            })
            .collect();
        RealEnv.sleep(WINDOW).await;
        stop.store(true, Ordering::Relaxed);
        let mut answered = 0;
        for call in calls {
            answered += call.await.expect("it ends");
        }
        (self.cpu() - before).as_secs_f64() * 1e6 / f64::from(answered)
    }
}

impl Drop for Called {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_unstable_by(f64::total_cmp);
    let middle = samples.len() / 2;
    f64::midpoint(samples[middle - 1], samples[middle])
}

/// Windows in pairs, the order within a pair changing; the median of the pairs' differences.
pub async fn cost() {
    let mut region = Region::start(1);
    region.wait_serving(1).await;
    let key = create_key(&region.client(&[])).await.expect("a key");
    region.stop(1);
    let servers = [false, true].map(|recorded| Called::start(&region, recorded, &key));
    for server in &servers {
        wait_until("it serves", Duration::from_secs(20), async || {
            encrypt(&server.clients[0], &key).await.is_ok()
        })
        .await;
        server.window().await;
    }
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for pair in 0..WINDOWS {
        for turn in 0..2 {
            let recorded = (pair + turn) % 2 == 1;
            let cost = servers[usize::from(recorded)].window().await;
            if recorded { with.push(cost) } else { without.push(cost) }
        }
    }
    let mut differences: Vec<f64> = with.iter().zip(&without).map(|(a, b)| a - b).collect();
    differences.sort_unstable_by(f64::total_cmp);
    // The third from either end of 12: they enclose the median with 96 % confidence (binomial distribution).
    let (low, high) = (differences[2], differences[WINDOWS - 3]);
    let record = median(differences);
    println!(
        "CPU an Encrypt, {IN_FLIGHT} in flight: {:.1} us recorded, {:.1} us not (medians of {WINDOWS} windows each)",
        median(with),
        median(without)
    );
    println!(
        "  a record costs {record:.1} us, 96 % interval {low:.1} to {high:.1} (bar: at most {BAR_US} us, {})",
        if record <= BAR_US { "held" } else { "MISSED" }
    );
}
