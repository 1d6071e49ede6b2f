//! A principal under a quota that asks for half as much again, on every machine, all the time.

use std::time::Duration;

use keyward_env::{Env, RealEnv};
use keyward_proto::v1;

use super::clients::client_of;
use crate::support::load::Offered;
use crate::support::machines::Machines;

/// Calls a second, and at once.
const RATE: u64 = 120;
const BURST: u64 = 40;

pub struct Meter {
    load: Offered,
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
        let clients = (1..=3).map(|node| client_of(machines, node, "meter")).collect();
        let began = RealEnv.boot_now();
        let load = Offered::start(clients, RATE * 3 / 2, |client| async move {
            let request = v1::GenerateRandomRequest { number_of_bytes: Some(8) };
            let call =
                client.key_once(request, |mut c, r| async move { c.generate_random(r).await });
            call.await.map(drop)
        });
        Self { load, began }
    }

    /// Never more than quota and burst, in any time while it ran; and, now that nothing is broken, nearly all.
    pub async fn check(self) {
        let rate = Offered::rate(&[&self.load], 3).await;
        let admitted = self.load.admitted();
        let took = (RealEnv.boot_now() - self.began).as_secs_f64();
        let most = RATE as f64 * took + BURST as f64;
        let burst = Offered::burst(&[&self.load], RATE);
        println!(
            "quota: {admitted} calls admitted in {took:.0} s of at most {most:.0}, {} refused, {} failed; at worst \
             {burst:.1} beyond the rate, of a burst of {BURST}; {rate:.0} a second of {RATE} now",
            self.load.throttled(),
            self.load.failed()
        );
        assert!(admitted as f64 <= most, "{admitted} calls were admitted, {most:.0} may be");
        assert!(burst <= BURST as f64, "{burst:.1} calls beyond the rate, {BURST} may be");
        assert!(rate >= RATE as f64 * 0.95, "{rate:.1} calls a second are admitted of {RATE}");
    }
}
