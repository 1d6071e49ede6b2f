//! The command line.

pub mod audit;
pub mod authorities;
pub mod bench;
pub mod cluster;
pub mod connect;
pub mod everywhere;
pub mod file;
pub mod keys;
pub mod output;
pub mod principals;
pub mod quotas;
pub mod regions;
pub mod roots;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::config::Overrides;
use crate::dev;
use crate::drill;
use crate::snapshot::SnapshotCommand;
use connect::ConnectArgs;
use output::Format;

/// Keyward: self-hosted, AWS-KMS-compatible key management
#[derive(Parser)]
#[command(
    name = "keyward",
    version,
    about = "Keyward: self-hosted, AWS-KMS-compatible key management",
    after_help = "Examples:
  keyward dev up --nodes 3          a Region on this machine, to try things on
  eval \"$(keyward dev env)\"         point the commands below at it
  keyward key create --alias alias/app
  keyward file encrypt --key-id alias/app report.pdf
  keyward cluster status

Every command takes --output json for programs. `keyward help COMMAND` tells more."
)]
pub struct Cli {
    #[command(flatten)]
    pub connect: ConnectArgs,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run one node
    #[command(after_help = "Example:\n  keyward server --config /etc/keyward/keyward.toml")]
    Server {
        /// The configuration file
        #[arg(long, env = "KEYWARD_CONFIG", value_name = "FILE")]
        config: PathBuf,
        #[command(flatten)]
        overrides: Overrides,
        /// End when the parent process ends
        #[arg(long, hide = true)]
        with_parent: bool,
    },
    /// Look at configuration files
    #[command(subcommand)]
    Config(ConfigCommand),
    /// A Region on this machine, for development and rehearsal
    #[command(subcommand)]
    Dev(dev::DevCommand),
    /// Keys: create, look at, switch, rotate, use
    #[command(subcommand)]
    Key(keys::KeyCommand),
    /// Aliases
    #[command(subcommand)]
    Alias(keys::AliasCommand),
    /// Files of any size, by envelope encryption (AWS Encryption SDK message format)
    #[command(subcommand)]
    File(file::FileCommand),
    /// Principals and their certificates (operators only)
    #[command(subcommand)]
    Principal(principals::PrincipalCommand),
    /// Outside authorities that certify principals (operators only)
    #[command(subcommand)]
    Authority(authorities::AuthorityCommand),
    /// How many calls may be made (operators only)
    #[command(subcommand)]
    Quota(quotas::QuotaCommand),
    /// The nodes of the Region (operators only)
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Other Regions: links, failover, and what was lost (operators only)
    #[command(subcommand)]
    Region(regions::RegionCommand),
    /// The roots that everything is sealed for (operators only)
    #[command(subcommand)]
    Root(roots::RootCommand),
    /// Backups: save, look at, prove, restore
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Measure a deployment under load
    Bench(Box<bench::BenchCommand>),
    /// Rehearse a disaster, with figures of what every caller saw
    #[command(subcommand)]
    Drill(drill::DrillCommand),
    /// What this machine's node has on record
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Print completions for a shell
    #[command(after_help = "Example:\n  keyward completions bash > /etc/bash_completion.d/keyward")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Check a configuration file and print what is in force
    #[command(after_help = "Example:\n  keyward config check --config /etc/keyward/keyward.toml")]
    Check {
        /// The configuration file
        #[arg(long, env = "KEYWARD_CONFIG", value_name = "FILE")]
        config: PathBuf,
        #[command(flatten)]
        overrides: Overrides,
    },
}

impl Cli {
    /// How answers are printed.
    pub fn format(&self) -> Format {
        self.connect.output
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    /// No two arguments share a name where both can be given.
    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
