//! A caller who does things wrong, now and then: Decrypts that must not open, and inputs that are none; and an operator
//! who asks for quotas that make no sense.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keyward_model::KmsError;
use keyward_quota::{Limit, Quota, QuotaName, Scope, Window};
use keyward_service::api::{DescribeKey, ScheduleKeyDeletion, UpdateKeyDescription};
use keyward_service::{Kms, Request};

use crate::client::{Callers, decrypt};
use crate::cluster::{client, metered, operator};
use crate::dice::Dice;
use crate::env::SimEnv;
use crate::invariants::{bad_input, never_opens};
use crate::sleep;
use bad_input::{Bad, BadQuota};
use never_opens::Wrong;

/// How long such a call may take.
const PATIENCE: Duration = Duration::from_millis(1000);
/// The number of a caller whom nobody made.
const NOBODY: u8 = 99;
/// One character more than a description may have.
const LONG: usize = 8193;

/// What is wrong with a call.
#[derive(Clone, Copy, Debug)]
enum Misuse {
    Decrypt(Wrong),
    Input(Bad),
}

/// Until `ended`.
pub async fn misuse(callers: Arc<Callers>, mut dice: Dice, ended: Arc<AtomicBool>) {
    while !ended.load(Ordering::Relaxed) {
        sleep(dice.between_ms(50, 350)).await;
        let index = dice.pick(&callers.cluster.members());
        let Some(running) = callers.cluster.running(index) else { continue };
        let Some((misuse, request)) = choose(&callers, &mut dice) else { continue };
        let (this, group) = (Arc::clone(&callers), running.group);
        drop(callers.cluster.world.spawn_in(group, async move {
            let call = this.call(request, PATIENCE);
            let callers = Arc::clone(&this);
            let note = move |result| {
                let checked = match misuse {
                    Misuse::Decrypt(wrong) => never_opens::check(wrong, &result),
                    Misuse::Input(bad) => bad_input::check(bad, &result),
                };
                let mut book = callers.book.lock();
                book.counters.misused += 1;
                if let Err(why) = checked {
                    book.violate(format!("{why}, on node {}", callers.cluster.id(index)));
                }
            };
            this.send((index, &running), call, note).await
        }));
    }
}

fn choose(callers: &Callers, dice: &mut Dice) -> Option<(Misuse, Request)> {
    let book = callers.book.lock();
    let keys = book.keys.len();
    let key_id = book.keys[dice.index(keys)].id.clone();
    let input = |bad, request| Some((Misuse::Input(bad), request));
    let which = dice.below(7);
    let wrong = match which {
        0 => {
            let word = dice.word();
            let key_id = format!("{:08x}-0000-4000-8000-{:012x}", word >> 32, word & 0xffff_ffff);
            return input(Bad::UnknownKey, DescribeKey { key_id }.into());
        }
        1 => {
            let key_id = dice.pick(&["none", "key/", "1234abcd-12ab", "*"]).to_owned();
            return input(Bad::MalformedId, DescribeKey { key_id }.into());
        }
        2 => {
            let description = "x".repeat(LONG);
            return input(
                Bad::LongDescription,
                UpdateKeyDescription { key_id, description }.into(),
            );
        }
        3 => {
            let pending_window_in_days = Some(dice.pick(&[-7, 0, 6, 31, 1000]));
            let request = ScheduleKeyDeletion { key_id, pending_window_in_days };
            return input(Bad::WaitingPeriod, request.into());
        }
        4 => Wrong::Context,
        5 => Wrong::Key,
        _ => Wrong::Bit,
    };
    if book.samples.is_empty() {
        return None;
    }
    let sample = &book.samples[dice.index(book.samples.len())];
    let mut request = decrypt(sample);
    match wrong {
        Wrong::Context => {
            let value = dice.pick(&["Simulation", "simulation ", ""]).to_owned();
            request.encryption_context.insert("purpose".to_owned(), value);
        }
        Wrong::Key => {
            let other = (sample.key + 1 + dice.index(keys - 1)) % keys;
            request.key_id = Some(book.keys[other].id.clone());
        }
        Wrong::Bit => {
            let bit = dice.index(request.ciphertext_blob.len() * 8);
            request.ciphertext_blob[bit / 8] ^= 1 << (bit % 8);
        }
    }
    Some((Misuse::Decrypt(wrong), request.into()))
}

// --- Quotas.

/// A call about quotas.
#[derive(Clone, Debug)]
enum QuotaCall {
    Put(Quota),
    /// By a caller who is no operator.
    PutByClient(Quota),
    Delete(QuotaName),
    Profile(&'static str),
}

impl QuotaCall {
    async fn send(self, kms: &Kms<SimEnv>) -> Result<(), KmsError> {
        match self {
            Self::Put(quota) => kms.put_quota(&operator(), quota, PATIENCE).await.map(drop),
            Self::PutByClient(quota) => kms.put_quota(&client(), quota, PATIENCE).await.map(drop),
            Self::Delete(name) => kms.delete_quota(&operator(), name, PATIENCE).await,
            Self::Profile(name) => {
                kms.apply_quota_profile(&operator(), name, PATIENCE).await.map(drop)
            }
        }
    }
}

/// An operator who asks for quotas that make no sense, of callers who have one: until `ended`.
pub async fn misuse_quotas(callers: Arc<Callers>, mut dice: Dice, ended: Arc<AtomicBool>) {
    while !ended.load(Ordering::Relaxed) {
        sleep(dice.between_ms(50, 500)).await;
        let index = dice.pick(&callers.cluster.members());
        let Some(running) = callers.cluster.running(index) else { continue };
        let bad = dice.pick(&BadQuota::ALL);
        let name = {
            let meters = callers.invariants.meters();
            meters.names[dice.index(meters.names.len())].clone()
        };
        let call = bad_quota(bad, name, &mut dice);
        let this = Arc::clone(&callers);
        drop(callers.cluster.world.spawn_in(running.group, async move {
            let result = call.clone().send(&running.kms).await;
            let mut book = this.book.lock();
            book.counters.misused += 1;
            if let Err(why) = bad_input::check(Bad::Quota(bad), &result) {
                book.violate(format!("{why}, on node {}: {call:?}", this.cluster.id(index)));
            }
        }));
    }
}

fn bad_quota(bad: BadQuota, name: QuotaName, dice: &mut Dice) -> QuotaCall {
    let limit = |window, limit, burst| Limit { window, limit, burst };
    let good = 20 + dice.below(100);
    let long = dice.pick(&[Window::Minute, Window::Day]);
    let limits = match bad {
        BadQuota::Empty => vec![],
        BadQuota::Zero => vec![limit(dice.pick(&Window::ALL), 0, 0)],
        BadQuota::ZeroBurst => vec![limit(Window::Second, good, 0)],
        BadQuota::Absurd => {
            let absurd = dice.pick(&[1_000_000_000_001, u64::MAX - 1, u64::MAX]);
            vec![limit(dice.pick(&Window::ALL), absurd, good)]
        }
        BadQuota::AbsurdBurst => {
            vec![limit(Window::Second, good, dice.pick(&[10_000_001, u64::MAX]))]
        }
        BadQuota::SmallBurst => vec![limit(Window::Second, good * 20 + 1, good)],
        BadQuota::LongBurst => vec![limit(long, good, 1)],
        BadQuota::Twice => {
            let window = dice.pick(&Window::ALL);
            let burst = if window == Window::Second { good } else { 0 };
            vec![limit(window, good, burst), limit(window, good + dice.below(2), burst)]
        }
        BadQuota::Conflict => vec![limit(long, good - 1, 0), limit(Window::Second, good, good)],
        BadQuota::NeverReached => {
            let reach = good * long.seconds() + good;
            vec![limit(Window::Second, good, good), limit(long, reach + 1, 0)]
        }
        BadQuota::UnknownProfile => {
            return QuotaCall::Profile(dice.pick(&["", "aws", "us-moon-1", "*"]));
        }
        BadQuota::UnknownPrincipal | BadQuota::UnknownQuota | BadQuota::NoOperator => {
            vec![limit(Window::Second, good, good)]
        }
    };
    let nobody = || {
        let scope = Scope::Principal(metered(NOBODY).principal.clone());
        QuotaName { scope, ..name.clone() }
    };
    match bad {
        BadQuota::UnknownQuota => QuotaCall::Delete(nobody()),
        BadQuota::UnknownPrincipal => QuotaCall::Put(unchecked(nobody(), limits)),
        BadQuota::NoOperator => QuotaCall::PutByClient(unchecked(name, limits)),
        _ => QuotaCall::Put(unchecked(name, limits)),
    }
}

/// As it comes from somebody who does not look.
fn unchecked(name: QuotaName, limits: Vec<Limit>) -> Quota {
    Quota { name, limits, profile: None, revision: 0 }
}
