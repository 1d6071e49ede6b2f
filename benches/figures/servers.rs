//! Servers for measurements: the shipped layers, put together as `keyward server` does it, with a trail or without
//! (`keyward` itself has no way to serve unrecorded), and an echo. Each is this program, started once more. They are
//! called in turn, in windows, with the same calls from the same clients.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::DirEntry;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keyward_audit::{RealFiles, Trail, TrailConfig};
use keyward_client::{CallError, Client, DataPlane};
use keyward_door_grpc::{Door, DoorConfig, GrpcTransport, Key, TlsFiles};
use keyward_env::{AsyncRuntime, Env, RealEnv};
use keyward_hsm::{
    ArenaConfig, CACHE_ENTRIES_DEFAULT, EnvClock, FileRoot, Hsm, HsmConfig, RootId, RootProvider,
    RootWatchConfig, SecretVec,
};
use keyward_proto::v1;
use keyward_proto::v1::EncryptResponse;
use keyward_proto::v1::stream_request::Call;
use keyward_raft::{BoxFuture, Node, NodeConfig, RocksStore};
use keyward_service::{Audit, KeptRoot, Kms, RootKeeper};
use keyward_state::{Table, Timers};
use prost::Message;

use crate::echo;
use crate::support::{Region, encrypt, wait_until};

/// Calls under way, and the connections that they share.
pub const IN_FLIGHT: usize = 64;
const CONNECTIONS: usize = 8;
/// Windows of each server.
pub const WINDOWS: usize = 12;
const WINDOW: Duration = Duration::from_secs(3);
/// A server is called for this long before it is measured.
const WARM_UP: Duration = Duration::from_secs(1);
/// Calls one after the other, of which the median is taken.
pub const ALONE: usize = 1000;

/// What a server is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A node with a trail.
    Recorded,
    /// A node without one.
    Unrecorded,
    /// The door's TLS and tonic, and an answer that was made before.
    Echo,
}

const KINDS: [(&str, Kind); 3] =
    [("recorded", Kind::Recorded), ("unrecorded", Kind::Unrecorded), ("echo", Kind::Echo)];
/// What an echo answers, in its folder.
const ANSWER: &str = "answer";

/// Serves a node's folder until it is killed.
pub struct Server {
    folder: PathBuf,
    listen: String,
    kind: Kind,
}

/// What this process was started for, if it is one of the servers.
pub fn asked_to_serve() -> Option<Server> {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--serve").skip(1);
    let (folder, listen, named) = (arguments.next()?.into(), arguments.next()?, arguments.next()?);
    let (_, kind) = KINDS.into_iter().find(|(name, _)| *name == named)?;
    Some(Server { folder, listen, kind })
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
        };
        if self.kind == Kind::Echo {
            let answer = std::fs::read(self.folder.join(ANSWER)).expect("an answer");
            let answer = EncryptResponse::decode(answer.as_slice()).expect("an answer");
            return echo::serve(&self.listen, &tls, answer).await;
        }
        let region: keyward_model::Region = "eu-west-1".parse().expect("a name");
        let door = Door::bind(DoorConfig {
            listen: self.listen.parse().expect("an address"),
            region: region.clone(),
            timers: Timers::DEFAULT,
            tls: tls.clone(),
            spool: std::env::temp_dir(),
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
        let node = NodeConfig::new(1, self.listen.clone(), Timers::DEFAULT);
        let transport = Arc::new(GrpcTransport::new(&tls).expect("TLS"));
        let node = Node::start(node, RealEnv, Arc::new(log), Arc::new(state), transport)
            .await
            .expect("a node");
        let trail = (self.kind == Kind::Recorded).then(|| {
            let config = TrailConfig::new(data.join("audit"), 1, region.clone());
            Trail::open(&RealEnv, Arc::new(RealFiles), config).expect("a trail").0
        });
        let audit = Audit::new(trail, region, *b"recorded");
        let kms = Kms::new(node, hsm, Arc::new(OneRoot(id)), audit, true);
        kms.start();
        door.serve(kms, std::future::pending()).await.expect("it serves");
    }
}

/// A server, as its caller sees it.
pub struct Called {
    process: Child,
    clients: Vec<Arc<Client>>,
    streams: Vec<Arc<DataPlane>>,
    key: String,
}

/// What is called.
#[derive(Clone)]
pub enum Work {
    /// Each a call of its own.
    Encrypt(v1::EncryptRequest),
    /// Each a call of its own.
    Decrypt(v1::DecryptRequest),
    /// Each a call of its own.
    DataKey(v1::GenerateDataKeyRequest),
    /// On streams: so many, which share what is in flight.
    Streamed(usize, v1::EncryptRequest),
}

impl Called {
    /// Starts a server on a copy of what node 1 of the Region, which stands still, has. `place` counts ports on from
    /// those of nodes.
    pub async fn start(region: &Region, kind: Kind, place: u16, key: &str) -> Self {
        let at = 10 + place;
        let folder = region.folder.path().join(format!("server-{at}"));
        let copied = Command::new("cp").arg("-a").arg(region.node_folder(1)).arg(&folder).status();
        assert!(copied.is_ok_and(|status| status.success()), "the node's folder is copied");
        let (name, _) = KINDS.into_iter().find(|(_, one)| *one == kind).expect("a name");
        let process = Command::new(std::env::current_exe().expect("this program"))
            .arg("--serve")
            .arg(folder)
            .args([&region.endpoint(at), name])
            .stdin(Stdio::null())
            .spawn()
            .expect("a server");
        let clients: Vec<_> = (0..CONNECTIONS).map(|_| region.client(&[at])).collect();
        let streams = clients.iter().map(|client| Arc::new(DataPlane::new(Arc::clone(client))));
        let streams = streams.collect();
        let called = Self { process, clients, streams, key: key.to_owned() };
        wait_until("it serves", Duration::from_secs(20), async || {
            served(&called.clients[0], &called.key).await.is_some()
        })
        .await;
        let work = Work::Encrypt(encrypts(&called.key, b"plaintext"));
        called.window_of(&work, WARM_UP).await;
        called
    }

    /// The same for an echo, which answers that.
    pub async fn echo(region: &Region, place: u16, answer: &EncryptResponse) -> Self {
        std::fs::write(region.node_folder(1).join(ANSWER), answer.encode_to_vec())
            .expect("written");
        Self::start(region, Kind::Echo, place, "").await
    }

    /// Microseconds of CPU an Encrypt of some bytes, and the part of calls that were refused for a quota.
    pub async fn window(&self) -> (f64, f64) {
        self.window_of(&Work::Encrypt(encrypts(&self.key, b"plaintext")), WINDOW).await
    }

    /// Microseconds of CPU a call in a window of that length, and the part of calls that were refused for a quota.
    pub async fn window_of(&self, work: &Work, lasts: Duration) -> (f64, f64) {
        let stop = Arc::new(AtomicBool::new(false));
        let before = ThreadTimes::of(self.process.id());
        let calls: Vec<_> = (0..IN_FLIGHT)
            .map(|call| {
                let client = Arc::clone(&self.clients[call % CONNECTIONS]);
                let on = if let Work::Streamed(streams, _) = work { *streams } else { 1 };
                let stream = Arc::clone(&self.streams[call % on]);
                let (stop, work) = (Arc::clone(&stop), work.clone());
                <RealEnv as Env>::Runtime::spawn(async move {
                    let (mut answered, mut refused) = (0u32, 0u32);
                    while !stop.load(Ordering::Relaxed) {
                        let ended = work.call(&client, &stream).await;
                        match answered_or_refused(ended).expect("an answer, or a quota's refusal") {
                            true => answered += 1,
                            false => refused += 1,
                        }
                    }
                    (answered, refused)
                })
            })
            .collect();
        RealEnv.sleep(lasts).await;
        stop.store(true, Ordering::Relaxed);
        let (mut all, mut refused) = (0.0, 0.0);
        for call in calls {
            let (one_answered, one_refused) = call.await.expect("it ends");
            all += f64::from(one_answered + one_refused);
            refused += f64::from(one_refused);
        }
        (before.until_now().as_secs_f64() * 1e6 / all, refused / all)
    }
}

impl Called {
    /// Microseconds that an Encrypt of some bytes takes when there is no other call: the median of some.
    pub async fn alone(&self) -> f64 {
        self.alone_of(&Work::Encrypt(encrypts(&self.key, b"plaintext")), ALONE).await
    }

    /// Microseconds that a call takes when there is no other: the median of so many.
    pub async fn alone_of(&self, work: &Work, calls: usize) -> f64 {
        let mut took = Vec::new();
        for _ in 0..calls {
            let began = RealEnv.boot_now();
            let ended = work.call(&self.clients[0], &self.streams[0]).await;
            took.push((RealEnv.boot_now() - began).as_secs_f64() * 1e6);
            answered_or_refused(ended).expect("an answer, or a quota's refusal");
        }
        median(took)
    }
}

impl Drop for Called {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// What each thread of a process has run so far. In nanoseconds, where the process's own figure counts clock ticks: a
/// window may be short, so that two servers are called close together on a machine that others use too.
struct ThreadTimes {
    pid: u32,
    nanoseconds: BTreeMap<OsString, u64>,
}

impl ThreadTimes {
    fn of(pid: u32) -> Self {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("/proc");
        // The first field is the time on a CPU (Documentation/scheduler/sched-stats.rst). A thread may end meanwhile.
        let time = |thread: DirEntry| {
            let stat = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
            Some((thread.file_name(), stat.split(' ').next()?.parse().ok()?))
        };
        Self { pid, nanoseconds: threads.filter_map(|thread| time(thread.ok()?)).collect() }
    }

    /// Time on CPUs since then, of the threads that there are now.
    fn until_now(&self) -> Duration {
        let now = Self::of(self.pid).nanoseconds;
        let since = |(thread, time): (&OsString, &u64)| {
            time - self.nanoseconds.get(thread).copied().unwrap_or(0)
        };
        Duration::from_nanos(now.iter().map(since).sum())
    }
}

/// User and system time of a process so far.
pub fn cpu_of(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("/proc");
    // Fields are counted from behind the name, which may hold anything (proc_pid_stat(5)).
    let fields = stat.rsplit_once(')').expect("a name").1;
    let ticks = |field: usize| -> u64 {
        fields.split_whitespace().nth(field - 3).and_then(|t| t.parse().ok()).expect("a number")
    };
    Duration::from_secs(ticks(14) + ticks(15)) / rustix::param::clock_ticks_per_second() as u32
}

pub fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_unstable_by(f64::total_cmp);
    let middle = samples.len() / 2;
    f64::midpoint(samples[middle - 1], samples[middle])
}

/// The median of the pairs' differences, and its interval.
pub fn difference(more: &[f64], less: &[f64]) -> (f64, f64, f64) {
    with_interval(more.iter().zip(less).map(|(more, less)| more - less).collect())
}

/// The median of the pairs' ratios, and its interval.
pub fn ratio(of: &[f64], to: &[f64]) -> (f64, f64, f64) {
    with_interval(of.iter().zip(to).map(|(of, to)| of / to).collect())
}

/// The median, and the interval that has it with 96 % confidence whatever the distribution is: from the binomial one,
/// whose quantile is 2.05 standard deviations of `sqrt(n) / 2`. The third from either end of 12.
fn with_interval(mut samples: Vec<f64>) -> (f64, f64, f64) {
    samples.sort_unstable_by(f64::total_cmp);
    let many = samples.len() as f64;
    let left_out = f64::midpoint(many, -2.05 * many.sqrt()).max(0.0) as usize;
    let (low, high) = (samples[left_out], samples[samples.len() - 1 - left_out]);
    (median(samples), low, high)
}

/// What an interval says about a bar.
pub fn verdict(low: f64, high: f64, bar: f64) -> &'static str {
    match (high <= bar, low > bar) {
        (true, _) => "held",
        (_, true) => "MISSED",
        _ => "undecided: the interval has it inside",
    }
}

/// An Encrypt of `plaintext`.
pub fn encrypts(key: &str, plaintext: &[u8]) -> v1::EncryptRequest {
    v1::EncryptRequest {
        key_id: key.to_owned(),
        plaintext: plaintext.to_vec(),
        ..v1::EncryptRequest::default()
    }
}

impl Work {
    async fn call(&self, client: &Client, stream: &DataPlane) -> Result<(), CallError> {
        match self.clone() {
            Self::Encrypt(r) => {
                client.key_once(r, |mut c, r| async move { c.encrypt(r).await }).await.map(drop)
            }
            Self::Decrypt(r) => {
                client.key_once(r, |mut c, r| async move { c.decrypt(r).await }).await.map(drop)
            }
            Self::DataKey(r) => {
                let call =
                    client.key_once(r, |mut c, r| async move { c.generate_data_key(r).await });
                call.await.map(drop)
            }
            Self::Streamed(_, r) => stream.once(Call::Encrypt(r)).await.map(drop),
        }
    }
}

/// Whether a call was served, or refused for a quota; none if it failed.
async fn served(client: &Client, key: &str) -> Option<bool> {
    answered_or_refused(encrypt(client, key).await.map(drop))
}

fn answered_or_refused(ended: Result<(), CallError>) -> Option<bool> {
    match ended {
        Ok(()) => Some(true),
        Err(error) if error.throttle.is_some() => Some(false),
        Err(_) => None,
    }
}
