//! What is there in the end: faults are healed where they are the drill's, and every Region is asked for what it was given.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use keyward_client::Client;
use keyward_env::{Env, RealEnv};

use super::caller::{Manner, Records, encrypt, micros, open, since_us};
use super::changes::shown;
use super::definition::Action;
use super::history::{ANSWERED, CallRecord, Kind, NO_ANSWER, Source};
use super::pool::{Pool, Sealed};
use super::stage::Stage;
use crate::error::Failure;

/// Ciphertexts of a key that each Region is asked to open.
const SAMPLES: usize = 24;
/// Asked at once.
const AT_ONCE: usize = 8;
/// A Region may take so long to be back after its faults were healed.
const BACK_WITHIN: Duration = Duration::from_secs(25);
/// Between tries.
const AGAIN: Duration = Duration::from_millis(250);

/// Ciphertexts of each key, by its name.
pub type Pools = BTreeMap<String, Arc<Pool>>;

/// Asks for everything. `began`: the drill.
pub async fn look(
    stage: &Stage,
    sources: &[Source],
    pools: &Pools,
    began: Duration,
    records: &Records,
) -> Result<(), Failure> {
    let Some(first) = stage.places.first() else { return Ok(()) };
    if stage.dev.is_some() {
        stage.act(&first.region, &Action::Run("dev fault heal".to_owned())).await;
    }
    let end = RealEnv.boot_now() + BACK_WITHIN;
    let ends = sources.iter().enumerate().filter(|(_, source)| source.kind == Kind::End);
    let asked = ends.map(async |(number, source)| {
        let client = stage.client(&source.region, None, &[])?;
        let changed = sources.iter().any(|s| s.kind == Kind::Changes && s.key == source.key);
        let ask = Ask { source: number, client: &client, began, end, records };
        ask.ciphertexts(pools.get(&source.key)).await;
        if changed {
            ask.period(stage.key(&source.key)).await;
        }
        Ok::<(), Failure>(())
    });
    futures_util::future::join_all(asked).await.into_iter().collect()
}

/// Asks one Region about one key.
struct Ask<'a> {
    source: usize,
    client: &'a Client,
    began: Duration,
    end: Duration,
    records: &'a Records,
}

impl Ask<'_> {
    fn record(
        &self,
        operation: &'static str,
        sent_us: u64,
        (subject, value): (u64, u64),
        ended: String,
    ) {
        self.records.lock().push(CallRecord {
            source: self.source,
            operation: Cow::Borrowed(operation),
            began_us: sent_us,
            sent_us,
            took_us: since_us(self.began).saturating_sub(sent_us),
            subject,
            value,
            ended,
        });
    }

    async fn ciphertexts(&self, pool: Option<&Arc<Pool>>) {
        let samples = pool.map(|pool| pool.some(SAMPLES)).unwrap_or_default();
        let asked = futures_util::stream::iter(samples).map(|sealed| self.ciphertext(sealed));
        asked.buffer_unordered(AT_ONCE).collect::<()>().await;
    }

    /// Until there is an answer that will not change by waiting.
    async fn ciphertext(&self, sealed: Sealed) {
        loop {
            let sent_us = since_us(self.began);
            let outcome = open(self.client, Manner::Patient, &sealed).await;
            let passing = matches!(
                outcome.ended.as_str(),
                NO_ANSWER
                    | "DependencyTimeoutException"
                    | "KeyUnavailableException"
                    | "ThrottlingException"
                    | "InvalidCiphertextException"
                    | "KMSInternalException"
            );
            if !passing || RealEnv.boot_now() >= self.end {
                return self.record(
                    "Decrypt",
                    sent_us,
                    (sealed.subject, outcome.value),
                    outcome.ended,
                );
            }
            RealEnv.sleep(AGAIN).await;
        }
    }

    /// The rotation period, once it does not change any more.
    async fn period(&self, key: &str) {
        let mut before = None;
        loop {
            let sent_us = since_us(self.began);
            let asked = shown(self.client, key).await;
            let late = RealEnv.boot_now() >= self.end;
            match asked {
                Ok(days) if before == Some(days) || late => {
                    return self.record(
                        "GetKeyRotationStatus",
                        sent_us,
                        (0, days),
                        ANSWERED.to_owned(),
                    );
                }
                Ok(days) => before = Some(days),
                Err(error) if late => {
                    let ended = error.code.unwrap_or_else(|| NO_ANSWER.to_owned());
                    return self.record("GetKeyRotationStatus", sent_us, (0, 0), ended);
                }
                Err(_) => {}
            }
            RealEnv.sleep(AGAIN * 4).await;
        }
    }
}

/// Makes one ciphertext of each key, which every load may open from its first call on.
pub async fn before(
    stage: &Stage,
    sources: &[Source],
    pools: &Pools,
    records: &Records,
) -> Result<(), Failure> {
    use rand::SeedableRng;
    let mut dice = rand_chacha::ChaCha8Rng::seed_from_u64(0);
    for (number, source) in sources.iter().enumerate().filter(|(_, s)| s.kind == Kind::Before) {
        let client = stage.client(&source.region, None, &[])?;
        let plaintext = format!("drill {number} before").into_bytes();
        let (key, sent) = (stage.key(&source.key), RealEnv.boot_now());
        let blob = encrypt(&client, Manner::Patient, key, plaintext.clone()).await?;
        let sealed = Sealed::new(blob, &plaintext);
        records.lock().push(CallRecord {
            source: number,
            operation: Cow::Borrowed("Encrypt"),
            began_us: 0,
            sent_us: 0,
            took_us: micros(RealEnv.boot_now().saturating_sub(sent)),
            subject: sealed.subject,
            value: sealed.value,
            ended: ANSWERED.to_owned(),
        });
        if let Some(pool) = pools.get(&source.key) {
            pool.put(sealed, &mut dice);
        }
    }
    Ok(())
}
