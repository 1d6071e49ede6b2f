//! What is done in every Region, with a report of each.

use std::time::Duration;

use keyward_client::{CallError, Client, ClientConfig, Repeat, in_any_region};
use keyward_env::{Env, RealEnv};
use keyward_proto::v1;
use serde_json::{Value, json};

use super::output::{Format, list, sayln};
use super::regions;
use crate::error::Failure;
use crate::pem;

/// Between looks while other Regions take a change over.
const LOOK: Duration = Duration::from_millis(50);

/// How it went in one Region.
struct Report {
    region: String,
    done: bool,
    said: String,
}

/// Shows the reports; a Region where it was not done is a failure.
fn show(format: Format, reports: &[Report], next: &str) -> Result<(), Failure> {
    let rows: Vec<Vec<Value>> = reports
        .iter()
        .map(|report| vec![json!(report.region), json!(report.done), json!(report.said)])
        .collect();
    list(format, "Regions", &["Region", "Done", "Report"], &rows);
    let open: Vec<&str> =
        reports.iter().filter(|report| !report.done).map(|report| report.region.as_str()).collect();
    if open.is_empty() {
        return Ok(());
    }
    let of = reports.len();
    Err(Failure::new(format!(
        "{} of {of} Regions have not done it: {}",
        open.len(),
        open.join(", ")
    ))
    .next(next))
}

/// Switches a multi-Region key off or on in each Region that has it. Each Region decides about that by itself, so each is
/// asked, at the endpoints by which this one knows it.
pub async fn switch_key(
    client: &Client,
    config: &ClientConfig,
    format: Format,
    key_id: &str,
    enabled: bool,
) -> Result<(), Failure> {
    let request = v1::GetKeyReplicationStatusRequest { key_id: key_id.to_owned() };
    let status = client.key(Repeat::Safe, request, |mut c, r| async move {
        c.get_key_replication_status(r).await
    });
    let status = status.await?;
    let tasks = status.regions.iter().map(|replica| async move {
        let switched = match replica.endpoints.is_empty() {
            true => switch(client, &replica.arn, enabled).await,
            false => match there(config, replica) {
                Ok(there) => switch(&there, &replica.arn, enabled).await,
                Err(why) => Err(why),
            },
        };
        let said = match (&switched, enabled) {
            (Ok(()), true) => "enabled, on every node".to_owned(),
            (Ok(()), false) => "disabled: every node refuses to use it".to_owned(),
            (Err(why), _) => why.clone(),
        };
        Report { region: replica.region.clone(), done: switched.is_ok(), said }
    });
    let reports = futures_util::future::join_all(tasks).await;
    show(
        format,
        &reports,
        "the same command again, once they can be reached; those that have done it stay as they are",
    )
}

/// A client of another Region, by what this one knows of it.
fn there(config: &ClientConfig, replica: &v1::KeyReplica) -> Result<Client, String> {
    let config = ClientConfig {
        endpoints: replica.endpoints.clone(),
        authority: pem::text("CERTIFICATE", &replica.ca_certificate).as_bytes().to_vec(),
        ..config.clone()
    };
    Client::new(&config).map_err(|e| e.to_string())
}

async fn switch(client: &Client, arn: &str, enabled: bool) -> Result<(), String> {
    let key_id = in_any_region(arn).to_owned();
    // Said twice it is the same, so it may be sent again.
    let done = match enabled {
        true => {
            let request = v1::EnableKeyRequest { key_id };
            let sent = client.key(Repeat::Safe, request, |mut c, r| async move {
                c.enable_key(r).await.map(drop_answer)
            });
            sent.await
        }
        false => {
            let request = v1::DisableKeyRequest { key_id };
            let sent = client.key(Repeat::Safe, request, |mut c, r| async move {
                c.disable_key(r).await.map(drop_answer)
            });
            sent.await
        }
    };
    done.map_err(|error: CallError| error.to_string())
}

fn drop_answer<T>(answer: tonic::Response<T>) -> tonic::Response<()> {
    answer.map(drop)
}

/// Waits until every linked Region has a change of this one, for at most `wait`.
pub async fn follow(
    client: &Client,
    format: Format,
    change: &str,
    said: &str,
    wait: Duration,
) -> Result<(), Failure> {
    let end = RealEnv.boot_now() + wait;
    let bar = indicatif::ProgressBar::new_spinner();
    bar.set_message("waiting for other Regions");
    let status = loop {
        let status = regions::status(client, Some(change.to_owned())).await?;
        let all = status.links.iter().all(|link| link.has_change == Some(true));
        if all || RealEnv.boot_now() >= end {
            break status;
        }
        bar.tick();
        RealEnv.sleep(LOOK).await;
    };
    bar.finish_and_clear();
    let mut reports = vec![Report {
        region: status.region.clone(),
        done: true,
        said: format!("{said}, on every node"),
    }];
    reports.extend(status.links.iter().map(|link| {
        let done = link.has_change == Some(true);
        let said = match (done, &link.failing) {
            (true, _) => format!("{said}, on every node"),
            (false, Some(why)) => format!("has not heard of it: {why}"),
            (false, None) => "has not heard of it yet".to_owned(),
        };
        Report { region: link.region.clone(), done, said }
    }));
    if format == Format::Table {
        sayln!("Change {change}");
    }
    show(
        format,
        &reports,
        format!("it stays as it is here, and they take it over when they hear of it; look again with `keyward region status --change {change}`")
            .as_str(),
    )
}
