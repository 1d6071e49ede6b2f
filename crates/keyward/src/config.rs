//! The configuration of a node: TOML, overridden by the environment, overridden by flags.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keyward_audit::{SEGMENT_BYTES_DEFAULT, SyncMode};
use keyward_hsm::RootWatchConfig;
use keyward_model::{NodeId, Region};
use keyward_state::Timers;
use serde::{Deserialize, Serialize};

/// A node's configuration file.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who the node is.
    pub node: NodeSection,
    /// Certificates and key.
    pub tls: TlsSection,
    /// The root that domain keys are sealed for.
    pub root: RootSection,
    /// The HSM boundary.
    #[serde(default)]
    pub hsm: HsmSection,
    /// The audit trail.
    #[serde(default)]
    pub audit: AuditSection,
    /// Logs, metrics, health.
    #[serde(default)]
    pub observe: ObserveSection,
    /// Links with other Regions.
    #[serde(default)]
    pub regions: RegionsSection,
    /// Raft and lease timers.
    #[serde(default)]
    pub timers: TimerProfile,
}

/// Links with other Regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegionsSection {
    /// A link that is later than that raises `keyward_region_alarm` and a warning in the log, in seconds.
    pub alarm_seconds: u64,
    /// What other Regions tell is taken over only so long after it was heard, in seconds, for rehearsals of applications
    /// that count on AWS KMS: a replica that is to be made here.
    pub replica_delay_seconds: u64,
    /// The same: a primary that moves.
    pub primary_delay_seconds: u64,
    /// The same: all else.
    pub change_delay_seconds: u64,
}

impl Default for RegionsSection {
    fn default() -> Self {
        Self {
            alarm_seconds: 60,
            replica_delay_seconds: 0,
            primary_delay_seconds: 0,
            change_delay_seconds: 0,
        }
    }
}

impl RegionsSection {
    /// About what people see of AWS KMS (as of November 2026; AWS promises nothing of the kind): minutes until a replica is
    /// there, about one until a primary has moved, seconds for all else.
    pub const AWS_LIKE: Self = Self {
        alarm_seconds: 600,
        replica_delay_seconds: 120,
        primary_delay_seconds: 60,
        change_delay_seconds: 5,
    };

    /// The delays.
    #[must_use]
    pub fn delays(&self) -> keyward_service::RegionDelays {
        keyward_service::RegionDelays {
            replica: Duration::from_secs(self.replica_delay_seconds),
            primary: Duration::from_secs(self.primary_delay_seconds),
            change: Duration::from_secs(self.change_delay_seconds),
        }
    }
}

/// Who the node is and where.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSection {
    /// Its id, unique for ever in the Region; what its certificate says when absent.
    pub id: Option<NodeId>,
    /// The Region's name.
    #[serde(with = "region_text")]
    pub region: Region,
    /// Where the gRPC door listens.
    pub listen: SocketAddr,
    /// `host:port` at which peers reach it; `listen` when absent.
    pub advertise: Option<String>,
    /// The folder for its data.
    pub data: PathBuf,
}

mod region_text {
    use keyward_model::Region;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(region: &Region, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(region.as_str())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Region, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Certificates and key, PEM files.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSection {
    /// The node's certificate.
    pub certificate: PathBuf,
    /// Its private key; mode 0600.
    pub private_key: PathBuf,
    /// The Region's certificate authority.
    pub authority: PathBuf,
}

/// The root.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "provider", rename_all = "lowercase", deny_unknown_fields)]
pub enum RootSection {
    /// A key in a file, mode 0600.
    File {
        /// The file; made at the first start.
        path: PathBuf,
    },
    /// A key behind a passphrase.
    Passphrase {
        /// Salt and costs; made at the first start.
        params: PathBuf,
        /// A file that holds the passphrase. Absent: the systemd credential `keyward-passphrase` if
        /// there is one, else a prompt.
        credential: Option<PathBuf>,
    },
    /// A key in a PKCS#11 token.
    Pkcs11(TokenSection),
    /// A key split in shares, of which a few open it. Added to a running node.
    Shamir {
        /// Which root is waited for; holds no secret.
        path: PathBuf,
        /// So many shares open it. When it is made.
        needed: Option<u8>,
        /// Of so many. When it is made.
        shares: Option<u8>,
    },
}

/// A key in a PKCS#11 token.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TokenSection {
    /// The module's library.
    pub module: PathBuf,
    /// The token, by its label.
    pub token_label: Option<String>,
    /// The token, by its serial number.
    pub token_serial: Option<String>,
    /// The label of the key in it; made at the first start.
    pub key_label: String,
    /// A file of mode 0600 that holds the user's PIN: read at each login.
    pub pin_file: PathBuf,
    /// The operator's word that the PIN is right although the token has seen a wrong one. For one start.
    #[serde(default)]
    pub pin_retry: bool,
    /// The longest that a call waits for the token, in seconds.
    #[serde(default = "token_timeout")]
    pub timeout_seconds: u64,
}

const fn token_timeout() -> u64 {
    keyward_hsm::PKCS11_TIMEOUT_DEFAULT.as_secs()
}

impl RootSection {
    /// The files that it names.
    pub fn paths(&mut self) -> Vec<&mut PathBuf> {
        match self {
            Self::File { path } | Self::Shamir { path, .. } => vec![path],
            Self::Passphrase { params, credential } => {
                std::iter::once(params).chain(credential.as_mut()).collect()
            }
            Self::Pkcs11(token) => vec![&mut token.module, &mut token.pin_file],
        }
    }

    /// A file that it names by a relative path.
    #[must_use]
    pub fn relative_path(&self) -> Option<PathBuf> {
        self.clone().paths().into_iter().find(|path| path.is_relative()).map(|path| path.clone())
    }
}

/// The HSM boundary.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct HsmSection {
    /// Backing keys kept unsealed at most; fewer where the system does not let enough memory be locked.
    pub cache_max_entries: usize,
    /// Start although memory for keys cannot be locked.
    pub allow_unlocked: bool,
    /// How long keys that are open are used after a root last answered rightly, in seconds.
    pub root_grace_seconds: u64,
    /// Time between probes of the roots, in milliseconds.
    pub root_probe_interval_ms: u64,
    /// A probe that takes longer has failed, in milliseconds.
    pub root_probe_timeout_ms: u64,
}

impl HsmSection {
    /// How roots are watched.
    #[must_use]
    pub fn watch(&self) -> RootWatchConfig {
        RootWatchConfig {
            grace: Duration::from_secs(self.root_grace_seconds),
            probe_interval: Duration::from_millis(self.root_probe_interval_ms),
            probe_timeout: Duration::from_millis(self.root_probe_timeout_ms),
            ..RootWatchConfig::default()
        }
    }
}

impl Default for HsmSection {
    fn default() -> Self {
        Self {
            cache_max_entries: keyward_hsm::CACHE_ENTRIES_DEFAULT,
            allow_unlocked: false,
            root_grace_seconds: 3600,
            root_probe_interval_ms: 5000,
            root_probe_timeout_ms: 2000,
        }
    }
}

/// The audit trail.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditSection {
    /// Where its segments are; `audit` in the data folder when absent.
    pub folder: Option<PathBuf>,
    /// `soon` (within 100 ms) or `always` (before the answer leaves).
    pub sync: SyncMode,
    /// Bytes that a segment takes from the disk at once.
    pub segment_bytes: u64,
    /// Bytes on disk that all segments together may have; no bound when absent.
    pub keep_bytes: Option<u64>,
    /// Days that a record is kept at least; for ever when absent.
    pub keep_days: Option<u32>,
}

impl Default for AuditSection {
    fn default() -> Self {
        Self {
            folder: None,
            sync: SyncMode::default(),
            segment_bytes: SEGMENT_BYTES_DEFAULT,
            keep_bytes: None,
            keep_days: None,
        }
    }
}

/// Logs, metrics and health.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObserveSection {
    /// Where `/livez`, `/readyz` and `/metrics` are served; nowhere when absent.
    pub listen: Option<SocketAddr>,
    /// A filter as of `tracing`: `info`, `warn,keyward_raft=debug`.
    pub log: String,
    /// `text` or `json`.
    pub log_format: LogFormat,
}

impl Default for ObserveSection {
    fn default() -> Self {
        Self { listen: None, log: "info,openraft=error".to_owned(), log_format: LogFormat::Text }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs: one JSON object a line.
    Json,
}

/// A set of timers, by the network it is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TimerProfile {
    /// Round trips under 50 ms.
    #[default]
    Default,
    /// Round trips under 25 ms.
    Quick,
}

impl TimerProfile {
    /// The timers.
    #[must_use]
    pub const fn timers(self) -> Timers {
        match self {
            Self::Default => Timers::DEFAULT,
            Self::Quick => Timers::QUICK,
        }
    }
}

/// What is wrong with a configuration.
#[derive(Debug)]
pub struct ConfigError {
    path: PathBuf,
    why: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.why)
    }
}

impl std::error::Error for ConfigError {}

/// What flags and environment set over the file.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Overrides {
    /// Where the gRPC door listens
    #[arg(long, env = "KEYWARD_LISTEN", value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// host:port at which peers reach this node
    #[arg(long, env = "KEYWARD_ADVERTISE", value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// The folder for the node's data
    #[arg(long, env = "KEYWARD_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Where /livez, /readyz and /metrics are served
    #[arg(long, env = "KEYWARD_OBSERVE", value_name = "ADDRESS:PORT")]
    pub observe: Option<SocketAddr>,
    /// Log filter, such as info or warn,keyward_raft=debug
    #[arg(long, env = "KEYWARD_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// Log format
    #[arg(long, env = "KEYWARD_LOG_FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,
}

impl Config {
    /// Reads a file and lays flags and environment over it. Relative paths in the file are relative to
    /// the file.
    pub fn load(path: &Path, overrides: &Overrides) -> Result<Self, ConfigError> {
        let wrong = |why: String| ConfigError { path: path.to_owned(), why };
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        // toml's own message shows line, column and the offending text.
        let mut config: Self = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        config.anchor(folder);
        config.overlay(overrides);
        config.check().map_err(wrong)?;
        Ok(config)
    }

    fn anchor(&mut self, folder: &Path) {
        let anchor = |path: &mut PathBuf| {
            if path.is_relative() {
                *path = folder.join(&*path);
            }
        };
        anchor(&mut self.node.data);
        anchor(&mut self.tls.certificate);
        anchor(&mut self.tls.private_key);
        anchor(&mut self.tls.authority);
        if let Some(path) = &mut self.audit.folder {
            anchor(path);
        }
        self.root.paths().into_iter().for_each(anchor);
    }

    fn overlay(&mut self, overrides: &Overrides) {
        let Overrides { listen, advertise, data, observe, log, log_format } = overrides.clone();
        if let Some(listen) = listen {
            self.node.listen = listen;
        }
        if let Some(data) = data {
            self.node.data = data;
        }
        if let Some(log) = log {
            self.observe.log = log;
        }
        if let Some(format) = log_format {
            self.observe.log_format = format;
        }
        self.node.advertise = advertise.or(self.node.advertise.take());
        self.observe.listen = observe.or(self.observe.listen);
    }

    fn check(&self) -> Result<(), String> {
        if self.node.id == Some(0) {
            return Err("node.id must be 1 or more".to_owned());
        }
        if self.node.advertise.is_none() && self.node.listen.ip().is_unspecified() {
            return Err(
                "node.listen is a wildcard address: set node.advertise to what peers can reach"
                    .to_owned(),
            );
        }
        if self.observe.listen == Some(self.node.listen) {
            return Err("observe.listen and node.listen are the same address".to_owned());
        }
        if !(1..=keyward_hsm::CACHE_ENTRIES_MAX).contains(&self.hsm.cache_max_entries) {
            return Err(format!(
                "hsm.cache_max_entries must be 1 to {}",
                keyward_hsm::CACHE_ENTRIES_MAX
            ));
        }
        if self.hsm.root_probe_interval_ms == 0 || self.hsm.root_probe_timeout_ms == 0 {
            return Err(
                "hsm.root_probe_interval_ms and hsm.root_probe_timeout_ms must be 1 or more"
                    .to_owned(),
            );
        }
        self.observe
            .log
            .parse::<tracing_subscriber::EnvFilter>()
            .map_err(|e| format!("observe.log is not a log filter: {e}"))?;
        Ok(())
    }

    /// Where the segments of the audit trail are.
    #[must_use]
    pub fn audit_folder(&self) -> PathBuf {
        self.audit.folder.clone().unwrap_or_else(|| self.node.data.join("audit"))
    }

    /// `host:port` at which peers reach this node.
    #[must_use]
    pub fn address(&self) -> String {
        self.node.advertise.clone().unwrap_or_else(|| self.node.listen.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[node]
id = 1
region = "eu-west-1"
listen = "127.0.0.1:7101"
data = "data"
[tls]
certificate = "node.pem"
private_key = "node.key"
authority = "ca.pem"
[root]
provider = "file"
path = "root.key"
"#;

    fn load(text: &str, overrides: &Overrides) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path, overrides)
    }

    #[test]
    fn flags_and_environment_win_over_the_file() {
        let config = load(GOOD, &Overrides::default()).unwrap();
        assert_eq!(config.address(), "127.0.0.1:7101");
        assert!(config.node.data.is_absolute());
        let listen = "127.0.0.1:9".parse().unwrap();
        let overrides = Overrides { listen: Some(listen), ..Overrides::default() };
        assert_eq!(load(GOOD, &overrides).unwrap().node.listen, listen);
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let error = |text: String| load(&text, &Overrides::default()).unwrap_err().to_string();
        let unknown = error(GOOD.replace("[tls]", "colour = \"red\"\n[tls]"));
        assert!(
            unknown.contains("unknown field `colour`") && unknown.contains("line"),
            "{unknown}"
        );
        assert!(error(GOOD.replace("eu-west-1", "Europe")).contains("Region"));
        assert!(error(GOOD.replace("id = 1", "id = 0")).contains("node.id"));
        assert!(error(GOOD.replace("127.0.0.1:7101", "0.0.0.0:7101")).contains("node.advertise"));
        assert!(error(GOOD.replace("\"file\"", "\"tpm\"")).contains("tpm"));
    }
}
