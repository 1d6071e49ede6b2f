//! What quotas cost a call that is admitted, and what a refusal costs, beside an echo: the same TLS, the same
//! clients, an answer of the same size. No server here keeps a trail: a record costs a refused call what it costs any
//! (`recording`).

use crate::servers::{Called, IN_FLIGHT, Kind, WINDOWS, difference, median, verdict};
use crate::support::{Region, create_key, encrypt};

const PRINCIPAL: &str = "arn:aws:iam::111122223333:user/dev";
/// A refusal may cost an echo's CPU and this part of it.
const BAR_PART: f64 = 0.1;

/// Windows in rounds of one of each server.
pub async fn cost() {
    let mut region = Region::start(1);
    region.wait_serving(1).await;
    let key = create_key(&region.client(&[])).await.expect("a key");
    let answer = encrypt(&region.client(&[]), &key).await.expect("a ciphertext");
    region.stop(1);
    let free = Called::start(&region, Kind::Unrecorded, 1, &key).await;
    let echo = Called::echo(&region, 2, &answer).await;
    let most = ["--limit", "10000000/s"];
    let set = async |region: &mut Region, quotas: &[&[&str]]| {
        region.start_node(1);
        region.wait_serving(1).await;
        for quota in quotas {
            region.run_ok(&[&["quota", "set"], *quota].concat());
        }
        region.stop(1);
    };
    let of_account = [&["--account", "111122223333"], &most[..]].concat();
    let of_principal = [&["--principal", PRINCIPAL], &most[..]].concat();
    set(&mut region, &[&of_account, &of_principal]).await;
    let counted = Called::start(&region, Kind::Unrecorded, 3, &key).await;
    set(&mut region, &[&["--principal", PRINCIPAL, "--limit", "30/s"]]).await;
    let refusing = Called::start(&region, Kind::Unrecorded, 4, &key).await;

    let servers = [&free, &counted, &refusing, &echo];
    let mut costs = [const { Vec::new() }; 4];
    let mut refused = [const { Vec::new() }; 4];
    for round in 0..WINDOWS {
        for turn in 0..4 {
            let server = (round + turn) % 4;
            let (cost, part) = servers[server].window().await;
            costs[server].push(cost);
            refused[server].push(part);
        }
    }
    let [free, counted, refusing, echo] = costs;
    let [none, neither, most, _] = refused.map(median);
    assert!(none == 0.0 && neither == 0.0 && most > 0.99, "refused: {none}, {neither}, {most}");
    let (admission, low, high) = difference(&counted, &free);
    println!(
        "CPU an Encrypt, {IN_FLIGHT} in flight, not recorded: {:.1} us without a quota, {:.1} us under two",
        median(free),
        median(counted)
    );
    println!("  admission costs {admission:.2} us, 96 % interval {low:.2} to {high:.2}");
    let (more, low, high) = difference(&refusing, &echo);
    let (refusing, echo) = (median(refusing), median(echo));
    let bar = echo * BAR_PART;
    println!("CPU a refusal, not recorded: {refusing:.1} us; an echo: {echo:.1} us");
    println!(
        "  a refusal costs {more:.1} us more, 96 % interval {low:.1} to {high:.1} (bar: at most {bar:.1} us, {})",
        verdict(low, high, bar)
    );
}
