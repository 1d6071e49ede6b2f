//! A majority is lost for good: one survivor goes on, and the lost ones stay out.

use std::process::Command;
use std::time::Duration;

use crate::support::{KEYWARD, Region, code, create_key, decrypt, encrypt, wait_until};

fn recover(region: &Region, node: u16, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(KEYWARD)
        .args(["cluster", "recover", "--config"])
        .arg(region.config(node))
        .args(arguments)
        .output()
        .expect("keyward runs");
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    (output.status.success(), text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_goes_on_alone_and_the_lost_ones_are_refused() {
    let mut region = Region::start(3);
    region.wait_serving(3).await;
    let key = create_key(&region.client(&[])).await.expect("a key");
    let blob = encrypt(&region.client(&[2]), &key).await.expect("a ciphertext").ciphertext_blob;

    // While the node runs, and while a majority is there, nothing is recovered.
    let (done, text) = recover(&region, 1, &["--lost", "2,3"]);
    assert!(!done && text.contains("stop this node first"), "{text}");
    region.stop(1);
    let (done, text) = recover(&region, 1, &["--lost", "2,3"]);
    assert!(!done && text.contains("has its majority"), "{text}");

    region.kill(2);
    region.kill(3);
    let (done, text) = recover(&region, 1, &[]);
    assert!(!done && text.contains("What may be lost") && text.contains("--lost 2,3"), "{text}");
    let (done, text) = recover(&region, 1, &["--lost", "2"]);
    assert!(!done && text.contains("every other node"), "{text}");
    // Nothing of that changed anything: alone, the node has no majority.
    region.start_node(1);
    let alone = region.client(&[1]);
    wait_until("the node refuses alone", Duration::from_secs(10), async || {
        code(encrypt(&alone, &key).await) == "DependencyTimeoutException"
    })
    .await;
    region.stop(1);

    let (done, text) = recover(&region, 1, &["--lost", "2,3"]);
    assert!(done && text.contains("goes on alone"), "{text}");
    region.start_node(1);
    region.wait_serving(1).await;
    assert_eq!(decrypt(&alone, &blob).await.expect("it opens").plaintext, b"plaintext");
    let young = create_key(&alone).await.expect("a key");

    // Both lost ones come back, a majority of the old Region: they are refused, and end.
    region.start_node(2);
    region.start_node(3);
    for node in [2, 3] {
        wait_until("a lost node is refused", Duration::from_secs(20), async || {
            region.log(node).contains("was given up")
        })
        .await;
        let client = region.client_as("dev", &[node], Duration::from_millis(500));
        assert_ne!(code(encrypt(&client, &key).await), "ok", "a lost node serves");
    }
    wait_until("the lost nodes end", Duration::from_secs(20), async || {
        region.has_ended(2) && region.has_ended(3)
    })
    .await;
    region.start_node(2);
    wait_until("and do not start again", Duration::from_secs(10), async || region.has_ended(2))
        .await;

    // The Region grows again, under new ids, and rotates its domain key without the lost roots.
    assert_eq!(region.join(), 4);
    region.wait_serving(2).await;
    region.run_ok(&["cluster", "rotate-domain-key"]);
    let newcomer = region.client(&[4]);
    assert_eq!(decrypt(&newcomer, &blob).await.expect("it opens").plaintext, b"plaintext");
    assert_eq!(code(encrypt(&newcomer, &young).await), "ok");
    let told = Command::new(KEYWARD)
        .args(["--output", "json", "audit", "query", "--event", "RecoverRegion", "--folder"])
        .arg(region.node_folder(1).join("data/audit"))
        .output()
        .expect("keyward runs");
    assert_eq!(String::from_utf8_lossy(&told.stdout).lines().count(), 1, "it is on record");
}

/// Of two survivors the one that knows less is refused while the other one runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_that_knows_less_is_told_to_leave_it_to_the_other() {
    let mut region = Region::start(4);
    region.wait_serving(4).await;
    region.have_lead(2).await;
    region.stop(1);
    let key = create_key(&region.client(&[2])).await.expect("a key");
    let blob = encrypt(&region.client(&[2]), &key).await.expect("a ciphertext").ciphertext_blob;
    region.wait_serving(3).await;
    region.kill(3);
    region.kill(4);
    let (done, text) = recover(&region, 1, &["--lost", "2,3,4"]);
    assert!(!done && text.contains("node 2 is there and has acknowledged"), "{text}");
    assert!(text.contains("stop node 2 and recover on that machine"), "{text}");
    region.stop(2);
    let (done, text) = recover(&region, 2, &["--lost", "1,3,4"]);
    assert!(done && text.contains("highest term"), "{text}");
    region.start_node(2);
    region.wait_serving(1).await;
    let opened = decrypt(&region.client(&[2]), &blob).await.expect("it opens");
    assert_eq!(opened.plaintext, b"plaintext");
}
