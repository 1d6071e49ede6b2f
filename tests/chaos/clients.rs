//! Clients that use keys on every machine all the time, and others that change them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use keyward_check::Step;
use keyward_client::{CallError, Client, ClientConfig};
use keyward_env::{AsyncRuntime, Env, RealEnv};
use keyward_proto::v1;
use keyward_sim::book::KeyView;
use keyward_sim::dice::{Dice, Stream};
use tokio::sync::Mutex;

use super::history::{SharedBook, end_of, step};
use crate::support::machines::Machines;
use crate::support::{create_key, decrypt, set_enabled};

type Join = <<RealEnv as Env>::Runtime as AsyncRuntime>::JoinHandle<()>;

/// Keys to begin with.
const KEYS: usize = 4;
const KEYS_MAX: usize = 40;
/// Ciphertexts kept of each key.
const SAMPLES: usize = 8;
const PATIENCE: Duration = Duration::from_secs(4);
/// Between changes that only show whether there is a control plane.
const WATCH_EVERY: Duration = Duration::from_millis(100);

pub struct Clients {
    /// One for each machine.
    nodes: Vec<Arc<Client>>,
    book: Arc<SharedBook>,
    seed: u64,
    stop: Arc<AtomicBool>,
    tasks: Mutex<Vec<Join>>,
    /// When the last change was acknowledged on any machine.
    changed: std::sync::Mutex<Step>,
}

fn code<T>(result: &Result<T, CallError>) -> Option<&str> {
    result.as_ref().err().and_then(|error| error.code.as_deref())
}

async fn describe(client: &Client, key_id: String, description: String) -> Result<(), CallError> {
    let request = v1::UpdateKeyDescriptionRequest { key_id, description };
    let call =
        client.key_once(request, |mut c, r| async move { c.update_key_description(r).await });
    call.await.map(drop)
}

async fn look(client: &Client, key_id: String) -> Result<v1::KeyMetadata, CallError> {
    let request = v1::DescribeKeyRequest { key_id };
    let shown = client.key_once(request, |mut c, r| async move { c.describe_key(r).await }).await?;
    Ok(shown.key_metadata.unwrap_or_default())
}

async fn encrypt(client: &Client, key_id: String, text: &[u8]) -> Result<Vec<u8>, CallError> {
    let request = v1::EncryptRequest { key_id, plaintext: text.to_vec(), ..Default::default() };
    let made = client.key_once(request, |mut c, r| async move { c.encrypt(r).await }).await?;
    Ok(made.ciphertext_blob)
}

/// A client of one machine, as that principal.
pub fn client_of(machines: &Machines, node: usize, who: &str) -> Arc<Client> {
    let pki = machines.etc(1);
    let read = |name: &str| std::fs::read(pki.join(name)).expect("read");
    let config = ClientConfig {
        endpoints: vec![machines.reached_at(node)],
        authority: read("ca.pem"),
        certificate: read(&format!("{who}.pem")),
        private_key: read(&format!("{who}.key")).into(),
        patience: PATIENCE,
    };
    Arc::new(Client::new(&config).expect("a client"))
}

impl Clients {
    pub fn new(machines: &Machines, book: Arc<SharedBook>, seed: u64) -> Self {
        Self {
            nodes: (1..=3).map(|node| client_of(machines, node, "app")).collect(),
            book,
            seed,
            stop: Arc::default(),
            tasks: Mutex::default(),
            changed: std::sync::Mutex::default(),
        }
    }

    /// Makes the first keys, and begins.
    pub async fn begin(self: &Arc<Self>) {
        let end = RealEnv.boot_now() + Duration::from_secs(20);
        while self.book.lock().keys.len() < KEYS {
            assert!(RealEnv.boot_now() < end, "no key can be made before anything is broken");
            let began = step();
            match create_key(&self.nodes[0]).await {
                Ok(id) => self.book.lock().created(id, began),
                Err(_) => RealEnv.sleep(Duration::from_millis(100)).await,
            }
        }
        let watched = create_key(&self.nodes[0]).await.expect("one more key");
        *self.changed.lock().unwrap_or_else(PoisonError::into_inner) = step();
        let mut tasks = self.tasks.lock().await;
        for node in 0..3 {
            let (this, key) = (Arc::clone(self), watched.clone());
            let watch = async move { this.watch_control_plane(node, key).await };
            tasks.push(<RealEnv as Env>::Runtime::spawn(watch));
        }
        for number in 0..5 {
            let (this, dice) = (Arc::clone(self), Dice::new(self.seed, Stream::Client(number)));
            tasks.push(<RealEnv as Env>::Runtime::spawn(async move {
                match number {
                    0..=2 => this.use_keys(number as usize, dice).await,
                    _ => this.change_keys(dice).await,
                }
            }));
        }
    }

    pub async fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks.lock().await.drain(..) {
            task.await.expect("it ends");
        }
    }

    async fn use_keys(&self, node: usize, mut dice: Dice) {
        while !self.stop.load(Ordering::SeqCst) {
            RealEnv.sleep(dice.between_ms(5, 30)).await;
            let key = dice.index(self.book.lock().keys.len());
            let text = dice.word().to_le_bytes();
            self.use_key(node, key, dice.index(3), &text).await;
        }
    }

    async fn use_key(&self, node: usize, key: usize, what: usize, text: &[u8]) {
        let client = &self.nodes[node];
        let (id, sample) = {
            let book = self.book.lock();
            let key = &book.keys[key];
            let at = text[0] as usize % key.samples.len().max(1);
            (key.id.clone(), key.samples.get(at).cloned())
        };
        let began = step();
        let (result, violation) = match (what, sample) {
            (0, Some((blob, plaintext))) => match decrypt(client, &blob).await {
                Ok(opened) if opened.plaintext != plaintext => (Ok(None), true),
                opened => (opened.map(|_| None), false),
            },
            (1, _) => (look(client, id).await.map(Some), false),
            _ => {
                let made = encrypt(client, id, text).await;
                if let Ok(blob) = &made {
                    let mut book = self.book.lock();
                    let samples = &mut book.keys[key].samples;
                    if samples.len() < SAMPLES {
                        samples.push((blob.clone(), text.to_vec()));
                    }
                }
                (made.map(|_| None), false)
            }
        };
        let span = (began, step());
        let mut book = self.book.lock();
        if violation {
            book.counts.violations.push(format!("WRONG PLAINTEXT on node {}", node + 1));
        }
        let view = match (&result, code(&result)) {
            (Ok(Some(metadata)), _) => {
                book.read(key, &metadata.description, span, node + 1);
                if metadata.enabled { KeyView::Enabled } else { KeyView::Disabled }
            }
            (Ok(None), _) => KeyView::Enabled,
            (_, Some("DisabledException")) => KeyView::Disabled,
            (_, Some("NotFoundException")) => KeyView::Absent,
            (_, Some(why @ ("DependencyTimeoutException" | "KeyUnavailableException"))) => {
                return book.refused(began, node + 1, why);
            }
            (_, None) => return book.refused(began, node + 1, "no answer"),
            // The audit trail's disk is full: the node says so.
            (Err(error), Some("KMSInternalException")) if error.message.contains("audit") => {
                return book.refused(began, node + 1, "cannot record");
            }
            (Err(error), _) => {
                let what = format!("AN UNEXPECTED ERROR on node {}: {error}", node + 1);
                book.counts.violations.push(what);
                return;
            }
        };
        book.saw(key, view, span, node + 1);
    }

    /// Changes one thing over and over through one machine, to see how long no machine acknowledges a change.
    async fn watch_control_plane(&self, node: usize, key: String) {
        let mut number = 0_u64;
        while !self.stop.load(Ordering::SeqCst) {
            number += 1;
            let text = format!("{number} by {node}");
            if describe(&self.nodes[node], key.clone(), text).await.is_ok() {
                let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
                let now = step();
                self.book.lock().without_change(*changed, now);
                *changed = now;
            }
            RealEnv.sleep(WATCH_EVERY).await;
        }
    }

    async fn change_keys(&self, mut dice: Dice) {
        let mut number = 0;
        while !self.stop.load(Ordering::SeqCst) {
            RealEnv.sleep(dice.between_ms(30, 300)).await;
            number += 1;
            let client = &self.nodes[dice.index(3)];
            let certain: Vec<usize> = {
                let book = self.book.lock();
                (0..book.keys.len())
                    .filter(|key| {
                        let key = &book.keys[*key];
                        key.state.is_certain() && key.description.is_certain()
                    })
                    .collect()
            };
            if certain.len() < 3 || (certain.len() < KEYS_MAX && dice.permille(60)) {
                let began = step();
                let made = create_key(client).await;
                if let Ok(id) = made {
                    self.book.lock().created(id, began);
                }
                continue;
            }
            let key = certain[dice.index(certain.len())];
            let id = self.book.lock().keys[key].id.clone();
            if dice.permille(700) {
                let enabled = dice.permille(500);
                let view = if enabled { KeyView::Enabled } else { KeyView::Disabled };
                let write = self.book.lock().keys[key].state.begin(view, step());
                let end = end_of(&set_enabled(client, &id, enabled).await);
                self.book.lock().switched(key, write, end);
            } else {
                let text = format!("text {number} of {:08x}", dice.word() >> 32);
                let write = self.book.lock().keys[key].description.begin(text.clone(), step());
                let end = end_of(&describe(client, id, text).await);
                self.book.lock().described(key, write, end);
            }
        }
    }

    /// Every machine answers, and a change goes through.
    pub async fn all_work(&self) -> bool {
        let id = self.book.lock().keys[0].id.clone();
        for client in &self.nodes {
            if look(client, id.clone()).await.is_err() {
                return false;
            }
        }
        let began = step();
        match create_key(&self.nodes[0]).await {
            Ok(id) => self.book.lock().created(id, began),
            Err(_) => return false,
        }
        true
    }

    /// In the end every machine shows the last acknowledged state of everything, and every ciphertext opens.
    pub async fn nothing_is_lost(&self) {
        let keys = self.book.lock().keys.len();
        for node in 0..3 {
            for key in 0..keys {
                self.use_key(node, key, 1, &[0; 8]).await;
            }
        }
        for key in 0..keys {
            let (id, samples) = {
                let book = self.book.lock();
                (book.keys[key].id.clone(), book.keys[key].samples.clone())
            };
            let write = self.book.lock().keys[key].state.begin(KeyView::Enabled, step());
            let enabled = set_enabled(&self.nodes[key % 3], &id, true).await;
            let end = end_of(&enabled);
            self.book.lock().switched(key, write, end);
            for (node, client) in self.nodes.iter().enumerate() {
                for (blob, plaintext) in &samples {
                    let opened = decrypt(client, blob).await;
                    if !opened.as_ref().is_ok_and(|opened| opened.plaintext == *plaintext) {
                        let what = format!(
                            "A CIPHERTEXT IS LOST on node {}: {}",
                            node + 1,
                            super::history::told(&opened)
                        );
                        self.book.lock().counts.violations.push(what);
                    }
                }
            }
        }
    }
}
