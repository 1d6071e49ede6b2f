//! Quotas on real processes: never more than quota and burst, and close to all of it, whatever happens to nodes.

use std::sync::Arc;
use std::time::Duration;

use keyward_client::{CallError, Client, Repeat};
use keyward_env::{Env, RealEnv};
use keyward_proto::v1;

use crate::chaos::clients::client_of;
use crate::chaos::proxy::Links;
use crate::support::load::Offered;
use crate::support::machines::Machines;
use crate::support::{Region, Turn, create_key, encrypt, wait_until};

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

/// A node is cut off from the others while callers ask all three, as a follower and as the leader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_neither_exceeds_a_quota_nor_costs_the_majority_a_part_of_it() {
    const RATE: u64 = 200;
    const BURST: u64 = 50;
    /// For so long the others may have to do without the part of a node that is cut off: its lease, and 400 ms.
    const WITHOUT_ITS_PART: Duration = Duration::from_millis(2900 + 400);
    let _turn = Turn::wait();
    let Some(mut machines) = Machines::new() else { return };
    let links = Links::between(&machines).await;
    machines.found();
    let (limit, burst) = (format!("{RATE}/s"), BURST.to_string());
    let principal = "arn:aws:iam::111122223333:user/app";
    let quota = ["quota", "set", "--principal", principal, "--limit", &limit, "--burst", &burst];
    machines.on_ok(1, &quota);
    // Any two nodes are asked for 1.5 times the rate.
    let loads: Vec<Offered> = (1..=3)
        .map(|node| {
            Offered::start(
                vec![client_of(&machines, node, "app")],
                RATE * 3 / 4,
                |client| async move {
                    let request = v1::GenerateRandomRequest { number_of_bytes: Some(8) };
                    let call = client
                        .key_once(request, |mut c, r| async move { c.generate_random(r).await });
                    call.await.map(drop)
                },
            )
        })
        .collect();
    let all: Vec<&Offered> = loads.iter().collect();
    let fair = async |what: &str| {
        let rate = Offered::rate(&all, 2).await;
        println!("{what}: {rate:.0} a second of {RATE}");
        assert!(rate >= RATE as f64 * 0.95, "{what}: {rate:.1} a second were admitted of {RATE}");
    };
    RealEnv.sleep(Duration::from_millis(600)).await;
    fair("all nodes").await;
    for leads in [false, true] {
        let leader = machines.leader().expect("a leader");
        let cut = if leads { leader } else { 1 + leader % 3 };
        let majority: Vec<&Offered> =
            (1..=3).filter(|node| *node != cut).map(|node| &loads[node - 1]).collect();
        let failed = || majority.iter().map(|load| load.failed()).sum::<u64>();
        let before = failed();
        links.isolate(cut);
        RealEnv.sleep(WITHOUT_ITS_PART).await;
        let admitted = loads[cut - 1].admitted();
        fair(if leads { "without the leader" } else { "without a follower" }).await;
        assert_eq!(loads[cut - 1].admitted(), admitted, "without a lease nothing is admitted");
        links.mend();
        fair("while it comes back").await;
        wait_until("the node admits calls again", Duration::from_secs(10), async || {
            loads[cut - 1].admitted() > admitted
        })
        .await;
        fair("once it is back").await;
        assert_eq!(failed(), before, "the majority fails no call");
    }
    let worst = Offered::burst(&all, RATE);
    println!("at worst {worst:.1} calls beyond the rate, of a burst of {BURST}");
    assert!(worst <= BURST as f64, "{worst:.1} calls beyond the rate, {BURST} may be");
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
    let request = v1::EncryptRequest {
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
