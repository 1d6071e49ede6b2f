//! `keyward audit`: what this machine's node has on record. Files are read where they are.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use keyward_audit::{Entry, Filter, Order, ReadError, RealFiles, follow, read};
use keyward_env::{Env, RealEnv};
use keyward_model::Timestamp;
use serde_json::Value;

use super::output::{Format, say};
use crate::config::{Config, Overrides};
use crate::error::Failure;

/// Between looks for new records.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

#[derive(Subcommand)]
pub enum AuditCommand {
    /// Show records as they come
    #[command(
        after_help = "Example:\n  keyward audit tail --folder /var/lib/keyward/audit --error AccessDenied"
    )]
    Tail {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        wanted: Wanted,
    },
    /// Search the records
    #[command(after_help = "Examples:
  keyward audit query --folder /var/lib/keyward/audit --key-id 1234abcd-12ab-34cd-56ef-1234567890ab --newest --limit 20
  keyward audit query --folder /var/lib/keyward/audit --since 2026-11-01T00:00:00Z --event ScheduleKeyDeletion")]
    Query {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        wanted: Wanted,
        /// Not before this time (RFC 3339)
        #[arg(long, value_parser = moment)]
        since: Option<Timestamp>,
        /// Before this time (RFC 3339)
        #[arg(long, value_parser = moment)]
        until: Option<Timestamp>,
        /// At most so many records
        #[arg(long)]
        limit: Option<usize>,
        /// The newest first
        #[arg(long)]
        newest: bool,
    },
}

/// Where the records are.
#[derive(Args)]
pub struct Place {
    /// The folder of the segments
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// The node's configuration, which says where the folder is
    #[arg(
        long,
        env = "KEYWARD_CONFIG",
        default_value = "/etc/keyward/keyward.toml",
        value_name = "FILE"
    )]
    config: PathBuf,
}

/// Which records.
#[derive(Args)]
pub struct Wanted {
    /// Of this caller
    #[arg(long, value_name = "ARN")]
    principal: Option<String>,
    /// On this key: its id or ARN
    #[arg(long)]
    key_id: Option<String>,
    /// Of this operation, for example Decrypt
    #[arg(long)]
    event: Option<String>,
    /// Refused with this error, for example AccessDenied
    #[arg(long)]
    error: Option<String>,
}

fn moment(text: &str) -> Result<Timestamp, String> {
    let format = &time::format_description::well_known::Rfc3339;
    let at = time::OffsetDateTime::parse(text, format)
        .map_err(|_| format!("'{text}' is no time: expected for example 2026-11-25T12:00:00Z"))?;
    Ok(Timestamp(at.unix_timestamp() * 1000 + i64::from(at.millisecond())))
}

impl Place {
    fn folder(self) -> Result<PathBuf, Failure> {
        if let Some(folder) = self.folder {
            return Ok(folder);
        }
        let config = Config::load(&self.config, &Overrides::default()).map_err(|e| {
            Failure::from_error(e).next("give --folder, or --config with the node's configuration")
        })?;
        Ok(config.audit_folder())
    }
}

impl Wanted {
    fn filter(self) -> Filter {
        Filter {
            principal: self.principal,
            key: self.key_id,
            name: self.event,
            error: self.error,
            ..Filter::default()
        }
    }
}

/// One line for people: when, what, who, on which key, how it ended.
fn show(format: Format, entry: &Entry) {
    if format == Format::Json {
        say(&entry.line);
        return;
    }
    let record: Value = serde_json::from_str(&entry.line).unwrap_or_default();
    let text = |pointer: &str| record.pointer(pointer).and_then(Value::as_str).unwrap_or("-");
    let outcome = match record.get("errorCode").and_then(Value::as_str) {
        Some(code) => format!("{code}: {}", text("/errorMessage")),
        None => "ok".to_owned(),
    };
    let who = record
        .pointer("/userIdentity/arn")
        .or_else(|| record.pointer("/userIdentity/invokedBy"))
        .and_then(Value::as_str)
        .unwrap_or("unknown");
    say(&format!(
        "{}  {:<22}  {who}  {}  {outcome}",
        text("/eventTime"),
        text("/eventName"),
        text("/resources/0/ARN"),
    ));
}

fn told(error: ReadError) -> Result<(), Failure> {
    match error {
        // Reading goes on behind it.
        ReadError::Damaged(_) => {
            eprintln!("warning: {error}");
            Ok(())
        }
        _ => Err(Failure::from_error(error)),
    }
}

pub async fn audit(format: Format, command: AuditCommand) -> Result<(), Failure> {
    match command {
        AuditCommand::Query { place, wanted, since, until, limit, newest } => {
            let order = if newest { Order::NewestFirst } else { Order::OldestFirst };
            let filter = Filter { since, until, limit, order, ..wanted.filter() };
            let folder = place.folder()?;
            for entry in read(Arc::new(RealFiles), &folder, filter).map_err(Failure::from_error)? {
                match entry {
                    Ok(entry) => show(format, &entry),
                    Err(error) => told(error)?,
                }
            }
        }
        AuditCommand::Tail { place, wanted } => {
            let folder = place.folder()?;
            let mut following = follow(Arc::new(RealFiles), &folder, wanted.filter(), None)
                .map_err(Failure::from_error)?;
            loop {
                match following.poll_next() {
                    Ok(Some(entry)) => show(format, &entry),
                    Ok(None) => RealEnv.sleep(LOOK_AGAIN).await,
                    Err(error) => told(error)?,
                }
            }
        }
    }
    Ok(())
}
