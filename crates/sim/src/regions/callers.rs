//! Callers of several Regions: they make and change multi-Region keys through any of them, and use them in all.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keyward_model::{ErrorCode, KeyId, KeyState, KmsError};
use keyward_service::api::{
    CancelKeyDeletion, CreateKey, Decrypt, DescribeKey, DisableKey, DisableKeyRotation, EnableKey,
    EnableKeyRotation, Encrypt, ReplicateKey, RotateKeyOnDemand, ScheduleKeyDeletion, Secret,
    UpdatePrimaryRegion,
};
use keyward_service::{Call, Request, Response, Stack};
use keyward_state::State;
use tower::ServiceExt;

use super::{Regions, RegionsPlan, Sample};
use crate::cluster::Running;
use crate::dice::{Dice, Stream};
use crate::runtime::HARNESS;
use crate::sleep;

/// Keys of a run at most.
const KEYS_MAX: usize = 8;
/// Keys that are made before anything breaks.
const KEYS_FIRST: usize = 3;
/// Ciphertexts kept for the end of a run.
const SAMPLES_MAX: usize = 150;
/// How long the first keys and replicas may take.
const FIRST_WITHIN: Duration = Duration::from_secs(10);
/// The waiting period of every deletion: the shortest that there is.
const WINDOW_DAYS: i32 = 7;

/// What a caller does next.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Create,
    Replicate(KeyId, usize),
    Move(KeyId, usize),
    Rotate(KeyId),
    SetEnabled(KeyId, bool),
    SetRotation(KeyId, Option<i32>),
    Schedule(KeyId),
    Cancel(KeyId),
    Describe(KeyId),
}

impl Regions {
    fn request(&self, change: &Change) -> Request {
        let name = |number: &usize| self.name(*number).to_string();
        match change {
            Change::Create => CreateKey { multi_region: Some(true), ..CreateKey::default() }.into(),
            Change::Replicate(key, to) => ReplicateKey {
                key_id: key.to_string(),
                replica_region: name(to),
                ..ReplicateKey::default()
            }
            .into(),
            Change::Move(key, to) => {
                UpdatePrimaryRegion { key_id: key.to_string(), primary_region: name(to) }.into()
            }
            Change::Rotate(key) => RotateKeyOnDemand { key_id: key.to_string() }.into(),
            Change::SetEnabled(key, true) => EnableKey { key_id: key.to_string() }.into(),
            Change::SetEnabled(key, false) => DisableKey { key_id: key.to_string() }.into(),
            Change::SetRotation(key, None) => DisableKeyRotation { key_id: key.to_string() }.into(),
            Change::SetRotation(key, days) => {
                EnableKeyRotation { key_id: key.to_string(), rotation_period_in_days: *days }.into()
            }
            Change::Schedule(key) => ScheduleKeyDeletion {
                key_id: key.to_string(),
                pending_window_in_days: Some(WINDOW_DAYS),
            }
            .into(),
            Change::Cancel(key) => CancelKeyDeletion { key_id: key.to_string() }.into(),
            Change::Describe(key) => DescribeKey { key_id: key.to_string() }.into(),
        }
    }

    /// One change through a node of that Region. True once it was acknowledged.
    pub(super) async fn change(&self, number: usize, change: &Change) -> bool {
        if let Change::Schedule(key) = change {
            self.ledger.lock().unwanted.insert((number, *key));
        }
        let patience = Duration::from_millis(self.throw(|dice| dice.pick(&[1000, 2000, 5000])));
        let answer = self.ask(number, self.request(change), patience).await;
        let mut ledger = self.ledger.lock();
        let counters = &mut ledger.counters;
        match answer {
            Some(Ok(response)) => {
                counters.acknowledged += 1;
                match change {
                    Change::Replicate(..) => counters.replicated += 1,
                    Change::Move(..) => counters.moved += 1,
                    Change::Rotate(_) => counters.rotated += 1,
                    Change::Schedule(_) => counters.scheduled += 1,
                    Change::Cancel(_) => counters.cancelled += 1,
                    _ => {}
                }
                if let Response::Key(made) = &response
                    && matches!(change, Change::Create)
                {
                    ledger.keys.extend(made.key_id.parse::<KeyId>().ok());
                }
                true
            }
            Some(Err(error)) if !error.outcome_unknown => {
                counters.refused += 1;
                if error.code == ErrorCode::KMSInternalException {
                    let name = self.name(number);
                    ledger.violate(format!("AN UNEXPECTED ERROR: {change:?} in {name}: {error:?}"));
                }
                false
            }
            _ => {
                counters.unknown += 1;
                false
            }
        }
    }

    /// The next change, and the Region that is asked for it: for most, the primary's.
    fn choose(&self, dice: &mut Dice) -> (usize, Change) {
        let keys = self.ledger.lock().keys.clone();
        let (somewhere, elsewhere) =
            (dice.index(self.clusters.len()), dice.index(self.clusters.len()));
        if keys.is_empty() || keys.len() < KEYS_MAX && dice.permille(30) {
            return (somewhere, Change::Create);
        }
        let key = dice.pick(&keys);
        let primary = self.primary_of(&key).filter(|_| dice.permille(850)).unwrap_or(somewhere);
        match dice.below(100) {
            0..=21 => (primary, Change::Replicate(key, elsewhere)),
            22..=35 => (primary, Change::Move(key, elsewhere)),
            36..=53 => (primary, Change::Rotate(key)),
            54..=60 => (somewhere, Change::SetEnabled(key, false)),
            61..=74 => (somewhere, Change::SetEnabled(key, true)),
            75..=80 => (somewhere, Change::Schedule(key)),
            81..=88 => (somewhere, Change::Cancel(key)),
            89..=93 => (primary, Change::SetRotation(key, Some(dice.pick(&[90, 180, 365])))),
            94..=96 => (primary, Change::SetRotation(key, None)),
            _ => (somewhere, Change::Describe(key)),
        }
    }

    /// Keys, and replicas of them, while nothing is broken.
    pub(super) async fn make_first_keys(self: &Arc<Self>) {
        for number in 0..KEYS_FIRST {
            let region = number % self.clusters.len();
            let made = self.change(region, &Change::Create).await;
            let key = self.ledger.lock().keys.last().copied();
            let Some(key) = key.filter(|_| made) else {
                return self.violate("A KEY COULD NOT BE MADE with nothing broken".to_owned());
            };
            // The last one has no replica yet.
            for to in (0..KEYS_FIRST - 1 - number).map(|n| (region + 1 + n) % self.clusters.len()) {
                if !self.change(region, &Change::Replicate(key, to)).await {
                    self.violate("A KEY WAS NOT REPLICATED with nothing broken".to_owned());
                }
                let end = self.world.now() + FIRST_WITHIN;
                while self.leaders_state(to).is_none_or(|state| state.key(&key).is_none()) {
                    if self.world.now() > end {
                        return self.violate(format!("NO REPLICA within {FIRST_WITHIN:?}"));
                    }
                    sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    // --- Uses.

    fn look_at_use(&self, number: usize, running: &Running, used: &Used<'_>) -> bool {
        let (name, after) = (self.name(number), running.kms.node().state());
        let Used { sample, before, result } = used;
        let had = before.key(&sample.key).is_some() && after.key(&sample.key).is_some();
        let mut ledger = self.ledger.lock();
        ledger.counters.calls += 1;
        let wrong = match result {
            Ok(Response::Decrypted { plaintext, .. }) if plaintext.bytes() == sample.plaintext => {
                ledger.counters.opened_elsewhere += u64::from(number != sample.region);
                return true;
            }
            Ok(_) => "it opened to something else".to_owned(),
            Err(error) => match error.code {
                // Another node may serve it.
                ErrorCode::DependencyTimeoutException | ErrorCode::KeyUnavailableException => {
                    ledger.counters.unserved += 1;
                    return false;
                }
                ErrorCode::DisabledException | ErrorCode::KMSInvalidStateException => return false,
                _ if !had => return false,
                // A Region with old disks has yet to hear what it had told others of the key.
                _ if ledger.restored.contains(&sample.key)
                    && !self.healed.load(Ordering::Relaxed) =>
                {
                    return false;
                }
                _ => format!("{error:?}"),
            },
        };
        let from = self.name(sample.region);
        ledger.violate(format!(
            "A CIPHERTEXT DOES NOT OPEN: of {}, made in {from}, on node {} of {name}: {wrong}",
            sample.key,
            running.kms.node().id()
        ));
        false
    }

    /// Opens a ciphertext on a node of that Region. False: not now.
    pub(super) async fn open(self: &Arc<Self>, number: usize, sample: &Sample) -> bool {
        let Some(index) = self.some_node(number) else { return false };
        let Some(running) = self.clusters[number].running(index) else { return false };
        let patience = Duration::from_millis(self.throw(|dice| dice.pick(&[200, 1000, 4000])));
        let (this, sample, group) = (Arc::clone(self), sample.clone(), running.group);
        let opened = self.world.spawn_in(group, async move {
            let before = running.kms.node().state();
            let request = Decrypt { ciphertext_blob: sample.blob.clone(), ..Decrypt::default() };
            let call = Call::new(Arc::clone(&this.caller), request.into(), patience);
            let result = Stack::clone(&running.stack).oneshot(call).await;
            let used = Used { sample: &sample, before: &before, result: &result };
            this.look_at_use(number, &running, &used)
        });
        opened.await.unwrap_or(false)
    }

    /// Encrypts in that Region until it works; kept for the end.
    pub(super) async fn encrypt_once(self: &Arc<Self>, number: usize, key: KeyId) {
        let kept = || self.ledger.lock().samples.len();
        let (before, end) = (kept(), self.world.now() + FIRST_WITHIN);
        let mut dice = Dice::new(self.throw(Dice::word), Stream::Client(300));
        while kept() == before {
            if self.world.now() > end {
                let name = self.name(number);
                return self.violate(format!("NOBODY ENCRYPTS in {name} within {FIRST_WITHIN:?}"));
            }
            self.encrypt(number, key, &mut dice).await;
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Encrypts in that Region, and opens what came of it in others at once, now and then.
    async fn encrypt(self: &Arc<Self>, number: usize, key: KeyId, dice: &mut Dice) {
        let plaintext = dice.word().to_le_bytes().to_vec();
        let request = Encrypt {
            key_id: key.to_string(),
            plaintext: Secret::new(plaintext.clone()),
            ..Encrypt::default()
        };
        let patience = Duration::from_millis(dice.pick(&[200, 1000]));
        let answer = self.ask(number, request.into(), patience).await;
        self.ledger.lock().counters.calls += 1;
        let Some(Ok(Response::Encrypted { ciphertext_blob: blob, .. })) = answer else { return };
        let sample = Sample { key, region: number, blob, plaintext };
        if dice.permille(400) {
            for other in (0..self.clusters.len()).filter(|other| *other != number) {
                let (this, sample) = (Arc::clone(self), sample.clone());
                drop(self.world.spawn_in(HARNESS, async move { this.open(other, &sample).await }));
            }
        }
        let mut ledger = self.ledger.lock();
        if ledger.samples.len() < SAMPLES_MAX {
            ledger.samples.push(sample);
        } else if dice.permille(200) {
            let at = dice.index(SAMPLES_MAX);
            ledger.samples[at] = sample;
        }
    }

    /// Brings a key of that Region to where it can be used.
    pub(super) async fn bring_back(&self, number: usize, key: KeyId, state: KeyState) {
        let change = match state {
            KeyState::Disabled => Change::SetEnabled(key, true),
            KeyState::PendingDeletion | KeyState::PendingReplicaDeletion => Change::Cancel(key),
            _ => return,
        };
        self.change(number, &change).await;
    }
}

/// A ciphertext that was to be opened.
struct Used<'a> {
    sample: &'a Sample,
    /// The node's state when the call began.
    before: &'a State,
    result: &'a Result<Response, KmsError>,
}

/// Changes things all the time.
pub(super) fn change_things(
    regions: Arc<Regions>,
    mut dice: Dice,
    plan: &RegionsPlan,
    ended: Arc<AtomicBool>,
) -> impl Future<Output = ()> + Send + use<> {
    let pace_ms = plan.pace_ms;
    async move {
        while !ended.load(Ordering::Relaxed) {
            let (number, change) = regions.choose(&mut dice);
            regions.change(number, &change).await;
            sleep(dice.between_ms(pace_ms.0, pace_ms.1)).await;
        }
    }
}

/// Uses keys in one Region all the time.
pub(super) async fn use_things(
    regions: Arc<Regions>,
    mut dice: Dice,
    number: usize,
    ended: Arc<AtomicBool>,
) {
    while !ended.load(Ordering::Relaxed) {
        sleep(dice.between_ms(10, 60)).await;
        let (keys, samples) = {
            let ledger = regions.ledger.lock();
            (ledger.keys.clone(), ledger.samples.len())
        };
        if samples == 0 || dice.permille(500) {
            regions.encrypt(number, dice.pick(&keys), &mut dice).await;
        } else {
            let sample = regions.ledger.lock().samples[dice.index(samples)].clone();
            regions.open(number, &sample).await;
        }
    }
}
