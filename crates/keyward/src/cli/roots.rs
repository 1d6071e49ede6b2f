//! `keyward root`: the roots that domain keys are sealed for.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use keyward_client::{Client, Repeat};
use keyward_proto::v1;
use serde_json::{Value, json};

use super::output::{Format, done, list, one, sayln};
use crate::config::{RootSection, TokenSection};
use crate::error::Failure;

#[derive(Subcommand)]
pub enum RootCommand {
    /// List the roots of every node, and how they are
    List,
    /// The same, and fails if a root is away or lacks a copy: for scripts
    Status,
    /// Have a node open or make one more root; returns when every domain key is sealed for it
    #[command(after_help = "Examples:
  keyward root add 2 file --path /etc/keyward/second.key
  keyward root add 2 pkcs11 --module /usr/lib/softhsm/libsofthsm2.so --token-label keyward --key-label root-2 \\
      --pin-file /etc/keyward/pin
  keyward root add 2 shamir --path /etc/keyward/shares.root --needed 2 --shares 3")]
    Add {
        /// The node
        node: u64,
        #[command(subcommand)]
        spec: Spec,
    },
    /// Have a node forget a root. The last one of a node is not removed
    #[command(
        after_help = "Example:\n  keyward root remove 2 file:3f9c0c6a7f4c2b1e8d5a6b7c8d9e0f1a"
    )]
    Remove {
        /// The node
        node: u64,
        /// As `keyward root list` shows it
        root: String,
    },
    /// Put a new root in the place of an old one: adds it, then removes the old one
    #[command(
        after_help = "Example:\n  keyward root rotate 2 file:3f9c0c6a7f4c2b1e8d5a6b7c8d9e0f1a file --path /etc/keyward/root-2027.key"
    )]
    Rotate {
        /// The node
        node: u64,
        /// The old one, as `keyward root list` shows it
        root: String,
        #[command(subcommand)]
        spec: Spec,
    },
    /// Take the next share of a root that was just made. Each is shown once, to whoever will keep it
    TakeShare {
        /// The node
        node: u64,
        /// As `keyward root list` shows it
        root: String,
    },
    /// Give a share; with enough of them the root opens. The share is asked for, and is not shown
    #[command(
        after_help = "Example:\n  keyward root give-share 2 shamir:3f9c0c6a7f4c2b1e8d5a6b7c8d9e0f1a"
    )]
    GiveShare {
        /// The node
        node: u64,
        /// As `keyward root list` shows it
        root: String,
    },
}

/// What a new root is. Paths are the node's own.
#[derive(Subcommand, Clone, Debug)]
pub enum Spec {
    /// A key in a file, mode 0600
    File {
        #[arg(long)]
        path: PathBuf,
    },
    /// A key behind a passphrase
    Passphrase {
        /// Salt and costs
        #[arg(long)]
        params: PathBuf,
        /// A file of mode 0600 that holds the passphrase
        #[arg(long)]
        credential: PathBuf,
    },
    /// A key in a PKCS#11 token
    Pkcs11(TokenArgs),
    /// A key split in shares, of which a few open it
    Shamir {
        /// Which root is waited for; holds no secret
        #[arg(long)]
        path: PathBuf,
        /// So many shares open it
        #[arg(long)]
        needed: u8,
        /// Of so many
        #[arg(long)]
        shares: u8,
    },
}

#[derive(Args, Clone, Debug)]
pub struct TokenArgs {
    /// The module's library
    #[arg(long)]
    module: PathBuf,
    /// The token, by its label
    #[arg(long, required_unless_present = "token_serial", conflicts_with = "token_serial")]
    token_label: Option<String>,
    /// The token, by its serial number
    #[arg(long)]
    token_serial: Option<String>,
    /// The label of the key; made if it is not there
    #[arg(long)]
    key_label: String,
    /// A file of mode 0600 that holds the user's PIN
    #[arg(long)]
    pin_file: PathBuf,
    /// The PIN is right although the token has seen a wrong one
    #[arg(long)]
    pin_retry: bool,
}

impl From<Spec> for RootSection {
    fn from(spec: Spec) -> Self {
        match spec {
            Spec::File { path } => Self::File { path },
            Spec::Passphrase { params, credential } => {
                Self::Passphrase { params, credential: Some(credential) }
            }
            Spec::Pkcs11(token) => Self::Pkcs11(TokenSection {
                module: token.module,
                token_label: token.token_label,
                token_serial: token.token_serial,
                key_label: token.key_label,
                pin_file: token.pin_file,
                pin_retry: token.pin_retry,
                timeout_seconds: keyward_hsm::PKCS11_TIMEOUT_DEFAULT.as_secs(),
            }),
            Spec::Shamir { path, needed, shares } => {
                Self::Shamir { path, needed: Some(needed), shares: Some(shares) }
            }
        }
    }
}

async fn roots(client: &Client) -> Result<v1::ListRootsResponse, Failure> {
    let request = v1::ListRootsRequest {};
    Ok(client
        .operator(Repeat::Safe, request, |mut c, r| async move { c.list_roots(r).await })
        .await?)
}

fn show(format: Format, listed: &v1::ListRootsResponse) {
    let columns = ["Node", "Root", "Health", "Registered", "Copies", "Place", "Reason"];
    let rows: Vec<Vec<Value>> = listed
        .roots
        .iter()
        .map(|root| {
            vec![
                json!(root.node_id),
                json!(root.root_id),
                json!(root.health),
                json!(root.registered),
                json!(format!("{}/{}", root.copies, root.domain_keys)),
                json!(root.place),
                json!(root.reason),
            ]
        })
        .collect();
    list(format, "Roots", &columns, &rows);
    if format == Format::Table && !listed.silent.is_empty() {
        let nodes: Vec<String> = listed.silent.iter().map(ToString::to_string).collect();
        sayln!("\nno answer from node {}", nodes.join(", "));
    }
}

async fn add(client: &Client, node: u64, spec: Spec) -> Result<String, Failure> {
    let spec =
        toml::to_string(&RootSection::from(spec)).map_err(|e| Failure::new(e.to_string()))?;
    let request = v1::AddRootRequest { node_id: node, spec };
    let added = client
        .operator(Repeat::IfUnsent, request, |mut c, r| async move { c.add_root(r).await })
        .await?;
    Ok(added.root_id)
}

async fn remove(client: &Client, node: u64, root: String) -> Result<(), Failure> {
    let request = v1::RemoveRootRequest { node_id: node, root_id: root };
    client
        .operator(Repeat::IfUnsent, request, |mut c, r| async move { c.remove_root(r).await })
        .await?;
    Ok(())
}

pub async fn root(client: &Client, format: Format, command: RootCommand) -> Result<(), Failure> {
    match command {
        RootCommand::List => show(format, &roots(client).await?),
        RootCommand::Status => {
            let listed = roots(client).await?;
            show(format, &listed);
            // One that was added a moment ago is not probed yet; its copies were opened when they were made.
            let well = |root: &v1::Root| {
                matches!(root.health.as_str(), "healthy" | "unknown")
                    && root.registered
                    && root.copies == root.domain_keys
            };
            if !listed.silent.is_empty() || !listed.roots.iter().all(well) {
                return Err(Failure::new("not every root is well"));
            }
        }
        RootCommand::Add { node, spec } => {
            let shares = matches!(spec, Spec::Shamir { .. });
            let id = add(client, node, spec).await?;
            one(format, &[("NodeId", json!(node)), ("RootId", json!(id))]);
            if shares && format == Format::Table {
                sayln!(
                    "\nNow each keeper takes a share, one after the other: keyward root take-share {node} {id}\n\
                     They are nowhere else: take all of them before you rely on this root."
                );
            }
        }
        RootCommand::Remove { node, root } => {
            remove(client, node, root).await?;
            done(format, "removed; what it consists of stays where it is, and opens nothing new");
        }
        RootCommand::Rotate { node, root, spec } => {
            let id = add(client, node, spec).await?;
            remove(client, node, root.clone()).await.map_err(|failure| {
                failure.next(format!(
                    "{id} was added; remove the old one: keyward root remove {node} {root}"
                ))
            })?;
            one(
                format,
                &[("NodeId", json!(node)), ("RootId", json!(id)), ("Removed", json!(root))],
            );
        }
        RootCommand::TakeShare { node, root } => {
            let request = v1::TakeShareRequest { node_id: node, root_id: root };
            let share = client
                .operator(
                    Repeat::IfUnsent,
                    request,
                    |mut c, r| async move { c.take_share(r).await },
                )
                .await?;
            one(
                format,
                &[
                    ("Share", json!(share.share)),
                    ("Number", json!(share.index)),
                    ("Left", json!(share.left)),
                ],
            );
        }
        RootCommand::GiveShare { node, root } => {
            let share = rpassword::prompt_password("Share: ")
                .or_else(|_| std::io::read_to_string(std::io::stdin()))
                .map_err(|e| Failure::new(format!("no share was read: {e}")))?;
            let request = v1::OfferShareRequest {
                node_id: node,
                root_id: root,
                share: share.trim().to_owned(),
            };
            let progress =
                client
                    .operator(Repeat::IfUnsent, request, |mut c, r| async move {
                        c.offer_share(r).await
                    })
                    .await?;
            if progress.given >= progress.needed {
                done(format, "the root is open");
            } else {
                done(
                    format,
                    &format!("{} of {} shares are given", progress.given, progress.needed),
                );
            }
        }
    }
    Ok(())
}
