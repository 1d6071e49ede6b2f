//! What others notice of a principal that offers a hundred times its quota: the 99th percentile of their calls, in
//! windows without it, with it, and with the same load on an echo beside the nodes. Clients and nodes share this
//! machine's cores: the echo shows how much of the difference is the load's own making.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use keyward_client::{Client, ClientConfig};
use keyward_env::{AsyncRuntime, Env, RealEnv};

use crate::servers::{Called, median, verdict};
use crate::support::{Region, create_key, encrypt};

const NOISY: &str = "arn:aws:iam::111122223333:user/noisy";
/// Calls a second that the noisy principal may make, and offers.
const QUOTA: u64 = 100;
const OFFERED: u64 = 100 * QUOTA;
/// The noisy principal's calls under way at most: what comes on top is not offered, and told.
const UNDER_WAY_MAX: u64 = 256;
/// Calls of the others: one on each node so often.
const EVERY: Duration = Duration::from_millis(4);
const WINDOW: Duration = Duration::from_secs(4);
const ROUNDS: usize = 8;
/// The 99th percentile of the others may be so many times what it is without the noise.
const BAR: f64 = 1.5;

/// Offers calls at a steady pace until its input ends: this program, started once more.
pub async fn offer_if_asked() -> bool {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--offer").skip(1);
    let (Some(pki), Some(key)) = (arguments.next(), arguments.next()) else { return false };
    let read = |name: &str| std::fs::read(format!("{pki}/{name}")).expect("a PEM file");
    let clients: Vec<_> = arguments
        .map(|endpoint| {
            let config = ClientConfig {
                endpoints: vec![endpoint],
                authority: read("ca.pem"),
                certificate: read("noisy.pem"),
                private_key: read("noisy.key").into(),
                patience: Duration::from_secs(3),
            };
            Arc::new(Client::new(&config).expect("a client"))
        })
        .collect();
    let stop = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&stop);
    let input = RealEnv.blocking(move || {
        drop(std::io::stdin().lock().lines().next());
        ended.store(true, Ordering::Relaxed);
    });
    RealEnv.spawn(input);
    let [under_way, refused, other] = [const { AtomicU64::new(0) }; 3].map(Arc::new);
    let (began, mut due, mut sent) = (RealEnv.boot_now(), 0, 0);
    while !stop.load(Ordering::Relaxed) {
        let now = (RealEnv.boot_now() - began).as_micros() as u64 * OFFERED / 1_000_000;
        for _ in due..now {
            if under_way.load(Ordering::Relaxed) >= UNDER_WAY_MAX {
                continue;
            }
            under_way.fetch_add(1, Ordering::Relaxed);
            let client = Arc::clone(&clients[sent as usize % clients.len()]);
            let (under_way, refused, other, key) =
                (Arc::clone(&under_way), Arc::clone(&refused), Arc::clone(&other), key.clone());
            drop(<RealEnv as Env>::Runtime::spawn(async move {
                let throttled =
                    encrypt(&client, &key).await.is_err_and(|error| error.throttle.is_some());
                if throttled { refused } else { other }.fetch_add(1, Ordering::Relaxed);
                under_way.fetch_sub(1, Ordering::Relaxed);
            }));
            sent += 1;
        }
        due = now;
        RealEnv.sleep(Duration::from_millis(1)).await;
    }
    let seconds = (RealEnv.boot_now() - began).as_secs_f64();
    let a_second = |count: u64| count as f64 / seconds;
    let (refused, other) = (refused.load(Ordering::Relaxed), other.load(Ordering::Relaxed));
    println!("{:.0} {:.0} {:.0}", a_second(sent), a_second(refused), a_second(other));
    true
}

/// A process that offers calls.
struct Noise(Child);

impl Noise {
    fn start(region: &Region, key: &str, places: &[u16]) -> Self {
        let child = Command::new(std::env::current_exe().expect("this program"))
            .arg("--offer")
            .arg(region.folder.path().join("pki"))
            .arg(key)
            .args(places.iter().map(|place| region.endpoint(*place)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process that offers calls");
        Self(child)
    }

    /// Calls a second: offered, refused, and what became of them else.
    fn end(mut self) -> Vec<f64> {
        let mut input = self.0.stdin.take().expect("its input");
        input.write_all(b"\n").expect("it listens");
        let mut told = String::new();
        let output = self.0.stdout.take().expect("its output");
        BufReader::new(output).read_line(&mut told).expect("its figures");
        self.0.wait().expect("it ends");
        told.split_whitespace().map(|figure| figure.parse().expect("a number")).collect()
    }
}

/// The 99th percentile of calls at a steady pace on every node, in milliseconds.
async fn others(clients: &[Arc<Client>], key: &str) -> f64 {
    let end = RealEnv.boot_now() + WINDOW;
    let callers: Vec<_> = clients
        .iter()
        .map(|client| {
            let (client, key) = (Arc::clone(client), key.to_owned());
            <RealEnv as Env>::Runtime::spawn(async move {
                let mut took = Vec::new();
                let mut next = RealEnv.boot_now();
                while next < end {
                    // Counted from when the call was due: one that is late because of the one before is late.
                    encrypt(&client, &key).await.expect("the others' calls are served");
                    took.push((RealEnv.boot_now() - next).as_secs_f64() * 1e3);
                    next += EVERY;
                    RealEnv.sleep(next.saturating_sub(RealEnv.boot_now())).await;
                }
                took
            })
        })
        .collect();
    let mut took = Vec::new();
    for caller in callers {
        took.extend(caller.await.expect("it ends"));
    }
    took.sort_unstable_by(f64::total_cmp);
    took[took.len() * 99 / 100]
}

/// Rounds of one window each: quiet, noise on an echo, noise on all nodes.
pub async fn neighbours() {
    let region = Region::start(3);
    region.wait_serving(3).await;
    let key = create_key(&region.client(&[])).await.expect("a key");
    let answer = encrypt(&region.client(&[]), &key).await.expect("a ciphertext");
    let noisy = region.pki("noisy").display().to_string();
    region.run_ok(&["principal", "create", NOISY, "--kind", "user", "--out", &noisy]);
    let limit = format!("{QUOTA}/s");
    region.run_ok(&["quota", "set", "--principal", NOISY, "--limit", &limit]);
    let echo = Called::echo(&region, 1, &answer).await;
    let clients: Vec<_> = (1..=3).map(|node| region.client(&[node])).collect();
    others(&clients, &key).await;
    let targets: [&[u16]; 3] = [&[], &[11], &[1, 2, 3]];
    let mut p99 = [const { Vec::new() }; 3];
    let mut offered = [const { Vec::new() }; 3];
    for round in 0..ROUNDS {
        for turn in 0..targets.len() {
            let which = (round + turn) % targets.len();
            let noise = (which > 0).then(|| Noise::start(&region, &key, targets[which]));
            RealEnv.sleep(Duration::from_secs(1)).await;
            p99[which].push(others(&clients, &key).await);
            if let Some(noise) = noise {
                offered[which].push(noise.end());
            }
        }
    }
    drop(echo);
    let figure = |which: usize, index: usize| {
        median(offered[which].iter().map(|figures: &Vec<f64>| figures[index]).collect())
    };
    println!(
        "one principal at {OFFERED} calls a second under a quota of {QUOTA}: {:.0} offered, {:.0} refused, {:.0} not",
        figure(2, 0),
        figure(2, 1),
        figure(2, 2)
    );
    let [quiet, on_echo, on_nodes] = p99;
    let ratios =
        |noise: &[f64]| -> Vec<f64> { noise.iter().zip(&quiet).map(|(a, b)| a / b).collect() };
    let (of_load, of_both) = (median(ratios(&on_echo)), ratios(&on_nodes));
    // Of 8, the least and the most have the median between them with 99 % confidence.
    let (low, high) = of_both.iter().fold((f64::MAX, 0.0_f64), |(l, h), r| (l.min(*r), h.max(*r)));
    println!(
        "  p99 of the others: {:.2} ms without it, {:.2} ms with it, {:.2} ms with its load on an echo \
         (medians of {ROUNDS} windows)",
        median(quiet.clone()),
        median(on_nodes),
        median(on_echo)
    );
    println!(
        "  {:.2} times, 99 % interval {low:.2} to {high:.2} (bar: at most {BAR}, {}); the load alone: {of_load:.2} times",
        median(of_both),
        verdict(low, high, BAR)
    );
}
