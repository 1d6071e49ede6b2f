//! `keyward cluster init`, `invite` and `join`: from empty machines to a Region.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Args;
use keyward_client::{Client, ClientConfig, Repeat};
use keyward_env::{Env, RealEnv};
use keyward_model::{AccountId, PrincipalArn, Region, Timestamp};
use keyward_proto::v1;
use keyward_service::{Authority, signing_request};
use prost::Message;
use serde_json::json;

use crate::cli::output::{Format, date, one, sayln};
use crate::config::{
    AuditSection, Config, HsmSection, NodeSection, ObserveSection, Overrides, RegionsSection,
    RootSection, TimerProfile, TlsSection,
};
use crate::error::Failure;
use crate::{pem, server};

/// How long the node of this process may take until it answers.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long the first operator's certificate lasts, in days.
const OPERATOR_DAYS: u32 = 90;
/// Between tries while something is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Begins every token: its kind and version.
const TOKEN_PREFIX: &str = "keyward-invite-1.";
/// Bytes of the check sum at a token's end.
const CHECK_BYTES: usize = 4;

/// What a node's configuration needs when there is no file yet.
#[derive(Args, Clone, Debug)]
pub struct NodeArgs {
    /// The configuration file; written from the flags below if it is not there yet
    #[arg(
        long,
        env = "KEYWARD_CONFIG",
        default_value = "/etc/keyward/keyward.toml",
        value_name = "FILE"
    )]
    config: PathBuf,
    /// host:port at which other nodes and callers reach this one; its host goes into the certificate
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// Where the gRPC door listens; all addresses, on the port of --address, when absent
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// The folder for the node's data; /var/lib/keyward when absent
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where /livez, /readyz and /metrics are served
    #[arg(long, value_name = "ADDRESS:PORT")]
    observe: Option<SocketAddr>,
}

#[derive(Args, Clone, Debug)]
pub struct InitArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The Region's name
    #[arg(long, default_value = "eu-west-1")]
    region: Region,
    /// The account of the first operator
    #[arg(long, default_value = "111122223333")]
    account: AccountId,
    /// The first operator's name
    #[arg(long, default_value = "operator")]
    operator: String,
    /// Where the first operator's certificate and key are put; beside the configuration when absent
    #[arg(long, value_name = "DIR")]
    operator_out: Option<PathBuf>,
    /// An outside authority (its certificate, PEM) that certifies principals; `keyward authority add` adds more later
    #[arg(long, value_name = "FILE")]
    outside_authority: Vec<PathBuf>,
}

#[derive(Args, Clone, Debug)]
pub struct JoinArgs {
    /// What `keyward cluster invite` printed; `-` reads it from standard input
    token: String,
    #[command(flatten)]
    node: NodeArgs,
    /// Seconds that catching up may take
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    patience: u64,
}

/// Files made on the way: gone again if the way is not gone to its end.
#[derive(Default)]
struct Draft {
    made: Vec<PathBuf>,
    kept: bool,
}

impl Draft {
    fn write(&mut self, path: &Path, label: &str, der: &[u8], mode: u32) -> Result<(), Failure> {
        pem::write(path, label, der, mode)?;
        self.made.push(path.to_owned());
        Ok(())
    }

    fn write_text(&mut self, path: &Path, text: &str) -> Result<(), Failure> {
        fs::write(path, text)
            .map_err(|e| Failure::new(format!("cannot write {}: {e}", path.display())))?;
        self.made.push(path.to_owned());
        Ok(())
    }

    /// A path that something else makes.
    fn expect(&mut self, path: &Path) {
        if !path.exists() {
            self.made.push(path.to_owned());
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for path in self.made.iter().rev() {
            if path.is_dir() {
                drop(fs::remove_dir_all(path));
            } else {
                drop(fs::remove_file(path));
            }
        }
    }
}

/// The configuration in `args`: the file, or a new one.
fn prepare(args: &NodeArgs, region: &Region, draft: &mut Draft) -> Result<Config, Failure> {
    let path = &args.config;
    let given = args.address.is_some() || args.listen.is_some() || args.data.is_some();
    if path.exists() && given {
        return Err(Failure::new(format!("{} exists already", path.display()))
            .next("leave --address, --listen and --data out, or name another --config"));
    }
    if !path.exists() {
        let address = args.address.clone().ok_or_else(|| {
            Failure::new(format!("{} does not exist, and --address is not given", path.display()))
                .next("give --address HOST:PORT, at which other nodes will reach this one")
        })?;
        let port = address
            .rsplit_once(':')
            .filter(|(host, _)| !host.is_empty())
            .and_then(|(_, port)| port.parse::<u16>().ok())
            .ok_or_else(|| Failure::new(format!("'{address}' is not HOST:PORT")))?;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)
                .map_err(|e| Failure::new(format!("cannot make {}: {e}", folder.display())))?;
        }
        let config = Config {
            node: NodeSection {
                id: None,
                region: region.clone(),
                listen: args.listen.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], port))),
                advertise: Some(address),
                data: args.data.clone().unwrap_or_else(|| "/var/lib/keyward".into()),
            },
            tls: TlsSection {
                certificate: "node.pem".into(),
                private_key: "node.key".into(),
                authority: "ca.pem".into(),
            },
            root: RootSection::File { path: "root.key".into() },
            hsm: HsmSection::default(),
            audit: AuditSection::default(),
            observe: ObserveSection { listen: args.observe, ..ObserveSection::default() },
            regions: RegionsSection::default(),
            timers: TimerProfile::Default,
        };
        let text = toml::to_string_pretty(&config).map_err(|e| Failure::new(e.to_string()))?;
        draft.write_text(path, &text)?;
    }
    let config = Config::load(path, &Overrides::default()).map_err(Failure::from_error)?;
    if config.node.region != *region {
        return Err(Failure::new(format!(
            "{} is for Region {}, and this is Region {region}",
            path.display(),
            config.node.region
        )));
    }
    for file in [&config.tls.certificate, &config.tls.private_key] {
        if file.exists() {
            return Err(Failure::new(format!(
                "{} is there already: this machine has a node",
                file.display()
            ))
            .next("`keyward server` starts it; for a new one, move its files away first"));
        }
    }
    let used = fs::read_dir(&config.node.data).is_ok_and(|mut entries| entries.next().is_some());
    if used {
        return Err(Failure::new(format!(
            "the data folder {} is not empty: it belongs to a node",
            config.node.data.display()
        ))
        .next("name another one, or move it away if that node is gone for good"));
    }
    draft.expect(&config.node.data);
    match &config.root {
        RootSection::File { path }
        | RootSection::Passphrase { params: path, .. }
        | RootSection::Shamir { path, .. } => draft.expect(path),
        // A key in a token stays: removing it is its owner's to decide.
        RootSection::Pkcs11(_) => {}
    }
    Ok(config)
}

/// The host that other nodes and callers reach the node at.
pub fn host(config: &Config) -> String {
    let address = config.address();
    let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
    host.trim_matches(['[', ']']).to_owned()
}

/// Where a client on this machine reaches the node of this process.
fn local(config: &Config) -> String {
    let mut address = config.node.listen;
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        return address.to_string();
    }
    config.address()
}

/// Runs the node in this process while `work` goes on, then stops it.
async fn beside_a_node<T>(
    config: &Config,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let stop = Arc::new(tokio::sync::Notify::new());
    let stopped = Arc::clone(&stop);
    let node = server::run(config.clone(), server::For::Setup, async move {
        tokio::select! {
            () = server::until_told_to_stop() => {}
            () = stopped.notified() => {}
        }
    });
    tokio::pin!(node);
    tokio::pin!(work);
    let result = tokio::select! {
        ended = &mut node => {
            return Err(ended.err().unwrap_or_else(|| Failure::new("the node was told to stop")));
        }
        result = &mut work => result,
    };
    stop.notify_one();
    let ended = node.await;
    let value = result?;
    ended.map(|()| value)
}

/// Waits for the node at `address` to take connections: half a minute at most.
pub async fn until_listening(address: &str) -> Result<(), Failure> {
    let end = RealEnv.boot_now() + START_PATIENCE;
    while tokio::net::TcpStream::connect(address).await.is_err() {
        if RealEnv.boot_now() >= end {
            return Err(Failure::new(format!("the node does not answer at {address}")));
        }
        RealEnv.sleep(LOOK_AGAIN / 4).await;
    }
    Ok(())
}

/// Founds a Region on this machine.
pub async fn init(args: InitArgs, format: Format) -> Result<(), Failure> {
    let mut draft = Draft::default();
    let config = prepare(&args.node, &args.region, &mut draft)?;
    crate::observe::start_log(&ObserveSection {
        log: "warn,openraft=error".to_owned(),
        ..config.observe.clone()
    });
    let outside: Vec<Vec<u8>> = args
        .outside_authority
        .iter()
        .map(|file| pem::certificate(file))
        .collect::<Result<_, _>>()?;
    let operator: PrincipalArn = format!("arn:aws:iam::{}:user/{}", args.account, args.operator)
        .parse()
        .map_err(|e| Failure::new(format!("--operator is {e}")))?;
    let folder = args
        .operator_out
        .clone()
        .unwrap_or_else(|| args.node.config.parent().unwrap_or(Path::new(".")).to_owned());
    fs::create_dir_all(&folder)
        .map_err(|e| Failure::new(format!("cannot make {}: {e}", folder.display())))?;
    let (entropy, now) = (RealEnv.entropy(), Timestamp(RealEnv.wall_now_ms()));
    let authority =
        Authority::generate(args.region.as_str(), &*entropy, now).map_err(Failure::from_error)?;
    draft.write(&config.tls.authority, "CERTIFICATE", authority.certificate(), 0o644)?;
    let (key, request) = signing_request().map_err(Failure::from_error)?;
    let mut hosts = vec![host(&config)];
    for local in ["localhost", "127.0.0.1"] {
        if !hosts.iter().any(|host| host == local) {
            hosts.push(local.to_owned());
        }
    }
    let node =
        authority.issue_node(&request, 1, &hosts, &*entropy, now).map_err(Failure::from_error)?;
    draft.write(&config.tls.certificate, "CERTIFICATE", &node.certificate, 0o644)?;
    draft.write(&config.tls.private_key, "PRIVATE KEY", &key, 0o600)?;
    let (operator_key, request) = signing_request().map_err(Failure::from_error)?;
    let issued = authority
        .issue(&request, &operator, OPERATOR_DAYS, &*entropy, now)
        .map_err(Failure::from_error)?;
    let (cert_path, key_path) = (folder.join("operator.pem"), folder.join("operator.key"));
    draft.write(&cert_path, "CERTIFICATE", &issued.certificate, 0o644)?;
    draft.write(&key_path, "PRIVATE KEY", &operator_key, 0o600)?;

    let found = async {
        let endpoint = local(&config);
        until_listening(&endpoint).await?;
        let client = Client::new(&ClientConfig {
            endpoints: vec![endpoint],
            authority: pem::text("CERTIFICATE", authority.certificate()).as_bytes().to_vec(),
            certificate: pem::text("CERTIFICATE", &issued.certificate).as_bytes().to_vec(),
            private_key: pem::text("PRIVATE KEY", &operator_key).as_bytes().to_vec().into(),
            patience: START_PATIENCE,
        })?;
        let request = v1::FoundRegionRequest {
            operator_arn: operator.to_string(),
            ca_certificate: authority.certificate().to_vec(),
            ca_private_key: authority.private_key().to_vec(),
            outside_authorities: outside,
            purpose: None,
        };
        let founded = client
            .operator(Repeat::IfUnsent, request, |mut c, r| async move { c.found_region(r).await })
            .await?;
        Ok(founded.region_id)
    };
    let region_id = beside_a_node(&config, found).await?;
    draft.kept = true;
    match format {
        Format::Json => one(
            format,
            &[
                ("Region", json!(args.region.as_str())),
                ("RegionId", json!(region_id)),
                ("NodeId", json!(1)),
                ("Config", json!(args.node.config)),
                ("Ca", json!(config.tls.authority)),
                ("OperatorArn", json!(operator.to_string())),
                ("OperatorCert", json!(cert_path)),
                ("OperatorKey", json!(key_path)),
            ],
        ),
        Format::Table => sayln!(
            "Region {} is founded. Its authority's key is sealed in it and on no disk in clear.

  1. Start this node:       systemctl start keyward   (or: keyward server --config {})
  2. Speak as its operator: export KEYWARD_ENDPOINTS={} KEYWARD_CA={} \\
                                   KEYWARD_OPERATOR_CERT={} KEYWARD_OPERATOR_KEY={}
  3. Invite two more:       keyward cluster invite    (then `keyward cluster join TOKEN` on each machine)",
            args.region,
            args.node.config.display(),
            config.address(),
            config.tls.authority.display(),
            cert_path.display(),
            key_path.display(),
        ),
    }
    Ok(())
}

/// Prints an invitation.
pub async fn invite(client: &Client, format: Format, seconds: u32) -> Result<(), Failure> {
    let request = v1::InviteRequest { valid_seconds: Some(seconds) };
    let invited = client
        .operator(Repeat::IfUnsent, request, |mut c, r| async move { c.invite(r).await })
        .await?;
    let (node, expires) = (invited.node_id, date(invited.expires.as_ref()));
    let token = write_token(&invited);
    match format {
        Format::Json => one(
            format,
            &[("Token", json!(*token)), ("NodeId", json!(node)), ("Expires", json!(expires))],
        ),
        // The token alone on standard output, so that it can be piped.
        Format::Table => {
            sayln!("{}", *token);
            eprintln!(
                "Node {node} may join until {expires}, once. Whoever has this line can: keep it secret. On the \
                 other machine:\n  keyward cluster join TOKEN --address HOST:PORT"
            );
        }
    }
    Ok(())
}

fn check_sum(bytes: &[u8]) -> [u8; CHECK_BYTES] {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let mut sum = [0; CHECK_BYTES];
    sum.copy_from_slice(&digest.as_ref()[..CHECK_BYTES]);
    sum
}

/// A token is the invitation, with a check sum, in URL-safe base64 (RFC 4648, section 5).
fn write_token(invited: &v1::InviteResponse) -> zeroize::Zeroizing<String> {
    let mut bytes = zeroize::Zeroizing::new(invited.encode_to_vec());
    let sum = check_sum(&bytes);
    bytes.extend_from_slice(&sum);
    zeroize::Zeroizing::new(format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(&*bytes)))
}

fn read_token(text: &str) -> Result<v1::InviteResponse, Failure> {
    let wrong = |why: &str| {
        Failure::new(format!("this is no invitation: {why}"))
            .next("give the whole line that `keyward cluster invite` printed")
    };
    let digits =
        text.trim().strip_prefix(TOKEN_PREFIX).ok_or_else(|| wrong("it does not begin as one"))?;
    let bytes = zeroize::Zeroizing::new(
        URL_SAFE_NO_PAD.decode(digits).map_err(|_| wrong("a character or the end is missing"))?,
    );
    let cut = bytes.len().checked_sub(CHECK_BYTES).ok_or_else(|| wrong("it is too short"))?;
    let (body, sum) = bytes.split_at(cut);
    if check_sum(body) != sum {
        return Err(wrong("its check sum is wrong, so a part of it is missing or changed"));
    }
    v1::InviteResponse::decode(body).map_err(|_| wrong("it cannot be read"))
}

/// Makes this machine a node of the Region that invited it.
pub async fn join(args: JoinArgs, format: Format) -> Result<(), Failure> {
    let text = if args.token == "-" {
        std::io::read_to_string(std::io::stdin())
            .map_err(|e| Failure::new(format!("cannot read standard input: {e}")))?
    } else {
        args.token.clone()
    };
    let invited = read_token(&text)?;
    let now = Timestamp(RealEnv.wall_now_ms());
    let expires = invited.expires.map_or(0, |at| at.seconds * 1000);
    if expires <= now.0 {
        return Err(Failure::new("the invitation has expired, or this machine's clock is wrong")
            .next("ask an operator for a new one (`keyward cluster invite`); look at `date`"));
    }
    let region: Region = invited
        .region
        .parse()
        .map_err(|e| Failure::new(format!("the invitation's Region: {e}")))?;
    let mut draft = Draft::default();
    let config = prepare(&args.node, &region, &mut draft)?;
    crate::observe::start_log(&ObserveSection {
        log: "warn,openraft=error".to_owned(),
        ..config.observe.clone()
    });
    if config.node.id.is_some_and(|id| id != invited.node_id) {
        return Err(Failure::new(format!(
            "{} says node.id = {}, and the invitation is for node {}",
            args.node.config.display(),
            config.node.id.unwrap_or_default(),
            invited.node_id
        ))
        .next("take node.id out: the certificate says it"));
    }
    let client = Client::new(&ClientConfig {
        endpoints: invited.endpoints.clone(),
        authority: pem::text("CERTIFICATE", &invited.ca_certificate).as_bytes().to_vec(),
        certificate: pem::text("CERTIFICATE", &invited.certificate).as_bytes().to_vec(),
        private_key: pem::text("PRIVATE KEY", &invited.private_key).as_bytes().to_vec().into(),
        patience: Duration::from_secs(30),
    })?;
    let began = RealEnv.boot_now();
    let (key, request) = signing_request().map_err(Failure::from_error)?;
    let request =
        v1::JoinRequest { certificate_signing_request: request, address: config.address() };
    let joined = client
        .joining(Repeat::IfUnsent, request, |mut c, r| async move { c.join(r).await })
        .await
        .map_err(|error| {
            Failure::from(error).next(format!(
                "the invitation names {}: is one of them up, and of the Region that you mean? An operator gives a \
                 new one (`keyward cluster invite`)",
                invited.endpoints.join(", ")
            ))
        })?;
    draft.write(&config.tls.authority, "CERTIFICATE", &invited.ca_certificate, 0o644)?;
    draft.write(&config.tls.certificate, "CERTIFICATE", &joined.certificate, 0o644)?;
    draft.write(&config.tls.private_key, "PRIVATE KEY", &key, 0o600)?;
    eprintln!("node {} has its certificate; it starts and catches up", joined.node_id);
    let enter = async {
        until_listening(&local(&config)).await?;
        let end = RealEnv.boot_now() + Duration::from_secs(args.patience);
        loop {
            let entered =
                client
                    .joining(Repeat::Safe, v1::EnterRequest {}, |mut c, r| async move {
                        c.enter(r).await
                    })
                    .await;
            match entered {
                Ok(_) => return Ok(()),
                Err(error) if RealEnv.boot_now() >= end => return Err(Failure::from(error)),
                // Still catching up, or the leader has just changed.
                Err(error) if error.retryable || error.outcome_unknown => {
                    eprintln!("  {}", error.message);
                }
                Err(error) => return Err(Failure::from(error)),
            }
            RealEnv.sleep(LOOK_AGAIN * 5).await;
        }
    };
    let entered = beside_a_node(&config, enter).await;
    if let Err(failure) = entered {
        return Err(failure.next(
            "the invitation is spent: have an operator look at `keyward cluster status`, remove the node if it is \
             there, and invite again",
        ));
    }
    draft.kept = true;
    let took = (RealEnv.boot_now() - began).as_secs_f64();
    match format {
        Format::Json => one(
            format,
            &[
                ("NodeId", json!(joined.node_id)),
                ("Region", json!(region.as_str())),
                ("Config", json!(args.node.config)),
                ("Seconds", json!(took)),
            ],
        ),
        Format::Table => sayln!(
            "This machine is node {} of Region {region} (in {took:.1} s): it has all data, and follows.\n  Start \
             it, and it votes: systemctl start keyward   (or: keyward server --config {})",
            joined.node_id,
            args.node.config.display(),
        ),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_whole_or_refused() {
        let invited = v1::InviteResponse {
            region: "eu-west-1".to_owned(),
            node_id: 4,
            endpoints: vec!["kms-1:7100".to_owned()],
            ca_certificate: vec![1; 400],
            certificate: vec![2; 500],
            private_key: vec![3; 138],
            ..v1::InviteResponse::default()
        };
        let token = write_token(&invited);
        assert_eq!(read_token(&format!("  {}\n", *token)).unwrap(), invited);
        for end in 0..token.len() {
            assert!(read_token(&token[..end]).is_err(), "cut at {end}");
        }
        let mut changed = token.as_bytes().to_vec();
        let middle = changed.len() / 2;
        changed[middle] = if changed[middle] == b'A' { b'B' } else { b'A' };
        assert!(read_token(std::str::from_utf8(&changed).unwrap()).is_err());
    }
}
