//! `vault-of-files`: an example of an application on Keyward. It keeps files encrypted in a folder, each as a message of the
//! AWS Encryption SDK, under data keys that are used again for a while.
//!
//! It finds its Region as `keyward` does (`eval "$(keyward dev env)"`), and its key in `KEYWARD_KEY_ID`.

mod exercise;
mod vault;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use keyward_client::{Client, ClientConfig};
use vault::{Vault, VaultError};

/// A call waits no longer, tries on other nodes included.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Parser)]
#[command(name = "vault-of-files", about = "Keeps files encrypted in a folder")]
struct Cli {
    /// The key: its id, ARN or alias
    #[arg(long, global = true, env = "KEYWARD_KEY_ID", default_value = "alias/vault")]
    key_id: String,
    /// The folder
    #[arg(long, global = true, default_value = "vault", value_name = "DIR")]
    vault: PathBuf,
    /// Seconds that a data key is used for
    #[arg(long, global = true, default_value_t = 60, value_name = "SECONDS")]
    data_key_age: u64,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Put files in
    Put {
        /// The files
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Take a file out
    Get {
        /// Its name in the vault
        name: String,
        /// Where to write it
        to: PathBuf,
    },
    /// Put files in and take them out again and again, and print a line of JSON for each: for `keyward drill`
    Exercise {
        /// Files a second
        #[arg(long, default_value_t = 10.0)]
        rate: f64,
        /// Until then; until it is stopped when absent
        #[arg(long)]
        seconds: Option<u64>,
        /// Bytes of each file
        #[arg(long, default_value_t = 100_000)]
        bytes: usize,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    drop(rustls::crypto::ring::default_provider().install_default());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(error) => Err(VaultError::Io(error)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<(), VaultError> {
    let age = Duration::from_secs(cli.data_key_age);
    let vault = Vault::open(cli.vault, cli.key_id, client()?, age)?;
    match cli.command {
        Command::Put { files } => {
            for file in files {
                let name = file.file_name().map(|name| name.to_string_lossy().into_owned());
                let name = name.ok_or_else(|| VaultError::Name(file.display().to_string()))?;
                let bytes = std::fs::read(&file)?;
                vault.put(&name, bytes).await?;
                println!("{name} is in");
            }
        }
        Command::Get { name, to } => {
            let bytes = vault.get(&name).await?;
            std::fs::write(to, bytes)?;
        }
        Command::Exercise { rate, seconds, bytes } => {
            exercise::run(&vault, rate, seconds.map(Duration::from_secs), bytes).await?;
        }
    }
    Ok(())
}

/// A client of the Region that the environment names.
fn client() -> Result<Client, VaultError> {
    let told = |name: &'static str| std::env::var(name).map_err(|_| VaultError::Missing(name));
    let read = |name| -> Result<Vec<u8>, VaultError> { Ok(std::fs::read(told(name)?)?) };
    let config = ClientConfig {
        endpoints: told("KEYWARD_ENDPOINTS")?.split(',').map(str::to_owned).collect(),
        authority: read("KEYWARD_CA")?,
        certificate: read("KEYWARD_CERT")?,
        private_key: read("KEYWARD_KEY")?.into(),
        patience: PATIENCE,
    };
    Client::new(&config).map_err(|error| VaultError::Config(error.to_string()))
}
