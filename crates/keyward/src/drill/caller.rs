//! Loads: calls in an open loop, every one of them on record.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use keyward_client::{CallError, Client, Repeat};
use keyward_env::{Env, RealEnv};
use keyward_load::{Mix, Operation};
use keyward_proto::v1;
use parking_lot::Mutex;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::definition::LoadSpec;
use super::history::{ANSWERED, CallRecord, NO_ANSWER, mark};
use super::pool::{Pool, Sealed};
use super::stage::{CALL_PATIENCE, Stage};
use crate::error::Failure;

/// A client that has waited as long as it may says why; one that hangs does not.
const MARGIN: Duration = Duration::from_millis(100);
/// Connections of a load.
const CLIENTS: usize = 4;

/// Operations that a load may be made of.
pub const OPERATIONS: [Operation; 3] =
    [Operation::Encrypt, Operation::Decrypt, Operation::GenerateDataKey];

/// What is on record so far.
pub type Records = Arc<Mutex<Vec<CallRecord>>>;

/// Microseconds.
pub fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Microseconds from the beginning.
pub fn since_us(began: Duration) -> u64 {
    micros(RealEnv.boot_now().saturating_sub(began))
}

/// How a call came out.
pub struct Outcome {
    pub ended: String,
    pub subject: u64,
    pub value: u64,
}

impl Outcome {
    fn answered(subject: u64, value: u64) -> Self {
        Self { ended: ANSWERED.to_owned(), subject, value }
    }

    fn failed(error: CallError, subject: u64) -> Self {
        let ended = error.code.unwrap_or_else(|| NO_ANSWER.to_owned());
        Self { ended, subject, value: 0 }
    }
}

/// How a call is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// As the client makes it: on another node where one does not answer, and again when a quota has room.
    Patient,
    /// Once.
    Once,
}

/// Calls in that manner.
macro_rules! ask {
    ($client:expr, $manner:expr, $request:expr, $method:ident) => {
        match $manner {
            Manner::Patient => {
                $client
                    .key(Repeat::Safe, $request, |mut c, r| async move { c.$method(r).await })
                    .await
            }
            Manner::Once => {
                $client.key_once($request, |mut c, r| async move { c.$method(r).await }).await
            }
        }
    };
}

/// Encrypts a plaintext.
pub async fn encrypt(
    client: &Client,
    manner: Manner,
    key: &str,
    plaintext: Vec<u8>,
) -> Result<Vec<u8>, CallError> {
    let request = v1::EncryptRequest { key_id: key.to_owned(), plaintext, ..Default::default() };
    Ok(ask!(client, manner, request, encrypt)?.ciphertext_blob)
}

/// Opens a ciphertext: the mark of its plaintext.
pub async fn open(client: &Client, manner: Manner, sealed: &Sealed) -> Outcome {
    let request = v1::DecryptRequest { ciphertext_blob: sealed.blob.clone(), ..Default::default() };
    match ask!(client, manner, request, decrypt) {
        Ok(opened) => Outcome::answered(sealed.subject, mark(&opened.plaintext)),
        Err(error) => Outcome::failed(error, sealed.subject),
    }
}

/// One load, ready to call.
pub struct Caller {
    source: usize,
    key: String,
    mix: Mix,
    rate: f64,
    retries: u32,
    manner: Manner,
    clients: Vec<Client>,
    pool: Arc<Pool>,
}

impl Caller {
    pub fn new(
        source: usize,
        spec: &LoadSpec,
        rate: f64,
        stage: &Stage,
        pool: Arc<Pool>,
    ) -> Result<Self, Failure> {
        let who = spec.principal.as_ref().map(|who| who.get_ref().as_str());
        let nodes = spec.nodes.as_ref().map(|nodes| nodes.get_ref().as_slice()).unwrap_or_default();
        let client = |_| stage.client(spec.region.get_ref(), who, nodes);
        Ok(Self {
            source,
            key: stage.key(spec.key.get_ref()).to_owned(),
            mix: Mix::parse(spec.mix.get_ref())?,
            rate,
            retries: spec.retries.as_ref().map_or(0, |retries| *retries.get_ref()),
            manner: if spec.retries.is_some() { Manner::Once } else { Manner::Patient },
            clients: (0..CLIENTS).map(client).collect::<Result<_, _>>()?,
            pool,
        })
    }

    /// When calls begin.
    pub fn due(&self, lasts: Duration) -> impl Iterator<Item = Duration> + use<> {
        let rate = self.rate;
        let at = move |number: u32| Duration::from_secs_f64(f64::from(number) / rate);
        (0..).map(at).take_while(move |due| *due < lasts)
    }

    /// Begins calls at their times, come what may.
    pub async fn keep_calling(self: Arc<Self>, began: Duration, lasts: Duration, records: Records) {
        let mut dice = ChaCha8Rng::seed_from_u64(self.source as u64);
        for (number, due) in self.due(lasts).enumerate() {
            RealEnv.sleep((began + due).saturating_sub(RealEnv.boot_now())).await;
            let operation = self.mix.draw(&mut dice);
            let (caller, records) = (Arc::clone(&self), Arc::clone(&records));
            RealEnv
                .spawn(async move { caller.tries(number, operation, began, due, &records).await });
        }
    }

    /// One call, and again at once where it is refused for a quota and the load has it so.
    async fn tries(
        &self,
        number: usize,
        operation: Operation,
        began: Duration,
        due: Duration,
        records: &Records,
    ) {
        let mut meant_us = micros(due);
        for attempt in 0..=self.retries {
            let sent_us = since_us(began);
            let outcome = self.call(number, operation).await;
            let again = outcome.ended == "ThrottlingException" && attempt < self.retries;
            let record = CallRecord {
                source: self.source,
                operation: Cow::Borrowed(operation.aws_name()),
                began_us: meant_us,
                sent_us,
                took_us: since_us(began).saturating_sub(meant_us),
                subject: outcome.subject,
                value: outcome.value,
                ended: outcome.ended,
            };
            meant_us = record.ended_us();
            records.lock().push(record);
            if !again {
                return;
            }
        }
    }

    /// One call, with the patience of an application.
    async fn call(&self, number: usize, operation: Operation) -> Outcome {
        let ended = RealEnv.timeout(CALL_PATIENCE + MARGIN, self.once(number, operation)).await;
        let no_answer = || Outcome { ended: NO_ANSWER.to_owned(), subject: 0, value: 0 };
        ended.unwrap_or_else(no_answer)
    }

    async fn once(&self, number: usize, operation: Operation) -> Outcome {
        let client = &self.clients[number % self.clients.len()];
        let mut dice = ChaCha8Rng::seed_from_u64((self.source as u64) << 40 | number as u64);
        if operation == Operation::Decrypt
            && let Some(sealed) = self.pool.draw(&mut dice)
        {
            return open(client, self.manner, &sealed).await;
        }
        let made = match operation {
            Operation::GenerateDataKey => self.data_key(client).await,
            _ => {
                let plaintext = format!("drill {} {number}", self.source).into_bytes();
                let blob = encrypt(client, self.manner, &self.key, plaintext.clone()).await;
                blob.map(|blob| Sealed::new(blob, &plaintext))
            }
        };
        match made {
            Ok(sealed) => {
                let outcome = Outcome::answered(sealed.subject, sealed.value);
                self.pool.put(sealed, &mut dice);
                outcome
            }
            Err(error) => Outcome::failed(error, 0),
        }
    }

    async fn data_key(&self, client: &Client) -> Result<Sealed, CallError> {
        let request = v1::GenerateDataKeyRequest {
            key_id: self.key.clone(),
            key_spec: Some("AES_256".to_owned()),
            ..Default::default()
        };
        let made = ask!(client, self.manner, request, generate_data_key)?;
        Ok(Sealed::new(made.ciphertext_blob, &made.plaintext))
    }
}
