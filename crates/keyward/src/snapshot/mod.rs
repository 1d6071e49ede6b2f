//! `keyward snapshot`: a Region's backup, and a Region out of it.

mod content;
mod hand;
mod later;
mod living;
mod place;
mod refusal;
mod restore;
mod save;
mod show;
mod verify;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::connect::ConnectArgs;
use crate::cli::output::Format;
use crate::error::Failure;

#[derive(Subcommand)]
pub enum SnapshotCommand {
    /// Save the Region as it is now, encrypted and signed, while it serves (operators only)
    #[command(after_help = "Examples:
  keyward snapshot save /backup/eu-west-1.snapshot
  keyward snapshot save - | ssh vault 'cat > eu-west-1.snapshot'")]
    Save(save::SaveArgs),
    /// Say what a snapshot is, and which roots open it: needs none. With --ca (KEYWARD_CA), check who made it
    #[command(
        after_help = "Example:\n  keyward snapshot inspect /backup/eu-west-1.snapshot --ca /etc/keyward/ca.pem"
    )]
    Inspect {
        /// The snapshot; `-` reads it from standard input
        file: PathBuf,
    },
    /// Prove that a snapshot would restore: open all of it, and every sealed token in it, with the roots of a node
    #[command(
        after_help = "Example:\n  keyward snapshot verify /backup/eu-west-1.snapshot --config /etc/keyward/keyward.toml"
    )]
    Verify(verify::VerifyArgs),
    /// Found the Region again out of a snapshot, on this machine, in a new history: after all its nodes were lost
    #[command(after_help = "Examples:
  keyward snapshot restore /backup/eu-west-1.snapshot --config /etc/keyward/keyward.toml \\
      --tombstones /var/lib/keyward.lost
  keyward snapshot restore eu-west-1.snapshot --roots-of /media/node-2/keyward.toml
  keyward snapshot restore eu-west-1.snapshot --tombstones later.snapshot --resurrect KEY")]
    Restore(restore::RestoreArgs),
}

/// A node, whose roots are at hand.
#[derive(Args, Clone, Debug)]
pub struct NodeOf {
    /// The node's configuration
    #[arg(
        long,
        env = "KEYWARD_CONFIG",
        default_value = "/etc/keyward/keyward.toml",
        value_name = "FILE"
    )]
    config: PathBuf,
    /// Another node's configuration, or its roots.toml: its roots are tried, too. May be given several times
    #[arg(long, value_name = "FILE")]
    roots_of: Vec<PathBuf>,
    /// A share of a root in shares, in a file of mode 0600. May be given several times; at a terminal they are asked for
    #[arg(long, value_name = "FILE")]
    share: Vec<PathBuf>,
}

pub async fn snapshot(
    connect: &ConnectArgs,
    format: Format,
    command: SnapshotCommand,
) -> Result<(), Failure> {
    match command {
        SnapshotCommand::Save(args) => save::save(connect, format, args).await,
        SnapshotCommand::Inspect { file } => show::inspect(connect, format, file).await,
        SnapshotCommand::Verify(args) => verify::verify(format, args).await,
        SnapshotCommand::Restore(args) => restore::restore(format, args).await,
    }
}
