//! What a load calls: connections of principals, keys, plaintexts, and ciphertexts made before it begins.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use keyward_client::{CallError, Client, DataPlane, Repeat};
use keyward_env::{AsyncRuntime, Env, RealEnv};
use keyward_proto::v1;
use keyward_proto::v1::stream_request::Call;
use keyward_proto::v1::stream_response::Answer;
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::mix::{Mix, Operation, Sizes};
use crate::run::Workload;

/// Ciphertexts made side by side before a load begins.
const PREPARERS: usize = 32;
/// Nodes that are tried for a first call.
const TRIES: usize = 5;
const RANDOM_BYTES: i32 = 32;
const DATA_KEY_SPEC: &str = "AES_256";

/// One connection of one principal.
pub struct Lane {
    client: Arc<Client>,
    stream: Option<DataPlane>,
}

impl Lane {
    /// Calls over `client`, each on its own or all on one stream.
    #[must_use]
    pub fn new(client: Arc<Client>, streamed: bool) -> Self {
        let stream = streamed.then(|| DataPlane::new(Arc::clone(&client)));
        Self { client, stream }
    }
}

struct Key {
    id: String,
    /// One for each size, where a load opens ciphertexts.
    blobs: Vec<Vec<u8>>,
}

/// What a load calls.
pub struct Target {
    lanes: Vec<Lane>,
    keys: Vec<Key>,
    mix: Mix,
    sizes: Sizes,
    plaintexts: Vec<Vec<u8>>,
    /// Keys that the load made.
    created: Mutex<Vec<String>>,
}

/// One call, before it is made.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// What is called.
    pub operation: Operation,
    /// On which connection.
    pub lane: usize,
    /// With which key.
    pub key: usize,
    /// With which of the plaintexts' sizes.
    pub size: usize,
}

/// How far [`prepare`] is.
pub struct Prepared {
    /// Ciphertexts that are made.
    pub done: usize,
    /// Ciphertexts in all.
    pub all: usize,
}

/// Makes what the mix needs, and tells how far it is about once a tenth of a second.
///
/// # Errors
/// The refusal of a call that was made for it.
pub async fn prepare(
    lanes: Vec<Lane>,
    keys: Vec<String>,
    mix: Mix,
    sizes: Sizes,
    mut tell: impl FnMut(Prepared),
) -> Result<Arc<Target>, CallError> {
    let mut dice = ChaCha8Rng::seed_from_u64(0);
    let plaintexts: Vec<Vec<u8>> =
        sizes.all().iter().map(|size| (0..*size).map(|_| dice.random()).collect()).collect();
    let opens = mix.operations().any(Operation::opens);
    let keys = keys.into_iter().map(|id| Key { id, blobs: Vec::new() }).collect();
    let mut target =
        Target { lanes, keys, mix, sizes, plaintexts, created: Mutex::new(Vec::new()) };
    if !opens {
        return Ok(Arc::new(target));
    }
    let shared = Arc::new(target);
    let (done, all) = (Arc::new(AtomicUsize::new(0)), shared.keys.len());
    let makers: Vec<_> = (0..PREPARERS.min(all))
        .map(|maker| {
            let (shared, done) = (Arc::clone(&shared), Arc::clone(&done));
            <RealEnv as Env>::Runtime::spawn(async move {
                let mut made = Vec::new();
                for key in (maker..shared.keys.len()).step_by(PREPARERS.min(shared.keys.len())) {
                    made.push((key, shared.blobs_of(key).await?));
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<_, CallError>(made)
            })
        })
        .collect();
    while makers.iter().any(|maker| !maker.is_finished()) {
        tell(Prepared { done: done.load(Ordering::Relaxed), all });
        RealEnv.sleep(std::time::Duration::from_millis(100)).await;
    }
    let mut blobs = Vec::new();
    for maker in makers {
        blobs.extend(maker.await.expect("preparing does not panic")?);
    }
    target = Arc::into_inner(shared).expect("who prepared it is done");
    for (key, made) in blobs {
        target.keys[key].blobs = made;
    }
    Ok(Arc::new(target))
}

fn wrong_answer(what: &str) -> CallError {
    CallError {
        code: None,
        message: format!("a wrong answer: {what}"),
        retryable: false,
        outcome_unknown: false,
        throttle: None,
    }
}

/// Makes a call on its own, or on the lane's stream.
macro_rules! once {
    ($lane:expr, $operation:ident, $method:ident, $request:expr) => {
        match &$lane.stream {
            Some(stream) => match stream.once(Call::$operation($request)).await? {
                Answer::$operation(answer) => Ok::<_, CallError>(answer),
                _ => Err(wrong_answer("one of another operation")),
            },
            None => {
                let call =
                    $lane.client.key_once($request, |mut c, r| async move { c.$method(r).await });
                call.await
            }
        }
    };
}

impl Workload for Target {
    fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// The next call: over the connections in turn, all else by weight.
    fn draw(&self, number: u64, dice: &mut ChaCha8Rng) -> Job {
        let lane = usize::try_from(number).unwrap_or(0) % self.lanes.len();
        let operation = self.mix.draw(dice);
        let size = self.sizes.draw(dice);
        let key = if self.keys.len() > 1 { dice.random_range(0..self.keys.len()) } else { 0 };
        Job { operation, lane, key, size }
    }

    async fn call(&self, job: Job) -> Result<(), CallError> {
        let lane = &self.lanes[job.lane];
        let key_id = || self.keys[job.key].id.clone();
        let blob = || self.keys[job.key].blobs[job.size].clone();
        match job.operation {
            Operation::Encrypt => {
                let plaintext = self.plaintexts[job.size].clone();
                let request =
                    v1::EncryptRequest { key_id: key_id(), plaintext, ..Default::default() };
                once!(lane, Encrypt, encrypt, request).map(drop)
            }
            Operation::Decrypt => {
                let request = v1::DecryptRequest { ciphertext_blob: blob(), ..Default::default() };
                let answer = once!(lane, Decrypt, decrypt, request)?;
                match answer.plaintext == self.plaintexts[job.size] {
                    true => Ok(()),
                    false => Err(wrong_answer("Decrypt gave another plaintext than was encrypted")),
                }
            }
            Operation::ReEncrypt => {
                let next = &self.keys[(job.key + 1) % self.keys.len()];
                let request = v1::ReEncryptRequest {
                    ciphertext_blob: blob(),
                    destination_key_id: next.id.clone(),
                    ..Default::default()
                };
                once!(lane, ReEncrypt, re_encrypt, request).map(drop)
            }
            Operation::GenerateDataKey => {
                let key_spec = Some(DATA_KEY_SPEC.to_owned());
                let request =
                    v1::GenerateDataKeyRequest { key_id: key_id(), key_spec, ..Default::default() };
                once!(lane, GenerateDataKey, generate_data_key, request).map(drop)
            }
            Operation::GenerateDataKeyWithoutPlaintext => {
                let key_spec = Some(DATA_KEY_SPEC.to_owned());
                let request = v1::GenerateDataKeyWithoutPlaintextRequest {
                    key_id: key_id(),
                    key_spec,
                    ..Default::default()
                };
                once!(
                    lane,
                    GenerateDataKeyWithoutPlaintext,
                    generate_data_key_without_plaintext,
                    request
                )
                .map(drop)
            }
            Operation::GenerateRandom => {
                let request = v1::GenerateRandomRequest { number_of_bytes: Some(RANDOM_BYTES) };
                once!(lane, GenerateRandom, generate_random, request).map(drop)
            }
            Operation::DescribeKey | Operation::UpdateKeyDescription | Operation::CreateKey => {
                self.control(job, lane, key_id()).await
            }
        }
    }
}

impl Target {
    /// Ciphertexts of a key, one for each size.
    async fn blobs_of(&self, key: usize) -> Result<Vec<Vec<u8>>, CallError> {
        let lane = &self.lanes[key % self.lanes.len()];
        let mut blobs = Vec::with_capacity(self.plaintexts.len());
        for plaintext in &self.plaintexts {
            let request = v1::EncryptRequest {
                key_id: self.keys[key].id.clone(),
                plaintext: plaintext.clone(),
                ..v1::EncryptRequest::default()
            };
            let call = lane
                .client
                .key(Repeat::Safe, request, |mut c, r| async move { c.encrypt(r).await });
            blobs.push(call.await?.ciphertext_blob);
        }
        Ok(blobs)
    }

    /// The keys that the load has made so far.
    #[must_use]
    pub fn created(&self) -> Vec<String> {
        self.created.lock().clone()
    }

    /// One call of a kind, on nodes in turn where some are away.
    ///
    /// # Errors
    /// What it was refused with.
    pub async fn try_once(&self, operation: Operation) -> Result<(), CallError> {
        let mut last = Ok(());
        for _ in 0..TRIES {
            last = self.call(Job { operation, lane: 0, key: 0, size: 0 }).await;
            match &last {
                Err(error) if error.code.is_none() || error.retryable => {}
                _ => break,
            }
        }
        last
    }

    async fn control(&self, job: Job, lane: &Lane, key_id: String) -> Result<(), CallError> {
        let client = &lane.client;
        match job.operation {
            Operation::UpdateKeyDescription => {
                let description = format!("{DESCRIPTION}, changed {}", RealEnv.wall_now_ms());
                let request = v1::UpdateKeyDescriptionRequest { key_id, description };
                let call = client
                    .key_once(request, |mut c, r| async move { c.update_key_description(r).await });
                call.await.map(drop)
            }
            Operation::CreateKey => {
                let id = create_key(client, false).await?;
                self.created.lock().push(id);
                Ok(())
            }
            _ => {
                let request = v1::DescribeKeyRequest { key_id };
                let call =
                    client.key_once(request, |mut c, r| async move { c.describe_key(r).await });
                call.await.map(drop)
            }
        }
    }
}

/// What keys of a load are called.
const DESCRIPTION: &str = "made by a load";

/// Makes a key for a load; with `patient`, again until a quota allows it.
///
/// # Errors
/// The refusal.
pub async fn create_key(client: &Client, patient: bool) -> Result<String, CallError> {
    let request = v1::CreateKeyRequest {
        description: Some(DESCRIPTION.to_owned()),
        ..v1::CreateKeyRequest::default()
    };
    let created = if patient {
        client.key(Repeat::IfUnsent, request, |mut c, r| async move { c.create_key(r).await }).await
    } else {
        client.key_once(request, |mut c, r| async move { c.create_key(r).await }).await
    };
    Ok(created?.key_metadata.unwrap_or_default().key_id)
}
