//! What calls cost beside an echo: server CPU a call with 64 in flight, behind the same TLS, with the same payload and the
//! same clients; and how long an Encrypt takes that has no other beside it. Everything is on: the trail, two quotas,
//! leases and permissions. One line a figure, with its limit.

use std::time::Duration;

use keyward_proto::v1;

use crate::servers::{Called, IN_FLIGHT, Kind, Work, encrypts, median, ratio};
use crate::support::{Region, create_key};

const PRINCIPAL: &str = "arn:aws:iam::111122223333:user/dev";
/// Rounds of one window each. Short ones: what else a machine does then falls on all of them alike.
const ROUNDS: usize = 64;
const WINDOW: Duration = Duration::from_millis(130);
/// Calls one after the other, in a round.
const ALONE: usize = 150;

/// True if every limit holds.
pub async fn ratios() -> bool {
    let mut region = Region::start(1);
    region.wait_serving(1).await;
    let client = region.client(&[]);
    let key = create_key(&client).await.expect("a key");
    let small = encrypts(&key, &[7; 32]);
    let large = encrypts(&key, &[7; 4096]);
    let encrypt = async |request: &v1::EncryptRequest| {
        let call = client.key_once(request.clone(), |mut c, r| async move { c.encrypt(r).await });
        call.await.expect("a ciphertext")
    };
    let (answer, large_answer) = (encrypt(&small).await, encrypt(&large).await);
    let decrypt = v1::DecryptRequest {
        ciphertext_blob: answer.ciphertext_blob.clone(),
        ..v1::DecryptRequest::default()
    };
    let data_key = v1::GenerateDataKeyRequest {
        key_id: key.clone(),
        key_spec: Some("AES_256".to_owned()),
        ..v1::GenerateDataKeyRequest::default()
    };
    let most = ["--limit", "10000000/s"];
    region.run_ok(&[&["quota", "set", "--account", "111122223333"], &most[..]].concat());
    region.run_ok(&[&["quota", "set", "--principal", PRINCIPAL], &most[..]].concat());
    region.stop(1);
    let node = Called::start(&region, Kind::Recorded, 1, &key).await;
    let echo = Called::echo(&region, 2, &answer).await;
    let large_echo = Called::echo(&region, 3, &large_answer).await;
    region.start_node(1);
    region.wait_serving(1).await;
    region.run_ok(&["quota", "set", "--principal", PRINCIPAL, "--limit", "30/s"]);
    region.stop(1);
    let refusing = Called::start(&region, Kind::Recorded, 4, &key).await;

    // The first two are what the others are measured by.
    let windows = [
        ("echo", &echo, Work::Encrypt(small.clone())),
        ("echo of 4 KiB", &large_echo, Work::Encrypt(large.clone())),
        ("Encrypt, 32 bytes", &node, Work::Encrypt(small.clone())),
        ("Decrypt, 32 bytes", &node, Work::Decrypt(decrypt)),
        ("GenerateDataKey", &node, Work::DataKey(data_key)),
        ("Encrypt, 4 KiB", &node, Work::Encrypt(large)),
        ("a refusal for a quota", &refusing, Work::Encrypt(small.clone())),
        ("Encrypt on one stream", &node, Work::Streamed(1, small.clone())),
        ("Encrypt on eight streams", &node, Work::Streamed(8, small)),
    ];
    // A figure, what it is measured by, and what it may be at most.
    let limits = [
        (2, 0, Some(1.5)),
        (3, 0, Some(1.5)),
        (4, 0, Some(1.5)),
        (5, 1, Some(1.6)),
        (6, 0, Some(1.1)),
        (7, 0, Some(0.4)),
        (8, 0, None),
    ];
    let mut costs = vec![Vec::new(); windows.len()];
    let (mut node_alone, mut echo_alone) = (Vec::new(), Vec::new());
    let alone = Work::Encrypt(encrypts(&key, &[7; 32]));
    for round in 0..ROUNDS {
        for turn in 0..windows.len() {
            let at = (round + turn) % windows.len();
            let (_, server, work) = &windows[at];
            costs[at].push(server.window_of(work, WINDOW).await.0);
        }
        for turn in 0..2 {
            match (round + turn) % 2 {
                0 => node_alone.push(node.alone_of(&alone, ALONE).await),
                _ => echo_alone.push(echo.alone_of(&alone, ALONE).await),
            }
        }
    }
    println!(
        "server CPU a call, {IN_FLIGHT} in flight, beside an echo's ({:.1} us); median and 96 % interval of {ROUNDS} pairs",
        median(costs[0].clone())
    );
    let mut all_hold = true;
    for (figure, floor, limit) in limits {
        let (name, floor_name) = (windows[figure].0, windows[floor].0);
        all_hold &= tell(name, floor_name, ratio(&costs[figure], &costs[floor]), limit);
    }
    println!(
        "time of a call, one in flight, median; beside an echo's ({:.0} us)",
        median(echo_alone.clone())
    );
    all_hold &= tell("Encrypt, one in flight", "echo", ratio(&node_alone, &echo_alone), Some(1.25));
    all_hold
}

/// Prints a figure. True if its limit holds.
fn tell(name: &str, floor: &str, (middle, low, high): (f64, f64, f64), limit: Option<f64>) -> bool {
    let holds = limit.is_none_or(|limit| middle <= limit);
    let verdict = match limit {
        None => "no limit".to_owned(),
        Some(limit) if holds => format!("limit {limit:.2}: holds"),
        Some(limit) => format!("limit {limit:.2}: DOES NOT HOLD"),
    };
    println!("{name:<26} {middle:.2} x {floor} ({low:.2} to {high:.2}), {verdict}");
    holds
}
