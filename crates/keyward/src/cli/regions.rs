//! `keyward region`: other Regions, and what to do when one is lost.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Subcommand;
use keyward_client::{Client, Repeat};
use keyward_env::{Env, RealEnv};
use keyward_proto::v1;
use prost::Message;
use serde_json::{Value, json};

use super::output::{Format, date, done, list, one, sayln};
use crate::error::Failure;

/// Begins every card: its kind and version.
const CARD_PREFIX: &str = "keyward-region-1.";
/// Between looks while keys move.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Subcommand)]
pub enum RegionCommand {
    /// Print this Region's card, for another Region's operator to approve; it is no secret
    #[command(
        after_help = "Example:\n  keyward region card > eu-west-1.card     here; then in the other Region:\n  keyward region add eu-west-1.card"
    )]
    Card,
    /// Approve another Region by its card, or new endpoints of it
    #[command(after_help = "Both Regions have to approve each other: a link stands once both have.

Example:
  keyward region add us-east-1.card
  keyward region add us-east-1.card --endpoints proxy.example:7101,proxy.example:7102")]
    Add {
        /// The file with the card; - reads it from standard input
        card: PathBuf,
        /// host:port of its nodes, as they are reached from here; what the card says when absent
        #[arg(long, value_delimiter = ',', value_name = "HOST:PORT")]
        endpoints: Vec<String>,
    },
    /// Show this Region and its links: lag, and what would be lost if a Region vanished now
    Status {
        /// Which Regions have this change of this Region, as `principal disable` or `key replication` names it
        #[arg(long)]
        change: Option<String>,
        /// End with an error if a link is later than so many seconds, or its Region has not answered
        #[arg(long, value_name = "SECONDS")]
        alarm: Option<u64>,
    },
    /// After a loss: make the replicas here primaries in the place of the lost Region's
    #[command(after_help = "Example:\n  keyward region promote us-east-1

What the lost Region had acknowledged and not handed on is listed in `keyward region report` when it is back. While it
lives this is refused: `keyward region fail-over` moves keys without loss.")]
    Promote {
        /// The Region that is lost
        lost: String,
        /// Although it lives, or may live
        #[arg(long)]
        force: bool,
    },
    /// Planned: make another Region the primary's of every key whose primary is here, without loss
    #[command(after_help = "Example:\n  keyward region fail-over us-east-1")]
    FailOver {
        /// The Region that takes over; keys that have no replica there stay
        to: String,
        /// Seconds to wait until all have moved
        #[arg(long, default_value_t = 60)]
        wait: u64,
    },
    /// A Region never comes back: nothing waits for it any more
    #[command(
        after_help = "Example:\n  keyward region promote us-east-1 && keyward region forget us-east-1"
    )]
    Forget {
        /// The Region
        region: String,
    },
    /// After all nodes have started anew and no other Region answers: say that these disks are the latest
    #[command(
        after_help = "A Region whose nodes have all started anew asks another Region how far it had come before it uses
multi-Region keys: its disks could be copies of earlier ones, and bring back what was deleted. Say this only if you
know that they are not."
    )]
    Admit,
    /// List what this Region had acknowledged, and another Region's promotion has overtaken
    Report,
    /// Decide about a line of the report
    #[command(after_help = "Example:\n  keyward region reconcile mrk-1234... discard
  keyward region reconcile mrk-1234... apply       where its primary is
  keyward region reconcile mrk-1234... separate    here; prints the new key's id")]
    Reconcile {
        /// The key
        key_id: String,
        /// discard: it stays lost, and material is kept; apply: rotation setting and material are the key's again; separate:
        /// a new key goes on with the lost rotation setting, in the lost Regions
        #[arg(value_parser = ["discard", "apply", "separate"])]
        decision: String,
    },
}

fn sum(bytes: &[u8]) -> [u8; 4] {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let mut sum = [0; 4];
    sum.copy_from_slice(&digest.as_ref()[..4]);
    sum
}

/// A card is the message, with a check sum, in URL-safe base64 (RFC 4648, section 5).
pub fn write_card(card: &v1::RegionCard) -> String {
    let mut bytes = card.encode_to_vec();
    let sum = sum(&bytes);
    bytes.extend_from_slice(&sum);
    format!("{CARD_PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
}

fn read_card(text: &str) -> Result<v1::RegionCard, Failure> {
    let wrong = |why: &str| {
        Failure::new(format!("this is no Region's card: {why}"))
            .next("give the whole line that `keyward region card` printed in the other Region")
    };
    let digits =
        text.trim().strip_prefix(CARD_PREFIX).ok_or_else(|| wrong("it does not begin as one"))?;
    let bytes =
        URL_SAFE_NO_PAD.decode(digits).map_err(|_| wrong("a character or the end is missing"))?;
    let cut = bytes.len().checked_sub(4).ok_or_else(|| wrong("it is too short"))?;
    let (body, told) = bytes.split_at(cut);
    if sum(body) != told {
        return Err(wrong("its check sum is wrong, so a part of it is missing or changed"));
    }
    v1::RegionCard::decode(body).map_err(|_| wrong("its content cannot be read"))
}

/// SHA-256 of an authority's certificate: what two operators compare by telephone.
fn fingerprint(card: &v1::RegionCard) -> String {
    hex::encode(ring::digest::digest(&ring::digest::SHA256, &card.ca_certificate))
}

fn read_file(path: &Path) -> Result<String, Failure> {
    let failed = |e: std::io::Error| Failure::new(format!("cannot read {}: {e}", path.display()));
    if path == Path::new("-") {
        return std::io::read_to_string(std::io::stdin()).map_err(failed);
    }
    std::fs::read_to_string(path).map_err(failed)
}

/// Calls with a change.
macro_rules! change {
    ($client:expr, $method:ident, $message:expr) => {
        $client
            .region(Repeat::IfUnsent, $message, |mut c, r| async move { c.$method(r).await })
            .await?
    };
}

/// This Region's card.
pub async fn card(client: &Client) -> Result<v1::GetRegionCardResponse, Failure> {
    Ok(change!(client, get_region_card, v1::GetRegionCardRequest {}))
}

/// Approves another Region.
pub async fn add(client: &Client, card: v1::RegionCard) -> Result<v1::AddRegionResponse, Failure> {
    Ok(change!(client, add_region, v1::AddRegionRequest { card: Some(card) }))
}

/// This Region and its links.
pub async fn status(
    client: &Client,
    change: Option<String>,
) -> Result<v1::DescribeRegionsResponse, Failure> {
    let request = v1::DescribeRegionsRequest { change };
    let asked =
        client.region(Repeat::Safe, request, |mut c, r| async move { c.describe_regions(r).await });
    Ok(asked.await?)
}

pub async fn region(
    client: &Client,
    format: Format,
    command: RegionCommand,
) -> Result<(), Failure> {
    match command {
        RegionCommand::Card => {
            let told = card(client).await?;
            let card = told.card.unwrap_or_default();
            match format {
                Format::Json => one(
                    format,
                    &[
                        ("Region", json!(told.region)),
                        ("RegionId", json!(told.region_id)),
                        ("Fingerprint", json!(fingerprint(&card))),
                        ("Endpoints", json!(card.endpoints)),
                        ("Card", json!(write_card(&card))),
                    ],
                ),
                // The card alone on standard output, so that it can be piped.
                Format::Table => {
                    sayln!("{}", write_card(&card));
                    eprintln!(
                        "Region {} ({}), authority's fingerprint {}. In the other Region: keyward region add FILE",
                        told.region,
                        told.region_id,
                        fingerprint(&card)
                    );
                }
            }
        }
        RegionCommand::Add { card: path, endpoints } => {
            let mut card = read_card(&read_file(&path)?)?;
            if !endpoints.is_empty() {
                card.endpoints = endpoints;
            }
            let print = fingerprint(&card);
            let added = add(client, card).await?;
            match format {
                Format::Json => one(
                    format,
                    &[
                        ("Region", json!(added.region)),
                        ("RegionId", json!(added.region_id)),
                        ("Fingerprint", json!(print)),
                    ],
                ),
                Format::Table => sayln!(
                    "Region {} ({}) is approved here; its authority's fingerprint is {print}.\nThe link stands \
                     once that Region has approved this one too: keyward region status",
                    added.region,
                    added.region_id
                ),
            }
        }
        RegionCommand::Status { change, alarm } => {
            let status = status(client, change).await?;
            show_status(format, &status);
            if let Some(seconds) = alarm {
                check_in_time(&status, seconds)?;
            }
        }
        RegionCommand::Promote { lost, force } => {
            let request = v1::PromoteRegionRequest { lost: lost.clone(), force };
            let promoted = change!(client, promote_region, request);
            match format {
                Format::Json => one(format, &[("Keys", json!(promoted.keys))]),
                Format::Table => sayln!(
                    "{} keys whose primary was in {lost} have it here now. {lost} gives way when it is back; what \
                     it had not handed on is then in its `keyward region report`.",
                    promoted.keys
                ),
            }
        }
        RegionCommand::FailOver { to, wait } => fail_over(client, format, to, wait).await?,
        RegionCommand::Forget { region } => {
            let request = v1::ForgetRegionRequest { region: region.clone() };
            change!(client, forget_region, request);
            done(
                format,
                &format!(
                    "{region} is forgotten: its nodes are let in no more, and nothing waits for it"
                ),
            );
        }
        RegionCommand::Admit => {
            change!(client, admit_region, v1::AdmitRegionRequest {});
            done(format, "multi-Region keys may be used");
        }
        RegionCommand::Report => {
            let request = v1::ListReconciliationsRequest {};
            let told = client.region(Repeat::Safe, request, |mut c, r| async move {
                c.list_reconciliations(r).await
            });
            show_report(format, &told.await?.reconciliations);
        }
        RegionCommand::Reconcile { key_id, decision } => {
            let request =
                v1::ReconcileRequest { key_id: key_id.clone(), decision: decision.clone() };
            let decided = change!(client, reconcile, request);
            match decided.separate_key_id {
                Some(made) => one(format, &[("KeyId", json!(made))]),
                None => done(format, &format!("{key_id}: {decision}")),
            }
        }
    }
    Ok(())
}

/// Offers every key, and shows how many are left until none is.
async fn fail_over(client: &Client, format: Format, to: String, wait: u64) -> Result<(), Failure> {
    let request = v1::FailOverRegionRequest { to: to.clone() };
    let offered = change!(client, fail_over_region, request).keys;
    let began = RealEnv.boot_now();
    let end = began + Duration::from_secs(wait);
    let bar = indicatif::ProgressBar::new(offered);
    loop {
        let left = status(client, None).await?.primaries;
        bar.set_position(offered.saturating_sub(left));
        if left == 0 || RealEnv.boot_now() >= end {
            bar.finish_and_clear();
            let took = (RealEnv.boot_now() - began).as_secs_f64();
            match format {
                Format::Json => one(
                    format,
                    &[("Offered", json!(offered)), ("Left", json!(left)), ("Seconds", json!(took))],
                ),
                Format::Table if left == 0 => {
                    sayln!(
                        "{offered} keys have their primary in {to} now, after {took:.1} s; nothing was lost"
                    );
                }
                Format::Table => sayln!(
                    "{left} keys have their primary here still: those without a replica in {to}, switched off, or \
                     whose offer has not been answered yet (`keyward region status`, `keyward key replication KEY`)"
                ),
            }
            return Ok(());
        }
        RealEnv.sleep(LOOK).await;
    }
}

fn seconds(milliseconds: Option<u64>) -> Value {
    milliseconds.map_or(Value::Null, |ms| json!(format!("{:.1} s", ms as f64 / 1000.0)))
}

fn show_status(format: Format, status: &v1::DescribeRegionsResponse) {
    if format == Format::Json {
        let links: Vec<Value> = status
            .links
            .iter()
            .map(|link| {
                json!({
                    "Region": link.region,
                    "Endpoints": link.endpoints,
                    "HeardMilliseconds": link.heard_milliseconds,
                    "PulledMilliseconds": link.pulled_milliseconds,
                    "Failing": link.failing,
                    "Behind": link.behind,
                    "BehindMilliseconds": link.behind_milliseconds,
                    "Unshipped": link.unshipped,
                    "UnshippedMilliseconds": link.unshipped_milliseconds,
                    "Primaries": link.primaries,
                    "HasChange": link.has_change,
                })
            })
            .collect();
        one(
            format,
            &[
                ("Region", json!(status.region)),
                ("RegionId", json!(status.region_id)),
                ("History", json!(status.history)),
                ("Keys", json!(status.keys)),
                ("Primaries", json!(status.primaries)),
                ("Reconciliations", json!(status.reconciliations)),
                ("Admitted", json!(status.admitted)),
                ("Links", json!(links)),
            ],
        );
        return;
    }
    sayln!(
        "Region {} ({}): {} multi-Region keys, {} with their primary here",
        status.region,
        status.region_id,
        status.keys,
        status.primaries
    );
    if !status.admitted {
        sayln!(
            "Multi-Region keys are not used yet: all nodes have started anew, and no other Region has answered since"
        );
    }
    if status.reconciliations > 0 {
        sayln!("{} keys wait for a decision: keyward region report", status.reconciliations);
    }
    let rows: Vec<Vec<Value>> = status
        .links
        .iter()
        .map(|link| {
            let heard = link.heard_milliseconds.map_or_else(
                || json!("not yet"),
                |ms| json!(format!("{:.1} s ago", ms as f64 / 1000.0)),
            );
            vec![
                json!(link.region),
                json!(link.primaries),
                heard,
                json!(link.behind),
                seconds(link.behind_milliseconds),
                json!(link.unshipped),
                seconds(link.unshipped_milliseconds),
                json!(match link.has_change {
                    None => "",
                    Some(true) => "yes",
                    Some(false) => "no",
                }),
                json!(link.failing),
            ]
        })
        .collect();
    sayln!("");
    let columns = [
        "Region",
        "Primaries",
        "Heard",
        "Behind",
        "Age",
        "Unshipped",
        "Oldest",
        "Change",
        "Failing",
    ];
    list(format, "Links", &columns, &rows);
    if !rows.is_empty() {
        sayln!(
            "\nBehind: changes there that are not here yet. Unshipped: changes here that are not known to be there, \
             lost with this Region if it vanished now."
        );
    }
}

/// No link is later than so many seconds.
fn check_in_time(status: &v1::DescribeRegionsResponse, seconds: u64) -> Result<(), Failure> {
    let is_late = |link: &&v1::RegionLink| {
        let lags = [link.heard_milliseconds, link.behind_milliseconds, link.unshipped_milliseconds];
        link.heard_milliseconds.is_none()
            || lags.into_iter().flatten().any(|ms| ms > seconds * 1000)
    };
    let late: Vec<&str> =
        status.links.iter().filter(is_late).map(|link| link.region.as_str()).collect();
    if late.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("later than {seconds} s: the link with {}", late.join(", ")))
        .next("see under Failing why; what is unshipped would be lost with this Region"))
}

fn show_report(format: Format, entries: &[v1::Reconciliation]) {
    let rows: Vec<Vec<Value>> = entries
        .iter()
        .map(|entry| {
            vec![
                json!(entry.key_id),
                json!(format!("{} {} #{}", entry.epoch, entry.epoch_region, entry.sequence)),
                json!(format!(
                    "{} {}{}",
                    entry.winner_epoch,
                    entry.winner_region,
                    entry.winner_began.map(|began| format!(" (from #{began})")).unwrap_or_default()
                )),
                json!(entry.key_material_id.get(..16).unwrap_or_default()),
                json!(if entry.rotation_enabled {
                    format!("every {} days", entry.rotation_period_in_days)
                } else {
                    "off".to_owned()
                }),
                json!(entry.regions),
                json!(date(entry.noticed_date.as_ref())),
            ]
        })
        .collect();
    let columns = ["KeyId", "Had", "Now", "Material", "Rotation", "Regions", "Noticed"];
    list(format, "Reconciliations", &columns, &rows);
    if format == Format::Table && !rows.is_empty() {
        sayln!(
            "\nEach was acknowledged here and overtaken by a promotion elsewhere. Material is kept and opens what it \
             encrypted.\nDecide: keyward region reconcile KEY discard|apply|separate"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_read_as_it_was_written_and_no_other_way() {
        let card = v1::RegionCard {
            ca_certificate: vec![1, 2, 3],
            attestation: vec![4; 90],
            endpoints: vec!["host:1".to_owned()],
        };
        let text = write_card(&card);
        assert_eq!(read_card(&format!(" {text}\n")).unwrap(), card);
        for cut in [0, 5, CARD_PREFIX.len(), CARD_PREFIX.len() + 3, text.len() - 1] {
            assert!(read_card(&text[..cut]).is_err(), "cut at {cut}");
        }
        let changed = text.replacen("keyward-region-1.A", "keyward-region-1.B", 1);
        assert!(changed == text || read_card(&changed).is_err());
    }
}
