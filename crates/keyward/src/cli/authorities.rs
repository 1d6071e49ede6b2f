//! `keyward authority`: whose certificates, beside Keyward's own, are believed.

use std::path::PathBuf;

use clap::Subcommand;
use keyward_client::{Client, Repeat};
use keyward_proto::v1;
use serde_json::{Value, json};

use super::output::{Format, date, list, sayln};
use super::principals::Following;
use crate::error::Failure;
use crate::pem;

#[derive(Subcommand)]
pub enum AuthorityCommand {
    /// Believe what an outside authority certifies of this Region's principals
    #[command(after_help = "Example:
  keyward authority add corporate-ca.pem --all-regions
  keyward principal create arn:aws:iam::111122223333:role/ci --kind user --outside
      gets in with any certificate of that authority whose URI name is that ARN

It speaks for the principals of the Region that has added it, operators too, never for nodes and never for another
Region's. The other Regions hear of it, so who is let in here is let in there.")]
    Add {
        /// Its certificate (PEM)
        file: PathBuf,
        #[command(flatten)]
        following: Following,
    },
    /// List them, of all Regions
    List,
    /// Believe one no more: whoever shows its certificates is refused from the next call on, in all Regions as they hear of it
    #[command(after_help = "Example:
  keyward authority list
  keyward authority remove 5f3c... --all-regions

Any Region may remove it, whichever has added it: also while that one is lost.")]
    Remove {
        /// As `keyward authority list` shows it
        fingerprint: String,
        #[command(flatten)]
        following: Following,
    },
}

pub async fn authority(
    client: &Client,
    format: Format,
    command: AuthorityCommand,
) -> Result<(), Failure> {
    match command {
        AuthorityCommand::Add { file, following } => {
            let request = v1::AddAuthorityRequest { certificate: pem::certificate(&file)? };
            let added =
                client
                    .operator(Repeat::IfUnsent, request, |mut c, r| async move {
                        c.add_authority(r).await
                    })
                    .await?;
            if format == Format::Table {
                sayln!("fingerprint {}", added.fingerprint);
            }
            following.report(client, format, &added.change, "trusted").await
        }
        AuthorityCommand::List => {
            let request = v1::ListAuthoritiesRequest {};
            let answer =
                client
                    .operator(Repeat::Safe, request, |mut c, r| async move {
                        c.list_authorities(r).await
                    })
                    .await?;
            let rows: Vec<Vec<Value>> = answer.authorities.iter().map(row).collect();
            list(
                format,
                "Authorities",
                &["Fingerprint", "Subject", "NotAfter", "Home", "State"],
                &rows,
            );
            Ok(())
        }
        AuthorityCommand::Remove { fingerprint, following } => {
            let request = v1::RemoveAuthorityRequest { fingerprint };
            let removed = client
                .operator(Repeat::IfUnsent, request, |mut c, r| async move {
                    c.remove_authority(r).await
                })
                .await?;
            following.report(client, format, &removed.change, "trusted no more").await
        }
    }
}

fn row(authority: &v1::OutsideAuthority) -> Vec<Value> {
    vec![
        json!(authority.fingerprint),
        json!(authority.subject),
        json!(date(authority.not_after.as_ref())),
        json!(authority.home_region.as_deref().unwrap_or("here")),
        json!(if authority.trusted { "trusted" } else { "removed" }),
    ]
}
