//! A caller who does things wrong, now and then: Decrypts that must not open, and inputs that are none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keyward_service::Request;
use keyward_service::api::{DescribeKey, ScheduleKeyDeletion, UpdateKeyDescription};

use crate::client::{Callers, decrypt};
use crate::cluster::NODES;
use crate::dice::Dice;
use crate::invariants::{bad_input, never_opens};
use crate::sleep;
use bad_input::Bad;
use never_opens::Wrong;

/// How long such a call may take.
const PATIENCE: Duration = Duration::from_millis(1000);
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
        let index = dice.index(NODES);
        let Some(running) = callers.cluster.running(index) else { continue };
        let Some((misuse, request)) = choose(&callers, &mut dice) else { continue };
        let (this, group) = (Arc::clone(&callers), running.group);
        drop(callers.cluster.world.spawn_in(group, async move {
            let call = this.call(request, PATIENCE);
            let result = this.send(index, &running, call).await;
            let checked = match misuse {
                Misuse::Decrypt(wrong) => never_opens::check(wrong, &result),
                Misuse::Input(bad) => bad_input::check(bad, &result),
            };
            let mut book = this.book.lock();
            book.counters.misused += 1;
            if let Err(why) = checked {
                book.violate(format!("{why}, on node {}", this.cluster.id(index)));
            }
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
