//! Several Regions of real processes: a key that lives in all of them, a Region that is lost and comes back, links that
//! are cut.

use std::time::Duration;

use base64::Engine;
use keyward_client::{Client, FailoverConfig, RegionalClient, Repeat};
use keyward_env::{Env, RealEnv};
use keyward_model::Timestamp;
use keyward_proto::v1;
use keyward_service::{Authority, signing_request};

use crate::support::regions::{NAMES, Regions, describe, primary, state};
use crate::support::{Load, code, decrypt, encrypt, wait_until};

const SYDNEY: &str = NAMES[0];
const IRELAND: &str = NAMES[1];
const VIRGINIA: &str = NAMES[2];

#[tokio::test(flavor = "multi_thread")]
async fn a_key_lives_in_three_regions() {
    let regions = Regions::start(1);
    let began = RealEnv.boot_now();
    let key = regions.key_everywhere(VIRGINIA).await;
    assert!(RealEnv.boot_now() - began < Duration::from_secs(5));
    assert!(key.starts_with("mrk-"));
    let clients = NAMES.map(|region| regions.client(region, Duration::from_secs(5)));

    // What one encrypts, each opens, byte for byte the same; each answers with its own ARN.
    for (from, client) in NAMES.iter().zip(&clients) {
        let sealed = encrypt(client, &key).await.expect("a ciphertext");
        assert!(sealed.key_id.contains(&format!(":kms:{from}:")), "{}", sealed.key_id);
        for (to, client) in NAMES.iter().zip(&clients) {
            let opened = decrypt(client, &sealed.ciphertext_blob).await.expect("it opens");
            assert_eq!(opened.plaintext, b"plaintext");
            assert!(opened.key_id.contains(&format!(":kms:{to}:")));
        }
    }

    // DescribeKey tells the same of where it is, and of each what it is.
    for (region, client) in NAMES.iter().zip(&clients) {
        let told = describe(client, &key).await.expect("described");
        assert!(told.multi_region && told.key_state == "Enabled");
        let of = told.multi_region_configuration.expect("a configuration");
        let kind = if *region == VIRGINIA { "PRIMARY" } else { "REPLICA" };
        assert_eq!(of.multi_region_key_type, kind, "{region}");
        assert_eq!(of.primary_key.expect("a primary").region, VIRGINIA);
        let replicas: Vec<_> = of.replica_keys.iter().map(|key| key.region.as_str()).collect();
        assert_eq!(replicas, [SYDNEY, IRELAND]);
    }

    // Shared properties are the primary's to change, and refused elsewhere; independent ones stay where they are.
    let refused = regions.refused(IRELAND, &["key", "rotate", &key]);
    assert!(refused.contains("UnsupportedOperationException"), "{refused}");
    assert!(refused.contains("is not a multi-region primary key"), "{refused}");
    let before = describe(&clients[2], &key).await.expect("a key").current_key_material_id;
    regions.ok(VIRGINIA, &["key", "rotate", &key]);
    for (region, client) in NAMES.iter().zip(&clients) {
        wait_until(
            &format!("{region} uses the new material"),
            Duration::from_secs(5),
            async || {
                describe(client, &key).await.is_some_and(|k| k.current_key_material_id != before)
            },
        )
        .await;
    }
    regions.ok(IRELAND, &["key", "disable", &key]);
    assert_eq!(code(encrypt(&clients[1], &key).await), "DisabledException");
    encrypt(&clients[0], &key).await.expect("it works in the others");
    regions.ok(IRELAND, &["key", "enable", &key]);

    // A primary waits for its replicas, and one of them goes on its own.
    let scheduled = regions.json(VIRGINIA, &["key", "schedule-deletion", &key, "--days", "7"]);
    assert_eq!(scheduled["KeyState"], "PendingReplicaDeletion");
    assert!(scheduled["DeletionDate"].is_null());
    assert_eq!(code(encrypt(&clients[2], &key).await), "KMSInvalidStateException");
    encrypt(&clients[0], &key).await.expect("replicas go on");
    for region in [SYDNEY, IRELAND] {
        regions.ok(region, &["key", "schedule-deletion", &key, "--days", "7"]);
        regions.ok(region, &["dev", "clock", "advance", "8d"]);
    }
    regions
        .wait(VIRGINIA, "its own waiting period begins", async |client| {
            state(client, &key).await == "PendingDeletion"
        })
        .await;
    // A replica that is gone can be made anew, and only so.
    regions.ok(VIRGINIA, &["key", "cancel-deletion", &key]);
    regions.ok(VIRGINIA, &["key", "enable", &key]);
    RealEnv.sleep(Duration::from_millis(500)).await;
    assert!(describe(&clients[0], &key).await.is_none(), "it came back by itself");
    regions.ok(VIRGINIA, &["key", "replicate", &key, SYDNEY, "--description", "anew"]);
    regions
        .wait(SYDNEY, "it is made anew", async |client| {
            describe(client, &key).await.is_some_and(|key| key.description == "anew")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_is_lost_and_comes_back_behind() {
    let regions = Regions::start(1);
    let key = regions.key_everywhere(VIRGINIA).await;
    let other = regions.key_everywhere(VIRGINIA).await;
    let ireland = regions.client(IRELAND, Duration::from_secs(5));
    let virginia = regions.client(VIRGINIA, Duration::from_secs(5));
    let sealed = encrypt(&virginia, &key).await.expect("a ciphertext").ciphertext_blob;

    let refused = regions.refused(IRELAND, &["region", "promote", VIRGINIA]);
    assert!(refused.contains("lives"), "{refused}");
    // What it acknowledges from here on it can hand on to nobody.
    for other in [SYDNEY, IRELAND] {
        regions.fault(&["cut", VIRGINIA, other]);
    }
    regions.ok(VIRGINIA, &["key", "enable-rotation", &key, "--days", "100"]);
    regions.ok(VIRGINIA, &["key", "enable-rotation", &other, "--days", "120"]);
    let unshipped = regions.json(VIRGINIA, &["region", "status"]);
    assert_eq!(unshipped["Links"][0]["Unshipped"], 2, "{unshipped}");
    let late = async || {
        let said = regions.run(VIRGINIA, &["region", "status", "--alarm", "1"]);
        String::from_utf8_lossy(&said.stderr).contains("later than 1 s")
    };
    wait_until("the link is late", Duration::from_secs(10), late).await;
    regions.ok(VIRGINIA, &["region", "status", "--alarm", "60"]);
    let load = Load::start(vec![ireland.clone()], &key, Duration::from_millis(2));
    regions.fault(&["down", VIRGINIA]);
    wait_until("the loss is noticed", Duration::from_secs(20), async || {
        regions.run(IRELAND, &["region", "promote", VIRGINIA]).status.success()
    })
    .await;
    assert_eq!(primary(&ireland, &key).await, IRELAND);
    decrypt(&ireland, &sealed).await.expect("what the lost one encrypted opens");
    regions.ok(IRELAND, &["key", "rotate", &key]);
    regions
        .wait(SYDNEY, "it follows the new primary", async |client| {
            primary(client, &key).await == IRELAND
        })
        .await;
    let calls = load.end_well().await;
    assert!(calls.answered > 100, "{calls:?}");

    // It comes back, demotes itself, and says what it had.
    regions.fault(&["heal"]);
    regions
        .wait(VIRGINIA, "it gives way", async |client| primary(client, &key).await == IRELAND)
        .await;
    let report = regions.json(VIRGINIA, &["region", "report"]);
    let lines = report["Reconciliations"].as_array().expect("lines");
    assert_eq!(lines.len(), 2, "{report}");
    let line = lines.iter().find(|line| line["KeyId"] == *key).expect("a line of the key");
    assert!(line["Rotation"].as_str().is_some_and(|text| text.contains("100 days")));
    // One of them goes on as a key of its own.
    let made = regions.json(VIRGINIA, &["region", "reconcile", &other, "separate"]);
    let made = made["KeyId"].as_str().expect("its id").to_owned();
    for region in NAMES {
        let is_there = async |client: &Client| describe(client, &made).await.is_some();
        regions.wait(region, "the separate key is there", is_there).await;
    }
    let kept = regions.json(VIRGINIA, &["key", "rotations", &made]);
    assert_eq!(kept["RotationPeriodInDays"], 120, "{kept}");
    let left = regions.json(VIRGINIA, &["region", "report"]);
    assert_eq!(left["Reconciliations"].as_array().map(Vec::len), Some(1), "{left}");
    let refused = regions.refused(VIRGINIA, &["region", "reconcile", &key, "apply"]);
    assert!(refused.contains("primary is in eu-west-1"), "{refused}");
    regions
        .wait(IRELAND, "the rotation goes on", async |client| {
            let told = client
                .key(
                    Repeat::Safe,
                    v1::GetKeyReplicationStatusRequest { key_id: key.clone() },
                    |mut c, r| async move { c.get_key_replication_status(r).await },
                )
                .await;
            told.is_ok_and(|told| !told.rotation_waits)
        })
        .await;
    // Moved back, it can take up what it had.
    regions.ok(IRELAND, &["region", "fail-over", VIRGINIA]);
    regions
        .wait(VIRGINIA, "it is primary again", async |client| {
            primary(client, &key).await == VIRGINIA && state(client, &key).await == "Enabled"
        })
        .await;
    regions.ok(VIRGINIA, &["region", "reconcile", &key, "apply"]);
    let rotations = regions.ok(VIRGINIA, &["key", "rotations", &key]);
    assert!(rotations.contains("100"), "{rotations}");
    let report = regions.json(VIRGINIA, &["region", "report"]);
    assert_eq!(report["Reconciliations"].as_array().map(Vec::len), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_gets_in_everywhere_and_stays_out_when_shut_out_anywhere() {
    let regions = Regions::start(1);
    let key = regions.key_everywhere(VIRGINIA).await;
    let [ada, bob] = ["ada", "bob"].map(|name| regions.principal(VIRGINIA, name));
    let call = async |region: &str, name: &str| encrypt(&regions.caller(region, name), &key).await;
    for region in NAMES {
        for name in ["ada", "bob"] {
            let what = format!("{name} gets in in {region}");
            let gets_in = async || call(region, name).await.is_ok();
            wait_until(&what, Duration::from_secs(5), gets_in).await;
        }
    }
    let listed = regions.json(IRELAND, &["principal", "list"]);
    let listed = listed["Principals"].as_array().expect("a list");
    assert!(listed.iter().any(|one| one["Arn"] == *ada && one["Home"] == VIRGINIA), "{listed:?}");
    // An operator is one of a Region alone.
    let operator = regions.run_as_operator_of(VIRGINIA, IRELAND, &["principal", "list"]);
    assert!(operator.contains("is not a principal of this Region"), "{operator}");
    // Certificates are issued at home.
    let renewed = regions.refused(IRELAND, &["principal", "renew", &ada, "--out", "unused"]);
    assert!(renewed.contains(&format!("is a principal of {VIRGINIA}")), "{renewed}");

    // Whom a Region has shut out stays out there, also where another Region makes one of that name afterwards.
    let eve = "arn:aws:iam::111122223333:user/eve";
    regions.ok(IRELAND, &["principal", "create", eve, "--kind", "user", "--outside"]);
    regions.ok(IRELAND, &["principal", "disable", eve]);
    regions.principal(VIRGINIA, "eve");
    let gets_in = async || call(SYDNEY, "eve").await.is_ok();
    wait_until("Virginia's eve is known", Duration::from_secs(5), gets_in).await;
    assert_eq!(code(call(IRELAND, "eve").await), "UnrecognizedClientException");
    // Operators are one Region's, and nobody says otherwise.
    let operator = "arn:aws:iam::111122223333:user/second";
    regions.ok(VIRGINIA, &["principal", "create", operator, "--kind", "operator", "--outside"]);
    let told = regions.refused(VIRGINIA, &["principal", "disable", operator, "--all-regions"]);
    assert!(told.contains("no other Region was told"), "{told}");

    // Shut out before the loss, with a report of each Region.
    let report = regions.json(VIRGINIA, &["principal", "disable", &bob, "--all-regions"]);
    let report = report["Regions"].as_array().expect("a report");
    assert!(report.len() == 3 && report.iter().all(|one| one["Done"] == true), "{report:?}");
    for region in NAMES {
        assert_eq!(code(call(region, "bob").await), "UnrecognizedClientException", "{region}");
    }

    // The same key, off and on everywhere: each Region is asked.
    let report = regions.json(SYDNEY, &["key", "disable", &key, "--all-regions"]);
    assert_eq!(report["Regions"].as_array().map(Vec::len), Some(3), "{report}");
    for region in NAMES {
        assert_eq!(code(call(region, "ada").await), "DisabledException", "{region}");
    }
    regions.ok(SYDNEY, &["key", "enable", &key, "--all-regions"]);
    call(VIRGINIA, "ada").await.expect("it is on again");
    let plain =
        regions.json(IRELAND, &["key", "create"])["KeyId"].as_str().expect("an id").to_owned();
    let refused = regions.refused(IRELAND, &["key", "disable", &plain, "--all-regions"]);
    assert!(refused.contains("is not a multi-region key"), "{refused}");

    // Its Region is lost: who was let in still is, and who was shut out is not.
    regions.fault(&["down", VIRGINIA]);
    for region in [SYDNEY, IRELAND] {
        call(region, "ada").await.expect("a lost Region's caller gets in elsewhere");
        assert_eq!(code(call(region, "bob").await), "UnrecognizedClientException", "{region}");
    }
    let off = regions.run(IRELAND, &["key", "disable", &key, "--all-regions"]);
    let (told, why) = (String::from_utf8_lossy(&off.stdout), String::from_utf8_lossy(&off.stderr));
    assert!(
        !off.status.success()
            && why.contains(&format!("1 of 3 Regions have not done it: {VIRGINIA}")),
        "{told}{why}"
    );
    regions.ok(IRELAND, &["key", "enable", &key]);
    regions.ok(SYDNEY, &["key", "enable", &key]);
    // Another Region shuts somebody out meanwhile; it is so in the third at once, and at home when that is back.
    let off =
        regions.refused(IRELAND, &["principal", "disable", &ada, "--all-regions", "--wait", "2"]);
    assert!(off.contains(&format!("1 of 3 Regions have not done it: {VIRGINIA}")), "{off}");
    assert_eq!(code(call(SYDNEY, "ada").await), "UnrecognizedClientException");
    regions.fault(&["heal", VIRGINIA]);
    let shut_out = async || code(call(VIRGINIA, "ada").await) == "UnrecognizedClientException";
    wait_until("she stays out at home", Duration::from_secs(20), shut_out).await;
    assert_eq!(code(call(VIRGINIA, "bob").await), "UnrecognizedClientException");
    // Let in anew, and one certificate revoked, by whoever.
    regions.ok(SYDNEY, &["principal", "enable", &ada, "--all-regions"]);
    let let_in = async || call(VIRGINIA, "ada").await.is_ok();
    wait_until("she is let in again", Duration::from_secs(5), let_in).await;
    let listed = regions.json(SYDNEY, &["principal", "list"]);
    let listed = listed["Principals"].as_array().expect("a list");
    let row = listed.iter().find(|one| one["Arn"] == *ada).expect("she is listed");
    let serial = row["Certificates"][0]["SerialNumber"].as_str().expect("a serial number");
    regions.ok(SYDNEY, &["principal", "revoke", &ada, serial, "--all-regions"]);
    for region in NAMES {
        assert_eq!(code(call(region, "ada").await), "UnrecognizedClientException", "{region}");
    }
}

/// A certificate authority outside of Keyward, as an organisation has one.
struct Corporate(Authority);

impl Corporate {
    fn new(name: &str) -> Self {
        let now = Timestamp(RealEnv.wall_now_ms());
        Self(Authority::generate(name, &*RealEnv.entropy(), now).expect("an authority"))
    }

    /// Its certificate, in a file.
    fn file(&self, regions: &Regions, name: &str) -> String {
        regions.write(name, &pem("CERTIFICATE", self.0.certificate()))
    }

    /// Certifies whoever bears that ARN; `Regions::caller` calls as him.
    fn certify(&self, regions: &Regions, arn: &str, name: &str) {
        let (key, request) = signing_request().expect("a request");
        let now = Timestamp(RealEnv.wall_now_ms());
        let arn = arn.parse().expect("an ARN");
        let issued = self.0.issue(&request, &arn, 9, &*RealEnv.entropy(), now).expect("issued");
        regions.write(&format!("{name}.pem"), &pem("CERTIFICATE", &issued.certificate));
        regions.write(&format!("{name}.key"), &pem("PRIVATE KEY", &key));
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let digits = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{digits}\n-----END {label}-----\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_an_outside_authority_certifies_gets_in_as_long_as_it_is_trusted() {
    let regions = Regions::start(1);
    let key = regions.key_everywhere(VIRGINIA).await;
    let corporate = Corporate::new("corporate");
    let [eve, ann] = ["eve", "ann"].map(|name| format!("arn:aws:iam::111122223333:user/{name}"));
    for (region, arn, name) in [(VIRGINIA, &eve, "eve"), (IRELAND, &ann, "ann")] {
        regions.ok(region, &["principal", "create", arn, "--kind", "user", "--outside"]);
        corporate.certify(&regions, arn, name);
    }
    let call = async |region: &str, name: &str| encrypt(&regions.caller(region, name), &key).await;
    assert!(call(VIRGINIA, "eve").await.is_err(), "nobody trusts it yet");

    // What is no outside authority, or none that is known.
    let file = corporate.file(&regions, "corporate.pem");
    let own = String::from_utf8(regions.config(VIRGINIA, Duration::ZERO).authority);
    let own = regions.write("own.pem", &own.expect("PEM"));
    let leaf = regions.path("eve.pem");
    let unknown = "ab".repeat(32);
    for (arguments, says) in [
        (["add", &own], "a Region's own authority"),
        (["add", &leaf], "certifies nobody"),
        (["add", &regions.path("eve.key")], "holds no certificate"),
        (["add", &regions.path("missing.pem")], "cannot read"),
        (["remove", &unknown], "NotFoundException"),
        (["remove", "xy"], "is no fingerprint"),
    ] {
        let refused = regions.refused(VIRGINIA, &[&["authority"][..], &arguments].concat());
        assert!(refused.contains(says), "{arguments:?}: {refused}");
    }

    // Trusted in one Region, it speaks for that Region's principals in all.
    let report = regions.json(VIRGINIA, &["authority", "add", &file, "--all-regions"]);
    let report = report["Regions"].as_array().expect("a report");
    assert!(report.len() == 3 && report.iter().all(|one| one["Done"] == true), "{report:?}");
    let again = regions.refused(VIRGINIA, &["authority", "add", &file]);
    assert!(again.contains("AlreadyExistsException"), "{again}");
    for region in NAMES {
        let gets_in = async || call(region, "eve").await.is_ok();
        wait_until(&format!("eve gets in in {region}"), Duration::from_secs(5), gets_in).await;
    }
    // It does not speak for another Region's.
    assert_eq!(code(call(IRELAND, "ann").await), "UnrecognizedClientException");
    let listed = regions.json(SYDNEY, &["authority", "list"]);
    let listed = listed["Authorities"].as_array().expect("a list");
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert!(listed[0]["Home"] == VIRGINIA && listed[0]["State"] == "trusted", "{listed:?}");
    let fingerprint = listed[0]["Fingerprint"].as_str().expect("a fingerprint");

    // Its Region is lost: she gets in elsewhere, until another Region trusts it no more, on a connection that stands too.
    regions.fault(&["down", VIRGINIA]);
    let [ireland, sydney] = [IRELAND, SYDNEY].map(|region| regions.caller(region, "eve"));
    encrypt(&ireland, &key).await.expect("a lost Region's caller gets in");
    encrypt(&sydney, &key).await.expect("there too");
    let told = regions
        .refused(IRELAND, &["authority", "remove", fingerprint, "--all-regions", "--wait", "2"]);
    assert!(told.contains(&format!("1 of 3 Regions have not done it: {VIRGINIA}")), "{told}");
    for client in [&ireland, &sydney] {
        let error = encrypt(client, &key).await.expect_err("refused");
        let known = error.code.as_deref() == Some("UnrecognizedClientException");
        assert!(known && error.message.contains("trusted no more"), "{error}");
    }
    regions.fault(&["heal", VIRGINIA]);
    let removed = async || {
        let listed = regions.json(VIRGINIA, &["authority", "list"]);
        listed["Authorities"][0]["State"] == "removed"
    };
    wait_until("it is removed at home", Duration::from_secs(20), removed).await;
    assert!(call(VIRGINIA, "eve").await.is_err());
    // A Region trusts it again for its own.
    regions.ok(IRELAND, &["authority", "add", &file]);
    let gets_in = async || call(IRELAND, "ann").await.is_ok();
    wait_until("ann gets in", Duration::from_secs(5), gets_in).await;
    assert!(call(IRELAND, "eve").await.is_err(), "Virginia says otherwise of its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_call_makes_in_another_region_counts_against_its_quotas_too() {
    let regions = Regions::start(1);
    let key = regions.json(VIRGINIA, &["key", "create", "--multi-region"]);
    let key = key["KeyId"].as_str().expect("an id");
    for covers in ["CreateKey", "UpdatePrimaryRegion"] {
        let limit = ["--covers", covers, "--limit", "100/d"];
        regions.ok(IRELAND, &[&["quota", "set", "--each-account"][..], &limit].concat());
    }
    let used = |covers: &str| {
        let usage = regions.json(IRELAND, &["quota", "usage"]);
        let rows = usage["Usage"].as_array().cloned().unwrap_or_default();
        let row = rows.iter().find(|row| row["Covers"] == covers);
        row.and_then(|row| row["Admitted"].as_u64()).unwrap_or(0)
    };
    regions.ok(VIRGINIA, &["key", "replicate", key, IRELAND]);
    let charged = async || used("CreateKey") == 2;
    wait_until("the replica is charged as AWS does", Duration::from_secs(5), charged).await;
    let moves =
        async || regions.run(VIRGINIA, &["key", "update-primary", key, IRELAND]).status.success();
    wait_until("its primary has heard of the replica", Duration::from_secs(5), moves).await;
    let charged = async || used("UpdatePrimaryRegion") == 1;
    wait_until("the new primary is charged", Duration::from_secs(5), charged).await;
    assert_eq!(used("CreateKey"), 2, "nothing else is");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_can_be_waited_for_in_another_region() {
    let regions = Regions::start(1);
    let key = regions.key_everywhere(VIRGINIA).await;
    let change = |region: &str| {
        let told = regions.json(region, &["key", "replication", &key]);
        told["Change"].as_str().expect("a change").to_owned()
    };
    regions.ok(VIRGINIA, &["key", "enable-rotation", &key, "--days", "100"]);
    let made = change(VIRGINIA);
    for region in NAMES {
        regions.ok(region, &["key", "wait-for", &made]);
        let told = regions.json(region, &["key", "rotations", &key]);
        assert_eq!(told["RotationPeriodInDays"], 100, "{region}: {told}");
    }
    let status = regions.json(VIRGINIA, &["region", "status", "--change", &made]);
    assert!(status["Links"].as_array().expect("links").iter().all(|l| l["HasChange"] == true));

    regions.fault(&["cut", VIRGINIA, IRELAND]);
    regions.fault(&["cut", VIRGINIA, SYDNEY]);
    regions.ok(VIRGINIA, &["key", "enable-rotation", &key, "--days", "200"]);
    let made = change(VIRGINIA);
    let late = regions.refused(IRELAND, &["key", "wait-for", &made, "--timeout", "1"]);
    assert!(late.contains("has not come yet"), "{late}");
    let status = regions.json(VIRGINIA, &["region", "status", "--change", &made]);
    assert!(status["Links"].as_array().expect("links").iter().all(|l| l["HasChange"] == false));
    regions.fault(&["heal"]);
    regions.ok(IRELAND, &["key", "wait-for", &made]);
    for odd in ["", "us-east-1/1", "nowhere-1/00000000000000000000000000000000/1"] {
        let refused = regions.refused(IRELAND, &["key", "wait-for", odd]);
        let typed =
            refused.contains("ValidationException") || refused.contains("NotFoundException");
        assert!(typed, "{odd}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_waits_for_its_link() {
    let regions = Regions::start(1);
    let key = regions.key_everywhere(VIRGINIA).await;
    let virginia = regions.client(VIRGINIA, Duration::from_secs(5));
    let ireland = regions.client(IRELAND, Duration::from_secs(5));
    // Ireland hears Virginia by way of Sydney still, and Virginia hears neither.
    regions.fault(&["cut", IRELAND, VIRGINIA, "--one-way"]);
    regions.fault(&["cut", SYDNEY, VIRGINIA, "--one-way"]);
    regions.ok(VIRGINIA, &["key", "update-primary", &key, IRELAND]);
    assert_eq!(state(&virginia, &key).await, "Updating");
    RealEnv.sleep(Duration::from_secs(1)).await;
    for client in [&virginia, &ireland] {
        encrypt(client, &key).await.expect("cryptography goes on");
    }
    assert_eq!(state(&virginia, &key).await, "Updating");
    let refused = regions.refused(VIRGINIA, &["key", "rotate", &key]);
    assert!(refused.contains("is updating"), "{refused}");
    regions.fault(&["heal"]);
    for region in [VIRGINIA, IRELAND] {
        regions
            .wait(region, "the hand-over is done", async |client| {
                primary(client, &key).await == IRELAND && state(client, &key).await == "Enabled"
            })
            .await;
    }
    regions.ok(IRELAND, &["key", "rotate", &key]);
}

#[tokio::test(flavor = "multi_thread")]
async fn regions_start_cold_together_and_not_alone() {
    let mut regions = Regions::start(1);
    let key = regions.key_everywhere(VIRGINIA).await;
    regions.down();
    regions.up();
    for region in NAMES {
        regions.wait(region, "it serves again", async |c| encrypt(c, &key).await.is_ok()).await;
    }
    // One that starts while no other answers could be older than it knows.
    regions.fault(&["down", SYDNEY]);
    regions.fault(&["down", IRELAND]);
    regions.fault(&["kill", VIRGINIA]);
    let virginia = regions.client(VIRGINIA, Duration::from_secs(2));
    wait_until("it is back", Duration::from_secs(20), async || {
        describe(&virginia, &key).await.is_some()
    })
    .await;
    assert_eq!(code(encrypt(&virginia, &key).await), "KeyUnavailableException");
    let single = regions.json(VIRGINIA, &["key", "create"])["KeyId"].as_str().map(str::to_owned);
    encrypt(&virginia, &single.expect("an id")).await.expect("single-Region keys work");
    let status = regions.ok(VIRGINIA, &["region", "status"]);
    assert!(status.contains("are not used yet"), "{status}");
    regions.ok(VIRGINIA, &["region", "admit"]);
    encrypt(&virginia, &key).await.expect("an operator has said so");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_region_takes() {
    let regions = Regions::start(1);
    let key = regions.key_everywhere(VIRGINIA).await;
    for (arguments, says) in [
        (vec!["key", "replicate", &key, "mars-north-1"], "has no link with mars-north-1"),
        (vec!["key", "replicate", &key, "Mars"], "not a valid Region"),
        (vec!["key", "replicate", &key, VIRGINIA], "the primary's own Region"),
        (vec!["key", "replicate", &key, IRELAND], "AlreadyExistsException"),
        (vec!["key", "update-primary", &key, VIRGINIA], "UnsupportedOperationException"),
        (vec!["region", "promote", "mars-north-1"], "NotFoundException"),
        (vec!["region", "forget", "mars-north-1"], "NotFoundException"),
        (vec!["region", "reconcile", &key, "discard"], "NotFoundException"),
    ] {
        let refused = regions.refused(VIRGINIA, &arguments);
        assert!(refused.contains(says), "{arguments:?}: {refused}");
    }
    let refused = regions.refused(IRELAND, &["key", "replicate", &key, SYDNEY]);
    assert!(refused.contains("is not a multi-region primary key"), "{refused}");
    let refused = regions.refused(IRELAND, &["region", "forget", VIRGINIA]);
    assert!(refused.contains("promote"), "{refused}");
    let single = regions.json(VIRGINIA, &["key", "create"])["KeyId"].as_str().map(str::to_owned);
    let single = single.expect("an id");
    for arguments in [
        vec!["key", "replicate", &single, IRELAND],
        vec!["key", "update-primary", &single, IRELAND],
        vec!["key", "replication", &single],
    ] {
        let refused = regions.refused(VIRGINIA, &arguments);
        assert!(refused.contains("is not a multi-region key"), "{arguments:?}: {refused}");
    }

    // Cards: of itself, damaged, of another Region that bears a known name.
    let folder = tempfile::tempdir().expect("a folder");
    let add = |region: &str, card: &str| {
        let path = folder.path().join("card");
        std::fs::write(&path, card).expect("written");
        regions.refused(region, &["region", "add", path.to_str().expect("a path")])
    };
    let card = regions.ok(VIRGINIA, &["region", "card"]);
    let card = card.trim();
    assert!(add(VIRGINIA, card).contains("own name"));
    for damaged in ["", "keyward-region-1.", &card[..card.len() - 3], &card.replacen('A', "B", 1)] {
        let refused = add(IRELAND, damaged);
        assert!(refused.contains("no Region's card"), "{damaged:.40}: {refused}");
    }
    drop(regions);
    let others = Regions::start(1);
    let path = folder.path().join("card");
    std::fs::write(&path, card).expect("written");
    let refused = others.refused(IRELAND, &["region", "add", path.to_str().expect("a path")]);
    assert!(refused.contains("AlreadyExistsException"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_dies_costs_other_regions_nothing() {
    let regions = Regions::start(3);
    let key = regions.key_everywhere(VIRGINIA).await;
    let clients = [IRELAND, SYDNEY].map(|region| regions.client(region, Duration::from_secs(5)));
    let load = Load::start(clients.to_vec(), &key, Duration::from_millis(5));
    let leader = regions.json(VIRGINIA, &["cluster", "status"])["Nodes"]
        .as_array()
        .and_then(|nodes| nodes.iter().find(|node| node["Leader"] == true).cloned())
        .and_then(|node| node["Node"].as_u64().or(node["NodeId"].as_u64()))
        .expect("a leader");
    regions.fault(&["kill", &format!("{VIRGINIA}/{leader}")]);
    // The link is taken up by whoever leads next.
    let virginia = regions.client(VIRGINIA, Duration::from_secs(10));
    let made = virginia
        .key(
            Repeat::Safe,
            v1::RotateKeyOnDemandRequest { key_id: key.clone() },
            |mut c, r| async move { c.rotate_key_on_demand(r).await },
        )
        .await;
    made.expect("the next leader takes changes");
    let before = describe(&clients[0], &key).await.expect("a key").current_key_material_id;
    wait_until("the rotation is there", Duration::from_secs(10), async || {
        describe(&clients[0], &key).await.is_some_and(|k| k.current_key_material_id != before)
    })
    .await;
    load.end_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_does_not_notice_that_a_region_dies() {
    let regions = Regions::start(1);
    let key = regions.key_everywhere(VIRGINIA).await;
    let patience = Duration::from_millis(500);
    let order = [VIRGINIA, IRELAND, SYDNEY];
    let legs = order.map(|region| (region.to_owned(), regions.config(region, patience)));
    let regional = RegionalClient::new(legs.to_vec(), FailoverConfig::default()).expect("a client");
    let alone = regions.client(VIRGINIA, patience);
    let request = v1::EncryptRequest {
        key_id: key.clone(),
        plaintext: b"plaintext".to_vec(),
        ..v1::EncryptRequest::default()
    };
    let (mut with, mut without) = (0, 0);
    for call in 0..300 {
        if call == 50 {
            regions.fault(&["down", VIRGINIA]);
        }
        let once =
            alone.key_once(request.clone(), |mut c, r| async move { c.encrypt(r).await }).await;
        without += u32::from(once.is_err());
        with += u32::from(regional.encrypt(request.clone()).await.is_err());
    }
    assert_eq!(with, 0, "calls failed although other Regions have the key");
    assert!(without > 200, "only {without} calls failed without them: was the Region down?");
    assert_eq!(regional.passed_over(), [VIRGINIA]);
    println!(
        "of 300 calls, 250 of them after the Region's death, fail: {without} alone, {with} with other Regions"
    );
    // A refusal is one everywhere, and a Region that refuses is well.
    let unknown = v1::EncryptRequest {
        key_id: "mrk-00000000000000000000000000000000".to_owned(),
        ..request.clone()
    };
    assert_eq!(code(regional.encrypt(unknown).await), "NotFoundException");
    regions.fault(&["heal"]);
    wait_until("the preferred Region is used again", Duration::from_secs(20), async || {
        regional.encrypt(request.clone()).await.is_ok_and(|sealed| sealed.key_id.contains(VIRGINIA))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_and_a_wrong_clock_cost_a_region_nothing() {
    let regions = Regions::start(3);
    assert_eq!(regions.processes().len(), 9);
    let key = regions.key_everywhere(VIRGINIA).await;
    let node = format!("{VIRGINIA}/3");
    let client = regions.client(VIRGINIA, Duration::from_secs(5));
    let status = || regions.json(VIRGINIA, &["cluster", "status"]);
    let off = |status: &serde_json::Value| status["Nodes"][2]["ClockOffMs"].as_i64();

    regions.fault(&["skew", &node, "--by", "365d"]);
    let seen = async || off(&status()).is_some_and(|off| off > 360 * 86_400_000);
    wait_until("the Region sees the wrong clock", Duration::from_secs(10), seen).await;
    encrypt(&client, &key).await.expect("the Region goes on");
    regions.fault(&["skew", &node, "--by=-1h"]);
    let seen = async || off(&status()).is_some_and(|off| (-3_700_000..-3_500_000).contains(&off));
    wait_until("the Region sees the other wrong clock", Duration::from_secs(10), seen).await;
    regions.fault(&["heal", &node]);
    let right = async || off(&status()).is_some_and(|off| off.abs() < 1000);
    wait_until("the clock is right again", Duration::from_secs(10), right).await;

    regions.fault(&["fill", &node]);
    let create = async || {
        let request = v1::CreateKeyRequest::default();
        client.key(Repeat::IfUnsent, request, |mut c, r| async move { c.create_key(r).await }).await
    };
    let gone = async || {
        create().await.expect("a majority goes on");
        status()["Nodes"][2]["Up"] == false
    };
    wait_until("the node with the full disk stops", Duration::from_secs(20), gone).await;
    encrypt(&client, &key).await.expect("the Region goes on");
    regions.fault(&["heal"]);
    let back = async || status()["Nodes"][2]["Up"] == true;
    wait_until("the node is back", Duration::from_secs(30), back).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_may_seem_far_away() {
    let mut regions = Regions::start(1);
    regions.down();
    regions.configure(IRELAND, "replica_delay_seconds = 0", "replica_delay_seconds = 3");
    regions.up();
    let key = regions.json(VIRGINIA, &["key", "create", "--multi-region"]);
    let key = key["KeyId"].as_str().expect("an id").to_owned();
    let began = RealEnv.boot_now();
    regions.ok(VIRGINIA, &["key", "replicate", &key, SYDNEY]);
    regions.ok(VIRGINIA, &["key", "replicate", &key, IRELAND]);
    let is_there = async |client: &Client| describe(client, &key).await.is_some();
    regions.wait(SYDNEY, "the near one has it", is_there).await;
    assert!(RealEnv.boot_now() - began < Duration::from_secs(3), "it took as long as the far one");
    regions.wait(IRELAND, "the far one has it", is_there).await;
    assert!(RealEnv.boot_now() - began >= Duration::from_secs(3), "it was not far away");
}
