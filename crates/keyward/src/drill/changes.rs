//! Changes that are made again and again: which of those that were acknowledged are there after a disaster? What is
//! changed is how often a key rotates, which is all its Regions'. Each change sets a longer period than the one before,
//! so that what is there in the end tells up to which change nothing is lost.

use std::borrow::Cow;
use std::time::Duration;

use keyward_client::{CallError, Client, Repeat};
use keyward_env::{Env, RealEnv};
use keyward_proto::v1;

use super::caller::{Records, micros, since_us};
use super::definition::{ChangesSpec, time};
use super::history::{ANSWERED, CallRecord, NO_ANSWER, UNKNOWN};
use super::stage::{CALL_PATIENCE, Stage};
use crate::error::Failure;

/// Periods, in days, as AWS has them.
const DAYS: std::ops::RangeInclusive<i32> = 90..=2560;
/// So many changes can be told apart.
pub const CHANGES_MAX: u32 = 2400;
/// AWS's name of the operation.
pub const OPERATION: &str = "EnableKeyRotation";

/// Somebody who changes a key's rotation period.
pub struct Changer {
    source: usize,
    key: String,
    rate: f64,
    until: Option<Duration>,
    client: Client,
}

impl Changer {
    pub fn new(source: usize, spec: &ChangesSpec, stage: &Stage) -> Result<Self, Failure> {
        Ok(Self {
            source,
            key: stage.key(spec.key.get_ref()).to_owned(),
            rate: *spec.rate.get_ref(),
            until: spec.until.as_ref().map(time),
            client: stage.client(spec.region.get_ref(), None, &[])?,
        })
    }

    /// Makes changes, one after the other, while calls go on (`lasts`) or until its own time.
    pub async fn keep_changing(self, began: Duration, lasts: Duration, records: Records) {
        let lasts = self.until.unwrap_or(lasts);
        for (number, days) in (0_u32..).zip(DAYS) {
            let due = Duration::from_secs_f64(f64::from(number) / self.rate);
            let due = due.max(RealEnv.boot_now().saturating_sub(began));
            if due >= lasts {
                return;
            }
            RealEnv.sleep((began + due).saturating_sub(RealEnv.boot_now())).await;
            let began_us = micros(due);
            let sent_us = since_us(began);
            let ended = self.change(days).await;
            records.lock().push(CallRecord {
                source: self.source,
                operation: Cow::Borrowed(OPERATION),
                began_us,
                sent_us,
                took_us: since_us(began).saturating_sub(began_us),
                subject: 0,
                value: u64::from(days.unsigned_abs()),
                ended,
            });
        }
    }

    async fn change(&self, days: i32) -> String {
        let request = v1::EnableKeyRotationRequest {
            key_id: self.key.clone(),
            rotation_period_in_days: Some(days),
        };
        let asked = self.client.key(Repeat::IfUnsent, request, |mut c, r| async move {
            c.enable_key_rotation(r).await
        });
        match RealEnv.timeout(CALL_PATIENCE, asked).await {
            None => UNKNOWN.to_owned(),
            Some(Ok(_)) => ANSWERED.to_owned(),
            Some(Err(error)) if error.outcome_unknown || error.code.is_none() => UNKNOWN.to_owned(),
            Some(Err(CallError { code, .. })) => code.unwrap_or_else(|| NO_ANSWER.to_owned()),
        }
    }
}

/// The period that a Region shows; 0 where none is set.
pub async fn shown(client: &Client, key: &str) -> Result<u64, CallError> {
    let request = v1::GetKeyRotationStatusRequest { key_id: key.to_owned() };
    let asked = client
        .key(Repeat::Safe, request, |mut c, r| async move { c.get_key_rotation_status(r).await });
    let status = asked.await?;
    let days = status.rotation_period_in_days.filter(|_| status.key_rotation_enabled);
    Ok(days.map_or(0, |days| u64::from(days.unsigned_abs())))
}
