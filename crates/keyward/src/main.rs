//! `keyward`: server, development Region, operator's and user's command line, in one binary.
//!
//! **Invariant:** no logic that belongs below. This crate reads configuration, wires the layers together
//! and prints.

mod cli;
mod config;
mod demo;
mod dev;
mod drill;
mod error;
mod notify;
mod observe;
mod pem;
mod recover;
mod roots;
mod server;
mod setup;
mod snapshot;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use cli::{Cli, Command, ConfigCommand};
use config::Config;
use error::Failure;

fn main() -> ExitCode {
    let cli = Cli::parse();
    #[cfg(feature = "sabotage")]
    match keyward_env::sabotage::select_by_environment() {
        Ok(None) => {}
        Ok(Some(bug)) => eprintln!("warning: this process has a bug on purpose. {}", bug.what()),
        Err(why) => {
            eprintln!("error: {why}");
            return ExitCode::FAILURE;
        }
    }
    // rustls needs to be told which provider of cryptography the process uses; a second call is refused
    // and harmless.
    drop(rustls::crypto::ring::default_provider().install_default());
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(error) => Err(Failure::new(format!("the async runtime did not start: {error}"))),
    };
    keyward_hsm::leave_pkcs11_modules();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Standard error may be a file on a full disk.
            let _ = writeln!(std::io::stderr(), "error: {failure}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let format = cli.format();
    match cli.command {
        Command::Server { config, overrides, with_parent } => {
            if with_parent {
                dev::end_with_parent();
            }
            let config = Config::load(&config, &overrides).map_err(|e| {
                Failure::from_error(e).next("`keyward config check` tells what is in force")
            })?;
            observe::start_log(&config.observe);
            server::run(config, server::For::Good, server::until_told_to_stop()).await
        }
        Command::Config(ConfigCommand::Check { config, overrides }) => {
            let config = Config::load(&config, &overrides).map_err(Failure::from_error)?;
            let shown = toml::to_string_pretty(&config)
                .map_err(|e| Failure::new(format!("cannot show the configuration: {e}")))?;
            print!("{shown}");
            Ok(())
        }
        Command::Dev(command) => dev::run(command, &cli.connect).await,
        Command::Key(command) => cli::keys::key(&cli.connect, format, command).await,
        Command::Alias(command) => cli::keys::alias(&cli.connect.client()?, format, command).await,
        Command::File(command) => cli::file::file(&cli.connect, format, command).await,
        Command::Principal(command) => {
            cli::principals::principal(&cli.connect.operator()?, format, command).await
        }
        Command::Authority(command) => {
            cli::authorities::authority(&cli.connect.operator()?, format, command).await
        }
        Command::Quota(command) => {
            cli::quotas::quota(&cli.connect.operator()?, format, command).await
        }
        Command::Region(command) => {
            cli::regions::region(&cli.connect.operator()?, format, command).await
        }
        Command::Cluster(command) => cli::cluster::cluster(&cli.connect, format, command).await,
        Command::Root(command) => cli::roots::root(&cli.connect.operator()?, format, command).await,
        Command::Snapshot(command) => snapshot::snapshot(&cli.connect, format, command).await,
        Command::Drill(command) => drill::drill(format, command).await,
        Command::Bench(command) => cli::bench::bench(&cli.connect, format, *command).await,
        Command::Audit(command) => cli::audit::audit(format, command).await,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "keyward", &mut std::io::stdout());
            Ok(())
        }
    }
}
