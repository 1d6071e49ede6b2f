//! Plays a drill: calls in an open loop, steps at their times, all of it on record.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use keyward_client::{CallError, Client, Repeat};
use keyward_env::{Env, RealEnv};
use keyward_load::{Mix, Operation};
use keyward_proto::v1;
use parking_lot::Mutex;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::definition::{Drill, LoadSpec, Step};
use super::history::{ANSWERED, CallRecord, Event, History, NO_ANSWER};
use super::stage::{CALL_PATIENCE, Stage};
use super::verdict::WRONG;
use crate::error::Failure;

const PLAINTEXT: &[u8] = b"what a drill encrypts, 32 bytes.";
/// After the end, calls under way are waited for so long.
const REST: Duration = Duration::from_secs(4);
/// Between tries of a step.
const AGAIN: Duration = Duration::from_millis(250);
/// Connections of a load.
const CLIENTS: usize = 4;
/// What a command said is kept up to so many characters.
const SAID_MAX: usize = 400;

/// Operations that a load may be made of.
pub const OPERATIONS: [Operation; 3] =
    [Operation::Encrypt, Operation::Decrypt, Operation::GenerateDataKey];

/// One load, ready to call.
struct Caller {
    load: usize,
    key: String,
    mix: Mix,
    clients: Vec<Arc<Client>>,
    blob: Vec<u8>,
}

impl Caller {
    async fn new(load: usize, spec: &LoadSpec, stage: &Stage) -> Result<Self, Failure> {
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(Arc::new(stage.client(spec.region.get_ref())?));
        }
        let key = stage.key(spec.key.get_ref()).to_owned();
        let request = encrypt(&key);
        let sealed = clients[0]
            .key(Repeat::Safe, request, |mut c, r| async move { c.encrypt(r).await })
            .await?;
        let mix = Mix::parse(spec.mix.get_ref())?;
        Ok(Self { load, key, mix, clients, blob: sealed.ciphertext_blob })
    }

    /// One call, with the patience of an application. How it ended.
    async fn call(&self, number: usize, operation: Operation) -> String {
        let ended = RealEnv.timeout(CALL_PATIENCE, self.try_to_call(number, operation)).await;
        ended.unwrap_or_else(|| NO_ANSWER.to_owned())
    }

    async fn try_to_call(&self, number: usize, operation: Operation) -> String {
        let client = &self.clients[number % self.clients.len()];
        let ended = match operation {
            Operation::Decrypt => {
                let ciphertext_blob = self.blob.clone();
                let request = v1::DecryptRequest { ciphertext_blob, ..Default::default() };
                let opened =
                    client.key(Repeat::Safe, request, |mut c, r| async move { c.decrypt(r).await });
                match opened.await {
                    Ok(opened) if opened.plaintext != PLAINTEXT => return WRONG.to_owned(),
                    other => other.map(drop),
                }
            }
            Operation::GenerateDataKey => {
                let request = v1::GenerateDataKeyRequest {
                    key_id: self.key.clone(),
                    key_spec: Some("AES_256".to_owned()),
                    ..Default::default()
                };
                let made = client.key(Repeat::Safe, request, |mut c, r| async move {
                    c.generate_data_key(r).await
                });
                made.await.map(drop)
            }
            _ => {
                let request = encrypt(&self.key);
                let sealed =
                    client.key(Repeat::Safe, request, |mut c, r| async move { c.encrypt(r).await });
                sealed.await.map(drop)
            }
        };
        match ended {
            Ok(()) => ANSWERED.to_owned(),
            Err(CallError { code: Some(code), .. }) => code,
            Err(_) => NO_ANSWER.to_owned(),
        }
    }
}

fn encrypt(key: &str) -> v1::EncryptRequest {
    v1::EncryptRequest {
        key_id: key.to_owned(),
        plaintext: PLAINTEXT.to_vec(),
        ..v1::EncryptRequest::default()
    }
}

/// What is on record so far.
type Records = Arc<Mutex<Vec<CallRecord>>>;

fn since_us(began: Duration) -> u64 {
    micros(RealEnv.boot_now().saturating_sub(began))
}

/// Begins calls at their times, come what may.
async fn keep_calling(
    caller: Arc<Caller>,
    due: impl Iterator<Item = Duration> + Send + 'static,
    began: Duration,
    records: Records,
) {
    let mut dice = ChaCha8Rng::seed_from_u64(caller.load as u64);
    for (number, due) in due.enumerate() {
        RealEnv.sleep((began + due).saturating_sub(RealEnv.boot_now())).await;
        let operation = caller.mix.draw(&mut dice);
        let (caller, records) = (Arc::clone(&caller), Arc::clone(&records));
        RealEnv.spawn(async move {
            let ended = caller.call(number, operation).await;
            let began_us = micros(due);
            let took_us = since_us(began).saturating_sub(began_us);
            records.lock().push(CallRecord { load: caller.load, began_us, took_us, ended });
        });
    }
}

async fn take_step(stage: &Stage, step: &Step, began: Duration) -> Event {
    RealEnv.sleep((began + step.at).saturating_sub(RealEnv.boot_now())).await;
    let began_ms = since_us(began) / 1000;
    let end = RealEnv.boot_now() + step.within;
    let said = loop {
        let said = stage.run(&step.region, &step.run).await;
        if said.is_ok() || RealEnv.boot_now() >= end {
            break said;
        }
        RealEnv.sleep(AGAIN).await;
    };
    let (done, text) = match said {
        Ok(text) => (true, text),
        Err(text) => (false, text),
    };
    Event {
        began_ms,
        ended_ms: since_us(began) / 1000,
        region: step.region.clone(),
        command: format!("keyward {}", step.run),
        done,
        said: text.chars().take(SAID_MAX).collect(),
    }
}

/// Plays it, and tells of each second and of each step.
pub async fn play(
    drill: &Drill,
    stage: &Stage,
    mut tell: impl FnMut(String),
) -> Result<History, Failure> {
    let mut callers = Vec::new();
    for (load, spec) in drill.load.iter().enumerate() {
        callers.push(Arc::new(Caller::new(load, spec, stage).await?));
    }
    let lasts = drill.lasts();
    let records = Records::default();
    let began = RealEnv.boot_now();
    for (caller, load) in callers.iter().zip(&drill.load) {
        let due = due(load, lasts);
        RealEnv.spawn(keep_calling(Arc::clone(caller), due, began, Arc::clone(&records)));
    }
    let events = Mutex::new(Vec::new());
    let steps = async {
        for step in drill.steps() {
            let event = take_step(stage, &step, began).await;
            events.lock().push(event);
        }
    };
    let seconds = async {
        let (mut seen, mut told) = (0, 0);
        for second in 1.. {
            let at = Duration::from_secs(second);
            RealEnv.sleep((began + at).saturating_sub(RealEnv.boot_now())).await;
            let new: Vec<CallRecord> = {
                let records = records.lock();
                let new = records[seen..].to_vec();
                seen = records.len();
                new
            };
            let mut lines: Vec<String> = Vec::new();
            for event in events.lock().iter().skip(told) {
                let sign = if event.done { "done" } else { "FAILED" };
                lines.push(format!("       {sign}: {} [{}]", event.command, event.region));
                told += 1;
            }
            lines.push(second_line(drill, second, &new));
            tell(lines.join("\n"));
            if at >= lasts {
                return;
            }
        }
    };
    futures_util::future::join(steps, seconds).await;
    let meant: Vec<(usize, u64)> = (0..drill.load.len())
        .flat_map(|load| due(&drill.load[load], lasts).map(move |due| (load, micros(due))))
        .collect();
    let end = RealEnv.boot_now() + REST;
    while records.lock().len() < meant.len() && RealEnv.boot_now() < end {
        RealEnv.sleep(Duration::from_millis(20)).await;
    }
    let mut calls = std::mem::take(&mut *records.lock());
    // What has not ended until now, or could not be begun, is a call without an answer.
    let ended: BTreeSet<(usize, u64)> =
        calls.iter().map(|call| (call.load, call.began_us)).collect();
    let open = meant.into_iter().filter(|call| !ended.contains(call));
    calls.extend(open.collect::<Vec<_>>().into_iter().map(|(load, began_us)| CallRecord {
        load,
        began_us,
        took_us: since_us(began).saturating_sub(began_us),
        ended: NO_ANSWER.to_owned(),
    }));
    let mut history = History { calls, events: events.into_inner() };
    history.sort();
    Ok(history)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// When a load's calls begin.
fn due(load: &LoadSpec, lasts: Duration) -> impl Iterator<Item = Duration> + use<> {
    let rate = *load.rate.get_ref();
    let at = move |number: u32| Duration::from_secs_f64(f64::from(number) / rate);
    (0..).map(at).take_while(move |due| *due < lasts)
}

fn second_line(drill: &Drill, second: u64, calls: &[CallRecord]) -> String {
    let mut line = format!("{second:4} s");
    for (at, load) in drill.load.iter().enumerate() {
        let of = || calls.iter().filter(|call| call.load == at);
        let answered = of().filter(|call| call.answered()).count();
        line += &format!("  {} {answered}/s", load.name.get_ref());
        let mut kinds = BTreeMap::<&str, u64>::new();
        for call in of().filter(|call| !call.answered()) {
            *kinds.entry(&call.ended).or_default() += 1;
        }
        for (kind, count) in kinds {
            line += &format!(" ({count} {kind})");
        }
    }
    line
}
