//! `keyward principal`: who may call. Private keys are made here and never leave this machine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use keyward_client::{Client, Repeat};
use keyward_proto::v1;
use serde_json::{Value, json};

use super::everywhere;
use super::output::{Format, date, done, list, one, sayln};
use crate::error::Failure;
use crate::pem;

#[derive(Subcommand)]
pub enum PrincipalCommand {
    /// Create a principal and issue its first certificate
    #[command(after_help = "Examples:
  keyward principal create arn:aws:iam::111122223333:user/orders --kind user --out orders
      writes orders.pem and orders.key
  keyward principal create arn:aws:iam::111122223333:user/ada --kind administrator --kind user --out ada
  keyward principal create arn:aws:iam::111122223333:role/ci --kind user --outside
      its certificate comes from an outside authority (keyward authority)")]
    Create {
        /// Its ARN; names the account
        arn: String,
        /// operator, administrator, user; the last two may be combined
        #[arg(long = "kind", required = true, value_parser = ["operator", "administrator", "user"])]
        kinds: Vec<String>,
        /// Write PREFIX.pem and PREFIX.key
        #[arg(long, value_name = "PREFIX", required_unless_present = "outside")]
        out: Option<PathBuf>,
        /// How long the certificate is valid, in days (1 to 397)
        #[arg(long, default_value_t = 90)]
        days: u32,
        /// Issue no certificate: an outside authority does
        #[arg(long, conflicts_with = "out")]
        outside: bool,
    },
    /// Issue a further certificate
    Renew {
        arn: String,
        /// Write PREFIX.pem and PREFIX.key
        #[arg(long, value_name = "PREFIX")]
        out: PathBuf,
        /// How long it is valid, in days (1 to 397)
        #[arg(long, default_value_t = 90)]
        days: u32,
    },
    /// List principals
    List,
    /// Refuse a principal from now on, on every node; other Regions refuse it as they hear of it
    #[command(after_help = "Example:
  keyward principal disable arn:aws:iam::111122223333:user/ada --all-regions
      waits for the other Regions, and tells of each whether it refuses her

A principal may be switched off in any Region, whichever has made it: all others take it over, also the one that made it
when it is back from a loss.")]
    Disable {
        arn: String,
        #[command(flatten)]
        following: Following,
    },
    /// Let a principal in again
    Enable {
        arn: String,
        #[command(flatten)]
        following: Following,
    },
    /// Revoke one certificate
    Revoke {
        arn: String,
        /// As `principal list --output json` shows it
        serial: String,
        #[command(flatten)]
        following: Following,
    },
}

/// Whether to wait for other Regions.
#[derive(clap::Args, Clone, Copy)]
pub struct Following {
    /// Wait until every linked Region has taken it over, with a report of each
    #[arg(long)]
    all_regions: bool,
    /// Seconds to wait for them
    #[arg(long, default_value_t = 10, requires = "all_regions")]
    wait: u64,
}

impl Following {
    /// Whether every linked Region is waited for.
    pub fn everywhere(self) -> bool {
        self.all_regions
    }

    pub(super) async fn report(
        self,
        client: &Client,
        format: Format,
        change: &str,
        said: &str,
    ) -> Result<(), Failure> {
        if self.all_regions && change.is_empty() {
            return Err(Failure::new(format!(
                "{said} here, on every node; no other Region was told: operators are those of one Region alone"
            ))
            .next("the same command in each Region that has an operator of that ARN"));
        }
        if self.all_regions {
            let wait = Duration::from_secs(self.wait);
            return everywhere::follow(client, format, change, said, wait).await;
        }
        done(format, &format!("{said}, on every node"));
        Ok(())
    }
}

/// Neither file may exist: a private key is never overwritten.
fn outputs(prefix: &Path) -> Result<(PathBuf, PathBuf), Failure> {
    let with = |suffix: &str| {
        let mut name = prefix.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let files = (with(".pem"), with(".key"));
    for file in [&files.0, &files.1] {
        if file.exists() {
            return Err(Failure::new(format!("{} exists", file.display()))
                .next("choose another --out, or move it away"));
        }
    }
    Ok(files)
}

pub async fn principal(
    client: &Client,
    format: Format,
    command: PrincipalCommand,
) -> Result<(), Failure> {
    match command {
        PrincipalCommand::Create { arn, kinds, out, days, outside: _ } => {
            let prepared = match &out {
                Some(prefix) => {
                    let files = outputs(prefix)?;
                    let request =
                        keyward_service::signing_request().map_err(Failure::from_error)?;
                    Some((files, request))
                }
                None => None,
            };
            let request = v1::CreatePrincipalRequest {
                arn,
                kinds,
                certificate_signing_request: prepared.as_ref().map(|(_, (_, csr))| csr.clone()),
                validity_in_days: Some(days),
            };
            let created = client
                .operator(Repeat::IfUnsent, request, |mut c, r| async move {
                    c.create_principal(r).await
                })
                .await?;
            if let (Some(((certificate, key), (private_key, _))), Some(der)) =
                (prepared, created.certificate)
            {
                pem::write(&key, "PRIVATE KEY", &private_key, 0o600)?;
                pem::write(&certificate, "CERTIFICATE", &der, 0o644)?;
                if format == Format::Table {
                    sayln!("wrote {} and {}", certificate.display(), key.display());
                }
            }
            show(format, &created.principal.unwrap_or_default());
        }
        PrincipalCommand::Renew { arn, out, days } => {
            let (certificate, key) = outputs(&out)?;
            let (private_key, csr) =
                keyward_service::signing_request().map_err(Failure::from_error)?;
            let request = v1::IssueCertificateRequest {
                arn,
                certificate_signing_request: csr,
                validity_in_days: Some(days),
            };
            let issued = client
                .operator(Repeat::IfUnsent, request, |mut c, r| async move {
                    c.issue_certificate(r).await
                })
                .await?;
            pem::write(&key, "PRIVATE KEY", &private_key, 0o600)?;
            pem::write(&certificate, "CERTIFICATE", &issued.certificate, 0o644)?;
            done(format, &format!("wrote {} and {}", certificate.display(), key.display()));
        }
        PrincipalCommand::List => {
            let mut rows = Vec::new();
            let mut marker = None;
            loop {
                let request = v1::ListPrincipalsRequest { limit: Some(1000), marker };
                let page = client
                    .operator(Repeat::Safe, request, |mut c, r| async move {
                        c.list_principals(r).await
                    })
                    .await?;
                rows.extend(page.principals.iter().map(row));
                marker = page.next_marker;
                if marker.is_none() {
                    break;
                }
            }
            list(format, "Principals", &["Arn", "Kinds", "State", "Home", "Certificates"], &rows);
        }
        PrincipalCommand::Disable { arn, following } => {
            let request = v1::DisablePrincipalRequest { arn };
            let answer = client
                .operator(Repeat::IfUnsent, request, |mut c, r| async move {
                    c.disable_principal(r).await
                })
                .await?;
            following.report(client, format, &answer.change, "refused").await?;
        }
        PrincipalCommand::Enable { arn, following } => {
            let request = v1::EnablePrincipalRequest { arn };
            let answer = client
                .operator(Repeat::IfUnsent, request, |mut c, r| async move {
                    c.enable_principal(r).await
                })
                .await?;
            following.report(client, format, &answer.change, "let in").await?;
        }
        PrincipalCommand::Revoke { arn, serial, following } => {
            let request = v1::RevokeCertificateRequest { arn, serial_number: serial };
            let answer = client
                .operator(Repeat::IfUnsent, request, |mut c, r| async move {
                    c.revoke_certificate(r).await
                })
                .await?;
            following.report(client, format, &answer.change, "revoked").await?;
        }
    }
    Ok(())
}

fn certificates(principal: &v1::Principal) -> Value {
    let shown = principal.certificates.iter().map(|certificate| {
        json!({
            "SerialNumber": certificate.serial_number,
            "NotAfter": date(certificate.not_after.as_ref()),
            "Revoked": certificate.revoked,
        })
    });
    Value::Array(shown.collect())
}

fn row(principal: &v1::Principal) -> Vec<Value> {
    let state = if principal.disabled { "disabled" } else { "enabled" };
    vec![
        json!(principal.arn),
        json!(principal.kinds),
        json!(state),
        json!(principal.home_region.as_deref().unwrap_or("here")),
        certificates(principal),
    ]
}

fn show(format: Format, principal: &v1::Principal) {
    one(
        format,
        &[
            ("Arn", json!(principal.arn)),
            ("Kinds", json!(principal.kinds)),
            ("Disabled", json!(principal.disabled)),
            ("Certificates", certificates(principal)),
        ],
    );
}
