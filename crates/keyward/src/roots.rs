//! The roots of this node: which ones it has, on record in its data folder; opening, making, and trying again
//! those that are away.

use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use keyward_env::{Env, RealEnv};
use keyward_hsm::{
    ArgonParams, EnvClock, FileRoot, Hsm, PassphraseRoot, PinSource, Pkcs11Config, Pkcs11Root,
    RootError, RootId, RootProvider, SecretVec, ShamirRoot, Shares, TokenName, read_credential,
};
use keyward_raft::BoxFuture;
use keyward_service::{KeptRoot, RootKeeper};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::config::{Config, Overrides, RootSection, TokenSection};
use crate::error::Failure;

/// The record, in the data folder.
const RECORD: &str = "roots.toml";
/// Between tries to open a root that is away.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// A root on record.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    id: RootId,
    spec: RootSection,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    #[serde(default)]
    root: Vec<Entry>,
}

/// A root that is split in shares, and the shares nobody has taken yet.
struct Ceremony {
    root: Arc<ShamirRoot>,
    untaken: Mutex<Option<Shares>>,
}

/// The roots of this node.
pub struct Roots {
    path: PathBuf,
    unlocked: bool,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
    entries: Mutex<Vec<Entry>>,
    ceremonies: Mutex<Vec<(RootId, Arc<Ceremony>)>>,
}

/// The record of a node's roots, and those that are open.
pub type OpenRoots = (Arc<Roots>, Vec<Arc<dyn RootProvider>>);

/// The passphrase: a credential file, a systemd credential, or a prompt. Never an argument.
fn passphrase(credential: Option<&Path>) -> Result<SecretVec, Failure> {
    if let Some(path) = credential {
        return read_credential(path).map_err(Failure::from_error);
    }
    if let Some(folder) = std::env::var_os("CREDENTIALS_DIRECTORY") {
        let path = Path::new(&folder).join("keyward-passphrase");
        if path.exists() {
            return read_credential(&path).map_err(Failure::from_error);
        }
    }
    let text = rpassword::prompt_password("Passphrase of the root: ").map_err(|e| {
        Failure::new(format!("no passphrase: {e}"))
            .next("set root.credential to a file of mode 0600 that holds it")
    })?;
    Ok(SecretVec::new(text.into_bytes()))
}

fn pkcs11(token: &TokenSection) -> Result<Pkcs11Config, Failure> {
    let name = match (&token.token_label, &token.token_serial) {
        (Some(label), None) => TokenName::Label(label.clone()),
        (None, Some(serial)) => TokenName::Serial(serial.clone()),
        _ => {
            return Err(Failure::new(
                "name the token: token_label or token_serial, one of the two",
            ));
        }
    };
    Ok(Pkcs11Config {
        module: token.module.clone(),
        token: name,
        key_label: token.key_label.clone(),
        pin: PinSource::File(token.pin_file.clone()),
        pin_retry: token.pin_retry,
        timeout: Duration::from_secs(token.timeout_seconds),
        mechanism: None,
    })
}

/// What a root is opened or made as.
struct Opened {
    provider: Arc<dyn RootProvider>,
    ceremony: Option<Ceremony>,
}

impl Opened {
    fn plain(provider: impl RootProvider) -> Self {
        Self { provider: Arc::new(provider), ceremony: None }
    }
}

/// Opens a root, or makes it where it is not there and may be made. Blocks.
fn open(spec: &RootSection, make: bool, unlocked: bool) -> Result<Opened, Failure> {
    let entropy = RealEnv.entropy();
    match spec {
        RootSection::File { path } => {
            let root = if make && !path.exists() {
                FileRoot::create(path, entropy, unlocked)
            } else {
                FileRoot::open(path, entropy, unlocked)
            };
            root.map(Opened::plain).map_err(Failure::from_error)
        }
        RootSection::Passphrase { params, credential } => {
            let secret = passphrase(credential.as_deref())?;
            let root = if make && !params.exists() {
                PassphraseRoot::create(params, &secret, ArgonParams::default(), entropy, unlocked)
            } else {
                PassphraseRoot::open(params, &secret, entropy, unlocked)
            };
            root.map(Opened::plain).map_err(Failure::from_error)
        }
        RootSection::Pkcs11(token) => {
            let clock = EnvClock::shared(RealEnv);
            let opened = Pkcs11Root::open(
                pkcs11(token)?,
                Arc::clone(&clock),
                Arc::clone(&entropy),
                unlocked,
            );
            let root =
                match opened {
                    Err(keyward_hsm::RootError::Pkcs11(keyward_hsm::Pkcs11Error::KeyMissing(
                        _,
                    ))) if make => Pkcs11Root::create(pkcs11(token)?, clock, entropy, unlocked),
                    opened => opened,
                };
            root.map(Opened::plain).map_err(Failure::from_error)
        }
        RootSection::Shamir { path, needed, shares } => {
            let (root, untaken) = if make && !path.exists() {
                let (Some(needed), Some(shares)) = (needed, shares) else {
                    return Err(Failure::new(
                        "a root in shares is made with `needed` and `shares`: how many open it, of how many",
                    ));
                };
                ShamirRoot::create(path, *needed, *shares, entropy, unlocked)
                    .map(|(root, shares)| (root, Some(shares)))
            } else {
                ShamirRoot::open(path, entropy, unlocked).map(|root| (root, None))
            }
            .map_err(Failure::from_error)?;
            let root = Arc::new(root);
            let ceremony = Ceremony { root: Arc::clone(&root), untaken: Mutex::new(untaken) };
            Ok(Opened { provider: root, ceremony: Some(ceremony) })
        }
    }
}

/// Where a root is, without secrets.
fn place(spec: &RootSection) -> String {
    match spec {
        RootSection::File { path } => path.display().to_string(),
        RootSection::Passphrase { params, .. } => params.display().to_string(),
        RootSection::Shamir { path, .. } => path.display().to_string(),
        RootSection::Pkcs11(token) => {
            let name = token.token_label.as_deref().or(token.token_serial.as_deref());
            format!("token {}, key {}", name.unwrap_or("?"), token.key_label)
        }
    }
}

/// Roots that are opened for a moment, to read a backup.
#[derive(Default)]
pub struct AtHand {
    /// The node's own.
    pub own: Vec<Arc<dyn RootProvider>>,
    /// Of other nodes.
    pub others: Vec<Arc<dyn RootProvider>>,
    /// Those that could not be opened, and why.
    pub absent: Vec<String>,
}

/// The roots that a file describes: a node's configuration, or its record of roots.
fn described(path: &Path) -> Result<Vec<RootSection>, Failure> {
    let wrong = |why: String| {
        Failure::new(format!("{}: {why}", path.display()))
            .next("name a node's configuration, or the roots.toml of its data folder")
    };
    let text = fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
    let table: toml::Table = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    if table.contains_key("node") {
        let config = Config::load(path, &Overrides::default()).map_err(Failure::from_error)?;
        return Ok(vec![config.root]);
    }
    let record: Record = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    Ok(record.root.into_iter().map(|entry| entry.spec).collect())
}

/// A share of a root, in a file as secrets are.
fn share_in(file: &Path) -> Result<SecretVec, Failure> {
    read_credential(file)
        .map_err(|error| Failure::new(format!("the share in {}: {error}", file.display())))
}

/// Gives a root in shares those of the `files` that are its own, and asks for more at a terminal until it opens.
fn put_together(root: &ShamirRoot, files: &[PathBuf]) -> Result<(), Failure> {
    for file in files {
        match root.offer(&share_in(file)?) {
            // Of another root: of another node, perhaps.
            Ok(_) | Err(RootError::ShareForeign { .. }) => {}
            Err(error) => {
                return Err(Failure::new(format!("the share in {}: {error}", file.display())));
            }
        }
    }
    let mut progress = root.progress();
    while !progress.open && std::io::stdin().is_terminal() {
        let (number, needed) = (progress.given + 1, progress.needed);
        let asked =
            format!("Share {number} of {needed} of {} (empty: go on without): ", root.identity());
        let text = rpassword::prompt_password(asked)
            .map(|text| SecretVec::new(text.into_bytes()))
            .map_err(|error| Failure::new(format!("no share was read: {error}")))?;
        if text.is_empty() {
            break;
        }
        if let Err(error) = root.offer(&text) {
            eprintln!("{error}");
        }
        progress = root.progress();
    }
    if progress.open {
        return Ok(());
    }
    let (given, needed) = (progress.given, progress.needed);
    Err(Failure::new(format!(
        "{given} of {needed} shares were given: --share FILE for each, or type them at a terminal"
    )))
}

/// Opens the roots that a node has on record, or that its configuration names, and those that `others` describe; those in
/// shares with the shares in files, or typed in. With `make` the configured one is made where it is not there. Writes no
/// record. Blocks.
pub fn at_hand(
    config: &Config,
    others: &[PathBuf],
    shares: &[PathBuf],
    make: bool,
) -> Result<AtHand, Failure> {
    let record = config.node.data.join(RECORD);
    let own = if record.exists() { described(&record)? } else { vec![config.root.clone()] };
    let mut hand = AtHand::default();
    let mut others_described = Vec::new();
    for path in others {
        others_described.extend(described(path)?);
    }
    let unlocked = config.hsm.allow_unlocked;
    for (spec, is_own) in
        own.iter().map(|spec| (spec, true)).chain(others_described.iter().map(|spec| (spec, false)))
    {
        let make = make && is_own;
        if let RootSection::Shamir { path, .. } = spec
            && make
            && !path.exists()
        {
            return Err(Failure::new(
                "a root in shares is not made here: nobody would be given its shares",
            )
            .next("name a file or a token in [root]; once the Region serves: keyward root add NODE shamir"));
        }
        let opened = open(spec, make, unlocked).and_then(|opened| match &opened.ceremony {
            Some(ceremony) => put_together(&ceremony.root, shares).map(|()| opened),
            None => Ok(opened),
        });
        match opened {
            Ok(opened) if is_own => hand.own.push(opened.provider),
            Ok(opened) => hand.others.push(opened.provider),
            Err(why) => hand.absent.push(format!("{}: {why}", place(spec))),
        }
    }
    Ok(hand)
}

impl Roots {
    /// Opens the node's roots; makes the configured one at the first start. One that opens is enough: what does
    /// not open is told, and tried again ([`Roots::retry`]). Blocks.
    pub fn open(config: &Config) -> Result<OpenRoots, Failure> {
        let path = config.node.data.join(RECORD);
        let unlocked = config.hsm.allow_unlocked;
        let roots = Self {
            path: path.clone(),
            unlocked,
            changing: tokio::sync::Mutex::new(()),
            entries: Mutex::default(),
            ceremonies: Mutex::default(),
        };
        let recorded = match fs::read_to_string(&path) {
            Ok(text) => {
                let record: Record = toml::from_str(&text).map_err(|e| {
                    Failure::new(format!("{} is damaged: {e}", path.display())).next(
                        "it lists this node's roots ([[root]] with `id`, and `spec` as in the configuration): \
                         restore it",
                    )
                })?;
                Some(record.root)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(Failure::new(format!("cannot read {}: {error}", path.display())));
            }
        };
        let mut open_roots = Vec::new();
        match recorded {
            None => {
                if matches!(config.root, RootSection::Shamir { .. }) {
                    return Err(Failure::new(
                        "a node does not start with a root in shares: nobody could take them",
                    )
                    .next("begin with another one, then `keyward root add NODE shamir`"));
                }
                let first_start = !config.node.data.join("state").exists();
                let opened = open(&config.root, first_start, unlocked)?;
                let id = opened.provider.identity().clone();
                roots.save(vec![Entry { id, spec: config.root.clone() }]).map_err(Failure::new)?;
                open_roots.push(opened.provider);
            }
            Some(entries) => {
                let mut reasons = Vec::new();
                for entry in &entries {
                    match roots.open_entry(entry) {
                        Ok(provider) => open_roots.push(provider),
                        Err(why) => {
                            tracing::error!(root = %entry.id, place = place(&entry.spec), %why,
                                "a root could not be opened; it is tried again");
                            reasons.push(format!("{} ({}): {why}", entry.id, place(&entry.spec)));
                        }
                    }
                }
                *roots.entries.lock() = entries;
                if open_roots.is_empty() {
                    return Err(Failure::new(format!(
                        "none of this node's roots can be opened:\n  {}",
                        reasons.join("\n  ")
                    ))
                    .next(format!("see to one of them; {} lists them", path.display())));
                }
            }
        }
        Ok((Arc::new(roots), open_roots))
    }

    fn open_entry(&self, entry: &Entry) -> Result<Arc<dyn RootProvider>, Failure> {
        let opened = open(&entry.spec, false, self.unlocked)?;
        let found = opened.provider.identity();
        if *found != entry.id {
            return Err(Failure::new(format!("it is another root now: {found}")));
        }
        self.keep(opened)
    }

    #[expect(clippy::unnecessary_wraps, reason = "the end of a chain that fails")]
    fn keep(&self, opened: Opened) -> Result<Arc<dyn RootProvider>, Failure> {
        if let Some(ceremony) = opened.ceremony {
            let id = opened.provider.identity().clone();
            self.ceremonies.lock().push((id, Arc::new(ceremony)));
        }
        Ok(opened.provider)
    }

    /// Writes the record anew, in one step.
    fn save(&self, entries: Vec<Entry>) -> Result<(), String> {
        let write = || -> std::io::Result<()> {
            let record = Record { root: entries.clone() };
            let text = toml::to_string_pretty(&record).map_err(std::io::Error::other)?;
            let draft = self.path.with_extension("toml.new");
            let mut file = fs::File::create(&draft)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&draft, &self.path)?;
            let folder = self.path.parent().unwrap_or(Path::new("."));
            fs::File::open(folder)?.sync_all()
        };
        write().map_err(|e| format!("cannot write {}: {e}", self.path.display()))?;
        *self.entries.lock() = entries;
        Ok(())
    }

    fn ceremony(&self, id: &RootId) -> Result<Arc<Ceremony>, String> {
        let ceremonies = self.ceremonies.lock();
        let found = ceremonies.iter().find(|(known, _)| known == id);
        found.map(|(_, ceremony)| Arc::clone(ceremony)).ok_or_else(|| {
            format!("{id} is no root in shares of this node; `keyward root list` shows them")
        })
    }

    /// Tries those roots again that could not be opened, for as long as the node runs.
    pub async fn retry(self: Arc<Self>, hsm: std::sync::Weak<Hsm>) {
        loop {
            RealEnv.sleep(TRY_AGAIN).await;
            let Some(hsm) = hsm.upgrade() else { return };
            let open: Vec<RootId> = hsm.roots().into_iter().map(|status| status.id).collect();
            let entries = self.entries.lock().clone();
            for entry in entries.into_iter().filter(|entry| !open.contains(&entry.id)) {
                let (this, id) = (Arc::clone(&self), entry.id.clone());
                let opened = RealEnv.blocking(move || this.open_entry(&entry)).await;
                let added = opened.map(|root| hsm.add_root(root));
                match added {
                    Ok(Ok(())) => tracing::info!(root = %id, "a root that was away is open again"),
                    Ok(Err(error)) => tracing::debug!(root = %id, %error, "a root was not added"),
                    Err(why) => tracing::debug!(root = %id, %why, "a root is still away"),
                }
            }
        }
    }
}

impl RootKeeper for Roots {
    fn kept(&self) -> Vec<KeptRoot> {
        let entries = self.entries.lock();
        entries.iter().map(|e| KeptRoot { id: e.id.clone(), place: place(&e.spec) }).collect()
    }

    fn add(&self, spec: String) -> BoxFuture<'_, Result<Arc<dyn RootProvider>, String>> {
        Box::pin(async move {
            let _one_at_a_time = self.changing.lock().await;
            let spec: RootSection = toml::from_str(&spec)
                .map_err(|e| format!("the root is not described well: {e}"))?;
            if let Some(path) = spec.relative_path() {
                return Err(format!("{} is not an absolute path on the node", path.display()));
            }
            if matches!(spec, RootSection::Passphrase { credential: None, .. }) {
                return Err("a passphrase root is added with `credential`: a file of mode 0600 that holds the \
                            passphrase"
                    .to_owned());
            }
            let (wanted, unlocked) = (spec.clone(), self.unlocked);
            let opened = RealEnv
                .blocking(move || open(&wanted, true, unlocked))
                .await
                .map_err(|e| e.to_string())?;
            let id = opened.provider.identity().clone();
            let mut entries = self.entries.lock().clone();
            if entries.iter().any(|entry| entry.id == id) {
                return Err(format!("this node has root {id} already"));
            }
            entries.push(Entry { id, spec });
            self.save(entries)?;
            self.keep(opened).map_err(|e| e.to_string())
        })
    }

    fn forget(&self, id: RootId) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let _one_at_a_time = self.changing.lock().await;
            let mut entries = self.entries.lock().clone();
            entries.retain(|entry| entry.id != id);
            self.save(entries)?;
            self.ceremonies.lock().retain(|(known, _)| *known != id);
            Ok(())
        })
    }

    fn offer(&self, id: RootId, share: SecretVec) -> BoxFuture<'_, Result<(u8, u8), String>> {
        Box::pin(async move {
            let ceremony = self.ceremony(&id)?;
            let progress = RealEnv
                .blocking(move || ceremony.root.offer(&share))
                .await
                .map_err(|e| e.to_string())?;
            Ok((progress.given, progress.needed))
        })
    }

    fn next_share(&self, id: RootId) -> BoxFuture<'_, Result<(u8, String, u8), String>> {
        Box::pin(async move {
            let ceremony = self.ceremony(&id)?;
            let mut untaken = ceremony.untaken.lock();
            let next = untaken.as_mut().and_then(|shares| {
                let share = shares.next()?;
                let left = u8::try_from(shares.size_hint().0).unwrap_or(0);
                let text = std::str::from_utf8(share.expose().expose()).ok()?.to_owned();
                Some((share.index(), text, left))
            });
            next.ok_or_else(|| {
                "every share was taken, or the node was started since the root was made: what was not taken then \
                 is gone. With fewer shares taken than open it, remove the root and make another one"
                    .to_owned()
            })
        })
    }
}
