//! `keyward snapshot verify`: it would restore.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use keyward_audit::{Filter, Order, RealFiles};
use keyward_env::{Env, RealEnv};
use keyward_snapshot::Header;
use keyward_state::MemStore;
use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::NodeOf;
use super::content::{Intake, open};
use super::hand::{Hand, named, opens};
use super::refusal::Refusal;
use super::show::{certificate, fields};
use crate::cli::output::{Format, one};
use crate::config::{Config, Overrides};
use crate::error::Failure;
use crate::server;

#[derive(Args, Clone, Debug)]
pub struct VerifyArgs {
    /// The snapshot
    file: PathBuf,
    #[command(flatten)]
    node: NodeOf,
}

pub async fn verify(format: Format, args: VerifyArgs) -> Result<(), Failure> {
    let path = &args.node.config;
    let config = Config::load(path, &Overrides::default()).map_err(Failure::from_error)?;
    let reader = open(&args.file, "verifying")?;
    let header = reader.header().clone();
    if header.region != config.node.region.as_str() {
        return Err(Refusal::OtherRegion {
            found: header.region,
            expected: config.node.region,
            config: named(path),
        }
        .into());
    }
    let hand = Hand::open(&config, &args.node, false).await?;
    let opener = hand.opener(&header).await?;
    let (hsm, runtime) = (Arc::clone(&hand.hsm), Handle::current());
    let content = move || {
        let (store, none) = (MemStore::default(), BTreeSet::new());
        let intake =
            Intake { hsm: &hsm, store: &store, keep_tokens: false, doomed: &none, runtime };
        intake.take(reader, opener)
    };
    let content = RealEnv.blocking(content).await?;
    let authority = content.state.region.as_ref().map(|facts| facts.ca_certificate.clone());
    let authority = authority.unwrap_or_default();
    if config.tls.authority.exists() && certificate(&config.tls.authority)? != authority {
        return Err(Refusal::OtherAuthority { file: named(&config.tls.authority) }.into());
    }
    content.trailer.check(&authority).map_err(Failure::from_error)?;
    let trail = trail(&config, &header).await?;
    let mut shown = fields(&header);
    shown.extend([
        (
            "OpenedWith",
            json!(opens(&hand.hsm, &header).iter().map(ToString::to_string).collect::<Vec<_>>()),
        ),
        ("TokensOpened", json!(content.tokens)),
        ("DomainKeysOpened", json!(content.state.domain_keys.len())),
        ("Tombstones", json!(content.state.deletions())),
        ("Signed", json!("by this Region's authority")),
        ("AuditTrailHere", trail),
        ("Restores", json!(true)),
    ]);
    one(format, &shown);
    Ok(())
}

/// Whether this node's audit trail goes as far as it did when the snapshot was taken.
async fn trail(config: &Config, header: &Header) -> Result<Value, Failure> {
    let Ok(tls) = server::tls_files(config) else { return Ok(json!("no node's certificate here")) };
    let node = server::node_id(config, &tls)?;
    let Some(told) = header.audit.iter().find(|end| end.node == node) else {
        return Ok(json!(format!("node {node} was no member")));
    };
    let folder = config.audit_folder();
    let (Some(next), true) = (told.next_sequence, folder.exists()) else {
        return Ok(json!(format!("nothing to compare node {node}'s with")));
    };
    let shown = folder.display().to_string();
    let newest = move || -> Result<Option<u64>, keyward_audit::ReadError> {
        let filter = Filter { limit: Some(1), order: Order::NewestFirst, ..Filter::default() };
        let mut entries = keyward_audit::read(Arc::new(RealFiles), &folder, filter)?;
        Ok(entries.next().transpose()?.map(|entry| entry.sequence))
    };
    let newest = RealEnv.blocking(newest).await.map_err(Failure::from_error)?;
    let has = newest.map_or(0, |newest| newest + 1);
    if has < next {
        return Err(Failure::new(format!(
            "the audit trail in {shown} ends with record {}, and node {node} had come to record {next} when the snapshot \
             was taken: records are missing. The snapshot itself would restore",
            has.saturating_sub(1)
        ))
        .next("look for the rest of the trail: another disk, an older folder"));
    }
    Ok(json!(format!("whole up to then, and {} records since", has - next)))
}
