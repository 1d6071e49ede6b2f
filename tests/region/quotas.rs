//! Quotas on real processes: never more than quota and burst, and close to all of it, whatever happens to nodes.

use std::sync::Arc;
use std::time::Duration;

use keyward_client::{CallError, Client, Repeat};
use keyward_env::{Env, RealEnv};

use crate::support::load::Offered;
use crate::support::{Region, create_key, encrypt};

const PRINCIPAL: &str = "arn:aws:iam::111122223333:user/dev";

async fn once(client: &Client, key: &str) -> Result<(), CallError> {
    encrypt(client, key).await.map(drop)
}

fn offer(clients: Vec<Arc<Client>>, key: &str, a_second: u64) -> Offered {
    let key = key.to_owned();
    Offered::start(clients, a_second, move |client| {
        let key = key.clone();
        async move { once(&client, &key).await }
    })
}

/// The whole of it: on one node, spread over all, through a leader's death, a restart and a newcomer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_holds_from_both_sides_whatever_happens() {
    const RATE: u64 = 400;
    let mut region = Region::start(3);
    region.wait_serving(3).await;
    let key = create_key(&region.client(&[])).await.expect("a key");
    let limit = format!("{RATE}/s");
    region.run_ok(&["quota", "set", "--principal", PRINCIPAL, "--limit", &limit, "--burst", "100"]);
    let own = |region: &Region, node: u16| region.client_as("dev", &[node], Duration::from_secs(3));
    let fair = |what: &str, rate: f64| {
        println!("{what}: {rate:.0} a second of {RATE}");
        assert!(rate >= RATE as f64 * 0.95, "{what}: {rate:.1} a second were admitted of {RATE}");
    };

    // One client on one node gets all of it within 400 ms, then another one on another node.
    for node in [1, 2] {
        let load = offer(vec![own(&region, node)], &key, RATE * 3 / 2);
        RealEnv.sleep(Duration::from_millis(400)).await;
        fair("one node", Offered::rate(&[&load], 2).await);
    }

    // Spread over all, for the rest of the test.
    let began = RealEnv.boot_now();
    let clients = (1..=3).map(|node| own(&region, node)).collect();
    let all = offer(clients, &key, RATE * 3 / 2);
    RealEnv.sleep(Duration::from_millis(600)).await;
    fair("all nodes", Offered::rate(&[&all], 3).await);

    // The leader dies: a third of the calls fail, and the others may use its part after a lease.
    let leader = region.leader().await;
    let survivors: Vec<_> =
        (1..=3).filter(|node| *node != leader).map(|n| own(&region, n)).collect();
    let more = offer(survivors, &key, RATE * 3 / 2);
    region.kill(leader);
    RealEnv.sleep(Duration::from_millis(3300)).await;
    let together = [&all, &more];
    fair("without the leader", Offered::rate(&together, 2).await);
    region.start_node(leader);
    region.wait_serving(3).await;
    fair("with the old leader back", Offered::rate(&together, 2).await);
    region.join();
    region.wait_serving(4).await;
    fair("with a newcomer", Offered::rate(&together, 2).await);

    let took = (RealEnv.boot_now() - began).as_secs_f64();
    let sum = all.admitted() + more.admitted();
    let most = RATE as f64 * took + 100.0;
    println!("{sum} calls in {took:.1} s; at most {most:.0}");
    assert!(sum as f64 <= most, "{sum} calls were admitted in {took:.1} s");
    assert!(all.throttled() > 0);
    assert_eq!(more.failed(), 0, "survivors fail no call");
}

/// A refusal says which quota, whose, how much and when to try again; a change of the quota counts at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_say_all_and_changes_count_at_once() {
    let region = Region::start(3);
    region.wait_serving(3).await;
    let client = region.client(&[]);
    let key = create_key(&client).await.expect("a key");
    let clients: Vec<_> =
        (1..=3).map(|node| region.client_as("dev", &[node], Duration::from_secs(3))).collect();
    let burst = async |count: usize| {
        let calls = (0..count).map(|call| once(&clients[call % 3], &key));
        let answers = futures_util::future::join_all(calls).await;
        answers.into_iter().filter(Result::is_ok).count()
    };

    // Small quotas are counted as exactly as large ones.
    region.run_ok(&[
        "quota",
        "set",
        "--each-principal",
        "--covers",
        "symmetric-crypto",
        "--limit",
        "5/s",
    ]);
    RealEnv.sleep(Duration::from_millis(1200)).await;
    let admitted = burst(60).await;
    assert!((4..=7).contains(&admitted), "{admitted} of a burst of 5");
    let error = loop {
        if let Err(error) = once(&clients[0], &key).await {
            break error;
        }
    };
    assert_eq!(error.code.as_deref(), Some("ThrottlingException"));
    assert!(error.retryable);
    let throttle = error.throttle.expect("its quota");
    assert_eq!(throttle.quota, "each-principal: symmetric-crypto");
    assert_eq!(throttle.scope, format!("principal {PRINCIPAL}"));
    assert_eq!((throttle.limit, throttle.window_seconds), (5, 1));
    assert!((1..=1000).contains(&throttle.retry_after_milliseconds), "{throttle:?}");
    // Clients wait and try again by themselves.
    let request = keyward_proto::v1::EncryptRequest {
        key_id: key.clone(),
        plaintext: b"plaintext".to_vec(),
        ..Default::default()
    };
    let again = client.key(Repeat::Safe, request, |mut c, r| async move { c.encrypt(r).await });
    again.await.expect("after a moment");

    // A minute's quota is the same for all nodes, and is not exceeded.
    region.run_ok(&["quota", "set", "--principal", PRINCIPAL, "--limit", "40/m"]);
    region.run_ok(&["quota", "delete", "--each-principal", "--covers", "symmetric-crypto"]);
    let mut admitted = 0;
    for _ in 0..6 {
        admitted += burst(30).await;
    }
    // The test may reach into the next minute.
    assert!((38..=40).contains(&admitted) || (41..=80).contains(&admitted), "{admitted}");
    let usage = region.run_ok(&["quota", "usage"]);
    assert!(usage.contains("40 a minute"), "{usage}");

    // Without a quota nothing is refused.
    region.run_ok(&["quota", "delete", "--principal", PRINCIPAL]);
    assert_eq!(burst(300).await, 300);
    // And a new one counts from the first call on.
    region.run_ok(&["quota", "set", "--account", "111122223333", "--limit", "50/s"]);
    let admitted = burst(300).await;
    assert!((40..=80).contains(&admitted), "{admitted}");
    for (wrong, says) in [
        (&["quota", "set", "--each-principal", "--limit", "0/s"][..], "disable the principal"),
        (&["quota", "set", "--each-principal", "--limit", "99999999999/s"], "at most 10000000"),
        (&["quota", "set", "--each-account", "--limit", "5/s", "--limit", "6/s"], "name one"),
        (&["quota", "set", "--each-account", "--limit", "5/s", "--limit", "4/m"], "larger"),
        (
            &["quota", "set", "--each-account", "--covers", "Encrypt", "--limit", "5/s"],
            "symmetric-crypto",
        ),
        (&["quota", "set", "--each-account", "--limit", "5/m", "--burst", "5"], "--limit CALLS/s"),
        (
            &["quota", "set", "--principal", "arn:aws:iam::111122223333:user/x", "--limit", "5/s"],
            "keyward principal list",
        ),
        (&["quota", "profile", "apply", "aws-moon"], "keyward quota profile list"),
    ] {
        let output = region.run(wrong);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(says), "{wrong:?}: {said}");
    }
    assert_eq!(region.run_ok(&["quota", "list"]).lines().count(), 2, "nothing was changed");
}
