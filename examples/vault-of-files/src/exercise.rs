//! What a drill has the vault do: files go in and come out again, and each is told in a line.

use std::time::Duration;

use keyward_env::{Env, RealEnv};
use serde_json::json;

use crate::vault::{Vault, VaultError};

/// Files that are kept at once.
const FILES: u64 = 16;

/// Puts a file in or takes one out, at that rate.
pub async fn run(
    vault: &Vault,
    rate: f64,
    lasts: Option<Duration>,
    bytes: usize,
) -> Result<(), VaultError> {
    let (began, mut in_there) = (RealEnv.boot_now(), 0_u64);
    for number in 0_u64.. {
        let due = Duration::from_secs_f64(number as f64 / rate);
        if lasts.is_some_and(|lasts| due >= lasts) {
            break;
        }
        RealEnv.sleep((began + due).saturating_sub(RealEnv.boot_now())).await;
        let sent = RealEnv.boot_now();
        let (operation, ended) = match number % 2 == 0 || in_there == 0 {
            true => {
                let file = in_there % FILES;
                let put = vault.put(&file.to_string(), content(file, bytes)).await;
                in_there += u64::from(put.is_ok());
                ("put", put)
            }
            false => {
                let file = number / 2 % in_there.min(FILES);
                ("get", get(vault, file, bytes).await)
            }
        };
        let took_us = u64::try_from((RealEnv.boot_now() - sent).as_micros()).unwrap_or(u64::MAX);
        let ended = ended.map_or_else(|error| error.short(), |()| "answered".to_owned());
        println!("{}", json!({ "operation": operation, "took_us": took_us, "ended": ended }));
    }
    Ok(())
}

/// A file that is not what went in is worse than none.
async fn get(vault: &Vault, file: u64, bytes: usize) -> Result<(), VaultError> {
    match vault.get(&file.to_string()).await? == content(file, bytes) {
        true => Ok(()),
        false => Err(VaultError::Message("another file came out".to_owned())),
    }
}

/// What is in a file of that number.
fn content(file: u64, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| ((at as u64).wrapping_mul(file + 1) >> 3) as u8).collect()
}
