//! A principal under a quota that asks for half as much again, on every machine, all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use keyward_client::Client;
use keyward_env::{AsyncRuntime, Env, RealEnv};
use keyward_proto::v1;

use super::clients::client_of;
use crate::support::machines::Machines;

/// Calls a second, and at once.
const RATE: u64 = 120;
const BURST: u64 = 40;

pub struct Meter {
    admitted: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    began: Duration,
}

impl Meter {
    pub fn begin(machines: &Machines) -> Self {
        let out = machines.etc(1).join("meter").display().to_string();
        let arn = "arn:aws:iam::111122223333:user/meter";
        machines.on_ok(1, &["principal", "create", arn, "--kind", "user", "--out", &out]);
        let (limit, burst) = (format!("{RATE}/s"), BURST.to_string());
        let quota = ["--principal", arn, "--limit", &limit, "--burst", &burst];
        machines.on_ok(1, &[&["quota", "set"][..], &quota].concat());
        let meter =
            Self { admitted: Arc::default(), stop: Arc::default(), began: RealEnv.boot_now() };
        let clients: Vec<_> = (1..=3).map(|node| client_of(machines, node, "meter")).collect();
        let (admitted, stop, began) =
            (Arc::clone(&meter.admitted), Arc::clone(&meter.stop), meter.began);
        drop(<RealEnv as Env>::Runtime::spawn(async move {
            let mut sent = 0;
            while !stop.load(Ordering::SeqCst) {
                let due = (RealEnv.boot_now() - began).as_millis() as u64 * RATE * 3 / 2000;
                while sent < due {
                    let client = Arc::clone(&clients[sent as usize % 3]);
                    let admitted = Arc::clone(&admitted);
                    drop(<RealEnv as Env>::Runtime::spawn(async move {
                        let done = call(&client).await;
                        admitted.fetch_add(u64::from(done), Ordering::SeqCst);
                    }));
                    sent += 1;
                }
                RealEnv.sleep(Duration::from_millis(5)).await;
            }
        }));
        meter
    }

    /// Never more than quota and burst, all the time that it ran; and, now that nothing is broken, nearly all.
    pub async fn check(self) {
        let before = self.admitted.load(Ordering::SeqCst);
        let began = RealEnv.boot_now();
        RealEnv.sleep(Duration::from_secs(3)).await;
        let admitted = self.admitted.load(Ordering::SeqCst);
        let rate = (admitted - before) as f64 / (RealEnv.boot_now() - began).as_secs_f64();
        let took = (RealEnv.boot_now() - self.began).as_secs_f64();
        let most = RATE as f64 * took + BURST as f64;
        println!(
            "quota: {admitted} calls in {took:.0} s, at most {most:.0}; {rate:.0} a second of {RATE} now"
        );
        self.stop.store(true, Ordering::SeqCst);
        assert!(admitted as f64 <= most, "{admitted} calls were admitted, {most:.0} may be");
        assert!(rate >= RATE as f64 * 0.95, "{rate:.1} calls a second are admitted of {RATE}");
    }
}

async fn call(client: &Client) -> bool {
    let request = v1::GenerateRandomRequest { number_of_bytes: Some(8) };
    client.key_once(request, |mut c, r| async move { c.generate_random(r).await }).await.is_ok()
}
