//! Random faults on three real machines (network namespaces), with clients whose calls are checked by the rules of the
//! simulation: nothing stale, nothing acknowledged lost, no quota exceeded, everything heals.
//!
//! `make test` runs it for 90 s; `make chaos` for ten minutes (`KEYWARD_CHAOS_SECONDS`). What it does is drawn from a
//! seed that it prints; `KEYWARD_CHAOS_SEED` draws the same again, as far as real processes allow.

pub mod clients;
mod history;
mod meter;
pub mod proxy;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use keyward_env::{Env, RealEnv};
use keyward_sim::dice::{Dice, Stream};
use rustix::process::{Pid, Signal, kill_process};

use crate::clocks::shifter;
use crate::support::machines::Machines;
use clients::Clients;
use history::SharedBook;
use meter::Meter;
use proxy::{Links, Way};

const SECONDS: u64 = 90;
/// Once nothing is broken any more, everything works within this.
const HEALS_WITHIN: Duration = Duration::from_secs(20);

/// What can go wrong. The names are those of `docs/faults.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    LeaderKilled,
    NodeKilledAgainAndAgain,
    PausedBeyondItsLease,
    NodeAlone,
    LeaderAlone,
    OneWay,
    CableOut,
    SlowAndLossyLink,
    WallClockJumps,
    DiskFull,
}

const FAULTS: [Fault; 10] = [
    Fault::LeaderKilled,
    Fault::NodeKilledAgainAndAgain,
    Fault::PausedBeyondItsLease,
    Fault::NodeAlone,
    Fault::LeaderAlone,
    Fault::OneWay,
    Fault::CableOut,
    Fault::SlowAndLossyLink,
    Fault::WallClockJumps,
    Fault::DiskFull,
];

/// Three machines, and what is broken.
struct Chaos {
    machines: Machines,
    links: Links,
    dice: Dice,
    book: Arc<SharedBook>,
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

impl Chaos {
    /// None where namespaces or small disks cannot be made.
    async fn new(seed: u64) -> Option<Self> {
        let machines = Machines::new()?;
        let links = Links::between(&machines).await;
        for node in 1..=3 {
            let text = fs::read_to_string(machines.config(node)).expect("read");
            let text = text.replace("segment_bytes = 67108864", "segment_bytes = 4194304");
            assert!(text.contains("4194304"), "small segments on a small disk");
            fs::write(machines.config(node), text).expect("written");
        }
        let dice = Dice::new(seed, Stream::Fault(0));
        let mut chaos = Self { machines, links, dice, book: Arc::default() };
        for node in 1..=3 {
            if !chaos.mount(node) {
                eprintln!("skipped: a small disk cannot be mounted here");
                return None;
            }
        }
        chaos.machines.found();
        // From now on each node's wall clock is a file.
        for node in 1..=3 {
            chaos.set_clock(node, 0);
            chaos.machines.kill(node);
            chaos.start(node);
        }
        Some(chaos)
    }

    fn data(&self, node: usize) -> PathBuf {
        self.machines.etc(node).join("data")
    }

    /// A disk of 200 MB for the node's data.
    fn mount(&self, node: usize) -> bool {
        fs::create_dir_all(self.data(node)).expect("a folder");
        let mount = ["-t", "tmpfs", "-o", "size=200m,mode=700", "tmpfs"];
        let mut command = Command::new("mount");
        command.args(mount).arg(self.data(node)).status().is_ok_and(|status| status.success())
    }

    fn clock(&self, node: usize) -> PathBuf {
        self.machines.etc(node).join("clock")
    }

    fn set_clock(&self, node: usize, seconds: i64) {
        let next = self.machines.etc(node).join("clock.next");
        fs::write(&next, format!("{seconds:+}")).expect("written");
        fs::rename(next, self.clock(node)).expect("moved");
    }

    fn start(&mut self, node: usize) {
        self.machines.environment = shifter(&self.clock(node));
        self.machines.start(node);
    }

    fn signal(&self, node: usize, signal: Signal) {
        let pid = self.machines.pid(node).and_then(|pid| Pid::from_raw(pid.cast_signed()));
        kill_process(pid.expect("the node runs"), signal).expect("a signal");
    }

    fn node(&mut self) -> usize {
        1 + self.dice.index(3)
    }

    /// Breaks one thing for a while, and repairs it.
    async fn break_something(&mut self, fault: Fault) {
        let lasts = Duration::from_millis(1500 + self.dice.below(4000));
        let node = match fault {
            Fault::LeaderKilled | Fault::LeaderAlone => self.machines.leader().unwrap_or(1),
            _ => self.node(),
        };
        let other = 1 + node % 3;
        let machines = if fault == Fault::OneWay { vec![node, other] } else { vec![node] };
        self.book.lock().broke(fault, machines);
        println!("{fault:?} of machine {node} for {lasts:?}");
        match fault {
            Fault::LeaderKilled => {
                self.machines.kill(node);
                RealEnv.sleep(lasts / 2).await;
                self.start(node);
            }
            Fault::NodeKilledAgainAndAgain => {
                for _ in 0..4 {
                    self.machines.kill(node);
                    self.start(node);
                    RealEnv.sleep(Duration::from_millis(self.dice.below(700))).await;
                }
            }
            Fault::PausedBeyondItsLease => {
                self.signal(node, Signal::STOP);
                RealEnv.sleep(Duration::from_secs(3) + lasts / 2).await;
                self.signal(node, Signal::CONT);
            }
            Fault::NodeAlone | Fault::LeaderAlone => {
                self.links.isolate(node);
                RealEnv.sleep(lasts).await;
                self.links.mend();
            }
            Fault::OneWay => {
                self.links.cut(node, other);
                RealEnv.sleep(lasts).await;
                self.links.mend();
            }
            Fault::CableOut => {
                self.machines.cable(node, "down");
                RealEnv.sleep(lasts).await;
                self.machines.cable(node, "up");
            }
            Fault::SlowAndLossyLink => {
                let delay = Duration::from_millis(10 + self.dice.below(140));
                let way = Way { delay, loss_permille: 50, ..Way::default() };
                for other in (1..=3).filter(|other| *other != node) {
                    self.links.set(node, other, way);
                    self.links.set(other, node, way);
                }
                RealEnv.sleep(lasts).await;
                self.links.mend();
            }
            Fault::WallClockJumps => {
                let hour = if self.dice.permille(500) { 3600 } else { -3600 };
                self.set_clock(node, hour);
                RealEnv.sleep(lasts).await;
                self.set_clock(node, 0);
            }
            Fault::DiskFull => {
                let ballast = self.data(node).join("ballast");
                let of = format!("of={}", ballast.display());
                drop(Command::new("dd").args(["if=/dev/zero", "bs=64k", &of]).output());
                RealEnv.sleep(lasts).await;
                fs::remove_file(ballast).expect("removed");
            }
        }
        // A node whose disk failed may have ended, and said so.
        for node in 1..=3 {
            if self.machines.has_ended(node) {
                assert_eq!(fault, Fault::DiskFull, "{}", self.machines.log(node));
                self.machines.kill(node);
                self.start(node);
            }
        }
    }
}

impl Drop for Chaos {
    fn drop(&mut self) {
        for node in 1..=3 {
            self.machines.kill(node);
            drop(Command::new("umount").arg("-l").arg(self.data(node)).status());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_faults_lose_nothing_and_everything_heals() {
    let seed =
        number("KEYWARD_CHAOS_SEED").unwrap_or_else(|| RealEnv.wall_now_ms().cast_unsigned());
    let lasts = Duration::from_secs(number("KEYWARD_CHAOS_SECONDS").unwrap_or(SECONDS));
    println!("KEYWARD_CHAOS_SEED={seed}");
    let Some(mut chaos) = Chaos::new(seed).await else { return };
    let clients = Arc::new(Clients::new(&chaos.machines, Arc::clone(&chaos.book), seed));
    clients.begin().await;
    let meter = Meter::begin(&chaos.machines);

    let end = RealEnv.boot_now() + lasts;
    let mut order: Vec<Fault> = Vec::new();
    while RealEnv.boot_now() < end {
        if order.is_empty() {
            order = FAULTS.to_vec();
        }
        let fault = order.swap_remove(chaos.dice.index(order.len()));
        chaos.break_something(fault).await;
        RealEnv.sleep(Duration::from_millis(chaos.dice.below(2000))).await;
    }
    chaos.links.mend();

    let healed = RealEnv.boot_now();
    while !clients.all_work().await {
        let took = RealEnv.boot_now() - healed;
        assert!(
            took < HEALS_WITHIN,
            "seed {seed}: not everything works again within {HEALS_WITHIN:?}"
        );
    }
    println!("healed in {:?}", RealEnv.boot_now() - healed);
    clients.stop().await;
    meter.check().await;
    clients.nothing_is_lost().await;
    let book = chaos.book.lock();
    book.tell();
    let counts = &book.counts;
    assert!(counts.violations.is_empty(), "seed {seed}:\n{}", counts.violations.join("\n"));
    assert!(
        counts.acknowledged > 20 && book.answered() > 500,
        "hardly anything was tried: {counts:?}"
    );
}
