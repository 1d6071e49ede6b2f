//! Callers of the Region: they change keys through whichever node is up and retry as real callers do, and
//! they use keys on every node all the time.

mod send;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use keyward_model::{ErrorCode, KmsError};
use keyward_service::api::{
    CancelKeyDeletion, CreateAlias, CreateKey, Decrypt, DeleteAlias, DescribeKey, DisableKey,
    EnableKey, Encrypt, RotateKeyOnDemand, ScheduleKeyDeletion, Secret, UpdateAlias,
    UpdateKeyDescription,
};
use keyward_service::{Call, Caller, Request, Response};
use parking_lot::Mutex;

use crate::book::{
    Acknowledged, Begun, Book, Change, KeyView, Sample, SharedBook, Told, alias_name,
};
use crate::chase::chase;
use crate::cluster::{Cluster, Running, client, expired_client};
use crate::dice::Dice;
use crate::faults::{Fault, FaultKind, Schedule};
use crate::invariants::{Began, Invariants, Seen};
use crate::runtime::{HARNESS, JoinHandle};
use crate::streams::Streams;
use keyward_check::Step;
use send::Waiting;

/// Ciphertexts kept for the end of a run.
const SAMPLES_MAX: usize = 240;
/// One in this many ciphertexts is kept.
const SAMPLE_ONE_IN: u64 = 8;
/// How often a change is tried.
const TRIES_MAX: usize = 5;
/// The waiting period of every deletion: the shortest that there is.
pub const WINDOW_DAYS: i32 = 7;
/// A call that took longer than this had to wait for something.
const HELD: Duration = Duration::from_millis(1);

/// What all callers share.
pub struct Callers {
    /// The Region.
    pub cluster: Arc<Cluster>,
    /// What they know.
    pub book: SharedBook,
    /// Set once nothing may break any more.
    pub healed: AtomicBool,
    /// What goes wrong.
    pub schedule: Schedule,
    /// What is looked at all the time.
    pub invariants: Invariants,
    caller: Arc<Caller>,
    /// With a certificate that is over.
    expired: Arc<Caller>,
    dice: Mutex<Dice>,
    /// The streams that their calls go over, if they use any.
    pub streams: Streams,
    /// Calls that wait for their answers.
    waiting: Mutex<Waiting>,
}

/// A use of a key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Use {
    Encrypt(usize),
    DryRun(usize),
    /// Of a ciphertext that was kept.
    Decrypt(usize),
    /// Of one made right after a rotation.
    DecryptChased(usize),
    Describe(usize),
    Alias(usize),
    /// By a caller whose certificate is over.
    Expired(usize),
}

/// A use that is under way.
#[derive(Debug)]
struct Used {
    usage: Use,
    key: Option<usize>,
    rooted: Began,
    began: Step,
    at: Duration,
}

fn context() -> BTreeMap<String, String> {
    BTreeMap::from([("purpose".to_owned(), "simulation".to_owned())])
}

fn code_number(error: &KmsError) -> u64 {
    error.code.name().len() as u64
}

impl Callers {
    /// Callers of that Region, with `aliases` names to play with. `streams`: their calls that use keys go over some.
    #[must_use]
    pub fn new(
        cluster: Arc<Cluster>,
        schedule: Schedule,
        dice: Dice,
        aliases: usize,
        streams: bool,
    ) -> Arc<Self> {
        let mut book = Book::default();
        book.aliases.resize_with(aliases, || keyward_check::History::new(None));
        Arc::new(Self {
            cluster,
            book: Mutex::new(book),
            healed: AtomicBool::new(false),
            schedule,
            invariants: Invariants::default(),
            caller: client(),
            expired: expired_client(),
            dice: Mutex::new(dice),
            streams: Streams::new(streams),
            waiting: Mutex::default(),
        })
    }

    /// Takes note of something that goes wrong now.
    pub fn tell(&self, kind: FaultKind, what: impl FnOnce() -> String) {
        let at = self.cluster.world.now();
        self.schedule.tell(Fault { at, kind, what: what() });
    }

    /// Draws from the callers' own stream.
    pub fn throw<T>(&self, throw: impl FnOnce(&mut Dice) -> T) -> T {
        throw(&mut self.dice.lock())
    }

    // --- Changes.

    fn request(&self, change: &Change) -> Request {
        let book = self.book.lock();
        let id = |key: &usize| book.keys[*key].id.clone();
        match change {
            Change::Create => CreateKey::default().into(),
            Change::SetEnabled(key, true) => EnableKey { key_id: id(key) }.into(),
            Change::SetEnabled(key, false) => DisableKey { key_id: id(key) }.into(),
            Change::Describe(key, text) => {
                UpdateKeyDescription { key_id: id(key), description: text.clone() }.into()
            }
            Change::Rotate(key) => RotateKeyOnDemand { key_id: id(key) }.into(),
            Change::Schedule(key) => {
                let pending_window_in_days = Some(WINDOW_DAYS);
                ScheduleKeyDeletion { key_id: id(key), pending_window_in_days }.into()
            }
            Change::Cancel(key) => CancelKeyDeletion { key_id: id(key) }.into(),
            Change::CreateAlias(alias, key) => {
                CreateAlias { alias_name: alias_name(*alias), target_key_id: id(key) }.into()
            }
            Change::UpdateAlias(alias, key) => {
                UpdateAlias { alias_name: alias_name(*alias), target_key_id: id(key) }.into()
            }
            Change::DeleteAlias(alias) => DeleteAlias { alias_name: alias_name(*alias) }.into(),
        }
    }

    /// One try of a change, on that node. Everything is noted where and when it happens: in the node's own
    /// task.
    pub async fn try_change(
        self: &Arc<Self>,
        (index, running): (usize, Running),
        change: &Change,
        patience: Duration,
    ) -> Told {
        let (this, change) = (Arc::clone(self), change.clone());
        let told = self.cluster.world.spawn_in(running.group, async move {
            let request = this.request(&change);
            let begun = this.book.lock().begin(change.clone(), this.cluster.world.step());
            let rooted = Began::now(&this.cluster, index, &running);
            let call = this.call(request, patience);
            let (callers, on) = (Arc::clone(&this), running.clone());
            let note = move |result| callers.tried((index, &on), &change, &begun, rooted, result);
            this.send((index, &running), call, note).await
        });
        // Cut off: the process died.
        told.await.ok().flatten().unwrap_or(Told::Unknown)
    }

    fn tried(
        &self,
        (index, running): (usize, &Running),
        change: &Change,
        begun: &Begun,
        rooted: Began,
        result: Result<Response, KmsError>,
    ) -> Told {
        let world = &self.cluster.world;
        let result = result.map(|response| match response {
            Response::Key(metadata) => Acknowledged::Created(metadata.key_id),
            Response::DeletionScheduled { deletion_date, .. } => {
                deletion_date.map_or(Acknowledged::Done, |date| Acknowledged::Date(date.0))
            }
            _ => Acknowledged::Done,
        });
        self.look_for_the_gone(result.as_ref().err());
        let who = format!("node {} ({change:?})", running.kms.node().id());
        let rootless = self.lacks_a_root(index, running, result.as_ref().err(), rooted, &who);
        let told = self.book.lock().end(begun, &result, world.step(), rootless);
        world.note(match &result {
            Ok(_) => 1,
            Err(error) => code_number(error) << 8,
        });
        told
    }

    /// A change, tried again on other nodes as a real caller would. True once it was acknowledged.
    pub async fn change(self: &Arc<Self>, change: Change) -> bool {
        if let Change::Rotate(key) = &change {
            let chase = chase(Arc::clone(self), *key);
            drop(self.cluster.world.spawn_in(HARNESS, chase));
        }
        let repeatable =
            matches!(change, Change::SetEnabled(..) | Change::Describe(..) | Change::Cancel(_));
        for _ in 0..TRIES_MAX {
            let index = self.throw(|dice| dice.pick(&self.cluster.members()));
            let Some(running) = self.cluster.running(index) else {
                crate::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let patience = Duration::from_millis(self.throw(|dice| dice.pick(&[1000, 2000, 5000])));
            match self.try_change((index, running), &change, patience).await {
                Told::Done => {
                    self.probe(&change);
                    return true;
                }
                Told::Refused => return false,
                Told::Unknown if !repeatable || self.throw(|dice| dice.permille(300)) => {
                    return false;
                }
                Told::Unknown | Told::TryAgain => crate::sleep(Duration::from_millis(30)).await,
            }
        }
        false
    }

    /// A change through that node. True once it was acknowledged.
    pub async fn change_through(
        self: &Arc<Self>,
        through: (usize, Running),
        change: &Change,
        patience: Duration,
    ) -> bool {
        let done = self.try_change(through, change, patience).await == Told::Done;
        if done {
            self.probe(change);
        }
        done
    }

    /// The first calls after an acknowledgement, on every node.
    fn probe(self: &Arc<Self>, change: &Change) {
        let usage = match change {
            Change::SetEnabled(key, _)
            | Change::Rotate(key)
            | Change::Schedule(key)
            | Change::Cancel(key) => Use::Encrypt(*key),
            Change::Describe(key, _) => Use::Describe(*key),
            Change::Create => Use::Encrypt(self.book.lock().keys.len() - 1),
            Change::CreateAlias(alias, _)
            | Change::UpdateAlias(alias, _)
            | Change::DeleteAlias(alias) => Use::Alias(*alias),
        };
        for index in self.cluster.machines() {
            if let Some(running) = self.cluster.running(index) {
                drop(self.spawn_use(index, running, usage));
            }
        }
    }

    // --- Uses.

    /// One use of some key on node `index`, if it is up.
    pub fn use_something(self: &Arc<Self>, index: usize) {
        let Some(running) = self.cluster.running(index) else { return };
        let (keys, aliases, samples) = {
            let book = self.book.lock();
            (book.keys.len(), book.aliases.len(), book.samples.len())
        };
        if keys == 0 {
            return;
        }
        let usage = self.throw(|dice| {
            // Young keys more often: they are the ones that change.
            let young = keys.saturating_sub(6);
            let key = if dice.permille(800) {
                young + dice.index(keys - young)
            } else {
                dice.index(keys)
            };
            match dice.below(100) {
                0..=34 => Use::Encrypt(key),
                35..=49 => Use::DryRun(key),
                50..=64 => Use::Describe(key),
                65..=71 => Use::Alias(dice.index(aliases)),
                72..=74 => Use::Expired(key),
                _ if samples > 0 => Use::Decrypt(dice.index(samples)),
                _ => Use::Encrypt(key),
            }
        });
        drop(self.spawn_use(index, running, usage));
    }

    fn spawn_use(self: &Arc<Self>, index: usize, running: Running, usage: Use) -> JoinHandle<()> {
        let this = Arc::clone(self);
        self.cluster.world.spawn_in(running.group, async move {
            let plaintext = this.throw(|dice| dice.word().to_le_bytes().to_vec());
            let patience = Duration::from_millis(this.throw(|dice| dice.pick(&[200, 1000, 4000])));
            let blob = this.use_key((index, &running), usage, &plaintext, patience).await;
            if let (Use::Encrypt(key), Some(blob)) = (usage, blob) {
                this.keep(Sample { key, blob, plaintext });
            }
        })
    }

    /// One use on that node, in whose own task this runs, and whether its answer is one that may be given. Returns the
    /// ciphertext, if there is one.
    pub(crate) async fn use_key(
        self: &Arc<Self>,
        (index, running): (usize, &Running),
        usage: Use,
        plaintext: &[u8],
        patience: Duration,
    ) -> Option<Vec<u8>> {
        let (request, key) = self.use_request(usage, plaintext);
        if matches!(usage, Use::Encrypt(_) | Use::DryRun(_)) {
            self.book.lock().texts.plaintexts.push(plaintext.to_vec());
        }
        let world = &self.cluster.world;
        let rooted = Began::now(&self.cluster, index, running);
        let used = Used { usage, key, rooted, began: world.step(), at: world.now() };
        let expired = matches!(usage, Use::Expired(_));
        let caller = if expired { &self.expired } else { &self.caller };
        let call = Call::new(Arc::clone(caller), request, patience);
        let (this, on) = (Arc::clone(self), running.clone());
        let note = move |result| this.used((index, &on), &used, result);
        self.send((index, running), call, note).await.flatten()
    }

    fn used(
        &self,
        (index, running): (usize, &Running),
        used: &Used,
        result: Result<Response, KmsError>,
    ) -> Option<Vec<u8>> {
        let world = &self.cluster.world;
        let (ended, held) = (world.step(), world.now() > used.at + HELD);
        world.note(match &result {
            Ok(_) => 2,
            Err(error) => code_number(error) << 8 | 1,
        });
        let who = format!("node {} ({:?})", self.cluster.id(index), used.usage);
        if self.lacks_a_root(index, running, result.as_ref().err(), used.rooted, &who) {
            self.book.lock().counters.unserved += 1;
            return None;
        }
        let node = Some(running.kms.node().id());
        let seen = Seen { began: used.began, ended, node, who };
        self.check_use(used, &result, held, &seen);
        match result {
            Ok(Response::Encrypted { ciphertext_blob, .. }) => Some(ciphertext_blob),
            _ => None,
        }
    }

    fn use_request(&self, usage: Use, plaintext: &[u8]) -> (Request, Option<usize>) {
        let book = self.book.lock();
        match usage {
            Use::Encrypt(key) | Use::DryRun(key) => {
                let request = Encrypt {
                    key_id: book.keys[key].id.clone(),
                    plaintext: Secret::new(plaintext.to_vec()),
                    encryption_context: context(),
                    encryption_algorithm: None,
                    dry_run: matches!(usage, Use::DryRun(_)),
                };
                (request.into(), Some(key))
            }
            Use::Decrypt(number) => {
                let sample = &book.samples[number];
                (decrypt(sample).into(), Some(sample.key))
            }
            Use::DecryptChased(number) => {
                let sample = &book.chased[number];
                (decrypt(sample).into(), Some(sample.key))
            }
            Use::Describe(key) | Use::Expired(key) => {
                (DescribeKey { key_id: book.keys[key].id.clone() }.into(), Some(key))
            }
            Use::Alias(alias) => (DescribeKey { key_id: alias_name(alias) }.into(), None),
        }
    }

    fn check_use(&self, used: &Used, result: &Result<Response, KmsError>, held: bool, seen: &Seen) {
        let (who, usage, key) = (&seen.who, used.usage, used.key);
        self.look_for_the_gone(result.as_ref().err());
        let mut book = self.book.lock();
        match result {
            Err(error) if error.code == ErrorCode::DependencyTimeoutException => {
                book.counters.unserved += 1;
                return;
            }
            _ => book.counters.calls += 1,
        }
        book.counters.held += u64::from(held);
        if let Use::Expired(_) = usage {
            match result {
                Err(error) if error.code == ErrorCode::UnrecognizedClientException => {
                    book.counters.expired_refused += 1;
                }
                other => book.violate(format!("AN EXPIRED CALLER WAS LET IN by {who}: {other:?}")),
            }
            return;
        }
        let view = match result {
            Ok(Response::Key(metadata)) => {
                if let Use::Alias(alias) = usage {
                    return book.read_alias(alias, Some(&metadata.key_id), seen);
                }
                if let Some(key) = key {
                    book.read_description(key, &metadata.description, seen);
                }
                KeyView::from(metadata.state)
            }
            Ok(Response::Decrypted { plaintext, .. }) => {
                let sample = match usage {
                    Use::Decrypt(number) => book.samples.get(number),
                    Use::DecryptChased(number) => book.chased.get(number),
                    _ => None,
                };
                if sample.is_some_and(|sample| sample.plaintext != plaintext.bytes()) {
                    book.violate(format!("WRONG PLAINTEXT of a ciphertext through {who}"));
                }
                KeyView::Enabled
            }
            Ok(_) => KeyView::Enabled,
            Err(error) => match error.code {
                ErrorCode::DryRunOperationException => KeyView::Enabled,
                ErrorCode::DisabledException => KeyView::Disabled,
                ErrorCode::KMSInvalidStateException => KeyView::Pending,
                ErrorCode::NotFoundException => match usage {
                    Use::Alias(alias) => return book.read_alias(alias, None, seen),
                    _ => KeyView::Absent,
                },
                // A ciphertext does not tell whether its key is none of the caller's or gone.
                ErrorCode::AccessDeniedException
                    if matches!(usage, Use::Decrypt(_) | Use::DecryptChased(_)) =>
                {
                    KeyView::Absent
                }
                _ => return book.violate(format!("AN UNEXPECTED ERROR through {who}: {error:?}")),
            },
        };
        if let Some(key) = key {
            book.read_state(key, view, seen);
        }
    }

    /// The Region deletes keys by itself. A caller who is told so may know before we have looked.
    pub fn look_for_the_gone(&self, error: Option<&KmsError>) {
        let absent = [ErrorCode::NotFoundException, ErrorCode::AccessDeniedException];
        if error.is_some_and(|error| absent.contains(&error.code)) {
            self.invariants.look_for_the_gone(&self.cluster, &mut self.book.lock());
        }
    }

    /// Whether a call was refused for want of a root, or of a domain key for one, where that may be: on a node
    /// that is on its way in, or whose roots have been away.
    fn lacks_a_root(
        &self,
        index: usize,
        running: &Running,
        error: Option<&KmsError>,
        began: Began,
        who: &str,
    ) -> bool {
        if error.is_none_or(|error| error.code != ErrorCode::KeyUnavailableException) {
            return false;
        }
        let node = running.kms.node();
        let votes = node.members().iter().any(|member| member.node == node.id() && member.voter);
        let fits = began.may_refuse(&self.cluster, index);
        let mut book = self.book.lock();
        match fits {
            Err(why) if votes => {
                book.violate(format!("REFUSED FOR WANT OF A ROOT by {who}: {why}: {error:?}"));
            }
            _ => book.counters.root_refused += 1,
        }
        true
    }

    fn keep(&self, sample: Sample) {
        let wanted = self.throw(|dice| dice.below(SAMPLE_ONE_IN) == 0);
        let mut book = self.book.lock();
        if wanted && book.samples.len() < SAMPLES_MAX {
            book.samples.push(sample);
        }
    }
}

/// The request that opens a sample.
#[must_use]
pub fn decrypt(sample: &Sample) -> Decrypt {
    Decrypt {
        ciphertext_blob: sample.blob.clone(),
        encryption_context: context(),
        key_id: None,
        encryption_algorithm: None,
        dry_run: false,
    }
}
